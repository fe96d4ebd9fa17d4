"""Logging and progress on the terminal."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

CONSOLE = Console(stderr=True)
ENVIRONMENT = {
    # Whoever logs to MLflow tries again later, so a single call need not try for long: one more attempt
    # is for a connection that the server had closed.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # what goes wrong is raised, and logged once by us
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Of MLflow and what it imports; values that the user has set stay."""


class Lines(logging.Handler):
    """A line for each record, however long: in a file nobody wants it cut to a terminal's width."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line to stderr, wherever that is now."""
        print(self.format(record), file=sys.stderr, flush=True)  # noqa: T201


def configure_logging(level: int = logging.INFO) -> None:
    """Our log lines on stderr; other packages only from WARNING on."""
    handler: logging.Handler = Lines()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-8s %(message)s", "%H:%M:%S"))
    if CONSOLE.is_terminal:
        handler = RichHandler(console=CONSOLE, show_path=False, log_time_format="%H:%M:%S")
        handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for package in ("fcn", "pipeline", "tuning"):
        logging.getLogger(package).setLevel(level)


def configure_environment() -> None:
    """Settings of MLflow that it reads from the environment.

    Some of them count only if they are set before MLflow is imported: the command lines begin with this.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())
    warnings.filterwarnings("ignore", module="mlflow")


@contextmanager
def progress_bar(*, time_left: bool = True) -> Iterator[Progress]:
    """A progress display: description, bar, count, time left (if not in the note) and a free `note`."""
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        *([TimeRemainingColumn()] if time_left else []),
        TextColumn("{task.fields[note]}"),
    ]
    with Progress(*columns, console=CONSOLE, refresh_per_second=2) as progress:
        yield progress
