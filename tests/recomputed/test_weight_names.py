"""Claim: weights under foreign names go in rightly, or they are refused.

What a transplant did is recomputed by running the trunk of the classifier, as torchvision built it,
beside the net's. The receipt's own proof cannot see a wrong assignment: both its sides follow it.
"""

import pytest
import torch
from torch import Tensor, nn

from fcn.backbones import BACKBONES
from fcn.nets import FCN, Blueprint
from fcn.transplant import transplant_classifier
from tests.narrow import narrow_backbones

PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def trained_resnet18() -> nn.Module:
    """Random weights, and batch normalisation whose four vectors all differ."""
    torch.manual_seed(0)
    net = BACKBONES["resnet18"].build()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.uniform_(0.5, 1.5)
    return net.eval()


def foreign(state: dict[str, Tensor], order: tuple[str, ...] = PARTS) -> dict[str, Tensor]:
    """Layers called layer000, layer001 ...; the tensors of a layer in the given order."""
    layers = list(dict.fromkeys(key.rpartition(".")[0] for key in state))
    return {
        f"layer{i:03}.{part}": state[f"{layer}.{part}"]
        for i, layer in enumerate(layers)
        for part in order
        if f"{layer}.{part}" in state
    }


def features_differ_by(net: FCN, trunk: nn.Module) -> float:
    """Greatest difference of the coarsest trunk maps, over the greatest value."""
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        y = x
        for layers in net.eval().backbone.trunk.values():
            y = layers(y)
        expected = trunk(x)
    return float((y - expected).abs().max() / expected.abs().max())


def resnet_trunk(net: nn.Module) -> nn.Module:
    return nn.Sequential(*list(net.children())[:-2])


def test_the_nets_own_names_go_in_rightly_in_any_order_and_after_a_prefix() -> None:
    classifier = trained_resnet18()
    state = classifier.state_dict()
    for given in (dict(reversed(state.items())), {f"module.{k}": v for k, v in state.items()}):
        net = FCN(Blueprint("resnet18", 3, 32))
        transplant_classifier(net, given, "file")
        assert features_differ_by(net, resnet_trunk(classifier)) < 1e-6


@pytest.mark.parametrize(
    "order",
    [
        ("bias", "weight", "running_mean", "running_var", "num_batches_tracked"),
        ("weight", "running_mean", "bias", "running_var", "num_batches_tracked"),
        PARTS,
    ],
)
def test_equally_shaped_layers_under_meaningless_names_are_refused(order) -> None:
    """Nothing shows that layer006 is not layer008; the remedy is a map, and with it they go in."""
    classifier = trained_resnet18()
    state = foreign(classifier.state_dict(), order)
    with pytest.raises(ValueError, match=r"'layer00\d' and 'layer\d\d\d' .*transplant\.names"):
        transplant_classifier(FCN(Blueprint("resnet18", 3, 32)), state, "file")
    at = {tensor.data_ptr(): key for key, tensor in classifier.state_dict().items()}
    names = {key: at[tensor.data_ptr()] for key, tensor in state.items()}
    net = FCN(Blueprint("resnet18", 3, 32))
    receipt = transplant_classifier(net, state, "file", names)
    assert features_differ_by(net, resnet_trunk(classifier)) < 1e-6
    assert "user" in receipt.matched_by


def test_two_swapped_layers_are_refused() -> None:
    state = trained_resnet18().state_dict()
    for part in ("weight",):
        one, two = f"layer1.0.conv1.{part}", f"layer1.1.conv1.{part}"
        state[one], state[two] = state[two], state[one]
    with pytest.raises(ValueError, match="same shapes"):
        transplant_classifier(FCN(Blueprint("resnet18", 3, 32)), foreign(state), "file")


def test_names_without_parts_are_refused() -> None:
    """Batch normalisation's vectors have one shape: their order alone says which is which."""
    state = trained_resnet18().state_dict()
    for given in (state.values(), reversed(state.values())):
        numbered = {f"t{i}": tensor for i, tensor in enumerate(given)}
        with pytest.raises(ValueError, match=r"parts .* differ, first at .*transplant\.names"):
            transplant_classifier(FCN(Blueprint("resnet18", 3, 32)), numbered, "file")


def test_layers_of_unlike_shapes_have_one_assignment_and_go_in_rightly(monkeypatch) -> None:
    """AlexNet's layers all differ in shape, so names that mean nothing still leave one way only."""
    classifier = BACKBONES["alexnet"].build().eval()
    state = foreign(classifier.state_dict(), ("bias", "weight"))
    net = FCN(Blueprint("alexnet", 3, 32))
    receipt = transplant_classifier(net, dict(reversed(state.items())), "file")
    assert features_differ_by(net, classifier.features) < 1e-6
    assert "single assignment" in receipt.matched_by
    # Two of the narrow VGG16's layers have one shape, as in the wide one: refused.
    monkeypatch.setitem(BACKBONES, "vgg16", narrow_backbones()["vgg16"])
    vgg = foreign(BACKBONES["vgg16"].build().state_dict())
    with pytest.raises(ValueError, match="same shapes"):
        transplant_classifier(FCN(Blueprint("vgg16", 3, 32)), vgg, "file")
