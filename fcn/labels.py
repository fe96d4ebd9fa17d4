"""What the integers of a label map mean, and how they look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcn.images import ImageError, decode_colours, decode_ids

VOID = 255
"""The ignored label: never scored, never trained on."""

NO_RULE = "255 without a rule"
"""The reason why a label map is not read that holds 255 where nothing says whether that is void."""

Colour = tuple[int, int, int]


def voc_colour(index: int) -> Colour:
    """PASCAL VOC's colour of a class: the bits of the index dealt to R, G, B from the top down."""
    rgb = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            rgb[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return rgb[0], rgb[1], rgb[2]


@dataclass(frozen=True)
class ClassTable:
    """The classes of a data set: class k has `names[k]` and `colours[k]`; void is 255."""

    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    void_colour: Colour = (224, 224, 192)

    def __post_init__(self) -> None:
        if not 2 <= len(self.names) <= VOID:
            raise ValueError(f"{len(self.names)} classes; a class table holds 2 to {VOID} names")
        if len(self.colours) != len(self.names):
            raise ValueError(f"{len(self.names)} class names but {len(self.colours)} colours")
        if len(set(self.names)) != len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise ValueError(f"class name {twice!r} is given twice; rename one, scores go by name")

    def __len__(self) -> int:
        """Return the number of classes, void not counted."""
        return len(self.names)

    def palette(self) -> NDArray[np.uint8]:
        """(256, 3) uint8 RGB by label; what is neither a class nor void is magenta."""
        palette = np.full((256, 3), (255, 0, 255), np.uint8)
        palette[: len(self.colours)] = self.colours
        palette[VOID] = self.void_colour
        return palette


@dataclass(frozen=True)
class LabelRule:
    """How what is in a label map becomes class ids: one of the three tables says so."""

    num_classes: int
    ids: Mapping[int, int] = field(default_factory=dict)
    """Raw id to class id or void."""
    colours: Mapping[Colour, int] = field(default_factory=dict)
    """Colour to class id or void."""
    names: Mapping[str, int] = field(default_factory=dict)
    """Name in annotations to class id or void."""
    unlabelled: int = VOID
    """Class id or void of what no annotation covers."""
    tolerance: int = 0
    """Greatest difference in a channel at which a colour is taken for one of the table."""
    void_rest: bool = False
    """Whether colours that are not in the table are void."""

    def decode(self, encoded: bytes) -> tuple[NDArray[np.uint8], dict[str, int]]:
        """Class ids (H, W) of an encoded label map, void = 255; and what was decided in it, in px.

        Raises:
            ImageError: it is no label map, or holds what the table does not.
        """
        if self.colours:
            return self._from_colours(decode_colours(encoded, lossy=self.tolerance > 0))
        return self._from_ids(decode_ids(encoded)), {}

    def _from_ids(self, raw: NDArray[np.integer]) -> NDArray[np.uint8]:
        small = raw.dtype in (np.uint8, np.uint16)  # counting is many times as fast as sorting
        found = np.flatnonzero(np.bincount(raw.ravel())) if small else np.unique(raw)
        unknown = [int(i) for i in found if int(i) not in self.ids]
        if unknown:
            reason = NO_RULE if unknown == [VOID] else "unknown class"
            raise ImageError(reason, self._unknown_ids(unknown, raw))
        targets = np.array([self.ids[int(i)] for i in found], np.uint8)
        if not small:
            return targets[np.searchsorted(found, raw)]
        table = np.zeros(int(found[-1]) + 1, np.uint8)
        table[found] = targets
        return table[raw]

    def _unknown_ids(self, unknown: list[int], raw: NDArray[np.integer]) -> str:
        known = sorted(i for i, k in self.ids.items() if k != VOID)
        span = f"{known[0]}..{known[-1]}" if known else "none"
        listed = ", ".join(f"{i} ({int((raw == i).sum())} px)" for i in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        return f"ids {listed}{more}; the ids of the {self.num_classes} classes are {span}"

    def _from_colours(self, rgb: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], dict[str, int]]:
        red, green, blue = np.moveaxis(rgb.astype(np.int32), 2, 0)
        found, inverse = np.unique(red << 16 | green << 8 | blue, return_inverse=True)
        colours = np.stack([found >> 16, found >> 8 & 255, found & 255], axis=1).astype(np.int16)
        least = np.full(len(found), 256, np.int16)  # the difference to the nearest colour so far
        ids, tied = np.full(len(found), VOID, np.uint8), np.zeros(len(found), np.bool_)
        for colour, target in self.colours.items():
            distance = np.abs(colours - np.array(colour, np.int16)).max(1)
            nearer, equal = distance < least, (distance == least) & (ids != target)
            tied = equal | (tied & ~nearer)
            ids[nearer], least[nearer] = target, distance[nearer]
        unknown = (least > self.tolerance) | tied
        ids[unknown] = VOID
        px = np.bincount(inverse.ravel(), minlength=len(found))
        if unknown.any() and not self.void_rest:
            raise ImageError("unknown colour", _unknown_colours(colours[unknown], px[unknown]))
        notes = {
            "moved_px": int(px[(least > 0) & ~unknown].sum()),
            "unknown_colour_px": int(px[unknown].sum()),
        }
        return ids[inverse].reshape(rgb.shape[:2]), {k: n for k, n in notes.items() if n}


def _unknown_colours(colours: NDArray[np.integer], px: NDArray[np.integer]) -> str:
    order = np.argsort(-px)[:5]
    listed = ", ".join(f"{colours[i].tolist()} ({int(px[i])} px)" for i in order)
    more = f" and {len(px) - 5} more" if len(px) > 5 else ""
    return (
        f"{listed}{more}; no class has it: give it to one in data.label_map, or say "
        "data.unknown_colours=void, or data.colour_tolerance for files compressed with loss"
    )


def colourise(label: NDArray[np.integer], table: ClassTable) -> NDArray[np.uint8]:
    """Label map (H, W) as an RGB picture (H, W, 3) uint8."""
    return table.palette()[label]


def palette_picture(label: NDArray[np.uint8], table: ClassTable) -> Image.Image:
    """Label map (H, W) as a palette picture: the pixels are class ids, a viewer shows colours."""
    picture = Image.fromarray(label).convert("P")
    picture.putpalette(table.palette().ravel().tolist())
    return picture


def overlay(
    image: NDArray[np.uint8], label: NDArray[np.integer], table: ClassTable, alpha: float = 0.5
) -> NDArray[np.uint8]:
    """Image (H, W, 3) with its label map laid over it; void stays as photographed."""
    blend = (1 - alpha) * image + alpha * colourise(label, table)
    return np.where((label == VOID)[..., None], image, blend).astype(np.uint8)
