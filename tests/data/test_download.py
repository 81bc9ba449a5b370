"""A download ends with the candles of the exchange, whatever happens on the way: kills, errors, odd answers."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from crypto_lstm.data.candles import read_candles
from crypto_lstm.data.download import (
    CandleSource,
    DownloadError,
    download_candles,
    find_freqtrade_candles,
    name_candle_file,
    open_exchange,
)
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.storage.lock import LockedError, hold_lock
from crypto_lstm.utils.errors import CryptoLSTMError

START = pd.Timestamp("2024-03-01", tz="UTC")
ROWS = 3 * 1440
END = START + pd.Timedelta(ROWS, "min")
STEP = 60_000


def list_rows(seed: int = 1, rows: int = ROWS) -> list[list[float]]:
    candles = synthetic_candles(rows, seed=seed, start=START)
    first = int(START.timestamp() * 1000)
    values = candles.drop(columns="date").to_numpy().tolist()
    return [[first + STEP * number, *row] for number, row in enumerate(values)]


TABLE = list_rows()


def serve(rows, cap: int = 500, **options) -> CandleSource:
    """An exchange that returns at most `cap` rows of a table."""

    def fetch(pair, timeframe, since, limit):
        return [row for row in rows if row[0] >= since][: min(limit, cap)]

    return CandleSource("fake", fetch, **{"limit": cap, **options})


def load(path: Path) -> np.ndarray:
    """(rows, 6) times in ms and values of a candle file."""
    candles = read_candles(path)
    stamps = candles["date"].astype("int64").to_numpy() // 1_000_000
    return np.column_stack([stamps, candles.drop(columns="date").to_numpy()])


def no_pause(_seconds: float) -> None:
    pass


def fetch_all(source: CandleSource, path: Path, days: int = 3, now: pd.Timestamp = END, **options):
    return download_candles(source, "BTC/USDT", path, days=days, now=now, sleep=no_pause, **options)


@pytest.mark.parametrize("seed", range(6))
def test_any_exchange_gives_exactly_its_candles(seed, tmp_path):
    rng = np.random.default_rng(seed)
    kept = np.ones(ROWS, dtype=bool)
    for _ in range(rng.integers(0, 4)):
        place = rng.integers(1, ROWS - 900)
        kept[place : place + rng.integers(1, 800)] = False
    rows = [row for row, keep in zip(TABLE, kept, strict=True) if keep]
    result = fetch_all(serve(rows, cap=int(rng.integers(60, 1500))), tmp_path / "a.feather")
    np.testing.assert_array_equal(load(result.path), np.array(rows))
    edges = np.diff(np.concatenate([[1], kept.astype(int), [1]]))
    assert (result.gaps, result.missing) == (int((edges == -1).sum()), int((~kept).sum()))


@pytest.mark.parametrize("suffix", [".feather", ".parquet", ".csv"])
def test_each_kind_of_file_is_read_back_to_the_bit(suffix, tmp_path):
    result = fetch_all(serve(TABLE), tmp_path / f"a{suffix}", days=1)
    np.testing.assert_array_equal(load(result.path), np.array(TABLE[-1440:]))


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_download import TABLE, fetch_all, serve
from pathlib import Path
whole, calls = serve(TABLE).fetch, []
def fetch(*arguments):
    calls.append(1)
    if len(calls) == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*arguments)
source = serve(TABLE)
fetch_all(type(source)("fake", fetch, 500), Path({path!r}))
"""


def test_a_killed_download_goes_on_where_it_was_killed(tmp_path):
    path = tmp_path / "a.feather"
    script = KILLED.format(tests=str(Path(__file__).parent), call=5, path=str(path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not path.exists() and (tmp_path / "a.feather.part").exists()
    asked = []
    source = serve(TABLE)

    def fetch(pair, timeframe, since, limit):
        asked.append(since)
        return source.fetch(pair, timeframe, since, limit)

    result = fetch_all(CandleSource("fake", fetch, 500), path)
    assert result.resumed and asked[0] == TABLE[4 * 500][0]  # four answers were kept
    np.testing.assert_array_equal(load(path), np.array(TABLE))
    assert [file.name for file in tmp_path.iterdir()] == ["a.feather"]


@pytest.mark.parametrize("cut", [1, 9, 200, 20_000])
def test_a_damaged_journal_costs_only_what_is_after_the_damage(cut, tmp_path):
    path, part = tmp_path / "a.csv", tmp_path / "a.csv.part"
    calls = []

    def stop_after_four(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return serve(TABLE).fetch(*arguments)

    with pytest.raises(KeyboardInterrupt):
        fetch_all(CandleSource("fake", stop_after_four, 500), path)
    data = part.read_bytes()
    part.write_bytes(data[:-cut])
    fetch_all(serve(TABLE), path)
    np.testing.assert_array_equal(load(path), np.array(TABLE))
    part.write_bytes(data.replace(b"reached", b"reachex", 2))  # two lines whose checksum is wrong
    path.unlink()
    fetch_all(serve(TABLE), path)
    np.testing.assert_array_equal(load(path), np.array(TABLE))


def test_the_journal_of_another_download_is_left_alone(tmp_path):
    path, part = tmp_path / "a.csv", tmp_path / "a.csv.part"

    def stop(*arguments):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_all(CandleSource("other", stop), path)
    data = part.read_bytes()
    with pytest.raises(DownloadError, match=re.escape("journal of another download ('other' 'BTC/USDT' '1m')")):
        fetch_all(serve(TABLE), path)
    assert part.read_bytes() == data and not path.exists()


def test_a_busy_exchange_is_asked_again_and_a_refusal_is_not(tmp_path):
    pauses, calls = [], []

    def busy(*_):
        calls.append(1)
        raise TimeoutError("busy\x1b[2J")

    with pytest.raises(DownloadError, match="did not answer in 6 tries") as error:
        download_candles(
            CandleSource("fake", busy), "BTC/USDT", tmp_path / "a.csv", days=1, now=END, sleep=pauses.append
        )
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0] and "\x1b" not in str(error.value)
    calls.clear()

    def refuse(*_):
        calls.append(1)
        raise KeyError("no such pair")

    with pytest.raises(DownloadError, match="refused BTC/USDT 1m: KeyError"):
        fetch_all(CandleSource("fake", refuse), tmp_path / "a.csv")
    assert len(calls) == 1


FIRST = int(START.timestamp() * 1000)
ODD = {
    "no list": None,
    "a text": "candles",
    "no cells": [[FIRST]],
    "words": [[FIRST, "a", 1, 1, 1, 1]],
    "none": [[FIRST, 1, 1, 1, None, 1]],
    "not a number": [[FIRST, 1, 1, 1, float("nan"), 1]],
    "endless": [[FIRST, 1, float("inf"), 1, 1, 1]],
    "a dict": [{"open": 1}],
    "high below low": [[FIRST, 1.0, 0.5, 2.0, 1.0, 1.0]],
    "a negative price": [[FIRST, -1.0, 1.0, -2.0, 1.0, 1.0]],
    "seconds": [[FIRST // 1000 + 10**10, 1.0, 1.0, 1.0, 1.0, 1.0], [FIRST + 1, 1.0, 1.0, 1.0, 1.0, 1.0]],
}


@pytest.mark.parametrize("answer", ODD.values(), ids=ODD)
def test_an_odd_answer_is_a_typed_error_and_writes_no_file(answer, tmp_path):
    with pytest.raises(DownloadError, match="fake"):
        fetch_all(CandleSource("fake", lambda *_: answer), tmp_path / "a.csv")
    assert not (tmp_path / "a.csv").exists()


def test_candles_that_are_not_closed_are_left_out(tmp_path):
    now = END - pd.Timedelta("90s")
    result = fetch_all(serve(TABLE), tmp_path / "a.csv", days=1, now=now)
    assert pd.Timestamp(result.last) + pd.Timedelta("1min") <= now < pd.Timestamp(result.last) + pd.Timedelta("2min")


def test_an_exchange_that_began_later_is_named_and_one_without_candles_is_an_error(tmp_path):
    result = fetch_all(serve(TABLE), tmp_path / "a.csv", days=30)
    assert result.rows == ROWS and "The exchange has no candles before 2024-03-01T00:00" in str(result)
    with pytest.raises(DownloadError, match="has no candles of BTC/USDT in this time"):
        fetch_all(serve([]), tmp_path / "b.csv")
    assert not (tmp_path / "b.csv").exists()


def test_a_gap_that_a_second_call_closes_is_closed(tmp_path):
    hidden = {row[0] for row in TABLE[1000:1030]}
    calls = []

    def fetch(pair, timeframe, since, limit):
        calls.append(since)
        is_second = since == TABLE[1000][0] and calls.count(since) > 0
        shown = TABLE if is_second else [row for row in TABLE if row[0] not in hidden]
        return [row for row in shown if row[0] >= since][:500]

    result = fetch_all(CandleSource("fake", fetch, 500), tmp_path / "a.csv")
    assert (result.gaps, result.rows) == (0, ROWS)


def test_a_file_is_continued_and_never_mixed(tmp_path):
    path = tmp_path / "a.feather"
    fetch_all(serve(TABLE), path, days=1, now=END - pd.Timedelta("1D"))
    before = path.read_bytes()
    with pytest.raises(DownloadError, match="is not that of the exchange"):
        fetch_all(serve(list_rows(seed=9)), path, days=1)
    with pytest.raises(DownloadError, match="were asked for"):
        fetch_all(serve(TABLE), path, days=30)
    assert path.read_bytes() == before
    (tmp_path / "a.feather.part").unlink()
    result = fetch_all(serve(TABLE), path, days=1)
    np.testing.assert_array_equal(load(path), np.array(TABLE[1440:]))
    assert result.resumed and result.fetched == 1441  # with the newest candle that was known


def test_a_file_with_other_content_is_not_overwritten(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("my notes")
    with pytest.raises(CryptoLSTMError):
        fetch_all(serve(TABLE), path)
    assert path.read_text() == "my notes"


def test_two_downloads_into_one_file_are_refused(tmp_path):
    with hold_lock(tmp_path / "a.csv.part"), pytest.raises(LockedError):
        fetch_all(serve(TABLE), tmp_path / "a.csv")


@pytest.mark.parametrize("days", [0, -1, True, 1.5, "3", None, 10**9])
def test_bad_days_are_refused(days, tmp_path):
    with pytest.raises(DownloadError, match="days must be a whole number"):
        fetch_all(serve(TABLE), tmp_path / "a.csv", days=days)


@pytest.mark.parametrize("path", ["a.txt", "a", "", "a\0.csv", ".", None, 3, "/proc/1/x/a.csv", "folder.csv"])
def test_bad_paths_are_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(CryptoLSTMError):
        fetch_all(serve(TABLE), path)
    assert [file.name for file in tmp_path.iterdir()] == ["folder.csv"]


@pytest.mark.parametrize("pair", ["BTCUSDT", "btc/usdt", "../../etc", "BTC/USDT\n", "A/B:", "", None, 1, "BTC/USDT;x"])
def test_bad_pairs_are_refused(pair):
    with pytest.raises(DownloadError, match="expected a pair"):
        name_candle_file(pair, "1m")


@pytest.mark.parametrize("name", ["", "Binance", "no such", "__class__", "../x", None, 3, "exchange\x1b"])
def test_names_that_are_no_exchange_are_refused(name):
    with pytest.raises(DownloadError, match="expected the name of an exchange"):
        open_exchange(name)


def test_ccxt_is_named_where_it_is_missing_and_its_errors_are_told_apart(monkeypatch):
    monkeypatch.setitem(sys.modules, "ccxt", None)
    with pytest.raises(DownloadError, match=r"crypto_lstm\[live\]"):
        open_exchange("binance")


def test_an_exchange_of_ccxt_is_described_by_its_limits():
    ccxt = pytest.importorskip("ccxt")
    source = open_exchange("kraken", "1h")
    assert source.limit == 720 and ccxt.RequestTimeout("x").__class__.__mro__[1] and source.name == "kraken"
    assert issubclass(ccxt.RequestTimeout, source.temporary) and not issubclass(ccxt.BadSymbol, source.temporary)
    with pytest.raises(DownloadError, match="offers no candles of '3m'"):
        open_exchange("coinbase", "3m")
    with pytest.raises(DownloadError, match="ccxt knows no exchange 'nope'"):
        open_exchange("nope")


def test_files_of_freqtrade_are_found_in_its_folders(tmp_path):
    for place in ("user_data/data/binance", "freqtrade/user_data/data/okx/futures"):
        (tmp_path / place).mkdir(parents=True)
    spot = tmp_path / "user_data/data/binance/BTC_USDT-5m.feather"
    futures = tmp_path / "freqtrade/user_data/data/okx/futures/BTC_USDT_USDT-5m-futures.feather"
    for file in (spot, futures):
        file.touch()
    assert find_freqtrade_candles("BTC/USDT", "5m", [tmp_path]) == [spot.resolve()]
    assert find_freqtrade_candles("BTC/USDT:USDT", "5m", [tmp_path]) == [futures.resolve()]
    assert find_freqtrade_candles("ETH/USDT", "5m", [tmp_path, tmp_path / "missing"]) == []


def test_the_progress_names_share_and_date(tmp_path):
    lines: list[str] = []
    fetch_all(serve(TABLE), tmp_path / "a.csv", report=lines.append)
    assert len(lines) == 9 and lines[-1] == "BTC/USDT 1m: 4,320 candles, 100%, to 2024-03-04 00:00"
    assert [file.name for file in tmp_path.iterdir()] == ["a.csv"]


def download_from(exchange, path, days, end_ms, fetch, temporary):
    source = CandleSource("fake", fetch, 1000, temporary)
    now = pd.Timestamp(end_ms, unit="ms", tz="UTC")

    def wait(seconds):
        exchange.clock.advance(60 * seconds)

    return download_candles(source, "BTC/USDT", path, days=days, now=now, sleep=wait)


@pytest.mark.parametrize("through_http", [False, True])
def test_a_faulty_exchange_gives_its_candles_in_the_end(through_http, tmp_path):
    fake = pytest.importorskip("support.fake_exchange")
    begins = 1_709_251_200_000
    market = fake.make_market("BTCUSDT", days=4, ahead_days=1, seed=2, begins_ms=begins)
    clock = fake.FakeClock(begins, speed=0)
    faults = [fake.Fault("down", begins - 1, lasts_s=30), fake.Fault("gap", begins - 2 * 86_400_000)]
    faults += [fake.Fault("duplicate", begins - 86_400_000), fake.Fault("out_of_order", begins - 3 * 86_400_000)]
    exchange = fake.FakeExchange([market], clock, faults)
    path = tmp_path / "a.feather"
    if through_http:
        ccxt = pytest.importorskip("ccxt")
        with exchange.serve(port=0) as url:
            options = {"options": {"fetchMarkets": {"types": ["spot"]}}, "urls": {"api": fake.list_ccxt_urls(url)}}
            binance = ccxt.binance(options)
            result = download_from(exchange, path, 3, begins, binance.fetch_ohlcv, (ccxt.NetworkError,))
    else:
        result = download_from(exchange, path, 3, begins, exchange.fetch_ohlcv, (fake.ExchangeError,))
    wanted = market.as_frame()
    stamps = wanted["date"].astype("int64") // 1_000_000
    kept = (stamps >= begins - 3 * 86_400_000) & (stamps < begins) & (stamps != begins - 2 * 86_400_000)
    wanted = wanted[kept].reset_index(drop=True)
    pd.testing.assert_frame_equal(read_candles(path), wanted, rtol=1e-9, check_dtype=False)
    assert (result.gaps, result.missing) == (1, 1)
