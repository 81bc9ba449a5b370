"""A Binance of its own on 127.0.0.1: enough REST, spot and USDT futures, for ccxt and for freqtrade without keys.

Candles are those of a seeded synthetic market, or given ones. They are served as they close on a clock whose speed is
chosen, the open candle last, as Binance does it. Faults are planted by their time:

    exchange = FakeExchange([make_market("BTCUSDT", days=40)], faults=[Fault("gap", time_ms)])
    with exchange.serve() as url:
        ccxt.binance({"urls": {"api": list_ccxt_urls(url)}})

    python -m support.fake_exchange --days 40 --port 8765
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, urlparse

import numpy as np
import pandas as pd

from crypto_lstm.config import TIMEFRAME_MINUTES
from crypto_lstm.data.synthetic import synthetic_candles

MINUTE_MS = 60_000
INTERVALS = {name: minutes * MINUTE_MS for name, minutes in (TIMEFRAME_MINUTES | {"8h": 480, "3d": 4320}).items()}
EIGHT_HOURS_MS = 480 * MINUTE_MS
PRICE_STEP, AMOUNT_STEP, VOLUME_DIGITS = 0.01, {"spot": 0.00001, "futures": 0.001}, 5
MAX_CANDLES = {"spot": 1000, "futures": 1500}
_QUOTES = ("USDT", "USDC", "BTC")


# ---------------------------------------------------------------- market and clock


@dataclass(frozen=True)
class Market:
    """The candles of one market, past and future ones; those of the future are served once they begin."""

    symbol: str  # such as BTCUSDT
    timeframe: str
    times: np.ndarray  # (candles,) int64 milliseconds of the opening, rising
    rows: np.ndarray  # (candles, 5) open, high, low, close, volume

    @property
    def step_ms(self) -> int:
        return INTERVALS[self.timeframe]

    @property
    def base(self) -> str:
        return self.symbol.removesuffix(self.quote)

    @property
    def quote(self) -> str:
        return next(quote for quote in _QUOTES if self.symbol.endswith(quote))

    def as_frame(self) -> pd.DataFrame:
        """The candles as `read_candles` returns them."""
        dates = pd.to_datetime(self.times, unit="ms", utc=True).as_unit("ns")
        return pd.DataFrame({"date": dates, **dict(zip(_NAMES, self.rows.T.copy(), strict=True))})


_NAMES = ("open", "high", "low", "close", "volume")


def market_of(symbol: str, candles: pd.DataFrame, timeframe: str = "1m") -> Market:
    """A market of given candles, in the price step of the exchange."""
    rows = candles[list(_NAMES)].to_numpy(float).copy()
    rows[:, :4] = rows[:, :4].round(2)
    rows[:, 4] = rows[:, 4].round(VOLUME_DIGITS)
    times = pd.DatetimeIndex(candles["date"]).as_unit("ms").asi8.copy()
    return Market(symbol, timeframe, times, rows)


def make_market(
    symbol: str = "BTCUSDT",
    days: float = 40.0,  # of history before `begins`
    ahead_days: float = 1.0,  # of candles after it
    seed: int = 1,
    edge: float = 0.6,
    timeframe: str = "1m",
    begins_ms: int | None = None,  # the moment at which the history ends; None: now
) -> Market:
    """A synthetic market around a moment."""
    step_ms = INTERVALS[timeframe]
    begins = int(time.time() * 1000) if begins_ms is None else begins_ms
    history, ahead = (int(span * 1440 * MINUTE_MS / step_ms) for span in (days, ahead_days))
    start = pd.Timestamp((begins // step_ms - history) * step_ms, unit="ms", tz="UTC")
    return market_of(symbol, synthetic_candles(history + ahead, seed, edge, start, timeframe), timeframe)


class FakeClock:
    """The clock of an exchange: it runs `speed` times as fast as the machine's; 0 leaves it to `advance` and `set`."""

    def __init__(self, start_ms: int | None = None, speed: float = 1.0) -> None:
        self._start_ms = time.time() * 1000 if start_ms is None else float(start_ms)
        self._begun = time.monotonic()
        self.speed = speed

    def now_ms(self) -> int:
        return int(self._start_ms + (time.monotonic() - self._begun) * 1000 * self.speed)

    def set(self, now_ms: float) -> None:
        self._start_ms, self._begun = float(now_ms), time.monotonic()

    def advance(self, seconds: float) -> None:
        self.set(self.now_ms() + seconds * 1000)


# ---------------------------------------------------------------- faults

Kind = Literal["gap", "late", "duplicate", "changed", "out_of_order", "down", "limited", "skew"]


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    gap           the candle that opens at `time_ms` is never served
    late          it is served `lasts_s` seconds after its close
    duplicate     every answer holds it twice
    changed       until `lasts_s` seconds after its close, its close is `size` percent higher; then it is as it was
    out_of_order  every answer has it in the place of the next one
    down          from `time_ms` on, for `lasts_s` seconds, the exchange answers 503
    limited       the same with 429 (too many requests)
    skew          from `time_ms` on, for `lasts_s` seconds (0: for ever), its clock is `size` seconds ahead
    """

    kind: Kind
    time_ms: int
    lasts_s: float = 0.0
    size: float = 0.0
    symbol: str | None = None  # None: all markets

    def concerns(self, symbol: str) -> bool:
        return self.symbol in (None, symbol)

    def is_on(self, now_ms: int) -> bool:
        """Whether a fault of the whole exchange is going on."""
        return self.time_ms <= now_ms < self.time_ms + self.lasts_s * 1000


def plant_faults(
    market: Market,
    counts: dict[str, int],  # kind -> how many
    rng: np.random.Generator,
    span_ms: tuple[int, int],  # the candles that may have one
    longest_s: float = 600.0,  # of a delay or a downtime
    sizes: dict[str, float] | None = None,  # kind -> size: percent for changed, seconds for skew
) -> list[Fault]:
    """Faults at random times, each at a candle of its own."""
    inside = np.flatnonzero((market.times >= span_ms[0]) & (market.times < span_ms[1]))
    chosen = rng.choice(inside, sum(counts.values()), replace=False)
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    known = {"changed": 0.01, "skew": 1.5} | (sizes or {})
    faults = []
    for kind, row in zip(kinds, chosen, strict=True):
        lasts_s = float(rng.uniform(0.1, 1.0) * longest_s)
        faults.append(Fault(kind, int(market.times[row]), lasts_s, known.get(kind, 0.0), market.symbol))
    return sorted(faults, key=lambda fault: fault.time_ms)


class ExchangeError(Exception):
    """An answer of the exchange that is no success: status, and code and message as Binance has them."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


# ---------------------------------------------------------------- the exchange


@dataclass
class FakeExchange:
    """Markets on a clock, with faults. `answer` is the whole exchange; `serve` puts it on a port."""

    markets: Sequence[Market]
    clock: FakeClock = field(default_factory=FakeClock)
    faults: list[Fault] = field(default_factory=list)
    funding_rate: float = 0.0001  # of each eight hours
    requests: list[str] = field(default_factory=list)  # "status path" of every answer

    def __post_init__(self) -> None:
        self._by_symbol = {market.symbol: market for market in self.markets}

    # ------------------------------------------------ time

    def now_ms(self) -> int:
        """The exchange's own clock."""
        now = self.clock.now_ms()
        for fault in self.faults:
            if fault.kind == "skew" and now >= fault.time_ms and (fault.lasts_s == 0 or fault.is_on(now)):
                now += int(fault.size * 1000)
        return now

    def _require_up(self) -> None:
        now = self.clock.now_ms()
        for fault in self.faults:
            if fault.kind == "down" and fault.is_on(now):
                raise ExchangeError(503, 0, "Service unavailable.")
            if fault.kind == "limited" and fault.is_on(now):
                raise ExchangeError(429, -1003, "Too many requests.")

    # ------------------------------------------------ candles

    def find_market(self, symbol: str) -> Market:
        if symbol not in self._by_symbol:
            raise ExchangeError(400, -1121, "Invalid symbol.")
        return self._by_symbol[symbol]

    def list_candles(
        self,
        symbol: str,
        first_row: int = 0,  # of the market's candles
    ) -> tuple[np.ndarray, np.ndarray]:
        """The published candles of a market, the open one last: times and rows. Each fault of values is in them."""
        market, now = self.find_market(symbol), self.now_ms()
        count = int(np.searchsorted(market.times, now, side="right"))
        times, rows = market.times[first_row:count], market.rows[first_row:count].copy()
        if len(times) and now < times[-1] + market.step_ms:
            rows[-1] = _cut_candle(rows[-1], (now - times[-1]) / market.step_ms)
        return self._apply_faults(market, times, rows, now)

    def _apply_faults(
        self, market: Market, times: np.ndarray, rows: np.ndarray, now: int
    ) -> tuple[np.ndarray, np.ndarray]:
        kept = np.ones(len(times), dtype=bool)
        for fault in self.faults:
            row = int(np.searchsorted(times, fault.time_ms))
            if not fault.concerns(market.symbol) or row >= len(times) or times[row] != fault.time_ms:
                continue
            is_early = now < fault.time_ms + market.step_ms + fault.lasts_s * 1000
            if fault.kind == "gap" or (fault.kind == "late" and is_early):
                kept[row] = False
            if fault.kind == "changed" and is_early:
                rows[row, 3] = round(rows[row, 3] * (1 + fault.size / 100), 2)
                rows[row, 1:3] = max(rows[row, 1], rows[row, 3]), min(rows[row, 2], rows[row, 3])
        return times[kept], rows[kept]

    def _disorder(self, symbol: str, times: np.ndarray) -> list[int]:
        """The order in which an answer has its candles, with those that come twice."""
        order = list(range(len(times)))
        for fault in self.faults:
            place = int(np.searchsorted(times, fault.time_ms))
            if not fault.concerns(symbol) or place >= len(times) or times[place] != fault.time_ms:
                continue
            if fault.kind == "out_of_order" and place + 1 < len(times):
                at = order.index(place)
                order[at : at + 2] = order[at : at + 2][::-1]
            if fault.kind == "duplicate":
                order.insert(order.index(place), place)
        return order

    def select_candles(
        self,
        symbol: str,
        interval: str,
        since_ms: int | None = None,
        until_ms: int | None = None,
        limit: int = 500,
    ) -> list[tuple[int, list[float]]]:
        """The candles of one answer: from `since_ms` the oldest, else the newest."""
        market = self.find_market(symbol)
        if interval not in INTERVALS or INTERVALS[interval] % market.step_ms:
            raise ExchangeError(400, -1120, "Invalid interval.")
        step = INTERVALS[interval]
        each = step // market.step_ms
        if since_ms is None:
            end_ms = min(self.now_ms(), until_ms if until_ms is not None else self.now_ms())
            first = max(int(np.searchsorted(market.times, end_ms)) - (limit + 1) * each - len(self.faults), 0)
            first -= first and int(market.times[first] % step // market.step_ms)
        else:
            first = int(np.searchsorted(market.times, -(-since_ms // step) * step))
        times, rows = self.list_candles(symbol, max(first, 0))
        high = len(times) if until_ms is None else int(np.searchsorted(times, until_ms // step * step + step))
        if since_ms is not None:
            high = min(high, limit * each)
        times, rows = _merge_candles(times[:high], rows[:high], step)
        kept = slice(-limit, None) if since_ms is None else slice(limit)
        times, rows = times[kept], rows[kept]
        order = self._disorder(symbol, times) if step == market.step_ms else range(len(times))
        return [(int(times[place]), rows[place].tolist()) for place in order]

    def fetch_ohlcv(
        self, symbol: str, timeframe: str = "1m", since: int | None = None, limit: int | None = None
    ) -> list[list[float]]:
        """The same answers as `ccxt.binance().fetch_ohlcv`, without HTTP.

        Raises `ExchangeError` while the exchange is down.
        """
        self._require_up()
        found = self.select_candles(_to_symbol(symbol), timeframe, since, None, min(limit or 500, 1000))
        return [[moment, *row] for moment, row in found]

    def last_price(self, symbol: str) -> float:
        market, now = self.find_market(symbol), self.now_ms()
        _, rows = self.list_candles(symbol, max(int(np.searchsorted(market.times, now)) - 1 - len(self.faults), 0))
        if not len(rows):
            raise ExchangeError(400, -1121, "Invalid symbol.")
        return float(rows[-1, 3])

    # ------------------------------------------------ REST

    def answer(self, path: str, query: dict[str, str]) -> Any:
        """The body of an answer. Raises `ExchangeError`."""
        self._require_up()
        kind = "futures" if "/fapi/" in path else "spot"
        name = path.rstrip("/").rsplit("/v", 1)[-1].partition("/")[2]
        if name not in _ROUTES:
            raise ExchangeError(404, -1, f"no such path: {path}")
        try:
            return _ROUTES[name](self, kind, query)
        except (KeyError, ValueError) as error:
            raise ExchangeError(400, -1102, f"Mandatory parameter missing or malformed: {error}") from error

    @contextlib.contextmanager
    def serve(self, port: int = 0) -> Iterator[str]:
        """Serve on 127.0.0.1; gives the address. Port 0 takes a free one."""
        server = _Server(("127.0.0.1", port), _make_handler(self))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True


def _to_symbol(pair: str) -> str:
    return re.sub("[^A-Z0-9]", "", pair.upper().partition(":")[0])


def _cut_candle(row: np.ndarray, share: float) -> np.ndarray:
    """What is known of a candle when a share of its span is over: the price went straight to its close."""
    opened, _, _, close, volume = row
    price = round(opened + share * (close - opened), 2)
    return np.array([opened, max(opened, price), min(opened, price), price, round(share * volume, VOLUME_DIGITS)])


def _merge_candles(times: np.ndarray, rows: np.ndarray, step_ms: int) -> tuple[np.ndarray, np.ndarray]:
    """Longer candles."""
    keys = times // step_ms * step_ms
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    if len(starts) == len(keys):
        return times, rows
    merged = np.empty((len(starts), 5))
    merged[:, 0] = rows[starts, 0]
    merged[:, 1] = np.maximum.reduceat(rows[:, 1], starts)
    merged[:, 2] = np.minimum.reduceat(rows[:, 2], starts)
    merged[:, 3] = rows[np.append(starts[1:], len(rows)) - 1, 3]
    merged[:, 4] = np.add.reduceat(rows[:, 4], starts).round(VOLUME_DIGITS)
    return keys[starts], merged


# ---------------------------------------------------------------- the paths of Binance


def _answer_klines(exchange: FakeExchange, kind: str, query: dict[str, str], has_volume: bool = True) -> list[Any]:
    symbol = query.get("symbol") or query["pair"]
    since, until = (int(query[name]) if name in query else None for name in ("startTime", "endTime"))
    limit = min(int(query.get("limit", 500)), MAX_CANDLES[kind])
    step = INTERVALS.get(query["interval"], 0)
    rows = []
    for moment, row in exchange.select_candles(symbol, query["interval"], since, until, limit):
        volume = row[4] if has_volume else 0.0
        prices = [f"{price:.8f}" for price in row[:4]]
        rows.append([moment, *prices, f"{volume:.8f}", moment + step - 1, f"{volume * row[3]:.8f}", 10, "0", "0", "0"])
    return rows


def _answer_mark(exchange: FakeExchange, kind: str, query: dict[str, str]) -> list[Any]:
    return _answer_klines(exchange, kind, query, has_volume=False)


def _answer_time(exchange: FakeExchange, kind: str, query: dict[str, str]) -> dict[str, int]:
    return {"serverTime": exchange.now_ms()}


def _answer_info(exchange: FakeExchange, kind: str, query: dict[str, str]) -> dict[str, Any]:
    describe = _describe_spot if kind == "spot" else _describe_future
    symbols = [describe(market) for market in exchange.markets]
    return {"timezone": "UTC", "serverTime": exchange.now_ms(), "rateLimits": [], "symbols": symbols, "assets": []}


def _list_filters(kind: str) -> list[dict[str, Any]]:
    price = {"filterType": "PRICE_FILTER", "minPrice": "0.01", "maxPrice": "1000000", "tickSize": f"{PRICE_STEP}"}
    step = f"{AMOUNT_STEP[kind]:.5f}"
    lot = {"filterType": "LOT_SIZE", "minQty": step, "maxQty": "9000", "stepSize": step}
    least = {"filterType": "NOTIONAL" if kind == "spot" else "MIN_NOTIONAL", "minNotional": "5", "notional": "5"}
    return [price, lot, {**lot, "filterType": "MARKET_LOT_SIZE"}, least]


def _describe_symbol(market: Market, kind: str) -> dict[str, Any]:
    precision = {"baseAssetPrecision": 8, "quotePrecision": 8, "quoteAssetPrecision": 8}
    names = {"symbol": market.symbol, "baseAsset": market.base, "quoteAsset": market.quote, "status": "TRADING"}
    return {**names, **precision, "orderTypes": ["LIMIT", "MARKET"], "filters": _list_filters(kind)}


def _describe_spot(market: Market) -> dict[str, Any]:
    rights = {"isSpotTradingAllowed": True, "isMarginTradingAllowed": False, "permissionSets": [["SPOT"]]}
    return {**_describe_symbol(market, "spot"), **rights, "permissions": ["SPOT"]}


def _describe_future(market: Market) -> dict[str, Any]:
    contract = {"pair": market.symbol, "contractType": "PERPETUAL", "marginAsset": market.quote}
    dates = {"deliveryDate": 4133404800000, "onboardDate": 1569398400000}
    digits = {"pricePrecision": 2, "quantityPrecision": 3}
    margin = {"maintMarginPercent": "2.5", "requiredMarginPercent": "5", "liquidationFee": "0.0125"}
    return {**_describe_symbol(market, "futures"), **contract, **dates, **digits, **margin, "underlyingType": "COIN"}


def _for_symbols(describe: Callable[[FakeExchange, str], dict[str, Any]]) -> Callable[..., Any]:
    """An answer for one symbol, or for all of them."""

    def answer(exchange: FakeExchange, kind: str, query: dict[str, str]) -> Any:
        if "symbol" in query:
            return describe(exchange, query["symbol"])
        return [describe(exchange, market.symbol) for market in exchange.markets]

    return answer


def _describe_ticker(exchange: FakeExchange, symbol: str) -> dict[str, Any]:
    price, now = exchange.last_price(symbol), exchange.now_ms()
    text = f"{price:.2f}"
    sides = {"bidPrice": f"{price - PRICE_STEP:.2f}", "askPrice": f"{price + PRICE_STEP:.2f}", "bidQty": "5"}
    names = ("price", "lastPrice", "openPrice", "highPrice", "lowPrice", "weightedAvgPrice", "prevClosePrice")
    volume = {"volume": "10000", "quoteVolume": "300000000", "askQty": "5", "lastQty": "1", "count": 2}
    change = {"priceChange": "0", "priceChangePercent": "0", "firstId": 1, "lastId": 2}
    times = {"openTime": now - 86_400_000, "closeTime": now, "time": now}
    return {"symbol": symbol, **sides, **dict.fromkeys(names, text), **volume, **change, **times}


def _describe_premium(exchange: FakeExchange, symbol: str) -> dict[str, Any]:
    now, text = exchange.now_ms(), f"{exchange.last_price(symbol):.2f}"
    rates = {"lastFundingRate": f"{exchange.funding_rate:.8f}", "interestRate": "0.0001"}
    following = (now // EIGHT_HOURS_MS + 1) * EIGHT_HOURS_MS
    return {"symbol": symbol, "markPrice": text, "indexPrice": text, "nextFundingTime": following, "time": now, **rates}


def _answer_depth(exchange: FakeExchange, kind: str, query: dict[str, str]) -> dict[str, Any]:
    price, now = exchange.last_price(query["symbol"]), exchange.now_ms()
    bids = [[f"{price - PRICE_STEP * place:.2f}", "50"] for place in range(1, 21)]
    asks = [[f"{price + PRICE_STEP * place:.2f}", "50"] for place in range(1, 21)]
    return {"lastUpdateId": now, "E": now, "T": now, "bids": bids, "asks": asks}


def _answer_funding(exchange: FakeExchange, kind: str, query: dict[str, str]) -> list[dict[str, Any]]:
    market, now = exchange.find_market(query["symbol"]), exchange.now_ms()
    first = max(int(query.get("startTime", 0)), int(market.times[0]))
    last = min(int(query.get("endTime", now)), now)
    moments = range(-(-first // EIGHT_HOURS_MS) * EIGHT_HOURS_MS, last + 1, EIGHT_HOURS_MS)
    rate = f"{exchange.funding_rate:.8f}"
    chosen = list(moments)[: int(query.get("limit", 100))]
    return [{"symbol": market.symbol, "fundingTime": at, "fundingRate": rate, "markPrice": "0"} for at in chosen]


def _answer_empty(exchange: FakeExchange, kind: str, query: dict[str, str]) -> list[Any]:
    return []


_ROUTES: dict[str, Callable[[FakeExchange, str, dict[str, str]], Any]] = {
    "ping": lambda exchange, kind, query: {},
    "time": _answer_time,
    "exchangeInfo": _answer_info,
    "klines": _answer_klines,
    "markPriceKlines": _answer_mark,
    "indexPriceKlines": _answer_mark,
    "fundingRate": _answer_funding,
    "fundingInfo": _answer_empty,
    "premiumIndex": _for_symbols(_describe_premium),
    "ticker/24hr": _for_symbols(_describe_ticker),
    "ticker/bookTicker": _for_symbols(_describe_ticker),
    "ticker/price": _for_symbols(_describe_ticker),
    "depth": _answer_depth,
}


# ---------------------------------------------------------------- HTTP


def _make_handler(exchange: FakeExchange) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *words: Any) -> None:
            pass

        def do_GET(self) -> None:
            address = urlparse(self.path)
            query = {name: values[0] for name, values in parse_qs(address.query).items()}
            try:
                status, body = 200, exchange.answer(address.path, query)
            except ExchangeError as error:
                status, body = error.status, {"code": error.code, "msg": str(error)}
            exchange.requests.append(f"{status} {self.path}")
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            if status == 429:
                self.send_header("Retry-After", "1")
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(content)

    return Handler


def list_ccxt_urls(url: str) -> dict[str, str]:
    """The `urls["api"]` of ccxt's binance with which it asks this exchange alone."""
    paths = {
        "public": "api/v3", "private": "api/v3", "v1": "api/v1", "sapi": "sapi/v1", "sapiV2": "sapi/v2",
        "sapiV3": "sapi/v3", "sapiV4": "sapi/v4", "fapiPublic": "fapi/v1", "fapiPublicV2": "fapi/v2",
        "fapiPublicV3": "fapi/v3", "fapiPrivate": "fapi/v1", "fapiPrivateV2": "fapi/v2", "fapiPrivateV3": "fapi/v3",
        "fapiData": "futures/data", "dapiPublic": "dapi/v1", "dapiPrivate": "dapi/v1", "dapiPrivateV2": "dapi/v2",
        "dapiData": "futures/data", "eapiPublic": "eapi/v1", "eapiPrivate": "eapi/v1", "papi": "papi/v1",
        "papiV2": "papi/v2",
    }  # fmt: skip
    return {name: f"{url}/{path}" for name, path in paths.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--days", type=float, default=40.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--edge", type=float, default=0.6)
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--symbols", nargs="+", default=["BTCUSDT", "ETHUSDT"])
    words = parser.parse_args()
    markets = []
    for number, symbol in enumerate(words.symbols):
        markets.append(make_market(symbol, words.days, seed=words.seed + number, edge=words.edge))
    with FakeExchange(markets, FakeClock(speed=words.speed)).serve(words.port) as url:
        print(f"serving {', '.join(words.symbols)} at {url}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
