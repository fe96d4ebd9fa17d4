"""Scores are over a whole split or are none."""

import numpy as np
import pytest

from pipeline.errors import TrainingError
from pipeline.stages import evaluate
from pipeline.training.evaluation import require_all_seen
from tests.conftest import tiny


def test_scores_over_some_of_the_images_are_void() -> None:
    with pytest.raises(TrainingError, match="59 images were counted in a split of 60"):
        require_all_seen(59, 60)


def test_pictures_of_samples_in_trees_lie_side_by_side(monkeypatch, tmp_path, tiny_shards) -> None:
    shards, wanted = tiny_shards["val"], tiny("evaluate.num_pictures=1")
    monkeypatch.setattr(evaluate, "load_net", lambda folder: None)
    monkeypatch.setattr(evaluate, "predict_at", lambda net, image, shape: np.zeros(shape, np.uint8))
    monkeypatch.setattr(evaluate, "set_threads", lambda number: None)
    monkeypatch.setattr(type(shards), "id", lambda self, row: "../frankfurt/000")
    evaluate.draw(wanted, tmp_path, shards, tmp_path)
    assert sorted(path.name for path in (tmp_path / "panels").iterdir()) == [
        "..-frankfurt-000.png",
        "..-frankfurt-000.prediction.png",
    ]
