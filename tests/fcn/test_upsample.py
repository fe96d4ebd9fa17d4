"""Upsampling is bilinear where it starts."""

import pytest
import torch

from fcn.upsample import Upscore, bilinear_kernel


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
