"""Faults of data, training, files and decisions: each is either refused or survived.

A refusal raises exactly one class, and its message names the cause, the place and the remedy. The folder around it is
unchanged: its names, contents and links. `FAULTS` lists all items, and every item has at least one case.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from inference.test_bundle import FIRST, WEIGHTS, config_with, forged, weights_of
from support import forked
from support.answers import replace_answers
from support.attacks import (
    CONFIG_ATTACKS,
    WEIGHT,
    _archive,
    _hdf5,
    _members,
    _text_attacks,
    archive_attacks,
    digest,
    hdf5_attacks,
)
from support.kill_and_resume import CONFIG as WHOLE
from support.kill_and_resume import candles

from crypto_lstm.architecture import build_model
from crypto_lstm.callbacks import MonitorError, NonFiniteError, OutputFolderError, create_callbacks
from crypto_lstm.commands.main import main
from crypto_lstm.config import CLASSES, ConfigError
from crypto_lstm.data.candles import fill_gaps, read_candles
from crypto_lstm.data.features import FeatureError
from crypto_lstm.data.labels import LabelError
from crypto_lstm.data.readers import CandleError
from crypto_lstm.data.scaler import ScalerError
from crypto_lstm.data.windows import DataError, WindowDataset, prediction_windows, prepare
from crypto_lstm.evaluation.metrics import EvaluationError, evaluate
from crypto_lstm.gpu import setup_gpu_memory
from crypto_lstm.inference.bundle import Bundle, BundleError, load_bundle, save_bundle
from crypto_lstm.inference.decision import NO_TRADE, Decision, InvalidPredictionError
from crypto_lstm.persistence import load_model, save_model
from crypto_lstm.profiling.batch_size import MemoryBudgetError, OutOfMemoryError
from crypto_lstm.saving.compatibility import ModelMismatchError
from crypto_lstm.saving.model_schema import KerasVersionError, ModelFileError, ModelIntegrityError, UnsafeModelError
from crypto_lstm.storage.atomic import SaveError
from crypto_lstm.storage.lock import LockedError
from crypto_lstm.storage.manifest import (
    MANIFEST,
    IntegrityError,
    MissingFolderError,
    SchemaVersionError,
    encode_manifest,
)
from crypto_lstm.storage.verified import manifest_path
from crypto_lstm.training.checkpointing import StopOnSignal, read_state
from crypto_lstm.training.run_folder import STATE, STOP_NOTE, ResumeMismatchError, lock_run_folder
from crypto_lstm.training.saved_run import load_run, predict_probabilities
from crypto_lstm.training.trainer import TrainingRun, train

FAULTS = {
    "Data": """NaN or infinity in a feature · zero or negative price · OHLC out of order · gaps ·
        duplicate times, equal and conflicting · unsorted or reversed rows · time zone missing · seconds, ms, µs mixed ·
        rows in the future · wrong timeframe · 7 or 9 features · wrong column order · strings, objects, "1,234.5" ·
        wrong window length, 2-D or 4-D, channels first · X and y of different length · empty input ·
        fewer rows than a window, windows than a batch, nothing left for validation ·
        integer labels for one-hot and the reverse · labels outside 0..2 · one class only ·
        label horizon across a split · truncated or foreign file""",
    "Training": """loss NaN at step k · exploding gradients · monitored metric missing or NaN · out of memory ·
        SIGKILL at any moment, twice, and inside a save · SIGTERM and Ctrl-C · disk full in save and in logs ·
        folder read-only, missing, a file, too long a name (found before epoch 1) · two trainers on one folder ·
        resume with another configuration · GPU absent or failing""",
    "Files": """missing, empty, no manifest · truncated anywhere · any bit flipped in any file ·
        weights of one save with the scaler of another · features or classes reordered in metadata · NaN in weights ·
        tensors missing, extra, swapped, of another dtype · Lambda, TFSMLayer, custom and unknown classes ·
        duplicate JSON keys, deep nesting, huge integers · zip and HDF5 bombs, units = 1e9 · links to other files ·
        replaced between check and read · older or newer schema · Keras too old""",
    "Decisions": """NaN in the live window · probabilities that are not finite or don't sum to 1 ·
        a stale or incomplete window · a model past its expiry · a batch of 1 against a batch of n""",
}
ITEMS = [" ".join(item.split()) for part in FAULTS.values() for item in part.split("·")]

CONFIG = WHOLE.replace(epochs=2, lstm_units=(8,), dropout_rate=0.0)
HOURLY = candles()
CLOSE = HOURLY["date"].iloc[-1] + pd.Timedelta(hours=1)
EXPIRES = datetime(2030, 1, 1, tzinfo=UTC)
QUIET = {"tensorboard": False}

pytestmark = pytest.mark.usefixtures("bare_trainings")

# ---------------------------------------------------------------- fixtures


KILLED_TWICE = """
import os, sys
from pathlib import Path
from support.kill_and_resume import CONFIG, KillAtBatch, candles, counted
from crypto_lstm.training.trainer import train
config = CONFIG.replace(epochs=2, lstm_units=(8,), dropout_rate=0.0)
for number in (1, 2):
    if not os.fork():
        if number == 2:
            os.fsync = counted(os.fsync, 4)
        killers = [KillAtBatch(11)] if number == 1 else []
        train(candles(), config, Path(sys.argv[1]), callbacks=killers, tensorboard=False, save_every_batches=3)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


class World:
    """Data, models and runs that the faults are applied to, each made at its first use."""

    def __init__(self, place: Path) -> None:
        self.place = place

    @cached_property
    def made(self) -> SimpleNamespace:
        """A network and its data, as `save_bundle` expects them."""
        return SimpleNamespace(config=CONFIG, model=build_model(CONFIG), data=prepare(HOURLY, CONFIG))

    @cached_property
    def bundle_path(self) -> Path:
        save_bundle(self.made, self.place / "bundle", expires=EXPIRES)
        return self.place / "bundle"

    @cached_property
    def bundle(self) -> Bundle:
        return load_bundle(self.bundle_path)

    @cached_property
    def models(self) -> dict[str, Path]:
        return {
            name: save_model(self.made.model, self.place / name / "model", name, config=CONFIG).model
            for name in ("keras", "h5")
        }

    @cached_property
    def run(self) -> TrainingRun:
        """A training that was killed twice and then resumed to its end."""
        ends = forked.run(KILLED_TWICE, self.place / "run")
        assert ends.stdout.split() == [str(-signal.SIGKILL)] * 2, ends.stderr[-2000:]
        shutil.copytree(self.place / "run", self.place / "killed")
        for left in self.place.glob("killed/**/.*"):  # leftovers that the next process would remove
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        return train(HOURLY, CONFIG, self.place / "run", save_every_batches=3, **QUIET)

    @cached_property
    def killed(self) -> Path:
        """The folder of the run before the last start."""
        return self.run.output_dir.with_name("killed")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@dataclass(frozen=True)
class Ground:
    """An empty folder in which one fault is prepared."""

    place: Path
    world: World
    patch: pytest.MonkeyPatch

    def unfinished(self) -> Path:
        """A run that stopped in its second epoch."""
        return Path(shutil.copytree(self.world.killed, self.place / "run"))

    def bundle(self) -> Path:
        return Path(shutil.copytree(self.world.bundle_path, self.place / "btc"))

    def forged(self, name: str, data: bytes) -> Path:
        """A bundle with one file replaced, and a manifest that fits it."""
        return forged(self.world.bundle_path, self.place, name, data)

    def model(self, format: str = "keras") -> Path:
        """A saved model, with its manifest and its copies."""
        shutil.copytree(self.world.models[format].parent, self.place / "model")
        return self.place / "model" / self.world.models[format].name

    def foreign(self, data: bytes, format: str = "keras") -> Path:
        """A model file from elsewhere, without a manifest."""
        path = self.place / f"foreign.{format}"
        path.write_bytes(data)
        return path

    def document(self, name: str) -> Path:
        """The saved model with one attack on its description of the network."""
        members = _members(self.world.models["keras"].read_bytes())
        changed = CONFIG_ATTACKS[name](json.loads(members["config.json"]), self.place / "canary")
        return self.foreign(_archive({**members, "config.json": json.dumps(changed).encode()}))


Act = Callable[[], object]
Arrange = Callable[[Ground], "Act | list[str]"]


@dataclass(frozen=True)
class Case:
    error: type[Exception] | type[Decision] | None  # None: survived, and the case has its own assertions
    patterns: tuple[str, ...]  # of cause, place and remedy
    arrange: Arrange


CASES: dict[str, Case] = {}


def refused(
    item: str,
    variant: str,
    error: type[Exception] | type[Decision],
    cause: str,
    place: str,
    remedy: str,
    arrange: Arrange,
) -> None:
    """Add a fault that is refused. `arrange` prepares it, and returns the call or the command line that triggers it."""
    _add(item, variant, Case(error, (cause, place, remedy), arrange))


def survived(item: str, variant: str) -> Callable[[Callable[[Ground], None]], Callable[[Ground], None]]:
    """Add a fault that does no harm: the function asserts that."""

    def note(check: Callable[[Ground], None]) -> Callable[[Ground], None]:
        _add(item, variant, Case(None, (), lambda ground: lambda: check(ground)))
        return check

    return note


def _add(item: str, variant: str, case: Case) -> None:
    name = item + (f": {variant}" if variant else "")
    assert item in ITEMS and name not in CASES, name
    CASES[name] = case


# ---------------------------------------------------------------- data


def changed(row: int | None = None, frame: pd.DataFrame = HOURLY, **values: Any) -> pd.DataFrame:
    """The candles with other values, in one row or in all."""
    frame = frame.copy()
    for name, value in values.items():
        frame.loc[slice(None) if row is None else row, name] = value
    return frame


def trained(frame: Any, **changes: Any) -> Arrange:
    return lambda ground: lambda: train(frame, CONFIG.replace(**changes), ground.place / "run", **QUIET)


def read(make: Callable[[Path], object], name: str = "candles.csv", **options: Any) -> Arrange:
    def arrange(ground: Ground) -> Act:
        make(ground.place / name)
        return lambda: read_candles(ground.place / name, **options)

    return arrange


def as_csv(frame: pd.DataFrame) -> Callable[[Path], object]:
    return lambda path: frame.to_csv(path, index=False)


def as_feather(frame: pd.DataFrame) -> Callable[[Path], object]:
    return lambda path: frame.reset_index(drop=True).to_feather(path)


SETTINGS = [f"{k}={','.join(map(str, v)) if isinstance(v, list) else v}" for k, v in CONFIG.as_dict().items()]


def command(make: Callable[[Path], object], *more: str) -> Arrange:
    """`crypto-lstm train` on a file."""

    def arrange(ground: Ground) -> list[str]:
        make(ground.place / "candles.feather")
        words = [
            "train",
            "--candles",
            str(ground.place / "candles.feather"),
            "--output",
            str(ground.place / "run"),
            "--json",
        ]
        return [*words, *more, "--set", *SETTINGS]

    return arrange


NOT_FINITE = "NaN or infinity in a feature"
for value in (np.nan, np.inf, -np.inf):
    refused(
        NOT_FINITE,
        f"{value}",
        CandleError,
        f"finite number.*is {value}",
        "row 700, column close",
        "fix|drop",
        trained(changed(700, close=value)),
    )
refused(
    NOT_FINITE,
    "in the command",
    CandleError,
    "finite number.*nan",
    "candles.feather.*row 9, column volume",
    "fix|drop",
    command(as_feather(changed(9, volume=np.nan))),
)


@survived(NOT_FINITE, "a change past float32: the candle is left out, and counted")
def changes_past_float32_are_left_out_and_counted(ground: Ground) -> None:
    data = prepare(changed(2001, frame=changed(2000, volume=1e-300), volume=1e90), CONFIG)
    assert data.dropped["a result that is not finite"] == 1
    assert all(np.isfinite(part.matrix).all() for part in data.parts.values())


for value in (0.0, -1.0):
    prices = {"open": 100.0, "high": 101.0, "low": value, "close": 100.0}
    refused(
        "zero or negative price",
        f"{value}",
        CandleError,
        "low must be above zero",
        f"row 5, column low is {value:g}",
        "fix|drop",
        trained(changed(5, **prices)),
    )

refused(
    "OHLC out of order",
    "high below low",
    CandleError,
    "high must be at least open, low and close",
    "row 7, column high is 0.001",
    "fix|drop",
    trained(changed(7, high=1e-3)),
)
refused(
    "OHLC out of order",
    "Bitfinex' order",
    CandleError,
    "high must be at least",
    "the rows.*row 0",
    "columns='ochlv'",
    lambda ground: (
        lambda: read_candles([[t, 100, 101, 103, 99, 5] for t in range(1_700_000_000_000, 1_700_003_600_000, 60_000)])
    ),
)


def holed(every: int, missing: int) -> pd.DataFrame:
    return HOURLY[HOURLY.index % every >= missing].reset_index(drop=True)


refused(
    "gaps",
    "none of the stretches is long enough",
    LabelError,
    "labels need a segment of at least 25 candles",
    "the longest of .* has 17",
    "raise max_gap_minutes",
    trained(holed(20, 3)),
)


@survived("gaps", "short ones are filled, long ones are never inside a window")
def short_gaps_are_filled_and_long_ones_stay_outside_windows(ground: Ground) -> None:
    frame = HOURLY.drop(index=[1500, *range(1600, 1610)]).reset_index(drop=True)
    data, filled = prepare(frame, CONFIG), fill_gaps(frame, CONFIG.max_gap_minutes, CONFIG.timeframe)
    assert filled["filled"].sum() == 1 and filled["segment"].iloc[-1] == 1
    for rows in (part.rows for part in data.parts.values()):
        ends = filled["segment"].to_numpy()
        assert (
            len(rows)
            and (ends[rows] == ends[rows - CONFIG.sequence_length + 1]).all()
            and (ends[rows] == ends[rows + CONFIG.future_window]).all()
        )


TWICE = pd.concat([HOURLY[:1000], HOURLY[999:]], ignore_index=True)
DUPLICATES = "duplicate times, equal and conflicting"
refused(
    DUPLICATES,
    "equal, in a frame",
    CandleError,
    "no candle may be there twice",
    "row 1000, column date",
    "read_candles\\(frame\\)",
    trained(TWICE),
)
refused(
    DUPLICATES,
    "conflicting, in a frame",
    CandleError,
    "two candles of one time must not differ",
    "row 1000, column date",
    "on_conflict=",
    trained(changed(1000, frame=TWICE, volume=1.0)),
)
refused(
    DUPLICATES,
    "conflicting, in a file",
    CandleError,
    "two different candles of",
    "candles.csv.*row 999 .*row 1000 .*column volume",
    "pass on_conflict='first' to keep the first of each, or pass on_conflict='last'",
    read(as_csv(changed(1000, frame=TWICE, volume=1.0))),
)
refused(
    DUPLICATES,
    "conflicting, in the command",
    CandleError,
    "two different candles of",
    "candles.feather.*row 1000",
    "add --on-conflict first to keep the first of each, or add --on-conflict last",
    command(as_feather(changed(1000, frame=TWICE, volume=1.0))),
)


@survived(DUPLICATES, "equal, in a file: one stays, and the others are counted")
def equal_duplicates_are_dropped_and_counted(ground: Ground) -> None:
    found = read_candles(TWICE)
    assert len(found) == len(HOURLY) and found.attrs["cleaning"]["duplicates_dropped"] == 1


UNSORTED = "unsorted or reversed rows"
BACKWARDS = HOURLY[::-1].reset_index(drop=True)
refused(
    UNSORTED,
    "reversed",
    CandleError,
    "dates must rise",
    "row 1, column date",
    "read_candles\\(frame\\) sorts",
    trained(BACKWARDS),
)
refused(
    UNSORTED,
    "two changed places",
    CandleError,
    "dates must rise",
    "row 11, column date.*1 such row",
    "read_candles\\(frame\\) sorts",
    trained(HOURLY.iloc[[*range(10), 11, 10, *range(12, 3000)]].reset_index(drop=True)),
)


@survived(UNSORTED, "sorted when they are read, and counted")
def unsorted_rows_are_sorted_and_counted(ground: Ground) -> None:
    found = read_candles(BACKWARDS)
    assert found["date"].is_monotonic_increasing and found.attrs["cleaning"]["rows_moved"] == len(HOURLY) - 1


NAIVE = HOURLY.assign(date=HOURLY["date"].dt.tz_localize(None))
refused(
    "time zone missing",
    "in a frame",
    CandleError,
    "must be datetime64 in UTC, got datetime64",
    "column date",
    "timezone=",
    trained(NAIVE),
)
refused(
    "time zone missing",
    "in a file",
    CandleError,
    "dates without a time zone",
    "candles.csv.*the first is 2",
    "timezone='UTC'",
    read(as_csv(NAIVE)),
)
refused(
    "time zone missing",
    "in the command",
    CandleError,
    "dates without a time zone",
    "candles.feather",
    "--timezone UTC",
    command(as_feather(NAIVE)),
)

MIXED = "seconds, ms, µs mixed"
SECONDS = HOURLY["date"].dt.as_unit("s").astype("int64")


@survived(MIXED, "the unit of each row follows from its size")
def the_unit_of_each_date_is_detected(ground: Ground) -> None:
    times = SECONDS * np.resize([1, 10**3, 10**6, 10**9], len(SECONDS))
    assert read_candles(HOURLY.assign(date=times))["date"].equals(HOURLY["date"])


refused(
    MIXED,
    "no unit makes a date of it",
    CandleError,
    "is no epoch in s, ms, us or ns between 2000 and 2100",
    "candles.csv.*row 3 \\(line 5\\), column date",
    "fix|drop",
    read(as_csv(HOURLY.assign(date=SECONDS.where(SECONDS.index != 3, 12345)))),
)

LATE = HOURLY.assign(date=HOURLY["date"] + pd.Timedelta(days=36_500 // 2))
refused(
    "rows in the future",
    "in a file",
    CandleError,
    "no candle may lie in the future",
    "candles.csv.*row 0",
    "drop|clock|time zone",
    read(as_csv(LATE)),
)
refused(
    "rows in the future",
    "in the command",
    CandleError,
    "no candle may lie in the future",
    "candles.feather",
    "drop|clock|time zone",
    command(as_feather(LATE)),
)

MINUTES = HOURLY.assign(date=pd.date_range("2024-01-01", periods=len(HOURLY), freq="1min", tz="UTC"))
refused(
    "wrong timeframe",
    "minutes for hours",
    CandleError,
    "candles of 1h are expected, most are 1m apart",
    "1h",
    "timeframe='1m'",
    trained(MINUTES),
)
refused(
    "wrong timeframe",
    "in the command",
    CandleError,
    "candles of 1h are expected, most are 1m apart",
    "1h",
    "--set timeframe=1m",
    command(as_feather(MINUTES)),
)
refused(
    "wrong timeframe",
    "one row off the grid",
    CandleError,
    "dates must be whole steps of 1h",
    "row 4, column date",
    "fix|drop",
    trained(HOURLY.assign(date=HOURLY["date"] + pd.to_timedelta((HOURLY.index == 4) * 60, "s"))),
)


def answered(shape: tuple[int, ...], dtype: str = "f4") -> Arrange:
    return lambda ground: lambda: ground.world.bundle.probabilities(np.zeros(shape, dtype))


WINDOWS = ("expected float windows", r"\(windows, 12, 8\), got float32 ", "give|scale")
for count in (7, 9):
    refused("7 or 9 features", f"{count} in a window", InvalidPredictionError, *WINDOWS, answered((2, 12, count)))
    refused(
        "7 or 9 features",
        f"{count} to scale",
        ScalerError,
        r"expected a matrix \(rows, 8\)",
        rf"got shape \(5, {count}\)",
        "give|make_features",
        lambda ground, count=count: lambda: ground.world.made.data.scaler.transform(np.zeros((5, count))),
    )
SHAPES = r"input shape: expected \(None, 12, 7\), got \(None, 12, 8\)"
refused(
    "7 or 9 features",
    "8 in a file, 7 in the settings",
    ModelMismatchError,
    SHAPES,
    "model '.*model.keras' differs",
    "give the settings that it was made with, or another model",
    lambda ground: partial(load_model, ground.model(), config=CONFIG.replace(features=CONFIG.features[:7])),
)
refused(
    "7 or 9 features",
    "9 in the settings",
    ConfigError,
    "with different names",
    "features must be .* got",
    "high_change",
    lambda ground: lambda: CONFIG.replace(features=[*CONFIG.features, "close_change"]),
)

ORDER = "wrong column order"
refused(
    ORDER,
    "the scaler's features",
    DataError,
    "the scaler is for the features",
    "the configuration has",
    "give|take|use",
    lambda ground: (
        lambda: prediction_windows(
            HOURLY, CONFIG.replace(features=CONFIG.features[::-1]), ground.world.made.data.scaler
        )
    ),
)


@survived(ORDER, "columns are taken by name")
def columns_are_taken_by_name(ground: Ground) -> None:
    turned = HOURLY[["volume", "close", "date", "low", "open", "high"]]
    assert np.array_equal(ground.world.bundle.probabilities(turned), ground.world.bundle.probabilities(HOURLY))


TEXT = 'strings, objects, "1,234.5"'
refused(
    TEXT,
    "strings",
    CandleError,
    "must be float64, got (str|object)",
    "column close",
    "read_candles",
    trained(HOURLY.assign(close="1234.5")),
)
refused(
    TEXT,
    "objects",
    CandleError,
    "must be float64, got object",
    "column close",
    "read_candles",
    trained(HOURLY.assign(close=[[1.0]] * len(HOURLY))),
)
refused(
    TEXT,
    "1,234.5 in a file",
    CandleError,
    "'1,234.5' is no number",
    "candles.csv.*row 0 \\(line 2\\), column close",
    "fix.*write",
    read(as_csv(HOURLY.assign(close="1,234.5"))),
)
refused(
    TEXT, "not a table", CandleError, "must be a DataFrame, got list", "candles", "read_candles", trained([[1, 2, 3]])
)

for shape in ((2, 11, 8), (12, 8), (1, 2, 12, 8), (2, 8, 12)):
    refused(
        "wrong window length, 2-D or 4-D, channels first", f"{shape}", InvalidPredictionError, *WINDOWS, answered(shape)
    )
refused(
    "wrong window length, 2-D or 4-D, channels first",
    "a matrix of three dimensions",
    DataError,
    "expected a matrix \\(candles, features\\)",
    r"got shape \(2, 12, 8\)",
    "give",
    lambda ground: lambda: dataset(np.zeros((2, 12, 8), "f4")),
)


def dataset(matrix: np.ndarray | None = None, labels: Any = None) -> WindowDataset:
    matrix = np.zeros((30, 8), "f4") if matrix is None else matrix
    return WindowDataset(matrix, np.arange(11, 21), labels, sequence_length=12, batch_size=4)


def evaluated(rows: int = 4, **columns: Any) -> Act:
    """`evaluate` on the labels 0, 1, 2, or on others."""
    outcomes = pd.DataFrame({"label": [0, 1, 2], "long_return": 0.0, "short_return": 0.0} | columns)
    return lambda: evaluate("test", np.full((rows, 3), 1 / 3), outcomes, [1 / 3] * 3, [1 / 3] * 3, CONFIG)


LENGTH = "X and y of different length"
refused(
    LENGTH,
    "windows and labels",
    DataError,
    "expected one label .* for each of 10 windows",
    r"got .*\(9,\)",
    "give|make_labels",
    lambda ground: lambda: dataset(labels=np.zeros(9, int)),
)
refused(
    LENGTH,
    "probabilities and labels",
    EvaluationError,
    "one row for each label",
    r"shape \(3, 3\).* got \(4, 3\)",
    "give both",
    lambda ground: evaluated(4),
)

refused(
    "empty input", "a frame without rows", CandleError, "no candles in it", "candles", "give|read", trained(HOURLY[:0])
)
refused(
    "empty input",
    "an empty file",
    CandleError,
    "the file is empty",
    "candles.csv",
    "fetch|give|name",
    read(lambda path: path.touch()),
)
refused(
    "empty input",
    "names of columns alone",
    CandleError,
    "no candles in it",
    "candles.csv",
    "fetch|give|name",
    read(as_csv(HOURLY[:0])),
)
refused(
    "empty input",
    "in the command",
    CandleError,
    "the file is empty",
    "candles.feather",
    "fetch|give|name",
    command(lambda path: path.touch()),
)
refused(
    "empty input",
    "no probabilities",
    EvaluationError,
    "one row for each label",
    r"got \(0, 3\)",
    "give both",
    lambda ground: evaluated(0, label=np.zeros(0, int), long_return=np.zeros(0), short_return=np.zeros(0)),
)

FEW = "fewer rows than a window, windows than a batch, nothing left for validation"
SHORT_WARMUP = {"features": ["close_change"], "future_window": 5, "batch_size": 4}
refused(
    FEW,
    "rows than features need",
    FeatureError,
    "features need at least 720 candles",
    "got 700",
    "longer history",
    trained(HOURLY[:700]),
)
refused(
    FEW,
    "rows than a label needs",
    LabelError,
    "labels need a segment of at least 6 candles",
    "longest of 4 candles has 4",
    "longer history",
    trained(HOURLY[:4], **SHORT_WARMUP),
)
refused(
    FEW,
    "rows than a window",
    DataError,
    "0 candles have a full window",
    "each part needs at least one",
    "Give more candles",
    trained(HOURLY[:11], **SHORT_WARMUP),
)
refused(
    FEW,
    "rows than a window, to predict",
    DataError,
    "no 12 candles in a row",
    "have all features",
    "give more candles",
    lambda ground: lambda: ground.world.bundle.probabilities(HOURLY[:725]),
)
refused(
    FEW,
    "windows than a batch",
    DataError,
    "only \\d+ training windows are left",
    "batch_size is 5000, but",
    "Set batch_size to \\d+ or less",
    trained(HOURLY, batch_size=5000),
)
refused(
    FEW,
    "nothing left for validation",
    DataError,
    "'validation': 0",
    "50 candles have a full window",
    "Give more candles",
    trained(HOURLY[:67], **SHORT_WARMUP),
)

# the package expects whole numbers as labels and makes one-hot rows itself, so one-hot labels are the mistake
ONE_HOT = "integer labels for one-hot and the reverse"
refused(
    ONE_HOT,
    "one-hot",
    DataError,
    "expected one label \\(0, 1 or 2\\)",
    r"got .*\(10, 3\)",
    "give|argmax",
    lambda ground: lambda: dataset(labels=np.eye(3)[[0] * 10]),
)
refused(
    ONE_HOT,
    "numbers that are not whole",
    DataError,
    "expected one label \\(0, 1 or 2\\)",
    "got float64",
    "give",
    lambda ground: lambda: dataset(labels=np.full(10, 0.5)),
)
refused(
    ONE_HOT,
    "one-hot, to evaluate",
    EvaluationError,
    "expected labels 0, 1 or 2",
    "got",
    "give",
    lambda ground: evaluated(3, label=[[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
)


@survived(ONE_HOT, "training targets are one-hot")
def training_targets_are_one_hot(ground: Ground) -> None:
    _, targets = dataset(labels=np.resize([0, 1, 2], 10))[0]
    assert targets.dtype == np.float32 and targets.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]


for label in (-1, 3):
    refused(
        "labels outside 0..2",
        f"{label}",
        DataError,
        "expected one label \\(0, 1 or 2\\)",
        f"got {label} for window 0",
        "give|make_labels",
        lambda ground, label=label: lambda: dataset(labels=np.full(10, label)),
    )
    refused(
        "labels outside 0..2",
        f"{label}, to evaluate",
        EvaluationError,
        "expected labels 0, 1 or 2",
        f"got {label} in row 2",
        "give",
        lambda ground, label=label: evaluated(3, label=[0, 1, label]),
    )

FLAT = HOURLY.assign(open=100.0, high=100.001, low=99.999, close=100.0)
refused(
    "one class only",
    "",
    DataError,
    "must hold all three classes",
    "the training part .* got SHORT 0, HOLD",
    "Give more candles, or other barriers",
    trained(FLAT),
)
refused(
    "one class only",
    "in the command",
    DataError,
    "must hold all three classes",
    "the training part",
    "or other barriers",
    command(as_feather(FLAT)),
)


@survived("label horizon across a split", "labels end before the first window of the next part")
def labels_end_before_the_windows_of_the_next_part(ground: Ground) -> None:
    parts = [part.rows for part in ground.world.made.data.parts.values()]
    for older, newer in zip(parts, parts[1:], strict=False):
        assert older.max() + CONFIG.future_window < newer.min() - CONFIG.sequence_length + 1


FILE = "truncated or foreign file"


def cut(path: Path) -> None:
    as_feather(HOURLY)(path)
    path.write_bytes(path.read_bytes()[:5000])


refused(
    FILE,
    "feather, cut",
    CandleError,
    "damaged or cut short",
    "candles.feather",
    "fetch it again",
    read(cut, "candles.feather"),
)
refused(
    FILE,
    "feather, cut, in the command",
    CandleError,
    "damaged or cut short",
    "candles.feather",
    "fetch it again",
    command(cut),
)
refused(
    FILE,
    "CSV, cut",
    CandleError,
    "the last line has \\d cells, the first has 6",
    "candles.csv",
    "fetch it again",
    read(lambda path: path.write_text(HOURLY.to_csv(index=False)[:2010])),
)
refused(
    FILE,
    "JSON, cut",
    CandleError,
    "not valid JSON \\(cut short\\?\\)",
    "candles.json",
    "fetch it again",
    read(lambda path: path.write_text("[[1700000000, 1, 2, 1, 1, 5], [17"), "candles.json"),
)
refused(
    FILE,
    "a picture",
    CandleError,
    "neither text in UTF-8 nor feather",
    "candles.png",
    "fetch|give|name",
    read(lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0"), "candles.png"),
)
refused(
    FILE,
    "a letter",
    CandleError,
    "no table of candles: the first line is 'dear diary'",
    "candles.csv",
    "at least 6 columns",
    read(lambda path: path.write_text("dear diary\nnothing happened\n")),
)
refused(FILE, "no such file", CandleError, "No such file", "candles.csv", "check|give|name", read(lambda path: None))

# ---------------------------------------------------------------- training


class At(keras.callbacks.Callback):
    """Calls `act` with the model after the first step."""

    def __init__(self, act: Callable[[keras.Model], object]) -> None:
        super().__init__()
        self.act: Callable[[keras.Model], object] | None = act

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self.act:
            act, self.act = self.act, None
            act(self.model)


def resumed(act: Callable[[keras.Model], object]) -> Arrange:
    """Resume a run in the middle of its second epoch, and call `act` at its first step."""

    def arrange(ground: Ground) -> Act:
        folder = ground.unfinished()
        return lambda: train(HOURLY, CONFIG, folder, callbacks=[At(act)], save_every_batches=100, **QUIET)

    return arrange


def raising(error: BaseException) -> Callable[[keras.Model], object]:
    def act(model: keras.Model) -> None:
        raise error

    return act


refused(
    "loss NaN at step k",
    "",
    NonFiniteError,
    "loss is nan",
    r"epoch 2, batch \d \(step \d+ of the training",
    "lower learning_rate. The last finite state.*is kept",
    resumed(lambda model: model.layers[-1].bias.assign([np.nan, 0.0, 0.0])),
)
refused(
    "exploding gradients",
    "",
    NonFiniteError,
    "loss is (nan|inf)",
    r"epoch 2, batch \d .*learning rate 0.01",
    "very large values.*or lower learning_rate",
    resumed(lambda model: [v.assign(v * 1e38) for v in model.trainable_variables]),
)


def monitored(monitor: str, logs: dict[str, float]) -> Arrange:
    """An epoch that ends with these metrics, as Keras passes them to callbacks."""

    def arrange(ground: Ground) -> Act:
        made = create_callbacks(CONFIG, ground.place, monitor=monitor, **QUIET)
        callbacks = keras.callbacks.CallbackList(made, model=build_model(CONFIG))
        callbacks.on_train_begin()

        def act() -> None:
            callbacks.on_epoch_begin(0)
            callbacks.on_epoch_end(0, logs)
            callbacks.on_train_end()

        return act

    return arrange


MONITOR = "monitored metric missing or NaN"
refused(
    MONITOR,
    "missing",
    MonitorError,
    "expected val_accuracy after epoch 1, got loss",
    "BestCheckpoint",
    "pass validation_data",
    monitored("val_accuracy", {"loss": 1.0}),
)
refused(
    MONITOR,
    "of no known kind",
    MonitorError,
    "expected a monitor that ends with",
    "got 'val_profit'",
    "accuracy",
    lambda ground: lambda: create_callbacks(CONFIG, ground.place / "run", monitor="val_profit"),
)
refused(
    MONITOR,
    "NaN",
    NonFiniteError,
    "val_loss is nan",
    "epoch 1",
    "Look for NaN",
    monitored("val_loss", {"loss": 1.0, "val_loss": np.nan}),
)


def forecast(ground: Ground) -> Act:
    ground.patch.setattr("crypto_lstm.profiling.batch_size.memory_budget_mb", lambda: 300.0)
    return lambda: train(HOURLY, CONFIG, ground.place / "run", **QUIET)


MEMORY = "out of memory"
refused(
    MEMORY,
    "by the forecast",
    MemoryBudgetError,
    "may take the process to",
    "batch_size 128 .* but 300 MB may be used",
    "free|smaller|lower|set|nothing",
    forecast,
)
refused(
    MEMORY,
    "in a step",
    OutOfMemoryError,
    "memory ran out in training",
    "batch_size 128",
    "pass batch_size=64, gradient_accumulation_steps=2",
    resumed(raising(tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"))),
)
refused(
    MEMORY,
    "in Python",
    OutOfMemoryError,
    "memory ran out in training",
    "best epoch so far is kept in .*best_model_checkpoint.keras",
    "pass batch_size=",
    resumed(raising(MemoryError())),
)


@survived("SIGKILL at any moment, twice, and inside a save", "at a step, then inside a save: it resumes")
def a_killed_training_resumes(ground: Ground) -> None:  # at random moments, to the bit: tests/training
    state = read_state(ground.world.killed)
    assert state and (state.epoch, state.batch) > (0, 0)
    assert (
        ground.world.run.resumed_at == str(state)
        and ground.world.run.epochs_run == 2
        and ground.world.run.interrupted is None
    )
    assert not list(ground.world.run.output_dir.rglob(".*")), "no temporary files are left"
    assert load_run(ground.world.run.output_dir).metadata["epochs_run"] == 2


@survived("SIGTERM and Ctrl-C", "both end the training after the step, with all files")
def a_signal_ends_the_training_after_the_step_with_all_files(ground: Ground) -> None:
    folder = ground.unfinished()
    run = resumed_in(folder, lambda model: os.kill(os.getpid(), signal.SIGTERM))
    assert run.interrupted == "SIGTERM" and load_run(folder).metadata["interrupted"] == "SIGTERM"
    assert str(read_state(folder)).startswith("epoch 2, step")
    stopper = StopOnSignal()
    with stopper.listening():
        os.kill(os.getpid(), signal.SIGINT)
    assert stopper.signal_name == "SIGINT"


def resumed_in(folder: Path, act: Callable[[keras.Model], object]) -> TrainingRun:
    return train(HOURLY, CONFIG, folder, callbacks=[At(act)], **QUIET)


def full_disk(ground: Ground) -> None:
    """`shutil.disk_usage` reports no free bytes."""
    usage = shutil.disk_usage(ground.place)
    ground.patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))


def full_in_a_state(ground: Ground) -> Act:
    folder = ground.unfinished()
    full_disk(ground)
    return lambda: train(HOURLY, CONFIG, folder, save_every_batches=1, **QUIET)


def full_in_a_save(save: Callable[[Ground], object]) -> Arrange:
    """Every sync fails as on a full disk."""

    def arrange(ground: Ground) -> Act:
        ground.bundle()
        ground.model()

        def no_room(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        ground.patch.setattr(os, "fsync", no_room)
        return lambda: save(ground)

    return arrange


# TensorFlow raises this class, that of exhausted memory, when its writer of logs finds the disk full
NO_ROOM_FOR_LOGS = tf.errors.ResourceExhaustedError(
    None, None, "/logs/train/events.out.tfevents.1.v2; No space left on device"
)
FULL = "disk full in save and in logs"
refused(
    FULL,
    "a state of the training",
    SaveError,
    "the disk is full .*bytes are needed, 0 are free",
    "run/state",
    "make room and save again",
    full_in_a_state,
)
refused(
    FULL,
    "a bundle",
    SaveError,
    "the disk is full .*bytes are needed",
    "/btc'.*the previous content is unchanged",
    "make room and save again",
    full_in_a_save(lambda ground: save_bundle(ground.world.made, ground.place / "btc")),
)
refused(
    FULL,
    "a model",
    ModelFileError,
    "the disk is full .*bytes are needed",
    "model.keras'.*the previous content is unchanged",
    "make room and save again",
    full_in_a_save(lambda ground: save_model(ground.world.made.model, ground.place / "model" / "model.keras")),
)
refused(
    FULL,
    "logs",
    OutputFolderError,
    "the disk is full",
    "run/logs",
    "make room, or train without logs",
    resumed(raising(NO_ROOM_FOR_LOGS)),
)

FOLDER = "folder read-only, missing, a file, too long a name (found before epoch 1)"


def into(make: Callable[[Ground], Path]) -> Arrange:
    def arrange(ground: Ground) -> Act:
        folder = make(ground)
        return lambda: train(HOURLY, CONFIG, folder, callbacks=[At(raising(AssertionError("training began")))], **QUIET)

    return arrange


def read_only(ground: Ground) -> Path:
    """`os.access` reports a read-only folder (for root the system would not)."""
    real = os.access
    ground.patch.setattr(os, "access", lambda path, mode: str(path) != str(ground.place) and real(path, mode))
    return ground.place / "run"


def a_file(ground: Ground) -> Path:
    (ground.place / "run").write_text("mine")
    return ground.place / "run"


def others(ground: Ground) -> Path:
    (ground.place / "run").mkdir()
    (ground.place / "run" / "thesis.txt").write_text("mine")
    return ground.place / "run"


refused(
    FOLDER,
    "read-only",
    OutputFolderError,
    "no folder that may be written to",
    "can't write to '.*run'",
    "choose another",
    into(read_only),
)
refused(
    FOLDER,
    "a file",
    OutputFolderError,
    "the output must be a folder, but",
    "run' is a file",
    "choose another name",
    into(a_file),
)
refused(
    FOLDER,
    "below a file",
    OutputFolderError,
    "no folder that may be written to",
    "run/deep'",
    "choose another",
    into(lambda ground: a_file(ground) / "deep"),
)
refused(
    FOLDER,
    "too long a name",
    OutputFolderError,
    "File name too long",
    "can't write to '.*xxx'",
    "choose another",
    into(lambda ground: ground.place / ("x" * 300)),
)
refused(
    FOLDER,
    "no name",
    OutputFolderError,
    "null byte",
    "can't write to '.*'",
    "choose another",
    into(lambda ground: ground.place / "a\0b"),
)
refused(
    FOLDER,
    "of other things",
    OutputFolderError,
    "is not empty: nothing is overwritten",
    "the folder '.*run'",
    "choose another or move it",
    into(others),
)


def other_things_in_the_command(ground: Ground) -> list[str]:
    others(ground)
    return command(as_feather(HOURLY))(ground)  # type: ignore[return-value]


refused(
    FOLDER,
    "of other things, in the command",
    OutputFolderError,
    "is not empty: nothing is overwritten",
    "the folder '.*run'",
    "choose another or move it",
    other_things_in_the_command,
)


@survived(FOLDER, "missing: it is made")
def a_missing_folder_is_made(ground: Ground) -> None:
    with lock_run_folder(ground.place / "a" / "b"):
        assert (ground.place / "a" / "b").is_dir()
    assert not list(ground.place.iterdir()), "it is removed if nothing was written"


def held(ground: Ground) -> Act:
    folder = ground.unfinished()

    def act() -> None:
        with lock_run_folder(folder):
            train(HOURLY, CONFIG, folder, **QUIET)

    return act


refused(
    "two trainers on one folder",
    "",
    LockedError,
    f"process {os.getpid()} on .* has been writing it since 20",
    "/run'",
    "wait until it has ended, or write elsewhere",
    held,
)

OTHER = "resume with another configuration"
refused(
    OTHER,
    "unfinished",
    ResumeMismatchError,
    "config.seed is 42 there and 7 here",
    "the folder '.*run' holds another run",
    "use the settings, candles and versions of that run",
    lambda ground: partial(train, HOURLY, CONFIG.replace(seed=7), ground.unfinished(), **QUIET),
)
refused(
    OTHER,
    "finished",
    ResumeMismatchError,
    "config.epochs is 2 there and 3 here",
    "the folder '.*run' holds another run",
    "choose another folder",
    lambda ground: partial(
        train,
        HOURLY,
        CONFIG.replace(epochs=3),
        shutil.copytree(ground.world.run.output_dir, ground.place / "run"),
        **QUIET,
    ),
)
refused(
    OTHER,
    "other candles",
    ResumeMismatchError,
    "data.candles is 3000 there and 2999 here",
    "the folder '.*run' holds another run",
    "use the settings, candles and versions of that run",
    lambda ground: partial(train, HOURLY[:-1], CONFIG, ground.unfinished(), **QUIET),
)


def other_settings_in_the_command(ground: Ground) -> list[str]:
    ground.unfinished()
    return [*command(as_feather(HOURLY))(ground), "dropout_rate=0.5"]  # type: ignore[misc]


refused(
    OTHER,
    "in the command",
    ResumeMismatchError,
    "config.dropout_rate is 0.0 there and 0.5 here",
    "the folder '.*run' holds another run",
    "choose another folder",
    other_settings_in_the_command,
)


@survived("GPU absent or failing", "absent: the processor trains, and the reason is stored")
def without_a_gpu_the_processor_trains_and_the_reason_is_stored(ground: Ground) -> None:
    status = setup_gpu_memory(use_gpu=False)
    assert not status and "GPUs are not used" in status.reason
    assert ground.world.run.gpu.reason and ground.world.run.as_dict()["device"]["reason"]


@survived("GPU absent or failing", "failing: it is hidden, and the reason is stored")
def a_failing_gpu_is_hidden_and_the_reason_is_stored(ground: Ground) -> None:
    hidden: list[Any] = []
    ground.patch.setattr(tf.config, "list_physical_devices", lambda kind=None: ["GPU:0"] if kind == "GPU" else [])
    ground.patch.setattr("crypto_lstm.gpu._list_visible_gpus", lambda: ["GPU:0"])
    ground.patch.setattr("crypto_lstm.gpu._set_memory_growth", lambda gpus, growth: (True, ""))
    ground.patch.setattr(tf.config, "set_visible_devices", lambda devices, kind=None: hidden.append((devices, kind)))

    def broken(*words: Any, **named: Any) -> None:
        raise tf.errors.InternalError(None, None, "cuda is out of order")

    ground.patch.setattr(tf, "matmul", broken)
    ground.patch.setattr(tf.linalg, "matmul", broken)
    status = setup_gpu_memory()
    assert not status and status.reason and "GPU" in status.reason


# ---------------------------------------------------------------- files


def loads(make: Callable[[Ground], Path], **options: Any) -> Arrange:
    """`load_model` of the path that `make` returns."""

    def arrange(ground: Ground) -> Act:
        path = make(ground)
        return lambda: load_model(path, **options)

    return arrange


def opens(make: Callable[[Ground], Path], **options: Any) -> Arrange:
    """`load_bundle` of the path that `make` returns."""

    def arrange(ground: Ground) -> Act:
        path = make(ground)
        return lambda: load_bundle(path, **options)

    return arrange


def spoilt(file: str, change: Callable[[bytes], bytes] | None) -> Callable[[Ground], Path]:
    """A bundle with one file changed, or without it."""

    def make(ground: Ground) -> Path:
        path = ground.bundle() / file
        path.write_bytes(change(path.read_bytes())) if change else path.unlink()
        return path.parent

    return make


def spoilt_model(change: Callable[[bytes], bytes], format: str = "keras") -> Callable[[Ground], Path]:
    def make(ground: Ground) -> Path:
        path = ground.model(format)
        path.write_bytes(change(path.read_bytes()))
        return path

    return make


ANOTHER_COPY = "use another copy, or save it again"
MISSING = "missing, empty, no manifest"
PARTS = ("config.json", "golden.npz", "scaler.json", "weights.npz")
refused(
    MISSING,
    "no bundle",
    MissingFolderError,
    "there is no such folder",
    "/nothing'",
    "check|give",
    opens(lambda ground: ground.place / "nothing"),
)
refused(
    MISSING,
    "an empty folder for a bundle",
    IntegrityError,
    "there is no manifest",
    "empty",
    "give a folder or file that this package saved",
    opens(lambda ground: (ground.place / "empty").mkdir() or ground.place / "empty"),
)
refused(
    MISSING,
    "a bundle without manifest",
    IntegrityError,
    "there is no manifest",
    "btc/manifest.json",
    "give a folder or file that this package saved",
    opens(spoilt(MANIFEST, None)),
)
for part in PARTS:
    refused(
        MISSING,
        f"a bundle without {part}",
        IntegrityError,
        f"{part} is missing",
        "/btc'",
        ANOTHER_COPY,
        opens(spoilt(part, None)),
    )
    refused(
        MISSING,
        f"a bundle with an empty {part}",
        IntegrityError,
        f"{part}: expected .* bytes, got 0",
        "/btc'",
        ANOTHER_COPY,
        opens(spoilt(part, lambda data: b"")),
    )
refused(
    MISSING,
    "no model",
    ModelFileError,
    "there is no such file or folder",
    "/nothing'",
    "check the path",
    loads(lambda ground: ground.place / "nothing"),
)
refused(
    MISSING,
    "an empty model",
    ModelIntegrityError,
    "expected .* bytes .*got 0",
    "model.keras'",
    ANOTHER_COPY,
    loads(spoilt_model(lambda data: b"")),
)
refused(
    MISSING,
    "an empty model from elsewhere",
    ModelIntegrityError,
    "is empty",
    "foreign.keras'",
    "take another copy|save the model again",
    loads(lambda ground: ground.foreign(b"")),
)
refused(
    MISSING,
    "no run",
    ModelFileError,
    "no finished run, no such folder",
    "/nothing'",
    "use the folder that crypto-lstm train wrote",
    lambda ground: lambda: load_run(ground.place / "nothing"),
)
refused(
    MISSING,
    "no run, in the command",
    ModelFileError,
    "no finished run, no such folder",
    "/nothing'",
    "use the folder that crypto-lstm train wrote",
    lambda ground: ["predict", "--model", str(ground.place / "nothing"), "--candles", "x.csv", "--json"],
)


@survived(MISSING, "a model without manifest: it loads, and lists what was not checked")
def a_model_without_manifest_loads_and_lists_what_was_not_checked(ground: Ground) -> None:
    path = ground.model()
    manifest_path(path).unlink()
    (path.parent / "model_metadata.json").unlink()
    assert not load_model(path).load_report.verified and load_model(path).load_report.unchecked


for part in (*PARTS, MANIFEST):
    cause = "(expected .* bytes, got|not valid JSON|its seal does not fit)"
    for share in (0.01, 0.5, 0.99):
        refused(
            "truncated anywhere",
            f"{part} of a bundle at {share:.0%}",
            IntegrityError,
            cause,
            f"btc.*{'' if part == MANIFEST else part}",
            ANOTHER_COPY,
            opens(spoilt(part, lambda data, share=share: data[: int(share * len(data))])),
        )
for format in ("keras", "h5"):
    for share in (0.01, 0.5, 0.99):
        refused(
            "truncated anywhere",
            f"a .{format} at {share:.0%}",
            ModelIntegrityError,
            "expected .* bytes .*got",
            f"model.{format}'",
            ANOTHER_COPY,
            loads(spoilt_model(lambda data, share=share: data[: int(share * len(data))], format)),
        )


@survived("any bit flipped in any file", "of a bundle and of a model")
def a_bundle_or_model_with_a_flipped_bit_is_refused(
    ground: Ground,
) -> None:  # more of them: tests/storage, tests/saving, tests/inference
    chance, tried = np.random.default_rng(20260101), 0
    bundle, model = ground.bundle(), ground.model()
    files = [(path, load_bundle, bundle, IntegrityError) for path in sorted(bundle.iterdir())]
    files += [(path, load_model, model, ModelIntegrityError) for path in (model, manifest_path(model))]
    for path, load, place, error in files:
        whole = path.read_bytes()
        for bit in chance.integers(0, 8 * len(whole), 12):
            spoilt = bytearray(whole)
            spoilt[bit // 8] ^= 1 << bit % 8
            path.write_bytes(spoilt)
            before = digest(ground.place)
            with pytest.raises(error) as caught:
                load(place)
            assert type(caught.value) is error
            assert str(place) in str(caught.value) and digest(ground.place) == before
            tried += 1
        path.write_bytes(whole)
    assert tried == 12 * 7 and load_bundle(bundle) and load_model(model)


MIXED_UP = "weights of one save with the scaler of another"


def other_scaler(ground: Ground) -> bytes:
    scaler = ground.world.bundle.scaler.as_dict()
    return json.dumps({**scaler, "center": [0.5, *scaler["center"][1:]]}).encode()


def with_another_scaler(ground: Ground) -> Path:
    (ground.bundle() / "scaler.json").write_bytes(other_scaler(ground))
    return ground.place / "btc"


refused(
    MIXED_UP,
    "a bundle",
    IntegrityError,
    "scaler.json: (the sha256 differs|expected|.*differ)",
    "/btc'",
    ANOTHER_COPY,
    opens(with_another_scaler),
)
refused(
    MIXED_UP,
    "a bundle under a manifest that fits its files",
    BundleError,
    "scaler: the files say",
    "/btc'",
    ANOTHER_COPY,
    opens(lambda ground: ground.forged("scaler.json", other_scaler(ground))),
)


def run_with_another_scaler(ground: Ground) -> Act:
    folder = shutil.copytree(ground.world.run.output_dir, ground.place / "run")
    (folder / "bundle" / "scaler.json").write_bytes(other_scaler(ground))
    return lambda: load_run(folder)


refused(
    MIXED_UP,
    "a run",
    IntegrityError,
    "it is not as it was saved: scaler.json: expected",
    "run/bundle'",
    ANOTHER_COPY,
    run_with_another_scaler,
)

REORDERED = "features or classes reordered in metadata"
for key, names in (("features", CONFIG.features), ("classes", CLASSES)):
    refused(
        REORDERED,
        f"{key} of a bundle",
        BundleError,
        f"{key}: the files say .*, the manifest",
        "/btc'",
        ANOTHER_COPY,
        opens(
            lambda ground, key=key, names=names: forged(
                ground.world.bundle_path, ground.place, "", facts={key: list(names[::-1])}
            )
        ),
    )

    def manifest_reordered(ground: Ground, key: str = key, names: tuple[str, ...] = names) -> Path:
        path = ground.model()
        (path.parent / "model_metadata.json").unlink()
        document = json.loads(manifest_path(path).read_text())
        document["versions"][0]["facts"][key] = list(names[::-1])
        manifest_path(path).write_bytes(
            encode_manifest({name: value for name, value in document.items() if name != "seal"})
        )
        return path

    refused(
        REORDERED,
        f"{key} of a model",
        ModelMismatchError,
        f"{key}: expected \\['.*got \\['",
        "model '.*model.keras' differs",
        "give the settings that it was made with, or another model",
        loads(manifest_reordered, config=CONFIG),
    )
refused(
    REORDERED,
    "features in a bundle's settings",
    BundleError,
    "features: expected .*got .*it is the scaler of another model",
    "btc/scaler.json'",
    ANOTHER_COPY,
    opens(
        lambda ground: ground.forged(
            "config.json", config_with(features=list(CONFIG.features[::-1]))(ground.world.bundle)
        )
    ),
)


def weights(name: str) -> Arrange:
    """A bundle with these weights, under a manifest that fits."""
    return opens(lambda ground: ground.forged("weights.npz", WEIGHTS[name][0](weights_of(ground.world.bundle))))


def numbers(name: str, format: str) -> Arrange:
    """A model from elsewhere with this change of one weight."""

    def make(ground: Ground) -> Path:
        data, change = (
            ground.world.models[format].read_bytes(),
            hdf5_attacks(WEIGHT[format], ground.place / "outside")[name],
        )
        if format == "h5":
            return ground.foreign(_hdf5(data, change), format)
        members = _members(data)
        return ground.foreign(
            _archive({**members, "model.weights.h5": _hdf5(members["model.weights.h5"], change)}), format
        )

    return loads(make)


AGAIN = "take another copy of the file, or save the model again"
refused(
    "NaN in weights",
    "of a bundle",
    BundleError,
    f"{FIRST}: expected finite numbers, got 256 that are not",
    "btc/weights.npz'",
    ANOTHER_COPY,
    weights("NaN"),
)
for format in ("keras", "h5"):
    for name in ("NaN", "infinity"):
        refused(
            "NaN in weights",
            f"{name} in a .{format}",
            ModelIntegrityError,
            "expected finite weights, got 1 that are not",
            f"foreign.{format}'",
            "take a model from before",
            numbers(name, format),
        )


def poisoned(ground: Ground) -> Act:
    model = build_model(CONFIG)
    model.layers[1].weights[0].assign(np.full((8, 32), np.inf, "f4"))
    path = ground.model()
    return lambda: save_model(model, path)


refused(
    "NaN in weights",
    "of a model that shall be saved",
    ModelMismatchError,
    "expected finite weights, got 256 that are not",
    "lstm_layer_1_8units",
    "give .*another model",
    poisoned,
)

TENSORS = "tensors missing, extra, swapped, of another dtype"
for name, cause in (
    ("missing", "expected the arrays"),
    ("extra", "expected the arrays"),
    ("twice", "expected the arrays"),
    ("transposed", r"expected float32 \(8, 32\), got float32 \(32, 8\)"),
    ("float64", f"{FIRST}: expected"),
    ("float16", "got float16"),
    ("big-endian", "got >f4"),
    ("pickle", "is not a readable .npz file"),
):
    refused(TENSORS, f"{name}, in a bundle", BundleError, cause, "btc/weights.npz'", ANOTHER_COPY, weights(name))
refused(
    TENSORS,
    "swapped, in a bundle",
    BundleError,
    "golden windows: expected the answers of the saved network",
    "/btc'",
    "save it again",
    weights("swapped"),
)
for name, cause in (
    ("missing", "missing .*, not expected"),
    ("extra", "missing none, not expected .*extra"),
    ("float64", "expected float32 .*, got float64"),
    ("another shape", r"expected float32 \(8, 32\), got float32 \(32, 8\)"),
    ("texts", "expected plain numbers, got object"),
):
    for format in ("keras", "h5"):
        refused(
            TENSORS,
            f"{name}, in a .{format}",
            ModelIntegrityError,
            cause,
            f"foreign.{format}'",
            AGAIN,
            numbers(name, format),
        )


def swapped(ground: Ground) -> Path:
    """Reverse the rows of a weight in a saved model, which keeps its shape: the hash differs."""
    path = ground.model("h5")
    path.write_bytes(
        _hdf5(
            path.read_bytes(), lambda file: file[WEIGHT["h5"]].write_direct(np.asarray(file[WEIGHT["h5"]])[::-1].copy())
        )
    )
    return path


refused(
    TENSORS,
    "swapped, in a saved model",
    ModelIntegrityError,
    "expected .* bytes with sha256 .*, got",
    "model.h5'",
    ANOTHER_COPY,
    loads(swapped),
)

CODE = "Lambda, TFSMLayer, custom and unknown classes"
for name in (
    "Lambda",
    "TFSMLayer",
    "a class of the system",
    "a registered class",
    "a module of Keras itself",
    "code as activation",
    "a network inside",
):
    refused(
        CODE,
        name,
        UnsafeModelError,
        "expected InputLayer first, then LSTM, Dense, Dropout; got|is not allowed",
        "foreign.keras'.*layer [13]",
        "ask for the weights, rebuild the network with build_model",
        loads(lambda ground, name=name: ground.document(name)),
    )


def another_kind(ground: Ground) -> Act:
    network = keras.Sequential([keras.Input((12, 8)), keras.layers.GRU(4), keras.layers.Dense(3, "softmax")])
    path = ground.model()
    return lambda: save_model(network, path)


refused(
    CODE,
    "a network that could not be loaded is not saved",
    UnsafeModelError,
    "could not read it back: layer 1: .*got 'GRU'",
    "model.keras'",
    "use model.save of Keras",
    another_kind,
)

JSON = "duplicate JSON keys, deep nesting, huge integers"
for name, cause in (
    ("equal keys", "the key 'units' occurs twice"),
    ("deep", "expected JSON of at most 32 levels, got more"),
    ("a number of a million digits", "needs more than 64 bits"),
):

    def described(ground: Ground, name: str = name) -> Path:
        members = _members(ground.world.models["keras"].read_bytes())
        return ground.foreign(
            _archive({**members, "config.json": _text_attacks(members["config.json"].decode())[name].encode()})
        )

    refused(JSON, f"{name}, in a model", ModelIntegrityError, cause, "foreign.keras'", AGAIN, loads(described))
for name, text, cause in (
    ("equal keys", '{"seed": 1, "seed": 2}', "the key 'seed' occurs twice"),
    ("deep", '{"a":' * 9999, "at most 32 levels, got more"),
    ("a huge number", '{"seed": ' + "9" * 5000 + "}", "needs more than 64 bits"),
    ("NaN", '{"seed": NaN}', "expected finite numbers"),
):
    refused(
        JSON,
        f"{name}, in a bundle",
        IntegrityError,
        cause,
        "btc/config.json'",
        ANOTHER_COPY,
        opens(lambda ground, text=text: ground.forged("config.json", text.encode())),
    )

BOMBS = "zip and HDF5 bombs, units = 1e9"
refused(
    BOMBS,
    "zip, a bundle",
    BundleError,
    "not compressed, got 12,000,",
    "btc/weights.npz'",
    ANOTHER_COPY,
    weights("a bomb"),
)
for name in ("bomb", "bomb, lzma", "packed"):
    refused(
        BOMBS,
        f"zip, a model: {name}",
        UnsafeModelError,
        "expected a member that is not compressed",
        "foreign.keras'",
        "ask for a file that model.save of Keras wrote",
        loads(
            lambda ground, name=name: ground.foreign(
                archive_attacks(ground.world.models["keras"].read_bytes(), ground.place / "canary")[name]
            )
        ),
    )
for name in ("packed zeros", "a trillion numbers that are not there"):
    refused(
        BOMBS,
        f"HDF5: {name}",
        ModelIntegrityError,
        "expected .* bytes in one piece, not compressed",
        "foreign.h5'",
        AGAIN,
        numbers(name, "h5"),
    )
refused(
    BOMBS,
    "units of a model",
    UnsafeModelError,
    "units 1000000000 is not allowed",
    "foreign.keras'.*layer 1",
    "ask for the weights",
    loads(lambda ground: ground.document("a billion units")),
)
refused(
    BOMBS,
    "units of a bundle",
    BundleError,
    "lstm_units must be .* from 1 to 65536, got \\[1000000000\\]",
    "/btc'",
    "use the version that wrote it",
    opens(lambda ground: ground.forged("config.json", config_with(lstm_units=[10**9])(ground.world.bundle))),
)
refused(
    BOMBS,
    "weights of a bundle",
    BundleError,
    "at most 50,000,000 weights",
    "/btc'",
    "use the version that wrote it",
    opens(lambda ground: ground.forged("config.json", config_with(lstm_units=[65_536] * 3)(ground.world.bundle))),
)

LINKS = "links to other files"


def linked(kind: str) -> Callable[[Ground], Path]:
    def make(ground: Ground) -> Path:
        path = ground.bundle() / "scaler.json"
        path.rename(ground.place / "elsewhere")
        path.symlink_to(ground.place / "elsewhere") if kind == "symbolic" else path.hardlink_to(
            ground.place / "elsewhere"
        )
        return path.parent

    return make


def linked_model(kind: str) -> Callable[[Ground], Path]:
    def make(ground: Ground) -> Path:
        path = ground.model()
        path.rename(ground.place / "elsewhere")
        path.symlink_to(ground.place / "elsewhere") if kind == "symbolic" else path.hardlink_to(
            ground.place / "elsewhere"
        )
        return path

    return make


refused(
    LINKS,
    "symbolic, in a bundle",
    IntegrityError,
    "expected files and folders, got a link",
    "btc",
    ANOTHER_COPY,
    opens(linked("symbolic")),
)
refused(
    LINKS,
    "hard, in a bundle",
    IntegrityError,
    "has 2 names \\(hard links\\)",
    "btc.*scaler.json",
    "make a copy|" + ANOTHER_COPY,
    opens(linked("hard")),
)
refused(
    LINKS,
    "symbolic, a model",
    ModelIntegrityError,
    "expected a file, got a link",
    "model.keras'",
    ANOTHER_COPY,
    loads(linked_model("symbolic")),
)
refused(
    LINKS,
    "hard, a model",
    ModelIntegrityError,
    "has 2 names \\(hard links\\)",
    "model.keras'",
    "make a copy",
    loads(linked_model("hard")),
)
for name in ("soft link", "link to another file", "data of another file", "virtual"):
    refused(
        LINKS,
        f"HDF5: {name}",
        ModelIntegrityError,
        "is a link to another place or file|not compressed, in this file",
        "foreign.h5'",
        AGAIN,
        numbers(name, "h5"),
    )
refused(
    LINKS,
    "in an archive",
    UnsafeModelError,
    "expected a file, got a link",
    "foreign.keras'",
    "ask for a file that model.save",
    loads(
        lambda ground: ground.foreign(
            archive_attacks(ground.world.models["keras"].read_bytes(), ground.place / "canary")["link"]
        )
    ),
)


@survived("replaced between check and read", "a bundle: the bytes that were hashed are used")
def a_bundle_is_built_from_the_bytes_that_were_hashed(ground: Ground) -> None:
    from crypto_lstm.inference import bundle

    path, real = ground.bundle(), bundle._parse_bundle

    def late(*words: Any) -> Any:
        for part in PARTS:
            (path / part).write_bytes(b"another")
        return real(*words)

    ground.patch.setattr(bundle, "_parse_bundle", late)
    assert np.array_equal(load_bundle(path).model.get_weights()[0], ground.world.bundle.model.get_weights()[0])


@survived("replaced between check and read", "a model: the bytes that were hashed are used")
def a_model_is_built_from_the_bytes_that_were_hashed(ground: Ground) -> None:
    from crypto_lstm import persistence

    path, real = ground.model(), persistence.parse_model_file

    def late(*words: Any, **named: Any) -> Any:
        path.write_bytes(b"another")
        return real(*words, **named)

    ground.patch.setattr(persistence, "parse_model_file", late)
    assert np.array_equal(load_model(path).get_weights()[0], ground.world.made.model.get_weights()[0])


for schema in (0, 2):

    def of_schema(path: Path, schema: int = schema) -> None:
        document = json.loads(path.read_text())
        path.write_bytes(
            encode_manifest({**{key: value for key, value in document.items() if key != "seal"}, "schema": schema})
        )

    refused(
        "older or newer schema",
        f"{schema}, a bundle",
        SchemaVersionError,
        f"expected schema 1, got {schema}",
        "btc/manifest.json",
        "use the version that wrote it",
        opens(lambda ground, change=of_schema: change(ground.bundle() / MANIFEST) or ground.place / "btc"),
    )
    refused(
        "older or newer schema",
        f"{schema}, a model",
        ModelIntegrityError,
        f"expected schema 1, got {schema}",
        "model.keras'",
        "use the version that wrote it",
        loads(lambda ground, change=of_schema: (path := ground.model()) and (change(manifest_path(path)) or path)),
    )


def old_keras(act: Callable[[Path, Ground], object]) -> Arrange:
    def arrange(ground: Ground) -> Act:
        path = ground.model()
        ground.patch.setattr(keras, "__version__", "3.15.0")
        return lambda: act(path, ground)

    return arrange


OLD = (KerasVersionError, "expected Keras 3.15.1 or newer", "got 3.15.0", "pip install 'keras>=3.15.1'")
refused("Keras too old", "to load", *OLD, old_keras(lambda path, ground: load_model(path)))
refused("Keras too old", "to save", *OLD, old_keras(lambda path, ground: save_model(ground.world.made.model, path)))

# ---------------------------------------------------------------- decisions


def decided(frame: Any = HOURLY, now: Any = CLOSE, answer: Any = None) -> Arrange:
    """`decide` on these candles, with a network that returns this answer."""

    def arrange(ground: Ground) -> Act:
        if answer is not None:
            said = np.float32(answer)
            replace_answers(ground.patch, ground.world.bundle.model, lambda windows: np.tile(said, (len(windows), 1)))
        return lambda: ground.world.bundle.decide(frame, now=now)

    return arrange


LIVE = "NaN in the live window"
for value in (np.nan, np.inf):
    refused(
        LIVE,
        f"{value} in the newest candle",
        Decision,
        f"finite number.*got {value}",
        "row 2999: volume",
        "fix|drop",
        decided(changed(2999, volume=value)),
    )
refused(
    LIVE,
    "in windows that were made elsewhere",
    InvalidPredictionError,
    "expected finite windows",
    "got 1 values that are not",
    "fix|drop|look",
    lambda ground: (
        lambda: ground.world.bundle.probabilities(np.where(np.arange(96).reshape(1, 12, 8) == 5, np.nan, 0.0))
    ),
)

ANSWERS = "probabilities that are not finite or don't sum to 1"
for name, answer in {
    "NaN": [np.nan] * 3,
    "one NaN": [np.nan, 0.5, 0.5],
    "infinite": [np.inf, 0, 0],
    "sum 1.6": [0.5, 0.6, 0.5],
    "negative": [-0.5, 1.0, 0.5],
    "sum 0": [0, 0, 0],
}.items():
    refused(
        ANSWERS,
        name,
        Decision,
        "1 of 1 answers are not probabilities",
        r"the first is \[",
        "load the bundle again|train",
        decided(answer=answer),
    )
refused(
    ANSWERS,
    "in predictions of a run",
    InvalidPredictionError,
    "answers are not probabilities",
    r"the first is \[nan",
    "load the bundle again, or train",
    lambda ground: lambda: predict_probabilities(diverged(), ground.world.made.data.test),
)
refused(
    ANSWERS,
    "to evaluate",
    EvaluationError,
    "must be finite and sum to 1",
    "in row 0",
    "diverged.*(train|load)",
    lambda ground: (
        lambda: evaluate(
            "test",
            np.full((3, 3), 0.5),
            pd.DataFrame({"label": [0, 1, 2], "long_return": 0.0, "short_return": 0.0}),
            [1 / 3] * 3,
            [1 / 3] * 3,
            CONFIG,
        )
    ),
)


def diverged() -> keras.Model:
    model = build_model(CONFIG)
    model.layers[-1].bias.assign([np.nan] * 3)
    return model


WINDOW = "a stale or incomplete window"
NEWEST = "the newest candle \\(20"
refused(
    WINDOW,
    "stale",
    Decision,
    "is too old, 1.\\d candles since its close and 1 are allowed",
    NEWEST,
    "newer candles",
    decided(now=CLOSE + pd.Timedelta("70min")),
)
refused(
    WINDOW,
    "not closed yet",
    Decision,
    "is not closed yet",
    NEWEST,
    "leave it out",
    decided(now=CLOSE - pd.Timedelta("3s")),
)
refused(
    WINDOW,
    "a hole in it",
    Decision,
    "does not complete a window",
    NEWEST,
    "give|fetch",
    decided(HOURLY.drop(index=range(2985, 2995)).reset_index(drop=True)),
)
refused(
    WINDOW,
    "too few candles",
    Decision,
    "does not complete a window",
    "631 more candles",
    "give a longer history",
    decided(HOURLY[-100:].reset_index(drop=True)),
)
refused(WINDOW, "reversed", Decision, "dates must rise", "row 1", "sort them", decided(BACKWARDS))
refused(
    WINDOW,
    "no clock",
    Decision,
    "expected a date with a time zone for now",
    "got '2024-03-07'",
    "add|give|UTC",
    decided(now="2024-03-07"),
)

refused(
    "a model past its expiry",
    "",
    Decision,
    "the model expired",
    "at 2030-01-01",
    "train a new one",
    decided(now=EXPIRES + pd.Timedelta("1s")),
)


@survived("a batch of 1 against a batch of n", "equal answers")
def an_answer_does_not_depend_on_the_other_windows_of_its_batch(ground: Ground) -> None:
    test = ground.world.made.data.test
    windows = test.gather(test.rows[:21])
    together = ground.world.bundle.probabilities(windows)
    for number in range(0, 21, 4):
        assert np.array_equal(ground.world.bundle.probabilities(windows[number : number + 1])[0], together[number])


# ---------------------------------------------------------------- all of them


def test_every_fault_of_the_list_has_a_case():
    assert len(ITEMS) == 52 == len(set(ITEMS))
    assert [item for item in ITEMS if not any(name == item or name.startswith(item + ": ") for name in CASES)] == []


@pytest.fixture
def ground(world, tmp_path, monkeypatch) -> Iterator[Ground]:
    policy = keras.config.dtype_policy()
    yield Ground(tmp_path, world, monkeypatch)
    keras.config.set_dtype_policy(policy)


@pytest.mark.parametrize("name", CASES)
def test_fault_is_refused_or_survived(name, ground, capsys):
    case = CASES[name]
    act = case.arrange(ground)
    if case.error is None:
        act()
        return
    before = digest(ground.place)
    message = catch_message(act, case.error, capsys)
    after = digest(ground.place)
    after.pop(f"run/{STATE}/{STOP_NOTE}", None)  # where the training stopped, for the next run
    assert after == before, "something was written"
    for part, pattern in zip(("cause", "place", "remedy"), case.patterns, strict=True):
        is_found = re.search(pattern, message, re.DOTALL) is not None
        assert is_found, f"{part}: expected {pattern!r} in {message!r}"


def catch_message(act: Act | list[str], error: type[Any], capsys: pytest.CaptureFixture[str]) -> str:
    """The message of an error of exactly this class, of the command, or of a decision not to trade."""
    if isinstance(act, list):
        assert main(act) == 1
        out, err = capsys.readouterr()
        found = json.loads(out)["error"]
        assert found["type"] == error.__name__ and found["message"] in err and "Traceback" not in err
        return found["message"]
    if error is Decision:
        decision = act()
        assert isinstance(decision, Decision) and decision.action == NO_TRADE and decision.probabilities is None
        return decision.reason
    with pytest.raises(error) as caught:
        act()
    assert type(caught.value) is error
    return str(caught.value)
