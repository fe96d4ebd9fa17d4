"""A model of the seconds of a step on N devices, and its check: two workers predicted and measured.

    python -m benchmarks.scaling

A step computes, updates, exchanges gradients and sums, while loaders read and decode the next one:

    step = max(compute + update + exposed exchange, decode, read)

with decode added instead where the worker decodes itself. Every device holds the same number of images,
so the global batch grows with the devices (weak scaling), unless the caller shrinks `images`.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import ray
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils.flop_counter import FlopCounterMode

from fcn.nets import FCN, Blueprint
from fcn.normalise import set_batch_norm
from pipeline import cluster
from pipeline.config.recipe import load_recipe
from pipeline.data.shards import Shards
from pipeline.flow import Flow
from pipeline.training.distributed import DistContext
from pipeline.training.state import TrainState
from pipeline.training.trainer import StepTiming, Trainer, build_optimizer

UPDATE_PASSES = 8
"""AdamW reads parameter, gradient and two moments and writes three of them; the norm reads gradients."""
BUCKET_BYTES = 25 << 20
"""The size of DDP's buckets; the last one is exchanged after the backward pass has ended."""
BACKWARD_FRAC = 2 / 3
"""The part of the compute that an exchange can hide behind."""
SUMS = 2
"""Small all-reduces of the training loop in each step: counts and the loss."""


class Net(NamedTuple):
    """What one image costs, forward and backward; traffic is of activations read and written."""

    flops: float
    traffic_bytes: float
    gradient_bytes: float


class Device(NamedTuple):
    """What a device achieves, not the peak of its data sheet."""

    flops_per_s: float
    bytes_per_s: float


class Link(NamedTuple):
    """The link of one device, in one direction."""

    bytes_per_s: float
    latency_s: float


class Fabric(NamedTuple):
    """Devices in nodes; `overlaps`: an exchange leaves the device free to compute."""

    per_node: int
    inside: Link
    between: Link
    overlaps: bool = True


class Feed(NamedTuple):
    """What a core decodes, cores of each device (0: the worker decodes), what the store gives to all."""

    decoded_per_s: float
    cores: float
    image_bytes: float
    store_bytes_per_s: float


class Job(NamedTuple):
    """What is trained on what; images in a step and in a micro-batch are those of one device."""

    net: Net
    device: Device
    fabric: Fabric
    feed: Feed
    images: int
    micro: int


def ring_s(size_bytes: float, devices: float, link: Link) -> float:
    """An all-reduce by a ring: each device sends 2 (n - 1) parts of 1 / n."""
    hops = 2 * (devices - 1)
    return hops / devices * size_bytes / link.bytes_per_s + hops * link.latency_s


def all_reduce_s(size_bytes: float, devices: int, fabric: Fabric) -> float:
    """Inside the nodes, then between nodes, where each device carries its part of the sum."""
    inside = min(devices, fabric.per_node)
    within = ring_s(size_bytes, inside, fabric.inside)
    return within + ring_s(size_bytes / inside, devices / inside, fabric.between)


def exposed_s(job: Job, devices: int) -> float:
    """The part of the exchange for which devices wait."""
    sums = SUMS * all_reduce_s(8, devices, job.fabric)
    whole = all_reduce_s(job.net.gradient_bytes, devices, job.fabric)
    if not job.fabric.overlaps:
        return whole + sums
    last_bucket = min(1.0, BUCKET_BYTES / job.net.gradient_bytes)
    hidden = BACKWARD_FRAC * compute_s(job, min(job.micro, job.images))
    return max(whole * last_bucket, whole - hidden) + sums


def compute_s(job: Job, images: int) -> float:
    """Arithmetic or memory traffic, whichever takes longer."""
    net, device = job.net, job.device
    return images * max(net.flops / device.flops_per_s, net.traffic_bytes / device.bytes_per_s)


def step_s(job: Job, devices: int) -> float:
    """Seconds of a step on that many devices."""
    feed, update = job.feed, UPDATE_PASSES * job.net.gradient_bytes / job.device.bytes_per_s
    busy = compute_s(job, job.images) + update + exposed_s(job, devices)
    decode = job.images / (feed.decoded_per_s * (feed.cores or 1))
    read = devices * job.images * feed.image_bytes / feed.store_bytes_per_s
    return max(busy + (0 if feed.cores else decode), read, decode)


def efficiency(job: Job, devices: int) -> float:
    """Throughput over that of as many single devices."""
    return step_s(job, 1) / step_s(job, devices)


def net_constants(backbone: str, height: int, width: int | None = None) -> Net:
    """FCN-8s of 21 classes, counted on shapes alone. The backward pass counts twice the forward one.

    PyTorch's own count of a backward pass takes grouped convolutions for full ones, so it is not used.
    Activations are of 2 bytes.
    """
    with torch.device("meta"):
        net = set_batch_norm(FCN(Blueprint(backbone, 21, 8)), "frozen")
        image = torch.empty(1, 3, height, width or height)
    values = 0

    def count(module: torch.nn.Module, given: Any, made: torch.Tensor) -> None:  # noqa: ANN401
        nonlocal values
        values += given[0].numel() + made.numel()

    for module in net.modules():
        if not list(module.children()):
            module.register_forward_hook(count)
    with FlopCounterMode(display=False) as flops:
        net(image)
    gradient = sum(p.numel() * p.element_size() for p in net.parameters() if p.requires_grad)
    return Net(3.0 * flops.get_total_flops(), 3.0 * 2 * values, float(gradient))


def seconds_of(call: Callable[[], object], times: int) -> float:
    """The shortest of some calls, after one that warms up."""
    took = []
    for _ in range(times + 1):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return min(took[1:])


STEPS, WARM_UP = 10, 2
TRIAL = (
    f"data.shapes={{num_train: {16 * STEPS}, num_val: 2, num_test: 1}}",
    "finetune.epochs=1",
    "cluster.num_workers=2",
)
SETTINGS = ("alone", "apart", "together")
"""One worker; two that do not know each other; two that share the work."""


class NoCheckpoints:
    """A training that is only timed."""

    def restore(self, net: FCN, optimizer: torch.optim.Optimizer) -> TrainState:
        """Begin at the start."""
        return TrainState()

    def save(self, net: FCN, optimizer: torch.optim.Optimizer, state: TrainState) -> None:
        """Keep nothing."""

    def noticed(self, step: int = 0) -> bool:
        """Nobody asks for anything."""
        return False


def time_steps(files: dict[str, list[Path]], context: DistContext) -> tuple[float, float]:
    """The fastest step of the demo and its wait for images, in seconds: other work only slows."""
    recipe = load_recipe("demo", TRIAL)
    steps: list[StepTiming] = []
    net, shards = (
        FCN(Blueprint(recipe.net.backbone, 5, 8)),
        {k: Shards(v) for k, v in files.items()},
    )
    trainer = Trainer(
        *(net, recipe.finetune, recipe.phases[0], recipe.seed),
        *(shards["train"], shards["val"], context, 0, lambda rows: None, steps.append),
    )
    trainer.run(NoCheckpoints())  # type: ignore[arg-type]
    fastest = min(steps[WARM_UP:], key=lambda step: step.whole_s)
    return fastest.whole_s, fastest.wait_s


def one_of_two(rank: int, files: dict[str, list[Path]], folder: str, rounds: int) -> None:
    """A process of the trial: all settings by turns, then what an all-reduce costs."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    steps: dict[str, list[tuple[float, float]]] = {setting: [] for setting in SETTINGS}
    for _ in range(rounds):
        for setting in SETTINGS:
            dist.barrier()
            if setting != "alone" or rank == 0:
                context = DistContext(rank, 2) if setting == "together" else DistContext()
                steps[setting].append(time_steps(files, context))
    gradient = torch.zeros(int(net_constants("efficientnet_lite0", 64).gradient_bytes) // 4)
    small, large = torch.zeros(1), seconds_of(lambda: dist.all_reduce(gradient), 10)
    latency = seconds_of(lambda: dist.all_reduce(small), 50)
    if rank == 0:
        measured = {"steps": steps, "latency_s": latency, "gradient_s": large}
        (Path(folder) / "measured.json").write_text(json.dumps(measured))
    dist.destroy_process_group()


def check_two_workers(folder: Path, rounds: int) -> None:
    """Predict two workers from one, and measure them."""
    recipe = load_recipe("demo", [*TRIAL, f"store={folder}/store"])
    cluster.join(recipe.cluster)
    data = Flow(recipe).run("ingest").results["ingest"]
    ray.shutdown()
    files = {split: data.paths(split) for split in ("train", "val")}
    torch.set_num_threads(1)
    mp.spawn(one_of_two, (files, str(folder), rounds), nprocs=2)
    measured = json.loads((folder / "measured.json").read_text())
    batch, micro = recipe.finetune.global_batch, recipe.finetune.micro_batch
    net = net_constants("efficientnet_lite0", 120, 160)._replace(traffic_bytes=0)
    optimizer = build_optimizer(
        FCN(Blueprint("efficientnet_lite0", 5, 8)), recipe.finetune.optimizer, 1e-6
    )
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    update = seconds_of(optimizer.step, 10)
    link = Link(net.gradient_bytes / measured["gradient_s"], measured["latency_s"] / 2)
    fabric = Fabric(2, link, link, overlaps=False)

    def two_from(whole_s: float, wait_s: float) -> float:
        """Seconds of a step of two workers, from the steps of one that does all the work."""
        flops_per_s = net.flops * batch / (whole_s - wait_s - update)
        device = Device(flops_per_s, UPDATE_PASSES * net.gradient_bytes / update)
        feed = Feed(batch / wait_s, 0, 0, float("inf"))
        return step_s(Job(net, device, fabric, feed, batch // 2, micro), 2)

    click.echo(
        f"1 -> 2 workers, demo ({batch} images of 120 x 160 a step), {rounds} rounds by turns; "
        f"{net.gradient_bytes / 1e6:.1f} MB and 4 bytes by gloo: {measured['gradient_s'] * 1e3:.1f} and "
        f"{measured['latency_s'] * 1e3:.2f} ms; update: {update * 1e3:.1f} ms\n\n"
        "| round | alone | two apart | two together | predicted / measured | from two apart |\n"
        "|---|---|---|---|---|---|"
    )
    steps = [[tuple(step) for step in measured["steps"][setting]] for setting in SETTINGS]
    turns = dict(enumerate(zip(*steps, strict=True), 1))
    for name, (alone, apart, both) in (turns | {"fastest": tuple(map(min, steps))}).items():
        seconds = " | ".join(f"{step[0]:.3f} s" for step in (alone, apart, both))
        ratios = " | ".join(f"{both[0] / two_from(*one):.2f}" for one in (alone, apart))
        click.echo(f"| {name} | {seconds} | {ratios} |")


@click.command(help=__doc__)
@click.option(
    "--rounds", default=5, show_default=True, help="Rounds of the trial with two workers."
)
def main(rounds: int) -> None:
    """Predict and measure."""
    with tempfile.TemporaryDirectory() as folder:
        check_two_workers(Path(folder), rounds)


if __name__ == "__main__":
    main()
