"""What is done with data sets: looked at, fetched, written out again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from pipeline.cli.base import load, main, recipe_arguments
from pipeline.errors import RecipeError


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    *("-o", "--output"),
    type=click.Path(path_type=Path, dir_okay=False),
    help="The recipe to write; NAME.yaml for a folder NAME if not given.",
)
def new(folder: Path, output: Path | None) -> None:
    """Look at a FOLDER of images and labels, and write a recipe with a reason for each line.

    A contact sheet is written beside it, NAME.contact.png: images with their labels drawn over them.
    What is not certain is asked: the recipe is refused until its lines to decide are filled in.
    """
    _new_recipe(folder, output)


def _new_recipe(folder: Path, output: Path | None) -> tuple[str, ...]:
    """Write a recipe and say what was understood; the keys that are to decide."""
    from pipeline.ops.new.make import make_recipe, recipe_name

    made = make_recipe(folder, output or Path(f"{recipe_name(folder)}.yaml"))
    for line in made.lines():
        click.echo(line)
    return made.to_decide


def recipe_of_folder(folder: Path) -> str:
    """The recipe of an earlier call, else a new one.

    Raises:
        RecipeError: something in it is to be decided first.
    """
    from pipeline.ops.new.make import recipe_name

    path = Path(f"{recipe_name(folder)}.yaml")
    if path.exists():
        click.echo(f"{path} is there already and is used as it is; remove it to have a new one")
    elif asked := _new_recipe(folder, path):
        raise RecipeError(f"{path} has {len(asked)} to decide; then: fcn-pipeline run {path}")
    else:
        click.echo(path.read_text(), nl=False)
    return str(path)


@main.command()
@click.argument("name")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def download(name: str, folder: Path) -> None:
    """Fetch a public data set into FOLDER and print what to run next.

    NAME: voc2007, voc2011, voc2012, sbd or pets. Files are proved by their checksums; a transfer that
    ended early goes on where it ended. What the data sets may be used for is said by their owners.
    """
    from pipeline.ops.download import download

    click.echo(download(name, folder))


@main.command()
@recipe_arguments
@click.option(
    *("--to", "kind"),
    required=True,
    type=click.Choice(["parquet", "folder"]),
    help="Parquet files as Hugging Face has them, or folders of images and label maps.",
)
@click.option(
    *("-o", "--output"),
    required=True,
    type=click.Path(path_type=Path),
    help="Folder to write to; it must be empty or not there.",
)
def export_data(recipe: str, overrides: tuple[str, ...], kind: Any, output: Path) -> None:  # noqa: ANN401 - click's
    """Write the data set as it was understood: what was accepted, labels as class ids, void as 255.

    Writes a recipe.yaml that reads the copy again. What is not ingested yet is ingested first.
    """
    from pipeline.logs import configure_logging
    from pipeline.ops.export_data import export_data

    configure_logging(logging.INFO)
    data = export_data(load(recipe, overrides), kind, output)
    counts = ", ".join(f"{n} {split}" for split, n in data.counts.items())
    click.echo(f"{output}: {counts} images as {kind}; {output / 'recipe.yaml'} reads them again")
