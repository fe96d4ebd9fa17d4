"""What a run survives, on a real Ray: the drill, elastic workers, full disks."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fcn.weights import NET
from pipeline.config.recipe import load_recipe
from pipeline.config.schema import ClusterSpec, TrackingSpec
from pipeline.data.shards import Shards
from pipeline.flow import plan
from pipeline.ops.drill import Training
from pipeline.ops.faults import RayUnderTest, preempt_node
from pipeline.storage.object_store import ObjectStore
from pipeline.storage.store import Store
from pipeline.tracking.client import TrackingClient
from pipeline.training.checkpoint import Checkpoints, LocalCheckpointManager
from pipeline.training.model import start_net
from pipeline.training.state import read_best, step_of
from pipeline.training.trainer import Trainer
from tests.conftest import TINY

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]


def command(verb: str, *values: str) -> list[str]:
    sets = [f"--set={value}" for value in (*TINY, *values)]
    return [sys.executable, "-m", "pipeline", verb, "demo", *sets]


def drill(store: str, *faults: str) -> None:
    """A drill of one training on a Ray of its own; it must find no difference."""
    values = ("finetune.epochs=8", "finetune.checkpoint_every_steps=2", f"store={store}")
    clean = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(
        [*command("drill", *values), "--faults", ",".join(faults)],
        capture_output=True,
        text=True,
        env=clean,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"\d of \d trainings with {len(faults)} faults in all are equal", done.stdout)
    for fault in faults:
        assert re.search(rf"{fault} +\d+ of 24 ", done.stdout)
    assert re.search(r"([1-9]\d+) of \1 +([1-9]\d+) of \2 +equal", done.stdout)


@pytest.mark.slow
def test_a_drill_finds_no_difference(tmp_path) -> None:
    """A worker killed, then SIGTERM, in one training."""
    drill(f"{tmp_path}/store", "worker", "sigterm")


@pytest.mark.slow
def test_a_drill_works_on_an_object_store(s3, tmp_path) -> None:
    """Checkpoints in the bucket are damaged and half copied; nothing of the drill stays in a folder."""
    drill(s3, "damaged", "half")
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert ObjectStore(s3).folders("drill") == ["reference"]


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(tmp_path) -> None:
    values = (
        "finetune.optimizer.kind=sgd",
        "finetune.optimizer.lr=1.0e+30",
        "finetune.init=scratch",
    )
    where = (
        f"store={tmp_path}/store",
        "cluster.address=local",
        "finetune.checkpoint_every_steps=1",
    )
    done = subprocess.run(
        command("finetune", *values, *where, "finetune.schedule.warmup_steps=0"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    said = re.sub(r"\s+", " ", done.stderr)
    stop = re.search(
        r"TrainingError: the (loss|gradient) became \w+ at step (\d), on train-0", said
    )
    assert stop, said
    last, _ = Checkpoints.in_folder(next((tmp_path / "store").glob("runs/demo/*/"))).newest()
    assert step_of(last) == int(stop[2]) - 1
    tracker = TrackingClient(TrackingSpec(), tmp_path / "store")
    statuses = [r.info.status for r in tracker.client.search_runs([tracker.experiment])]
    assert statuses == ["FAILED", "FAILED"]


def until(condition, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.slow
def test_an_elastic_run_shrinks_and_grows_and_computes_the_same(tmp_path, monkeypatch) -> None:
    """Two workers; one is given notice and lost; another comes: the mathematics of one process."""
    values = (
        *TINY,
        "finetune.epochs=60",
        "finetune.validate_every_epochs=20",
        "finetune.optimizer.kind=sgd",
        "finetune.optimizer.lr=1.0e-5",  # so gentle that rounding is not magnified
        "cluster.num_workers=[1, 2]",
    )
    recipe = load_recipe("demo", [*values, f"store={tmp_path}/store"])
    phases = [step for step in plan(recipe, Store(recipe.store)) if step.is_phase]
    ground = RayUnderTest(ClusterSpec(num_workers=1), None)
    ground.start()
    try:
        arguments = ["demo", *(f"--set={value}" for value in values)]
        training = Training(ground, arguments, f"{tmp_path}/store", phases, "demo")
        training.start()
        assert training.wait_for(5), training.printed()
        assert len(training.workers()) == 2
        with monkeypatch.context() as patch:
            patch.setattr(ground, "add_node", lambda: None)
            preempt_node(training)
        until(lambda: training.checkpoints().newest()[0] is not None)
        assert len(training.workers()) == 2  # the notice, not the loss, led to the checkpoint
        until(lambda: len(training.workers()) == 1)
        assert training.wait_for(training.step() + 1), training.printed()
        ground.add_node()
        until(lambda: len(training.workers()) == 2)
        assert training.finish() == 0, training.printed()
    finally:
        ground.stop()

    key, tracker = phases[0].key, TrackingClient(TrackingSpec(), tmp_path / "store")
    steps = [step for step, _ in tracker.history(tracker.find_phase(key), "train/loss")]
    assert steps == list(range(1, 181))
    require_as_alone(load_file(training.checkpoints().newest()[0] / NET), recipe, tmp_path)


def require_as_alone(theirs, recipe, folder: Path) -> None:
    """The same phase in this process, over the same shards: apart by a fraction of what changed."""
    files = {s: sorted(recipe.store.glob(f"datasets/*/*/{s}-*.arrow")) for s in ("train", "val")}
    start = next(recipe.store.glob(f"weights/*/*/{NET}")).parent
    net = start_net(recipe, 8, start)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    alone = Trainer(
        net,
        *(recipe.finetune, recipe.phases[0], recipe.seed),
        *(Shards(files["train"]), Shards(files["val"])),
    )
    alone.run(LocalCheckpointManager(Checkpoints.in_folder(folder / "alone")))
    after = net.state_dict()
    moved = max(float((after[k] - before[k]).abs().max()) for k in before)
    apart = max(float((after[k] - theirs[k]).abs().max()) for k in before)
    assert apart < moved / 1000, (apart, moved)


def mount(folder: Path, size: str) -> bool:
    folder.mkdir(exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True
    )
    return made.returncode == 0


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(tmp_path) -> None:
    """The first checkpoints fit, a later one does not; the same command with room ends well."""
    disk = tmp_path / "disk"
    if not mount(disk, "400m"):
        pytest.skip("may not mount a small disk here")
    try:
        values = ("finetune.epochs=3", "finetune.checkpoint_every_steps=1", "cluster.address=local")
        values = (*values, f"store={disk}/store", "cluster.max_failures=0")
        full = disk / "filler"
        full.write_bytes(bytes(shutil.disk_usage(disk).free - (72 << 20)))
        done = subprocess.run(command("evaluate", *values), capture_output=True, text=True)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "StoreError: no room for a checkpoint in" in done.stderr
        assert "Traceback" not in done.stderr.partition("StoreError")[2]
        assert not list((disk / "store" / "nets").glob("*"))
        full.unlink()
        done = subprocess.run(command("evaluate", *values), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        run = next((disk / "store" / "runs" / "demo").glob("*/"))
        assert read_best(Checkpoints.in_folder(run).newest()[0]) is not None
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
