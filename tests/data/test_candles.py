"""Candles of every format are read, faults are refused by name, and gaps are filled as a plain loop fills them."""

import gzip
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crypto_lstm.config import Config
from crypto_lstm.data.candle_report import check_candles, plot_candles, require_candles
from crypto_lstm.data.candles import fill_gaps, read_candles
from crypto_lstm.data.labels import make_labels
from crypto_lstm.data.readers import CandleError
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.utils.errors import CryptoLSTMError

DATA = Path(__file__).parents[3] / "shared" / "data"
COLUMNS = ["date", "open", "high", "low", "close", "volume"]
START = 1_704_067_200  # 2024-01-01, in seconds
ROW = [START * 1000, 10.0, 12.0, 9.0, 11.0, 5.0]


def real(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"real candles are not here: {name}")
    return path


def some_rows(n=5):
    return [[(START + 60 * i) * 1000, *ROW[1:]] for i in range(n)]


def write(folder, content, name="candles"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def csv_text(rows, head="date,open,high,low,close,volume\n"):
    return head + "".join(",".join(map(str, row)) + "\n" for row in rows)


# Real files: rows, first, last, timeframe, gaps, missing candles, rows without a trade

FILES = {
    "BTCUSD-1m-20180101-20190630-bitfinex.feather": (
        773_837,
        "2018-01-01 00:00",
        "2019-06-30 23:59",
        "1m",
        9_350,
        12_403,
        0,
    ),
    "ETHUSD-1m-20190101-20190630-bitfinex.feather": (
        238_857,
        "2019-01-01 00:00",
        "2019-06-30 23:59",
        "1m",
        15_491,
        21_783,
        0,
    ),
    "LTCUSD-1m-20190101-20190630-bitfinex.feather": (
        205_158,
        "2019-01-01 00:00",
        "2019-06-30 23:59",
        "1m",
        32_575,
        55_482,
        0,
    ),
    "FILUSDT-1m-202308-202311-binance-um.feather": (175_680, "2023-08-01 00:00", "2023-11-30 23:59", "1m", 0, 0, 79),
    "AVAXUSDT-1m-202606-202607-binance-um.feather": (87_840, "2026-06-01 00:00", "2026-07-31 23:59", "1m", 0, 0, 0),
    "raw/binance-um-FILUSDT-1m-2023-10.csv": (44_640, "2023-10-01 00:00", "2023-10-31 23:59", "1m", 0, 0, None),
    "raw/kraken-XBTUSDC-1m-noheader.csv": (56_717, "2023-01-01 00:00", "2023-03-31 23:59", "1m", 26_746, None, 0),
    "raw/binanceus-BTCUSDT-1m-isodates.csv": (30_240, "2023-03-01 00:00", "2023-03-21 23:59", "1m", 0, 0, 658),
    "raw/freqtrade-UNITTEST_BTC-1m.json": (13_681, "2017-11-04 23:02", "2017-11-14 22:59", "1m", 538, None, None),
    "raw/freqtrade-UNITTEST_BTC-1m.feather": (13_681, "2017-11-04 23:02", "2017-11-14 22:59", "1m", 538, None, None),
    "raw/freqtrade-BTC_USDT-1h.feather": (58_419, "2017-08-17 04:00", "2024-04-21 14:00", "1h", 28, None, None),
    "raw/cryptodatadownload-Coinbase_BTCUSD_1h.csv": (20_111, "2017-07-01 11:00", "2019-10-17 09:00", "1h", 0, 0, None),
}


@pytest.mark.parametrize("name", FILES)
def test_real_file_is_read_in_full(name):
    candles = read_candles(real(name), now="2026-08-01")
    rows, first, last, timeframe, gaps, missing, quiet = FILES[name]
    report = check_candles(candles, timeframe, now="2026-08-01")
    assert report.ok, report.errors
    assert (report.rows, report.first, report.last) == (rows, f"{first}:00+00:00", f"{last}:00+00:00")
    assert report.gaps == gaps
    assert missing is None or report.missing_candles == missing
    assert quiet is None or (candles.volume == 0).sum() == quiet
    assert list(candles.columns) == COLUMNS and str(candles.date.dtype) == "datetime64[ns, UTC]"
    assert isinstance(candles.index, pd.RangeIndex)
    assert candles.attrs["cleaning"]["rows_read"] == rows
    require_candles(candles, timeframe)


def test_a_feather_file_is_read_unchanged():
    path = real("BTCUSD-1m-20180101-20190630-bitfinex.feather")
    pd.testing.assert_frame_equal(read_candles(path), pd.read_feather(path))


def test_two_formats_of_one_market_agree():
    from_json, from_feather = (
        read_candles(real(f"raw/freqtrade-UNITTEST_BTC-1m.{suffix}")) for suffix in ("json", "feather")
    )
    pd.testing.assert_frame_equal(from_json, from_feather)


@pytest.mark.parametrize("keep", ["first", "last"])
def test_messy_file_is_cleaned_as_counted(keep):
    messy = real("raw/binance-klines-noheader-messy-DERIVED.csv")
    candles = read_candles(messy, on_conflict=keep, timeframe="1m")
    report = check_candles(candles)
    assert (report.rows, report.gaps, report.missing_candles, report.longest_gap_minutes) == (19_908, 3, 92, 90)
    assert (report.first, report.last) == ("2023-10-01 00:00:00+00:00", "2023-10-14 21:19:00+00:00")
    cleaning = candles.attrs["cleaning"]
    assert (cleaning["rows_read"], cleaning["duplicates_dropped"], cleaning["conflicts_resolved"]) == (19_949, 40, 1)
    assert 0 < cleaning["rows_moved"] <= 641
    lines = pd.read_csv(messy, header=None, names=range(12))
    lines[0] = np.where(lines[0] > 10**14, lines[0] // 1000, lines[0])
    plain = lines.drop_duplicates(0, keep=keep).sort_values(0)
    np.testing.assert_array_equal(candles[COLUMNS[1:]].to_numpy(), plain[[1, 2, 3, 4, 5]].to_numpy())
    np.testing.assert_array_equal(candles.date.astype("int64") // 10**6, plain[0])


def test_messy_file_is_refused_without_a_choice():
    words = r"two different candles of 2023-10-07 07:32.*\(line 9001\).*column close.*='first'.*on_conflict='last'"
    with pytest.raises(CandleError, match=words):
        read_candles(real("raw/binance-klines-noheader-messy-DERIVED.csv"))


def test_messy_file_agrees_with_its_origin():
    messy = read_candles(real("raw/binance-klines-noheader-messy-DERIVED.csv"), on_conflict="first")
    whole = read_candles(real("raw/binance-um-FILUSDT-1m-2023-10.csv"))
    both = messy.merge(whole, on="date")
    assert len(both) == len(messy)
    assert sum((both[f"{name}_x"] != both[f"{name}_y"]) for name in COLUMNS[1:]).sum() <= 1  # the conflicting close


def test_bitfinex_order_is_suggested_and_read():
    path = real("raw/bitfinex-BTCUSD-1m-OCHL.json")
    with pytest.raises(CandleError, match="columns='ochlv'"):
        read_candles(path)
    candles = read_candles(path, columns="ochlv")
    plain = np.array(json.loads(path.read_text()))
    plain = plain[plain[:, 0].argsort()]
    np.testing.assert_array_equal(candles[COLUMNS[1:]].to_numpy(), plain[:, [1, 3, 4, 2, 5]])
    assert check_candles(candles, "1m").ok


def test_cryptodatadownload_volume_is_in_coins():
    candles = read_candles(real("raw/cryptodatadownload-Coinbase_BTCUSD_1h.csv"))
    assert candles.iloc[-1].tolist()[1:] == [8051, 8056.83, 8021.23, 8035.88, 61.25]
    midnight = candles[candles.date == "2019-10-17 00:00:00+00:00"]
    assert len(midnight) == 1


def test_kraken_rows_keep_their_values():
    candles = read_candles(real("raw/kraken-XBTUSDC-1m-noheader.csv"))
    assert candles.iloc[1].tolist() == [pd.Timestamp("2023-01-01 00:09", tz="UTC"), *[16513.41] * 4, 0.00039585]


# Refusals

CELLS = [
    (2, 4, "abc", "row 2, column close: 'abc' is no number"),
    (2, 4, True, "row 2, column close: True is no number"),
    (2, 5, None, "volume must be a finite number: row 2, column volume is nan"),
    (2, 2, float("inf"), "high must be a finite number: row 2, column high is inf"),
    (3, 3, 0.0, "low must be above zero: row 3, column low is 0"),
    (3, 1, -4.0, "open must be above zero: row 3, column open is -4"),
    (1, 5, -0.5, "volume must be at least zero: row 1, column volume is -0.5"),
    (1, 2, 10.5, "high must be at least open, low and close: row 1, column high is 10.5"),
    (1, 3, 10.5, "low must be at most open and close: row 1, column low is 10.5"),
    (4, 0, 4_000_000_000, "no candle may lie in the future: row 4"),
    (4, 0, 17, "row 4, column date: 17 is no epoch"),
    (4, 0, 10**25, "column date"),
    (4, 0, -5, "row 4, column date: -5 is no epoch"),
    (4, 0, "soon", "column date must hold dates or epoch numbers of one kind: row 4 is 'soon'"),
    (4, 0, None, "row 4, column date is empty"),
    (4, 0, float("inf"), "column date: inf is no epoch"),
    (4, 0, START * 1000, "two different candles of 2024-01-01 00:00:00+00:00: row 0 and row 4"),
]


@pytest.mark.parametrize(("row", "column", "cell", "words"), CELLS)
def test_a_bad_cell_is_named(row, column, cell, words):
    rows = some_rows()
    rows[4][5] += 1  # so that a repeated time is a conflict
    rows[row][column] = cell
    with pytest.raises(CandleError) as caught:
        read_candles(rows)
    assert words in str(caught.value)
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, CryptoLSTMError)


TEXTS = {
    "empty": (b"", "the file is empty"),
    "blank": (b"\n \n", "the file is empty"),
    "prose": (b"Too many requests.\nTry again later.\n", "no table of candles: the first line is 'Too many requests.'"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "no table of candles"),
    "binary": (b"\x80\x04\x95\x00\x00", "neither text in UTF-8 nor feather"),
    "zeros": (b"\0" * 100, "neither text in UTF-8 nor feather"),
    "header only": (b"date,open,high,low,close,volume\n", "no candles in it"),
    "no volume": (b"date,open,high,low,close,trades\n1,1,1,1,1,1\n", "no column volume"),
    "thousands": (
        csv_text([[START, 10, 12, 9, '"1,011.5"', 5]]).encode(),
        "row 0 (line 2), column close: '1,011.5' is no number",
    ),
    "empty cell": (
        csv_text([ROW, [START * 1000 + 60_000, 10, "", 9, 11, 5]]).encode(),
        "row 1 (line 3), column high is nan",
    ),
    "long row": (csv_text([ROW, [*ROW, 1]]).encode(), "Expected 6 fields in line 3, saw 7"),
    "cut row": (csv_text([ROW, ROW[:3]]).encode(), "the last line has 3 cells, the first has 6: the file is cut short"),
    "naive": (csv_text([["2024-01-01 00:00:00", *ROW[1:]]]).encode(), "dates without a time zone"),
    "american": (csv_text([["01/31/2024", *ROW[1:]]]).encode(), "'01/31/2024' is no date"),
    "eight columns": (csv_text([[*ROW, 1, 1]], head="").encode(), "rows of 8 cells"),
    "feather": (b"ARROW1\0\0 and then nothing", "the feather file is damaged or cut short"),
    "parquet": (b"PAR1 and then nothing", "the parquet file is damaged or cut short"),
    "gzip": (gzip.compress(b"abc" * 1000)[:30], "the compressed file is damaged"),
    "gzip magic": (b"\x1f\x8b and nothing", "the compressed file is damaged"),
    "zip magic": (b"PK\x03\x04 and nothing", "the compressed file is damaged"),
    "json cut": (b"[[1704067200000, 10, 12", "not valid JSON (cut short?)"),
    "json deep": (b"[" * 100_000, "not valid JSON"),
    "json object": (b'{"code": -1121, "msg": "Invalid symbol."}', "Invalid symbol."),
    "json empty": (b"[]", "no candles in it"),
    "json numbers": (b"[1, 2, 3]", "row 0 is of type int"),
    "json ragged": (json.dumps([ROW, ROW[:5]]).encode(), "row 1 is 5 cells"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_bad_file_is_refused(name, tmp_path):
    content, words = TEXTS[name]
    with pytest.raises(CandleError) as caught:
        read_candles(write(tmp_path, content))
    assert words in str(caught.value)


@pytest.mark.parametrize("suffix", ["feather", "parquet", "csv.gz", "zip"])
def test_a_file_cut_anywhere_is_refused(suffix, tmp_path):
    data = packed(synthetic_candles(300))[suffix]
    for part in range(1, 20):
        with pytest.raises(CandleError):
            read_candles(write(tmp_path, data[: len(data) * part // 20]))


def test_a_bad_source_is_refused(tmp_path):
    for source, words in (
        (tmp_path, "is a folder"),
        (tmp_path / "none.csv", "No such file"),
        ("with\0zero", "can't read"),
        (None, "got NoneType"),
        ([], "no candles in it"),
        (np.zeros((3, 2)), "rows of 2 cells"),
        (pd.DataFrame(), "no column date"),
        (pd.DataFrame(some_rows(), columns=COLUMNS).drop(columns="low"), "no column low"),
    ):
        with pytest.raises(CandleError, match=words):
            read_candles(source)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"columns": "hlocv"}, "columns must be one of ohlcv, ochlv, lhocv, vchlo, got 'hlocv'"),
        ({"on_conflict": "mean"}, "on_conflict must be one of error, first, last, got 'mean'"),
        ({"timeframe": "7m"}, "timeframe must be one of 1m"),
        ({"timeframe": "5m"}, "candles of 5m are expected, most are 1m apart"),
        ({"now": "2024-01-01 00:01"}, "no candle may lie in the future: row 2, column date is 2024-01-01 00:02"),
        ({"columns": "ochlv"}, "pass columns='ohlcv'"),
    ],
)
def test_a_bad_argument_is_refused(arguments, words):
    with pytest.raises(CandleError) as caught:
        read_candles(some_rows(20), **arguments)
    assert words in str(caught.value)


def test_zip_of_two_is_refused(tmp_path):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as handle:
        handle.writestr("BTC.csv", csv_text([ROW]))
        handle.writestr("ETH.csv", csv_text([ROW]))
    with pytest.raises(CandleError, match="the zip holds 2 files"):
        read_candles(write(tmp_path, archive.getvalue()))


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_raise_a_candle_error(tmp_path, data):
    with pytest.raises(CandleError):
        read_candles(write(tmp_path, data))


def test_all_faults_are_reported_at_once():
    candles = synthetic_candles(50).drop(columns="volume")
    candles.loc[3, "high"] = 1.0
    candles.loc[4, "close"] = np.nan
    candles = pd.concat([candles, candles[7:8]])
    with pytest.raises(CandleError) as caught:
        require_candles(candles)
    assert len(caught.value.faults) == 5
    for words in (
        "no column volume",
        "row 3, column high is 1",
        "row 4, column close is nan",
        "dates must rise: row 50",
        "there twice",
    ):
        assert words in str(caught.value)


# Reading


def packed(candles):
    feather, parquet, archive = io.BytesIO(), io.BytesIO(), io.BytesIO()
    candles.to_feather(feather)
    candles.to_parquet(parquet)
    text = candles.to_csv(index=False)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as handle:
        handle.writestr("klines.csv", text)
    rows = [[int(date.timestamp() * 1000), *numbers] for date, *numbers in candles.itertuples(index=False)]
    return {
        "feather": feather.getvalue(),
        "parquet": parquet.getvalue(),
        "csv": text.encode(),
        "csv with a mark": b"\xef\xbb\xbf" + text.encode(),
        "csv with \\r\\n": text.replace("\n", "\r\n").encode(),
        "csv.gz": gzip.compress(text.encode()),
        "zip": archive.getvalue(),
        "json": json.dumps(rows).encode(),
        "json.gz": gzip.compress(json.dumps(rows).encode()),
        "klines as text": json.dumps(
            [[row[0], *map(repr, row[1:]), 0, "0", 0, "0", "0", "0"] for row in rows]
        ).encode(),
        "records": json.dumps([dict(zip(COLUMNS, row, strict=True)) for row in rows]).encode(),
        "index": candles.set_index("date").to_csv().encode(),
        "semicolons": text.replace(",", ";").encode(),
        "extra column": candles.reset_index().to_csv(index=False).encode(),
    }


@st.composite
def candle_frames(draw):
    n = draw(st.integers(1, 12))
    minutes = np.cumsum(draw(st.lists(st.integers(1, 90), min_size=n, max_size=n)))
    price = st.floats(1e-9, 1e9)
    prices = np.array(draw(st.lists(st.tuples(price, price, price, price), min_size=n, max_size=n)))
    volume = draw(st.lists(st.floats(0, 1e15), min_size=n, max_size=n))
    dates = pd.to_datetime((START // 60 + minutes) * 60, unit="s", utc=True).as_unit("ns")
    high, low = prices.max(axis=1), prices.min(axis=1)
    return pd.DataFrame(
        {"date": dates, "open": prices[:, 0], "high": high, "low": low, "close": prices[:, 1], "volume": volume}
    )


@given(candle_frames())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_format_returns_the_same_candles(tmp_path, candles):
    for name, data in packed(candles).items():
        read = read_candles(write(tmp_path, data))
        pd.testing.assert_frame_equal(read, candles, check_exact=True, obj=name)


@given(candle_frames(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_order_and_repeats_do_not_matter(candles, random):
    places = [*range(len(candles)), *random.choices(range(len(candles)), k=3)]
    random.shuffle(places)
    read = read_candles(candles.iloc[places])
    pd.testing.assert_frame_equal(read, candles, check_exact=True)
    assert read.attrs["cleaning"]["duplicates_dropped"] == 3
    assert (read.attrs["cleaning"]["rows_moved"] == 0) == (places == sorted(places))


@pytest.mark.parametrize("unit", [1, 10**3, 10**6, 10**9])
def test_epochs_of_every_unit_are_read(unit, tmp_path):
    rows = [[(START + 60 * i) * unit, *ROW[1:]] for i in range(3)]
    dates = pd.date_range("2024-01-01", periods=3, freq="min", tz="UTC", unit="ns")
    for name in ("", "time", "OPEN_TIME", "Timestamp", " datetime "):
        head = f"{name},Open,High,LOW,close,Volume\n" if name else ""
        assert (read_candles(write(tmp_path, csv_text(rows, head))).date == dates).all()
    assert (read_candles(np.array(rows)).date == dates).all()


def test_dates_of_every_zone_are_read(tmp_path):
    for text, zone in (
        ("2024-01-01 00:00:00", "UTC"),
        ("2024-01-01T00:00:00Z", None),
        ("2024-01-01 01:00:00+01:00", None),
        ("2024-01-01 01:00:00+01", None),
        ("2023-12-31 19:00", "America/New_York"),
        ("2024-01-01T00:00:00+00:00", "America/New_York"),
        ("2024-01-01", "UTC"),
    ):
        path = write(tmp_path, csv_text([[text, *ROW[1:]]]))
        assert read_candles(path, timezone=zone).date[0] == pd.Timestamp("2024-01-01", tz="UTC")
    with pytest.raises(CandleError, match="Mars"):
        read_candles(write(tmp_path, csv_text([["2024-01-01", *ROW[1:]]])), timezone="Mars/Base")


def test_dates_may_be_the_index():
    candles = synthetic_candles(10)
    pd.testing.assert_frame_equal(read_candles(candles.set_index("date")), candles)


def test_the_source_is_not_changed():
    candles = synthetic_candles(10)[::-1]
    copy = candles.copy()
    read = read_candles(candles)
    read["close"] = 0.0
    pd.testing.assert_frame_equal(candles, copy)
    assert candles.attrs == {}


# Gaps


def fill_slowly(candles, limit, minutes=1):
    out, segment = [], 0
    for date, *numbers in candles[COLUMNS].itertuples(index=False):
        if out:
            gap = int((date - out[-1][0]).total_seconds() // 60) // minutes - 1
            segment += gap * minutes > limit
            for _ in range(gap if gap * minutes <= limit else 0):
                out.append([out[-1][0] + pd.Timedelta(minutes=minutes), *[out[-1][4]] * 4, 0.0, True, segment])
        out.append([date, *numbers, False, segment])
    return pd.DataFrame(out, columns=[*COLUMNS, "filled", "segment"]).astype({"segment": "int32"})


@given(candle_frames(), st.integers(0, 100))
@settings(max_examples=100, deadline=None)
def test_fill_gaps_equals_a_plain_loop(candles, limit):
    filled = fill_gaps(candles, limit)
    pd.testing.assert_frame_equal(filled, fill_slowly(candles, limit), check_exact=True)
    assert fill_gaps(filled, 0) is filled
    inside = filled.segment.diff() == 0
    assert (filled.date.diff()[inside] == pd.Timedelta("1min")).all()


@pytest.mark.parametrize("limit", [0, 14, 15, 60])
def test_fill_gaps_counts_minutes(limit):
    candles = (
        synthetic_candles(60, timeframe="15m").drop(index=[3, 10, 11, 20, 21, 22, 23, 24, 40]).reset_index(drop=True)
    )
    pd.testing.assert_frame_equal(fill_gaps(candles, limit, "15m"), fill_slowly(candles, limit, 15), check_exact=True)


def test_fill_gaps_of_real_candles():
    candles = read_candles(real("BTCUSD-1m-20180101-20190630-bitfinex.feather"))
    filled = fill_gaps(candles)
    spaces = candles.date.diff().dt.total_seconds().to_numpy()[1:] / 60 - 1
    assert filled.filled.sum() == spaces[spaces <= 60].sum()
    assert filled.segment.max() == (spaces > 60).sum()
    pd.testing.assert_frame_equal(filled.loc[~filled.filled, COLUMNS].reset_index(drop=True), candles)
    pd.testing.assert_frame_equal(filled[:3_000], fill_slowly(candles[:3_000], 60)[:3_000], check_exact=True)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda c: c[::-1], "dates must rise: row 1"),
        (lambda c: pd.concat([c, c[-1:]]), "no candle may be there twice: row 30"),
        (lambda c: c.assign(date=c.date.dt.tz_localize(None)), "column date must be datetime64 in UTC"),
        (lambda c: c.assign(date=c.date + pd.Timedelta("7s")), "all 30 candles begin 7s after a whole step of 1m"),
        (lambda c: c.iloc[::5], "no error"),
        (
            lambda c: c.assign(volume=np.nan),
            "volume must be a finite number: row 0, column volume is nan; 30 such rows",
        ),
        (lambda c: c.drop(columns="date"), "no column date"),
        (lambda c: c.to_numpy(), "candles must be a DataFrame, got ndarray"),
        (lambda c: c[:0], "no candles in it"),
        (lambda c: c.astype({"open": "float32"}), "column open must be float64, got float32"),
    ],
)
def test_fill_gaps_refuses_unsound_candles(spoil, words):
    candles = spoil(synthetic_candles(30))
    if words == "no error":  # six rows five minutes apart may as well be gaps
        assert fill_gaps(candles).filled.sum() == 20
        return
    with pytest.raises(CandleError) as caught:
        fill_gaps(candles)
    assert words in str(caught.value)


def test_another_timeframe_is_noticed():
    with pytest.raises(CandleError, match="candles of 1m are expected, most are 5m apart"):
        fill_gaps(synthetic_candles(30, timeframe="5m"))


# The synthetic market


def test_synthetic_is_a_function_of_its_arguments():
    pd.testing.assert_frame_equal(synthetic_candles(500, 3, 0.5), synthetic_candles(500, 3, 0.5))
    assert not synthetic_candles(500, 3).close.equals(synthetic_candles(500, 4).close)
    pd.testing.assert_frame_equal(synthetic_candles(2_000, 3, 0.5)[:500], synthetic_candles(500, 3, 0.5))


@pytest.mark.parametrize("edge", [0.0, 1.0])
def test_synthetic_is_sound(edge):
    for timeframe in ("1m", "1d"):
        candles = synthetic_candles(5_000, 0, edge, timeframe=timeframe, start="2001-01-01")
        require_candles(candles, timeframe)
        assert check_candles(candles, timeframe).gaps == 0


@pytest.mark.parametrize("seed", range(3))
def test_fair_market_has_no_direction(seed):
    candles = synthetic_candles(50_000, seed)
    returns = np.log(candles.close / candles.open).to_numpy()
    for span in (1, 10, 60):
        past = np.log(candles.close).diff(span).to_numpy()[span:-1]
        score = np.corrcoef(past, np.sign(returns[span + 1 :]))[0, 1] * np.sqrt(len(past))
        assert abs(score) < 4
    assert ((returns - returns.mean()) ** 4).mean() / returns.var() ** 2 > 4


def test_an_edge_is_measurable():
    for seed in range(3):
        candles = synthetic_candles(50_000, seed, 1.0)
        past = np.log(candles.close).diff(30).to_numpy()[30:-30]
        ahead = np.log(candles.close).diff(30).shift(-30).to_numpy()[30:-30]
        assert np.corrcoef(past, ahead)[0, 1] > 0.2


# Pictures


@pytest.mark.parametrize("n", [1, 2, 300, 301, 5_000])
def test_plot_shows_all_candles(n):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    _, ax = plt.subplots()
    candles = synthetic_candles(n)
    assert plot_candles(candles, ax) is ax
    low, high = ax.get_ylim()
    assert low < candles.low.min() and high > candles.high.max()
    assert ax.get_xlabel() == "time (UTC)"
    assert len(ax.patches) == (n if n <= 300 else 0)
    ax.figure.canvas.draw()
    plt.close(ax.figure)


def test_a_filled_frame_that_was_cut_is_refused():
    whole = synthetic_candles(300, seed=1, timeframe="1h")
    filled = fill_gaps(whole.drop(index=range(100, 104)).reset_index(drop=True), 60, "1h")  # two segments
    assert fill_gaps(filled, 60, "1h") is filled
    assert fill_gaps(filled[90:110], 60, "1h")["segment"].nunique() == 2  # cut at its ends only
    with pytest.raises(
        CandleError, match="row 50, column date is .* candles of a segment are 1h apart.*has been cut since"
    ):
        fill_gaps(filled.drop(index=[50]), 60, "1h")
    with pytest.raises(CandleError, match="filled for another timeframe: give the candles as they were read"):
        fill_gaps(filled, 60, "5m")
    for name, values in {"filled": 0.0, "segment": "a", "date": 1}.items():
        with pytest.raises(CandleError, match="must be as fill_gaps makes them"):
            fill_gaps(filled.assign(**{name: values}), 60, "1h")
    with pytest.raises(CandleError, match="has been cut since"):
        make_labels(filled.drop(index=[50]), Config(timeframe="1h", future_window=24))


def test_dates_that_nanoseconds_cannot_hold():
    frame = synthetic_candles(30, seed=1, timeframe="1h")
    frame["date"] = (
        frame["date"].dt.as_unit("s").where(frame.index != 7, pd.Timestamp("2500-01-01", tz="UTC").as_unit("s"))
    )
    report = check_candles(frame)
    assert (
        not report.ok
        and "row 7, column date is 2500-01-01" in report.errors[0]
        and "dates go from 1678 to 2261" in report.errors[0]
    )
