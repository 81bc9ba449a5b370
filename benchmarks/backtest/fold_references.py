"""Write the folds of skfolio and purgedcv that tests/backtest/test_folds.py compares with ours.

skfolio needs solvers of convex problems, so it is not among the requirements of this project. Run this file in an
environment of its own, in the root of the repository:

    python -m venv REFERENCES && REFERENCES/bin/pip install skfolio==1.12.2 purgedcv==0.1.11
    REFERENCES/bin/python benchmarks/backtest/fold_references.py
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import purgedcv
import skfolio.model_selection

TARGET = Path(__file__).parents[2] / "tests" / "backtest" / "fold_references.json"
HOUR = pd.Timedelta(hours=1)


def list_runs(rows: np.ndarray) -> list[list[int]]:
    """First and last row of each stretch without a hole."""
    breaks = np.flatnonzero(np.diff(rows) != 1)
    firsts = rows[np.concatenate([[0], breaks + 1])]
    lasts = rows[np.concatenate([breaks, [len(rows) - 1]])]
    return np.stack([firsts, lasts], axis=1).tolist()


def make_times(count: int, window: int, horizon: int) -> dict[str, pd.Series]:
    """Open of the first candle and close of the last candle that row r uses; half-open, as purgedcv has it."""
    opens = pd.Series(pd.date_range("2024-01-01", periods=count, freq=HOUR))
    return {"prediction_times": opens - (window - 1) * HOUR, "evaluation_times": opens + (horizon + 1) * HOUR}


def walk_forward(rows: int, window: int, horizon: int, embargo: int, history: int, test: int, expand: bool) -> Any:
    gap = window + horizon - 1 + embargo
    folds = skfolio.model_selection.WalkForward(
        test_size=test, train_size=history - gap, expand_train=expand, purged_size=gap
    )
    return [[list_runs(train), list_runs(tested)] for train, tested in folds.split(np.zeros((rows, 1)))]


def purged_walk_forward(rows: int, window: int, horizon: int, test: int, splits: int) -> Any:
    folds = purgedcv.WalkForwardSplit(splits, test, **make_times(rows, window, horizon))
    return [[list_runs(train), list_runs(tested)] for train, tested in folds.split(np.zeros((rows, 1)))]


def combinatorial(rows: int, window: int, horizon: int, embargo: int, groups: int, tested: int) -> dict[str, Any]:
    gap = window + horizon - 1
    folds = skfolio.model_selection.CombinatorialPurgedCV(groups, tested, purged_size=gap, embargo_size=embargo)
    found = list(folds.split(np.zeros((rows, 1))))
    trains = [list_runs(train) for train, _ in found]
    return {"trains": trains, "paths": folds.get_path_ids().tolist()}


def purged_combinatorial(rows: int, window: int, horizon: int, groups: int, tested: int) -> dict[str, Any]:
    folds = purgedcv.CombinatorialPurgedCV(groups, tested, **make_times(rows, window, horizon))
    found = list(folds.split(np.zeros((rows, 1))))
    answers = [np.full(len(test), float(number)) for number, (_, test) in enumerate(found)]
    begins = [part[0] for part in np.array_split(np.arange(rows), groups)]
    paths = folds.reconstruct_paths(answers)[:, begins].astype(int).tolist()
    return {"trains": [list_runs(train) for train, _ in found], "paths": paths}


def main() -> None:
    versions = {name: importlib.metadata.version(name) for name in ("skfolio", "purgedcv")}
    cases: dict[str, list[dict[str, Any]]] = {"walk_forward": [], "combinatorial": []}
    for (window, horizon), embargo, expand in itertools.product([(12, 24), (1, 1), (30, 5)], [0, 7], [True, False]):
        case = {"rows": 1000, "window": window, "horizon": horizon, "embargo": embargo, "history": 300, "test": 90}
        found = walk_forward(**case, expand=expand)
        entry = {**case, "expand": expand, "skfolio": found}
        if expand and not embargo:
            entry["purgedcv"] = purged_walk_forward(1000 - 700 % 90, window, horizon, 90, 700 // 90)
        cases["walk_forward"].append(entry)
    for (window, horizon), embargo, (groups, tested) in itertools.product(
        [(12, 24), (1, 1), (30, 5)], [0, 7], [(6, 2), (5, 3)]
    ):
        case = {"rows": 900, "window": window, "horizon": horizon, "groups": groups, "tested": tested}
        entry = {**case, "embargo": embargo, "skfolio": combinatorial(**case, embargo=embargo)}
        if not embargo:
            entry["purgedcv"] = purged_combinatorial(**case)
        cases["combinatorial"].append(entry)
    TARGET.write_text(json.dumps({"versions": versions, **cases}, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
