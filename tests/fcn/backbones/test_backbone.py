"""Every classifier as a dense feature extractor: one walk over the whole table."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from fcn.backbones import BACKBONES, CAFFE, Backbone, build_backbone
from fcn.geometry import Geometry
from fcn.nets import FCN, Blueprint
from tests.narrow import narrowed

RUN = (
    *("vgg16", "alexnet", "googlenet", "googlenet_5x5", "inception_v3", "resnet18"),
    *("resnext50_32x4d", "densenet121", "squeezenet1_0", "squeezenet1_1", "mobilenet_v2"),
    *("mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5", "efficientnet_b0"),
    *("regnet_x_400mf", "regnet_y_400mf", "convnext_tiny"),
    *("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"),
)
"""One of each family is computed with; VGG16 and AlexNet with few channels. The others have the same
layers in greater number: their shapes are followed without computing them."""
DEEP = (
    *("resnet152", "densenet161", "densenet169", "densenet201", "efficientnet_b4"),
    *("efficientnet_b5", "efficientnet_b6", "efficientnet_b7", "efficientnet_v2_m"),
    *("efficientnet_v2_l", "convnext_small", "convnext_base", "convnext_large"),
)
"""To trace these takes seconds each, and they repeat the blocks of the smaller ones."""
SLOW = ("caffenet", "vgg11_bn", "wide_resnet50_2", "efficientnet_v2_s")


@pytest.fixture(scope="module", autouse=True)
def narrow() -> Iterator[None]:
    with narrowed():
        yield


@pytest.fixture(params=[*RUN, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def name(request) -> str:
    return request.param


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in DEEP else n for n in BACKBONES]
)
def test_any_size_in_the_same_size_out_from_the_strides_of_the_table(name) -> None:
    with torch.device("meta"):
        net = FCN(Blueprint(name, 3, 8)).eval()
        for size in ((1, 1), (33, 47)):
            assert net(torch.empty(1, 3, *size)).shape == (1, 3, *size)
    places = net.backbone.geometry(Geometry())
    assert tuple(places) == BACKBONES[name].family.strides
    assert {stride: g.stride_px for stride, g in places.items()} == {s: s for s in places}
    assert not any(g.apart_px for g in places.values())


def centred(net: nn.Module) -> nn.Module:
    """Random weights whose batch normalisation does what training makes it do: keep the signal."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                tensor.data.uniform_(-0.2, 0.2)
    return net.eval()


def test_the_dense_form_gives_the_classifiers_own_answer(name) -> None:
    known = BACKBONES[name]
    torch.manual_seed(0)
    classifier = centred(known.build()).double()
    dense = Backbone(classifier, name, CAFFE).eval()
    for size in (96, 139) if dense.pooled else (known.family.native_px,):
        x = torch.randn(1, 3, size, size, dtype=torch.float64)
        with torch.inference_mode():
            expected = classifier(x)
            assert expected.abs().max() > 0
            assert (dense.classify(x) - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_the_gradient_reaches_the_first_layer_and_names_go_round(name) -> None:
    torch.manual_seed(0)
    net = FCN(Blueprint(name, 3, 8))
    centred(net)
    for score in net.score.values():
        nn.init.normal_(score.weight)
    image = torch.randint(0, 256, (1, 3, 33, 47), dtype=torch.uint8)
    scores = net(image)
    assert scores.shape == (1, 3, 33, 47)
    scores[0, 0].square().sum().backward()
    first = next(net.backbone.parameters())
    assert first.grad is not None
    assert first.grad.abs().sum() > 0
    again = FCN(Blueprint(name, 3, 8)).eval()
    again.load_state_dict(net.state_dict())
    with torch.inference_mode():
        assert torch.equal(again(image), scores)


def test_maps_have_the_channels_that_are_told() -> None:
    backbone = build_backbone("squeezenet1_1").eval()
    with torch.inference_mode():
        taps = backbone(torch.zeros(1, 3, 224, 224))
    assert {s: tap.shape[1] for s, tap in taps.items()} == backbone.channels == {8: 256, 16: 512}


def test_images_are_normalised_in_the_order_of_the_weights() -> None:
    backbone = Backbone(BACKBONES["resnet18"].build(), "resnet18", CAFFE)
    red = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    red[0, 0] = 255  # RGB in, BGR minus the mean out
    expected = torch.tensor([0 - 104.00699, 0 - 116.66877, 255 - 122.67892])
    torch.testing.assert_close(backbone.normalise(red).flatten(), expected)
