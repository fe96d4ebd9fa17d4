"""What every source offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pipeline.config.schema import Split


@dataclass(frozen=True)
class Sample:
    """One image and where it and its label are to be had."""

    split: Split
    id: str
    image: str
    label: str


@dataclass(frozen=True)
class Rejected:
    """A sample that will not be learned from: a row of the quarantine."""

    split: str
    id: str
    reason: str
    """Which rule: undecodable image, size mismatch, missing partner, unknown class, duplicate, ..."""
    evidence: str
    """What was found, in words with the values."""
    path: str


class Source(Protocol):
    """A data set as it is found."""

    def samples(self) -> tuple[list[Sample], list[Rejected]]:
        """All samples in a fixed order, and those that are not whole."""

    def read(self, sample: Sample) -> tuple[bytes, bytes]:
        """Encoded image and encoded label map of a sample."""

    def state(self) -> str:
        """Changes when the files do; part of the fingerprint of the ingest."""
