"""Build sdist and wheel, check them with twine, and use the wheel in two new environments.

In the first, with all requirements, `doctor`, a training of two epochs and `predict` run. In the second, with NumPy and
onnxruntime alone, a bot decides (`tools/bot.py`).
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from bot import create_environment, decide_alone, measure_size_mb, run

ROOT = Path(__file__).parents[1]
SMALL = """
    timeframe=1h sequence_length=12 future_window=24 lstm_units=8,4 dense_units=4 batch_size=64 epochs=2
    long_tp_pct=2 short_tp_pct=2 long_sl_pct=2 short_sl_pct=2
"""
MAKE_CANDLES = """
from crypto_lstm.data.synthetic import synthetic_candles

synthetic_candles(5000, seed=3, timeframe="1h").to_parquet("candles.parquet")
"""


def build(place: Path) -> tuple[Path, Path]:
    """The wheel and the sdist; the wheel is built from the sdist, and twine checks both."""
    run(sys.executable, "-m", "build", "--outdir", place / "dist", ROOT, cwd=ROOT)
    (wheel,) = (place / "dist").glob("*.whl")
    (sdist,) = (place / "dist").glob("*.tar.gz")
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist, cwd=place)
    return wheel, sdist


def train_and_predict(wheel: Path, place: Path) -> str:
    """Install the wheel with all requirements, and run `doctor`, `train` and `predict`; returns a sentence."""
    environment = create_environment(place / "env", [wheel])
    command, python = environment / "bin" / "crypto-lstm", environment / "bin" / "python"
    words = ["--set", "lstm_units=8", "batch_size=64"]
    diagnosis = json.loads(run(command, "doctor", "--json", *words, cwd=place))
    assert diagnosis["healthy"], diagnosis
    run(python, "-c", MAKE_CANDLES, cwd=place)
    candles = ["--candles", "candles.parquet", "--json"]
    trained = json.loads(run(command, "train", *candles, "--output", "run", "--set", *SMALL.split(), cwd=place))
    assert trained["epochs_run"] == 2, trained
    answers = json.loads(run(command, "predict", *candles, "--model", "run", cwd=place))
    assert answers["last"]["decision"] in trained["classes"], answers
    size = f"the whole installation: {measure_size_mb(environment):,.0f} MB"
    return f"installed, doctor found no fault, trained 2 epochs, {answers['rows']} decisions; {size}"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        wheel, sdist = build(place)
        print(f"{wheel.name} and {sdist.name}: {train_and_predict(wheel, place)}")
        print(decide_alone(wheel, place))


if __name__ == "__main__":
    main()
