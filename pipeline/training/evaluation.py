"""Scores of a whole split, counted by all workers together."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fcn.inference import scores_at
from fcn.metrics import Confusion
from fcn.nets import FCN
from pipeline.data.loader import MicroBatch, eval_batches
from pipeline.data.sampler import share
from pipeline.data.shards import Shards
from pipeline.errors import TrainingError
from pipeline.training.distributed import DistContext


@torch.inference_mode()
def count_errors(
    net: FCN, batches: Iterable[MicroBatch], context: DistContext
) -> tuple[Confusion, int]:
    """Confusion matrix of some batches on one worker, and how many images were counted."""
    confusion = Confusion(net.blueprint.num_classes, context.device)
    seen = 0
    for batch in batches:
        moved = batch.to(context.device, torch.contiguous_format)
        scores = scores_at(net(moved.image), moved.label.shape[1:])
        confusion.update(moved.label, scores.argmax(1))
        seen += len(moved.ids)
    return confusion, seen


def evaluate_split(
    net: FCN, shards: Shards, context: DistContext, batch: int, num_loaders: int
) -> Confusion:
    """One confusion matrix over a whole split: each image once, on one worker, summed over all.

    Raises:
        TrainingError: the images counted are not as many as the split has.
    """
    was_training = {m: m.training for m in net.modules()}
    net.eval()
    rows = share(len(shards), context.rank, context.size)
    confusion, seen = count_errors(net, eval_batches(shards, rows, batch, num_loaders), context)
    for module, mode in was_training.items():  # frozen batch normalisation was in eval mode before
        module.training = mode
    context.sum(confusion.counts)
    seen_by_all = context.sum(torch.tensor(seen, device=context.device))
    require_all_seen(int(seen_by_all), len(shards))
    return confusion


def require_all_seen(seen: int, expected: int) -> None:
    """A metric over some of the images is not the metric of the split."""
    if seen != expected:
        raise TrainingError(f"{seen} images were counted in a split of {expected}; scores are void")
