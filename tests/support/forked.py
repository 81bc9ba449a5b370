"""Run Python code in new processes that need not import TensorFlow, keras and pandas again.

`start_forker` forks a process from one that has not used TensorFlow yet. That process then forks a child for each piece
of code, so a child starts from imported libraries of which none has been used. An import of TensorFlow takes 5 to 8
seconds of a core. Where the import itself is tested, use `subprocess`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TextIO

from support import quick

MAIN = "import sys; from crypto_lstm.commands.main import main; sys.exit(main(sys.argv[1:]))"  # crypto-lstm WORD ...


class Forker:
    """The process that forks the children. It ends with the process that started it, and shows no standard error."""

    def __init__(self) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = os.fork()
        if self.process:
            theirs.close()
            return
        try:
            self.pipe.close()
            redirect(os.devnull, 2)  # TensorFlow's notes
            serve(theirs)
        finally:
            os._exit(0)

    def ask(self, request: dict[str, Any]) -> int:
        self.pipe.send(request)
        return self.pipe.recv()

    def close(self) -> None:
        self.pipe.send({"stop": True})
        self.pipe.close()
        os.waitpid(self.process, 0)


forker: Forker | None = None


def start_forker() -> None:
    """Call it before anything uses TensorFlow."""
    global forker
    forker = Forker()


def stop_forker() -> None:
    """Wait until the process ends, so that its processor time counts for this one."""
    global forker
    if forker:
        forker.close()
    forker = None


class Child:
    """A child that runs code. Its standard error is a pipe, its standard output a file."""

    stderr: TextIO

    def __init__(self, code: str, words: list[str], cwd: str, environment: dict[str, str]) -> None:
        assert forker, "start_forker was not called"
        self.folder = tempfile.TemporaryDirectory()
        self.output, errors = (Path(self.folder.name) / name for name in ("output", "errors"))
        os.mkfifo(errors)
        files = {"output": str(self.output), "errors": str(errors)}
        job = {"code": code, "words": words, "cwd": cwd, "environment": environment, "quick": quick.state}
        self.pid = forker.ask({**job, **files})
        self.stderr = errors.open(encoding="utf-8")
        self.returncode: int | None = None

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        assert forker
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(forker.ask({"wait": self.pid}))
        return self.returncode

    def communicate(self) -> tuple[str, str]:
        """Standard output, and what is left of standard error, when the child has ended."""
        errors = self.stderr.read()
        self.wait()
        output = self.output.read_text(encoding="utf-8")
        self.stderr.close()
        self.folder.cleanup()
        return output, errors


def start(code: str, *words: object, cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> Child:
    """Run code in a child, as `python -c CODE WORD ...` does."""
    variables = dict(os.environ if environment is None else environment)
    return Child(code, [str(word) for word in words], str(cwd or Path.cwd()), variables)


def run(
    code: str, *words: object, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """As `start`, and wait for the end."""
    child = start(code, *words, cwd=cwd, environment=environment)
    output, errors = child.communicate()
    return subprocess.CompletedProcess([code, *words], child.wait(), output, errors)


# ---------------------------------------------------------------- in the other processes


def serve(pipe: Connection) -> None:
    """Fork a child for each request, or wait for one, until the last request comes or the pipe is closed."""
    while True:
        try:
            request = pipe.recv()
        except EOFError:
            return
        if "stop" in request:
            return
        if "wait" in request:
            pipe.send(os.waitpid(request["wait"], 0)[1])
            continue
        import keras  # at most once: children are forked from here
        import pandas
        import tensorflow

        del keras, pandas, tensorflow
        child = os.fork()
        if not child:
            pipe.close()
            run_code(request)
        pipe.send(child)


def run_code(request: dict[str, Any]) -> None:
    """Run the code of a request and end this process as the interpreter does."""
    code = 1
    try:
        redirect(request["output"], 1)
        redirect(request["errors"], 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", encoding="utf-8"), os.fdopen(2, "w", 1, encoding="utf-8")
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv = ["-c", *request["words"]]
        tempfile.tempdir = None
        quick.enter(request["quick"])
        exec(compile(request["code"], "<string>", "exec"), {"__name__": "__main__"})
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def redirect(path: str, number: int) -> None:
    """Open the file as this file descriptor."""
    opened = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.dup2(opened, number)
    os.close(opened)
