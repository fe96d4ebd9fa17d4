"""A session of a search, from its beginning or from where it stands, to its page and its winner."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from pipeline.stages.finetune import FinetuneInputs
from pipeline.storage.store import Store, fingerprint
from pipeline.training.model import require_receipt
from pipeline.training.progress import start_metrics_actor
from tuning.best import Winner
from tuning.callbacks import SearchCallback
from tuning.logger import SearchLogger
from tuning.records import Records, Search, SearchPlan, Trial
from tuning.report import write_report
from tuning.schedulers import Remembering, scheduler_of
from tuning.searchers import Suggest, TrialSearcher, grid_points, suggest_by
from tuning.settings import Settings
from tuning.space import Space, parse_space
from tuning.trainable import TrialTask, TrialTrainable
from tuning.validate import check, default_space, known_num_train

log = logging.getLogger(__name__)

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
    check_early(lean, settings)
    store = Store(recipe.store)
    with store.flow_lock(f"search-{settings.name}"):
        cluster.join(lean.cluster)
        slots = cluster.trials_that_fit(
            lean.cluster, cluster.living_nodes(), settings.concurrent or settings.trials
        )
        key = fingerprint("search", settings.name, science(recipe))
        with SearchLogger(
            recipe, store.cache, f"search {settings.name}", f"search-{key}"
        ) as logger:
            inputs = Inputs(logger)
            plan = _plan(lean, settings, inputs)
            if scheduler:
                plan = plan.model_copy(update={"scheduler": type(scheduler).__name__})
            if suggest:
                plan = plan.model_copy(update={"sampler": suggest.__name__})
            space = Space.model_validate(plan.space)
            trials = settings.trials
            if plan.sampler == "grid":
                trials = len(grid_points(space, lean, trials))
            settings = settings.model_copy(update={"trials": trials})
            records = Records(store, settings.name)
            records.begin(plan, recipe, settings)
            suggest = suggest or suggest_by(plan.sampler, space, lean, settings.seed, trials)
            driver = Driver(lean, settings, records, logger, inputs, key)
            session = driver.fit(suggest, scheduler or scheduler_of(records.search.plan), slots)
            return _conclude(recipe, session)


def check_early(recipe: Recipe, settings: Settings) -> None:
    """Refuse at once what can be refused without the data.

    Raises:
        RecipeError: a space that makes no sense.
    """
    num_train = known_num_train(recipe)
    if settings.space or num_train:
        _space(recipe, settings, num_train or MANY)


def science(recipe: Recipe) -> str:
    """Fingerprint of everything in a recipe that decides numbers."""
    where = ("name", "cluster", "tracking", "register", "store")
    return fingerprint({k: v for k, v in recipe.plain().items() if k not in where})


class Inputs:
    """Data set and weights by recipe, computed once and logged to the search's run."""

    def __init__(self, logger: SearchLogger) -> None:
        self._logger = logger
        self._known: dict[str, FinetuneInputs] = {}
        self.digest = ""
        """Of the data set, which is the same for all trials."""

    def __call__(self, recipe: Recipe) -> FinetuneInputs:
        """What the first phase of a recipe starts from."""
        plain = recipe.plain()
        parts = [plain[part] for part in ("data", "net", "transplant", "seed")]
        key = fingerprint(parts, recipe.finetune.init)
        if key not in self._known:
            self._known[key] = self._prepare(recipe)
        return self._known[key]

    def _prepare(self, recipe: Recipe) -> FinetuneInputs:
        flow = Flow(recipe)
        results = flow.prepare(self._logger).results
        data: Dataset = results["ingest"]
        self.digest = data.digest
        if "transplant" in results:
            require_receipt(results["transplant"].folder)
        return FinetuneInputs(
            phase=recipe.phases[0],
            train=flow.shards("train"),
            val=flow.shards("val"),
            num_train=data.counts["train"],
            start=flow.stored("transplant") if "transplant" in results else None,
            receipt=None,
            rows={split: data.shard_rows(split) for split in data.files},
            input=data.input_rule(),
        )


def _space(recipe: Recipe, settings: Settings, num_train: int) -> Space:
    """What is searched, if it makes sense."""
    space = (
        parse_space(settings.space, "space") if settings.space else default_space(recipe, num_train)
    )
    check(space, recipe, num_train)
    return space


def _plan(recipe: Recipe, settings: Settings, inputs: Inputs) -> SearchPlan:
    """What decides the search."""
    num_train = inputs(recipe).num_train
    epochs = sum(phase.epochs for phase in recipe.phases)
    first = min(recipe.finetune.validate_every_epochs, recipe.phases[0].epochs)
    return SearchPlan(
        name=settings.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        recipe=recipe.name,
        science=science(recipe),
        data=inputs.digest,
        seed=settings.seed,
        space=_space(recipe, settings, num_train).plain(),
        sampler=settings.sampler,
        scheduler=settings.scheduler,
        reduction=settings.reduction,
        max_images=epochs * num_train,
        max_steps=epochs * steps_per_epoch(num_train, recipe.finetune.global_batch),
        first_images=first * num_train,
    )


@dataclass(frozen=True)
class Driver:
    """Runs Tune for one session of a search."""

    recipe: Recipe
    """With the workers of one trial."""
    settings: Settings
    records: Records
    logger: SearchLogger
    inputs: Inputs
    key: str
    """Fingerprint of the search."""

    def fit(self, suggest: Suggest, scheduler: TrialScheduler, slots: int) -> SearchCallback:
        """Train until there are no more trials, or until the session ends."""
        spec = self.recipe.cluster
        if isinstance(scheduler, Remembering):
            scheduler.remember(self.records.search)
        alone = spec.max_workers == 1
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are logged as ends
        actor = start_metrics_actor(self.key)
        with (
            tempfile.TemporaryDirectory(prefix="fcn-tune-", ignore_cleanup_errors=True) as folder,
            progress_bar() as progress,
        ):
            session = SearchCallback(
                *(self.recipe, self.settings, self.records, self.logger, actor, progress)
            )
            session.close_all()
            source = TrialSearcher(
                *(self.records, suggest, self.settings.trials, self.config_of, session.ending)
            )
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
        self.records.tick()
        if failure := session.failure or source.failure:
            raise failure
        session.close_all()
        return session

    def config_of(self, trial: Trial) -> dict[str, Any]:
        """What a trial's process is given."""
        recipe, records = self.recipe.changed(trial.overrides()), self.records
        keys = tuple(step.key for step in Flow(recipe).steps.values() if step.is_phase)
        place = (records.store, records.checkpoints_of(trial.number), self.inputs(recipe))
        return {"task": TrialTask(trial.number, recipe, *place, keys, self.key)}


@contextmanager
def _stopped_by_signals(session: SearchCallback) -> Iterator[None]:
    """The first SIGINT or SIGTERM lets trials save and stop; a second one does not wait."""
    before: dict[signal.Signals, Any] = {}

    def stop(number: int, frame: FrameType | None) -> None:
        session.stopped_by = f"stopped by {signal.Signals(number).name}"
        for each, handler in before.items():
            signal.signal(each, handler)

    before.update({number: signal.signal(number, stop) for number in STOPS})
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _conclude(recipe: Recipe, session: SearchCallback) -> Result:
    """Page and winner, for which there is no time after a signal; then why it ended early, if it did."""
    records, logger = session.records, session.logger
    search, best = records.search, records.search.best()
    page = write_report(search, records.store.cache / records.folder / "report")
    winner, scores, registered = None, None, ""
    if best is not None and best.status == "finished" and not session.stopped_by:
        winner = Winner(recipe, best, logger)
        winner.publish(records.checkpoints_of(best.number))
        scores = winner.score()
    logger.outcome(search, page.parent, scores.metrics() if scores else {})
    if winner and scores:
        registered = winner.register(scores)
    if session.halted:
        raise TrainingError(f"the search was ended: {session.halted}; see {page}")
    if session.stopped_by:
        raise StoppedError(f"{session.stopped_by}; the same command goes on with the search")
    return Result(search, page, scores, registered, logger.address)
