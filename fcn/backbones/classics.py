"""The paper's own classifiers where torchvision's differ: CaffeNet, and GoogLeNet with 5x5 windows."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def caffenet(name: str) -> nn.Module:
    """CaffeNet."""
    return CaffeNet()


class CaffeNet(nn.Module):
    """The AlexNet of the reference code: normalises over channels, convolves in two groups.

    Its native size is 227 px; Caffe's pools round up.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 96, 11, stride=4),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75),
            nn.Conv2d(96, 256, 5, padding=2, groups=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75),
            nn.Conv2d(256, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 384, 3, padding=1, groups=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1, groups=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, ceil_mode=True),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(6)  # says how large fc6's window is
        self.classifier = nn.Sequential(
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Normalised image (N, 3, H, W) to ImageNet scores (N, num_classes)."""
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def googlenet_5x5(name: str, **options: Any) -> nn.Module:  # noqa: ANN401 - torchvision's own
    """GoogLeNet with its paper's windows: 5x5 in the third branch and 3x3 in the last pool.

    torchvision's has 3x3 and 2x2 there; all else is torchvision's, batch normalisation too.
    """
    from torchvision.models.googlenet import (  # noqa: PLC0415 - slow, see published.py
        BasicConv2d,
        GoogLeNet,
        Inception,
        InceptionAux,
    )

    def inception(source: int, *widths: int, **more: Any) -> nn.Module:  # noqa: ANN401
        block = Inception(source, *widths, **more)
        reduced, wide = widths[3], widths[4]
        block.branch3[1] = BasicConv2d(reduced, wide, kernel_size=5, padding=2)
        return block

    net: nn.Module = GoogLeNet(blocks=[BasicConv2d, inception, InceptionAux], **options)
    net.maxpool4 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    return net
