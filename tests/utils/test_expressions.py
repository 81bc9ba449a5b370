"""The parser of expressions: what it refuses, that it runs nothing, and the ways of features into a configuration."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_lstm.config import FEATURES, Config, ConfigError
from crypto_lstm.utils.expressions import (
    FUNCTIONS,
    LANGUAGE,
    ExpressionError,
    Span,
    list_columns,
    parse_definition,
    parse_expression,
)

REFUSED = {
    "unknown function": ("rsj(close, 14)", "did you mean rsi"),
    "too few arguments": ("rsi(close)", "expected rsi"),
    "too many arguments": ("rsi(close, 14, 3)", "expected rsi"),
    "no arguments": ("mean()", "expected mean"),
    "arguments of a clock": ("minute_of_day(3)", "expected minute_of_day"),
    "span of zero": ("mean(close, 0)", "from 1 to 1,000,000, got 0"),
    "negative span": ("lag(close, -1)", "from 1 to 1,000,000, got -1"),
    "huge span": ("mean(close, 10000000)", "from 1 to 1,000,000"),
    "astronomic span": ("mean(close, 1" + "0" * 400 + ")", "is no number|can't read"),
    "broken span": ("mean(close, 1.5)", "must be a span"),
    "series as a span": ("mean(close, volume)", "must be a span"),
    "computed span": ("mean(close, 2 * 7)", "must be a span"),
    "span as a series": ("abs(4h)", "got the span 4h"),
    "span in a sum": ("close + 1d", "got the span 1d"),
    "unit that is not known": ("mean(close, 3w)", "can't read"),
    "number in second place": ("max(close, 0)", "write max\\(0, x\\)"),
    "limits in the wrong order": ("clip(close, 2, 1)", "at most high"),
    "by keyword": ("mean(close, n=3)", "by place"),
    "starred": ("mean(*close)", "by place"),
    "chained": ("1 < close < 3", "can't be chained"),
    "membership": ("close in volume", "is no comparison"),
    "and": ("close and volume", "no part of the language"),
    "not": ("not close", "no part of the language"),
    "modulo": ("close % 3", "no part of the language"),
    "floor division": ("close // 3", "no part of the language"),
    "condition": ("1 if close else 0", "no part of the language"),
    "attribute": ("close.shift", "no part of the language"),
    "method": ("close.shift(1)", "is no function"),
    "item": ("close[0]", "no part of the language"),
    "text": ("'close'", "is no number"),
    "bytes": ("b'close'", "is no number"),
    "truth": ("True", "is no number"),
    "none": ("None", "is no number"),
    "imaginary": ("3j", "is no number"),
    "ellipsis": ("...", "is no number"),
    "infinite": ("1e999", "is no number"),
    "import": ("__import__('os').system('true')", "is no function"),
    "dunder": ("__builtins__", "underscore"),
    "internal function": ("_percent(close, open)", "unknown function"),
    "lambda": ("(lambda: close)()", "is no function"),
    "comprehension": ("[x for x in close]", "no part of the language"),
    "assignment": ("close := 3", "can't read"),
    "two lines": ("close\nopen", "printable ASCII"),
    "statement": ("import os", "can't read"),
    "comment alone": ("# close", "can't read"),
    "empty": ("", "can't read"),
    "NUL": ("close\0", "printable ASCII"),
    "another alphabet": ("cl\u043ese", "printable ASCII"),
    "f-string": ("f'{close}'", "no part of the language"),
    "1,000 deep": ("abs(" * 1000 + "close" + ")" * 1000, "50 brackets"),
    "1,000 open": ("(" * 1000, "50 brackets"),
    "1,000 signs": ("-" * 1000 + "close", "400 operators"),
    "a power tower": ("**".join(["close"] * 190), "100 operations deep"),
    "a long sum": ("+".join(["close"] * 300), "100 operations deep"),
    "1 MB": ("close+" * 180_000 + "close", "10,000 characters"),
    "a long name": ("x" * 10_001, "10,000 characters"),
    "a bomb of digits": ("9" * 9000, "is no number|can't read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_text_that_is_no_expression_is_refused_quickly(name):
    text, fault = REFUSED[name]
    started = time.process_time()
    with pytest.raises(ExpressionError, match=fault) as caught:
        parse_expression(text)
    assert time.process_time() - started < 1 and len(str(caught.value)) < 600


@pytest.mark.parametrize("value", [None, 3, b"close", ["close"], float("nan")])
def test_only_a_text_is_an_expression(value):
    with pytest.raises(ExpressionError, match="is a text"):
        parse_expression(value)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="abclose(),.+-*/<>=!~ 019mhd_'\"[]{}:;#@\\\n", max_size=60))
def test_any_text_is_an_expression_or_has_a_typed_error(text):
    with contextlib.suppress(ExpressionError):
        parse_expression(text)


def test_parsing_runs_no_code():
    code = """
import json, sys
from crypto_lstm.utils.expressions import ExpressionError, parse_expression
texts, events = json.loads(sys.argv[1]), []
def parse_all():
    for text in texts:
        try:
            parse_expression(text)
        except ExpressionError:
            pass
parse_all()
sys.addaudithook(lambda event, _: events.append(event))
parse_all()
print(sorted(set(events) - {"compile"}))
"""
    texts = json.dumps([text for text, _ in REFUSED.values() if len(text) < 10_000] + ["zscore(log(high / low), 4h)"])
    done = subprocess.run([sys.executable, "-c", code, texts], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"  # `ast.parse` reports itself as compile, and nothing else happens


def test_each_definition_uses_its_parameters_and_columns_of_a_candle():
    for function in FUNCTIONS:
        if function.definition:
            names = set(list_columns(parse_definition(function)))
            assert names <= {*function.parameters, "high", "low", "close", "volume"}, function
            assert function.name in {"true_range"} or names & set(function.parameters), function


@pytest.mark.parametrize(
    ("span", "minutes", "candles"),
    [(Span(4, "h"), 15, 16), (Span(1, "d"), 1440, 1), (Span(90, "m"), 30, 3), (Span(7), 5, 7)],
)
def test_a_time_is_divided_by_the_timeframe(span, minutes, candles):
    assert span.count_candles(minutes) == candles


@pytest.mark.parametrize(("span", "minutes"), [(Span(90, "m"), 60), (Span(1, "h"), 1440), (Span(800, "d"), 1)])
def test_a_time_that_is_no_whole_number_of_candles_is_refused(span, minutes):
    with pytest.raises(ExpressionError, match="a span must be"):
        span.count_candles(minutes)


# Configurations


OWN = ("close_change", "rsi_14 = rsi(close, 14)", "place = min(low, 4h) / max(high, 4h)")


def test_every_way_into_a_configuration_gives_the_same_features(tmp_path):
    config = Config(features=OWN)
    table = {"close_change": "pct(close)", "rsi_14": "rsi(close, 14)", "place": "min(low, 4h) / max(high, 4h)"}
    lines = "".join(f'{name} = "{text}"\n' for name, text in table.items())
    (tmp_path / "a.toml").write_text(f"epochs = 100\n\n[features]\n{lines}")
    (tmp_path / "a.json").write_text(json.dumps({"features": table}))
    assert Config(features=table) == config == Config.load(tmp_path / "a.toml") == Config.load(tmp_path / "a.json")
    assert Config.from_text([f"features={', '.join(OWN)}"]) == config
    assert Config.from_text([f"features=[{', '.join(OWN)}]"]) == config
    for name in ("b.toml", "b.json"):
        assert Config.load(config.save(tmp_path / name)) == config
    assert Config.from_dict(json.loads(json.dumps(config.as_dict()))) == config
    assert config.feature_names == ("close_change", "rsi_14", "place") and config.feature_columns == ()


def test_a_list_of_preset_names_loads_unchanged():
    old = Config.from_dict({"features": list(FEATURES), "epochs": 3})
    assert old.features == old.feature_names == FEATURES and old.feature_language == LANGUAGE


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"features": ["rsi"]}, "rsi is no preset"),
        ({"features": ["close_chang"]}, "did you mean close_change"),
        ({"features": ["a = rsj(close, 3)", "b = clip(close, 2, 1)"]}, "(?s)did you mean rsi.*at most high"),
        ({"features": ["a = close", "a = open"]}, "a is there twice"),
        ({"features": ["close_change = open"]}, "is a preset"),
        ({"features": ["9 = open"]}, "must be a name of letters"),
        ({"features": ["a b = open"]}, "must be a name of letters"),
        ({"features": ["= open"]}, "must be a name of letters"),
        ({"features": ["a ="]}, "can't read"),
        ({"features": ["a = 4h"]}, "expected a series"),
        ({"features": {"a": 3}}, "a list of presets"),
        ({"features": {}}, "a list of presets"),
        ({"features": [f"a{n} = close" for n in range(501)]}, "from 1 to 500"),
        ({"features": ["a = mean(close, 90m)"], "timeframe": "1h"}, "a: a span must be a whole number of candles"),
        ({"feature_language": "crypto-lstm 2"}, "the expression language of this version, got 'crypto-lstm 2'"),
        ({"feature_language": "freqtrade 1"}, "the expression language of this version, got 'freqtrade 1'"),
        ({"column_max_age": ["funding = soon"]}, "such as 'funding = 8h'"),
        ({"column_max_age": ["funding = 1h", "funding = 2h"]}, "with different names"),
        ({"column_max_age": 3}, "a list of columns"),
    ],
)
def test_faults_of_features_are_named(settings, fault):
    with pytest.raises(ConfigError, match=fault):
        Config(**settings, epochs=3)
    with pytest.raises(ConfigError, match="(?s)2 faults.*epochs must be"):
        Config(**settings, epochs=0)


def test_ages_are_counted_in_candles():
    config = Config(
        timeframe="15m",
        features=["a = funding + basis", "b = other"],
        column_max_age={"funding": "2h", "basis": "10m", "unused": "3"},
    )
    assert config.feature_columns == ("funding", "basis", "other")
    assert config.column_ages == {"funding": 8, "basis": 0, "other": 0}
