"""The order of the stages and their fingerprints; a result that is there is not computed again.

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
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline import signals
from pipeline.config.recipe import Recipe
from pipeline.config.schema import PhaseSpec, Split
from pipeline.errors import OutageError, StoreError
from pipeline.results import NET, Dataset, Registered
from pipeline.stage_table import STAGES, Step, start_transplant
from pipeline.storage.files import Marker
from pipeline.storage.store import MANIFEST, Store, StoredFile, fingerprint

# At run time a stage is imported when it runs: `plan` needs no torch, ray or mlflow.
if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.storage.locks import Lock
    from pipeline.tracking.registry import ModelRegistry
    from pipeline.tracking.run_logger import FlowLogger, RunLogger

log = logging.getLogger(__name__)

T = TypeVar("T")


def plan(recipe: Recipe, store: Store) -> list[Step]:
    """The steps of a flow with their fingerprints, in order; nothing is run.

    Raises:
        DataError: the data set is not where the recipe says.
        WeightsError, TrackingError: nor are the weights.
    """
    steps: list[Step] = []

    def add(stage: str, needs: tuple[str, ...], phase: PhaseSpec) -> str:
        row = STAGES[stage]
        inputs = [step.key for step in steps if step.name in needs]
        key = fingerprint(stage, row.version, row.reads(recipe, store, phase), inputs)
        name = f"{stage}-{phase.stride}s" if stage == "finetune" else stage
        steps.append(Step(row, name, key, needs, phase))
        return name

    first, last = recipe.phases[0], recipe.phases[-1]
    data = add("ingest", (), first)
    start: tuple[str, ...] = ()
    if recipe.finetune.init == "transplant":
        start = (add("transplant", (), first),)
    for phase in recipe.phases:
        start = (add("finetune", (data, *start), phase),)
    scores = add("evaluate", (data, *start), last)
    add("register", (scores, *start), last)
    return steps


@dataclass
class Report:
    """What a flow ended with, for the last lines on the screen."""

    steps: list[tuple[str, str, float]] = field(default_factory=list)
    """Name, `computed` or `unchanged`, seconds."""
    results: dict[str, Any] = field(default_factory=dict)
    """Each step's result, by the step's name."""
    tracking: str | None = None
    """Where MLflow is; None if nothing was logged."""
    champion: str | None = None
    """The champion of the registered model as the flow ended; None if MLflow could not say."""


class Flow:
    """One run of the stages that a recipe asks for."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.store = Store(recipe.store)
        self.report = Report()
        self.logger: FlowLogger | None = None
        self._registry_is_away = False
        self._at = "before the first step"
        """How far it is, in words."""
        self._pending: tuple[Lock, Any] | None = None
        """The lock and the Ray task of a transplant that runs beside the ingest."""

    @cached_property
    def steps(self) -> dict[str, Step]:
        """The flow's steps by name, worked out from data and weights when first asked for."""
        steps = {step.name: step for step in plan(self.recipe, self.store)}
        for step in steps.values():
            inputs = [steps[name].key for name in step.needs]
            self.store.set_inputs(step.key, step.stage.name, inputs)
        return steps

    def run(self, until: str = "register") -> Report:
        """Run all steps up to a stage; those whose result is there are not run again.

        Raises:
            StoppedError: Ctrl-C, SIGTERM or SIGHUP came.
        """
        with signals.interruptible() as asked:
            try:
                return self._run_until(until)
            except KeyboardInterrupt:
                raise asked.error(
                    f"{self._at}; what is finished is in the store, the same command goes on"
                ) from None

    def _run_until(self, until: str) -> Report:
        log.info("%s: what is in %s already, and what is to be done?", self.recipe.name, self.store)
        names = list(STAGES)
        wanted = [
            step
            for step in self.steps.values()
            if names.index(step.stage.name) <= names.index(until)
            and (until != "transplant" or step.stage.name == until)
        ]
        with self.store.flow_lock(wanted[-1].key):
            self._doubt_what_mlflow_has(wanted)
            complete = all(self.published(step) for step in wanted)
            if complete and not any(self._unlogged(step) for step in wanted):
                self._run(wanted, None)
            else:
                self._run_logged(wanted, complete=complete)
        if "register" in self.report.results:
            self.report.champion = self._ask(
                lambda registry: registry.champion_uri(self.recipe.model_name)
            )
        return self.report

    def prepare(self, logger: RunLogger) -> Report:
        """Data set and transplant only, logged to another run; Ray is there already."""
        stages = ("ingest", "transplant")
        self._run([s for s in self.steps.values() if s.stage.name in stages], logger)
        return self.report

    def published(self, step: Step) -> dict[str, Any] | None:
        """The manifest of a step's result, None if there is none yet or if a file of it is lost."""
        return self.store.whole(step.stage.folder, step.key)

    def begun(self, step: Step) -> int | None:
        """The step of the checkpoint that a phase would go on from; None if there is no sound one."""
        from pipeline.training.checkpoint import Checkpoints

        return Checkpoints.of_run(self.store, self.recipe.name, step.key).furthest()

    def published_counts(self) -> dict[str, int] | None:
        """Images by split, once the data set is ingested."""
        manifest = self.published(self.steps["ingest"])
        return manifest["counts"] if manifest else None

    def _run_logged(self, wanted: list[Step], *, complete: bool) -> None:
        log.info("starting %s", "MLflow" if complete else "Ray and MLflow, in some seconds")
        from pipeline import cluster
        from pipeline.tracking.run_logger import FlowLogger

        if not complete:
            cluster.connect(self.recipe.cluster)
        if not self.store.is_local and self.recipe.tracking.uri is None:
            log.warning(
                "MLflow's database lies in %s, on this machine alone; runs and models that all machines "
                "see need tracking.uri",
                self.store.cache,
            )
        self.logger = FlowLogger(self.recipe, self.store.cache, wanted[-1].key, self._marker)
        self.report.tracking = self.logger.address
        with self.logger, cluster.floods_kept(self.store.cache / "errors"):
            self._run(wanted, self.logger)

    def _run(self, wanted: list[Step], logger: RunLogger | None) -> None:
        self.store.begin_run(self.recipe.name, {s.name: s.key for s in self.steps.values()})
        if any(step.stage.name == "transplant" for step in wanted):
            self._begin_transplant()
        try:
            for step in wanted:
                self._run_step(step, logger)
        finally:
            if self._pending:
                self._pending[0].free()

    def _run_step(self, step: Step, logger: RunLogger | None) -> None:
        """The step's result from the store, where it was or is computed now; then what MLflow lacks."""
        began, self._at = time.perf_counter(), f"in {step.name}"
        computed = step.stage.name == "transplant" and self._await_transplant()
        with self.store.compute_once(step.stage.folder, step.key, step.name) as manifest:
            if manifest is None:
                step.stage.run(self, step)
                computed = True
        result = self._read(step)
        how = "computed" if computed else "unchanged"
        self._at = f"after {step.name}"
        log.info("%s %s (%s)", step.name, how, step.key)
        self.report.steps.append((step.name, how, time.perf_counter() - began))
        self.report.results[step.name] = result
        if logger:
            self._log(step, result, logger)
        if step.is_phase:
            self.store.remember_net(self.recipe.name, step.stage.folder, step.key)

    def _read(self, step: Step) -> BaseModel:
        """The result as the store has it: another machine may have made it, or the store was moved."""
        names = step.stage.files or (None,)
        paths = [self.stored(step.name, name).localize() for name in names]
        folder = paths[0] if names == (None,) else paths[0].parent
        manifest = self.store.published(step.stage.folder, step.key) or {}
        try:
            return step.stage.result.model_validate({**manifest, "folder": folder})
        except ValidationError as error:
            lacks = ", ".join(".".join(map(str, each["loc"])) for each in error.errors())
            raise StoreError(
                f"{self.store}/{step.stage.folder}/{step.key}/{MANIFEST} is not what was written "
                f"({lacks}); remove it, and the same command makes it again"
            ) from error

    def _log(self, step: Step, result: Any, logger: RunLogger) -> None:  # noqa: ANN401 - the stage's result
        if step.stage.name == "ingest":
            address = self.store.address(f"{step.stage.folder}/{step.key}")
            logger.dataset(result, address)
        elif step.stage.name == "transplant":
            logger.receipt(result)
        elif self.logger and step.is_phase and self._unlogged(step):
            from pipeline.training.state import HISTORY, History

            rows = History.read(result.folder / HISTORY).rows()
            self.logger.history(step.name, step.key, rows)
        elif self.logger and step.stage.name == "evaluate":
            phases = {s.name: s.key for s in self.steps.values() if s.is_phase}
            self.logger.evaluation(step.key, result, self.result(step.needs[-1]), phases)

    def _marker(self, key: str) -> Marker:
        """Set once MLflow has everything of a step."""
        return self.store.marker(self.recipe.name, key)

    def _unlogged(self, step: Step) -> bool:
        """Whether MLflow lacks something of a result that is there."""
        if step.stage.name not in ("finetune", "evaluate") or not self.published(step):
            return False
        return not self._marker(step.key).exists()

    def _doubt_what_mlflow_has(self, wanted: list[Step]) -> None:
        """If MLflow lost its database or the registered version, all is logged and registered again.

        Of a bucket's store without a server nobody can know: the database is another machine's.
        """
        if not self.store.is_local and self.recipe.tracking.uri is None:
            return
        lost = not self._has_database()
        register = next((step for step in wanted if step.stage.name == "register"), None)
        if register and self.published(register):
            done = self._read(register)
            assert isinstance(done, Registered)
            lost = lost or self._ask(lambda registry: not self._is_in(registry, done)) or False
            if lost:
                log.warning(
                    "models:/%s/%s is not in MLflow any more; it is registered again",
                    *(done.model, done.version),
                )
                self.store.withdraw(register.stage.folder, register.key)
        if lost:
            for step in wanted:
                self._marker(step.key).clear()

    def _has_database(self) -> bool:
        """False if the store's own database is gone; a server's is its own affair."""
        path = self.store.cache / "mlflow.db"
        return self.recipe.tracking.uri is not None or (path.exists() and path.stat().st_size > 0)

    def _is_in(self, registry: ModelRegistry, done: Registered) -> bool:
        """Whether a version is there, with the weights that the store has; any, if it has none now."""
        net = self.steps[self.steps["register"].needs[-1]]
        if not self.published(net):
            return registry.has(done.model, done.version)
        sha256 = self.store.digests(net.stage.folder, net.key)[NET].sha256
        return registry.has(done.model, done.version, sha256)

    def _ask(self, question: Callable[[ModelRegistry], T]) -> T | None:
        """The registry's answer; None, and a line that says so, while MLflow is away."""
        from pipeline.tracking.client import speaking
        from pipeline.tracking.registry import open_registry

        if self._registry_is_away:
            return None
        try:
            registry = open_registry(self.recipe.tracking, self.store.cache)
            with speaking(registry.tracking.uri):
                return question(registry)
        except OutageError as outage:
            log.warning(
                "%s; what it has of models:/%s is not known now", outage, self.recipe.model_name
            )
            self._registry_is_away = True
            return None

    def _begin_transplant(self) -> None:
        """Start it in a task: it needs nothing of the ingest, so both run at the same time.

        Not if it is done, or if another flow is at it: that flow's result is waited for when the
        turn of this step comes, and not before, for two flows that waited for each other would hang.
        """
        step = self.steps["transplant"]
        lock = self.store.lock(step.key)
        if not lock.take():
            return
        self.store.withdraw_damaged(step.stage.folder, step.key)
        if self.published(step):
            lock.free()
            return
        self._pending = lock, start_transplant(self, step)

    def _await_transplant(self) -> bool:
        """Whether the transplant was computed beside the ingest; it is in the store then."""
        if self._pending is None:
            return False
        from pipeline import cluster

        (lock, task), self._pending = self._pending, None
        try:
            cluster.get(task)
        finally:
            lock.free()
        return True

    def result(self, name: str) -> Any:  # noqa: ANN401 - the stage's own class
        """The result of a step that this flow has run."""
        return self.report.results[name]

    def stored(self, name: str, file: str | None = None) -> StoredFile:
        """The result of a step, or a file of it, for whatever machine uses it."""
        step = self.steps[name]
        return self.store.stored(step.stage.folder, step.key, file)

    def shards(self, split: Split) -> list[StoredFile]:
        """The shards of a split."""
        data: Dataset = self.result("ingest")
        return [self.stored("ingest", name) for name in data.names(split)]
