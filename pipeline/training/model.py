"""Nets as the recipe describes them, and the proof that a start is what it claims to be."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from fcn.backbones import BACKBONES, PREPROCESSING
from fcn.nets import FCN, Blueprint, coarsest_map_px
from fcn.transplant import sha256
from fcn.weights import NET, load_net, read_weights
from pipeline.config.recipe import Recipe
from pipeline.config.schema import Stride
from pipeline.data.sampler import seed_of, smallest_micro_batch
from pipeline.errors import RecipeError, WeightsError
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


def load_stored_net(file: File) -> FCN:
    """A net of the store, or of any folder, if its weights are those that were written there.

    Raises:
        WeightsError: they are not.
    """
    folder = localize(file)
    try:
        return load_net(folder)
    except (ValueError, OSError) as error:
        raise WeightsError(
            f"the net in {folder} is not what was written: {error}. Remove {folder.parent}, and the "
            "same command makes it again"
        ) from error


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
        state = load_stored_net(start).state_dict()
        fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
        if lacking := [k for k in own if k.startswith("backbone.") and k not in fitting]:
            raise WeightsError(f"{folder / NET} lacks {lacking[0]} and {len(lacking) - 1} more")
        net.load_state_dict(fitting, strict=False)
    return net


def require_normalisable(recipe: Recipe, num_train: int) -> None:
    """Make sure that batch normalisation by micro-batch always has more than one value a channel.

    Raises:
        RecipeError: the coarsest map of the smallest micro-batch has a single one.
    """
    tune = recipe.finetune
    if tune.normalisation != "micro":
        return
    images = smallest_micro_batch(num_train, tune.global_batch, tune.micro_batch)
    for phase in recipe.phases:
        coarsest = coarsest_map_px(blueprint(recipe, phase.stride), tune.augment.crop_px)
        if coarsest is not None and images * coarsest[0] * coarsest[1] < 2:
            crop = "x".join(map(str, tune.augment.crop_px))
            raise RecipeError(
                f"finetune.batch_norm=micro needs more than one value a channel: the smallest of the "
                f"micro-batches of {num_train} images has {images} image, and a crop of {crop} px "
                f"leaves a map of {coarsest[0]}x{coarsest[1]} pixel; use a larger "
                "finetune.augment.crop_px, finetune.batch_norm=frozen, or a global_batch and a "
                "micro_batch that leave no single image over"
            )


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
