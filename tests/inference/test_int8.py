"""Files with integers: equal answers alone and among others, changed bytes refused, what `verify` and `str` say."""

from __future__ import annotations

import json
import pickle
from datetime import timedelta

import numpy as np
import onnxruntime
import pytest

from crypto_lstm.architecture import build_model
from crypto_lstm.commands.main import main
from crypto_lstm.config import Config
from crypto_lstm.data.features import make_features
from crypto_lstm.data.scaler import Scaler
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.inference import onnx_file
from crypto_lstm.inference.int8 import Int8Error
from crypto_lstm.inference.onnx_file import INPUT, OnnxFileError, decode_onnx_file, export_onnx
from crypto_lstm.inference.predictor import Predictor
from crypto_lstm.storage.manifest import IntegrityError

CONFIG = Config(timeframe="1h", sequence_length=24, lstm_units=(32, 16), dense_units=(4,), seed=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Candles, a network with clear answers, and its file with integers."""
    folder = tmp_path_factory.mktemp("int8")
    candles = synthetic_candles(2500, seed=3, timeframe="1h")
    scaler = Scaler.fit(make_features(candles, CONFIG)[list(CONFIG.features)].to_numpy(), CONFIG)
    model = build_model(CONFIG, compile_model=False)
    kernel, _ = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel, np.array([0.0, 0.5, 3.0])])
    options = {"config": CONFIG, "scaler": scaler}
    export_onnx(model, folder / "float.onnx", **options)
    export_onnx(model, folder / "int8.onnx", **options, int8=True, candles=candles)
    return folder, candles, model, options


def test_the_answers_alone_and_among_others_are_equal(made):
    folder, candles, _, _ = made
    predictor = Predictor.load(folder / "int8.onnx")
    answers = predictor.predict(candles)
    predictor.warm_up(candles[:-20])
    for row, candle in zip(range(-20, 0), candles[-20:].to_dict("records"), strict=True):
        closed = candle["date"].to_pydatetime() + timedelta(hours=1)
        decision = predictor.update(candle, now=closed)
        assert decision.probabilities["LONG"] == answers["long"][row]


def test_the_report_is_what_a_plain_comparison_finds(made):
    folder, candles, _, _ = made
    one, other = (Predictor.load(folder / name).predict(candles) for name in ("float.onnx", "int8.onnx"))
    report = Predictor.load(folder / "int8.onnx").metadata["int8"]
    changes = [np.abs(one[name] - other[name]) for name in ("short", "hold", "long")]
    assert report["windows"] == len(one["date"])
    assert report["different"] == int((one["decision"] != other["decision"]).sum()) == 0
    assert report["max_change"] == pytest.approx(np.max(changes), abs=1e-12)
    assert 0 < report["mean_change"] == pytest.approx(np.mean(changes), abs=1e-12)


def test_the_kernels_are_a_quarter_of_their_size(made):
    folder = made[0]
    sizes = []
    for name in ("float.onnx", "int8.onnx"):
        _, _, arrays = decode_onnx_file((folder / name).read_bytes(), name)
        kernels = [array for key, array in arrays.items() if key.startswith("lstm") and key.endswith((".W", ".R"))]
        sizes.append(sum(array.nbytes for array in kernels))
    assert 0 < sizes[1] == sizes[0] / 4


def test_onnxruntime_runs_the_operator_with_integers(made):
    data = (made[0] / "int8.onnx").read_bytes()
    assert b"DynamicQuantizeLSTM" in data
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    answer = session.run(None, {INPUT: np.zeros((1, 24, 8), dtype=np.float32)})[0]
    assert answer.shape == (1, 3)


def test_every_changed_byte_is_refused(made, tmp_path):
    data = bytearray((made[0] / "int8.onnx").read_bytes())
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(data), 150).tolist():
        changed = bytes(data[:place]) + bytes([data[place] ^ 1 << int(rng.integers(8))]) + bytes(data[place + 1 :])
        with pytest.raises(IntegrityError):
            decode_onnx_file(changed, "changed.onnx")


def test_a_forged_report_is_refused(made):
    data = (made[0] / "int8.onnx").read_bytes()
    for before, after in ((b'"different": 0', b'"different": 9'), (b'"int8": {', b'"int9": {')):
        assert before in data
        with pytest.raises(OnnxFileError):
            decode_onnx_file(data.replace(before, after), "forged.onnx")


def test_close_decisions_are_refused_and_nothing_is_written(made, tmp_path):
    _, candles, _, options = made
    model = build_model(CONFIG, compile_model=False)
    kinds = r"integers in the layers: \d+ of 1,75\d decisions differ.*integers in the weights: \d+ of 1,75\d"
    with pytest.raises(Int8Error, match=f"int8 changes too much, {kinds}"):
        export_onnx(model, tmp_path / "no.onnx", **options, int8=True, candles=candles)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- integers in the weights alone


@pytest.fixture(scope="module")
def weights(made):
    """A file with integers in the weights, as if those in the layers changed too much."""
    folder, candles, model, options = made
    with pytest.MonkeyPatch.context() as patch:
        accept = onnx_file.is_accepted
        patch.setattr(onnx_file, "is_accepted", lambda report: report.kind == "weights" and accept(report))
        export_onnx(model, folder / "weights.onnx", **options, int8=True, candles=candles)
    return folder / "weights.onnx"


def test_weights_are_nearer_to_float_and_as_small(made, weights):
    folder, candles, _, _ = made
    plain = Predictor.load(folder / "float.onnx").predict(candles)
    changes = {}
    for name in ("int8", "weights"):
        answers = Predictor.load(folder / f"{name}.onnx").predict(candles)
        changes[name] = np.mean([np.abs(plain[one] - answers[one]) for one in ("short", "hold", "long")])
    assert 0 < changes["weights"] < changes["int8"]
    report = Predictor.load(weights).metadata["int8"]
    assert report["kind"] == "weights" and report["mean_change"] == pytest.approx(changes["weights"], abs=1e-12)
    assert weights.stat().st_size < 1.01 * (folder / "int8.onnx").stat().st_size


def test_other_programs_run_the_weights_too(made, weights):
    session = onnxruntime.InferenceSession(weights.read_bytes(), providers=["CPUExecutionProvider"])
    windows = np.random.default_rng(0).standard_normal((5, 24, 8)).astype(np.float32)
    answers = session.run(None, {INPUT: windows})[0]
    assert np.allclose(answers, Predictor.load(weights).probabilities(windows), atol=1e-6)


def test_a_bot_with_integers_in_the_weights_decides_as_predict(made, weights, tmp_path):
    _, candles, _, _ = made
    predictor = Predictor.load(weights)
    answers = predictor.predict(candles)
    predictor.warm_up(candles[:-10])
    for row, candle in zip(range(-10, 0), candles[-10:].to_dict("records"), strict=True):
        decision = predictor.update(candle, now=candle["date"].to_pydatetime() + timedelta(hours=1))
        assert decision.probabilities["LONG"] == pytest.approx(answers["long"][row], abs=1e-6)
    copy = pickle.loads(pickle.dumps(predictor))
    assert copy.sha256 == predictor.sha256 and copy.stream.time == predictor.stream.time


def test_every_changed_byte_of_the_weights_is_refused(weights):
    data = bytearray(weights.read_bytes())
    rng = np.random.default_rng(1)
    for place in rng.integers(0, len(data), 100).tolist():
        changed = bytes(data[:place]) + bytes([data[place] ^ 1 << int(rng.integers(8))]) + bytes(data[place + 1 :])
        with pytest.raises(IntegrityError):
            decode_onnx_file(changed, "changed.onnx")


def test_verify_and_str_show_what_was_measured(made, capsys):
    path = made[0] / "int8.onnx"
    assert main(["verify", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["int8"]["different"] == 0
    assert "0 of 1,75" in str(Predictor.load(path)) and "decisions differ (0.000%)" in str(Predictor.load(path))


def test_the_command_asks_for_candles(tmp_path, capsys):
    assert main(["export", "--model", "run", "--int8", "--output", str(tmp_path / "x.onnx")]) == 1
    assert "--int8 counts the decisions that it changes: give --candles" in capsys.readouterr().err
