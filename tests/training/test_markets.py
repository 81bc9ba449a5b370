"""A model of several markets from training to decisions, a planted edge that another market shows, and folds."""

import keras
import numpy as np
import pandas as pd
import pytest

import crypto_lstm as cl
from crypto_lstm.backtest.walk_forward import walk_forward
from crypto_lstm.config import HOLD
from crypto_lstm.data.market_scaler import MarketError, MarketScaler
from crypto_lstm.data.markets import prepare
from crypto_lstm.data.windows import tf_dataset
from crypto_lstm.evaluation.report import describe_report, read_report_source
from crypto_lstm.training.run_folder import fingerprint_candles
from crypto_lstm.training.saved_run import predict_probabilities

pytestmark = pytest.mark.usefixtures("bare_trainings")

HOUR = pd.Timedelta("1h")
CONFIG = cl.Config(
    timeframe="1h",
    sequence_length=4,
    future_window=6,
    lstm_units=(6,),
    dense_units=(),
    batch_size=64,
    epochs=1,
    long_tp_pct=1,
    short_tp_pct=1,
    features=("close_change", "volume_to_ma1440"),
    scale_by="market",
)
MARKETS = {"BTC/USDT": cl.synthetic_candles(1500, seed=3, timeframe="1h")}
MARKETS["ETH/USDT"] = cl.synthetic_candles(1500, seed=4, timeframe="1h")[200:].reset_index(drop=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    return cl.train(MARKETS, CONFIG, folder, tensorboard=False, ledger=folder.parent / "ledger.jsonl")


def test_the_judgement_has_a_row_for_each_market_and_one_for_all(run):
    found = run.judgement
    assert [market.name for market in found.markets] == list(MARKETS)
    assert sum(market.rows for market in found.markets) == found.rows == len(run.data.test.rows)
    trades = found.model.simulation.trades
    assert len(trades) == sum(len(market.model.simulation.trades) for market in found.markets)
    assert {"network", "class prior", "recent shares"} <= {found.model.name, *(rival.name for rival in found.rivals)}
    report = describe_report(read_report_source(run.output_dir))
    assert "2 markets (BTC/USDT, ETH/USDT) 1h: network" in report
    assert "Each market, and all together" in report and "ETH/USDT" in report


def test_the_names_of_the_markets_are_bound_into_every_file(run):
    loaded = cl.load_run(run.output_dir)
    predictor = cl.Predictor.load(run.paths["onnx"])
    assert isinstance(loaded.scaler, MarketScaler)
    assert loaded.scaler.markets == predictor.markets == tuple(MARKETS)
    assert loaded.bundle.metadata["markets"] == loaded.metadata["markets"] == list(MARKETS)
    assert loaded.scaler == run.data.scaler


def test_bundle_predictor_and_run_answer_alike(run):
    loaded, predictor = cl.load_run(run.output_dir), cl.Predictor.load(run.paths["onnx"])
    table, by_market = loaded.predict(MARKETS), predictor.predict(MARKETS)
    now = MARKETS["BTC/USDT"]["date"].iloc[-1] + HOUR
    for name, candles in MARKETS.items():
        own = table[table["market"] == name]
        for column in ("short", "hold", "long"):
            np.testing.assert_allclose(own[column], by_market[name][column], atol=1e-5)
        assert (own["date"].dt.tz_localize(None).to_numpy() == by_market[name]["date"]).all()
        predictor.warm_up(name, candles[:-1])
        decision = loaded.bundle.decide(candles, now=now, market=name)
        assert decision.action == predictor.decide(candles, now=now, market=name).action
    many = predictor.update_many({name: candles.iloc[-1].to_dict() for name, candles in MARKETS.items()}, now=now)
    assert many == {name: predictor.decide(candles, now=now, market=name) for name, candles in MARKETS.items()}
    with pytest.raises(MarketError, match="a market that the model was trained on, got 'SOL/USDT'"):
        loaded.predict({"SOL/USDT": MARKETS["BTC/USDT"]})
    with pytest.raises(MarketError, match="expected the name of a market, got none"):
        loaded.bundle.probabilities(MARKETS["BTC/USDT"])


def test_the_same_call_loads_the_run_and_other_markets_do_not(run, tmp_path):
    again = cl.train(MARKETS, CONFIG, run.output_dir, tensorboard=False, ledger=tmp_path / "ledger.jsonl")
    assert again.resumed_at == "finished"
    assert again.judgement.as_dict()["markets"] == run.judgement.as_dict()["markets"]
    swapped = dict(reversed(MARKETS.items()))
    assert fingerprint_candles(swapped)["sha256"] != fingerprint_candles(MARKETS)["sha256"]
    with pytest.raises(cl.CryptoLSTMError, match="data.sha256"):
        cl.train(swapped, CONFIG, run.output_dir, tensorboard=False)


def make_signalled_market(seed, signal_from, count=1600):
    """Moves of 1.5 % within three hours. From a candle on, their direction shows in the volume of the hour before."""
    rng = np.random.default_rng(seed)
    moves, volume = rng.normal(0, 0.05, count), np.full(count, 100.0)
    for row in range(30, count - 10, 12):
        side = rng.choice([-1, 1])
        moves[row + 1 : row + 4] += side * 0.5
        if row >= signal_from:
            volume[row] *= 3.0**side
    close = 100 * np.exp(np.cumsum(moves) / 100)
    before = np.concatenate([[100.0], close[:-1]])
    columns = {"open": before, "high": np.maximum(before, close), "low": np.minimum(before, close), "close": close}
    dates = pd.date_range("2024-01-01", periods=count, freq="1h", tz="UTC")
    return pd.DataFrame({"date": dates, **columns, "volume": volume})


def score_on_first(markets, tested_from):
    """The share of moves of the first market, after a date, whose direction the network foresees."""
    config = CONFIG.replace(scale_by="all", learning_rate=0.02, test_split=0.25)
    data = prepare(markets, config)
    keras.utils.set_random_seed(1)
    model = cl.build_model(config)
    model.fit(tf_dataset(data.train), epochs=25, verbose=0)
    answers = predict_probabilities(model, data.test)
    rows = data.find_own_rows("test")
    labels, owners = data.test.labels, data.find_markets("test")
    is_event = (owners == 0) & (rows >= tested_from) & (rows % 12 == 30 % 12) & (labels != HOLD)
    likelier = np.where(answers[:, 2] > answers[:, 0], 2, 0)
    return float((likelier == labels)[is_event].mean()), int(is_event.sum())


def test_an_edge_that_only_the_other_market_shows_is_found_with_both():
    """In market A the volume says nothing until the test part begins; in market B it always foretells the move."""
    first, other = make_signalled_market(1, signal_from=1200), make_signalled_market(2, signal_from=0)
    alone, events = score_on_first({"A": first}, 1200)
    together, _ = score_on_first({"A": first, "B": other}, 1200)
    assert events > 20
    assert together > 0.9 > 0.75 > alone


def test_folds_are_cut_at_the_same_dates(tmp_path):
    config = CONFIG.replace(lstm_units=(3,))
    spans = {"first_train": "30d", "test": "10d", "step": "10d"}
    result = walk_forward(
        MARKETS, config, tmp_path / "folds", baselines=False, ledger=tmp_path / "ledger.jsonl", **spans
    )
    assert [market.name for market in result.judgement.markets] == list(MARKETS)
    assert len(result.rows) == result.judgement.rows == sum(market.rows for market in result.judgement.markets)
    for fold in result.folds:
        train, validation, test = (
            pd.Timestamp(fold.spans[name][end]) for name, end in (("train", 1), ("validation", 0), ("test", 0))
        )
        assert train + 9 * HOUR < validation and pd.Timestamp(fold.spans["validation"][1]) + 9 * HOUR < test
