"""What a classifier sees where, before any fine-tuning: the best visible proof of a transplant."""

from __future__ import annotations

import difflib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fcn.backbones import Backbone, build_backbone
from fcn.backbones.table import require_backbone
from fcn.images import ImageError, decode_rgb
from fcn.nets import FCN, Blueprint
from fcn.transplant import load_classifier
from fcn.weights import read_weights
from pipeline.errors import DataError, RecipeError, WeightsError
from pipeline.stages.transplant import published
from pipeline.tracking import plots


class ClassProbability(nn.Module):
    """From a classifier's features to its probability of one class, at every pixel of the map."""

    def __init__(self, backbone: Backbone, number: int) -> None:
        super().__init__()
        self.class_layer, self.tail, self.number = backbone.class_layer, backbone.tail, number

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, C, h, w) to probabilities (N, 1, h, w)."""
        scores = self.tail(self.class_layer(features))
        return scores.softmax(1)[:, self.number : self.number + 1]


def heatmap(backbone: str, image: Path, class_name: str, weights: str, output: Path) -> float:
    """Write the classifier's probability of a class as a picture; return the greatest.

    Raises:
        RecipeError: no such backbone or class.
        WeightsError: there are no weights, or they are of another net.
        DataError: the image cannot be read.
    """
    try:
        require_backbone(backbone)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    try:
        pixels = decode_rgb(image.read_bytes())
    except (OSError, ImageError) as error:
        raise DataError(f"{image} cannot be read: {error}") from error
    number = imagenet_class(class_name)
    known = weights in ("torchvision", "package")
    try:
        state = published(backbone, weights) if known else read_weights(Path(weights))
        classifier, _ = load_classifier(backbone, state)
    except ValueError as error:
        raise WeightsError(f"{weights}: {error}") from error
    heat = probability(backbone, classifier, number, pixels)
    plots.rgb_png(output, plots.heat(pixels, heat))
    return float(heat.max())


@torch.inference_mode()
def probability(
    backbone: str, classifier: nn.Module, number: int, image: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Probability (H, W) of a class at each pixel of an image (H, W, 3), from the coarsest map."""
    coarsest = build_backbone(backbone).coarsest
    net = FCN(Blueprint(backbone, 1, coarsest)).eval()  # type: ignore[arg-type]
    assert net.blueprint.preprocessing is not None
    dense = Backbone(classifier, backbone, net.blueprint.preprocessing).eval()
    state = {k: v for k, v in dense.state_dict().items() if not k.startswith("class_layer")}
    net.backbone.load_state_dict(state)
    net.score[str(coarsest)] = ClassProbability(dense, number)
    scores: Tensor = net(torch.from_numpy(image).permute(2, 0, 1)[None])
    return scores[0, 0].numpy()


def imagenet_class(name: str) -> int:
    """Number of an ImageNet class by its name.

    Raises:
        RecipeError: there is none; near names are told.
    """
    from torchvision.models import ResNet18_Weights  # noqa: PLC0415 - slow to import

    names: list[str] = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        near += [other for other in names if name.lower() in other.lower()][:3]
        told = ", ".join(dict.fromkeys(near)) or "none"
        raise RecipeError(f"ImageNet has no class {name!r}; near are {told}")
    return names.index(name)
