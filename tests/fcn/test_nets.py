"""What holds for every net: any size in, the same size out; it learns; it is saved whole.

VGG16 and AlexNet have few channels here; the wide ones are run in test_transplant.
"""

from collections.abc import Iterator

import pytest
import torch

from fcn.geometry import Geometry
from fcn.losses import cross_entropy_sum
from fcn.nets import FCN, Blueprint, coarsest_map_px
from fcn.normalise import set_batch_norm
from fcn.optim import parameter_groups
from fcn.weights import load_net, save_net
from tests.narrow import narrowed

NETS = ("vgg16", "alexnet", "googlenet", "resnet18", "resnet50", "efficientnet_lite0")
SMALL = ("alexnet", "googlenet", "resnet18", "efficientnet_lite0")


@pytest.fixture(scope="module", autouse=True)
def narrow() -> Iterator[None]:
    with narrowed():
        yield


@pytest.fixture(scope="module", params=NETS)
def net(request, narrow) -> FCN:
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


@pytest.mark.parametrize("backbone", ["vgg16", "alexnet", "efficientnet_lite0"])
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
    field_px = net.backbone.geometry(Geometry())[32].field_px
    size, step = field_px // 32 * 32 + 96, 32
    size = min(size, 608)
    big = image(size + step, size + step)
    one, two = net(big[..., :size, :size]), net(big[..., step:, step:])
    middle = size // 2
    a = one[..., middle : middle + 16, middle : middle + 16]
    b = two[..., middle - step : middle - step + 16, middle - step : middle - step + 16]
    scale = one.abs().max()
    tolerance = 1e-4 if field_px < size - step else 0.05  # the far rim is seen faintly
    assert (a - b).abs().max() < tolerance * scale


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


@pytest.mark.parametrize(
    ("backbone", "crop_px", "border", "expected"),
    [
        ("efficientnet_lite0", (32, 32), "compact", (1, 1)),
        ("resnet18", (33, 64), "compact", (2, 2)),
        ("resnet18", (320, 480), "compact", (10, 15)),
        ("resnet18", (32, 32), "paper", (8, 8)),
        ("vgg16", (32, 32), "compact", None),
    ],
)
def test_the_coarsest_normalised_map_is_known_without_running_the_net(
    backbone, crop_px, border, expected
) -> None:
    assert coarsest_map_px(Blueprint(backbone, 2, 8, border=border), crop_px) == expected


def test_one_value_a_channel_cannot_be_normalised() -> None:
    """Why the size matters: a single image with a map of 1 x 1."""
    net = set_batch_norm(FCN(Blueprint("efficientnet_lite0", 2, 8)), "micro")
    with pytest.raises(ValueError, match="more than 1 value"):
        net(image(32, 32))
    net(torch.cat([image(32, 32, seed) for seed in (0, 1)]))
