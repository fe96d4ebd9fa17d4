"""Scores are over a whole split or are none."""

import pytest

from pipeline.errors import TrainingError
from pipeline.training.evaluation import require_all_seen


def test_scores_over_some_of_the_images_are_void() -> None:
    with pytest.raises(TrainingError, match="59 images were counted in a split of 60"):
        require_all_seen(59, 60)
