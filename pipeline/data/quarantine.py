"""Samples that were not accepted: which, why, and what was seen."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Rejected:
    """One sample that will not be learned from."""

    split: str
    id: str
    reason: str
    """Which rule: undecodable, size mismatch, missing partner, unknown class, duplicate, leak, ..."""
    evidence: str
    """What was found, in words with the values."""
    path: str


def write_table(path: Path, rejected: Sequence[Rejected]) -> None:
    """A CSV with one row a sample; only the header if there are none."""
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, [field.name for field in fields(Rejected)])
        table.writeheader()
        table.writerows(asdict(row) for row in rejected)


def summary(rejected: Sequence[Rejected], most: int = 5) -> str:
    """Counts by reason, then the first few in full."""
    counts = ", ".join(f"{n} {reason}" for reason, n in Counter(r.reason for r in rejected).items())
    first = [f"  {r.split}/{r.id}: {r.reason}: {r.evidence}" for r in rejected[:most]]
    return "\n".join([counts, *first])
