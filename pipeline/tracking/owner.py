"""Which process owns a run, and whether that process has ended without closing the run."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

HOST, PID, STARTED = "fcn.host", "fcn.pid", "fcn.pid_started"


def tags() -> dict[str, str]:
    """This process, as the tags of a run."""
    pid = os.getpid()
    return {HOST: socket.gethostname(), PID: str(pid), STARTED: _started(pid) or ""}


def why_dead(run: Mapping[str, str]) -> str | None:
    """Why the owner that a run's tags name is dead.

    None if it lives, if none is named or if it is on another host: nobody here can know about that one.
    Its own next start finds the run by its fingerprint and repairs it.
    """
    if not {HOST, PID, STARTED} <= run.keys() or run[HOST] != socket.gethostname():
        return None
    lives = _lives(int(run[PID]), run[STARTED])
    return None if lives else f"process {run[PID]} on {run[HOST]} is gone"


def _lives(pid: int, started: str) -> bool:
    """The start counts too, where the system tells it, because process ids are given again."""
    if Path("/proc/self/stat").exists():
        return _started(pid) == started
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)  # it may be there and another user's
    return True


def _started(pid: int) -> str | None:
    """Start of a process in clock ticks since boot; None if it ended or the system has no /proc."""
    fields = stat(pid)
    return None if fields is None or fields[0] in "ZX" else fields[19]


def stat(pid: int) -> list[str] | None:
    """Linux's record of a process: state, parent, ...; None if it ended or there is no /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()  # the name before it may hold anything
