"""Batch normalisation in its modes."""

import torch

from fcn.nets import FCN, Blueprint
from fcn.normalise import MicroStatistics, set_batch_norm


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
