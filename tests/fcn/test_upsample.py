"""Upsampling is bilinear where it starts."""

import pytest
import torch

from fcn.upsample import Upscore, bilinear_kernel


@pytest.mark.parametrize(("kind", "parameters"), [("fixed", 0), ("learned", 48), ("dense", 144)])
def test_upsampling_starts_as_bilinear_interpolation(kind, parameters) -> None:
    x = torch.rand(2, 3, 9, 9)
    upscore = Upscore(3, 4, 2, kind)
    expected = torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(upscore(x)[..., 3:-3, 3:-3], expected[..., 2:-2, 2:-2])
    assert sum(p.numel() for p in upscore.parameters()) == parameters


@pytest.mark.parametrize("size", [3, 4, 15, 16, 63, 64])
def test_bilinear_kernels_spread_each_pixel_evenly(size) -> None:
    kernel, factor = bilinear_kernel(size), (size + 1) // 2
    assert torch.equal(kernel, kernel.flip(0))
    assert torch.equal(kernel, kernel.T)
    torch.testing.assert_close(kernel.sum(), torch.tensor(float(factor**2)))
