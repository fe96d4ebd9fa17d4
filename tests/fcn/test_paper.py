"""The paper's nets, one fact a test. (Long, Shelhamer, Darrell; CVPR 2015, and its reference code.)

The scores of whole nets, recomputed from the published layer lists, are in tests/recomputed, with the
crops of VGG16 and the first step of a finer net; receptive fields are in test_geometry.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fcn.backbones import CAFFE
from fcn.losses import cross_entropy_sum
from fcn.nets import FCN, Blueprint
from fcn.optim import parameter_groups
from fcn.upsample import bilinear_kernel
from tests.narrow import randomised

VOC = 21


def on_meta(backbone: str, stride: int = 32, **options) -> FCN:
    """The wide net without its numbers."""
    with torch.device("meta"):
        return FCN(Blueprint(backbone, VOC, stride, border="paper", **options))


def kernels(net: FCN) -> list[tuple[int, int]]:
    """Kernel and factor of each upsampling, coarse to fine."""
    return [(a.kernel, a.factor) for a in net.alignment.values()]


@pytest.mark.parametrize(
    ("backbone", "stride", "expected"),
    [
        ("vgg16", 32, [(64, 32)]),
        ("vgg16", 16, [(4, 2), (32, 16)]),
        ("vgg16", 8, [(4, 2), (4, 2), (16, 8)]),
        ("alexnet", 32, [(63, 32)]),
        ("caffenet", 32, [(63, 32)]),
    ],
)
def test_deconvolutions_have_the_published_kernels(backbone, stride, expected) -> None:
    assert kernels(on_meta(backbone, stride)) == expected


@pytest.mark.parametrize("backbone", ["alexnet", "caffenet"])
def test_fcn_alexnet_crops_by_18(backbone) -> None:
    assert on_meta(backbone).alignment["image"].crop_coarse == 18


@pytest.mark.parametrize(("backbone", "size"), [("vgg16", 7), ("alexnet", 6), ("caffenet", 6)])
def test_fc6_is_a_convolution_with_the_window_of_the_classifier_and_fc7_is_1x1(
    backbone, size
) -> None:
    fc6, fc7 = (m for m in on_meta(backbone).backbone.head if isinstance(m, nn.Conv2d))
    assert (fc6.kernel_size, fc6.out_channels) == ((size, size), 4096)
    assert (fc7.kernel_size, fc7.out_channels) == ((1, 1), 4096)
    assert (fc6.padding, fc6.stride) == ((0, 0), (1, 1))


@pytest.mark.parametrize(("backbone", "millions"), [("caffenet", 57), ("vgg16", 134)])
def test_nets_have_the_papers_number_of_parameters(backbone, millions) -> None:
    """Table 1."""
    total = sum(p.numel() for p in on_meta(backbone).parameters())
    assert total / 1e6 == pytest.approx(millions, abs=0.6)


def test_the_image_is_padded_by_100_px_in_all() -> None:
    net = on_meta("vgg16")
    assert net.border_px + net.backbone.trunk["8"][0].padding[0] == 100


def test_pools_round_up() -> None:
    pools = [m for m in on_meta("vgg16").modules() if isinstance(m, nn.MaxPool2d)]
    assert [pool.ceil_mode for pool in pools] == [True] * 5


def test_skips_are_scored_on_pool4_and_pool3() -> None:
    net = on_meta("vgg16", 8)
    assert all(isinstance(net.backbone.trunk[s][-1], nn.MaxPool2d) for s in ("8", "16"))
    assert {s: m.in_channels for s, m in net.score.items()} == {"32": 4096, "16": 512, "8": 256}
    assert {m.kernel_size for m in net.score.values()} == {(1, 1)}


def test_scores_start_at_zero_weights_and_biases_both() -> None:
    net = FCN(Blueprint("resnet18", VOC, 8))
    assert not any(p.any() for p in net.score.parameters())


def test_at_once_scales_pool4_by_a_hundredth_and_pool3_by_a_ten_thousandth() -> None:
    net = on_meta("vgg16", 8, skip_scale=(0.01, 0.0001))
    assert net.scale == {16: 0.01, 8: 0.0001}
    assert not any("scale" in name for name, _ in net.named_parameters())


def test_a_scaled_skip_is_the_scaled_map_scored() -> None:
    torch.manual_seed(0)
    one, scaled = (
        FCN(Blueprint("resnet18", 2, 16, skip_scale=(s, 1.0))).double().eval() for s in (1.0, 0.01)
    )
    for net in (one, scaled):
        torch.manual_seed(1)
        for score in net.score.values():
            nn.init.normal_(score.weight)
    scaled.backbone.load_state_dict(one.backbone.state_dict())
    one.score["16"].weight.data *= 0.01
    image = torch.randint(0, 256, (1, 3, 40, 40), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(one(image), scaled(image))


def test_biases_learn_twice_as_fast_and_do_not_decay_in_every_layer() -> None:
    net = on_meta("vgg16")
    groups = parameter_groups(net, lr=1e-4, weight_decay=5e-4, bias_lr_mult=2, decay_biases=False)
    solver = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    for name, parameter in net.named_parameters():
        expected = (2e-4, 0.0) if name.endswith("bias") else (1e-4, 5e-4)
        assert solver[id(parameter)] == expected, name


def test_fixed_deconvolutions_are_not_in_the_solver() -> None:
    assert not list(on_meta("vgg16", 8).upscore.parameters())


def test_odd_bilinear_kernels_are_the_published_formula() -> None:
    expected = torch.tensor([0.5, 1.0, 0.5])
    torch.testing.assert_close(bilinear_kernel(3), torch.outer(expected, expected))


def test_even_bilinear_kernels_are_the_published_formula() -> None:
    expected = torch.tensor([0.25, 0.75, 0.75, 0.25])
    torch.testing.assert_close(bilinear_kernel(4), torch.outer(expected, expected))


def test_dense_deconvolutions_start_on_the_diagonal_alone() -> None:
    weight = FCN(Blueprint("resnet18", 3, 32, upscore="dense")).upscore["image"].weight
    assert weight.shape == (3, 3, 63, 63)
    for i in range(3):
        for j in range(3):
            expected = bilinear_kernel(63) if i == j else torch.zeros(63, 63)
            assert torch.equal(weight[i, j], expected)


def test_dense_learned_and_fixed_deconvolutions_start_as_one_function() -> None:
    torch.manual_seed(0)
    nets = [FCN(Blueprint("resnet18", 3, 8, upscore=k)) for k in ("fixed", "learned", "dense")]
    for score in nets[0].score.values():
        nn.init.normal_(score.weight)
    image = torch.randint(0, 256, (1, 3, 50, 70), dtype=torch.uint8)
    scores = []
    for net in nets:
        net.load_state_dict(nets[0].state_dict(), strict=False)
        scores.append(net.eval()(image))
    for other in scores[1:]:
        torch.testing.assert_close(other, scores[0])


def test_dense_deconvolutions_learn_from_other_classes() -> None:
    """What one kernel a class cannot: off the diagonal there is a gradient."""
    net = FCN(Blueprint("resnet18", 3, 32, upscore="dense")).eval()
    nn.init.normal_(net.score["32"].weight)
    image = torch.randint(0, 256, (1, 3, 40, 40), dtype=torch.uint8)
    cross_entropy_sum(net(image), torch.zeros(1, 40, 40, dtype=torch.int64)).backward()
    assert net.upscore["image"].weight.grad[0, 1].abs().sum() > 0


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ("vgg16", [0.5, 0.5]),
        ("alexnet", [0.5, 0.5]),
        ("caffenet", [0.5, 0.5]),
        ("googlenet", [0.2]),
    ],
)
def test_dropout_stays_where_the_classifier_had_it(backbone, expected) -> None:
    head = on_meta(backbone).backbone.head
    assert [m.p for m in head.modules() if isinstance(m, nn.Dropout)] == expected


def test_dropout_is_on_in_training_and_off_in_evaluation() -> None:
    head = FCN(Blueprint("googlenet", 2, 32)).backbone.head
    x = torch.ones(1, 1024, 4, 4)
    assert (head.train()(x) == 0).any()
    assert torch.equal(head.eval()(x), x)


def test_googlenet_has_the_papers_5x5_windows_or_torchvisions_3x3() -> None:
    for name, size in (("googlenet_5x5", 5), ("googlenet", 3)):
        third = [
            m.branch3[1].conv for m in on_meta(name).backbone.modules() if hasattr(m, "branch3")
        ]
        assert len(third) == 9
        assert {(c.kernel_size, c.padding) for c in third} == {((size, size), (size // 2,) * 2)}


def test_googlenet_keeps_the_final_loss_alone_and_no_mean() -> None:
    modules = list(on_meta("googlenet_5x5").modules())
    assert not any(type(m).__name__ == "InceptionAux" for m in modules)
    assert not any(isinstance(m, nn.AdaptiveAvgPool2d) for m in modules)


def normalised(x: torch.Tensor) -> torch.Tensor:
    """Caffe's LRN over 5 channels, alpha 1e-4, beta 0.75, by hand."""
    squares = F.pad(x.square(), (0, 0, 0, 0, 2, 2))
    total = sum(squares[:, i : i + x.shape[1]] for i in range(5))
    return x / (1 + 1e-4 / 5 * total) ** 0.75


def test_fcn_alexnet_over_caffenet_gives_the_scores_of_the_published_layers() -> None:
    """conv 96-11/4 (pad 100), LRN after pool1 and pool2, two groups in conv2, 4 and 5."""
    net = FCN(Blueprint("caffenet", 2, 32, border="paper", preprocessing=CAFFE))
    net = randomised(net).double()
    image = torch.randint(0, 256, (1, 3, 33, 47), dtype=torch.uint8)
    weights = list(net.backbone.parameters())
    conv = list(zip(weights[::2], weights[1::2], strict=True))

    def pool(x: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(x, 3, 2, ceil_mode=True)

    mean = torch.tensor([104.00699, 116.66877, 122.67892]).view(1, 3, 1, 1).double()
    with torch.inference_mode():
        x = image.flip(1).double() - mean
        x = normalised(pool(F.conv2d(x, *conv[0], stride=4, padding=100).relu()))
        x = normalised(pool(F.conv2d(x, *conv[1], padding=2, groups=2).relu()))
        x = F.conv2d(x, *conv[2], padding=1).relu()
        x = F.conv2d(x, *conv[3], padding=1, groups=2).relu()
        x = pool(F.conv2d(x, *conv[4], padding=1, groups=2).relu())
        x = F.conv2d(F.conv2d(x, *conv[5]).relu(), *conv[6]).relu()
        score = net.score["32"]
        x = F.conv2d(x, score.weight, score.bias)
        kernel = bilinear_kernel(63).double() * torch.eye(2).double()[..., None, None]
        expected = F.conv_transpose2d(x, kernel, stride=32)[..., 18 : 18 + 33, 18 : 18 + 47]
        assert (net(image) - expected).abs().max() <= 1e-9 * expected.abs().max()
