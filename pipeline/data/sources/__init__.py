"""Readers of data set layouts. A source lists its samples; any process can then read one."""

from __future__ import annotations

from pipeline.config.recipe import Recipe
from pipeline.data.sources.base import Sample, Source
from pipeline.data.sources.folder import FolderSource
from pipeline.data.sources.shapes import ShapesSource
from pipeline.errors import RecipeError

__all__ = ["FolderSource", "Sample", "ShapesSource", "Source", "open_source"]


def open_source(recipe: Recipe) -> Source:
    """The source that the recipe's data section describes; `voc` is folders with lists.

    Raises:
        RecipeError: the source has folders, and the recipe does not say where.
    """
    data = recipe.data
    if data.source == "shapes":
        return ShapesSource(data.shapes, recipe.seed)
    if data.root is None:
        raise RecipeError(f"{recipe.name}: data.root is missing; --set data.root=FOLDER names it")
    return FolderSource(data.root.absolute(), data.split_folders())
