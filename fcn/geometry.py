"""Where the pixels of a feature map lie on the image, computed from the layers.

Pixel i of a map has its centre at image coordinate `offset_px + stride_px * i`. Every crop and every
kernel of the net follows from that; none is a constant to be believed (the reference code's 19, 27,
31, 5, 9 and 18 come out, see tests/fcn/test_geometry.py). Only the near edge counts: a pool that
rounds up or an image that grows at its far edge moves no pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import fx, nn

Window = nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d

POINTWISE = (nn.BatchNorm2d, nn.Dropout, nn.Identity, nn.ReLU, nn.ReLU6)


@dataclass(frozen=True)
class Geometry:
    """Stride, centre of pixel 0 and receptive field of a map, in pixels of the image."""

    stride_px: int = 1
    offset_px: float = 0.0
    field_px: int = 1

    def window(self, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Geometry:
        """The map after a sliding window with `padding` before its first pixel."""
        span = dilation * (kernel - 1)
        return Geometry(
            stride_px=self.stride_px * stride,
            offset_px=self.offset_px + self.stride_px * (span / 2 - padding),
            field_px=self.field_px + self.stride_px * span,
        )


def trace(module: nn.Module, start: Geometry) -> Geometry:
    """Geometry of a module's output, given that of its input.

    Raises:
        ValueError: a layer of unknown geometry, or branches that join out of alignment.
    """
    graph = fx.symbolic_trace(module).graph
    seen: dict[fx.Node, Geometry] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            seen[node] = start
        elif node.op == "call_module":
            layer = module.get_submodule(str(node.target))
            seen[node] = _through(layer, seen[node.all_input_nodes[0]])
        else:
            seen[node] = _join([seen[source] for source in node.all_input_nodes])
    return seen[node]


def _through(layer: nn.Module, source: Geometry) -> Geometry:
    if isinstance(layer, nn.ZeroPad2d):
        left, _, top, _ = layer.padding
        if left != top:
            raise ValueError(f"{layer} shifts rows and columns differently")
        return source.window(1, padding=left)
    if isinstance(layer, Window):
        kernel, stride, padding = (
            _square(n) for n in (layer.kernel_size, layer.stride, layer.padding)
        )
        return source.window(kernel, stride, padding, _square(getattr(layer, "dilation", 1)))
    if isinstance(layer, POINTWISE):
        return source
    raise ValueError(
        f"geometry of {type(layer).__name__} is unknown; known are windows and {POINTWISE}"
    )


def _square(size: object) -> int:
    sizes = set(size) if isinstance(size, tuple) else {size}
    if len(sizes) != 1 or not isinstance(number := sizes.pop(), int):
        raise ValueError(f"only square windows have one geometry, got {size}")
    return number


def _join(branches: list[Geometry]) -> Geometry:
    """Sum or concatenation: the branches must lie on the same grid; the widest field counts."""
    grids = {(branch.stride_px, branch.offset_px) for branch in branches}
    if len(grids) != 1:
        raise ValueError(f"branches join out of alignment: (stride, offset) {sorted(grids)}")
    return max(branches, key=lambda branch: branch.field_px)


@dataclass(frozen=True)
class Alignment:
    """How a coarse map meets a fine one: upsample with this kernel, then drop these pixels.

    Of the two crops at most one is not zero: whichever map begins further out is cropped.
    """

    factor: int
    kernel: int
    crop_coarse: int
    crop_fine: int


def align(coarse: Geometry, fine: Geometry) -> Alignment:
    """Bilinear upsampling of `coarse` that lands exactly on the grid of `fine`.

    A transposed convolution with kernel k puts map pixel i at output pixel `factor * i + (k - 1) / 2`.
    An even kernel (2 * factor) fits grids that are half a pixel apart, an odd one (2 * factor - 1)
    those that coincide.

    Raises:
        ValueError: the grids are not a whole or a half pixel apart.
    """
    factor = coarse.stride_px // fine.stride_px
    crop = factor - 0.5 + (fine.offset_px - coarse.offset_px) / fine.stride_px
    kernel = 2 * factor
    if crop != math.floor(crop):
        kernel, crop = kernel - 1, crop - 0.5
    if crop != math.floor(crop) or coarse.stride_px % fine.stride_px:
        raise ValueError(f"{coarse} cannot be laid on {fine}: they are {crop} px apart")
    return Alignment(factor, kernel, max(0, int(crop)), max(0, -int(crop)))


def fused(fine: Geometry, alignment: Alignment) -> Geometry:
    """Geometry of the sum of two aligned maps: the fine grid, less what was cropped off it."""
    return Geometry(
        fine.stride_px, fine.offset_px + alignment.crop_fine * fine.stride_px, fine.field_px
    )
