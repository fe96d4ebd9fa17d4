"""Fully connected layers as convolutions of the same function: a classifier becomes a dense scorer."""

from __future__ import annotations

from torch import nn


def as_convolution(linear: nn.Linear, window: int = 1) -> nn.Conv2d:
    """The convolution that equals `linear` applied to every flattened (C, window, window) patch.

    The weight (O, C * window**2) is viewed as (O, C, window, window): the same memory in the same
    order, so that equal bytes prove equal functions.

    Raises:
        ValueError: the layer's inputs are not a whole number of such patches.
    """
    channels, rest = divmod(linear.in_features, window**2)
    if rest:
        raise ValueError(f"{linear.in_features} inputs are not channels x {window} x {window}")
    # skip_init: VGG16's fc6 alone is 400 MB that would be filled only to be replaced.
    conv = nn.utils.skip_init(
        nn.Conv2d, channels, linear.out_features, window, bias=linear.bias is not None
    )
    conv.weight = nn.Parameter(linear.weight.detach().view(-1, channels, window, window))
    conv.bias = linear.bias
    return conv
