"""Benchmarks: each module with a `run` is a row of `ragwright bench`."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
