"""A classifier as a dense feature extractor."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from fcn.backbones.cut import cut, tap_channels
from fcn.backbones.published import classifier_of
from fcn.backbones.table import Preprocessing
from fcn.geometry import Geometry, trace


class Backbone(nn.Module):
    """A classifier as a dense feature extractor: image in, one map for each of its strides out.

    It holds the very modules of the classifier it is cut from; fully connected layers of the head
    have become convolutions over the same weights. Dropout stays where the classifier had it.
    """

    def __init__(self, classifier: nn.Module, name: str, preprocessing: Preprocessing) -> None:
        super().__init__()
        parts = cut(classifier, classifier_of(name).family.taps)
        self.trunk = nn.ModuleDict({str(stride): layers for stride, layers in parts.trunk.items()})
        self.head = parts.head
        self.class_layer = parts.class_layer
        self.tail = parts.tail
        self.pooled = parts.pooled
        self._places = parts.places
        self.channels = tap_channels(self.trunk, self.head, len(preprocessing.mean))
        self.preprocessing = preprocessing
        for key in ("mean", "deviation"):
            value = torch.tensor(getattr(preprocessing, key)).view(1, -1, 1, 1)
            self.register_buffer(key, value, persistent=False)
        self.mean: Tensor
        self.deviation: Tensor

    @property
    def coarsest(self) -> int:
        """The stride of the map that the classes are read from: 32, of SqueezeNet 16."""
        return max(self.channels)

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
        taps[self.coarsest] = self.head(x)
        return taps

    def classify(self, x: Tensor) -> Tensor:
        """The classifier's own answer (N, classes), computed by the dense layers.

        The mean of the class map, where the head is linear or the map has a single pixel. Where a
        head that is not linear follows the mean, as in MobileNetV3 and ConvNeXt, it is run on the mean.
        """
        for layers in self.trunk.values():
            x = layers(x)
        if self.pooled and not all(isinstance(m, nn.Dropout) for m in self.head):
            x = x.mean((2, 3), keepdim=True)
        return self.tail(self.class_layer(self.head(x))).mean((2, 3))

    def geometry(self, start: Geometry) -> dict[int, Geometry]:
        """Where each tap lies on the image, read off the layers; `start` is the image's own pixels."""
        taps = {
            stride: replace(place, offset_px=place.offset_px + start.offset_px)
            for stride, place in self._places.items()
        }
        taps[self.coarsest] = trace(self.head, taps[self.coarsest])
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
