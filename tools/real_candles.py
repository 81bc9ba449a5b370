"""Train on a file of real candles through the command line, load the run in a new process, and check what came out.

real_candles.py FILE [--last N] [--set KEY=VALUE ...]

All files must be there, all metrics finite, and the decisions of the loaded run for the test part must give
the very confusion matrix that training reported.
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

from crypto_lstm.data.candles import read_candles
from crypto_lstm.config import CLASSES, Config
from crypto_lstm.data.labels import make_labels

COMMAND = Path(sys.executable).parent / "crypto-lstm"
FILES = {"model", "bundle", "onnx", "checkpoint", "scaler", "config", "metadata", "history", "memory", "logs"}
PLOTS = {"training_curves", "memory_history", "confusion_matrix"}


def numbers(value: object) -> list[float]:
    """All numbers in nested lists and dicts."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [float(value)] if isinstance(value, (int, float)) else []


def confusion(answers: pd.DataFrame, candles: pd.DataFrame, config: Config, span: list[str]) -> list[list[int]]:
    """Truth by decision over the test part, joined by date and counted without the package's own evaluation."""
    part = answers[(answers["date"] >= pd.Timestamp(span[0])) & (answers["date"] <= pd.Timestamp(span[1]))]
    both = part.merge(make_labels(candles, config), on="date")
    table = np.zeros((len(CLASSES), len(CLASSES)), dtype=int)
    for truth, decision in zip(both["label"], both["decision"], strict=True):
        table[truth, CLASSES.index(decision)] += 1
    return table.tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--last", type=int)
    parser.add_argument("--set", nargs="+", default=[])
    arguments = parser.parse_args()
    last = ["--last", str(arguments.last)] if arguments.last else []
    with tempfile.TemporaryDirectory() as place:
        run, table = Path(place) / "run", Path(place) / "answers.parquet"
        words = ["--candles", arguments.file, *last, "--json"]
        settings = ["--set", *arguments.set] if arguments.set else []
        done = subprocess.run([COMMAND, "train", "--output", run, *words, *settings], stdout=subprocess.PIPE, check=True, text=True)
        trained = json.loads(done.stdout)
        subprocess.run([COMMAND, "predict", "--model", run, "--output", table, *words], stdout=subprocess.DEVNULL, check=True)
        config, answers = Config.load(run / "config.toml"), pd.read_parquet(table)
        written = {name for name, file in trained["files"].items() if Path(file).exists()}
        figures = numbers([trained["validation"], trained["test"]])
        candles = read_candles(arguments.file)
        candles = candles.tail(arguments.last).reset_index(drop=True) if arguments.last else candles
        again = confusion(answers, candles, config, trained["windows"]["spans"]["test"])
    assert written == FILES | PLOTS, f"files are missing: {(FILES | PLOTS) - written}, or new: {written - FILES - PLOTS}"
    assert all(map(math.isfinite, figures)), "a metric is not finite"
    assert again == trained["test"]["confusion_matrix"], f"decided {again}, training reported {trained['test']['confusion_matrix']}"
    print(f"{arguments.file}: {len(figures)} finite figures, all files, and the loaded run decides the same on the test part")
    print(f"validation: {trained['validation']['verdict']}\ntest: {trained['test']['verdict']}")


if __name__ == "__main__":
    main()
