"""The page of benchmarks follows from the stored numbers, and its verdicts from goals. Nothing is timed here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import bench  # noqa: E402
import report  # noqa: E402
import workers  # noqa: E402
from report import GOALS, KERAS, SAMPLE, Goal  # noqa: E402


def stored() -> dict:
    if not report.RESULTS.exists():
        pytest.skip("no run is stored yet: make bench and make bench-growth store one")
    return json.loads(report.RESULTS.read_text(encoding="utf-8"))


# ---------------------------------------------------------------- the stored run


def test_the_page_is_what_the_stored_numbers_give():
    numbers = stored()
    gpu = json.loads(report.GPU_RESULTS.read_text(encoding="utf-8")) if report.GPU_RESULTS.exists() else None
    assert report.PAGE.read_text(encoding="utf-8") == report.page(numbers, gpu), "run benchmarks/bench.py --report"


def test_every_goal_was_measured_and_a_missed_one_has_its_reason():
    parts = stored()["parts"]
    assert [goal.key for goal in GOALS if not goal.measured(parts)] == []
    assert [goal.key for goal in report.missed(parts) if not report.WHY.get(goal.key)] == []
    assert {"Training over batch", "Training over timesteps", "Decisions over windows", "Candles"} <= set(parts["growth"])


# ---------------------------------------------------------------- numbers made up


AT_MOST = Goal("a", "a decision", ("decision", "ours"), 0.8, scale=1e3, unit="ms", peers=("Keras predict", "nobody"))
AT_LEAST = Goal("b", "the ratio", ("decision", "Keras predict"), 75, True, ("decision", "ours"), unit="x")
PARTS = {"decision": {"ours": [0.0006, 0.0009, 0.0007], "Keras predict": [0.06, 0.063, 0.077]}}


def test_a_goal_is_judged_by_the_median():
    assert AT_MOST.value(PARTS) == pytest.approx(0.7)
    assert AT_MOST.reached(PARTS)
    assert AT_MOST.cells(PARTS) == ["a decision", "at most 0.800 ms", "0.700 ms", "0.600 to 0.900", "yes", "Keras predict 63.0 ms"]


def test_a_ratio_is_that_of_the_medians_and_its_spread_that_of_the_rounds():
    assert AT_LEAST.value(PARTS) == pytest.approx(0.063 / 0.0007)
    assert AT_LEAST.series(PARTS) == pytest.approx([100, 70, 110])
    assert AT_LEAST.cells(PARTS)[2:5] == ["90.0 x", "70.0 to 110", "yes"]


def test_a_missed_goal_says_so():
    slow = {"decision": {"ours": [0.0009], "Keras predict": [0.063]}}
    assert [AT_MOST.reached(slow), AT_LEAST.reached(slow)] == [False, False]
    assert AT_MOST.cells(slow)[4] == "**no**"
    exact = {"decision": {"ours": [0.0008], "Keras predict": [0.06]}}
    assert AT_MOST.reached(exact) and AT_LEAST.reached(exact)


def test_what_was_not_measured_is_not_reached():
    assert AT_MOST.cells({})[2:5] == ["not measured", "", ""]
    assert report.missed({}) == []


def test_the_goals_are_those_that_were_set():
    limits = {goal.key: (goal.limit, goal.at_least) for goal in GOALS}
    assert limits["decision"] == (0.8, False) and limits["decision_ratio"] == (75, True) and limits["update"] == (1.2, False)
    assert limits["many"] == (2.5, True) and limits["many_limit"] == (70, True)
    assert limits["training"] == (1.3, True) and limits["training_torch"] == (1.6, True)
    assert limits["tensors"] == (0.45, False) and limits["growth"] == (0.55, False)
    assert limits["feeding"] == (2, False) and limits["resident"] == (300, False)
    assert limits["import"] == (0.3, False) and limits["first"] == (1, False)
    assert len(limits) == len(GOALS)


def test_training_is_faster_where_more_windows_pass_in_a_second():
    goal = next(goal for goal in GOALS if goal.key == "training")
    assert goal.value({"training": {SAMPLE: [1200.0], KERAS: [800.0]}}) == pytest.approx(1.5)


def test_operations_are_those_of_the_layers():
    assert report.flops(units=(1,), inputs=1, timesteps=1) == 16  # two inputs x four gates, a product and a sum each
    assert report.flops() == pytest.approx(31.5e6, rel=0.01)


def test_the_exponent_is_that_of_a_power():
    assert report.exponent({"10": 3.0, "100": 3.0 * 10**1.5, "1000": 3.0 * 100**1.5}) == pytest.approx(1.5)


def test_three_digits_that_count():
    assert [report.number(value) for value in (0, 0.00123, 0.7, 63.04, 1234.5, 12)] == ["0", "0.00123", "0.700", "63.0", "1,234", "12.0"]


def test_a_series_shows_how_many_times_better_ours_is():
    text = report.series_table(PARTS["decision"], "ours", 1e3, "milliseconds", False)
    assert text.splitlines()[-1] == "| Keras predict | 63.0 | 61.5 to 70.0 | 60.0 to 77.0 | 90.0 |"
    rates = report.series_table({"ours": [30.0], "peer": [20.0]}, "ours", 1, "windows a second", True)
    assert rates.splitlines()[-1].endswith("| 1.50 |")


def test_the_page_without_a_gpu_says_that_none_was_seen():
    results = {"machine": {"cores": 2}, "parts": PARTS}
    assert "Never run on a GPU" in report.page(results)
    gpu = {"device": "a GPU", "backend": "jax", "kinds": {"ours, per_batch": {"windows_s": 5000.0, "cudnn": True}}}
    assert "Never run" not in report.page(results, gpu)
    assert "| ours, per_batch | 5,000 | yes |" in report.page(results, gpu)


def test_growth_is_shown_with_its_power():
    points = {"10": {"a": 1.0, "b": None}, "100": {"a": 10.0, "b": 2.0}, "1000": {"a": 100.0, "b": 3.0}}
    text = report.page({"machine": {}, "parts": {"growth": {"Over n": {"x": "n", "points": points, "text": "Made up."}}}})
    assert "| 10 | 1.00 | - |" in text and "| grows with the power | 1.00 | - |" in text


# ---------------------------------------------------------------- processes


def test_works_are_done_in_turn():
    seen = []
    rounds = workers.in_turn({name: lambda name=name: seen.append(name) or float(len(seen)) for name in "ab"}, 2)
    assert "".join(seen) == "ababab"
    assert rounds == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_a_worker_answers_and_tells_its_faults(tmp_path):
    script = tmp_path / "served.py"
    script.write_text("import os, workers\nworkers.serve({'add': lambda a, b: a + b, 'end': lambda: os._exit(3)})\n")
    with workers.Worker(sys.executable, str(script), PYTHONPATH=str(BENCHMARKS)) as worker:
        assert worker.ask("add", a=1, b=2) == 3
        with pytest.raises(RuntimeError, match="TypeError"):
            worker.ask("add", a=1, b="x")
        with pytest.raises(RuntimeError, match="exit code 3"):
            worker.ask("end")


def test_kinds_that_differ_are_not_compared():
    same = {"a": [[0.2, 0.3, 0.5]], "b": [[0.2, 0.3, 0.5000001]]}
    assert bench.agreement(same) == pytest.approx(1e-7, rel=0.1)
    with pytest.raises(SystemExit, match="not the same work"):
        bench.agreement({**same, "c": [[0.3, 0.2, 0.5]]})


def test_numbers_of_two_machines_never_share_a_page():
    known = {"machine": {"cores": 4}, "parts": {"growth": 1}}
    assert bench.kept_from(known, {"cores": 4}, None) == {"growth": 1}
    assert bench.kept_from(known, {"cores": 2}, None) == {}
    with pytest.raises(SystemExit, match="another machine"):
        bench.kept_from(known, {"cores": 2}, ["start"])


def test_the_gpu_script_without_a_gpu():
    """Its lines run on the CPU; without `--cpu` it says in one line that there is nothing to measure."""
    command = [sys.executable, str(BENCHMARKS / "gpu.py")]
    settings = {"capture_output": True, "text": True, "check": True, "env": {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}}
    assert "no GPU is visible to tensorflow, jax, torch" in subprocess.run(command, **settings).stdout
    small = subprocess.run([*command, "--cpu"], **settings).stdout
    assert "cuDNN ran" in small and "losses without dropout differ by at most" in small
