"""The command line: verbs, a recipe, overrides. Everything else is in the recipe."""

from pipeline.cli import data, flows, models
from pipeline.cli.base import Verbs, main, recipe_arguments, run_flow, store_option

__all__ = [
    "Verbs",
    "data",
    "flows",
    "main",
    "models",
    "recipe_arguments",
    "run_flow",
    "store_option",
]
