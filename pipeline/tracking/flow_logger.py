"""What a flow tells MLflow: one parent run, a child for each phase of the fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipeline.config.recipe import Recipe
from pipeline.results import Evaluation, TrainedNet
from pipeline.storage.store import Marker
from pipeline.tracking import plots
from pipeline.tracking.client import Row, TrackingClient
from pipeline.tracking.run_logger import RunLogger, status_after


class FlowLogger(RunLogger):
    """The flow's parent run, open while the flow runs."""

    def __init__(
        self, recipe: Recipe, store: Path, fingerprint: str, mark: Callable[[str], Marker]
    ) -> None:
        super().__init__(recipe, store, recipe.name, fingerprint)
        self._mark_of = mark
        self._evaluated: str | None = None

    def finished(self) -> None:
        """What was evaluated in it has been told."""
        if self._evaluated:
            self._mark(self._evaluated)

    @contextmanager
    def phase(self, name: str, fingerprint: str) -> Iterator[Callable[[list[Row]], None]]:
        """The child run of a phase; gives what takes its metrics by step."""
        self._mark_of(fingerprint).clear()
        run = self.child(name, fingerprint)
        try:
            yield lambda rows: self.rows(run, rows)
        except BaseException as error:
            self.close(run, status_after(type(error)))
            raise
        self.close(run, "FINISHED")
        self._mark(fingerprint)

    def history(self, name: str, fingerprint: str, rows: list[Row]) -> None:
        """All metrics of a phase that ended while MLflow was away."""
        self.check()
        run = self._open_run(lambda t: t.open_phase(name, fingerprint, self.run.id))
        self.rows(run, rows)
        self.close(run, "FINISHED")
        self._mark(fingerprint)

    def evaluation(
        self, fingerprint: str, scores: Evaluation, net: TrainedNet, phases: Mapping[str, str]
    ) -> None:
        """Scores and pictures on the parent run, which is the one that a list of runs shows."""
        self.check()
        self._evaluated = fingerprint
        self.rows(self.run, [(0, scores.metrics() | net.metrics)])
        self.do(lambda t: self._curves(t, phases))
        self.do(lambda t: t.log_folder(self.run.id, scores.folder, "evaluation"))

    def note(self, scores: Evaluation, outcome: str) -> None:
        """The result in words, on the run's page."""
        text = f"mean IU {scores.mean_iu:.4f} on {scores.split}; {outcome}"
        self.do(lambda t: t.set_note(self.run.id, text))

    def _mark(self, fingerprint: str) -> None:
        """MLflow has been told all that was to be told before."""
        self._recorder.do(self._mark_of(fingerprint).set)

    def _curves(self, tracker: TrackingClient, phases: Mapping[str, str]) -> None:
        """Of all phases, from what MLflow has: also of those that other flows trained."""
        runs = {n: run for n, key in phases.items() if (run := tracker.find_phase(key))}
        loss, mean_iu = (
            {name: points for name, run in runs.items() if (points := tracker.history(run, key))}
            for key in ("train/loss", "val/mean_iu")
        )
        with tracker.scratch() as folder:
            plots.curves(folder / "curves.png", loss, mean_iu)
            tracker.log_folder(self.run.id, folder, "evaluation")
