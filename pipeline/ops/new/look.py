"""What is in a sample of the images and labels, measured."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcn.images import (
    DAMAGE,
    FORMATS,
    STORED_ORIENTATION,
    ImageError,
    decode_colours,
    decode_ids,
    exif_orientation,
    value_range,
)
from fcn.labels import VOID, Colour
from pipeline.data.check import Rules, check_sample, find_range
from pipeline.data.sources import Sample, Source
from pipeline.data.sources.base import read_file

MOST_LABELS = 400
"""So many labels are looked at; all, if there are no more."""
MOST_CHECKED = 60
MOST_CEILED = 24
STRIDES = (32, 16, 8)


@dataclass
class Looked:
    """What was found in the files of some samples."""

    num: int = 0
    total: int = 0
    ids: Counter[int] = field(default_factory=Counter)
    """Pixels of each id; palette indices count as ids."""
    colours: Counter[Colour] = field(default_factory=Counter)
    """Pixels of each colour, of labels that have colours, and of palettes."""
    num_coloured: int = 0
    """Labels that are no ids but colours."""
    num_palette: int = 0
    num_lossy: int = 0
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """Height and width of the images in px."""
    modes: Counter[str] = field(default_factory=Counter)
    num_turned: int = 0
    """Images whose EXIF orientation is not upright."""
    num_deep: int = 0
    """Images with more than 8 bits a channel."""
    faults: list[str] = field(default_factory=list)

    @property
    def words(self) -> str:
        """How many labels were looked at."""
        return f"all {self.num}" if self.num == self.total else f"{self.num} of {self.total}"


@dataclass
class Checked:
    """Samples as the ingest would take them."""

    pictures: list[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]]
    """Name, image (H, W, 3) and label (H, W) of each."""
    class_px: NDArray[np.int64]
    void_px: int
    faults: list[str]

    def shares(self) -> list[float]:
        """Of each class, of the pixels that are not void."""
        return (self.class_px / max(1, self.class_px.sum())).tolist()


def spread(samples: Sequence[Sample], most: int) -> list[Sample]:
    """At most so many samples, evenly over all."""
    return list(samples[:: -(-len(samples) // most)]) if samples else []


def flatness(path: Path) -> float:
    """Share of horizontal neighbours in the middle of an image that are equal; 0 if it is none."""
    try:
        encoded = read_file(path)
        if encoded[:6] == b"\x93NUMPY":
            return 1.0
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            values = np.asarray(image)
    except (ImageError, *DAMAGE):
        return 0.0
    values = values.reshape(*values.shape[:2], -1)[:1024, :1024]
    return float((values[:, 1:] == values[:, :-1]).all(2).mean()) if values.shape[1] > 1 else 0.0


def look(source: Source, samples: Sequence[Sample]) -> Looked:
    """Ids or colours of encoded labels, and sizes and kinds of images."""
    looked = Looked(total=len(samples))
    for sample in spread(samples, MOST_LABELS):
        looked.num += 1
        try:
            image, label = source.read(sample)
            _look_at_image(looked, image)
            if isinstance(label, bytes):
                _look_at_label(looked, label)
        except (ImageError, OSError) as fault:
            looked.faults.append(f"{sample.split}/{sample.id}: {fault}")
    return looked


def _look_at_image(looked: Looked, encoded: bytes) -> None:
    deep = value_range(encoded) is not None
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        looked.sizes.append((image.height, image.width))
        looked.modes[image.mode] += 1
    looked.num_deep += deep
    looked.num_turned += exif_orientation(encoded) != STORED_ORIENTATION


def _look_at_label(looked: Looked, encoded: bytes) -> None:
    try:
        ids = decode_ids(encoded)
    except ImageError as fault:
        if fault.reason not in ("RGB label map", "lossy label map"):
            raise
        looked.num_coloured += 1
        looked.num_lossy += fault.reason == "lossy label map"
        colours, px = _runs(_packed(decode_colours(encoded, lossy=True)))
        looked.colours.update(dict(zip(map(_colour, colours), px, strict=True)))
        return
    values, px = _runs(ids)
    looked.ids.update(dict(zip(values, px, strict=True)))
    palette = _palette(encoded)
    looked.num_palette += palette is not None
    for value, n in zip(values, px, strict=True):
        if palette is None or 3 * value + 3 <= len(palette):
            colour = tuple(palette[3 * value : 3 * value + 3]) if palette else (value,) * 3
            looked.colours[colour] += n  # type: ignore[index]


def _palette(encoded: bytes) -> list[int] | None:
    if encoded[:6] == b"\x93NUMPY":
        return None
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        return image.getpalette() if image.mode == "P" else None


def _packed(colours: NDArray[np.uint8]) -> NDArray[np.int32]:
    return colours.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)


def _colour(packed: int) -> Colour:
    return packed >> 16, packed >> 8 & 255, packed & 255


def _runs(values: NDArray[np.integer]) -> tuple[list[int], list[int]]:
    """Values and how many pixels have each; by runs of equal ones, of which there are few in labels."""
    flat = values.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(np.append(starts, len(flat)))
    found, where = np.unique(flat[starts], return_inverse=True)
    return found.tolist(), np.bincount(where, lengths).astype(int).tolist()


def check(source: Source, samples: Sequence[Sample], rules: Rules, *, auto_range: bool) -> Checked:
    """Take some samples as the ingest would."""
    some = spread(samples, MOST_CHECKED)
    if auto_range:
        rules = rules._replace(image=replace(rules.image, range=find_range(source, some)))
    checked = Checked([], np.zeros(rules.label.num_classes, np.int64), 0, [])
    for sample in some:
        try:
            row, facts = check_sample(source, sample, rules)
        except ImageError as fault:
            checked.faults.append(f"{sample.split}/{sample.id}: {fault}")
            continue
        checked.class_px += facts.class_px
        checked.void_px += facts.void_px
        label = np.asarray(Image.open(io.BytesIO(row.label)))
        with Image.open(io.BytesIO(row.image)) as image:
            pixels = np.asarray(image.convert("RGB"))
        size = (label.shape[1], label.shape[0])
        if pixels.shape[:2] != label.shape:  # a label of an evaluated split keeps the file's size
            pixels = np.asarray(Image.fromarray(pixels).resize(size))
        checked.pictures.append((f"{sample.split}/{sample.id}", pixels, label))
    return checked


def stride_ceilings(labels: Sequence[NDArray[np.uint8]], num_classes: int) -> dict[int, float]:
    """The mean IU that a perfect map of each stride would have, after bilinear upsampling.

    As in section 5 of the paper: truth is made smaller and larger again, and scored.
    """
    some = labels[:: -(-len(labels) // MOST_CEILED)]
    ceilings = {}
    for stride in STRIDES:
        counts = np.zeros((num_classes, num_classes), np.int64)
        for label in some:
            valid = label != VOID
            back = _down_and_up(label, stride)
            pairs = label[valid].astype(np.int64) * num_classes + back[valid]
            counts += np.bincount(pairs, minlength=num_classes**2).reshape(counts.shape)
        union = counts.sum(0) + counts.sum(1) - counts.diagonal()
        there = counts.sum(1) > 0
        ceilings[stride] = float((counts.diagonal()[there] / union[there]).mean())
    return ceilings


def _down_and_up(label: NDArray[np.uint8], stride: int) -> NDArray[np.uint8]:
    height, width = label.shape
    small = (-(-width // stride), -(-height // stride))
    best = np.full(label.shape, -1.0, np.float32)
    back = np.zeros_like(label)
    for k in np.unique(label[label != VOID]):
        coarse = cv2.resize((label == k).astype(np.float32), small, interpolation=cv2.INTER_AREA)
        score = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
        back[score > best] = k
        best = np.maximum(best, score)
    return back
