"""Candles from which little can be learnt are named, and inputs out of the range of the training are told."""

import numpy as np
import pandas as pd
import pytest
from support.kill_and_resume import CONFIG, candles

from crypto_lstm.config import Config
from crypto_lstm.data.scaler import Scaler
from crypto_lstm.data.windows import prepare
from crypto_lstm.inference.bundle import load_bundle
from crypto_lstm.inference.predictor import Predictor
from crypto_lstm.training.saved_run import load_run
from crypto_lstm.training.trainer import train

SMALL = CONFIG.replace(lstm_units=(4,), dense_units=(), epochs=1, batch_size=320, dropout_rate=0.0)
HOURLY = candles()
VALUES = SMALL.sequence_length * len(SMALL.features)
VOLUME = ("volume_change", "volume_to_ma1440", "volume_to_ma43200")
CLOSE = HOURLY["date"].iloc[-1] + pd.Timedelta(hours=1)

pytestmark = pytest.mark.usefixtures("bare_trainings")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose training candles have the volume 5."""
    return train(HOURLY.assign(volume=5.0), SMALL, tmp_path_factory.mktemp("flat") / "run", tensorboard=False)


@pytest.mark.parametrize("volume", [0.0, 5.0, 1e6])
@pytest.mark.parametrize("noise", [0.0, 1e-10])
def test_a_constant_volume_is_named(volume, noise):
    """Also for a volume of a million, and for a volume that varies only by rounding."""
    steps = np.random.default_rng(0).uniform(0, 1, len(HOURLY)) * noise * max(1, volume)
    data = prepare(HOURLY.assign(volume=volume + steps), SMALL)
    assert any(f"the volume is {volume:.6g} in every candle of the training part" in text for text in data.warnings)
    if volume or not noise:
        assert data.scaler.constant == VOLUME
        assert "constant in the training part, so nothing is learnt from it: volume_change (0)" in data.warnings[0]
        assert all(data.scaler.scale[SMALL.features.index(name)] == 1 for name in VOLUME)
    assert data.as_dict()["warnings"] == list(data.warnings)
    assert all(f"Warning: {text}." in str(data) and text in data._repr_html_() for text in data.warnings)


@pytest.mark.parametrize("kind", ["robust", "standard", "minmax", "none"])
def test_the_noise_of_a_constant_feature_is_no_signal(kind):
    matrix = np.random.default_rng(0).standard_normal((400, 2))
    matrix[:, 1] = 7 + 1e-9 * matrix[:, 1]
    scaler = Scaler.fit(matrix, Config(features=("close_change", "volume_change"), scaler=kind))
    assert scaler.constant == ("volume_change",)
    assert np.abs(scaler.scale_rows(matrix)[:, 1]).max() < 1e-6 or kind == "none"


def test_a_market_without_doubts_gets_no_warning():
    data = prepare(HOURLY, SMALL)
    assert data.warnings == () and data.scaler.constant == () and "constant" not in data.scaler.as_dict()


def stop_trading(first: int, last: int) -> pd.DataFrame:
    """Candles whose price stands still, as exchanges write them after a delisting."""
    dead = HOURLY.copy()
    dead.loc[first:last, ["open", "high", "low", "close"]] = dead.loc[first - 1, "close"]
    dead.loc[first:last, "volume"] = 0.0
    return dead


@pytest.mark.parametrize(
    "first, last, told",
    [
        (2900, 2999, ", the last one: a dead market, such as after a delisting"),
        (1500, 1600, ": a dead market"),  # a relative: it came back
        (2950, 2960, None),  # a night without trades
    ],
)
def test_a_dead_market_is_named_with_its_dates(first, last, told):
    warnings = prepare(stop_trading(first, last), SMALL).warnings
    if told is None:
        assert warnings == ()
        return
    dates = [f"{HOURLY['date'].iloc[row]:%Y-%m-%d %H:%M}" for row in (first, last)]
    count = last - first + 1
    (warning,) = warnings
    assert f"does not move in {count} of 3,000 candles, the longest time from {dates[0]} to {dates[1]}{told}" in warning


def test_the_report_of_a_training_names_what_it_could_not_learn(run):
    text = " ".join(str(run).split())
    for warning in run.data.warnings:
        assert warning in text and warning in run._repr_html_()
    assert run.as_dict()["warnings"] == list(run.data.warnings) and len(run.data.warnings) == 2
    assert load_run(run.output_dir).metadata["warnings"] == list(run.data.warnings)


def test_a_training_warns_of_candles_from_which_little_is_learnt(run, caplog):
    again = train(HOURLY.assign(volume=5.0), SMALL, run.output_dir, tensorboard=False)
    assert again.data.warnings == run.data.warnings
    assert again.judgement.as_dict() == run.judgement.as_dict()
    assert load_run(run.output_dir).metadata["judgement"] == run.judgement.as_dict()
    assert all(warning in caplog.messages for warning in again.data.warnings)


def decide_everywhere(run, history: pd.DataFrame) -> list:
    """The decisions of `Bundle`, `Predictor.decide` and `Predictor.update` for the newest candle."""
    bundle, predictor = load_bundle(run.paths["bundle"]), Predictor.load(run.paths["onnx"])
    live = Predictor.load(run.paths["onnx"]).warm_up(history[:-1], now=CLOSE)
    answers = [bundle.decide(history, now=CLOSE), predictor.decide(history, now=CLOSE)]
    return [*answers, live.update(history.iloc[-1].to_dict(), now=CLOSE)]


def test_a_constant_feature_that_moves_is_told_in_every_decision(run):
    moved = HOURLY.assign(volume=5.0)
    moved.loc[2995:, "volume"] = 8.0
    expected = f"11 of the {VALUES} values of the window are out of the range of the training (volume_change 1"
    for decision in decide_everywhere(run, moved):
        assert expected in decision.reason and decision.probabilities is not None
        assert "after costs" in decision.reason
    for decision in decide_everywhere(run, HOURLY.assign(volume=5.0)):
        assert "out of the range" not in decision.reason


def test_values_beyond_the_clip_are_told_above_five_percent(run):
    """A crash within one hour changes three features of one candle: 3 of 96 values are not worth a word, 6 are."""
    wild = HOURLY.assign(volume=5.0)
    prices = ["open", "high", "low", "close"]
    wild.loc[2999, prices] *= 3
    one = decide_everywhere(run, wild)
    assert not any("out of the range" in decision.reason for decision in one)
    wild.loc[2998, prices] /= 3
    for decision in decide_everywhere(run, wild):
        assert "of the 96 values of the window are out of the range of the training (high_change 2" in decision.reason


def test_predict_counts_the_values_out_of_range(run):
    moved = HOURLY.assign(volume=5.0)
    moved.loc[2990:, "volume"] = 8.0
    for predict in (Predictor.load(run.paths["onnx"]).predict, load_run(run.output_dir).predict):
        before, after = pd.DataFrame(predict(HOURLY.assign(volume=5.0))), pd.DataFrame(predict(moved))
        assert list(after)[-2:] == ["filled", "out_of_range"]
        assert before["out_of_range"].max() > 0  # large moves of the price
        added = after["out_of_range"] - before["out_of_range"]
        assert (added.iloc[:-10] == 0).all()
        # two ratios move in each new candle, and the change in the first of them
        assert added.iloc[-10:].tolist() == [1 + 2 * count for count in range(1, 11)]


def test_live_and_batch_count_alike(run):
    predictor = Predictor.load(run.paths["onnx"])
    table = predictor.predict(HOURLY)  # its volumes move in every candle
    live = Predictor.load(run.paths["onnx"]).warm_up(HOURLY[:2950], now=CLOSE)
    for row in range(2950, 3000):
        decision = live.update(HOURLY.iloc[row].to_dict(), now=CLOSE, max_age_candles=60)
        assert decision.reason.split("; ")[1].startswith(f"{table['out_of_range'][row - 3000]} of the {VALUES} values")
