"""Folders of the repository that the benchmarks read and write."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"  # stored results, and RESULTS.md
