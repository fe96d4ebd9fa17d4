"""Where classifiers are cut: names in saved nets depend on it; and what cannot be cut."""

import pytest
from torch import nn

from fcn.backbones import BACKBONES
from fcn.backbones.cut import cut
from tests.narrow import narrow_backbones

CUTS = {
    # First and last layer of each stride, as nets that were saved before have them.
    "vgg16": {8: ("0", "16"), 16: ("17", "23"), 32: ("24", "30")},
    "alexnet": {8: ("0", "2"), 16: ("3", "5"), 32: ("6", "12")},
    "googlenet": {8: ("0", "6"), 16: ("0", "5"), 32: ("0", "2")},
    "resnet18": {8: ("0", "5"), 16: ("0", "0"), 32: ("0", "0")},
    "efficientnet_lite0": {8: ("0", "5"), 16: ("5", "10"), 32: ("0", "7")},
}


@pytest.mark.parametrize("name", CUTS)
def test_layers_keep_the_names_that_saved_nets_have(name) -> None:
    known = {**BACKBONES, **narrow_backbones()}[name]
    trunk = cut(known.build(), known.family.taps).trunk
    assert {
        s: (min(k := list(t._modules), key=int), max(k, key=int)) for s, t in trunk.items()
    } == CUTS[name]


class Classifier(nn.Module):
    """A trunk, a pool and a head."""

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk, self.pool, self.head = trunk, nn.AdaptiveAvgPool2d(1), head

    def forward(self, x):
        return self.head(self.pool(self.trunk(x)).flatten(1))


def test_a_classifier_without_a_known_head_is_refused() -> None:
    with pytest.raises(ValueError, match="no pool between its maps and its classes"):
        cut(nn.Sequential(nn.Conv2d(3, 8, 3, 32)), "last")
    head = nn.Sequential(nn.Linear(8, 4), nn.Sigmoid())
    with pytest.raises(ValueError, match=r"last layer of the head is Sigmoid.*neither linear"):
        cut(Classifier(nn.Conv2d(3, 8, 3, 32), head), "last")


def test_a_classifier_that_is_no_chain_is_refused() -> None:
    class Forked(Classifier):
        def forward(self, x):
            y = self.trunk(x)
            return self.head(self.pool(y + self.trunk(x)).flatten(1))

    with pytest.raises(ValueError, match="Forked is no chain of layers"):
        cut(Forked(nn.Conv2d(3, 8, 3, 32), nn.Linear(8, 4)), "last")
