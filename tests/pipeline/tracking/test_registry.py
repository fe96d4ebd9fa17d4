"""A real MLflow registry: versions, aliases that move, models that are missing."""

import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from fcn.nets import FCN
from fcn.weights import save_net
from pipeline.config.schema import TrackingSpec
from pipeline.errors import TrackingError
from pipeline.tracking.registry import ModelRegistry, open_registry
from pipeline.training.model import blueprint
from tests.conftest import tiny


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Path:
    recipe, folder = tiny("net.backbone=resnet18"), tmp_path_factory.mktemp("nets") / "0123"
    folder.mkdir()
    table = asdict(recipe.data.class_table())
    save_net(folder, FCN(blueprint(recipe, 32)), classes=table, recipe=recipe.name)
    return folder


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> ModelRegistry:
    return open_registry(TrackingSpec(), tmp_path_factory.mktemp("mlflow"))


@pytest.fixture(scope="module")
def version(registry, net) -> int:
    run = registry.tracking.open_run("flow", "key")
    return registry.register(run, "demo", net, {"weights_sha256": "abc", "mean_iu": "0.5"})


def test_a_version_is_found_again_by_its_tags_alone(registry, version) -> None:
    assert registry.version_with("demo", {"weights_sha256": "abc"}) == version
    assert registry.version_with("demo", {"weights_sha256": "abc", "mean_iu": "0.6"}) is None
    assert registry.version_with("nobody", {}) is None


def test_a_version_is_there_if_its_weights_are(registry, version, net) -> None:
    assert registry.has("demo", version)
    assert registry.has("demo", version, "abc")
    assert not registry.has("demo", version, "other weights")
    assert not registry.has("demo", 99)
    assert not registry.has("nobody", 1)
    run = registry.tracking.open_run("flow", "lost")
    lost = registry.register(run, "lost", net, {"weights_sha256": "abc"})
    model = registry.client.get_model_version("lost", str(lost)).source.rpartition("/")[2]
    store = Path(registry.tracking.uri.removeprefix("sqlite:///")).parent
    shutil.rmtree(store / "mlruns" / "models" / model)
    assert not registry.has("lost", lost)
    assert registry.version_with("lost", {"weights_sha256": "abc"}) is None
    assert registry.has("demo", version)


def test_aliases_move_each_by_itself_with_the_evidence_on_the_version(registry, version) -> None:
    assert registry.champion("demo") is None
    registry.name_challenger("demo", version)
    assert registry.champion("demo") is None
    assert registry.move_alias("demo", version, expected=None)
    registry.note_verdict("demo", version, "better")
    assert not registry.move_alias("demo", version, expected=None)
    number, tags = registry.champion("demo")
    assert (number, tags["gate"], tags["mean_iu"]) == (version, "better", "0.5")
    for name in ("@champion", "@challenger", "/1"):
        assert registry.resolve(f"models:/demo{name}") == f"models:/demo/{version} abc"


def test_the_net_comes_back_as_it_was_registered(registry, version, net) -> None:
    folder = registry.download_net(f"models:/demo/{version}")
    assert {p.name for p in folder.iterdir()} == {p.name for p in net.iterdir()}
    assert all((folder / p.name).read_bytes() == p.read_bytes() for p in net.iterdir())


@pytest.mark.parametrize("model", ["models:/nobody@champion", "models:/demo/99", "models:/demo@x"])
def test_a_model_that_is_missing_is_named_with_where_it_was_looked_for(
    registry, version, model
) -> None:
    for ask in (registry.resolve, registry.download_net):
        with pytest.raises(TrackingError) as caught:
            ask(model)
        assert model in str(caught.value)
        assert registry.tracking.uri in str(caught.value)
