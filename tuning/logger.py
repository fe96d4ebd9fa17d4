"""What a search logs to MLflow: a parent run, and a child for each trial."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.config.recipe import Recipe
from pipeline.tracking.client import Row, TrackingClient
from pipeline.tracking.run_logger import RunHandle, RunLogger
from tuning.records import Search, Status, Trial

STATUS: dict[Status, str] = {
    "finished": "FINISHED",
    "pruned": "FINISHED",
    "failed": "FAILED",
    "stopped": "KILLED",
}
"""The status of a trial's run in MLflow."""


class SearchLogger(RunLogger):
    """The search's parent run, open within the block."""

    def __init__(self, recipe: Recipe, store: Path, name: str, fingerprint: str) -> None:
        super().__init__(recipe, store, name, fingerprint)
        self._fingerprint = fingerprint
        self._trials: dict[int, RunHandle] = {}

    def begin(self, number: int, recipe: Recipe) -> None:
        """A trial is under way: its run is opened, or opened again."""
        if number not in self._trials:
            run = self.child(f"trial {number}", f"{self._fingerprint}-{number}")
            self._trials[number] = run
            self.describe(run, recipe)

    def metrics(self, number: int, rows: list[Row]) -> None:
        """Metrics of a trial by step; those that come after its end were logged with it."""
        if run := self._trials.get(number):
            self.log_rows(run, rows)

    def end(self, trial: Trial, rows: list[Row], search: Search) -> None:
        """A trial is over or stops; all its metrics once more, in case some were lost on their way.

        Then the best of the search so far, by the number of trials that are over.
        """
        run = self._trials.pop(trial.number)
        self.log_rows(run, rows)
        words = f"{trial.status}{f': {trial.reason}' if trial.reason else ''}"[:4000]
        self.tag(run, {"fcn.ended": words, "mlflow.note.content": words})
        self.close(run, STATUS[trial.status])
        if (best := search.best()) and best.mean_iu is not None:
            values = {"search/best_mean_iu": best.mean_iu, "search/best_trial": float(best.number)}
            self.log_rows(self.run, [(len(search.over()), values)])

    def outcome(self, search: Search, report: Path, metrics: dict[str, float]) -> None:
        """The page, its pictures, and which trial was the best."""
        self.log_rows(self.run, [(len(search.over()), metrics)] if metrics else [])
        self.do(lambda client: client.log_folder(self.run.id, report, "report"))
        if best := search.best():
            self.do(lambda client: self._tag_best(client, best.number, list(search.trials)))
        words = f"{len(search.trials)} trials: {search.words()}"
        self.do(lambda client: client.set_note(self.run.id, words))

    def run_of(self, client: TrackingClient, number: int) -> str | None:
        """The id of a trial's run."""
        return client.find_run(f"{self._fingerprint}-{number}", self.run.id)

    def _tag_best(self, client: TrackingClient, best: int, numbers: Sequence[int]) -> None:
        for number in numbers:
            if run_id := self.run_of(client, number):
                client.set_tags(run_id, {"fcn.best": str(number == best).lower()})
