"""A month of minutes through `LiveRunner`, with faults of the exchange and kills: its journal beside `predict`.

    python -m benchmarks live_runner [--timeframe 1m] [--faults 50] [--kills 10] [--seed 1]

It prints how many decisions were compared and every line of the journal that is wrong. The exit code is 1 if there is
any. A candle that never came, and those whose window it is missing in, must be NO_TRADE with a reason.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from support import live_check


def write_model(path: Path, timeframe: str) -> Path:
    """A network with random weights and a scaler that was fitted to the same kind of market."""
    from crypto_lstm.architecture import build_model
    from crypto_lstm.config import Config
    from crypto_lstm.data.features import make_features
    from crypto_lstm.data.scaler import Scaler
    from crypto_lstm.data.synthetic import synthetic_candles
    from crypto_lstm.inference.onnx_file import export_onnx

    config = Config(timeframe=timeframe, sequence_length=30, lstm_units=(16, 8), dense_units=(), pair=live_check.MARKET)
    candles = synthetic_candles(config.month_candles + 2000, seed=3, timeframe=timeframe)
    scaler = Scaler.fit(make_features(candles, config)[list(config.features)].to_numpy(), config)
    export_onnx(build_model(config, compile_model=False), path, config=config, scaler=scaler)
    return path


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks live_runner", description=__doc__.splitlines()[0])
    parser.add_argument("--timeframe", default="1m")
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_model(folder / "network.onnx", options.timeframe)
        month = live_check.Predictor.load(model).config.month_candles
        plan = live_check.prepare(folder, model, month + 60, month, options.faults, options.seed)
        start = time.monotonic()
        kills = live_check.run_and_kill(folder, plan, options.kills, options.seed, longest_s=8.0)
        tally = live_check.compare(folder, plan)
    print(
        f"{tally.dates:,} candles of {options.timeframe}, {options.faults} faults, {kills} kills in "
        f"{time.monotonic() - start:.0f} s: {tally.equal:,} decisions equal predict to the bit, {tally.without:,} are "
        f"NO_TRADE with a reason, {tally.actions:,} actions, {tally.entries:,} entries; {len(tally.faults)} are wrong"
    )
    print("\n".join(tally.faults[:20]))
    return 1 if tally.faults else 0
