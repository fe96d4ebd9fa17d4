"""Metrics on their way from the worker of rank 0 to the screen and to whoever records them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Self

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.errors import ClusterError
from pipeline.logs import CONSOLE, progress_bar
from pipeline.training.gauges import EpochThroughput

log = logging.getLogger(__name__)

Row = tuple[int, dict[str, float]]
LogRows = Callable[[list[Row]], None]
SHOWN = {
    "train/loss": "loss {:.3f}",
    "perf/images_per_s": "{:.1f} images/s",
    "val/mean_iu": "mean IU {:.3f}",
}
POLL_S = 0.5
LINE_EVERY_S = 30.0
"""Where the output is not a terminal, a line of text takes the place of the moving bar."""
NAMESPACE = "fcn-pipeline"
NAME_FREE_S = 60.0
"""So long may Ray take to notice that the driver that had a name before is dead."""


class Worker(NamedTuple):
    """Where a training worker is."""

    rank: int
    node: str
    pid: int


@ray.remote(num_cpus=0)
class MetricsActor:
    """Rows of metrics by step, in the order in which they came."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._said: list[str] = []
        self._workers: dict[int, Worker] = {}
        self._step, self._leave = 0, False

    def push(self, rows: list[Row]) -> bool:
        """From rank 0, not waited for; the answer is whether the workers are to leave."""
        self._rows += rows
        self._step = max([self._step, *(step for step, _ in rows)])
        return self._leave

    def step(self) -> int:
        """The newest training step that was told, 0 before the first."""
        return self._step

    def here(self, worker: Worker, size: int) -> None:
        """From a worker that begins, in a group of that size."""
        self._workers[worker.rank] = worker
        self._workers = {rank: w for rank, w in self._workers.items() if rank < size}

    def workers(self) -> list[Worker]:
        """To whoever looks: where they are, by rank."""
        return [self._workers[rank] for rank in sorted(self._workers)]

    def say(self, text: str) -> None:
        """From a worker: what the user should read."""
        self._said.append(text)

    def drain(self) -> tuple[list[Row], list[str]]:
        """To the driver: what came since the last call."""
        rows, self._rows, said, self._said = self._rows, [], self._said, []
        return rows, said

    def leave(self) -> None:
        """From the driver: the workers are to save and leave."""
        self._leave = True


def metrics_actor_name(key: str) -> str:
    """Of the actor of a phase's fingerprint."""
    return f"telemetry-{key}"


def start_metrics_actor(key: str) -> Any:  # noqa: ANN401 - Ray's handle of a Telemetry
    """The actor of a phase: `ray.get_actor(telemetry_name(key), namespace=NAMESPACE)` finds it.

    It lives on the driver's node, so that the loss of a worker's node loses no rows, and dies with
    the driver.

    Raises:
        ClusterError: another driver on this Ray trains this phase.
    """
    here = ray.get_runtime_context().get_node_id()
    actor = MetricsActor.options(  # type: ignore[attr-defined]
        name=metrics_actor_name(key),
        namespace=NAMESPACE,
        enable_task_events=False,  # Ray would remember a call for each step
        scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
    )
    deadline = time.monotonic() + NAME_FREE_S
    while True:
        try:
            return actor.remote()
        except ValueError as taken:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{metrics_actor_name(key)} is taken: another driver on this Ray trains this phase; "
                    "wait for it, or end it"
                ) from taken
            time.sleep(POLL_S)


class MetricsForwarder:
    """Carries rows to the screen and the sink, in a thread, until the block ends."""

    def __init__(self, name: str, key: str, num_steps: int, sink: LogRows) -> None:
        self.name, self.num_steps, self.sink = name, num_steps, sink
        self.telemetry = start_metrics_actor(key)
        self._shown: dict[str, float] = {}
        self._done, self._leaving = threading.Event(), threading.Event()
        self._failure: Exception | None = None
        self._pace, self._paced = EpochThroughput(), time.monotonic()
        self._thread = threading.Thread(target=self._carry, name="telemetry", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        ray.kill(self.telemetry)  # its name is free again
        if self._failure and error is None:
            raise self._failure

    def leave(self) -> None:
        """Let the workers save and leave. May be called in a signal handler."""
        self._leaving.set()

    def _carry(self) -> None:
        try:
            with progress_bar() as progress:
                bar = progress.add_task(self.name, total=self.num_steps, note="starting workers")
                said = time.monotonic()
                last = False
                while not last:
                    last = self._done.wait(POLL_S)
                    if self._leaving.is_set():
                        self.telemetry.leave.remote()
                    rows, texts = ray.get(self.telemetry.drain.remote())
                    for text in texts:
                        log.warning("%s", text)
                    for step, metrics in rows:
                        self._shown |= metrics
                        progress.update(bar, completed=step, note=self._note())
                    if rows:
                        self.sink(rows)
                    self._tell_pace(rows)
                    if rows and not CONSOLE.is_terminal and time.monotonic() - said > LINE_EVERY_S:
                        said = time.monotonic()
                        left_s = progress.tasks[0].time_remaining or 0
                        note = f"{self._note()}  {left_s / 60:.0f} min left"
                        log.info("%s step %d of %d  %s", self.name, step, self.num_steps, note)
        except Exception as failure:  # noqa: BLE001 - raised again when the block ends
            self._failure = failure

    def _tell_pace(self, rows: list[Row]) -> None:
        """At the end of an epoch, but not of each if they are short."""
        pace = self._pace.add(rows)
        if pace and time.monotonic() - self._paced > LINE_EVERY_S:
            self._paced = time.monotonic()
            log.info("%s %s", self.name, pace)

    def _note(self) -> str:
        return "  ".join(
            words.format(self._shown[key]) for key, words in SHOWN.items() if key in self._shown
        )
