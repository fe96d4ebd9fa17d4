"""What holds for every net: any size in, the same size out; it learns; it is saved whole."""

import pytest
import torch

from fcn.backbones import BACKBONES, build_backbone
from fcn.losses import cross_entropy_sum
from fcn.nets import FCN, Blueprint
from fcn.normalise import set_batch_norm
from fcn.optim import freeze_trunk, parameter_groups
from fcn.upsample import Upscore, bilinear_kernel
from fcn.weights import load_net, save_net

SMALL = ("alexnet", "googlenet", "resnet18", "efficientnet_lite0")


@pytest.fixture(scope="module", params=BACKBONES)
def net(request) -> FCN:
    torch.manual_seed(0)
    return FCN(Blueprint(request.param, 3, 8)).eval()


def image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=generator)


class TestNetContract:
    """Over every backbone."""

    @pytest.mark.parametrize("size", [(1, 1), (31, 33), (64, 96), (97, 50)])
    @torch.inference_mode()
    def test_any_size_in_the_same_size_out(self, net, size) -> None:
        assert net(image(*size)).shape == (1, 3, *size)

    @torch.inference_mode()
    def test_scores_start_at_zero(self, net) -> None:
        assert not net(image(40, 40)).any()

    def test_a_step_reaches_the_first_layer_and_lowers_the_loss(self, net) -> None:
        x, label = image(64, 64), torch.zeros(1, 64, 64, dtype=torch.int64)
        label[:, 20:40, 20:40] = 2
        set_batch_norm(net, "micro")  # random weights without normalisation explode
        first = next(net.backbone.trunk["8"].parameters())
        before = first.detach().clone()
        optimizer = torch.optim.AdamW(parameter_groups(net, lr=1e-4, weight_decay=0.0))
        losses = []
        for _ in range(3):  # zero scores pass no gradient down until they have moved once
            loss = cross_entropy_sum(net(x), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        assert not torch.equal(before, first)

    def test_saved_and_loaded_it_gives_the_same_scores(self, net, tmp_path) -> None:
        save_net(tmp_path, net)
        again, x = load_net(tmp_path), image(50, 41)
        with torch.inference_mode():
            assert torch.equal(again(x), net.eval()(x))


@pytest.mark.parametrize("backbone", ["alexnet", "efficientnet_lite0"])
@pytest.mark.parametrize("border", ["compact", "paper"])
@torch.inference_mode()
def test_every_size_is_covered(backbone, border) -> None:
    """Sizes repeat modulo 32; each is asked for in one dimension."""
    for stride in (32, 16, 8):
        net = FCN(Blueprint(backbone, 2, stride, border=border)).eval()
        for size in range(1, 66, 3):
            assert net(image(size, 33)).shape[-2:] == (size, 33)


@pytest.mark.parametrize("backbone", SMALL)
@torch.inference_mode()
def test_a_shift_of_the_image_by_the_coarsest_stride_shifts_the_scores(backbone) -> None:
    """Away from the borders an FCN is a sliding window: this fails if any crop is off by one."""
    torch.manual_seed(1)
    net = FCN(Blueprint(backbone, 2, 8)).eval()
    for score in net.score.values():
        torch.nn.init.normal_(score.weight)
    size, step = net.receptive_field_px // 32 * 32 + 96, 32
    size = min(size, 608)
    big = image(size + step, size + step)
    one, two = net(big[..., :size, :size]), net(big[..., step:, step:])
    middle = size // 2
    a = one[..., middle : middle + 16, middle : middle + 16]
    b = two[..., middle - step : middle - step + 16, middle - step : middle - step + 16]
    scale = one.abs().max()
    tolerance = (
        1e-4 if net.receptive_field_px < size - step else 0.05
    )  # the far rim is seen faintly
    assert (a - b).abs().max() < tolerance * scale


@torch.inference_mode()
def test_a_new_skip_leaves_the_prediction_as_it_was() -> None:
    """16s at its first step is 32s upsampled in two bilinear strides (paper, 4.2)."""
    torch.manual_seed(0)
    coarse, fine = (FCN(Blueprint("resnet18", 3, s)).eval() for s in (32, 16))
    torch.nn.init.normal_(coarse.score["32"].weight)
    fine.load_state_dict(coarse.state_dict(), strict=False)
    x = image(160, 160)
    a, b = coarse(x), fine(x)
    agree = (a.argmax(1) == b.argmax(1))[..., 32:-32, 32:-32].float().mean()
    assert agree > 0.97
    assert not torch.equal(a, b)


def test_half_precision_weights_change_the_scores_little() -> None:
    net = FCN(Blueprint("resnet18", 3, 8)).eval()
    for score in net.score.values():
        torch.nn.init.normal_(score.weight, std=0.01)
    x = image(64, 64)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        half = net(x).float()
    with torch.inference_mode():
        full = net(x)
    assert (half - full).abs().max() < 0.1 * full.abs().max()


@pytest.mark.parametrize("learned", [False, True])
def test_upsampling_starts_as_bilinear_interpolation(learned) -> None:
    x = torch.rand(2, 3, 9, 9)
    up = Upscore(3, 4, 2, learned=learned)(x)
    expected = torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(up[..., 3:-3, 3:-3], expected[..., 2:-2, 2:-2])
    assert sum(p.numel() for p in Upscore(3, 4, 2, learned=learned).parameters()) == 48 * learned


@pytest.mark.parametrize("size", [3, 4, 15, 16, 63, 64])
def test_bilinear_kernels_spread_each_pixel_evenly(size) -> None:
    kernel, factor = bilinear_kernel(size), (size + 1) // 2
    assert torch.equal(kernel, kernel.flip(0))
    assert torch.equal(kernel, kernel.T)
    torch.testing.assert_close(kernel.sum(), torch.tensor(float(factor**2)))


def test_head_only_training_leaves_the_backbone_alone() -> None:
    net = FCN(Blueprint("resnet18", 2, 8))
    freeze_trunk(net)
    trained = {
        id(p) for group in parameter_groups(net, lr=1, weight_decay=0) for p in group["params"]
    }
    assert trained == {id(p) for p in net.score.parameters()}


def test_bias_groups_follow_the_papers_solver() -> None:
    net = FCN(Blueprint("alexnet", 2, 32))
    groups = parameter_groups(
        net, lr=1.0, weight_decay=0.5, head_lr_mult=10, bias_lr_mult=2, decay_biases=False
    )
    seen = {(g["lr"], g["weight_decay"], g["params"][0].ndim > 1) for g in groups}
    assert seen == {(1, 0.5, True), (2, 0, False), (10, 0.5, True), (20, 0, False)}
    assert sum(len(g["params"]) for g in groups) == len(list(net.parameters()))


def test_unknown_backbones_are_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no backbone 'vgg17'; there are vgg16, alexnet"):
        build_backbone("vgg17")
