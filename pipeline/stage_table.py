"""The stages as one table: what each reads, how it is started, what it leaves behind.

From this table derive the flow, the verbs of the command line, the store's folders and their cleaning.
Stages are imported when they run: whoever only looks at the table needs no torch, ray or mlflow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from pipeline.config.recipe import Recipe
from pipeline.config.schema import PhaseSpec
from pipeline.results import (
    QUARANTINE,
    REPORT,
    Dataset,
    Evaluation,
    Registered,
    TrainedNet,
    Transplanted,
)
from pipeline.storage.store import Store

if TYPE_CHECKING:
    from pipeline.flow import Flow


@dataclass(frozen=True)
class Stage:
    """A row of the table. A new stage is a row, a module in `stages/` and a class in `results`."""

    name: str
    folder: str
    """Where its results lie in the store."""
    version: int
    """Raised when the stage would compute something else from the same inputs."""
    reads: Callable[[Recipe, Store, PhaseSpec], object]
    """The parts of the recipe, and of the world outside it, that decide its result."""
    run: Callable[[Flow, Step], object]
    """Compute and publish the result of a step."""
    result: type[BaseModel]
    help: str
    files: tuple[str, ...] = ()
    """Files of its result that the driver needs; all of them if none is named."""


@dataclass(frozen=True)
class Step:
    """A stage, or a phase of the fine-tuning, in one flow."""

    stage: Stage
    name: str
    key: str
    needs: tuple[str, ...]
    """Names of the steps whose results it uses."""
    phase: PhaseSpec

    @property
    def is_phase(self) -> bool:
        """Whether it is a phase of the fine-tuning."""
        return self.stage.name == "finetune"


def _ingest_reads(recipe: Recipe, store: Store, phase: PhaseSpec) -> object:
    from pipeline.data.sources import open_source

    data = recipe.plain()["data"]
    science = {k: v for k, v in data.items() if k not in ("root", "max_quarantined_frac")}
    return [science, open_source(recipe).state()]


def _net_reads(recipe: Recipe) -> object:
    return [recipe.plain()["net"], recipe.data.class_table().names, recipe.seed]


def _transplant_reads(recipe: Recipe, store: Store, phase: PhaseSpec) -> object:
    """The weights count as what they are now; an alias counts as the version that it names now."""
    from pipeline.training.pretrained import require_section, source_state

    weights = require_section(recipe).weights
    if weights.startswith("models:/"):
        from pipeline.tracking.registry import open_registry

        state = open_registry(recipe.tracking, store.cache).resolve(weights)
    else:
        state = source_state(recipe, store)
    return [_net_reads(recipe), recipe.plain()["transplant"], phase.stride, state]


def _finetune_reads(recipe: Recipe, store: Store, phase: PhaseSpec) -> object:
    tune = recipe.plain()["finetune"]
    science = {k: v for k, v in tune.items() if k not in ("epochs", "phases")}
    return [_net_reads(recipe), science, phase.model_dump()]


def _evaluate_reads(recipe: Recipe, store: Store, phase: PhaseSpec) -> object:
    return recipe.plain()["evaluate"]


def _register_reads(recipe: Recipe, store: Store, phase: PhaseSpec) -> object:
    plain = recipe.plain()
    tracking = {key: plain["tracking"][key] for key in ("uri", "experiment")}
    return [plain["register"], recipe.name, tracking]


def _run_ingest(flow: Flow, step: Step) -> None:
    from pipeline.stages import ingest

    ingest.run(flow.recipe, flow.store, step.key)


def start_transplant(flow: Flow, step: Step) -> Any:  # noqa: ANN401 - Ray's reference to a Transplanted
    """The transplant as a Ray task."""
    import ray

    from pipeline.stages import transplant

    return ray.remote(transplant.run).remote(flow.recipe, flow.store, step.key)


def _run_transplant(flow: Flow, step: Step) -> None:
    from pipeline import cluster

    cluster.get(start_transplant(flow, step))


def _run_finetune(flow: Flow, step: Step) -> None:
    from pipeline.stages import finetune

    assert flow.logger is not None
    data: Dataset = flow.result("ingest")
    start = [name for name in step.needs if name != "ingest"]
    inputs = finetune.FinetuneInputs(
        phase=step.phase,
        train=flow.shards("train"),
        val=flow.shards("val"),
        num_train=data.counts["train"],
        start=flow.stored(start[0]) if start else None,
        receipt=flow.result("transplant").folder if start == ["transplant"] else None,
        rows={split: data.shard_rows(split) for split in data.files},
        input=data.input_rule(),
    )
    with flow.logger.phase(step.name, step.key) as log_rows:
        finetune.run(flow.recipe, flow.store, step.key, inputs, log_rows)


def _run_evaluate(flow: Flow, step: Step) -> None:
    from pipeline.data.shards import Shards
    from pipeline.stages import evaluate

    data: Dataset = flow.result("ingest")
    split = flow.recipe.evaluate.split
    shards = Shards(flow.shards(split), data.shard_rows(split))
    evaluate.run(flow.recipe, flow.store, step.key, flow.stored(step.needs[-1]), shards)


def _run_register(flow: Flow, step: Step) -> None:
    from pipeline.stages import register

    assert flow.logger is not None
    scores, net = flow.result(step.needs[0]), flow.result(step.needs[1])
    name = flow.recipe.register_as.model or flow.recipe.name
    with flow.logger.registering() as (registry, run_id):
        done = register.run(registry, run_id, name, net.folder, scores)
    with flow.store.publish(step.stage.folder, step.key, done.model_dump(mode="json")):
        pass
    flow.logger.note(scores, done.sentence())


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            *("ingest", "datasets", 3, _ingest_reads, _run_ingest, Dataset),
            help="Check every sample of the data set and write the accepted ones as Arrow shards.",
            files=(QUARANTINE, REPORT),  # shards stay where they are until somebody reads them
        ),
        Stage(
            *("transplant", "weights", 2, _transplant_reads, _run_transplant, Transplanted),
            help="Put pretrained weights into the net, prove it, and print the receipt.",
        ),
        Stage(
            *("finetune", "nets", 2, _finetune_reads, _run_finetune, TrainedNet),
            help="Train all phases, after the stages before it.",
        ),
        Stage(
            *("evaluate", "scores", 2, _evaluate_reads, _run_evaluate, Evaluation),
            help="Score a whole split and draw predictions, after the stages before it.",
        ),
        Stage(
            *("register", "models", 1, _register_reads, _run_register, Registered),
            help="Register the model and let the gate decide, after the stages before it.",
        ),
    )
}
"""All stages by name, in the order in which they run."""
