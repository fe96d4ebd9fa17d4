"""Weights in the layout of the reference code: such a file gives the scores that it should."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from fcn.backbones import BACKBONES, CAFFE
from fcn.nets import FCN, Blueprint
from fcn.original import CONVS, UPSCORES, is_original, transplant_original
from fcn.transplant import transplant_classifier
from fcn.upsample import bilinear_kernel
from fcn.weights import read_weights
from tests.narrow import FC, narrow_backbones, randomised

K = 3


@pytest.fixture(autouse=True)
def narrow(monkeypatch) -> None:
    for name, classifier in narrow_backbones().items():
        monkeypatch.setitem(BACKBONES, name, classifier)


def net(stride: int = 8, **options) -> FCN:
    options = {"preprocessing": CAFFE, "border": "paper", **options}
    return FCN(Blueprint("vgg16", K, stride, **options)).eval()


def reference_file(stride: int) -> dict[str, torch.Tensor]:
    """conv1_1 ... fc7 of a random VGG16 of torchvision's layers, scores, bilinear upsampling."""
    torch.manual_seed(0)
    classifier = BACKBONES["vgg16"].build()
    tensors = list(classifier.state_dict().values())
    for tensor in tensors:
        fan_in = tensor[0].numel() if tensor.ndim > 1 else 4
        tensor.normal_(std=(2 / fan_in) ** 0.5)
    names = [*CONVS["vgg16"], "fc6", "fc7"]
    state = {
        f"{name}.{part}": tensors[2 * i + j]
        for i, name in enumerate(names)
        for j, part in enumerate(("weight", "bias"))
    }
    state["fc6.weight"] = state["fc6.weight"].view(FC, 7, 7, 7)
    state["fc7.weight"] = state["fc7.weight"].view(FC, FC, 1, 1)
    for name, channels in (("score_fr", FC), ("score_pool4", 7), ("score_pool3", 6)):
        state[f"{name}.weight"] = torch.randn(K, channels, 1, 1)
        state[f"{name}.bias"] = torch.randn(K)
    for name, size in zip(
        UPSCORES[stride], {32: [64], 16: [4, 32], 8: [4, 4, 16]}[stride], strict=True
    ):
        state[f"{name}.weight"] = torch.eye(K)[..., None, None] * bilinear_kernel(size)
    if stride > 8:
        del state["score_pool3.weight"], state["score_pool3.bias"]
    if stride > 16:
        del state["score_pool4.weight"], state["score_pool4.bias"]
    return state


def reference_fcn32s(state: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
    """The reference net, layer by layer: pad 100, pools that round up, crop 19."""
    x = image.flip(1).float() - torch.tensor(CAFFE.mean).view(1, 3, 1, 1)
    for name in CONVS["vgg16"]:
        padding = 100 if name == "conv1_1" else 1
        x = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=padding).relu()
        if name in ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3"):
            x = F.max_pool2d(x, 2, 2, ceil_mode=True)
    for name in ("fc6", "fc7"):
        x = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"]).relu()
    x = F.conv2d(x, state["score_fr.weight"], state["score_fr.bias"])
    x = F.conv_transpose2d(x, state["upscore.weight"], stride=32)
    return x[..., 19 : 19 + image.shape[2], 19 : 19 + image.shape[3]]


def picture() -> torch.Tensor:
    return torch.randint(0, 256, (1, 3, 33, 47), dtype=torch.uint8)


@pytest.mark.parametrize("upscore", ["fixed", "dense"])
@torch.inference_mode()
def test_the_reference_nets_file_gives_the_reference_nets_scores(upscore) -> None:
    state, mine, image = reference_file(32), net(32, upscore=upscore), picture()
    receipt = transplant_original(mine, state, "file")
    expected = reference_fcn32s(state, image)
    assert (mine(image) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert receipt.count("copied") == len(state) - (upscore == "fixed")
    assert receipt.matched_by == "the names of the reference code"


@torch.inference_mode()
def test_scores_equal_those_after_a_transplant_of_the_same_torchvision_vgg16() -> None:
    state = reference_file(8)
    classifier = BACKBONES["vgg16"].build()
    flat = [t for k, t in state.items() if k.startswith(("conv", "fc"))]
    own = dict(classifier.state_dict())
    for (key, tensor), given in zip(list(own.items())[: len(flat)], flat, strict=True):
        own[key] = given.reshape(tensor.shape)
    theirs, ours, image = net(), net(), picture()
    transplant_classifier(theirs, own, "torchvision")
    transplant_original(ours, state, "file")
    theirs.score.load_state_dict(ours.score.state_dict())
    assert ours(image).any()
    assert torch.equal(ours(image), theirs(image))


def test_every_format_and_way_of_naming_is_read(tmp_path) -> None:
    state, mine = reference_file(16), net(16)
    numbered = {
        k.replace(".weight", "/0").replace(".bias", "/1"): v.numpy() for k, v in state.items()
    }
    numbered["fc6/0"] = numbered["fc6/0"].reshape(FC, -1)  # as Caffe's classifier
    numbered["conv1_1/1"] = numbered["conv1_1/1"].reshape(1, 1, 1, -1)  # as old Caffe
    np.savez(tmp_path / "a.npz", **numbered)
    torch.save({"epoch": 3, "model_state_dict": state}, tmp_path / "b.pth")
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "c.safetensors")
    for name in ("a.npz", "b.pth", "c.safetensors"):
        read = read_weights(tmp_path / name)
        assert is_original(read)
        transplant_original(mine, read, name)
        assert torch.equal(mine.score["16"].bias, state["score_pool4.bias"])
        assert torch.equal(mine.backbone.head[1].weight, state["fc6.weight"])


def test_arrays_that_are_pickles_are_not_opened(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"a\.npz is not a readable weights file"):
        read_weights(tmp_path / "a.npz")


def test_scores_of_other_classes_stay_at_zero_and_the_receipt_says_so() -> None:
    other = FCN(Blueprint("vgg16", K + 1, 32, preprocessing=CAFFE)).eval()
    receipt = transplant_original(other, reference_file(32), "file")
    assert not other.score["32"].weight.any()
    fates = {e.source or e.target: e.fate for e in receipt.entries}
    assert fates["score_fr.weight"] == "dropped"
    assert fates["score.32.weight"] == "initialised"


def test_what_does_not_fit_is_refused_with_the_remedy() -> None:
    state = reference_file(32)
    with pytest.raises(ValueError, match=r"set transplant\.preprocessing=caffe"):
        transplant_original(net(32, preprocessing=None), state, "file")
    with pytest.raises(ValueError, match=r"set net\.backbone=vgg16"):
        transplant_original(FCN(Blueprint("resnet18", K, 32)), state, "file")
    learned = {**state, "upscore.weight": state["upscore.weight"] + 0.01}
    with pytest.raises(ValueError, match=r"set net\.upscore=dense"):
        transplant_original(net(32), learned, "file")
    with pytest.raises(ValueError, match=r"lacks fc7\.weight \(1 in all\)"):
        transplant_original(net(32), {k: v for k, v in state.items() if k != "fc7.weight"}, "file")
    with pytest.raises(ValueError, match=r"holds extra\.weight, which the net has no place for"):
        transplant_original(net(32), {**state, "extra.weight": torch.zeros(1)}, "file")


def test_torchvisions_own_names_are_not_the_references() -> None:
    assert not is_original(BACKBONES["vgg16"].build().state_dict())


def test_fcn_alexnet_of_the_reference_goes_into_caffenet() -> None:
    caffenet = FCN(Blueprint("caffenet", K, 32, border="paper", preprocessing=CAFFE))
    donor = randomised(FCN(Blueprint("caffenet", K, 32, border="paper", preprocessing=CAFFE)))
    names = [*CONVS["caffenet"], "fc6", "fc7", "score_fr"]
    tensors = list(donor.state_dict().values())
    state = {f"{n}/{j}": tensors[2 * i + j] for i, n in enumerate(names) for j in (0, 1)}
    state["upscore/0"] = torch.eye(K)[..., None, None] * bilinear_kernel(63)
    transplant_original(caffenet, state, "file")
    image = picture()
    with torch.inference_mode():
        assert torch.equal(caffenet(image), donor(image))
