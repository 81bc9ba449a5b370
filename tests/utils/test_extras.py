"""Without the packages of an extra, each command and each name of the front door says which extra to install."""

import subprocess
import sys

from support.hidden import HIDE

import crypto_lstm

BOT_NAMES = {"Config", "CryptoLSTMError", "Decision", "LiveRunner", "Predictor", "TradeRule", "__version__"}
BOT_NAMES |= {"export_onnx"}  # its module needs no TensorFlow, and its call does
COMMANDS = [
    "train --candles x --output y",
    "demo --output y",
    "report x",
    "baseline --candles x",
    "walk-forward --candles x --output y",
    "estimate",
    "predict --model x.onnx --candles y",
    "export --model x --output y.onnx",
    "paper --model x --output y --candles z",
    "verify .",
]
RUN_COMMANDS = f"""{HIDE}
from crypto_lstm.commands.main import main
for command in {COMMANDS!r}:
    print(main(command.split()))
"""
USE_NAMES = f"""{HIDE}
import crypto_lstm
for name in crypto_lstm.__all__:
    try:
        getattr(crypto_lstm, name)
        print(name, "-")
    except crypto_lstm.CryptoLSTMError as error:
        print(name, type(error).__name__, error)
"""


def run_python(script, folder):
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done



def test_each_command_names_its_extra_in_one_sentence(tmp_path):
    done = run_python(RUN_COMMANDS, tmp_path)
    lines = done.stderr.splitlines()
    assert done.stdout.split() == ["1"] * len(COMMANDS)
    assert [line.split(":")[0] for line in lines] == [f"crypto-lstm {words.split()[0]}" for words in COMMANDS]
    for words, line in zip(COMMANDS, lines, strict=True):
        extra = "live" if words.startswith("paper") else "train"
        assert line.endswith(f'which is not installed: pip install "crypto_lstm[{extra}]"'), line
    assert not list(tmp_path.iterdir()), "a command without its packages wrote something"


def test_each_name_of_the_front_door_works_or_names_its_extra(tmp_path):
    answers = dict(line.split(" ", 1) for line in run_python(USE_NAMES, tmp_path).stdout.splitlines())
    assert set(answers) == set(crypto_lstm.__all__)
    assert {name for name, answer in answers.items() if answer == "-"} == BOT_NAMES
    for name in set(answers) - BOT_NAMES:
        assert answers[name].startswith(f"MissingExtraError crypto_lstm.{name} needs "), answers[name]
        assert answers[name].endswith('pip install "crypto_lstm[train]"')
