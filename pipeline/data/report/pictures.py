"""The pictures of the data report, drawn from the shards as JPEG."""

from __future__ import annotations

import io
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcn.images import AS_STORED, ImageError, InputRule, decode_rgb
from fcn.labels import VOID, ClassTable, overlay
from pipeline.data.report.content import Place
from pipeline.data.shards import Shards
from pipeline.data.sources import Rejected
from pipeline.data.sources.base import read_file

SIDE_PX, SMALL_PX, GAP_PX = 360, 200, 4
"""The longer side of an image on the contact sheet and among the rejected, and what is between two."""
LABEL_PX = 1024
"""Of a label that bounds of mean IU are computed on, at most so many rows and columns count."""
VOID_STRIPES = np.array([[60, 60, 60], [200, 200, 200]], np.uint8)
STRIPE_PX = 4
QUALITY = 82

Pixels = NDArray[np.uint8]


class Rows:
    """Rows of shards that may lie in an object store; each shard is fetched once, within the block."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._shards: dict[str, Shards] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._shards.clear()
        self._open.close()

    def shards(self, place: Place) -> Shards:
        """The shard of a row."""
        name = place.file.name
        if name not in self._shards:
            self._shards[name] = Shards([self._open.enter_context(place.file.read())])
        return self._shards[name]

    def label(self, place: Place) -> Pixels:
        """The middle of a label map."""
        label = self.shards(place).label(place.row)
        top, left = (max(0, (side - LABEL_PX) // 2) for side in label.shape)
        return label[top : top + LABEL_PX, left : left + LABEL_PX]

    def labelled(self, place: Place, table: ClassTable) -> bytes:
        """An image, and beside it the same with its label map over it; void is striped."""
        image, label = self.shards(place).image_label(place.row)
        small = _thumbnail(image, SIDE_PX)
        ids = np.asarray(
            Image.fromarray(label).resize(small.shape[1::-1], Image.Resampling.NEAREST)
        )
        drawn = overlay(small, ids, table, 0.65)
        y, x = np.indices(ids.shape)
        stripes = VOID_STRIPES[(x + y) // STRIPE_PX % 2]
        return _jpeg(_beside(small, np.where((ids == VOID)[..., None], stripes, drawn)))

    def pair(self, one: Place, other: Place) -> bytes:
        """Two images side by side."""
        images = [self.shards(place).image_label(place.row)[0] for place in (one, other)]
        return _jpeg(_beside(*(_thumbnail(image, SIDE_PX) for image in images)))


def rejected_picture(row: Rejected, rule: InputRule) -> bytes | None:
    """The image of a rejected sample; None if it is no file or cannot be decoded."""
    for way in (rule, AS_STORED):  # what the rule refuses may be an image nevertheless
        try:
            return _jpeg(_thumbnail(decode_rgb(read_file(row.path), way), SMALL_PX))
        except (ImageError, OSError):
            continue
    return None


def _thumbnail(image: Pixels, side_px: int) -> Pixels:
    picture = Image.fromarray(image)
    picture.thumbnail((side_px, side_px), Image.Resampling.BILINEAR, reducing_gap=2)
    return np.asarray(picture)


def _beside(left: Pixels, right: Pixels) -> Pixels:
    height = max(left.shape[0], right.shape[0])
    framed = [
        np.pad(image, ((0, height - image.shape[0]), (0, 0), (0, 0)), constant_values=255)
        for image in (left, right)
    ]
    gap = np.full((height, GAP_PX, 3), 255, np.uint8)
    return np.concatenate([framed[0], gap, framed[1]], axis=1)


def _jpeg(picture: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
