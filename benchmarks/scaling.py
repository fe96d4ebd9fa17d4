"""Predict two workers from one and measure them; predict GPUs that are not here from their data sheets.

    python -m benchmarks.scaling

Settings that are compared take turns in one run. What is assumed of GPUs, networks and stores stands in
H200, FABRIC and FEED.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import ray
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.throughput import (
    UPDATE_PASSES,
    Device,
    Fabric,
    Feed,
    Job,
    Link,
    Net,
    efficiency,
    predict,
)
from fcn.nets import FCN, Blueprint
from fcn.normalise import set_batch_norm
from pipeline import cluster
from pipeline.config.recipe import load_recipe
from pipeline.data.shards import Shards
from pipeline.flow import Flow
from pipeline.training.trainer import (
    DistContext,
    StepTiming,
    Trainer,
    TrainState,
    build_optimizer,
)

NUM_CLASSES, SIDE_PX = 21, 512
H200 = Device(0.35 * 989e12, 0.6 * 4.8e12)
"""Dense bf16 and HBM of its data sheet, and the part of both that convolutions are taken to achieve."""
FABRIC = Fabric(8, inside=Link(0.8 * 450e9, 5e-6), between=Link(0.8 * 50e9, 10e-6))
"""NVLink of an H200 inside a node, 400 Gbit/s for each GPU between nodes; 0.8 of both."""
FEED = Feed(decoded_per_s=142, cores=12, image_bytes=116e3, store_bytes_per_s=20e9)
"""JPEGs of 375 x 500 and their label maps, decoded and augmented as fast as on one core of a virtual
machine; a parallel file system."""
DEVICES = (1, 128, 1024)
SHOWN = ("efficientnet_lite0", "resnet50", "vgg16")


def net_constants(backbone: str, height: int, width: int | None = None) -> Net:
    """Counted on shapes alone: nothing is computed. The backward pass counts twice the forward one.

    PyTorch's own count of a backward pass takes grouped convolutions for full ones, so it is not used.
    Activations are of 2 bytes.
    """
    with torch.device("meta"):
        net = set_batch_norm(FCN(Blueprint(backbone, NUM_CLASSES, 8)), "frozen")
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
        return predict(Job(net, device, fabric, feed, batch // 2, micro), 2).step_s

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


def print_predictions() -> None:
    """What is predicted for H200s, as a Markdown table."""
    click.echo(
        "\n| FCN-8s on | GFLOP an image | gradient | GPUs | images/s | efficiency | bound by |"
        "\n|---|---|---|---|---|---|---|"
    )
    for backbone in SHOWN:
        net = net_constants(backbone, SIDE_PX)
        job = Job(net, H200, FABRIC, FEED, images=32, micro=16)
        costs = f"{net.flops / 1e9:.0f} | {net.gradient_bytes / 1e6:.1f} MB"
        for n in DEVICES:
            p = predict(job, n)
            words = f"{p.images_per_s:,.0f} | {efficiency(job, n):.2f} | {p.bound}"
            click.echo(f"| {backbone} | {costs} | {n:,} | {words} |")


@click.command(help=__doc__)
@click.option(
    "--rounds", default=5, show_default=True, help="Rounds of the trial with two workers."
)
def main(rounds: int) -> None:
    """Measure, check, predict."""
    with tempfile.TemporaryDirectory() as folder:
        check_two_workers(Path(folder), rounds)
    print_predictions()


if __name__ == "__main__":
    main()
