"""A session of a search, from its beginning or from where it stands, to its page and its winner."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import TrialScheduler

from pipeline import cluster
from pipeline.config.recipe import Recipe
from pipeline.data.sampler import steps_per_epoch
from pipeline.errors import StoppedError, TrainingError
from pipeline.flow import Flow
from pipeline.logs import progress_bar
from pipeline.results import Dataset, Evaluation
from pipeline.stages import register
from pipeline.stages.finetune import FinetuneInputs, publish
from pipeline.storage.store import Store, fingerprint
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.model import require_receipt
from pipeline.training.progress import start_metrics_actor
from tuning.callbacks import SearchCallback
from tuning.logger import SearchLogger
from tuning.records import Records, Search, SearchPlan, Trial
from tuning.report import write_report
from tuning.schedulers import Remembering, scheduler_of
from tuning.searchers import Suggest, TrialSearcher, grid_points, suggest_by
from tuning.settings import Settings
from tuning.trainable import TrialTask, TrialTrainable
from tuning.validate import check, default_space, known_num_train

MANY = 10**9
"""Images of a data set that nobody has counted: so many that weight decay cannot be inert."""
STOPS = (signal.SIGINT, signal.SIGTERM)
NESTED = {"memory": float(1 << 20)}
"""The process of a trial of several workers takes next to nothing: its workers take what they need."""
ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # signals are ours
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV and TensorBoard files beside MLflow
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # how a trial ended is a result without a score
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # Tune's own state is never restored
    "RAY_AIR_NEW_OUTPUT": "0",  # the screen is ours
}


@dataclass(frozen=True)
class Result:
    """What a search came to, for the last lines on the screen."""

    search: Search
    page: Path
    scores: Evaluation | None
    """Of the winner's net, as the recipe's `evaluate` asks; None if no trial came to its end."""
    registered: str
    """Where that net is."""
    tracking: str


def run(
    recipe: Recipe,
    settings: Settings,
    scheduler: TrialScheduler | None = None,
    suggest: Suggest | None = None,
) -> Result:
    """Search, from where the records of that name stand.

    Args:
        recipe: What is searched for.
        settings: How.
        scheduler: One of Tune's, or your own, instead of the settings'; its time is `images`, its metric
            `mean_iu`. Unless it is a `Remembering`, it does not know earlier sessions.
        suggest: Gives the points instead of the settings' sampler.

    Raises:
        RecipeError: a space that makes no sense, or another search has this name.
        ClusterError: not even one trial fits.
        TrainingError: too many trials failed.
        StoppedError: SIGINT or SIGTERM came; the same command goes on.
    """
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    lean = recipe.changed([f"cluster.num_workers={settings.workers}"])
    num_train = known_num_train(lean)
    if settings.space or num_train:  # what can be refused without the data is refused at once
        check(settings.space or default_space(lean, num_train or MANY), lean, num_train or MANY)
    store = Store(recipe.store)
    with store.flow_lock(f"search-{settings.name}"):
        cluster.join(lean.cluster)
        at_most = settings.concurrent or settings.trials
        slots = cluster.trials_that_fit(lean.cluster, cluster.living_nodes(), at_most)
        key = fingerprint("search", settings.name, science(recipe))
        with SearchLogger(
            recipe, store.cache, f"search {settings.name}", f"search-{key}"
        ) as logger:
            driver = Driver(lean, settings, Records(store, settings.name), logger, key)
            plan = driver.plan(
                sampler=suggest.__name__ if suggest else settings.sampler,
                scheduler=type(scheduler).__name__ if scheduler else settings.scheduler,
            )
            driver.records.begin(plan, recipe, settings)
            suggest = suggest or suggest_by(plan, lean)
            session = driver.fit(suggest, scheduler or scheduler_of(plan), slots)
            return _conclude(recipe, session)


def science(recipe: Recipe) -> str:
    """Fingerprint of everything in a recipe that decides numbers."""
    where = ("name", "cluster", "tracking", "register", "store")
    return fingerprint({k: v for k, v in recipe.plain().items() if k not in where})


@dataclass
class Driver:
    """Runs Tune for one session of a search."""

    recipe: Recipe
    """With the workers of one trial."""
    settings: Settings
    records: Records
    logger: SearchLogger
    key: str
    """Fingerprint of the search."""
    prepared: dict[tuple[str, ...], Flow] = field(default_factory=dict)
    """Flows whose data set and weights are there, by the keys of these."""

    def prepare(self, recipe: Recipe) -> tuple[Flow, Dataset, FinetuneInputs]:
        """The flow of a recipe, its data, and what its first phase starts from, made if need be."""
        flow = Flow(recipe)
        ready = [step for step in flow.steps.values() if step.name in ("ingest", "transplant")]
        keys = tuple(step.key for step in ready)
        if keys not in self.prepared:
            flow.prepare(self.logger)
            if "transplant" in flow.steps:
                require_receipt(flow.result("transplant").folder)
            self.prepared[keys] = flow
        first = self.prepared[keys]
        data: Dataset = first.result("ingest")
        return (
            flow,
            data,
            FinetuneInputs(
                phase=recipe.phases[0],
                train=first.shards("train"),
                val=first.shards("val"),
                num_train=data.counts["train"],
                start=first.stored("transplant") if "transplant" in flow.steps else None,
                receipt=None,
                rows={split: data.shard_rows(split) for split in data.files},
                input=data.input_rule(),
            ),
        )

    def plan(self, sampler: str, scheduler: str) -> SearchPlan:
        """What decides the search."""
        recipe, settings = self.recipe, self.settings
        _, data, _ = self.prepare(recipe)
        num_train = data.counts["train"]
        space = settings.space or default_space(recipe, num_train)
        check(space, recipe, num_train)
        epochs = sum(phase.epochs for phase in recipe.phases)
        first = min(recipe.finetune.validate_every_epochs, recipe.phases[0].epochs)
        grid = len(grid_points(space, recipe, settings.trials)) if sampler == "grid" else 0
        return SearchPlan(
            name=settings.name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            recipe=recipe.name,
            science=science(recipe),
            data=data.digest,
            seed=settings.seed,
            space=space,
            sampler=sampler,
            scheduler=scheduler,
            reduction=settings.reduction,
            grid_trials=grid,
            max_images=epochs * num_train,
            max_steps=epochs * steps_per_epoch(num_train, recipe.finetune.global_batch),
            first_images=first * num_train,
        )

    def fit(self, suggest: Suggest, scheduler: TrialScheduler, slots: int) -> SearchCallback:
        """Train until there are no more trials, or until the session ends."""
        spec, records = self.recipe.cluster, self.records
        if isinstance(scheduler, Remembering):
            scheduler.remember(records.search)
        alone, num_trials = (
            spec.max_workers == 1,
            records.search.plan.grid_trials or self.settings.trials,
        )
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are logged as ends
        actor = start_metrics_actor(self.key)
        with (
            tempfile.TemporaryDirectory(prefix="fcn-tune-", ignore_cleanup_errors=True) as folder,
            progress_bar() as progress,
        ):
            session = SearchCallback(
                *(self.recipe, self.settings, records, self.logger, actor, progress)
            )
            session.close_all()
            source = TrialSearcher(records, suggest, num_trials, self.config_of, session.ending)
            tuner = tune.Tuner(
                tune.with_resources(TrialTrainable, cluster.per_worker(spec) if alone else NESTED),
                tune_config=tune.TuneConfig(
                    search_alg=source,
                    scheduler=scheduler,
                    num_samples=-1,
                    max_concurrent_trials=slots,
                    reuse_actors=alone,
                    trial_dirname_creator=lambda trial: trial.trial_id,
                ),
                run_config=tune.RunConfig(
                    name=self.settings.name,
                    storage_path=folder,
                    callbacks=[session],
                    failure_config=tune.FailureConfig(max_failures=spec.max_failures),
                    verbose=0,
                ),
            )
            with _stopped_by_signals(session):
                tuner.fit()
        ray.kill(actor)
        records.tick()
        if failure := session.failure or source.failure:
            raise failure
        session.close_all()
        return session

    def config_of(self, trial: Trial) -> dict[str, Any]:
        """What a trial's process is given."""
        recipe, records = self.recipe.changed(trial.overrides()), self.records
        flow, _, inputs = self.prepare(recipe)
        keys = tuple(step.key for step in flow.steps.values() if step.is_phase)
        place = (records.store, records.checkpoints_of(trial.number))
        return {"task": TrialTask(trial.number, recipe, *place, inputs, keys, self.key)}


@contextmanager
def _stopped_by_signals(session: SearchCallback) -> Iterator[None]:
    """The first SIGINT or SIGTERM lets trials save and stop; a second one does not wait."""
    before: dict[signal.Signals, Any] = {}

    def stop(number: int, frame: FrameType | None) -> None:
        session.stopped_by = f"stopped by {signal.Signals(number).name}"
        give_back()

    def give_back() -> None:
        for each, handler in before.items():
            signal.signal(each, handler)

    before.update({number: signal.signal(number, stop) for number in STOPS})
    try:
        yield
    finally:
        give_back()


def _conclude(recipe: Recipe, session: SearchCallback) -> Result:
    """Page and winner, for which there is no time after a signal; then why it ended early, if it did."""
    records, logger = session.records, session.logger
    search, best = records.search, records.search.best()
    page = write_report(search, records.store.cache / records.folder / "report")
    scores, registered = None, ""
    if best is not None and best.status == "finished" and not session.stopped_by:
        winner = Flow(recipe.changed(best.overrides()))
        scores = _publish(winner, records.checkpoints_of(best.number), logger)
    logger.outcome(search, page.parent, scores.metrics() if scores else {})
    if scores and best:
        registered = _register(winner, best, scores, logger)
    if session.halted:
        raise TrainingError(f"the search was ended: {session.halted}; see {page}")
    if session.stopped_by:
        raise StoppedError(f"{session.stopped_by}; the same command goes on with the search")
    return Result(search, page, scores, registered, logger.address)


def _publish(winner: Flow, folder: str, logger: SearchLogger) -> Evaluation:
    """Nets and scores of the best trial where a flow of its recipe finds them, from its checkpoints."""
    store = winner.store
    rule = winner.prepare(logger).results["ingest"].input_rule()
    phases = [step for step in winner.steps.values() if step.is_phase]
    for index, step in enumerate(phases):
        if winner.published(step) is None:
            last, _ = Checkpoints(store.files, f"{folder}/{index}").newest()
            assert last is not None, f"{folder}/{index} has no checkpoint"
            publish(winner.recipe, store, step.key, step.phase.stride, last, rule)
    store.remember_net(winner.recipe.name, phases[-1].stage.folder, phases[-1].key)
    step = winner.steps["evaluate"]
    with store.compute_once(step.stage.folder, step.key, step.name) as manifest:
        if manifest is None:
            step.stage.run(winner, step)
    facts = winner.published(step) or {}
    return Evaluation.model_validate({**facts, "folder": winner.stored(step.name).localize()})


def _register(winner: Flow, trial: Trial, scores: Evaluation, logger: SearchLogger) -> str:
    """A version that is called challenger, and not more: the gate is for `best --run`.

    The trial was chosen by the images that score it, so its score is a little better than it is.
    """
    model = winner.recipe.register_as.model or winner.recipe.name
    net = winner.stored(winner.steps["evaluate"].needs[-1]).localize()
    with logger.registering() as (registry, search_run):
        run = logger.run_of(registry.tracking, trial.number) or search_run
        version = register.enter(registry, run, model, net, scores)
        registry.name_challenger(model, version)
    return f"models:/{model}/{version} is @challenger"
