"""A bot's stream against a plain oracle: lost, late, repeated and changed candles, in random order.

    python -m benchmarks live [--calls 1000000] [--seed 1]

It prints how many calls were compared, and every call in which the stream and the oracle differ. The exit code is 1 if
there is any.
"""

from __future__ import annotations

import argparse
import time

from support import live_oracle


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks live", description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(words)
    start = time.monotonic()
    tally = live_oracle.fuzz(options.calls, options.seed, check_every=50)
    print(
        f"{tally.calls:,} calls in {time.monotonic() - start:.0f} s: {tally.new:,} candles taken, "
        f"{tally.refused:,} refused, {tally.with_hole:,} with candles missing, {tally.windows:,} windows compared; "
        f"{len(tally.faults)} differences"
    )
    print("\n".join(tally.faults[:20]))
    return 1 if tally.faults else 0
