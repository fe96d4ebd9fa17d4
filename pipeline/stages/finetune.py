"""Stage 3: distributed data-parallel fine-tuning of one phase with Ray Train."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import ray
import ray.train as train
from ray.train import Checkpoint, CheckpointConsistencyMode, CheckpointUploadMode
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchTrainer, get_device
from torch.optim import Optimizer

from fcn.nets import FCN
from fcn.weights import save_net
from pipeline.cluster import run_config, scaling, set_threads
from pipeline.config.recipe import Recipe
from pipeline.config.schema import PhaseSpec, Split, Stride
from pipeline.data.sampler import steps_per_epoch
from pipeline.data.shards import Shards
from pipeline.errors import ClusterError, PipelineError, StoppedError, StoreError, TrainingError
from pipeline.results import TrainedNet
from pipeline.storage.disk import says_full
from pipeline.storage.store import File, Store, fingerprint
from pipeline.training.checkpoint import (
    HISTORY,
    KEPT,
    Row,
    TrainState,
    load_state,
    read_best,
    save_state,
    step_of,
)
from pipeline.training.gauges import WorkerGauges
from pipeline.training.model import blueprint, require_receipt, start_net
from pipeline.training.progress import LogRows, MetricsForwarder, Worker
from pipeline.training.trail import Trail, trail_of
from pipeline.training.trainer import ControlAction, DistContext, Trainer

log = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
"""How often a training asks Ray whether one of its nodes is about to be taken away."""


@dataclass(frozen=True)
class FinetuneInputs:
    """What a phase works on."""

    phase: PhaseSpec
    train: Sequence[File]
    val: Sequence[File]
    num_train: int
    start: File | None
    """Folder of the net to start from; None is scratch."""
    receipt: Path | None
    """Folder of the transplant whose receipt must hold; None for scratch and later phases."""
    rows: Mapping[Split, Sequence[int]] = field(default_factory=dict)
    """Of each shard, by split, where they are known without opening any."""

    def steps(self, recipe: Recipe) -> int:
        """Optimiser steps to its end."""
        return self.phase.epochs * steps_per_epoch(self.num_train, recipe.finetune.global_batch)


class RayCheckpointManager:
    """Checkpoints through Ray Train: rank 0 writes, Ray carries them to the store meanwhile."""

    def __init__(self, rank: int, trail: Trail, until: int | None, telemetry: Any) -> None:  # noqa: ANN401 - Ray's handle
        self.rank, self.trail, self.until, self.telemetry = rank, trail, until, telemetry
        self._coming = 0
        self._answer: Any = None
        self._looked = time.monotonic()
        self._heeded: Any = None
        # What a killed worker left half written on this machine is in nobody's way but the disk's.
        self._scratch = Path(tempfile.gettempdir()) / f"fcn-checkpoint-{fingerprint(str(trail))}"
        if rank == 0:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def restore(self, net: FCN, optimizer: Optimizer) -> TrainState:
        """From the newest checkpoint that is sound; rank 0 looks, so that all take the same."""
        found, complaints = self.trail.newest() if self.rank == 0 else (None, [])
        for complaint in complaints:
            self.telemetry.say.remote(complaint)
        name = broadcast_from_rank_zero(found and found.name)
        cursor = load_state(self.trail.local(name), net, optimizer) if name else TrainState()
        self._coming = cursor.step
        return cursor

    def save(self, net: FCN, optimizer: Optimizer, cursor: TrainState) -> None:
        """Write it here; Ray copies it to the store while training goes on, one at a time."""
        checkpoint = None
        if self.rank == 0:
            train.get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED)
            folder = self._scratch / str(cursor.step)
            folder.mkdir(parents=True)
            save_state(folder, net, optimizer, cursor)
            checkpoint = Checkpoint.from_directory(folder)
        train.report(
            {"step": float(cursor.step)},
            checkpoint=checkpoint,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        )

    def tell(self, rows: list[Row]) -> None:
        """Metrics, from rank 0; the answer is looked at when it has come."""
        self._answer = self.telemetry.push.remote(rows)

    def noticed(self) -> bool:
        """The driver wants to leave, it is time to look whether a node is about to go, or far enough."""
        self._coming += 1
        if self._coming == self.until:
            return True
        if self._answer is None:
            return False
        late = time.monotonic() - self._looked > LOOK_EVERY_S
        return late or (bool(ray.wait([self._answer], timeout=0)[0]) and ray.get(self._answer))

    def wish(self) -> ControlAction:
        """Leave if far enough or if the driver says so; save, once, if a node has been given notice."""
        if self._coming == self.until:
            return "leave"
        self._looked = time.monotonic()
        if broadcast_from_rank_zero(self._answer is not None and ray.get(self._answer)):
            return "leave"
        notice = train.get_preemption_info()
        if notice == self._heeded:
            return "go on"
        self._heeded = notice
        return "save" if notice else "go on"


def train_worker(config: dict[str, Any]) -> int | str:
    """What Ray starts on each device; returns the steps done, or why training cannot go on."""
    recipe = Recipe.model_validate(config["recipe"])
    context = train.get_context()
    set_threads(recipe.cluster.cpus_per_worker)
    telemetry = config["telemetry"]
    team = DistContext(context.get_world_rank(), context.get_world_size(), get_device())
    node = ray.get_runtime_context().get_node_id()
    telemetry.here.remote(Worker(team.rank, node, os.getpid()), team.size)
    keeper = RayCheckpointManager(team.rank, config["trail"], config["until"], telemetry)
    phase = Trainer(
        net=start_net(recipe, config["phase"]["stride"], config["start"]),
        spec=recipe.finetune,
        phase=PhaseSpec(**config["phase"]),
        seed=recipe.seed,
        train=config["train"],
        val=config["val"],
        team=team,
        num_loaders=recipe.cluster.loader_workers,
        emit=keeper.tell,
        watch=WorkerGauges(recipe.name, f"finetune-{config['phase']['stride']}s", team).show,
    )
    try:
        return phase.run(keeper).step
    except TrainingError as error:
        # Raised by all workers at the same step, and again if Ray tried again: so no failure to Ray.
        return str(error)


def run(
    recipe: Recipe, store: Store, key: str, job: FinetuneInputs, sink: LogRows = lambda rows: None
) -> TrainedNet:
    """Train a phase to its end, from its last checkpoint if it was begun before.

    Raises:
        WeightsError: the start has no receipt that matches it.
        TrainingError: the loss is not finite.
        ClusterError: workers were lost more often than cluster.max_failures allows.
        StoreError: the disk is full.
        StoppedError: SIGTERM came; what was done is in a checkpoint.
    """
    if job.receipt is not None:
        require_receipt(job.receipt)
    watcher = MetricsForwarder(f"FCN-{job.phase.stride}s", key, job.steps(recipe), sink)
    with _checkpoint_on_sigterm(watcher):
        last = train_until(None, recipe, job, trail_of(store, recipe.name, key), watcher)
    if (done := step_of(last)) < job.steps(recipe):
        raise StoppedError(
            f"stopped after step {done} of {job.steps(recipe)}, which is in a checkpoint; the same "
            "command goes on"
        )
    return publish(recipe, store, key, job.phase.stride, last)


def train_until(
    until: int | None, recipe: Recipe, job: FinetuneInputs, trail: Trail, watcher: MetricsForwarder
) -> Path:
    """Train up to a step (None: the end) or until asked to leave; the checkpoint of where that was.

    Raises:
        TrainingError, ClusterError, StoreError: as `run` does.
    """
    for complaint in trail.tidy():
        log.warning("%s", complaint)
    trainer = TorchTrainer(
        train_worker,  # type: ignore[arg-type]  # what it returns is result.return_value
        train_loop_config={
            "recipe": recipe.plain(),
            "phase": job.phase.model_dump(),
            "start": job.start,
            "train": Shards(job.train, job.rows.get("train")),
            "val": Shards(job.val, job.rows.get("val")),
            "telemetry": watcher.telemetry,
            "trail": trail,
            "until": until,
        },
        scaling_config=scaling(recipe.cluster),
        run_config=run_config(recipe.cluster, trail.place, KEPT, trail.filesystem),
    )
    with watcher:
        done = _fit(trainer, trail).return_value
    if isinstance(done, str):
        raise TrainingError(done)
    last, _ = trail.newest()
    if last is None or step_of(last) < done:
        raise ClusterError(
            f"the checkpoint of step {done} did not reach {trail}; the same command goes on from the "
            "one before"
        )
    return last


def _fit(trainer: TorchTrainer, trail: Trail) -> Any:  # noqa: ANN401 - its types are those of the first Ray Train
    try:
        return trainer.fit()
    except train.WorkerGroupError as error:
        ours = [e for e in error.worker_failures.values() if isinstance(e, PipelineError)]
        if ours:
            raise ours[0] from error
        if any(says_full(e) for e in error.worker_failures.values()):
            raise StoreError(
                f"no room for a checkpoint in {trail} or {tempfile.gettempdir()}; free some "
                "(`fcn-pipeline gc` shows what nothing refers to) and type the same command again: it "
                "goes on from the last checkpoint"
            ) from error
        raise ClusterError(f"the workers failed too often: {error}") from error
    except train.TrainingFailedError as error:
        raise ClusterError(f"Ray could not train: {error}") from error
    except ray.exceptions.RayActorError as error:
        raise ClusterError(
            f"Ray Train's controller was lost: {error}; the same command goes on from its checkpoint"
        ) from error


@contextmanager
def _checkpoint_on_sigterm(watcher: MetricsForwarder) -> Iterator[None]:
    """A machine to be taken away and `ray job stop` send SIGTERM; a second one does not wait."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, before)
        watcher.leave()

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def publish(recipe: Recipe, store: Store, key: str, stride: Stride, last: Path) -> TrainedNet:
    """The best net, with its classes and the history of its training, apart from what training needs."""
    best = read_best(last)
    assert best is not None
    manifest: dict[str, Any] = {}
    with store.publish("nets", key, manifest) as draft:
        net = FCN(blueprint(recipe, stride))
        net.load_state_dict(best.weights)
        save_net(draft, net, classes=asdict(recipe.data.class_table()), recipe=recipe.name)
        shutil.copy(last / HISTORY, draft / HISTORY)
        trained = TrainedNet(folder=draft, steps=best.step, metrics=best.metrics)
        manifest |= trained.model_dump(mode="json")
    return trained
