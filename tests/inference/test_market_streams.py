"""Live decisions on several markets: `update_many` beside `update`, whole steps, states, and unknown markets."""

import numpy as np
import pandas as pd
import pytest

import crypto_lstm as cl
from crypto_lstm.data.features import make_features
from crypto_lstm.data.market_scaler import MarketError, MarketScaler
from crypto_lstm.data.scaler import Scaler
from crypto_lstm.inference.decision import NO_TRADE
from crypto_lstm.inference.predictor import StateMismatchError
from crypto_lstm.storage.manifest import IntegrityError

HOUR = pd.Timedelta("1h")
FEATURES = ("close_change", "volume_change", "price_to_ma1440")
CONFIG = cl.Config(timeframe="1h", sequence_length=12, lstm_units=(8, 4), dense_units=(4,), features=FEATURES)
NAMES = tuple(f"M{number}/USDT" for number in range(70))  # more than one chunk of the network
CANDLES = {name: cl.synthetic_candles(60, seed=number, timeframe="1h") for number, name in enumerate(NAMES)}


def export(folder, scale_by, names=NAMES):
    """An ONNX file of random weights for these markets."""
    config = CONFIG.replace(scale_by=scale_by)
    scalers = [Scaler.fit(make_features(CANDLES[name], config)[list(FEATURES)].to_numpy(), config) for name in names]
    scaler = MarketScaler(scale_by, names, tuple(scalers if scale_by == "market" else scalers[:1]))
    path = folder / f"{scale_by}.onnx"
    cl.export_onnx(cl.build_model(config), path, config=config, scaler=scaler)
    return path


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("markets")
    return {scale_by: export(folder, scale_by) for scale_by in ("all", "market")}


def load(path, rows=None, **options):
    """A predictor that knows the first candles of each market."""
    predictor = cl.Predictor.load(path, **options)
    for name, candles in CANDLES.items():
        if rows:
            predictor.warm_up(name, candles[:rows])
    return predictor


def closed(row):
    return CANDLES[NAMES[0]]["date"][row] + HOUR


def candles_at(row, names=NAMES):
    return {name: CANDLES[name].iloc[row].to_dict() for name in names}


@pytest.mark.parametrize("scale_by", ["all", "market"])
@pytest.mark.parametrize("is_prepared", [False, True])
def test_many_equal_one_by_one_and_the_whole_history(paths, scale_by, is_prepared):
    many, one = load(paths[scale_by], 50), load(paths[scale_by], 50)
    for row in range(50, 53):
        if is_prepared:
            assert many.prepare_next() == len(NAMES)
        found = many.update_many(candles_at(row), now=closed(row))
        assert list(found) == list(NAMES)
        for name in NAMES:
            assert one.update(name, candles_at(row)[name], now=closed(row)) == found[name]
            assert found[name].probabilities is not None
    for name in NAMES[::9]:
        assert one.decide(CANDLES[name][:53], now=closed(52), market=name) == found[name]
        row = {key: values[-1] for key, values in one.predict({name: CANDLES[name][:53]})[name].items()}
        assert found[name].probabilities == {"SHORT": row["short"], "HOLD": row["hold"], "LONG": row["long"]}


def test_a_network_with_integers_in_its_layers_prepares_nothing(paths):
    """All windows of a call share the scale of their inputs there, so a part of a window can't be read before."""
    many, plain = load(paths["all"], 50), load(paths["all"], 50)
    many._network.is_int8 = True
    assert many.prepare_next() == 0
    assert many.update_many(candles_at(50), now=closed(50)) == plain.update_many(candles_at(50), now=closed(50))


def test_a_gap_a_late_candle_and_a_repeated_one_touch_their_market_only(paths):
    predictor, alone = load(paths["all"], 50), load(paths["all"], 50)
    predictor.prepare_next()
    some = candles_at(50, NAMES[1:])
    some[NAMES[0]] = candles_at(51)[NAMES[0]]  # candle 50 is missing
    found = predictor.update_many(some, now=closed(51), max_age_candles=2)
    assert found[NAMES[0]].action == NO_TRADE and "missing" in found[NAMES[0]].reason
    for name in NAMES[1:4]:
        assert alone.update(name, candles_at(50)[name], now=closed(51), max_age_candles=2) == found[name]
    late = predictor.update_many(candles_at(50), now=closed(51), max_age_candles=2)
    assert late[NAMES[0]].probabilities is not None
    assert all("came before" in late[name].reason for name in NAMES[1:])


BAD = {
    "an unknown market": ({"NEW/USDT": CANDLES[NAMES[0]].iloc[50].to_dict()}, "a market that the model was trained on"),
    "a name with control characters": ({"\x1b[31m": []}, "expected the name of a market"),
    "no candle": ({NAMES[1]: None}, ""),
    "a NaN": ({NAMES[1]: {**CANDLES[NAMES[1]].iloc[50].to_dict(), "close": float("nan")}}, ""),
    "a candle of the future": ({NAMES[1]: CANDLES[NAMES[1]].iloc[59].to_dict()}, ""),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_candle_is_no_trade_of_its_market_and_changes_nothing(paths, case):
    bad, text = BAD[case]
    (name,) = bad
    predictor, alone = load(paths["all"], 50), load(paths["all"], 50)
    before = None if name not in NAMES else predictor.streams[name].state_dict()
    found = predictor.update_many({**candles_at(50, NAMES[2:4]), **bad}, now=closed(50))
    assert found[name].action == NO_TRADE and text in found[name].reason and "\x1b" not in found[name].reason
    assert found[NAMES[2]] == alone.update(NAMES[2], candles_at(50)[NAMES[2]], now=closed(50))
    if before is None:
        assert name not in predictor.streams
        with pytest.raises(MarketError):
            predictor.update(name, bad[name], now=closed(50))
    else:
        for key, array in predictor.streams[name].state_dict().items():
            np.testing.assert_array_equal(array, before[key])


def test_a_new_market_needs_allow_new_and_a_common_scaler(paths):
    candle = CANDLES[NAMES[0]].iloc[0].to_dict()
    shared, own = (load(paths[scale_by], allow_new=True) for scale_by in ("all", "market"))
    assert "more candles are needed" in shared.update("NEW/USDT", candle, now=closed(0)).reason
    with pytest.raises(MarketError, match="a scaler for each of these and none for another"):
        own.update("NEW/USDT", candle, now=closed(0))
    assert "none for another" in own.decide(CANDLES[NAMES[0]], now=closed(59), market="NEW/USDT").reason


@pytest.mark.parametrize("stop_at", [0, 1, 33, 69])
def test_an_interruption_leaves_each_market_before_or_after_its_candle(paths, stop_at, monkeypatch):
    from crypto_lstm.inference import predictor as module

    predictor, calls = load(paths["all"], 50), []
    push = module._push

    def interrupted(stream, *given):
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        calls.append(stream)
        return push(stream, *given)

    monkeypatch.setattr(module, "_push", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predictor.update_many(candles_at(50), now=closed(50))
    monkeypatch.undo()
    times = [predictor.streams[name].time for name in NAMES]
    assert [time == closed(50).value - HOUR.value for time in times] == [True] * stop_at + [False] * (70 - stop_at)
    predictor.update_many(candles_at(50), now=closed(50))
    expected = load(paths["all"], 50).update_many(candles_at(50), now=closed(50))
    assert predictor.decide_many(now=closed(50)) == expected


def test_states_of_all_markets_are_saved_and_loaded(paths, tmp_path):
    predictor = load(paths["market"], 50)
    predictor.save_state(tmp_path / "state.npz")
    restored = cl.Predictor.load(paths["market"]).load_state(tmp_path / "state.npz")
    assert list(restored.streams) == list(NAMES)
    assert restored.update_many(candles_at(50), now=closed(50)) == predictor.update_many(candles_at(50), now=closed(50))
    other = load(paths["all"], 20)
    with pytest.raises(StateMismatchError):
        other.load_state(tmp_path / "state.npz")
    assert other.streams[NAMES[0]].time == closed(19).value - HOUR.value
    damaged = bytearray((tmp_path / "state.npz").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "state.npz").write_bytes(bytes(damaged))
    with pytest.raises(IntegrityError):
        restored.load_state(tmp_path / "state.npz")


def test_arguments_of_one_market_and_of_several_are_not_mixed_up(paths, tmp_path):
    predictor = load(paths["all"])
    candle = CANDLES[NAMES[0]].iloc[0].to_dict()
    for wrong in ((candle,), (NAMES[0], candle, 1), ()):
        with pytest.raises(MarketError, match="update: expected the market and a candle"):
            predictor.update(*wrong, now=closed(0))
    with pytest.raises(MarketError, match="warm_up: expected the market and candles"):
        predictor.warm_up(CANDLES[NAMES[0]])
    with pytest.raises(MarketError, match="expected candles by market"):
        predictor.predict(CANDLES[NAMES[0]])
    with pytest.raises(MarketError, match="expected candles by market"):
        predictor.update_many([candle])
    assert predictor.update_many({}) == {}
    assert "expected the name of a market, got none" in predictor.decide(CANDLES[NAMES[0]], now=closed(59)).reason
    one = tmp_path / "one.onnx"
    scaler = Scaler.fit(make_features(CANDLES[NAMES[0]], CONFIG)[list(FEATURES)].to_numpy(), CONFIG)
    cl.export_onnx(cl.build_model(CONFIG), one, config=CONFIG, scaler=scaler)
    single = cl.Predictor.load(one)
    assert single.markets == ()
    for call in (lambda: single.update_many({NAMES[0]: candle}), single.prepare_next, single.decide_many):
        with pytest.raises(MarketError, match="expected a model of several markets"):
            call()
    with pytest.raises(MarketError, match="update: expected a candle"):
        single.update(NAMES[0], candle)
    assert "trained on one market only" in single.decide(CANDLES[NAMES[0]], market=NAMES[0]).reason


def test_a_changed_scaler_of_any_market_is_refused(tmp_path):
    """The names and numbers are inside the sealed file, and the golden rows test the scalers by turns."""
    path = export(tmp_path, "market", NAMES[:3])
    data = path.read_bytes()
    for old, new in ((b"M1/USDT", b"M9/USDT"), (b'"scale_by": "market"', b'"scale_by": "mArket"')):
        (tmp_path / "other.onnx").write_bytes(data.replace(old, new, 1))
        with pytest.raises(IntegrityError):
            cl.Predictor.load(tmp_path / "other.onnx")
