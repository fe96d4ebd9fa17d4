"""Claim: with the paper's border the scores are those of the reference nets, at every size.

The reference nets are written down here from their published layer lists (voc-fcn32s, voc-fcn16s,
voc-fcn8s, voc-fcn8s-atonce and voc-fcn-alexnet), with nothing but torch's convolutions and pools.
"""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d, max_pool2d, relu

from fcn.backbones import BACKBONES, CAFFE
from fcn.nets import FCN, Blueprint
from tests.narrow import narrow_backbones, randomised

K = 3
SIZES = [(1, 1), (2, 5), (33, 47), (64, 64), (97, 61), (375, 500)]
ATONCE = (0.01, 0.0001)

# (kernel, stride, padding) of each convolution; "P" is a pool of kernel and stride 2 that rounds up.
VGG16 = [
    (3, 1, 100), (3, 1, 1), "P", (3, 1, 1), (3, 1, 1), "P",
    (3, 1, 1), (3, 1, 1), (3, 1, 1), "P3", (3, 1, 1), (3, 1, 1), (3, 1, 1), "P4",
    (3, 1, 1), (3, 1, 1), (3, 1, 1), "P", (7, 1, 0), (1, 1, 0),
]  # fmt: skip
# "Q" is a pool of kernel 3 and stride 2 that rounds up. torchvision's AlexNet has no LRN and no groups.
ALEXNET = [
    (11, 4, 100), "Q", (5, 1, 2), "Q", (3, 1, 1), (3, 1, 1), (3, 1, 1), "Q", (6, 1, 0), (1, 1, 0),
]  # fmt: skip


def caffe_input(image: Tensor) -> Tensor:
    """BGR, minus the mean colour."""
    mean = torch.tensor([104.00699, 116.66877, 122.67892], dtype=torch.float32).double()
    return image.double()[:, [2, 1, 0]] - mean[:, None, None]


def features(x: Tensor, layers: list, weights: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The named pools and the last map (`top`), every convolution followed by ReLU."""
    maps, weights = {}, list(weights)
    for layer in layers:
        if isinstance(layer, str):
            size = 3 if layer == "Q" else 2
            x = maps[layer] = max_pool2d(x, size, 2, ceil_mode=True)
        else:
            kernel, stride, padding = layer
            weight, bias = weights.pop(0)
            assert weight.shape[-1] == kernel
            x = relu(conv2d(x, weight, bias, stride, padding))
    assert not weights
    return maps | {"top": x}


def deconvolution(x: Tensor, kernel: int, stride: int) -> Tensor:
    """A transposed convolution with the bilinear kernel on the diagonal of its K x K weights."""
    half = (kernel + 1) // 2
    centre = half - 1 if kernel % 2 else half - 0.5
    line = torch.tensor([1 - abs(i - centre) / half for i in range(kernel)]).double()
    weight = torch.zeros(K, K, kernel, kernel).double()
    for k in range(K):
        weight[k, k] = line[:, None] * line[None, :]
    return conv_transpose2d(x, weight, stride=stride)


def crop(x: Tensor, like: Tensor, offset: int) -> Tensor:
    """Caffe's crop layer: it fails if there are too few pixels to crop from."""
    height, width = like.shape[-2:]
    assert x.shape[-2] >= offset + height
    assert x.shape[-1] >= offset + width
    return x[..., offset : offset + height, offset : offset + width]


def reference_vgg16(net: FCN, image: Tensor, stride: int, scales: tuple[float, float]) -> Tensor:
    state = [value.double() for key, value in net.state_dict().items() if "backbone" in key]
    maps = features(caffe_input(image), VGG16, list(zip(state[::2], state[1::2], strict=True)))

    def score(name: str, x: Tensor) -> Tensor:
        layer = net.score[name]
        return conv2d(x, layer.weight, layer.bias)

    score_fr = score("32", maps["top"])
    if stride == 32:
        return crop(deconvolution(score_fr, 64, 32), image, 19)
    upscore2 = deconvolution(score_fr, 4, 2)
    fuse_pool4 = upscore2 + crop(score("16", maps["P4"] * scales[0]), upscore2, 5)
    if stride == 16:
        return crop(deconvolution(fuse_pool4, 32, 16), image, 27)
    upscore_pool4 = deconvolution(fuse_pool4, 4, 2)
    fuse_pool3 = upscore_pool4 + crop(score("8", maps["P3"] * scales[1]), upscore_pool4, 9)
    return crop(deconvolution(fuse_pool3, 16, 8), image, 31)


def reference_alexnet(net: FCN, image: Tensor) -> Tensor:
    state = [value.double() for key, value in net.state_dict().items() if "backbone" in key]
    maps = features(caffe_input(image), ALEXNET, list(zip(state[::2], state[1::2], strict=True)))
    layer = net.score["32"]
    return crop(deconvolution(conv2d(maps["top"], layer.weight, layer.bias), 63, 32), image, 18)


def noise_image(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    shape = (1, 3, height, width)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


@pytest.fixture
def narrow(monkeypatch) -> None:
    for name, classifier in narrow_backbones().items():
        monkeypatch.setitem(BACKBONES, name, classifier)


def paper(backbone: str, stride: int, scales: tuple[float, float] = (1.0, 1.0)) -> FCN:
    blueprint = Blueprint(
        backbone, K, stride, border="paper", skip_scale=scales, preprocessing=CAFFE
    )
    return randomised(FCN(blueprint))


def require_equal(scores: Tensor, expected: Tensor, tolerance: float) -> None:
    assert scores.shape == expected.shape
    assert expected.abs().max() > 0
    assert (scores - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("stride", "scales"), [(32, (1.0, 1.0)), (16, (1.0, 1.0)), (8, (1.0, 1.0)), (8, ATONCE)]
)
@torch.inference_mode()
def test_vgg16_scores_are_the_reference_nets(stride, scales, size) -> None:
    net, image = paper("vgg16", stride, scales).double(), noise_image(*size)
    require_equal(net(image), reference_vgg16(net, image, stride, scales), 1e-9)


@pytest.mark.usefixtures("narrow")
@torch.inference_mode()
def test_vgg16_scores_are_the_reference_nets_at_every_size() -> None:
    """The layout repeats every 32 px; the odd remainders are asked for in rows, the even in columns."""
    net = paper("vgg16", 8).double()
    for size in range(1, 34, 2):
        image = noise_image(size, 65 - size)
        require_equal(net(image), reference_vgg16(net, image, 8, (1.0, 1.0)), 1e-9)


@pytest.mark.usefixtures("narrow")
@torch.inference_mode()
def test_alexnet_scores_are_the_reference_nets() -> None:
    net = paper("alexnet", 32).double()
    for size in [*SIZES, *((size, 65 - size) for size in range(1, 34, 2))]:
        image = noise_image(*size)
        require_equal(net(image), reference_alexnet(net, image), 1e-9)


@torch.inference_mode()
def test_the_wide_vgg16_has_the_reference_layers_too() -> None:
    """In float32, so to its rounding: the many channels are what the narrow nets leave out."""
    net, image = paper("vgg16", 8), noise_image(33, 47)
    scores = net(image)
    require_equal(scores, reference_vgg16(net.double(), image, 8, (1.0, 1.0)), 1e-4)
