"""The ledger: concurrent writers, damage and a full disk lose nothing, and the count of trials has no look-ahead."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from crypto_lstm.config import Config
from crypto_lstm.evaluation.ledger import (
    Ledger,
    LedgerEntry,
    LedgerError,
    append_entry,
    default_ledger_path,
    fingerprint_settings,
    list_changes,
    make_entry,
    read_ledger,
    summarise_trials,
)
from crypto_lstm.storage.lock import LockedError, hold_lock

START = datetime(2026, 1, 1, tzinfo=UTC)
END = datetime(2026, 1, 31, tzinfo=UTC)
MARKET = "BTCUSDT 1m"


def make(seed, start=START, end=END, pair="BTCUSDT", time=END, extra=None):
    """The entry of a model that differs from others by its seed."""
    returns = np.random.default_rng(seed).normal(size=30)
    config = Config(pair=pair, seed=seed)
    return make_entry(config, "a" * 64, start, end, {"mcc": 0.1}, returns, False, False, extra=extra, time=time)


def append_many(path, first):
    """Append twenty entries, in a process of its own."""
    for seed in range(first, first + 20):
        append_entry(make(seed), path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.jsonl"


@pytest.fixture
def filled(path):
    """A ledger of five entries with the seeds 0 to 4."""
    for seed in range(5):
        append_entry(make(seed), path)
    return path


def list_seeds(ledger):
    return [entry.changes["seed"] for entry in ledger]


def test_default_path_follows_xdg_state_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_ledger_path() == tmp_path / "crypto_lstm" / "ledger.jsonl"
    append_entry(make(1))
    assert len(read_ledger()) == 1
    monkeypatch.setenv("XDG_STATE_HOME", "relative")  # the specification says to ignore it
    assert default_ledger_path().is_relative_to(Path.home())


def test_entries_come_back_as_they_were_written(filled):
    ledger = read_ledger(filled)
    ledger.require_sound()
    assert list(ledger) == [make(seed) for seed in range(5)]
    assert max(map(len, str(ledger).splitlines())) <= 80


def test_processes_that_write_at_once_lose_nothing(path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=append_many, args=(path, 100 * number)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * 4
    ledger = read_ledger(path)
    ledger.require_sound()
    expected = {100 * number + seed for number in range(4) for seed in range(20)}
    assert len(ledger) == 80
    assert set(list_seeds(ledger)) == expected


def test_a_locked_ledger_names_its_holder(filled):
    before = filled.read_bytes()
    with hold_lock(filled), pytest.raises(LockedError, match=f"process {os.getpid()} on .* has been writing it since"):
        append_entry(make(9), filled, wait_s=0.05)
    assert filled.read_bytes() == before


@pytest.mark.parametrize("line", range(5))
def test_any_changed_byte_is_found_and_costs_one_line_at_most(filled, line):
    data = filled.read_bytes()
    begin = sum(len(text) for text in data.splitlines(keepends=True)[:line])
    length = len(data.splitlines()[line])
    for offset in range(0, length, 7):
        changed = bytearray(data)
        changed[begin + offset] ^= 1
        filled.write_bytes(changed)
        ledger = read_ledger(filled)
        lost = [fault.line for fault in ledger.faults if fault.is_lost]
        assert lost[0] == line + 1
        assert len(ledger) >= 4 or changed[begin + offset] in b"\n\x0b"
        with pytest.raises(LedgerError, match=f"line {line + 1}"):
            ledger.require_sound()


def test_damaged_lines_stay_and_the_next_entry_is_added(filled):
    lines = filled.read_bytes().splitlines(keepends=True)
    damaged = b"".join([lines[0], b"\xff\x00 not JSON\n", *lines[2:4], lines[4][:50]])
    filled.write_bytes(damaged)
    append_entry(make(7), filled)
    assert filled.read_bytes().startswith(damaged)
    ledger = read_ledger(filled)
    assert list_seeds(ledger) == [0, 2, 3, 7]
    assert [(fault.line, fault.is_lost) for fault in ledger.faults] == [(2, True), (3, False), (5, True)]


@pytest.mark.parametrize("change", ["removed", "swapped", "repeated"])
def test_lines_that_were_removed_swapped_or_repeated_are_found(filled, change):
    lines = filled.read_bytes().splitlines(keepends=True)
    orders = {"removed": [0, 1, 3, 4], "swapped": [0, 2, 1, 3, 4], "repeated": [0, 1, 1, 2, 3, 4]}
    filled.write_bytes(b"".join(lines[number] for number in orders[change]))
    ledger = read_ledger(filled)
    assert len(ledger) == len(orders[change])
    with pytest.raises(LedgerError, match="does not follow the line before it"):
        ledger.require_sound()


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_leaves_the_ledger_as_it_was(filled, monkeypatch, call):
    before = filled.read_bytes()
    real = os.write

    def fail(descriptor, data=b""):
        if data.startswith(b'{"pid"'):
            return real(descriptor, data)  # the note of the lock
        if data.startswith(b'{"entry"'):
            return real(descriptor, data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(LedgerError, match="the ledger is unchanged"):
        append_entry(make(9), filled)
    monkeypatch.undo()
    assert filled.read_bytes() == before


def test_a_folder_that_cannot_be_made_is_a_typed_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="set XDG_STATE_HOME"):
        append_entry(make(1), tmp_path / "file" / "ledger.jsonl")
    with pytest.raises(LedgerError, match="could not be read"):
        read_ledger(tmp_path)


def test_trials_are_distinct_settings_on_overlapping_parts_of_one_market(path):
    later = END + timedelta(days=30)
    entries = [make(1), make(1), make(2), make(1, pair="ETHUSDT"), make(3, START, later), make(4, later, later)]
    for entry in entries:
        append_entry(entry, path)
    summary = summarise_trials(read_ledger(path), MARKET, START, END)
    assert (summary.trials, summary.sharpes) == (3, 3)  # seeds 1, 2 and 3
    sharpes = [make(seed).sharpe.sharpe for seed in (1, 2, 3)]
    assert summary.variance == pytest.approx(np.var(sharpes, ddof=1))
    assert summarise_trials(read_ledger(path), MARKET, later, later).trials == 2  # seeds 3 and 4
    assert summarise_trials(read_ledger(path), "SOLUSDT 1m", START, END).trials == 1  # the current model


def test_times_in_another_timezone_are_the_same_part(path):
    append_entry(make(1), path)
    east = datetime.fromisoformat("2026-01-01T05:00:00+05:00")
    assert make(1, start=east) == make(1)


def test_damaged_lines_count_as_trials(filled):
    lines = filled.read_bytes().splitlines(keepends=True)
    filled.write_bytes(b"".join([lines[0], b"x\n", *lines[2:]]))
    summary = summarise_trials(read_ledger(filled), MARKET, START, END)
    assert (summary.trials, summary.sharpes, summary.damaged) == (5, 4, 1)


def test_later_judgements_do_not_change_an_earlier_count(path):
    for seed in range(6):
        append_entry(make(seed, time=END + timedelta(hours=seed)), path)
    now = END + timedelta(hours=2)
    ledger = read_ledger(path)
    known = Ledger(path, ledger.entries[:3])
    assert summarise_trials(ledger, MARKET, START, END, before=now) == summarise_trials(known, MARKET, START, END)


def test_one_known_sharpe_ratio_has_the_variance_of_an_estimate_without_skill():
    assert summarise_trials([make(1)], MARKET, START, END).variance == pytest.approx(1 / 29)
    assert summarise_trials([], MARKET, START, END).variance == 0.0


def test_settings_that_matter_change_the_fingerprint():
    plain = fingerprint_settings(Config())
    assert fingerprint_settings(Config(pair="ETHUSDT", mixed_precision=True)) == plain
    changes = [Config(seed=1), Config(fee_pct=0.2), Config(future_window=60), Config(features=("close_change",))]
    assert len({plain, *map(fingerprint_settings, changes)}) == 5
    assert fingerprint_settings(Config(), {"rule": "argmax"}) != plain
    assert list_changes(Config(fee_pct=0.2, batch_size=8)) == {"fee_pct": 0.2}
    assert make(1, extra={"rule": "argmax"}).changes == {"seed": 1, "rule": "argmax"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"time": "yesterday"}, "time: expected a time in ISO 8601, got 'yesterday'"),
        ({"start": "2026-01-01T00:00:00"}, "start: expected a time with its offset from UTC"),
        ({"end": "2025-01-01T00:00:00+00:00"}, "end: expected a time from start"),
        ({"market": ""}, "market: expected text, got ''"),
        ({"metrics": {"mcc": "high"}}, "metrics.mcc: expected a finite number, got 'high'"),
        ({"changes": {"rule": {1, 2}}}, "changes: expected plain JSON values"),
        ({"net_return": float("nan")}, "net_return: expected a finite number or null, got nan"),
        ({"learnt": None}, "learnt: expected true or false, got None"),
        ({"sharpe": {"sharpe": 1.0}}, "missing periods, skew, kurtosis"),
        ({"sharpe": {"sharpe": 1.0, "periods": 1, "skew": 0, "kurtosis": 3}}, "sharpe.periods: expected a whole"),
        ({"colour": 1}, "unknown colour"),
    ],
)
def test_an_unusable_entry_is_refused_by_the_name_of_its_field(change, words):
    with pytest.raises(LedgerError) as caught:
        LedgerEntry.from_dict(make(1).as_dict() | change)
    assert words in str(caught.value)


def test_an_entry_is_plain_json():
    entry = make(1)
    assert LedgerEntry.from_dict(json.loads(json.dumps(entry.as_dict()))) == entry


def test_naive_times_are_refused():
    with pytest.raises(LedgerError, match="offset from UTC"):
        make(1, start=START.replace(tzinfo=None))
    with pytest.raises(LedgerError, match="offset from UTC"):
        summarise_trials([], MARKET, START.replace(tzinfo=None), END)
