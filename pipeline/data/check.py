"""Which samples are fit to learn from: the image is read, and the label holds classes and void alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fcn.images import ImageError, decode_ids, decode_rgb
from fcn.labels import VOID, ClassTable
from pipeline.data.shards import Row, encode_label, pixels_sha256
from pipeline.data.sources import Rejected, Sample, Source


class Facts(NamedTuple):
    """What the driver needs to know of an accepted sample."""

    id: str
    source: str
    sha256: str
    pixels_sha256: str
    label_sha256: str
    class_px: list[int]


def check_samples(
    source: Source, samples: Sequence[Sample], table: ClassTable, void_ids: Sequence[int]
) -> tuple[tuple[list[Facts], list[Rejected]], list[Row]]:
    """What is to be known of some samples of one split; and the rows of those that are accepted."""
    rows: list[Row] = []
    rejected: list[Rejected] = []
    for sample in samples:
        try:
            rows.append(check_sample(source, sample, table, void_ids))
        except ImageError as why:
            rejected.append(
                Rejected(sample.split, sample.id, why.reason, why.evidence, sample.image)
            )
    facts = [Facts(*(getattr(row, name) for name in Facts._fields)) for row in rows]
    return (facts, rejected), rows


def check_sample(source: Source, sample: Sample, table: ClassTable, void_ids: Sequence[int]) -> Row:
    """A row whose label is proved to hold classes and void alone.

    Raises:
        ImageError: the sample is not accepted.
    """
    try:
        image, encoded_label = source.read(sample)
    except OSError as error:
        raise ImageError("unreadable file", str(error)) from error
    pixels = decode_rgb(image)
    height, width = pixels.shape[:2]
    label = _check_label(encoded_label, table, void_ids)
    if label.shape != (height, width):
        theirs = f"image is {width}x{height} px, label {label.shape[1]}x{label.shape[0]}"
        raise ImageError("size mismatch", theirs)
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
        pixels_sha256=pixels_sha256(pixels),
        label_sha256=pixels_sha256(label),
    )


def _check_label(encoded: bytes, table: ClassTable, void_ids: Sequence[int]) -> NDArray[np.uint8]:
    ids = decode_ids(encoded)
    if ids.ndim != 2:
        raise ImageError(
            "RGB label map", f"{ids.shape[2]} channels; a label map has one, of class ids"
        )
    wide = ids.astype(np.int64)
    wide[np.isin(wide, [*void_ids, VOID])] = VOID
    wild = np.unique(wide[(wide != VOID) & ((wide < 0) | (wide >= len(table)))])
    if len(wild):
        evidence = (
            f"ids {wild[:5].tolist()} in a table of {len(table)} classes (0..{len(table) - 1})"
        )
        raise ImageError("unknown class", evidence)
    return wide.astype(np.uint8)
