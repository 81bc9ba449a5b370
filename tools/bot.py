"""Build the wheel, install it without its requirements beside numpy and onnxruntime alone, and decide there as a bot does.

`tools/wheel.py` does the same with the wheel that it builds, and says the size of the whole installation too.
"""

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np

from crypto_lstm.architecture import build_model
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.config import Config
from crypto_lstm.inference.onnx_file import export_onnx
from crypto_lstm.data.features import make_features
from crypto_lstm.training.saved_run import predict_candles
from crypto_lstm.data.scaler import Scaler

ROOT = Path(__file__).parents[1]
CONFIG = Config(timeframe="1h", sequence_length=12, lstm_units=(8, 4), dense_units=())
BOT = """
import json, sys
from crypto_lstm.inference.predictor import Predictor
predictor = Predictor.load("model.onnx", sys.argv[1])
candles = json.load(open("candles.json"))  # as ccxt's fetch_ohlcv gives them
predictor.warm_up(candles[:-50])
hour, decisions = 3_600_000, []
from datetime import datetime, timezone
for candle in candles[-50:]:
    close = datetime.fromtimestamp((candle[0] + hour) / 1000, timezone.utc)
    decisions.append(predictor.update(candle, now=close).as_dict())
whole = predictor.decide(candles, now=close).as_dict()
heavy = sorted({"tensorflow", "keras", "pandas", "pyarrow", "sklearn", "onnx", "matplotlib", "psutil"} & set(sys.modules))
print(json.dumps({"decisions": decisions, "whole": whole, "heavy": heavy}))
"""


def run(*words: str | Path, cwd: Path) -> str:
    """Run a command; its standard output."""
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{words[0]} {words[1]} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def size_mb(environment: Path) -> float:
    """Size of what is installed, without pip and setuptools; MB."""
    packages = next((environment / "lib").glob("python*/site-packages"))
    kept = [path for path in packages.iterdir() if not path.name.startswith(("pip", "setuptools", "_distutils"))]
    files = (file for path in kept for file in (path.rglob("*") if path.is_dir() else [path]))
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink()) / 1e6


def install(place: Path, name: str, *steps: list[str | Path]) -> Path:
    """A new environment; each step is the words of one `pip install`."""
    venv.create(place / name, with_pip=True)
    for words in steps:
        run(place / name / "bin" / "python", "-m", "pip", "install", "--quiet", *words, cwd=place)
    return place / name


def decide_alone(wheel: Path, place: Path) -> str:
    """Install the wheel without its requirements, decide there, and compare with Keras here. What came out, in words."""
    candles, model = synthetic_candles(2000, seed=3, timeframe="1h"), build_model(CONFIG, compile_model=False)
    scaler = Scaler.fit(make_features(candles, CONFIG)[list(CONFIG.features)].to_numpy(), CONFIG)
    sha256 = export_onnx(model, place / "model.onnx", config=CONFIG, scaler=scaler)
    rows = candles.assign(date=candles["date"].astype("int64") // 10**6).to_numpy().tolist()
    (place / "candles.json").write_text(json.dumps(rows))
    bot = install(place, "bot", ["--no-deps", wheel], ["numpy", "onnxruntime"])
    answers = json.loads(run(bot / "bin" / "python", "-c", BOT, sha256, cwd=place))
    expected = predict_candles(model, scaler, CONFIG, candles)[-50:]
    shares = [[decision["probabilities"][name] for name in ("SHORT", "HOLD", "LONG")] for decision in answers["decisions"]]
    assert answers["heavy"] == [], answers["heavy"]
    assert np.allclose(shares, expected[["short", "hold", "long"]], atol=1e-5) and answers["whole"] == answers["decisions"][-1]
    assert [decision["action"] for decision in answers["decisions"]] == expected["decision"].tolist()
    return f"a bot's environment, numpy and onnxruntime: {size_mb(bot):,.0f} MB; 50 candles by update and 1 by decide, as Keras decides"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        run(sys.executable, "-m", "build", "--outdir", place / "dist", ROOT, cwd=ROOT)
        (wheel,) = (place / "dist").glob("*.whl")
        print(decide_alone(wheel, place))


if __name__ == "__main__":
    main()
