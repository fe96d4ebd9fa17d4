"""Loss, metrics, schedules, statistics, labels, prediction."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fcn.inference import predict
from fcn.labels import VOID, ClassTable, overlay, voc_colour
from fcn.losses import count_valid, cross_entropy_sum
from fcn.metrics import Confusion
from fcn.nets import FCN, Blueprint
from fcn.normalise import MicroStatistics, set_batch_norm
from fcn.optim import lr_factor

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


@given(st.integers(1, 500), st.integers(0, 20))
def test_poly_falls_to_nearly_nothing_after_its_warm_up(num_steps, warmup) -> None:
    factors = [lr_factor(s, num_steps, kind="poly", warmup_steps=warmup) for s in range(num_steps)]
    assert all(0 < f <= 1 for f in factors)
    after = factors[warmup:]
    assert after == sorted(after, reverse=True)
    assert lr_factor(num_steps - 1, num_steps, kind="fixed") == 1


def test_micro_statistics_do_not_depend_on_who_computes_them() -> None:
    """Running statistics of four micro-batches, on one worker and shared by two."""
    torch.manual_seed(0)
    batches = torch.randn(4, 2, 3, 5, 5) * 3 + 1

    def run(shares):
        flats = []
        for mine in shares:
            layer = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
            statistics = MicroStatistics(set_batch_norm(layer, "micro"))
            statistics.begin()
            for i in mine:
                layer(batches[i])
            flats.append(statistics.weighted(len(mine)))
        statistics.finish(sum(flats), 4)
        return layer[0].running_mean, layer[0].running_var

    for one, two in zip(run([range(4)]), run([[0], [1, 2, 3]]), strict=True):
        torch.testing.assert_close(one, two)
    mean, _ = run([range(4)])
    torch.testing.assert_close(mean, 0.1 * batches.mean((0, 1, 3, 4)))


def test_frozen_statistics_stay_as_they_are() -> None:
    net = set_batch_norm(FCN(Blueprint("resnet18", 2, 32)), "frozen")
    before = net.backbone.trunk["8"][1].running_mean.clone()
    net(torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8))
    assert torch.equal(before, net.backbone.trunk["8"][1].running_mean)
    assert net.training


def test_a_label_map_has_the_images_size_and_is_of_classes() -> None:
    net = FCN(Blueprint("resnet18", 3, 8))
    image = np.zeros((37, 53, 3), np.uint8)
    label = predict(net, image)
    assert label.shape == (37, 53)
    assert label.dtype == np.uint8
    for wrong in (image[..., 0], image.astype(np.float32), image[:0]):
        with pytest.raises(ValueError, match="uint8 RGB"):
            predict(net, wrong)


def test_colours_are_pascals_and_void_shows_the_photograph() -> None:
    assert [voc_colour(i) for i in (0, 1, 15, 20)] == [
        (0, 0, 0),
        (128, 0, 0),
        (192, 128, 128),
        (0, 64, 128),
    ]
    table = ClassTable(("a", "b"), ((0, 0, 0), (200, 0, 0)))
    image = np.full((1, 2, 3), 100, np.uint8)
    assert overlay(image, np.array([[1, VOID]]), table).tolist() == [
        [[150, 50, 50], [100, 100, 100]]
    ]
    with pytest.raises(ValueError, match="2 class names but 1 colours"):
        ClassTable(("a", "b"), ((0, 0, 0),))
