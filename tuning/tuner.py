"""The search on Ray Tune: each segment of a trial is a trial of Tune.

Tune finds room for segments, starts their processes and notices if one dies. What is to be trained next
is asked of the search; Tune's own records are not needed to go on, and are thrown away.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # what it says is the search's to say

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.search import Searcher

from pipeline.cluster import per_worker
from pipeline.config.schema import ClusterSpec
from pipeline.training.progress import NAMESPACE, Row
from tuning.board import board_name
from tuning.trial import Outcome, Task, train_segment

NESTED = {"memory": float(1 << 20)}
"""A trial of several workers takes next to nothing itself: its workers take what they need."""


class Source(Protocol):
    """Who says what is to be trained."""

    def next_task(self) -> Task | None:
        """The next segment; None if there is none for now."""

    def over(self) -> bool:
        """Whether there will be none any more."""

    def ended(self, task: Task, outcome: Outcome) -> None:
        """A segment was trained, as far as it was."""

    def lost(self, task: Task, why: str) -> None:
        """A segment's process died."""


class Pusher:
    """Sends a trial's metrics to the driver without waiting: an answer is that of some time ago."""

    def __init__(self, task: Task) -> None:
        self.number = task.number
        self.board: Any = ray.get_actor(board_name(task.search), namespace=NAMESPACE)
        self._sent: list[Any] = []
        self._leave = False

    def __call__(self, rows: list[Row]) -> bool:
        """Whether the trial is to save and leave."""
        self._sent.append(self.board.push.remote(self.number, rows))
        done, self._sent = ray.wait(self._sent, num_returns=len(self._sent), timeout=0)
        self._leave = self._leave or any(ray.get(done))
        return self._leave

    def wait(self) -> None:
        """Until all has come to the driver's node."""
        ray.get(self._sent)


class SegmentTrainable(tune.Trainable):
    """A process that trains one segment after the other."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take a segment."""
        self.task: Task = config["task"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another one; a new process would have to import everything again."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train it."""
        push = Pusher(self.task)
        outcome = train_segment(self.task, push)
        push.wait()
        return {"outcome": outcome, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the segment's checkpoints lie in the store."""

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing: a segment goes on from the store by itself."""


class Segments(Searcher):
    """What Tune takes for a search algorithm."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source
        self.tasks: dict[str, Task] = {}
        self.failure: Exception | None = None
        """Ours, which Tune would take for the trial's."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing is pickled: the journal is the state."""
        return {}

    def suggest(self, trial_id: str) -> Any:  # noqa: ANN401 - a word of Tune's, or a configuration
        """The next segment."""
        task = None
        with self.keeping_failure():
            task = self.source.next_task()
        if self.failure or (task is None and self.source.over()):
            return Searcher.FINISHED
        if task is None:
            return None
        self.tasks[trial_id] = task
        return {"task": task}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A segment is done, if not lost."""
        if result is not None and not error:
            with self.keeping_failure():
                self.source.ended(self.tasks.pop(trial_id), result["outcome"])

    @contextmanager
    def keeping_failure(self) -> Iterator[None]:
        """The block's error ends the search, and is raised after Tune's end."""
        try:
            yield
        except Exception as failure:  # noqa: BLE001 - raised by `train_all`
            self.failure = self.failure or failure

    def save(self, checkpoint_path: str) -> None:
        """Nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class Losses(tune.Callback):
    """Hears of processes that died."""

    def __init__(self, segments: Segments) -> None:
        self.segments = segments

    def __getstate__(self) -> dict[str, Any]:
        """Nothing is pickled."""
        return {}

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: object
    ) -> None:
        """Its last error is the reason."""
        error = trial.get_error()
        why = str(error).strip().splitlines()[-1] if error else "its process died"
        with self.segments.keeping_failure():
            self.segments.source.lost(self.segments.tasks.pop(trial.trial_id), why)


def train_all(source: Source, spec: ClusterSpec, slots: int, folder: Path) -> None:
    """Train segments side by side until there are no more."""
    shutil.rmtree(folder, ignore_errors=True)
    segments = Segments(source)
    needs = per_worker(spec) if spec.max_workers == 1 else NESTED
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what fails is told by the search
    tuner = tune.Tuner(
        tune.with_resources(SegmentTrainable, needs),
        tune_config=tune.TuneConfig(
            search_alg=segments, num_samples=-1, max_concurrent_trials=slots, reuse_actors=True
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            callbacks=[Losses(segments)],
            verbose=0,
        ),
    )
    tuner.fit()
    shutil.rmtree(folder, ignore_errors=True)
    if segments.failure:
        raise segments.failure
