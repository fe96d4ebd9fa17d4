"""A file with foreign names is transplanted by the map that the recipe gives, or not at all."""

import json

import pytest
import torch

from fcn.backbones import BACKBONES
from pipeline.errors import WeightsError
from pipeline.results import RECEIPT
from pipeline.stages import transplant
from pipeline.storage.store import Store
from tests.conftest import tiny

RESNET = ("net.backbone=resnet18", "net.stride=16")


def test_the_recipes_map_of_names_is_followed_and_named_in_the_receipt(tmp_path) -> None:
    state = BACKBONES["resnet18"].build().state_dict()
    names = {f"t{i}": key for i, key in enumerate(state)}
    path = tmp_path / "foreign.pth"
    torch.save({theirs: state[ours] for theirs, ours in names.items()}, path)
    recipe = [*RESNET, f"transplant.weights={path}"]
    with pytest.raises(WeightsError, match=r"foreign\.pth: .*transplant\.names"):
        transplant.run(tiny(*recipe), Store(tmp_path), "key")
    mapped = tiny(*recipe, f"transplant.names={json.dumps(names)}")
    done = transplant.run(mapped, Store(tmp_path), "key")
    receipt = json.loads((done.folder / RECEIPT).read_text())
    assert (done.copied, done.dropped) == (120, 2)
    assert "user" in receipt["matched_by"]
    assert len(receipt["does_not_cover"]) == 2


def test_a_map_is_refused_where_the_names_are_known(tmp_path) -> None:
    recipe = tiny("transplant.names={a: b}")  # the demo takes its weights from the package
    with pytest.raises(WeightsError, match=r"transplant\.names is for a file"):
        transplant.run(recipe, Store(tmp_path), "key")
