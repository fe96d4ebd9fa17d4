"""Label maps drawn from annotations: which pixels an outline holds, and which of two is on top.

Coordinates are continuous: (0, 0) is the corner of the first pixel and (0.5, 0.5) its centre. A
polygon holds the pixels whose centres are inside, so those that share an edge neither overlap nor leave
a gap between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fcn.images import (
    STORED_ORIENTATION,
    TRANSPOSED,
    ImageError,
    exif_orientation,
    stored_size,
)
from fcn.labels import LabelRule
from pipeline.data.sources.base import Drawn

MOST_COORDINATE_PX = 1e6
"""Beyond it, an outline cannot be meant for the image."""
ROUND_POINTS = 360
"""Corners of the polygon that stands for an ellipse."""


@dataclass(frozen=True)
class Region:
    """Pixels of one class."""

    target: int
    """Class id or void."""
    mask: NDArray[np.bool_]
    """The pixels inside a box around the region."""
    top: int = 0
    left: int = 0
    """Row and column of the box in the image."""


def polygon(target: int, rings: Iterable[ArrayLike], size: tuple[int, int]) -> Region:
    """The pixels of an image of some height and width that are inside at least one of some rings.

    A ring is closed by itself. Where it crosses itself, what is enclosed twice is outside.

    Raises:
        ImageError: a ring has fewer than 3 points (x, y), or no place near the image.
    """
    points = [_points(ring) for ring in rings]
    if not points:
        raise ImageError("outline without points", "an annotation encloses nothing; remove it")
    limits = np.array(size[::-1])
    low = np.clip(np.floor(np.min([p.min(0) for p in points], 0)), 0, limits).astype(int)
    high = np.clip(np.ceil(np.max([p.max(0) for p in points], 0)), 0, limits).astype(int)
    (left, top), (right, bottom) = low, high
    mask = np.zeros((bottom - top, right - left), np.bool_)
    for ring in points:
        mask |= _inside(ring, top, left, mask.shape)
    return Region(target, mask, int(top), int(left))


def ellipse_ring(
    x: float, y: float, radius_x: float, radius_y: float, turn: float = 0
) -> NDArray[np.float64]:
    """Points (n, 2) on an ellipse that is turned clockwise by an angle in degrees."""
    angles = np.linspace(0, 2 * np.pi, ROUND_POINTS, endpoint=False)
    ring = np.stack([radius_x * np.cos(angles), radius_y * np.sin(angles)], 1)
    return turned(ring, turn) + np.array([x, y])


def turned(points: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    """Points (n, 2) turned clockwise, as it looks with y downwards, around (0, 0)."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return points @ np.array([[c, s], [-s, c]])


def draw(regions: Sequence[Region], unlabelled: int, size: tuple[int, int]) -> Drawn:
    """A label map (H, W) of some regions: the smaller is drawn over the larger.

    Of regions of equal size the later is on top. Void counts as one class more in the overlap.
    """
    ids = np.full(size, unlabelled, np.uint8)
    drawn, overlap = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
    for region in sorted(regions, key=lambda r: -int(r.mask.sum())):
        height, width = region.mask.shape
        box = np.s_[region.top : region.top + height, region.left : region.left + width]
        overlap[box] |= region.mask & drawn[box] & (ids[box] != region.target)
        ids[box][region.mask] = region.target
        drawn[box] |= region.mask
    return Drawn(ids, int(overlap.sum()))


def targets(names: Sequence[str], rule: LabelRule) -> list[int]:
    """Class ids or void of the names of some annotations.

    Raises:
        ImageError: the recipe knows no class of a name; all such names are told.
    """
    if unknown := sorted(set(names) - set(rule.names)):
        raise ImageError(
            "unknown class",
            f"annotations of {', '.join(map(repr, unknown[:5]))}; known are "
            f"{', '.join(rule.names)}; data.label_map gives other names to a class or to void",
        )
    return [rule.names[name] for name in names]


def size_to_draw(encoded: bytes, said: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of the label map to be drawn over an encoded image.

    Args:
        encoded: The image.
        said: Height and width of which the annotations say that they are for; None if they do not.

    Raises:
        ImageError: the image is of another size; or it has an EXIF orientation, and nothing tells
            whether the annotations are for the image as stored or as it is shown.
    """
    stored, orientation = stored_size(encoded), exif_orientation(encoded)
    shown = stored[::-1] if orientation in TRANSPOSED else stored
    if said is None and orientation != STORED_ORIENTATION:
        raise ImageError(
            "EXIF orientation",
            f"the image has orientation {orientation}, and its annotations do not say for which size "
            "they are; save the image upright and without the tag",
        )
    if said is not None and said not in (stored, shown):
        raise ImageError(
            "size mismatch",
            f"image is {stored[1]}x{stored[0]} px, its annotations are for {said[1]}x{said[0]}",
        )
    return said or stored


def _points(ring: ArrayLike) -> NDArray[np.float64]:
    points = np.asarray(ring, np.float64)
    if points.ndim != 2 or len(points) < 3:
        raise ImageError(
            "outline of fewer than 3 points",
            f"{len(points)} points enclose no area; remove the annotation or draw it again",
        )
    if not np.abs(points).max() <= MOST_COORDINATE_PX:  # nor is NaN
        raise ImageError(
            "coordinates out of the image",
            f"an outline goes from {points.min(0).tolist()} to {points.max(0).tolist()} px",
        )
    return points


def _inside(
    points: NDArray[np.float64], top: int, left: int, shape: tuple[int, ...]
) -> NDArray[np.bool_]:
    """Which pixels of a box have their centres inside a ring.

    On each row of centres, every edge that crosses it changes inside to outside from there on. Edges are
    taken from the top down, so that both polygons that share one find the same crossings.
    """
    height, width = shape
    after = np.roll(points, -1, axis=0)
    down = (points[:, 1] <= after[:, 1])[:, None]
    (xa, ya), (xb, yb) = np.where(down, points, after).T, np.where(down, after, points).T
    slope = np.divide(xb - xa, yb - ya, out=np.zeros(len(xa)), where=yb > ya)
    first, last = (np.clip(np.ceil(y - 0.5), top, top + height).astype(int) for y in (ya, yb))
    rows = last - first  # that each edge crosses
    edge = np.repeat(np.arange(len(rows)), rows)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(rows) - rows, rows) + first[edge]
    x = xa[edge] + (row + 0.5 - ya[edge]) * slope[edge]
    column = np.clip(np.ceil(x - 0.5) - left, 0, width).astype(int)
    changes = np.zeros((height, width + 1), np.bool_)
    np.logical_xor.at(changes, (row - top, column), True)
    return np.logical_xor.accumulate(changes[:, :width], axis=1)
