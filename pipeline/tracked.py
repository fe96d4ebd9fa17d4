"""What a flow tells MLflow: one parent run, a child for each phase of the fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from pipeline import pictures
from pipeline.pretrained import RECEIPT
from pipeline.recipe import Recipe
from pipeline.specs import Split
from pipeline.store import Store
from pipeline.tracking import Tracker, environment

Rows = list[tuple[int, dict[str, float]]]


class HasFolder(Protocol):
    """A stage's result with files."""

    folder: Path


class DatasetLike(HasFolder, Protocol):
    """A data set with the digest of its content."""

    digest: str


class NetLike(HasFolder, Protocol):
    """A trained net with the metrics of its best validation."""

    metrics: dict[str, float]


class ScoresLike(HasFolder, Protocol):
    """An evaluation."""

    split: Split
    mean_iu: float

    def metrics(self) -> dict[str, float]:
        """By name."""


class Tracked:
    """The flow's parent run, open while the flow runs."""

    def __init__(self, recipe: Recipe, store: Store, fingerprint: str) -> None:
        self.recipe = recipe
        self.tracker = Tracker(recipe.tracking, store.root)
        self.address = self.tracker.uri
        self.run_id = self.tracker.open_run(recipe.name, fingerprint)
        self.tracker.log_params(self.run_id, recipe.flat())
        self.tracker.log_text(self.run_id, recipe.to_yaml(), "recipe.yaml")
        self.tracker.log_text(self.run_id, environment(), "environment.txt")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.tracker.close_run(self.run_id, ok=error is None)

    @contextmanager
    def phase(self, name: str, fingerprint: str) -> Iterator[Callable[[Rows], None]]:
        """The child run of a phase; gives what takes its metrics by step."""
        run_id = self.tracker.open_run(name, fingerprint, self.run_id)
        ok = False
        try:
            yield lambda rows: self.tracker.log_rows(run_id, rows)
            ok = True
        finally:
            self.tracker.close_run(run_id, ok=ok)

    def dataset(self, data: DatasetLike) -> None:
        """The data set as the run's input, its quarantine as an artifact."""
        name = f"{self.recipe.data.source}-{self.recipe.name}"
        self.tracker.log_dataset(self.run_id, name, data.folder, data.digest)
        self.tracker.log_file(self.run_id, data.folder / "quarantine.csv", "data")

    def receipt(self, surgery: HasFolder) -> None:
        """The proof of the transplant."""
        self.tracker.log_file(self.run_id, surgery.folder / RECEIPT, "transplant")

    def evaluation(self, scores: ScoresLike, net: NetLike, phases: Mapping[str, str]) -> None:
        """Scores and pictures on the parent run, which is the one that a list of runs shows."""
        runs = {n: run for n, key in phases.items() if (run := self.tracker.find_run(key))}
        loss, mean_iu = (
            {
                name: points
                for name, run in runs.items()
                if (points := self.tracker.history(run, key))
            }
            for key in ("train/loss", "val/mean_iu")
        )
        with self.tracker.scratch() as folder:
            pictures.curves(folder / "curves.png", loss, mean_iu)
            self.tracker.log_folder(self.run_id, folder, "evaluation")
        self.tracker.log_scores(self.run_id, scores.metrics() | net.metrics)
        self.tracker.log_folder(self.run_id, scores.folder, "evaluation")

    def note(self, scores: ScoresLike, outcome: str) -> None:
        """The result in words, on the run's page."""
        text = f"mean IU {scores.mean_iu:.4f} on {scores.split}; {outcome}"
        self.tracker.set_note(self.run_id, text)
