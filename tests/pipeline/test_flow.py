"""The product as its user has it: a real Ray with two workers, a real MLflow, real files."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn.weights import NET
from pipeline.config.schema import TrackingSpec
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.registry import ModelRegistry
from tests.conftest import TINY
from tests.server import Server

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]

SMALL = [*TINY, "finetune.epochs=4", "finetune.checkpoint_every_steps=1"]


def command(store: Path, *overrides: str, recipe: str = "demo", verb: str = "run") -> list[str]:
    sets = [
        f"--set={value}"
        for value in (*SMALL, f"store={store}", "cluster.address=local", *overrides)
    ]
    return [sys.executable, "-m", "pipeline", verb, recipe, *sets]


def run(store: Path, *overrides: str, recipe: str = "demo") -> str:
    done = subprocess.run(
        command(store, *overrides, recipe=recipe), capture_output=True, text=True, cwd=store.parent
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return re.sub(r"\s+", " ", output)


@pytest.fixture(scope="module")
def flow(tmp_path_factory) -> tuple[Path, str]:
    """The whole flow, once, for the tests of what it leaves behind."""
    store = tmp_path_factory.mktemp("flow") / "store"
    return store, run(store)


def tracker(store: Path) -> TrackingClient:
    return TrackingClient(TrackingSpec(), store)


def trained_net(store: Path) -> Path:
    return next((store / "nets").glob(f"*/*/{NET}"))


def test_the_closing_lines_say_what_was_done(flow) -> None:
    _, output = flow
    assert "294 tensors copied, 0 reshaped, 6 initialised, 2 dropped" in output
    assert re.search(r"val of 7 images: mean IU 0\.\d+", output)
    assert "models:/demo/1 took @champion" in output


def test_a_second_run_computes_nothing_and_says_so(flow) -> None:
    store, _ = flow
    output = run(store)
    assert "nothing changed, so nothing was computed again" in output
    assert "computed " not in output.replace("nothing was computed again", "")


def test_cleaning_after_a_flow_removes_its_checkpoints_and_nothing_that_it_made(flow) -> None:
    store, _ = flow
    made = {path.parent for path in store.glob("*/*/manifest.json")}
    assert list(store.glob("runs/demo/**/checkpoint_*"))
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "gc", "--store", str(store), "--yes"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"freed \d+\.\d MiB in 1 folder\n", done.stdout)
    assert {path.parent for path in store.glob("*/*/manifest.json")} == made
    assert not list(store.glob("runs/demo/*/"))
    assert "nothing changed, so nothing was computed again" in run(store)


def test_of_two_identical_flows_at_once_one_computes_and_the_other_reuses(tmp_path) -> None:
    store = tmp_path / "store"
    both = [
        subprocess.Popen(
            command(store, verb="ingest"),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [re.sub(r"\s+", " ", p.communicate(timeout=400)[0]) for p in both]
    assert [p.returncode for p in both] == [0, 0], outputs
    computed, reused = sorted(outputs, key=lambda text: "ingest unchanged" in text)
    assert "ingest computed" in computed
    assert "ingest unchanged" in reused
    assert "the same flow is being run by pid" in reused
    mlflow = tracker(store)
    assert [r.info.status for r in mlflow.client.search_runs([mlflow.experiment])] == ["FINISHED"]
    assert len(list((store / "datasets").iterdir())) == 1


def test_every_metric_of_every_step_is_in_mlflow_once(flow) -> None:
    store, _ = flow
    mlflow = tracker(store)
    runs = mlflow.client.search_runs([mlflow.experiment])
    children = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
    assert [r.info.status for r in runs] == ["FINISHED"] * 2
    steps = [step for step, _ in mlflow.history(children[0].info.run_id, "train/loss")]
    assert steps == list(range(1, 13))
    validated = [step for step, _ in mlflow.history(children[0].info.run_id, "val/mean_iu")]
    assert validated == [3, 6, 9, 12]


def test_the_parent_run_holds_recipe_scores_and_pictures(flow) -> None:
    store, _ = flow
    mlflow = tracker(store)
    runs = mlflow.client.search_runs([mlflow.experiment])
    parent = next(r for r in runs if "mlflow.parentRunId" not in r.data.tags)
    assert parent.data.params["finetune.global_batch"] == "8"
    assert parent.data.metrics["val/num_images"] == 7
    assert parent.inputs.dataset_inputs[0].dataset.name == "shapes-demo"
    root = Path(parent.info.artifact_uri.removeprefix("file://"))
    found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    for name in ("confusion.png", "classes.png", "curves.png", "predictions.png", "confusion.json"):
        assert f"evaluation/{name}" in found
    for name in (
        "recipe.yaml",
        "environment.txt",
        "transplant/receipt.json",
        "data/quarantine.csv",
        "data/report.html",
    ):
        assert name in found
    counts = json.loads((root / "evaluation" / "confusion.json").read_text())["counts"]
    hit = np.diag(counts).sum() / np.sum(counts)
    assert parent.data.metrics["val/pixel_accuracy"] == hit


def test_the_registered_model_stands_alone_and_gives_the_pictures_predictions(
    flow, tmp_path
) -> None:
    """In a fresh process, another folder, without our source tree on the path."""
    store, _ = flow
    panels = sorted((store / "scores").glob("*/*/panels/*.prediction.png"))
    assert len(panels) == 3
    from pipeline.data.shards import Shards

    shards = Shards(sorted((store / "datasets").glob("*/*/val-*.arrow")))
    names = {p.name.removesuffix(".prediction.png"): p for p in panels}
    rows = [i for i in range(len(shards)) if shards.id(i) in names]
    np.savez(tmp_path / "in.npz", *[shards.image_label(i)[0] for i in rows])
    code = """
import sys, io
import numpy as np, mlflow
from PIL import Image
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/demo@champion")
images = list(np.load("in.npz").values())
labels = model.predict(images)
assert all((model.predict(i) == l).all() for i, l in zip(images, labels))
buffer = io.BytesIO(); Image.fromarray(images[0]).save(buffer, "PNG")
assert (model.predict(buffer.getvalue()) == labels[0]).all()
assert model.predict(np.zeros((33, 71, 3), np.uint8)).shape == (33, 71)
assert model.unwrap_python_model().classes.names[1] == "disc"
import fcn
assert "/code/fcn/" in fcn.__file__, fcn.__file__
np.savez("out.npz", *labels)
"""
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code, f"sqlite:///{store}/mlflow.db"],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for row, label in zip(rows, np.load(tmp_path / "out.npz").values(), strict=True):
        assert (np.asarray(Image.open(names[shards.id(row)])) == label).all()


def test_predict_writes_label_maps_and_overlays(flow, tmp_path) -> None:
    store, _ = flow
    picture = tmp_path / "scene.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (45, 70, 3)).astype(np.uint8)).save(
        picture
    )
    for model in ("run:demo", "models:/demo@champion"):
        out = tmp_path / model.partition(":")[0]
        arguments = ["predict", model, str(picture), "-o", str(out), "--store", str(store)]
        subprocess.run(
            [sys.executable, "-m", "pipeline", *arguments], check=True, capture_output=True
        )
        assert Image.open(out / "scene.png").size == (70, 45)
        assert Image.open(out / "scene.overlay.png").mode == "RGB"
    first, second = (np.asarray(Image.open(tmp_path / d / "scene.png")) for d in ("run", "models"))
    assert (first == second).all()


def test_a_killed_run_goes_on_from_its_checkpoint_and_ends_with_the_same_weights(
    flow, tmp_path
) -> None:
    """SIGKILL to everything, halfway; the same command again; bit-identical to the whole run."""
    store = tmp_path / "store"
    process = subprocess.Popen(
        command(store),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 400
        while not list((store / "runs").glob("demo/**/checkpoint_*/manifest.json")):
            assert process.poll() is None, process.stdout.read().decode()
            assert time.monotonic() < deadline, "no checkpoint appeared"
            time.sleep(0.2)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not list((store / "nets").glob("*"))
    before = tracker(store)
    running = before.client.search_runs([before.experiment])
    assert "RUNNING" in {r.info.status for r in running}

    output = run(store)
    assert "ingest unchanged" in output
    assert trained_net(store).read_bytes() == trained_net(flow[0]).read_bytes()
    mlflow = tracker(store)
    runs = mlflow.client.search_runs([mlflow.experiment])
    assert sorted(r.info.run_id for r in runs) == sorted(r.info.run_id for r in running)
    assert {r.info.status for r in runs} == {"FINISHED"}
    child = next(r.info.run_id for r in runs if "mlflow.parentRunId" in r.data.tags)
    assert [step for step, _ in mlflow.history(child, "train/loss")] == list(range(1, 13))
    assert [step for step, _ in mlflow.history(child, "val/mean_iu")] == [3, 6, 9, 12]


def test_a_flow_goes_on_without_mlflow_and_logs_it_all_when_it_is_back(tmp_path) -> None:
    """Away at the start; back after the first checkpoint, while it trains."""
    server, output = Server(tmp_path), tmp_path / "output"
    server.start()  # makes its database, so that it starts sooner the second time
    server.kill()
    sets = [f"tracking.uri={server.uri}", "finetune.epochs=12"]
    with output.open("w") as file:
        process = subprocess.Popen(
            command(tmp_path / "store", *sets), cwd=tmp_path, stdout=file, stderr=file
        )
    try:
        deadline = time.monotonic() + 400
        while not list(tmp_path.glob("store/runs/demo/**/checkpoint_*/manifest.json")):
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline, "no checkpoint appeared"
            time.sleep(0.2)
        server.start()
        assert process.wait(400) == 0, output.read_text()
        require_all_logged(TrackingClient(TrackingSpec(uri=server.uri), tmp_path))
    finally:
        process.kill()
        server.kill()
    said = re.sub(r"\s+", " ", output.read_text())
    assert "Connection refused" in said
    assert "the flow goes on" in said
    assert f"MLflow at {server.uri} is back" in said
    assert "models:/demo/1 took @champion" in said


def require_all_logged(mlflow: TrackingClient) -> None:
    """A flow of 12 epochs of 3 steps, whole."""
    runs = mlflow.client.search_runs([mlflow.experiment])
    assert [r.info.status for r in runs] == ["FINISHED"] * 2
    child = next(r.info.run_id for r in runs if "mlflow.parentRunId" in r.data.tags)
    assert [step for step, _ in mlflow.history(child, "train/loss")] == list(range(1, 37))
    val = [step for step, _ in mlflow.history(child, "val/mean_iu")]
    assert val == list(range(3, 37, 3))
    parent = next(r.info.run_id for r in runs if r.info.run_id != child)
    artifacts = {a.path for a in mlflow.client.list_artifacts(parent)}
    assert {"recipe.yaml", "environment.txt", "data", "transplant", "evaluation"} <= artifacts


def test_what_cannot_fit_is_refused_before_it_starts(tmp_path) -> None:
    done = subprocess.run(
        command(tmp_path / "store", "cluster.cpus_per_worker=500"),
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "ClusterError: the run needs 2 workers, and 0 workers of 500 CPU fit on" in done.stderr
    assert "lower cluster.cpus_per_worker" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_staged_training_from_a_file_with_head_only_and_a_gate_that_stays_shut(
    flow, tmp_path
) -> None:
    """32s then 8s from another run's net, new layers alone; a worse model is no champion."""
    store, _ = flow
    output = run(
        store,
        "transplant.weights=run:demo",
        "finetune.epochs=null",
        "finetune.phases=[{stride: 32, epochs: 1}, {stride: 8, epochs: 1, lr_mult: 1.0e-6}]",
        "finetune.trainable=head",
        "finetune.optimizer.lr=1.0e-9",
        "net.upscore=learned",
        "register.model=demo",
        "name=staged",
    )
    assert "finetune-32s computed" in output
    assert "finetune-8s computed" in output
    assert re.search(r"models:/demo/2 (took|did not take) @champion: challenger's mean IU", output)
    champion = ModelRegistry(tracker(store)).champion("demo")
    assert champion is not None
    kept = float(champion[1]["mean_iu"])
    versions = tracker(store).client.search_model_versions("name='demo'")
    assert kept == max(float(v.tags["mean_iu"]) for v in versions)


@pytest.mark.skipif("FCN_CAMVID" not in os.environ, reason="FCN_CAMVID names no CamVid folder")
def test_camvid_a_few_images_a_few_steps(tmp_path) -> None:
    """The real recipe on real images: 32 to train, 8 to validate, 12 to test."""
    camvid, data = Path(os.environ["FCN_CAMVID"]), tmp_path / "camvid"
    for split, number in (("train", 32), ("val", 8), ("test", 12)):
        for folder in (split, f"{split}annot"):
            (data / folder).mkdir(parents=True)
        for image in sorted((camvid / split).iterdir())[:: 367 // 40][:number]:
            (data / split / image.name).symlink_to(image)
            label = camvid / f"{split}annot" / f"{image.stem}.png"
            (data / f"{split}annot" / label.name).symlink_to(label)
    few = [
        "finetune.epochs=6",
        "finetune.global_batch=8",
        "finetune.micro_batch=2",
        "finetune.augment.crop_px=[180, 240]",
        "finetune.schedule.warmup_steps=2",
        "finetune.validate_every_epochs=3",
    ]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pipeline", "run", "camvid"),
            *[
                f"--set={v}"
                for v in (*few, f"data.root={data}", f"store={tmp_path}/s", "cluster.address=local")
            ],
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    scores = json.loads(next((tmp_path / "s" / "scores").glob("*/manifest.json")).read_text())
    assert scores["num_images"] == 12
    assert scores["mean_iu"] > 0.2  # road, sky, building and tree alone score about this
    assert scores["class_iu"]["road"] > 0.6


def test_a_registered_model_is_a_source_of_weights_and_its_alias_counts_as_its_version(
    flow, tmp_path
) -> None:
    store, _ = flow
    done = subprocess.run(
        command(store, "transplant.weights=models:/demo@champion", verb="transplant"),
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "300 tensors copied, 0 reshaped, 0 initialised, 0 dropped" in done.stdout
    registry = ModelRegistry(tracker(store))
    assert registry.resolve("models:/demo@champion").startswith("models:/demo/1 ")
    done = subprocess.run(
        command(store, "transplant.weights=models:/demo@nobody", verb="plan"),
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "TrackingError: models:/demo@nobody is not in" in done.stderr
