"""COCO's JSON: outlines and run lengths of instances or stuff, or panoptic PNGs with their segments."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, FiniteFloat, NonNegativeInt, TypeAdapter

from fcn.images import ImageError, decode_colours
from fcn.labels import VOID, LabelRule
from pipeline.config.data import SplitSpec
from pipeline.config.schema import Split
from pipeline.data.sources.annotations import file_samples, parse_file, parse_label
from pipeline.data.sources.base import Drawn, Rejected, Sample, read_file
from pipeline.data.sources.drawing import Region, draw, polygon, size_to_draw, targets
from pipeline.data.sources.folder import files_state
from pipeline.errors import DataError

log = logging.getLogger(__name__)

Id = int | str


@dataclass(slots=True)
class _Category:
    id: Id
    name: str


@dataclass(slots=True)
class _Image:
    id: Id
    file_name: str
    height: int
    width: int


@dataclass(slots=True)
class _Segment:
    id: int
    category_id: Id
    iscrowd: bool = False


@dataclass(slots=True)
class _Annotation:
    image_id: Id
    category_id: Id | None = None
    segmentation: str = "null"
    """JSON, until its sample is read: as objects it would take many times the memory."""
    iscrowd: bool = False
    file_name: str | None = None
    segments_info: list[_Segment] | None = None


class _File(BaseModel):
    categories: list[_Category]
    images: list[_Image]
    annotations: list[_Annotation]


class _Rle(BaseModel):
    counts: str | list[NonNegativeInt]
    size: tuple[int, int]


class _Region(BaseModel):
    category: str
    crowd: bool
    segmentation: list[list[FiniteFloat]] | _Rle | None


class _Label(BaseModel):
    """What a sample carries along: its size, and either regions or a panoptic PNG and its segments."""

    size: tuple[int, int]
    regions: list[_Region] = []
    png: str | None = None
    segments: list[tuple[int, str, bool]] = []


ANNOTATION_KEYS = [field.name for field in fields(_Annotation)]
FILE, LABEL = TypeAdapter(_File), TypeAdapter(_Label)


@dataclass(frozen=True)
class CocoSource:
    """A folder of images and a JSON file for each split; of panoptic ones the PNGs lie beside it."""

    root: Path
    splits: Mapping[Split, SplitSpec]
    rule: LabelRule

    def samples(self) -> tuple[list[Sample], list[Rejected]]:
        """The images of the JSON files, in their order.

        Raises:
            DataError: a file is missing or not COCO's, or a category is not in its table.
        """
        whole: list[Sample] = []
        broken: list[Rejected] = []
        for split, spec in self.splits.items():
            if not (self.root / spec.images).is_dir():
                raise DataError(
                    f"{self.root / spec.images} is not a folder; data.splits.{split}.images names that "
                    "of the images, under data.root"
                )
            found = self._entries(split, spec)
            more, less = file_samples(self.root, split, spec, found)
            whole, broken = whole + more, broken + less
        return whole, broken

    def _entries(self, split: Split, spec: SplitSpec) -> Iterator[Sample | Rejected]:
        path = self.root / spec.labels
        file = parse_file(FILE, path, "COCO file with images, annotations and categories", _lean)
        names: dict[Id | None, str] = {c.id: c.name for c in file.categories}
        by_image = _by_image(file, names, path)
        panoptic = any(a.segments_info is not None for mine in by_image.values() for a in mine)
        for image in file.images:
            file_name = image.file_name.replace("\\", "/")
            name = file_name.removesuffix(PurePosixPath(file_name).suffix)
            image_path = self.root / spec.images / file_name
            annotations = by_image.pop(image.id)[::-1]  # as they stand in the file
            if not _is_file(image_path):
                why = "missing partner", f"no file {file_name} in {self.root / spec.images}"
            elif panoptic and len(annotations) != 1:
                why = "missing partner", f"{path} has {len(annotations)} annotations of it, not 1"
            else:
                label = _label(image, annotations, names, path.with_suffix(""))
                yield Sample(split, name, str(image_path), label)
                continue
            yield Rejected(split, name, *why, str(image_path))

    def read(self, sample: Sample) -> tuple[bytes, Drawn]:
        """The image's bytes, and its label map drawn.

        Raises:
            ImageError, OSError: the image cannot be read, or an annotation has no area or no class.
        """
        encoded = read_file(sample.image)
        label = parse_label(LABEL, sample.label.encode(), "COCO annotations")
        size = size_to_draw(encoded, label.size)
        if label.png is not None:
            return encoded, Drawn(self._panoptic(label, label.png))
        ids = targets([region.category for region in label.regions], self.rule)
        regions = [_region(r, k, size) for r, k in zip(label.regions, ids, strict=True)]
        return encoded, draw(regions, self.rule.unlabelled, size)

    def _panoptic(self, label: _Label, png: str) -> NDArray[np.uint8]:
        """Class ids of a PNG whose colours are R + 256 G + 65536 B = id of a segment, 0 = none."""
        rgb = decode_colours(read_file(png)).astype(np.int32)
        found, inverse = np.unique(rgb @ np.array([1, 1 << 8, 1 << 16]), return_inverse=True)
        ids = targets([name for _, name, _ in label.segments], self.rule)
        known = {0: self.rule.unlabelled} | {
            segment: VOID if crowd else k
            for (segment, _, crowd), k in zip(label.segments, ids, strict=True)
        }
        if unknown := [int(i) for i in found if int(i) not in known]:
            raise ImageError(
                "unknown segment",
                f"{png} has pixels of {len(unknown)} segments, such as {unknown[0]}, that "
                "segments_info does not list",
            )
        table = np.array([known[int(i)] for i in found], np.uint8)
        return table[inverse].reshape(rgb.shape[:2])

    def state(self) -> str:
        """Of the images, the JSON files and the panoptic PNGs."""
        images: set[Path] = set()
        contents: set[Path] = set()
        for spec in self.splits.values():
            labels = self.root / spec.labels
            images |= set((self.root / spec.images).rglob("*"))
            contents |= {labels, *labels.with_suffix("").glob("*.png")}
            contents |= {self.root / spec.list} if spec.list else set()
        return files_state(self.root, images, contents)


def _lean(read: dict[str, Any]) -> dict[str, Any]:
    """An object of the file without what is not asked for, its outline as text."""
    if "image_id" not in read:
        return read
    kept = {key: read[key] for key in ANNOTATION_KEYS if key in read}
    if "segmentation" in kept:
        kept["segmentation"] = json.dumps(kept["segmentation"])
    return kept


def _by_image(
    file: _File, names: Mapping[Id | None, str], path: Path
) -> dict[Id, list[_Annotation]]:
    """The annotations of each image, the last of the file first; the file keeps none of them."""
    by_image: dict[Id, list[_Annotation]] = {image.id: [] for image in file.images}
    if len(by_image) < len(file.images) or len(names) < len(file.categories):
        raise DataError(f"{path} gives an id to two images or two categories; number them anew")
    orphans = 0
    while file.annotations:
        annotation = file.annotations.pop()
        _require_categories(annotation, names, path)
        if (mine := by_image.get(annotation.image_id)) is None:
            orphans += 1
        else:
            mine.append(annotation)
    if orphans:
        log.warning("%s: %d annotations are of images that it does not list", path, orphans)
    return by_image


def _require_categories(
    annotation: _Annotation, names: Mapping[Id | None, str], path: Path
) -> None:
    segments = annotation.segments_info
    ids = [annotation.category_id] if segments is None else [s.category_id for s in segments]
    for category in ids:
        if category not in names:
            raise DataError(
                f"{path}: an annotation of image {annotation.image_id} is of category {category}; its "
                f"categories are {', '.join(map(str, names)) or 'none'}"
            )


def _label(
    image: _Image, annotations: Sequence[_Annotation], names: Mapping[Id | None, str], folder: Path
) -> str:
    """What is to be drawn on an image, as JSON."""
    size = json.dumps([image.height, image.width])
    if annotations and (segments := annotations[0].segments_info) is not None:
        rows = [(s.id, names[s.category_id], s.iscrowd) for s in segments]
        png = folder / (annotations[0].file_name or "")
        return f'{{"size": {size}, "png": {json.dumps(str(png))}, "segments": {json.dumps(rows)}}}'
    regions = ", ".join(
        f'{{"category": {json.dumps(names[a.category_id])}, "crowd": {json.dumps(a.iscrowd)}, '
        f'"segmentation": {a.segmentation}}}'
        for a in annotations
    )
    return f'{{"size": {size}, "regions": [{regions}]}}'


def _region(region: _Region, target: int, size: tuple[int, int]) -> Region:
    target = VOID if region.crowd else target
    if not region.segmentation:
        raise ImageError(
            "box without outline",
            f"an annotation of {region.category} has no segmentation; boxes say nothing of pixels: "
            "export outlines, or remove it",
        )
    if isinstance(region.segmentation, _Rle):
        return Region(target, _rle_mask(region.segmentation, size))
    if odd := [ring for ring in region.segmentation if len(ring) % 2]:
        raise ImageError("unreadable annotations", f"{len(odd[0])} numbers are no points x, y")
    rings = [np.reshape(ring, (-1, 2)) for ring in region.segmentation]
    return polygon(target, rings, size)


def _rle_mask(rle: _Rle, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels (H, W) of runs down the columns, the first of them outside."""
    counts = _counts(rle.counts) if isinstance(rle.counts, str) else rle.counts
    height, width = size
    if rle.size != size or min(counts, default=0) < 0 or sum(counts) != height * width:
        raise ImageError(
            "damaged run lengths",
            f"{len(counts)} runs for size {list(rle.size)} do not fill an image of {list(size)}",
        )
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(width, height).T


def _counts(text: str) -> list[int]:
    """Run lengths of COCO's text: 5 bits a character, low bits first, from the third as differences."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ImageError("damaged run lengths", f"they hold {character!r} where none can be")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last character of a number; bit 16 is its sign
            value -= (bits & 16 and 1) << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds what no name can
        return False
