"""RESULTS.md follows from the stored numbers, and its verdicts from the goals. Nothing is timed here."""

import importlib.util
import json
import os
import re
import sys
from types import SimpleNamespace

import pytest
from support import forked, quick

from benchmarks import __main__ as command
from benchmarks.memory import forecasts, measurements
from benchmarks.paths import ROOT
from benchmarks.speed import compare, report, workers
from benchmarks.speed.report import GOALS, KERAS, SAMPLE, Goal


def read_stored() -> dict:
    if not report.SPEED_RESULTS.exists():
        pytest.skip("no run is stored yet: make bench and make bench-growth store one")
    return json.loads(report.SPEED_RESULTS.read_text(encoding="utf-8"))


# ---------------------------------------------------------------- the stored run


def test_the_page_equals_the_rendering_of_the_stored_numbers():
    numbers = read_stored()
    gpu = json.loads(report.GPU_RESULTS.read_text(encoding="utf-8")) if report.GPU_RESULTS.exists() else None
    assert report.PAGE.read_text(encoding="utf-8") == report.render_page(numbers, gpu), (
        "run python -m benchmarks speed --report"
    )


def test_every_goal_was_measured_and_a_missed_goal_has_a_reason():
    parts = read_stored()["parts"]
    assert [goal.key for goal in GOALS if not goal.is_measured(parts)] == []
    assert [goal.key for goal in report.find_missed_goals(parts) if not report.REASONS.get(goal.key)] == []
    assert {"Training over batch", "Training over timesteps", "Decisions over windows", "Candles"} <= set(
        parts["growth"]
    )


# ---------------------------------------------------------------- numbers made up


AT_MOST = Goal("a", "a decision", ("decision", "ours"), 0.8, scale=1e3, unit="ms", peers=("Keras predict", "absent"))
AT_LEAST = Goal("b", "the ratio", ("decision", "Keras predict"), 75, True, ("decision", "ours"), unit="x")
PARTS = {"decision": {"ours": [0.0006, 0.0009, 0.0007], "Keras predict": [0.06, 0.063, 0.077]}}


def test_a_goal_is_reached_by_its_median():
    assert AT_MOST.value(PARTS) == pytest.approx(0.7)
    assert AT_MOST.is_reached(PARTS)
    assert AT_MOST.table_row(PARTS) == [
        "a decision",
        "at most 0.800 ms",
        "0.700 ms",
        "0.600 to 0.900",
        "yes",
        "Keras predict 63.0 ms",
    ]


def test_a_ratio_is_that_of_the_medians_and_its_spread_that_of_the_rounds():
    assert AT_LEAST.value(PARTS) == pytest.approx(0.063 / 0.0007)
    assert AT_LEAST.round_values(PARTS) == pytest.approx([100, 70, 110])
    assert AT_LEAST.table_row(PARTS)[2:5] == ["90.0 x", "70.0 to 110", "yes"]


def test_a_missed_goal_is_marked_no():
    slow = {"decision": {"ours": [0.0009], "Keras predict": [0.063]}}
    assert [AT_MOST.is_reached(slow), AT_LEAST.is_reached(slow)] == [False, False]
    assert AT_MOST.table_row(slow)[4] == "**no**"
    exact = {"decision": {"ours": [0.0008], "Keras predict": [0.06]}}
    assert AT_MOST.is_reached(exact) and AT_LEAST.is_reached(exact)


def test_a_goal_without_measurements_is_not_reached():
    assert AT_MOST.table_row({})[2:5] == ["not measured", "", ""]
    assert report.find_missed_goals({}) == []


def test_the_limits_of_the_goals():
    limits = {goal.key: (goal.limit, goal.at_least) for goal in GOALS}
    assert (
        limits["decision"] == (0.8, False)
        and limits["decision_ratio"] == (75, True)
        and limits["update"] == (1.2, False)
    )
    assert limits["many"] == (2.5, True) and limits["many_limit"] == (70, True)
    assert limits["training"] == (1.3, True) and limits["training_torch"] == (1.6, True)
    assert limits["tensors"] == (0.45, False) and limits["growth"] == (0.55, False)
    assert limits["feeding"] == (2, False) and limits["resident"] == (300, False)
    assert limits["import"] == (0.3, False) and limits["first"] == (1, False)
    assert len(limits) == len(GOALS)


def test_the_training_goal_divides_ours_by_keras():
    goal = next(goal for goal in GOALS if goal.key == "training")
    assert goal.value({"training": {SAMPLE: [1200.0], KERAS: [800.0]}}) == pytest.approx(1.5)


def test_operations_are_counted_by_layer():
    assert (
        report.count_operations(units=(1,), inputs=1, timesteps=1) == 16
    )  # two inputs x four gates, a product and a sum each
    assert report.count_operations() == pytest.approx(31.5e6, rel=0.01)


def test_the_exponent_of_a_power_law_is_found():
    assert report.fit_exponent({"10": 3.0, "100": 3.0 * 10**1.5, "1000": 3.0 * 100**1.5}) == pytest.approx(1.5)


def test_numbers_have_three_significant_digits():
    assert [report.format_number(value) for value in (0, 0.00123, 0.7, 63.04, 1234.5, 12)] == [
        "0",
        "0.00123",
        "0.700",
        "63.0",
        "1,234",
        "12.0",
    ]


def test_a_series_shows_how_many_times_better_ours_is():
    text = report.render_series(PARTS["decision"], "ours", 1e3, "milliseconds", False)
    assert text.splitlines()[-1] == "| Keras predict | 63.0 | 61.5 to 70.0 | 60.0 to 77.0 | 90.0 |"
    rates = report.render_series({"ours": [30.0], "peer": [20.0]}, "ours", 1, "windows a second", True)
    assert rates.splitlines()[-1].endswith("| 1.50 |")


def test_the_page_states_whether_a_gpu_was_measured():
    results = {"machine": {"cores": 2}, "parts": PARTS}
    assert "No figure on this page comes from a GPU" in report.render_page(results)
    gpu = {"device": "a GPU", "backend": "jax", "kinds": {"ours, per_batch": {"windows_s": 5000.0, "cudnn": True}}}
    assert "No figure" not in report.render_page(results, gpu)
    assert "| ours, per_batch | 5,000 | yes |" in report.render_page(results, gpu)


def test_growth_is_shown_with_its_exponent():
    points = {"10": {"a": 1.0, "b": None}, "100": {"a": 10.0, "b": 2.0}, "1000": {"a": 100.0, "b": 3.0}}
    text = report.render_page(
        {"machine": {}, "parts": {"growth": {"Over n": {"x": "n", "points": points, "text": "Made up."}}}}
    )
    assert "| 10 | 1.00 | - |" in text and "| grows with the power | 1.00 | - |" in text


# ---------------------------------------------------------------- processes


def test_works_are_done_in_turn():
    seen = []
    rounds = workers.measure_in_turn(
        {name: lambda name=name: seen.append(name) or float(len(seen)) for name in "ab"}, 2
    )
    assert "".join(seen) == "ababab"
    assert rounds == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_a_worker_answers_and_raises_the_errors_of_its_process(tmp_path):
    script = tmp_path / "served.py"
    works = "{'add': lambda a, b: a + b, 'end': lambda: os._exit(3)}"
    script.write_text(f"import os\nfrom benchmarks.speed import workers\nworkers.serve({works})\n")
    with workers.Worker(sys.executable, str(script), PYTHONPATH=str(ROOT)) as worker:
        assert worker.ask("add", a=1, b=2) == 3
        with pytest.raises(RuntimeError, match="TypeError"):
            worker.ask("add", a=1, b="x")
        with pytest.raises(RuntimeError, match="exit code 3"):
            worker.ask("end")


def test_kinds_that_differ_are_not_compared():
    same = {"a": [[0.2, 0.3, 0.5]], "b": [[0.2, 0.3, 0.5000001]]}
    assert compare.check_agreement(same) == pytest.approx(1e-7, rel=0.1)
    with pytest.raises(SystemExit, match="not the same work"):
        compare.check_agreement({**same, "c": [[0.3, 0.2, 0.5]]})


def test_numbers_of_two_machines_never_share_a_page():
    known = {"machine": {"cores": 4}, "parts": {"growth": 1}}
    assert compare.select_kept_parts(known, {"cores": 4}, None) == {"growth": 1}
    assert compare.select_kept_parts(known, {"cores": 2}, None) == {}
    with pytest.raises(SystemExit, match="another machine"):
        compare.select_kept_parts(known, {"cores": 2}, ["start"])


def test_the_gpu_benchmark_runs_without_a_gpu():
    """It prints that there is nothing to measure; with `--cpu` its lines run on the CPU."""
    code = "from benchmarks.speed import gpu; gpu.main([]); gpu.main(['--cpu'])"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    with quick.skip_graphs():
        done = forked.run(code, cwd=ROOT, environment=environment)
    assert done.returncode == 0, done.stderr
    assert "no GPU is visible to tensorflow, jax, torch" in done.stdout
    assert "cuDNN ran" in done.stdout and "losses without dropout differ by at most" in done.stdout


# ---------------------------------------------------------------- the command


def test_each_benchmark_is_listed_and_its_module_exists(capsys):
    assert command.main([]) == 0
    listed = capsys.readouterr().out
    for name, found in command.BENCHMARKS.items():
        assert f"  {name} " in listed and found.text in listed
        assert importlib.util.find_spec(f"benchmarks.{found.module}") is not None


@pytest.mark.parametrize("name", command.BENCHMARKS)
def test_help_shows_the_options_of_each_benchmark(name, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: python -m benchmarks")


def test_the_stored_measurements_of_memory_are_reported(capsys):
    command.main(["memory", "--report"])
    lines = capsys.readouterr().out.splitlines()
    assert sum(re.match(r"g\d\d\b", line) is not None for line in lines) == 2 * 40  # our layers, then those of Keras
    assert "nan" not in "\n".join(lines)  # what was not measured is a dash


def test_a_quick_measurement_of_memory_is_reported_beside_its_forecast(monkeypatch, capsys):
    """The measurement stands in for a process of its own, which `tests/profiling` starts."""
    known = json.loads(forecasts.MEMORY_RESULTS.read_text(encoding="utf-8"))
    name = forecasts.GRID["quick"][0]
    reading = SimpleNamespace(as_dict=lambda: known[name])
    monkeypatch.setattr(measurements, "measure_memory", lambda *_, **__: reading)
    monkeypatch.setattr(forecasts, "find_base_memory", lambda: SimpleNamespace(**known["base"]))
    command.main(["memory", "--quick", "1"])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{name} "))
    assert f"{known[name]['tensor_peak_mb']:.1f} MB" in line and f"{known[name]['process_peak_mb']:.0f} MB" in line


def test_an_unknown_benchmark_is_refused_with_the_list(capsys):
    assert command.main(["sped"]) == 2
    assert "expected the name of a benchmark, got 'sped'" in capsys.readouterr().err


def test_options_reach_the_benchmark(monkeypatch):
    got = []
    monkeypatch.setattr(compare, "main", got.append)
    assert command.main(["growth", "--quick"]) == 0
    assert got == [["--only", "growth", "--quick"]]
