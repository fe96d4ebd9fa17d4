"""Ctrl-C, SIGTERM and SIGHUP: all ask a process to stop, and each says so in its exit code.

What asks is remembered apart from the exception, because Ray turns every KeyboardInterrupt into a plain
one. A signal that the process was started to ignore (nohup, a job in the background) stays ignored.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from pipeline.errors import InterruptError, StoppedError

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Asked:
    """Which signal asked to stop, if any."""

    def __init__(self) -> None:
        self.by: int | None = None

    def error(self, words: str) -> StoppedError:
        """The error to end with: what stopped it, and what has become of its work."""
        if self.by == signal.SIGINT:
            return InterruptError(f"stopped by Ctrl-C {words}")
        return StoppedError(f"stopped by {signal.Signals(self.by or signal.SIGTERM).name} {words}")


@contextmanager
def interruptible() -> Iterator[Asked]:
    """Within the block each of the signals raises KeyboardInterrupt in the main thread."""
    asked = Asked()

    def interrupt(number: int, frame: FrameType | None) -> None:
        asked.by = number
        raise KeyboardInterrupt

    with _handled(interrupt):
        yield asked


@contextmanager
def deferred(stop: Callable[[], None]) -> Iterator[Asked]:
    """Within the block the first signal calls `stop` and nothing more; a second one does not wait."""
    asked = Asked()

    def defer(number: int, frame: FrameType | None) -> None:
        if asked.by is None:
            asked.by = number
            stop()
        elif callable(handler := before[number]):
            handler(number, frame)
        else:
            raise KeyboardInterrupt

    with _handled(defer) as before:
        yield asked


@contextmanager
def kept() -> Iterator[None]:
    """Handlers of ours survive the block, and the processes begun in it survive a hangup.

    A terminal that is closed tells all processes in it: Ray's must live until a checkpoint is written.
    """
    with _handled(signal.SIG_IGN, (signal.SIGHUP,)):
        before = _handlers((signal.SIGINT, signal.SIGTERM))
        try:
            yield
        finally:
            for number, handler in before.items():
                if (
                    handler != signal.SIG_DFL
                ):  # without one of ours, the block's own is the better one
                    signal.signal(number, handler)


@contextmanager
def _handled(handler: Any, numbers: tuple[signal.Signals, ...] = STOPS) -> Iterator[dict[int, Any]]:  # noqa: ANN401 - as `signal.signal` takes it
    before = _handlers(numbers)
    for number in before:
        signal.signal(number, handler)
    try:
        yield before
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _handlers(numbers: tuple[signal.Signals, ...]) -> dict[int, Any]:
    """The handlers of those signals that are not ignored; only the main thread may set any."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in numbers}
    return {
        number: handler
        for number, handler in found.items()
        if handler not in (signal.SIG_IGN, None)
    }
