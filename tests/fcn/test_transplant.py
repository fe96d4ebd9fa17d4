"""Weights arrive where the receipt says, or not at all."""

import json

import pytest
import torch

from fcn.backbones import BACKBONES
from fcn.nets import FCN, Blueprint
from fcn.transplant import sha256, transplant_classifier, transplant_net
from fcn.weights import read_weights

PER_BACKBONE = {"vgg16": (28, 2, 2), "alexnet": (12, 2, 2), "resnet18": (120, 0, 2)}


NETS = ("vgg16", "alexnet", "googlenet", "resnet18", "mobilenet_v3_small", "squeezenet1_1")


@pytest.mark.parametrize("backbone", NETS)
def test_a_classifier_from_a_file_agrees_with_its_convolutional_form(backbone, tmp_path) -> None:
    torch.manual_seed(3)
    classifier = BACKBONES[backbone].build()
    path = tmp_path / "weights.pth"
    torch.save(classifier.state_dict(), path)
    net = FCN(Blueprint(backbone, 3, 8))
    receipt = transplant_classifier(net, read_weights(path), "file")
    assert 0 <= receipt.max_difference < 1e-5
    arrived = net.state_dict()
    for entry in receipt.entries:
        if entry.target:
            assert sha256(arrived[entry.target]) == entry.sha256
    listed = {entry.source for entry in receipt.entries if entry.source}
    assert listed == set(classifier.state_dict())
    if backbone in PER_BACKBONE:
        fates = tuple(receipt.count(f) for f in ("copied", "reshaped", "dropped"))
        assert fates == PER_BACKBONE[backbone]
    assert receipt.matched_by == "the same names"
    plain = json.dumps(receipt.to_json())
    assert "what their names" in plain.split("does_not_cover")[1]


def test_fc6_and_fc7_are_kept_as_convolutions() -> None:
    classifier = BACKBONES["alexnet"].build()
    net = FCN(Blueprint("alexnet", 3, 32))
    receipt = transplant_classifier(net, classifier.state_dict(), "memory")
    shapes = {e.source: e.target_shape for e in receipt.entries if e.fate == "reshaped"}
    assert shapes == {
        "classifier.1.weight": (4096, 256, 6, 6),
        "classifier.4.weight": (4096, 4096, 1, 1),
    }
    assert sum(isinstance(m, torch.nn.Dropout) for m in net.backbone.head) == 2


def test_weights_of_another_net_are_refused_with_the_differences() -> None:
    other = BACKBONES["resnet34"].build().state_dict()
    with pytest.raises(ValueError, match=r"not the weights of resnet18: 218 tensors for 122"):
        transplant_classifier(FCN(Blueprint("resnet18", 3, 8)), other, "file")


def test_a_dead_classifier_is_refused() -> None:
    state = dict(BACKBONES["resnet18"].build().state_dict())
    state["conv1.weight"] = torch.zeros_like(state["conv1.weight"])  # fc still has its bias
    with pytest.raises(ValueError, match="dead: their features"):
        transplant_classifier(FCN(Blueprint("resnet18", 3, 8)), state, "zeros")


def test_a_net_with_other_classes_keeps_the_backbone_and_starts_its_scores_anew() -> None:
    torch.manual_seed(0)
    donor = FCN(Blueprint("resnet18", 3, 8))
    torch.nn.init.normal_(donor.score["32"].weight)
    net = FCN(Blueprint("resnet18", 3, 16))
    transplant_net(net, donor, "run", same_classes=True)
    assert torch.equal(net.score["32"].weight, donor.score["32"].weight)
    net = FCN(Blueprint("resnet18", 3, 8))
    receipt = transplant_net(net, donor, "run", same_classes=False)
    assert receipt.max_difference == 0
    assert {e.source for e in receipt.entries if e.fate == "dropped"} == {
        f"score.{s}.{p}" for s in (8, 16, 32) for p in ("weight", "bias")
    }
    assert not net.score["32"].weight.any()


def test_a_donor_with_another_backbone_is_refused() -> None:
    donor = FCN(Blueprint("resnet34", 3, 32))
    with pytest.raises(ValueError, match="run has a resnet34, this net a resnet18"):
        transplant_net(FCN(Blueprint("resnet18", 3, 32)), donor, "run", same_classes=True)
