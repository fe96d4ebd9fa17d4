"""A trial as Tune runs it: all phases of a recipe, from wherever its checkpoints are.

A validation is reported to Tune once the checkpoint that it belongs to is kept. So whatever Tune
decides, the trial can go on from there, or be the winner. The metrics of each step go through the
search's MetricsActor, whose answer asks the trial to save and stop when the session ends.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.trainable import wrap_function
from ray.util import get_current_placement_group
from torch.optim import Optimizer

from fcn.nets import FCN
from pipeline.cluster import set_threads
from pipeline.config.recipe import Recipe
from pipeline.data.sampler import steps_per_epoch
from pipeline.errors import PipelineError
from pipeline.stages.finetune import FinetuneInputs, publish
from pipeline.storage.store import Store
from pipeline.training.checkpoint import Checkpoints, LocalCheckpointManager
from pipeline.training.distributed import DistContext
from pipeline.training.progress import NAMESPACE, MetricsForwarder, Row, metrics_actor_name
from pipeline.training.ray_train import TrainingTask, train
from pipeline.training.state import HISTORY, History, TrainState, step_of
from pipeline.training.trainer import Trainer

PLACEMENT_GROUP = "placement_group"
"""The document in a trial's folder that names the placement group of its workers."""
POLL_S = 0.2
LEAVE_S = 120.0
"""The workers of a trial that Tune stops have so long to save and leave."""
_workers_left = threading.Event()
_workers_left.set()


@dataclass(frozen=True)
class TrialTask:
    """A trial with all that it needs, on whatever machine it is trained."""

    number: int
    recipe: Recipe
    """The recipe at the trial's point, with the workers of one trial."""
    store: Store
    folder: str
    """The folder of its checkpoints, below the store."""
    inputs: FinetuneInputs
    """Those of its first phase."""
    keys: tuple[str, ...]
    """The fingerprint of each phase's net."""
    search: str
    """Fingerprint of the search."""

    def checkpoints(self, index: int) -> Checkpoints:
        """Those of a phase."""
        return Checkpoints(self.store.files, f"{self.folder}/{index}")

    def images(self, step: int) -> int:
        """Images seen after a step that ends an epoch."""
        num_train = self.inputs.num_train
        return step // steps_per_epoch(num_train, self.recipe.finetune.global_batch) * num_train


def run_trial(config: dict[str, Any]) -> None:
    """Train a trial to its end, until Tune stops it, or until the session ends.

    A failure that the user can mend, such as a loss that is not finite, is a result: to try again would
    give the same. Anything else is raised, and Tune tries again.
    """
    # Tune waits so long for this function before it gives its process to the next trial.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", f"{LEAVE_S:g}")
    run = TrialRun(config["task"])
    outcome: dict[str, Any] = {}
    try:
        if not run.train():
            outcome = {"stopped": True}
    except torch.OutOfMemoryError as error:
        first = str(error).splitlines()[0]
        outcome = {"failed": f"out of memory ({first}); a smaller finetune.micro_batch needs less"}
    except PipelineError as error:
        outcome = {"failed": str(error)}
    run.wait()
    if outcome:
        tune.report(outcome | {"step": run.step})


class TrialTrainable(wrap_function(run_trial)):  # type: ignore[misc]  # Ray has no types here
    """The process of a trial; when Tune stops it, it waits until its workers have left.

    Else Ray Train, whose controller ends with this process, would keep the resources of its workers.
    """

    def cleanup(self) -> None:
        """Tune calls it before the process ends."""
        try:
            super().cleanup()
        finally:
            _workers_left.wait(LEAVE_S)


class TrialRun:
    """One trial in the process that Tune has given it."""

    def __init__(self, task: TrialTask) -> None:
        self.task, self.recipe = task, task.recipe
        self.step = 0
        """Steps done, over all phases."""
        self._before = 0
        """Steps of the phases before the present one."""
        name = metrics_actor_name(task.search)
        self._actor: Any = ray.get_actor(name, namespace=NAMESPACE)
        self._sent: list[Any] = []
        self._stop = False
        self._scores: dict[int, float] = {}
        """Mean IU by step, validated and not reported yet."""

    def train(self) -> bool:
        """Train all phases; False if the session ended before."""
        inputs = self.task.inputs
        for index, phase in enumerate(self.recipe.phases):
            inputs = replace(inputs, phase=phase)
            checkpoints, num_steps = self.task.checkpoints(index), inputs.steps(self.recipe)
            last, _ = checkpoints.newest()
            if last is None or step_of(last) < num_steps:
                alone = self.recipe.cluster.max_workers == 1
                train_phase = self._train_here if alone else self._train_workers
                train_phase(inputs, checkpoints)
                last, _ = checkpoints.newest()
            else:  # it may have been killed before all was logged and reported
                self.log_rows(History.read(last / HISTORY).rows())
            self.report()
            self.step = self._before + (step_of(last) if last else 0)
            if last is None or step_of(last) < num_steps:
                return False
            self._before = self.step
            if index + 1 < len(self.recipe.phases):
                store, key = self.task.store, self.task.keys[index]
                if store.published("nets", key) is None:
                    publish(self.recipe, store, key, phase.stride, last, inputs.input)
                inputs = replace(inputs, start=store.stored("nets", key))
        return True

    def log_rows(self, rows: list[Row]) -> bool:
        """Send metrics without waiting; whether the trial is to save and stop, as of some time ago."""
        shifted = [(self._before + step, metrics) for step, metrics in rows]
        for step, metrics in shifted:
            self.step = max(self.step, step)
            if "val/mean_iu" in metrics:
                self._scores[step] = metrics["val/mean_iu"]
        self._sent.append(self._actor.push.remote(shifted, self.task.number))
        done, self._sent = ray.wait(self._sent, num_returns=len(self._sent), timeout=0)
        self._stop = self._stop or any(ray.get(done))
        return self._stop

    def report(self, before: int | None = None) -> None:
        """Report validations to Tune, all or those before a step; Tune may stop the trial in here."""
        for step in sorted(self._scores):
            if before is None or step < before:
                result = {"images": self.task.images(step), "step": step}
                tune.report(result | {"mean_iu": self._scores.pop(step)})

    def wait(self) -> None:
        """Until all metrics have come to the driver."""
        ray.get(self._sent)

    def _train_here(self, inputs: FinetuneInputs, checkpoints: Checkpoints) -> None:
        """In this process."""
        cluster = self.recipe.cluster
        set_threads(cluster.cpus_per_worker)
        manager = ReportingCheckpointManager(checkpoints, self)

        def log_rows(rows: list[Row]) -> None:
            manager.stop_requested = self.log_rows(rows)

        device = torch.device("cuda" if cluster.use_gpu else "cpu")
        inputs.task(self.recipe).trainer(DistContext(device=device), log_rows).run(manager)

    def _train_workers(self, inputs: FinetuneInputs, checkpoints: Checkpoints) -> None:
        """By several workers of Ray Train, whose checkpoints come to the store a little later.

        The last validation is reported when its checkpoint is known to be there. One before it may be
        reported too early; if its checkpoint is lost then, the same score is computed again.
        """

        def log_rows(rows: list[Row]) -> None:
            if self.log_rows(rows):
                forwarder.stop()

        num_steps = inputs.steps(self.recipe)
        key = f"{self.task.search}-{self.task.number}-{self._before}"
        forwarder = MetricsForwarder(f"trial {self.task.number}", key, num_steps, log_rows)
        plain = vars(inputs.task(self.recipe))
        task = WorkersTask(**plain, store=self.task.store, folder=self.task.folder)
        _workers_left.clear()
        try:
            with ThreadPoolExecutor(1) as executor:
                training = executor.submit(train, task, checkpoints, forwarder)
                try:
                    while not wait([training], POLL_S).done:
                        self.report(before=self._before + num_steps)
                except BaseException:  # Tune stops the trial by an exception from its report
                    forwarder.stop()
                    raise
            training.result()
        finally:
            _workers_left.set()


class ReportingCheckpointManager(LocalCheckpointManager):
    """Reports validations to Tune when their checkpoint is kept."""

    def __init__(self, checkpoints: Checkpoints, run: TrialRun) -> None:
        super().__init__(checkpoints)
        self._run = run

    def save(self, net: FCN, optimizer: Optimizer, state: TrainState) -> None:
        """Keep a checkpoint, then report."""
        super().save(net, optimizer, state)
        self._run.report()


@dataclass(frozen=True)
class WorkersTask(TrainingTask):
    """What the workers of a trial train; they note which placement group is theirs."""

    store: Store | None = None
    folder: str = ""

    def trainer(self, context: DistContext, *args: Any, **kwargs: Any) -> Trainer:  # noqa: ANN401 - as its base
        """The training loop of one worker."""
        group = get_current_placement_group()
        if context.rank == 0 and group is not None and self.store is not None:
            name = f"{self.folder}/{PLACEMENT_GROUP}.json"
            self.store.write_json(name, {"id": group.id.hex()})
        return super().trainer(context, *args, **kwargs)
