"""LabelMe: a JSON file of shapes for each image, beside it or in a folder of its own."""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, FiniteFloat, TypeAdapter
from pydantic.alias_generators import to_camel

from fcn.images import ImageError, decode_ids
from fcn.labels import LabelRule
from pipeline.config.data import SplitSpec
from pipeline.config.schema import Split
from pipeline.data.sources.annotations import parse_label
from pipeline.data.sources.base import Drawn, Rejected, Sample, read_file
from pipeline.data.sources.drawing import (
    Region,
    draw,
    ellipse_ring,
    polygon,
    size_to_draw,
    targets,
)
from pipeline.data.sources.folder import FolderSource

SUFFIX = ".json"


class _Shape(BaseModel):
    label: str
    points: list[tuple[FiniteFloat, FiniteFloat]]
    shape_type: str | None = "polygon"
    mask: str | None = None
    """For shapes that are masks: a PNG."""


class _File(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel)

    shapes: list[_Shape]
    image_height: int | None = None
    image_width: int | None = None
    image_data: str | None = None

    def size(self) -> tuple[int, int] | None:
        """Height and width of the image that was annotated; early versions did not write them."""
        if self.image_height is None or self.image_width is None:
            return None
        return self.image_height, self.image_width


FILE = TypeAdapter(_File)


@dataclass(frozen=True)
class LabelMeSource:
    """Images and JSON files of the same names; an image may also be inside its JSON file alone."""

    root: Path
    splits: Mapping[Split, SplitSpec]
    rule: LabelRule

    @property
    def _files(self) -> FolderSource:
        return FolderSource(self.root, self.splits, (SUFFIX,))

    def samples(self) -> tuple[list[Sample], list[Rejected]]:
        """Pairs by name; a JSON file without an image file stands for both.

        Raises:
            DataError: as `FolderSource` does.
        """
        pairs, broken = self._files.samples()
        whole: list[Sample] = []
        for split in self.splits:
            alone = [Sample(split, r.id, r.path, r.path) for r in broken if _is_alone(r, split)]
            mine = [sample for sample in pairs if sample.split == split]
            whole += sorted(mine + alone, key=lambda sample: sample.id)
        return whole, [r for r in broken if not _is_alone(r, r.split)]

    def read(self, sample: Sample) -> tuple[bytes, Drawn]:
        """The image's bytes, and its label map drawn.

        Raises:
            ImageError, OSError: a file cannot be read, or a shape has no area or no class.
        """
        file = parse_label(FILE, read_file(sample.label), "LabelMe file")
        inside = sample.image == sample.label
        encoded = _embedded(file.image_data) if inside else read_file(sample.image)
        size = size_to_draw(encoded, file.size())
        ids = targets([shape.label for shape in file.shapes], self.rule)
        regions = [_region(shape, k, size) for shape, k in zip(file.shapes, ids, strict=True)]
        return encoded, draw(regions, self.rule.unlabelled, size)

    def state(self) -> str:
        """Of all images and JSON files."""
        return self._files.state()


def _is_alone(rejected: Rejected, split: str) -> bool:
    """Whether it is a JSON file of a split, without an image file."""
    return (
        rejected.split == split
        and rejected.reason == "missing partner"
        and rejected.path.endswith(SUFFIX)
    )


def _embedded(text: str | None) -> bytes:
    if not text:
        raise ImageError("missing partner", "no image file of that name, and no imageData inside")
    return _decoded(text, "imageData")


def _decoded(text: str, what: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError("unreadable annotations", f"{what} is not base64: {error}") from error


def _region(shape: _Shape, target: int, size: tuple[int, int]) -> Region:
    points, kind = np.reshape(shape.points, (-1, 2)), shape.shape_type or "polygon"
    if kind == "polygon":
        return polygon(target, [points], size)
    if kind not in ("rectangle", "circle", "mask"):
        raise ImageError(
            "outline without area",
            f"a {kind} of {shape.label} encloses nothing; polygon, rectangle, circle and mask do",
        )
    if len(points) != 2:
        raise ImageError(
            "unreadable annotations", f"a {kind} of {shape.label} has {len(points)} points, not 2"
        )
    (x, y), (x1, y1) = points
    if kind == "rectangle":
        return polygon(target, [[(x, y), (x1, y), (x1, y1), (x, y1)]], size)
    if kind == "circle":  # its centre and a point on it
        radius = float(np.hypot(x1 - x, y1 - y))
        return polygon(target, [ellipse_ring(x, y, radius, radius)], size)
    return _mask_region(shape, target, size)


def _mask_region(shape: _Shape, target: int, size: tuple[int, int]) -> Region:
    """A picture of ones, placed with its first pixel at the first point."""
    mask = decode_ids(_decoded(shape.mask or "", "the mask of a shape")) > 0
    left, top = (int(value) for value in np.min(shape.points, axis=0).clip(-1, 1 << 31))
    if min(left, top) < 0 or top + mask.shape[0] > size[0] or left + mask.shape[1] > size[1]:
        raise ImageError(
            "coordinates out of the image",
            f"a mask of {mask.shape[1]}x{mask.shape[0]} px of {shape.label} at {left}, {top}",
        )
    return Region(target, mask, top, left)
