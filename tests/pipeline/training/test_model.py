"""A net starts from its seed, or from all that fits of the net before."""

import pytest
import torch

from fcn.nets import FCN, Blueprint
from fcn.weights import save_net
from pipeline.errors import RecipeError, WeightsError
from pipeline.training.model import require_normalisable, start_net
from tests.conftest import tiny

RESNET = ("net.backbone=resnet18", "net.stride=16")


def test_staged_training_hands_on_all_that_fits(tmp_path) -> None:
    phases = (
        "finetune.epochs=null",
        "finetune.phases=[{stride: 32, epochs: 1}, {stride: 16, epochs: 1}]",
    )
    recipe = tiny(*RESNET, *phases)
    coarse = FCN(Blueprint("resnet18", 5, 32))
    torch.nn.init.normal_(coarse.score["32"].weight)
    save_net(tmp_path, coarse)
    fine = start_net(recipe, 16, tmp_path)
    assert torch.equal(fine.score["32"].weight, coarse.score["32"].weight)
    assert not fine.score["16"].weight.any()
    with pytest.raises(WeightsError, match=r"lacks backbone\.trunk"):
        start_net(tiny("net.backbone=alexnet"), 32, tmp_path)


@pytest.mark.parametrize(
    ("num_train", "crop", "refused"), [(5, 32, True), (6, 32, False), (5, 64, False)]
)
def test_one_value_to_normalise_is_refused_with_the_arithmetic(num_train, crop, refused) -> None:
    recipe = tiny(
        *RESNET,
        f"finetune.augment.crop_px=[{crop}, {crop}]",
        *("finetune.batch_norm=micro", "finetune.global_batch=4", "finetune.micro_batch=2"),
    )
    if not refused:
        require_normalisable(recipe, num_train)
        return
    with pytest.raises(RecipeError, match=r"has 1 image, .*32x32 px .* 1x1 .*crop_px") as caught:
        require_normalisable(recipe, num_train)
    assert "batch_norm=frozen" in str(caught.value)


def test_scratch_starts_from_the_seed() -> None:
    recipe = tiny(*RESNET, "finetune.init=scratch")
    one, two = start_net(recipe, 16, None), start_net(recipe, 16, None)
    other = start_net(tiny(*RESNET, "finetune.init=scratch", "seed=1"), 16, None)
    key = "backbone.trunk.8.0.weight"
    assert torch.equal(one.state_dict()[key], two.state_dict()[key])
    assert not torch.equal(one.state_dict()[key], other.state_dict()[key])
