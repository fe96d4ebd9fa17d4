"""Names in a file of weights to the names of a net; tests/recomputed holds the claim itself."""

import pytest
import torch
from torch import nn

from fcn.backbones import BACKBONES
from fcn.weight_names import match_names


def small() -> nn.Module:
    """Every layer has its own shapes, so the last parts of names leave one assignment."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)
    )


def test_one_tensor_of_another_shape_is_named() -> None:
    state = dict(BACKBONES["resnet18"].build().state_dict())
    state["layer1.0.conv1.weight"] = torch.zeros(64, 64, 5, 5)
    with pytest.raises(ValueError, match=r"layer1.0.conv1.weight is \(64, 64, 5, 5\)"):
        match_names(state, BACKBONES["resnet18"].build().state_dict(), "resnet18")


def test_batch_norms_vectors_are_told_apart_by_their_last_names_not_their_order() -> None:
    own = small().state_dict()
    theirs = {key: key.translate(str.maketrans("0123", "wzyx")) for key in own}
    foreign = {theirs[key]: tensor for key, tensor in reversed(own.items())}
    match = match_names(foreign, own, "small")
    assert match.names == {theirs[key]: key for key in own}
    assert "single assignment" in match.rule
    foreign = {f"x{key}": tensor for key, tensor in own.items()}
    foreign["x1.gamma"] = foreign.pop("x1.weight")
    with pytest.raises(ValueError, match=r"parts .* differ, first at 'x1'"):
        match_names(foreign, own, "small")


def test_a_common_prefix_is_taken_off() -> None:
    own = small().state_dict()
    match = match_names({f"module.{key}": tensor for key, tensor in own.items()}, own, "small")
    assert match.names == {f"module.{key}": key for key in own}
    assert "module." in match.rule


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.weight": "9.weight"}, "9.weight is not in the net"),
        ({"0.weight": "2.weight"}, "2.weight has 2 sources"),
        ({"nothing": "0.weight"}, "nothing is not in the file"),
        ({"1.bias": "3.bias", "3.bias": "1.bias"}, r"1.bias is \(4,\), 3.bias is \(5,\)"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(change, message) -> None:
    own = small().state_dict()
    with pytest.raises(ValueError, match=message):
        match_names(own, own, "small", given={key: key for key in own} | change)


def test_a_map_may_leave_out_tensors_that_the_net_lacks() -> None:
    own = small().state_dict()
    match = match_names(
        own | {"ema": torch.zeros(1)}, own, "small", given={key: key for key in own}
    )
    assert match.names == {key: key for key in own}
