"""`crypto-lstm audit`: a function of the user's own or the pipeline; verdict in the exit code, errors in a sentence."""

import json
import sys

import pytest

from crypto_lstm.commands.main import main
from crypto_lstm.data.synthetic import synthetic_candles

MODULE = """
SPAN = 14
class Indicators:
    @staticmethod
    def mean(candles):
        return candles["close"].rolling(SPAN).mean()
def centred(candles):
    print("computing")
    return candles["close"].rolling(5, center=True).mean()
def broken(candles):
    return candles["rsi"]
"""
SETTINGS = ["timeframe=1h", "sequence_length=12", "future_window=24", "features=close_change,price_to_ma1440"]
SETTINGS += ["long_tp_pct=2", "short_tp_pct=2", "long_sl_pct=2", "short_sl_pct=2", "batch_size=64"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "audited_columns.py").write_text(MODULE)
    (tmp_path / "audited_faulty.py").write_text("1 / 0")
    (tmp_path / "audited_lonely.py").write_text("import no_such_package_anywhere")
    synthetic_candles(1200, seed=3, timeframe="1h").to_csv(tmp_path / "candles.csv", index=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("audited_columns", "audited_faulty", "audited_lonely"):
        sys.modules.pop(name, None)


def test_a_function_that_looks_ahead_fails_the_command(folder, capsys):
    words = ["audit", "--candles", "candles.csv", "--last", "200", "--function", "audited_columns:centred", "--json"]
    assert main(words) == 1
    values = json.loads(capsys.readouterr().out)
    assert (values["ok"], values["columns"][0]["ahead"], values["candles"]) == (False, 2, 200)
    assert main([*words[:-1], "--allow", "2"]) == 0
    assert "looks ahead as allowed" in capsys.readouterr().out


def test_a_causal_function_of_a_class_passes(folder, capsys):
    words = ["--last", "200", "--places", "2", "--function", "audited_columns:Indicators.mean"]
    assert main(["audit", "--candles", "candles.csv", *words]) == 0
    assert "no value in the first 13 candles" in " ".join(capsys.readouterr().out.split())


def test_the_pipeline_is_audited_without_a_function(folder, capsys):
    words = ["audit", "--candles", "candles.csv", "--places", "1", "--json", "--set", *SETTINGS]
    assert main(words) == 0
    values = json.loads(capsys.readouterr().out)
    names = {column["name"] for column in values["columns"]}
    assert {"feature: close_change", "label: label", "purge: train to validation", "stage: scaler"} <= names


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("centred", "must be module:name"),
        ("../x:f", "must be module:name"),
        ("audited_columns:", "must be module:name"),
        ("audited_columns:centered", "did you mean centred?"),
        ("audited_columns:SPAN", "must be a function, got 14"),
        ("audited_nowhere:f", "there is no module 'audited_nowhere'"),
        ("audited_faulty:f", "can't be imported, it raised ZeroDivisionError"),
        ("audited_lonely:f", "No module named 'no_such_package_anywhere'"),
        ("audited_columns:broken", "raised on all 100 candles: KeyError"),
    ],
)
def test_a_word_that_names_no_function_is_explained(function, words, folder, capsys):
    assert main(["audit", "--candles", "candles.csv", "--last", "100", "--function", function]) == 1
    assert words in " ".join(capsys.readouterr().err.split())


def test_features_are_listed_with_and_without_candles(folder, capsys):
    words = ["features", "--set", "timeframe=1h", "features=close_change, rsi_14 = rsi(close, 14), one = close / close"]
    assert main(words) == 0
    assert "rsi(close, 14)" in capsys.readouterr().out
    assert main([*words, "--candles", "candles.csv", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert [feature["name"] for feature in values["features"]] == ["close_change", "rsi_14", "one"]
    assert values["candles"] == 1200 and "constant" in values["warnings"][0]


def test_columns_of_the_user_reach_features_and_functions(folder, capsys):
    candles = synthetic_candles(300, seed=3, timeframe="1h")
    candles["funding"] = candles["volume"].shift(-3).fillna(0.0)
    candles.to_csv(folder / "own.csv", index=False)
    (folder / "audited_columns.py").write_text("def next(candles):\n    return candles['funding'].shift(-2)\n")
    words = ["--candles", "own.csv", "--json"]
    assert main(["audit", *words, "--keep", "funding", "--function", "audited_columns:next"]) == 1
    assert json.loads(capsys.readouterr().out)["columns"][0]["ahead"] == 2
    assert main(["features", *words, "--set", "timeframe=1h", "features=f = funding"]) == 0
    assert json.loads(capsys.readouterr().out)["features"][0]["missing_share"] == 0
    assert main(["features", *words[:2], "--set", "timeframe=1h", "features=f = fundin"]) == 1
    assert "funding" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--allow", "-1"], ["--allow", "x"], ["--places", "0"]])
def test_a_bad_option_is_refused(option, folder):
    with pytest.raises(SystemExit) as stop:
        main(["audit", "--candles", "candles.csv", *option])
    assert stop.value.code == 2
