"""The largest differences from purgedcv, arch, skfolio and scikit-learn.

purgedcv and arch are requirements of development; without them their lines say so. The folds of skfolio were written by
`benchmarks/backtest/fold_references.py` in an environment of its own.
"""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import numpy as np

from benchmarks.paths import ROOT
from crypto_lstm.backtest.folds import cpcv_folds, walk_forward_folds
from crypto_lstm.config import Config
from crypto_lstm.evaluation import calibration_fit, luck
from crypto_lstm.evaluation.calibration_fit import fit_calibration
from crypto_lstm.evaluation.intervals import optimal_block_length
from crypto_lstm.utils.display import text_table

FOLDS = ROOT / "tests" / "backtest" / "fold_references.json"
_EXACT = 1e-9
_NOISE = 0.035  # three standard errors of two bootstraps of 4,000 resamples
_SERIES = 20


def make_returns(seed: int, models: int, periods: int) -> np.ndarray:
    """(models, periods) returns with fat tails and some skew."""
    generator = np.random.default_rng(seed)
    returns = generator.standard_t(5, size=(models, periods))
    return returns + generator.exponential(0.5, size=(models, periods)) - 0.45


def _describe(figure: str, reference: str, difference: float | None, limit: float = _EXACT) -> dict[str, Any]:
    """One line of the results; None: the reference is not installed."""
    return {"figure": figure, "reference": reference, "difference": difference, "limit": limit}


def compare_luck() -> list[dict[str, Any]]:
    """Probabilistic and deflated Sharpe ratio, track record and PBO beside purgedcv."""
    names = ("PSR", "DSR", "MinTRL, rounded up", "PBO and its logits")
    if importlib.util.find_spec("purgedcv") is None:
        return [_describe(name, "purgedcv", None) for name in names]
    import purgedcv

    differences = np.zeros((_SERIES, len(names)))
    for seed in range(_SERIES):
        returns = make_returns(seed, 1, 240)[0]
        moments = luck.measure_sharpe(returns)
        ours = [luck.probabilistic_sharpe(moments), luck.deflated_sharpe(moments, 50, 0.004)]
        theirs = [purgedcv.probabilistic_sharpe_ratio(returns, 0.0)]
        theirs.append(purgedcv.deflated_sharpe_ratio_full(returns, 50, 0.004).dsr)
        good = luck.measure_sharpe(returns + 0.5)  # a track record is finite for a positive ratio only
        ours.append(np.ceil(luck.minimum_track_record(good, 0.0)))
        theirs.append(purgedcv.min_track_record_length(good.sharpe, 0.0, 0.05, good.skew, good.kurtosis))
        models = make_returns(seed, 12, 200)
        own, other = luck.measure_overfitting(models, 10), purgedcv.probability_of_backtest_overfitting(models, 10)
        logits = float(np.abs(own.logits - np.asarray(other.logits)).max())
        pbo = max(abs(own.probability - other.pbo), logits)
        differences[seed] = [*np.abs(np.subtract(ours, theirs)), pbo]
    return [_describe(name, "purgedcv", float(differences[:, place].max())) for place, name in enumerate(names)]


def compare_bootstraps() -> list[dict[str, Any]]:
    """Block length, long-run variance and the p-values of SPA beside arch."""
    if importlib.util.find_spec("arch") is None:
        names = ("block length", "long-run variance, relative")
        return [_describe(name, "arch", None) for name in names] + [_describe("SPA p-values", "arch", None, _NOISE)]
    from arch.bootstrap import SPA
    from arch.bootstrap import optimal_block_length as find_arch_length

    lengths, variances, p_values = [], [], []
    for seed in range(_SERIES):
        values = np.cumsum(np.random.default_rng(seed).normal(size=500)) * 0.05 + make_returns(seed, 1, 500)[0]
        theirs = find_arch_length(values)
        ours = optimal_block_length(values)
        lengths.append(abs(ours.stationary - float(theirs["stationary"].iloc[0])))
        lengths.append(abs(ours.circular - float(theirs["circular"].iloc[0])))
        models = make_returns(seed, 6, 200)
        reference = SPA(np.zeros(200), -models.T, block_size=8, reps=10, seed=0)
        reference.compute()
        ratio = luck.long_run_variance(models, 8.0) / reference._loss_diff_var
        variances.append(np.abs(ratio - 1).max())
    for seed in range(5):
        models = make_returns(seed, 8, 300)
        models += 0.1 - models.mean()
        reference = SPA(np.zeros(300), -models.T, block_size=5, reps=4000, seed=1)
        reference.compute()
        own = luck.measure_superiority(models, block_length=5.0, resamples=4000, studentised=False)
        p_values.append(np.abs(np.subtract([own.lower, own.consistent, own.upper], tuple(reference.pvalues))).max())
    return [
        _describe("block length", "arch", float(max(lengths))),
        _describe("long-run variance, relative", "arch", float(max(variances))),
        _describe("SPA p-values", "arch", float(max(p_values)), _NOISE),
    ]


def _list_runs(rows: np.ndarray) -> list[list[int]]:
    """First and last row of each stretch without a hole."""
    breaks = np.flatnonzero(np.diff(rows) != 1)
    firsts = rows[np.concatenate([[0], breaks + 1])]
    lasts = rows[np.concatenate([breaks, [len(rows) - 1]])]
    return np.stack([firsts, lasts], axis=1).tolist()


def compare_folds() -> list[dict[str, Any]]:
    """Bounds of walk-forward and CPCV beside those of skfolio, in candles."""
    import pandas as pd

    cases = json.loads(FOLDS.read_text(encoding="utf-8"))
    dates = pd.date_range("2024-01-01", periods=2000, freq="h", tz="UTC")
    walk, combined = 0.0, 0.0
    for case in cases["walk_forward"]:
        config = Config(timeframe="1h", sequence_length=case["window"], future_window=case["horizon"])
        lengths = {"step": case["test"], "test": case["test"], "first_train": case["history"]}
        mode = "expanding" if case["expand"] else "rolling"
        shown = dates[: case["rows"] + config.future_window]
        folds = walk_forward_folds(case["rows"], shown, config, mode=mode, embargo=case["embargo"], **lengths)
        found = [[[[int(f.train[0]), int(f.validation[-1])]], _list_runs(f.test)] for f in folds]
        walk = max(walk, _compare_bounds(found, case["skfolio"]))
    for case in cases["combinatorial"]:
        config = Config(timeframe="1h", sequence_length=case["window"], future_window=case["horizon"])
        shape = {"groups": case["groups"], "test_groups": case["tested"], "embargo": case["embargo"]}
        folds = cpcv_folds(case["rows"], dates[: case["rows"]], config, validation=0, **shape)
        trains = [_list_runs(fold.train) for fold in folds]
        combined = max(combined, _compare_bounds(trains, case["skfolio"]["trains"]))
    reference = f"skfolio {cases['versions']['skfolio']}"
    names = (f"walk-forward, {len(cases['walk_forward'])} cases", f"CPCV, {len(cases['combinatorial'])} cases")
    return [_describe(names[0], reference, walk), _describe(names[1], reference, combined)]


def _compare_bounds(ours: list[Any], theirs: list[Any]) -> float:
    """The largest difference of nested lists of rows; infinity if they have other shapes."""
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return max((_compare_bounds(own, other) for own, other in zip(ours, theirs, strict=True)), default=0.0)
    if isinstance(ours, int) and isinstance(theirs, int):
        return float(abs(ours - theirs))
    return float("inf")


def compare_calibration() -> list[dict[str, Any]]:
    """The temperature beside that of scikit-learn, and the log-loss of all three numbers beside a general optimiser."""
    import sklearn.calibration
    from scipy.optimize import minimize

    slopes, ties, losses = [], [], []
    for seed in range(5):
        generator = np.random.default_rng(seed)
        scores = generator.normal(size=(5000, 3)) + [0.0, 0.7, 0.0]
        truth = _softmax(scores)
        labels = (generator.random((5000, 1)) > truth.cumsum(axis=1)[:, :2]).sum(axis=1)
        answers = _softmax(1.7 * scores + [0.3, 0.0, -0.1])
        thirds = (1 / 3, 1 / 3, 1 / 3)
        fitted = fit_calibration(answers, labels, np.arange(5000), thirds, thirds, 239).fitted
        losses.append(_measure_scipy(np.log(answers), labels, fitted, minimize))
        if hasattr(sklearn.calibration, "_TemperatureScaling"):
            slope, tie = _measure_scikit(np.log(answers), labels)
            slopes.append(slope)
            ties.append(tie)
    return [
        _describe("temperature and biases: log-loss above the optimum", "scipy BFGS", float(max(losses))),
        _describe("temperature alone: log-loss", "scikit-learn", max(ties, default=None)),
        _describe("temperature alone (a search by values)", "scikit-learn", max(slopes, default=None), 1e-6),
    ]


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _mean_loss(slope: float, scores: np.ndarray, labels: np.ndarray) -> float:
    answers = _softmax(slope * scores)
    return float(-np.log(answers[np.arange(len(labels)), labels]).mean())


def _measure_scikit(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Differences of slope and mean log-loss from scikit-learn, with biases held at zero."""
    import sklearn.calibration

    own = float(calibration_fit._minimise(scores, labels, np.array([1.0, 0.0, 0.0]), [0])[0])
    theirs = float(sklearn.calibration._TemperatureScaling().fit(scores, labels).beta_)
    return abs(own - theirs), abs(_mean_loss(own, scores, labels) - _mean_loss(theirs, scores, labels))


def _measure_scipy(scores: np.ndarray, labels: np.ndarray, fitted: Any, minimize: Any) -> float:
    """Mean log-loss of our values above that of a general optimiser."""

    def loss(values: np.ndarray) -> float:
        answers = _softmax(values[0] * scores + np.array([values[1], 0.0, values[2]]))
        return float(-np.log(answers[np.arange(len(labels)), labels]).mean())

    biases = np.array(fitted.biases) - fitted.biases[1]
    ours = loss(np.array([1 / fitted.temperature, biases[0], biases[2]]))
    return max(ours - minimize(loss, [1.0, 0.0, 0.0], method="BFGS", options={"gtol": 1e-9}).fun, 0.0)


def compare_references() -> list[dict[str, Any]]:
    """All lines."""
    return [*compare_luck(), *compare_bootstraps(), *compare_folds(), *compare_calibration()]


def render_references(lines: list[dict[str, Any]]) -> str:
    """A table of the largest differences."""
    rows = []
    for line in lines:
        difference = "not installed" if line["difference"] is None else f"{line['difference']:.1e}"
        rows.append([line["figure"], line["reference"], difference, f"{line['limit']:.0e}"])
    return "The largest differences from other implementations\n" + text_table(
        ["figure", "reference", "difference", "goal"], rows, width=100
    )
