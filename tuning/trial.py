"""A trial's training, a segment at a time; each can be repeated and goes on from what is there."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fcn.nets import FCN
from fcn.weights import save_net
from pipeline.cluster import set_threads
from pipeline.config.recipe import Recipe
from pipeline.config.schema import PhaseSpec
from pipeline.errors import PipelineError
from pipeline.stages.finetune import FinetuneInputs
from pipeline.training.checkpoint import Checkpoints, LocalCheckpointManager
from pipeline.training.distributed import DistContext
from pipeline.training.model import blueprint
from pipeline.training.progress import MetricsForwarder, Row
from pipeline.training.ray_train import train
from pipeline.training.state import HISTORY, History, read_best, step_of

Push = Callable[[list[Row]], bool]
"""Takes metrics by step; the answer is whether to save and leave."""


@dataclass(frozen=True)
class Task:
    """A segment with all that it needs, on whatever machine it is trained."""

    number: int
    recipe: dict[str, Any]
    """Of the trial, as `Recipe.plain` gives it."""
    until: int
    """Step of the trial, counted over all its phases."""
    folder: Path
    """Of the trial and its generation."""
    source: Path | None
    """Of the trial whose net it goes on from, if it has none of its own yet."""
    train: list[Path]
    val: list[Path]
    num_train: int
    start: Path | None
    """The transplanted net; None is scratch."""
    search: str
    """Fingerprint of the search."""


@dataclass(frozen=True)
class Outcome:
    """How a segment ended."""

    step: int
    seconds: float
    mean_iu: float | None = None
    """At the rung; None if it did not come there."""
    kept: float | None = None
    """Of the best net so far."""
    failure: str = ""
    """Why it never will."""


def train_segment(task: Task, push: Push) -> Outcome:
    """Train up to the rung, from wherever the trial's checkpoints are."""
    began = time.monotonic()
    trainer = TrialPhases(task, push)
    try:
        last = trainer.train()
    except torch.OutOfMemoryError as error:
        text = f"out of memory ({str(error).splitlines()[0]}); a smaller finetune.micro_batch needs less"
        return Outcome(trainer.step, time.monotonic() - began, failure=text)
    except PipelineError as error:
        return Outcome(trainer.step, time.monotonic() - began, failure=str(error))
    spent = time.monotonic() - began
    return Outcome(trainer.step, spent, *(scores(last) if last else ()))


class TrialPhases:
    """The phases of a trial, one after the other, up to a step."""

    def __init__(self, task: Task, push: Push) -> None:
        self.task, self.push = task, push
        self.recipe = Recipe.model_validate(task.recipe)
        self.step = 0
        """How far the trial is known to have come."""
        self._offset = 0
        """Steps of the phases before."""

    def train(self) -> Path | None:
        """The checkpoint at the rung; None if it was asked to leave before."""
        start = self.task.start
        for index, phase in enumerate(self.recipe.phases):
            job = FinetuneInputs(
                phase, self.task.train, self.task.val, self.task.num_train, start, None
            )
            until = min(self.task.until - self._offset, job.steps(self.recipe))
            folder = self.task.folder / str(index)
            last = self._train_phase(job, folder, until)
            self.step = self._offset + (step_of(last) if last else 0)
            if last is None or step_of(last) < until:
                return None
            if self.step >= self.task.until:
                return last
            self._offset = self.step
            start = self._best(phase, last, folder)
        raise AssertionError(f"no phase of trial {self.task.number} has step {self.task.until}")

    def _train_phase(self, job: FinetuneInputs, folder: Path, until: int) -> Path | None:
        """The checkpoint of where it came."""
        if self.task.source:
            adopt(self.task.source / folder.name, folder)
        last, _ = Checkpoints.in_folder(folder).newest()
        if last is None or step_of(last) < until:
            alone = self.recipe.cluster.max_workers == 1
            last = (self._alone if alone else self._together)(job, folder, until)
        return last

    def _alone(self, job: FinetuneInputs, folder: Path, until: int) -> Path | None:
        """In this process."""
        cluster = self.recipe.cluster
        set_threads(cluster.cpus_per_worker)
        manager = LocalCheckpointManager(Checkpoints.in_folder(folder), until)

        def log_rows(rows: list[Row]) -> None:
            manager.stop_requested = self._push(rows)

        device = torch.device("cuda" if cluster.use_gpu else "cpu")
        job.task(self.recipe).trainer(DistContext(device=device), log_rows).run(manager)
        return manager.checkpoints.newest()[0]

    def _together(self, job: FinetuneInputs, folder: Path, until: int) -> Path:
        """By several workers of Ray Train."""
        name, key = (
            f"trial {self.task.number}",
            f"{self.task.search}-{self.task.number}-{folder.name}",
        )

        def sink(rows: list[Row]) -> None:
            if self._push(rows):
                watcher.leave()

        watcher = MetricsForwarder(name, key, job.steps(self.recipe), sink)
        return train(job.task(self.recipe, until), Checkpoints.in_folder(folder), watcher)

    def _push(self, rows: list[Row]) -> bool:
        return self.push([(self._offset + step, metrics) for step, metrics in rows])

    def _best(self, phase: PhaseSpec, last: Path, folder: Path) -> Path:
        """The net that the next phase starts from."""
        target, draft = folder / "best", folder / "best.draft"
        if not target.exists():
            best = read_best(last)
            assert best is not None
            net = FCN(blueprint(self.recipe, phase.stride))
            net.load_state_dict(best.weights)
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            save_net(draft, net)
            draft.rename(target)
        return target


def adopt(source: Path, folder: Path) -> None:
    """Copy another's newest checkpoint, whole or not at all, unless there are some of its own."""
    if Checkpoints.in_folder(folder).newest()[0]:
        return
    found, _ = Checkpoints.in_folder(source).newest()
    assert found is not None, f"{source} has no checkpoint to go on from"
    draft = folder / f"draft-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(found, draft)
    target = folder / "attempt-000000-00000000" / f"checkpoint_{step_of(found):09d}"
    target.parent.mkdir(exist_ok=True)
    draft.rename(target)


def scores(checkpoint: Path) -> tuple[float, float]:
    """Mean IU of a checkpoint made at a validation, and of the best net up to it."""
    rows, best = dict(History.read(checkpoint / HISTORY).rows()), read_best(checkpoint)
    assert best is not None
    return rows[step_of(checkpoint)]["val/mean_iu"], best.metrics["val/mean_iu"]
