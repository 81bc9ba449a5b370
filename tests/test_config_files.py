"""Configuration files and settings that are huge are refused with a typed error, before they are read or parsed."""

import os

import pytest

from crypto_lstm.commands.main import main
from crypto_lstm.config import Config, ConfigError

MIB = 2**20


def refuse(make) -> str:
    with pytest.raises(ConfigError) as caught:
        make()
    assert len(str(caught.value)) < 8000  # a message does not repeat a megabyte
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_a_file_above_one_mebibyte_is_refused(suffix, tmp_path):
    path = tmp_path / f"run.{suffix}"
    with path.open("wb") as handle:
        handle.truncate(2**36)  # 64 GB that take no space
    assert "is larger than a configuration (1,048,576 bytes)" in refuse(lambda: Config.load(path))
    text = Config().save(path).read_text()
    path.write_text(text + " " * (MIB - len(text)))
    assert Config.load(path) == Config()


def test_a_device_a_pipe_and_a_folder_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    (tmp_path / "folder.toml").mkdir()
    for name in ("pipe.toml", "zero.json", "folder.toml"):
        assert "is a folder, a device or a pipe" in refuse(lambda name=name: Config.load(tmp_path / name))
    assert "a NUL character in its name" in refuse(lambda: Config.load("a\0.toml"))
    (tmp_path / "real.toml").write_text("epochs = 3")
    (tmp_path / "link.toml").symlink_to("real.toml")
    assert Config.load(tmp_path / "link.toml").epochs == 3


HUGE = {
    "one dotted name": b"a" + b".a" * 500_000 + b"=1",
    "many dotted names": b"".join(b"x%d" % i + b".a" * 90 + b"=1\n" for i in range(5000)),
    "a dotted table": b"[a" + b".a" * 500_000 + b"]",
    "many names": b"".join(b"n%d=1\n" % i for i in range(100_000)),
    "many layers": b"lstm_units=[" + b"8," * 500_000 + b"]",
    "nested lists": b"a=" + b"[" * 1_000_000,
    "some unknown names": b"".join(b"n%d=1\n" % i for i in range(5000)),
    "a long number": b"epochs=" + b"1" * 1_000_000,
}


@pytest.mark.parametrize("name", HUGE)
def test_a_file_that_takes_long_to_parse_is_refused(name, tmp_path):
    path = tmp_path / "run.toml"
    path.write_bytes(HUGE[name])
    refuse(lambda: Config.load(path))


WORDS = {
    "layers": ["lstm_units=" + "8," * 20_000],
    "dense layers": ["dense_units=" + "8," * 20_000],
    "text": ["pair=" + "A" * MIB],
    "name": ["x" * MIB + "=1"],
    "no setting": ["x" * MIB],
    "digits": ["seed=" + "1" * MIB],
    "words": ["epochs=1"] * 100_000,
}


@pytest.mark.parametrize("name", WORDS)
def test_huge_settings_are_refused(name):
    refuse(lambda: Config.from_text(WORDS[name]))


def test_estimate_refuses_20000_layers_and_takes_a_hundred(capsys):
    assert main(["estimate", "--set", "lstm_units=" + "8," * 20_000]) == 1
    assert "at most 100 of them, not 20,000" in capsys.readouterr().err
    assert main(["estimate", "--set", "lstm_units=" + "8," * 100, "--json"]) == 0
