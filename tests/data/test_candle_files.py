"""Files as exchanges, tools and people write them: each is read rightly, or refused with the reason."""

import gzip
import io
import json
import os
import zipfile
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from crypto_lstm.commands.jobs import load_candles
from crypto_lstm.commands.main import main
from crypto_lstm.commands.parser import make_parser
from crypto_lstm.data.candle_report import check_candles
from crypto_lstm.data.candles import read_candles
from crypto_lstm.data.files import _Gauge, unpack
from crypto_lstm.data.layouts import CandleError
from crypto_lstm.data.synthetic import synthetic_candles

FIELD = Path(__file__).parent / "field"
NAMES = ["date", "open", "high", "low", "close", "volume"]
DAILY = {"timezone": "UTC", "timeframe": "1d"}
FIRST = ["2024-01-02 00:00", 42000.0, 42028.6, 41995.0, 42005.8, 1.47525]
LAST = ["2024-01-02 00:23", 42029.9, 42051.0, 42027.4, 42046.8, 11.12458]
FIRST_DAY = ["2024-01-02 00:00", 42000.0, 42028.58, 41995.01, 42005.81, 1.47525]
LAST_DAY = ["2024-01-25 00:00", 42029.85, 42051.04, 42027.35, 42046.78, 11.12458]
SECOND = ["2024-01-02 00:01", 42005.8, 42035.5, 41998.3, 42019.6, 4.38717]
TICKS = [*FIRST[:5], 148.0]
MINUTES = [[1_704_153_600_000 + 60_000 * i, 10.0 + i, 12.0 + i, 9.0 + i, 11.0 + i, 5.0 + i] for i in range(20)]


def described(candles, row):
    """The row as the cases write it."""
    when, *values = candles.iloc[row].tolist()
    return [f"{when:%Y-%m-%d %H:%M}", *values]


def message(source, **options):
    """The text of the error that reading raises."""
    with pytest.raises(CandleError) as caught:
        read_candles(source, **options)
    return str(caught.value)


def write(folder, content, name="candles.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def csv_of(rows, head="date,open,high,low,close,volume"):
    return "\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n"


def expected_minutes():
    frame = pd.DataFrame(MINUTES, columns=NAMES)
    return frame.assign(date=pd.to_datetime(frame["date"], unit="ms", utc=True).astype("datetime64[ns, UTC]"))


# Files from the field

READ = {
    "aware.csv": ({}, 24, FIRST, LAST),
    "bybit_answer.json": ({}, 24, FIRST, LAST),
    "cat_of_months.csv": ({}, 24, FIRST, LAST),
    "daily_date32.parquet": (DAILY, 24, FIRST_DAY, LAST_DAY),
    "finam.csv": ({"timezone": "UTC"}, 24, FIRST, LAST),
    "go_utc.csv": ({}, 24, FIRST, LAST),
    "hyperliquid.json": ({}, 24, FIRST, LAST),
    "kaggle_datetime_tail.csv": ({}, 24, FIRST, LAST),
    "kaggle_volume_btc.csv": ({}, 20, SECOND, LAST),
    "mt4_export.csv": ({"timezone": "UTC"}, 24, TICKS, [*LAST[:5], 1112.0]),
    "mt5_export.csv": (
        {"timezone": "Europe/Athens"},
        24,
        ["2024-01-01 22:00", *TICKS[1:]],
        ["2024-01-01 22:23", *LAST[1:5], 1112.0],
    ),
    "nan_minutes.csv": ({}, 20, SECOND, LAST),
    "null_day.csv": (DAILY, 23, FIRST_DAY, LAST_DAY),
    "one_ulp.csv": ({}, 24, FIRST, LAST),
    "openTime.csv": ({}, 24, FIRST, LAST),
    "to_json_default.json": ({}, 24, FIRST, LAST),
    "yfinance.csv": (DAILY, 24, FIRST_DAY, LAST_DAY),
    "zone_0530.csv": (
        {"timezone": "+0530"},
        24,
        ["2024-01-01 18:30", *FIRST[1:]],
        ["2024-01-01 18:53", *LAST[1:]],
    ),
}


@pytest.mark.parametrize("name", READ)
def test_a_file_from_the_field_is_read(name):
    options, rows, first, last = READ[name]
    candles = read_candles(FIELD / name, **{"timeframe": "1m", **options})
    assert (len(candles), described(candles, 0), described(candles, -1)) == (rows, first, last)


FRAMES = "1m, 3m, 5m, 15m, 30m, 1h, 2h, 4h, 6h, 12h, 1d"
REFUSED = {
    "aware.csv": ({"timezone": "Mars/Base"}, "unknown time zone 'Mars/Base'"),
    "candles_of_8h.csv": (
        {"timeframe": "4h"},
        f"candles of 8h: the timeframes are {FRAMES}; give candles of one of these (8h candles can be resampled to 1d)",
    ),
    "close_labels.csv": (
        {"timeframe": "1m"},
        "all 24 dates are closing times (59.999s after a whole step of 1m): give opening times; "
        "the candles begin 2024-01-02 00:00:00+00:00",
    ),
    "conflict_of_one_cent.csv": ({}, "column close is 97210.41 and 97210.42"),
    "european.csv": ({"timezone": "UTC"}, "the file has decimal commas, save it with points (1234.5)"),
    "european_no_names.csv": (
        {"timezone": "UTC"},
        "the file has decimal commas, save it with points (1234.5); the first line is data, not names",
    ),
    "okx_1D.csv": ({"timeframe": "1d"}, "all 24 candles begin 8h before midnight UTC: the day of an exchange"),
    "two_markets.csv": ({}, "column symbol holds BTC/USD and ETH/USD; candles are of one market: keep one of them"),
    "volume_ma20.csv": ({}, "no column volume (volume_ma20 is no volume of a candle)"),
    "workbook.xlsx": ({}, "an Excel workbook or another Office file: save the sheet as CSV (UTF-8)"),
}
NO_ADVICE = ("timeframe='480", "drop them", "drop it", "unpack")


@pytest.mark.parametrize("name", REFUSED)
def test_a_real_file_with_a_fault_is_refused_with_advice(name):
    options, words = REFUSED[name]
    text = message(FIELD / name, **options)
    assert words in text
    assert not [advice for advice in NO_ADVICE if advice in text]


def test_corrections_are_counted():
    counts = {name: read_candles(FIELD / name).attrs["cleaning"] for name in ("cat_of_months.csv", "nan_minutes.csv")}
    assert counts["cat_of_months.csv"]["repeated_headers"] == 1
    assert counts["nan_minutes.csv"]["rows_without_trade"] == 4
    rounded = read_candles(FIELD / "one_ulp.csv")
    assert rounded.attrs["cleaning"]["prices_rounded"] == 1 and check_candles(rounded).ok


# Several files


@pytest.mark.parametrize("how", ["list", "folder", "pattern", "zip", "list of zips", "overlap"])
def test_several_files_are_one_history(how, tmp_path):
    months = [csv_of(MINUTES[10:]), csv_of(MINUTES[: 12 if how == "overlap" else 10])]
    archive = tmp_path / "all.zip"
    with zipfile.ZipFile(archive, "w") as handle:
        for number, text in enumerate(months):
            handle.writestr(f"BTCUSDT-1m-2024-0{number + 1}.csv", text)
    folder = tmp_path / "folder"
    folder.mkdir()
    paths = [write(folder, text, f"{name}.csv") for name, text in zip("ab", months, strict=True)]
    zips = []
    for path in paths:
        zips.append(tmp_path / f"{path.stem}.zip")
        with zipfile.ZipFile(zips[-1], "w") as handle:
            handle.write(path, path.name)
    source = {"folder": folder, "pattern": str(folder / "*.csv"), "zip": archive, "list of zips": zips}.get(how, paths)
    candles = read_candles(source, timeframe="1m")
    pd.testing.assert_frame_equal(candles, expected_minutes())
    assert candles.attrs["cleaning"]["files"] == 2
    assert candles.attrs["cleaning"]["duplicates_dropped"] == (2 if how == "overlap" else 0)


def test_several_files_of_two_markets_are_refused(tmp_path):
    head = "symbol,date,open,high,low,close,volume"
    paths = [
        write(tmp_path, csv_of([[market, *row] for row in MINUTES], head), f"{market}.csv") for market in ("BTC", "ETH")
    ]
    assert "'BTC' and" in message(paths) and "candles are of one market" in message(paths)
    for market in ("BTCUSDT", "ETHUSDT"):
        write(tmp_path, csv_of(MINUTES), f"{market}-1m.csv")
    assert "candles are of one market" in message(tmp_path)
    assert "no file matches this pattern" in message(str(tmp_path / "*.parquet"))


def test_a_conflict_between_files_names_both(tmp_path):
    paths = [write(tmp_path, csv_of(MINUTES), "a.csv"), write(tmp_path, csv_of([[*MINUTES[3][:5], 77]]), "b.csv")]
    text = message(paths)
    assert "row 3 (line 5) of" in text and "row 0 (line 2) of" in text and "column volume is 8 and 77" in text
    assert read_candles(paths, on_conflict="last").volume[3] == 77


def test_the_command_joins_files(tmp_path):
    paths = [write(tmp_path, csv_of(MINUTES[:10]), "a.csv"), write(tmp_path, csv_of(MINUTES[10:]), "b.csv")]
    for words in (list(map(str, paths)), [str(tmp_path)], [str(tmp_path / "*.csv")]):
        arguments = make_parser().parse_args(["train", "--candles", *words, "--output", "run"])
        candles = load_candles(arguments, "1m")
        pd.testing.assert_frame_equal(candles, expected_minutes())
        assert candles.attrs["cleaning"]["files"] == 2


def test_the_command_gives_no_advice_that_fails(tmp_path, capsys):
    words = ["train", "--candles", str(FIELD / "candles_of_8h.csv"), "--output", str(tmp_path / "run")]
    assert main([*words, "--set", "timeframe=4h"]) == 1
    assert "480" not in capsys.readouterr().err


# Layouts of exchanges and tools

TIMES = [row[0] for row in MINUTES]


def records(**names):
    """Records with other names; each value of `names` is a place in a row."""
    return [{name: row[place] for name, place in names.items()} for row in MINUTES]


SHORT = records(t=0, o=1, h=2, l=3, c=4, v=5)
FULL = records(timestamp=0, open=1, high=2, low=3, close=4, volume=5)
TEXTS = [[str(cell) for cell in row] for row in MINUTES]
ANSWERS = {
    "alpaca": {"bars": {"BTC/USD": SHORT}, "next_page_token": None},
    "alpaca of one": {"bars": SHORT, "symbol": "AAPL"},
    "polygon": {"ticker": "X:BTCUSD", "status": "OK", "results": [{**row, "vw": 1.0, "n": 3} for row in SHORT]},
    "okx": {"code": "0", "msg": "", "data": [[*row, "1", "2", "1"] for row in TEXTS[::-1]]},
    "gate": [[row[0], "9.9", row[4], row[2], row[3], row[1], row[5], "true"] for row in TEXTS],
    "coinbase": {"candles": records(start=0, low=3, high=2, open=1, close=4, volume=5)},
    "bitstamp": {"data": {"ohlc": FULL, "pair": "BTC/USD"}},
    "kraken": {"error": [], "result": {"XXBTZUSD": [[*row[:5], "7", row[5], 3] for row in TEXTS], "last": 9}},
    "columns": {name: [row[place] for row in MINUTES] for place, name in enumerate("tohlcv")} | {"s": "ok"},
    "split": {"columns": NAMES, "index": list(range(20)), "data": MINUTES},
    "index": {str(row[0]): dict(zip(NAMES[1:], row[1:], strict=True)) for row in MINUTES},
    "cryptocompare": {"Data": {"Data": records(time=0, open=1, high=2, low=3, close=4, volumefrom=5, volumeto=1)}},
    "coinapi": records(time_period_start=0, price_open=1, price_high=2, price_low=3, price_close=4, volume_traded=5),
    "yahoo": {
        "chart": {
            "result": [
                {
                    "timestamp": TIMES,
                    "indicators": {
                        "quote": [{name: [row[place] for row in MINUTES] for place, name in enumerate(NAMES) if place}]
                    },
                }
            ]
        }
    },
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_of_an_exchange_is_read(name, tmp_path):
    path = write(tmp_path, json.dumps(ANSWERS[name]), "answer.json")
    pd.testing.assert_frame_equal(read_candles(path, timeframe="1m"), expected_minutes())
    pd.testing.assert_frame_equal(read_candles(ANSWERS[name]), expected_minutes())


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(map(json.dumps, FULL)),
        "\n".join(map(json.dumps, MINUTES)),
        f"{json.dumps(MINUTES[:10])}\n{json.dumps(MINUTES[10:])}",
    ],
)
def test_json_in_lines_is_read(text, tmp_path):
    pd.testing.assert_frame_equal(read_candles(write(tmp_path, text)), expected_minutes())
    assert "not valid JSON (cut short?)" in message(write(tmp_path, text[:-5]))


def test_an_answer_of_two_markets_is_refused(tmp_path):
    text = message(write(tmp_path, json.dumps({"bars": {"BTC/USD": SHORT, "ETH/USD": SHORT}})))
    assert "2 lists of candles ('bars.BTC/USD', 'bars.ETH/USD')" in text


@pytest.mark.parametrize("columns", ["ochlv", "lhocv", "vchlo"])
def test_the_order_of_a_source_is_suggested(columns):
    places = {"o": 1, "h": 2, "l": 3, "c": 4, "v": 5}
    rows = [[row[0], *(row[places[letter]] for letter in columns)] for row in MINUTES]
    assert f"pass columns='{columns}'" in message(rows)
    pd.testing.assert_frame_equal(read_candles(rows, columns=columns), expected_minutes())


CLOCKS = [f"2024.01.02\t00:{i:02d}:00" for i in range(20)]
HEADS = {
    "MetaTrader": "<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>\t<VOL>\t<SPREAD>",
    "MetaTrader without names": None,
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-8-sig"])
def test_exports_of_metatrader_are_read(name, encoding, tmp_path):
    lines = ["\t".join([clock, *map(str, row[1:]), "0", "7"]) for clock, row in zip(CLOCKS, MINUTES, strict=True)]
    text = "\r\n".join([HEADS[name], *lines] if HEADS[name] else lines)
    candles = read_candles(write(tmp_path, text.encode(encoding)), timezone="UTC")
    pd.testing.assert_frame_equal(candles, expected_minutes())


@pytest.mark.parametrize(
    ("volume", "is_taken"),
    [
        ("volume", True),
        ("Vol", True),
        ("V", True),
        ("<VOL>", True),
        ("Volume BTC", True),
        ("Volume_(BTC)", True),
        ("baseVolume", True),
        ("volumeUSD", True),
        ("volume_sma", False),
        ("volume_ma20", False),
        ("volume_change", False),
        ("vol_ratio", False),
        ("quote_volume", False),
    ],
)
def test_only_a_volume_counts_as_the_volume(volume, is_taken, tmp_path):
    path = write(tmp_path, csv_of(MINUTES, f"date,open,high,low,close,{volume}"))
    if is_taken:
        pd.testing.assert_frame_equal(read_candles(path), expected_minutes())
    else:
        assert "no column volume" in message(path)


@pytest.mark.parametrize("name", ["symbol", "Pair", "ticker", "instId", "product_id", "exchange"])
def test_a_column_of_markets_holds_one(name, tmp_path):
    head = f"{name},date,open,high,low,close,volume"
    one = write(tmp_path, csv_of([["BTC/USD", *row] for row in MINUTES], head))
    pd.testing.assert_frame_equal(read_candles(one), expected_minutes())
    two = write(tmp_path, csv_of([["BTC/USD" if i < 10 else "ETH/USD", *row] for i, row in enumerate(MINUTES)], head))
    assert f"column {name} holds BTC/USD and ETH/USD" in message(two)


def test_a_column_of_timeframes_holds_one(tmp_path):
    head = "interval,date,open,high,low,close,volume"
    rows = [["1m" if i < 10 else "5m", *row] for i, row in enumerate(MINUTES)]
    path = write(tmp_path, csv_of(rows, head))
    assert "column interval holds 1m and 5m; candles are of one timeframe" in message(path)


# Dates


def dated(*texts, **options):
    return read_candles([[text, *MINUTES[0][1:]] for text in texts], **options)["date"].tolist()


MIDNIGHT = pd.Timestamp("2024-01-02", tz="UTC")


@pytest.mark.parametrize(
    ("text", "zone"),
    [
        ("2024-01-02 00:00:00 +0000 UTC", None),
        ("2024-01-02 05:30:00 +0530 IST", None),
        ("2024-01-02 05:30:00.5 +0530 IST m=+0.01", None),
        ("2024-01-02 00:00:00 GMT", None),
        ("2024-01-02 00:00:00 +00:00", None),
        ("2024.01.02 00:00", "UTC"),
        ("02.01.2024 00:00:00.000", "UTC"),
        ("02.01.2024 02:00:00.000 GMT+0200", None),
        ("20240102 000000", "UTC"),
        ("20240102", "UTC"),
        ("2024/01/02 00:00:00", "UTC"),
        ("2024/1/2 0:00", "UTC"),
        (20240102, "UTC"),
        (20240102000000, "UTC"),
        (date(2024, 1, 2), "UTC"),
        (np.datetime64("2024-01-02"), "UTC"),
        (np.int64(1704153600), None),
        ("2024-01-02 05:30", "+05:30"),
        ("2024-01-02 05:30", "+0530"),
        ("2024-01-01 19:00", "-05"),
        ("2024-01-01 19:00", "America/New_York"),
    ],
)
def test_a_date_is_read(text, zone):
    assert dated(text, timezone=zone)[0].floor("s") == MIDNIGHT


@pytest.mark.parametrize("zone", ["UTC+3", "GMT-5", "0530", "5:30", "+25:00", "", "Mars/Base", "europe", 3, "../x"])
def test_an_unclear_zone_is_refused_for_every_kind_of_dates(zone):
    for text in ("2024-01-02 00:00", "2024-01-02 00:00Z", MINUTES[0][0]):
        with pytest.raises(CandleError, match="zone"):
            dated(text, timezone=zone)


def test_the_form_of_dates_is_not_told_by_the_first_row():
    mixed = ("2024-01-02 12-AM", "2024-01-02 01:00:00", "2024-01-02 02-AM")
    assert [when.hour for when in dated(*mixed, timezone="UTC")] == [0, 1, 2]


def test_the_odd_row_is_named(tmp_path):
    rows = [list(row) for row in MINUTES]
    rows[0][0] = "soon"
    assert "row 0 (line 2), column date: 'soon' is no epoch number" in message(write(tmp_path, csv_of(rows)))
    assert "row 0 is 'soon'" in message(rows)
    rows[0][0] = "2024-01-02 00:00:00 +0000 MOON!"
    assert "'2024-01-02 00:00:00 +0000 MOON!'" in message(write(tmp_path, csv_of(rows)))


@pytest.mark.parametrize("names", [["openTime", "close_time"], ["datetime", "Timestamp"], ["date", "unix"]])
def test_the_time_that_is_whole_and_says_most_is_taken(names, tmp_path):
    days = ["2024-01-02 00:00:00", *[""] * 19]
    lines = [[*row[1:], *((row[0], day) if names[0] == "openTime" else (day, row[0]))]
             for row, day in zip(MINUTES, days, strict=True)]  # fmt: skip
    path = write(tmp_path, csv_of(lines, ",".join([*NAMES[1:], *names])))
    pd.testing.assert_frame_equal(read_candles(path), expected_minutes())


# Rows that are no candles


@pytest.mark.parametrize("empty", ["", "NaN", "null", "None"])
def test_rows_without_prices_are_minutes_without_a_trade(empty, tmp_path):
    rows = [[row[0], *[empty] * 5] if i in (0, 7, 8) else row for i, row in enumerate(MINUTES)]
    candles = read_candles(write(tmp_path, csv_of(rows)))
    expected = expected_minutes().drop(index=[0, 7, 8]).reset_index(drop=True)
    pd.testing.assert_frame_equal(candles, expected)
    assert candles.attrs["cleaning"]["rows_without_trade"] == 3
    rows[5] = [rows[5][0], "nan", *rows[5][2:]]
    assert "row 5 (line 7), column open is nan" in message(write(tmp_path, csv_of(rows)))


def test_repeated_headers_keep_the_lines_of_messages(tmp_path):
    text = csv_of(MINUTES[:5]) + csv_of([*MINUTES[5:8], [MINUTES[8][0], 4, 4, 3, 0, 1], *MINUTES[9:]])
    assert "row 9 (line 11), column close is 0" in message(write(tmp_path, text))
    klines = "\n".join(",".join(map(str, row)) for row in MINUTES[:5]) + "\n" + csv_of(MINUTES[5:])
    pd.testing.assert_frame_equal(read_candles(write(tmp_path, klines)), expected_minutes())
    other = csv_of(MINUTES[:5]) + csv_of(MINUTES[5:], "date,close,high,low,open,volume")
    assert "row 5 (line 7) is a second line of names in another order" in message(write(tmp_path, other))


@pytest.mark.parametrize("steps", [1, 2, 100])
def test_a_rounding_is_no_disorder_and_a_difference_is(steps):
    high = 12.0
    for _ in range(steps):
        high = float(np.nextafter(high, 0))
    rows = [[MINUTES[0][0], 12.0, high, 9.0, 11.0, 5.0]]
    if steps <= 2:
        assert read_candles(rows).high[0] == 12.0
    else:
        assert f"column high is {high!r} (open 12, low 9, close 11)" in message(rows)


def test_trades_are_no_candles(tmp_path):
    for more in ("", ",maker,id"):
        path = write(tmp_path, f"time,price,qty,side{more}\n1704153600000,3,4,buy{more}\n")
        assert "these are trades" in message(path)
    frame = pd.DataFrame([[1704153600000, 3, 4, "buy"]], columns=["time", "price", "qty", "side"])
    assert "these are trades" in message(frame)


def test_a_jump_of_the_price_is_warned_of(caplog):
    rows = [[row[0], *(cell * (1 if i < 10 else 100) for cell in row[1:])] for i, row in enumerate(MINUTES)]
    candles = read_candles(rows)
    assert candles.attrs["cleaning"]["price_jumps"] == 1
    assert "2024-01-02 00:10" in caplog.text and "one market?" in caplog.text
    report = check_candles(candles, "1m")
    assert report.ok and report.errors == ()
    expected = "the price jumps from 20 to 2000 at 2024-01-02 00:10:00+00:00: are these candles of one market?"
    assert report.warnings == (expected,)
    assert report.as_dict()["warnings"] == [expected] and report.as_dict()["counts"]["price jump"] == 1
    assert expected in str(report) and "warning" in str(report)


@pytest.mark.parametrize(
    ("factor", "missing", "jumps"),
    [(1.4, 0, 0), (1.7, 0, 1), (0.5, 0, 1), (1 / 1.4, 0, 0), (2.0, 3, 0), (5.0, 3, 1), (0.2, 3, 1)],
)
def test_the_size_of_a_jump_depends_on_the_gap_before_it(factor, missing, jumps):
    candles = synthetic_candles(60)
    candles.loc[30:, NAMES[1:5]] *= factor
    candles = candles.drop(index=range(30, 30 + missing)).reset_index(drop=True)
    assert len(check_candles(candles, "1m").warnings) == jumps


def test_two_markets_of_several_files_are_found_by_the_jump(tmp_path):
    other = [[row[0] + 20 * 60_000, *(cell * 20 for cell in row[1:])] for row in MINUTES]
    paths = [write(tmp_path, csv_of(MINUTES), "a.csv"), write(tmp_path, csv_of(other), "b.csv")]
    assert "at 2024-01-02 00:20:00+00:00" in check_candles(read_candles(paths)).warnings[0]


def test_last_looks_only_at_what_it_keeps():
    rows = [[row[0], *([-1.0] * 5 if i < 10 else row[1:])] for i, row in enumerate(MINUTES)]
    pd.testing.assert_frame_equal(read_candles(rows, last=10), expected_minutes()[10:].reset_index(drop=True))
    assert "row 0" in message(rows, last=11) or "row 9" in message(rows, last=11)
    for last in (0, True, "5"):
        assert "last must be a whole number" in message(rows, last=last)


TRADES = {
    "binance spot": ["3333,42000.1,0.5,21000.05,1704153600000,True,True"] * 3,
    "binance futures": ["3333,42000.1,0.5,21000.05,1704153600000,true"] * 3,
    "binance aggregated": ["3333,42000.1,0.5,1,2,1704153600000,True,True"] * 3,
    "futures aggregated": ["3333,42000.1,0.5,1,2,1704153600000,true"] * 3,
    "kraken": ["1704153600,42000.1,0.5"] * 3,
    "bitcoincharts": ["1704153600,42000.100000000000,0.500000000000"] * 3,
    "with a side": ["1704153600000,BTC-USD,42000.1,0.5,buy,7"] * 3,
    "coinbase": ["7,2024-01-02T00:00:00Z,0.5,42000.1,sell,x"] * 3,
}


@pytest.mark.parametrize("name", TRADES)
def test_trades_without_names_are_no_candles(name, tmp_path):
    lines = TRADES[name]
    for text in ("\n".join(lines), json.dumps([line.split(",") for line in lines])):
        assert "these are trades, one in each row" in message(write(tmp_path, text), timezone="UTC")


# Candles that were not finished


def okx(*unfinished, newest_first=True):
    rows = [[*map(str, row), "1", "2", "0" if i in unfinished else "1"] for i, row in enumerate(MINUTES)]
    return rows[::-1] if newest_first else rows


def csv_with_flag(name, rows):
    return csv_of([[*row[:6], row[8]] for row in rows], ",".join([*NAMES, name]))


@pytest.mark.parametrize("newest_first", [True, False])
def test_the_newest_candle_may_be_unfinished_and_is_left_out(newest_first, tmp_path):
    rows = okx(19, newest_first=newest_first)
    gate = [[row[0], "9.9", row[4], row[2], row[3], row[1], row[5], str(row[8] == "1").lower()] for row in rows]
    sources = [
        json.dumps(rows),
        json.dumps({"code": "0", "data": rows}),
        csv_of(rows, "ts,o,h,l,c,vol,volCcy,volCcyQuote,confirm"),
        "\n".join(",".join(row) for row in rows),
        json.dumps(gate),
        json.dumps([dict(zip([*NAMES, "isClosed"], [*row[:6], row[8] == "1"], strict=True)) for row in rows]),
    ]
    for text in sources:
        candles = read_candles(write(tmp_path, text))
        pd.testing.assert_frame_equal(candles, expected_minutes()[:19])
        assert candles.attrs["cleaning"]["unfinished_candles"] == 1


@pytest.mark.parametrize("unfinished", [(0,), (7,), (7, 19), range(20)])
def test_other_unfinished_candles_are_refused(unfinished, tmp_path):
    rows = okx(*unfinished)
    for text in (json.dumps(rows), csv_with_flag("confirm", rows)):
        assert "column confirm is 0: the candle was not finished when it was fetched" in message(write(tmp_path, text))


def test_a_column_of_flags_that_means_another_thing_is_ignored(tmp_path):
    rows = [[*row[:6], 1, 1, i % 3] for i, row in enumerate(MINUTES)]
    pd.testing.assert_frame_equal(read_candles(write(tmp_path, csv_with_flag("confirm", rows))), expected_minutes())


# Kinds of tables


def test_numbers_kept_as_objects_are_read():
    frame = pd.DataFrame(np.array(MINUTES, dtype=object), columns=["timestamp", *NAMES[1:]])
    pd.testing.assert_frame_equal(read_candles(frame), expected_minutes())


def test_tables_of_arrow_and_levels_of_columns_are_read():
    frame = pd.DataFrame(MINUTES, columns=NAMES)
    table = pa.Table.from_pandas(frame)
    pd.testing.assert_frame_equal(read_candles(table), expected_minutes())
    pd.testing.assert_frame_equal(read_candles(table.to_batches()[0]), expected_minutes())
    levels = pd.MultiIndex.from_product([NAMES[1:], ["BTC-USD"]], names=["Price", "Ticker"])
    index = pd.DatetimeIndex(expected_minutes()["date"], name="Date")
    download = pd.DataFrame(frame[NAMES[1:]].to_numpy(), index=index, columns=levels)
    pd.testing.assert_frame_equal(read_candles(download), expected_minutes())
    both = pd.concat([download, download.rename(columns={"BTC-USD": "ETH-USD"})], axis=1)
    assert "the columns are of BTC-USD and ETH-USD" in message(both)
    arrow = frame.assign(date=expected_minutes()["date"]).convert_dtypes(dtype_backend="pyarrow")
    pd.testing.assert_frame_equal(read_candles(arrow), expected_minutes())
    pd.testing.assert_frame_equal(read_candles(frame.assign(date=frame["date"].astype("category"))), expected_minutes())


@pytest.mark.parametrize("index", [True, False])
def test_tables_that_pandas_saved_without_names_are_read(index, tmp_path):
    path = write(tmp_path, pd.DataFrame(MINUTES).to_csv(index=index))
    pd.testing.assert_frame_equal(read_candles(path), expected_minutes())


@pytest.mark.parametrize("orient", ["records", "split", "index", "columns", "values", "table"])
def test_every_orient_of_to_json_is_read(orient, tmp_path):
    frame = pd.DataFrame(MINUTES, columns=NAMES)
    pd.testing.assert_frame_equal(read_candles(write(tmp_path, frame.to_json(orient=orient))), expected_minutes())
    if orient in ("split", "index", "columns"):
        dated_rows = frame.set_index("date").to_json(orient=orient)
        pd.testing.assert_frame_equal(read_candles(write(tmp_path, dated_rows)), expected_minutes())


def test_other_tables_are_named():
    polars = type("DataFrame", (), {"__module__": "polars.dataframe.frame", "to_pandas": None})
    lazy = type("LazyFrame", (), {"__module__": "polars.lazyframe.frame", "collect": None})
    assert "got polars.DataFrame; pass its .to_pandas()" in message(polars())
    assert "got polars.LazyFrame; pass its .collect().to_pandas()" in message(lazy())


POLARS = FIELD / "polars.feather"  # written by polars 2.1, which frames its schema in another way than pyarrow


def test_a_feather_file_of_polars_is_read():
    candles = read_candles(POLARS)
    pd.testing.assert_frame_equal(candles, synthetic_candles(5))


@pytest.mark.parametrize("batch", [3, 20])
def test_a_feather_file_of_several_batches_is_measured_and_read(batch, tmp_path):
    path = tmp_path / "candles.feather"
    table = pa.Table.from_pandas(expected_minutes())
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)
    pd.testing.assert_frame_equal(read_candles(path), expected_minutes())


# Size


def bomb(kind):
    """A file that is small and would be large."""
    if kind == "gzip":
        return gzip.compress(b"1704153600000,1,1,1,1,1\n" * 2_000_000, 9)
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as handle:
            handle.writestr("a.csv", b"1704153600000,1,1,1,1,1\n" * 2_000_000)
        return buffer.getvalue()
    alike = pa.table({name: np.zeros(3_000_000) for name in NAMES})
    if kind == "parquet":
        pa.parquet.write_table(alike, buffer)
    else:
        with pa.ipc.new_file(buffer, alike.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(alike)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["gzip", "zip", "parquet", "feather"])
def test_a_bomb_is_refused(kind, tmp_path):
    text = message(write(tmp_path, bomb(kind)))
    assert "so it holds no candles" in text or "they are no candles" in text


def test_what_is_no_file_is_refused(tmp_path):
    pipe, link, sparse = tmp_path / "pipe", tmp_path / "link", tmp_path / "sparse.csv"
    os.mkfifo(pipe)
    link.symlink_to("/dev/zero")
    with sparse.open("wb") as handle:
        handle.write(b"date,open,high,low,close,volume\n")
        handle.truncate(2**31)
    for path, words in ((pipe, "a device or a pipe?"), (link, "a device or a pipe?"), (sparse, "a sparse file")):
        assert words in message(path)


def test_the_budget_is_kept(tmp_path):
    path = write(tmp_path, csv_of(MINUTES))
    assert "more than max_bytes (100 bytes)" in message(path, max_bytes=100)
    packed = write(tmp_path, gzip.compress(csv_of(MINUTES).encode()))
    assert "more than max_bytes (400 bytes)" in message(packed, max_bytes=400)
    with pytest.raises(CandleError, match="max_bytes"):
        unpack(packed.read_bytes(), "'a'", 400)


def test_wide_tables_and_long_lines_are_refused(tmp_path):
    wide = [*NAMES, *(f"c{i}" for i in range(100_000))]
    assert "columns" in message(write(tmp_path, ",".join(wide) + "\n" + ",".join(["1"] * len(wide))))
    assert "names" in message(write(tmp_path, json.dumps([dict.fromkeys(wide, 1)])))
    assert "list of candles is expected" in message(write(tmp_path, json.dumps(dict.fromkeys(wide[6:], 1))))
    buffer = io.BytesIO()
    pa.parquet.write_table(pa.table({name: [1] for name in wide[:2000]}), buffer)
    assert "2,000 columns" in message(write(tmp_path, buffer.getvalue()))
    assert "a line of more than 1 MiB" in message(write(tmp_path, csv_of(MINUTES) + "1" * 9_000_000))
    json_line = '[["1", "' + "1" * 9_000_000 + '", "1"]]'
    assert "a line of more than 1 MiB" in message(write(tmp_path, json_line))


@pytest.mark.parametrize("start", ["", csv_of(MINUTES), "["])
def test_a_line_of_64_megabytes_is_refused_in_its_first_part(start, tmp_path, monkeypatch):
    counts = []
    add = _Gauge.add
    monkeypatch.setattr(_Gauge, "add", lambda self, chunk: (counts.append(len(chunk)), add(self, chunk)))
    path = write(tmp_path, start.encode() + b"1" * 2**26)
    assert "a line of more than 1 MiB" in message(path)
    assert sum(counts) <= 2 * 2**22
    if not start:
        assert "a line of more than 1 MiB" in message(write(tmp_path, gzip.compress(b"1" * 2**26)))


def test_long_lines_between_short_ones_are_refused(tmp_path):
    text = csv_of(MINUTES).encode() * 2000
    assert "a line of more than 1 MiB" in message(write(tmp_path, text + b"1" * 3 * 2**20 + b"\n" + text))


def test_long_texts_in_cells_are_refused(tmp_path):
    columns = {name: [row[place] for row in MINUTES] for place, name in enumerate(NAMES)}
    for name, text in (("date", "x"), ("date", "1"), ("open", "x"), ("open", "1,"), ("close", " "), ("symbol", "x")):
        table = {**columns, name: [text * 2**20] * 20}
        buffer = io.BytesIO()
        pa.parquet.write_table(pa.table(table), buffer)
        words = message(write(tmp_path, buffer.getvalue()), timezone="UTC")
        assert f"row 0, column {name}: a text of {len(text) * 2**20:,} characters" in words and len(words) < 300
    short = [[str(row[0]), *row[1:]] for row in MINUTES]
    short[3][2] = "1" * 1001
    assert "row 3, column high: a text of 1,001 characters" in message(short)
    frame = pd.DataFrame(MINUTES, columns=NAMES, index=range(100, 120)).assign(pair=["BTC"] * 19 + ["B" * 2000])
    assert "row 19, column pair: a text of 2,000 characters" in message(frame)
    assert "row 19, column pair: a text of 2,000" in message(frame.assign(pair=frame["pair"].astype("category")))


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"\xd0\xcf\x11\xe0", "an old Excel workbook"),
        (b"%PDF-1.7", "a PDF document"),
        (b"SQLite format 3\0", "an SQLite database"),
        (b"BZh91AY", "a bzip2 archive"),
        (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
        (b"a" * 257 + b"ustar", "a tar archive"),
    ],
)
def test_known_files_are_named(start, words, tmp_path):
    assert words in message(write(tmp_path, start))


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "cp1250"])
def test_text_in_another_encoding_is_named(encoding, tmp_path):
    text = csv_of([[*row, "é"] for row in MINUTES], "date,open,high,low,close,volume,währung")
    words = message(write(tmp_path, text.encode(encoding)))
    assert "text in another encoding than UTF-8" in words and "line 1 holds the byte 0xe4" in words
    assert "iconv -f latin1 -t utf-8" in words
    noise = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8).tobytes()
    assert "neither text in UTF-8 nor feather" in message(write(tmp_path, noise))


def test_a_long_history_is_read_as_it_was():
    candles = synthetic_candles(5000)
    pd.testing.assert_frame_equal(read_candles(candles, timeframe="1m"), candles)
