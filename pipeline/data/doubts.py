"""What may be wrong with a data set though all of its samples are right: said in words, with numbers.

What makes a data set useless stops the ingest instead; see `pipeline/stages/ingest.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.config.schema import Split
from pipeline.data.check import Facts
from pipeline.data.near import NEAR_BITS, nearest
from pipeline.results import Dataset, Doubt

MOSTLY_VOID_FRAC = 0.5
RARE_PX, RARE_FRAC = 100, 0.1
"""More than this share of the classes with fewer pixels than that in the train split is a doubt."""
MOVED_FRAC = 0.01
"""A greater share of pixels that overlap, or whose colour is no class's own, is a doubt."""
LARGE_FACTOR = 16
"""An image with so many times the pixels of the median one is a doubt."""
NAMED = 8
"""Names in a line; of others their number."""


class Pair(NamedTuple):
    """An image of an evaluated split, and the one of the train split that is nearly the same."""

    split: Split
    evaluated: Facts
    train: Facts
    bits: int


def near_duplicates(facts: Mapping[Split, Sequence[Facts]]) -> list[Pair]:
    """Images of val and test that are nearly the same as one of train, the nearest pairs first."""
    train = facts.get("train", ())
    hashes = [row.perceptual_hash for row in train]
    pairs = [
        Pair(split, rows[found.ours], train[found.theirs], found.bits)
        for split, rows in facts.items()
        if split != "train"
        for found in nearest([row.perceptual_hash for row in rows], hashes)
    ]
    return sorted(pairs, key=lambda pair: pair.bits)


def find_doubts(
    data: Dataset,
    names: Sequence[str],
    facts: Mapping[Split, Sequence[Facts]],
    pairs: Sequence[Pair],
) -> list[Doubt]:
    """All doubts about a data set with these class names, what matters most first."""
    return [
        *_absent_classes(data, names),
        *_near(data, pairs),
        *_void(data),
        *_rare_classes(data, names),
        *_labels(data),
        *_large(facts),
    ]


def _absent_classes(data: Dataset, names: Sequence[str]) -> Iterator[Doubt]:
    for split, px in data.class_px.items():
        absent = [name for name, n in zip(names, px, strict=True) if not n]
        if not absent or not data.counts[split]:
            continue
        what = (
            "they cannot be learned. Take them out of data.classes, or add images with them"
            if split == "train"
            else "its scores say nothing about them"
        )
        yield Doubt(
            level="warning",
            text=f"{len(absent)} of {len(names)} classes not found in the labels of {split}, "
            f"{_listed(absent)}: {what}",
        )


def _near(data: Dataset, pairs: Sequence[Pair]) -> Iterator[Doubt]:
    for split in dict.fromkeys(pair.split for pair in pairs):
        mine = [pair for pair in pairs if pair.split == split]
        first = [f"{split}/{p.evaluated.id} and train/{p.train.id}" for p in mine]
        yield Doubt(
            level="warning",
            text=f"{len(mine)} of {data.counts[split]} images of {split} are nearly the same as one of "
            f"train: at most {NEAR_BITS} of 64 bits of their perceptual hashes differ "
            f"({_listed(first, 3)}). Scores on them may be too good; look at the pairs in the data "
            "report. Images of one video or patient belong in one split (data.held_out.group)",
        )


def _void(data: Dataset) -> Iterator[Doubt]:
    for split, void in data.void_px.items():
        total = void + sum(data.class_px[split])
        if void > MOSTLY_VOID_FRAC * total:
            yield Doubt(
                level="warning",
                text=f"{void / total:.1%} of the pixels of {split} are void: neither trained on nor "
                "scored. Look at data.void_ids, data.label_map and the pictures in the data report",
            )


def _rare_classes(data: Dataset, names: Sequence[str]) -> Iterator[Doubt]:
    train = data.class_px.get("train", [])
    rare = [f"{name} {n} px" for name, n in zip(names, train, strict=False) if 0 < n < RARE_PX]
    if len(rare) > RARE_FRAC * len(names):
        yield Doubt(
            level="warning",
            text=f"{len(rare)} of {len(names)} classes have fewer than {RARE_PX} px in train "
            f"({_listed(rare)}), too few to learn them; merge them into others by data.label_map",
        )


def _labels(data: Dataset) -> Iterator[Doubt]:
    """What was decided for many pixels while labels were read."""
    total = sum(data.void_px.values()) + sum(map(sum, data.class_px.values()))
    decided = {
        "overlap_px": "were drawn on by more than one class, and the last one has them",
        "moved_px": "had a colour that is no class's own and became that of the nearest class "
        "(data.colour_tolerance)",
        "unknown_colour_px": "had a colour that no class has and became void "
        "(data.unknown_colours)",
    }
    for key, what in decided.items():
        if px := data.notes.get(key, 0):
            yield Doubt(
                level="warning" if px > MOVED_FRAC * total else "note",
                text=f"{px} px of the labels, {px / total:.2%}, {what}",
            )


def _large(facts: Mapping[Split, Sequence[Facts]]) -> Iterator[Doubt]:
    """Whole images are seen in validation: one that is far larger than others decides its memory."""
    rows = [(split, row) for split, mine in facts.items() for row in mine]
    sizes = np.array([row.height_px * row.width_px for _, row in rows])
    if not len(sizes):
        return
    largest, median = int(sizes.argmax()), float(np.median(sizes))
    if sizes[largest] > LARGE_FACTOR * median:
        split, row = rows[largest]
        longer = round(2 * median**0.5 / 32) * 32
        yield Doubt(
            level="warning",
            text=f"{split}/{row.id} has {row.width_px}x{row.height_px} px, "
            f"{sizes[largest] / median:.0f} times as many as the median image, and validation takes "
            f"whole images. data.max_side_px, such as {longer}, makes large ones smaller",
        )


def _listed(names: Sequence[str], most: int = NAMED) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
