"""The stages and their order; what is there already is not computed again.

    ingest ─────────┐
                    ├─> finetune (32s -> 16s -> 8s) ─> evaluate ─> register
    transplant ─────┘

A step's fingerprint is the hash of its stage's version, of the parts of the recipe that it reads and
of its inputs' fingerprints. Its result lies in the store under that fingerprint, or does not exist.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from pipeline.errors import DataError
from pipeline.recipe import PhaseSpec, Recipe
from pipeline.sampler import steps_per_epoch
from pipeline.store import Store, fingerprint

if TYPE_CHECKING:  # at run time each stage is imported when it runs: `plan` needs no torch or ray
    from pipeline.evaluate import Evaluation
    from pipeline.finetune import TrainedNet
    from pipeline.ingest import Dataset
    from pipeline.register import Registered
    from pipeline.tracking import Tracker
    from pipeline.transplant import Transplanted

log = logging.getLogger(__name__)

VERSIONS = {"ingest": 1, "transplant": 1, "finetune": 1, "evaluate": 1, "register": 1}
"""Raised when a stage would compute something else from the same inputs."""
STAGES = tuple(VERSIONS)
KINDS = {
    "ingest": "datasets",
    "transplant": "weights",
    "finetune": "nets",
    "evaluate": "scores",
    "register": "models",
}

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
        WeightsError: nor are the weights.
    """
    from pipeline import sources
    from pipeline.pretrained import source_state

    plain = recipe.plain()
    steps: list[Step] = []

    def add(stage: str, reads: object, needs: tuple[str, ...], phase: PhaseSpec | None = None) -> str:
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
        before = (add("transplant", [net, surgery, first, source_state(recipe, store)], ()),)
    tune = {k: v for k, v in plain["finetune"].items() if k not in ("epochs", "phases")}
    for phase in recipe.phases:
        reads = [net, tune, phase.model_dump()]
        before = (add("finetune", reads, (data, *before), phase),)
    scored = add("evaluate", plain["evaluate"], (data, *before))
    add("register", [plain["register"], recipe.name, plain["tracking"]], (scored, *before))
    return steps


@dataclass
class Report:
    """What a flow ended with, for the last lines on the screen."""

    steps: list[tuple[str, str, float]]
    """Name, `computed` or `unchanged`, seconds."""
    results: dict[str, BaseModel]
    tracking: str | None = None
    """Where MLflow is; None if nothing was computed."""
    run_id: str | None = None


class Flow:
    """One run of the stages that a recipe asks for."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.store = Store(recipe.store)
        self.steps = {step.name: step for step in plan(recipe, self.store)}
        self.report = Report([], {})
        self._tracker: Tracker | None = None
        self._parent: str | None = None

    def run(self, until: str = "register") -> Report:
        """All steps up to a stage; those whose result is there are not run again."""
        wanted = [s for s in self.steps.values() if STAGES.index(s.stage) <= STAGES.index(until)]
        if until == "transplant":
            wanted = [s for s in wanted if s.stage == until]
        if any(self._cached(step) is None for step in wanted):
            self._open(wanted[-1])
        try:
            for step in wanted:
                getattr(self, f"_{step.stage}")(step)
        except BaseException:
            self._close(ok=False)
            raise
        self._close(ok=True)
        return self.report

    def begun(self, step: Step) -> bool:
        """Whether a phase has checkpoints to go on from."""
        return (self.store.root / "runs" / self.recipe.name / step.key).is_dir()

    def published_counts(self) -> dict[str, int] | None:
        """Images by split, once the data set is ingested."""
        plain = self._cached(self.steps["ingest"])
        return plain["counts"] if plain else None

    def _open(self, last: Step) -> None:
        from pipeline import cluster
        from pipeline.tracking import Tracker, environment

        cluster.connect(self.recipe.cluster)
        tracker = self._tracker = Tracker(self.recipe.tracking, self.store.root)
        run_id = self._parent = tracker.open_run(self.recipe.name, last.key)
        tracker.log_params(run_id, self.recipe.flat())
        tracker.log_text(run_id, self.recipe.to_yaml(), "recipe.yaml")
        tracker.log_text(run_id, environment(), "environment.txt")
        self.report.tracking, self.report.run_id = tracker.uri, run_id

    def _close(self, *, ok: bool) -> None:
        if self._tracker and self._parent:
            self._tracker.close_run(self._parent, ok=ok)

    def _cached(self, step: Step) -> dict[str, Any] | None:
        return self.store.published(step.kind, step.key)

    def _once(self, step: Step, of: type[Result], compute: Callable[[], Result]) -> Result:
        """The step's result from the store, or computed now."""
        began = time.perf_counter()
        plain = self._cached(step)
        result = compute() if plain is None else of.model_validate(plain)
        how = "computed" if plain is None else "unchanged"
        log.info("%s %s (%s)", step.name, how, step.key)
        self.report.steps.append((step.name, how, time.perf_counter() - began))
        self.report.results[step.name] = result
        return result

    def _ingest(self, step: Step) -> None:
        from pipeline import ingest

        self._begin_transplant()
        data = self._once(
            step, ingest.Dataset, lambda: ingest.run(self.recipe, self.store, step.key)
        )
        if self._tracker and self._parent:
            name = f"{self.recipe.data.source}-{self.recipe.name}"
            self._tracker.log_dataset(self._parent, name, data.folder, data.digest)

    def _begin_transplant(self) -> None:
        """It needs nothing of the ingest: both run at the same time."""
        self._surgery: Any = None
        step = self.steps.get("transplant")
        if step and self._tracker and self._cached(step) is None:
            import ray

            from pipeline import transplant

            task = ray.remote(transplant.run).options(num_cpus=1)
            self._surgery = task.remote(self.recipe, self.store, step.key)

    def _transplant(self, step: Step) -> None:
        from pipeline import transplant

        def compute() -> Transplanted:
            if not hasattr(self, "_surgery"):
                self._begin_transplant()
            import ray

            from pipeline.errors import PipelineError

            try:
                return ray.get(self._surgery)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, PipelineError):
                    raise error.cause from None
                raise

        done = self._once(step, transplant.Transplanted, compute)
        if self._tracker and self._parent:
            self._tracker.log_folder(self._parent, done.folder / "receipt.json", "transplant")

    def _result(self, name: str) -> Any:  # noqa: ANN401 - the stage's own model
        return self.report.results[name]

    def _finetune(self, step: Step) -> None:
        from pipeline import finetune

        assert step.phase is not None
        self._once(step, finetune.TrainedNet, lambda: self._train(step, step.phase))

    def _train(self, step: Step, phase: PhaseSpec | None) -> TrainedNet:
        from pipeline import finetune, pictures

        assert phase is not None
        assert self._tracker is not None
        tracker = self._tracker
        data: Dataset = self._result("ingest")
        before = [n for n in step.needs if n != "ingest"]
        start = self._result(before[0]).folder if before else None
        job = finetune.Job(
            phase=phase,
            train=data.paths("train"),
            val=data.paths("val"),
            num_train=data.counts["train"],
            start=start,
            receipt=start if before == ["transplant"] else None,
        )
        run_id = tracker.open_run(step.name, step.key, self._parent)
        ok = False
        try:
            trained = finetune.run(
                self.recipe, self.store, step.key, job, lambda rows: tracker.log_rows(run_id, rows)
            )
            ok = True
        finally:
            tracker.close_run(run_id, ok=ok)
        return trained

    def _evaluate(self, step: Step) -> None:
        from pipeline import evaluate

        data: Dataset = self._result("ingest")
        net: TrainedNet = self._result(step.needs[-1])
        files = data.paths(self.recipe.evaluate.split)
        scores = self._once(
            step,
            evaluate.Evaluation,
            lambda: evaluate.run(self.recipe, self.store, step.key, net.folder, files),
        )
        if self._tracker and self._parent:
            self._log_evaluation(scores, net)

    def _log_evaluation(self, scores: Evaluation, net: TrainedNet) -> None:
        from pipeline import pictures

        assert self._tracker is not None
        assert self._parent is not None
        runs = {
            s.name: run.info.run_id
            for s in self.steps.values()
            if s.stage == "finetune" and (run := self._tracker.find_run(s.key))
        }
        histories = {
            key: {n: self._tracker.history(run_id, key) for n, run_id in runs.items()}
            for key in ("train/loss", "val/mean_iu")
        }
        last = [*runs][-1] if runs else None
        if last:
            pictures.curves(
                scores.folder / "curves.png",
                histories["train/loss"][last],
                {n: points for n, points in histories["val/mean_iu"].items() if points},
            )
        self._tracker.log_scores(self._parent, scores.metrics() | net.metrics)
        self._tracker.log_folder(self._parent, scores.folder, "evaluation")

    def _register(self, step: Step) -> None:
        from pipeline import register

        def compute() -> Registered:
            assert self._tracker is not None
            assert self._parent is not None
            scores, net = self._result(step.needs[0]), self._result(step.needs[1])
            name = self.recipe.register_as.model or self.recipe.name
            manifest: dict[str, Any] = {}
            with self.store.publish(step.kind, step.key, manifest):
                done = register.run(self._tracker, self._parent, name, net.folder, scores)
                manifest |= done.model_dump(mode="json")
            note = f"mean IU {scores.mean_iu:.4f} on {scores.split}; {done.model} v{done.version}"
            self._tracker.set_note(self._parent, f"{note}: {done.reason}")
            return done

        self._once(step, register.Registered, compute)
