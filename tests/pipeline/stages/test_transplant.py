"""Transplanted weights arrive with a receipt that is true, or are refused in words."""

import json
import os
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from fcn.backbones import BACKBONES
from fcn.nets import FCN, Blueprint
from fcn.weights import save_net
from pipeline.errors import WeightsError
from pipeline.flow import Flow
from pipeline.results import RECEIPT
from pipeline.stages import transplant
from pipeline.storage.store import Store
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
    manifest = store.published("weights", "key")
    assert manifest.items() >= done.model_dump(mode="json").items()
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
    with pytest.raises(WeightsError, match=r"packages for efficientnet_lite0.* net is resnet18"):
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


def test_the_manifest_is_plain_json(resnet_file, tmp_path) -> None:
    transplant.run(tiny(*RESNET, f"transplant.weights={resnet_file}"), Store(tmp_path), "key")
    manifest = json.loads((tmp_path / "weights" / "key" / "manifest.json").read_text())
    assert manifest["proof"] == "classifier == mean of the class map"


@pytest.mark.ray
def test_a_transplant_that_another_flow_is_at_is_waited_for_and_reused(
    local_ray, tmp_path, caplog
) -> None:
    caplog.set_level("INFO", "pipeline")
    flow, other = Flow(tiny(f"store={tmp_path}")), Store(tmp_path)
    step = flow.steps["transplant"]
    lock = other.lock(step.key)
    assert lock.take()
    numbers = dict.fromkeys(("copied", "reshaped", "initialised", "dropped"), 1)
    manifest = {"folder": "moved", "source": "package", "proof": "equal", **numbers}

    def publish() -> None:
        while "is being computed" not in caplog.text:
            time.sleep(0.1)
        with other.publish(
            "weights", step.key, manifest | {"max_difference": 0, "tolerance": 1}
        ) as draft:
            (draft / "receipt.json").write_text("{}")

    thread = threading.Thread(target=publish, daemon=True)
    thread.start()
    report = flow.run("transplant")
    thread.join()
    lock.free()
    assert [(name, how) for name, how, _ in report.steps] == [("transplant", "unchanged")]
    assert report.results["transplant"].folder == other.stored("weights", step.key).localize()
    assert f"transplant is being computed by pid {os.getpid()} on" in caplog.text
