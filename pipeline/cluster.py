"""Ray: connecting to it, and its scaling and run configuration derived from the recipe."""

from __future__ import annotations

import logging
import os
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


def connect(spec: ClusterSpec) -> None:
    """Join a Ray that has room.

    Raises:
        ClusterError: there is none at that address, or it cannot hold the workers.
    """
    join(spec)
    require_room(spec, ray.cluster_resources())


def join(spec: ClusterSpec) -> None:
    """Join the Ray that the recipe or RAY_ADDRESS names, else start one here.

    Raises:
        ClusterError: there is none at that address.
    """
    if not ray.is_initialized():
        address = spec.address or os.environ.get("RAY_ADDRESS")
        try:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, ValueError) as error:
            raise ClusterError(f"no Ray at {address}: {error}") from error


def require_room(spec: ClusterSpec, have: dict[str, float]) -> None:
    """Fail now with the arithmetic rather than wait for ever; wait where nodes come on demand.

    Raises:
        ClusterError: the workers need more than the whole cluster has.
    """
    need = {"CPU": spec.min_workers * spec.cpus_per_worker}
    if spec.use_gpu:
        need["GPU"] = spec.min_workers * spec.gpus_per_worker
    for kind, amount in need.items():
        if amount > have.get(kind, 0):
            if spec.autoscaling:
                log.info("%g %ss now; waiting for nodes with %g", have.get(kind, 0), kind, amount)
                continue
            raise ClusterError(
                f"{spec.min_workers} workers need {amount:g} {kind}s, the cluster has "
                f"{have.get(kind, 0):g}; use fewer cluster.num_workers"
                + (" or a smaller cluster.cpus_per_worker" if kind == "CPU" else "")
                + "; or let it grow: cluster.autoscaling=true"
            )


def get(ref: Any) -> Any:  # noqa: ANN401 - whatever the task returns
    """A task's result, or the very error that it raised, if it is one of ours."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PipelineError):
            raise error.cause from None
        raise


def scaling(spec: ClusterSpec) -> train.ScalingConfig:
    """Workers and what each takes."""
    return train.ScalingConfig(  # type: ignore[call-arg]  # typed as the first version of Ray Train
        num_workers=spec.num_workers,  # type: ignore[arg-type]
        elastic_resize_monitor_interval_s=spec.resize_every_s,
        use_gpu=spec.use_gpu,
        resources_per_worker=per_worker(spec),
    )


def per_worker(spec: ClusterSpec) -> dict[str, float]:
    """What a worker takes."""
    return {"CPU": spec.cpus_per_worker} | ({"GPU": spec.gpus_per_worker} if spec.use_gpu else {})


def task_options(spec: ClusterSpec) -> dict[str, Any]:
    """Resources of a task that runs a net."""
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
    """Where checkpoints go and how many of the newest stay, how often to try again."""
    return train.RunConfig(  # type: ignore[call-arg]  # typed as the first version of Ray Train
        name=folder.name,
        storage_path=str(folder.parent),
        storage_filesystem=filesystem,
        failure_config=train.FailureConfig(max_failures=spec.max_failures),
        checkpoint_config=train.CheckpointConfig(num_to_keep=keep),
        logging_config=train.LoggingConfig(log_level="ERROR"),
    )


def set_threads(cpus_per_worker: float) -> None:
    """As many threads of arithmetic as the worker has CPUs; more would fight over them."""
    import torch  # noqa: PLC0415 - the driver of a plan needs no torch

    torch.set_num_threads(max(1, int(cpus_per_worker)))
