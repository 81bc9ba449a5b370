"""The front door: `import crypto_lstm as cl` is light, complete, typed, and every name has an example that runs."""

import ast
import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import crypto_lstm

NAMES = [name for name in crypto_lstm.__all__ if name != "__version__"]
pytestmark = pytest.mark.usefixtures("bare_trainings")
HEAVY = {"tensorflow", "keras", "pandas", "numpy", "matplotlib", "sklearn", "pyarrow", "onnxruntime"}


def run_python(script: str) -> str:
    """Standard output of a script in a process of its own."""
    return subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout


def run_example(name: str) -> None:
    """Run the docstring of a name as a doctest. Fails if it holds no example, or if the output differs."""
    value = getattr(crypto_lstm, name)
    example = doctest.DocTestParser().get_doctest(value.__doc__ or "", {}, name, None, None)
    assert example.examples, f"the docstring of {name} has no example"
    output: list[str] = []
    results = doctest.DocTestRunner().run(example, out=output.append)
    assert results.failed == 0, "".join(output)


@pytest.fixture(scope="module")
def folder_with_run(tmp_path_factory):
    """The working folder of the examples. The example of `train` leaves the folder `run` there; others read it."""
    folder = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_example("train")
        yield folder


@pytest.mark.parametrize("name", [name for name in NAMES if name != "train"])
def test_the_example_in_the_docstring_runs(name, folder_with_run):
    run_example(name)


def test_the_import_loads_nothing_heavy():
    loaded = run_python("import sys, crypto_lstm; dir(crypto_lstm); print(*sys.modules)").split()
    assert not HEAVY & set(loaded)
    assert [name for name in loaded if name.startswith("crypto_lstm")] == ["crypto_lstm"]


@pytest.mark.parametrize("name", ["Config", "estimate_memory", "max_batch_size", "CryptoLSTMError"])
def test_sizing_a_network_needs_no_tensorflow(name):
    loaded = run_python(f"import sys, crypto_lstm; crypto_lstm.{name}; print(*sys.modules)").split()
    assert not {"tensorflow", "keras", "pandas"} & set(loaded)


def test_a_bot_needs_neither_tensorflow_nor_pandas():
    loaded = run_python("import sys, crypto_lstm; crypto_lstm.Predictor; print(*sys.modules)").split()
    assert not {"tensorflow", "keras", "pandas", "sklearn"} & set(loaded)


@pytest.mark.parametrize("name", NAMES)
def test_each_name_is_the_object_of_its_module(name):
    module = importlib.import_module(f"crypto_lstm.{crypto_lstm._HOMES[name]}")
    value = getattr(crypto_lstm, name)
    assert value is getattr(module, name)
    assert value.__module__ == module.__name__, "the table names a module that only imports it"
    assert name in module.__all__


def test_the_stub_for_type_checkers_has_the_same_table():
    stub = ast.parse(Path(crypto_lstm.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    homes = {node.names[0].asname: node.module.removeprefix("crypto_lstm.") for node in imports}
    assert homes == crypto_lstm._HOMES


def test_all_names_are_listed_once_and_completed():
    assert len(NAMES) == len(set(NAMES)) and len(NAMES) < 40
    assert set(NAMES) < set(dir(crypto_lstm))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'crypto_lstm' has no attribute 'trian'"):
        crypto_lstm.trian  # noqa: B018


def test_modules_are_still_imported_by_name():
    from crypto_lstm import config

    assert config.Config is crypto_lstm.Config
