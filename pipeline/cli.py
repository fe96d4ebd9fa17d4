"""The command line: verbs, a recipe, overrides. Everything else is in the recipe."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipeline.errors import PipelineError, RecipeError, StoppedError

if TYPE_CHECKING:
    from pipeline.config.recipe import Recipe
    from pipeline.flow import Report

Command = TypeVar("Command", bound=Callable[..., Any])


class Verbs(click.Group):
    """A group of verbs that prints our errors without a traceback.

    Exit code 2: a recipe to mend; 1: a run that failed; 143, as by SIGTERM: a run that was stopped.
    """

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's signature
        """Run a verb."""
        from pipeline.logs import configure_environment

        configure_environment()
        try:
            return super().invoke(ctx)
        except PipelineError as error:
            click.secho(f"{type(error).__name__}: {error}", err=True, fg="red")
            ctx.exit({RecipeError: 2, StoppedError: 143}.get(type(error), 1))

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


def _load(recipe: str, overrides: tuple[str, ...]) -> Recipe:
    from pipeline.config.recipe import load_recipe

    return load_recipe(recipe, overrides)


def run_flow(recipe: Recipe, until: str) -> None:
    """Run the stages up to one and print what they came to."""
    from pipeline.flow import Flow
    from pipeline.logs import configure_logging

    configure_logging(logging.INFO)
    _print_report(Flow(recipe).run(until), receipt=until == "transplant")


@main.command()
@recipe_arguments
def run(recipe: str, overrides: tuple[str, ...]) -> None:
    """Run the whole flow. What is in the store already is not computed again."""
    run_flow(_load(recipe, overrides), "register")


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
        run_flow(_load(recipe, overrides), name)

    return verb


@main.command()
@recipe_arguments
@click.option(
    "--address",
    envvar="RAY_API_SERVER_ADDRESS",
    help="Address of the cluster's job server, such as http://HEAD:8265. Without it, the Ray on this "
    "machine.",
)
@click.option(
    "--working-dir",
    default=".",
    show_default=True,
    type=click.Path(exists=True, file_okay=False),
    help="Folder whose files the job takes along; the recipe must lie in it.",
)
@click.option(
    "--name", help="Name of the job, for its logs and its stop. Ray makes one up otherwise."
)
@click.option(
    "--env",
    multiple=True,
    metavar="NAME",
    help="Name of an environment variable that the job is to have. May be given several times.",
)
@click.option("--no-wait", is_flag=True, help="Print how to follow and stop the job, and return.")
def submit(recipe: str, overrides: tuple[str, ...], no_wait: bool, **target: Any) -> None:  # noqa: ANN401 - click's
    """Run the flow as a job on a Ray cluster, with the working directory's code, and print its log.

    Exits with the flow's exit code. Ctrl-C leaves the job running. Data, stores, environments and
    secrets are not taken along; see docs/cluster.md.
    """
    from pipeline.ops.submit import Target, submit

    target["folder"] = Path(target.pop("working_dir"))
    job = submit(recipe, overrides, Target(**target))
    click.echo(f"submitted {job.name} to {job.address}", err=True)
    if no_wait:
        click.echo(job.how_to())
        return
    click.get_current_context().exit(job.follow())


@main.command()
@recipe_arguments
@click.option("--cluster", is_flag=True, help="Ask every node whether the run would succeed there.")
def plan(recipe: str, overrides: tuple[str, ...], cluster: bool) -> None:
    """Show what would run and why, without taking resources.

    With --cluster, exits with 1 if something would fail.
    """
    from rich.console import Console
    from rich.table import Table

    from pipeline.ops.plan import plan_rows

    loaded = _load(recipe, overrides)
    table = Table("step", "fingerprint", "would", "because", "needs", box=None)
    for row in plan_rows(loaded):
        table.add_row(*row)
    Console().print(table)
    if cluster:
        _check_cluster(loaded)


def _check_cluster(recipe: Recipe) -> None:
    from rich.console import Console

    from pipeline.ops.checks import findings_table
    from pipeline.ops.preflight import preflight

    findings = preflight(recipe)
    Console().print(findings_table(findings))
    failures = sum(finding.level == "failure" for finding in findings)
    if failures:
        click.echo(f"{failures} of {len(findings)} checks say that the run would fail")
        click.get_current_context().exit(1)


@main.command()
def recipes() -> None:
    """List the recipes inside the package."""
    from pipeline.config.recipe import recipe_names, summary

    for name in recipe_names():
        click.echo(f"{name:24} {summary(name)}")


@main.command()
@recipe_arguments
def show(recipe: str, overrides: tuple[str, ...]) -> None:
    """Print a recipe with all defaults and overrides filled in."""
    click.echo(_load(recipe, overrides).to_yaml(), nl=False)


@main.command()
@click.argument("model")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    *("-o", "--output"),
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to write the label maps to.",
)
@store_option
@click.option(
    "--tracking-uri", default=None, help="Address of MLflow. Without it, the store's own database."
)
def predict(
    model: str, images: tuple[Path, ...], output: Path, store: str, tracking_uri: str | None
) -> None:
    """Label IMAGES with MODEL: models:/NAME@champion, run:NAME, or a net's folder.

    Writes NAME.png, whose pixels are class ids in colours, and NAME.overlay.png for each image.
    """
    from pipeline.ops.predict import predict_files

    for path in predict_files(model, images, output, store, tracking_uri):
        click.echo(path)


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
    data = export_data(_load(recipe, overrides), kind, output)
    counts = ", ".join(f"{n} {split}" for split, n in data.counts.items())
    click.echo(f"{output}: {counts} images as {kind}; {output / 'recipe.yaml'} reads them again")


@main.command()
@recipe_arguments
@click.option(
    "--faults",
    default="worker,driver,node",
    show_default=True,
    help="Names of the faults, separated by commas; each training has every one of them once.",
)
@click.option(
    "--times",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Number of trainings with faults.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    help="Seed of the random steps at which the faults come.",
)
@click.option(
    "--tolerance",
    default=0.0,
    show_default=True,
    help="Relative difference that counts as equal: 0 on CPUs, more for GPUs and elastic runs.",
)
def drill(
    recipe: str,
    overrides: tuple[str, ...],
    faults: str,
    times: int,
    seed: int,
    tolerance: float,
) -> None:
    """Train; train again, each time with all faults at random steps; compare every tensor and metric.

    Faults: worker, loader, node, preempted (node), driver, ray, sigterm, damaged and half (-written
    checkpoint).
    Exits with 1 on any difference. Without an address the drill starts a Ray of several nodes here.
    """
    from rich.console import Console

    from pipeline.logs import configure_logging
    from pipeline.ops.drill import Drill, drill_table, require_faults

    configure_logging(logging.INFO)
    names = faults.split(",")
    require_faults(names)
    loaded = _load(recipe, overrides)
    arguments = [recipe, *(f"--set={value}" for value in overrides)]
    outcomes = list(Drill(loaded, arguments, tolerance).run(names, times, seed))
    Console().print(drill_table(outcomes))
    equal, hits = [o for o in outcomes if o.equal], [hit for o in outcomes for hit in o.hits]
    click.echo(
        f"{len(equal)} of {len(outcomes)} trainings with {len(hits)} faults in all are equal to the "
        "undisturbed one"
    )
    click.get_current_context().exit(0 if len(equal) == len(outcomes) else 1)


@main.command()
@store_option
@click.option("--yes", is_flag=True, help="Remove without asking.")
def gc(store: str, yes: bool) -> None:
    """Show what no run and no kept result refers to, and remove it after a question.

    Kept are the last flow of each run, all registered models, and what they were made of. In an object
    store only the flows of this machine are seen at work: run it when no other machine works there.
    """
    from rich.console import Console

    from pipeline.stage_table import STAGES
    from pipeline.storage.gc import find_garbage, garbage_table, megabytes
    from pipeline.storage.store import Store

    opened = Store(store)
    with opened.exclusive():
        kinds = [stage.folder for stage in STAGES.values()]
        found = find_garbage(opened, kinds, STAGES["register"].folder)
        if not found:
            click.echo(f"nothing to remove: all that is in {store} is referred to")
            return
        Console().print(garbage_table(found))
        size, folders = sum(each.size_bytes for each in found), len(found)
        total = f"{megabytes(size)} in {folders} folder{'s' * (folders > 1)}"
        if not yes:
            click.confirm(f"{total}; remove?", abort=True)
        for each in found:
            opened.remove(each.name)
    click.echo(f"freed {total}")


def _print_report(report: Report, *, receipt: bool) -> None:
    from rich.console import Console

    from pipeline.ops.plan import closing_lines, receipt_table

    console = Console(highlight=False)
    if receipt:
        console.print(receipt_table(report.results["transplant"].folder))
    for line in closing_lines(report):
        console.print(line, soft_wrap=True)
