"""Several markets: the cut by one date, purge in time, windows, scalers and balance, beside plain loops."""

import numpy as np
import pandas as pd
import pytest

import crypto_lstm as cl
from crypto_lstm.data.labels import make_labels
from crypto_lstm.data.market_scaler import MarketError, MarketScaler
from crypto_lstm.data.markets import prepare, split_by_date
from crypto_lstm.data.scaler import Scaler
from crypto_lstm.data.windows import DataError, prepare_history, split_rows

HOUR = pd.Timedelta("1h")
CONFIG = cl.Config(
    timeframe="1h",
    sequence_length=6,
    future_window=12,
    batch_size=32,
    test_split=0.2,
    long_tp_pct=1,
    long_sl_pct=1,
    short_tp_pct=1,
    short_sl_pct=1,
    features=("close_change", "price_to_ma1440"),
)


def make_market(seed, count=1200, first=0, hole=None):
    """Hourly candles; `first` moves the begin, and `hole` leaves out candles."""
    candles = cl.synthetic_candles(count, seed=seed, timeframe="1h")
    candles["date"] += first * HOUR
    return candles if hole is None else candles.drop(index=range(*hole)).reset_index(drop=True)


MARKETS = {
    "BTC/USDT": make_market(1, hole=(600, 640)),  # a hole of 40 hours: two segments
    "ETH/USDT": make_market(2, count=900, first=300, hole=(100, 101)),
    "SOL/USDT": make_market(3, count=1250),
}
DATA = prepare(MARKETS, CONFIG)


def list_targets(candles):
    """Date -> (window of features, label), candle by candle: no hole, features, a label, and a trade."""
    history = prepare_history(candles, CONFIG)
    labels = make_labels(candles, CONFIG)["label"]
    dates, segment = history.filled["date"], history.filled["segment"]
    found = {}
    for row in range(5, len(dates)):
        span = slice(row - 5, row + 1)
        is_whole = history.has_features[span].all() and segment[row - 5] == segment[row]
        if is_whole and row in labels.index and not history.filled["filled"][row]:
            found[dates[row]] = (history.matrix[span], int(labels[row]))
    return found


TARGETS = {name: list_targets(candles) for name, candles in MARKETS.items()}


def split_plainly():
    """The dates of validation and test by a sorted list of all targets, and the parts of each market."""
    dates = sorted(date for found in TARGETS.values() for date in found)
    test_row = len(dates) - round(len(dates) * CONFIG.test_split)
    tested = dates[test_row]
    validated = dates[test_row - round(len(dates) * CONFIG.validation_split)]
    gap = (12 + 6 - 1) * HOUR
    parts = {}
    for name, found in TARGETS.items():
        train = [date for date in found if date < validated - gap]
        validation = [date for date in found if validated <= date < tested - gap]
        parts[name] = {"train": train, "validation": validation, "test": [date for date in found if date >= tested]}
    return parts


def test_parts_and_windows_equal_a_plain_loop():
    expected = split_plainly()
    for number, (name, found) in enumerate(TARGETS.items()):
        scaler = DATA.scaler.select(name)
        for part in ("validation", "test"):
            own = np.flatnonzero(DATA.find_markets(part) == number)
            dates = DATA.dates_of(part).iloc[own].tolist()
            assert dates == expected[name][part]
            windows = DATA.parts[part].gather(DATA.parts[part].rows[own])
            for window, date in list(zip(windows, dates, strict=True))[::17]:
                np.testing.assert_array_equal(window, scaler.scale_rows(found[date][0]))
            assert DATA.parts[part].labels[own].tolist() == [found[date][1] for date in dates]
        trained = DATA.dates_of("train").iloc[np.flatnonzero(DATA.find_markets("train") == number)]
        assert set(trained) <= set(expected[name]["train"])
    counts = np.bincount(DATA.train.labels)
    every = [TARGETS[name][date][1] for name, parts in expected.items() for date in parts["train"]]
    assert counts.tolist() == [np.bincount(every).min()] * 3
    np.testing.assert_allclose(DATA.prior, np.bincount(every) / len(every))


def test_parts_are_in_order_of_time_and_a_date_is_in_one_part():
    dates = {name: DATA.dates_of(name) for name in DATA.parts}
    assert dates["validation"].is_monotonic_increasing and dates["test"].is_monotonic_increasing
    assert dates["train"].max() + 12 * HOUR < dates["validation"].min() - 5 * HOUR
    assert dates["validation"].max() + 12 * HOUR < dates["test"].min() - 5 * HOUR


def test_purge_is_in_time_where_a_market_has_a_hole():
    """Counted in rows, the gap would hold fewer hours where candles are missing, and more where none are."""
    moments = np.concatenate([np.arange(100), np.arange(400, 600)])
    split = split_by_date([moments, np.arange(600)], CONFIG)
    train, validation, test = (moments[part] for part in split.select(moments))
    assert (
        train[-1] < split.validation_from - 17 and validation[-1] < split.test_from - 17 and test[0] == split.test_from
    )


@pytest.mark.parametrize("scale_by", ["all", "market"])
def test_scalers_are_those_of_the_training_rows(scale_by):
    data = prepare(MARKETS, CONFIG.replace(scale_by=scale_by))
    rows = []
    for market, candles in zip(data.markets, MARKETS.values(), strict=True):
        history, last = prepare_history(candles, CONFIG), market.spans[-1][1]
        rows.append(history.matrix[: last + 1][history.has_features[: last + 1]])
    expected = [np.concatenate(rows)] if scale_by == "all" else rows
    assert data.scaler == MarketScaler(scale_by, tuple(MARKETS), tuple(Scaler.fit(part, CONFIG) for part in expected))


def test_a_single_market_as_a_mapping_equals_the_frame():
    frame, mapping = prepare(MARKETS["SOL/USDT"], CONFIG), prepare({"SOL/USDT": MARKETS["SOL/USDT"]}, CONFIG)
    np.testing.assert_array_equal(frame.train.matrix, mapping.train.matrix)
    for name, part in frame.parts.items():
        assert part.rows.tolist() == mapping.parts[name].rows.tolist()
    assert frame.prior == mapping.prior


def test_the_future_of_one_market_teaches_no_other_only_with_a_cut_by_date():
    """Two markets with the same prices, one listed late. A nearest neighbour finds the test windows of one market in
    the training part of the other if each is cut by its own number of rows."""
    from sklearn.neighbors import KNeighborsClassifier

    whole = make_market(5, count=1500)
    markets = {"A": whole, "B": whole[1000:].reset_index(drop=True)}
    history = {name: prepare_history(candles, CONFIG) for name, candles in markets.items()}

    def score(train_rows, test_rows):
        def gather(rows):
            windows = [history[name].matrix[row - 5 : row + 1].ravel() for name in markets for row in rows[name]]
            labels = [history[name].classes[row] for name in markets for row in rows[name]]
            return np.array(windows), np.array(labels)

        model = KNeighborsClassifier(1).fit(*gather(train_rows))
        windows, labels = gather(test_rows)
        return float((model.predict(windows) == labels).mean())

    by_row = {name: split_rows(found.usable, CONFIG) for name, found in history.items()}
    leaked = score({name: rows[0] for name, rows in by_row.items()}, {"A": by_row["A"][2], "B": []})
    data = prepare(markets, CONFIG.replace(balance="none"))
    fair = score(
        {name: data.find_rows("train", number) for number, name in enumerate(markets)},
        {"A": data.find_rows("test", 0), "B": []},
    )
    assert leaked > fair + 0.15
    assert not set(data.dates_of("train")) & set(data.dates_of("test"))


@pytest.mark.parametrize(
    ("markets", "error", "text"),
    [
        ({}, MarketError, "at least one market"),
        ({"A": MARKETS["BTC/USDT"], "B": MARKETS["BTC/USDT"]}, MarketError, "the same candles object"),
        ({"A\n\x1b[31m": MARKETS["BTC/USDT"]}, MarketError, "expected the name of a market"),
        ({"A" * 41: MARKETS["BTC/USDT"]}, MarketError, "expected the name of a market"),
        ({7: MARKETS["BTC/USDT"]}, MarketError, "expected the name of a market"),
        ({"A": make_market(1), "B": cl.synthetic_candles(500, timeframe="4h")}, MarketError, "the candles of B: "),
        ({"A": make_market(1, count=300), "B": make_market(2, first=400)}, MarketError, "must have common dates"),
        ({"A": make_market(1), "B": make_market(2, count=600)}, DataError, "B has {'train'"),
        ({"A": make_market(1), "B": make_market(2, count=20)}, MarketError, "the candles of B: "),
        ({"A": make_market(1), "B": None}, MarketError, "the candles of B: "),
        ({"A": make_market(1), "B": make_market(2).iloc[:0]}, MarketError, "the candles of B: "),
        (
            {"A": make_market(1), "B": make_market(2).assign(date=lambda frame: frame["date"] + HOUR / 2)},
            MarketError,
            "begin 30m after a whole step",
        ),
    ],
)
def test_markets_that_do_not_fit_are_refused(markets, error, text):
    with pytest.raises(error, match="(?s)" + text.replace("{", r"\{").replace("[", r"\[")) as caught:
        prepare(markets, CONFIG)
    assert "\x1b" not in str(caught.value)


def test_a_market_without_a_class_is_named_if_each_is_balanced():
    flat = make_market(4).assign(open=100.0, high=100.0, low=100.0, close=100.0)
    markets = {"A": make_market(1), "FLAT": flat}
    assert len(prepare(markets, CONFIG).train.rows)
    with pytest.raises(DataError, match=r"FLAT: .*balance_by='all'"):
        prepare(markets, CONFIG.replace(balance_by="market"))


def test_a_part_of_the_data_holds_about_forty_bytes_a_candle():
    """Everything that is kept but the features: rows, labels and classes; the large round is `benchmarks markets`."""
    markets = {f"M{number}": make_market(number, count=4000) for number in range(3)}
    data = prepare(markets, CONFIG)
    arrays = [array for part in data.parts.values() for array in (part.rows, part.labels)]
    kept = sum(array.nbytes for array in arrays) + sum(market.segment_rows.nbytes for market in data.markets)
    assert data.train.matrix.nbytes == data.candle_count * 2 * 4
    assert kept / data.candle_count < 8
