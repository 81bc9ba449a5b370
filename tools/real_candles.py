"""Train on a file of real candles through the command line, load the run in a new process, and check the results.

    real_candles.py FILE [--last N] [--set KEY=VALUE ...]

All files must be written, and all metrics finite. The probabilities of the loaded run for the test part must give the
log-loss that the training reported, and its decisions as many trades.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from crypto_lstm.config import CLASSES, Config
from crypto_lstm.data.candles import read_candles
from crypto_lstm.data.labels import make_labels
from crypto_lstm.evaluation.simulator import simulate

COMMAND = Path(sys.executable).parent / "crypto-lstm"
FILES = {"model", "bundle", "onnx", "checkpoint", "scaler", "config", "metadata", "history", "memory", "logs"}
FILES |= {"record", "report"}
PLOTS = {"price_and_trades", "equity", "reliability", "months"}
PLOTS |= {"training_curves", "confusion_matrix", "memory_history"}


def collect_numbers(value: object) -> list[float]:
    """All numbers in nested lists and dicts."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in collect_numbers(item)]
    return [float(value)] if isinstance(value, (int, float)) else []


def replay_answers(answers: pd.DataFrame, candles: pd.DataFrame, config: Config, span: list[str]) -> dict[str, float]:
    """Log-loss and trades of the answers to the test part, joined with the labels by date."""
    first, last = (pd.Timestamp(date) for date in span)
    labels = make_labels(candles, config).reset_index(names="row")
    part = labels.merge(answers[(answers["date"] >= first) & (answers["date"] <= last)], on="date")
    given = part[["short", "hold", "long"]].to_numpy()[np.arange(len(part)), part["label"]]
    classes = part["decision"].map({name: number for number, name in enumerate(CLASSES)})
    account = simulate(candles, part["row"].to_numpy(), classes.to_numpy(np.int8), config, random_runs=0)
    return {"log_loss": float(-np.log(np.clip(given, 1e-7, 1.0)).mean()), "trades": account.figures["trades"]}


def run_command(*words: str | Path) -> str:
    """Run the command line; its standard output."""
    return subprocess.run([COMMAND, *words], stdout=subprocess.PIPE, check=True, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="candles that `read_candles` reads")
    parser.add_argument("--last", type=int, help="use the last N candles")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the training")
    arguments = parser.parse_args()
    candles = read_candles(arguments.file)
    words = ["--candles", arguments.file, "--json"]
    if arguments.last:
        candles = candles.tail(arguments.last).reset_index(drop=True)
        words += ["--last", str(arguments.last)]
    settings = ["--set", *arguments.set] if arguments.set else []
    with tempfile.TemporaryDirectory() as place:
        run, table = Path(place) / "run", Path(place) / "answers.parquet"
        trained = json.loads(run_command("train", "--output", run, *words, *settings))
        run_command("predict", "--model", run, "--output", table, *words)
        config, answers = Config.load(run / "config.toml"), pd.read_parquet(table)
        written = {name for name, file in trained["files"].items() if Path(file).exists()}
    check_run(trained, written, replay_answers(answers, candles, config, trained["windows"]["spans"]["test"]))
    figures = len(collect_numbers([trained["validation"], trained["test"]]))
    print(f"{arguments.file}: {figures} finite figures, all files, equal answers of the loaded run on the test part")
    print(*trained["judgement"]["verdict"], sep="\n")


def check_run(trained: dict, written: set[str], replayed: dict[str, float]) -> None:
    """All files are there, all figures finite, and the loaded run answers as the training reported."""
    expected, reported = FILES | PLOTS, trained["judgement"]["model"]
    assert written == expected, f"missing files: {expected - written}, unknown files: {written - expected}"
    figures = collect_numbers([trained["validation"], trained["test"]])
    assert all(map(math.isfinite, figures)), "a metric is not finite"
    for name, value in replayed.items():
        trained_value = reported[name]
        assert math.isclose(value, trained_value, rel_tol=1e-4), f"{name}: {trained_value} in training, {value} loaded"


if __name__ == "__main__":
    main()
