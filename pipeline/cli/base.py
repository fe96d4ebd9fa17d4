"""What all verbs share: their group, the recipe with its overrides, how errors end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipeline.errors import InterruptError, PipelineError, RecipeError, StoppedError

if TYPE_CHECKING:
    from pipeline.config.recipe import Recipe
    from pipeline.flow import Report

Command = TypeVar("Command", bound=Callable[..., Any])


class Verbs(click.Group):
    """A group of verbs that prints our errors without a traceback.

    Exit code 2: a recipe to mend; 1: a run that failed; 130: stopped by Ctrl-C; 143: by SIGTERM.
    """

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's signature
        """Run a verb."""
        from pipeline.logs import configure_environment

        configure_environment()
        try:
            return super().invoke(ctx)
        except PipelineError as error:
            click.secho(f"{type(error).__name__}: {error}", err=True, fg="red")
            codes = {RecipeError: 2, StoppedError: 143, InterruptError: 130}
            ctx.exit(codes.get(type(error), 1))
        except KeyboardInterrupt:
            click.secho("InterruptError: stopped by Ctrl-C", err=True, fg="red")
            ctx.exit(130)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse credentials in any argument before one of them is printed."""
        from pipeline.config.uris import REMEDY, has_credentials

        if found := [number for number, text in enumerate(args, 1) if has_credentials(text)]:
            raise click.UsageError(f"argument {found[0]} holds credentials: {REMEDY}", ctx)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, with one for each stage of the flow."""
        return sorted({*super().list_commands(ctx), *_stage_names()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A verb by its name; those of the stages come from the table of stages."""
        return super().get_command(ctx, cmd_name) or _stage_verb(cmd_name)


def recipe_arguments(command: Command) -> Command:
    """Add RECIPE and --set, which every verb on a recipe takes."""
    option = click.option(
        *("--set", "overrides"),
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a value of the recipe, such as finetune.epochs=5. May be given several times.",
    )
    return click.argument("recipe")(option(command))


store_option = click.option(
    *("--store", "store"),
    default="store",
    show_default=True,
    help="The store: a folder, or the URI of an object store.",
)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fcn-pipeline")
def main() -> None:
    """Train fully convolutional networks on Ray, tracked and registered in MLflow.

    RECIPE is a name (see `fcn-pipeline recipes`) or a path to a YAML file.
    """


def load(recipe: str, overrides: tuple[str, ...]) -> Recipe:
    """The recipe that a verb was given."""
    from pipeline.config.recipe import load_recipe

    return load_recipe(recipe, overrides)


def run_flow(recipe: Recipe, until: str) -> None:
    """Run the stages up to one and print what they came to."""
    from pipeline.flow import Flow
    from pipeline.logs import configure_logging

    configure_logging(logging.INFO)
    _print_report(Flow(recipe).run(until), receipt=until == "transplant")


def _stage_names() -> list[str]:
    from pipeline.stage_table import STAGES

    return list(STAGES)


def _stage_verb(name: str) -> click.Command | None:
    from pipeline.stage_table import STAGES

    if name not in STAGES:
        return None

    @click.command(name, help=STAGES[name].help)
    @recipe_arguments
    def verb(recipe: str, overrides: tuple[str, ...]) -> None:
        run_flow(load(recipe, overrides), name)

    return verb


def _print_report(report: Report, *, receipt: bool) -> None:
    from rich.console import Console

    from pipeline.ops.plan import closing_lines, receipt_table

    console = Console(highlight=False)
    if receipt:
        console.print(receipt_table(report.results["transplant"].folder))
    for line in closing_lines(report):
        console.print(line, soft_wrap=True)
