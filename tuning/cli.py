"""The command line of the search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli import Verbs, recipe_arguments
from pipeline.errors import DataError

if TYPE_CHECKING:
    from pipeline.recipe import Recipe


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fcn-pipeline")
def main() -> None:
    """Search hyper-parameters of a recipe on Ray Tune."""


@main.command()
@click.argument("recipe")
def search(recipe: str) -> None:
    """Search learning rate and weight decay of RECIPE (not in this version)."""
    raise click.ClickException(
        f"the search over {recipe} is not in this version. Until it is, `fcn-tune space {recipe}` gives "
        "points that are worth a try; run them by hand with fcn-pipeline run --set ... --set name=..."
    )


@main.command()
@recipe_arguments
@click.option("--space", "path", type=click.Path(), help="YAML; lr and weight decay if not given.")
@click.option("--trials", default=8, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True)
def space(
    recipe: str, overrides: tuple[str, ...], path: str | None, trials: int, seed: int
) -> None:
    """Show which values a search of RECIPE would try; refuse dimensions that cannot matter.

    Each line is a trial as overrides; the first is the recipe as it is.
    """
    from pipeline.recipe import load_recipe
    from tuning.check import check
    from tuning.space import default_space, read_space

    loaded = load_recipe(recipe, overrides)
    num_train = _num_train(loaded)
    chosen = read_space(path) if path else default_space(loaded, num_train)
    check(chosen, loaded, num_train)
    for number in range(trials):
        click.echo("  ".join(chosen.overrides(chosen.trial(number, loaded, seed))))


def _num_train(recipe: Recipe) -> int:
    """Images to learn from: decay over a run depends on its steps.

    Raises:
        DataError: nobody has counted them yet.
    """
    from pipeline.flow import Flow

    counts = Flow(recipe).published_counts()
    if counts:
        return counts["train"]
    if recipe.data.source == "shapes":
        return recipe.data.shapes.num_train
    raise DataError(
        f"{recipe.name} has not been ingested into {recipe.store}, so its steps are not known; run "
        "fcn-pipeline ingest with the same recipe and store first"
    )


@main.command()
@click.argument("journal", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False, path_type=Path))
def report(journal: Path, output: Path) -> None:
    """Show the JOURNAL of a search on one page that needs nothing else, with its pictures."""
    from tuning.records import Search
    from tuning.report import write_report

    click.echo(write_report(Search.read(journal), output))
