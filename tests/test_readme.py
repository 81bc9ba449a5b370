"""README.md: its Python runs as written, its result table has the form of a real one, its links lead somewhere."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import forked
from support.hidden import HIDE

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
CODE = "\n".join(BLOCKS)
REPORT = """
print("RESULT")
print("\\n\\n".join(str(run.judgement).split("\\n\\n")[:3]))
print(decision.action)
"""


def split_columns(line: str) -> list[str]:
    """The cells of a line of a text table."""
    return re.split(r" {2,}", line.strip())


def list_names(table: str) -> list[str]:
    """The first cell of each row, below a title, a header and a rule."""
    return [split_columns(line)[0] for line in table.splitlines()[3:]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


@pytest.fixture(scope="module")
def output(folder):
    """What README's Python prints, run as written in an empty folder by a process of its own."""
    done = forked.run(CODE + REPORT, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_bot_part_runs_alone_without_the_packages_of_the_extras(output, folder):
    done = subprocess.run(
        [sys.executable, "-c", f"{HIDE}\n{BLOCKS[1]}\nprint(decision)"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("NO_TRADE: the newest candle (2023-") and "is too old" in done.stdout


def test_the_python_of_the_readme_runs_as_written(output):
    table, result = output.split("RESULT\n")
    assert split_columns(table.splitlines()[0]) == ["date", "long", "expected_long decision"]
    assert result.splitlines()[-1] == "NO_TRADE"


def test_the_result_table_has_the_form_of_a_real_one(output):
    """Three sentences and two tables. A short run has no interval, so its cells may take more lines."""
    real = output.split("RESULT\n")[1].rpartition("\n")[0].split("\n\n")
    shown = next(block for block in re.findall(r"```\n(.*?)```", README, flags=re.DOTALL) if "\ntest: " in block)
    parts = shown.split("\n\n")
    assert len(parts) == len(real) == 3
    assert parts[0].startswith("The model has learnt")
    for ours, theirs in zip(parts[1:], real[1:], strict=True):
        assert split_columns(ours.splitlines()[1]) == split_columns(theirs.splitlines()[1])
    assert list_names(parts[1]) == ["accuracy", "balanced accuracy", "MCC", "direction of signals", "gain in log-loss"]
    assert list_names(parts[2])[:5] == list_names(real[2])[:5]
    assert max(map(len, shown.splitlines())) <= 80


def test_the_python_needs_the_front_door_alone():
    imports = [node for node in ast.walk(ast.parse(CODE)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert [ast.unparse(node) for node in imports] == ["import crypto_lstm as cl"] * 2


def test_the_python_is_short():
    lines = [[line for line in block.splitlines() if line] for block in BLOCKS]
    assert [len(block) for block in lines] == [8, 5]


def test_the_links_lead_to_files_of_the_repository():
    targets = re.findall(r"\]\((?!https?:|#)([^)]+)\)", README)
    assert len(targets) > 20
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_every_folder_of_notebooks_has_a_link():
    folders = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "nbs").rglob("*.ipynb")} - {"nbs"}
    folders = {folder for folder in folders if ".ipynb_checkpoints" not in folder}
    assert folders <= set(re.findall(r"\]\(([^)]+)\)", README))


def test_the_disclaimer_stands_in_the_top_half():
    assert 0 < README.index("Not financial advice") < len(README) / 2
