"""Panel and chart in notebooks other than JupyterLab: Colab, VS Code, and those that show no widgets."""

import os
import sys
import types

import nbformat
import pytest
from nbclient import NotebookClient

from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.widgets import chart as chart_module
from crypto_lstm.widgets import notebook, panel
from crypto_lstm.widgets.chart import chart
from crypto_lstm.widgets.training_record import TrainingPlan, TrainingRecord

VIEW = "application/vnd.jupyter.widget-view+json"
MANAGER = "https://example.invalid/manager.js"


@pytest.fixture
def in_widget_notebook(monkeypatch):
    """The code believes that it runs in a notebook with widgets; returns what it shows, with its metadata."""
    shown = []
    monkeypatch.setattr(panel, "has_widgets", lambda: True)
    monkeypatch.setattr(chart_module, "has_widgets", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda bundle, **options: shown.append((bundle, options)))
    return shown


@pytest.fixture
def in_colab(monkeypatch):
    """A stand-in for `google.colab.output` that notes the calls, as anywidget expects it."""
    from anywidget import _util

    calls = []
    output = types.ModuleType("google.colab.output")
    output.enable_custom_widget_manager = lambda: calls.append("enabled")
    output._widgets = types.SimpleNamespace(_installed_url=MANAGER)
    monkeypatch.setitem(sys.modules, "google.colab.output", output)
    _util.enable_custom_widget_manager_once.cache_clear()
    yield calls
    _util.enable_custom_widget_manager_once.cache_clear()


def make_record() -> TrainingRecord:
    return TrainingRecord(TrainingPlan(title="BTC/USDT 1h", epochs=2, steps=4))


def test_a_panel_names_the_widget_manager_of_colab(in_widget_notebook, in_colab):
    display = panel.choose_display(make_record().view())
    bundle, options = in_widget_notebook[0]
    assert in_colab == ["enabled"]
    assert VIEW in bundle and options["metadata"] == {VIEW: {"colab": {"custom_widget_manager": {"url": MANAGER}}}}
    display.close(make_record().view())
    bundle, options = in_widget_notebook[-1]
    assert set(bundle) == {"image/png", "text/plain"} and options["metadata"] == {} and options["update"]


def test_a_chart_names_the_widget_manager_of_colab(in_widget_notebook, in_colab):
    bundle, metadata = chart(synthetic_candles(50, timeframe="1h"))._repr_mimebundle_()
    assert {VIEW, "image/png", "text/plain"} == set(bundle)
    assert metadata[VIEW]["colab"]["custom_widget_manager"]["url"] == MANAGER


def test_a_reader_without_widgets_sees_a_sentence_and_no_address(in_widget_notebook):
    panel.choose_display(make_record().view())
    bundle, options = in_widget_notebook[0]
    assert bundle["text/plain"].startswith("BTC/USDT 1h: epoch 1 of 2") and "0x" not in bundle["text/plain"]
    assert options["metadata"] == {}


SOURCE = """
import crypto_lstm as cl
from crypto_lstm.widgets.notebook import has_widgets, is_notebook

print(is_notebook(), has_widgets())
cl.chart(cl.synthetic_candles(300, timeframe="1h"))
"""


def test_a_kernel_of_vs_code_without_a_display_shows_a_widget_and_a_picture(monkeypatch):
    for name in ("DISPLAY", "MPLBACKEND", "JPY_PARENT_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"VSCODE_PID": "1", "VSCODE_CWD": "/", "TERM": "dumb", "VSCODE_CELL_ID": "cell-1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    cells = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SOURCE)])
    NotebookClient(cells, timeout=120, kernel_name="python3").execute()
    printed, shown = [output for output in cells.cells[0].outputs if output.get("name") != "stderr"]
    assert printed["text"] == "True True\n"
    assert {VIEW, "image/png", "text/plain"} == set(shown["data"])
    assert shown["data"]["text/plain"] == "CandleChart(300 candles)"


def test_text_in_the_place_of_widgets_is_escaped(in_widget_notebook):
    record = TrainingRecord(TrainingPlan(title="\x1b[31m<b>", epochs=2, steps=4))
    panel.choose_display(record.view())
    assert "\x1b" not in in_widget_notebook[0][0]["text/plain"]
    assert "<b>" not in notebook.make_text_bundle("<b>")["text/html"]


def test_a_closing_text_of_two_lines_stays_two_lines():
    bundle = notebook.make_text_bundle("Finished <all>.\nTest: \x1b[2J nothing.")
    assert bundle["text/plain"] == "Finished <all>.\nTest: \\x1b[2J nothing."
    assert "Finished &lt;all&gt;.<br>Test: \\x1b[2J nothing." in bundle["text/html"]
