"""`crypto-lstm freqtrade`: the files that it writes, and what it refuses before a bot starts."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pytest

from crypto_lstm.architecture import build_model
from crypto_lstm.commands import freqtrade
from crypto_lstm.commands.freqtrade import (
    FreqtradeError,
    list_commands,
    list_notes,
    make_overlay,
    require_tradable,
    write_pair,
    write_strategy,
)
from crypto_lstm.commands.jobs import OutputFileError
from crypto_lstm.commands.main import main
from crypto_lstm.config import Config
from crypto_lstm.data.features import make_features
from crypto_lstm.data.scaler import Scaler
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.inference.onnx_file import export_onnx
from crypto_lstm.inference.policy import DecisionPolicy
from crypto_lstm.inference.rule import TradeRule
from crypto_lstm.utils.errors import CryptoLSTMError

CONFIG = Config(pair="BTCUSDT", timeframe="12h", sequence_length=6, lstm_units=(4,), dense_units=(), fee_pct=0.04)
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    place = tmp_path_factory.mktemp("freqtrade")
    candles = synthetic_candles(200, seed=4, timeframe="12h")
    rows = make_features(candles, CONFIG)[list(CONFIG.features)].to_numpy()
    network, scaler = build_model(CONFIG, compile_model=False), Scaler.fit(rows, CONFIG)
    sha256 = export_onnx(network, place / "m.onnx", config=CONFIG, scaler=scaler)
    old = datetime(2025, 1, 1, tzinfo=UTC)
    export_onnx(network, place / "expired.onnx", config=CONFIG, scaler=scaler, expires=old)
    return SimpleNamespace(place=place, path=place / "m.onnx", sha256=sha256)


def make_plan(exported, rule: TradeRule | None = None, **changes):
    options = {"model": exported.path, "output": exported.place / "s", "pair": None, "trading_mode": "futures"}
    options |= {"name": "CryptoLSTM", "exchange": "binance", "any_pair": False, "days": 30, "sha256": None}
    plan = freqtrade._make_plan(SimpleNamespace(**{**options, **changes}))
    return replace(plan, predictor=replace(plan.predictor, policy=DecisionPolicy(rule=rule)))


def run(exported, folder, *words: str) -> int:
    return main(["freqtrade", "--model", str(exported.path), "--output", str(folder), *words])


def test_the_files_hold_model_pin_costs_and_market(exported, tmp_path, capsys):
    assert run(exported, tmp_path / "new" / "strategies", "--trading-mode", "futures", "--json") == 0
    values = json.loads(capsys.readouterr().out)
    text = (tmp_path / "new/strategies/CryptoLSTM.py").read_text()
    overlay = json.loads((tmp_path / "new/strategies/CryptoLSTM.config.json").read_text())
    assert values["sha256"] == exported.sha256 and exported.sha256 in text and repr(str(exported.path)) in text
    assert (overlay["fee"], overlay["trading_mode"], overlay["margin_mode"]) == (0.0004, "futures", "isolated")
    assert overlay["exchange"] == {"name": "binance", "pair_whitelist": ["BTC/USDT:USDT"], "pair_blacklist": []}
    assert "key" not in json.dumps(overlay["exchange"]) and overlay["dry_run"] is True
    assert overlay["timeframe"] == "12h" and overlay["strategy_path"] == str(tmp_path / "new/strategies")
    download, backtest = values["next"]
    assert "download-data" in download and "--timeframes 12h" in download and "backtesting" in backtest


def test_the_strategy_is_readable_python_under_its_licence(exported):
    for rule in (None, TradeRule.from_barriers((1.0, 0.5), (1.0, 0.5), 0.2)):
        text = write_strategy(make_plan(exported, rule))
        lines = text.splitlines()
        assert "For use with freqtrade" in lines[0] and "Apache-2.0" in lines[0] and "GPL-3.0" in lines[0]
        assert len(lines) < 140 and max(map(len, lines)) <= 120 and "@" not in text
        (strategy,) = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
        methods = {node.name: node for node in strategy.body if isinstance(node, ast.FunctionDef)}
        # freqtrade calls the stop after the fill only if this parameter is a positional one
        assert "after_fill" in [argument.arg for argument in methods["custom_stoploss"].args.args]
        assert {"populate_indicators", "populate_entry_trend", "custom_exit", "custom_roi", "leverage"} <= set(methods)


def read_threshold(text: str) -> tuple[list[float], dict[str, object]]:
    (call,) = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and is_parameter(node)]
    return [ast.literal_eval(value) for value in call.args], {k.arg: ast.literal_eval(k.value) for k in call.keywords}


def is_parameter(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id == "DecimalParameter"


def test_hyperopt_searches_the_margins_that_can_trade(exported):
    rule = TradeRule.from_barriers((1.0, 0.5), (0.8, 0.5), 0.2, kind="expected_value")
    (low, high), options = read_threshold(write_strategy(make_plan(exported, replace(rule, margin_pct=0.1))))
    assert (low, options["default"], options["space"]) == (0.0, 0.1, "buy") and high == pytest.approx(0.45)
    tiny = TradeRule.from_barriers((0.15, 0.1), (0.15, 0.1), 0.1)
    (low, high), options = read_threshold(write_strategy(make_plan(exported, tiny)))
    assert low == options["default"] == 0.0 and high == 0.025 and options["decimals"] == 5
    (low, high), options = read_threshold(write_strategy(make_plan(exported)))  # the most likely class
    assert (low, high, options["default"]) == (0.0, 0.95, 0.0)


def test_what_never_trades_is_refused(exported):
    rule = TradeRule.from_barriers((1.0, 0.5), (1.0, 0.5), 0.2)
    require_tradable(make_plan(exported, rule), NOW)
    for wrong in (replace(rule, cost_pct=1.0), replace(rule, margin_pct=0.8), replace(rule, margin_pct=5.0)):
        with pytest.raises(FreqtradeError, match="the model never trades"):
            require_tradable(make_plan(exported, wrong), NOW)
    short_only = TradeRule.from_barriers((0.1, 0.5), (1.0, 0.5), 0.2)
    require_tradable(make_plan(exported, short_only), NOW)
    with pytest.raises(FreqtradeError, match="only goes short.*add --trading-mode futures"):
        require_tradable(make_plan(exported, short_only, trading_mode="spot"), NOW)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--pair", "ETH/USDT"), "expected the pair BTCUSDT"),
        (("--timeframe", "1m"), "expected the timeframe 12h of the model, got '1m'"),
        (("--pair", "BTC/USDT:USDT"), "add --trading-mode futures"),
        (("--pair", "BTC"), "expected a pair such as BTC/USDT"),
        (("--pair", "/USDT"), "expected a pair such as BTC/USDT"),
        (("--name", "my strategy"), "a name of a Python class"),
        (("--name", "class"), "a name of a Python class"),
        (("--name", "../Other"), "a name of a Python class"),
        (("--sha256", "0" * 64), "expected the sha256 0000"),
    ],
)
def test_a_mistake_writes_nothing(words, said, exported, tmp_path, capsys):
    assert run(exported, tmp_path / "strategies", *words) == 1
    assert said in capsys.readouterr().err and not (tmp_path / "strategies").exists()


def test_an_expired_model_is_refused(exported, tmp_path, capsys):
    words = ["--model", str(exported.place / "expired.onnx"), "--output", str(tmp_path / "strategies")]
    assert main(["freqtrade", *words]) == 1
    assert "the model expired at 2025-01-01" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_files_are_overwritten_only_by_force(exported, tmp_path, capsys):
    for name in ("CryptoLSTM.py", "CryptoLSTM.config.json"):
        (tmp_path / name).write_text("mine")
        assert run(exported, tmp_path) == 1
        assert "exists, nothing is overwritten: give another --name, or add --force" in capsys.readouterr().err
        assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
        assert run(exported, tmp_path, "--name", "Other") == 0 and (tmp_path / name).read_text() == "mine"
        for path in tmp_path.iterdir():
            path.unlink()
    (tmp_path / "CryptoLSTM.py").write_text("mine")
    assert run(exported, tmp_path, "--force") == 0
    assert "class CryptoLSTM(IStrategy)" in (tmp_path / "CryptoLSTM.py").read_text()
    (tmp_path / "file").write_text("")
    assert run(exported, tmp_path / "file") == 1
    assert run(exported, tmp_path / "file" / "strategies") == 1


def test_another_pair_is_accepted_if_told(exported, tmp_path):
    assert run(exported, tmp_path, "--pair", "ETH/USDC", "--any-pair") == 0
    overlay = json.loads((tmp_path / "CryptoLSTM.config.json").read_text())
    assert overlay["exchange"]["pair_whitelist"] == ["ETH/USDC"] and overlay["stake_currency"] == "USDC"
    assert "ANY_PAIR = True" in (tmp_path / "CryptoLSTM.py").read_text()


def test_the_days_cover_the_features_and_the_backtest(exported):
    plan = make_plan(exported)
    download, backtest = list_commands(plan, NOW)
    assert "--timerange 20260130-" in backtest and "--days 65" in download  # 30.5 of a test, 33 of features, and rest
    plan = replace(plan, test_start=datetime(2026, 2, 20, 7, tzinfo=UTC))
    download, backtest = list_commands(plan, NOW)
    assert "--timerange 20260221-" in backtest and "--days 43" in download


def test_what_will_not_work_is_said(exported):
    minutes = CONFIG.replace(timeframe="1m", tie="target")
    plan = make_plan(exported)
    plan = replace(plan, predictor=replace(plan.predictor, config=minutes))
    text = " ".join(list_notes(plan))
    assert "43,206 candles, and freqtrade's startup_candle_count allows 2,494" in text
    assert "mark prices and funding rates" in text and "tie=target" in text
    text = " ".join(list_notes(replace(plan, trading_mode="spot")))
    assert "allows 4,999" in text and "SHORT is not traded" in text and "mark prices" not in text
    assert "startup_candle_count" not in " ".join(list_notes(make_plan(exported)))  # 66 candles


@pytest.mark.parametrize("pair", ["", ":", "BTC/", "BTC/USD T", "BTC/USDT/EUR", "\x1b[31m", "BTC"])
def test_a_pair_that_can_not_be_read_is_refused(pair):
    for mode in ("spot", "futures"):
        with pytest.raises(CryptoLSTMError, match="expected a pair such as BTC/USDT"):
            write_pair(pair, mode)


def test_the_fee_of_the_configuration_is_the_cost_of_the_rule(exported):
    plan = make_plan(exported)
    plan = replace(plan, predictor=replace(plan.predictor, config=CONFIG.replace(slippage_pct=0.01)))
    assert make_overlay(plan)["fee"] == pytest.approx(0.0005) and np.isfinite(make_overlay(plan)["fee"])


def test_a_folder_that_can_not_be_written_is_refused(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(freqtrade.os, "access", lambda path, mode: False)
    with pytest.raises(OutputFileError, match="no writable folder"):
        freqtrade.require_new_files(make_plan(exported, output=tmp_path / "x" / "y"), force=False)
