"""What a flow or a search logs to MLflow, which may be away: nothing is lost, and no training waits."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.config.recipe import Recipe
from pipeline.errors import OutageError, StoppedError, TrackingError
from pipeline.results import (
    QUARANTINE,
    RECEIPT,
    REPORT,
    Dataset,
    Evaluation,
    TrainedNet,
    Transplanted,
)
from pipeline.storage.store import Marker
from pipeline.tracking import plots
from pipeline.tracking.client import Row, TrackingClient, address, installed, speaking
from pipeline.tracking.registry import ModelRegistry

log = logging.getLogger(__name__)

WAIT_S = 30.0
"""A flow waits so long for MLflow to come back before it registers and at its end; else not at all."""
FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 5.0
"""Between attempts during an outage; each pause is twice the one before."""
POLL_S = 0.1


@dataclass(eq=False)
class RunHandle:
    """A run; it has no id before MLflow gave one."""

    id: str = ""
    unsent: list[Row] = field(default_factory=list)
    """Metrics that MLflow has not confirmed yet."""


class RunLogger:
    """A parent run, open within the block, and its children.

    Operations are carried out at once, in order. While MLflow is away those that could not be are kept,
    and carried out before the next one once it is back; meanwhile a call returns at once, but for an
    attempt now and then. Any thread may call. What MLflow refuses is raised by that call and by all
    later ones.
    """

    def __init__(self, recipe: Recipe, store: Path, name: str, fingerprint: str) -> None:
        self.recipe = recipe
        self.address = address(recipe.tracking, store)
        self.away_since: str | None = None
        """Time of day at which the present outage was noticed."""
        self.run = RunHandle()
        self._store, self._name, self._key = store, name, fingerprint
        self._client: TrackingClient | None = None
        self._lock = threading.RLock()
        self._waiting: deque[Callable[[], object]] = deque()
        self._open: list[RunHandle] = []
        self._failure: Exception | None = None
        self._pause_s, self._retry_at = FIRST_PAUSE_S, 0.0

    def __enter__(self) -> Self:
        """Open the run, or note that MLflow is away.

        Raises:
            TrackingError: MLflow cannot be used like this.
        """
        try:
            self.do(lambda client: client.end_dead_runs())
            self._open_run(lambda client: client.open_run(self._name, self._key), self.run)
            self.describe(self.run, self.recipe)
            self.do(lambda client: client.log_text(self.run.id, installed(), "environment.txt"))
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Close all runs; if the block ended without an error, wait for what is not logged yet."""
        try:
            for run in self._open[1:]:  # children that nobody closed
                self.close(run, status_after(kind) if kind else "KILLED")
            self.close(self.run, status_after(kind))
            if error is None:
                self.finished()
            self.wait(0 if error else WAIT_S)
        except TrackingError as refused:
            if error is None:
                raise
            if refused is not error:
                log.warning("%s", refused)
        if self._waiting:
            log.warning(
                "MLflow at %s is still away: %d operations wait; the same command makes up for them",
                *(self.address, len(self._waiting)),
            )

    def finished(self) -> None:
        """Called when the block ended without an error and the run was closed."""
        self.check()

    def check(self) -> None:
        """Raise what MLflow refused."""
        if self._failure:
            raise self._failure

    def child(self, name: str, fingerprint: str) -> RunHandle:
        """The run of this fingerprint below the parent, a new one or the one of before."""
        return self._open_run(lambda client: client.open_run(name, fingerprint, self.run.id))

    def describe(self, run: RunHandle, recipe: Recipe) -> None:
        """A recipe as the run's parameters and as a file that `load_recipe` takes."""
        self.do(lambda client: client.log_params(run.id, recipe.flat()))
        self.do(lambda client: client.log_text(run.id, recipe.to_yaml(), "recipe.yaml"))

    def dataset(self, data: Dataset, uri: str) -> None:
        """The data set as the run's input, its report and its quarantine as artifacts."""
        name = f"{self.recipe.data.source}-{self.recipe.name}"
        classes = self.recipe.data.class_table().names
        self.do(lambda client: client.log_dataset(self.run.id, name, uri, data, classes))
        for file in (REPORT, QUARANTINE):
            self.do(partial(self._log_data_file, data.folder / file))

    def _log_data_file(self, path: Path, client: TrackingClient) -> None:
        client.log_file(self.run.id, path, "data")

    def receipt(self, transplanted: Transplanted) -> None:
        """The proof of the transplant."""
        path = transplanted.folder / RECEIPT
        self.do(lambda client: client.log_file(self.run.id, path, "transplant"))

    def log_rows(self, run: RunHandle, rows: list[Row]) -> None:
        """Metrics by step; those that were logged before are left out."""

        def send(client: TrackingClient) -> None:
            client.log_rows(run.id, run.unsent)
            run.unsent.clear()

        with self._lock:
            self.check()
            run.unsent += rows
            if len(run.unsent) > len(rows):  # there is an operation already that will send them
                self._catch_up()
            elif rows:
                self.do(send)

    def tag(self, run: RunHandle, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        self.do(lambda client: client.set_tags(run.id, tags))

    def close(self, run: RunHandle, status: str) -> None:
        """The run is over: FINISHED, FAILED or KILLED. This is tried even after a refusal."""
        with self._lock:
            if run not in self._open:
                return
            self._open.remove(run)
            self._waiting.append(self._speaks(lambda client: client.close_run(run.id, status)))
            self._catch_up()

    def do(self, operation: Callable[[TrackingClient], object]) -> None:
        """Carry it out after all others, now or when MLflow is back."""
        self.after(self._speaks(operation))

    def after(self, action: Callable[[], object]) -> None:
        """Do something that is not MLflow's affair once all operations before it are carried out."""
        with self._lock:
            self.check()
            self._waiting.append(action)
            self._catch_up()

    def wait(self, timeout_s: float) -> bool:
        """Wait at most so long for MLflow to be back; True if all operations are carried out then."""
        ends_at = time.monotonic() + timeout_s
        while True:
            with self._lock:
                if self._catch_up():
                    return True
            if time.monotonic() >= ends_at:
                return False
            time.sleep(POLL_S)

    @contextmanager
    def registering(self) -> Iterator[tuple[ModelRegistry, str]]:
        """The registry and the parent run's id, when all that came before is logged.

        Raises:
            TrackingError: MLflow is away.
        """
        try:
            if not self.wait(WAIT_S) or self._client is None:
                raise OutageError(f"MLflow at {self.address} is away")
            with self._lock, speaking(self.address):
                yield ModelRegistry(self._client), self.run.id
        except OutageError as error:
            raise TrackingError(
                f"{error}: the net is trained, evaluated and stored, but not registered. Nothing is "
                "lost: the same command registers it and sends all metrics when MLflow is back"
            ) from error

    def _open_run(
        self, opener: Callable[[TrackingClient], str], run: RunHandle | None = None
    ) -> RunHandle:
        opened = run or RunHandle()
        self._open.append(opened)
        self.do(lambda client: setattr(opened, "id", opener(client)))
        return opened

    def _speaks(self, operation: Callable[[TrackingClient], object]) -> Callable[[], None]:
        def speak() -> None:
            with speaking(self.address):
                self._client = self._client or TrackingClient(self.recipe.tracking, self._store)
                operation(self._client)
            if self.away_since is not None:
                log.info("MLflow at %s is back, away since %s", self.address, self.away_since)
                self.away_since = None

        return speak

    def _catch_up(self) -> bool:
        """Carry out what waits, in order; False if MLflow is away. Needs the lock."""
        while self._waiting:
            if time.monotonic() < self._retry_at:
                return False
            began = time.monotonic()
            try:
                self._waiting[0]()
            except OutageError as outage:
                self._note(outage, attempt_s=time.monotonic() - began)
                return False
            except Exception as error:
                self._failure = self._failure or error
                self._waiting.clear()  # what comes after a refused operation may rest on it
                raise
            self._waiting.popleft()
        return True

    def _note(self, outage: OutageError, attempt_s: float) -> None:
        if self.away_since is None:
            self.away_since, self._pause_s = time.strftime("%H:%M"), FIRST_PAUSE_S
            words = "%s since %s; the flow goes on, what it logs is kept until MLflow is back"
            log.warning(words, outage, self.away_since)
        # A server that hangs costs a timeout an attempt: at most a third of the time goes into that.
        self._retry_at = time.monotonic() + max(self._pause_s, 2 * attempt_s)
        self._pause_s = min(2 * self._pause_s, LAST_PAUSE_S)


class FlowLogger(RunLogger):
    """The flow's parent run, a child for each phase of the fine-tuning.

    A marker in the store says of a phase or an evaluation that MLflow has all of it.
    """

    def __init__(
        self, recipe: Recipe, store: Path, fingerprint: str, mark: Callable[[str], Marker]
    ) -> None:
        super().__init__(recipe, store, recipe.name, fingerprint)
        self._marker = mark
        self._phases: dict[str, RunHandle] = {}
        self._evaluated: str | None = None

    def finished(self) -> None:
        """The marker of an evaluation comes last: its scores are the parent run's."""
        super().finished()
        if self._evaluated:
            self.after(self._marker(self._evaluated).set)

    @contextmanager
    def phase(self, name: str, fingerprint: str) -> Iterator[Callable[[list[Row]], None]]:
        """The child run of a phase in training; gives what takes its metrics by step.

        `history` completes and closes it. An error closes it with the flow.
        """
        self._marker(fingerprint).clear()
        run = self._phases[fingerprint] = self.child(name, fingerprint)
        yield partial(self.log_rows, run)

    def history(self, name: str, fingerprint: str, rows: list[Row]) -> None:
        """All metrics of a phase that was trained, now or by an earlier command.

        MLflow gets those that it lacks; the marker is set when it has them all.
        """
        run = self._phases.pop(fingerprint, None)
        if run is None:
            run = self._open_run(lambda client: client.open_phase(name, fingerprint, self.run.id))
        self.log_rows(run, rows)
        self.close(run, "FINISHED")
        self.after(self._marker(fingerprint).set)

    def evaluation(
        self, fingerprint: str, scores: Evaluation, net: TrainedNet, phases: Mapping[str, str]
    ) -> None:
        """Scores and pictures on the parent run, which is the one that a list of runs shows."""
        self._evaluated = fingerprint
        self.log_rows(self.run, [(0, scores.metrics() | net.metrics)])
        self.do(lambda client: self._curves(client, phases))
        self.do(lambda client: client.log_folder(self.run.id, scores.folder, "evaluation"))

    def note(self, scores: Evaluation, outcome: str) -> None:
        """The result in words, on the run's page."""
        text = f"mean IU {scores.mean_iu:.4f} on {scores.split}; {outcome}"
        self.do(lambda client: client.set_note(self.run.id, text))

    def _curves(self, client: TrackingClient, phases: Mapping[str, str]) -> None:
        """Of all phases, from what MLflow has: also of those that other flows trained."""
        runs = {n: run for n, key in phases.items() if (run := client.find_phase(key))}
        loss, mean_iu = (
            {name: points for name, run in runs.items() if (points := client.history(run, key))}
            for key in ("train/loss", "val/mean_iu")
        )
        with tempfile.TemporaryDirectory() as folder:
            plots.curves(Path(folder) / "curves.png", loss, mean_iu)
            client.log_folder(self.run.id, Path(folder), "evaluation")


def status_after(error: type[BaseException] | None) -> str:
    """The status of a run that ended by itself or by an error."""
    if error is None:
        return "FINISHED"
    stopped = issubclass(error, KeyboardInterrupt | SystemExit | StoppedError)
    return "KILLED" if stopped else "FAILED"
