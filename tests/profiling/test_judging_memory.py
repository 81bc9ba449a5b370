"""The memory of the judging after a training is forecast, and one that does not fit is refused before it starts."""

from __future__ import annotations

import json
import sys

import pytest
from support import forked

from crypto_lstm.config import Config
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.evaluation.baselines import MAX_FIT_ROWS, name_summaries
from crypto_lstm.memory import _MOST_FIT_ROWS, _SUMMARIES, JudgedRows, estimate_memory
from crypto_lstm.profiling import batch_size
from crypto_lstm.profiling.batch_size import MemoryBudgetError, require_judging_memory
from crypto_lstm.training.trainer import train

CONFIG = Config(
    timeframe="1h",
    sequence_length=12,
    future_window=24,
    features=("high_change", "low_change", "close_change", "volume_change"),
    lstm_units=(4,),
    dense_units=(),
    batch_size=16,
    epochs=1,
)
MEASURE = """
import json, sys, threading, time
from pathlib import Path
import numpy as np
from crypto_lstm.config import Config
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.data.windows import prepare
from crypto_lstm.training.judging import judge_model
from crypto_lstm.training.trainer import count_judged
from crypto_lstm.utils.system import anonymous_memory_mb

config = Config.from_dict(json.loads(sys.argv[2]))
candles = synthetic_candles(int(sys.argv[1]), seed=1, edge=0.3, timeframe=config.timeframe)
data = prepare(candles, config)
rng, answers = np.random.default_rng(0), []
for name in ("validation", "test"):
    answers.append(rng.dirichlet((4, 4, 4), len(data.parts[name].rows)))
levels, is_running = [anonymous_memory_mb()], True

def poll():
    while is_running:
        levels.append(anonymous_memory_mb())
        time.sleep(0.002)

thread = threading.Thread(target=poll)
thread.start()
judge_model(candles, data, *answers, "0" * 64, Path(sys.argv[3]) / "ledger.jsonl")
is_running = False
thread.join()
print(json.dumps([levels[0], max(levels), count_judged(data, True).count_mb()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is read on Linux")
@pytest.mark.parametrize(("candles", "changes"), [(3000, {}), (40_000, {"timeframe": "1m", "batch_size": 64})])
def test_the_forecast_is_above_the_measured_peak_and_within_half_of_it(candles, changes, tmp_path):
    config = CONFIG.replace(**changes)
    done = forked.run(MEASURE, candles, json.dumps(config.as_dict()), tmp_path)
    start_mb, peak_mb, forecast_mb = json.loads(done.stdout.splitlines()[-1])
    assert peak_mb - start_mb < forecast_mb, (start_mb, peak_mb, forecast_mb)
    assert start_mb + forecast_mb < 1.5 * peak_mb, (start_mb, peak_mb, forecast_mb)


def test_more_of_anything_never_needs_less():
    least = JudgedRows(1000, 300, 100, 4, 2000)
    assert least.count_mb() >= least._replace(baselines=False).count_mb()
    for name in least._fields[:5]:
        values = [least._replace(**{name: size}).count_mb() for size in (10**3, 10**4, 10**5, 10**6, 10**7)]
        assert values == sorted(values), name
    most = JudgedRows.from_candles(1_000_000, CONFIG)
    assert (most.train + most.validation + most.test, most.features) == (1_000_000, 4)


def test_the_estimate_is_the_higher_of_both_phases_and_shows_both():
    judged = JudgedRows.from_candles(2_000_000, CONFIG)
    plain, whole = (estimate_memory(CONFIG, base_mb=400, judged=rows) for rows in (None, judged))
    assert plain.judging_peak_mb is None and plain.highest_mb == plain.process_peak_mb == whole.process_peak_mb
    assert whole.highest_mb == whole.judging_peak_mb > whole.process_peak_mb
    assert whole.upper_mb > whole.highest_mb and whole.upper_mb > plain.upper_mb
    for text in (str(whole), whole._repr_html_()):
        assert "process peak of the judging after it" in text
    assert "judging" not in str(plain)
    values = json.loads(json.dumps(whole.as_dict()))
    assert values["highest_mb"] == values["judging_peak_mb"] == whole.judging_peak_mb
    large = CONFIG.replace(batch_size=4096, sequence_length=500)
    highest = [estimate_memory(large, base_mb=400, judged=rows).highest_mb for rows in (None, judged)]
    assert highest[0] == highest[1]


def test_a_judging_that_does_not_fit_is_refused_and_may_be_forced(caplog):
    judged = JudgedRows.from_candles(2_000_000, CONFIG)
    with pytest.raises(MemoryBudgetError) as caught:
        require_judging_memory(CONFIG, judged, budget_mb=700, base_mb=400)
    text = str(caught.value)
    assert "the judging after the training may take the process to" in text and "700 MB may be used" in text
    assert "give fewer candles or features, or free memory" in text and "batch" not in text
    require_judging_memory(CONFIG, judged, "force", budget_mb=700, base_mb=400)
    assert "training in spite of the forecast: the judging" in caplog.text
    require_judging_memory(CONFIG, judged, budget_mb=3000, base_mb=400)
    few = judged._replace(train=10, validation=10, test=10, candles=10)
    require_judging_memory(CONFIG, few, budget_mb=700, base_mb=400)


def test_a_training_whose_judging_does_not_fit_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(JudgedRows, "count_mb", lambda judged: 1e6)
    monkeypatch.setattr(batch_size, "memory_budget_mb", lambda: 50_000.0)
    with pytest.raises(MemoryBudgetError, match="the judging after the training may take the process to"):
        train(synthetic_candles(1500, seed=3, timeframe="1h"), CONFIG, tmp_path / "run", ledger=tmp_path / "ledger")
    assert not list(tmp_path.glob("run/*.keras")) and not (tmp_path / "ledger").exists()


def test_the_forecast_counts_the_summaries_and_rows_of_the_simpler_models():
    """It may not import them: the forecast loads NumPy alone."""
    assert len(name_summaries(CONFIG)) == _SUMMARIES * len(CONFIG.features) and _MOST_FIT_ROWS == MAX_FIT_ROWS
