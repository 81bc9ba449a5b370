"""`new` writes a project that works and overwrites nothing; `download` names what is there, or fetches it."""

import argparse
import json
from pathlib import Path

import pytest

import crypto_lstm
from crypto_lstm.commands import first_day
from crypto_lstm.commands.first_day import STARTER, ProjectError, make_project
from crypto_lstm.commands.main import main
from crypto_lstm.config import Config
from crypto_lstm.data import download
from crypto_lstm.data.candles import read_candles
from crypto_lstm.data.download import CandleSource
from crypto_lstm.data.synthetic import synthetic_candles


def test_a_new_project_holds_four_files_that_can_be_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "my_project", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["output"] == "my_project"
    folder = tmp_path / "my_project"
    names = [".gitignore", "README.md", "config.toml", "first_model.ipynb"]
    assert sorted(file.name for file in folder.iterdir()) == names
    assert Config.load(folder / "config.toml") == Config(**STARTER)
    lines = (folder / "README.md").read_text().splitlines()
    assert lines[0] == "# my_project" and len(lines) <= 12
    named = {setting["setting"] for setting in Config.describe()}
    text = (folder / "config.toml").read_text()
    assert all(f"\n{name} = " in text or f"\n# {name} =" in text for name in named)


def test_the_notebook_of_a_project_is_valid_and_names_only_the_front_door(tmp_path):
    notebook = json.loads((make_project(tmp_path / "p") / "first_model.ipynb").read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    source = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
    compile(source, "notebook", "exec")
    for name in ("Config", "synthetic_candles", "read_candles", "check_candles", "train", "load_run"):
        assert f"cl.{name}" in source and name in crypto_lstm.__all__


@pytest.mark.parametrize("kind", ["file", "folder", "full folder", "dangling link"])
def test_what_is_there_is_never_overwritten(kind, tmp_path, capsys):
    path = tmp_path / "taken"
    if kind == "file":
        path.write_text("mine")
    elif kind == "dangling link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.mkdir()
        if kind == "full folder":
            (path / "mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert main(["new", str(path)]) == 1
    assert "exists and nothing is overwritten" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["", ".", "..", "a\nb", "\x1b[2J", "\u202e", "-x", "x" * 300, None, 3, "a/\0"])
def test_names_that_can_be_no_folder_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ProjectError) as error:
        make_project(name)
    assert str(error.value).isprintable() and not list(tmp_path.iterdir())


def test_a_disk_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="disk is full"):
        make_project(tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_candles_of_freqtrade_are_named_and_not_downloaded(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    data = tmp_path / "user_data" / "data" / "binance"
    data.mkdir(parents=True)
    (data / "BTC_USDT-1m.feather").touch()
    assert main(["download", "BTC/USDT"]) == 0
    printed = capsys.readouterr().out
    assert "freqtrade has your candles already" in printed and "user_data/data/binance/BTC_USDT-1m.feather" in printed


def test_download_fetches_into_a_file_named_after_the_market(tmp_path, monkeypatch, capsys):
    candles = synthetic_candles(3000, seed=2, start="2024-01-01", timeframe="1h")
    stamps = candles["date"].astype("int64").to_numpy() // 1_000_000
    values = candles.drop(columns="date").to_numpy().tolist()
    rows = [[int(stamp), *row] for stamp, row in zip(stamps, values, strict=True)]

    def open_fake(name, timeframe):
        assert (name, timeframe) == ("binance", "1h")
        return CandleSource(name, lambda _pair, _time, since, limit: [r for r in rows if r[0] >= since][:limit])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(download, "open_exchange", open_fake)
    assert main(["download", "BTC/USDT", "--timeframe", "1h", "--days", "2000"]) == 0
    printed = capsys.readouterr()
    assert "Next:" in printed.out and "3,000 candles" in printed.err
    assert len(read_candles(tmp_path / "BTC_USDT-1h.feather", timeframe="1h")) == 3000


def test_a_stopped_download_says_how_to_resume(tmp_path, monkeypatch, capsys):
    def stop(_arguments: argparse.Namespace):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(first_day, "run_download", stop)
    monkeypatch.setitem(main.__globals__["_JOBS"], "download", stop)
    assert main(["download", "BTC/USDT"]) == 130
    assert "run the same command again to resume" in capsys.readouterr().err


def test_new_names_the_extra_where_jupyterlab_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(first_day.importlib.util, "find_spec", lambda name: None)
    result = first_day.run_new(argparse.Namespace(name=tmp_path / "p"))
    assert result.values["next"][1:] == ['pip install "crypto_lstm[lab]"', "jupyter lab first_model.ipynb"]
