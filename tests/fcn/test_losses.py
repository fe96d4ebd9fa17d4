"""The loss is a sum over valid pixels."""

import torch

from fcn.labels import VOID
from fcn.losses import count_valid, cross_entropy_sum


def test_void_pixels_weigh_nothing() -> None:
    scores = torch.randn(1, 3, 4, 4, requires_grad=True)
    label = torch.randint(0, 3, (1, 4, 4))
    whole = cross_entropy_sum(scores, label)
    half = label.clone()
    half[:, :2] = VOID
    rest = label.clone()
    rest[:, 2:] = VOID
    torch.testing.assert_close(
        cross_entropy_sum(scores, half) + cross_entropy_sum(scores, rest), whole
    )
    assert count_valid(half) == 8
    void = cross_entropy_sum(scores, torch.full_like(label, VOID))
    void.backward()
    assert void.item() == 0
    assert not scores.grad.any()
