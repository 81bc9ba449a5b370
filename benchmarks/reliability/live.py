"""A bot's stream and decisions against a plain oracle: lost, late, repeated, changed and bad candles, in random order.

    python -m benchmarks live [--calls 1000000] [--seed 1]

First candles go to a stream, then candles and histories to `update` and `decide` of a predictor. It prints how many
calls were compared, and every call with another answer than the oracle's. The exit code is 1 if there is any.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from support import decision_oracle, live_oracle


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks live", description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(words)
    faults = 0
    for name, fuzz in (("stream", live_oracle.fuzz), ("update and decide", decision_oracle.fuzz_decisions)):
        faults += compare(name, fuzz, options.calls, options.seed)
    return 1 if faults else 0


def compare(name: str, fuzz: Callable[..., live_oracle.Tally], calls: int, seed: int) -> int:
    """Run a fuzz and print its counts; the number of differences."""
    start = time.monotonic()
    tally = fuzz(calls, seed, check_every=50)
    print(
        f"{name}: {tally.calls:,} calls in {time.monotonic() - start:.0f} s: {tally.new:,} candles taken, "
        f"{tally.refused:,} refused, {tally.with_hole:,} with candles missing, {tally.windows:,} windows compared; "
        f"{len(tally.faults)} differences"
    )
    print("\n".join(tally.faults[:20]))
    return len(tally.faults)
