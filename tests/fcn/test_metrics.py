"""One confusion matrix, and the paper's metrics of it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fcn.labels import VOID
from fcn.metrics import Confusion

K = 4
maps = arrays(np.int64, (6, 7), elements=st.sampled_from([0, 1, 2, 3, VOID]))
predictions = arrays(np.int64, (6, 7), elements=st.integers(0, K - 1))


def confusion_of(*pairs) -> Confusion:
    confusion = Confusion(K)
    for label, prediction in pairs:
        confusion.update(torch.from_numpy(label), torch.from_numpy(prediction))
    return confusion


@given(maps, predictions)
def test_counts_are_those_of_a_plain_loop(label, prediction) -> None:
    counts = np.zeros((K, K), int)
    for i, j in zip(label.ravel(), prediction.ravel(), strict=True):
        if i != VOID:
            counts[i, j] += 1
    assert (confusion_of((label, prediction)).counts.numpy() == counts).all()


@given(maps, predictions, maps, predictions)
def test_matrices_add_up(label_a, prediction_a, label_b, prediction_b) -> None:
    together = confusion_of((label_a, prediction_a), (label_b, prediction_b)).counts
    apart = (
        confusion_of((label_a, prediction_a)).counts + confusion_of((label_b, prediction_b)).counts
    )
    assert torch.equal(together, apart)


def test_scores_are_the_papers_formulas() -> None:
    """n_ij by hand: pixel (8+3)/14, accuracies 8/10 and 3/4, IU 8/11 and 3/6."""
    confusion = Confusion(2)
    confusion.counts = torch.tensor([[8, 2], [1, 3]])
    scores = confusion.scores()
    assert scores.pixel_accuracy == pytest.approx(11 / 14)
    assert scores.mean_accuracy == pytest.approx((8 / 10 + 3 / 4) / 2)
    assert scores.mean_iu == pytest.approx((8 / 11 + 3 / 6) / 2)
    assert scores.frequency_weighted_iu == pytest.approx((10 * 8 / 11 + 4 * 3 / 6) / 14)


def test_absent_classes_are_left_out_and_invented_ones_count_zero() -> None:
    confusion = Confusion(4)  # 2 is nowhere; 3 is predicted but not there
    confusion.counts = torch.tensor([[5, 0, 0, 1], [0, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    scores = confusion.scores()
    assert math.isnan(scores.class_iu[2])
    assert scores.class_iu[3] == 0
    assert scores.mean_iu == pytest.approx((5 / 6 + 1 + 0) / 3)
    assert scores.mean_accuracy == pytest.approx((5 / 6 + 1) / 2)


def test_background_everywhere_scores_as_the_facts_say() -> None:
    """Three quarters of background over 21 classes: accuracy 0.73 is mean IU 0.0348."""
    confusion = Confusion(21)
    confusion.counts[0, 0] = 73000
    confusion.counts[1:, 0] = 1350
    scores = confusion.scores()
    assert scores.pixel_accuracy == pytest.approx(0.73)
    assert scores.mean_iu == pytest.approx(0.0348, abs=1e-4)


def test_counts_stay_exact_past_float32() -> None:
    confusion = Confusion(2)
    confusion.counts[0, 0] = 2**24
    confusion.update(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    assert int(confusion.counts[0, 0]) == 2**24 + 1


def test_wild_predictions_and_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="differ"):
        Confusion(2).update(torch.zeros(2, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="prediction 7 is not one of 2 classes"):
        Confusion(2).update(torch.zeros(1), torch.tensor([7]))


@pytest.mark.parametrize("wild", [2, 7, 254, -1])
def test_a_label_that_is_neither_a_class_nor_void_is_refused(wild) -> None:
    confusion = Confusion(2)
    label = torch.tensor([0, VOID, wild, 1])
    with pytest.raises(ValueError, match=rf"label {wild} is not one of 2 classes.*void \(255\)"):
        confusion.update(label, torch.zeros(4, dtype=torch.int64))
    assert not confusion.counts.any()  # nothing of the refused map is counted


def test_labels_of_eight_bits_do_not_overflow() -> None:
    """uint8 maps, as they are decoded: 200 * 201 + 200 is past 255."""
    confusion = Confusion(201)
    confusion.update(torch.tensor([200, VOID], dtype=torch.uint8), torch.tensor([200, 3]))
    assert int(confusion.counts[200, 200]) == int(confusion.counts.sum()) == 1
