"""The product on machines that share an object store and nothing else: a real S3 server, a real Ray."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fcn.weights import NET
from pipeline.flow import Flow
from pipeline.storage.cache import cache_folder
from pipeline.storage.object_store import ObjectStore
from pipeline.training.progress import NAMESPACE, Worker, metrics_actor_name
from tests.conftest import tiny
from tests.s3 import BUCKET

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

SMALL = ("finetune.epochs=4", "finetune.checkpoint_every_steps=2")  # 12 steps


@pytest.fixture(scope="module")
def bucket(s3_server) -> Iterator[str]:
    """Its address, which every process finds by the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        yield f"s3://{BUCKET}"


def start(verb: str, store: str, cache: Path, output: Path, address: str = "local") -> Any:
    """The command of a user, on a machine whose mirrors lie in `cache`."""
    recipe = tiny(*SMALL, f"store={store}", f"cluster.address={address}")
    path = output.with_suffix(".yaml")
    path.write_text(recipe.to_yaml())
    with output.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", verb, str(path)],
            env={**os.environ, "FCN_CACHE": str(cache)},
            cwd=output.parent,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def run(store: str, cache: Path, output: Path, verb: str = "run") -> str:
    """All that a flow says."""
    done = start(verb, store, cache, output).wait()
    assert done == 0, output.read_text()
    return re.sub(r"\s+", " ", output.read_text())


def until(condition: Callable[[], Any], process: Any, output: Path) -> None:
    ends_at = time.monotonic() + 400
    while not condition():
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < ends_at, output.read_text()
        time.sleep(0.05)


def flow_of(store: str) -> Flow:
    return Flow(tiny(*SMALL, f"store={store}"))


def net_sha256(store: str) -> str:
    """Of the trained net, as the bucket has it."""
    flow = flow_of(store)
    manifest = flow.store.published("nets", flow.steps["finetune-8s"].key)
    assert manifest is not None
    return manifest["objects"][NET]["sha256"]


def cache_in(folder: Path, store: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FCN_CACHE", str(folder))
        return cache_folder(store)


def has(root: Path, pattern: str) -> bool:
    return any(root.glob(pattern))


@pytest.fixture(scope="module")
def ended(bucket, tmp_path_factory) -> tuple[str, Path, str]:
    """A flow that one machine began and, when everything on that was killed, another one ended.

    Its store, the second machine's cache, and what it said there.
    """
    folder = tmp_path_factory.mktemp("two-machines")
    store, output = f"{bucket}/two-machines", folder / "output"
    process = start("run", store, folder / "first", output)
    remote = ObjectStore(store)
    try:
        until(lambda: "checkpoint_" in " ".join(remote.names("runs/demo")), process, output)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert remote.names("nets") == []
    return store, folder / "second", run(store, folder / "second", output)


def test_a_killed_flow_is_gone_on_with_by_another_machine(ended) -> None:
    store, cache, said = ended
    assert "ingest unchanged" in said
    assert "finetune-8s computed" in said
    assert "models:/demo/1 took @champion" in said
    assert has(cache_in(cache, store), "runs/demo/**/checkpoint_*/manifest.json")


def test_a_flow_says_where_its_runs_are(ended) -> None:
    _, _, said = ended
    assert "MLflow's database lies in" in said
    assert "need tracking.uri" in said


def test_a_new_machine_computes_nothing_again(ended, tmp_path) -> None:
    store = ended[0]
    said = run(store, tmp_path / "new", tmp_path / "output")
    assert "nothing changed, so nothing was computed again" in said
    new = cache_in(tmp_path / "new", store)
    assert has(new, "scores/*/*/predictions.png")
    assert not has(new, "datasets/*/*/*.arrow")  # nobody read them


def test_a_new_machine_predicts_with_a_net_of_the_bucket(ended, tmp_path) -> None:
    store, _, _ = ended
    noise = np.random.default_rng(0).integers(0, 256, (45, 70, 3))
    Image.fromarray(noise.astype(np.uint8)).save(tmp_path / "scene.png")
    where = ["-o", str(tmp_path / "out"), "--store", store]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pipeline",
            "predict",
            "run:demo",
            str(tmp_path / "scene.png"),
            *where,
        ],
        env={**os.environ, "FCN_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "out" / "scene.png").size == (70, 45)
    assert has(cache_in(tmp_path / "cache", store), f"nets/*/*/{NET}")


class Nodes:
    """A Ray of several nodes, each with a cache of its own; the head takes no tasks."""

    def __init__(self, folder: Path) -> None:
        import ray
        from ray.cluster_utils import Cluster

        self.folder = folder
        head = {"num_cpus": 0, "env_vars": self.variables("head")}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        for name in "abc":  # one for each worker and one to spare
            self.cluster.add_node(num_cpus=1, env_vars=self.variables(name))
        self.address: str = self.cluster.address
        ray.init(self.address, namespace=NAMESPACE, log_to_driver=False)

    def variables(self, name: str) -> dict[str, str]:
        return {"FCN_CACHE": str(self.folder / name)}

    def lose(self, worker: Worker) -> None:
        """The node of a worker with all its processes at once, as a machine that loses its power."""
        os.kill(worker.pid, signal.SIGKILL)
        node = next(n for n in self.cluster.list_all_nodes() if n.node_id == worker.node)
        self.cluster.remove_node(node, allow_graceful=False)

    def stop(self) -> None:
        import ray

        ray.shutdown()
        self.cluster.shutdown()


def ask(key: str, question: str) -> Any:
    """The training of a phase; None before it begins and after its end."""
    import ray

    try:
        actor = ray.get_actor(metrics_actor_name(key), namespace=NAMESPACE)
        return ray.get(getattr(actor, question).remote())
    except (ValueError, ray.exceptions.RayActorError):
        return None


def test_machines_that_share_but_a_bucket_train_the_same_net_though_one_is_lost(
    bucket, ended, tmp_path
) -> None:
    store, output = f"{bucket}/nodes", tmp_path / "output"
    nodes = Nodes(tmp_path)
    try:
        process = start("run", store, tmp_path / "driver", output, nodes.address)
        key = flow_of(store).steps["finetune-8s"].key
        until(lambda: (ask(key, "step") or 0) >= 4, process, output)
        before = ask(key, "workers")
        assert len({worker.node for worker in before}) == 2
        nodes.lose(before[-1])
        until(lambda: ask(key, "workers") not in (None, [], before), process, output)
        assert process.wait(400) == 0, output.read_text()
    finally:
        nodes.stop()
        process.kill()
    assert "models:/demo/1 took @champion" in re.sub(r"\s+", " ", output.read_text())
    assert net_sha256(store) == net_sha256(ended[0])
    require_apart({name: cache_in(tmp_path / name, store) for name in ("driver", "head", *"abc")})


def require_apart(mirrors: dict[str, Path]) -> None:
    """Each machine has what it used, and nothing that only another one can have put there."""
    driver, head = mirrors.pop("driver"), mirrors.pop("head")
    assert not head.exists()
    assert (driver / "mlflow.db").is_file()
    assert not has(driver, "datasets/*/*/*.arrow")  # read by workers, not by the driver
    for name, node in mirrors.items():
        assert has(node, "datasets/*/*/train-*.arrow"), name
        assert has(node, f"weights/*/*/{NET}"), name
        assert not has(node, "mlflow*"), name
        assert not has(node, "models/*"), name
    resumed = [name for name, node in mirrors.items() if has(node, "runs/demo/**/checkpoint_*")]
    assert len(resumed) == 2, resumed  # those that lived went on from the bucket's checkpoint
