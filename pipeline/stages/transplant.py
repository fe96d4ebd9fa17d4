"""Stage 2: pretrained weights into the net's backbone, with the receipt that proves it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from fcn.backbones import BACKBONES
from fcn.nets import FCN
from fcn.transplant import Receipt, transplant_classifier, transplant_net
from fcn.weights import class_table, load_net, read_about, read_weights, save_net
from pipeline.config.recipe import Recipe
from pipeline.data.sampler import seed_of
from pipeline.errors import WeightsError
from pipeline.logs import configure_environment
from pipeline.results import RECEIPT, Transplanted
from pipeline.storage.store import Store
from pipeline.training.model import blueprint
from pipeline.training.pretrained import (
    PACKAGE,
    package_file,
    require_section,
    run_net,
    source_state,
)

NETS = ("run:", "models:/")
"""Sources that are whole nets of this pipeline, not classifiers."""


def run(recipe: Recipe, store: Store, key: str) -> Transplanted:
    """Build the first phase's net, put the weights in, prove it, publish both.

    Raises:
        WeightsError: the weights are missing, unsafe, of another net, or do not agree.
    """
    torch.manual_seed(seed_of("init", recipe.seed))
    net = FCN(blueprint(recipe, recipe.phases[0].stride))
    source = require_section(recipe).weights
    try:
        receipt = _transplant(net, recipe, store)
    except ValueError as error:
        raise WeightsError(f"transplant.weights={source}: {error}") from error
    manifest: dict[str, object] = {}
    with store.publish("weights", key, manifest) as draft:
        save_net(draft, net)
        (draft / RECEIPT).write_text(json.dumps(receipt.to_json(), indent=1))
        result = Transplanted(
            folder=draft,
            source=receipt.source,
            copied=receipt.count("copied"),
            reshaped=receipt.count("reshaped"),
            initialised=receipt.count("initialised"),
            dropped=receipt.count("dropped"),
            max_difference=receipt.max_difference,
            tolerance=receipt.tolerance,
            proof=receipt.proof,
        )
        manifest |= result.model_dump(mode="json")
    return result


def _transplant(net: FCN, recipe: Recipe, store: Store) -> Receipt:
    spec, backbone = require_section(recipe), recipe.net.backbone
    weights = spec.weights
    is_file = weights not in ("torchvision", "package") and not weights.startswith(NETS)
    if spec.names is not None and not is_file:
        raise WeightsError("transplant.names is for a file of weights; remove it for this source")
    if weights == "torchvision":
        enum = BACKBONES[backbone].torchvision_weights
        if enum is None:
            raise WeightsError(f"torchvision has no weights of {backbone}; use package or a file")
        return transplant_classifier(net, _download(enum), f"torchvision {enum}")
    if weights == "package":
        if backbone != "efficientnet_lite0":
            raise WeightsError(
                f"{PACKAGE} holds efficientnet_lite0, the recipe's net is {backbone}"
            )
        return transplant_classifier(net, read_weights(package_file()), source_state(recipe, store))
    if weights.startswith(NETS):
        folder = _net_folder(weights, recipe, store)
        theirs = class_table(read_about(folder)).names
        same = theirs == recipe.data.class_table().names
        return transplant_net(net, load_net(folder), weights, same_classes=same)
    return transplant_classifier(net, read_weights(Path(weights)), weights, spec.names)


def _net_folder(weights: str, recipe: Recipe, store: Store) -> Path:
    if weights.startswith("run:"):
        return run_net(store, weights[4:])
    configure_environment()
    from pipeline.tracking.registry import existing_registry  # noqa: PLC0415 - MLflow takes seconds to import

    return existing_registry(recipe.tracking, store.cache).download_net(weights)


def _download(enum: str) -> dict[str, Tensor]:
    """Torchvision's own download, which checks the hash that the file name carries."""
    from torchvision.models import get_weight  # noqa: PLC0415 - as in fcn/backbones.py

    try:
        state = get_weight(enum).get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"the download of {enum} failed: {error}; give a file with --set transplant.weights=PATH"
        ) from error
    return dict(state)
