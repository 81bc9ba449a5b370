"""Atomic writes and verified reads under kills, failing calls, changed bytes, and two writers.

Seeds are fixed; `pytest -s` prints them with the counts.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import pwd
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from unittest.mock import patch

import pytest
from support import crash_injection

from crypto_lstm.storage import atomic, checkpoints, verified
from crypto_lstm.storage.atomic import SaveError
from crypto_lstm.storage.checkpoints import CheckpointStore
from crypto_lstm.storage.lock import ForeignLockError, LockedError, describe_owner, hash_name, hold_lock
from crypto_lstm.storage.manifest import (
    MANIFEST,
    IntegrityError,
    PinMismatchError,
    SavedFileError,
    SchemaVersionError,
    encode_manifest,
    list_tree,
    parse_json,
    read_json,
)
from crypto_lstm.storage.verified import (
    atomic_file,
    atomic_folder,
    manifest_path,
    read_file,
    read_folder,
    verify_folder,
)
from crypto_lstm.utils.errors import CryptoLSTMError

SEED = 20260101


@pytest.fixture
def quick():
    """A folder on a memory disk, if there is one: a sync costs nothing there."""
    memory = Path("/dev/shm")
    is_usable = memory.is_dir() and os.access(memory, os.W_OK)
    with tempfile.TemporaryDirectory(dir=memory if is_usable else None) as folder:
        yield Path(folder)


def content(number: int) -> bytes:
    return number.to_bytes(4, "big") * 1500


def number_of(files: dict[str, bytes]) -> int:
    """The number of the save that wrote all files; fails if they are of several saves."""
    data = b"".join(files.values())
    numbers = {int.from_bytes(data[start : start + 4], "big") for start in range(0, len(data), 4)}
    assert len(numbers) == 1, f"torn: {numbers}"
    return numbers.pop()


def folder_place(place: Path):
    target = place / "model"

    def save(number):
        with atomic_folder(target, facts={"n": number}) as folder:
            (folder / "weights").mkdir()
            (folder / "weights" / "a.bin").write_bytes(content(number))
            (folder / "b.bin").write_bytes(content(number)[:400])

    def read():
        try:
            found = read_folder(target)
        except FileNotFoundError:
            return None
        assert found.facts["n"] == number_of(found.files)
        return found.facts["n"]

    return save, read


def store_place(place: Path):
    store = place / "state"

    def save(number):
        with CheckpointStore(store, max_to_keep=2).save(facts={"n": number}, score=-number) as folder:
            (folder / "a.bin").write_bytes(content(number))

    def read():
        found = CheckpointStore(store).read()
        return number_of(found.files) if found else None

    return save, read


def file_place(place: Path):
    target = place / "model.keras"

    def save(number):
        with atomic_file(target, facts={"n": number}) as path:
            path.write_bytes(content(number))

    def read():
        if not target.exists():
            return None
        if not manifest_path(target).exists():  # a first save goes by two names; the file comes second
            raise AssertionError("there is a file without its manifest")
        found = read_file(target)
        assert found.facts["n"] == number_of(found.files)
        return found.facts["n"]

    return save, read


PLACES = {"folder": folder_place, "store": store_place, "file": file_place}


# ---------------------------------------------------------------- kills


@pytest.mark.parametrize("place", PLACES)
def test_no_save_is_lost_or_torn_by_a_kill(place, tmp_path):
    save, read = PLACES[place](tmp_path)
    report = crash_injection.kill_rounds(save, read, kills=20, seed=SEED, longest_s=0.08)
    print(place, report)
    assert report.kills == 20 and not report.lost and not report.torn, str(report)
    assert report.share_inside >= 0.3, str(report)
    save(1_000_000)
    assert read() == 1_000_000
    assert not list(tmp_path.rglob(".*"))  # the next writer has removed the leftovers


@pytest.mark.parametrize("place", ["folder", "file"])
def test_no_save_is_lost_or_torn_by_a_kill_without_exchange(place, quick, monkeypatch):
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    save, read = PLACES[place](quick)
    report = crash_injection.kill_rounds(save, read, kills=40, seed=SEED, longest_s=0.02, pause_s=0)
    print(place, report)
    assert not report.lost and not report.torn and report.share_inside >= 0.3, str(report)


SAVER = """
import sys
from crypto_lstm.storage.checkpoints import CheckpointStore
for number in range(int(sys.argv[2]), 10**9):
    print("begin", number, flush=True)
    with CheckpointStore(sys.argv[1] + "/state", max_to_keep=2).save() as folder:
        (folder / "a.bin").write_bytes(number.to_bytes(4, "big") * 1500)
    print("end", number, flush=True)
"""


def test_no_save_of_a_command_is_lost_or_torn_by_a_kill(quick):
    command, read = [sys.executable, "-c", SAVER, str(quick)], store_place(quick)[1]
    report = crash_injection.kill_rounds(command, read, kills=3, seed=SEED, longest_s=0.05)
    print(report)
    assert report.kills == 3 and not report.lost and not report.torn and read() > 1, str(report)


def test_kill_rounds_detect_a_save_that_tears_its_file(quick):
    """A save that truncates its target, as Keras does: the same rounds must report it."""
    target = quick / "model"

    def save(number):
        with open(target, "wb", buffering=0) as file:
            for _ in range(200):
                file.write(content(number))

    def read():
        data = target.read_bytes()
        assert len(data) == 200 * 6000
        return number_of({"a": data[:4] + data[-4:]})

    report = crash_injection.kill_rounds(save, read, kills=10, seed=SEED, longest_s=0.02, pause_s=0)
    assert report.torn


# ---------------------------------------------------------------- failing calls
# An exit after a call leaves the same disk as an exit before the next one, and a full disk takes the way of a failing
# one. `python -m benchmarks reliability` tries all five.

MORE = [(fcntl, "flock"), (atomic, "_exchange")]
ONCE = ("EIO", "short write", "exit before")


SCANDIR = os.scandir  # the real one: a call of this test must not be the one that fails


def list_folders(place: Path):
    """Path and number of all folders below."""
    for entry in SCANDIR(place):
        if entry.is_dir(follow_symlinks=False):
            yield Path(entry.path), entry.inode()
            yield from list_folders(Path(entry.path))


def in_lower_layer(make):
    """The place as an overlay file system has it: folders that a save finds can't be renamed (EXDEV)."""

    def make_refusing(place: Path):
        save, read = make(place)

        def save_refused(number):
            lower = set(list_folders(place))
            rename, exchange = os.rename, atomic._exchange

            def is_lower(path):
                return Path(path).is_dir() and (Path(path), Path(path).stat().st_ino) in lower

            def refuse(old, new):
                if is_lower(old):
                    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
                return rename(old, new)

            def refuse_exchange(one, other):
                return not (is_lower(one) or is_lower(other)) and exchange(one, other)

            with patch.object(os, "rename", refuse), patch.object(atomic, "_exchange", refuse_exchange):
                save(number)

        return save_refused, read

    return make_refusing


@pytest.mark.parametrize(("place", "before"), [("folder", 1), ("store", 3)])
def test_a_failing_call_in_an_overlay_loses_and_tears_nothing(place, before, quick):
    make, actions = in_lower_layer(PLACES[place]), ("EIO", "exit before")
    report = crash_injection.try_all_faults(make, quick / "place", before=before, more=MORE, actions=actions)
    print(place, report)
    assert not report.broken, str(report)
    assert report.calls > 80 and report.ends["refused"] > 30 and report.ends["died"] > 50


def test_a_copy_of_a_killed_writer_is_read_and_put_back(tmp_path):
    save, read = folder_place(tmp_path)
    save(1)
    shutil.copytree(tmp_path / "model", atomic._kept_path(tmp_path / "model"))
    atomic._kept_mark(tmp_path / "model").touch()
    (tmp_path / "model" / "b.bin").unlink()  # the writer was killed while it removed the old folder
    assert read() == 1
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "model"):
        raise RuntimeError
    assert read() == 1 and [path.name for path in tmp_path.iterdir()] == ["model"]
    save(2)
    assert read() == 2


# ---------------------------------------------------------------- other users


@pytest.fixture
def other_user(monkeypatch):
    """This process seems to be of another user than its files."""
    number = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: number + 1)
    return f"user {pwd.getpwuid(number).pw_name} ({number})"


def test_a_lock_of_another_user_is_named_with_its_owner(tmp_path, monkeypatch, other_user):
    lock = tmp_path / f".lock-{hash_name('model')}"
    lock.touch()
    real_open = os.open

    def refuse(path, *rest, **options):
        if Path(path) == lock:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real_open(path, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ForeignLockError) as caught, atomic_folder(tmp_path / "model"):
        pytest.fail("the lock is another user's")
    assert f"the lock file {str(lock)!r} can't be opened, it belongs to {other_user}" in str(caught.value)
    assert isinstance(caught.value, PermissionError) and caught.value.errno == errno.EACCES


def test_a_temporary_folder_of_another_user_is_named_with_its_owner(tmp_path, monkeypatch, other_user, caplog):
    left = tmp_path / f".writing-{hash_name('model')}-abc"
    left.mkdir()
    remove = atomic._remove
    monkeypatch.setattr(atomic, "_remove", lambda path: path == left or remove(path))
    save, read = folder_place(tmp_path)
    save(1)
    assert read() == 1
    assert f"{left}: a killed save left it, and it can't be removed: it belongs to {other_user}" in caplog.text


@pytest.mark.parametrize("number", [errno.ENOTEMPTY, errno.EACCES, errno.EPERM])
def test_a_step_that_another_user_refuses_names_the_owner(number, tmp_path, monkeypatch, other_user):
    save, read = folder_place(tmp_path)
    save(1)

    def refuse(one, other):
        raise OSError(number, os.strerror(number), str(other))

    monkeypatch.setattr(atomic, "_exchange", refuse)
    with pytest.raises(SaveError, match=re.escape(f"model': it belongs to {other_user}), the previous content")):
        save(2)
    assert read() == 1


def test_own_files_have_no_foreign_owner(tmp_path):
    assert describe_owner(tmp_path) == "" and describe_owner(tmp_path / "missing") == ""


def test_an_exchange_across_layers_is_unsupported_and_no_error():
    assert errno.EXDEV in atomic._UNSUPPORTED


@pytest.mark.parametrize(
    ("place", "before", "one_step"),
    [
        ("folder", 0, True),
        ("folder", 1, True),
        ("folder", 1, False),
        ("store", 0, True),
        ("store", 2, True),
        ("file", 0, True),
        ("file", 1, True),
        ("file", 1, False),
    ],
)
def test_a_failing_call_loses_and_tears_nothing(place, before, one_step, quick, monkeypatch):
    if not one_step:  # as on systems that cannot exchange two names
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    report = crash_injection.try_all_faults(PLACES[place], quick / "place", before=before, more=MORE, actions=ONCE)
    print(place, before, one_step, report)
    assert not report.broken, str(report)
    assert report.calls > 40 and report.ends["refused"] > 20 and report.ends["died"] > 30


def test_the_error_of_a_full_disk_has_the_needed_bytes(quick):
    save, read = folder_place(quick)
    save(1)
    number = crash_injection.run_with_fault(lambda: save(2)).calls.index("file.write")
    outcome = crash_injection.run_with_fault(lambda: save(3), number + 3, "ENOSPC")  # after the first file
    message = r"disk is full \(.*\): at least 6,000 bytes are needed, [\d,]+ are free"
    assert outcome.end == "refused" and re.search(message, outcome.error), outcome
    too_small = pytest.raises(SaveError, match="at least 1,000,000,000,000,000 bytes are needed")
    with too_small as caught, atomic_folder(quick / "model", needs_bytes=10**15):
        pytest.fail("a disk that is too small is detected before the block")
    error = caught.value
    assert (error.errno, error.needed_bytes, error.path) == (errno.ENOSPC, 10**15, quick / "model")
    assert read() == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_file_size_limit_of_the_kernel_is_a_save_error(quick):
    """The kernel itself refuses the write: no call is patched."""
    import resource
    import signal

    save, read = folder_place(quick)
    save(1)

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        save(2)

    if not (child := os.fork()):
        try:
            limited()
        except SaveError as error:
            os._exit(7 if error.errno == errno.EFBIG else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert read() == 1 and [p.name for p in quick.iterdir()] == ["model"]


# ---------------------------------------------------------------- refused targets


def test_a_save_refuses_targets_that_it_cannot_replace(quick):
    (quick / "file").write_text("x")
    (quick / "folder").mkdir()
    (quick / "folder" / "photo.jpg").write_text("x")
    (quick / "extension").mkdir()
    (quick / "extension" / "main.js").write_text("x")
    (quick / "extension" / MANIFEST).write_text('{"manifest_version": 3}')  # a name that others use as well
    before = sorted(quick.rglob("*"))
    for path, fault in [
        ("file", "no saved folder"),
        ("folder", "no saved folder"),
        ("extension", "no saved folder"),
        ("file/below", "Not a directory"),
        ("n" * 300, "File name too long"),
    ]:
        with pytest.raises(SaveError, match=fault) as caught, atomic_folder(quick / path):
            pytest.fail("the block must not run")
        assert isinstance(caught.value, OSError) and isinstance(caught.value, CryptoLSTMError)
    with pytest.raises(SaveError, match="is a folder, and a file should go there"), atomic_file(quick / "folder"):
        pytest.fail("the block must not run")
    with pytest.raises(SaveError, match="the block wrote no file"), atomic_file(quick / "new"):
        pass
    with pytest.raises(SaveError, match="File name too long"), atomic_file(quick / ("n" * 250)):
        pytest.fail("the name of its manifest is too long, and the block must not run")
    for number in (0, -1, True, 1.5):
        with pytest.raises(SaveError, match=f"expected max_to_keep of at least 1, got {number}"):
            CheckpointStore(quick / "state", max_to_keep=number)
    assert sorted(quick.rglob("*")) == before


@pytest.mark.parametrize("name", ["notes.txt", "weights/photo.jpg", "link", ".hidden"])
def test_a_save_refuses_a_folder_that_holds_other_files(quick, name):
    def save(number):
        with atomic_folder(quick / "model") as folder:
            (folder / "weights").mkdir()
            (folder / "weights" / "1").write_text(str(number))

    save(1)
    if name == "link":
        (quick / "model" / name).symlink_to("weights")
    else:
        (quick / "model" / name).write_text("mine")
    before = sorted((path, path.read_bytes()) for path in quick.rglob("*") if path.is_file())
    with pytest.raises(SaveError, match=f"{name}: not written by a save, and saving would remove it; move it away"):
        save(2)
    assert sorted((path, path.read_bytes()) for path in quick.rglob("*") if path.is_file()) == before
    (quick / "model" / name).unlink()
    save(3)
    assert (quick / "model" / "weights" / "1").read_text() == "3"


def test_a_save_refuses_links_pipes_a_manifest_and_values_that_json_cannot_hold(quick):
    def save(fill, facts=None):
        with atomic_folder(quick / "model", facts=facts) as folder:
            fill(folder)

    for fill, error, fault in [
        (lambda f: (f / "link").symlink_to("/etc/passwd"), IntegrityError, "got a link"),
        (lambda f: os.mkfifo(f / "pipe"), IntegrityError, "got a link or a special file"),
        (lambda f: (f / MANIFEST).write_text("{}"), SaveError, "give the file another name"),
    ]:
        with pytest.raises(error, match=fault):
            save(fill)
    with pytest.raises(ValueError, match="not JSON compliant"):
        save(lambda f: None, {"loss": float("nan")})
    with pytest.raises(TypeError, match="not JSON serializable"):
        save(lambda f: None, {"loss": object()})
    with pytest.raises(SaveError, match="more than 64 bits"):  # `json` writes it, but no reader accepts it
        save(lambda f: None, {"n": 2**70})
    assert not list(quick.iterdir())


def test_a_link_at_the_target_is_replaced_and_its_file_stays(quick):
    (quick / "elsewhere").write_text("x")
    (quick / "model.keras").symlink_to("elsewhere")
    file_place(quick)[0](1)
    assert not (quick / "model.keras").is_symlink() and (quick / "elsewhere").read_text() == "x"


def test_a_file_without_manifest_has_none_until_it_is_replaced(quick):
    """A model of plain Keras is at the target: after a kill, it or the new one can be read."""
    target = quick / "model.keras"
    real = verified.move_into_place

    def killed_after(number):
        done = []

        def move(new, goal):
            if len(done) == number:
                os._exit(99)
            done.append(goal)
            return real(new, goal)

        return move

    for number in (0, 1):
        target.write_bytes(b"foreign")
        if not (child := os.fork()):
            verified.move_into_place = killed_after(number)
            file_place(quick)[0](1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 99
        assert not manifest_path(target).exists()  # so it is read as a foreign file
        assert target.read_bytes() == (b"foreign" if number == 0 else content(1))


def test_a_read_only_folder_is_a_save_error(quick):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    quick.chmod(0o500)
    with pytest.raises(SaveError, match="Permission denied"), atomic_folder(quick / "model"):
        pass
    quick.chmod(0o700)


# ---------------------------------------------------------------- changed bytes

DAMAGE = (IntegrityError, SchemaVersionError)  # a changed digit of the schema looks like another release


def test_a_changed_folder_is_never_accepted(quick):
    """`python -m benchmarks reliability` makes 5,000 changes of each kind of saved file."""
    seed = 1
    chance, done = random.Random(seed), dict.fromkeys(crash_injection.MUTATIONS, 0)
    for number, name in ((1, "other"), (2, "good")):
        save, _ = folder_place(quick / name)
        save(number)
    good, other = quick / "good" / "model", quick / "other" / "model"
    expected = read_folder(good)
    for _ in range(400):
        place = Path(tempfile.mkdtemp(dir=quick))
        shutil.copytree(good, place / "model")
        kind = chance.choice(crash_injection.MUTATIONS)
        mutation = crash_injection.mutate(place / "model", other, chance, kind)
        if mutation is not None:
            done[kind] += 1
            assert not verify_folder(place / "model").ok, (seed, mutation)
            with pytest.raises(DAMAGE):
                read_folder(place / "model")
                pytest.fail(f"accepted with seed {seed}: {mutation}")
        else:
            assert read_folder(place / "model").files == expected.files
        shutil.rmtree(place)
    print(seed, sum(done.values()), done)
    assert sum(done.values()) > 300 and min(done.values()) > 10


def test_a_change_of_any_bit_of_the_manifest_is_detected(quick):
    with atomic_folder(quick / "model", facts={"epoch": 3}) as folder:
        (folder / "a").write_bytes(b"a")
    path = quick / "model" / MANIFEST
    data = path.read_bytes()
    for bit in range(len(data) * 8):
        path.write_bytes(data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :])
        with pytest.raises(DAMAGE):
            read_folder(quick / "model")
            pytest.fail(f"bit {bit}")


def test_a_file_is_read_only_with_its_own_manifest(quick):
    save, read = file_place(quick)
    target, chance = quick / "model.keras", random.Random(SEED)
    save(1)
    old = target.read_bytes(), manifest_path(target).read_bytes()
    save(2)
    new = target.read_bytes(), manifest_path(target).read_bytes()
    for data, manifest in [
        (old[0], new[1]),
        (new[0], old[1]),
        (new[0][:-1], new[1]),
        (new[0] + b"x", new[1]),
        (b"", new[1]),
    ]:
        target.write_bytes(data)
        manifest_path(target).write_bytes(manifest)
        with pytest.raises(IntegrityError, match="bytes with sha256"):
            read_file(target)
    for _ in range(300):
        both = bytearray(new[0] + new[1])
        where = chance.randrange(len(both))
        both[where] ^= 1 << chance.randrange(8)
        target.write_bytes(both[: len(new[0])])
        manifest_path(target).write_bytes(both[len(new[0]) :])
        with pytest.raises(IntegrityError):
            read_file(target)
    target.write_bytes(new[0])
    manifest_path(target).write_bytes(new[1])
    assert read() == 2
    with pytest.raises(PinMismatchError, match="another save than the one you pinned") as caught:
        read_file(target, expected_sha256="0" * 64)
    assert (caught.value.expected, caught.value.got) == ("0" * 64, hashlib.sha256(new[0]).hexdigest())


FORGED = {
    "outside": lambda m: m["files"].update({"../../../etc/passwd": {"size": 1, "sha256": "0" * 64}}),
    "absolute": lambda m: m["files"].update({"/etc/passwd": {"size": 1, "sha256": "0" * 64}}),
    "files a list": lambda m: m.update(files=[1]),
    "no files": lambda m: m.pop("files"),
    "no folders": lambda m: m.pop("folders"),
    "folders a number": lambda m: m.update(folders=3),
    "folders of numbers": lambda m: m.update(folders=[1]),
    "facts a list": lambda m: m.update(facts=[]),
    "size a text": lambda m: m["files"]["a"].update(size="many"),
    "size a bool": lambda m: m["files"]["a"].update(size=True),
    "size negative": lambda m: m["files"]["a"].update(size=-1),
    "no hash": lambda m: m["files"]["a"].pop("sha256"),
    "huge": lambda m: m["files"]["a"].update(size=2**62),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_manifest_with_a_valid_seal_is_refused(name, quick):
    with atomic_folder(quick / "model") as folder:
        (folder / "a").write_bytes(b"a")
    path = quick / "model" / MANIFEST
    manifest = json.loads(path.read_text())
    del manifest["seal"]
    FORGED[name](manifest)
    path.write_bytes(encode_manifest(manifest))
    with pytest.raises(IntegrityError):
        read_folder(quick / "model")
    assert not verify_folder(quick / "model").ok


def test_json_and_trees_have_a_size_limit(quick, monkeypatch):
    with pytest.raises(IntegrityError, match="expected at most 10 bytes of JSON"):
        parse_json(b"[1, 2, 3, 4]", "x", max_bytes=10)
    (quick / "big.json").write_bytes(b"[" + b"1," * 3_000_000 + b"1]")
    with pytest.raises(IntegrityError, match="expected at most 4,194,304 bytes"):
        read_json(quick / "big.json")
    monkeypatch.setattr("crypto_lstm.storage.manifest._MAX_FILES", 10)
    for number in range(11):
        (quick / f"{number}").write_text("")
    with pytest.raises(IntegrityError, match="expected at most 10 files"):
        list_tree(quick)


def test_only_regular_files_within_the_limit_are_read(quick):
    os.mkfifo(quick / "pipe")
    (quick / "long").write_bytes(b"1" * 100)
    for name, fault in [
        ("pipe", "got a folder or a special file"),
        ("", "got a folder or a special file"),
        ("long", "at most 50 bytes, got more"),
    ]:
        with pytest.raises(IntegrityError, match=fault):
            read_json(quick / name, max_bytes=50)


def test_a_folder_is_read_only_with_its_pin_and_within_the_limit(quick):
    folder_place(quick)[0](1)
    good = read_folder(quick / "model")
    assert read_folder(quick / "model", expected_sha256=good.sha256).files == good.files
    with pytest.raises(PinMismatchError, match="another save than the one you pinned") as caught:
        read_folder(quick / "model", expected_sha256="0" * 64)
    assert (caught.value.expected, caught.value.got) == ("0" * 64, good.sha256)
    with pytest.raises(IntegrityError, match="its files have 6,400 bytes, and 6,399 are allowed"):
        read_folder(quick / "model", max_bytes=6_399)
    (quick / "model" / "b.bin").unlink()
    assert verify_folder(quick / "model").faults == ("b.bin is missing",)
    with pytest.raises(IntegrityError, match="it is not as it was saved: b.bin is missing"):  # checked before the pin
        read_folder(quick / "model", expected_sha256="0" * 64)


def test_pins_and_schemas_are_separate_from_damage():
    """A caller that deletes damaged files must not delete an intact file that it did not expect."""
    for error in (PinMismatchError, SchemaVersionError):
        assert issubclass(error, SavedFileError) and not issubclass(error, IntegrityError)
    assert issubclass(SavedFileError, CryptoLSTMError) and issubclass(SavedFileError, ValueError)


def test_a_displaced_folder_that_cannot_be_restored_is_still_found(quick, monkeypatch):
    """Two renames, of which the second fails, and the rename back as well."""
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    save, read = folder_place(quick)
    save(1)
    real, calls = os.rename, []

    def rename(old, new):
        calls.append(new)
        if len(calls) > 1:
            raise OSError(errno.EIO, "Input/output error")
        real(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        with pytest.raises(SaveError):
            save(2)
    assert len(calls) == 3 and not (quick / "model").exists() and read() == 1
    save(3)
    assert read() == 3 and [p.name for p in quick.iterdir()] == ["model"]


@pytest.mark.parametrize("place", PLACES)
def test_files_are_synced_before_the_rename_and_the_parent_after_it(place, quick, monkeypatch):
    """A test cannot cut the power, so it checks that each file and folder was synced, and the parent last."""
    save, _ = PLACES[place](quick)
    save(1)
    real, synced = os.fsync, []

    def fsync(descriptor):
        synced.append(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    save(2)
    targets = {
        "folder": quick / "model",
        "store": quick / "state" / "checkpoint-000002",
        "file": quick / "model.keras",
    }
    newest = targets[place]
    paths = [newest, *newest.rglob("*")] if newest.is_dir() else [newest, manifest_path(newest)]
    inodes = {p.name: p.stat().st_ino for p in paths}
    assert set(inodes.values()) <= set(synced), (inodes, synced)
    assert synced[-1] == newest.parent.stat().st_ino


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can exchange two names")
def test_linux_replaces_a_folder_in_one_step(quick, monkeypatch):
    monkeypatch.setattr(atomic, "_rename_twice", lambda new, target: pytest.fail("two renames"))
    save, read = folder_place(quick)
    save(1)
    save(2)
    assert read() == 2


def change_schema(path, schema):
    manifest = {name: value for name, value in json.loads(path.read_text()).items() if name != "seal"}
    path.write_bytes(encode_manifest(manifest | {"schema": schema}))


@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_a_manifest_of_another_schema_is_refused(quick, schema):
    folder_place(quick)[0](1)
    file_place(quick)[0](1)
    change_schema(quick / "model" / MANIFEST, schema)
    change_schema(manifest_path(quick / "model.keras"), schema)
    expected = f"expected schema 1, got {schema!r}; use the version that wrote it"
    with pytest.raises(SchemaVersionError, match=expected):
        read_folder(quick / "model")
    with pytest.raises(SchemaVersionError, match=expected):
        read_file(quick / "model.keras")
    report = verify_folder(quick / "model")
    assert not report.ok and expected in report.faults[0] and expected in str(report)


def test_a_checkpoint_of_another_schema_is_passed_over(quick):
    save, read = store_place(quick)
    save(1)
    save(2)
    change_schema(quick / "state" / "checkpoint-000002" / MANIFEST, 2)
    found = CheckpointStore(quick / "state").read()
    assert read() == found.number == 1 and "expected schema 1, got 2" in found.skipped[0]
    change_schema(quick / "state" / "checkpoint-000001" / MANIFEST, 2)
    with pytest.raises(IntegrityError, match="none of the 2 checkpoints .*expected schema 1, got 2"):
        read()


def test_a_forged_score_is_no_score(quick):
    """The manifest has a valid seal, and its score is a text: the checkpoint is still read, and never the best one."""
    save, read = store_place(quick)
    save(1)
    save(2)
    path = quick / "state" / "checkpoint-000002" / MANIFEST
    manifest = {name: value for name, value in json.loads(path.read_text()).items() if name != "seal"}
    path.write_bytes(encode_manifest(manifest | {"score": "high"}))
    assert read() == 2 and CheckpointStore(quick / "state").read(best=True).number == 1
    save(3)
    assert read() == 3


@pytest.mark.parametrize(
    "text", ['{"a":1,"a":2}', "[NaN]", "[1e400]", "[" * 50 + "]" * 50, "1" * 30, "", "\ufeff1", '{"a":', "[" * 200_000]
)
def test_json_that_is_not_strict_is_refused(text):
    with pytest.raises(IntegrityError):
        parse_json(text.encode(), "x")


def test_json_with_many_keys_is_read_in_one_pass():
    """A search of each key in the list of all keys would take hours."""
    many = ",".join(f'"{number:07d}":0' for number in range(300_000))
    assert len(parse_json(f"{{{many}}}".encode(), "x")) == 300_000
    with pytest.raises(IntegrityError, match="the key '0299999' occurs twice"):
        parse_json(f'{{{many},"0299999":0}}'.encode(), "x")


def test_valid_json_is_read_as_the_standard_library_reads_it():
    chance = random.Random(SEED)

    def value(depth=0):
        kind = chance.randrange(7 if depth < 6 else 5)
        if kind == 5:
            return [value(depth + 1) for _ in range(chance.randrange(4))]
        if kind == 6:
            return {str(number): value(depth + 1) for number in range(chance.randrange(4))}
        text = "".join(chance.choice('a"\\[]{}é\n') for _ in range(5))
        return [None, True, chance.randrange(-(2**63), 2**64), chance.uniform(-1e9, 1e9), text][kind]

    for _ in range(300):
        text = json.dumps(value(), ensure_ascii=chance.random() < 0.5)
        assert parse_json(text.encode(), "x") == json.loads(text)


# ---------------------------------------------------------------- two processes

HOLDER = """
import sys, time
from crypto_lstm.storage.verified import atomic_folder
with atomic_folder(sys.argv[1]) as folder:
    (folder / "a").write_text("theirs")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_the_error_names_the_other_writer_and_a_dead_writer_does_not_block(quick):
    target = quick / "model"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(target)], stdout=subprocess.PIPE)
    assert holder.stdout and holder.stdout.readline() == b"ready\n"
    locked = pytest.raises(LockedError, match=f"process {holder.pid} on .* has been writing it since 20")
    with locked as caught, atomic_folder(target):
        pytest.fail("the block must not run")
    assert caught.value.pid == holder.pid and caught.value.host and caught.value.since
    assert len(list(quick.glob(".writing-*"))) == 1  # of the living writer: it is not removed
    holder.kill()
    holder.wait()
    assert len(list(quick.glob(".*"))) == 2  # its lock file and its temporary folder
    with atomic_folder(target) as folder:
        (folder / "a").write_text("ours")
    assert read_folder(target).files == {"a": b"ours"}
    assert [p.name for p in quick.iterdir()] == ["model"]


def test_a_second_writer_waits_for_the_first(quick):
    ended = []

    def first():
        with hold_lock(quick / "x"):
            time.sleep(0.2)
            ended.append(True)

    thread = threading.Thread(target=first)
    thread.start()
    time.sleep(0.05)
    with hold_lock(quick / "x", wait_s=10):
        assert ended
    thread.join()


def test_a_lock_file_without_holder_does_not_block(quick):
    with hold_lock(quick / "x"):
        lock = next(quick.iterdir())
    lock.write_text('{"pid": 1, "host": "gone", "since": "2020-01-01T00:00:00+00:00"}')
    with hold_lock(quick / "x"):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    lock.symlink_to(quick / "victim")
    with pytest.raises(OSError), hold_lock(quick / "x"):
        pass
    assert not (quick / "victim").exists()


@pytest.mark.parametrize("place", PLACES)
def test_a_reader_beside_a_writer_gets_one_complete_save(place, quick):
    """A reader during replacements gets the old content or the new content, never a mixture, never an error."""
    save, read = PLACES[place](quick)
    save(1)
    if not (child := os.fork()):
        try:
            for number in range(2, 100_000):
                save(number)
        finally:
            os._exit(1)
    try:
        end, seen = time.monotonic() + 1, set()
        while time.monotonic() < end:
            seen.add(read())
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert len(seen) > 5


def test_a_checkpoint_on_a_bad_sector_is_passed_over(quick, monkeypatch):
    for number in (1, 2):
        with CheckpointStore(quick / "state").save() as folder:
            (folder / "a").write_text(str(number))
    real = checkpoints.read_folder

    def bad(folder, **words):
        if folder.name == "checkpoint-000002":
            raise OSError(code, os.strerror(code))
        return real(folder, **words)

    monkeypatch.setattr(checkpoints, "read_folder", bad)
    code = errno.EIO
    found = CheckpointStore(quick / "state").read()
    assert (found.number, found.files["a"]) == (1, b"1") and "Input/output error" in found.skipped[0]
    code = errno.EMFILE  # not damage: an older state would hide it
    with pytest.raises(OSError, match="Too many open files"):
        CheckpointStore(quick / "state").read()


@pytest.mark.parametrize("facts", [{"id": 2**70}, {"curve": [0.1234567890123] * 400_000}])
def test_a_file_with_an_unreadable_manifest_is_not_saved(quick, facts):
    with atomic_file(quick / "model", facts={"number": 1}) as new:
        new.write_text("1")
    before = {path.name: path.read_bytes() for path in quick.iterdir()}
    refused = pytest.raises(SaveError, match="its manifest could not be read again: .*; keep less in it")
    with refused, atomic_file(quick / "model", facts=facts) as new:
        new.write_text("2")
    assert {path.name: path.read_bytes() for path in quick.iterdir()} == before
    assert read_file(quick / "model").files == {"model": b"1"}


def test_a_damaged_folder_is_not_replaced(quick):
    def save(text):
        with atomic_folder(quick / "model") as folder:
            (folder / "a").write_text(text)

    save("1")
    (quick / "model" / "notes.txt").write_text("mine")
    manifest = quick / "model" / MANIFEST
    manifest.write_bytes(manifest.read_bytes().replace(b'"seal"', b'"sea1"'))
    message = "no saved folder, or a damaged one .*; move it away, or choose a path that does not exist"
    with pytest.raises(SaveError, match=message):
        save("2")
    assert (quick / "model" / "notes.txt").read_text() == "mine" and (quick / "model" / "a").read_text() == "1"
