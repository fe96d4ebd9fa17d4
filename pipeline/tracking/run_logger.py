"""A run in MLflow and its children, told by a recorder: nobody waits for MLflow."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.config.recipe import Recipe
from pipeline.errors import OutageError, StoppedError, TrackingError
from pipeline.results import RECEIPT, Dataset, Transplanted
from pipeline.tracking import packages
from pipeline.tracking.client import Row, TrackingClient, address, speaking
from pipeline.tracking.retry_queue import Recorder

log = logging.getLogger(__name__)


@dataclass
class RunHandle:
    """A run; it has no id before MLflow gave one."""

    id: str = ""


class RunLogger:
    """A parent run, open within the block, and its children.

    A recorder tells MLflow everything, in order; nothing here waits for it but what says so. What
    MLflow refused is raised by the next call; while it is away nothing is raised and nothing lost.
    """

    def __init__(self, recipe: Recipe, store: Path, name: str, fingerprint: str) -> None:
        self.recipe = recipe
        self.address = address(recipe.tracking, store)
        self._store = store
        self._max_wait_s = recipe.tracking.max_wait_s
        self._open: list[RunHandle] = []
        self._recorder = Recorder(f"MLflow at {self.address}", self._keep_alive)
        self._recorder.do(self._connect)
        self.do(lambda t: t.end_dead_runs())
        self.run = self._open_run(lambda t: t.open_run(name, fingerprint))

    def __enter__(self) -> Self:
        """Wait for the run, or until MLflow is known to be away.

        Raises:
            TrackingError: MLflow cannot be used like this.
        """
        try:
            opened = self._recorder.wait(self._max_wait_s, out_of_an_outage=False)
        except BaseException:
            self._recorder.close(0)
            raise
        if not opened and not self._recorder.away_since:
            words = "MLflow at %s has not answered for %g s; the flow goes on"
            log.warning(words, self.address, self._max_wait_s)
        self.describe(self.run, self.recipe)
        self.do(lambda t: t.log_text(self.run.id, packages.installed(), "environment.txt"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Wait until all is told."""
        self.close(self.run, status_after(kind))
        if error is None:
            self.finished()
        if left := self._recorder.close(self._max_wait_s):
            words = (
                "MLflow at %s is still away: %d operations wait; the same command makes up for them"
            )
            log.warning(words, self.address, left)
        if error is None:
            self._recorder.check()

    def finished(self) -> None:
        """All was told, and the block ended without an error."""

    def check(self) -> None:
        """Raise what MLflow refused."""
        self._recorder.check()

    def child(self, name: str, fingerprint: str) -> RunHandle:
        """The run of this fingerprint below the parent, opened or gone on with."""
        self.check()
        return self._open_run(lambda t: t.open_run(name, fingerprint, self.run.id))

    def describe(self, run: RunHandle, recipe: Recipe) -> None:
        """A recipe as the run's parameters and as a file that `load_recipe` takes."""
        self.do(lambda t: t.log_params(run.id, recipe.flat()))
        self.do(lambda t: t.log_text(run.id, recipe.to_yaml(), "recipe.yaml"))

    def dataset(self, data: Dataset, uri: str) -> None:
        """The data set as the run's input, its quarantine as an artifact."""
        self.check()
        name = f"{self.recipe.data.source}-{self.recipe.name}"
        self.do(lambda t: t.log_dataset(self.run.id, name, uri, data.digest))
        self.do(lambda t: t.log_file(self.run.id, data.folder / "quarantine.csv", "data"))

    def receipt(self, transplanted: Transplanted) -> None:
        """The proof of the transplant."""
        self.check()
        self.do(lambda t: t.log_file(self.run.id, transplanted.folder / RECEIPT, "transplant"))

    def rows(self, run: RunHandle, rows: list[Row]) -> None:
        """Metrics by step; those told before are left out."""
        now_ms = int(time.time() * 1000)  # now, not when they are sent, perhaps for the second time
        self.do(lambda t: t.log_rows(run.id, rows, now_ms))

    def tag(self, run: RunHandle, tags: Mapping[str, str]) -> None:
        """Words about a run."""
        self.do(lambda t: t.set_tags(run.id, tags))

    def close(self, run: RunHandle, status: str) -> None:
        """The run is over: FINISHED, FAILED or KILLED."""

        def close_it(tracker: TrackingClient) -> None:
            if run in self._open:  # not so if opening it failed
                tracker.close_run(run.id, status)
                self._open.remove(run)

        self.do(close_it, always=True)

    def do(self, operation: Callable[[TrackingClient], object], *, always: bool = False) -> None:
        """Carry it out when its turn comes; never waits."""

        def speak() -> None:
            with speaking(self.address):
                operation(self._tracker)

        self._recorder.do(speak, always=always)

    @contextmanager
    def registering(self) -> Iterator[tuple[TrackingClient, str]]:
        """MLflow itself and the parent run's id, when all that was to be told before is told.

        Raises:
            TrackingError: MLflow is away.
        """
        try:
            if not self._recorder.wait(self._max_wait_s):
                raise OutageError(f"MLflow at {self.address} is away")
            with speaking(self.address):
                yield self._tracker, self.run.id
        except OutageError as error:
            raise TrackingError(
                f"{error}: the net is trained, evaluated and stored, but not registered. Nothing is "
                "lost: the same command registers it and sends all metrics when MLflow is back"
            ) from error

    def _connect(self) -> None:
        self._tracker = TrackingClient(self.recipe.tracking, self._store)

    def _open_run(self, opener: Callable[[TrackingClient], str]) -> RunHandle:
        run = RunHandle()

        def open_it(tracker: TrackingClient) -> None:
            run.id = opener(tracker)
            self._open.append(run)

        self.do(open_it)
        return run

    def _keep_alive(self) -> None:
        with speaking(self.address):
            for run in self._open:
                self._tracker.keep_alive(run.id)


def status_after(error: type[BaseException] | None) -> str:
    """The status of a run that ended by itself or by an error."""
    if error is None:
        return "FINISHED"
    stopped = issubclass(error, KeyboardInterrupt | SystemExit | StoppedError)
    return "KILLED" if stopped else "FAILED"
