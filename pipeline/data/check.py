"""Which samples are fit to learn from: the image is read, and the label holds classes and void alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcn.images import (
    STORED_ORIENTATION,
    TRANSPOSED,
    ImageError,
    InputRule,
    decode_stored,
    exif_orientation,
    upright,
    value_range,
)
from fcn.labels import VOID, LabelRule
from pipeline.data.shards import Row, encode_png, pixels_sha256
from pipeline.data.sources import Drawn, Rejected, Sample, Source

HASH_PX = (9, 8)
"""Width and height of the picture of which the perceptual hash compares neighbours."""


class Facts(NamedTuple):
    """What the driver needs to know of an accepted sample."""

    id: str
    source: str
    sha256: str
    pixels_sha256: str
    label_sha256: str
    class_px: list[int]
    height_px: int
    width_px: int
    void_px: int
    perceptual_hash: int
    notes: Mapping[str, int]
    """What was decided: overlap_px, moved_px, unknown_colour_px of its label; whether it is scaled."""


class Rules(NamedTuple):
    """How the files of a data set are read."""

    image: InputRule
    label: LabelRule


def check_samples(
    source: Source, samples: Sequence[Sample], rules: Rules
) -> tuple[tuple[list[Facts], list[Rejected]], list[Row]]:
    """What is to be known of some samples of one split; and the rows of those that are accepted."""
    facts: list[Facts] = []
    rows: list[Row] = []
    rejected: list[Rejected] = []
    for sample in samples:
        try:
            row, about = check_sample(source, sample, rules)
        except ImageError as why:
            rejected.append(
                Rejected(sample.split, sample.id, why.reason, why.evidence, sample.image)
            )
        else:
            rows.append(row)
            facts.append(about)
    return (facts, rejected), rows


def check_sample(source: Source, sample: Sample, rules: Rules) -> tuple[Row, Facts]:
    """A row whose label is proved to hold classes and void alone, and what the driver needs of it.

    Raises:
        ImageError: the sample is not accepted; all that is wrong with its two files is in it.
    """
    try:
        encoded, found = source.read(sample)
    except OSError as error:
        raise ImageError("unreadable file", str(error)) from error
    faults: list[ImageError] = []
    pixels = label = None
    try:
        pixels, orientation = decode_stored(encoded, rules.image)
    except ImageError as fault:
        faults.append(fault)
    try:
        label, notes = _label(found, rules.label)
    except ImageError as fault:
        faults.append(fault)
    if pixels is None or label is None:
        raise _together(faults)
    pixels, label = _one_orientation(pixels, label, orientation, found)
    scaled = rules.image.seen_size(*pixels.shape[:2]) != pixels.shape[:2]
    if scaled:
        pixels = rules.image.shrink(pixels)
        if sample.split == "train":  # a label that is scored keeps the file's own size
            size = (pixels.shape[1], pixels.shape[0])
            label = np.array(Image.fromarray(label).resize(size, Image.Resampling.NEAREST))
    as_it_is = orientation == STORED_ORIENTATION and rules.image.range is None and not scaled
    class_px = np.bincount(label.ravel(), minlength=256)[: rules.label.num_classes].tolist()
    image = encoded if as_it_is else encode_png(pixels)
    row = Row(
        id=sample.id,
        image=image,
        label=encode_png(label),
        height_px=pixels.shape[0],
        width_px=pixels.shape[1],
        label_height_px=label.shape[0],
        label_width_px=label.shape[1],
        valid_px=sum(class_px),
        class_px=class_px,
        source=sample.image,
        sha256=hashlib.sha256(image).hexdigest(),
        pixels_sha256=pixels_sha256(pixels),
        label_sha256=pixels_sha256(label),
    )
    about = Facts(
        *(row.id, row.source, row.sha256, row.pixels_sha256, row.label_sha256, class_px),
        *(row.height_px, row.width_px, label.size - row.valid_px, perceptual_hash(pixels)),
        notes={**notes, "scaled": 1} if scaled else notes,
    )
    return row, about


def find_range(source: Source, samples: Sequence[Sample]) -> tuple[float, float] | None:
    """Least and greatest value of the images with more than 8 bits a channel; None if there are none."""
    ranges = []
    for sample in samples:
        try:
            ranges.append(value_range(source.read(sample)[0]))
        except (ImageError, OSError):
            continue  # the check will find it again, and say so
    found = [r for r in ranges if r]
    return (min(r[0] for r in found), max(r[1] for r in found)) if found else None


def perceptual_hash(pixels: NDArray[np.uint8]) -> int:
    """64 bits that hardly differ between two encodings, sizes or brightnesses of one image.

    Each says whether a cell of a coarse grey picture is brighter than its right neighbour (dHash).
    """
    small = np.asarray(Image.fromarray(pixels).resize(HASH_PX, Image.Resampling.BOX).convert("L"))
    bits = np.packbits(small[:, 1:] > small[:, :-1])
    return int.from_bytes(bits.tobytes(), "big")


def _together(faults: Sequence[ImageError]) -> ImageError:
    if len(faults) == 1:
        return faults[0]
    reasons, evidence = zip(*((fault.reason, fault.evidence) for fault in faults), strict=True)
    return ImageError(" and ".join(reasons), "; ".join(evidence))


def _label(found: bytes | Drawn, rule: LabelRule) -> tuple[NDArray[np.uint8], dict[str, int]]:
    if isinstance(found, bytes):
        return rule.decode(found)
    wild = found.ids[(found.ids != VOID) & (found.ids >= rule.num_classes)]
    assert not len(wild), f"a source drew ids {np.unique(wild)} of {rule.num_classes} classes"
    return found.ids, {"overlap_px": found.overlap_px} if found.overlap_px else {}


def _one_orientation(
    pixels: NDArray[np.uint8], label: NDArray[np.uint8], orientation: int, found: bytes | Drawn
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image and label, both upright; which way the label lies is proved by the sizes, or asked."""
    stored, turned = pixels.shape[:2], upright(pixels, orientation).shape[:2]
    if label.shape not in (stored, turned):
        raise ImageError(
            "size mismatch",
            f"image is {stored[1]}x{stored[0]} px, label {label.shape[1]}x{label.shape[0]}",
        )
    if orientation == STORED_ORIENTATION:
        return pixels, label
    same_tag = isinstance(found, bytes) and exif_orientation(found) == orientation
    proved = orientation in TRANSPOSED and stored != turned
    if not (same_tag or proved):
        raise ImageError(
            "EXIF orientation",
            f"the image has orientation {orientation}, and whether its label is turned too cannot be "
            "seen from the sizes; save both upright and without the tag",
        )
    if label.shape == stored and (same_tag or proved):
        label = upright(label, orientation)
    return upright(pixels, orientation), label
