"""Judging after a training: the ledger never costs a result, and each fact is told once. No network is trained."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os

import numpy as np
import pandas as pd
import pytest

from crypto_lstm.config import HOLD, Config
from crypto_lstm.data.labels import make_labels
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.data.windows import prepare
from crypto_lstm.evaluation.judgement import Answers, Trials, compute_gains, judge
from crypto_lstm.evaluation.ledger import read_ledger
from crypto_lstm.inference.policy import DecisionPolicy
from crypto_lstm.storage.lock import hold_lock
from crypto_lstm.training.judging import (
    answer_with_baselines,
    count_trials,
    fit_model_policy,
    judge_model,
    list_cautions,
    list_trained_shares,
    warn_of_rule,
)

CONFIG = Config(
    timeframe="1h", sequence_length=12, future_window=24, long_tp_pct=2, long_sl_pct=1, short_tp_pct=2, short_sl_pct=1
)
CANDLES = synthetic_candles(4000, seed=3, timeframe="1h")
SHA256 = "0" * 64


def make_answers(data, part: str, skill: float = 0.1) -> np.ndarray:
    """(rows, 3) of a network with a share of the truth in its answers."""
    labels = data.outcomes_of(part)["label"].to_numpy()
    noise = np.random.default_rng(len(part)).dirichlet([4, 4, 4], size=len(labels))
    return (1 - skill) * noise + skill * np.eye(3)[labels]


def judge_data(data, ledger, candles: pd.DataFrame = CANDLES, skill: float = 0.1):
    answers = [make_answers(data, part, skill) for part in ("validation", "test")]
    return judge_model(candles, data, *answers, SHA256, ledger)


@pytest.fixture(scope="module")
def data():
    return prepare(CANDLES, CONFIG)


@pytest.fixture(scope="module")
def judged(data, tmp_path_factory):
    return judge_data(data, tmp_path_factory.mktemp("ledger") / "ledger.jsonl")


@pytest.fixture
def ledger(tmp_path, data, judged):
    """A ledger with one judgement of another model."""
    path = tmp_path / "ledger.jsonl"
    count(judged.judgement, data, path, CONFIG.replace(seed=7, learning_rate=0.01))
    return path


def count(judgement, data, path, config: Config = CONFIG, wait_s: float = 0.05) -> Trials:
    return count_trials(judgement, config, SHA256, data.dates.iloc[data.test.rows], path, wait_s)


# ---------------------------------------------------------------- the ledger


def test_the_same_judgement_is_entered_once_and_another_setting_counts(data, judged, tmp_path):
    path = tmp_path / "ledger.jsonl"
    found = [judge_data(data, path).judgement.as_dict() for _ in range(2)]
    assert found[0] == found[1] == judged.judgement.as_dict() and len(read_ledger(path)) == 1
    other = dataclasses.replace(data, config=CONFIG.replace(learning_rate=0.01))
    assert judge_data(other, path).judgement.luck.trials == 2 and len(read_ledger(path)) == 2
    assert count(judged.judgement, data, path).count == 2 and len(read_ledger(path)) == 2


def test_a_locked_ledger_is_a_warning_and_stays_as_it_is(data, judged, ledger, caplog):
    before = ledger.read_bytes()
    with hold_lock(ledger):
        assert count(judged.judgement, data, ledger) == Trials()
    assert ledger.read_bytes() == before
    assert f"process {os.getpid()}" in caplog.text and "this model counts as the only one" in caplog.text


def test_a_damaged_ledger_is_a_warning_and_keeps_every_byte(data, judged, ledger, caplog):
    damaged = b"not an entry\n" + ledger.read_bytes() + b'{"entry": '
    ledger.write_bytes(damaged)
    trials = count(judged.judgement, data, ledger)
    assert ledger.read_bytes().startswith(damaged)
    assert trials.count == 4, "this one, the intact one, and each damaged line"
    assert "is damaged: line 1" in caplog.text and "line 3" in caplog.text
    assert [entry.settings for entry in read_ledger(ledger)][1] != read_ledger(ledger).entries[0].settings


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_ledger_that_cannot_be_written_is_a_warning(code, data, judged, ledger, caplog, monkeypatch):
    before, real = ledger.read_bytes(), os.open

    def refuse(path, flags, *more, **options):
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(code, os.strerror(code), str(path))
        return real(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", refuse)
    assert count(judged.judgement, data, ledger) == Trials()
    monkeypatch.undo()
    assert ledger.read_bytes() == before and os.strerror(code) in caplog.text


def test_a_folder_or_a_file_in_the_place_of_the_ledger_is_a_warning(data, judged, tmp_path, caplog):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path, tmp_path / "file" / "ledger.jsonl"):
        assert count(judged.judgement, data, path) == Trials()
    assert caplog.text.count("this model counts as the only one") == 2
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["cut off", "another market"])
def test_nothing_after_the_test_part_changes_the_entry(name, tmp_path):
    end, last = 3000, 3000 - CONFIG.future_window - 2
    other = synthetic_candles(4000, seed=8, timeframe="1h")
    changed = {"cut off": CANDLES.iloc[:end], "another market": pd.concat([CANDLES.iloc[:end], other.iloc[end:]])}
    entries = []
    for number, candles in enumerate((CANDLES, changed[name])):
        test = make_labels(candles, CONFIG).loc[1000:last]
        raw = np.random.default_rng(0).dirichlet([2, 2, 2], size=len(test))
        answers = Answers.from_policy("network", raw, DecisionPolicy())
        judgement = judge("test", candles, test, answers, CONFIG, random_runs=10)
        path = tmp_path / f"{number}.jsonl"
        count_trials(judgement, CONFIG, SHA256, candles["date"].loc[test.index], path)
        (entry,) = read_ledger(path)
        entries.append(entry.as_dict() | {"time": ""})
    assert entries[0] == entries[1] and entries[0]["sharpe"] is not None


# ---------------------------------------------------------------- the policy and the warnings


def test_the_policy_knows_nothing_of_the_test_part(data, judged):
    """Other candles after the validation part, and so other outcomes of the test part, change no value of it."""
    changed = data.outcomes.copy()
    after = changed.index > data.validation.rows[-1]
    changed.loc[after, ["long_return", "short_return"]] = 9.0
    changed.loc[after, "label"] = HOLD
    other = dataclasses.replace(data, outcomes=changed)
    fit = fit_model_policy(other, make_answers(data, "validation"), list_trained_shares(data))
    assert fit.policy == judged.fit.policy and fit.calibration.as_dict() == judged.fit.calibration.as_dict()


def test_simpler_models_are_judged_on_the_same_rows(data, judged):
    names = [account.name for account in judged.judgement.rivals]
    assert names[:4] == ["class prior", "recent shares", "logistic regression", "gradient boosting"]
    assert {comparison.rows for comparison in judged.judgement.comparisons} == {len(data.test.rows)}


def test_a_rule_that_ignores_costs_is_warned_of(data, tmp_path, caplog):
    argmax = dataclasses.replace(data, config=CONFIG.replace(rule="argmax"))
    (sentence,) = warn_of_rule(argmax.config)
    assert "costs" in sentence and warn_of_rule(CONFIG) == ()
    judgement = judge_data(argmax, tmp_path / "ledger.jsonl").judgement
    assert judgement.cautions.count(sentence) == 1 and sentence in " ".join(str(judgement).split())


def test_a_caution_does_not_repeat_a_warning_of_prepare(tmp_path):
    """A constant volume and a dead end: `prepare` warns of both, and the cautions do not repeat them."""
    candles = CANDLES.assign(volume=5.0)
    candles.loc[3950:, ["open", "high", "low", "close"]] = candles["close"].iloc[3949]
    data = prepare(candles, CONFIG)
    rivals = answer_with_baselines(data)
    model = Answers.from_policy("network", make_answers(data, "test"), DecisionPolicy())
    cautions = list_cautions(candles, data, compute_gains(data.outcomes_of("test")["label"].to_numpy(), model, rivals))
    assert set(data.warnings) <= set(cautions) and len(set(cautions)) == len(cautions)
    for fact in ("constant in the training part", "the price does not move"):
        assert sum(fact in caution for caution in cautions) == 1, fact


def test_weak_regimes_and_shifts_reach_the_judgement(tmp_path):
    """Volumes that grow a thousandfold in the test part."""
    candles = CANDLES.copy()
    candles.loc[3400:, "volume"] **= 2
    judgement = judge_data(prepare(candles, CONFIG), tmp_path / "ledger.jsonl", candles).judgement
    text = " ".join(judgement.cautions)
    assert "follow another distribution" in text or "outside the range of the training part" in text
    json.dumps(judgement.as_dict(), allow_nan=False)


def test_a_test_part_with_one_class_is_judged(tmp_path, caplog):
    """The market dies before the test part: nobody learns anything there, and nothing fails."""
    candles = CANDLES.copy()
    first = int(prepare(CANDLES, CONFIG).test.rows[0]) - CONFIG.sequence_length
    candles.loc[first:, ["open", "high", "low", "close"]] = candles["close"].iloc[first - 1]
    data = prepare(candles, CONFIG)
    assert set(data.outcomes_of("test")["label"]) == {HOLD}
    with caplog.at_level(logging.WARNING):
        judgement = judge_data(data, tmp_path / "ledger.jsonl", candles, skill=0.0).judgement
    assert judgement.chance == 1.0 and not judgement.learnt and not judgement.pays
    assert len(read_ledger(tmp_path / "ledger.jsonl")) == 1
    assert "the price does not move" in " ".join(judgement.cautions)
