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


ANIMALS = ("cat", "dog", "cow")


def donor(**options) -> FCN:
    """A net whose scores are all random."""
    torch.manual_seed(0)
    net = FCN(Blueprint("resnet18", 3, 8, **options))
    for parameter in (*net.score.parameters(), *net.upscore.parameters()):
        torch.nn.init.normal_(parameter)
    return net.eval()


def test_a_net_with_the_same_classes_keeps_its_scores() -> None:
    net, old = FCN(Blueprint("resnet18", 3, 16)), donor()
    transplant_net(net, old, "run", ANIMALS, ANIMALS)
    assert torch.equal(net.score["32"].weight, old.score["32"].weight)


def test_a_net_with_other_classes_keeps_the_backbone_and_starts_its_scores_anew() -> None:
    net = FCN(Blueprint("resnet18", 3, 8))
    receipt = transplant_net(net, donor(), "run", ANIMALS, ("car", "bus", "van"))
    assert receipt.max_difference == 0
    assert {e.source for e in receipt.entries if e.fate == "dropped"} == {
        f"score.{s}.{p}" for s in (8, 16, 32) for p in ("weight", "bias")
    }
    assert not net.score["32"].weight.any()


@pytest.mark.parametrize("upscore", ["fixed", "learned", "dense"])
def test_a_grown_head_gives_old_classes_their_old_scores_wherever_they_now_stand(upscore) -> None:
    """Classes are added, one is gone, and their order is another."""
    ours, old = ("pig", "dog", "hen", "cat"), donor(upscore=upscore)
    net = FCN(Blueprint("resnet18", 4, 8, upscore=upscore)).eval()
    if upscore == "dense":  # the class that goes must not speak for those that stay
        for layer in old.upscore.values():
            layer.weight.data[2] = 0
    receipt = transplant_net(net, old, "run", ANIMALS, ours)
    image = torch.randint(0, 256, (1, 3, 50, 70), dtype=torch.uint8)
    with torch.inference_mode():
        before, after = old(image), net(image)
    difference = (after[:, [3, 1]] - before[:, [0, 1]]).abs().max()
    assert difference <= 1e-5 * before.abs().max()
    assert not after[:, [0, 2]].any()
    grown = {entry.target for entry in receipt.entries if entry.fate == "grown"}
    assert {f"score.{s}.{p}" for s in (8, 16, 32) for p in ("weight", "bias")} <= grown
    assert len(grown) == (6 if upscore == "fixed" else 9)
    assert all(sha256(net.state_dict()[e.target]) == e.sha256 for e in receipt.entries if e.target)
    assert any("dog, cat" in line and "pig, hen" in line for line in receipt.covers)


def test_a_donor_with_another_backbone_is_refused() -> None:
    other = FCN(Blueprint("resnet34", 3, 32))
    with pytest.raises(ValueError, match="run has a resnet34, this net a resnet18"):
        transplant_net(FCN(Blueprint("resnet18", 3, 32)), other, "run", ANIMALS, ANIMALS)
