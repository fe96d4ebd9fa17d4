"""A fully connected layer as a convolution is the same function over the same bytes."""

import pytest
import torch
from torch import nn

from fcn.convolutionalize import as_convolution


def test_the_convolution_is_the_layer_on_every_patch() -> None:
    linear = nn.Linear(5 * 9, 4).double()
    conv = as_convolution(linear, 3)
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64)
    dense = conv(x)
    for i in range(4):
        for j in range(5):
            expected = linear(x[..., i : i + 3, j : j + 3].flatten(1))
            torch.testing.assert_close(dense[..., i, j], expected)
    assert conv.weight.data_ptr() == linear.weight.data_ptr()


def test_inputs_that_are_no_whole_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="46 inputs are not channels x 3 x 3"):
        as_convolution(nn.Linear(46, 4), 3)
