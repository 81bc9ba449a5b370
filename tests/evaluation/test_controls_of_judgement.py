"""Controls with a known answer, through the whole judgement: luck, drift, a dead market, an edge and none."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import numpy as np
import pytest

from benchmarks.evaluation.worlds import _make_candles, make_process
from benchmarks.judgement import edge, fair, former, references
from crypto_lstm.config import HOLD, Config
from crypto_lstm.data.labels import make_labels
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.evaluation import baselines
from crypto_lstm.evaluation.baselines import compute_recent_shares
from crypto_lstm.evaluation.intervals import stretch_interval, trade_interval
from crypto_lstm.evaluation.judgement import Answers, fit_policy, judge
from crypto_lstm.evaluation.ledger import append_entry, make_entry, read_ledger, summarise_trials
from crypto_lstm.evaluation.luck import measure_luck
from crypto_lstm.inference.policy import DecisionPolicy

START, END = datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 3, 1, tzinfo=UTC)
THIRDS = (1 / 3, 1 / 3, 1 / 3)
HOURLY = Config(timeframe="1h", sequence_length=12, future_window=24)
SMALL = Config(
    sequence_length=12, future_window=12, long_tp_pct=0.3, long_sl_pct=0.3, short_tp_pct=0.3, short_sl_pct=0.3
)


# ---------------------------------------------------------------- luck


def enter_models(path, returns):
    """One ledger entry for each model, all on one test part."""
    for number, trades in enumerate(returns):
        config = HOURLY.replace(seed=number)
        append_entry(make_entry(config, "candles", START, END, {}, trades, learnt=False, pays=False), path)
    return summarise_trials(read_ledger(path), f"{HOURLY.pair} 1h", START, END)


def find_best(returns):
    return returns[(returns.mean(axis=1) / returns.std(axis=1)).argmax()]


def test_the_best_of_hundred_models_in_the_ledger_does_not_convince_and_would_alone(tmp_path):
    returns = np.random.default_rng(1).standard_t(5, size=(100, 300))
    trials = enter_models(tmp_path / "ledger.jsonl", returns)
    assert (trials.trials, trials.sharpes) == (100, 100)
    best = find_best(returns)
    assert measure_luck(best).deflated > 0.95
    assert measure_luck(best, trials.trials, trials.variance).deflated < 0.95


def test_a_true_edge_among_models_in_the_ledger_convinces(tmp_path):
    returns = np.random.default_rng(2).standard_t(5, size=(30, 500))
    returns[7] += 0.5
    trials = enter_models(tmp_path / "ledger.jsonl", returns)
    assert measure_luck(find_best(returns), trials.trials, trials.variance).deflated > 0.95


# ---------------------------------------------------------------- a market whose class shares drift


def test_shares_of_the_last_days_beat_fixed_ones_on_a_market_whose_volatility_drifts():
    generator = np.random.default_rng(0)
    config = Config(timeframe="5m", sequence_length=12, future_window=48)
    volatility = make_process(generator, 30_000, 20 * config.day_candles)
    candles = _make_candles(0.13 * np.exp(0.9 * volatility) * generator.normal(size=30_000))
    outcomes = make_labels(candles, config)
    labels, rows = outcomes["label"].to_numpy().astype(np.int64), outcomes.index.to_numpy()
    training, test = labels[:15_000], slice(16_000, len(labels))
    prior = np.bincount(training, minlength=3) / len(training)
    recent = compute_recent_shares(rows, labels, rows[test], tuple(prior), config)
    answers = Answers("recent shares", recent, recent, np.full(len(recent), HOLD, dtype=np.int8))
    fixed = np.tile(prior, (len(recent), 1))
    rival = Answers("class prior", fixed, fixed, answers.decisions)
    judged = judge("test", candles, outcomes[test], answers, config, [rival], random_runs=0)
    assert judged.model.log_loss < judged.rivals[0].log_loss - 0.02
    assert not judged.learnt and judged.result == "no trade"


# ---------------------------------------------------------------- a dead market


def judge_dead_market():
    """A market that trades in training and validation, and whose price stands still in the test part."""
    candles = synthetic_candles(12_000, seed=1, edge=1.0)
    dead = candles.index >= 8000
    candles.loc[dead, ["open", "high", "low", "close"]] = float(candles["close"].iloc[7999])
    outcomes = make_labels(candles, SMALL)
    generator = np.random.default_rng(0)
    raw = generator.dirichlet([4, 4, 4], size=len(outcomes))
    training, validation, test = outcomes[:4000], outcomes[4100:7900], outcomes[8100:]
    prior = np.bincount(training["label"], minlength=3) / len(training)
    fit = fit_policy(raw[4100:7900], validation, training, THIRDS, prior, SMALL)
    trader = Answers("argmax", raw[8100:], raw[8100:], raw[8100:].argmax(axis=1).astype(np.int8))
    answers = Answers.from_policy("model", raw[8100:], fit.policy)
    return [judge("test", candles, test, some, SMALL, random_runs=50) for some in (answers, trader)]


def test_on_a_dead_market_nothing_is_learnt_and_each_trade_costs_its_fee():
    quiet, trader = judge_dead_market()
    for judged in (quiet, trader):
        assert judged.chance == 1.0 and not judged.learnt and not judged.pays
        assert json.loads(json.dumps(judged.as_dict(), allow_nan=False)) == judged.as_dict()
        assert judged.sentences[2].startswith(("Do not trade", "There is nothing to trade"))
    assert trader.model.simulation.figures["mean_net_pct"] == pytest.approx(-2 * SMALL.fee_pct)


# ---------------------------------------------------------------- an edge and none, as in the benchmarks


def test_a_fair_market_is_neither_learnt_nor_traded(monkeypatch):
    """One market. `python -m benchmarks judgement` counts how often this fails on hundreds of them."""
    for name, rows in (("TRAINING", 10_000), ("VALIDATION", 30_000), ("TEST", 10_000), ("FEW", 8_000)):
        monkeypatch.setattr(fair, name, rows)
    markets = fair.judge_market(3, memories_h=(1, 8))
    for market in markets:
        assert not market["learnt"] and not market["pays"]
        assert market["trades"] <= 20 < market["argmax_trades"]
    assert len(fair.render_groups(fair.summarise_groups(markets)).splitlines()) == 13


def test_a_planted_edge_is_found_by_a_simple_model_and_a_fair_market_is_not(monkeypatch):
    monkeypatch.setattr(baselines, "_list_models", lambda: {"logistic regression": baselines._make_logistic})
    config = SMALL.replace(features=edge.CONFIG.features, sequence_length=30, test_split=0.3, future_window=60)
    config = config.replace(long_tp_pct=0.6, short_tp_pct=0.6)
    planted, none = (edge.judge_simpler_models(share, 24_000, 4, config)[0] for share in (1.0, 0.0))
    assert planted["model"] == "logistic regression" and planted["learnt"]
    assert not none["learnt"] and not none["pays"]
    assert max(map(len, edge.render_results({"1 24000 4": [planted], "0 24000 4": [none]}).splitlines())) <= 100


def test_a_part_with_one_class_is_judged_by_its_costs_alone():
    config = HOURLY.replace(long_tp_pct=90.0, short_tp_pct=90.0, long_sl_pct=90.0, short_sl_pct=90.0)
    candles = synthetic_candles(2000, seed=0, timeframe="1h")
    outcomes = make_labels(candles, config)[:1500]
    raw = np.random.default_rng(0).dirichlet([4, 4, 4], size=len(outcomes))
    judged = judge("test", candles, outcomes, Answers.from_policy("model", raw, DecisionPolicy()), config)
    assert judged.chance == 1.0 and not judged.learnt and not judged.pays


# ---------------------------------------------------------------- the benchmark's own parts


def test_folds_and_calibration_equal_their_references():
    for line in [*references.compare_folds(), *references.compare_calibration()]:
        assert line["difference"] is None or line["difference"] <= line["limit"], line


def test_the_former_verdict_needs_ten_blocks_and_finds_a_strong_edge():
    outcomes = make_labels(synthetic_candles(4000, seed=1), SMALL)
    skilled = np.eye(3)[outcomes["label"]] * 0.5 + 0.5 / 3
    assert former.judge_as_before(skilled, outcomes, SMALL).learnt
    assert not former.judge_as_before(skilled[:200], outcomes[:200], SMALL).learnt


def test_rivals_share_the_accounts_that_need_no_model_and_their_values_are_equal():
    config = HOURLY.replace(long_tp_pct=2.0, short_tp_pct=2.0)
    candles = synthetic_candles(2000, seed=0, timeframe="1h")
    outcomes = make_labels(candles, config)[:1500]
    generator = np.random.default_rng(0)
    some = [Answers.from_policy(name, generator.dirichlet([4, 4, 4], size=1500), DecisionPolicy()) for name in "ab"]
    judged = judge("test", candles, outcomes, some[0], config, some[1:])
    own = judge("test", candles, outcomes, some[1], config).model.simulation
    shared = judged.rivals[0].simulation
    assert shared.comparison_equity is judged.model.simulation.comparison_equity
    assert shared.comparisons == own.comparisons and shared.figures == own.figures
    for name, equity in own.comparison_equity.items():
        np.testing.assert_array_equal(shared.comparison_equity[name], equity)


def test_an_interval_of_trades_holds_their_mean_where_their_number_varies():
    """Without an edge and without costs, 300 histories with ten times as many trades in some stretches."""
    generator = np.random.default_rng(5)
    rows = np.arange(6000)
    missed, narrower = 0, 0
    for _ in range(300):
        activity = np.where((rows // 750) % 2 == 0, 0.2, 0.02)
        net = np.where(generator.random(6000) < activity, generator.standard_t(5, size=6000), 0.0)
        even = trade_interval(net, rows, 20)
        missed += even.is_above(0.0) or even.is_below(0.0)
        lost = np.where(net != 0, net - 0.3, 0.0)
        by_trade, by_row = trade_interval(lost, rows, 20), stretch_interval(lost, rows, 20)
        narrower += by_trade.is_below(0.0) and not by_row.is_below(0.0)
    assert missed <= 9  # 3 of 100
    assert narrower > 50
