"""Nets as the recipe describes them, and the proof that a start is what it claims to be."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from fcn.backbones import BACKBONES, PREPROCESSING
from fcn.nets import FCN, Blueprint
from fcn.transplant import sha256
from fcn.weights import NET, read_weights
from pipeline.config.recipe import Recipe
from pipeline.config.schema import Stride
from pipeline.data.sampler import seed_of
from pipeline.errors import WeightsError
from pipeline.results import RECEIPT
from pipeline.storage.store import File, localize


def blueprint(recipe: Recipe, stride: Stride) -> Blueprint:
    """The net of a phase, as the recipe describes it."""
    spec, transplant = recipe.net, recipe.transplant
    named = transplant.preprocessing if transplant else None
    return Blueprint(
        backbone=spec.backbone,
        num_classes=len(recipe.data.class_table()),
        stride=stride,
        upscore=spec.upscore,
        border=spec.border,
        skip_scale=spec.skip_scale,
        preprocessing=PREPROCESSING[named] if named else BACKBONES[spec.backbone].preprocessing,
    )


def start_net(recipe: Recipe, stride: Stride, start: File | None) -> FCN:
    """Build a phase's net before its first step: from the transplant, the phase before, or scratch.

    New skips score zero, so that a finer net begins with the prediction of the coarser one.

    Raises:
        WeightsError: the start lacks a part of the backbone.
    """
    torch.manual_seed(seed_of("init", recipe.seed))
    net = FCN(blueprint(recipe, stride))
    if start is not None:
        own = net.state_dict()
        folder = localize(start)
        state = read_weights(folder / NET)
        fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
        if lacking := [k for k in own if k.startswith("backbone.") and k not in fitting]:
            raise WeightsError(f"{folder / NET} lacks {lacking[0]} and {len(lacking) - 1} more")
        net.load_state_dict(fitting, strict=False)
    return net


def require_receipt(folder: Path) -> None:
    """Make sure that weights to start from match their receipt, tensor by tensor.

    Raises:
        WeightsError: there is no receipt, or the weights are not those that it describes.
    """
    path = folder / RECEIPT
    if not path.is_file():
        raise WeightsError(
            f"{folder} has no {RECEIPT}: nothing proves that pretrained weights are in; run the "
            "transplant, or say finetune.init=scratch"
        )
    state = read_weights(folder / NET)
    for entry in json.loads(path.read_text())["entries"]:
        target = entry["target"]
        if target is not None and (target not in state or sha256(state[target]) != entry["sha256"]):
            raise WeightsError(f"{folder / NET}: {target} is not what its receipt says; run again")
