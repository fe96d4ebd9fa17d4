"""A plan says what each step needs and whether it fits, and starts no Ray."""

import os
from pathlib import Path

import pytest

from pipeline import cluster
from pipeline.config.recipe import load_recipe
from pipeline.errors import ClusterError
from pipeline.flow import Report
from pipeline.ops import plan
from pipeline.results import Doubt, Evaluation
from tests.conftest import a_dataset, tiny


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No Ray is within reach unless a test says so, and nothing is remembered from another test."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    plan._fit.cache_clear()
    yield
    plan._fit.cache_clear()


def needs(folder: Path, *overrides: str) -> str:
    rows = plan.plan_rows(tiny(f"store={folder}/store", *overrides))
    return next(row[-1] for row in rows if row[0] == "finetune-8s")


def test_a_plan_counts_the_workers_that_this_machine_holds_and_starts_no_ray(tmp_path) -> None:
    import ray

    cpus = os.cpu_count()
    text = needs(tmp_path, "cluster.num_workers=1")
    assert "1 workers x 1 CPU" in text
    assert f"this machine holds {cpus} at a time" in text
    assert "refused" not in text
    assert f"holds {cpus} at a time: the run would be refused" in needs(
        tmp_path, f"cluster.num_workers={cpus + 1}"
    )
    assert "the run would wait" in needs(
        tmp_path, f"cluster.num_workers={cpus + 1}", "cluster.autoscaling=true"
    )
    assert "holds" not in needs(tmp_path, "cluster.use_gpu=true")
    assert not ray.is_initialized()
    assert not (tmp_path / "store").exists()


def test_a_plan_counts_on_the_cluster_that_is_there_and_says_if_there_is_none(
    tmp_path, monkeypatch
) -> None:
    nodes = [{"CPU": 1.0}, {"CPU": 1.0}]
    monkeypatch.setattr(cluster, "reachable_nodes", lambda spec: nodes)
    text = needs(tmp_path, "cluster.cpus_per_worker=2")
    assert "the cluster holds 0 at a time: the run would be refused" in text

    def away(spec):
        raise ClusterError("no Ray at 10.0.0.1:6379")

    monkeypatch.setattr(cluster, "reachable_nodes", away)
    assert "no Ray at 10.0.0.1:6379" in needs(tmp_path)


def test_only_a_ray_that_is_there_already_is_joined(monkeypatch) -> None:
    spec = tiny().cluster
    assert cluster.reachable_nodes(spec) is None
    assert cluster.reachable_nodes(spec.model_copy(update={"address": "local"})) is None


def test_a_checkpoint_s_bytes_grow_with_the_moments_of_the_optimiser() -> None:
    sgd, adamw = (tiny(f"finetune.optimizer.kind={kind}") for kind in ("sgd", "adamw"))
    three, four = (plan.state_bytes(recipe, recipe.phases[0]) for recipe in (sgd, adamw))
    assert three * 4 == four * 3 > 0


def test_a_train_split_without_a_whole_pair_is_planned_without_a_number_of_steps(
    folder_recipe, tmp_path
) -> None:
    for label in (tmp_path / "data" / "trainannot").iterdir():
        label.rename(label.with_stem(f"other-{label.stem}"))
    recipe = load_recipe(str(folder_recipe), [f"store={tmp_path}/store"])
    [needs] = [row[4] for row in plan.plan_rows(recipe) if row[0].startswith("finetune")]
    assert "1 epochs" in needs
    assert "steps of" not in needs


def test_the_last_lines_name_the_data_report_its_doubts_and_classes_without_truth() -> None:
    doubts = [Doubt(level="warning", text="a"), Doubt(level="note", text="b")]
    scores = Evaluation(
        folder=Path("scores"),
        split="val",
        num_images=2,
        pixel_accuracy=0.5,
        mean_accuracy=0.5,
        mean_iu=0.25,
        frequency_weighted_iu=0.5,
        class_iu={"sky": 0.5, "[b]": 0.0, "tree": None},
        data_digest="d",
        classes_seen=1,
        absent=["[b]", "tree"],
    )
    report = Report(results={"ingest": a_dataset(doubts=doubts), "evaluate": scores})
    text = "\n".join(plan.closing_lines(report))
    assert "data report      data/report.html, 1 doubt\n" in text
    assert "not in the split \\[b] (predicted, so its IU is 0), tree\n" in text
