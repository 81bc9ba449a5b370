"""The audit of our own pipeline: it passes, and each fault that is planted in a stage is found, by its candles."""

import numpy as np
import pytest

from crypto_lstm.config import LONG, Config
from crypto_lstm.data import features, labels, windows
from crypto_lstm.data.scaler import Scaler
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.evaluation import pipeline_audit
from crypto_lstm.evaluation.pipeline_audit import audit_pipeline

CONFIG = Config(
    timeframe="1h", features=("close_change", "price_to_ma1440"), sequence_length=12, future_window=24, batch_size=64,
    long_tp_pct=2, long_sl_pct=2, short_tp_pct=2, short_sl_pct=2,
)  # fmt: skip
CANDLES = synthetic_candles(1000, seed=3, timeframe="1h")


def failed(audit) -> dict[str, int]:
    return {column.name: column.ahead for column in audit.columns if not column.is_clean}


def test_our_pipeline_does_not_look_ahead():
    gap = CANDLES.drop(index=[*range(400, 403), *range(700, 750)]).reset_index(drop=True)
    audit = audit_pipeline(gap, CONFIG, places=2)
    assert audit.passed, str(audit)
    assert {column.ahead for column in audit.columns if column.name.startswith("label")} == {24}
    assert len([column for column in audit.columns if column.name.startswith("stage")]) == 7


def count_unseen() -> int:
    """Candles after the last training row."""
    return len(CANDLES) - 1 - windows.prepare(CANDLES, CONFIG).training_spans[-1][1]


def test_a_scaler_fitted_on_everything_is_found(monkeypatch):
    def fit_on_everything(matrix, has_features, spans, config):
        return Scaler.fit(matrix[has_features], config)

    monkeypatch.setattr(windows, "_fit_scaler", fit_on_everything)
    config = CONFIG.replace(scaler="standard")  # a mean notices every candle, a median does not
    found = failed(audit_pipeline(CANDLES, config, places=1))
    assert found["stage: scaler"] == found["stage: training windows"] == count_unseen()
    assert not [name for name in found if name.startswith(("feature", "label", "purge"))]


def test_parts_without_a_purge_gap_are_found(monkeypatch):
    monkeypatch.setattr(windows, "_purge", lambda rows, later, purge_gap: rows)
    found = failed(audit_pipeline(CANDLES, CONFIG, places=1))
    overlap = CONFIG.future_window + CONFIG.sequence_length - 1
    assert found == {"purge: train to validation": overlap, "purge: validation to test": overlap}


def test_a_balance_that_counts_the_test_part_is_found(monkeypatch):
    seen = {}
    prepare_history = windows.prepare_history

    def remember(*values):
        seen["history"] = prepare_history(*values)
        return seen["history"]

    def keep_as_many_as_longs(rows, own, config):
        return rows[: int((seen["history"].outcomes["label"] == LONG).sum())]

    monkeypatch.setattr(windows, "prepare_history", remember)
    monkeypatch.setattr(windows, "balance_rows", keep_as_many_as_longs)
    found = failed(audit_pipeline(CANDLES, CONFIG.replace(balance="none"), places=1))
    assert "stage: balance and training targets" in found and "stage: scaler" not in found


@pytest.mark.parametrize("stage", ["rule", "calibration"])
def test_a_policy_fitted_on_the_test_part_is_found(stage, monkeypatch):
    fit = pipeline_audit.fit_policy
    seen = {}

    def remember(candles, config):
        seen["data"] = windows.prepare(candles, config)
        return seen["data"]

    def fit_on_everything(answers, validation, training, *others):
        outcomes = seen["data"].outcomes
        if stage == "rule":
            return fit(answers, validation, outcomes, *others)
        shares = np.bincount(outcomes["label"], minlength=3) / len(outcomes)
        return fit(answers, validation, training, others[0], shares, others[2])

    monkeypatch.setattr(pipeline_audit, "prepare", remember)
    monkeypatch.setattr(pipeline_audit, "fit_policy", fit_on_everything)
    assert set(failed(audit_pipeline(CANDLES, CONFIG, places=1))) == {f"stage: {stage}"}


def test_a_feature_of_the_next_candle_is_found(monkeypatch):
    compute = features.make_feature_matrix

    def shift(filled, config):
        matrix, usable = compute(filled, config)
        return np.concatenate([matrix[1:], matrix[-1:]]), usable

    monkeypatch.setattr(features, "make_feature_matrix", shift)
    found = failed(audit_pipeline(CANDLES, CONFIG, places=1))
    assert found == {"feature: close_change": 1, "feature: price_to_ma1440": 1}


def test_labels_that_look_further_than_their_window_are_found(monkeypatch):
    label = labels.label_filled
    monkeypatch.setattr(labels, "label_filled", lambda filled, config: label(filled, config.replace(future_window=30)))
    found = failed(audit_pipeline(CANDLES, CONFIG, places=1))
    assert found["label: label"] == 30 and not [name for name in found if name.startswith("feature")]
