"""The grid of every map follows from the layers; the reference code's constants come out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fcn.geometry import Geometry, align, fused, trace
from fcn.nets import FCN, Blueprint
from fcn.upsample import Upscore

OBLONG = nn.Conv2d(4, 4, (7, 1), padding=(3, 0))


def chain(*windows: tuple[int, int, int], start: Geometry) -> Geometry:
    """Geometry after windows of (kernel, stride, padding)."""
    for kernel, stride, padding in windows:
        start = start.window(kernel, stride, padding)
    return start


def vgg(border_px: int) -> dict[int, Geometry]:
    """VGG16 as its table says, fc6 without padding: written down apart from the code under test."""
    taps, at = {}, Geometry(offset_px=-border_px)
    for stage, convs in enumerate((2, 2, 3, 3, 3), start=1):
        at = chain(*[(3, 1, 1)] * convs, (2, 2, 0), start=at)
        taps[2**stage] = at
    taps[32] = at.window(7)
    return taps


def test_crops_of_the_reference_code_come_out_of_the_layers() -> None:
    """voc-fcn32s: 19; 16s: 5 and 27; 8s: 5, 9 and 31 (FCN's prototxts)."""
    crops = {}
    for stride in (32, 16, 8):
        a = FCN(Blueprint("vgg16", 2, stride, border="paper")).alignment
        crops[stride] = [a["image"].crop_coarse, *(a[s].crop_fine for s in ("32", "16") if s in a)]
    assert crops == {32: [19], 16: [27, 5], 8: [31, 5, 9]}


def test_traced_layers_agree_with_the_table() -> None:
    taps = FCN(Blueprint("vgg16", 2, 8, border="paper")).backbone.geometry(Geometry(offset_px=-99))
    assert taps == {s: vgg(99)[s] for s in (8, 16, 32)}


def test_alexnet_in_the_papers_borders_is_cropped_by_18_from_a_kernel_of_63() -> None:
    a = FCN(Blueprint("alexnet", 2, 32, border="paper")).alignment["image"]
    assert (a.kernel, a.crop_coarse) == (63, 18)


@pytest.mark.parametrize(
    ("backbone", "field_px"), [("vgg16", 404), ("alexnet", 355), ("caffenet", 355)]
)
def test_receptive_fields_are_the_papers(backbone: str, field_px: int) -> None:
    taps = FCN(Blueprint(backbone, 2, 32)).backbone.geometry(Geometry())
    assert taps[32].field_px == field_px  # paper, table 1


def test_googlenets_field_is_the_papers_with_the_papers_windows_and_its_mean() -> None:
    """907 counts the mean of 7x7 that the paper's FCN leaves out."""
    with torch.device("meta"):
        taps = FCN(Blueprint("googlenet_5x5", 2, 32)).backbone.geometry(Geometry())
    assert taps[32].window(7).field_px == 907
    assert taps[32].field_px == 715


@given(
    fine=st.sampled_from([1, 2, 4, 8]),
    factor=st.sampled_from([2, 4, 8]),
    half_steps=st.integers(-40, 40),
)
def test_upsampled_coordinates_land_on_their_own_pixels(fine, factor, half_steps) -> None:
    """A map that holds its pixels' image coordinates still does after upsampling and cropping."""
    target = Geometry(fine, 0.0)
    coarse = Geometry(fine * factor, half_steps * fine / 2)
    a = align(coarse, target)
    x = coarse.offset_px + coarse.stride_px * torch.arange(24, dtype=torch.float32)
    up = Upscore(1, a.kernel, a.factor, "fixed")(x.expand(24, 24)[None, None])[0, 0]
    row = up[up.shape[0] // 2, a.crop_coarse :]
    begin = fused(target, a).offset_px
    inside = slice(2 * a.kernel, 2 * a.kernel + 3 * factor)
    expected = begin + fine * torch.arange(len(row), dtype=torch.float32)
    torch.testing.assert_close(row[inside], expected[inside], atol=1e-3, rtol=0)


def test_grids_that_never_meet_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be laid"):
        align(Geometry(32, 0.3), Geometry(1, 0.0))


class Crooked(nn.Module):
    """Joins two branches of which one has lost a pixel on the left."""

    def __init__(self) -> None:
        super().__init__()
        self.same, self.lost = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3)

    def forward(self, x):
        return self.same(x) + self.lost(x)


def test_branches_out_of_alignment_are_taken_in_their_middle_and_say_how_far_apart_they_lie() -> (
    None
):
    joined = trace(Crooked(), Geometry(stride_px=4))
    assert (joined.offset_px, joined.apart_px) == (2, 4)


def test_branches_of_unlike_strides_are_refused() -> None:
    crooked = Crooked()
    crooked.lost.stride = (2, 2)
    with pytest.raises(ValueError, match=r"strides \[1, 2\] px"):
        trace(crooked, Geometry())


def test_grids_that_never_meet_are_laid_on_the_nearest_if_asked() -> None:
    """Of kernels that put pixels a half or a whole apart, the one that is least off is taken."""
    a = align(Geometry(32, 0.3), Geometry(1, 0.0), nearest=True)
    assert (a.kernel, a.crop_coarse) == (64, 31)  # half a pixel out is nearer than none
    assert a.off_px == pytest.approx(-0.2)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), (1, 0.0, 3)),
        (nn.Conv2d(4, 4, 3, padding=2, dilation=2), (1, 0.0, 5)),
        (nn.Conv2d(4, 4, 4, padding="same"), (1, 0.5, 4)),  # torch pads 1 before and 2 after
        (nn.Conv2d(4, 4, 3, padding="same", dilation=3), (1, 0.0, 7)),
        (nn.Conv2d(4, 4, 3, padding="valid"), (1, 1.0, 3)),
        (nn.AvgPool2d(2, 2, ceil_mode=True), (2, 0.5, 2)),
        (nn.MaxPool2d(3, 2, padding=1, dilation=1), (2, 0.0, 3)),
        (nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 4, 3, 2)), (2, 1.0, 3)),
        (nn.Sequential(nn.Conv2d(4, 4, (1, 7), padding=(0, 3)), OBLONG), (1, 0.0, 7)),
    ],
)
def test_the_map_lies_where_a_bright_pixel_shows(layer, expected) -> None:
    """Traced, and measured: which pixels of the image move the map's pixel in the middle."""
    geometry = trace(layer, Geometry())
    assert (geometry.stride_px, geometry.offset_px, geometry.field_px) == expected
    for weight in layer.parameters():
        nn.init.ones_(weight)
    image = torch.ones(1, 4, 24, 24, requires_grad=True)
    out = layer(image * torch.arange(1, 25).view(1, 1, 24, 1))
    if isinstance(layer, nn.MaxPool2d):
        return  # one pixel of the window alone has a gradient
    i = out.shape[-2] // 2
    out[0, 0, i, i].backward()
    seen = image.grad[0].abs().sum(0).sum(1).nonzero().flatten()
    assert (seen[0] + seen[-1]) / 2 == geometry.offset_px + geometry.stride_px * i
    assert seen[-1] - seen[0] + 1 == geometry.field_px


def test_rows_that_lie_elsewhere_than_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="rows and columns differently"):
        trace(nn.Conv2d(3, 3, 3, padding=(0, 1)), Geometry())


def test_layers_of_unknown_geometry_are_refused() -> None:
    with pytest.raises(ValueError, match="Upsample is unknown"):
        trace(nn.Sequential(nn.Upsample(scale_factor=2)), Geometry())
