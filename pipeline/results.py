"""What each stage leaves behind: the only words in which stages speak to each other and to loggers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from fcn.images import InputRule
from pipeline.config.schema import Split
from pipeline.errors import DataError

RECEIPT = "receipt.json"
"""The file beside a net that lists what became of every pretrained tensor."""
QUARANTINE, REPORT = "quarantine.csv", "report.html"
"""The files beside a data set's shards: the samples that were rejected, and the page for its reader."""


class Doubt(BaseModel):
    """What may be wrong with a data set, in words, with numbers and what to do."""

    level: Literal["warning", "note"]
    text: str


class Dataset(BaseModel):
    """The result of ingest: shards by split and what is in them."""

    folder: Path
    files: dict[Split, list[str]]
    counts: dict[Split, int]
    class_px: dict[Split, list[int]]
    void_px: dict[Split, int]
    notes: dict[str, int]
    """What was decided while labels were read, in px by name, and the number of `scaled` images."""
    range: tuple[float, float] | None
    max_side_px: int | None
    rows: dict[str, int]
    """The number of samples in each shard."""
    num_seen: int
    num_quarantined: int
    digest: str
    """Hash of the content of all accepted samples, in order."""
    doubts: list[Doubt] = []

    def input_rule(self) -> InputRule:
        """How the images were read, and have to be read for a net that learned from them."""
        return InputRule(self.range, self.max_side_px)

    def names(self, split: Split) -> list[str]:
        """File names of the shards of a split.

        Raises:
            DataError: there is no such split.
        """
        if split not in self.files:
            raise DataError(f"the data set has no split {split}; it has {', '.join(self.files)}")
        return self.files[split]

    def paths(self, split: Split) -> list[Path]:
        """The shards of a split, where the stage wrote them."""
        return [self.folder / name for name in self.names(split)]

    def shard_rows(self, split: Split) -> list[int]:
        """The number of samples in each shard of a split."""
        return [self.rows[name] for name in self.names(split)]


class Transplanted(BaseModel):
    """The result of transplant: a net ready for fine-tuning, and the summary of its receipt."""

    folder: Path
    source: str
    copied: int
    reshaped: int
    initialised: int
    dropped: int
    max_difference: float
    tolerance: float
    proof: str


class TrainedNet(BaseModel):
    """The result of a phase of finetune: its best net by validation."""

    folder: Path
    steps: int
    metrics: dict[str, float]
    """Metrics of the validation at which the net was the best."""


class Evaluation(BaseModel):
    """The result of evaluate; `folder` also holds confusion.json and pictures."""

    folder: Path
    split: Split
    num_images: int
    pixel_accuracy: float
    mean_accuracy: float
    mean_iu: float
    frequency_weighted_iu: float
    class_iu: dict[str, float | None]
    """None if the class is nowhere in the split and was never predicted."""
    absent: list[str]
    """Classes that are nowhere in the labels of the split: no accuracy, and an IU of 0 or none."""

    def metrics(self) -> dict[str, float]:
        """All scores by name, for tracking; classes without an IU are left out."""
        names = ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu")
        found = {f"{self.split}/{name}": getattr(self, name) for name in names}
        classes = {f"{self.split}/iu/{k}": v for k, v in self.class_iu.items() if v is not None}
        return found | classes | {f"{self.split}/num_images": float(self.num_images)}


class Registered(BaseModel):
    """The result of register: a version of a registered model, and what the gate decided."""

    model: str
    version: int
    champion: bool
    """Whether the alias moved to this version."""
    reason: str

    def sentence(self) -> str:
        """The outcome in words."""
        took = "took" if self.champion else "did not take"
        return f"models:/{self.model}/{self.version} {took} @champion: {self.reason}"
