"""Label Studio: its JSON export, a list of tasks with the regions that were drawn on an image each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, Field, FiniteFloat, TypeAdapter

from fcn.images import ImageError
from fcn.labels import LabelRule
from pipeline.config.data import SplitSpec
from pipeline.config.schema import Split
from pipeline.data.sources.annotations import file_samples, parse_file, parse_label
from pipeline.data.sources.base import Drawn, Rejected, Sample, read_file
from pipeline.data.sources.drawing import (
    Region,
    draw,
    ellipse_ring,
    polygon,
    size_to_draw,
    targets,
    turned,
)
from pipeline.data.sources.folder import IMAGE_SUFFIXES, files_state, find_files

UPLOAD = re.compile(r"^[0-9a-f]{8}-")
"""What Label Studio puts before the name of a file that was uploaded."""
WITHOUT_PIXELS = {"choices", "rating", "number", "textarea", "taxonomy", "datetime", "relation"}
"""Results that are about an image as a whole, or about other results."""
CHANNELS = 4
"""A brush's run lengths are of an RGBA picture; the last channel is the mask."""

Byte = Annotated[int, Field(ge=0, le=255)]
Json = Annotated[str, BeforeValidator(json.dumps)]


class _Annotation(BaseModel):
    result: Json
    was_cancelled: bool | None = None
    ground_truth: bool | None = None


class _Task(BaseModel):
    id: int | str = "without id"
    data: dict[str, object]
    file_upload: str | None = None
    annotations: list[_Annotation]


class _Result(BaseModel):
    type: str
    value: Json = "null"
    original_width: int | None = None
    original_height: int | None = None
    image_rotation: float = 0


class _Polygon(BaseModel):
    points: list[tuple[FiniteFloat, FiniteFloat]]
    name: tuple[str] = Field(alias="polygonlabels")


class _Rectangle(BaseModel):
    x: FiniteFloat
    y: FiniteFloat
    width: FiniteFloat
    height: FiniteFloat
    rotation: FiniteFloat = 0
    name: tuple[str] = Field(alias="rectanglelabels")


class _Ellipse(BaseModel):
    x: FiniteFloat
    y: FiniteFloat
    radius_x: FiniteFloat = Field(alias="radiusX")
    radius_y: FiniteFloat = Field(alias="radiusY")
    rotation: FiniteFloat = 0
    name: tuple[str] = Field(alias="ellipselabels")


class _Brush(BaseModel):
    format: Literal["rle"]
    rle: list[Byte]
    name: tuple[str] = Field(alias="brushlabels")


Shape = _Polygon | _Rectangle | _Ellipse | _Brush
SHAPES: dict[str, TypeAdapter[Shape]] = {
    "polygonlabels": TypeAdapter(_Polygon),
    "rectanglelabels": TypeAdapter(_Rectangle),
    "ellipselabels": TypeAdapter(_Ellipse),
    "brushlabels": TypeAdapter(_Brush),
}
TASKS, RESULTS = TypeAdapter(list[_Task]), TypeAdapter(list[_Result])


@dataclass(frozen=True)
class LabelStudioSource:
    """A folder of images and a JSON export for each split; they meet by file name."""

    root: Path
    splits: Mapping[Split, SplitSpec]
    rule: LabelRule

    def samples(self) -> tuple[list[Sample], list[Rejected]]:
        """The images of the tasks, in the order of the export.

        Raises:
            DataError: an export is missing or is none, or there is no such folder.
        """
        whole: list[Sample] = []
        broken: list[Rejected] = []
        for split, spec in self.splits.items():
            found = self._entries(split, spec)
            more, less = file_samples(self.root, split, spec, found)
            whole, broken = whole + more, broken + less
        return whole, broken

    def _entries(self, split: Split, spec: SplitSpec) -> Iterator[Sample | Rejected]:
        by_file: dict[str, list[str]] = {}
        images = find_files(self.root, spec.images, IMAGE_SUFFIXES)
        for name, path in images.items():
            by_file.setdefault(path.name, []).append(name)
        export = self.root / spec.labels
        for task in parse_file(TASKS, export, "JSON export of Label Studio (not JSON-MIN)"):
            wanted = _file_names(task)
            names = [n for file in wanted for n in by_file.get(file, [])] or [
                n for file in wanted for n in by_file.get(UPLOAD.sub("", file), [])
            ]
            label, why = _label(task.annotations)
            if len(set(names)) != 1:
                looked = ", ".join(wanted) or "a value in data that names an image"
                why = f"{len(set(names))} files in {spec.images} fit {looked}; exactly one should"
                name = wanted[0] if wanted else f"task {task.id}"
                yield Rejected(split, name, "missing partner", why, str(export))
            elif why:
                yield Rejected(split, names[0], "not annotated", why, str(images[names[0]]))
            else:
                yield Sample(split, names[0], str(images[names[0]]), label)

    def read(self, sample: Sample) -> tuple[bytes, Drawn]:
        """The image's bytes, and its label map drawn.

        Raises:
            ImageError, OSError: the image cannot be read, or a region has no area or no class.
        """
        encoded = read_file(sample.image)
        results = parse_label(RESULTS, sample.label.encode(), "results of Label Studio")
        drawn = [result for result in results if result.type not in WITHOUT_PIXELS]
        size = size_to_draw(encoded, _said_size(drawn))
        shapes = [_shape(result) for result in drawn]
        ids = targets([shape.name[0] for shape in shapes], self.rule)
        regions = [_region(shape, k, size) for shape, k in zip(shapes, ids, strict=True)]
        return encoded, draw(regions, self.rule.unlabelled, size)

    def state(self) -> str:
        """Of all images and the exports."""
        images: set[Path] = set()
        contents: set[Path] = set()
        for spec in self.splits.values():
            images |= set(find_files(self.root, spec.images, IMAGE_SUFFIXES).values())
            contents |= {self.root / spec.labels}
            contents |= {self.root / spec.list} if spec.list else set()
        return files_state(self.root, images, contents)


def _file_names(task: _Task) -> list[str]:
    """File names of images that a task tells: of an upload, a path, an address, or `?d=` of one."""
    names = []
    for text in (task.file_upload, *task.data.values()):
        if not isinstance(text, str):
            continue
        try:
            address = urlsplit(text)
        except ValueError:  # no address
            continue
        served = [value for key, value in parse_qsl(address.query) if key == "d"]
        file = PurePosixPath(served[0] if served else unquote(address.path)).name
        if PurePosixPath(file).suffix.lower() in IMAGE_SUFFIXES:
            names.append(file)
    return list(dict.fromkeys(names))


def _label(annotations: Sequence[_Annotation]) -> tuple[str, str]:
    """The results of the annotation that counts; or why there is none."""
    live = [a for a in annotations if not a.was_cancelled]
    live = [a for a in live if a.ground_truth] or live
    if len(live) != 1:
        return "", f"{len(live)} annotations of the task stand; mark one as ground truth"
    return live[0].result, ""


def _said_size(results: Sequence[_Result]) -> tuple[int, int] | None:
    sizes = {(result.original_height, result.original_width) for result in results}
    if turns := [r.image_rotation for r in results if r.image_rotation]:
        raise ImageError(
            "turned image", f"it was annotated turned by {turns[0]:g} degrees; save it that way"
        )
    if len(sizes) > 1:
        raise ImageError("size mismatch", f"its regions are for {len(sizes)} different sizes")
    height, width = sizes.pop() if sizes else (None, None)
    return None if height is None or width is None else (height, width)


def _shape(result: _Result) -> Shape:
    if result.type not in SHAPES:
        raise ImageError(
            "outline without area",
            f"a region of type {result.type}; read are {', '.join(SHAPES)}",
        )
    return parse_label(SHAPES[result.type], result.value.encode(), f"value of {result.type}")


def _region(shape: Shape, target: int, size: tuple[int, int]) -> Region:
    """Pixels of a shape whose coordinates are percent of width and height."""
    percent = np.array([size[1], size[0]]) / 100
    if isinstance(shape, _Polygon):
        return polygon(target, [np.reshape(shape.points, (-1, 2)) * percent], size)
    if isinstance(shape, _Brush):
        return Region(target, _brush_mask(shape.rle, size))
    x, y = (shape.x, shape.y) * percent
    if isinstance(shape, _Ellipse):
        radius_x, radius_y = (shape.radius_x, shape.radius_y) * percent
        return polygon(target, [ellipse_ring(x, y, radius_x, radius_y, shape.rotation)], size)
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) * (shape.width, shape.height) * percent
    return polygon(target, [turned(corners, shape.rotation) + np.array([x, y])], size)


def _brush_mask(rle: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels (H, W) of a brush.

    A stream of bits: count of values (32), bits of a value less 1 (5), four widths of a run's length
    less 1 (4 each); then runs: whether one value is repeated (1), which width (2), length less 1,
    values.
    """
    bits = np.unpackbits(np.array(rle, np.uint8)).astype(np.int64)
    position = 0

    def take(width: int, count: int = 1) -> NDArray[np.int64]:
        nonlocal position
        start, position = position, position + width * count
        if position > len(bits):
            raise ImageError("damaged run lengths", f"{len(rle)} bytes end within a run")
        return bits[start:position].reshape(count, width) @ (1 << np.arange(width)[::-1])

    total = int(take(32)[0])
    if total != size[0] * size[1] * CHANNELS:
        raise ImageError("damaged run lengths", f"{total} values for an image of {list(size)}")
    value_bits, length_bits = int(take(5)[0]) + 1, take(4, 4) + 1
    values = np.zeros(total, np.int64)
    done = 0
    while done < total:
        repeated = bool(take(1)[0])
        count = int(take(int(length_bits[take(2)[0]]))[0]) + 1
        if done + count > total:
            raise ImageError("damaged run lengths", f"a run of {count} goes beyond the image")
        values[done : done + count] = take(value_bits, 1 if repeated else count)
        done += count
    return values.reshape(*size, CHANNELS)[..., -1] > 0
