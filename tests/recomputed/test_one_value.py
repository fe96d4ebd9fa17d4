"""What is refused as one value to normalise is what torch itself cannot train, and nothing else."""

import pytest
import torch
from torchvision.models import resnet18

from pipeline.errors import RecipeError
from pipeline.training.model import require_normalisable
from tests.conftest import tiny


def torch_trains(images: int, crop_px: int) -> bool:
    """Whether torchvision's own net takes such a micro-batch in training mode."""
    try:
        resnet18().train().layer4(torch.zeros(images, 256, -(-crop_px // 16), -(-crop_px // 16)))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        return False
    return True


@pytest.mark.parametrize("crop_px", [32, 33, 64])
@pytest.mark.parametrize(("num_train", "smallest"), [(4, 2), (5, 1), (6, 2), (7, 1)])
def test_the_smallest_micro_batch_decides(num_train, smallest, crop_px) -> None:
    batches = [min(4, num_train - start) for start in range(0, num_train, 4)]
    parts = [min(2, batch - start) for batch in batches for start in range(0, batch, 2)]
    assert min(parts) == smallest
    recipe = tiny(
        *("net.backbone=resnet18", "net.stride=32", "finetune.batch_norm=micro"),
        *("finetune.global_batch=4", "finetune.micro_batch=2"),
        f"finetune.augment.crop_px=[{crop_px}, {crop_px}]",
    )
    if torch_trains(smallest, crop_px):
        require_normalisable(recipe, num_train)
    else:
        with pytest.raises(RecipeError, match="more than one value a channel"):
            require_normalisable(recipe, num_train)
