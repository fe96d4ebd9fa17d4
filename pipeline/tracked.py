"""What a flow tells MLflow: one parent run, a child for each phase of the fine-tuning."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from pipeline import pictures
from pipeline.errors import OutageError, StoppedError, TrackingError
from pipeline.pretrained import RECEIPT
from pipeline.recipe import Recipe
from pipeline.recorder import Recorder
from pipeline.specs import Split
from pipeline.tracking import Row, Tracker, address, environment, speaking

log = logging.getLogger(__name__)


class HasFolder(Protocol):
    """A stage's result with files."""

    folder: Path


class DatasetLike(HasFolder, Protocol):
    """A data set with the digest of its content."""

    digest: str


class NetLike(HasFolder, Protocol):
    """A trained net with the metrics of its best validation."""

    metrics: dict[str, float]


class ScoresLike(HasFolder, Protocol):
    """An evaluation."""

    split: Split
    mean_iu: float

    def metrics(self) -> dict[str, float]:
        """By name."""


@dataclass
class OpenRun:
    """A run; it has no id before MLflow gave one."""

    id: str = ""


class Tracked:
    """The flow's parent run, open while the flow runs.

    A recorder tells MLflow everything, in order; nothing here waits for it but what says so. What
    MLflow refused is raised by the next call; while it is away nothing is raised and nothing lost.
    """

    def __init__(
        self, recipe: Recipe, store: Path, fingerprint: str, mark: Callable[[str], Path]
    ) -> None:
        self.recipe = recipe
        self.address = address(recipe.tracking, store)
        self._store, self._mark_of = store, mark
        self._max_wait_s = recipe.tracking.max_wait_s
        self._open: list[OpenRun] = []
        self._recorder = Recorder(f"MLflow at {self.address}", self._keep_alive)
        self._recorder.do(self._connect)
        self._do(lambda t: t.end_dead_runs())
        self.run = self._open_run(lambda t: t.open_run(recipe.name, fingerprint))
        self._evaluated: str | None = None

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
        self._do(lambda t: t.log_params(self.run.id, self.recipe.flat()))
        self._do(lambda t: t.log_text(self.run.id, self.recipe.to_yaml(), "recipe.yaml"))
        self._do(lambda t: t.log_text(self.run.id, environment(), "environment.txt"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Wait until all is told."""
        self._close_run(self.run, kind)
        if self._evaluated and error is None:
            self._mark(self._evaluated)
        if left := self._recorder.close(self._max_wait_s):
            words = (
                "MLflow at %s is still away: %d operations wait; the same command makes up for them"
            )
            log.warning(words, self.address, left)
        if error is None:
            self._recorder.check()

    @contextmanager
    def phase(self, name: str, fingerprint: str) -> Iterator[Callable[[list[Row]], None]]:
        """The child run of a phase; gives what takes its metrics by step."""
        self._recorder.check()
        self._mark_of(fingerprint).unlink(missing_ok=True)
        run = self._open_run(lambda t: t.open_run(name, fingerprint, self.run.id))
        try:
            yield lambda rows: self._rows(run, rows)
        except BaseException as error:
            self._close_run(run, type(error))
            raise
        self._close_run(run)
        self._mark(fingerprint)

    def history(self, name: str, fingerprint: str, rows: list[Row]) -> None:
        """All metrics of a phase that ended while MLflow was away."""
        self._recorder.check()
        run = self._open_run(lambda t: t.open_phase(name, fingerprint, self.run.id))
        self._rows(run, rows)
        self._close_run(run)
        self._mark(fingerprint)

    def dataset(self, data: DatasetLike) -> None:
        """The data set as the run's input, its quarantine as an artifact."""
        self._recorder.check()
        name = f"{self.recipe.data.source}-{self.recipe.name}"
        self._do(lambda t: t.log_dataset(self.run.id, name, data.folder, data.digest))
        self._do(lambda t: t.log_file(self.run.id, data.folder / "quarantine.csv", "data"))

    def receipt(self, surgery: HasFolder) -> None:
        """The proof of the transplant."""
        self._recorder.check()
        self._do(lambda t: t.log_file(self.run.id, surgery.folder / RECEIPT, "transplant"))

    def evaluation(
        self, fingerprint: str, scores: ScoresLike, net: NetLike, phases: Mapping[str, str]
    ) -> None:
        """Scores and pictures on the parent run, which is the one that a list of runs shows."""
        self._recorder.check()
        self._evaluated = fingerprint
        self._rows(self.run, [(0, scores.metrics() | net.metrics)])
        self._do(lambda t: self._curves(t, phases))
        self._do(lambda t: t.log_folder(self.run.id, scores.folder, "evaluation"))

    def note(self, scores: ScoresLike, outcome: str) -> None:
        """The result in words, on the run's page."""
        text = f"mean IU {scores.mean_iu:.4f} on {scores.split}; {outcome}"
        self._do(lambda t: t.set_note(self.run.id, text))

    @contextmanager
    def registering(self) -> Iterator[tuple[Tracker, str]]:
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
        self._tracker = Tracker(self.recipe.tracking, self._store)

    def _do(self, operation: Callable[[Tracker], object], *, always: bool = False) -> None:
        def speak() -> None:
            with speaking(self.address):
                operation(self._tracker)

        self._recorder.do(speak, always=always)

    def _open_run(self, opener: Callable[[Tracker], str]) -> OpenRun:
        run = OpenRun()

        def open_it(tracker: Tracker) -> None:
            run.id = opener(tracker)
            self._open.append(run)

        self._do(open_it)
        return run

    def _close_run(self, run: OpenRun, ended_by: type[BaseException] | None = None) -> None:
        def close_it(tracker: Tracker) -> None:
            if run in self._open:  # not so if opening it failed
                tracker.close_run(run.id, status_after(ended_by))
                self._open.remove(run)

        self._do(close_it, always=True)

    def _rows(self, run: OpenRun, rows: list[Row]) -> None:
        now_ms = int(time.time() * 1000)  # now, not when they are sent, perhaps for the second time
        self._do(lambda t: t.log_rows(run.id, rows, now_ms))

    def _mark(self, fingerprint: str) -> None:
        """Leave a file that says that MLflow has been told all that was to be told before."""

        def touch() -> None:
            path = self._mark_of(fingerprint)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

        self._recorder.do(touch)

    def _keep_alive(self) -> None:
        with speaking(self.address):
            for run in self._open:
                self._tracker.keep_alive(run.id)

    def _curves(self, tracker: Tracker, phases: Mapping[str, str]) -> None:
        """Of all phases, from what MLflow has: also of those that other flows trained."""
        runs = {n: run for n, key in phases.items() if (run := tracker.find_phase(key))}
        loss, mean_iu = (
            {name: points for name, run in runs.items() if (points := tracker.history(run, key))}
            for key in ("train/loss", "val/mean_iu")
        )
        with tracker.scratch() as folder:
            pictures.curves(folder / "curves.png", loss, mean_iu)
            tracker.log_folder(self.run.id, folder, "evaluation")


def status_after(error: type[BaseException] | None) -> str:
    """The status of a run that ended by itself or by an error."""
    if error is None:
        return "FINISHED"
    stopped = issubclass(error, KeyboardInterrupt | SystemExit | StoppedError)
    return "KILLED" if stopped else "FAILED"
