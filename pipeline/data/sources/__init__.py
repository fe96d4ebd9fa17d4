"""Readers of data set layouts. A source lists its samples; any process can then read one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from fcn.labels import LabelRule
from pipeline.config.data import SplitSpec
from pipeline.config.recipe import Recipe
from pipeline.config.schema import Split
from pipeline.data.sources.base import Drawn, Rejected, Sample, Source
from pipeline.data.sources.coco import CocoSource
from pipeline.data.sources.folder import FolderSource
from pipeline.data.sources.held_out import HeldOutSource
from pipeline.data.sources.huggingface import HuggingFaceSource
from pipeline.data.sources.labelme import LabelMeSource
from pipeline.data.sources.labelstudio import LabelStudioSource
from pipeline.data.sources.sbd import SbdSource
from pipeline.data.sources.shapes import ShapesSource
from pipeline.data.sources.yolo import YoloSource
from pipeline.errors import RecipeError

__all__ = [
    "READERS",
    "Drawn",
    "FolderSource",
    "Rejected",
    "Sample",
    "ShapesSource",
    "Source",
    "open_source",
]


def _root(recipe: Recipe) -> Path:
    if recipe.data.root is None:
        raise RecipeError(f"{recipe.name}: data.root is missing; --set data.root=FOLDER names it")
    return recipe.data.root.absolute()


def _open_folders(recipe: Recipe) -> FolderSource:
    return FolderSource(_root(recipe), recipe.data.split_folders())


def _open_sbd(recipe: Recipe) -> SbdSource:
    if recipe.data.voc_root is None:
        raise RecipeError(
            f"{recipe.name}: data.voc_root is missing; --set data.voc_root=VOCdevkit/VOC2011 names the "
            "folder that the val split is taken from"
        )
    return SbdSource(_root(recipe), recipe.data.voc_root.absolute())


def _open_yolo(recipe: Recipe) -> YoloSource:
    spec, rule = recipe.data, recipe.data.label_rule()
    if wrong := [raw for raw in spec.label_map if not raw.isdecimal()]:
        raise RecipeError(
            f"{recipe.name}: data.label_map has a row {wrong[0]}; for yolo, rows are numbers of classes"
        )
    classes = {k: k for k in range(rule.num_classes)}
    classes |= {int(raw): rule.names[raw] for raw in spec.label_map}
    return YoloSource(_root(recipe), spec.split_folders(), classes, rule.unlabelled)


def _open_annotated(
    reader: Callable[[Path, Mapping[Split, SplitSpec], LabelRule], Source],
) -> Callable[[Recipe], Source]:
    return lambda recipe: reader(
        _root(recipe), recipe.data.split_folders(), recipe.data.label_rule()
    )


READERS: dict[str, Callable[[Recipe], Source]] = {
    "shapes": lambda recipe: ShapesSource(recipe.data.shapes, recipe.seed),
    "folder": _open_folders,
    "voc": _open_folders,
    "cityscapes": _open_folders,
    "sbd": _open_sbd,
    "coco": _open_annotated(CocoSource),
    "labelme": _open_annotated(LabelMeSource),
    "labelstudio": _open_annotated(LabelStudioSource),
    "yolo": _open_yolo,
    "huggingface": lambda recipe: HuggingFaceSource(_root(recipe), recipe.data.split_folders()),
}
"""The reader of each layout; what a recipe knows of the layout is in `pipeline/config/data.py`."""


def open_source(recipe: Recipe) -> Source:
    """The source that the recipe's data section describes.

    Raises:
        RecipeError: the recipe does not name a folder that the source needs.
    """
    source = READERS[recipe.data.source](recipe)
    return HeldOutSource(source, recipe.data.held_out) if recipe.data.held_out else source
