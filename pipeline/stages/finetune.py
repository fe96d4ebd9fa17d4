"""Stage 3: distributed data-parallel fine-tuning of one phase."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fcn.images import AS_STORED, InputRule
from fcn.nets import FCN
from fcn.weights import save_net
from pipeline import signals
from pipeline.config.recipe import Recipe
from pipeline.config.schema import PhaseSpec, Split, Stride
from pipeline.data.shards import Shards
from pipeline.results import TrainedNet
from pipeline.storage.store import File, Store
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.model import blueprint, require_normalisable, require_receipt
from pipeline.training.progress import LogRows, MetricsForwarder
from pipeline.training.ray_train import TrainingTask, train
from pipeline.training.state import HISTORY, read_best, step_of


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
    """Number of rows of each shard, by split, where they are known without opening any."""
    input: InputRule = AS_STORED
    """How the images were read; kept with the net."""

    def steps(self, recipe: Recipe) -> int:
        """Optimiser steps to the end of the phase."""
        return recipe.num_steps(self.phase, self.num_train)

    def task(self, recipe: Recipe, until: int | None = None) -> TrainingTask:
        """The phase as workers train it, up to a step or to its end."""
        train = Shards(self.train, self.rows.get("train"))
        val = Shards(self.val, self.rows.get("val"))
        return TrainingTask(recipe, self.phase, self.start, train, val, until)


def run(
    recipe: Recipe,
    store: Store,
    key: str,
    inputs: FinetuneInputs,
    log_rows: LogRows = lambda rows: None,
) -> TrainedNet:
    """Train a phase to its end, from its last checkpoint if it was begun before.

    Raises:
        WeightsError: the start has no receipt that matches it.
        StoppedError: a signal came; what was done is in a checkpoint.
        TrainingError, ClusterError, StoreError: as `ray_train.train` does.
    """
    require_normalisable(recipe, inputs.num_train)
    if inputs.receipt is not None:
        require_receipt(inputs.receipt)
    num_steps = inputs.steps(recipe)
    validations = math.ceil(inputs.phase.epochs / recipe.finetune.validate_every_epochs)
    forwarder = MetricsForwarder(
        f"FCN-{inputs.phase.stride}s", key, num_steps, log_rows, validations
    )
    with signals.deferred(forwarder.stop) as asked:
        checkpoints = Checkpoints.of_run(store, recipe.name, key)
        last = train(inputs.task(recipe), checkpoints, forwarder)
    if (done := step_of(last)) < num_steps:
        raise asked.error(
            f"after step {done} of {num_steps}, which is in a checkpoint; the same command goes on"
        )
    return publish(recipe, store, key, inputs.phase.stride, last, inputs.input)


def publish(
    recipe: Recipe, store: Store, key: str, stride: Stride, last: Path, rule: InputRule
) -> TrainedNet:
    """Publish the best net of a checkpoint, with its classes and the history of its training."""
    best = read_best(last)
    assert best is not None
    facts = {"steps": best.step, "metrics": best.metrics}
    with store.publish("nets", key, facts) as draft:
        net = FCN(blueprint(recipe, stride))
        net.load_state_dict(best.weights)
        about = {"classes": asdict(recipe.data.class_table()), "recipe": recipe.name}
        if rule != AS_STORED:
            about["input"] = asdict(rule)
        save_net(draft, net, **about)
        shutil.copy(last / HISTORY, draft / HISTORY)
    return TrainedNet(folder=draft, steps=best.step, metrics=best.metrics)
