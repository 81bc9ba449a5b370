"""Intervals against plain computations, `scipy` and `arch`; refusals; and a small round of the coverage benchmark."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from arch.bootstrap import optimal_block_length as arch_block_length

from benchmarks.evaluation.coverage import METRICS, measure_world, render_results, summarise
from benchmarks.evaluation.worlds import KINDS
from crypto_lstm.config import HOLD, LONG, SHORT
from crypto_lstm.evaluation.intervals import (
    bootstrap_interval,
    choose_stretches,
    measure_memory,
    metric_intervals,
    optimal_block_length,
    signal_direction,
    stretch_interval,
)
from crypto_lstm.evaluation.metrics import EvaluationError, confusion_matrix


def make_answers(seed=0, runs=400, length=30, skill=0.3):
    """Labels and decisions in runs; a share of the decisions is right on purpose."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(3, size=runs, p=[0.25, 0.5, 0.25])
    decisions = np.where(generator.random(runs) < skill, labels, generator.choice(3, size=runs))
    return np.repeat(labels, length), np.repeat(decisions, length)


def compute_plain(labels, decisions):
    """The metrics from scikit-learn."""
    signal = (decisions != HOLD) & (labels != HOLD)
    return {
        "accuracy": sklearn.metrics.accuracy_score(labels, decisions),
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(labels, decisions),
        "mcc": sklearn.metrics.matthews_corrcoef(labels, decisions),
        "direction": sklearn.metrics.balanced_accuracy_score(labels[signal], decisions[signal]),
    }


def jackknife_plainly(labels, decisions, number):
    """Half widths of the intervals: leave out one stretch after the other, in a loop."""
    stretch = np.arange(len(labels)) * number // len(labels)
    left_out = [compute_plain(labels[stretch != one], decisions[stretch != one]) for one in range(number)]
    widths = {}
    for metric in left_out[0]:
        values = np.array([figures[metric] for figures in left_out])
        error = np.sqrt((number - 1) * values.var())
        widths[metric] = error * scipy.stats.t.ppf(0.995, number - 1)
    return widths


def test_intervals_equal_a_plain_jackknife():
    labels, decisions = make_answers()
    found = metric_intervals(labels, decisions, np.arange(12_000), purge_gap=60)
    whole, half = jackknife_plainly(labels, decisions, 12), jackknife_plainly(labels, decisions, 6)
    for metric, estimate in compute_plain(labels, decisions).items():
        interval = found[metric]
        assert interval.estimate == pytest.approx(estimate)
        assert interval.high - estimate == pytest.approx(max(whole[metric], half[metric]))
        assert estimate - interval.low == pytest.approx(interval.high - estimate)


def test_interval_of_a_mean_equals_the_t_interval_of_stretch_means():
    values = np.random.default_rng(2).normal(size=6_000)
    found = stretch_interval(values, np.arange(6_000), purge_gap=10, confidence=0.9)
    widths = []
    for number in (12, 6):
        low, high = scipy.stats.t.interval(0.9, number - 1, scale=scipy.stats.sem(values.reshape(number, -1).mean(1)))
        widths.append((high - low) / 2)
    assert (found.low, found.high) == pytest.approx((values.mean() - max(widths), values.mean() + max(widths)))


def test_direction_counts_rows_with_a_signal_and_a_moving_label():
    labels, decisions = make_answers(3)
    found = signal_direction(confusion_matrix(labels, decisions))
    assert float(found) == pytest.approx(compute_plain(labels, decisions)["direction"])
    decisions = np.where(labels == HOLD, LONG, decisions)  # what is signalled on rows of HOLD does not matter
    assert float(signal_direction(confusion_matrix(labels, decisions))) == pytest.approx(float(found))


def test_offsets_and_gaps_of_the_rows_change_nothing_but_the_stretches():
    labels, decisions = make_answers()
    rows = np.arange(12_000)
    near = metric_intervals(labels, decisions, rows, 60)
    assert metric_intervals(labels, decisions, rows + 5_000_000, 60) == near
    sparse = metric_intervals(labels, decisions, rows * 3, 60 * 3)
    assert sparse["mcc"] == near["mcc"]
    assert sparse.span_candles == 35_998
    spread = np.where(rows < 6_000, rows, rows + 12_000)  # a third of the time has no rows
    assert "gaps so long" in metric_intervals(labels, decisions, spread, 60)["mcc"].reason


@pytest.mark.parametrize(("rows", "number"), [(7_200, 12), (7_199, 11), (6_000, 10), (4_800, 8), (4_799, None)])
def test_stretches_fall_from_twelve_to_eight_and_hold_five_gaps(rows, number):
    assert choose_stretches(np.arange(rows), purge_gap=120)[0] == number


def test_slow_answers_have_no_interval():
    labels, _ = make_answers()
    slow = np.repeat([SHORT, LONG, SHORT, LONG], 3_000)
    found = metric_intervals(labels, slow, np.arange(12_000), 60)
    assert found["mcc"].low is None
    assert "slowly" in found["mcc"].reason or "memory" in found["mcc"].reason
    hold = np.full(12_000, HOLD)
    level = np.repeat([0.1, 0.3, 0.1, 0.3], 3_000)
    answers = np.column_stack([level, 1 - 2 * level, level])  # the decision hides what the probabilities show
    assert metric_intervals(labels, hold, np.arange(12_000), 60)["accuracy"].low is not None
    assert metric_intervals(labels, hold, np.arange(12_000), 60, probabilities=answers)["accuracy"].low is None


def test_metrics_without_evidence_in_eight_stretches_have_no_interval():
    labels, decisions = make_answers()
    few = np.where(np.arange(12_000) % 3_000 < 60, decisions, HOLD)  # signals in four short spans
    reason = metric_intervals(labels, few, np.arange(12_000), 60)["direction"].reason
    assert "signals where the label is SHORT" in reason
    one_class = metric_intervals(np.full(12_000, HOLD), decisions, np.arange(12_000), 60)
    assert one_class["direction"].estimate == 0.5
    assert one_class["direction"].low is None
    perfect = metric_intervals(labels, labels, np.arange(12_000), 60)
    assert "does not vary" in perfect["mcc"].reason
    constant = metric_intervals(labels, np.full(12_000, LONG), np.arange(12_000), 60)
    assert (constant["mcc"].low, constant["mcc"].high) == (0.0, 0.0)
    trades = np.zeros(12_000)
    trades[:3] = 1.0
    assert "values other than 0" in stretch_interval(trades, np.arange(12_000), 60).reason


def test_intervals_stay_within_the_range_of_the_metric():
    labels, decisions = make_answers(seed=1, runs=120, skill=0.97)
    found = metric_intervals(labels, decisions, np.arange(3_600), 60)
    limits = {name: (found[name].low, found[name].high) for name in ("accuracy", "mcc", "direction")}
    assert all(low is None or high <= 1.0 for low, high in limits.values())


@pytest.mark.parametrize("seed", range(6))
def test_block_length_equals_arch(seed):
    generator = np.random.default_rng(seed)
    values = generator.normal(size=100 * (seed + 1) ** 2)
    values = np.convolve(values, np.ones(1 + 6 * seed), "valid")
    found = optimal_block_length(values)
    reference = arch_block_length(values)
    assert found.stationary == pytest.approx(reference["stationary"].iloc[0], rel=1e-9)
    assert found.circular == pytest.approx(reference["circular"].iloc[0], rel=1e-9)


def test_bootstrap_of_many_rows_is_binned_and_keeps_its_width():
    values = np.repeat(np.random.default_rng(0).normal(size=8_000), 5)
    binned = bootstrap_interval(values)
    plain = bootstrap_interval(values[::5])
    assert binned.high - binned.low == pytest.approx(plain.high - plain.low, rel=0.15)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)


def test_memory_of_overlapping_sums_is_their_length():
    noise = np.random.default_rng(0).normal(size=40_000)
    sums = np.convolve(noise, np.ones(50), "valid")  # autocorrelation falls linearly to 0 at 50
    assert measure_memory(sums, np.arange(len(sums)), 5) == pytest.approx(50, rel=0.15)


def test_intervals_are_plain_json_and_narrow_text():
    labels, decisions = make_answers()
    found = metric_intervals(labels[:900], decisions[:900], np.arange(900), 60, means={"net": np.ones(900)})
    facts = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert facts["stretches"]["net"]["low"] is None
    assert max(map(len, str(found).splitlines())) <= 80
    assert "<table>" in found._repr_html_()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": np.zeros(5, int)}, "one class for each of 900 rows in labels"),
        ({"decisions": np.full(900, 3)}, "classes 0, 1 or 2 in decisions"),
        ({"rows": np.arange(900)[::-1]}, "ascending whole numbers"),
        ({"rows": np.arange(900.0)}, "ascending whole numbers"),
        ({"purge_gap": 0}, "purge_gap as a whole number of candles from 1, got 0"),
        ({"confidence": 1.0}, r"confidence in \(0, 1\), got 1.0"),
        ({"means": {"net": np.full(900, np.nan)}}, "net must be finite, got nan in row 0"),
        ({"means": {"net": np.ones(3)}}, "one number for each of 900 rows in net"),
    ],
)
def test_unusable_input_is_refused(change, words):
    labels, decisions = make_answers(runs=30)
    arguments = {"labels": labels, "decisions": decisions, "rows": np.arange(900), "purge_gap": 60}
    with pytest.raises(EvaluationError, match=words):
        metric_intervals(**arguments | change)


def test_a_small_round_of_the_coverage_benchmark_reaches_its_goal(monkeypatch):
    monkeypatch.setattr("benchmarks.evaluation.coverage.BLOCKS", (30, 120))
    monkeypatch.setattr("benchmarks.evaluation.coverage._TRUTH_ROWS", 60_000)
    cells = measure_world(KINDS[0], memory_h=1, histories=12)
    short, long = (cell["counts"]["stretches"] for cell in cells)
    assert [short[metric] for metric in METRICS] == [[0, 0]] * 5  # too short for any interval
    assert sum(long[metric][1] for metric in METRICS) == 60
    assert sum(long[metric][0] for metric in METRICS) >= 58
    assert "intervals hold the true value" in summarise(cells, "stretches")
    assert "fair" in render_results(cells)
