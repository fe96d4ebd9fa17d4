"""EfficientNet-Lite0, and the names in the file of its weights."""

import torch

from fcn.efficientnet import EfficientNetLite0, package_names
from fcn.nets import FCN, Blueprint
from fcn.transplant import transplant_classifier
from fcn.weights import read_weights


def test_every_tensor_has_one_name_in_the_package() -> None:
    net, names = EfficientNetLite0().eval(), package_names()
    assert sorted(names.values()) == sorted(net.state_dict())
    assert len(names) == 296
    assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_the_package_holds_working_imagenet_weights() -> None:
    from pipeline.training.pretrained import package_file

    net = FCN(Blueprint("efficientnet_lite0", 3, 8))
    receipt = transplant_classifier(net, read_weights(package_file()), "package")
    assert (receipt.count("copied"), receipt.count("dropped")) == (294, 2)
    assert receipt.max_difference < 1e-5
    assert receipt.matched_by == "the names of a known file"


def test_the_packages_names_may_lie_in_any_order() -> None:
    """The names decide, not the order: batch norm's bias before its weight changes nothing."""
    from pipeline.training.pretrained import package_file

    state = read_weights(package_file())
    arrived = []
    for given in (state, dict(sorted(state.items(), reverse=True))):
        net = FCN(Blueprint("efficientnet_lite0", 3, 8))
        transplant_classifier(net, given, "package")
        arrived.append(net.backbone.state_dict())
    assert all(torch.equal(arrived[0][key], arrived[1][key]) for key in arrived[0])
