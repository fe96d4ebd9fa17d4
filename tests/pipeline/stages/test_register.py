"""The gate: which scores make a challenger the champion."""

import math
from dataclasses import asdict

import pytest

from fcn.labels import ClassTable
from fcn.nets import FCN, Blueprint
from fcn.weights import class_table, load_net, read_about, save_net
from pipeline.config.schema import TrackingSpec
from pipeline.results import Evaluation
from pipeline.stages.register import decide, enter, renamed
from pipeline.tracking.registry import open_registry


@pytest.mark.parametrize(
    ("champion", "challenger", "promote"),
    [
        (None, 0.1, True),
        (0.5, 0.5, True),
        (0.5, 0.6, True),
        (0.5, 0.4999, False),
        (None, math.nan, False),
        (0.5, math.nan, False),
    ],
)
def test_the_alias_moves_to_what_is_at_least_as_good(champion, challenger, promote) -> None:
    decision = decide(champion, challenger)
    assert decision.promote is promote
    assert decision.reason


def test_a_renamed_class_makes_another_version_with_the_new_name(tmp_path) -> None:
    old = ClassTable(("sky", "road"), ((0, 0, 0), (1, 1, 1)))
    new = ClassTable(("sky", "street"), ((0, 0, 0), (1, 1, 1)))
    save_net(tmp_path / "net", FCN(Blueprint("resnet18", 2, 32)), classes=asdict(old))
    registry = open_registry(TrackingSpec(), tmp_path / "mlflow")
    run_id = registry.tracking.open_run("flow", "key")
    facts = {"pixel_accuracy": 0.5, "mean_accuracy": 0.5, "mean_iu": 0.5}
    facts |= {"frequency_weighted_iu": 0.5, "class_iu": {"sky": 0.5, "street": 0.5}}
    scores = Evaluation(folder=tmp_path, split="val", num_images=2, **facts)
    versions = []
    for table in (old, old, new):
        with renamed(tmp_path / "net", table) as folder:
            versions.append(enter(registry, run_id, "demo", folder, scores))
    assert versions == [1, 1, 2]
    registered = registry.download_net("models:/demo/2")
    assert class_table(read_about(registered)) == new
    load_net(registered)
    assert class_table(read_about(tmp_path / "net")) == old
