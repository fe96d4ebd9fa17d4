"""Metrics on their way from the worker of rank 0 to the screen and to MLflow.

Rank 0 pushes them into an actor and does not wait; a thread of the driver takes them from there. If
MLflow hangs, it is this thread alone that waits.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Self

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.progress import Progress, TaskID

from pipeline.errors import ClusterError
from pipeline.logs import CONSOLE, progress_bar
from pipeline.training.gauges import EpochThroughput
from pipeline.training.time_left import TimeLeft

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
"""Where the output is not a terminal, lines of text take the place of the moving bar."""
NAMESPACE = "fcn-pipeline"
NAME_FREE_S = 60.0
"""Ray may take so long to notice that the driver that had a name before is dead."""


class Worker(NamedTuple):
    """Where a training worker is."""

    rank: int
    node: str
    pid: int


@ray.remote(num_cpus=0)
class MetricsActor:
    """Rows of metrics by step, in the order in which they came; of a search's trials, by trial."""

    def __init__(self) -> None:
        self._rows: dict[int, list[Row]] = {}
        self._texts: list[str] = []
        self._workers: dict[int, Worker] = {}
        self._step, self._stop = 0, False

    def push(self, rows: list[Row], trial: int = 0) -> bool:
        """From rank 0, not waited for; the answer is whether the workers are to leave."""
        self._rows.setdefault(trial, []).extend(rows)
        self._step = max([self._step, *(step for step, _ in rows)])
        return self._stop

    def step(self) -> int:
        """The newest training step that was pushed, 0 before the first."""
        return self._step

    def join(self, worker: Worker, size: int) -> None:
        """From a worker that begins, in a group of that size."""
        self._workers[worker.rank] = worker
        self._workers = {rank: w for rank, w in self._workers.items() if rank < size}

    def workers(self) -> list[Worker]:
        """Where the workers are, by rank."""
        return [self._workers[rank] for rank in sorted(self._workers)]

    def warn(self, text: str) -> None:
        """From a worker: a warning for the user."""
        self._texts.append(text)

    def drain(self) -> tuple[dict[int, list[Row]], list[str]]:
        """To the driver: rows by trial (0 without a search) and warnings since the last call."""
        rows, self._rows, texts, self._texts = self._rows, {}, self._texts, []
        return rows, texts

    def stop(self) -> None:
        """From the driver: the workers are to save a checkpoint and leave."""
        self._stop = True


def metrics_actor_name(key: str) -> str:
    """Name of the actor of a phase or a search, by its fingerprint."""
    return f"metrics-{key}"


def start_metrics_actor(key: str) -> Any:  # noqa: ANN401 - Ray's handle of a MetricsActor
    """The actor of a phase or a search.

    `ray.get_actor(metrics_actor_name(key), namespace=NAMESPACE)` finds it. It is on the driver's node,
    so that the loss of a worker's node loses no rows, and ends with the driver.

    Raises:
        ClusterError: another driver on this Ray trains the same.
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
                    f"{metrics_actor_name(key)} is taken: another driver on this Ray trains the same; "
                    "wait for it, or end it"
                ) from taken
            time.sleep(POLL_S)


class MetricsForwarder:
    """Carries rows to the screen and to `sink` (a RunLogger's), in a thread, until the block ends."""

    def __init__(
        self, name: str, key: str, num_steps: int, sink: LogRows, num_validations: int = 0
    ) -> None:
        self.name, self.num_steps, self.sink = name, num_steps, sink
        self._left = TimeLeft(num_steps, num_validations)
        self.actor = start_metrics_actor(key)
        self._shown: dict[str, float] = {}
        self._done, self._stopping = threading.Event(), threading.Event()
        self._failure: Exception | None = None
        self._throughput = EpochThroughput()
        self._logged = self._summed_up = time.monotonic()
        self._thread = threading.Thread(target=self._carry, name="metrics", daemon=True)
        self._stopper = threading.Thread(target=self._pass_on_stop, name="stop", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._stopper.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._done.set()
        self._stopping.set()
        self._thread.join()
        self._stopper.join()
        ray.kill(self.actor)  # its name is free again
        if self._failure and error is None:
            raise self._failure

    def stop(self) -> None:
        """Let the workers save a checkpoint and leave. May be called in a signal handler."""
        self._stopping.set()

    def _pass_on_stop(self) -> None:
        """In a thread of its own: it must not wait for the other one, which may wait for MLflow."""
        self._stopping.wait()
        if not self._done.is_set():
            self.actor.stop.remote()

    def _carry(self) -> None:
        try:
            with progress_bar(time_left=False) as progress:
                bar = progress.add_task(self.name, total=self.num_steps, note="starting workers")
                last = False
                while not last:
                    last = self._done.wait(POLL_S)
                    by_trial, texts = ray.get(self.actor.drain.remote())
                    for text in texts:
                        log.warning("%s", text)
                    if rows := by_trial.get(0):
                        self._show(rows, progress, bar)
                        self._send(rows)
        except Exception as failure:  # noqa: BLE001 - raised again when the block ends
            self._failure = self._failure or failure

    def _send(self, rows: list[Row]) -> None:
        if self._failure:
            return
        try:
            self.sink(rows)
        except Exception as failure:  # noqa: BLE001 - as above; the screen and the workers go on
            self._failure = failure

    def _show(self, rows: list[Row], progress: Progress, bar: TaskID) -> None:
        for _, metrics in rows:
            self._shown |= metrics
        step, now = rows[-1][0], time.monotonic()
        self._left.add(rows, now)
        notes = [text.format(self._shown[k]) for k, text in SHOWN.items() if k in self._shown]
        note = "  ".join([*notes, self._left.in_words()]).rstrip()
        progress.update(bar, completed=step, note=note)
        epoch = self._throughput.add(rows)
        if epoch and now - self._summed_up > LINE_EVERY_S:  # not every epoch if they are short
            self._summed_up = now
            log.info("%s %s", self.name, epoch)
        if not CONSOLE.is_terminal and now - self._logged > LINE_EVERY_S:
            self._logged = now
            log.info("%s step %d of %d  %s", self.name, step, self.num_steps, note)
