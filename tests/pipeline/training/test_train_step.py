"""A step's loss is weighted and its gradient clipped as over the whole global batch."""

import pytest
import torch

from pipeline.training.trainer import Trainer
from tests.pipeline.training.test_trainer import phase


def opinionated(shards, *overrides) -> Trainer:
    """A phase whose scores differ much between the classes."""
    work = phase(shards, *overrides, double=True)
    for score in work.net.score.values():
        score.bias.data = torch.arange(5).double()
    return work


@torch.no_grad()
def loss_by_hand(work: Trainer, per_class: list[float]) -> float:
    """Of the first step: the weighted sum over all its valid pixels by the sum of their weights."""
    work._prepare()
    losses, pixels = [], []
    for batch in next(work._micro_batches(0)):
        torch.manual_seed(batch.seed)
        valid, logs = batch.label != 255, work.net(batch.image).log_softmax(1)
        label = batch.label[valid]
        losses.append(-logs.movedim(1, -1)[valid].gather(1, label[:, None])[:, 0])
        pixels.append(torch.tensor(per_class).double()[label])
    loss, pixel = torch.cat(losses), torch.cat(pixels)
    return float((loss * pixel).sum() / pixel.sum())


def test_the_loss_is_divided_by_what_the_pixels_of_the_global_batch_weigh(tiny_shards) -> None:
    """Equal weights change nothing, whatever they are; uneven ones are recomputed by hand."""
    losses = {}
    for weights_ in ("none", "[3, 3, 3, 3, 3]", "[1, 2, 3, 4, 5]"):
        work = opinionated(tiny_shards, f"finetune.class_weights={weights_}")
        work._prepare()
        losses[weights_] = work._step.step(next(work._micro_batches(0))).loss
    by_hand = loss_by_hand(opinionated(tiny_shards), [1, 2, 3, 4, 5])
    assert losses["[3, 3, 3, 3, 3]"] == pytest.approx(losses["none"], rel=1e-12)
    assert losses["[1, 2, 3, 4, 5]"] == pytest.approx(by_hand, rel=1e-10)
    assert losses["[1, 2, 3, 4, 5]"] != pytest.approx(losses["none"], rel=1e-3)


def test_no_step_is_longer_than_the_greatest_norm(tiny_shards) -> None:
    """SGD without momentum and decay moves the weights by lr x the gradient's norm."""
    overrides = [
        "finetune.optimizer={kind: sgd, lr: 0.1, momentum: 0, weight_decay: 0}",
        "finetune.schedule.warmup_steps=0",
    ]
    moved = []
    for norm in ("null", "1e-3"):
        work = phase(tiny_shards, *overrides, f"finetune.max_grad_norm={norm}", double=True)
        before = [p.detach().clone() for p in work.net.parameters()]
        work._prepare()
        stats = work._step.step(next(work._micro_batches(0)))
        steps = [
            (p - b).detach().square().sum()
            for p, b in zip(work.net.parameters(), before, strict=True)
        ]
        moved.append((float(sum(steps)) ** 0.5, stats.grad_norm))
    (free, norm), (clipped, same) = moved
    assert norm == same > 1e-3
    assert free == pytest.approx(0.1 * norm, rel=1e-6)
    assert clipped == pytest.approx(0.1 * 1e-3, rel=1e-3)
