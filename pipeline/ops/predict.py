"""Label maps for files, from any net that this project made."""

from __future__ import annotations

import errno
import glob
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from fcn.images import ImageError, InputRule, decode_rgb
from fcn.inference import predict
from fcn.labels import ClassTable
from fcn.nets import FCN
from fcn.weights import ABOUT, class_table, input_rule, load_net, read_about
from pipeline.config.legal import require_model_uri
from pipeline.config.schema import TrackingSpec
from pipeline.data.sources.folder import IMAGE_SUFFIXES
from pipeline.errors import DataError, StoreError, WeightsError
from pipeline.storage.store import Store
from pipeline.tracking import plots
from pipeline.training.pretrained import run_net

OF_ONE_NAME = (errno.ENAMETOOLONG, errno.EISDIR)
"""Errors of writing that concern one name alone, so that others can be written."""


@dataclass(frozen=True)
class Outcome:
    """What became of an image."""

    image: Path
    label: Path
    failure: str = ""
    """Why there is no label map; empty if there is one."""


def predict_files(
    model: str, given: Sequence[Path], output: Path, store: Path | str, tracking_uri: str | None
) -> Iterator[Outcome]:
    """Write a label map and an overlay for each image, whole or not at all; an image that fails is told.

    Raises:
        DataError: there is no image, or a file to write is one of the images or has its name twice.
        WeightsError, TrackingError: no such model.
        StoreError: nothing can be written to the folder.
    """
    images = find_images(given)
    _require_own_targets(images, output)
    net, table, rule = _load(model, Store(store), tracking_uri)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(output, error) from error
    for path in images:
        target, overlay = _targets(path, output)
        try:
            image, label = _labelled(net, rule, path)
            _write(target, partial(plots.label_png, label=label, table=table))
            _write(overlay, partial(plots.overlay_png, image=image, label=label, table=table))
        except DataError as error:
            yield Outcome(path, target, str(error))
        else:
            yield Outcome(path, target)


def find_images(given: Sequence[Path]) -> list[Path]:
    """The files that are meant: themselves, those in a folder, or those that fit a pattern.

    Raises:
        DataError: a folder holds no image, or no file fits a pattern.
    """
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = [p for p in sorted(path.iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES]
            if not inside:
                raise DataError(
                    f"{path} holds no image; give a folder of files {', '.join(sorted(IMAGE_SUFFIXES))}"
                )
        elif glob.has_magic(str(path)) and not path.exists():
            inside = [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
            if not inside:
                raise DataError(f"no file fits {path}; give images, a folder or a pattern")
        else:
            inside = [path]
        found += inside
    return list(dict.fromkeys(found))


def _targets(image: Path, output: Path) -> tuple[Path, Path]:
    return output / f"{image.stem}.png", output / f"{image.stem}.overlay.png"


def _require_own_targets(images: Sequence[Path], output: Path) -> None:
    inputs = {key: path for path in images if (key := _identity(path))}
    writers: dict[Path, Path] = {}
    for image in images:
        for target in _targets(image, output):
            if (other := writers.setdefault(target, image)) != image:
                raise DataError(
                    f"{other} and {image} would both be labelled into {target}; use two folders"
                )
            if (key := _identity(target)) and key in inputs:
                raise DataError(
                    f"{target}, to be written, is the image {inputs[key]}; choose another folder with -o"
                )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        facts = path.stat()  # of what a link points at
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _labelled(net: FCN, rule: InputRule, path: Path) -> tuple[plots.Pixels, plots.Pixels]:
    if path.exists() and not path.is_file():  # to read a pipe may take for ever
        raise DataError("it is no file")
    try:
        image = decode_rgb(path.read_bytes(), rule)
        return image, predict(net, image, rule)
    except (OSError, ImageError) as error:
        raise DataError(f"it cannot be read: {error}") from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise DataError("it needs more memory than there is; make it smaller") from error


def _write(target: Path, save: Callable[[Path], None]) -> None:
    """Whole or not at all; a link is replaced, what it points at stays."""
    draft = target.with_name(f".{uuid.uuid4().hex}.png")
    try:
        save(draft)
        draft.replace(target)
    except OSError as error:
        if error.errno in OF_ONE_NAME:
            raise DataError(f"{target.name[:60]} cannot be written: {error.strerror}") from error
        raise _not_writable(target.parent, error) from error
    finally:
        draft.unlink(missing_ok=True)


def _not_writable(folder: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{folder} cannot be written: {error.strerror}; choose another folder with -o"
    )


def _load(model: str, store: Store, tracking_uri: str | None) -> tuple[FCN, ClassTable, InputRule]:
    folder = _net_folder(model, store, tracking_uri)
    try:
        about = read_about(folder)
        net, table, rule = load_net(folder), class_table(about), input_rule(about)
    except ValueError as error:
        raise WeightsError(f"{model}: {error}") from error
    if len(table) != net.blueprint.num_classes:
        raise WeightsError(
            f"{model}: {ABOUT} names {len(table)} classes, the net has {net.blueprint.num_classes}; "
            "copy the whole folder again"
        )
    return net.to("cuda" if torch.cuda.is_available() else "cpu"), table, rule


def _net_folder(model: str, store: Store, tracking_uri: str | None) -> Path:
    if model.startswith("models:/"):
        from pipeline.tracking.registry import existing_registry  # noqa: PLC0415 - slow to import

        try:
            require_model_uri(model)
        except ValueError as error:
            raise WeightsError(str(error)) from error
        registry = existing_registry(TrackingSpec(uri=tracking_uri), store.cache)
        return registry.download_net(model)
    if model.startswith("run:"):
        return run_net(store, model.removeprefix("run:"))
    folder = Path(model)
    if not folder.is_dir():
        raise WeightsError(f"{model}: give models:/NAME@ALIAS, run:NAME or a net's folder")
    inside = [path.parent for path in folder.glob(f"*/{ABOUT}")]  # as the store has it
    return inside[0] if len(inside) == 1 and not (folder / ABOUT).is_file() else folder
