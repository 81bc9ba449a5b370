"""From the numbers of a run to RESULTS.md: goals and whether they were reached, ratios, spread, growth. Measures nothing."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS, GPU_RESULTS, PAGE = HERE / "results.json", HERE / "gpu_results.json", HERE / "RESULTS.md"
Parts = Mapping[str, Any]


def flops(units: Sequence[int] = (128, 64, 32), inputs: int = 8, timesteps: int = 120) -> float:
    """Floating-point operations of the LSTM layers' matrix products for one window, forward; training takes three times as many.

    A layer multiplies (inputs + units) by (4 units) at each timestep, two operations for each product. Activations are left out.
    """
    return timesteps * sum(2 * (a + b) * 4 * b for a, b in zip((inputs, *units), units, strict=False))


# ---------------------------------------------------------------- goals


@dataclass(frozen=True)
class Goal:
    """One row of the table: the median of a series, or the ratio of two, against a limit."""

    key: str  # for the sentence on why it was missed
    work: str
    ours: tuple[str, str]  # part and name of the series
    limit: float
    at_least: bool = False  # otherwise: at most
    over: tuple[str, str] | None = None  # the series below the line
    scale: float = 1.0
    unit: str = ""
    peers: tuple[str, ...] = ()  # other series of the part, in the same unit

    def series(self, parts: Parts) -> list[float]:
        """The value of each round; a ratio where there is something below the line."""
        top = parts[self.ours[0]][self.ours[1]]
        if self.over is None:
            return [self.scale * value for value in top]
        return [self.scale * a / b for a, b in zip(top, parts[self.over[0]][self.over[1]], strict=True)]

    def value(self, parts: Parts) -> float:
        """The median, or the ratio of the medians."""
        top = statistics.median(parts[self.ours[0]][self.ours[1]])
        return self.scale * top / (1.0 if self.over is None else statistics.median(parts[self.over[0]][self.over[1]]))

    def reached(self, parts: Parts) -> bool:
        """Whether the value is on the right side of the limit."""
        return self.value(parts) >= self.limit if self.at_least else self.value(parts) <= self.limit

    def measured(self, parts: Parts) -> bool:
        """Whether the run holds all that the row needs."""
        return all(name in parts.get(part, {}) for part, name in filter(None, (self.ours, self.over)))

    def cells(self, parts: Parts) -> list[str]:
        """The cells of the table."""
        goal = f"{'at least' if self.at_least else 'at most'} {self.shown(self.limit)}"
        if not self.measured(parts):
            return [self.work, goal, "not measured", "", "", ""]
        values = self.series(parts)
        spread = f"{number(min(values))} to {number(max(values))}"
        verdict = "yes" if self.reached(parts) else "**no**"
        return [self.work, goal, self.shown(self.value(parts)), spread, verdict, self.beside(parts)]

    def shown(self, value: float) -> str:
        return f"{number(value)} {self.unit}".strip()

    def beside(self, parts: Parts) -> str:
        """The peers with their medians."""
        found = [(name, statistics.median(parts[self.ours[0]][name])) for name in self.peers if name in parts[self.ours[0]]]
        return ", ".join(f"{name} {self.shown(self.scale * value)}" for name, value in found)


KERAS, PLAIN, TORCH = "Keras, recurrent dropout 0.3", "Keras, none", "PyTorch, none"
SINGLE, ALONE = "Keras, 0.3, one thread an operation", "Keras predict, its batches alone"
SAMPLE, BATCH, LIMIT = "ours, per_sample", "ours, per_batch", "matrix products"
ANSWERS = ("Keras predict", "Keras model(x)", "Keras tf.function", "PyTorch", "NumPy loop")
GOALS = (
    Goal("decision", "one decision, window to probabilities", ("decision", "ours"), 0.8, scale=1e3, unit="ms", peers=ANSWERS),
    Goal("decision_ratio", "the same: `predict` over ours", ("decision", "Keras predict"), 75, True, ("decision", "ours"), unit="x"),
    Goal("update", "new candle to decision by `update`", ("decision", "ours, update"), 1.2, scale=1e3, unit="ms"),
    Goal(
        "many", "many decisions, windows a second, over `predict` at 512", ("many", "ours"), 2.5, True, ("many", "Keras predict"), unit="x"
    ),
    Goal("many_alone", "the same, less what `predict` does around its batches", ("many", "ours"), 2.5, True, ("many", ALONE), unit="x"),
    Goal("many_limit", "the same, share of the matrix limit", ("many", "ours"), 70, True, ("many", LIMIT), 100, "%"),
    Goal("training", "training, windows a second, over stock Keras", ("training", SAMPLE), 1.3, True, ("training", KERAS), unit="x"),
    Goal("training_batch", "the same with masks per batch", ("training", BATCH), 1.3, True, ("training", KERAS), unit="x"),
    Goal(
        "training_torch", "training, over PyTorch without recurrent dropout", ("training", SAMPLE), 1.6, True, ("training", TORCH), unit="x"
    ),
    Goal("training_torch_batch", "the same with masks per batch", ("training", BATCH), 1.6, True, ("training", TORCH), unit="x"),
    Goal("tensors", "tensor peak of that step, over stock", ("tensors", SAMPLE), 0.45, over=("tensors", KERAS), unit="x"),
    Goal("tensors_batch", "the same with masks per batch", ("tensors", BATCH), 0.45, over=("tensors", KERAS), unit="x"),
    Goal("growth", "process growth of that step, over stock", ("growth_mb", SAMPLE), 0.55, over=("growth_mb", KERAS), unit="x"),
    Goal("growth_batch", "the same with masks per batch", ("growth_mb", BATCH), 0.55, over=("growth_mb", KERAS), unit="x"),
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
        "2.3 million candles ready to train, their table let go, over the runtime",
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
    "Between its waits `predict` is that fast on this machine: 2.5 times as much is more than the matrix limit, where no time is left "
    "for activations."
)
_MASKS = (
    "Each gate multiplies its own masked rows, forward and back, and adds up four gradients; with `per_batch`, the default, one row serves "
    "all gates."
)
WHY: dict[str, str] = {  # key of a goal that was missed -> why, for the run in results.json
    "many": f"A call of `predict` may wait at its end; then the ratio is that of the better rounds. In most it did not. {_BEYOND}",
    "many_alone": _BEYOND,
    "many_limit": (
        "The rest goes into sigmoid and tanh, which the limit leaves out; onnxruntime's LSTM is one operation, there is nothing around it "
        "to save."
    ),
    "training": _MASKS,
    "training_torch": _MASKS,
}


# ---------------------------------------------------------------- text


def number(value: float) -> str:
    """Three digits that count, thousands with a comma."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; columns after the first are flushed right where they hold numbers only."""
    rows = [list(row) for row in rows]
    right = [bool(rows) and all(cell[:1].isdigit() or cell[:1] in "-+" for cell in column) for column in zip(*rows, strict=True)]
    lines = [header, ["---:" if side else "---" for side in (right or [False] * len(header))], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def exponent(points: Mapping[str, float]) -> float:
    """b of the line y = a x^b through points x -> y, by least squares of the logarithms."""
    x, y = zip(*((math.log(float(x)), math.log(y)) for x, y in points.items()), strict=True)
    return statistics.linear_regression(x, y).slope


def series_table(part: Mapping[str, list[float]], ours: str, scale: float, unit: str, higher: bool) -> str:
    """Each series: median, quartiles, least and most, and how many times as good our first one is, by medians."""
    base = statistics.median(part[ours])
    rows = []
    for name, values in part.items():
        middle = statistics.median(values)
        low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        cells = (f"{number(scale * a)} to {number(scale * b)}" for a, b in ((low, high), (min(values), max(values))))
        rows.append([name, number(scale * middle), *cells, f"{number(base / middle if higher else middle / base)}"])
    return table([unit, "median", "quartiles", "least to most", f"`{ours}` is better by"], rows)


EQUAL = """\
Equal in all kinds: weights at the start, windows, targets, batches, widths, dropout of a layer's inputs (one mask for all timesteps) and
after dense layers, loss, Adam (step size, epsilon 1e-7), float32, all cores. Checked in this run: the probabilities of the kinds differ by
at most {probabilities}, and with all dropout off the losses of {steps} training steps agree with stock Keras to {losses} (relative).

Not equal, as it can't be:
- `nn.LSTM` of PyTorch has no recurrent dropout; it is measured without, as is Keras a second time.
- `per_sample` draws masks of the state for each window, as Keras does; `per_batch` draws one for all windows of a batch. The random numbers
  differ either way.
- Keras and PyTorch add Adam's epsilon at different places, which shows in the losses after the first step.
- Keras computes the metrics of `build_model`, accuracy twice; PyTorch computes the loss alone.
- The peers have their windows as one array in memory; ours are gathered from candles while it trains.
- Training is timed from the first batch to the last. At the end of `fit` and `predict` Keras often waits for a thread of tf.data, for
  seconds here; ours does not (`crypto_lstm.data.windows.tf_dataset`), and our decisions don't pass through TensorFlow at all. `predict` is
  timed both ways.
- Ours has one thread an operation, as `train` sets it up; Keras has TensorFlow's choice, and in one row the same as ours.
- onnxruntime, TensorFlow, NumPy and PyTorch add up in different orders."""

NO_GPU = """\
Never run on a GPU: everything on this page was measured on a CPU. `benchmarks/gpu.py` compares stock Keras and ours where there is one,
needs no network, and checks that cuDNN ran; its CPU self-check (`--cpu`) is all of it that was ever run. That `per_batch` uses cuDNN, and
what it gains, is reasoned from Keras' source, not measured."""


def _equal(equal: Mapping[str, Any]) -> str:
    shown = {name: f"{equal[name]:.1e}" for name in ("probabilities", "losses")}
    return EQUAL.format(steps=equal["steps"], **shown)


def _growth(growth: Mapping[str, Any]) -> str:
    """Small tables, each with the exponents fitted on its points."""
    texts = []
    for title, part in growth.items():
        names = list(next(iter(part["points"].values())))
        rows = [[f"{int(x):,}", *("-" if point.get(n) is None else number(point[n]) for n in names)] for x, point in part["points"].items()]
        fits = []
        for name in names:
            points = {x: point[name] for x, point in part["points"].items() if point.get(name) is not None}
            fits.append(f"{exponent(points):.2f}" if len(points) > 2 else "-")
        texts.append(f"### {title}\n\n{part['text']}\n\n{table([part['x'], *names], [*rows, ['grows with the power', *fits]])}")
    return "\n\n".join(texts)


def missed(parts: Parts) -> list[Goal]:
    """The goals that were measured and not reached."""
    return [goal for goal in GOALS if goal.measured(parts) and not goal.reached(parts)]


def short(parts: Parts) -> str:
    """What fell short, and why."""
    lines = [f"- {g.work}: {g.shown(g.value(parts))}. {WHY.get(g.key, 'Why is not written down yet.')}" for g in missed(parts)]
    return "\n".join(lines) or "Nothing: every goal that was measured was reached."


def gpu_text(gpu: Mapping[str, Any] | None) -> str:
    """What `gpu.py` found, or that it never ran."""
    if gpu is None:
        return NO_GPU
    rows = [[name, number(r["windows_s"]), "yes" if r["cudnn"] else "no"] for name, r in gpu["kinds"].items()]
    return f"{gpu['device']}, Keras on {gpu['backend']}.\n\n{table(['kind', 'windows a second', 'cuDNN ran'], rows)}"


def page(results: Mapping[str, Any], gpu: Mapping[str, Any] | None = None) -> str:
    """RESULTS.md."""
    parts, sections = results["parts"], []

    def add(title: str, *texts: str) -> None:
        sections.append("\n\n".join([f"## {title}", *texts]))

    machine = table(["", ""], [[f"{k}", f"{v}"] for k, v in results["machine"].items()])
    header = ["work", "goal", "figure (median, or ratio of medians)", "least to most of the rounds", "reached", "peers"]
    add("Goals", table(header, (goal.cells(parts) for goal in GOALS)))
    add("What fell short", short(parts))
    if {"probabilities", "losses"} <= set(parts.get("equal", {})):
        add("The same work", _equal(parts["equal"]))
    for part, title, ours, scale, unit, higher in SERIES:
        if part in parts:
            add(title, series_table(parts[part], ours, scale, unit, higher))
    if "copied" in parts:
        copied = {name: number(values[0]) for name, values in parts["copied"].items()}
        add(
            "Windows copied out",
            f"{copied['candles']} candles, each window copied out: {copied['added_mb']} MiB added to the process in {copied['seconds']} s "
            f"({copied['computed_mb']} MiB by n x 120 x 8 x 4 bytes).",
        )
    if "growth" in parts:
        add("How each grows", _growth(parts["growth"]))
    add("On a GPU", gpu_text(gpu))
    add("Machine", machine)
    for name, text in parts.get("pieces", {}).items():
        add(name, f"```\n{text.strip()}\n```")
    head = "# Benchmarks\n\nWritten by `make bench` from results.json; not edited by hand."
    head += " Kinds were measured in turn (A B C, A B C, ...), by processes that stay alive."
    return "\n\n".join([head, *sections]) + "\n"


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


def write(results: Mapping[str, Any], path: Path = PAGE) -> str:
    """Render the page, write it, and return it."""
    gpu = json.loads(GPU_RESULTS.read_text(encoding="utf-8")) if GPU_RESULTS.exists() else None
    text = page(results, gpu)
    path.write_text(text, encoding="utf-8")
    return text
