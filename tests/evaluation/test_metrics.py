"""Metrics against scikit-learn, and input that must be refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics

from crypto_lstm.config import HOLD, LONG, SHORT, Config
from crypto_lstm.evaluation.metrics import (
    EvaluationError,
    confusion_matrix,
    correct_prior,
    decision_metrics,
    evaluate,
    row_log_loss,
)

THIRDS = [1 / 3] * 3


def make_answers(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities (rows, 3) that have some skill."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(3, size=rows, p=[0.2, 0.5, 0.3])
    probabilities = generator.dirichlet([1, 2, 1], size=rows)
    probabilities[np.arange(rows), labels] += 0.3
    return labels, probabilities / probabilities.sum(axis=1, keepdims=True)


def make_outcomes(labels: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"label": labels.astype(np.int8), "long_return": 0.5, "short_return": -0.5})


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_those_of_scikit_learn(seed):
    labels, probabilities = make_answers(rows=200, seed=seed)
    decisions = probabilities.argmax(axis=1)
    metrics = decision_metrics(confusion_matrix(labels, decisions))
    assert math.isclose(metrics["accuracy"], sklearn.metrics.accuracy_score(labels, decisions))
    assert math.isclose(metrics["balanced_accuracy"], sklearn.metrics.balanced_accuracy_score(labels, decisions))
    assert math.isclose(metrics["mcc"], sklearn.metrics.matthews_corrcoef(labels, decisions))
    losses = row_log_loss(labels, probabilities)
    assert math.isclose(losses.mean(), sklearn.metrics.log_loss(labels, probabilities), rel_tol=1e-6)


def test_a_corrected_prior_is_undone_by_the_opposite_correction():
    _, probabilities = make_answers(rows=50, seed=4)
    market = [0.1, 0.7, 0.2]
    there = correct_prior(probabilities, trained_on=THIRDS, prior=market)
    np.testing.assert_allclose(there.sum(axis=1), 1)
    np.testing.assert_allclose(correct_prior(there, trained_on=market, prior=THIRDS), probabilities)


def test_a_repr_has_one_line_tables_fit_a_terminal_and_values_are_plain_json():
    labels, probabilities = make_answers(rows=400, seed=5)
    evaluation = evaluate("test", probabilities, make_outcomes(labels), THIRDS, THIRDS, Config())
    assert "\n" not in repr(evaluation)
    assert max(map(len, str(evaluation).splitlines())) <= 80
    assert evaluation.as_dict() == json.loads(json.dumps(evaluation.as_dict(), allow_nan=False))


def test_an_evaluation_has_no_interval_and_no_verdict():
    """Neighbouring windows share their candles, so figures by windows prove nothing; the verdict is a `Judgement`."""
    labels, probabilities = make_answers(rows=50, seed=6)
    evaluation = evaluate("test", probabilities, make_outcomes(labels), THIRDS, THIRDS, Config())
    names = {"intervals", "beats", "learnt", "pays", "verdict"}
    assert not names & (set(dir(evaluation)) | set(evaluation.as_dict()))


def test_the_direction_of_all_moves_is_that_of_scikit_learn():
    labels, probabilities = make_answers(rows=300, seed=7)
    moved = labels != HOLD
    ups = probabilities[moved, LONG] > probabilities[moved, SHORT]
    found = evaluate("test", probabilities, make_outcomes(labels), THIRDS, THIRDS, Config()).metrics["direction"]
    assert math.isclose(found, sklearn.metrics.balanced_accuracy_score(labels[moved] == LONG, ups))


@pytest.mark.parametrize("label", [3, -1, 0.5])
def test_other_labels_are_refused(label):
    outcomes = make_outcomes(np.zeros(3)).assign(label=[0, 1, label])
    with pytest.raises(EvaluationError, match="expected labels 0, 1 or 2, got"):
        evaluate("test", np.full((3, 3), 1 / 3), outcomes, THIRDS, THIRDS, Config())


@pytest.mark.parametrize("row", [[0.5, 0.5, 0.5], [np.nan, 0.5, 0.5], [np.inf, 0, 0]])
def test_rows_that_are_not_probabilities_are_refused(row):
    probabilities = np.array([THIRDS, row, THIRDS])
    with pytest.raises(EvaluationError, match=r"must be finite and sum to 1, got .* in row 1"):
        evaluate("test", probabilities, make_outcomes(np.zeros(3)), THIRDS, THIRDS, Config())


def test_no_rows_are_refused():
    with pytest.raises(EvaluationError, match="one row for each label"):
        evaluate("test", np.empty((0, 3)), make_outcomes(np.zeros(0)), THIRDS, THIRDS, Config())
