"""A search from its beginning, or from where it stands, to its page and its winner."""

from __future__ import annotations

import logging
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import ray
from rich.progress import Progress, TaskID

from pipeline import cluster
from pipeline.config.recipe import Recipe
from pipeline.errors import StoppedError, TrainingError
from pipeline.flow import Flow
from pipeline.logs import progress_bar
from pipeline.results import Evaluation
from pipeline.storage.store import Store, fingerprint
from pipeline.training.model import require_receipt
from tuning.board import start_board
from tuning.check import check, check_population
from tuning.events import Journal, SearchBegun
from tuning.hunt import Hunt, Prepared
from tuning.records import Search
from tuning.report import write_report
from tuning.samplers import num_trials, sampler
from tuning.settings import Settings, known_num_train, rungs_of
from tuning.shelf import Shelf
from tuning.space import Space, default_space, parse_space
from tuning.told import SearchLogger
from tuning.tuner import train_all
from tuning.winner import Winner

log = logging.getLogger(__name__)

POLL_S = 0.5
MANY = 10**9
"""Images of a data set that nobody has counted: so many that weight decay cannot be inert."""
STOPS = (signal.SIGINT, signal.SIGTERM)


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


def run(recipe: Recipe, settings: Settings) -> Result:
    """Search, from where the journal of that name stands.

    Raises:
        RecipeError: a space that makes no sense, or another search has this name.
        ClusterError: not even one trial fits.
        TrainingError: too many trials failed.
        StoppedError: SIGINT or SIGTERM came; the same command goes on.
    """
    lean = recipe.changed([f"cluster.num_workers={settings.workers}"])
    check_early(lean, settings)
    store = Store(recipe.store)
    shelf = Shelf(store.folder("searches", settings.name))
    with store.flow(f"search-{settings.name}"):
        cluster.join(lean.cluster)
        at_most = settings.concurrent or settings.trials
        slots = cluster.trials_that_fit(lean.cluster, cluster.living_nodes(), at_most)
        key = fingerprint("search", settings.name, science(recipe))
        with SearchLogger(recipe, store.root, f"search {settings.name}", f"search-{key}") as told:
            inputs = Inputs(told)
            begun = _begin(lean, settings, inputs(lean).num_train, slots)
            space = Space.model_validate(begun.space)
            trials = num_trials(settings.sampler, space, lean, settings.trials)
            settings = settings.model_copy(update={"trials": trials})
            search = shelf.open(begun, recipe, settings)
            draw = sampler(settings.sampler, space, lean, settings.seed, settings.trials)
            hunt = Hunt(
                *(lean, settings, shelf.folder, Journal(shelf.journal), search, key, draw),
                *(told, inputs),
            )
            with Session(hunt, key, settings.budget_s):
                train_all(hunt, lean.cluster, slots, shelf.folder / "tune")
            return _conclude(recipe, hunt, inputs, told)


def check_early(recipe: Recipe, settings: Settings) -> None:
    """Refuse at once what can be refused without the data.

    Raises:
        RecipeError: a space that makes no sense.
    """
    num_train = known_num_train(recipe) or MANY
    if settings.space or num_train != MANY:
        _space(recipe, settings, num_train)


def science(recipe: Recipe) -> str:
    """Fingerprint of all of a recipe that decides numbers."""
    plain = recipe.plain()
    where = ("name", "cluster", "tracking", "register", "store")
    return fingerprint({k: v for k, v in plain.items() if k not in where})


class Inputs:
    """Data set and weights by recipe, computed once and told to the search's run."""

    def __init__(self, told: SearchLogger) -> None:
        self._told = told
        self._known: dict[str, Prepared] = {}
        self._files: dict[str, list[Path]] = {}

    def __call__(self, recipe: Recipe) -> Prepared:
        """What trials of a recipe start from."""
        plain = recipe.plain()
        key = fingerprint([plain[part] for part in ("data", "net", "transplant", "seed")])
        if key not in self._known:
            self._known[key] = self._prepare(recipe)
        return self._known[key]

    def files(self, split: str) -> list[Path]:
        """The shards of a split, which is the same for all trials."""
        return self._files[split]

    def _prepare(self, recipe: Recipe) -> Prepared:
        results = Flow(recipe).prepare(self._told).results
        data, surgery = results["ingest"], results.get("transplant")
        if surgery:
            require_receipt(surgery.folder)
        self._files = {split: data.paths(split) for split in data.counts}
        start = surgery.folder if surgery else None
        return Prepared(
            data.paths("train"),
            data.paths("val"),
            data.counts["train"],
            start,
        )


def _space(recipe: Recipe, settings: Settings, num_train: int) -> Space:
    """What is searched, if it makes sense."""
    space = (
        parse_space(settings.space, "space") if settings.space else default_space(recipe, num_train)
    )
    check(space, recipe, num_train)
    if settings.scheduler == "pbt":
        check_population(space, recipe)
    return space


def _begin(recipe: Recipe, settings: Settings, num_train: int, slots: int) -> SearchBegun:
    """What decides the search."""
    space = _space(recipe, settings, num_train)
    return SearchBegun(
        recipe=recipe.name,
        science=science(recipe),
        seed=settings.seed,
        space=space.model_dump(mode="json"),
        sampler=settings.sampler,
        scheduler=settings.scheduler,
        reduction=settings.reduction,
        rungs=rungs_of(recipe, num_train, settings),
        slots=slots,
    )


class Session:
    """The driver's time with a search: metrics to MLflow, the screen, the clock, signals."""

    def __init__(self, hunt: Hunt, key: str, budget_s: float | None) -> None:
        self.hunt, self.budget_s = hunt, budget_s
        self._spent_s, self._began = hunt.search.spent_s, time.monotonic()
        self._board = start_board(key)
        self._done = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._carry, name="search", daemon=True)

    def __enter__(self) -> None:
        self._before = {number: signal.signal(number, self._on_signal) for number in STOPS}
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        ray.kill(self._board)
        self.hunt.stop()
        if self._failure:
            raise self._failure

    def left_s(self) -> float | None:
        """Of the budget."""
        if self.budget_s is None:
            return None
        return self.budget_s - self._spent_s - (time.monotonic() - self._began)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.hunt.stopping = f"stopped by {signal.Signals(number).name}"
        for each, handler in self._before.items():  # a second one does not wait
            signal.signal(each, handler)

    def _carry(self) -> None:
        try:
            with progress_bar() as progress:
                bar = progress.add_task("trials", total=self.hunt.settings.trials, note="")
                while not self._done.wait(POLL_S):
                    self._look_at_the_clock()
                    self._drain()
                    self._show(progress, bar)
                self._drain()
                self._show(progress, bar)
        except Exception as failure:  # noqa: BLE001 - raised again when the block ends
            self._failure = failure
            self.hunt.stopping = str(failure)
            self._board.leave.remote()

    def _look_at_the_clock(self) -> None:
        left_s = self.left_s()
        if left_s is not None and left_s <= 0 and not self.hunt.stopping:
            self.hunt.stopping = "the budget is spent"
        if self.hunt.stopping:
            self._board.leave.remote()

    def _drain(self) -> None:
        for number, rows in ray.get(self._board.drain.remote()):
            self.hunt.told.metrics(number, rows)
        self.hunt.told.check()

    def _show(self, progress: Progress, bar: TaskID) -> None:
        search = self.hunt.search
        words = [f"{search.count(s)} {s}" for s in ("running", "pruned", "failed")]
        best = search.best()
        if best is not None and best.mean_iu is not None:
            words.insert(0, f"best {best.mean_iu:.4f} (trial {best.number})")
        left_s = self.left_s()
        if left_s is not None:
            words.append(f"{max(0.0, left_s) / 60:.0f} min of the budget left")
        progress.update(bar, completed=len(search.ended), note="  ".join(words))


def _conclude(recipe: Recipe, hunt: Hunt, inputs: Inputs, told: SearchLogger) -> Result:
    """Page and winner; then say why it ended early, if it did."""
    search = hunt.search
    page = write_report(search, hunt.folder / "report")
    best, registered, scores = search.best(), "", None
    if best is not None and best.status == "finished":
        winner = Winner(recipe, search, best, hunt.fingerprint)
        net = winner.publish(hunt.trial_folder(best.number))
        scores = winner.score(net, inputs.files)
    told.outcome(search, page.parent, scores.metrics() if scores else {})
    if scores:
        registered = winner.register(net, scores, told)
    if hunt.schedule.halted:
        raise TrainingError(f"the search was ended: {hunt.schedule.halted}; see {page}")
    if hunt.stopping.startswith("stopped"):
        raise StoppedError(f"{hunt.stopping}; the same command goes on with the search")
    return Result(search, page, scores, registered, told.address)
