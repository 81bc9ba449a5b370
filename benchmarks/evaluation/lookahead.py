"""The look-ahead audit on random expressions, which are causal by construction, and on the same ones shifted back.

Goals: no expression is blamed, and each one that is shifted by some candles is found with that number of candles.

    python -m benchmarks lookahead                      1,000 expressions; writes results/lookahead.json
    python -m benchmarks lookahead --expressions 100    fewer, and nothing is written
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from benchmarks.paths import RESULTS
from crypto_lstm.data.candle_rules import VALUE_COLUMNS
from crypto_lstm.data.engine import compile_trees
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.evaluation.lookahead import LookaheadAudit, audit_lookahead
from crypto_lstm.utils.display import text_table
from crypto_lstm.utils.expressions import FUNCTIONS, SPANS, ExpressionError, parse_expression

LOOKAHEAD_RESULTS = RESULTS / "lookahead.json"
EXPRESSIONS = 1000
AT_ONCE = 50  # expressions in one function
CANDLES = 400
DEPTH = 5
_BINARY = ("+", "-", "*", "/", "<", ">=", "==")
_SPAN_WORDS = ("1", "2", "3", "5", "9", "14", "4m", "30m")


def draw_expression(rng: np.random.Generator, depth: int) -> str:
    """The text of a random expression of at most this depth; it may be none of the language."""
    if depth == 0 or rng.random() < 0.15:
        return str(rng.choice([*VALUE_COLUMNS, "close", f"{rng.normal():.3f}"]))
    if rng.random() < 0.3:
        left, right = draw_expression(rng, depth - 1), draw_expression(rng, depth - 1)
        return f"({left} {rng.choice(_BINARY)} {right})"
    function = FUNCTIONS[rng.integers(len(FUNCTIONS))]
    words = []
    for parameter in function.parameters:
        is_span = parameter in SPANS
        words.append(str(rng.choice(_SPAN_WORDS)) if is_span else draw_expression(rng, depth - 1))
    return f"{function.name}({', '.join(words)})"


def draw_expressions(count: int, seed: int, depth: int = DEPTH) -> dict[str, str]:
    """Name -> text of expressions of the language that need a column and have a value on synthetic candles."""
    rng = np.random.default_rng(seed)
    candles = synthetic_candles(CANDLES, seed=seed)
    found: dict[str, str] = {}
    while len(found) < count:
        text = draw_expression(rng, depth)
        try:
            tree = parse_expression(text)
            values = compute_columns({"x": tree}, candles)["x"]
        except ExpressionError:
            continue
        if any(name in text for name in VALUE_COLUMNS) and len(np.unique(values[np.isfinite(values)])) > 20:
            found[f"e{len(found)}"] = text
    return found


def compute_columns(trees: dict, candles: pd.DataFrame) -> dict[str, np.ndarray]:
    """The values of expressions on candles of one minute; a gap begins a segment."""
    program = compile_trees(trees, 1)
    times = candles["date"].dt.as_unit("ns").astype("int64").to_numpy()
    columns = {name: candles[name].to_numpy(np.float64) for name in program.columns}
    starts = np.diff(times, prepend=times[0] - 1) != 60_000_000_000
    return dict(zip(program.names, program.feed(program.start(), times, columns, starts)[1].columns, strict=True))


def audit_expressions(expressions: dict[str, str], shift: int, seed: int, places: int = 8) -> LookaheadAudit:
    """Audit expressions whose values are shifted back by some candles; 0 leaves them causal."""
    trees = {name: parse_expression(text) for name, text in expressions.items()}
    candles = synthetic_candles(CANDLES, seed=seed + 1)
    candles = candles.drop(index=range(180, 200)).reset_index(drop=True)  # two segments
    return audit_lookahead(_shift_columns(trees, shift), candles, places=places, seed=seed)


def _shift_columns(trees: dict, shift: int) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda candles: pd.DataFrame(compute_columns(trees, candles), index=candles.index).shift(-shift)


def measure(count: int, seed: int) -> dict[str, int | float | dict[str, int]]:
    """Verdicts on so many expressions."""
    verdicts: dict[str, int] = {}
    exact = found = 0
    started = time.perf_counter()
    for part in range(0, count, AT_ONCE):
        expressions = draw_expressions(min(AT_ONCE, count - part), seed + part)
        for column in audit_expressions(expressions, 0, seed + part).columns:
            verdicts[column.verdict] = verdicts.get(column.verdict, 0) + 1
            if not column.is_clean:
                print(f"blamed: {expressions[column.name]}: {column.sentence}")
        shift = 1 + part // AT_ONCE % 7
        for column in audit_expressions(expressions, shift, seed + part).columns:
            found += column.verdict == "looks ahead"
            exact += column.ahead == shift
    blamed = sum(n for verdict, n in verdicts.items() if verdict in ("looks ahead", "not deterministic", "not checked"))
    sizes = {"expressions": count, "blamed": blamed, "shifted_found": found, "shifted_exact": exact}
    return {**sizes, "verdicts": verdicts, "seconds": time.perf_counter() - started}


def main(words: Sequence[str]) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks lookahead", description=__doc__)
    parser.add_argument("--expressions", type=int, default=EXPRESSIONS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(words)
    result = measure(options.expressions, options.seed)
    print(text_table(["random expressions", ""], [(name, value) for name, value in result.items()]))
    if options.expressions == EXPRESSIONS:
        LOOKAHEAD_RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if not result["blamed"] and result["shifted_exact"] == options.expressions else 1
