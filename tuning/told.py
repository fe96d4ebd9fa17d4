"""What a search tells MLflow: a parent run, a child for each trial."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from pipeline.config.recipe import Recipe
from pipeline.tracking.client import Row, TrackingClient
from pipeline.tracking.run_logger import RunHandle, RunLogger
from tuning.events import Ending
from tuning.records import Search, Trial

STATUS: dict[Ending, str] = {
    "finished": "FINISHED",
    "pruned": "FINISHED",
    "failed": "FAILED",
    "stopped": "KILLED",
}
"""Of a trial's run in MLflow."""


class SearchLogger(RunLogger):
    """The search's parent run, open while it is under way."""

    def __init__(self, recipe: Recipe, store: Path, name: str, fingerprint: str) -> None:
        super().__init__(recipe, store, name, fingerprint)
        self._fingerprint = fingerprint
        self._trials: dict[int, RunHandle] = {}

    def begin(self, number: int, recipe: Recipe) -> None:
        """A trial is under way; its run is opened, or gone on with."""
        if number not in self._trials:
            run = self.child(f"trial {number}", f"{self._fingerprint}-{number}")
            self._trials[number] = run
            self.describe(run, recipe)

    def metrics(self, number: int, rows: list[Row]) -> None:
        """Of a trial, by its steps; what comes after its end was told with it."""
        if run := self._trials.get(number):
            self.log_rows(run, rows)

    def end(self, trial: Trial, rows: list[Row]) -> None:
        """A trial is over; all its metrics once more, in case some were lost on their way."""
        assert trial.status != "running"
        run = self._trials.pop(trial.number)
        self.log_rows(run, rows)
        reason = f": {trial.reason}" if trial.reason else ""
        words = {"fcn.ended": f"{trial.status}{reason}"[:4000]}
        self.tag(run, words | {"mlflow.note.content": f"{trial.status}{reason}"[:4000]})
        self.close(run, STATUS[trial.status])

    def forget(self, folder: Path) -> None:
        """Remove what a trial needed, once all that was to be told before is told."""
        self.do(lambda _: shutil.rmtree(folder, ignore_errors=True))

    def progress(self, search: Search) -> None:
        """The best so far, by the number of trials that are over."""
        best = search.best()
        if best is not None and best.mean_iu is not None:
            values = {"search/best_mean_iu": best.mean_iu, "search/best_trial": float(best.number)}
            self.log_rows(self.run, [(len(search.ended), values)])

    def outcome(self, search: Search, report: Path, metrics: dict[str, float]) -> None:
        """The page, its pictures, and which trial was the best."""
        best = search.best()
        self.log_rows(self.run, [(len(search.ended), metrics)] if metrics else [])
        self.do(lambda t: t.log_folder(self.run.id, report, "report"))
        counts = ", ".join(
            f"{search.count(status)} {status}" for status in STATUS if search.count(status)
        )
        words = f"{len(search.trials)} trials: {counts}"
        if best is not None and best.mean_iu is not None:
            words = f"best mean IU {best.mean_iu:.4f} by trial {best.number}; {words}"
            numbers = list(search.trials)
            self.do(lambda t: self._tag_best(t, best.number, numbers))
        self.do(lambda t: t.set_note(self.run.id, words))

    def run_of(self, tracker: TrackingClient, number: int) -> str | None:
        """Id of a trial's run."""
        return tracker.find_run(f"{self._fingerprint}-{number}", self.run.id)

    def _tag_best(self, tracker: TrackingClient, best: int, numbers: Sequence[int]) -> None:
        for number in numbers:
            if run_id := self.run_of(tracker, number):
                tracker.set_tags(run_id, {"fcn.best": str(number == best).lower()})
