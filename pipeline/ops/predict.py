"""Label maps for files, from any net that this project made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fcn.images import ImageError, decode_rgb
from fcn.inference import predict
from fcn.weights import class_table, input_rule, load_net, read_about
from pipeline.config.schema import TrackingSpec
from pipeline.errors import DataError, WeightsError
from pipeline.storage.store import Store
from pipeline.tracking import plots
from pipeline.training.pretrained import run_net


def predict_files(
    model: str, images: Sequence[Path], output: Path, store: Path | str, tracking_uri: str | None
) -> Iterator[Path]:
    """Write a label map and an overlay for each image; yields the label maps' paths.

    Raises:
        DataError: a file is missing or not an image, or two have the same name.
        WeightsError, TrackingError: no such model.
    """
    names = [path.stem for path in images]
    if doubles := {name for name in names if names.count(name) > 1}:
        raise DataError(
            f"several images are named {', '.join(doubles)}; label them into two folders"
        )
    folder = _net_folder(model, Store(store), tracking_uri)
    try:
        about = read_about(folder)
        net, table, rule = load_net(folder), class_table(about), input_rule(about)
    except (ValueError, KeyError) as error:
        raise WeightsError(f"{model}: {error}") from error
    output.mkdir(parents=True, exist_ok=True)
    for path in images:
        try:
            image = decode_rgb(path.read_bytes(), rule)
        except (OSError, ImageError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        label = predict(net, image, rule)
        target = output / f"{path.stem}.png"
        plots.label_png(target, label, table)
        plots.overlay_png(output / f"{path.stem}.overlay.png", image, label, table)
        yield target


def _net_folder(model: str, store: Store, tracking_uri: str | None) -> Path:
    if model.startswith("models:/"):
        from pipeline.tracking.registry import open_registry  # noqa: PLC0415 - MLflow takes seconds to import

        return open_registry(TrackingSpec(uri=tracking_uri), store.cache).download_net(model)
    if model.startswith("run:"):
        return run_net(store, model.removeprefix("run:"))
    if not Path(model).is_dir():
        raise WeightsError(f"{model}: give models:/NAME@ALIAS, run:NAME or a net's folder")
    return Path(model)
