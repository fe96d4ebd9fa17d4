"""Scores are over a whole split or are none."""

import pytest

from fcn.nets import FCN
from fcn.weights import NET, save_net
from pipeline.data.loader import eval_batches
from pipeline.errors import TrainingError, WeightsError
from pipeline.stages.evaluate import file_name, score_net
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


def test_pictures_of_samples_in_trees_have_names_of_their_own() -> None:
    samples = ["a", "x/a", "x_a", "../a", "x/" * 200 + "a", "y/" * 200 + "a"]
    names = [file_name(sample) for sample in samples]
    assert len(set(names)) == len(samples)
    assert all("/" not in name and len(name.encode()) <= 200 for name in names)
    assert names[0] == "a"
