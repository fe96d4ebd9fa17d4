"""From an encoded image to the pixels that a net sees: one rule for training and serving."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import (
    ExifTags,
    Image,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

Pixels = NDArray[np.uint8]

FORMATS = (
    *("JPEG", "PNG", "BMP", "GIF", "PPM"),  # Pillow knows these from the start
    *(TiffImagePlugin.TiffImageFile.format, WebPImagePlugin.WebPImageFile.format),
)
"""What is opened. JPEG 2000 and AVIF are not: Pillow cuts their 10 to 16 bits to 8 without a word."""
EIGHT_BIT_MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX"} | {
    *("CMYK", "YCbCr", "LAB", "HSV")
}
"""Pillow's modes that it converts to RGB without a choice of range."""
DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, KeyError, TypeError),
    *(OverflowError, ZeroDivisionError, AttributeError, NotImplementedError, MemoryError),
    Image.DecompressionBombError,
)
"""What Pillow raises for bytes that are no image, are cut short, or would fill the memory."""
NPY = b"\x93NUMPY"
STORED_ORIENTATION = 1
"""EXIF's word for an image whose first row is its top."""
TRANSPOSED = range(5, 9)
"""EXIF orientations that exchange width and height."""


class ImageError(ValueError):
    """An image that is not read; `reason` is the rule, `evidence` what was found."""

    def __init__(self, reason: str, evidence: str) -> None:
        super().__init__(reason, evidence)
        self.reason, self.evidence = reason, evidence

    def __str__(self) -> str:
        return f"{self.reason}: {self.evidence}"


@dataclass(frozen=True)
class InputRule:
    """How image files become pixels; it is chosen with the data set and kept with the weights."""

    range: tuple[float, float] | None = None
    """Values of black and of white, for images with more than 8 bits a channel; None refuses them."""
    max_side_px: int | None = None
    """The longer side of what the net sees is at most this; None keeps every size."""

    def seen_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in px at which the net sees an image of a size."""
        longer = max(height, width)
        if self.max_side_px is None or longer <= self.max_side_px:
            return height, width
        factor = self.max_side_px / longer
        return max(1, round(height * factor)), max(1, round(width * factor))

    def shrink(self, pixels: Pixels) -> Pixels:
        """RGB pixels (H, W, 3) at the size at which the net sees them."""
        height, width = self.seen_size(*pixels.shape[:2])
        if (height, width) == pixels.shape[:2]:
            return pixels
        return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


AS_STORED = InputRule()


def decode_rgb(encoded: bytes, rule: InputRule = AS_STORED) -> Pixels:
    """RGB pixels (H, W, 3) uint8 of an encoded image, upright as its EXIF orientation says.

    An alpha channel is left out. The size is the file's own: `rule.shrink` makes it that of the net.

    Raises:
        ImageError: the bytes are no image, or it has 16 bits, 32 bits or floats in a channel and the
            rule does not say what is black and what is white in those; or it has 8, and the rule does.
    """
    pixels, orientation = decode_stored(encoded, rule)
    return upright(pixels, orientation)


def decode_stored(encoded: bytes, rule: InputRule = AS_STORED) -> tuple[Pixels, int]:
    """RGB pixels (H, W, 3) uint8 as stored, and the EXIF orientation, from 1 to 8.

    Raises:
        ImageError: as `decode_rgb` does.
    """
    with _opened(encoded, "undecodable image") as image:
        _require_all_bands(image)
        bits = _more_than_eight_bits(image)  # before the pixels are loaded, as EXIF may do
        orientation = _orientation(image)
        if bits:
            return _in_range(_deep_values(image, encoded), bits, rule), orientation
        if rule.range is not None:
            raise ImageError(
                "8-bit image",
                f"mode {image.mode}, where data.range={list(rule.range)} holds for images with more "
                "than 8 bits a channel; keep images of one kind in a data set",
            )
        return np.array(image.convert("RGB")), orientation  # a writable copy, as torch wants


def value_range(encoded: bytes) -> tuple[float, float] | None:
    """Least and greatest value of an image with more than 8 bits a channel; None of any other.

    Raises:
        ImageError: the bytes are no image, or it holds values that are not finite.
    """
    with _opened(encoded, "undecodable image") as image:
        if not (bits := _more_than_eight_bits(image)):
            return None
        values = _finite(_deep_values(image, encoded), bits)
        return float(values.min()), float(values.max())


def stored_size(encoded: bytes) -> tuple[int, int]:
    """Height and width in px of an encoded image as stored; its pixels are not read.

    Raises:
        ImageError: the bytes are no image.
    """
    with _opened(encoded, "undecodable image") as image:
        return image.height, image.width


def decode_ids(encoded: bytes) -> NDArray[np.integer]:
    """Pixels of an encoded label map as stored: (H, W) of ids, palette indices or 16-bit values.

    Colours whose channels are all equal are ids too. An array in NumPy's format is one of ids.

    Raises:
        ImageError: the bytes are no label map, or are compressed with loss.
    """
    if encoded.startswith(NPY):
        return _npy(encoded)
    with _opened(encoded, "undecodable label") as image:
        _require_lossless(image, encoded)
        values = np.asarray(image)
    if values.dtype == np.bool_:
        values = values.astype(np.uint8)
    if values.ndim == 3:
        colours = values[..., :3] if values.shape[2] >= 3 else values[..., :1]
        if (colours != colours[..., :1]).any():
            raise ImageError(
                "RGB label map",
                f"{values.shape[2]} channels; data.label_kind=colours reads the classes' colours",
            )
        values = colours[..., 0]
    return _whole_ids(values)


def decode_colours(encoded: bytes, *, lossy: bool = False) -> Pixels:
    """Colours (H, W, 3) uint8 of an encoded label map; transparency is left out.

    Raises:
        ImageError: the bytes are no image, have more than 8 bits, or are compressed with loss where
            `lossy` does not allow it.
    """
    with _opened(encoded, "undecodable label") as image:
        if not lossy:
            _require_lossless(image, encoded)
        if bits := _more_than_eight_bits(image):
            raise ImageError(f"{bits} label map", f"mode {image.mode}; colours have 8 bits")
        return np.asarray(image.convert("RGB"))


def exif_orientation(encoded: bytes) -> int:
    """The EXIF orientation of an encoded image, from 1 to 8; 1 if it has none or is no image."""
    try:
        with _opened(encoded, "undecodable image") as image:
            return _orientation(image)
    except ImageError:
        return STORED_ORIENTATION


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Pixels (H, W) or (H, W, 3) as stored, turned and mirrored as an EXIF orientation says."""
    if orientation in TRANSPOSED:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


@contextmanager
def _opened(encoded: bytes, reason: str) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of damaged metadata, and of large images below the limit
            with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
                _require_one_frame(image)
                yield image
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(reason, f"it is none of {', '.join(FORMATS)}") from error
    except DAMAGE as error:
        raise ImageError(reason, str(error) or type(error).__name__) from error


def _require_one_frame(image: Image.Image) -> None:
    frames = getattr(image, "n_frames", 1)
    if (
        frames > 1 and image.format != "MPO"
    ):  # a phone's photo carries its preview as a second frame
        raise ImageError(
            "several frames", f"{image.format} of {frames}; split it into files of one image each"
        )


def _require_all_bands(image: Image.Image) -> None:
    """Pillow opens the first three of four bands of any meaning, such as infrared, without a word."""
    stored = getattr(image, "tag_v2", {}).get(TiffImagePlugin.SAMPLESPERPIXEL, 0)
    if stored > (shown := len(image.getbands())):
        raise ImageError(
            "more than 3 channels",
            f"{stored} bands, of which {shown} would be read; save those alone",
        )


def _require_lossless(image: Image.Image, encoded: bytes) -> None:
    lossy = image.format in ("JPEG", "MPO")
    if (
        image.format == "WEBP"
    ):  # the chunk that holds the pixels comes first: VP8 or, lossless, VP8L
        lossless, loss = encoded.find(b"VP8L"), encoded.find(b"VP8 ")
        lossy = lossless < 0 or 0 <= loss < lossless
    if lossy:
        raise ImageError(
            "lossy label map",
            f"{image.format} changes values at every edge; export PNG, or read it as colours with "
            "data.label_kind=colours and data.colour_tolerance",
        )


def _orientation(image: Image.Image) -> int:
    try:
        found = int(image.getexif().get(ExifTags.Base.Orientation, STORED_ORIENTATION))
    except DAMAGE:  # damaged metadata says nothing about the pixels
        return STORED_ORIENTATION
    return found if found in range(1, 9) else STORED_ORIENTATION


def _more_than_eight_bits(image: Image.Image) -> str:
    """How many bits a channel has, in words; empty for 8."""
    # Pillow drops the lower half of 16-bit colours by itself; the tiles tell what the file holds.
    if any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        return "16-bit"
    if image.mode in EIGHT_BIT_MODES:
        return ""
    return {"F": "float", "I": "32-bit"}.get(image.mode, "16-bit")


def _deep_values(image: Image.Image, encoded: bytes) -> NDArray[np.generic]:
    """Values (H, W) or (H, W, 3) of an image with more than 8 bits a channel."""
    if image.mode not in EIGHT_BIT_MODES:
        return np.asarray(image)
    import cv2  # noqa: PLC0415 - only for colours of 16 bits, of which Pillow keeps 8

    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    values = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    if values is None or values.ndim != 3 or values.dtype != np.uint16:
        raise ImageError("16-bit image", "its colours cannot be read; save it as PNG or TIFF")
    return np.asarray(values[..., 2::-1])  # BGR or BGRA


def _finite(values: NDArray[np.generic], bits: str) -> NDArray[np.float64]:
    wide = values.astype(np.float64)
    if not np.isfinite(wide).all():
        raise ImageError(f"{bits} image", "it holds values that are not finite")
    return wide


def _in_range(values: NDArray[np.generic], bits: str, rule: InputRule) -> Pixels:
    """RGB pixels (H, W, 3) uint8 of values of which the rule says what is black and what is white."""
    wide = _finite(values, bits)
    if rule.range is None:
        raise ImageError(
            f"{bits} image",
            f"values {wide.min():g} to {wide.max():g}; which value is black and which is white is not "
            "known: data.range=[black, white] says so, data.range=auto takes those of the train split",
        )
    low, high = rule.range
    scaled = np.clip((wide - low) / (high - low), 0, 1) * 255
    pixels = np.rint(scaled).astype(np.uint8)
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels


def _npy(encoded: bytes) -> NDArray[np.integer]:
    file = io.BytesIO(encoded)
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        if len(shape) != 2 or dtype.hasobject:
            raise ValueError(f"array of shape {shape} of {dtype}; ids are (height, width) numbers")
        values = np.frombuffer(encoded, dtype, offset=file.tell())  # no more than there is
        values = values.reshape(shape, order="F" if fortran else "C")
    except (*DAMAGE, TokenError) as error:
        raise ImageError("undecodable label", str(error)) from error
    return _whole_ids(values)


def _whole_ids(values: NDArray[Any]) -> NDArray[np.integer]:
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    if values.dtype.kind not in "iu":
        raise ImageError("label map of floats", f"values of {values.dtype}; ids are whole numbers")
    return values
