"""Transplant and its guard, evaluation's arithmetic and pictures, the store's promises."""

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from fcn.backbones import BACKBONES
from fcn.labels import VOID
from fcn.nets import FCN, Blueprint
from fcn.weights import NET, save_net
from pipeline.errors import TrainingError, WeightsError
from pipeline.stages import transplant
from pipeline.storage.store import RECEIPT, Store, fingerprint
from pipeline.tracking import plots
from pipeline.training.evaluation import require_all_seen
from pipeline.training.model import require_receipt, start_net
from tests.conftest import tiny

RESNET = ("net.backbone=resnet18", "net.stride=16")


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(BACKBONES["resnet18"].build().state_dict(), path)
    return path


def test_weights_from_a_file_arrive_with_a_receipt_that_fine_tuning_accepts(
    resnet_file, tmp_path
) -> None:
    store = Store(tmp_path)
    done = transplant.run(tiny(*RESNET, f"transplant.weights={resnet_file}"), store, "key")
    assert (done.copied, done.dropped, done.initialised) == (120, 2, 4)
    assert done.max_difference < done.tolerance
    require_receipt(done.folder)
    assert store.published("weights", "key") == done.model_dump(mode="json")
    net = start_net(tiny(*RESNET), 16, done.folder)
    theirs = torch.load(resnet_file, weights_only=True)["conv1.weight"]
    assert torch.equal(net.backbone.trunk["8"][0].weight, theirs)


def test_fine_tuning_refuses_weights_without_a_true_receipt(resnet_file, tmp_path) -> None:
    done = transplant.run(
        tiny(*RESNET, f"transplant.weights={resnet_file}"), Store(tmp_path), "key"
    )
    save_net(done.folder, FCN(Blueprint("resnet18", 5, 16)))  # other weights under the same receipt
    with pytest.raises(WeightsError, match="is not what its receipt says"):
        require_receipt(done.folder)
    (done.folder / RECEIPT).unlink()
    with pytest.raises(WeightsError, match=r"nothing proves .* say finetune\.init=scratch"):
        require_receipt(done.folder)


@pytest.mark.parametrize("backbone", ["resnet34", "alexnet"])
def test_a_file_of_another_net_is_refused(resnet_file, tmp_path, backbone) -> None:
    recipe = tiny(f"net.backbone={backbone}", f"transplant.weights={resnet_file}")
    with pytest.raises(WeightsError, match=f"not the weights of {backbone}"):
        transplant.run(recipe, Store(tmp_path), "key")
    assert Store(tmp_path).published("weights", "key") is None


def test_the_package_fits_only_its_own_net(tmp_path) -> None:
    with pytest.raises(
        WeightsError, match="holds efficientnet_lite0, the recipe's net is resnet18"
    ):
        transplant.run(tiny(*RESNET), Store(tmp_path), "key")
    with pytest.raises(WeightsError, match="torchvision has no weights of efficientnet_lite0"):
        transplant.run(tiny("transplant.weights=torchvision"), Store(tmp_path), "key")


@pytest.fixture
def weights_server(resnet_file, monkeypatch, tmp_path):
    """torchvision's download, pointed at a server on loopback that serves our random weights."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(resnet_file.parent))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_torchvisions_download_is_checked_by_its_hash(
    weights_server, resnet_file, monkeypatch, tmp_path
) -> None:
    import hashlib

    from torchvision.models import ResNet18_Weights

    recipe = tiny(*RESNET, "transplant.weights=torchvision")
    digest = hashlib.sha256(resnet_file.read_bytes()).hexdigest()[:8]
    for name, good in ((f"resnet18-{digest}.pth", True), ("resnet18-00000000.pth", False)):
        (resnet_file.parent / name).write_bytes(resnet_file.read_bytes())
        weights = ResNet18_Weights.IMAGENET1K_V1
        monkeypatch.setattr(
            type(weights), "url", property(lambda _, n=name: f"{weights_server}/{n}"), raising=False
        )
        if good:
            assert transplant.run(recipe, Store(tmp_path), "good").copied == 120
        else:
            with pytest.raises(WeightsError, match="download of ResNet18"):
                transplant.run(recipe, Store(tmp_path), "bad")


def test_staged_training_hands_on_all_that_fits(resnet_file, tmp_path) -> None:
    phases = (
        "finetune.epochs=null",
        "finetune.phases=[{stride: 32, epochs: 1}, {stride: 16, epochs: 1}]",
    )
    recipe = tiny(*RESNET, *phases)
    coarse = FCN(Blueprint("resnet18", 5, 32))
    torch.nn.init.normal_(coarse.score["32"].weight)
    save_net(tmp_path, coarse)
    fine = start_net(recipe, 16, tmp_path)
    assert torch.equal(fine.score["32"].weight, coarse.score["32"].weight)
    assert not fine.score["16"].weight.any()
    with pytest.raises(WeightsError, match=r"lacks backbone\.trunk"):
        start_net(tiny("net.backbone=alexnet"), 32, tmp_path)


def test_scratch_starts_from_the_seed() -> None:
    recipe = tiny(*RESNET, "finetune.init=scratch")
    one, two = start_net(recipe, 16, None), start_net(recipe, 16, None)
    other = start_net(tiny(*RESNET, "finetune.init=scratch", "seed=1"), 16, None)
    key = "backbone.trunk.8.0.weight"
    assert torch.equal(one.state_dict()[key], two.state_dict()[key])
    assert not torch.equal(one.state_dict()[key], other.state_dict()[key])


def test_a_result_is_published_whole_or_not_at_all(tmp_path) -> None:
    store = Store(tmp_path)

    def interrupted() -> None:
        with store.publish("nets", "a", {}) as draft:
            (draft / NET).write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert store.published("nets", "a") is None
    assert list((tmp_path / "nets").iterdir()) == []
    with store.publish("nets", "a", {"first": 1}) as draft:
        (draft / NET).write_text("whole")
    with store.publish("nets", "a", {"second": 2}):
        pass
    assert store.published("nets", "a") == {"first": 1}
    assert fingerprint({"b": 1, "a": 2}) == fingerprint({"a": 2, "b": 1}) != fingerprint({"a": 3})


def test_scores_over_some_of_the_images_are_void() -> None:
    with pytest.raises(TrainingError, match="59 images were counted in a split of 60"):
        require_all_seen(59, 60)


def test_pictures_show_what_they_say(tmp_path) -> None:
    table = tiny().data.class_table()
    image = np.full((10, 12, 3), 90, np.uint8)
    truth = np.zeros((10, 12), np.uint8)
    truth[0] = VOID
    prediction = truth.copy()
    prediction[0] = 1  # void is no error
    prediction[5, 5] = 2
    panel = plots.panel(image, truth, prediction, table)
    assert panel.shape == (28, 32, 3)
    errors = panel[16:26, 18:30]
    assert (errors == [220, 30, 30]).all(-1).sum() == 1
    assert (errors[5, 5] == [220, 30, 30]).all()
    assert (errors[0] == 128).all()
    plots.label_png(tmp_path / "label.png", prediction, table)
    again = Image.open(tmp_path / "label.png")
    assert again.mode == "P"
    assert (np.asarray(again) == prediction).all()
    assert tuple(again.getpalette()[6:9]) == table.colours[2]


def test_the_manifest_is_plain_json(resnet_file, tmp_path) -> None:
    transplant.run(tiny(*RESNET, f"transplant.weights={resnet_file}"), Store(tmp_path), "key")
    manifest = json.loads((tmp_path / "weights" / "key" / "manifest.json").read_text())
    assert manifest["proof"] == "classifier == mean of the class map"
