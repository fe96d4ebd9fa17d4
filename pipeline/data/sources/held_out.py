"""Splits that are made: a seeded share of the train split, by groups of samples that belong together."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.config.data import HeldOutSpec
from pipeline.config.schema import Split
from pipeline.data.sources.base import Drawn, Rejected, Sample, Source
from pipeline.errors import DataError


@dataclass(frozen=True)
class HeldOutSource:
    """Another source, with some of its train samples in the splits that the recipe makes."""

    source: Source
    spec: HeldOutSpec

    def samples(self) -> tuple[list[Sample], list[Rejected]]:
        """As the other source's; the splits that are made come last."""
        samples, rejected = self.source.samples()
        splits = hold_out([s.id for s in samples if s.split == "train"], self.spec)
        moved = [replace(s, split=splits[s.id]) if s.split == "train" else s for s in samples]
        order = {
            split: i for i, split in enumerate(dict.fromkeys(["train", *(s.split for s in moved)]))
        }
        return sorted(moved, key=lambda s: order[s.split]), rejected

    def read(self, sample: Sample) -> tuple[bytes, bytes | Drawn]:
        """As the other source does."""
        return self.source.read(sample)

    def state(self) -> str:
        """As the other source's; the shares are in the recipe already."""
        return self.source.state()


def hold_out(names: Sequence[str], spec: HeldOutSpec) -> Mapping[str, Split]:
    """The split of each sample: train, or one that is made.

    Groups are taken in the order of a hash of the seed and their text, so which they are does not depend
    on the order of the files.

    Raises:
        DataError: there are too few groups to make the splits of.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(group_of(name, spec.group), []).append(name)
    waiting = sorted(groups, key=lambda g: hashlib.sha256(f"{spec.seed}/{g}".encode()).digest())
    splits: dict[str, Split] = dict.fromkeys(names, "train")
    for split in spec.splits():
        wanted = round((getattr(spec, split) or 0) * len(names))
        taken = 0
        while waiting and taken < max(1, wanted):
            if len(waiting) == 1:
                raise DataError(
                    f"held_out cannot make {split}: the {len(names)} samples are {len(groups)} groups, "
                    "and one has to be left to train on; use smaller shares or another "
                    "data.held_out.group"
                )
            members = groups[waiting.pop(0)]
            splits |= dict.fromkeys(members, split)
            taken += len(members)
    return splits


def group_of(name: str, pattern: str | None) -> str:
    """What a sample's group is called: the text that the expression finds, else the sample's name."""
    match = re.search(pattern, name) if pattern else None
    if match is None:
        return name
    return match[1] if match.re.groups else match[0]
