"""Files of several markets on the command line: words with names, folders of freqtrade's, and what is refused."""

import argparse

import pandas as pd
import pytest

import crypto_lstm as cl
from crypto_lstm.commands.jobs import load_candles
from crypto_lstm.data.market_files import find_market_files, parse_freqtrade_name
from crypto_lstm.data.market_scaler import MarketError

CANDLES = {name: cl.synthetic_candles(60, seed=number, timeframe="1h") for number, name in enumerate(("BTC", "ETH"))}


def load(*words, last=None):
    options = {"columns": "ohlcv", "timezone": None, "on_conflict": "error", "last": last}
    return load_candles(argparse.Namespace(candles=list(words), **options), "1h")


@pytest.fixture
def folder(tmp_path):
    for name, candles in CANDLES.items():
        candles.to_feather(tmp_path / f"{name}_USDT-1h.feather")
        candles[:30].to_csv(tmp_path / f"{name}-first.csv", index=False)
        candles[30:].to_csv(tmp_path / f"{name}-second.csv", index=False)
    return tmp_path


def test_words_with_names_are_one_history_a_market(folder):
    words = [f"{name}/USDT={folder}/{name}-{part}.csv" for part in ("first", "second") for name in CANDLES]
    found = load(*words)
    assert list(found) == ["BTC/USDT", "ETH/USDT"]
    for name, candles in CANDLES.items():
        pd.testing.assert_frame_equal(found[f"{name}/USDT"], candles, check_dtype=False)
    assert [len(frame) for frame in load(*words, last=5).values()] == [5, 5]


def test_a_folder_of_freqtrade_is_a_market_a_file(folder):
    CANDLES["BTC"].to_feather(folder / "BTC_USDT_USDT-1h-mark.feather")
    CANDLES["BTC"].to_feather(folder / "BTC_USDT-4h.feather")
    assert list(load(folder)) == ["BTC/USDT", "ETH/USDT"]
    (folder / "ETH_USDT-1h.feather").unlink()
    assert find_market_files([folder], "1h") is None  # one market is one history, as before


def test_a_file_with_an_equals_sign_is_a_file(folder):
    odd = folder / "BTC=1h.csv"
    CANDLES["BTC"].to_csv(odd, index=False)
    assert find_market_files([odd], "1h") is None
    assert len(load(odd)) == 60


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["BTC/USDT=a.csv", "b.csv"], "got 'b.csv' without one"),
        (["B" * 41 + "=a.csv"], "expected the name of a market"),
        (["BTC/USDT=missing.csv"], "the candles of BTC/USDT: "),
        (["BTC/USDT=\0"], "the candles of BTC/USDT: "),
        (["BTC/USDT=a\x1b[31m.csv"], "the candles of BTC/USDT: "),
    ],
)
def test_words_that_name_no_files_are_refused(words, text):
    with pytest.raises(MarketError) as caught:
        load(*words)
    assert text in str(caught.value) and "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("BTC_USDT-1m.feather", ("BTC/USDT", "1m")),
        ("1000PEPE_USDT_USDT-5m-futures.feather", ("1000PEPE/USDT:USDT", "5m")),
        ("BTC_USDT_USDT-8h-funding_rate.feather", None),
        ("BTC_USDT.feather", None),
        ("BTC_USDT-1m.feather.bak", None),
    ],
)
def test_names_of_freqtrade(name, expected):
    assert parse_freqtrade_name(name) == expected
