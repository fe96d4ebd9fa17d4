"""Locks between processes. The system releases one when its holder dies, so none is ever stale."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.storage.object_store import FULL, not_usable

log = logging.getLogger(__name__)

POLL_S = 0.5


class Lock:
    """A file that one process of all that share the folder holds at a time."""

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path)
        # Beside the lock, because whoever tries to take a lock empties its file.
        self._note = path.with_suffix(".holder")

    def take(self) -> bool:
        """Whether it could be had, without waiting."""
        try:
            self._note.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        except OSError as error:
            if error.errno in FULL:
                raise
            raise not_usable(self._note.parent.parent, error) from error
        # The note is a courtesy: without room for it one must still be able to make room.
        with contextlib.suppress(OSError):
            self._note.write_text(
                f"pid {os.getpid()} on {platform.node()} since {time.strftime('%d %b %H:%M')}"
            )
        return True

    def free(self) -> None:
        """Let the next one have it."""
        self._lock.release()

    def holder(self) -> str:
        """Who took it last, in words."""
        with contextlib.suppress(FileNotFoundError):
            return self._note.read_text() or "another process"
        return "another process"


def wait_for(lock: Lock, text: str, done: Callable[[], bool] = lambda: False) -> bool:
    """Take a lock, waiting if need be; False, without it, once what it is wanted for is done.

    The text, with %s for the holder, is logged once.
    """
    waits = 0
    while not lock.take():
        if done():
            return False
        if waits == 1:  # who holds it only in passing is not worth a line
            log.info(text, lock.holder())
        waits += 1
        time.sleep(POLL_S)
    return True
