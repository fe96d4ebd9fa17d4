"""What is done with nets: listed, drawn, asked for label maps."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.base import main, store_option


@main.command()
@click.argument("names", nargs=-1)
@click.option("--markdown", is_flag=True, help="Print the table as docs/backbones.md has it.")
def backbones(names: tuple[str, ...], markdown: bool) -> None:
    """List the classifiers that a net can grow from: NAMES, or all (half a minute)."""
    from pipeline.ops import backbones as ops

    rows = ops.describe(names)
    for line in ops.markdown(rows) if markdown else ops.plain(rows):
        click.echo(line)


@main.command()
@click.argument("backbone")
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--class", "class_name", required=True, help="Name of a class of ImageNet.")
@click.option(
    *("--weights", "weights"),
    default="package",
    show_default=True,
    help="Where the classifier's weights come from: package, torchvision, or a file.",
)
@click.option(
    *("-o", "--output"),
    default="heatmap.png",
    show_default=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Picture to write.",
)
def heatmap(backbone: str, image: Path, class_name: str, weights: str, output: Path) -> None:
    """Draw where in IMAGE the classifier BACKBONE sees a class, before any fine-tuning."""
    from pipeline.ops.heatmap import heatmap

    greatest = heatmap(backbone, image, class_name, weights, output)
    click.echo(f"{output}: {class_name} with a probability of at most {greatest:.3f}")


@main.command()
@click.argument("model")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    *("-o", "--output"),
    required=True,
    help="Folder to write the label maps to; not the one of the images.",
)
@store_option
@click.option(
    "--tracking-uri", default=None, help="Address of MLflow. Without it, the store's own database."
)
def predict(
    model: str, images: tuple[Path, ...], output: str, store: str, tracking_uri: str | None
) -> None:
    """Label IMAGES with MODEL: models:/NAME@champion, run:NAME, or a net's folder.

    IMAGES are files, folders of images, or patterns such as 'photos/*.jpg'. Writes NAME.png, whose
    pixels are class ids in colours, and NAME.overlay.png for each image. Those that cannot be labelled
    are listed at the end, and the exit code is 1 then. Uses a GPU where there is one.
    """
    from pipeline.ops.predict import predict_files

    if not output.strip():
        raise click.BadParameter("it is empty; name a folder", param_hint="-o")
    failed, number = [], 0
    for done in predict_files(model, images, Path(output), store, tracking_uri):
        number += 1
        if done.failure:
            failed.append(f"{click.format_filename(done.image)}: {done.failure}")
        else:
            click.echo(click.format_filename(done.label))
    if failed:
        failed.append(f"{len(failed)} of {number} images were not labelled")
        click.echo("\n".join(failed), err=True)
        click.get_current_context().exit(1)
