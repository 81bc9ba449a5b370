"""Build sdist and wheel, install the wheel into a new environment, and run doctor, a two-epoch training and predict there.

Then install it once more, beside numpy and onnxruntime alone, and decide there as a bot does (`tools/bot.py`).
"""

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from bot import decide_alone, size_mb

ROOT = Path(__file__).parents[1]
SMALL = """
    timeframe=1h sequence_length=12 future_window=24 lstm_units=8,4 dense_units=4 batch_size=64 epochs=2
    long_tp_pct=2 short_tp_pct=2 long_sl_pct=2 short_sl_pct=2
"""
MAKE_CANDLES = """
from crypto_lstm.data.synthetic import synthetic_candles

synthetic_candles(5000, seed=3, timeframe="1h").to_parquet("candles.parquet")
"""


def run(*words: str | Path, cwd: Path) -> str:
    """Run a command; its standard output. The environment's own commands come by their path."""
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{words[0]} {words[1]} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        run(sys.executable, "-m", "build", "--outdir", place / "dist", ROOT, cwd=ROOT)  # the wheel is built from the sdist
        (wheel,), (sdist,) = (place / "dist").glob("*.whl"), (place / "dist").glob("*.tar.gz")
        venv.create(place / "env", with_pip=True)
        binaries = place / "env" / "bin"
        run(binaries / "python", "-m", "pip", "install", "--quiet", wheel, cwd=place)
        command = binaries / "crypto-lstm"
        diagnosis = json.loads(run(command, "doctor", "--json", "--set", "lstm_units=8", "batch_size=64", cwd=place))
        run(binaries / "python", "-c", MAKE_CANDLES, cwd=place)
        trained = json.loads(
            run(command, "train", "--candles", "candles.parquet", "--output", "run", "--json", "--set", *SMALL.split(), cwd=place)
        )
        answers = json.loads(run(command, "predict", "--model", "run", "--candles", "candles.parquet", "--json", cwd=place))
        assert diagnosis["healthy"] and trained["epochs_run"] == 2 and answers["last"]["decision"] in trained["classes"]
        print(f"{wheel.name} and {sdist.name}: installed, doctor well, trained {trained['epochs_run']} epochs, {answers['rows']} decisions")
        print(f"{decide_alone(wheel, place)}; the whole installation: {size_mb(place / 'env'):,.0f} MB")


if __name__ == "__main__":
    main()
