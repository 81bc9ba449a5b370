"""The look-ahead audit: each planted fault is found with its number of candles, and no causal function is blamed."""

import json

import numpy as np
import pandas as pd
import pytest

from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.evaluation.lookahead import LookaheadError, audit_lookahead

CANDLES = synthetic_candles(400, seed=11)


def centred_mean(candles):
    return candles["close"].rolling(7, center=True).mean()


def next_close(candles):
    return candles["close"].shift(-1)


def scaled_by_everything(candles):
    volume = candles["volume"]
    return (volume - volume.min()) / (volume.max() - volume.min())


def normalised_by_everything(candles):
    change = candles["close"].pct_change()
    return (change - change.mean()) / change.std()


def filled_back(candles):
    return candles["close"].rolling(15).mean().bfill()


def hour_labelled_left(candles):
    hours = candles.set_index("date")["close"]
    return hours.resample("30min", label="left").mean().reindex(hours.index, method="ffill")


def pivot_that_repaints(candles):
    window = candles["low"].rolling(9, center=True, min_periods=1).min()
    return (candles["low"] == window).astype(int)


def highest_of_the_day(candles):
    return candles.groupby(candles["date"].dt.floor("100min"))["high"].transform("max")


def flag_of_the_next_two(candles):
    return candles["close"].shift(-2) > candles["close"]


def next_without_gaps(candles):
    return candles["volume"].shift(-3).dropna()


FAULTS = [
    (centred_mean, 3),
    (next_close, 1),
    (scaled_by_everything, 399),
    (normalised_by_everything, 398),
    (filled_back, 14),
    (hour_labelled_left, 29),
    (pivot_that_repaints, 4),
    (highest_of_the_day, 99),
    (flag_of_the_next_two, 2),
    (next_without_gaps, 3),
]


@pytest.mark.parametrize(("function", "ahead"), FAULTS, ids=[function.__name__ for function, _ in FAULTS])
def test_each_planted_fault_is_found_by_its_number_of_candles(function, ahead):
    audit = audit_lookahead(function, CANDLES, places=6)
    (column,) = audit.columns
    assert (column.verdict, column.ahead) == ("looks ahead", ahead)
    assert column.value != column.changed_value
    assert column.to_end == (ahead > 200)
    assert not audit.passed
    json.dumps(audit.as_dict(), allow_nan=False)


def relative_strength(candles, span=14):
    change = candles["close"].diff()
    gain = change.clip(lower=0).ewm(alpha=1 / span, adjust=False).mean()
    loss = (-change.clip(upper=0)).ewm(alpha=1 / span, adjust=False).mean()
    return 100 - 100 / (1 + gain / loss)


CAUSAL = {
    "shift": lambda candles: candles["close"].shift(1),
    "diff": lambda candles: candles["close"].diff(),
    "pct_change": lambda candles: candles["close"].pct_change(),
    "log return": lambda candles: np.log(candles["close"]).diff(),
    "range": lambda candles: (candles["high"] - candles["low"]) / candles["close"],
    "mean": lambda candles: candles["close"].rolling(20).mean(),
    "median": lambda candles: candles["close"].rolling(9).median(),
    "max": lambda candles: candles["high"].rolling(12).max(),
    "quantile": lambda candles: candles["volume"].rolling(12).quantile(0.3),
    "correlation": lambda candles: candles["close"].rolling(15).corr(candles["volume"]),
    "rank": lambda candles: candles["close"].rolling(10).rank(),
    "half an hour": lambda candles: candles.set_index("date")["close"].rolling("30min").mean().to_numpy(),
    "flag": lambda candles: candles["close"] > candles["open"],
    "hour": lambda candles: candles["date"].dt.hour,
    "cumulative sum": lambda candles: candles["volume"].cumsum(),
    "cumulative max": lambda candles: candles["high"].cummax(),
    "expanding": lambda candles: candles["close"].expanding().mean(),
    "exponential": lambda candles: candles["close"].ewm(span=12).mean(),
    "ffill": lambda candles: candles["close"].where(candles["volume"] > 20).ffill(),
    "RSI": relative_strength,
    "drop the first": lambda candles: candles["close"].rolling(5).std().dropna(),
    "hour before": lambda candles: _mean_of_the_hour_before(candles),
}
ON_THE_BEGINNING = {"cumulative sum", "cumulative max", "expanding", "exponential", "RSI"}
ON_THE_BEGINNING |= {"hour before", "half an hour"}


def _mean_of_the_hour_before(candles):
    close = candles.set_index("date")["close"]
    return close.resample("1h").mean().shift(1).reindex(close.index, method="ffill").to_numpy()


@pytest.mark.parametrize("name", CAUSAL)
def test_no_causal_function_is_blamed(name):
    audit = audit_lookahead(CAUSAL[name], CANDLES, places=6)
    (column,) = audit.columns
    assert audit.passed
    assert column.ahead == 0
    if name in ON_THE_BEGINNING:
        assert column.verdict == "depends on where the history begins"
        assert "a history that begins later changes it by up to" in column.sentence
    else:
        assert column.verdict == "causal"


def test_what_the_beginning_changes_is_measured():
    candles = synthetic_candles(3000, seed=2)
    audit = audit_lookahead(
        lambda frame: {
            "mean": frame["close"].rolling(50).mean(),
            "slow": frame["volume"].ewm(span=40, adjust=False).mean(),
            "sum": frame["volume"].cumsum(),
        },
        candles,
        places=8,
    )
    assert (audit["mean"].warmup, audit["mean"].settled_after) == (49, 0)
    fade = np.log(1e-9) / np.log(1 - 2 / 41)  # candles until the first one has 1e-9 of the weight
    assert 0.8 * fade < audit["slow"].settled_after < 1.3 * fade
    assert audit["sum"].settled_after is None and "to the end of the data" in audit["sum"].sentence


def test_a_history_that_begins_within_the_warm_up_is_no_dependence():
    for seed in range(4):
        audit = audit_lookahead(lambda frame: frame["close"].rolling(8).mean(), CANDLES.head(24), places=8, seed=seed)
        assert (audit["close"].verdict, audit["close"].warmup) == ("causal", 7)


def test_a_rounding_of_float32_is_no_dependence_on_the_beginning():
    def strength(frame):
        return relative_strength(frame).where(frame.index >= 330)  # where the first values have faded

    candles = synthetic_candles(1500, seed=6)
    narrow = audit_lookahead(lambda frame: strength(frame).astype("float32"), candles, places=4).columns[0]
    wide = audit_lookahead(relative_strength, candles, places=4).columns[0]
    assert narrow.verdict == "causal" and narrow.tolerance == 2.5e-7
    assert wide.verdict == "depends on where the history begins" and "below 1e-09 after" in wide.sentence


def test_a_label_may_look_ahead_so_far_and_no_further():
    label = {"label": lambda frame: frame["close"].shift(-12)}["label"]
    assert audit_lookahead(label, CANDLES, allowed=12, places=4)["close"].verdict == "looks ahead as allowed"
    assert audit_lookahead(label, CANDLES, allowed={"close": 11}, places=4)["close"].ahead == 12


def test_a_value_carried_back_over_a_gap_is_found():
    candles = pd.concat([CANDLES.iloc[:150], CANDLES.iloc[230:]], ignore_index=True)
    segment = (candles["date"].diff() > pd.Timedelta("1min")).cumsum()

    def first_volume_of_the_segment_before_it(frame):
        number = (frame["date"].diff() > pd.Timedelta("1min")).cumsum()
        firsts = frame["volume"].groupby(number).first()
        is_last = number != number.shift(-1)
        return frame["volume"].where(~is_last, (number + 1).map(firsts))

    audit = audit_lookahead(first_volume_of_the_segment_before_it, candles, places=4)
    column = audit.columns[0]
    assert segment.max() == 1
    assert (column.verdict, column.ahead) == ("looks ahead", 1)


def test_an_added_column_is_audited_and_the_given_ones_are_not():
    def populate(frame):
        frame["rsi"] = relative_strength(frame)
        frame["close"] = frame["close"].shift(-1)
        return frame

    before = CANDLES.copy()
    audit = audit_lookahead(populate, CANDLES, places=4)
    pd.testing.assert_frame_equal(before, CANDLES)
    assert {column.name for column in audit.columns} == {"rsi", "close"}
    assert (audit["close"].ahead, audit["rsi"].is_clean) == (1, True)
    assert any("changes its input" in note for note in audit.notes)


def test_columns_of_the_user_are_changed_as_well():
    rng = np.random.default_rng(0)
    extra = {"funding": rng.normal(size=400), "trades": rng.integers(0, 50, 400), "is_open": rng.random(400) < 0.5}
    candles = CANDLES.assign(**extra, flat=0.0, market="BTC/USDT")
    for name in ("funding", "trades", "is_open", "flat"):
        column = audit_lookahead(lambda frame, name=name: frame[name].shift(-4), candles, places=2)[name]
        assert (column.verdict, column.ahead) == ("looks ahead", 4), name


def test_functions_that_remember_or_draw_are_not_deterministic():
    rng = np.random.default_rng()
    seen = []

    def remember(frame):
        seen.append(len(frame))
        return 2 * frame["close"] - (len(seen) > 3)

    for function in (remember, lambda frame: rng.random(len(frame))):
        (column,) = audit_lookahead(function, CANDLES, places=2).columns
        assert column.verdict == "not deterministic" and "runs on the same candles differ" in column.sentence


def test_an_error_on_shorter_histories_is_a_note():
    def need_candles(frame):
        if len(frame) < 100:
            raise IndexError(f"got {len(frame)}")
        return frame["close"].shift(1)

    audit = audit_lookahead(need_candles, CANDLES, places=4)
    assert audit.passed
    assert any("histories that end earlier" in note and "IndexError" in note for note in audit.notes)


def test_a_function_that_raises_on_each_changed_history_is_not_passed():
    known = CANDLES["close"].to_numpy()

    def only_these(frame):
        if not np.array_equal(frame["close"], known):
            raise KeyError("other candles")
        return frame["close"] * 2

    audit = audit_lookahead(only_these, CANDLES, places=2)
    assert audit["close"].verdict == "not checked" and not audit.passed
    assert "KeyError" in " ".join(audit.notes)


def test_text_is_not_checked_and_not_passed():
    audit = audit_lookahead(lambda frame: {"tag": np.where(frame["close"] > 3e4, "a", "b")}, CANDLES, places=2)
    assert (audit["tag"].verdict, audit.passed) == ("not checked", False)
    assert "no numbers" in str(audit) and "no numbers" in audit._repr_html_()


BAD_FUNCTIONS = {
    "no function": (5, "expected a function of candles, got 5"),
    "it raises": (lambda frame: frame["nothing"], "raised on all 400 candles: KeyError: \"'nothing'\""),
    "a number": (lambda frame: frame["close"].sum(), "got float"),
    "nothing": (lambda frame: None, "got NoneType"),
    "text": (lambda frame: "long", "got str"),
    "another length": (lambda frame: frame["close"].to_numpy()[:-1], "one row for each of 400 candles"),
    "three dimensions": (lambda frame: np.zeros((400, 2, 2)), "one row for each of 400 candles"),
    "another index": (lambda frame: frame["close"].rename(lambda row: row + 7000), "use reindex"),
    "a repeated index": (lambda frame: frame["close"].rename(lambda row: row // 2), "use reindex"),
    "a scalar in a dict": (lambda frame: {"mean": frame["close"].mean()}, "column 'mean' has the shape ()"),
    "only the candles": (lambda frame: frame, "nothing but the candles"),
}


@pytest.mark.parametrize("name", BAD_FUNCTIONS)
def test_a_result_that_fits_no_candles_is_refused(name):
    function, words = BAD_FUNCTIONS[name]
    with pytest.raises(LookaheadError) as caught:
        audit_lookahead(function, CANDLES)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("candles", "words"),
    [
        (None, "must be a frame"),
        (CANDLES[["close"]], "need a column date"),
        (CANDLES.iloc[:9], "at least 10 dates"),
        (CANDLES.iloc[::-1], "ascending order"),
        (CANDLES.assign(date=CANDLES["date"].where(CANDLES.index != 5)), "ascending order"),
        (CANDLES.set_axis([0] * 400), "names a row twice"),
    ],
)
def test_candles_without_ascending_dates_are_refused(candles, words):
    with pytest.raises(LookaheadError, match=words):
        audit_lookahead(next_close, candles)


@pytest.mark.parametrize(
    "options", [{"allowed": -1}, {"allowed": {"x": 1}}, {"allowed": True}, {"places": 0}, {"seed": -1}, {"places": 1.5}]
)
def test_bad_options_are_refused(options):
    with pytest.raises(LookaheadError):
        audit_lookahead(next_close, CANDLES, **options)


def test_names_from_outside_are_escaped():
    audit = audit_lookahead(lambda frame: {"a\x1b[2J<i>": frame["close"].shift(-1)}, CANDLES, places=2)
    assert "\x1b" not in str(audit) and "<i>" not in audit._repr_html_()


def test_dates_in_the_index_are_enough():
    candles = CANDLES.set_index("date")
    assert audit_lookahead(lambda frame: frame["close"].shift(-1), candles, places=3)["close"].ahead == 1
