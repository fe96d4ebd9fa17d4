"""The stages and their order; what is there already is not computed again.

    ingest ─────────┐
                    ├─> finetune (32s -> 16s -> 8s) ─> evaluate ─> register
    transplant ─────┘

A step's fingerprint is the hash of its stage's version, of the parts of the recipe that it reads and
of its inputs' fingerprints. Its result lies in the store under that fingerprint, or does not exist.
Flows that want the same result at the same time compute it once: the others wait for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from pipeline.config.recipe import Recipe
from pipeline.config.schema import PhaseSpec, Split
from pipeline.results import Dataset, Evaluation, Registered, TrainedNet, Transplanted
from pipeline.storage.cache import MirroredStore, open_store
from pipeline.storage.store import KINDS, Mark, Place, Store, fingerprint

if TYPE_CHECKING:  # at run time each stage is imported when it runs: `plan` needs no torch or ray
    from pipeline.storage.locks import Lock
    from pipeline.tracking.run_logger import FlowLogger, RunLogger

log = logging.getLogger(__name__)

VERSIONS = {"ingest": 1, "transplant": 1, "finetune": 1, "evaluate": 1, "register": 1}
"""Raised when a stage would compute something else from the same inputs."""
STAGES = tuple(VERSIONS)

Result = TypeVar("Result", bound=BaseModel)


@dataclass(frozen=True)
class Step:
    """A stage, or a phase of the fine-tuning, in one flow."""

    stage: str
    name: str
    key: str
    needs: tuple[str, ...]
    phase: PhaseSpec | None = None

    @property
    def kind(self) -> str:
        """The store's folder for such results."""
        return KINDS[self.stage]


def plan(recipe: Recipe, store: Store) -> list[Step]:
    """The steps of a flow with their fingerprints, in order; nothing is run.

    Raises:
        DataError: the data set is not where the recipe says.
        WeightsError, TrackingError: nor are the weights.
    """
    from pipeline.data import sources

    plain = recipe.plain()
    steps: list[Step] = []

    def add(
        stage: str, reads: object, needs: tuple[str, ...], phase: PhaseSpec | None = None
    ) -> str:
        name = f"{stage}-{phase.stride}s" if phase else stage
        inputs = [step.key for step in steps if step.name in needs]
        key = fingerprint(stage, VERSIONS[stage], reads, inputs)
        steps.append(Step(stage, name, key, needs, phase))
        return name

    science = {k: v for k, v in plain["data"].items() if k not in ("root", "max_quarantined_frac")}
    data = add("ingest", [science, sources.open_source(recipe).state()], ())
    net = [plain["net"], recipe.data.class_table().names, recipe.seed]
    before: tuple[str, ...] = ()
    if recipe.finetune.init == "transplant":
        surgery = plain["transplant"]
        first = recipe.phases[0].stride
        before = (add("transplant", [net, surgery, first, _weights_state(recipe, store)], ()),)
    tune = {k: v for k, v in plain["finetune"].items() if k not in ("epochs", "phases")}
    for phase in recipe.phases:
        reads = [net, tune, phase.model_dump()]
        before = (add("finetune", reads, (data, *before), phase),)
    scored = add("evaluate", plain["evaluate"], (data, *before))
    tracking = {k: plain["tracking"][k] for k in ("uri", "experiment")}
    add("register", [plain["register"], recipe.name, tracking], (scored, *before))
    return steps


def _weights_state(recipe: Recipe, store: Store) -> str:
    """Changes when the weights to be transplanted do; an alias counts as what it points to now."""
    from pipeline.training.pretrained import require_section, source_state

    weights = require_section(recipe).weights
    if not weights.startswith("models:/"):
        return source_state(recipe, store)
    from pipeline.tracking.registry import open_registry

    return open_registry(recipe.tracking, store.root).resolve(weights)


@dataclass
class Report:
    """What a flow ended with, for the last lines on the screen."""

    steps: list[tuple[str, str, float]]
    """Name, `computed` or `unchanged`, seconds."""
    results: dict[str, Any]
    tracking: str | None = None
    """Where MLflow is; None if nothing was computed."""


@dataclass(frozen=True)
class PendingTransplant:
    """A transplant under way beside the ingest, under its key's lock."""

    lock: Lock
    result: Any
    """Ray's reference to it."""


class Flow:
    """One run of the stages that a recipe asks for."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.store = open_store(recipe.store, recipe.cluster.cache_gb)
        self.steps = {step.name: step for step in plan(recipe, self.store)}
        for step in self.steps.values():
            self.store.expect(step.key, step.stage, [self.steps[n].key for n in step.needs])
        self.report = Report([], {})
        self._tracked: FlowLogger | None = None
        self._runs: RunLogger | None = None
        """What is told of the inputs: that, or the run of a search."""

    def run(self, until: str = "register") -> Report:
        """All steps up to a stage; those whose result is there are not run again."""
        wanted = [s for s in self.steps.values() if STAGES.index(s.stage) <= STAGES.index(until)]
        if until == "transplant":
            wanted = [s for s in wanted if s.stage == until]
        with self.store.flow(wanted[-1].key):
            complete = all(self._found(step) for step in wanted)
            if complete and not any(self._untold(step) for step in wanted):
                self._run(wanted)
            else:
                self._run_tracked(wanted, complete=complete)
        return self.report

    def _run_tracked(self, wanted: list[Step], *, complete: bool) -> None:
        from pipeline import cluster
        from pipeline.tracking.run_logger import FlowLogger

        if not complete:
            cluster.connect(self.recipe.cluster)
        if isinstance(self.store, MirroredStore) and self.recipe.tracking.uri is None:
            log.warning(
                "MLflow's database lies in %s, on this machine alone; runs and models that all machines "
                "see need tracking.uri",
                self.store.root,
            )
        self._tracked = FlowLogger(self.recipe, self.store.root, wanted[-1].key, self.mark)
        self._runs, self.report.tracking = self._tracked, self._tracked.address
        with self._tracked:
            self._run(wanted)

    def prepare(self, runs: RunLogger) -> Report:
        """Data set and transplant only, told to another run; Ray is there already."""
        self._runs = runs
        self._run([s for s in self.steps.values() if s.stage in ("ingest", "transplant")])
        return self.report

    def mark(self, key: str) -> Mark:
        """Left once MLflow has been told all of a phase or an evaluation."""
        return self.store.mark(self.recipe.name, key)

    def _untold(self, step: Step) -> bool:
        """Whether MLflow lacks something of a result that is there."""
        logged = step.stage in ("finetune", "evaluate") and self._found(step) is not None
        return logged and not self.mark(step.key).exists()

    def _run(self, wanted: list[Step]) -> None:
        self.store.begin_run(self.recipe.name, {s.name: s.key for s in self.steps.values()})
        surgery = self._begin_transplant() if "transplant" in {s.name for s in wanted} else None
        try:
            for step in wanted:
                self._run_step(step, surgery)
        finally:
            if surgery:
                surgery.lock.free()

    def _run_step(self, step: Step, surgery: PendingTransplant | None) -> None:
        if step.stage == "ingest":
            self._ingest(step)
        elif step.stage == "transplant":
            self._transplant(step, surgery)
        elif step.stage == "finetune":
            self._finetune(step)
        elif step.stage == "evaluate":
            self._evaluate(step)
        else:
            self._register(step)

    def _found(self, step: Step) -> dict[str, Any] | None:
        return self.store.published(step.kind, step.key)

    def begun(self, step: Step) -> bool:
        """Whether a phase has checkpoints to go on from."""
        return self.store.begun(self.recipe.name, step.key)

    def published_counts(self) -> dict[str, int] | None:
        """Images by split, once the data set is ingested."""
        plain = self._found(self.steps["ingest"])
        return plain["counts"] if plain else None

    def _once(self, step: Step, of: type[Result], compute: Callable[[], object]) -> Result:
        """The step's result from the store, where it was or is computed now."""
        began = time.perf_counter()
        with self.store.turn(step.kind, step.key, step.name) as plain:
            if plain is None:
                compute()
        return self._done(step, of, "computed" if plain is None else "unchanged", began)

    def _done(self, step: Step, of: type[Result], how: str, began: float) -> Result:
        """As the store has it: another machine may have been first, or the store was moved.

        Shards stay where they are until somebody reads them.
        """
        names = ("quarantine.csv",) if step.stage == "ingest" else ()
        folder = self.store.local(step.kind, step.key, *names)
        result = of.model_validate({**(self._found(step) or {}), "folder": folder})
        log.info("%s %s (%s)", step.name, how, step.key)
        self.report.steps.append((step.name, how, time.perf_counter() - began))
        self.report.results[step.name] = result
        return result

    def _ingest(self, step: Step) -> None:
        from pipeline.stages import ingest

        data = self._once(step, Dataset, lambda: ingest.run(self.recipe, self.store, step.key))
        if self._runs:
            self._runs.dataset(data, self.store.uri(data.folder))

    def _begin_transplant(self) -> PendingTransplant | None:
        """It needs nothing of the ingest: both run at the same time.

        None if it is done, or if another flow is at it; that flow's result is waited for when the
        turn of this step comes, and not before: two flows that waited for each other would hang.
        """
        step = self.steps["transplant"]
        lock = self.store.lock(step.key)
        if not lock.take():
            return None
        if self._found(step):
            lock.free()
            return None
        return PendingTransplant(lock, self._operate(step))

    def _operate(self, step: Step) -> Any:  # noqa: ANN401 - Ray's reference to a Transplanted
        import ray

        from pipeline.stages import transplant

        return ray.remote(transplant.run).remote(self.recipe, self.store, step.key)

    def _transplant(self, step: Step, surgery: PendingTransplant | None) -> None:
        from pipeline import cluster

        if surgery:
            began = time.perf_counter()
            cluster.get(surgery.result)
            done = self._done(step, Transplanted, "computed", began)
        else:
            done = self._once(step, Transplanted, lambda: cluster.get(self._operate(step)))
        if self._runs:
            self._runs.receipt(done)

    def _finetune(self, step: Step) -> None:
        from pipeline.stages import finetune
        from pipeline.training import checkpoint

        assert step.phase is not None
        phase = step.phase
        data: Dataset = self._result("ingest")
        before = [name for name in step.needs if name != "ingest"]
        start: Path | None = self._result(before[0]).folder if before else None
        job = finetune.FinetuneInputs(
            phase=phase,
            train=self._places(data, "train"),
            val=self._places(data, "val"),
            num_train=data.counts["train"],
            start=start and self.store.anywhere(start),
            receipt=start if before == ["transplant"] else None,
            rows={split: data.shard_rows(split) for split in data.files},
        )

        def compute() -> TrainedNet:
            assert self._tracked is not None
            with self._tracked.phase(step.name, step.key) as sink:
                return finetune.run(self.recipe, self.store, step.key, job, sink)

        trained = self._once(step, TrainedNet, compute)
        if self._tracked and self._untold(step):
            rows = checkpoint.History.read(trained.folder / checkpoint.HISTORY).rows()
            self._tracked.history(step.name, step.key, rows)
        self.store.remember_run(self.recipe.name, trained.folder)

    def _places(self, data: Dataset, split: Split) -> list[Place]:
        """The shards of a split, for whatever machines read them."""
        return [self.store.anywhere(path) for path in data.paths(split)]

    def _evaluate(self, step: Step) -> None:
        from pipeline.data.shards import Shards
        from pipeline.stages import evaluate

        data: Dataset = self._result("ingest")
        net: TrainedNet = self._result(step.needs[-1])
        split = self.recipe.evaluate.split
        max_open = 2 if self.recipe.cluster.cache_gb else None  # they are read one after the other
        shards = Shards(self._places(data, split), data.shard_rows(split), max_open)
        scores = self._once(
            step,
            Evaluation,
            lambda: evaluate.run(
                self.recipe, self.store, step.key, self.store.anywhere(net.folder), shards
            ),
        )
        if self._tracked:
            phases = {s.name: s.key for s in self.steps.values() if s.stage == "finetune"}
            self._tracked.evaluation(step.key, scores, net, phases)

    def _register(self, step: Step) -> None:
        from pipeline.stages import register

        scores, net = self._result(step.needs[0]), self._result(step.needs[1])

        def compute() -> Registered:
            assert self._tracked is not None
            name = self.recipe.register_as.model or self.recipe.name
            manifest: dict[str, Any] = {}
            with self.store.publish(step.kind, step.key, manifest):
                with self._tracked.registering() as (registry, run_id):
                    done = register.run(registry, run_id, name, net.folder, scores)
                manifest |= done.model_dump(mode="json")
            self._tracked.note(scores, done.sentence())
            return done

        self._once(step, Registered, compute)

    def _result(self, name: str) -> Any:  # noqa: ANN401 - the stage's own model
        return self.report.results[name]
