"""The help of a notebook names each parameter with the comment beside it, and never fails."""

import dataclasses
import inspect
import subprocess
import sys

import pytest

import crypto_lstm as cl
from crypto_lstm.config import Config
from crypto_lstm.data.candles import read_candles
from crypto_lstm.utils.parameter_help import add_parameter_help, find_meanings, write_parameter_help


def test_comments_of_the_body_are_no_parameters():
    parameters = "    a: int,  # first\n    b=(1, 2),  # second\n    *rest: str,  # others\n"
    source = f"def f(\n{parameters}) -> int:  # sum\n    c: int = 1,  # no\n"
    assert find_meanings(source) == {"a": "first", "b": "second", "rest": "others", "return": "sum"}


def test_every_setting_has_its_meaning():
    shown = write_parameter_help(Config)
    for setting in Config.describe():
        assert f"  {setting['setting']}: {setting['meaning']}" in shown


def test_each_parameter_of_a_function_is_named():
    shown = write_parameter_help(read_candles)
    for name in inspect.signature(read_candles).parameters:
        assert f"\n  {name}: " in shown
    assert shown.endswith(inspect.getdoc(read_candles))


@pytest.mark.parametrize("value", [len, int, object(), None, 3, "text", cl, dataclasses.make_dataclass("Made", ["x"])])
def test_what_has_no_source_keeps_its_docstring(value):
    assert write_parameter_help(value) == (inspect.getdoc(value) or "")


def test_outside_of_a_notebook_nothing_is_added():
    module = "crypto_lstm.utils.parameter_help"
    script = f"import sys, crypto_lstm as cl; print(hasattr(cl.Config, 'getdoc'), {module!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_an_instance_and_a_subclass_are_not_disturbed(monkeypatch):
    class Record:
        """A record."""

        def __init__(
            self,
            size: int,  # in MB
        ) -> None:
            self.size = size

    monkeypatch.setitem(sys.modules, "IPython", object())
    add_parameter_help(Record)
    assert "size: in MB" in Record.getdoc() and Record(3).size == 3
    add_parameter_help(3)
