"""The classifiers by name, and what goes into them."""

import pytest
import torch

from fcn.backbones import BACKBONES, CAFFE, Backbone, build_backbone


def test_unknown_backbones_are_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no backbone 'vgg17'; there are vgg16, alexnet"):
        build_backbone("vgg17")


def test_images_are_normalised_in_the_order_of_the_weights() -> None:
    backbone = Backbone(BACKBONES["resnet18"].build(), "resnet18", CAFFE)
    red = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    red[0, 0] = 255  # RGB in, BGR minus the mean out
    expected = torch.tensor([0 - 104.00699, 0 - 116.66877, 255 - 122.67892])
    torch.testing.assert_close(backbone.normalise(red).flatten(), expected)


@pytest.mark.parametrize("name", BACKBONES)
def test_maps_have_the_channels_that_the_table_says(name) -> None:
    backbone = build_backbone(name).eval()
    with torch.inference_mode():
        taps = backbone(torch.zeros(1, 3, 224, 224))
    assert {s: tap.shape[1] for s, tap in taps.items()} == BACKBONES[name].channels
