"""What every source offers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fcn.images import ImageError
from pipeline.config.schema import Split

MAX_FILE_BYTES = 1 << 30


@dataclass(frozen=True)
class Sample:
    """One image and where it and its label are to be had."""

    split: Split
    id: str
    image: str
    label: str


@dataclass(frozen=True)
class Rejected:
    """A sample that will not be learned from: a row of the quarantine."""

    split: str
    id: str
    reason: str
    """Which rule: undecodable image, size mismatch, missing partner, unknown class, duplicate, ..."""
    evidence: str
    """What was found, in words with the values."""
    path: str


@dataclass(frozen=True)
class Drawn:
    """A label map that was drawn from annotations."""

    ids: NDArray[np.uint8]
    """Class ids (H, W), void = 255."""
    overlap_px: int = 0
    """Pixels that more than one class was drawn on."""


class Source(Protocol):
    """A data set as it is found."""

    def samples(self) -> tuple[list[Sample], list[Rejected]]:
        """All samples in a fixed order, and those that are not whole."""

    def read(self, sample: Sample) -> tuple[bytes, bytes | Drawn]:
        """Encoded image of a sample, and its label map: encoded, or drawn already.

        Raises:
            ImageError, OSError: the sample is not fit to learn from.
        """

    def state(self) -> str:
        """Changes when the files do; part of the fingerprint of the ingest."""


def read_file(path: str | Path) -> bytes:
    """The bytes of a regular file.

    Raises:
        ImageError: it is no regular file, or too large to be an image.
        OSError: it cannot be read.
    """
    path = Path(path)
    if (
        not path.is_file()
    ):  # a pipe or a device would never end; a folder or a broken link has no bytes
        what = "a folder" if path.is_dir() else "no regular file, or a link to none"
        raise ImageError("unreadable file", f"{path} is {what}")
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise ImageError("unreadable file", f"{path} has {size / 2**30:.1f} GiB; at most 1 is read")
    return path.read_bytes()
