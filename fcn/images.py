"""From an encoded image to the pixels that a net sees: one rule for training and serving."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image

EIGHT_BIT_MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX"} | {
    *("CMYK", "YCbCr", "LAB", "HSV")
}
"""Pillow's modes that it converts to RGB without a choice of range."""
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for bytes that are no image, are cut short, or would fill the memory."""


class ImageError(ValueError):
    """An image that is not read; `reason` is the rule, `evidence` what was found."""

    def __init__(self, reason: str, evidence: str) -> None:
        super().__init__(reason, evidence)
        self.reason, self.evidence = reason, evidence

    def __str__(self) -> str:
        return f"{self.reason}: {self.evidence}"


def decode_rgb(encoded: bytes) -> NDArray[np.uint8]:
    """RGB pixels (H, W, 3) uint8 of an encoded image with 8 bits a channel, as stored.

    An EXIF rotation is not applied, as label maps have none; an alpha channel is left out.

    Raises:
        ImageError: the bytes are no image, or it has 16 bits, 32 bits or floats in a channel: what
            is black and what is white in those is not known.
    """
    with _opened(encoded, "undecodable image") as image:
        _require_eight_bits(image)
        return np.array(image.convert("RGB"))  # a writable copy, as torch wants


def decode_ids(encoded: bytes) -> NDArray[np.generic]:
    """Pixels of an encoded label map as stored: (H, W) of ids, palette indices or 16-bit values.

    (H, W, channels) if it has several channels, which no label map has.

    Raises:
        ImageError: the bytes are no image.
    """
    with _opened(encoded, "undecodable label") as image:
        return np.asarray(image)


@contextmanager
def _opened(encoded: bytes, reason: str) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            yield image
    except ImageError:
        raise
    except DAMAGE as error:
        raise ImageError(reason, str(error)) from error


def _require_eight_bits(image: Image.Image) -> None:
    # Pillow drops the lower half of 16-bit colours by itself; the tiles tell what the file holds.
    stored = next(
        (str(tile[3]) for tile in getattr(image, "tile", ()) if ";16" in str(tile[3])), ""
    )
    if image.mode in EIGHT_BIT_MODES and not stored:
        return
    bits = {"F": "float", "I": "32-bit"}.get(image.mode, "16-bit")
    if stored:
        bits = "16-bit"
    found = f"mode {image.mode}"
    if image.mode not in EIGHT_BIT_MODES:
        low, high = image.getextrema()
        found += f", values {low} to {high}"
    raise ImageError(
        f"{bits} image",
        f"{found}; an image must have 8 bits a channel, as which value is white is not known; "
        "convert it with a range of your choice: (value - low) / (high - low) * 255",
    )
