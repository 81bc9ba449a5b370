"""Measurements of speed, memory and reliability. `python -m benchmarks` lists them."""
