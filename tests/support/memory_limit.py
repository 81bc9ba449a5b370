"""Run a command with a memory limit: in a control group if that is allowed, otherwise with a limit of the process."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

MB = 2**20


@contextlib.contextmanager
def control_group(limit_mb: int) -> Iterator[Path | None]:
    """A control group with this limit, version 1 or 2; None if none can be created."""
    name = f"crypto_lstm_{uuid.uuid4().hex[:8]}"
    for parent, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(parent) / name
        try:
            group.mkdir()
            (group / limit).write_text(str(limit_mb * MB))
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
            continue
        try:
            yield group
        finally:
            group.rmdir()
        return
    yield None


def run_limited(
    command: Sequence[str], limit_mb: int, **options: object
) -> tuple[subprocess.CompletedProcess[str], float, str]:
    """The finished command, its peak memory in MB, and the kind of its limit.

    The peak is 0 if an earlier child of this process had a higher one.
    """
    with control_group(limit_mb) as group:

        def set_limit() -> None:
            if group is not None:
                (group / "cgroup.procs").write_text(str(os.getpid()))
            else:
                resource.setrlimit(resource.RLIMIT_DATA, (limit_mb * MB, limit_mb * MB))

        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        done = subprocess.run(command, preexec_fn=set_limit, capture_output=True, text=True, **options)  # type: ignore[call-overload]
        after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    highest = after / 1024 if after > before else 0.0
    return done, highest, "control group" if group is not None else "RLIMIT_DATA"
