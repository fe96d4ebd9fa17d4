"""Upsampling is bilinear where it starts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import conv_transpose2d

from fcn.upsample import Upscore, bilinear_kernel


@pytest.mark.parametrize(("kind", "parameters"), [("fixed", 0), ("learned", 48), ("dense", 144)])
def test_upsampling_starts_as_bilinear_interpolation(kind, parameters) -> None:
    x = torch.rand(2, 3, 9, 9)
    upscore = Upscore(3, 4, 2, kind)
    expected = torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(upscore(x)[..., 3:-3, 3:-3], expected[..., 2:-2, 2:-2])
    assert sum(p.numel() for p in upscore.parameters()) == parameters


@given(
    st.sampled_from([(3, 2), (4, 2), (5, 3), (7, 4), (16, 8), (63, 32), (64, 32)]),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_the_fixed_kernel_is_a_transposed_convolution(sizes, map_px) -> None:
    """Two matrix products, forward and backward, are the convolution with the kernel as a whole."""
    kernel, factor = sizes
    x = torch.rand(2, 3, *map_px, dtype=torch.float64, requires_grad=True)
    whole = bilinear_kernel(kernel).double()[None, None].expand(3, 1, -1, -1)
    expected = conv_transpose2d(x, whole, stride=factor, groups=3)
    found = Upscore(3, kernel, factor, "fixed")(x)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    weight = torch.rand_like(expected)
    (grad,) = torch.autograd.grad((found * weight).sum(), x)
    (theirs,) = torch.autograd.grad((expected * weight).sum(), x)
    torch.testing.assert_close(grad, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["fixed", "learned", "dense"])
def test_upsampling_keeps_32_bits_under_autocast(kind) -> None:
    upscore, x = Upscore(3, 4, 2, kind), torch.rand(1, 3, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert upscore(x.bfloat16()).dtype == torch.float32
    with torch.autocast("cpu", enabled=False):
        plain = upscore(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(upscore(x), plain)


@pytest.mark.parametrize("size", [3, 4, 15, 16, 63, 64])
def test_bilinear_kernels_spread_each_pixel_evenly(size) -> None:
    kernel, factor = bilinear_kernel(size), (size + 1) // 2
    assert torch.equal(kernel, kernel.flip(0))
    assert torch.equal(kernel, kernel.T)
    torch.testing.assert_close(kernel.sum(), torch.tensor(float(factor**2)))
