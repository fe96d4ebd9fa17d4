"""A training as a user runs it, and real faults done to it from outside.

Processes are killed, nodes are lost, checkpoints are damaged.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fcn.weights import NET
from pipeline import cluster
from pipeline.config.schema import ClusterSpec
from pipeline.errors import ClusterError
from pipeline.stage_table import Step
from pipeline.storage.store import Store
from pipeline.tracking import owner
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.progress import NAMESPACE, Worker, metrics_actor_name
from pipeline.training.state import MANIFEST, STATE

POLL_S = 0.02
TIMEOUT_S = 1800.0
"""Longest time that a training is waited for."""
NOTICE_S = 10
"""Time from the notice to the loss of a node; real spot machines give 30 to 120 s."""


@dataclass
class RayUnderTest:
    """The Ray that a drill works on: one that is there, or one of several nodes on this machine."""

    spec: ClusterSpec
    address: str | None
    ours: bool = field(init=False)
    """Whether the drill started it, and so may stop it."""

    def __post_init__(self) -> None:
        self.ours = self.address is None
        self._nodes: Any = None

    def start(self) -> None:
        """Connect. Our own Ray has a head without CPUs, a node for each worker and a spare one."""
        cluster.protect_token()
        if self.ours:
            from ray.cluster_utils import Cluster  # noqa: PLC0415 - only where no Ray is named

            self._nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
            self.address = self._nodes.address
            for _ in range(self.spec.max_workers + 1):
                self.add_node()
        ray.init(
            self.address, namespace=NAMESPACE, logging_level=logging.CRITICAL, log_to_driver=False
        )

    def add_node(self) -> None:
        """Add a node for one more worker; a Ray that is not ours replaces its nodes itself."""
        if self.ours:
            self._nodes.add_node(num_cpus=math.ceil(self.spec.cpus_per_worker))

    def stop(self) -> None:
        """Disconnect; stop the Ray if it is ours."""
        ray.shutdown()
        if self.ours:
            self._nodes.shutdown()


class Training:
    """One training in a store of its own, as a user runs it: a command in its own process."""

    def __init__(
        self,
        ray_under_test: RayUnderTest,
        arguments: Sequence[str],
        store: str,
        phases: Sequence[Step],
        name: str,
    ) -> None:
        self.ray_under_test, self.arguments = ray_under_test, list(arguments)
        self.store = store
        """A folder or a URI."""
        self.name = name
        """The name of the recipe, and so of its runs."""
        self.phase = phases[-1]
        """The phase that is watched."""

    @property
    def cache(self) -> Path:
        """This machine's folder for the store, with MLflow's database."""
        return Store(self.store).cache

    def net(self, phase: Step) -> Path:
        """The folder of the net that a phase ended with, on this machine."""
        return Store(self.store).stored(phase.stage.folder, phase.key).localize()

    def checkpoints(self, phase: Step | None = None) -> Checkpoints:
        """Those of a phase, or of the one that is watched, as the store has them at this moment.

        What is looked at here is downloaded apart from what the training itself downloads.
        """
        store = Store(self.store)
        prefix = store.checkpoints(self.name, (phase or self.phase).key)
        return Checkpoints(store.files, prefix, self.cache / "drill")

    def start(self) -> None:
        """Type the command."""
        self.output = TemporaryFile()  # noqa: SIM115 - read when it has ended
        where = [f"store={self.store}", f"cluster.address={self.ray_under_test.address}"]
        command = [sys.executable, "-m", "pipeline", "evaluate", *self.arguments]
        self.process = subprocess.Popen(
            [*command, *(f"--set={value}" for value in where)],
            stdout=self.output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def step(self) -> int:
        """The newest step of the phase that the metrics actor knows of; 0 before the first."""
        return self._ask("step") or 0

    def workers(self) -> list[Worker]:
        """Where its workers are; none before they begin."""
        return self._ask("workers") or []

    def _ask(self, question: str) -> Any:  # noqa: ANN401 - whatever the actor answers
        try:
            actor = ray.get_actor(metrics_actor_name(self.phase.key), namespace=NAMESPACE)
            return ray.get(getattr(actor, question).remote())
        except (ValueError, ray.exceptions.RayActorError):  # not there yet, or gone with its driver
            return None

    def wait_for(self, step: int) -> bool:
        """Wait until the phase has come that far; False if the command ended before."""
        return self.wait_until(lambda: self.step() >= step)

    def finish(self) -> int:
        """Wait until the command has ended; return its exit code."""
        return self.process.wait(TIMEOUT_S)

    def printed(self) -> str:
        """What the command printed."""
        self.output.seek(0)
        return self.output.read().decode(errors="replace")

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Wait until something is so; False if the command ended before."""
        end = time.monotonic() + TIMEOUT_S
        while not condition():
            if self.process.poll() is not None:
                return False
            if time.monotonic() > end:
                self.process.kill()
                raise ClusterError(f"nothing moved for {TIMEOUT_S:g} s:\n{self.printed()[-2000:]}")
            time.sleep(POLL_S)
        return True


def kill_worker(target: Training) -> None:
    """SIGKILL to the last rank: a crash, an out-of-memory kill."""
    victim = target.workers()[-1]
    _kill(victim.node, lambda: victim.pid)


def kill_loader(target: Training) -> None:
    """SIGKILL to a process that decodes images for the last rank."""
    victim = target.workers()[-1]
    _kill(victim.node, lambda: _a_loader_of(victim.pid))


def kill_node(target: Training) -> None:
    """SIGKILL to the raylet of a node that holds a worker; another node takes its place.

    Raises:
        ClusterError: all workers are on the head, whose loss no Ray survives.
    """
    _kill(_a_node_of(target), os.getppid)
    target.ray_under_test.add_node()


def preempt_node(target: Training) -> None:
    """A node that holds a worker is given notice, as a spot machine is, and lost soon after.

    Raises:
        ClusterError: all workers are on the head.
    """
    node = _a_node_of(target)
    _kill(node, os.getppid, NOTICE_S)  # before the notice: then the node takes no more tasks
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--node-id", node]
    address = ray.get_runtime_context().gcs_address
    notice = ["--address", address, "--deadline-remaining-seconds", str(NOTICE_S)]
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "drill"]
    subprocess.run([*command, *notice, *reason], check=True, capture_output=True)
    target.ray_under_test.add_node()


def kill_driver(target: Training) -> None:
    """SIGKILL to the command and all that it started on this machine."""
    os.killpg(target.process.pid, signal.SIGKILL)


def stop_ray(target: Training) -> None:
    """Every process of Ray ends at once, the head's too, and a new Ray is started.

    Raises:
        ClusterError: the Ray is not the drill's own.
    """
    if not target.ray_under_test.ours:
        raise ClusterError("fault ray stops all of Ray: only drilled where no address is given")
    kill_driver(target)
    target.ray_under_test.stop()
    target.ray_under_test.start()


def terminate(target: Training) -> None:
    """SIGTERM to the command: it saves and stops."""
    target.process.send_signal(signal.SIGTERM)


def damage_checkpoint(target: Training) -> None:
    """The driver is killed and one byte of the newest checkpoint's weights has changed."""
    checkpoints, newest = _newest_after_a_kill(target)
    weights = f"{checkpoints.prefix}/{newest}/{NET}"
    content = bytearray(checkpoints.files.read(weights) or b"")
    content[-1] ^= 1
    checkpoints.files.write(weights, bytes(content))
    if checkpoints.files.local is None:  # sound copies of it on this machine go too
        for cache in (checkpoints.cache, target.cache):
            shutil.rmtree(cache / checkpoints.prefix / newest, ignore_errors=True)


def half_checkpoint(target: Training) -> None:
    """The driver is killed while the next checkpoint is being written: some files are there."""
    checkpoints, newest = _newest_after_a_kill(target)
    attempt = newest.partition("/")[0]
    source = f"{checkpoints.prefix}/{newest}"
    half = f"{checkpoints.prefix}/{attempt}/checkpoint_9999-half-written"
    for name in checkpoints.files.names(source):
        if name not in (MANIFEST, STATE):
            content = checkpoints.files.read(f"{source}/{name}") or b""
            checkpoints.files.write(f"{half}/{name}", content)


def _newest_after_a_kill(target: Training) -> tuple[Checkpoints, str]:
    kill_driver(target)
    target.process.wait()
    checkpoints = target.checkpoints()
    folder, _ = checkpoints.newest()
    if folder is None:
        raise ClusterError(f"no sound checkpoint in {checkpoints}: there is nothing to damage")
    return checkpoints, f"{folder.parent.name}/{folder.name}"


FAULTS: dict[str, Callable[[Training], None]] = {
    "worker": kill_worker,
    "loader": kill_loader,
    "node": kill_node,
    "preempted": preempt_node,
    "driver": kill_driver,
    "ray": stop_ray,
    "sigterm": terminate,
    "damaged": damage_checkpoint,
    "half": half_checkpoint,
}
"""The faults by the names that the command line takes."""
NEED_A_CHECKPOINT = ("damaged", "half")
SURVIVED = ("worker", "loader", "node", "preempted")
"""Ray starts the workers again; after the other faults the command has to be typed again."""


def _a_node_of(target: Training) -> str:
    heads = {n["NodeID"] for n in ray.nodes() if "node:__internal_head__" in n["Resources"]}
    victims = [worker.node for worker in target.workers() if worker.node not in heads]
    if not victims:
        raise ClusterError("all workers are on the head node; a node can only be lost beside it")
    return victims[-1]


def _kill(node: str, find: Callable[[], int], after_s: float = 0.2) -> None:
    """SIGKILL to a process that is found on its node; by a process that outlives the node."""

    def on_the_node() -> None:
        subprocess.Popen(  # not waited for: it may end this process
            ["sh", "-c", f"sleep {after_s}; kill -9 {find()}"], start_new_session=True
        )

    pinned = NodeAffinitySchedulingStrategy(node, soft=False)
    ray.get(ray.remote(on_the_node).options(num_cpus=0, scheduling_strategy=pinned).remote())


def _a_loader_of(pid: int) -> int:
    """A process that the worker's fork server made."""
    pids = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
    parents = {each: int(stat[1]) for each in pids if (stat := owner.stat(each))}
    servers = [
        child
        for child, parent in parents.items()
        if parent == pid and b"forkserver" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    loaders = [child for child, parent in parents.items() if parent in servers]
    if not loaders:
        raise ClusterError(f"worker {pid} has no loader processes; set cluster.loader_workers=1")
    return loaders[0]
