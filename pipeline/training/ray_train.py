"""One phase trained by the workers of Ray Train, with checkpoints that outlive them."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.train
from ray.train import Checkpoint, CheckpointConsistencyMode, CheckpointUploadMode
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchTrainer, get_device
from torch.optim import Optimizer

from fcn.nets import FCN
from pipeline.cluster import (
    cause_in_words,
    run_config,
    scaling,
    set_threads,
    start_timeout_in_words,
)
from pipeline.config.recipe import Recipe
from pipeline.config.schema import ClusterSpec, PhaseSpec
from pipeline.data.shards import Shards, fetch_ahead
from pipeline.errors import (
    ClusterError,
    PipelineError,
    StoreError,
    SupersededError,
    TrainingError,
)
from pipeline.storage.disk import says_full
from pipeline.storage.scratch import private_folder
from pipeline.storage.store import File, fingerprint
from pipeline.training.checkpoint import KEPT, Checkpoints, ControlAction
from pipeline.training.distributed import DistContext
from pipeline.training.gauges import WorkerGauges
from pipeline.training.model import start_net
from pipeline.training.progress import MetricsForwarder, Worker
from pipeline.training.state import Row, TrainState, load_state, save_state, step_of
from pipeline.training.trainer import StepTiming, Trainer

log = logging.getLogger(__name__)

T = TypeVar("T")

POLL_EVERY_S = 5.0
"""How often a training asks Ray whether one of its nodes is about to be taken away."""


@dataclass(frozen=True)
class TrainingTask:
    """What is trained: one phase of a recipe, on shards, from a net. It pickles."""

    recipe: Recipe
    phase: PhaseSpec
    start: File | None
    """Folder of the net to start from; None is scratch."""
    train: Shards
    val: Shards
    until: int | None = None
    """The step after which the training stops; None is the end of the phase."""

    def scaling(self) -> ray.train.ScalingConfig:
        """How many workers there are, and what each of them takes."""
        return scaling(self.recipe.cluster)

    def trainer(
        self,
        context: DistContext,
        log_rows: Callable[[list[Row]], None],
        log_timing: Callable[[StepTiming], None] = lambda timing: None,
    ) -> Trainer:
        """The training loop of one worker."""
        return Trainer(
            net=start_net(self.recipe, self.phase.stride, self.start),
            spec=self.recipe.finetune,
            phase=self.phase,
            seed=self.recipe.seed,
            train=self.train,
            val=self.val,
            context=context,
            num_loaders=self.recipe.cluster.loader_workers,
            log_rows=log_rows,
            log_timing=log_timing,
        )


class RayCheckpointManager:
    """What a Trainer needs of checkpoints: rank 0 writes, Ray carries them to the store meanwhile."""

    def __init__(
        self,
        rank: int,
        checkpoints: Checkpoints,
        until: int | None,
        metrics_actor: Any,  # noqa: ANN401 - Ray's handle
    ) -> None:
        self.rank, self.checkpoints, self.until = rank, checkpoints, until
        self.metrics_actor = metrics_actor
        self._answer: Any = None
        """Ray's reference to whether the driver wants the workers to stop."""
        self._polled = time.monotonic()
        self._heeded: Any = None
        """The notice of a node's end that the last checkpoint was written for."""
        # What a killed worker left half written on this machine takes room on its disk, no more.
        scratch = private_folder() / f"checkpoint-{fingerprint(str(checkpoints))}"
        if rank == 0:
            shutil.rmtree(scratch, ignore_errors=True)
        self._scratch = scratch / (checkpoints.attempt or "")

    def restore(self, net: FCN, optimizer: Optimizer) -> TrainState:
        """Go on from the newest sound checkpoint; rank 0 looks for it, so that all take the same."""
        found, complaints = self.checkpoints.newest() if self.rank == 0 else (None, [])
        for complaint in complaints:
            self.metrics_actor.warn.remote(complaint)
        name = broadcast_from_rank_zero(found and f"{found.parent.name}/{found.name}")
        if name is None:
            return TrainState()
        return load_state(self.checkpoints.localize(name), net, optimizer)

    def save(self, net: FCN, optimizer: Optimizer, state: TrainState) -> None:
        """Write a checkpoint here; Ray copies it while training goes on, one at a time.

        Raises:
            SupersededError: on all workers, if a later attempt has taken the training over.
        """
        if superseded := broadcast_from_rank_zero(self._why_superseded()):
            raise SupersededError(superseded)
        checkpoint = None
        if self.rank == 0:
            self._wait_for_upload()  # two at once would take twice the room
            folder = self._scratch / str(state.step)
            folder.mkdir(parents=True)
            save_state(folder, net, optimizer, state)
            checkpoint = Checkpoint.from_directory(folder)
        ray.train.report(
            {"step": float(state.step)},
            checkpoint=checkpoint,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        )

    def close(self) -> None:
        """When the training has ended: let Ray carry away what it still has to, and leave nothing."""
        if self.rank == 0:
            self._wait_for_upload()
            shutil.rmtree(self._scratch, ignore_errors=True)
            with suppress(OSError):  # another attempt may be at work beside this one
                self._scratch.parent.rmdir()

    def _wait_for_upload(self) -> None:
        ray.train.get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED)

    def log_rows(self, rows: list[Row]) -> None:
        """Send metrics, from rank 0; the answer is looked at when it has come."""
        self._answer = self.metrics_actor.push.remote(rows)

    def noticed(self, step: int) -> bool:
        """Far enough, the driver wants to stop, or it is time to ask whether a node is about to go."""
        if step == self.until:
            return True
        if self._answer is None:
            return False
        late = time.monotonic() - self._polled > POLL_EVERY_S
        return late or (bool(ray.wait([self._answer], timeout=0)[0]) and ray.get(self._answer))

    def poll(self, step: int) -> ControlAction:
        """Stop if far enough or if the driver says so; save, once, if a node has been given notice."""
        if step == self.until:
            return "stop"
        self._polled = time.monotonic()
        if broadcast_from_rank_zero(self._answer is not None and ray.get(self._answer)):
            return "stop"
        notice = ray.train.get_preemption_info()
        if notice == self._heeded:
            return "continue"
        self._heeded = notice
        return "save" if notice else "continue"

    def _why_superseded(self) -> str | None:
        try:
            if self.rank == 0:
                self.checkpoints.check()
        except SupersededError as error:
            return str(error)
        return None


def train_worker(config: dict[str, Any]) -> int | PipelineError:
    """What Ray starts on each device; returns the steps done, or why training cannot go on."""
    task: TrainingTask = config["task"]
    metrics_actor, recipe = config["metrics_actor"], task.recipe
    set_threads(recipe.cluster.cpus_per_worker)
    ray_context = ray.train.get_context()
    context = DistContext(ray_context.get_world_rank(), ray_context.get_world_size(), get_device())
    node = ray.get_runtime_context().get_node_id()
    metrics_actor.join.remote(Worker(context.rank, node, os.getpid()), context.size)
    manager = RayCheckpointManager(context.rank, config["checkpoints"], task.until, metrics_actor)
    fetch_ahead(task.train, task.val)
    gauges = WorkerGauges(recipe.name, f"finetune-{task.phase.stride}s", context)
    try:
        done = task.trainer(context, manager.log_rows, gauges.show).run(manager).step
        manager.close()
        return done
    except (TrainingError, SupersededError) as error:
        # Raised by all workers at the same step, and again if Ray tried again: so it is no failure to
        # Ray, which would start the workers once more.
        return error


def train(task: TrainingTask, checkpoints: Checkpoints, forwarder: MetricsForwarder) -> Path:
    """Train until the task's step or until asked to stop; the checkpoint of where that was.

    Raises:
        TrainingError: a loss, a gradient or a weight is not finite.
        ClusterError: workers were lost more often than cluster.max_failures allows.
        SupersededError: a later attempt of the same training has taken it over.
        StoreError: the disk is full.
    """
    checkpoints.claim()
    for complaint in checkpoints.tidy():
        log.warning("%s", complaint)
    folder, filesystem = checkpoints.ray_storage()
    trainer = TorchTrainer(
        train_worker,  # type: ignore[arg-type]  # what it returns is result.return_value
        train_loop_config={
            "task": task,
            "checkpoints": checkpoints,
            "metrics_actor": forwarder.actor,
        },
        scaling_config=task.scaling(),
        run_config=run_config(task.recipe.cluster, folder, KEPT, filesystem),
    )
    with forwarder:
        done = _fit(trainer, checkpoints, task.recipe.cluster).return_value
    if isinstance(done, PipelineError):
        raise done
    checkpoints.check()
    last, _ = checkpoints.newest()
    if last is None or step_of(last) < done:
        raise ClusterError(
            f"the checkpoint of step {done} did not reach {checkpoints}; the same command goes on from "
            "the one before"
        )
    return last


def _in_thread(call: Callable[[], T]) -> T:
    """In the main thread Ray Train would take Ctrl-C for itself, and keep it."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised in the main thread
            outcome.set_exception(error)

    threading.Thread(target=run, name="fit", daemon=True).start()
    return outcome.result()


def _fit(trainer: TorchTrainer, checkpoints: Checkpoints, spec: ClusterSpec) -> Any:  # noqa: ANN401 - its types are those of the first Ray Train
    try:
        return _in_thread(trainer.fit)
    except ray.train.WorkerGroupError as error:
        # What a worker's own code raised comes wrapped, with its traceback as its words.
        causes = [getattr(e, "_base_exc", e) for e in error.worker_failures.values()]
        ours = [e for e in causes if isinstance(e, PipelineError)]
        if ours:
            raise ours[0] from error
        if any(says_full(e) for e in (*causes, *error.worker_failures.values())):
            raise StoreError(
                f"no room for a checkpoint in {checkpoints} or {tempfile.gettempdir()}; free some "
                "(`fcn-pipeline gc` shows what nothing refers to) and type the same command again: it "
                "goes on from the last checkpoint"
            ) from error
        raise ClusterError(
            f"the workers failed too often (cluster.max_failures={spec.max_failures}): "
            f"{min(map(cause_in_words, causes))}"
        ) from error
    except ray.train.ControllerError as error:
        if "WorkerGroupStartupTimeoutError" in type(error.controller_failure).__name__:
            raise ClusterError(start_timeout_in_words(spec)) from error
        why = cause_in_words(error.controller_failure)
        raise ClusterError(f"Ray could not train: {why}") from error
    except ray.exceptions.RayActorError as error:
        raise ClusterError(f"Ray Train's controller was lost: {cause_in_words(error)}") from error
