"""Benchmarks: each module with a `run` is a row of `ragwright bench`."""
