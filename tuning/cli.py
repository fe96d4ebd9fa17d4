"""The command line of the search."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipeline.cli import Verbs, recipe_arguments, store_option
from pipeline.errors import DataError
from tuning.settings import Settings

if TYPE_CHECKING:
    from pipeline.config.recipe import Recipe
    from tuning.records import Records

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fcn-pipeline")
def main() -> None:
    """Search hyper-parameters of a recipe on Ray Tune.

    RECIPE is a name (see `fcn-pipeline recipes`) or a path to a YAML file; NAME is that of a search.
    """


def settings_options(*names: str) -> Callable[[Command], Command]:
    """Options of a search, each with its docstring as help; `parse` finds what is wrong with a value."""

    def add(command: Command) -> Command:
        for name in reversed(names or tuple(Settings.model_fields)):
            field = Settings.model_fields[name]
            kind, text = "TEXT", field.description or ""
            if field.default is not None and not field.is_required():
                kind = type(field.default).__name__.upper().replace("STR", "TEXT")
                text += f"  [default: {field.default}]" * (not names)
            option = f"--{name.replace('_', '-')}"
            command = click.option(option, metavar=kind, help=text)(command)
        return command

    return add


def _records(name: str, store: str) -> Records:
    from pipeline.storage.store import Store
    from tuning.records import Records

    return Records(Store(store), name)


@main.command()
@recipe_arguments
@settings_options()
def search(recipe: str, overrides: tuple[str, ...], **options: str | None) -> None:
    """Search for the values with which RECIPE learns best; the same command again goes on.

    The first trial is the recipe as it is. Each trial is a run in MLflow below that of the search.
    """
    from pipeline.config.recipe import load_recipe
    from tuning.space import read_space

    loaded = load_recipe(recipe, overrides)
    given: dict[str, Any] = {"name": loaded.name} | _given(options)
    if path := given.get("space"):
        given["space"] = read_space(path)
    _search(loaded, given)


@main.command()
@click.argument("name")
@store_option
@settings_options("trials", "budget")
def resume(name: str, store: str, **options: str | None) -> None:
    """Go on with the search NAME, as it was begun.

    More trials (not of a grid) and a larger budget may be given.
    """
    _, recipe, settings = _records(name, store).read()
    _search(recipe, settings.model_dump(mode="json") | _given(options))


def _given(options: dict[str, str | None]) -> dict[str, str]:
    return {key: value for key, value in options.items() if value is not None}


def _search(recipe: Recipe, given: dict[str, Any]) -> None:
    from tuning.space import parse

    settings = parse(Settings, given, "the search")

    from pipeline.logs import configure_logging
    from tuning.search import run

    configure_logging(logging.INFO)
    result = run(recipe, settings)
    best = result.search.best()
    if best is not None and best.mean_iu is not None:
        click.echo(f"best             mean IU {best.mean_iu:.4f} by trial {best.number}")
        click.echo(f"with             {'  '.join(best.overrides())}")
    click.echo(f"page             {result.page}")
    if scores := result.scores:
        click.echo(
            f"{scores.split} of {scores.num_images} images: mean IU {scores.mean_iu:.4f}, "
            f"pixel accuracy {scores.pixel_accuracy:.4f}"
        )
        click.echo(f"model            {result.registered}")
    click.echo(f"tracked in       mlflow ui --backend-store-uri {result.tracking}")
    click.echo(f"next             fcn-tune best {settings.name} --run --store {recipe.store}")


@main.command()
@click.argument("name")
@store_option
def status(name: str, store: str) -> None:
    """Show how far the search NAME has come."""
    from rich.console import Console

    from tuning.report import head_line, trial_table

    records = _records(name, store)
    found, _, settings = records.read()
    click.echo(head_line(found, settings, under_way=records.under_way()))
    Console().print(trial_table(found))


@main.command()
@click.argument("name")
@store_option
@click.option("-o", "--output", type=click.Path(path_type=Path), help="YAML file to write it to.")
@click.option("--run", "train", is_flag=True, help="Run the recipe's whole flow, to the gate.")
def best(name: str, store: str, output: Path | None, train: bool) -> None:
    """Print the recipe of the best trial of the search NAME, or write it, or run it.

    What the search has trained is not trained again.
    """
    from pipeline.cli import run_flow

    found, recipe, _ = _records(name, store).read()
    winning = found.best_recipe(recipe)
    if output:
        output.write_text(winning.to_yaml())
    elif not train:
        click.echo(winning.to_yaml(), nl=False)
    if train:
        run_flow(winning, "register")


@main.command()
@recipe_arguments
@settings_options("space")
@click.option(
    "--trials",
    default=8,
    show_default=True,
    type=click.IntRange(1),
    help="Number of points to show.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the points.")
def space(
    recipe: str, overrides: tuple[str, ...], space: str | None, trials: int, seed: int
) -> None:
    """Show which values a random search of RECIPE would try; refuse dimensions that cannot matter.

    Each line is a trial as overrides; the first is the recipe as it is.
    """
    from pipeline.config.recipe import load_recipe
    from tuning.estimators import random_point
    from tuning.space import read_space
    from tuning.validate import check, default_space, known_num_train

    loaded = load_recipe(recipe, overrides)
    num_train = known_num_train(loaded)
    if num_train is None:
        raise DataError(
            f"{loaded.name} has not been ingested into {loaded.store}, so its steps are not known, on "
            "which weight decay depends; run fcn-pipeline ingest with the same recipe and store first"
        )
    chosen = read_space(space) if space else default_space(loaded, num_train)
    check(chosen, loaded, num_train)
    for number in range(trials):
        click.echo("  ".join(chosen.overrides(random_point(chosen, loaded, seed, number))))


@main.command()
@click.argument("name")
@store_option
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder to write the page to."
)
def report(name: str, store: str, output: Path | None) -> None:
    """Show the search NAME on one page that needs nothing else, with its pictures."""
    from tuning.report import write_report

    records = _records(name, store)
    found, _, _ = records.read()
    click.echo(write_report(found, output or records.store.cache / records.folder / "report"))
