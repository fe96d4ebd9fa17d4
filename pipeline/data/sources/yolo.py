"""YOLO: a text file of outlines for each image, a line `class x1 y1 x2 y2 ...` each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcn.images import ImageError
from pipeline.config.data import SplitSpec
from pipeline.config.schema import Split
from pipeline.data.sources.base import Drawn, Rejected, Sample, read_file
from pipeline.data.sources.drawing import Region, draw, polygon, size_to_draw
from pipeline.data.sources.folder import FolderSource

SUFFIX = ".txt"
BOX_NUMBERS = 4
MOST_SHARE = 2.0
"""A greater coordinate is no share of the image's width or height, but one in pixels."""


@dataclass(frozen=True)
class YoloSource:
    """Images and text files of the same names."""

    root: Path
    splits: Mapping[Split, SplitSpec]
    classes: Mapping[int, int]
    """Number in the files to class id or void."""
    unlabelled: int

    @property
    def _files(self) -> FolderSource:
        return FolderSource(self.root, self.splits, (SUFFIX,))

    def samples(self) -> tuple[list[Sample], list[Rejected]]:
        """Pairs by name. An image without a file is not whole: an empty file says that nothing is there.

        Raises:
            DataError: as `FolderSource` does.
        """
        return self._files.samples()

    def read(self, sample: Sample) -> tuple[bytes, Drawn]:
        """The image's bytes, and its label map drawn.

        Raises:
            ImageError, OSError: a file cannot be read, or a line is no outline of a known class.
        """
        encoded = read_file(sample.image)
        size = size_to_draw(encoded, None)
        try:
            lines = read_file(sample.label).decode().splitlines()
        except UnicodeDecodeError as error:
            raise ImageError("unreadable annotations", f"not UTF-8: {error}") from error
        regions = [
            self._region(number, line.split(), size)
            for number, line in enumerate(lines, 1)
            if line.strip()
        ]
        return encoded, draw(regions, self.unlabelled, size)

    def state(self) -> str:
        """Of all images and text files."""
        return self._files.state()

    def _region(self, number: int, words: list[str], size: tuple[int, int]) -> Region:
        try:
            raw, values = int(words[0]), np.array([float(word) for word in words[1:]])
        except ValueError as error:
            raise ImageError("unreadable annotations", f"line {number}: {error}") from error
        if len(values) == BOX_NUMBERS:
            raise ImageError(
                "box without outline",
                f"line {number} has 4 numbers, a box; boxes say nothing of pixels: export outlines",
            )
        if len(values) % 2 or not (np.abs(values) <= MOST_SHARE).all():
            raise ImageError(
                "unreadable annotations",
                f"line {number} should be a class and pairs x y, shares of width and height",
            )
        if raw not in self.classes:
            known = ", ".join(map(str, self.classes))
            raise ImageError("unknown class", f"line {number} is of class {raw}; known are {known}")
        points = values.reshape(-1, 2) * (size[1], size[0])
        return polygon(self.classes[raw], [points], size)
