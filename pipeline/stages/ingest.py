"""Stage 1: any data set into checked, memory-mapped Arrow shards; what is wrong into quarantine."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fcn.labels import VOID, ClassTable
from pipeline import cluster
from pipeline.config.recipe import Recipe
from pipeline.config.schema import Split
from pipeline.data.quarantine import Rejected, summary, write_table
from pipeline.data.shards import (
    Row,
    decode_image,
    drop_rows,
    encode_label,
    open_image,
    write_shard,
)
from pipeline.data.sources import Sample, Source, open_source
from pipeline.errors import DataError
from pipeline.logs import progress_bar
from pipeline.results import Dataset
from pipeline.storage.store import OBJECTS, StagedFile, Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checked:
    """What a task tells of the shard that it wrote."""

    file: str
    split: Split
    accepted: list[tuple[str, str, list[int]]]
    """Id, sha256 of the image, pixels of each class; in the order of the rows."""
    rejected: list[Rejected]
    objects: dict[str, Any] = field(default_factory=dict)
    """What the manifest must say of the file."""


class _RejectedError(Exception):
    """Internal: why a sample is not accepted."""


def source_state(recipe: Recipe) -> str:
    """Changes when the files of the data set do; part of the stage's fingerprint."""
    return open_source(recipe).state()


def run(recipe: Recipe, store: Store, fingerprint: str) -> Dataset:
    """Check every sample, write the accepted ones, publish the data set.

    Raises:
        DataError: nothing found, a split is empty, or too much was rejected.
    """
    source = open_source(recipe)
    samples, rejected = source.samples()
    chunks = list(_chunks(samples, recipe.data.shard_rows))
    names = [f"{chunk[0].split}-{i:05d}.arrow" for i, chunk in enumerate(chunks)]
    num_classes = len(recipe.data.class_table())
    manifest: dict[str, object] = {}
    with store.publish("datasets", fingerprint, manifest) as draft:
        parts = [store.stage_file(draft, name) for name in names]
        shards = _check_all(recipe, source, chunks, parts)
        rejected += [r for shard in shards for r in shard.rejected]
        doubles = _doubles(shards)
        for shard in shards:
            if ids := {r.id for r in doubles if r.split == shard.split} & {
                a[0] for a in shard.accepted
            }:
                part = store.stage_file(draft, shard.file)
                with part.open() as path:
                    drop_rows(path, ids)
                shard.objects.update(part.digests)
                shard.accepted[:] = [a for a in shard.accepted if a[0] not in ids]
        rejected += doubles
        write_table(draft / "quarantine.csv", rejected)
        dataset = _describe(draft, shards, num_classes, rejected)
        complaint = _complaint(recipe, dataset, rejected)
        if complaint:
            table_path = store.cache / "datasets" / f"{fingerprint}.quarantine.csv"
            shutil.copy(draft / "quarantine.csv", table_path)
            raise DataError(f"{complaint}\nAll of them are listed in {table_path}")
        objects = {name: entry for shard in shards for name, entry in shard.objects.items()}
        manifest |= dataset.model_dump(mode="json") | ({OBJECTS: objects} if objects else {})
    log.info(
        "ingested %d images (%s), %d quarantined",
        dataset.num_seen - dataset.num_quarantined,
        ", ".join(f"{n} {split}" for split, n in dataset.counts.items()),
        dataset.num_quarantined,
    )
    return dataset


def _check_all(
    recipe: Recipe, source: Source, chunks: Sequence[list[Sample]], parts: Sequence[StagedFile]
) -> list[Checked]:
    """Fan out over Ray, a task a shard; shards come back in the order of the samples."""
    task = ray.remote(_check_part).options(num_cpus=1, max_retries=3)
    source_ref = ray.put(source)
    table, void = recipe.data.class_table(), recipe.data.void_ids
    refs = [
        task.remote(source_ref, chunk, table, void, part)
        for chunk, part in zip(chunks, parts, strict=True)
    ]
    sizes = {ref: len(chunk) for ref, chunk in zip(refs, chunks, strict=True)}
    with progress_bar() as progress:
        bar = progress.add_task("ingest", total=sum(sizes.values()), note="images")
        waiting = list(refs)
        while waiting:
            done, waiting = ray.wait(waiting)
            for ref in done:
                progress.advance(bar, sizes[ref])
    return list(cluster.get(refs))


def _chunks(samples: Sequence[Sample], rows: int) -> Iterator[list[Sample]]:
    by_split: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_split[sample.split].append(sample)
    for group in by_split.values():
        for start in range(0, len(group), rows):
            yield group[start : start + rows]


def _check_part(
    source: Source,
    samples: Sequence[Sample],
    table: ClassTable,
    void_ids: Sequence[int],
    part: StagedFile,
) -> Checked:
    """Check a chunk where the task is, and put its shard where it belongs."""
    with part.open() as path:
        checked = check_shard(source, samples, table, void_ids, path)
    return replace(checked, objects=part.digests)


def check_shard(
    source: Source,
    samples: Sequence[Sample],
    table: ClassTable,
    void_ids: Sequence[int],
    path: Path,
) -> Checked:
    """Check a chunk of one split and write what is accepted as one shard."""
    rows: list[Row] = []
    rejected: list[Rejected] = []
    for sample in samples:
        try:
            rows.append(check_sample(source, sample, table, void_ids))
        except _RejectedError as why:
            reason, evidence = why.args
            rejected.append(Rejected(sample.split, sample.id, reason, evidence, sample.image))
    write_shard(path, rows, samples[0].split, table)
    accepted = [(row.id, row.sha256, row.class_px) for row in rows]
    return Checked(path.name, samples[0].split, accepted, rejected)


def check_sample(source: Source, sample: Sample, table: ClassTable, void_ids: Sequence[int]) -> Row:
    """A row whose label is proved to hold classes and void alone."""
    image, encoded_label = source.read(sample)
    try:
        height, width = decode_image(image).shape[:2]
    except (
        OSError,
        SyntaxError,
        ValueError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
    ) as e:
        raise _RejectedError("undecodable image", str(e)) from None
    label = _check_label(encoded_label, table, void_ids)
    if label.shape != (height, width):
        theirs = f"image is {width}x{height} px, label {label.shape[1]}x{label.shape[0]}"
        raise _RejectedError("size mismatch", theirs)
    class_px = np.bincount(label.ravel(), minlength=256)[: len(table)].tolist()
    return Row(
        id=sample.id,
        image=image,
        label=encode_label(label),
        height_px=height,
        width_px=width,
        valid_px=sum(class_px),
        class_px=class_px,
        source=sample.image,
        sha256=hashlib.sha256(image).hexdigest(),
    )


def _check_label(encoded: bytes, table: ClassTable, void_ids: Sequence[int]) -> NDArray[np.uint8]:
    try:
        ids = open_image(encoded)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise _RejectedError("undecodable label", str(error)) from None
    if ids.ndim != 2:
        raise _RejectedError(
            "RGB label map", f"{ids.shape[2]} channels; a label map has one, of class ids"
        )
    wide = ids.astype(np.int64)
    wide[np.isin(wide, [*void_ids, VOID])] = VOID
    wild = np.unique(wide[(wide != VOID) & ((wide < 0) | (wide >= len(table)))])
    if len(wild):
        evidence = (
            f"ids {wild[:5].tolist()} in a table of {len(table)} classes (0..{len(table) - 1})"
        )
        raise _RejectedError("unknown class", evidence)
    return wide.astype(np.uint8)


def _doubles(shards: Sequence[Checked]) -> list[Rejected]:
    """Images seen before: within a split the first stays; between splits the evaluated one stays."""
    rank = {"test": 0, "val": 1, "train": 2}
    first: dict[str, tuple[str, str]] = {}
    found = []
    for shard in sorted(shards, key=lambda s: rank[s.split]):
        for row_id, sha, _ in shard.accepted:
            split, name = first.setdefault(sha, (shard.split, row_id))
            if (split, name) == (shard.split, row_id):
                continue
            reason = "duplicate" if split == shard.split else f"leak into {split}"
            evidence = f"same bytes as {split}/{name}"
            found.append(Rejected(shard.split, row_id, reason, evidence, shard.file))
    return found


def _describe(
    folder: Path, shards: Sequence[Checked], num_classes: int, rejected: Sequence[Rejected]
) -> Dataset:
    files: dict[Split, list[str]] = {}
    counts: dict[Split, int] = {}
    class_px: dict[Split, list[int]] = {}
    content = hashlib.sha256()
    for shard in shards:
        files.setdefault(shard.split, []).append(shard.file)
        counts[shard.split] = counts.get(shard.split, 0) + len(shard.accepted)
        total = np.array(class_px.get(shard.split, [0] * num_classes))
        for row_id, sha, px in shard.accepted:
            total += px
            content.update(f"{shard.split}/{row_id}/{sha}/{px}".encode())
        class_px[shard.split] = total.tolist()
    return Dataset(
        folder=folder,
        files=files,
        counts=counts,
        class_px=class_px,
        rows={shard.file: len(shard.accepted) for shard in shards},
        num_seen=sum(counts.values()) + len(rejected),
        num_quarantined=len(rejected),
        digest=content.hexdigest()[:32],
    )


def _complaint(recipe: Recipe, dataset: Dataset, rejected: Sequence[Rejected]) -> str | None:
    """Why the data set is not fit to learn from, None if it is."""
    limit = recipe.data.max_quarantined_frac
    if len(rejected) > limit * dataset.num_seen:
        return (
            f"{len(rejected)} of {dataset.num_seen} samples were rejected, more than "
            f"data.max_quarantined_frac={limit}: {summary(rejected)}\n"
            "Mend the files or the class table, or allow more."
        )
    if empty := [split for split, n in dataset.counts.items() if n == 0]:
        return f"nothing is left of split {', '.join(empty)}: {summary(rejected)}"
    return None
