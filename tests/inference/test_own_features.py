"""Features and columns of the user's, from a table of candles to a bundle, a file, and the decisions of a bot."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from crypto_lstm.architecture import build_model
from crypto_lstm.config import Config
from crypto_lstm.data.candle_input import StreamError
from crypto_lstm.data.candles import read_candles
from crypto_lstm.data.features import make_features
from crypto_lstm.data.layouts import CandleError
from crypto_lstm.data.scaler import Scaler
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.inference.bundle import build_facts
from crypto_lstm.inference.onnx_file import export_onnx
from crypto_lstm.inference.predictor import Predictor

CONFIG = Config(
    timeframe="1h",
    sequence_length=6,
    lstm_units=(4,),
    dense_units=(),
    features={
        "close_change": "pct(close)",
        "rsi_6": "rsi(close, 6)",
        "atr": "atr(6) / close",
        "rate": "sum(funding, 8h)",
    },
    column_max_age=["funding = 1h"],
)


@pytest.fixture(scope="module")
def candles(tmp_path_factory):
    """Candles from a file with a column of funding, and two that an expression does not need."""
    frame = synthetic_candles(400, seed=3, timeframe="1h")
    rng = np.random.default_rng(0)
    frame = frame.assign(funding=rng.normal(0, 1, 400), trades=7, note="none")
    path = tmp_path_factory.mktemp("candles") / "candles.csv"
    frame.drop(index=[200, 300, 301]).to_csv(path, index=False)
    return read_candles(path, keep=CONFIG.feature_columns)


@pytest.fixture(scope="module")
def predictor(candles, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    scaler = Scaler.fit(make_features(candles, CONFIG)[list(CONFIG.feature_names)].to_numpy(), CONFIG)
    export_onnx(build_model(CONFIG, compile_model=False), path, config=CONFIG, scaler=scaler)
    return Predictor.load(path)


def test_a_file_holds_the_expressions_and_names_the_columns(predictor):
    assert predictor.config == CONFIG
    assert "funding, known at the close" in str(predictor)
    assert build_facts(CONFIG, predictor._scaler)["columns"]["names"] == ["funding"]
    assert "columns" not in build_facts(Config(), Scaler("none", Config().features, (0.0,) * 8, (1.0,) * 8, 10.0))


def test_a_bot_decides_as_the_whole_history(predictor, candles):
    rows = candles.to_dict("records")
    whole = predictor.predict(candles)
    compared = 0
    for start, stop in ((230, 245), (385, len(rows))):
        predictor.stream = None
        predictor.warm_up(candles[:start])
        for row in rows[start:stop]:
            decision = predictor.update(row, now=row["date"] + pd.Timedelta(hours=1))
            place = np.flatnonzero(whole["date"] == row["date"].tz_localize(None).to_datetime64())
            assert decision.probabilities["LONG"] == pytest.approx(whole["long"][place[0]], abs=1e-6)
            compared += 1
    assert compared > 20


def test_a_candle_without_its_column_gives_no_trade(predictor, candles, tmp_path):
    rows = candles.to_dict("records")
    predictor.stream = None
    predictor.warm_up(candles[:390])
    now = rows[390]["date"] + pd.Timedelta(hours=1)
    without = {name: value for name, value in rows[390].items() if name != "funding"}
    for wrong in (without, rows[390] | {"funding": None}, list(without.values())):
        decision = predictor.update(wrong, now=now)
        assert decision.action == "NO_TRADE" and "need the column funding" in decision.reason
    for value in (float("nan"), "0.1", np.ma.masked):
        with pytest.raises(StreamError, match="funding"):
            predictor.update(rows[390] | {"funding": value}, now=now)
    predictor.save_state(tmp_path / "state.npz")
    decision = predictor.update(rows[390], now=now)
    assert decision.probabilities is not None
    other = Predictor.load(predictor.path)
    other.load_state(tmp_path / "state.npz")
    assert other.update(rows[390], now=now) == decision


@pytest.mark.parametrize(
    ("keep", "fault"),
    [
        (["fundin"], "did you mean funding"),
        (["rate"], "no column 'rate' to keep"),
        (["note"], "is no number"),
        (["close"], "further columns"),
        (["funding", "funding"], "different names"),
        ("funding", "keep must be a list"),
    ],
)
def test_columns_that_can_not_be_kept_are_refused(keep, fault):
    frame = synthetic_candles(50, seed=3).assign(funding=0.1, note="none")
    with pytest.raises(CandleError, match=fault):
        read_candles(frame, keep=keep)
