"""What the data report is about: numbers, and which samples it shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fcn.labels import ClassTable
from pipeline.config.recipe import Recipe
from pipeline.config.schema import Split
from pipeline.data.check import Facts
from pipeline.data.doubts import Pair
from pipeline.data.sources import Rejected
from pipeline.results import Dataset
from pipeline.storage.store import StagedFile

MOST_SHOWN, MOST_PAIRS, MOST_REJECTED = 12, 6, 12
"""Pictures on the page, so that it costs the same for any data set."""
MOST_LABELS = 12
"""Labels that the bounds of mean IU are computed on."""
CANDIDATES = 1000
"""Samples of a split among which those that are shown are chosen."""


T = TypeVar("T")


class Written(NamedTuple):
    """A shard that was written, and what is known of its rows, in their order."""

    file: StagedFile
    split: Split
    facts: Sequence[Facts]


class Place(NamedTuple):
    """A row of a shard, and the split and the name of its sample."""

    file: StagedFile
    row: int
    split: Split
    id: str


@dataclass(frozen=True)
class Content:
    """All that the page needs; it travels to the task that draws it."""

    title: str
    origin: str
    """The layout and the folder of the data set."""
    data: Dataset
    table: ClassTable
    sizes: Mapping[Split, Mapping[tuple[int, int], int]]
    """How many images have a width and height in px."""
    images_with: Mapping[Split, Sequence[int]]
    """In how many images each class is."""
    shown: Sequence[Place]
    labels: Sequence[Place]
    """The sample on which the bounds of mean IU are computed."""
    pairs: Sequence[tuple[Place, Place, int]]
    """Near-duplicates, and in how many bits they differ."""
    num_pairs: int
    rejected: Sequence[Rejected]
    """A few for each reason."""
    num_rejected: Mapping[str, int]


def facts_by_split(written: Iterable[Written]) -> dict[Split, list[Facts]]:
    """What is known of the samples of each split, in order."""
    facts: dict[Split, list[Facts]] = {}
    for shard in written:
        facts.setdefault(shard.split, []).extend(shard.facts)
    return facts


def gather(
    recipe: Recipe,
    data: Dataset,
    written: Sequence[Written],
    pairs: Sequence[Pair],
    rejected: Sequence[Rejected],
) -> Content:
    """The content of the report; no file is read."""
    table, root = recipe.data.class_table(), recipe.data.root
    shown = _shown(written)
    reasons = Counter(row.reason for row in rejected)
    each = max(1, MOST_REJECTED // max(1, len(reasons)))
    return Content(
        title=recipe.name,
        origin=f"{recipe.data.source}, {root.absolute()}" if root else recipe.data.source,
        data=data,
        table=table,
        sizes=_sizes(written),
        images_with=_images_with(written, len(table)),
        shown=shown,
        labels=_labels(written, shown),
        pairs=_places(written, pairs[:MOST_PAIRS]),
        num_pairs=len(pairs),
        rejected=[
            row
            for reason in reasons
            for row in [row for row in rejected if row.reason == reason][:each]
        ],
        num_rejected=dict(reasons.most_common()),
    )


def _sizes(written: Sequence[Written]) -> dict[Split, Counter[tuple[int, int]]]:
    sizes: dict[Split, Counter[tuple[int, int]]] = {}
    for shard in written:
        mine = sizes.setdefault(shard.split, Counter())
        mine.update((row.width_px, row.height_px) for row in shard.facts)
    return sizes


def _images_with(written: Sequence[Written], num_classes: int) -> dict[Split, list[int]]:
    images: dict[Split, NDArray[np.int64]] = {}
    for shard in written:
        there = _class_px(shard.facts, num_classes) > 0
        images[shard.split] = images.get(shard.split, np.zeros(num_classes, np.int64)) + there.sum(
            0
        )
    return {split: counts.tolist() for split, counts in images.items()}


def _class_px(rows: Sequence[Facts], num_classes: int) -> NDArray[np.int64]:
    """Pixels (rows, classes)."""
    return np.array([row.class_px for row in rows], np.int64).reshape(len(rows), num_classes)


def _shown(written: Sequence[Written]) -> list[Place]:
    """Samples of all splits that show as many classes as possible."""
    splits = list(dict.fromkeys(shard.split for shard in written if shard.facts))
    shown = []
    for split in splits:
        rows = [
            (Place(shard.file, n, split, row.id), row)
            for shard in written
            if shard.split == split
            for n, row in enumerate(shard.facts)
        ]
        rows = _spread(rows, CANDIDATES)
        chosen = _choose([row for _, row in rows], MOST_SHOWN // len(splits))
        shown += [rows[i][0] for i in chosen]
    return shown


def _choose(rows: Sequence[Facts], most: int) -> list[int]:
    """Positions of the images with most of each class, the rarest first; then of evenly spread ones."""
    px = _class_px(rows, len(rows[0].class_px))
    share = px / np.maximum(px.sum(1, keepdims=True), 1)
    chosen: list[int] = []
    for k in np.argsort(px.sum(0), kind="stable"):
        best = int(share[:, k].argmax())
        if len(chosen) < most and share[best, k] > 0 and not px[chosen, k].any():
            chosen.append(best)
    rest = [i for i in _spread(range(len(rows)), most) if i not in chosen]
    return sorted([*chosen, *rest[: most - len(chosen)]])


def _labels(written: Sequence[Written], shown: Sequence[Place]) -> list[Place]:
    """Evenly spread rows of the shards that are read anyway."""
    names = {place.file.name for place in shown}
    shards = [shard for shard in written if shard.file.name in names]
    return [
        Place(shard.file, n, shard.split, shard.facts[n].id)
        for shard in shards
        for n in _spread(range(len(shard.facts)), max(1, MOST_LABELS // len(shards)))
    ]


def _places(written: Sequence[Written], pairs: Sequence[Pair]) -> list[tuple[Place, Place, int]]:
    wanted = {(p.split, p.evaluated.id) for p in pairs} | {("train", p.train.id) for p in pairs}
    places = {
        (shard.split, row.id): Place(shard.file, n, shard.split, row.id)
        for shard in written
        for n, row in enumerate(shard.facts)
        if (shard.split, row.id) in wanted
    }
    return [(places[p.split, p.evaluated.id], places["train", p.train.id], p.bits) for p in pairs]


def _spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many of the items, evenly spread."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).astype(int)]
