"""Ray: how a run connects to it, what fits on its nodes, and how its workers are configured."""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import socket
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

# Ray reads these when it is imported or started: short polls, no printed copies, no usage report.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "60")
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import grpc
import ray
import ray.train as train
from ray._private import services

from pipeline import signals
from pipeline.config.schema import ClusterSpec
from pipeline.errors import ClusterError, PipelineError
from pipeline.storage.scratch import scratch_folder

log = logging.getLogger(__name__)

Resources = Mapping[str, float]
"""What a node has, or what a worker takes, by kind: CPU, GPU."""

RESIZE_EVERY_S = 10.0
"""How often an elastic run looks whether more workers fit."""
OPEN_S = 4.0
"""How long a Ray may take to accept a connection, and again to answer."""
BUSY_S, NEW_NODES_S = 300.0, 3600.0
"""How long workers may wait for resources: that others use, and that the cluster has yet to add."""
START, START_S = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", 60.0
"""How long Ray Train waits for a group of workers before it asks once more."""
LOCAL = "local"
NO_MEMORY = ("out of memory", "outofmemory", "low on memory")
QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}


def connect(spec: ClusterSpec) -> None:
    """Join a Ray and require that the workers fit on its nodes.

    Raises:
        ClusterError: there is no Ray at that address, or the workers do not fit.
    """
    join(spec)
    require_fit(spec, living_nodes())


def join(spec: ClusterSpec) -> None:
    """Join the Ray that the recipe or RAY_ADDRESS names, else start one for this process alone.

    Raises:
        ClusterError: there is no Ray at that address.
    """
    if ray.is_initialized():
        return
    protect_token()
    address = _address(spec)
    try:
        with signals.kept():
            if address == LOCAL:
                folder = str(scratch_folder("ray"))
                atexit.register(ray.shutdown)  # before its folder goes
                ray.init(LOCAL, _temp_dir=folder, dashboard_host="127.0.0.1", **QUIET)
            else:
                ray.init(_require_ray(address), **QUIET)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"no Ray at {address}: {error}; start it, or give its address in cluster.address or "
            "RAY_ADDRESS; without one a Ray is started here"
        ) from error


def _address(spec: ClusterSpec) -> str:
    """Never a Ray that merely happens to be on this machine: it may be somebody's who ends it soon."""
    return spec.address or os.environ.get("RAY_ADDRESS") or LOCAL


def _require_ray(address: str) -> str:
    """The address, if a Ray answers there within seconds; Ray itself goes on trying for minutes.

    Raises:
        OSError: nobody answers, or something that is no Ray.
    """
    if address == "auto":  # Ray itself would also take any that it sees among the processes
        address = services.find_bootstrap_address(None) or ""
        if not address:
            raise ValueError("no Ray of this machine has written down its address")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        raise ValueError("an address is HOST:PORT, ray://HOST:PORT, auto or local")
    socket.create_connection((host.strip("[]"), int(port)), OPEN_S).close()
    if os.environ.get("RAY_USE_TLS", "0") in ("0", ""):
        options = [("grpc.enable_http_proxy", 0)]  # as Ray itself does
        channel = grpc.insecure_channel(f"{host}:{port}", options)
        try:
            grpc.channel_ready_future(channel).result(OPEN_S)
        except grpc.FutureTimeoutError:
            raise TimeoutError(
                f"something listens there, but gave no answer in {OPEN_S:g} s"
            ) from None
        finally:
            channel.close()
    return address


def protect_token() -> None:
    """Make the token of this user's Rays before Ray does, which would let everybody read it."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = Path.home() / ".ray" / "auth_token"
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    except FileExistsError:
        if path.stat().st_uid == os.getuid():
            path.chmod(0o600)
    except OSError as error:
        raise ClusterError(
            f"Ray's token cannot be written to {path}: {error}; name a file of your own in "
            "RAY_AUTH_TOKEN_PATH"
        ) from error


def reachable_nodes(spec: ClusterSpec) -> list[Resources] | None:
    """The nodes of the Ray that a run would join; None if it would start one on this machine.

    Raises:
        ClusterError: there is no Ray at the address.
    """
    if not ray.is_initialized() and _address(spec) == LOCAL:
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


@contextmanager
def floods_kept(folder: Path) -> Iterator[None]:
    """Keep in a file what Ray says at length about an error, and say it in two lines.

    Errors of our own code in a task stay what they are.

    Raises:
        ClusterError: Ray lost a process or a node, or itself.
    """
    try:
        yield
    except (ClusterError, ray.exceptions.RayError) as error:
        ours = isinstance(error, ClusterError)
        if (ours and error.__cause__ is None) or isinstance(error, ray.exceptions.RayTaskError):
            raise
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
        path.write_text("".join(traceback.format_exception(error)))
        what = str(error) if ours else f"Ray lost what it worked with: {cause_in_words(error)}"
        raise ClusterError(f"{what}\nAll that Ray said is in {path}") from None


def cause_in_words(error: BaseException) -> str:
    """What an error of Ray comes to, and what helps, in place of its pages."""
    name = type(error).__name__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [name]
    words = lines[0]
    if isinstance(error, ray.exceptions.RayTaskError):  # it ends with what was raised
        words = lines[-1]
    elif not isinstance(error, ray.exceptions.RayError):
        words = f"{name}: {words}"
    words = words.rstrip(".")
    if any(each in str(error).lower() for each in NO_MEMORY):
        words = f"out of memory: {words}; lower finetune.micro_batch or use larger nodes"
    return f"{words}; the same command goes on from what is finished or saved"


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
        failure_config=train.FailureConfig(  # type: ignore[call-arg]
            max_failures=spec.max_failures, controller_failure_limit=_start_tries(spec) - 1
        ),
        checkpoint_config=train.CheckpointConfig(num_to_keep=keep),
        logging_config=train.LoggingConfig(log_level="ERROR"),
    )


def _start_tries(spec: ClusterSpec) -> int:
    return round((NEW_NODES_S if spec.autoscaling else BUSY_S) / START_S)


def start_timeout_in_words(spec: ClusterSpec) -> str:
    """Why the workers did not come: what there is, what of it is free now, and what can be done."""
    nodes = living_nodes()
    kinds = list(per_worker(spec))
    waited_s = _start_tries(spec) * float(os.environ[START])
    free, each = _in_words(ray.available_resources(), kinds), _in_words(per_worker(spec), kinds)
    return (
        f"no place for the workers came free within {waited_s:.0f} s: the run needs {spec.min_workers} "
        f"of {each}, {fit_in_words(spec, nodes)}, and {free} of it is free now. Wait for what else runs "
        "there (`ray status` shows it) or lower cluster.num_workers; the same command goes on"
    )


def set_threads(cpus_per_worker: float) -> None:
    """Let PyTorch use as many threads as the worker has CPUs; more would slow each other down."""
    import torch  # noqa: PLC0415 - the driver of a plan needs no torch

    torch.set_num_threads(max(1, int(cpus_per_worker)))
