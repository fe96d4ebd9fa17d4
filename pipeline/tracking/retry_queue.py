"""Operations on something that may be away for a while, carried out in order by one thread."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.errors import OutageError

log = logging.getLogger(__name__)

FIRST_RETRY_S, LAST_RETRY_S = 0.5, 5.0
"""Pauses between attempts during an outage; each is twice the one before."""
HEARTBEAT_S = 60.0


@dataclass(frozen=True)
class Task:
    """An operation that waits for its turn."""

    operation: Callable[[], None]
    always: bool = False
    """Carried out even after another operation failed."""


class Recorder:
    """Takes operations at once and carries them out later: who gives them never waits.

    An operation that raises OutageError is tried again until it succeeds; those after it wait, in
    order. Any other error is kept for `check` and ends the work, but for tasks that are `always` done.
    """

    def __init__(self, name: str, heartbeat: Callable[[], None]) -> None:
        self.name = name
        self.away_since: str | None = None
        """Time of day at which the present outage was noticed."""
        self._heartbeat = Task(heartbeat)
        self._tasks: deque[Task] = deque()
        """The first is the one under way; it leaves when it is done."""
        self._changed = threading.Condition()
        self._stopping = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._thread.start()

    def do(self, operation: Callable[[], None], *, always: bool = False) -> None:
        """Carry it out after all others; never waits, never raises."""
        with self._changed:
            self._tasks.append(Task(operation, always))
            self._changed.notify_all()

    def check(self) -> None:
        """Raise the error, if there was one, that was not an outage."""
        if self._failure:
            raise self._failure

    def wait(self, timeout_s: float, *, out_of_an_outage: bool = True) -> bool:
        """Wait until all is done, at most so long, or else until an outage is noticed; True if done.

        Raises:
            Exception: what `check` raises.
        """

        def over() -> bool:
            given_up = self.away_since is not None and not out_of_an_outage
            return not self._tasks or self._failure is not None or given_up

        with self._changed:
            self._changed.wait_for(over, timeout_s)
            done = not self._tasks
        self.check()
        return done

    def close(self, timeout_s: float) -> int:
        """Wait at most so long for all to be done, then stop; returns how many were not done."""
        ends_at = time.monotonic() + timeout_s
        with self._changed:
            self._changed.wait_for(lambda: not self._tasks, timeout_s)
            left = len(self._tasks)
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(max(0.0, ends_at - time.monotonic()))
        return left

    def _work(self) -> None:
        beat_at = time.monotonic() + HEARTBEAT_S
        while not self._stopping:
            with self._changed:
                self._changed.wait_for(self._called, max(0.0, beat_at - time.monotonic()))
                task = self._tasks[0] if self._tasks else None
            if time.monotonic() >= beat_at:
                self._carry_out(self._heartbeat)
                beat_at = time.monotonic() + HEARTBEAT_S
            elif task and self._carry_out(task):
                with self._changed:
                    self._tasks.popleft()
                    self._changed.notify_all()

    def _called(self) -> bool:
        return self._stopping or bool(self._tasks)

    def _carry_out(self, task: Task) -> bool:
        """Try until it is done or fails for good; False if the recorder stops before that."""
        if self._failure and not task.always:
            return True
        pause_s = FIRST_RETRY_S
        while not self._stopping:
            try:
                task.operation()
            except OutageError as outage:
                self._note_outage(outage)
            except Exception as error:  # noqa: BLE001 - raised again by `check`
                self._fail(error)
                return True
            else:
                self._note_return()
                return True
            with self._changed:
                self._changed.wait_for(lambda: self._stopping, pause_s)
            pause_s = min(2 * pause_s, LAST_RETRY_S)
        return False

    def _fail(self, error: Exception) -> None:
        with self._changed:
            if self._failure:
                log.warning("%s: %s", self.name, error)
            self._failure = self._failure or error
            self._changed.notify_all()

    def _note_outage(self, outage: OutageError) -> None:
        if self.away_since is None:
            with self._changed:
                self.away_since = time.strftime("%H:%M")
                self._changed.notify_all()
            log.warning(
                "%s since %s; the flow goes on, %d operations wait",
                *(outage, self.away_since, len(self._tasks)),
            )

    def _note_return(self) -> None:
        if self.away_since is not None:
            log.info("%s is back after its outage since %s", self.name, self.away_since)
            self.away_since = None
