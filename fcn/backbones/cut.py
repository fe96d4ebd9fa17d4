"""Where a classifier is cut: its chain of layers, found by tracing, parted by stride."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.nn import functional as F

from fcn.convolutionalize import as_convolution
from fcn.geometry import Geometry, on_meta, trace

STRIDES = (8, 16, 32)

Units = list[tuple[str, nn.Module]]
"""Layers and blocks in the order of their use, each with its path in the classifier."""


@dataclass
class Parts:
    """A classifier, cut: everything in it is the classifier's own, or a view of its memory."""

    trunk: dict[int, nn.Sequential]
    """Layers by the stride of the map that they end with; the last are those of the coarsest map."""
    places: dict[int, Geometry]
    """Where the map of each part of the trunk lies on the image."""
    head: nn.Sequential
    """From the coarsest map to the class layer, fully connected layers as convolutions."""
    class_layer: nn.Conv2d
    tail: nn.Sequential
    """What follows the class layer before the mean is taken; empty but for SqueezeNet."""
    pooled: bool
    """Whether the head averages over the whole map (ResNet) or is fully connected (VGG)."""


class _Chain(fx.Tracer):
    """Sees every module as a whole, but for plain sequences."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not isinstance(m, nn.Sequential)


def cut(classifier: nn.Module, taps: Literal["last", "first"]) -> Parts:
    """Part a classifier by stride, and turn its head into convolutions.

    Raises:
        ValueError: its layers are no chain, or its head is neither linear nor a convolution.
    """
    units = _chain(classifier)
    at = next((i for i, (_, m) in enumerate(units) if isinstance(m, nn.AdaptiveAvgPool2d)), None)
    if at is None:
        raise ValueError(
            f"{type(classifier).__name__} has no pool between its maps and its classes"
        )
    window = _window(units[at][1])
    before, after = units[:at], [m for _, m in units[at + 1 :] if not isinstance(m, nn.Flatten)]
    if any(isinstance(m, nn.Linear) for m in after):
        layers, tail = _as_convolutions(after, window), nn.Sequential()
    else:
        before, layers, tail = _class_convolution(before)
    *head, class_layer = layers
    if not isinstance(class_layer, nn.Conv2d):
        raise ValueError(
            f"the last layer of the head is {class_layer}, neither linear nor a Conv2d"
        )
    if window > 1:
        head.insert(0, nn.ZeroPad2d(0))
    trunk, places = _trunk(classifier, before, taps)
    return Parts(trunk, places, nn.Sequential(*head), class_layer, tail, pooled=window == 1)


def _chain(classifier: nn.Module) -> Units:
    """The classifier as layers and blocks of which each feeds the next alone."""
    graph = _Chain().trace(classifier)
    units: Units = []
    previous = None
    for node in graph.nodes:
        if node.op in ("placeholder", "output"):
            previous = previous or node
            continue
        if node.all_input_nodes != [previous]:
            raise ValueError(
                f"{type(classifier).__name__} is no chain of layers: {node} does not follow {previous}"
            )
        if node.op == "call_module":
            units.append((str(node.target), classifier.get_submodule(str(node.target))))
        else:
            units.append(("", _as_module(node)))
        previous = node
    return units


def _as_module(node: fx.Node) -> nn.Module:
    """The module that does what a function between the layers does."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.target is F.relu:
        return nn.ReLU(inplace=bool(node.kwargs.get("inplace", False)))
    if name == "adaptive_avg_pool2d":
        size: Any = node.args[1]
        return nn.AdaptiveAvgPool2d(size)
    if name == "mean":
        return nn.AdaptiveAvgPool2d(1)
    if name == "flatten":
        return nn.Flatten()
    raise ValueError(f"the classifier calls {node.target} between its layers, which has no module")


def _window(pool: nn.Module) -> int:
    size: Any = pool.output_size
    return int(size[0] if isinstance(size, tuple) else size)


def _as_convolutions(layers: list[nn.Module], window: int) -> list[nn.Module]:
    """The first linear layer slides over the window, those after it over single pixels."""
    dense: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.Linear):
            layer, window = as_convolution(layer, window), 1
        dense.append(layer)
    return dense


def _class_convolution(units: Units) -> tuple[Units, list[nn.Module], nn.Sequential]:
    """Trunk, head and tail of a classifier whose class layer is a convolution before the pool."""
    modules = [m for _, m in units]
    last = max(i for i, m in enumerate(modules) if isinstance(m, nn.Conv2d))
    first = last
    while isinstance(modules[first - 1], nn.Dropout):
        first -= 1
    return units[:first], modules[first : last + 1], nn.Sequential(*modules[last + 1 :])


def _trunk(
    classifier: nn.Module, units: Units, taps: Literal["last", "first"]
) -> tuple[dict[int, nn.Sequential], dict[int, Geometry]]:
    places, here = [], Geometry()
    for _, module in units:
        here = trace(module, here)
        places.append(here)
    parts, tapped, begin = {}, {}, 0
    for stride in sorted({g.stride_px for g in places if g.stride_px in STRIDES}):
        at = [i for i, g in enumerate(places) if g.stride_px == stride]
        end = at[0] if taps == "first" and stride != here.stride_px else at[-1]
        parts[stride] = _sequence(classifier, units, begin, end + 1)
        tapped[stride], begin = places[end], end + 1
    return parts, tapped


def _sequence(classifier: nn.Module, units: Units, begin: int, end: int) -> nn.Sequential:
    """Units in the fewest modules: a plain sequence of the classifier that lies inside stays whole.

    Slices of one sequence keep its keys, others are numbered: names in saved nets depend on it.
    """
    inside = {path for path, _ in units[begin:end] if path}
    outside = {path for path, _ in units if path} - inside
    found: dict[str, nn.Module] = {}
    for i, (path, module) in enumerate(units[begin:end]):
        parts = path.split(".") if path else []
        whole = (".".join(parts[:n]) for n in range(1, len(parts)))
        top = next((a for a in whole if not any(p.startswith(f"{a}.") for p in outside)), None)
        if top is None:
            found[path or f"#{i}"] = module
        else:
            found[top] = classifier.get_submodule(top)
    parents = {path.rpartition(".")[0] for path in found}
    if parents != {""} and len(parents) == 1:
        return nn.Sequential(OrderedDict((p.rpartition(".")[2], m) for p, m in found.items()))
    return nn.Sequential(*found.values())


def tap_channels(trunk: nn.ModuleDict, head: nn.Sequential, num_inputs: int) -> dict[int, int]:
    """Channels of each tap, from the shapes that an image of 256 px takes without being computed."""
    dtype = next(trunk.parameters()).dtype
    x, channels = torch.empty(1, num_inputs, 256, 256, dtype=dtype, device="meta"), {}
    for stride, layers in trunk.items():
        x = on_meta(layers, x)
        channels[int(stride)] = x.shape[1]
    if len(head):
        channels[int(stride)] = on_meta(head, x).shape[1]
    return channels
