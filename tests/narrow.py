"""VGG16 and AlexNet with few channels: the layers of torchvision's, in milliseconds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torchvision.models.alexnet import AlexNet
from torchvision.models.vgg import VGG, make_layers

from fcn.backbones import BACKBONES, Classifier
from fcn.backbones.table import FAMILY_OF
from fcn.nets import FCN

VGG16 = [4, 4, "M", 5, 5, "M", 6, 6, 6, "M", 7, 7, 7, "M", 7, 7, 7, "M"]
FC = 9


@dataclass(frozen=True)
class Narrow(Classifier):
    """A row of the table with layers of its own."""

    builder: Callable[[], nn.Module] = nn.Identity

    def build(self) -> nn.Module:
        return self.builder()


def narrow_vgg16() -> Classifier:
    """VGG16 with 4 to 7 channels where it has 64 to 512."""

    def build() -> nn.Module:
        net = VGG(make_layers(VGG16), num_classes=10, init_weights=False)
        net.classifier[0] = nn.Linear(7 * 49, FC)
        net.classifier[3], net.classifier[6] = nn.Linear(FC, FC), nn.Linear(FC, 10)
        return net

    return Narrow("vgg16", FAMILY_OF["vgg16"], build)


def narrow_alexnet() -> Classifier:
    """AlexNet with 4 to 7 channels where it has 64 to 384."""

    def build() -> nn.Module:
        net = AlexNet(num_classes=10)
        for i, (source, target) in {0: (3, 4), 3: (4, 5), 6: (5, 6), 8: (6, 7), 10: (7, 7)}.items():
            old = net.features[i]
            net.features[i] = nn.Conv2d(source, target, old.kernel_size, old.stride, old.padding)
        net.classifier[1] = nn.Linear(7 * 36, FC)
        net.classifier[4], net.classifier[6] = nn.Linear(FC, FC), nn.Linear(FC, 10)
        return net

    return Narrow("alexnet", FAMILY_OF["alexnet"], build)


def narrow_backbones() -> dict[str, Classifier]:
    """The two under the names of the wide ones, to be put into BACKBONES."""
    return {"vgg16": narrow_vgg16(), "alexnet": narrow_alexnet()}


def randomised(net: FCN, seed: int = 0) -> FCN:
    """The net with random weights of a scale that keeps the signal, and with large random biases."""
    generator = torch.Generator().manual_seed(seed)
    for value in net.parameters():
        fan_in = value[0].numel()
        std = (2 / fan_in) ** 0.5 if value.ndim > 1 else 0.5
        value.data.copy_(torch.randn(value.shape, generator=generator) * std)
    return net.eval()


@contextmanager
def narrowed() -> Iterator[None]:
    """The table of backbones with these rows in place of the wide ones."""
    with pytest.MonkeyPatch.context() as patch:
        for name, classifier in narrow_backbones().items():
            patch.setitem(BACKBONES, name, classifier)
        yield
