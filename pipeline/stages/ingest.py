"""Stage 1: any data set into checked, memory-mapped Arrow shards; what is wrong into quarantine.

Each sample is read and decoded once. Tasks check chunks of samples and leave the rows in Ray's
object store; the driver decides by hashes which rows are duplicates; tasks then write the others.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import ray

from fcn.images import AS_STORED, InputRule
from fcn.labels import NO_RULE, VOID, ClassTable
from pipeline import cluster
from pipeline.config.recipe import Recipe
from pipeline.config.schema import Split
from pipeline.data.check import Facts, Rules, check_samples, find_range
from pipeline.data.doubts import find_doubts, near_duplicates
from pipeline.data.report import Written, facts_by_split, gather, page
from pipeline.data.shards import Row, write_shard
from pipeline.data.sources import Rejected, Sample, Source, open_source
from pipeline.errors import DataError
from pipeline.logs import progress_bar
from pipeline.results import QUARANTINE, REPORT, Dataset
from pipeline.storage.store import OBJECTS, StagedFile, Store

log = logging.getLogger(__name__)

SHARD_ROWS = 64
"""Samples in a shard, and in a task."""
QUARANTINED_FRAC = 0.01
MANY_QUARANTINED = 3
"""So many rejected samples never stop an ingest, unless the recipe says so: 1 in 36 is more than 1 %."""
RANK: dict[Split, int] = {"test": 0, "val": 1, "train": 2}
"""Of an image that is in two splits, the copy in the split of the lower rank stays."""


@dataclass
class Shard:
    """A file of the data set and what is in it."""

    file: str
    split: Split
    accepted: list[Facts]
    """In the order of the rows."""
    rejected: list[Rejected]


def run(recipe: Recipe, store: Store, fingerprint: str) -> Dataset:
    """Check every sample, write the accepted ones, publish the data set.

    Raises:
        DataError: nothing found, a split is empty, or too much was rejected.
    """
    source = open_source(recipe)
    samples, rejected = source.samples()
    chunks = list(_chunks(samples))
    names = [f"{chunk[0].split}-{i:05d}.arrow" for i, chunk in enumerate(chunks)]
    manifest: dict[str, object] = {}
    with store.publish("datasets", fingerprint, manifest) as draft:
        parts = [store.stage_file(draft, name) for name in names]
        rules = Rules(_input_rule(recipe, source, chunks), recipe.data.label_rule())
        shards, objects = _write_shards(recipe, rules, source, chunks, parts)
        rejected += [r for shard in shards for r in shard.rejected]
        _write_quarantine(draft / QUARANTINE, rejected)
        dataset = _describe(draft, shards, rules, rejected)
        written = [Written(p, s.split, s.accepted) for p, s in zip(parts, shards, strict=True)]
        dataset = _look_over(recipe, dataset, written, rejected)
        if complaint := _complaint(recipe, dataset, rejected):
            kept = [store.cache / "datasets" / f"{fingerprint}.{n}" for n in (QUARANTINE, REPORT)]
            for path in kept:
                shutil.copy(draft / path.name.removeprefix(f"{fingerprint}."), path)
            raise DataError(f"{complaint}\nAll of them are listed in {kept[0]}, see also {kept[1]}")
        manifest |= dataset.model_dump(mode="json") | ({OBJECTS: objects} if objects else {})
    log.info(
        "ingested %d images (%s), %d quarantined",
        dataset.num_seen - dataset.num_quarantined,
        ", ".join(f"{n} {split}" for split, n in dataset.counts.items()),
        dataset.num_quarantined,
    )
    for doubt in dataset.doubts:
        log.log(logging.WARNING if doubt.level == "warning" else logging.INFO, "%s", doubt.text)
    return dataset


def _chunks(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    for _, group in groupby(samples, key=lambda sample: sample.split):
        same_split = list(group)
        for start in range(0, len(same_split), SHARD_ROWS):
            yield same_split[start : start + SHARD_ROWS]


def _write_shards(
    recipe: Recipe,
    rules: Rules,
    source: Source,
    chunks: Sequence[list[Sample]],
    parts: Sequence[StagedFile],
) -> tuple[list[Shard], dict[str, Any]]:
    """Shards in the order of the chunks, and what the manifest must say of their files.

    Chunks are decided on in the order of `RANK`, so whether a row is a duplicate is known once the
    chunks before it are checked: a shard is written once, while later chunks are being checked.
    """
    check = ray.remote(check_samples).options(num_cpus=1, max_retries=3, num_returns=2)
    write = ray.remote(_write_part).options(num_cpus=1, max_retries=3)
    source_ref, table = ray.put(source), recipe.data.class_table()
    order = sorted(range(len(chunks)), key=lambda i: RANK[chunks[i][0].split])

    def submit(i: int) -> Any:  # noqa: ANN401 - Ray's references
        return check.remote(source_ref, chunks[i], rules)

    shards: dict[int, Shard] = {}
    seen: dict[str, str] = {}
    written: list[Any] = []
    with progress_bar() as progress:
        bar = progress.add_task("ingest", total=sum(map(len, chunks)), note="images")
        for i, (facts_ref, rows_ref) in _in_flight(submit, order):
            facts, rejected = cluster.get(facts_ref)
            split = chunks[i][0].split
            doubles = _doubles(split, facts, seen)
            keep = [n for n in range(len(facts)) if n not in doubles]
            written.append(write.remote(parts[i], rows_ref, keep, split, table))
            accepted, rejected = [facts[n] for n in keep], [*rejected, *doubles.values()]
            shards[i] = Shard(parts[i].name, split, accepted, rejected)
            progress.advance(bar, len(chunks[i]))
        objects = [cluster.get(ref) for ref in written]
    return [shards[i] for i in sorted(shards)], {
        k: v for found in objects for k, v in found.items()
    }


def _input_rule(recipe: Recipe, source: Source, chunks: Sequence[list[Sample]]) -> InputRule:
    """The recipe's rule for images, with the train split's range where it asks for that."""
    rule = recipe.data.input_rule()
    if recipe.data.range != "auto":
        return rule
    task = ray.remote(find_range).options(num_cpus=1, max_retries=3)
    source_ref = ray.put(source)
    refs = [task.remote(source_ref, chunk) for chunk in chunks if chunk[0].split == "train"]
    ranges = [found for found in map(cluster.get, refs) if found]
    if not ranges:
        raise DataError(
            "data.range=auto, but no image of the train split has more than 8 bits a channel; leave "
            "data.range out"
        )
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    if not low < high:
        raise DataError(f"data.range=auto, but all values of the train split are {low:g}")
    log.info("data.range=auto: the images of the train split hold values from %g to %g", low, high)
    return replace(rule, range=(low, high))


def _in_flight(submit: Callable[[int], Any], items: Iterable[int]) -> Iterator[tuple[int, Any]]:
    """Tasks in the order of their items; few at once, for their rows fill Ray's object store."""
    waiting: deque[tuple[int, Any]] = deque()
    for item in items:
        waiting.append((item, submit(item)))
        if len(waiting) > max(8, 2 * ray.cluster_resources().get("CPU", 1)):
            yield waiting.popleft()
    yield from waiting


def _write_part(
    part: StagedFile, rows: Sequence[Row], keep: Sequence[int], split: Split, table: ClassTable
) -> dict[str, Any]:
    """Write some of the rows as a shard where it belongs; what the manifest must say of it."""
    with part.open() as path:
        write_shard(path, [rows[n] for n in keep], split, table)
    return part.digests


def _doubles(split: Split, facts: Sequence[Facts], seen: dict[str, str]) -> dict[int, Rejected]:
    """Images whose pixels were seen before, by their position; the others are added to `seen`.

    Splits come in the order of `RANK`, so within a split the first stays, and between splits the
    evaluated one.
    """
    found = {}
    for n, row in enumerate(facts):
        name = f"{split}/{row.id}"
        if first := seen.get(row.pixels_sha256):
            other = first.split("/")[0]
            reason = "duplicate" if other == split else f"leak into {other}"
            found[n] = Rejected(split, row.id, reason, f"same pixels as {first}", row.source)
        else:
            seen[row.pixels_sha256] = name
    return found


def _describe(
    folder: Path, shards: Sequence[Shard], rules: Rules, rejected: Sequence[Rejected]
) -> Dataset:
    files: dict[Split, list[str]] = {}
    counts: dict[Split, int] = {}
    class_px: dict[Split, list[int]] = {}
    void_px: Counter[Split] = Counter()
    notes: Counter[str] = Counter()
    content = hashlib.sha256(repr(rules.image).encode() if rules.image != AS_STORED else b"")
    for shard in shards:
        files.setdefault(shard.split, []).append(shard.file)
        counts[shard.split] = counts.get(shard.split, 0) + len(shard.accepted)
        total = np.array(class_px.get(shard.split, [0] * rules.label.num_classes))
        for row in shard.accepted:
            void_px[shard.split] += row.void_px
            notes.update(row.notes)
            total += row.class_px
            content.update(f"{shard.split}/{row.id}/{row.sha256}/{row.label_sha256}/".encode())
        class_px[shard.split] = total.tolist()
    return Dataset(
        folder=folder,
        files=files,
        counts=counts,
        class_px=class_px,
        void_px=dict(void_px),
        notes=dict(notes),
        range=rules.image.range,
        max_side_px=rules.image.max_side_px,
        rows={shard.file: len(shard.accepted) for shard in shards},
        num_seen=sum(counts.values()) + len(rejected),
        num_quarantined=len(rejected),
        digest=content.hexdigest()[:32],
    )


def _look_over(
    recipe: Recipe, dataset: Dataset, written: Sequence[Written], rejected: Sequence[Rejected]
) -> Dataset:
    """The data set with its doubts, and its report beside it, drawn where the shards can be read."""
    facts = facts_by_split(written)
    pairs = near_duplicates(facts)
    doubts = find_doubts(dataset, recipe.data.class_table().names, facts, pairs)
    dataset = dataset.model_copy(update={"doubts": doubts})
    content = gather(recipe, dataset, written, pairs, rejected)
    text = cluster.get(ray.remote(page).options(num_cpus=1, max_retries=3).remote(content))
    (dataset.folder / REPORT).write_text(text, encoding="utf-8")
    return dataset


def _complaint(recipe: Recipe, dataset: Dataset, rejected: Sequence[Rejected]) -> str | None:
    """Why the data set is not fit to learn from, None if it is."""
    if undecided := [r for r in rejected if r.reason == NO_RULE]:
        return f"{_two_readings(recipe, undecided)}\n{_summary(undecided)}"
    given = recipe.data.max_quarantined_frac
    limit = (
        max(1, QUARANTINED_FRAC * dataset.num_seen) if given is None else given * dataset.num_seen
    )
    if len(rejected) > (max(limit, MANY_QUARANTINED) if given is None else limit):
        rule = f"{QUARANTINED_FRAC:.0%} and more than {MANY_QUARANTINED}"
        rule = rule if given is None else f"data.max_quarantined_frac={given:g}"
        return (
            f"{len(rejected)} of {dataset.num_seen} samples were rejected, more than {rule}: "
            f"{_summary(rejected)}\n"
            "Mend the files or the class table; if the data set is right without them, "
            "data.max_quarantined_frac allows more."
        )
    if empty := [split for split, n in dataset.counts.items() if n == 0]:
        return f"nothing is left of split {', '.join(empty)}: {_summary(rejected)}"
    return _nothing_to_tell(recipe, dataset)


def _nothing_to_tell(recipe: Recipe, dataset: Dataset) -> str | None:
    """Whether the labels of a split hold fewer than two classes, in words."""
    names = recipe.data.class_table().names
    for split, px in dataset.class_px.items():
        there = [name for name, n in zip(names, px, strict=True) if n]
        if len(there) < 2:
            only = f"of class {there[0]} alone" if there else "void everywhere"
            return (
                f"the labels of split {split} are {only}, so nothing can be learned or scored there. "
                "Look at data.label_map and data.void_ids: what is in the files may mean something "
                "else than the recipe says"
            )
    return None


def _two_readings(recipe: Recipe, undecided: Sequence[Rejected]) -> str:
    names = recipe.data.class_table().names
    rows = list(enumerate(names))
    as_class = ", ".join(f"{i}: {name}" for i, name in [*rows[:-1], (VOID, names[-1])])
    return (
        f"id {VOID} is in the labels of {len(undecided)} samples, and no rule says what it means. Write "
        "one of these under data:\n"
        f"  void_ids: [{VOID}]        # where it is, nothing is known: not trained on, not scored\n"
        f"  label_map: {{{as_class}}}   # it is a class; correct the names"
    )


def _write_quarantine(path: Path, rejected: Sequence[Rejected]) -> None:
    """A CSV with one row a sample; only the header if there are none."""
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, [field.name for field in fields(Rejected)])
        table.writeheader()
        table.writerows(asdict(row) for row in rejected)


def _summary(rejected: Sequence[Rejected], most: int = 5) -> str:
    """Counts by reason, then the first few in full."""
    counts = ", ".join(f"{n} {reason}" for reason, n in Counter(r.reason for r in rejected).items())
    first = [f"  {r.split}/{r.id}: {r.reason}: {r.evidence}" for r in rejected[:most]]
    return "\n".join([counts, *first])
