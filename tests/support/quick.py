"""Trainings without what a test does not look at: pictures, gradient boosting, and graphs.

- `train` writes up to eight pictures and a report that holds them, for about 3 seconds of a core. The notebooks of the
  trainer, of walk-forward and of the report draw all of them, and so do `tests/evaluation/test_report.py`,
  `tests/commands/test_words.py` and `tools/wheel.py`. With the fixture `bare_trainings` the files are there, as small
  as a picture can be, and the report holds its words and tables.
- `train` compares the network with simpler models. The slowest is gradient boosting, which
  `tests/training/test_judging.py` tests. With the fixture `bare_trainings` it is not fitted; logistic regression is.
- Keras computes a step as a graph, which takes a second to make. With the fixture `no_graphs` TensorFlow runs the same
  operations one by one, which is quicker only for networks of a few timesteps that train for a few steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

ONE_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010100000000376ef9240000000a4944415478da636800000082008177cd72b6"
    "0000000049454e44ae426082"
)
state = {"pictures": True, "boosting": True, "graphs": True}  # children that `support.forked` starts do the same
_entered = ExitStack()


@contextmanager
def skip_pictures() -> Iterator[None]:
    """Draw nothing inside the block, in this process, its forks and its children."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from crypto_lstm.evaluation import report

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(state, "pictures", False)
        patch.setattr(FigureCanvasAgg, "print_png", write_one_pixel)
        patch.setattr(report, "_draw_pictures", lambda source: {})
        yield


@contextmanager
def skip_boosting() -> Iterator[None]:
    """Fit no gradient boosting inside the block, in this process, its forks and its children."""
    from crypto_lstm.evaluation import baselines

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(state, "boosting", False)
        patch.setattr(baselines, "_list_models", lambda: {"logistic regression": baselines._make_logistic})
        yield


def write_one_pixel(canvas: Any, target: Any, **_: Any) -> None:
    target.write_bytes(ONE_PIXEL)


@contextmanager
def skip_graphs() -> Iterator[None]:
    """Trace no graphs inside the block, in this process, its forks and its children."""
    import tensorflow as tf

    state["graphs"] = False
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)
        state["graphs"] = True


def enter(given: dict[str, bool]) -> None:
    """Do as another process does, until this one ends."""
    if not given["pictures"]:
        _entered.enter_context(skip_pictures())
    if not given["boosting"]:
        _entered.enter_context(skip_boosting())
    if not given["graphs"]:
        _entered.enter_context(skip_graphs())
