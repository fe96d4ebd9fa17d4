"""Scores are over a whole split or are none."""

import numpy as np
import pytest

from fcn.nets import FCN
from fcn.weights import NET, save_net
from pipeline.data.loader import eval_batches
from pipeline.errors import TrainingError, WeightsError
from pipeline.stages.evaluate import score_net
from pipeline.training.distributed import DistContext
from pipeline.training.evaluation import count_errors, require_all_seen
from pipeline.training.model import blueprint
from tests.conftest import tiny


@pytest.mark.ray
def test_any_net_is_scored_by_tasks_as_it_is_in_one_process(
    local_ray, tiny_shards, tmp_path
) -> None:
    recipe = tiny("net.backbone=resnet18", "finetune.init=scratch")
    net = FCN(blueprint(recipe, 32))
    save_net(tmp_path / "net", net)
    alone, _ = count_errors(
        net.eval(), eval_batches(tiny_shards["val"], range(7), 2, 0), DistContext()
    )
    found = score_net(recipe, tmp_path / "net", tiny_shards["val"])
    assert found == alone.scores().summary()["mean_iu"]


@pytest.mark.ray
def test_a_net_that_is_not_what_was_written_is_not_scored(local_ray, tiny_shards, tmp_path) -> None:
    recipe = tiny("net.backbone=resnet18", "finetune.init=scratch")
    save_net(tmp_path / "net", FCN(blueprint(recipe, 32)))
    weights = tmp_path / "net" / NET
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(WeightsError, match=r"sha256 differs.*same command makes it again"):
        score_net(recipe, tmp_path / "net", tiny_shards["val"])


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
