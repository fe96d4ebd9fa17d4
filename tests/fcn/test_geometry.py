"""The grid of every map follows from the layers; the reference code's constants come out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fcn.geometry import Geometry, align, fused, trace
from fcn.nets import FCN, Blueprint
from fcn.upsample import Upscore


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


@pytest.mark.parametrize(("backbone", "field_px"), [("vgg16", 404), ("alexnet", 355)])
def test_receptive_fields_are_the_papers(backbone: str, field_px: int) -> None:
    taps = FCN(Blueprint(backbone, 2, 32)).backbone.geometry(Geometry())
    assert taps[32].field_px == field_px  # paper, table 1


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
    up = Upscore(1, a.kernel, a.factor, learned=False)(x.expand(24, 24)[None, None])[0, 0]
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


def test_branches_out_of_alignment_are_refused() -> None:
    with pytest.raises(ValueError, match="out of alignment"):
        trace(Crooked(), Geometry())


def test_layers_of_unknown_geometry_are_refused() -> None:
    with pytest.raises(ValueError, match="Upsample is unknown"):
        trace(nn.Sequential(nn.Upsample(scale_factor=2)), Geometry())
