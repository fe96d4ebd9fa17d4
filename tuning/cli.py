"""The command line of the search."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipeline.cli import Verbs, recipe_arguments
from pipeline.errors import DataError

if TYPE_CHECKING:
    from pipeline.config.recipe import Recipe
    from tuning.settings import Settings

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fcn-pipeline")
def main() -> None:
    """Search hyper-parameters of a recipe on Ray Tune.

    RECIPE is a name (see `fcn-pipeline recipes`) or a path to a YAML file; NAME is that of a search.
    """


def name_and_store(command: Command) -> Command:
    """NAME and --store, which every verb on a search that is there takes."""
    text = "The store: a folder, or the URI of an object store."
    option = click.option("--store", default="store", show_default=True, help=text)
    return click.argument("name")(option(command))


OPTIONS: tuple[tuple[str, Any, str], ...] = (
    ("--name", str, "Name of the search. Without it, the recipe's name."),
    ("--trials", int, "Number of trials.  [default: 20]"),
    (
        "--budget",
        str,
        "Time to spend over all sessions, such as 2h or 1h30m. Without it, no bound.",
    ),
    (
        "--space",
        click.Path(),
        "YAML file of what is searched. Without it, learning rate and weight decay.",
    ),
    ("--sampler", str, "How points are drawn: tpe, random or grid.  [default: tpe]"),
    ("--scheduler", str, "Which trials are ended early: asha, median or none.  [default: asha]"),
    ("--reduction", int, "One of so many trials goes on from each rung of asha.  [default: 3]"),
    ("--workers", int, "Number of workers of each trial.  [default: 1]"),
    ("--concurrent", int, "Number of trials side by side.  [default: as many as fit]"),
    (
        "--max-failed",
        float,
        "Fraction of failed trials above which the search ends.  [default: 0.5]",
    ),
    ("--seed", int, "Seed of the points.  [default: 0]"),
)


def search_options(command: Command) -> Command:
    """What a search is asked for."""
    for name, kind, text in reversed(OPTIONS):
        command = click.option(name, type=kind, help=text)(command)
    return command


@main.command()
@recipe_arguments
@search_options
def search(recipe: str, overrides: tuple[str, ...], space: str | None, **options: object) -> None:
    """Search for the values with which RECIPE learns best; the same command again goes on.

    The first trial is the recipe as it is. Each trial is a run in MLflow below that of the search.
    """
    from pipeline.config.documents import read_yaml
    from pipeline.config.recipe import load_recipe
    from tuning.settings import parse_settings

    loaded = load_recipe(recipe, overrides)
    given = {key: value for key, value in options.items() if value is not None}
    if space:
        given["space"] = read_yaml(space, "keys of a recipe with {log: ...} and the like")
    _search(loaded, parse_settings({"name": loaded.name} | given))


@main.command()
@name_and_store
@click.option(
    "--trials", type=int, help="Number of trials in all, more than before. Not for a grid."
)
@click.option("--budget", help="Time to spend over all sessions, such as 4h.")
def resume(name: str, store: str, trials: int | None, budget: str | None) -> None:
    """Go on with the search NAME, as it was begun."""
    from tuning.records import records_of
    from tuning.settings import parse_settings

    _, recipe, settings = records_of(store, name).read()
    given = {"trials": trials, "budget": budget}
    changed = {key: value for key, value in given.items() if value is not None}
    plain = settings.model_dump(mode="json", by_alias=True)
    _search(recipe, parse_settings(plain | changed))


def _search(recipe: Recipe, settings: Settings) -> None:
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
@name_and_store
def status(name: str, store: str) -> None:
    """Show how far the search NAME has come."""
    from rich.console import Console

    from tuning.records import records_of
    from tuning.report import head_line, trial_table

    records = records_of(store, name)
    found, _, settings = records.read()
    click.echo(head_line(found, settings, under_way=records.under_way()))
    Console().print(trial_table(found))


@main.command()
@name_and_store
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="YAML file to write the recipe to.",
)
@click.option("--run", "train", is_flag=True, help="Run the recipe's whole flow, to the gate.")
def best(name: str, store: str, output: Path | None, train: bool) -> None:
    """Print the recipe of the best trial of the search NAME, or write it, or run it.

    What the search has trained is not trained again.
    """
    from pipeline.cli import run_flow
    from tuning.best import best_recipe
    from tuning.records import records_of

    found, recipe, _ = records_of(store, name).read()
    winning = best_recipe(found, recipe)
    if output:
        output.write_text(winning.to_yaml())
    elif not train:
        click.echo(winning.to_yaml(), nl=False)
    if train:
        run_flow(winning, "register")


@main.command()
@recipe_arguments
@click.option(
    "--space",
    "path",
    type=click.Path(),
    help="YAML file of what is searched. Without it, learning rate and weight decay.",
)
@click.option(
    "--trials",
    default=8,
    show_default=True,
    type=click.IntRange(1),
    help="Number of points to show.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the points.")
def space(
    recipe: str, overrides: tuple[str, ...], path: str | None, trials: int, seed: int
) -> None:
    """Show which values a search of RECIPE would try; refuse dimensions that cannot matter.

    Each line is a trial as overrides; the first is the recipe as it is.
    """
    from pipeline.config.recipe import load_recipe
    from tuning.space import read_space
    from tuning.validate import check, default_space, known_num_train

    loaded = load_recipe(recipe, overrides)
    num_train = known_num_train(loaded)
    if num_train is None:
        raise DataError(
            f"{loaded.name} has not been ingested into {loaded.store}, so its steps are not known, on "
            "which weight decay depends; run fcn-pipeline ingest with the same recipe and store first"
        )
    chosen = read_space(path) if path else default_space(loaded, num_train)
    check(chosen, loaded, num_train)
    for number in range(trials):
        click.echo("  ".join(chosen.overrides(chosen.trial(number, loaded, seed))))


@main.command()
@name_and_store
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write the page to.",
)
def report(name: str, store: str, output: Path | None) -> None:
    """Show the search NAME on one page that needs nothing else, with its pictures."""
    from tuning.records import records_of
    from tuning.report import write_report

    records = records_of(store, name)
    found, _, _ = records.read()
    click.echo(write_report(found, output or records.store.cache / records.folder / "report"))
