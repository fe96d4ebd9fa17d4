"""What the integers of a label map mean, and how they look."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

VOID = 255
"""The ignored label: never scored, never trained on."""

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
