"""Install the wheel without an extra, which brings NumPy and onnxruntime, and decide there as a bot does.

`tools/wheel.py` does the same with the wheel that it builds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crypto_lstm.architecture import build_model
from crypto_lstm.config import Config
from crypto_lstm.data.features import make_features
from crypto_lstm.data.scaler import Scaler
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.inference.onnx_file import export_onnx
from crypto_lstm.training.saved_run import predict_candles

ROOT = Path(__file__).parents[1]
CONFIG = Config(timeframe="1h", sequence_length=12, lstm_units=(8, 4), dense_units=())
PIP = (sys.executable, "-m", "pip", "--python")  # the environment and the words of pip follow
TRAINING_COMMANDS = (
    "train --candles candles.json --output run",
    "demo --output run",
    "baseline --candles candles.json",
    "walk-forward --candles candles.json --output folds",
    "estimate",
    "predict --model model.onnx --candles candles.json",
    "export --model run --output other.onnx",
    "verify .",
)
BOT = """
import time
start = time.perf_counter()
from crypto_lstm.inference.predictor import Predictor
import_s = time.perf_counter() - start
import json, sys
candles = json.load(open("candles.json"))  # in the format of ccxt's fetch_ohlcv
start = time.perf_counter()
predictor = Predictor.load("model.onnx", sys.argv[1])
predictor.warm_up(candles[:-50])
hour, decisions = 3_600_000, []
from datetime import datetime, timezone
for candle in candles[-50:]:
    close = datetime.fromtimestamp((candle[0] + hour) / 1000, timezone.utc)
    decisions.append(predictor.update(candle, now=close).as_dict())
    if len(decisions) == 1:
        first_s = time.perf_counter() - start
whole = predictor.decide(candles, now=close).as_dict()
heavy = {"tensorflow", "keras", "pandas", "pyarrow", "sklearn", "onnx", "matplotlib", "psutil"}
answers = {"decisions": decisions, "whole": whole, "heavy": sorted(heavy & set(sys.modules))}
print(json.dumps({**answers, "import_s": import_s, "first_s": first_s}))
"""


def clean_environ() -> dict[str, str]:
    """The variables of this process without those of Python, which would lead to other packages."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def run(*words: str | Path, cwd: Path) -> str:
    """Run a command; its standard output. Ends the program where the command fails."""
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True, env=clean_environ())
    if done.returncode:
        shown = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        raise SystemExit(f"{words[0]} {words[1]} ended with {done.returncode}:\n{shown}")
    return done.stdout


def create_environment(path: Path, *installations: Sequence[str | Path]) -> Path:
    """A new environment; each installation holds the words of one `pip install`. The pip is that of this environment.

    Python compiles modules when they are imported: compiling all of TensorFlow takes a minute.
    """
    venv.create(path)
    for words in installations:
        run(*PIP, path / "bin" / "python", "install", "--quiet", "--no-compile", *words, cwd=path)
    return path


def measure_size_mb(environment: Path) -> float:
    """Size of the installed packages, without compiled modules; MB."""
    packages = next((environment / "lib").glob("python*/site-packages"))
    size = 0
    for file in packages.rglob("*"):
        if file.is_file() and not file.is_symlink() and file.suffix != ".pyc":
            size += file.stat().st_size
    return size / 1e6


def decide_alone(wheel: Path, place: Path) -> str:
    """Install the wheel without an extra, decide there, and compare with Keras here; returns a sentence.

    Fails if `pip check` finds a fault, or if a command that needs an extra does not name it.
    """
    candles, model = synthetic_candles(2000, seed=3, timeframe="1h"), build_model(CONFIG, compile_model=False)
    scaler = Scaler.fit(make_features(candles, CONFIG)[list(CONFIG.features)].to_numpy(), CONFIG)
    sha256 = export_onnx(model, place / "model.onnx", config=CONFIG, scaler=scaler)
    rows = candles.assign(date=candles["date"].astype("int64") // 10**6).to_numpy().tolist()
    (place / "candles.json").write_text(json.dumps(rows), encoding="utf-8")
    environment = create_environment(place / "bot", [wheel])
    run(*PIP, environment / "bin" / "python", "check", cwd=place)
    answers = json.loads(run(environment / "bin" / "python", "-c", BOT, sha256, cwd=place))
    check_decisions(answers, predict_candles(model, scaler, CONFIG, candles)[-50:])
    check_commands(environment, place)
    size = f"the environment of a bot, with NumPy and onnxruntime: {measure_size_mb(environment):,.0f} MB"
    times = f"import {answers['import_s']:.2f} s, first decision {answers['first_s']:.2f} s after it"
    return f"{size}; {times}; 50 decisions by update and 1 by decide equal those of Keras"


def check_commands(environment: Path, place: Path) -> None:
    """The commands that a bot needs run, and the others name the extra that they need, in one sentence."""
    command = environment / "bin" / "crypto-lstm"
    run(command, "verify", "model.onnx", cwd=place)
    diagnosis = json.loads(run(command, "doctor", "--json", cwd=place))
    assert diagnosis["healthy"], diagnosis
    for words in TRAINING_COMMANDS:
        done = subprocess.run([command, *words.split()], cwd=place, capture_output=True, text=True, env=clean_environ())
        assert done.returncode == 1 and done.stderr.count("\n") == 1, (words, done.stderr)
        assert 'pip install "crypto_lstm[train]"' in done.stderr, (words, done.stderr)


def check_decisions(answers: dict, expected: object) -> None:
    """The bot loaded no other library, and its decisions are those of Keras."""
    assert answers["heavy"] == [], answers["heavy"]
    decisions = answers["decisions"]
    assert answers["whole"] == decisions[-1]
    assert [decision["action"] for decision in decisions] == expected["decision"].tolist()
    shares = [[decision["probabilities"][name] for name in ("SHORT", "HOLD", "LONG")] for decision in decisions]
    assert np.allclose(shares, expected[["short", "hold", "long"]], atol=1e-5)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        run(sys.executable, "-m", "build", "--wheel", "--outdir", place / "dist", ROOT, cwd=ROOT)
        (wheel,) = (place / "dist").glob("*.whl")
        print(decide_alone(wheel, place))


if __name__ == "__main__":
    main()
