"""Logging and progress on the terminal."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

CONSOLE = Console(stderr=True)


def configure_logging(level: int = logging.INFO) -> None:
    """Our log lines on stderr; other packages only from WARNING on."""
    handler = RichHandler(console=CONSOLE, show_path=False, log_time_format="%H:%M:%S")
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for package in ("fcn", "pipeline", "tuning"):
        logging.getLogger(package).setLevel(level)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress display: description, bar, count, time left and a free `note`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=CONSOLE, refresh_per_second=2) as progress:
        yield progress
