"""`crypto-lstm walk-forward`: the forecast first, one JSON object, finished folds that are read, typed errors."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from support import forked

from crypto_lstm.backtest import walk_forward as module
from crypto_lstm.backtest.walk_forward import InterruptedFoldError
from crypto_lstm.commands.main import main
from crypto_lstm.commands.parser import make_parser
from crypto_lstm.data.synthetic import synthetic_candles

SETTINGS = ["timeframe=1h", "sequence_length=12", "future_window=24", "lstm_units=4", "dense_units=", "batch_size=64"]
SETTINGS += ["epochs=1", "long_tp_pct=2", "short_tp_pct=2", "long_sl_pct=2", "short_sl_pct=2"]
SETTINGS += ["features=high_change,low_change,close_change,volume_change"]
WORDS = ["walk-forward", "--candles", "BTCUSDT-1h.feather", "--first-train", "25d", "--test", "192", "--step", "8d"]
ENOUGH = 900

pytestmark = pytest.mark.usefixtures("bare_trainings")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("walk")
    synthetic_candles(ENOUGH, seed=3, timeframe="1h").to_feather(place / "BTCUSDT-1h.feather")
    return place


def run_main(folder, *words: str) -> subprocess.CompletedProcess:
    return forked.run(forked.MAIN, *words, cwd=folder, environment={**os.environ, "COLUMNS": "80"})


def test_a_run_forecasts_shows_progress_and_is_read_by_the_same_command(folder):
    words = [*WORDS, "--output", "walk", "--validation", "0.25", "--set", *SETTINGS]
    done = run_main(folder, *words, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [fold["number"] for fold in result["folds"]] == [0] and result["judgement"]["name"] == "walk-forward"
    assert all((folder / file).is_file() for file in result["files"].values())
    lines = done.stderr.splitlines()
    places = [
        next(i for i, line in enumerate(lines) if line.startswith(word)) for word in ("Forecast:", "fold 0 (1 of")
    ]
    assert places[0] < places[1] and any(line.startswith("epoch 1 of 1") for line in lines)
    again = run_main(folder, *words)
    assert again.returncode == 0 and "Forecast" not in again.stderr
    assert result["text"] in again.stdout and max(map(len, result["text"].splitlines())) <= 80
    command = again.stdout.splitlines()[-1].split()
    assert command[:4] == ["crypto-lstm", "predict", "--model", "walk/fold-00"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--first-train", "60d"], "walk-forward needs at least"),
        (["--embargo", "2 weeks"], "expected a duration such as 30m"),
        (["--validation", "1.5"], "validation must be a duration such as 7d, a number of candles, or a share"),
        (["--last", "500"], "walk-forward needs at least"),
    ],
)
def test_folds_that_do_not_fit_are_one_sentence(words, message, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert main([*WORDS, "--output", "new", *words, "--json", "--set", *SETTINGS]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "FoldError" and message in error["message"] and not (folder / "new").exists()


def test_a_signal_ends_with_the_exit_code_of_signals(folder, capsys, monkeypatch):
    def stop(*_, **__):
        raise InterruptedFoldError(2, "SIGTERM")

    monkeypatch.chdir(folder)
    monkeypatch.setattr(module, "walk_forward", stop)
    assert main([*WORDS, "--output", "new", "--set", *SETTINGS]) == 130
    assert "SIGTERM stopped fold 2: run the same command again to resume" in capsys.readouterr().out


def test_spans_are_durations_candles_or_shares():
    words = [*WORDS, "--output", "new", "--embargo", "3", "--validation"]
    found = [make_parser().parse_args([*words, text]).validation for text in ("0.2", "7d", "96")]
    assert found == [0.2, "7d", 96]
    arguments = make_parser().parse_args([*words, "7d"])
    assert (arguments.first_train, arguments.test, arguments.embargo, arguments.mode) == ("25d", 192, 3, "expanding")
