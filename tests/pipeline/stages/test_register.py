"""The gate: which scores make a challenger the champion, and that no promotion is lost."""

import math
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from fcn.labels import ClassTable
from fcn.nets import FCN, Blueprint
from fcn.weights import class_table, load_net, read_about, save_net
from pipeline.config.schema import TrackingSpec
from pipeline.errors import TrackingError
from pipeline.results import Evaluation
from pipeline.stages.register import Gate, decide, enter, renamed
from pipeline.tracking.registry import ModelRegistry, open_registry
from pipeline.training.model import blueprint
from tests.conftest import tiny

NAMES = ("sky", "road", "tree")


@pytest.mark.parametrize(
    ("champion", "challenger", "promote"),
    [
        (None, 0.1, True),
        (0.5, 0.5, True),
        (0.5, 0.6, True),
        (0.5, 0.4999, False),
        (math.nan, 0.1, True),
        (None, math.nan, False),
        (0.5, math.nan, False),
    ],
)
def test_the_alias_moves_to_what_is_at_least_as_good(champion, challenger, promote) -> None:
    decision = decide(champion, challenger)
    assert decision.promote is promote
    assert decision.reason


def scored(mean_iu: float = 0.5, names: tuple[str, ...] = NAMES, **changes: object) -> Evaluation:
    facts = {
        "folder": Path(),
        "split": "val",
        "num_images": 60,
        "pixel_accuracy": 0.5,
        "mean_accuracy": 0.5,
        "mean_iu": mean_iu,
        "frequency_weighted_iu": 0.5,
        "class_iu": dict.fromkeys(names, 0.5),
        "data_digest": "d1",
        "classes_seen": len(names),
        "absent": [],
    }
    return Evaluation.model_validate(facts | changes)


@dataclass
class FakeRegistry:
    """A registry with one champion, version 1, whose net lies in a folder."""

    folder: Path | None
    champions: list[tuple[int, dict[str, str]] | None]
    moved: list[int] = field(default_factory=list)

    def champion(self, name: str) -> tuple[int, dict[str, str]] | None:
        return self.champions[0]

    def move_alias(self, name: str, version: int, expected: int | None) -> bool:
        if len(self.champions) > 1:  # somebody else was faster
            self.champions.pop(0)
            return False
        self.moved.append(version)
        return True

    def download_net(self, uri: str) -> Path:
        if self.folder is None:
            raise TrackingError(f"{uri} cannot be downloaded")
        return self.folder

    def note_verdict(self, name: str, version: int, reason: str) -> None:
        assert reason


def net_folder(folder: Path, names: tuple[str, ...] = NAMES) -> Path:
    recipe = tiny("net.backbone=resnet18", "finetune.init=scratch")
    table = asdict(ClassTable(names, tuple((i, i, i) for i in range(len(names)))))
    save_net(folder, FCN(blueprint(recipe, 32)), classes=table)
    return folder


def gate(folder: Path | None, *champions: Evaluation, rescored: float = 0.9) -> Gate:
    known = [(1, {"mean_iu": repr(c.mean_iu), **c.measured_on()}) for c in champions]
    return Gate(FakeRegistry(folder, known), "m", lambda folder: rescored)


@pytest.mark.parametrize("other", [{"split": "train"}, {"data_digest": "d2"}])
def test_a_champion_of_other_images_is_scored_anew_before_it_is_compared(tmp_path, other) -> None:
    folder = net_folder(tmp_path / "net")
    worse = gate(folder, scored(0.1, **other), rescored=0.6).judge(2, scored(0.5))
    assert not worse.champion
    assert "0.5000 < champion's 0.6000" in worse.reason
    assert "models:/m/1 scored anew" in worse.reason
    better = gate(folder, scored(0.99, **other), rescored=0.4).judge(2, scored(0.5))
    assert better.champion


def test_on_the_same_images_the_score_that_is_known_counts() -> None:
    assert gate(None, scored(0.4)).judge(2, scored(0.5)).champion
    assert not gate(None, scored(0.6)).judge(2, scored(0.5)).champion


def test_models_of_other_classes_are_not_compared_and_the_alias_stays(tmp_path) -> None:
    folder = net_folder(tmp_path / "net")
    kept = gate(folder, scored(0.1)).judge(2, scored(1.0, ("sky", "road")))
    assert not kept.champion
    for word in ("not comparable with models:/m/1", "3 (sky, road, tree)", "register.model"):
        assert word in kept.reason


def test_a_champion_whose_net_cannot_be_had_keeps_the_alias() -> None:
    kept = gate(None, scored(0.1, data_digest="d2")).judge(2, scored(0.9))
    assert not kept.champion
    assert "cannot be downloaded" in kept.reason
    assert "the alias stays" in kept.reason


@pytest.mark.parametrize("seen", [0, 1])
def test_a_score_over_less_than_two_classes_takes_no_alias(seen) -> None:
    empty = Gate(FakeRegistry(None, [None]), "m", lambda folder: 0.0)
    refused = empty.judge(1, scored(1.0, classes_seen=seen))
    assert not refused.champion
    assert f"{seen} of the classes" in refused.reason


def test_whoever_was_overtaken_decides_again_against_the_new_champion() -> None:
    lost = gate(None, scored(0.4), scored(0.7)).judge(2, scored(0.5))
    assert not lost.champion
    assert "champion's 0.7000" in lost.reason


def test_of_many_promotions_at_once_the_best_is_champion(tmp_path) -> None:
    """On a real registry; all of them have seen that there is no champion before any goes on."""
    registry, folder = open_registry(TrackingSpec(), tmp_path), net_folder(tmp_path / "net")
    run, scores = registry.tracking.open_run("flow", "key"), (0.3, 0.8, 0.5, 0.7)
    versions = {iu: enter(registry, run, "m", folder, scored(iu)) for iu in scores}
    barrier = threading.Barrier(len(scores))

    class Late(ModelRegistry):
        waited = False

        def champion(self, name):
            found = super().champion(name)
            if not self.waited:
                self.waited = True
                barrier.wait(60)
            return found

    def promote(iu: float) -> None:
        Gate(Late(registry.tracking), "m", lambda folder: 0.0).judge(versions[iu], scored(iu))

    threads = [threading.Thread(target=promote, args=(iu,)) for iu in scores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    champion = registry.champion("m")
    assert champion is not None
    assert champion[0] == versions[0.8]
    verdict = registry.client.get_model_version("m", str(versions[0.8])).tags["gate"]
    assert "0.8000" in verdict


def test_a_renamed_class_makes_another_version_with_the_new_name(tmp_path) -> None:
    old = ClassTable(("sky", "road"), ((0, 0, 0), (1, 1, 1)))
    new = ClassTable(("sky", "street"), ((0, 0, 0), (1, 1, 1)))
    save_net(tmp_path / "net", FCN(Blueprint("resnet18", 2, 32)), classes=asdict(old))
    registry = open_registry(TrackingSpec(), tmp_path / "mlflow")
    run_id = registry.tracking.open_run("flow", "key")
    versions = []
    for table in (old, old, new):
        with renamed(tmp_path / "net", table) as folder:
            versions.append(enter(registry, run_id, "demo", folder, scored(0.5, table.names)))
    assert versions == [1, 1, 2]
    registered = registry.download_net("models:/demo/2")
    assert class_table(read_about(registered)) == new
    load_net(registered)
    assert class_table(read_about(tmp_path / "net")) == old
