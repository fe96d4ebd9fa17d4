"""The loss is a sum over valid pixels."""

import pytest
import torch

from fcn.labels import VOID
from fcn.losses import class_weights, count_classes, cross_entropy_sum


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
    assert count_classes(half, 3).sum() == 8
    void = cross_entropy_sum(scores, torch.full_like(label, VOID))
    void.backward()
    assert void.item() == 0
    assert not scores.grad.any()


PX = torch.tensor([[60, 40, 0, 0], [90, 0, 10, 0]])
"""Pixels of four classes in two images; the last class is nowhere."""


@pytest.mark.parametrize(
    ("balance", "expected"),
    [
        # 200 pixels, 4 classes: 200 / (4 x 150), 200 / (4 x 40), 200 / (4 x 10)
        ("inverse", [1 / 3, 1.25, 5.0, 1.0]),
        # frequencies 150 / 200, 40 / 100, 10 / 100; their median is 0.4
        ("median-frequency", [0.4 / 0.75, 1.0, 4.0, 1.0]),
        ((1.0, 2.0, 3.0, 0.5), [1.0, 2.0, 3.0, 0.5]),
    ],
)
def test_class_weights_are_the_published_formulas(balance, expected) -> None:
    weights = class_weights(balance, PX)
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64))
    assert class_weights("none", PX) is None


def test_a_weight_of_two_is_two_pixels() -> None:
    scores, label = torch.randn(1, 3, 4, 4).double(), torch.randint(0, 3, (1, 4, 4))
    weights = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    each = torch.nn.functional.cross_entropy(scores, label, reduction="none")
    expected = each[label == 0].sum() + 2 * each[label == 1].sum()
    torch.testing.assert_close(cross_entropy_sum(scores, label, weights), expected)


def test_pixels_are_counted_by_class_without_void() -> None:
    label = torch.tensor([[[0, 2, VOID], [2, 2, VOID]]])
    assert count_classes(label, 4).tolist() == [1, 0, 3, 0]
