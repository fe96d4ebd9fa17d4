"""Weights in the layout of the paper's reference code: conv1_1 ... fc7, score_fr, upscore.

The reference's Caffe nets and the state dicts of pytorch-fcn have these names. Both were trained on BGR
images of 0..255 less their mean. A file of a Caffe classifier (fc6 flat, fc8) is taken as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcn.backbones import CAFFE
from fcn.nets import FCN
from fcn.transplant import (
    ARRIVED,
    TRAINING_TRUSTED,
    Receipt,
    entries,
    initialised,
    noise,
    relative,
    require_agreement,
)
from fcn.upsample import bilinear_kernel
from fcn.weight_names import State

PARTS = {"0": "weight", "w": "weight", "weights": "weight", "1": "bias", "b": "bias"}
"""Names of a layer's first and second array in files: those of torch, or Caffe's blobs by number."""
CONVS = {
    "vgg16": [f"conv{b}_{i}" for b, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)],
    "caffenet": [f"conv{i}" for i in range(1, 6)],
}
UPSCORES = {
    32: {"upscore": "image"},
    16: {"upscore2": "32", "upscore16": "image"},
    8: {"upscore2": "32", "upscore_pool4": "16", "upscore8": "image"},
}


def is_original(state: State) -> bool:
    """Whether the names in a file are those of the reference code."""
    layers = {_split(key)[0] for key in state}
    return "fc6" in layers and bool(layers & {"conv1_1", "conv1"})


def transplant_original(net: FCN, state: State, source: str) -> Receipt:
    """Copy the reference code's weights into a net, its scores too if it has as many classes.

    The file's own layers are run one after another, and must give the net's coarsest map.

    Raises:
        ValueError: the net has another backbone, preprocessing or stride, a tensor is missing, left over
            or of another shape, or the upsampling in the file is not what this net can hold.
    """
    backbone = net.blueprint.backbone
    if backbone not in CONVS:
        raise ValueError(
            f"{source} has the reference code's layers, this net's backbone is {backbone}; set "
            "net.backbone=vgg16 (or caffenet for FCN-AlexNet)"
        )
    if net.blueprint.preprocessing != CAFFE:
        raise ValueError(
            f"{source} was trained on BGR images of 0..255 less their mean, this net would give "
            "it others; set transplant.preprocessing=caffe"
        )
    own = net.state_dict()
    named = {key: ".".join(_split(key)) for key in state}
    targets = dict(_targets(net))
    kept = {key: targets[name] for key, name in named.items() if name in targets}
    kept = {key: target for key, target in kept.items() if _fits(state[key], own[target], target)}
    _require_all(kept, named, net, source)
    _require_bilinear(net, {named[key]: t for key, t in state.items() if key not in kept}, source)
    net.load_state_dict(
        {target: state[key].reshape(own[target].shape) for key, target in kept.items()},
        strict=False,
    )
    by_name = {name: state[key] for key, name in named.items()}
    x = noise(net, 227)  # fc6 may be without padding
    with torch.inference_mode():
        difference = relative(net.eval().backbone(x)[net.backbone.coarsest], _run(net, by_name, x))
    require_agreement(difference, f"the layers of {source} and the net", "Is the file damaged?")
    return Receipt(
        source=source,
        backbone=backbone,
        entries=(*entries(net, state, kept), *initialised(net, kept)),
        proof="the file's layers, one after another == the coarsest map",
        max_difference=difference,
        matched_by="the names of the reference code",
        covers=(
            ARRIVED,
            "The file's convolutions, in the order of their names, give the net's map.",
        ),
        does_not_cover=(
            "That the classes are those of the recipe, in this order.",
            TRAINING_TRUSTED,
        ),
    )


def _split(key: str) -> tuple[str, str]:
    """Layer and part of a name: conv1_1.weight, conv1_1/0 and conv1_1_w are the same."""
    match = re.fullmatch(r"(.+)[./:_]([a-zA-Z]+|[01])", key)
    layer, part = match.groups() if match else (key, "")
    return layer, PARTS.get(part.lower(), part)


def _targets(net: FCN) -> Iterator[tuple[str, str]]:
    """Names in the file, and the net's for them."""
    scores = {32: "score_fr", 16: "score_pool4", 8: "score_pool3"}
    layers = dict(zip(_names(net), (name for name, _ in _convolutions(net)), strict=True))
    layers |= {scores[s]: f"score.{s}" for s in net.strides}
    for theirs, ours in layers.items():
        for part in ("weight", "bias"):
            yield f"{theirs}.{part}", f"{ours}.{part}"
    if net.blueprint.upscore == "dense":
        for theirs, ours in UPSCORES[net.blueprint.stride].items():
            yield f"{theirs}.weight", f"upscore.{ours}.weight"


def _names(net: FCN) -> list[str]:
    return [*CONVS[net.blueprint.backbone], "fc6", "fc7"]


def _convolutions(net: FCN) -> Iterator[tuple[str, nn.Conv2d]]:
    return ((n, m) for n, m in net.named_modules() if "backbone" in n and isinstance(m, nn.Conv2d))


def _fits(theirs: Tensor, own: Tensor, target: str) -> bool:
    """Whether a tensor has the target's shape; Caffe's fc6 may be flat, its biases (1, 1, 1, N).

    Scores of another number of classes do not fit, and are left out.
    """
    if theirs.shape == own.shape:
        return True
    flat = target.startswith("backbone.") and theirs.numel() == own.numel()
    return flat and next(n for n in theirs.shape if n > 1) == own.shape[0]


def _require_all(kept: dict[str, str], named: dict[str, str], net: FCN, source: str) -> None:
    """Every convolution of the backbone has come; what is left over is known."""
    lacking = [n for n, t in _targets(net) if "backbone" in t and t not in kept.values()]
    if lacking:
        raise ValueError(
            f"{source} lacks {', '.join(lacking[:4])} ({len(lacking)} in all), or they are of other "
            f"shapes; give a file of a {net.blueprint.backbone}"
        )
    known = {"score_fr", "score_pool4", "score_pool3", "fc8"}.union(*UPSCORES.values())
    strange = [
        key
        for key, name in named.items()
        if key not in kept and name[: name.rindex(".")] not in known
    ]
    if strange:
        raise ValueError(
            f"{source} holds {', '.join(strange[:4])}, which the net has no place for; take them out"
        )


def _require_bilinear(net: FCN, left: dict[str, Tensor], source: str) -> None:
    """Upsampling that is not copied must be what the net starts with anyway."""
    for layer in UPSCORES[net.blueprint.stride]:
        weight = left.get(f"{layer}.weight")
        if weight is None:
            continue
        kernel = bilinear_kernel(weight.shape[-1]).to(weight.dtype)
        expected = torch.eye(len(weight), dtype=weight.dtype)[..., None, None] * kernel
        if weight.shape != expected.shape or (weight - expected).abs().max() > 1e-4:
            raise ValueError(f"{layer} of {source} is not bilinear any more; set net.upscore=dense")


def _run(net: FCN, state: State, x: Tensor) -> Tensor:
    """The coarsest map of the file's own tensors; layers without weights are the net's."""
    names = iter(_names(net))
    for layers in (*net.backbone.trunk.values(), net.backbone.head):
        for m in layers.children():
            if not isinstance(m, nn.Conv2d):
                x = m(x)
                continue
            name = next(names)
            weight = state[f"{name}.weight"].reshape(m.weight.shape)
            bias = state[f"{name}.bias"].flatten()
            x = F.conv2d(x, weight, bias, m.stride, m.padding, m.dilation, m.groups)
    return x
