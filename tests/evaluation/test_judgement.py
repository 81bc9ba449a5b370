"""The verdict follows from the figures, nothing of the future changes it, and chance is not taken for skill."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from crypto_lstm.config import HOLD, LONG, SHORT, Config
from crypto_lstm.data.labels import make_labels
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.evaluation.intervals import Interval, metric_intervals
from crypto_lstm.evaluation.judgement import (
    Answers,
    Judgement,
    Trials,
    choose_advice,
    choose_finding,
    compute_gains,
    fit_policy,
    judge,
)
from crypto_lstm.evaluation.metrics import EvaluationError
from crypto_lstm.inference.policy import DecisionPolicy
from crypto_lstm.inference.rule import RuleError

CONFIG = Config(
    timeframe="1h", sequence_length=12, future_window=24, long_tp_pct=2, long_sl_pct=1, short_tp_pct=2, short_sl_pct=1
)
GAP = CONFIG.future_window + CONFIG.sequence_length - 1
THIRDS = (1 / 3, 1 / 3, 1 / 3)
MARKET = synthetic_candles(8000, seed=3, timeframe="1h")
OUTCOMES = make_labels(MARKET, CONFIG)
PARTS = {"training": slice(0, 2000), "validation": slice(2100, 3000), "test": slice(3100, 7500)}


def take(part: str, outcomes: pd.DataFrame = OUTCOMES) -> pd.DataFrame:
    return outcomes.iloc[PARTS[part]]


def make_answers(part: str, skill: float, seed: int = 0) -> np.ndarray:
    """(rows, 3) of a model with a share of the truth in its answers."""
    labels = take(part)["label"].to_numpy()
    noise = np.random.default_rng([seed, *part.encode()]).dirichlet([4, 4, 4], size=len(labels))
    return (1 - skill) * noise + skill * np.eye(3)[labels]


def get_prior(training: pd.DataFrame) -> np.ndarray:
    return np.bincount(training["label"], minlength=3) / len(training)


def judge_skill(skill: float, seed: int = 0, random_runs: int = 0, config: Config = CONFIG) -> Judgement:
    """The judgement of a model of this skill beside the class prior."""
    training = take("training")
    prior = get_prior(training)
    fit = fit_policy(make_answers("validation", skill, seed), take("validation"), training, THIRDS, prior, config)
    answers = Answers.from_policy("model", make_answers("test", skill, seed), fit.policy)
    shares = np.tile(prior, (len(answers.raw), 1))
    rival = Answers.from_policy("class prior", shares, DecisionPolicy(rule=fit.policy.rule))
    return judge("test", MARKET, take("test"), answers, config, [rival], random_runs=random_runs)


@pytest.fixture(scope="module")
def skilled():
    return judge_skill(0.25, random_runs=50)


# ---------------------------------------------------------------- the table of verdicts


def make_interval(place: str, chance: float) -> Interval:
    """An interval above, around or below a value, or none."""
    middle = {"above": chance + 0.1, "around": chance, "below": chance - 0.1, "none": chance + 0.2}[place]
    if place == "none":
        return Interval(middle, None, None, 0.99, "stretches", reason="the part spans 100 candles")
    return Interval(middle, middle - 0.05, middle + 0.05, 0.99, "stretches", 12)


PLACES = ("above", "around", "below", "none")


def change_figures(base: Judgement, places: tuple[str, ...], net: str, total: float, trades: int) -> Judgement:
    """The judgement with other figures: places of balanced accuracy, MCC and direction, and of the net return."""
    chances = {"balanced_accuracy": base.chance, "mcc": 0.0, "direction": 0.5}
    found = {}
    for place, (name, chance) in zip(places, chances.items(), strict=True):
        found[name] = make_interval(place, chance)
    simulation = base.model.simulation
    facts = {"total_return_pct": total, "trades": trades, "mean_net_pct": total / trades if trades else None}
    traded = replace(simulation, trades=simulation.trades.head(trades), figures={**simulation.figures, **facts})
    intervals = replace(base.intervals, stretches={**base.intervals.stretches, **found})
    changed = replace(base.model, simulation=traded)
    return replace(base, intervals=intervals, net=make_interval(net, 0.0), model=changed)


NETS = (
    ("above", 5.0, 9),
    ("around", -0.5, 9),
    ("around", 0.5, 9),
    ("below", -5.0, 9),
    ("none", 3.0, 2),
    ("none", 0.0, 0),
)


@pytest.mark.parametrize("net", NETS, ids=lambda net: f"{net[0]} {net[1]:+}")
def test_the_words_follow_from_the_figures(skilled, net):
    """All combinations of figures: each claim of the three sentences stands beside the figure that allows it."""
    place, total, trades = net
    for places in itertools.product(PLACES, repeat=3):
        judgement = change_figures(skilled, places, place, total, trades)
        learnt, returned, advice = judgement.sentences
        is_short = "none" in places[:2]
        is_better = places[:2] == ("above", "above")
        foresees = is_better and places[2] == "above"
        assert ("has learnt which way the price moves" in learnt) == foresees == judgement.learnt
        assert ("too short to tell" in learnt) == is_short
        assert ("has learnt how far the price moves" in learnt) == (is_better and not foresees)
        assert ("has learnt nothing beyond chance" in learnt) == (not is_short and not is_better)
        assert ("too few signals" in learnt) == (is_better and places[2] == "none")
        assert ("it loses, beyond chance" in returned) == (trades > 0 and place == "below")
        assert ("it gains, beyond chance" in returned) == (trades > 0 and place == "above") == judgement.pays
        assert ("which is not beyond chance" in returned) == (place == "around")
        assert ("cannot be told from chance" in returned) == (trades > 0 and place == "none")
        assert ("made no trade" in returned) == (trades == 0)
        assert not trades or f"{total:+.2f} % after costs" in returned
        assert advice.startswith("Trade it") == (foresees and judgement.pays)
        assert judgement.verdict == " ".join([learnt, returned, advice])


def test_a_loss_in_the_account_never_pays(skilled):
    """The mean trade gains, but the account lost: the words name no gain."""
    judgement = change_figures(skilled, ("above", "above", "above"), "above", -1.0, 9)
    assert judgement.result == "unclear" and not judgement.pays
    judgement = change_figures(skilled, ("above", "above", "above"), "below", 1.0, 9)
    assert judgement.result == "unclear" and "loses" not in judgement.verdict


def test_luck_and_a_simpler_model_keep_from_trading(skilled):
    assert skilled.luck.deflated > 0.95 and skilled.sentences[2].startswith("Trade it on paper first")
    tried = skilled.with_trials(Trials(1000, 1.0))
    assert tried.luck.deflated < 0.95 and "by luck" in tried.sentences[2]
    assert (tried.finding, tried.result, tried.luck.trials) == (skilled.finding, skilled.result, 1000)
    assert "by luck" in replace(skilled, luck=None).sentences[2]


def test_a_rival_that_is_as_good_is_named(skilled):
    training, test = take("training"), take("test")
    fit = fit_policy(
        make_answers("validation", 0.25), take("validation"), training, THIRDS, get_prior(training), CONFIG
    )
    answers = Answers.from_policy("network", make_answers("test", 0.25), fit.policy)
    shaken = answers.probabilities * np.random.default_rng(0).uniform(0.99, 1.01, answers.probabilities.shape)
    shaken /= shaken.sum(axis=1, keepdims=True)
    same = replace(answers, name="logistic regression", probabilities=shaken)
    worse = Answers.from_policy("gradient boosting", make_answers("test", 0.1), fit.policy)
    judgement = judge("test", MARKET, test, answers, CONFIG, [worse, same], random_runs=0)
    assert (judgement.finding, judgement.result, judgement.rival) == ("direction", "pays", "logistic regression")
    assert judgement.sentences[2].startswith("Trade the logistic regression instead, on paper first")
    assert "A logistic regression is as good" in " ".join(str(judgement).split())
    equal = judge("test", MARKET, test, answers, CONFIG, [replace(answers, name="class prior")], random_runs=0)
    assert equal.rival == "class prior" and "The class prior is as good" in " ".join(str(equal).split())
    alone = judge("test", MARKET, test, answers, CONFIG, [worse], random_runs=0)
    assert alone.rival == "" and alone.sentences[2].startswith("Trade it")


def test_skill_is_found_and_no_skill_is_not(skilled):
    assert skilled.learnt and skilled.pays and skilled.verdict in " ".join(str(skilled).split())
    assert skilled.intervals["log_loss_gain"].is_above(0.0)
    blind = judge_skill(0.0)
    assert not blind.learnt and not blind.pays and blind.sentences[2].startswith(("Do not trade", "There is nothing"))


def test_a_judgement_is_plain_json_one_line_and_80_columns(skilled):
    assert skilled.as_dict() == json.loads(json.dumps(skilled.as_dict(), allow_nan=False))
    assert "\n" not in repr(skilled)
    assert max(map(len, str(skilled).splitlines())) <= 80
    assert skilled.as_dict()["verdict"] == list(skilled.sentences)
    caution = "<script>prices</script>"
    assert caution not in replace(skilled, cautions=(caution,))._repr_html_()


# ---------------------------------------------------------------- chance


def is_taken_for_skill(seed: int, gap: int) -> bool:
    """Whether random answers in runs of 15 candles, to labels in runs of 15 candles, are said to foresee the price."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(generator.choice(3, size=60, p=[0.3, 0.4, 0.3]), 15)
    likeliest = np.repeat(generator.choice(3, size=60), 15)
    answers = np.eye(3)[likeliest] * 0.6 + 0.4 / 3
    intervals = metric_intervals(labels, likeliest, np.arange(len(labels)), gap, probabilities=answers)
    return choose_finding(intervals, 1 / 3) in ("direction", "size")


def test_of_100_random_models_hardly_any_is_said_to_have_learnt():
    """Answers and labels come in long runs, as real ones do: 900 rows hold 60 independent values."""
    assert sum(is_taken_for_skill(seed, gap=20) for seed in range(100)) <= 2


@pytest.mark.parametrize("memory", [1, 48])
def test_random_answers_never_pay(memory):
    """Forty models that answer at random, fast or slowly; each trades by the most likely class."""
    config = CONFIG.replace(rule="argmax")
    test = take("test").iloc[:1600]
    found = []
    for seed in range(20):
        noise = np.random.default_rng([seed, memory]).dirichlet([2, 2, 2], size=-(-len(test) // memory))
        answers = Answers.from_policy("noise", noise.repeat(memory, axis=0)[: len(test)], DecisionPolicy())
        judgement = judge("test", MARKET, test, answers, config, random_runs=0)
        found.append((judgement.learnt, judgement.pays, judgement.sentences[2].startswith("Trade")))
    assert found == [(False, False, False)] * 20


def test_the_gain_is_that_over_the_best_rival_without_features():
    labels = np.array([SHORT, HOLD, LONG, LONG])
    good, bad = np.tile([0.2, 0.2, 0.6], (4, 1)), np.tile([0.6, 0.2, 0.2], (4, 1))
    model = Answers.from_policy("model", np.eye(3)[labels] * 0.7 + 0.1, DecisionPolicy())
    rivals = [
        Answers.from_policy(name, shares, DecisionPolicy())
        for name, shares in (("class prior", bad), ("recent shares", good))
    ]
    gains = compute_gains(labels, model, [*rivals, replace(model, name="logistic regression")])
    np.testing.assert_allclose(gains, np.log(0.8) - np.log([0.2, 0.2, 0.6, 0.6]))
    np.testing.assert_allclose(compute_gains(labels, model, []), np.log(0.8) + np.log(3))


# ---------------------------------------------------------------- no look-ahead


def make_histories() -> dict[str, pd.DataFrame]:
    """The market up to the last candle that the test part needs, and with another market after it."""
    end = int(take("test").index[-1]) + CONFIG.future_window + 2  # the last trade is entered at the next open
    other = synthetic_candles(8000, seed=8, timeframe="1h")
    prices = ["open", "high", "low", "close"]
    other[prices] *= 3 * MARKET["close"].iloc[end - 1] / other["close"].iloc[end - 1]
    return {"cut off": MARKET.iloc[:end], "another market": pd.concat([MARKET.iloc[:end], other.iloc[end:]])}


@pytest.mark.parametrize("name", ["cut off", "another market"])
def test_nothing_after_the_part_changes_policy_calibration_or_judgement(name):
    changed = make_histories()[name]
    found = []
    for candles in (MARKET, changed):
        outcomes = make_labels(candles, CONFIG)
        training, validation, test = (take(part, outcomes) for part in PARTS)
        fit = fit_policy(make_answers("validation", 0.1), validation, training, THIRDS, get_prior(training), CONFIG)
        answers = Answers.from_policy("model", make_answers("test", 0.1), fit.policy)
        rival = Answers.from_policy("class prior", np.tile(get_prior(training), (len(test), 1)), fit.policy)
        judgement = judge("test", candles, test, answers, CONFIG, [rival], random_runs=20)
        found.append((fit.policy.as_dict(), fit.calibration.as_dict(), judgement.as_dict()))
    assert found[0] == found[1]


def test_nothing_after_validation_changes_the_policy():
    """The policy is fitted before the test part: another market there changes nothing."""
    end = int(take("validation").index[-1]) + CONFIG.future_window + 1
    other = synthetic_candles(8000, seed=9, timeframe="1h")
    policies = []
    for candles in (MARKET, pd.concat([MARKET.iloc[:end], other.iloc[end:]])):
        outcomes = make_labels(candles, CONFIG)
        training = take("training", outcomes)
        answers = make_answers("validation", 0.1)
        policies.append(
            fit_policy(answers, take("validation", outcomes), training, THIRDS, get_prior(training), CONFIG)
        )
    assert policies[0].policy == policies[1].policy
    assert policies[0].calibration.as_dict() == policies[1].calibration.as_dict()


# ---------------------------------------------------------------- odd parts, and input that does not fit


def judge_labels(outcomes: pd.DataFrame, candles: pd.DataFrame = MARKET) -> Judgement:
    """The judgement of random answers, traded by the most likely class."""
    raw = np.random.default_rng(1).dirichlet([2, 2, 2], size=len(outcomes))
    return judge("test", candles, outcomes, Answers.from_policy("noise", raw, DecisionPolicy()), CONFIG, random_runs=0)


@pytest.mark.parametrize("label", [SHORT, HOLD, LONG])
def test_a_part_with_one_class_shows_no_skill(label):
    judgement = judge_labels(take("test").assign(label=np.int8(label)))
    assert judgement.chance == 1.0 and not judgement.learnt and judgement.finding in ("nothing", "too short")
    json.dumps(judgement.as_dict(), allow_nan=False)
    assert str(judgement)


@pytest.mark.parametrize("rows", [1, 2, 12, 200])
def test_a_short_part_is_judged_without_an_interval(rows):
    judgement = judge_labels(take("test").iloc[:rows])
    assert judgement.finding == "too short" and not judgement.learnt and not judgement.pays
    assert f"the part spans {rows} candles" in judgement.sentences[0]
    assert max(map(len, str(judgement).splitlines())) <= 80
    json.dumps(judgement.as_dict(), allow_nan=False)


def test_a_dead_market_is_never_traded_on():
    """The price stands still through the whole test part: each label is HOLD, and each trade loses its fees."""
    first = int(take("test").index[0])
    dead = MARKET.copy()
    prices = ["open", "high", "low", "close"]
    dead.loc[first:, prices] = dead["close"].iloc[first - 1]
    dead.loc[first:, "volume"] = 0.0
    outcomes = make_labels(dead, CONFIG)
    judgement = judge_labels(take("test", outcomes), dead)
    assert set(take("test", outcomes)["label"]) == {HOLD}
    assert not judgement.learnt and judgement.result == "loses"
    assert judgement.model.simulation.figures["total_return_pct"] < -10
    fit = fit_policy(
        make_answers("validation", 0.1),
        take("validation", outcomes),
        take("training", outcomes),
        THIRDS,
        THIRDS,
        CONFIG,
    )
    still = Answers.from_policy("shares", np.tile([0.1, 0.8, 0.1], (len(take("test")), 1)), fit.policy)
    assert judge("test", dead, take("test", outcomes), still, CONFIG, random_runs=0).result == "no trade"


def test_answers_of_other_rows_are_refused():
    answers = Answers.from_policy("model", make_answers("test", 0.1), DecisionPolicy())
    with pytest.raises(EvaluationError, match="one answer and one decision for each of 5 outcomes, got 4400 answers"):
        judge("test", MARKET, take("test").iloc[:5], answers, CONFIG)
    rival = replace(answers, name="class prior", raw=answers.raw[:7])
    with pytest.raises(EvaluationError, match="7 answers and 4400 decisions of class prior"):
        judge("test", MARKET, take("test"), answers, CONFIG, [rival])


def test_a_policy_needs_training_rows():
    empty = take("training").iloc[:0]
    with pytest.raises(RuleError, match="got 0 rows"):
        fit_policy(make_answers("validation", 0.1), take("validation"), empty, THIRDS, THIRDS, CONFIG)


def test_costs_and_kind_of_the_rule_are_those_of_the_configuration():
    config = CONFIG.replace(fee_pct=0.05, slippage_pct=0.02, margin_pct=0.3, rule="argmax")
    judgement = judge_skill(0.25, config=config)
    costs = judgement.model.simulation.costs
    assert (costs.fee_pct, costs.slippage_pct) == (0.05, 0.02)
    training = take("training")
    rule = fit_policy(make_answers("validation", 0), take("validation"), training, THIRDS, THIRDS, config).policy.rule
    assert (rule.kind, rule.margin_pct) == ("argmax", 0.3) and rule.cost_pct == pytest.approx(0.14)


def test_joined_answers_keep_their_order():
    parts = [Answers.from_policy("model", make_answers("test", skill)[:3], DecisionPolicy()) for skill in (0.0, 0.2)]
    joined = Answers.join(parts)
    assert joined.name == "model" and len(joined.decisions) == 6
    np.testing.assert_array_equal(joined.raw[3:], parts[1].raw)


def test_a_walk_forward_is_not_sent_to_a_walk_forward():
    advice = [choose_advice("too short", "too few", False, "", *more) for more in ((), ("a longer history",))]
    assert advice[0].endswith("judge it on a longer test part, or by walk-forward.")
    assert advice[1].endswith("judge it on a longer history.")
