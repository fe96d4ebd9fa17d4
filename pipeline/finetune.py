"""Stage 3: distributed data-parallel fine-tuning of one phase with Ray Train."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray.train as train
from pydantic import BaseModel
from ray.train import Checkpoint, CheckpointConsistencyMode
from ray.train.torch import TorchTrainer, get_device
from torch.optim import Optimizer

from fcn.nets import FCN
from fcn.weights import ABOUT, NET
from pipeline.checkpoints import Cursor, load_state, save_state
from pipeline.cluster import run_config, scaling, set_threads
from pipeline.errors import ClusterError, PipelineError, TrainingError
from pipeline.loop import Metrics, Phase, Team
from pipeline.recipe import Recipe
from pipeline.sampler import steps_per_epoch
from pipeline.shards import Shards
from pipeline.specs import PhaseSpec
from pipeline.store import Store
from pipeline.surgery import require_receipt, start_net
from pipeline.telemetry import Sink, Watcher


@dataclass(frozen=True)
class Job:
    """What a phase works on."""

    phase: PhaseSpec
    train: list[Path]
    val: list[Path]
    num_train: int
    start: Path | None
    """Folder of the net to start from; None is scratch."""
    receipt: Path | None
    """Folder of the transplant whose receipt must hold; None for scratch and later phases."""


class TrainedNet(BaseModel):
    """What a phase leaves behind: its best net by validation."""

    folder: Path
    steps: int
    metrics: dict[str, float]
    """Of the validation at which the net was the best."""


class RayKeeper:
    """Checkpoints through Ray Train: rank 0 writes, all wait until Ray has committed."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def restore(self, net: FCN, optimizer: Optimizer) -> Cursor:
        """From the newest checkpoint that Ray has committed."""
        checkpoint = train.get_checkpoint()
        if checkpoint is None:
            return Cursor()
        with checkpoint.as_directory() as folder:
            return load_state(Path(folder), net, optimizer)

    def save(self, net: FCN, optimizer: Optimizer, cursor: Cursor, metrics: Metrics) -> None:
        """Report a checkpoint; a report that returned is not yet committed, so ask."""
        scores = {**metrics, "step": float(cursor.step)}
        with tempfile.TemporaryDirectory() as scratch:
            checkpoint = None
            if self.rank == 0:
                save_state(Path(scratch), net, optimizer, cursor)
                checkpoint = Checkpoint.from_directory(scratch)
            train.report(scores, checkpoint=checkpoint)
            train.get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED)


def train_worker(config: dict[str, Any]) -> Metrics | str:
    """What Ray starts on each device; returns the last metrics, or why training cannot go on."""
    recipe = Recipe.model_validate(config["recipe"])
    context = train.get_context()
    set_threads(recipe.cluster.cpus_per_worker)
    telemetry = config["telemetry"]
    phase = Phase(
        net=start_net(recipe, config["phase"]["stride"], config["start"]),
        spec=recipe.finetune,
        phase=PhaseSpec(**config["phase"]),
        seed=recipe.seed,
        train=Shards(config["train"]),
        val=Shards(config["val"]),
        team=Team(context.get_world_rank(), context.get_world_size(), get_device()),
        num_loaders=recipe.cluster.loader_workers,
        emit=lambda step, metrics: telemetry.push.remote([(step, metrics)]),
    )
    try:
        return phase.run(RayKeeper(phase.team.rank))
    except TrainingError as error:
        # Raised by all workers at the same step, and again if Ray tried again: so no failure to Ray.
        return str(error)


def run(
    recipe: Recipe, store: Store, key: str, job: Job, sink: Sink = lambda rows: None
) -> TrainedNet:
    """Train a phase to its end, from its last checkpoint if it was begun before.

    Raises:
        WeightsError: the start has no receipt that matches it.
        TrainingError: the loss is not finite.
        ClusterError: workers were lost more often than cluster.max_failures allows.
    """
    if job.receipt is not None:
        require_receipt(job.receipt)
    steps = job.phase.epochs * steps_per_epoch(job.num_train, recipe.finetune.global_batch)
    watcher = Watcher(f"FCN-{job.phase.stride}s", key, steps, sink)
    trainer = TorchTrainer(
        train_worker,  # type: ignore[arg-type]  # what it returns is result.return_value
        train_loop_config={
            "recipe": recipe.plain(),
            "phase": job.phase.model_dump(),
            "start": job.start,
            "train": job.train,
            "val": job.val,
            "telemetry": watcher.telemetry,
        },
        scaling_config=scaling(recipe.cluster),
        run_config=run_config(recipe.cluster, store.root / "runs" / recipe.name, key),
    )
    with watcher:
        result = _fit(trainer)
    if isinstance(result.return_value, str):
        raise TrainingError(result.return_value)
    best, metrics = max(result.best_checkpoints or [], key=lambda pair: pair[1]["val/mean_iu"])
    return _publish(recipe, store, key, best, metrics)


def _fit(trainer: TorchTrainer) -> Any:  # noqa: ANN401 - its types are those of the first Ray Train
    try:
        return trainer.fit()
    except train.WorkerGroupError as error:
        ours = [e for e in error.worker_failures.values() if isinstance(e, PipelineError)]
        if ours:
            raise ours[0] from error
        raise ClusterError(f"the workers failed too often: {error}") from error
    except train.TrainingFailedError as error:
        raise ClusterError(f"Ray could not train: {error}") from error


def _publish(
    recipe: Recipe, store: Store, key: str, best: Checkpoint, metrics: dict[str, Any]
) -> TrainedNet:
    """The best checkpoint's net, with its classes, apart from what training needs."""
    trained = TrainedNet(
        folder=store.folder("nets", key),
        steps=int(metrics["step"]),
        metrics={k: float(v) for k, v in metrics.items() if k.startswith("val/")},
    )
    manifest = trained.model_dump(mode="json")
    with store.publish("nets", key, manifest) as draft, best.as_directory() as source:
        shutil.copy(Path(source) / NET, draft / NET)
        about = json.loads((Path(source) / ABOUT).read_text())
        about |= {"classes": asdict(recipe.data.class_table()), "recipe": recipe.name}
        (draft / ABOUT).write_text(json.dumps(about, indent=1))
    return trained
