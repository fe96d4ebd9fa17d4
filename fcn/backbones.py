"""The classifiers that an FCN grows from: their layers by stride, their head, their preprocessing.

A new backbone is one row of BACKBONES and one function that cuts its classifier into Parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from fcn.convolutionalize import as_convolution
from fcn.efficientnet import EfficientNetLite0, package_names
from fcn.geometry import Geometry, trace

if TYPE_CHECKING:
    from torchvision import models

STRIDES = (8, 16, 32)


@dataclass(frozen=True)
class Preprocessing:
    """What the weights were trained to see: (image * scale - mean) / deviation, channels in order.

    `mean` and `deviation` are in the channel order that the weights expect.
    """

    colour_order: Literal["RGB", "BGR"]
    scale: float
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


TORCHVISION = Preprocessing("RGB", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CAFFE = Preprocessing("BGR", 1.0, (104.00699, 116.66877, 122.67892), (1.0, 1.0, 1.0))
LITE = Preprocessing("RGB", 1.0, (127.0,) * 3, (128.0,) * 3)
PREPROCESSING = {"torchvision": TORCHVISION, "caffe": CAFFE, "lite": LITE}

Parts = tuple[dict[int, nn.Sequential], nn.Sequential, nn.Linear]
"""Trunk by stride, head up to the classes (fully connected layers as convolutions), the class layer."""


@dataclass(frozen=True)
class Classifier:
    """How to build a classifier, where to cut it, and which published weights fit it."""

    build: Callable[[], nn.Module]
    cut: Callable[[Any], Parts]
    channels: dict[int, int]
    pooled: bool
    """Whether the head averages over the whole map (ResNet) or is fully connected (VGG)."""
    preprocessing: Preprocessing = TORCHVISION
    torchvision_weights: str | None = None
    """torchvision's enum of published weights, with their addresses and hashes."""
    margin_px: int = 0
    """What layers without padding lose at the far edges; the image is padded by that much more."""
    known_names: Callable[[], dict[str, str]] | None = None
    """The names in a published file that differ from the names here: theirs to ours."""


def _vgg16(net: models.VGG) -> Parts:
    f, c = net.features, net.classifier
    head = nn.Sequential(nn.ZeroPad2d(0), as_convolution(c[0], 7), c[1], c[2])
    head.extend([as_convolution(c[3]), c[4], c[5]])
    return {8: f[:17], 16: f[17:24], 32: f[24:]}, head, c[6]


def _alexnet(net: models.AlexNet) -> Parts:
    f, c = net.features, net.classifier
    head = nn.Sequential(nn.ZeroPad2d(0), c[0], as_convolution(c[1], 6), c[2])
    head.extend([c[3], as_convolution(c[4]), c[5]])
    return {8: f[:3], 16: f[3:6], 32: f[6:]}, head, c[6]


def _googlenet(net: models.GoogLeNet) -> Parts:
    n = net
    fine = nn.Sequential(n.conv1, n.maxpool1, n.conv2, n.conv3, n.maxpool2)
    fine.extend([n.inception3a, n.inception3b])
    middle = nn.Sequential(n.maxpool3, n.inception4a, n.inception4b, n.inception4c)
    middle.extend([n.inception4d, n.inception4e])
    coarse = nn.Sequential(n.maxpool4, n.inception5a, n.inception5b)
    return {8: fine, 16: middle, 32: coarse}, nn.Sequential(n.dropout), n.fc


def _resnet(net: models.ResNet) -> Parts:
    stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2)
    return (
        {8: stem, 16: nn.Sequential(net.layer3), 32: nn.Sequential(net.layer4)},
        nn.Sequential(),
        net.fc,
    )


def _efficientnet_lite0(net: EfficientNetLite0) -> Parts:
    fine = nn.Sequential(net.stem, *net.blocks[:5])
    coarse = nn.Sequential(*net.blocks[11:], *net.head)
    return {8: fine, 16: net.blocks[5:11], 32: coarse}, nn.Sequential(net.dropout), net.fc


def _torchvision(name: str, **options: bool) -> nn.Module:
    # Imported for those nets alone: with it comes torch.compile, seconds for each process of a flow.
    from torchvision.models import get_model  # noqa: PLC0415

    net: nn.Module = get_model(name, **options)
    return net


BACKBONES: dict[str, Classifier] = {
    "vgg16": Classifier(
        partial(_torchvision, "vgg16"),
        _vgg16,
        {8: 256, 16: 512, 32: 4096},
        False,
        TORCHVISION,
        "VGG16_Weights.IMAGENET1K_V1",
    ),
    "alexnet": Classifier(
        partial(_torchvision, "alexnet"),
        _alexnet,
        {8: 64, 16: 192, 32: 4096},
        False,
        TORCHVISION,
        "AlexNet_Weights.IMAGENET1K_V1",
        margin_px=32,
    ),
    "googlenet": Classifier(
        # torchvision's weights come with auxiliary heads; the paper keeps the final one alone.
        partial(
            _torchvision, "googlenet", aux_logits=False, transform_input=False, init_weights=True
        ),
        _googlenet,
        {8: 480, 16: 832, 32: 1024},
        True,
        # torchvision ports this net from TensorFlow: its weights were trained on (x / 127.5) - 1.
        Preprocessing("RGB", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        "GoogLeNet_Weights.IMAGENET1K_V1",
    ),
    **{
        f"resnet{depth}": Classifier(
            partial(_torchvision, f"resnet{depth}"),
            _resnet,
            channels,
            True,
            TORCHVISION,
            f"ResNet{depth}_Weights.IMAGENET1K_{version}",
        )
        for depth, channels, version in (
            (18, {8: 128, 16: 256, 32: 512}, "V1"),
            (34, {8: 128, 16: 256, 32: 512}, "V1"),
            (50, {8: 512, 16: 1024, 32: 2048}, "V2"),
        )
    },
    "efficientnet_lite0": Classifier(
        EfficientNetLite0,
        _efficientnet_lite0,
        {8: 40, 16: 112, 32: 1280},
        True,
        LITE,
        known_names=package_names,
    ),
}


class Backbone(nn.Module):
    """A classifier as a dense feature extractor: image in, one map for each of strides 8, 16, 32 out.

    It holds the very modules of the classifier it is cut from; fully connected layers of the head
    have become convolutions over the same weights. Dropout stays where the classifier had it.
    """

    def __init__(self, classifier: nn.Module, name: str, preprocessing: Preprocessing) -> None:
        super().__init__()
        known = BACKBONES[name]
        trunk, head, class_layer = known.cut(classifier)
        self.trunk = nn.ModuleDict({str(stride): layers for stride, layers in trunk.items()})
        self.head = head
        self.class_layer = as_convolution(class_layer)
        self.channels = known.channels
        self.preprocessing = preprocessing
        for key in ("mean", "deviation"):
            value = torch.tensor(getattr(preprocessing, key)).view(1, 3, 1, 1)
            self.register_buffer(key, value, persistent=False)
        self.mean: Tensor
        self.deviation: Tensor

    def normalise(self, image: Tensor) -> Tensor:
        """RGB image (N, 3, H, W), uint8 or float in 0..255, to what the weights were trained on."""
        if self.preprocessing.colour_order == "BGR":
            image = image.flip(1)
        return (image.to(self.mean.dtype) * self.preprocessing.scale - self.mean) / self.deviation

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        """Normalised image (N, 3, H, W) to maps (N, channels[s], about H / s, W / s) by stride s."""
        taps = {}
        for stride, layers in self.trunk.items():
            x = taps[int(stride)] = layers(x)
        taps[32] = self.head(x)
        return taps

    def geometry(self, start: Geometry) -> dict[int, Geometry]:
        """Where each tap lies on the image, read off the layers."""
        taps = {}
        for stride, layers in self.trunk.items():
            start = taps[int(stride)] = trace(layers, start)
        taps[32] = trace(self.head, start)
        return taps


def build_backbone(name: str, preprocessing: Preprocessing | None = None) -> Backbone:
    """A backbone with its classifier's own random initialisation, without the class layer.

    Raises:
        ValueError: no backbone of that name.
    """
    known = classifier_of(name)
    backbone = Backbone(known.build(), name, preprocessing or known.preprocessing)
    del backbone.class_layer
    return backbone


def classifier_of(name: str) -> Classifier:
    """Return the entry of BACKBONES; the error lists the names that there are."""
    if name not in BACKBONES:
        raise ValueError(f"no backbone {name!r}; there are {', '.join(BACKBONES)}")
    return BACKBONES[name]
