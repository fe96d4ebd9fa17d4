"""Where the pixels of a feature map lie on the image, computed from the layers.

Pixel i of a map has its centre at image coordinate `offset_px + stride_px * i`. Every crop and every
kernel of the net follows from that; none is a constant to be believed (the reference code's 19, 27,
31, 5, 9 and 18 come out, see tests/fcn/test_geometry.py). Only the near edge counts: a pool that
rounds up or an image that grows at its far edge moves no pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

Window = nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d

POINTWISE = (
    *(nn.BatchNorm2d, nn.LayerNorm, nn.LocalResponseNorm, nn.Dropout, nn.Identity, nn.Linear),
    *(nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid),
)
"""Layers whose output at a pixel depends on that pixel alone (LayerNorm and Linear: over channels)."""
OF_TORCHVISION = ("StochasticDepth", "Permute")
"""Its layers of that kind, by name: the import takes seconds, and not every net needs it."""
POOLS = ("max_pool2d", "avg_pool2d")


@dataclass(frozen=True)
class Geometry:
    """Stride, centre of pixel 0 and receptive field of a map, in pixels of the image."""

    stride_px: int = 1
    """0: one value for the whole map, which lies nowhere."""
    offset_px: float = 0.0
    field_px: int = 1
    """What a pixel sees through windows."""
    gated: bool = False
    """Whether channels are scaled by means over the whole map as well (squeeze-and-excitation)."""
    apart_px: float = 0.0
    """How far branches that were joined lay from each other at most; the map lies in their middle."""

    def window(
        self, kernel: int, stride: int = 1, padding: float = 0, dilation: int = 1
    ) -> Geometry:
        """The map after a sliding window with `padding` before its first pixel."""
        span = dilation * (kernel - 1)
        return replace(
            self,
            stride_px=self.stride_px * stride,
            offset_px=self.offset_px + self.stride_px * (span / 2 - padding),
            field_px=self.field_px + self.stride_px * span,
        )


class _Layers(fx.Tracer):
    """Sees torch's layers as wholes; StochasticDepth too, which would freeze its mode of training."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m).__name__ in OF_TORCHVISION or super().is_leaf_module(
            m, module_qualified_name
        )


def trace(module: nn.Module, start: Geometry) -> Geometry:
    """Geometry of a module's output, given that of its input.

    Branches that join out of alignment are taken in their middle, and `apart_px` says how far apart
    they lie. Windows may be oblong in between; the map that comes out has one geometry.

    Raises:
        ValueError: a layer of unknown geometry, or rows that are not where the columns are.
    """
    if _Layers().is_leaf_module(module, "") and not isinstance(module, nn.Sequential):
        rows, columns = (_through(module, start, axis) for axis in (0, 1))
    else:
        graph = _Layers().trace(module)
        rows, columns = (_follow(module, graph, start, axis) for axis in (0, 1))
    if (rows.stride_px, rows.offset_px) != (columns.stride_px, columns.offset_px):
        raise ValueError(
            f"{type(module).__name__} shifts rows and columns differently: {rows} and {columns}"
        )
    return max(rows, columns, key=lambda map_: map_.field_px)


def _follow(module: nn.Module, graph: fx.Graph, start: Geometry, axis: int) -> Geometry:
    seen: dict[fx.Node, Geometry] = {}
    for node in graph.nodes:
        sources = [seen[source] for source in node.all_input_nodes if source in seen]
        if node.op == "placeholder":
            seen[node] = start
        elif node.op == "get_attr":
            continue  # a parameter, which lies nowhere
        elif node.op == "call_module":
            seen[node] = _through(module.get_submodule(str(node.target)), sources[0], axis)
        elif (name := getattr(node.target, "__name__", "")) in POOLS:
            seen[node] = _pool(node, sources[0], axis)
        elif "pool" in name or name in ("interpolate", "pad", "unfold"):
            raise ValueError(f"geometry of the function {name} is unknown")
        else:
            seen[node] = _join(sources)
    return seen[node]


def _through(layer: nn.Module, source: Geometry, axis: int) -> Geometry:
    if isinstance(layer, nn.ZeroPad2d):
        left, _, top, _ = layer.padding
        return source.window(1, padding=(top, left)[axis])
    if isinstance(layer, Window):
        kernel, stride, dilation = (
            _along(getattr(layer, key, 1), axis) for key in ("kernel_size", "stride", "dilation")
        )
        same = dilation * (kernel - 1) // 2  # torch puts the odd pixel after
        padding = {"same": same, "valid": 0}.get(str(layer.padding))
        if padding is None:
            padding = _along(layer.padding, axis)
        return source.window(kernel, stride, padding, dilation)
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return replace(source, stride_px=0, gated=True)
    if isinstance(layer, POINTWISE) or type(layer).__name__ in OF_TORCHVISION:
        return source
    raise ValueError(
        f"geometry of {type(layer).__name__} is unknown; known are windows and {POINTWISE}"
    )


def _pool(node: fx.Node, source: Geometry, axis: int) -> Geometry:
    named: dict[str, Any] = dict(
        zip(("kernel_size", "stride", "padding"), node.args[1:], strict=False)
    )
    named |= node.kwargs
    kernel = named["kernel_size"]
    stride = named.get("stride") or kernel
    sizes = (_along(n, axis) for n in (kernel, stride, named.get("padding", 0)))
    return source.window(*sizes)


def _along(size: Any, axis: int) -> int:  # noqa: ANN401 - torch's int or pair
    return int(size[axis] if isinstance(size, tuple | list) else size)


def _join(branches: Sequence[Geometry]) -> Geometry:
    """Sum, product or concatenation: on the grid in the middle; the widest field counts."""
    gated = any(branch.gated for branch in branches)
    maps = [branch for branch in branches if branch.stride_px] or list(branches)
    if len(strides := {branch.stride_px for branch in maps}) != 1:
        raise ValueError(f"branches of strides {sorted(strides)} px cannot be joined")
    offsets = [branch.offset_px for branch in maps]
    apart = max(max(offsets) - min(offsets), *(branch.apart_px for branch in maps))
    return Geometry(
        maps[0].stride_px,
        (max(offsets) + min(offsets)) / 2,
        max(branch.field_px for branch in maps),
        gated,
        apart,
    )


@dataclass(frozen=True)
class Alignment:
    """How a coarse map meets a fine one: upsample with this kernel, then drop these pixels.

    Of the two crops at most one is not zero: whichever map begins further out is cropped.
    """

    factor: int
    kernel: int
    crop_coarse: int
    crop_fine: int
    off_px: float = 0.0
    """How far, in pixels of the image, the coarse map then lies from where it should."""


def align(coarse: Geometry, fine: Geometry, *, nearest: bool = False) -> Alignment:
    """Bilinear upsampling of `coarse` that lands exactly on the grid of `fine`.

    A transposed convolution with kernel k puts map pixel i at output pixel `factor * i + (k - 1) / 2`.
    An even kernel (2 * factor) fits grids that are half a pixel apart, an odd one (2 * factor - 1)
    those that coincide. Other grids are laid on the nearest of these, if `nearest` allows it.

    Raises:
        ValueError: the grids are not a whole or a half pixel apart, or a stride is no multiple.
    """
    factor, rest = divmod(coarse.stride_px, fine.stride_px)
    exact = factor - 0.5 + (fine.offset_px - coarse.offset_px) / fine.stride_px
    crop = math.floor(2 * exact + 0.5) / 2
    off_px = (crop - exact) * fine.stride_px
    if rest or (off_px and not nearest):
        raise ValueError(f"{coarse} cannot be laid on {fine}: they are {exact} px apart")
    kernel = 2 * factor
    if crop != math.floor(crop):
        kernel, crop = kernel - 1, crop - 0.5
    return Alignment(factor, kernel, max(0, int(crop)), max(0, -int(crop)), off_px)


def fused(fine: Geometry, alignment: Alignment) -> Geometry:
    """Geometry of the sum of two aligned maps: the fine grid, less what was cropped off it."""
    return replace(fine, offset_px=fine.offset_px + alignment.crop_fine * fine.stride_px)


def on_meta(layers: nn.Module, x: Tensor) -> Tensor:
    """What a module in evaluation mode makes of a shape; nothing is computed, nothing is changed."""
    state = {k: v.to("meta") for k, v in (*layers.named_parameters(), *layers.named_buffers())}
    training = [m for m in layers.modules() if m.training]
    layers.eval()
    y: Tensor = torch.func.functional_call(layers, state, x.to("meta"))
    for module in training:
        module.training = True
    return y
