"""Readers of data set layouts. A source lists its samples; any process can then read one."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.config.recipe import Recipe
from pipeline.data.sources.base import Drawn, Rejected, Sample, Source
from pipeline.data.sources.folder import FolderSource
from pipeline.data.sources.held_out import HeldOutSource
from pipeline.data.sources.shapes import ShapesSource
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


def _open_folders(recipe: Recipe) -> FolderSource:
    if recipe.data.root is None:
        raise RecipeError(f"{recipe.name}: data.root is missing; --set data.root=FOLDER names it")
    return FolderSource(recipe.data.root.absolute(), recipe.data.split_folders())


READERS: dict[str, Callable[[Recipe], Source]] = {
    "shapes": lambda recipe: ShapesSource(recipe.data.shapes, recipe.seed),
    "folder": _open_folders,
    "voc": _open_folders,
    "cityscapes": _open_folders,
}
"""The reader of each layout; what a recipe knows of the layout is in `pipeline/config/data.py`."""


def open_source(recipe: Recipe) -> Source:
    """The source that the recipe's data section describes.

    Raises:
        RecipeError: the source has folders, and the recipe does not name their root.
    """
    source = READERS[recipe.data.source](recipe)
    return HeldOutSource(source, recipe.data.held_out) if recipe.data.held_out else source
