"""What happens when Tune has news of a trial: it goes into the records, to MLflow and to the screen."""

# ruff: noqa: ANN401 - the signatures are those of tune.Callback

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa
import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from rich.progress import Progress, TaskID

from pipeline.config.recipe import Recipe
from pipeline.errors import RecipeError
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.progress import Row
from pipeline.training.state import HISTORY, History
from tuning.logger import SearchLogger
from tuning.records import UNDER_WAY, Records, Trial
from tuning.settings import Settings
from tuning.trainable import LEAVE_S, free_workers

log = logging.getLogger(__name__)

POLL_S = 0.5
TICK_S = 20.0
"""A killed session loses so much of its time from the search's clock, at most."""
MIN_FAILED = 3
"""Fewer failures never end a search."""


class SearchCallback(tune.Callback):
    """A session of a search: writes down what Tune says, and knows why the session is ending."""

    def __init__(
        self,
        recipe: Recipe,
        settings: Settings,
        records: Records,
        logger: SearchLogger,
        actor: Any,
        progress: Progress,
    ) -> None:
        self.recipe, self.settings = recipe, settings
        self.records, self.logger = records, logger
        self.stopped_by = self.halted = ""
        """A signal; too many failures."""
        self.failure: Exception | None = None
        """An error of ours, which is raised when Tune has ended."""
        self._actor, self._progress = actor, progress
        self._bar: TaskID = progress.add_task(
            "trials", total=records.search.plan.grid_trials or settings.trials, note=""
        )
        self._heard: dict[int, float] = {}
        """When each trial began or was last heard of."""
        self._polled = self._leaving = 0.0
        self._removable = {t.number: -LEAVE_S for t in records.search.over() if t.logged}
        """When each trial was logged whose checkpoints are not removed yet."""

    def ending(self) -> str:
        """Why no more trials begin; empty if they do."""
        budget_s = self.settings.budget_s
        spent = budget_s is not None and self.records.spent_s() >= budget_s
        failure = str(self.failure or "")
        return self.stopped_by or self.halted or failure or "the budget is spent" * spent

    def close_all(self) -> None:
        """Log trials that are over, but of which MLflow may lack something."""
        for trial in self.records.search.over():
            if not trial.logged:
                self._close(trial.number)
        self._clean(0)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles what it could restore; here the records are what is restored

    def on_trial_start(self, *args: Any, **info: Any) -> None:
        """A trial's process is there."""
        number = _number(info)
        self._heard[number] = time.monotonic()
        with self._keeping_failure():
            self.logger.begin(number, self._recipe_of(self.records.search.trials[number]))

    def on_trial_result(self, *args: Any, **info: Any) -> None:
        """A validation, and in `done` what the scheduler made of it; or how the trial ended."""
        number, result, now = _number(info), info["result"], time.monotonic()
        spent_s, self._heard[number] = now - self._heard.get(number, now), now
        step, changes = result["step"], {}
        with self._keeping_failure():
            if "failed" in result:
                changes = {"status": "failed", "reason": result["failed"]}
            elif "stopped" in result:
                changes = {"status": "stopped", "reason": self.ending()}
            elif result["images"] >= self.records.search.plan.max_images:
                changes = {"status": "finished"}
            elif result.get("done"):
                changes = {"status": "pruned", "reason": self._why_pruned(result)}
            if "mean_iu" in result:
                images, mean_iu = result["images"], result["mean_iu"]
                self.records.score(number, images, step, mean_iu, spent_s=spent_s, **changes)
            else:
                self.records.update(number, step, spent_s, **changes)

    def on_trial_complete(self, *args: Any, **info: Any) -> None:
        """A trial is over, or Tune stopped it without a result."""
        with self._keeping_failure():
            self._drain()
            self._settle(_number(info))

    def on_trial_recover(self, *args: Any, **info: Any) -> None:
        """A trial's process was lost; Tune starts it again."""
        with self._keeping_failure():
            free_workers(_number(info))
        words = "trial %d lost its process and goes on (%s)"
        log.warning(words, _number(info), _why(info["trial"]))

    def on_trial_error(self, *args: Any, **info: Any) -> None:
        """A trial's process was lost more often than it may be."""
        number, trial = _number(info), info["trial"]
        times = f"its process was lost {trial.num_failures} times, more than cluster.max_failures"
        with self._keeping_failure():
            free_workers(number)
            self.records.update(number, status="failed", reason=f"{times}: {_why(trial)}")
            self._close(number)

    def on_step_end(self, *args: Any, **info: Any) -> None:
        """Every now and then: metrics to MLflow, the clock, the screen."""
        now = time.monotonic()
        if now - self._polled < POLL_S:
            return
        self._polled = now
        with self._keeping_failure():
            self._drain()
            self._clean(LEAVE_S)
            self.records.tick(TICK_S)
            search, left = self.records.search, self.settings.words_left(self.records.spent_s())
            over = len(search.over())
            self._progress.update(self._bar, completed=over, note=search.words() + left)
        if self.ending() and not self._leaving:
            self._leaving = now
            self._actor.stop.remote()
        if self._leaving and now - self._leaving > LEAVE_S:
            self._leaving = now
            signal.raise_signal(signal.SIGUSR1)  # Tune stops what did not stop by itself

    def on_experiment_end(self, *args: Any, **info: Any) -> None:
        """The session ends; what is still under way goes on in the next."""
        with self._keeping_failure():
            self._drain()
            for trial in self.records.search.under_way():
                if trial.status == "running":
                    free_workers(trial.number)
                    self._settle(trial.number)

    def _settle(self, number: int) -> None:
        """Close a trial; one that is said to be running has come to an end without a result."""
        ending, search = self.ending(), self.records.search
        if search.trials[number].status == "running":
            status, reason = (
                ("stopped", ending) if ending else ("pruned", f"by {search.plan.scheduler}")
            )
            self.records.update(number, status=status, reason=reason)
        self._close(number)

    def _why_pruned(self, result: dict[str, Any]) -> str:
        plan = self.records.search.plan
        share = result["images"] / plan.max_images
        words = f"by {plan.scheduler} after {share:.0%} of its training, at mean IU"
        return f"{words} {result['mean_iu']:.4f}"

    def _recipe_of(self, trial: Trial) -> Recipe:
        with suppress(RecipeError):  # it failed because the recipe refuses its point
            return self.recipe.changed(trial.overrides())
        return self.recipe

    def _close(self, number: int) -> None:
        """Log a trial that is over or stops; its checkpoints go when MLflow has all of it."""
        search, limit = self.records.search, self.settings.max_failed
        trial = search.trials[number]
        recipe = self._recipe_of(trial)
        self.logger.begin(number, recipe)
        self.logger.end(trial, history(self.records, number, recipe), search)
        if trial.status not in UNDER_WAY:
            self.logger.after(lambda: self._forget(number))
        log.info("%s", sentence(trial))
        over = search.over()
        failed = [t for t in over if t.status == "failed"]
        if len(failed) >= MIN_FAILED and len(failed) > limit * len(over):
            self.halted = (
                f"{len(failed)} of the {len(over)} trials that are over failed, more than the "
                f"{limit:.0%} of --max-failed; the last: {failed[-1].reason}"
            )

    def _forget(self, number: int) -> None:
        """MLflow has all of a trial: its checkpoints may go."""
        self.records.update(number, logged=True)
        self._removable[number] = time.monotonic()

    def _clean(self, after_s: float) -> None:
        """Remove checkpoints that only the best trial needs, and what its workers may have left.

        Not at once: the workers of a trial that was stopped may still be saving. If they failed to,
        Ray Train would start them again.
        """
        best = self.records.search.best()
        for number, since in list(self._removable.items()):
            if time.monotonic() - since >= after_s and number != (best and best.number):
                free_workers(number)
                self.records.store.remove(self.records.checkpoints_of(number))
                del self._removable[number]

    def _drain(self) -> None:
        rows, texts = ray.get(self._actor.drain.remote())
        for text in texts:
            log.warning("%s", text)
        for number, new in rows.items():
            self.logger.metrics(number, new)

    @contextmanager
    def _keeping_failure(self) -> Iterator[None]:
        """An error of ours ends the search in order, and is raised after Tune's end."""
        try:
            yield
        except Exception as failure:  # noqa: BLE001 - raised by the driver
            self.failure = self.failure or failure


def history(records: Records, number: int, recipe: Recipe) -> list[Row]:
    """All metrics of a trial, from its checkpoints; nothing else of them is downloaded."""
    rows: list[Row] = []
    before, files = 0, records.store.files
    num_train = records.search.plan.max_images // sum(phase.epochs for phase in recipe.phases)
    for index, phase in enumerate(recipe.phases):
        checkpoints = Checkpoints(files, f"{records.checkpoints_of(number)}/{index}")
        for name in checkpoints.names():
            content = files.read(f"{checkpoints.prefix}/{name}/{HISTORY}")
            with suppress(pa.ArrowInvalid):  # a damaged one says nothing, and the one before less
                found = History.parse(content or b"").rows()
                rows += [(before + step, metrics) for step, metrics in found]
                break
        before += recipe.num_steps(phase, num_train)
    return rows


def sentence(trial: Trial) -> str:
    """How a trial ended, for a line on the screen."""
    score = f"mean IU {trial.mean_iu:.4f}; " if trial.mean_iu is not None else ""
    why = f" ({trial.reason})" if trial.reason else ""
    words = f"trial {trial.number} {trial.status} after step {trial.steps}{why}"
    return f"{words}: {score}{'  '.join(trial.overrides())}"


def _number(info: dict[str, Any]) -> int:
    return int(info["trial"].config["number"])


def _why(trial: TuneTrial) -> str:
    error = trial.get_error()
    return str(error).strip().splitlines()[-1] if error else "its process died"
