"""Summaries against a plain loop, recent shares against counts by hand, baselines with and without an edge."""

from __future__ import annotations

import json
import sys
import types

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_lstm.config import Config
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.data.windows import prepare
from crypto_lstm.evaluation import baselines as module
from crypto_lstm.evaluation.baselines import (
    BaselineComparison,
    BaselineError,
    compare_baselines,
    compute_recent_shares,
    describe_comparisons,
    fit_baselines,
    list_summary_spans,
    name_summaries,
    summarize_windows,
    tabulate_comparisons,
)
from crypto_lstm.evaluation.metrics import confusion_matrix, decision_metrics

FEATURES = ("close_change", "volume_change", "price_to_ma1440", "volume_to_ma1440")
SMALL = Config(features=FEATURES, sequence_length=60, future_window=90, test_split=0.3)
FIT_ROWS = 3000


def summarize_plainly(window: np.ndarray) -> np.ndarray:
    """Summaries of one window (candles, features), by their definitions."""
    columns: list[np.ndarray] = []
    tails = [window[-span:].astype(np.float64) for span in list_summary_spans(len(window))]
    columns += [tail.mean(axis=0) for tail in tails]
    columns += [tail.std(axis=0) for tail in tails]
    for tail in tails[:2]:
        ages = np.arange(len(tail)) - (len(tail) - 1) / 2
        columns.append(ages @ tail / max((ages**2).sum(), 1.0))
    columns += [window.min(axis=0), window.max(axis=0), window[-1]]
    return np.concatenate(columns)


def make_data(edge: float, seed: int = 4, config: Config = SMALL):
    return prepare(synthetic_candles(24_000, seed=seed, edge=edge), config)


def measure_accuracy(data, baseline) -> float:
    confusion = confusion_matrix(data.test.labels, baseline.test.argmax(axis=1))
    return float(decision_metrics(confusion)["balanced_accuracy"])


@pytest.fixture(scope="module")
def planted():
    data = make_data(edge=1.0)
    return data, fit_baselines(data, max_fit_rows=FIT_ROWS)


# ---------------------------------------------------------------- summaries


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 40),
    features=st.integers(1, 3),
    portion=st.integers(1, 90),
    seed=st.integers(0, 999),
    scale=st.sampled_from([1e-3, 1.0, 10.0]),
)
def test_summaries_equal_a_plain_loop(length, features, portion, seed, scale):
    generator = np.random.default_rng(seed)
    matrix = (scale * generator.standard_t(3, (150, features))).clip(-10, 10).astype(np.float32)
    rows = np.flatnonzero(generator.random(150) < 0.4)
    rows = rows[rows >= length - 1]
    found = summarize_windows(matrix, rows, length, portion)
    assert found.dtype == np.float32
    expected = np.stack([summarize_plainly(matrix[row - length + 1 : row + 1]) for row in rows])
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-7 * scale)


def test_a_constant_feature_has_no_deviation_and_no_slope_after_large_values():
    matrix = np.full((4000, 1), 9.7, dtype=np.float32)
    matrix[:500] = -10
    names = name_summaries(SMALL.replace(features=("close_change",)))
    found = dict(zip(names, summarize_windows(matrix, np.array([3999]), 60)[0].tolist(), strict=True))
    assert found["close_change deviation 60"] == 0
    assert abs(found["close_change slope 60"]) < 1e-12
    assert found["close_change mean 60"] == pytest.approx(9.7)


def test_summaries_do_not_depend_on_the_portion_or_on_later_candles():
    matrix = np.random.default_rng(1).standard_normal((500, 4)).astype(np.float32)
    rows = np.arange(59, 300)
    whole = summarize_windows(matrix, rows, 60)
    np.testing.assert_array_equal(whole, summarize_windows(matrix, rows, 60, portion=17))
    matrix[300:] = np.nan
    np.testing.assert_array_equal(whole, summarize_windows(matrix, rows, 60))


def test_names_and_number_of_the_summaries():
    names = name_summaries(Config())
    assert len(names) == len(set(names)) == 88
    assert names[:2] == ("high_change mean 120", "low_change mean 120")
    assert names[-1] == "volume_to_ma43200 last"


@pytest.mark.parametrize("rows", [[58, 60], [60, 500], [70, 60], [60, 60], []])
def test_rows_without_a_full_window_are_refused(rows):
    with pytest.raises(BaselineError, match="windows must end at ascending rows from 59 to 499|at least one window"):
        summarize_windows(np.zeros((500, 2), dtype=np.float32), np.array(rows, dtype=int), 60)


# ---------------------------------------------------------------- recent shares


@settings(max_examples=50, deadline=None)
@given(horizon=st.integers(1, 9), days=st.integers(1, 3), seed=st.integers(0, 99))
def test_recent_shares_equal_counts_of_finished_labels(horizon, days, seed):
    config = Config(timeframe="6h", future_window=horizon)
    generator = np.random.default_rng(seed)
    labelled = np.flatnonzero(generator.random(80) < 0.8)
    labels = generator.integers(0, 3, len(labelled))
    rows = np.sort(generator.choice(100, 30, replace=False))
    prior = np.array([0.2, 0.5, 0.3])
    found = compute_recent_shares(labelled, labels, rows, prior, config, days)
    for row, shares in zip(rows, found, strict=True):
        finish = labelled + horizon
        is_recent = (finish <= row) & (finish > row - days * 4)
        counts = np.bincount(labels[is_recent], minlength=3) + horizon * prior
        np.testing.assert_allclose(shares, counts / counts.sum())


def test_recent_shares_do_not_see_labels_that_are_not_finished():
    config = Config(timeframe="1h", future_window=24)
    labels = np.random.default_rng(0).integers(0, 3, 1000)
    rows = np.arange(500, 600)
    before = compute_recent_shares(np.arange(1000), labels, rows, (0.3, 0.4, 0.3), config)
    known = rows[-1] - 24
    changed = labels.copy()
    changed[known + 1 :] = 0
    np.testing.assert_array_equal(
        before, compute_recent_shares(np.arange(1000), changed, rows, (0.3, 0.4, 0.3), config)
    )
    cut = compute_recent_shares(np.arange(known + 1), labels[: known + 1], rows, (0.3, 0.4, 0.3), config)
    np.testing.assert_array_equal(before, cut)


def test_recent_shares_beat_the_prior_where_the_shares_drift():
    config = Config(timeframe="1h", future_window=24)
    generator = np.random.default_rng(0)
    share = 0.5 + 0.4 * np.sin(np.arange(6000) / 400)
    labels = np.where(generator.random(6000) < share, 1, np.where(generator.random(6000) < 0.5, 0, 2))
    rows = np.arange(3000, 6000)
    prior = np.bincount(labels[:3000], minlength=3) / 3000
    recent = compute_recent_shares(np.arange(6000), labels, rows, prior, config)
    losses = -np.log(recent[np.arange(3000), labels[rows]])
    assert losses.mean() < -np.log(prior[labels[rows]]).mean() - 0.03


# ---------------------------------------------------------------- fitted baselines


def test_a_planted_edge_is_found(planted):
    data, baselines = planted
    assert list(baselines)[:4] == ["class prior", "recent shares", "logistic regression", "gradient boosting"]
    losses = {name: found.compute_losses("test", data.test.labels, data.prior) for name, found in baselines.items()}
    for name in ("logistic regression", "gradient boosting"):
        assert measure_accuracy(data, baselines[name]) > 0.43
    assert losses["logistic regression"].mean() < losses["class prior"].mean() - 0.03


def test_nothing_is_found_on_fair_markets(monkeypatch):
    """One part holds few independent labels, so single markets give .22 to .42; their mean must be near 1/3."""
    monkeypatch.setattr(module, "_list_models", lambda: {"logistic regression": module._make_logistic})
    accuracies = []
    for seed in range(4):
        data = make_data(edge=0.0, seed=seed)
        found = fit_baselines(data, max_fit_rows=FIT_ROWS)
        losses = {
            name: item.compute_losses("test", data.test.labels, data.prior).mean() for name, item in found.items()
        }
        assert losses["logistic regression"] > losses["class prior"]
        accuracies.append(measure_accuracy(data, found["logistic regression"]))
    assert abs(np.mean(accuracies) - 1 / 3) < 0.06


def test_baselines_are_deterministic_and_leave_the_data_alone(planted):
    data, baselines = planted
    before = data.train.matrix.copy()
    again = fit_baselines(data, max_fit_rows=FIT_ROWS)
    for name, baseline in baselines.items():
        np.testing.assert_array_equal(baseline.test, again[name].test)
        np.testing.assert_array_equal(baseline.validation, again[name].validation)
    np.testing.assert_array_equal(before, data.train.matrix)


def test_answers_are_probabilities_of_every_row_with_their_shares(planted):
    data, baselines = planted
    for baseline in baselines.values():
        assert baseline.validation.shape == (len(data.validation.rows), 3)
        assert baseline.test.shape == (len(data.test.rows), 3)
        np.testing.assert_allclose(baseline.test.sum(axis=1), 1)
        assert sum(baseline.trained_on) == pytest.approx(1)
        json.dumps(baseline.as_dict())
    assert baselines["logistic regression"].fit_rows == FIT_ROWS
    np.testing.assert_allclose(baselines["logistic regression"].trained_on, 1 / 3, atol=0.01)
    assert baselines["class prior"].trained_on == data.prior


def test_class_weights_balance_the_baselines_as_they_do_the_network():
    data = make_data(edge=1.0, config=SMALL.replace(balance="class_weights"))
    found = fit_baselines(data, max_fit_rows=FIT_ROWS)["logistic regression"]
    np.testing.assert_allclose(found.trained_on, 1 / 3, atol=0.02)
    assert measure_accuracy(data, found) > 0.43


def test_lightgbm_is_used_where_it_is_installed(monkeypatch, planted):
    """A stand-in with the interface of LightGBM, since it is not a requirement."""

    class LGBMClassifier:
        def __init__(self, **settings):
            assert settings["random_state"] == 7 and settings["deterministic"]

        def fit(self, summaries, labels, sample_weight):
            self.shares = np.bincount(labels, minlength=3) / len(labels)
            return self

        def predict_proba(self, summaries):
            return np.tile(self.shares, (len(summaries), 1))

    stand_in = types.ModuleType("lightgbm")
    stand_in.LGBMClassifier = LGBMClassifier  # type: ignore[attr-defined]
    stand_in.__spec__ = types.SimpleNamespace(name="lightgbm")  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "lightgbm", stand_in)
    monkeypatch.setattr(module, "_make_boosting", module._make_logistic)
    found = fit_baselines(planted[0], seed=7, max_fit_rows=500)
    assert list(found)[-1] == "LightGBM"
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    assert "LightGBM" not in module._list_models()


@pytest.mark.parametrize("rows", [0, 99, 1.5, True, "all"])
def test_bad_numbers_of_fit_rows_are_refused(planted, rows):
    with pytest.raises(BaselineError, match="max_fit_rows must be a whole number, at least 100"):
        fit_baselines(planted[0], max_fit_rows=rows)


# ---------------------------------------------------------------- comparison


def give_interval(low: float, high: float):
    return lambda values, rows: (low, high)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-0.01, 0.02, "A logistic regression is as good: log-loss 1.0100 against 1.0000 of the model"),
        (-0.03, -0.01, "A logistic regression is better: "),
        (0.005, 0.02, "The model is better than every baseline. The best of them: A logistic regression is worse"),
        (0.0, 0.02, "A logistic regression is as good: "),
    ],
)
def test_the_sentence_follows_from_the_interval(low, high, words):
    losses, others = np.full(50, 1.0), {"logistic regression": np.full(50, 1.01)}
    found = compare_baselines(losses, others, np.arange(50), give_interval(low, high))
    assert describe_comparisons(found).startswith(words)
    json.dumps(found[0].as_dict())


def test_the_sentence_names_a_better_baseline_before_a_simpler_one():
    simple = BaselineComparison("class prior", 9, 1.01, 1.0, (-0.1, 0.1))
    better = BaselineComparison("logistic regression", 9, 0.9, 1.0, (-0.2, -0.05))
    assert describe_comparisons([simple, better]).startswith("A logistic regression is better")
    assert describe_comparisons([simple]).startswith("The class prior is as good")


def test_the_interval_gets_the_paired_losses_and_their_rows():
    seen = []
    losses, rows = np.array([1.0, 2.0]), np.array([10, 30])
    compare_baselines(losses, {"a": np.array([1.5, 1.0])}, rows, lambda *given: seen.append(given))
    np.testing.assert_array_equal(seen[0][0], [0.5, -1.0])
    np.testing.assert_array_equal(seen[0][1], rows)


def test_without_an_interval_no_model_is_better():
    found = BaselineComparison("recent shares", 5, 1.1, 1.0, None)
    assert found.is_as_good and not found.is_better
    assert "can't be compared beyond chance" in found.sentence


def test_losses_of_other_rows_are_refused():
    with pytest.raises(BaselineError, match="expected one loss of the model and of a for each row"):
        compare_baselines(np.ones(3), {"a": np.ones(4)}, np.arange(3), give_interval(0, 1))
    with pytest.raises(BaselineError, match="expected one loss of the model and of a for each row"):
        compare_baselines(np.ones(3), {"a": np.ones(3)}, np.arange(4), give_interval(0, 1))


def test_tables_fit_into_80_columns():
    found = [BaselineComparison(name, 5, 1.1, 1.0, (-0.01, 0.2)) for name in module._SUBJECTS]
    assert max(map(len, tabulate_comparisons(found).splitlines())) <= 80
    assert "<table>" in tabulate_comparisons(found, as_html=True)


def test_outcomes_of_gaps_keep_their_rows():
    """Labels lie at rows with holes: the rows count, not the places in the table."""
    config = Config(timeframe="1d", future_window=1)
    labels = pd.Series([2, 2, 0], index=[0, 1, 50])
    rows = np.array([2, 40, 52])
    found = compute_recent_shares(labels.index.to_numpy(), labels.to_numpy(), rows, (0.2, 0.6, 0.2), config)
    assert found[0, 2] > 0.7
    np.testing.assert_allclose(found[1], [0.2, 0.6, 0.2])
    assert found[2, 0] > 0.5
