"""The table of features: figures agree with pandas, and each kind of useless or suspicious feature is named."""

import json

import numpy as np
import pytest

from crypto_lstm.config import Config
from crypto_lstm.data.candle_report import CandleError
from crypto_lstm.data.candles import fill_gaps
from crypto_lstm.data.feature_table import describe_features
from crypto_lstm.data.features import FeatureError, count_warmup_candles
from crypto_lstm.data.synthetic import synthetic_candles

FEATURES = ("close_change", "rsi_14 = rsi(close, 14)", "mean = ratio(close, mean(close, 2d))")
CONFIG = Config(timeframe="1h", features=FEATURES, future_window=24, long_tp_pct=2, short_tp_pct=2)
CANDLES = synthetic_candles(4000, seed=8, timeframe="1h")


def test_the_figures_agree_with_pandas():
    table = describe_features(CONFIG, CANDLES)
    close = CANDLES["close"]
    wanted = {"close_change": 100 * close.pct_change(), "mean": close / close.rolling(48).mean()}
    for name, values in wanted.items():
        facts = table[name]
        assert facts.mean == pytest.approx(values.mean(), rel=1e-5)
        assert facts.deviation == pytest.approx(values.std(ddof=0), rel=1e-5)
        assert facts.missing_share == pytest.approx(values.isna().mean())
        assert facts.warmup == values.isna().sum()
    assert table.warmup == count_warmup_candles(CONFIG)
    assert table.warnings == () and table.candles == 4000
    json.dumps(table.as_dict(), allow_nan=False)


def test_without_candles_the_costs_are_known():
    table = describe_features(CONFIG)
    assert table.candles is None and table["mean"].mean is None
    assert table["mean"].warmup == 47 and table["mean"].state_bytes > 48 * 8
    assert "missing" not in str(table) and "rsi(close, 14)" in table._repr_html_()
    json.dumps(table.as_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("feature", "words"),
    [
        ("x = close / close", "constant, so nothing is learnt from it: x"),
        ("x = mean(close, 400d)", "no candle has a value of x"),
        ("x = pct(close)", "x equals close_change at every candle"),
        ("x = 3 - 2 * pct(close)", "x follows from close_change by a factor"),
        ("x = later", "too good to be true"),
        ("x = 0 - later", "too good to be true"),
    ],
)
def test_a_useless_or_suspicious_feature_is_named(feature, words):
    candles = CANDLES.assign(later=(CANDLES["close"].shift(-20) / CANDLES["close"]).ffill())
    table = describe_features(CONFIG.replace(features=[*FEATURES, feature]), candles)
    assert len(table.warnings) == 1 and words in table.warnings[0], table.warnings


def test_chance_is_no_suspicion():
    for seed in range(6):  # few independent labels: high correlations by chance
        candles = synthetic_candles(400, seed=seed, timeframe="1h")
        assert not [text for text in describe_features(CONFIG, candles).warnings if "too good" in text]


def test_gaps_and_short_histories_are_tables_too():
    gaps = CANDLES.drop(index=[*range(50, 52), *range(90, 200)]).reset_index(drop=True)
    facts = describe_features(CONFIG, gaps)["close_change"]
    assert facts.missing_share * len(fill_gaps(gaps, timeframe="1h")) == pytest.approx(3)  # the first of each segment
    short = describe_features(CONFIG, CANDLES.head(20))
    assert short["rsi_14"].missing_share == 1 and short["close_change"].correlation is None


def test_missing_columns_are_refused():
    config = CONFIG.replace(features=("x = funding",))
    with pytest.raises(CandleError, match="need the column funding"):
        describe_features(config, CANDLES)
    with pytest.raises(FeatureError, match="no feature 'y'"):
        describe_features(config, CANDLES.assign(funding=np.arange(4000.0)))["y"]
