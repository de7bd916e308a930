"""Queued runs: durable jobs over Redis."""
