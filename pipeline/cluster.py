"""Ray: how a run connects to it, what fits on its nodes, and how its workers are configured."""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

# Ray reads these when it is imported or started: short polls, no printed copies, no usage report.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import ray.train as train

from pipeline.config.schema import ClusterSpec
from pipeline.errors import ClusterError, PipelineError

log = logging.getLogger(__name__)

Resources = Mapping[str, float]
"""What a node has, or what a worker takes, by kind: CPU, GPU."""

RESIZE_EVERY_S = 10.0
"""How often an elastic run looks whether more workers fit."""
OPEN_S = 10.0
"""How long a Ray may take to accept a connection."""


def connect(spec: ClusterSpec) -> None:
    """Join a Ray and require that the workers fit on its nodes.

    Raises:
        ClusterError: there is no Ray at that address, or the workers do not fit.
    """
    join(spec)
    require_fit(spec, living_nodes())


def join(spec: ClusterSpec) -> None:
    """Join the Ray that the recipe or RAY_ADDRESS names, else start one on this machine.

    Raises:
        ClusterError: there is no Ray at that address.
    """
    if not ray.is_initialized():
        address = spec.address or os.environ.get("RAY_ADDRESS")
        try:
            _require_open(address or "")
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except (OSError, ValueError) as error:
            raise ClusterError(
                f"no Ray at {address}: {error}; start it, or give its address in cluster.address"
            ) from error


def _require_open(address: str) -> None:
    """Fail in seconds where nobody listens; Ray itself goes on trying for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), OPEN_S).close()


def reachable_nodes(spec: ClusterSpec) -> list[Resources] | None:
    """The nodes of the Ray that a run would join; None if it would start one on this machine.

    Raises:
        ClusterError: there is no Ray at the address.
    """
    address = spec.address or os.environ.get("RAY_ADDRESS")
    if not ray.is_initialized() and address in (None, "local"):
        return None
    join(spec)
    return living_nodes()


def living_nodes() -> list[Resources]:
    """The resources of each node of the Ray that is joined, in use or not."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def workers_that_fit(spec: ClusterSpec, nodes: Sequence[Resources]) -> int:
    """How many workers the nodes hold at a time if nothing else runs on them.

    A worker is never split over two nodes, and its share of a GPU is never split over two GPUs.
    """
    return sum(_workers_on(node, spec) for node in nodes)


def _workers_on(node: Resources, spec: ClusterSpec) -> int:
    by_cpu = _whole(node.get("CPU", 0.0) / spec.cpus_per_worker)
    if not spec.use_gpu:
        return by_cpu
    return min(by_cpu, int(node.get("GPU", 0.0)) * _whole(1 / spec.gpus_per_worker))


def _whole(quotient: float) -> int:
    """Rounded down; a millionth is added for what fractions such as 0.1 lose in a division."""
    return int(quotient + 1e-6)


def require_fit(spec: ClusterSpec, nodes: Sequence[Resources]) -> None:
    """Refuse a run that could never start; where the cluster adds nodes by itself, let it wait.

    Raises:
        ClusterError: fewer workers fit than the run needs.
    """
    _require(spec, nodes, spec.min_workers, "the run", "cluster.num_workers")


def trials_that_fit(spec: ClusterSpec, nodes: Sequence[Resources], at_most: int) -> int:
    """How many trials of `spec.max_workers` workers the nodes hold at a time, `at_most` at most.

    Raises:
        ClusterError: not one trial fits.
    """
    _require(spec, nodes, spec.max_workers, "a trial", "--workers")
    return max(1, min(workers_that_fit(spec, nodes) // spec.max_workers, at_most))


def _require(
    spec: ClusterSpec, nodes: Sequence[Resources], number: int, what: str, option: str
) -> None:
    if workers_that_fit(spec, nodes) >= number:
        return
    words = f"{what} needs {number} worker{'s' * (number != 1)}, and {fit_in_words(spec, nodes)}"
    if not spec.autoscaling:
        raise ClusterError(f"{words}; {fit_remedy(spec, nodes, option)}")
    log.info("%s: waiting for nodes that the cluster adds (cluster.autoscaling)", words)


def fit_in_words(spec: ClusterSpec, nodes: Sequence[Resources]) -> str:
    """Such as: 3 workers of 2 CPU fit on 2 nodes (1 x 4 CPU, 1 x 2 CPU)."""
    number, kinds = workers_that_fit(spec, nodes), list(per_worker(spec))
    alike = Counter(_in_words(node, kinds) for node in nodes)
    have = ", ".join(f"{count} x {words}" for words, count in alike.most_common())
    fit = f"{number} worker{'s' * (number != 1)} of {_in_words(per_worker(spec), kinds)}"
    on = f"{len(nodes)} node{'s' * (len(nodes) != 1)} ({have})"
    return f"{fit} fit{'s' * (number == 1)} on {on}"


def _in_words(amounts: Resources, kinds: Sequence[str]) -> str:
    return " and ".join(f"{amounts.get(kind, 0.0):g} {kind}" for kind in kinds)


def fit_remedy(
    spec: ClusterSpec, nodes: Sequence[Resources], option: str = "cluster.num_workers"
) -> str:
    """What the user may do if too few workers fit; `option` sets their number."""
    number = workers_that_fit(spec, nodes)
    smaller = "cluster.cpus_per_worker" + " or cluster.gpus_per_worker" * spec.use_gpu
    first = f"set {option}={number}" if number else f"lower {smaller}"
    return (
        f"{first}, add nodes, or set cluster.autoscaling=true if the cluster adds nodes by itself"
    )


def get(ref: Any) -> Any:  # noqa: ANN401 - whatever the task returns
    """Wait for a task's result; an error of ours that it raised is raised here unchanged."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PipelineError):
            raise error.cause from None
        raise


def scaling(spec: ClusterSpec) -> train.ScalingConfig:
    """Ray Train's configuration of the number of workers and of what each of them takes."""
    return train.ScalingConfig(  # type: ignore[call-arg]  # typed as the first version of Ray Train
        num_workers=spec.num_workers,  # type: ignore[arg-type]
        elastic_resize_monitor_interval_s=RESIZE_EVERY_S,
        use_gpu=spec.use_gpu,
        resources_per_worker=per_worker(spec),
    )


def per_worker(spec: ClusterSpec) -> dict[str, float]:
    """The resources that one worker takes."""
    return {"CPU": spec.cpus_per_worker} | ({"GPU": spec.gpus_per_worker} if spec.use_gpu else {})


def task_options(spec: ClusterSpec) -> dict[str, Any]:
    """The resources of a Ray task that runs a net."""
    return {
        "num_cpus": spec.cpus_per_worker,
        "num_gpus": spec.gpus_per_worker if spec.use_gpu else 0,
    }


def run_config(
    spec: ClusterSpec,
    folder: PurePath,
    keep: int,
    filesystem: Any = None,  # noqa: ANN401 - pyarrow's
) -> train.RunConfig:
    """Ray Train's configuration: where checkpoints go, how many stay, how often a failure is retried."""
    return train.RunConfig(  # type: ignore[call-arg]  # typed as the first version of Ray Train
        name=folder.name,
        storage_path=str(folder.parent),
        storage_filesystem=filesystem,
        failure_config=train.FailureConfig(max_failures=spec.max_failures),
        checkpoint_config=train.CheckpointConfig(num_to_keep=keep),
        logging_config=train.LoggingConfig(log_level="ERROR"),
    )


def set_threads(cpus_per_worker: float) -> None:
    """Let PyTorch use as many threads as the worker has CPUs; more would slow each other down."""
    import torch  # noqa: PLC0415 - the driver of a plan needs no torch

    torch.set_num_threads(max(1, int(cpus_per_worker)))
