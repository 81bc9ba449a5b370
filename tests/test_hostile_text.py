"""Names and texts from files never control the terminal: a transcript holds printable characters and line breaks."""

import argparse
import io
import json
import logging
import os
import zipfile
from pathlib import Path

import pytest

from crypto_lstm.commands.main import main
from crypto_lstm.commands.parser import make_parser
from crypto_lstm.data.candles import read_candles
from crypto_lstm.inference.onnx_file import OnnxFileError, decode_onnx_file
from crypto_lstm.saving.model_file import read_archive
from crypto_lstm.storage.atomic import SaveError
from crypto_lstm.storage.manifest import MANIFEST, IntegrityError, SavedFileError, encode_manifest, parse_json
from crypto_lstm.storage.verified import atomic_folder, verify_folder
from crypto_lstm.utils.checks import list_first_names, shorten_repr
from crypto_lstm.utils.display import get_logger, html_table, text_table
from crypto_lstm.utils.errors import CryptoLSTMError

FORGED = "OK: every byte is as saved"
HOSTILE = f"a\x1b[2J\r\x9b1A\x07\u202eb\u2066\u200b\u2028c\n{FORGED}\x85"


def require_harmless(text: str) -> None:
    """Fail for a control character, and for a line that a name forged."""
    bad = sorted({character for character in text if not character.isprintable()} - {"\n"})
    assert not bad, (bad, text)
    assert not any(line.startswith(FORGED) for line in text.splitlines()), text


def zipped(names: list[str], content: bytes = b"date,open\n1,2\n") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, content)
    return buffer.getvalue()


def write_csv(folder: Path) -> Path:
    path = folder / "candles.csv"
    path.write_text(f'date,open,high,low,close,"{HOSTILE}"\n2020-01-01,1,1,1,1,1\n', encoding="utf-8")
    return path


def write_csv_with_cells(folder: Path) -> Path:
    path = folder / "cells.csv"
    path.write_text(f'date,open,high,low,close,volume\n2020-01-01,1,1,1,1,"{HOSTILE}"\n', encoding="utf-8")
    return path


def write_json_rows(folder: Path) -> Path:
    path = folder / "candles.json"
    path.write_text(json.dumps([{HOSTILE: 1, "open": HOSTILE}]))
    return path


def write_zip(folder: Path) -> Path:
    path = folder / "candles.zip"
    path.write_bytes(zipped([HOSTILE, HOSTILE + "2"]))
    return path


def write_folder(folder: Path) -> Path:
    target = folder / "bundle"
    with atomic_folder(target, facts={"pair": HOSTILE, "expires": HOSTILE}) as new:
        (new / "a.txt").write_text("a")
    (target / HOSTILE).write_text("foreign")
    return target


def write_manifest_of_another_schema(folder: Path) -> Path:
    target = folder / "schema"
    target.mkdir()
    (target / MANIFEST).write_bytes(encode_manifest({"schema": HOSTILE, "files": {}, "folders": [], "facts": {}}))
    return target


def write_settings(folder: Path) -> Path:
    path = folder / "settings.json"
    path.write_text(json.dumps({HOSTILE: 1, "pair": HOSTILE, "timeframe": HOSTILE}))
    return path


def write_keras_archive(folder: Path) -> Path:
    path = folder / "model.keras"
    path.write_bytes(zipped([HOSTILE, "config.json"]))
    return path


def write_named_file(folder: Path) -> Path:
    path = folder / f"{HOSTILE}.csv"
    path.write_text("nothing")
    return path


def write_surrogate_name(folder: Path) -> Path:
    path = folder / os.fsdecode(b"folder-\xff\x9b")
    path.mkdir()
    return path


TRAIN = ("train", "--output", "{out}", "--candles", "{path}")
COMMANDS = [
    (write_csv, TRAIN),
    (write_csv_with_cells, TRAIN),
    (write_json_rows, TRAIN),
    (write_zip, TRAIN),
    (write_named_file, TRAIN),
    (write_csv, ("walk-forward", *TRAIN[1:])),
    (write_named_file, ("walk-forward", *TRAIN[1:])),
    (write_folder, ("verify", "{path}")),
    (write_folder, ("verify", "--json", "{path}")),
    (write_manifest_of_another_schema, ("verify", "{path}")),
    (write_keras_archive, ("verify", "{path}")),
    (write_surrogate_name, ("verify", "{path}")),
    (write_settings, ("estimate", "--config", "{path}")),
    (write_named_file, ("estimate", "--config", "{path}")),
    (write_folder, ("predict", "--model", "{path}", "--candles", "{path}")),
    (write_named_file, ("predict", "--model", "{path}", "--candles", "{path}")),
    (write_folder, ("report", "{path}")),
    (write_surrogate_name, ("report", "{path}")),
    (write_named_file, ("report", "{path}", "--output", "{path}.html")),
    (write_csv, ("baseline", "--candles", "{path}")),
    (write_named_file, ("baseline", "--candles", "{path}", "--output", "{path}")),
    (write_folder, ("export", "--model", "{path}", "--output", "{out}.onnx")),
    (write_folder, ("freqtrade", "--model", "{path}", "--output", "{out}")),
    (write_named_file, ("freqtrade", "--model", "{path}", "--output", "{out}")),
    (write_folder, ("paper", "--model", "{path}", "--output", "{out}", "--candles", "{path}")),
    (write_named_file, ("paper", "--model", "{path}", "--output", "{path}", "--exchange", "{path}")),
    (write_csv, ("features", "--candles", "{path}")),
    (write_named_file, ("audit", "--candles", "{path}", "--function", "{path}:{path}")),
]


@pytest.mark.parametrize(("write", "command"), COMMANDS)
def test_a_transcript_on_hostile_names_holds_no_control_character(write, command, tmp_path, capfd):
    path = write(tmp_path)
    arguments = [word.format(path=path, out=tmp_path / "out") for word in command]
    assert main(arguments) == 1
    printed = capfd.readouterr()
    require_harmless(printed.out)
    require_harmless(printed.err)
    assert printed.out + printed.err


def list_text_options() -> list[tuple[str, argparse.Action | None]]:
    """Each command with each of its options that take a text; with None for a command without any."""
    (commands,) = [action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    found: list[tuple[str, argparse.Action | None]] = []
    for name, command in commands.choices.items():
        texts = [action for action in command._actions if takes_text(action)]
        found += [(name, action) for action in texts or [None]]
    return found


def takes_text(action: argparse.Action) -> bool:
    return action.type is None and action.choices is None and action.nargs != 0


def give(action: argparse.Action, value: str) -> list[str]:
    return [*action.option_strings[-1:], value]


OPTIONS = list_text_options()
OPTION_NAMES = [f"{name} {option and option.dest}" for name, option in OPTIONS]


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(("name", "option"), OPTIONS, ids=OPTION_NAMES)
def test_no_option_of_any_command_lets_control_characters_through(name, option, as_json, tmp_path, capfd):
    file = str(write_named_file(tmp_path))  # it exists, so nothing is written there
    needed = [action for command, action in OPTIONS if command == name and action is not None and action.required]
    words = [word for action in needed if action is not option for word in give(action, file)]
    for value in (file, HOSTILE, f"pair={HOSTILE}"):
        chosen = [] if option is None else give(option, value)
        if name == "demo" and value != file:
            continue  # it would train
        try:
            code = main([name, *words, *chosen, *(["--json"] if as_json else [])])
        except SystemExit as stop:
            code = stop.code
        printed = capfd.readouterr()
        require_harmless(printed.out)
        require_harmless(printed.err)
        assert (printed.out + printed.err) and code == int(option is not None)


def test_the_commands_that_read_candles_or_models_are_tried_on_hostile_content():
    tried = {command[0] for _, command in COMMANDS}
    others = {"demo", "settings", "doctor", "new", "download"}  # these read no file but settings
    assert tried == {name for name, _ in OPTIONS} - others


def test_every_error_of_the_package_escapes_its_message():
    for error in (
        CryptoLSTMError(HOSTILE.replace("\n", "")),
        SavedFileError(HOSTILE, HOSTILE),
        SaveError(HOSTILE, HOSTILE, "save again"),
        pytest.raises(IntegrityError, parse_json, json.dumps({HOSTILE: 1})[:-1].encode() + b"x", HOSTILE).value,
    ):
        require_harmless(str(error))
        require_harmless(getattr(error, "fault", ""))


def test_names_in_lists_and_tables_are_escaped(tmp_path):
    require_harmless(list_first_names([HOSTILE] * 3, width=99))
    require_harmless(shorten_repr({HOSTILE: HOSTILE}))
    row = HOSTILE.replace("\n", "")  # line breaks of a cell stay in its column
    for text in (text_table((row, ""), [(row, 1)]), html_table((row, ""), [(row, 1)], caption=HOSTILE)):
        require_harmless(text)
    report = verify_folder(write_folder(tmp_path))
    for text in (str(report), repr(report), report._repr_html_(), *report.faults):
        require_harmless(text)


def test_messages_about_archives_and_candles_are_escaped(tmp_path):
    with pytest.raises(CryptoLSTMError) as caught:
        read_archive(zipped([HOSTILE] * 3), "model.keras")
    require_harmless(str(caught.value))
    for write in (write_csv, write_csv_with_cells, write_json_rows, write_zip):
        with pytest.raises(CryptoLSTMError) as caught:
            read_candles(write(tmp_path))
        require_harmless(str(caught.value))
    with pytest.raises(OnnxFileError) as caught:
        decode_onnx_file(HOSTILE.encode(), HOSTILE)
    require_harmless(str(caught.value))


def test_a_name_does_not_forge_a_line_of_the_log(caplog):
    logger = get_logger("crypto_lstm.test_hostile_text")
    with caplog.at_level(logging.INFO):
        logger.warning("%s is loaded unchecked", HOSTILE)
    (record,) = caplog.records
    assert "\n" not in record.getMessage() and "is loaded unchecked" in record.getMessage()
    require_harmless(record.getMessage())
