"""Render RESULTS.md from stored measurements: goals and whether they were reached, ratios, spread, growth."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.paths import RESULTS

SPEED_RESULTS = RESULTS / "speed.json"
GPU_RESULTS = RESULTS / "gpu.json"
PAGE = RESULTS / "RESULTS.md"
Parts = Mapping[str, Any]


def count_operations(units: Sequence[int] = (128, 64, 32), inputs: int = 8, timesteps: int = 120) -> float:
    """Floating-point operations of the LSTM layers' matrix products for one window, forward.

    A layer multiplies (inputs + units) by (4 units) at each timestep, two operations for each product. Activations are
    left out. Training takes three times as many.
    """
    widths = zip((inputs, *units), units, strict=False)
    return timesteps * sum(2 * (width + layer_units) * 4 * layer_units for width, layer_units in widths)


# ---------------------------------------------------------------- goals


@dataclass(frozen=True)
class Goal:
    """One row of the table: the median of a series, or the ratio of two, against a limit."""

    key: str  # names its reason in `REASONS` where it was missed
    work: str
    ours: tuple[str, str]  # part and name of the series
    limit: float
    at_least: bool = False  # otherwise: at most
    over: tuple[str, str] | None = None  # the series to divide by
    scale: float = 1.0
    unit: str = ""
    peers: tuple[str, ...] = ()  # other series of the part, in the same unit

    def round_values(self, parts: Parts) -> list[float]:
        """The value of each round; a ratio where there is a series to divide by."""
        values = parts[self.ours[0]][self.ours[1]]
        if self.over is None:
            return [self.scale * value for value in values]
        divisors = parts[self.over[0]][self.over[1]]
        return [self.scale * value / divisor for value, divisor in zip(values, divisors, strict=True)]

    def value(self, parts: Parts) -> float:
        """The median, or the ratio of the medians."""
        value = self.scale * statistics.median(parts[self.ours[0]][self.ours[1]])
        if self.over is None:
            return value
        return value / statistics.median(parts[self.over[0]][self.over[1]])

    def is_reached(self, parts: Parts) -> bool:
        """Whether the value is on the right side of the limit."""
        if self.at_least:
            return self.value(parts) >= self.limit
        return self.value(parts) <= self.limit

    def is_measured(self, parts: Parts) -> bool:
        """Whether the run holds all series that the row needs."""
        needed = [series for series in (self.ours, self.over) if series is not None]
        return all(name in parts.get(part, {}) for part, name in needed)

    def table_row(self, parts: Parts) -> list[str]:
        """The cells of the table."""
        goal = f"{'at least' if self.at_least else 'at most'} {self.format(self.limit)}"
        if not self.is_measured(parts):
            return [self.work, goal, "not measured", "", "", ""]
        values = self.round_values(parts)
        spread = f"{format_number(min(values))} to {format_number(max(values))}"
        verdict = "yes" if self.is_reached(parts) else "**no**"
        return [self.work, goal, self.format(self.value(parts)), spread, verdict, self.list_peers(parts)]

    def format(self, value: float) -> str:
        """A value with its unit."""
        return f"{format_number(value)} {self.unit}".strip()

    def list_peers(self, parts: Parts) -> str:
        """The peers with their medians."""
        part = parts[self.ours[0]]
        medians = {name: statistics.median(part[name]) for name in self.peers if name in part}
        return ", ".join(f"{name} {self.format(self.scale * value)}" for name, value in medians.items())


KERAS, PLAIN, TORCH = "Keras, recurrent dropout 0.3", "Keras, none", "PyTorch, none"
SINGLE, ALONE = "Keras, 0.3, one thread an operation", "Keras predict, its batches alone"
SAMPLE, BATCH, LIMIT = "ours, per_sample", "ours, per_batch", "matrix products"
ANSWERS = ("Keras predict", "Keras model(x)", "Keras tf.function", "PyTorch", "NumPy loop")
GOALS = (
    Goal(
        "decision",
        "one decision, window to probabilities",
        ("decision", "ours"),
        0.8,
        scale=1e3,
        unit="ms",
        peers=ANSWERS,
    ),
    Goal(
        "decision_ratio",
        "the same: `predict` over ours",
        ("decision", "Keras predict"),
        75,
        True,
        ("decision", "ours"),
        unit="x",
    ),
    Goal("update", "new candle to decision by `update`", ("decision", "ours, update"), 1.2, scale=1e3, unit="ms"),
    Goal(
        "many",
        "many decisions, windows a second, over `predict` at 512",
        ("many", "ours"),
        2.5,
        True,
        ("many", "Keras predict"),
        unit="x",
    ),
    Goal(
        "many_alone",
        "the same, without the work of `predict` around its batches",
        ("many", "ours"),
        2.5,
        True,
        ("many", ALONE),
        unit="x",
    ),
    Goal("many_limit", "the same, share of the matrix limit", ("many", "ours"), 70, True, ("many", LIMIT), 100, "%"),
    Goal(
        "training",
        "training, windows a second, over Keras",
        ("training", SAMPLE),
        1.3,
        True,
        ("training", KERAS),
        unit="x",
    ),
    Goal(
        "training_batch", "the same with masks per batch", ("training", BATCH), 1.3, True, ("training", KERAS), unit="x"
    ),
    Goal(
        "training_torch",
        "training, over PyTorch without recurrent dropout",
        ("training", SAMPLE),
        1.6,
        True,
        ("training", TORCH),
        unit="x",
    ),
    Goal(
        "training_torch_batch",
        "the same with masks per batch",
        ("training", BATCH),
        1.6,
        True,
        ("training", TORCH),
        unit="x",
    ),
    Goal(
        "tensors", "tensor peak of that step, over Keras", ("tensors", SAMPLE), 0.45, over=("tensors", KERAS), unit="x"
    ),
    Goal("tensors_batch", "the same with masks per batch", ("tensors", BATCH), 0.45, over=("tensors", KERAS), unit="x"),
    Goal(
        "growth",
        "process growth of that step, over Keras",
        ("growth_mb", SAMPLE),
        0.55,
        over=("growth_mb", KERAS),
        unit="x",
    ),
    Goal(
        "growth_batch", "the same with masks per batch", ("growth_mb", BATCH), 0.55, over=("growth_mb", KERAS), unit="x"
    ),
    Goal(
        "feeding",
        "feeding, 2.3 million candles: share of a step, at most",
        ("feeding", "feeding"),
        2,
        over=("feeding", "step"),
        scale=100,
        unit="%",
    ),
    Goal(
        "resident",
        "2.3 million candles ready to train, their table released, above the runtime",
        ("resident", "ours"),
        300,
        unit="MiB",
        peers=("copied out, computed",),
    ),
    Goal(
        "import",
        "import of crypto_lstm.inference.predictor",
        ("start", "import crypto_lstm.inference.predictor"),
        0.3,
        unit="s",
        peers=("import tensorflow, keras",),
    ),
    Goal(
        "first",
        "first decision from a cold start",
        ("start", "first decision, ours"),
        1,
        unit="s",
        peers=("first decision, Keras predict",),
    ),
)

_BEYOND = (
    "2.5 times the speed of `predict` between its waits is more than the matrix limit of this machine, "
    "which leaves no time for activations."
)
_MASKS = (
    "With `per_sample` each gate multiplies its own masked rows, forward and backward, and adds up four gradients; "
    "with `per_batch`, the default, one row serves all gates."
)
REASONS: dict[str, str] = {  # key of a missed goal -> why the stored run missed it
    "many": f"If `predict` waits at its end, the goal is reached; in most rounds it did not wait. {_BEYOND}",
    "many_alone": _BEYOND,
    "many_limit": (
        "The remaining time goes into sigmoid and tanh, which the limit leaves out. "
        "The LSTM of onnxruntime is one operation, so no overhead around it can be saved."
    ),
    "training": _MASKS,
    "training_torch": _MASKS,
}


# ---------------------------------------------------------------- text


def format_number(value: float) -> str:
    """Three significant digits, thousands with a comma."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a column that holds numbers only is right-aligned."""
    rows = [list(row) for row in rows]
    aligned = ["---"] * len(header)
    for index, column in enumerate(zip(*rows, strict=True)):
        if all(_begins_as_number(cell) for cell in column):
            aligned[index] = "---:"
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, aligned, *rows])


def _begins_as_number(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] in "-+"


def fit_exponent(points: Mapping[str, float]) -> float:
    """b of the curve y = a x^b through points x -> y, by least squares of the logarithms."""
    x = [math.log(float(size)) for size in points]
    y = [math.log(value) for value in points.values()]
    return statistics.linear_regression(x, y).slope


def render_series(part: Mapping[str, list[float]], ours: str, scale: float, unit: str, higher: bool) -> str:
    """A table of series: median, quartiles, least and most, and how many times as good `ours` is, by medians.

    `higher` is true where a higher number is better.
    """

    def span(low: float, high: float) -> str:
        return f"{format_number(scale * low)} to {format_number(scale * high)}"

    base = statistics.median(part[ours])
    rows = []
    for name, values in part.items():
        middle = statistics.median(values)
        low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        better = base / middle if higher else middle / base
        shown = [span(low, high), span(min(values), max(values))]
        rows.append([name, format_number(scale * middle), *shown, format_number(better)])
    return markdown_table([unit, "median", "quartiles", "least to most", f"`{ours}` is better by"], rows)


EQUAL = """\
The following is equal in all kinds: initial weights, windows, targets, batches, widths, dropout of a layer's inputs
(one mask for all timesteps) and after dense layers, loss, Adam (step size, epsilon 1e-7), float32, all cores. This run
checked it: the probabilities of the kinds differ by at most {probabilities}, and with all dropout off the losses of
{steps} training steps agree with Keras to {losses} (relative).

The following differs:
- `nn.LSTM` of PyTorch has no recurrent dropout. It is measured without, and Keras is measured with and without.
- `per_sample` draws masks of the state for each window, as Keras does. `per_batch` draws one mask for all windows of a
  batch. The random numbers differ either way.
- Keras and PyTorch add Adam's epsilon at different places, which shows in the losses after the first step.
- Keras computes the metrics of `build_model`, accuracy twice. PyTorch computes the loss alone.
- The peers hold their windows as one array in memory. Our windows are gathered from candles during training.
- Training is timed from the first batch to the last. At the end of `fit` and `predict` Keras often waits for a thread
  of tf.data, here for seconds. Ours does not (`crypto_lstm.data.windows.tf_dataset`), and our decisions do not use
  TensorFlow. `predict` is timed with and without its waits.
- Ours runs one thread for each operation, as `train` configures it. Keras runs the number that TensorFlow chooses, and
  in one row one thread, as ours.
- onnxruntime, TensorFlow, NumPy and PyTorch add numbers in different orders."""

NO_GPU = """\
No figure on this page comes from a GPU: all were measured on a CPU. `python -m benchmarks gpu` compares Keras
with ours on a GPU, needs no network, and checks that cuDNN ran. Only its self-check on a CPU (`--cpu`) has been run so
far. That `per_batch` uses cuDNN, and its gain, is inferred from the source of Keras, not measured."""


def describe_agreement(equal: Mapping[str, Any]) -> str:
    """The common settings of all kinds, their agreement in this run, and their differences."""
    shown = {name: f"{equal[name]:.1e}" for name in ("probabilities", "losses")}
    return EQUAL.format(steps=equal["steps"], **shown)


def render_growth(growth: Mapping[str, Any]) -> str:
    """One table for each measurement, with the exponents fitted on its points."""
    texts = []
    for title, part in growth.items():
        names = list(next(iter(part["points"].values())))
        rows = []
        for size, point in part["points"].items():
            rows.append([f"{int(size):,}", *(_format_point(point.get(name)) for name in names)])
        exponents = [_format_exponent(part["points"], name) for name in names]
        table = markdown_table([part["x"], *names], [*rows, ["grows with the power", *exponents]])
        texts.append(f"### {title}\n\n{part['text']}\n\n{table}")
    return "\n\n".join(texts)


def _format_point(value: float | None) -> str:
    return "-" if value is None else format_number(value)


def _format_exponent(points: Mapping[str, Mapping[str, float | None]], name: str) -> str:
    measured = {size: point[name] for size, point in points.items() if point.get(name) is not None}
    return f"{fit_exponent(measured):.2f}" if len(measured) > 2 else "-"


def find_missed_goals(parts: Parts) -> list[Goal]:
    """The goals that were measured and not reached."""
    return [goal for goal in GOALS if goal.is_measured(parts) and not goal.is_reached(parts)]


def describe_missed_goals(parts: Parts) -> str:
    """A line for each missed goal, with the reason."""
    lines = []
    for goal in find_missed_goals(parts):
        reason = REASONS.get(goal.key, "The reason is not known yet.")
        lines.append(f"- {goal.work}: {goal.format(goal.value(parts))}. {reason}")
    return "\n".join(lines) or "None: every goal that was measured was reached."


def describe_gpu(gpu: Mapping[str, Any] | None) -> str:
    """The stored results of `gpu.py`; without them the text that there are none."""
    if gpu is None:
        return NO_GPU
    rows = [[name, format_number(r["windows_s"]), "yes" if r["cudnn"] else "no"] for name, r in gpu["kinds"].items()]
    table = markdown_table(["kind", "windows a second", "cuDNN ran"], rows)
    return f"{gpu['device']}, Keras on {gpu['backend']}.\n\n{table}"


def describe_copies(copied: Mapping[str, list[float]]) -> str:
    """The sentence on windows that were copied out."""
    shown = {name: format_number(values[0]) for name, values in copied.items()}
    return (
        f"{shown['candles']} candles, each window copied out: {shown['added_mb']} MiB added to the process "
        f"in {shown['seconds']} s ({shown['computed_mb']} MiB by n x 120 x 8 x 4 bytes)."
    )


HEAD = """\
# Benchmarks

Written by `make bench` from speed.json; do not edit it by hand. The kinds were measured in turn (A B C, A B C, ...), by
processes that stay alive."""
GOAL_HEADER = [
    "work",
    "goal",
    "figure (median, or ratio of medians)",
    "least to most of the rounds",
    "reached",
    "peers",
]


def render_page(results: Mapping[str, Any], gpu: Mapping[str, Any] | None = None) -> str:
    """The text of RESULTS.md."""
    parts = results["parts"]
    sections = [
        ("Goals", markdown_table(GOAL_HEADER, (goal.table_row(parts) for goal in GOALS))),
        ("Missed goals", describe_missed_goals(parts)),
    ]
    if {"probabilities", "losses"} <= set(parts.get("equal", {})):
        sections.append(("The same work", describe_agreement(parts["equal"])))
    for part, title, ours, scale, unit, higher in SERIES:
        if part in parts:
            sections.append((title, render_series(parts[part], ours, scale, unit, higher)))
    if "copied" in parts:
        sections.append(("Windows copied out", describe_copies(parts["copied"])))
    if "growth" in parts:
        sections.append(("Growth", render_growth(parts["growth"])))
    sections.append(("On a GPU", describe_gpu(gpu)))
    machine = [[str(name), str(value)] for name, value in results["machine"].items()]
    sections.append(("Machine", markdown_table(["", ""], machine)))
    for name, text in parts.get("pieces", {}).items():
        sections.append((f"python -m benchmarks {name}", f"```\n{text.strip()}\n```"))
    return "\n\n".join([HEAD, *(f"## {title}\n\n{text}" for title, text in sections)]) + "\n"


SERIES = (
    ("decision", "One decision", "ours", 1e3, "milliseconds", False),
    ("many", "Many decisions, batches of 512", "ours", 1, "windows a second", True),
    ("training", "Training, batches of 256", SAMPLE, 1, "windows a second", True),
    ("tensors", "Tensor peak of a training step", SAMPLE, 1, "MiB", False),
    ("growth_mb", "Process growth of training steps", SAMPLE, 1, "MiB", False),
    (
        "feeding",
        "Feeding: a step of the default network, and a whole step of one that does next to nothing",
        "feeding",
        1e3,
        "milliseconds",
        False,
    ),
    ("resident", "2.3 million candles ready to train", "ours", 1, "MiB", False),
    ("start", "From a cold start", "first decision, ours", 1, "seconds", False),
)


def write_page(results: Mapping[str, Any], path: Path = PAGE) -> str:
    """Render the page, write it, and return it."""
    gpu = json.loads(GPU_RESULTS.read_text(encoding="utf-8")) if GPU_RESULTS.exists() else None
    text = render_page(results, gpu)
    path.write_text(text, encoding="utf-8")
    return text
