"""Which process owns a run, and whether it still lives."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

HOST, PID, STARTED, HEARTBEAT = "fcn.host", "fcn.pid", "fcn.pid_started", "fcn.heartbeat"
STALE_S = 600.0
"""An owner on another host that has not been heard of for so long counts as dead."""


def tags() -> dict[str, str]:
    """This process, as the tags of a run."""
    pid = os.getpid()
    return {HOST: socket.gethostname(), PID: str(pid), STARTED: _started(pid) or "", **heartbeat()}


def heartbeat() -> dict[str, str]:
    """The tag that says when the owner was last alive: seconds since 1970."""
    return {HEARTBEAT: f"{time.time():.0f}"}


def why_dead(run: Mapping[str, str]) -> str | None:
    """Why the owner that a run's tags name is dead; None if it lives or none is named."""
    if not {HOST, PID, STARTED, HEARTBEAT} <= run.keys():
        return None
    if run[HOST] == socket.gethostname():
        gone = not _lives(int(run[PID]), run[STARTED])
        return f"process {run[PID]} on {run[HOST]} is gone" if gone else None
    silent_s = time.time() - float(run[HEARTBEAT])
    if silent_s > STALE_S:
        return f"{run[HOST]} was not heard of for {silent_s / 60:.0f} minutes"
    return None


def _lives(pid: int, started: str) -> bool:
    """Process ids are given again, so its start counts too, where the system tells it."""
    if Path("/proc/self/stat").exists():
        now = _started(pid)
        return now is not None and now == (started or now)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is there, and another user's
        return True
    return True


def _started(pid: int) -> str | None:
    """Start of a process in clock ticks since boot; None if it ended or the system has no /proc."""
    fields = stat(pid)
    return None if fields is None or fields[0] in "ZX" else fields[19]


def stat(pid: int) -> list[str] | None:
    """Linux's account of a process: state, parent, ...; None if it ended or there is no /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()  # the name before it may hold anything
