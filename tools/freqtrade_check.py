"""Run a strategy of `crypto-lstm freqtrade` in freqtrade, against an exchange on this machine: `make bot`.

    freqtrade_check.py [--environment .venv-freqtrade] [--place DIR] [--no-dry-run]

freqtrade and our wheel, without TensorFlow, are installed in an environment of their own. Nothing beyond 127.0.0.1 is
asked. A model is trained on a market with a planted edge; after that:

    download-data           spot and futures, with mark prices and funding rates
    backtesting             spot, futures, and a model with columns of the user's and barriers that follow the market;
                            every trade is compared with the simulator of this package
    hyperopt                the margin, two workers
    lookahead-analysis      no biased signal
    recursive-analysis      no indicator depends on the startup candles
    trade --dry-run         five minutes: opens a trade, is killed with -9, goes on from its state, and closes it

freqtrade ends with 0 after some errors, so its log is read as well.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.fake_exchange import FakeClock, FakeExchange, Market, list_ccxt_urls, make_market  # noqa: E402

from crypto_lstm.config import LONG, SHORT  # noqa: E402
from crypto_lstm.evaluation.simulator import Costs, simulate  # noqa: E402
from crypto_lstm.inference.predictor import Predictor, load_run_predictor  # noqa: E402

MINUTE_MS = 60_000
DAYS, TEST_DAYS, SEED = 36, 2, 5
SETTINGS = """
    pair=BTCUSDT timeframe=1m sequence_length=24 lstm_units=16 dense_units=8 epochs=3 batch_size=128 future_window=3
    long_tp_pct=0.15 long_sl_pct=0.1 short_tp_pct=0.15 short_sl_pct=0.12 fee_pct=0.005 validation_split=0.25
"""
COLUMN_SETTINGS = [  # of a model whose features need more than the candle, and whose barriers follow the market
    *SETTINGS.split(),
    "features=close_change,high_change,low_change,eth=pct(eth_close),rate=100*funding",
    "barrier_scale=std(pct(close), 2h)",
    "long_tp_pct=2.5",
    "long_sl_pct=2",
    "short_tp_pct=2.2",
    "short_sl_pct=2",
]
ADD_COLUMNS = """        first = dataframe["date"].iloc[0]
        eth = self.get_candles("ETH/USDT:USDT", first)[["date", "close"]].rename(columns={"close": "eth_close"})
        rates = self.get_candles(metadata["pair"], first - pd.Timedelta(days=1), "1h", "funding_rate")
        rates = rates[["date", "open"]].rename(columns={"open": "funding"})  # paid at the opening or before
        return pd.merge_asof(dataframe.merge(eth, on="date", how="left"), rates, on="date")
"""
FUNDING_PCT = 0.01  # of eight hours, as the exchange has it
PROFIT_TOLERANCE = 1e-6
DRY_RUN_S = 300.0  # from the first start of the bot to its end
LONGEST_WAIT_S = 600.0  # of a step of the dry run, on a busy machine
SLOW_S = 90.0  # that freqtrade may be late with an exit, on a busy machine
BOOK = (  # of freqtrade's table of trades
    "id",
    "is_open",
    "is_short",
    "open_date",
    "open_rate",
    "amount",
    "leverage",
    "enter_tag",
    "close_date",
    "close_rate",
    "close_profit",
    "exit_reason",
)
BAD_LINES = re.compile(r"ConfigurationError|OperationalException|StrategyError|Traceback| - ERROR - |Fatal exception")


# ---------------------------------------------------------------- the place and its programs


@dataclass(frozen=True)
class Place:
    """The folder of the check, and the programs in it."""

    folder: Path
    freqtrade: Path  # program of the environment
    url: str  # of the exchange

    @property
    def strategies(self) -> Path:
        return self.folder / "user_data" / "strategies"

    def run(self, name: str, *words: str, log: str) -> str:
        """Run a command of freqtrade; its log. Ends the check if it fails, or if the log has an error."""
        began = time.monotonic()
        command = [self.freqtrade, name, *words]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, env=make_environment())
        text = done.stdout + done.stderr
        (self.folder / f"{log}.log").write_text(text, encoding="utf-8")
        bad = [line for line in text.splitlines() if BAD_LINES.search(line)]
        if done.returncode or bad:
            shown = "\n".join([*bad[:5], text[-3000:]])
            raise SystemExit(f"freqtrade {name} ended with {done.returncode}:\n{shown}")
        print(f"{log}: {time.monotonic() - began:.0f} s", flush=True)
        return text


def make_environment() -> dict[str, str]:
    """The variables of a program that finds none of our modules but those that are installed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FREQTRADE"))}
    proxies = dict.fromkeys(
        ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9"
    )
    return {
        **kept,
        **proxies,
        "no_proxy": "127.0.0.1",
        "NO_PROXY": "127.0.0.1",
        "COLUMNS": "200",
        "TZ": "UTC",  # of the times in a log
        "OMP_NUM_THREADS": "1",
    }


def run_own(*words: str | Path, folder: Path) -> str:
    """Run `crypto-lstm` of this checkout; its standard output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder / "state")}
    command = [sys.executable, "-c", "import sys; from crypto_lstm.commands.main import main; sys.exit(main())"]
    done = subprocess.run([*command, *map(str, words)], cwd=folder, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"crypto-lstm {words[0]} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def write_exchange_config(path: Path, url: str) -> Path:
    """The configuration that sends freqtrade to the exchange of this machine."""
    options = {"fetchMarkets": {"types": ["spot", "linear"]}}
    ccxt_config = {"urls": {"api": list_ccxt_urls(url)}, "options": options}
    exchange = {"ccxt_config": ccxt_config, "enable_ws": False, "only_from_ccxt": True}
    path.write_text(json.dumps({"exchange": exchange, "internals": {"process_throttle_secs": 1}}), encoding="utf-8")
    return path


def check_environment(environment: Path) -> None:
    """`pip check` finds nothing: a bot has all that the wheel requires without extras."""
    words = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "check"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"pip check in {environment}:\n{done.stdout}")
    code = "import sys, crypto_lstm.inference.strategy; print('tensorflow' in sys.modules, crypto_lstm.__file__)"
    python = environment / "bin" / "python"
    done = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, cwd="/", env=make_environment(), check=True
    )
    is_loaded, path = done.stdout.split(maxsplit=1)
    assert is_loaded == "False" and str(environment.resolve()) in path, done.stdout
    print("environment: pip check is clean, and the package is that of the wheel")


# ---------------------------------------------------------------- a trained model


def train_model(candles: pd.DataFrame, folder: Path, name: str, settings: Sequence[str]) -> Predictor:
    """Train on the history but its last days, which stay unseen."""
    last = len(candles) - (TEST_DAYS + 1) * 1440
    candles[:last].to_feather(folder / f"{name}.feather")
    words = ["--candles", f"{name}.feather", "--output", name, "--no-tensorboard", "--json", "--set", *settings]
    began = time.monotonic()
    run_own("train", *words, folder=folder)
    predictor = load_run_predictor(folder / name)
    assert predictor is not None
    print(f"train {name}: {time.monotonic() - began:.0f} s, decides by {predictor.policy}", flush=True)
    return predictor


def write_strategy(folder: Path, model: str, name: str, mode: str) -> Path:
    """The strategy of a model."""
    words = ("--model", model, "--output", "user_data/strategies", "--name", name, "--trading-mode", mode, "--json")
    values = json.loads(run_own("freqtrade", *words, folder=folder))
    assert len(values["next"]) == 2, values
    return Path(values["strategy"])


# ---------------------------------------------------------------- backtests beside the simulator


def read_trades(folder: Path, strategy: str) -> pd.DataFrame:
    """The trades of the newest backtest of a strategy."""
    for path in sorted((folder / "user_data" / "backtest_results").glob("*.zip"), reverse=True):
        with zipfile.ZipFile(path) as archive:
            found = json.loads(archive.read(f"{path.stem}.json"))["strategy"]
        if strategy in found:
            table = pd.DataFrame(found[strategy]["trades"])
            for name in ("open_date", "close_date"):
                table[name] = pd.to_datetime(table[name], utc=True)
            return table
    raise SystemExit(f"no result of {strategy}")


@dataclass(frozen=True)
class Comparison:
    """freqtrade's trades beside those of the simulator."""

    trades: int  # of freqtrade
    own_trades: int  # of the simulator, left to itself
    common: int  # with the same entry, side and exit
    largest_difference: float  # of the profit ratio, over all trades of freqtrade
    reasons: dict[str, int]  # why the two lists differ

    def __str__(self) -> str:
        found = ", ".join(f"{count} {reason}" for reason, count in self.reasons.items() if count)
        same = f"{self.trades} trades, each with the side, times and profit of the simulator"
        within = f"largest difference of a profit {self.largest_difference:.1e}"
        own = f"the simulator alone: {self.own_trades} trades, {self.common} of them the same"
        return f"{same}; {within}; {own}; differences: {found or 'none'}"


def compare_trades(
    trades: pd.DataFrame,  # of freqtrade
    candles: pd.DataFrame,  # on disk, without a gap
    predictor: Predictor,
    first: pd.Timestamp,  # of the first candle that freqtrade may see a signal in
    is_spot: bool,
) -> Comparison:
    """Explain every difference between freqtrade and the simulator. Fails if one is left."""
    answers = predictor.predict(candles)
    decided = answers["decision"]
    classes = np.select([decided == "LONG", (decided == "SHORT") & (not is_spot)], [LONG, SHORT], 1)
    dates = pd.DatetimeIndex(answers["date"]).tz_localize("UTC")
    rows = np.searchsorted(pd.DatetimeIndex(candles["date"]).as_unit("ns").asi8, dates.as_unit("ns").asi8)
    kept = (dates >= first) & (rows < len(candles) - 2)
    rows, classes = rows[kept], classes[kept].astype(np.int8)
    funding = 0.0 if is_spot else FUNDING_PCT
    costs = Costs(fee_pct=predictor.config.fee_pct, funding_pct_per_8h=funding)

    def simulate_rows(places: np.ndarray, slots: int) -> pd.DataFrame:
        config = predictor.config
        return simulate(candles, rows[places], classes[places], config, costs, slots, random_runs=0).trades

    signals = np.flatnonzero(classes != 1)
    singles = simulate_rows(signals, 50)  # every signal is traded: what each would return
    assert len(singles) == len(signals), (len(singles), len(signals))
    step = pd.Timedelta(minutes=predictor.config.timeframe_minutes)
    expected, reasons = replay_entries(singles, step)
    replayed = singles.iloc[expected].reset_index(drop=True)
    largest = require_equal(trades, replayed, step, predictor.config.fee_pct / 100, funding)
    reasons[FUNDED] = int((find_edge_funding(replayed.iloc[: len(trades)], funding) != 0).sum())
    alone = simulate_rows(signals, 1)
    own = set(zip(alone["entry_time"], alone["side"], alone["exit_time"], strict=True))
    theirs = singles.iloc[expected[: len(trades)]]
    common = len(own & set(zip(theirs["entry_time"], theirs["side"], theirs["exit_time"], strict=True)))
    return Comparison(len(trades), len(alone), common, largest, reasons)


FUNDED = "entries and exits at a time of funding (freqtrade counts it, the simulator does not)"
SAME_SIDE = "signals of the same side at a time limit (freqtrade enters no candle at whose open it left)"
REVERSAL = "reversals at the open of the candle in which the trade before ended (freqtrade looks back)"


def replay_entries(singles: pd.DataFrame, step: pd.Timedelta) -> tuple[list[int], dict[str, int]]:
    """Which signals freqtrade trades, by its rules: a plain loop over the candles of the entries.

    A position occupies the candles from its entry to that of its exit; one that ends at the time limit ends at the open
    of the next candle. In the candle of the exit only the other side may be entered, at its open.
    """
    taken: list[int] = []
    reasons = Counter({SAME_SIDE: 0, REVERSAL: 0})
    left, side, by_limit = pd.Timestamp(0, tz="UTC"), "", False
    for number, trade in enumerate(singles.itertuples()):
        if trade.entry_time < left or (trade.entry_time == left and trade.side == side):
            reasons[SAME_SIDE] += trade.entry_time == left and by_limit
            continue
        reasons[REVERSAL] += trade.entry_time == left and not by_limit
        taken.append(number)
        by_limit = trade.reason == "timeout"
        left = trade.exit_time if by_limit else trade.exit_time - step
        side = trade.side
    return taken, dict(reasons)


REASONS = {"roi": "target", "stop_loss": "stop", "lstm_time_limit": "timeout"}


def find_edge_funding(trades: pd.DataFrame, funding_pct: float) -> pd.Series:
    """What freqtrade pays for a position that is entered or left at the very time of funding, percent of its value.

    The simulator counts the times of funding after the entry, up to the open of the candle of the exit.
    """
    entered, left = (trades[name].dt.floor("8h") == trades[name] for name in ("entry_time", "exit_time"))
    value = trades["exit_price"] / trades["entry_price"]
    due = entered.astype(float) + (left & (trades["reason"] == "timeout")) * value
    return due * trades["side"].map({"long": funding_pct, "short": -funding_pct})


def require_equal(
    trades: pd.DataFrame, expected: pd.DataFrame, step: pd.Timedelta, fee: float, funding_pct: float
) -> float:
    """Fail unless both lists hold the same trades; the largest difference of a profit.

    The last trade may be open at the end of the data, where freqtrade closes it by force.
    """
    if len(trades) and trades["exit_reason"].iloc[-1] == "force_exit":
        trades = trades.iloc[:-1]
    shown = expected.iloc[: len(trades)]
    assert len(expected) - len(trades) <= 2, f"{len(trades)} trades of freqtrade, {len(expected)} of its rules"
    is_short = trades["is_short"].to_numpy(bool)
    assert (np.where(is_short, "short", "long") == shown["side"].to_numpy()).all()
    assert (trades["open_date"].to_numpy() == shown["entry_time"].to_numpy()).all()
    ended = trades["exit_reason"].map(REASONS).to_numpy()
    differ = ended != shown["reason"].to_numpy()
    assert not differ.any(), pd.concat([trades[differ], shown[differ]], axis=1).to_string()
    left = shown["exit_time"] - (shown["reason"] != "timeout").astype(int) * step
    assert (trades["close_date"].to_numpy() == left.to_numpy()).all()
    invested = 1 + np.where(is_short, -fee, fee)  # freqtrade divides by the value with its fee
    profits = (shown["net_pct"] - find_edge_funding(shown, funding_pct)).to_numpy() / 100 / invested
    differences = np.abs(trades["profit_ratio"].to_numpy() - profits)
    worst = int(differences.argmax())
    assert differences[worst] <= PROFIT_TOLERANCE, (differences[worst], trades.iloc[worst], shown.iloc[worst])
    return float(differences[worst])


def check_columns(place: Place, market: Market, other: Market, first: pd.Timestamp) -> None:
    """A model with columns of the user's, and barriers that follow the market. Without the columns nothing starts."""
    eth = other.as_frame()[["date", "close"]].rename(columns={"close": "eth_close"})
    candles = market.as_frame().merge(eth, on="date").assign(funding=FUNDING_PCT / 100)
    predictor = train_model(candles, place.folder, "columns", COLUMN_SETTINGS)
    file = place.folder / write_strategy(place.folder, "columns", "Columns", "futures")
    config = ("--config", "user_data/strategies/Columns.config.json", "--config", "exchange.json")
    command = [place.freqtrade, "backtesting", *config, "--timerange", f"{first:%Y%m%d}-", "--cache", "none"]
    done = subprocess.run(command, cwd=place.folder, capture_output=True, text=True, env=make_environment())
    text = re.sub(r"\s+", " ", done.stdout + done.stderr)
    assert "the model needs eth_close, funding beside each candle" in text and "BACKTESTING REPORT" not in text, text
    strategy = file.read_text(encoding="utf-8")
    assert strategy.count("        return dataframe\n\n    def get_candles") == 1, strategy
    strategy = strategy.replace(
        "        return dataframe\n\n    def get_candles", f"{ADD_COLUMNS}\n    def get_candles"
    )
    file.write_text(strategy, encoding="utf-8")
    words = ("--timeframes", "1m", "--days", str(DAYS - 1), "--pairs", "ETH/USDT:USDT")
    place.run("download-data", *config, *words, log="download-data ETH")
    check_backtest(place, "Columns", predictor, first, eth)


def check_backtest(
    place: Place, strategy: str, predictor: Predictor, first: pd.Timestamp, eth: pd.DataFrame | None = None
) -> None:
    """Download, backtest and compare."""
    config = ("--config", f"user_data/strategies/{strategy}.config.json", "--config", "exchange.json")
    words = ("--timeframes", "1m", "--days", str(DAYS - 1))
    log = place.run("download-data", *config, *words, log=f"download-data {strategy}")
    kinds = ("mark", "funding_rate") if strategy == "Futures" else ()  # those of the third are there already
    assert all(f", {kind} with length" in log for kind in kinds), log
    options = ("--timerange", f"{first:%Y%m%d}-", "--cache", "none", "--export", "trades")
    place.run("backtesting", *config, *options, log=f"backtesting {strategy}")
    data = place.folder / "user_data" / "data" / "binance"
    file = data / ("BTC_USDT-1m.feather" if strategy == "Spot" else "futures/BTC_USDT_USDT-1m-futures.feather")
    candles = pd.read_feather(file).astype({"date": "datetime64[ns, UTC]"})
    if eth is not None:
        candles = candles.merge(eth, on="date").assign(funding=FUNDING_PCT / 100)
    found = compare_trades(read_trades(place.folder, strategy), candles, predictor, first, strategy == "Spot")
    assert found.trades > 50, found
    print(f"{strategy}: {found}", flush=True)


# ---------------------------------------------------------------- the analyses


def check_analyses(place: Place, first: pd.Timestamp) -> None:
    """hyperopt, lookahead-analysis and recursive-analysis, on the futures."""
    config = ("--config", "user_data/strategies/Futures.config.json", "--config", "exchange.json")
    span = ("--timerange", f"{first:%Y%m%d}-{first + pd.Timedelta(days=1):%Y%m%d}")
    search = ("--spaces", "buy", "--epochs", "6", "-j", "2", "--random-state", "1", "--min-trades", "1")
    loss = ("--hyperopt-loss", "OnlyProfitHyperOptLoss", "--disable-param-export", "--print-all")
    log = place.run("hyperopt", *config, *span, *search, *loss, log="hyperopt")
    assert "Effective number of parallel workers used: 2" in log, log[-3000:]
    assert log.count("answers with") == 1, "the network ran more than once"
    (found,) = (place.folder / "user_data" / "hyperopt_results").glob("*.fthypt")
    tried = [json.loads(line) for line in found.read_text(encoding="utf-8").splitlines()]
    margins = [one["params_dict"]["threshold"] for one in tried]
    traded = [one["results_metrics"]["total_trades"] for one in tried]
    assert len(set(margins)) > 1 and max(traded) > 0, (margins, traded)
    amounts = ("--targeted-trade-amount", "10", "--minimum-trade-amount", "5")
    log = place.run("lookahead-analysis", *config, *span, *amounts, log="lookahead-analysis")
    assert "Futures: no bias detected" in log, log[-3000:]
    log = place.run(
        "recursive-analysis", *config, *span, "--startup-candle", "24", "100", "400", log="recursive-analysis"
    )
    assert "No variance on indicator(s) found" in log and "No lookahead bias on indicators found" in log, log[-3000:]


def check_refusals(place: Place) -> None:
    """A strategy whose model changed, or whose configuration has another pair, starts nothing: freqtrade says so."""
    text = (place.strategies / "Spot.py").read_text(encoding="utf-8")
    pin = re.search(r'SHA256 = "(\w+)"', text).group(1)
    (place.strategies / "Changed.py").write_text(text.replace(pin, "0" * 64).replace("class Spot", "class Changed"))
    other = {"exchange": {"pair_whitelist": ["ETH/USDT"]}}
    (place.folder / "other.json").write_text(json.dumps(other))
    config = ("--config", "user_data/strategies/Spot.config.json", "--config", "exchange.json")
    for words, said in (
        (("--strategy", "Changed"), "expected the sha256 0000"),
        (("--config", "other.json"), "expected the pair BTCUSDT that the model was trained on, got 'ETH/USDT'"),
    ):
        command = [place.freqtrade, "trade", "--dry-run", "--db-url", "sqlite://", *config, *words]
        done = subprocess.run(
            command, cwd=place.folder, capture_output=True, text=True, env=make_environment(), timeout=180
        )
        text = re.sub(r"\s+", " ", done.stdout + done.stderr)
        assert said in text and "state='RUNNING'" not in text, (done.returncode, text)
    print("a changed model and another pair: refused when freqtrade starts", flush=True)


# ---------------------------------------------------------------- dry run


def choose_piece(market: Market, predictor: Predictor, candles: int = 9) -> int:
    """The row of a piece of the unseen part with the most signals, from which the dry run starts."""
    frame = market.as_frame()
    decided = predictor.predict(frame)["decision"]
    is_signal = (decided == "LONG") | (decided == "SHORT")
    shift = len(frame) - len(decided)
    dense = np.convolve(is_signal, np.ones(candles), mode="valid")
    first = len(dense) - 1440
    return shift + first + int(dense[first:-60].argmax())  # the dry run lasts for less than an hour


def shift_market(market: Market, row: int, moment_ms: int) -> Market:
    """The market, moved in time: the candle `row` opens at a moment."""
    return replace(market, times=market.times + (moment_ms - int(market.times[row])))


@contextmanager
def run_bot(place: Place, log: Path) -> Iterator[subprocess.Popen]:
    """A dry run; it is killed at the end, if it still runs."""
    config = ("--config", "user_data/strategies/Futures.config.json", "--config", "dry.json")
    command = [place.freqtrade, "trade", "--dry-run", *config, "--db-url", f"sqlite:///{place.folder}/dry.sqlite"]
    with log.open("a") as file:
        process = subprocess.Popen(command, cwd=place.folder, stdout=file, stderr=file, env=make_environment())
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def read_book(place: Place) -> pd.DataFrame:
    """The trades in the database of the dry run, in the order of their entry."""
    path = place.folder / "dry.sqlite"
    if not path.exists():
        return pd.DataFrame({name: [] for name in BOOK})
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as base:
        try:
            rows = base.execute(f"select {', '.join(BOOK)} from trades order by id").fetchall()
        except sqlite3.OperationalError:  # the table is not there yet
            rows = []
    return pd.DataFrame(rows, columns=list(BOOK))


def count_trades(place: Place) -> tuple[int, int]:
    """Open and closed trades in the database of the dry run."""
    is_open = read_book(place)["is_open"]
    return int(is_open.sum()), int((is_open == 0).sum())


def wait_for(name: str, is_done: Callable[[], bool], process: subprocess.Popen, log: Path) -> None:
    """Wait until something has happened; ends the check if the bot ends first, or after `LONGEST_WAIT_S`."""
    end = time.monotonic() + LONGEST_WAIT_S
    while not is_done():
        if process.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"dry run: {name} did not happen:\n{log.read_text()[-5000:]}")
        time.sleep(1.0)


@dataclass(frozen=True)
class DryRun:
    """What a dry run left: its log, its trades at the kill and at the end."""

    before: str  # log until the kill
    after: str  # log of the second process
    killed: pd.DataFrame  # trades at the kill
    ended: pd.DataFrame  # trades at the end
    state_age_s: float  # of the saved state at the kill
    seconds: float  # from the first start to the end


def run_dry(place: Place, log: Path) -> DryRun:
    """Open a trade, kill -9, start again, close it, go on, and end after five minutes.

    The second process gets SIGTERM, and ends by itself; its exit code is that of an interrupt.
    """
    began = time.monotonic()
    with run_bot(place, log) as bot:
        wait_for("an open trade", lambda: count_trades(place)[0] >= 1, bot, log)
        bot.send_signal(signal.SIGKILL)
        bot.wait()
    killed, state_age_s = read_book(place), time.time() - find_state(place).stat().st_mtime
    before = log.read_text()
    with run_bot(place, log) as bot:
        wait_for("the end of the trade that was open", lambda: count_trades(place)[1] >= len(killed), bot, log)
        wait_for("a decision after the kill", lambda: bool(read_answers(log.read_text()[len(before) :])), bot, log)
        wait_for("the end of five minutes", lambda: time.monotonic() - began >= DRY_RUN_S, bot, log)
        stopped = time.time()
        bot.send_signal(signal.SIGTERM)
        bot.wait(LONGEST_WAIT_S)
    assert find_state(place).stat().st_mtime >= stopped - 1, "the state was not saved at the end"
    after = log.read_text()[len(before) :]
    assert "Cleaning up modules" in after, after[-5000:]
    return DryRun(before, after, killed, read_book(place), state_age_s, time.monotonic() - began)


def find_state(place: Place) -> Path:
    """The saved stream of the only pair."""
    (state,) = (place.folder / "user_data" / "crypto_lstm").glob("*.npz")
    return state


def check_dry_run(place: Place, market: Market, predictor: Predictor) -> None:
    """Run the dry run on a piece of the unseen part, moved to now, and check all that it left."""
    begin_ms = (int(time.time() * 1000) // MINUTE_MS + 1) * MINUTE_MS
    shifted = shift_market(market, choose_piece(market, predictor), begin_ms)
    with FakeExchange([shifted], FakeClock()).serve() as url:
        write_exchange_config(place.folder / "dry.json", url)
        done = run_dry(place, place.folder / "dry run.log")
    bad = [line for line in (done.before + done.after).splitlines() if BAD_LINES.search(line)]
    assert not bad, bad
    answers = read_answers(done.before) + read_answers(done.after)
    require_answers(answers, shifted, predictor)
    require_every_candle(read_answers(done.after))
    require_continued(done)
    require_state(place, shifted, predictor)
    require_book(done, answers, predictor)
    delays = [answer.logged_s - answer.opened_s - 60 for answer in answers]
    took = np.array([answer.took_ms for answer in answers])
    print(
        f"dry run: {done.seconds:.0f} s, {len(done.ended)} trades, each with its signal, "
        f"{int(done.killed['is_open'].sum())} open over the kill -9; {len(answers)} decisions as in predict, every "
        f"candle of the second process among them; an answer takes {np.median(took):.0f} ms, at most {took.max():.0f} "
        f"ms, and is there {np.median(delays):.0f} s after the close, at most {max(delays):.0f} s; the state equals "
        "that of a new stream",
        flush=True,
    )


@dataclass(frozen=True)
class Answer:
    """A decision in the log of freqtrade."""

    opened_s: int  # opening of the candle, seconds since 1970
    decision: str
    took_ms: float
    logged_s: float  # seconds since 1970


LOGGED = re.compile(
    r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) - .*"
    r"BTC/USDT:USDT: (\d{4}-\d\d-\d\d \d\d:\d\d:00\+00:00): (\w+), ([\d.]+) ms$",
    re.MULTILINE,
)


def read_answers(log: str) -> list[Answer]:
    """The decisions in a log, in its order."""
    answers = []
    for logged, opened, decision, took_ms in LOGGED.findall(log):
        logged_s = datetime.strptime(logged, "%Y-%m-%d %H:%M:%S,%f").replace(tzinfo=UTC).timestamp()
        answers.append(Answer(int(datetime.fromisoformat(opened).timestamp()), decision, float(took_ms), logged_s))
    return answers


def require_answers(answers: list[Answer], market: Market, predictor: Predictor) -> None:
    """The decisions of the dry run equal those of `predict` on the same candles, none before its candle has closed."""
    history = predictor.predict(market.as_frame())
    dates = history["date"].astype("datetime64[s]").astype(np.int64).tolist()
    expected = dict(zip(dates, history["decision"].tolist(), strict=True))
    assert answers
    for answer in answers:
        assert expected[answer.opened_s] == answer.decision, answer
        assert answer.logged_s >= answer.opened_s + 60, answer


def require_every_candle(answers: list[Answer]) -> None:
    """One process answers each candle once, from its first to its last."""
    opened = [answer.opened_s for answer in answers]
    assert opened == list(range(opened[0], opened[-1] + 60, 60)), opened


def require_continued(done: DryRun) -> None:
    """The second process began with the saved state, and fetched no more than the candles since then."""
    (count,) = re.findall(r"warm-up from the saved state and the exchange, (\d+) candles", done.after)
    assert int(count) <= done.state_age_s / 60 + 5, (count, done.state_age_s)
    assert "warm-up from the exchange" in done.before and "warm-up from the exchange" not in done.after, done.after


def require_state(place: Place, market: Market, predictor: Predictor) -> None:
    """The saved stream equals a new one that got the candles of the exchange: nothing was invented or lost."""
    saved = replace(predictor, stream=None).load_state(find_state(place)).stream
    frame = market.as_frame()
    own = replace(predictor, stream=None)
    own.warm_up(frame[frame["date"] <= pd.Timestamp(saved.time, tz="UTC")], now=datetime.now(UTC))
    assert saved.time == own.stream.time
    assert not saved.find_holes() and not saved.filled_in_window(), saved.find_holes()
    assert np.array_equal(saved.window(), own.stream.window())


def require_book(done: DryRun, answers: list[Answer], predictor: Predictor) -> None:
    """The trades of both processes are one history: a signal for each entry, one position at a time, known exits."""
    known = done.ended.iloc[: len(done.killed)]
    entries = ["id", "is_short", "open_date", "open_rate", "amount", "enter_tag"]
    was_closed = done.killed["is_open"] == 0
    for names, rows in ((entries, slice(None)), (list(BOOK), was_closed)):
        same = known.loc[rows, names].to_numpy().tolist() == done.killed.loc[rows, names].to_numpy().tolist()
        assert same, (known, done.killed)
    left = pd.Timestamp(0, tz="UTC")
    for trade in done.ended.itertuples():
        entered = pd.Timestamp(trade.open_date, tz="UTC")
        signal_before = [one for one in answers if one.logged_s <= entered.timestamp()][-1]
        side = "SHORT" if trade.is_short else "LONG"
        assert signal_before.decision == side and trade.enter_tag == f"lstm_{side.lower()}", (trade, signal_before)
        assert entered >= left and trade.leverage == 1.0, trade
        if trade.is_open:
            assert trade.Index == len(done.ended) - 1, trade
            continue
        left = pd.Timestamp(trade.close_date, tz="UTC")
        require_exit(trade, entered, left, predictor)


def require_exit(trade: Any, entered: pd.Timestamp, left: pd.Timestamp, predictor: Predictor) -> None:
    """A trade ended at its target with a profit, at its stop with a loss, or after its candles, and not later."""
    reason = trade.exit_reason.removeprefix("trailing_")
    limit = entered.floor("min") + pd.Timedelta(minutes=predictor.config.future_window)
    assert reason in REASONS, trade
    assert reason != "lstm_time_limit" or left >= limit, trade
    assert left <= limit + pd.Timedelta(seconds=SLOW_S), trade
    assert reason != "roi" or trade.close_profit > 0, trade
    assert reason != "stop_loss" or trade.close_profit < 0, trade


# ---------------------------------------------------------------- all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, default=ROOT / ".venv-freqtrade")
    parser.add_argument("--place", type=Path, help="folder of the check, kept; default: a temporary one")
    parser.add_argument("--no-dry-run", action="store_true")
    words = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="freqtrade-") as name:
        folder = words.place or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        check_all(folder.resolve(), words.environment.resolve(), not words.no_dry_run)
    print(f"freqtrade: all passed in {time.monotonic() - began:.0f} s")


def check_all(folder: Path, environment: Path, with_dry_run: bool) -> None:
    check_environment(environment)
    market = make_market(days=DAYS, ahead_days=0.1, seed=SEED, edge=1.0)
    history = int(np.searchsorted(market.times, int(time.time() * 1000)))
    known = replace(market, times=market.times[:history], rows=market.rows[:history])
    predictor = train_model(known.as_frame(), folder, "run", SETTINGS.split())
    for name, mode in (("Spot", "spot"), ("Futures", "futures")):
        write_strategy(folder, "run", name, mode)
    first = pd.Timestamp.now("UTC").normalize() - pd.Timedelta(days=TEST_DAYS)
    other = make_market("ETHUSDT", days=DAYS, ahead_days=0.1, seed=SEED + 1)
    with FakeExchange([market, other]).serve() as url, ThreadPoolExecutor(1) as pool:
        place = Place(folder, environment / "bin" / "freqtrade", url)
        write_exchange_config(folder / "exchange.json", url)
        dry_run = pool.submit(check_dry_run, place, known, predictor) if with_dry_run else None
        for strategy in ("Spot", "Futures"):
            check_backtest(place, strategy, predictor, first)
        check_analyses(place, first)
        check_refusals(place)
        check_columns(place, known, other, first)
        if dry_run is not None:
            dry_run.result()


if __name__ == "__main__":
    main()
