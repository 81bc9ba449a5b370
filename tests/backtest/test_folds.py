"""Folds against sets of candles, against skfolio and purgedcv, on cut histories, and with settings that don't fit."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_lstm.backtest.folds import (
    Fold,
    FoldError,
    count_duration_candles,
    cpcv_folds,
    parse_duration,
    stitch_folds,
    stitch_paths,
    walk_forward_folds,
)
from crypto_lstm.config import Config

REFERENCES = json.loads((Path(__file__).parent / "fold_references.json").read_text(encoding="utf-8"))


def make_config(window: int, horizon: int) -> Config:
    return Config(timeframe="1h", sequence_length=window, future_window=horizon)


def make_dates(count: int, gaps: dict[int, int] | None = None) -> pd.DatetimeIndex:
    """Hourly dates; `gaps` maps a position to the hours that are missing before it."""
    hours = np.arange(count)
    for position, missing in (gaps or {}).items():
        hours[position:] += missing
    return pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(hours, unit="h")


def collect_candles(rows: np.ndarray, config: Config, embargo: int = 0) -> set[int]:
    """Every candle that a window or a label of these rows reads, and `embargo` candles after it."""
    reach = np.arange(1 - config.sequence_length, config.future_window + embargo + 1)
    return set((np.asarray(rows, dtype=np.int64)[:, None] + reach).ravel().tolist())


def list_runs(rows: np.ndarray) -> list[list[int]]:
    breaks = np.flatnonzero(np.diff(rows) != 1)
    firsts = rows[np.concatenate([[0], breaks + 1])]
    lasts = rows[np.concatenate([breaks, [len(rows) - 1]])]
    return np.stack([firsts, lasts], axis=1).tolist()


def assert_equal_folds(fold: Fold, other: Fold) -> None:
    assert fold.as_dict() == other.as_dict()
    for name, rows in fold.parts.items():
        np.testing.assert_array_equal(rows, other.parts[name])


histories = st.fixed_dictionaries(
    {
        "window": st.integers(1, 12),
        "horizon": st.integers(1, 12),
        "embargo": st.integers(0, 9),
        "mode": st.sampled_from(["expanding", "rolling"]),
        "test": st.integers(3, 40),
        "rest": st.integers(0, 20),
        "validation": st.one_of(st.integers(1, 30), st.floats(0.05, 0.4)),
        "gaps": st.dictionaries(st.integers(60, 350), st.integers(1, 50), max_size=3),
        "seed": st.integers(0, 99),
    }
)


def make_case(history: dict) -> tuple[np.ndarray, pd.DatetimeIndex, Config, dict]:
    config = make_config(history["window"], history["horizon"])
    generator = np.random.default_rng(history["seed"])
    rows = np.flatnonzero(generator.random(400 - history["horizon"]) < 0.9)
    names = {"first_train": 120, "step": history["test"] + history["rest"]}
    names |= {name: history[name] for name in ("mode", "test", "validation", "embargo")}
    return rows, make_dates(400, history["gaps"]), config, names


@settings(max_examples=150, deadline=None)
@given(histories)
def test_parts_of_walk_forward_share_no_candle(history):
    rows, dates, config, names = make_case(history)
    for fold in walk_forward_folds(rows, dates, config, **names):
        parts = [collect_candles(part, config) for part in fold.parts.values()]
        for earlier, later in itertools.combinations(parts, 2):
            assert not earlier & later
            assert min(later) - max(earlier) - 1 >= history["embargo"]


@settings(max_examples=150, deadline=None)
@given(histories)
def test_walk_forward_leaves_out_only_rows_that_share_candles(history):
    """Every row of the history is in a part, or its candles with the embargo meet those of the part after it."""
    rows, dates, config, names = make_case(history)
    for fold in walk_forward_folds(rows, dates, config, **names):
        for earlier, later in ((fold.train, fold.validation), (fold.validation, fold.test)):
            between = rows[(rows > earlier[-1]) & (rows < later[0])]
            after = collect_candles(later, config)
            assert all(collect_candles([row], config, history["embargo"]) & after for row in between)
        if names["mode"] == "expanding":
            assert fold.train[0] == rows[0]
        for part in fold.parts.values():
            np.testing.assert_array_equal(part, rows[(rows >= part[0]) & (rows <= part[-1])])


@settings(max_examples=100, deadline=None)
@given(histories, st.integers(0, 3))
def test_folds_do_not_depend_on_candles_after_them(history, which):
    rows, dates, config, names = make_case(history)
    folds = walk_forward_folds(rows, dates, config, **names)
    fold = folds[min(which, len(folds) - 1)]
    begin = dates[rows[0]] + pd.Timedelta(hours=120 + fold.number * names["step"])
    end = int(np.searchsorted(dates, begin + pd.Timedelta(hours=names["test"]))) + config.future_window
    cut = walk_forward_folds(rows[rows + config.future_window < end], dates[:end], config, **names)
    assert cut[-1].number == fold.number
    for earlier, again in zip(folds, cut, strict=False):
        assert_equal_folds(earlier, again)


def test_another_market_after_a_fold_does_not_change_it():
    config = make_config(12, 24)
    dates, other = make_dates(3000), make_dates(3000, gaps={2200: 5000})
    folds = walk_forward_folds(2976, dates, config)
    others = walk_forward_folds(2976, other, config)
    before = [fold for fold in folds if fold.test[-1] + config.future_window < 2200]
    assert len(before) == 2
    for fold, again in zip(before, others, strict=False):
        assert_equal_folds(fold, again)


@settings(max_examples=100, deadline=None)
@given(
    window=st.integers(1, 10),
    horizon=st.integers(1, 10),
    embargo=st.integers(0, 10),
    shape=st.sampled_from([(6, 2), (4, 1), (5, 3)]),
    seed=st.integers(0, 99),
)
def test_cpcv_keeps_exactly_the_rows_whose_candles_no_test_group_reads(window, horizon, embargo, shape, seed):
    config = make_config(window, horizon)
    rows = np.flatnonzero(np.random.default_rng(seed).random(400) < 0.9)
    groups = np.array_split(rows, shape[0])
    folds = cpcv_folds(
        rows, make_dates(450), config, groups=shape[0], test_groups=shape[1], embargo=embargo, validation=0
    )
    for fold in folds:
        tests = [
            set(range(g[0] - window + 1, g[-1] + horizon + embargo + 1)) for g in map(groups.__getitem__, fold.groups)
        ]
        taken = set.union(*tests)
        kept = [row for row in rows.tolist() if not collect_candles([row], config) & taken]
        assert fold.train.tolist() == kept
        assert fold.test.tolist() == np.concatenate([groups[number] for number in fold.groups]).tolist()


def test_validation_of_cpcv_shares_no_candle_with_other_parts():
    config = make_config(12, 24)
    for fold in cpcv_folds(2000, make_dates(2024), config, embargo="12h"):
        parts = [collect_candles(part, config) for part in fold.parts.values()]
        assert all(len(part) > 100 for part in fold.parts.values())
        assert not any(one & other for one, other in itertools.combinations(parts, 2))


@pytest.mark.parametrize("case", REFERENCES["walk_forward"], ids=lambda case: f"{case['window']}-{case['horizon']}")
def test_walk_forward_bounds_equal_those_of_skfolio_and_purgedcv(case):
    """Bounds written by `benchmarks/backtest/fold_references.py`. The references have no validation part.

    Their training ends where our validation ends, since both serve the test.
    """
    config = make_config(case["window"], case["horizon"])
    rows, names = case["rows"], {"first_train": case["history"], "embargo": case["embargo"]}
    mode = "expanding" if case["expand"] else "rolling"
    dates = make_dates(rows + config.future_window)
    folds = walk_forward_folds(rows, dates, config, mode=mode, step=case["test"], test=case["test"], **names)
    found = [[[[int(f.train[0]), int(f.validation[-1])]], list_runs(f.test)] for f in folds]
    assert found == case["skfolio"]
    if "purgedcv" in case:
        assert found == case["purgedcv"]


@pytest.mark.parametrize("case", REFERENCES["combinatorial"], ids=lambda case: f"{case['groups']}-{case['tested']}")
def test_cpcv_equals_skfolio_and_purgedcv(case):
    """Rows and paths written by `benchmarks/backtest/fold_references.py`."""
    config = make_config(case["window"], case["horizon"])
    shape = {"groups": case["groups"], "test_groups": case["tested"], "embargo": case["embargo"]}
    folds = cpcv_folds(case["rows"], make_dates(case["rows"]), config, validation=0, **shape)
    assert [list_runs(fold.train) for fold in folds] == case["skfolio"]["trains"]
    answers = [np.full(len(fold.test), fold.number) for fold in folds]
    begins = [part[0] for part in np.array_split(np.arange(case["rows"]), case["groups"])]
    paths = stitch_paths(folds, answers)[1][:, begins]
    for fold, path_ids in zip(folds, case["skfolio"]["paths"], strict=True):
        for group, path in zip(fold.groups, path_ids, strict=True):
            assert paths[path, group] == fold.number
    if "purgedcv" in case:
        assert [list_runs(fold.train) for fold in folds] == case["purgedcv"]["trains"]
        assert paths.tolist() == case["purgedcv"]["paths"]


def test_each_path_answers_every_row_once():
    config = make_config(5, 7)
    folds = cpcv_folds(601, make_dates(700), config)
    rows, paths = stitch_paths(folds, [np.stack([fold.test, -fold.test], axis=1) for fold in folds])
    assert paths.shape == (5, 601, 2)
    assert rows.tolist() == list(range(601))
    for path in paths:
        np.testing.assert_array_equal(path, np.stack([rows, -rows], axis=1))


def test_a_long_gap_leaves_out_the_fold_and_its_number():
    config = make_config(12, 24)
    dates = make_dates(3000, gaps={1800: 24 * 40})  # 40 days without a candle
    numbers = [fold.number for fold in walk_forward_folds(2976, dates, config)]
    assert numbers == [0, 1, 3, 4, 5, 6]


def test_a_shorter_last_test_is_a_fold_only_if_asked():
    config = make_config(12, 24)
    dates = make_dates(2000)
    whole = walk_forward_folds(1976, dates, config)
    reduced = walk_forward_folds(1976, dates, config, reduce_test=True)
    assert [len(fold.test) for fold in whole] == [336]
    assert [len(fold.test) for fold in reduced] == [336, 1976 - 60 * 24 - 336]


def test_the_candles_that_the_message_asks_for_are_enough():
    config = make_config(12, 24)
    rows = np.arange(50, 2000)
    with pytest.raises(FoldError, match="at least 1850 candles of 1h: 50 before the first window is full, 1440 of "):
        walk_forward_folds(rows[rows < 1849 - 24], make_dates(1849), config)
    assert len(walk_forward_folds(rows[rows < 1850 - 24], make_dates(1850), config)) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mode": "sliding"}, "mode must be one of expanding, rolling, got 'sliding'"),
        ({"embargo": -1}, "embargo must be a duration such as 14d, or a whole number of candles, at least 0; got -1"),
        ({"embargo": "-1d"}, "expected a duration such as 30m, 12h, 14d or 2w, got '-1d'"),
        ({"embargo": True}, "embargo must be .* got True"),
        ({"test": 0}, "test must be .* at least 1; got 0"),
        ({"test": 2.5}, "test must be .* got 2.5"),
        ({"test": "20d"}, "step must be at least test, .* got 14d and 20d"),
        ({"first_train": "90m"}, "first_train must be a multiple of the timeframe 1h, got 90m"),
        ({"first_train": "3d"}, "first_train is 3d = 72 candles: 14 of them are for validation"),
        ({"first_train": "200d"}, "walk-forward needs at least 5160 candles"),
        ({"validation": 0}, "validation must be .* at least 1; got 0"),
        ({"validation": 1.0}, "a share in .0, 1.; got 1.0"),
        ({"validation": float("nan")}, "a share in .0, 1.; got nan"),
        ({"validation": "60d"}, "1440 of them are for validation"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(FoldError, match=words):
        walk_forward_folds(2976, make_dates(3000), make_config(12, 24), **changes)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (np.array([3, 2]), "rows must be ascending positions in the 3000 dates"),
        (np.array([5, 3000]), "rows must be ascending positions in the 3000 dates"),
        (np.array([-1, 3]), "rows must be ascending positions"),
        (np.array([1, 1]), "rows must be ascending positions"),
        (np.array([]), "rows must be whole numbers, at least one; got float64"),
        (np.array([0.5, 2]), "rows must be whole numbers"),
        (0, "at least one"),
    ],
)
def test_rows_that_are_no_positions_are_refused(rows, words):
    for make_folds in (walk_forward_folds, cpcv_folds):
        with pytest.raises(FoldError, match=words):
            make_folds(rows, make_dates(3000), make_config(12, 24))


@pytest.mark.parametrize("dates", [make_dates(100)[::-1], [], pd.DatetimeIndex(["2024-01-01", None])])
def test_dates_that_do_not_ascend_are_refused(dates):
    with pytest.raises(FoldError, match="one ascending date for each filled candle"):
        walk_forward_folds(1, dates, make_config(12, 24))


@pytest.mark.parametrize(
    ("text", "minutes"), [("30m", 30), ("12h", 720), ("14d", 20_160), ("2w", 20_160), (" 1 d ", 1440)]
)
def test_durations_are_read_as_minutes(text, minutes):
    assert parse_duration(text) == minutes


@pytest.mark.parametrize("text", ["", "d", "14", "1.5d", "14D", "14days", "1d2h", "٣d", None, 5])
def test_texts_that_are_no_durations_are_refused(text):
    with pytest.raises(FoldError, match="expected a duration such as 30m, 12h, 14d or 2w"):
        parse_duration(text)


def test_a_number_counts_candles():
    assert count_duration_candles("test", np.int64(7), make_config(1, 1)) == 7


def test_answers_that_do_not_fit_the_folds_are_refused():
    config = make_config(12, 24)
    folds = walk_forward_folds(2976, make_dates(3000), config)
    tests = [fold.test for fold in folds]
    with pytest.raises(FoldError, match="expected answers for each of 4 folds, got 3"):
        stitch_folds(folds, tests[:3])
    with pytest.raises(FoldError, match="fold 0 has 336 test rows, got answers of shape .335,."):
        stitch_folds(folds, [tests[0][1:], *tests[1:]])
    combined = cpcv_folds(2976, make_dates(3000), config)
    with pytest.raises(FoldError, match="use stitch_paths"):
        stitch_folds(combined, [fold.test for fold in combined])
