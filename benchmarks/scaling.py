"""Scale on paper: constants measured here, the model checked on 1 -> 2 workers, and predictions.

    python -m benchmarks.scaling --picture docs/scaling.png

Settings that are compared take turns in one run. What is measured is said to be; what is assumed of
GPUs, networks and stores that are not here stands in ASSUMED, GPU_FABRIC and GPU_FEED.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
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
    cost,
    efficiency,
    hours,
    predict,
)
from fcn.backbones import BACKBONES
from fcn.nets import FCN, Blueprint
from fcn.normalise import set_batch_norm
from pipeline.config.recipe import Recipe, load_recipe
from pipeline.data.loader import TrainDataset, train_batches
from pipeline.data.sampler import BatchSchedule, epoch_order
from pipeline.data.shards import Shards
from pipeline.data.sources import Sample, open_source
from pipeline.stages.ingest import check_shard
from pipeline.training.distributed import DistContext
from pipeline.training.state import TrainState
from pipeline.training.trainer import StepTiming, Trainer, build_optimizer

SIDE_PX = 512
NUM_CLASSES = 21


@dataclass(frozen=True)
class Assumed:
    """A GPU's data sheet (dense bf16, HBM) and the part of it that convolutions are taken to achieve."""

    peak_flops_per_s: float
    peak_bytes_per_s: float
    flops_frac: float = 0.35
    bytes_frac: float = 0.6

    @property
    def achieved(self) -> Device:
        """What the model counts with."""
        return Device(
            self.peak_flops_per_s * self.flops_frac, self.peak_bytes_per_s * self.bytes_frac
        )


ASSUMED = {"H200": Assumed(989e12, 4.8e12), "A100": Assumed(312e12, 2.04e12)}
GPU_FABRIC = Fabric(8, inside=Link(0.8 * 450e9, 5e-6), between=Link(0.8 * 50e9, 10e-6))
"""NVLink of an H200 inside a node, 400 Gbit/s for each GPU between nodes; 0.8 of both."""
GPU_FEED = Feed(decoded_per_s=0, cores=12, image_bytes=116e3, store_bytes_per_s=20e9)
"""A photograph as a JPEG and its label map; a parallel file system. Decoding is measured."""
GPU_IMAGES, GPU_MICRO = 32, 16
PRICE = 3.0
"""For a GPU hour; multiply for yours."""
DEVICES = (1, 8, 16, 64, 128, 512, 1024)
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
    return Net(backbone, 3.0 * flops.get_total_flops(), 3.0 * 2 * values, float(gradient))


def seconds_of(call: Any, times: int = 3) -> float:  # noqa: ANN401 - any callable
    """The least of a few, after one that warms up."""
    took = []
    for _ in range(times + 1):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return min(took[1:])


def core_flops_per_s(backbone: str, side_px: int) -> float:
    """Forward and backward of one image on one core, channels last."""
    net = set_batch_norm(FCN(Blueprint(backbone, NUM_CLASSES, 8)), "frozen")
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = torch.randint(0, 256, (1, 3, side_px, side_px), dtype=torch.uint8)
    return net_constants(backbone, side_px).flops / seconds_of(lambda: net(image).sum().backward())


def update_s(net: FCN, recipe: Recipe) -> float:
    """The optimiser's step alone."""
    optimizer = build_optimizer(net, recipe.finetune.optimizer, 1e-6)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return seconds_of(optimizer.step, 10)


@dataclass(frozen=True)
class Drawn:
    """A source whose images are there already."""

    files: dict[str, tuple[bytes, bytes]]

    def read(self, sample: Sample) -> tuple[bytes, bytes]:
        """As they were drawn."""
        return self.files[sample.id]


def make_shards(recipe: Recipe, folder: Path) -> tuple[dict[str, Shards], float]:
    """Scenes by the ingest's own code, in this process; how many it checks and writes in a second."""
    source = open_source(recipe)
    samples, _ = source.samples()
    drawn = Drawn({sample.id: source.read(sample) for sample in samples})
    made = {}
    began = time.perf_counter()
    for split in ("train", "val"):
        mine = [s for s in samples if s.split == split]
        path = folder / f"{split}.arrow"
        check_shard(drawn, mine, recipe.data.class_table(), (), path)  # type: ignore[arg-type]
        made[split] = Shards([path])
    return made, (len(samples) - 1) / (time.perf_counter() - began)  # one is for the test


def decoded_per_s(recipe: Recipe, shards: Shards) -> float:
    """Images that one core reads, decodes and augments in a second."""
    dataset = TrainDataset(shards, recipe.finetune.augment, 0)
    plan = BatchSchedule(len(shards), 8, 8, epochs=1, seed=0)
    list(train_batches(dataset, plan, plan.num_steps - 1, 0, 1, 0))  # warms up
    began = time.perf_counter()
    seen = sum(len(b.ids) for step in train_batches(dataset, plan, 0, 0, 1, 0) for b in step)
    return seen / (time.perf_counter() - began)


def disk_bytes_per_s(folder: Path, size: int = 512 << 20) -> float:
    """One reader of one file that is not in memory."""
    path = folder / "large"
    path.write_bytes(os.urandom(1 << 20) * (size >> 20))
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        while file.read(8 << 20):
            pass
    path.unlink()
    return size / (time.perf_counter() - began)


class NoKeeper:
    """A training that is only timed."""

    def restore(self, net: FCN, optimizer: torch.optim.Optimizer) -> TrainState:
        """From the start."""
        return TrainState()

    def save(self, net: FCN, optimizer: torch.optim.Optimizer, cursor: TrainState) -> None:
        """Nothing is kept."""

    def noticed(self) -> bool:
        """Nobody wants anything."""
        return False

    def wish(self) -> str:
        """Never asked."""
        return "go on"


STEPS, WARM_UP = 10, 2
TRIAL = (
    f"data.shapes={{num_train: {16 * STEPS}, num_val: 2, num_test: 1}}",
    "finetune.epochs=1",
    "cluster.num_workers=2",
)
SETTINGS = ("alone", "apart", "together")
"""One worker; two that do not know each other; two that share the work."""


def time_steps(files: dict[str, list[Path]], team: DistContext) -> tuple[float, float]:
    """The fastest step of the demo and its wait for images, in seconds: other work only slows."""
    recipe = load_recipe("demo", TRIAL)
    paces: list[StepTiming] = []
    phase = Trainer(
        FCN(Blueprint(recipe.net.backbone, 5, 8)),
        recipe.finetune,
        recipe.phases[0],
        recipe.seed,
        Shards(files["train"]),
        Shards(files["val"]),
        team,
        log_timing=paces.append,
    )
    phase.run(NoKeeper())  # type: ignore[arg-type]
    fastest = min(paces[WARM_UP:], key=lambda pace: pace.whole_s)
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
                team = DistContext(rank, 2) if setting == "together" else DistContext()
                steps[setting].append(time_steps(files, team))
    gradient = torch.zeros(int(net_constants("efficientnet_lite0", 64).gradient_bytes) // 4)
    small, large = torch.zeros(1), seconds_of(lambda: dist.all_reduce(gradient), 10)
    latency = seconds_of(lambda: dist.all_reduce(small), 50)
    if rank == 0:
        told = {"steps": steps, "latency_s": latency, "gradient_s": large}
        (Path(folder) / "told.json").write_text(json.dumps(told))
    dist.destroy_process_group()


def check_two_workers(folder: Path, rounds: int) -> None:
    """Predict two workers from one, and measure them."""
    torch.set_num_threads(1)
    recipe = load_recipe("demo", TRIAL)
    files = {split: shards.files for split, shards in make_shards(recipe, folder)[0].items()}
    mp.spawn(one_of_two, (files, str(folder), rounds), nprocs=2)
    told = json.loads((folder / "told.json").read_text())
    batch, micro = recipe.finetune.global_batch, recipe.finetune.micro_batch
    net = replace(net_constants("efficientnet_lite0", 120, 160), traffic_bytes=0)
    update = update_s(FCN(Blueprint("efficientnet_lite0", 5, 8)), recipe)
    link = Link(net.gradient_bytes / told["gradient_s"], told["latency_s"] / 2)
    fabric = Fabric(2, link, link, overlaps=False)

    def two_from(whole_s: float, wait_s: float) -> float:
        """Seconds of a step of two workers, from the steps of one that does all the work."""
        device = Device(
            net.flops * batch / (whole_s - wait_s - update),
            UPDATE_PASSES * net.gradient_bytes / update,
        )
        feed = Feed(batch / wait_s, 0, 0, float("inf"))
        return predict(Job(net, device, fabric, feed, batch // 2, micro), 2).step_s

    click.echo(
        f"\n1 -> 2 workers, demo ({batch} images of 120 x 160 a step), {rounds} rounds by turns; "
        f"all-reduce by gloo:\n{told['gradient_s'] * 1e3:.1f} ms for {net.gradient_bytes / 1e6:.1f} MB, "
        f"{told['latency_s'] * 1e3:.2f} ms for 4 bytes; update {update * 1e3:.1f} ms\n\n"
        "| round | alone | two apart | two together | predicted / measured | from two apart |\n"
        "|---|---|---|---|---|---|"
    )
    steps = [[tuple(step) for step in told["steps"][setting]] for setting in SETTINGS]
    turns = dict(enumerate(zip(*steps, strict=True), 1))
    for name, (alone, apart, both) in (turns | {"fastest": tuple(map(min, steps))}).items():
        ratios = [both[0] / two_from(*one) for one in (alone, apart)]
        click.echo(
            f"| {name} | {alone[0]:.3f} s | {apart[0]:.3f} s | {both[0]:.3f} s "
            f"| {ratios[0]:.2f} | {ratios[1]:.2f} |"
        )


def tell_constants(folder: Path) -> Feed:
    """What is measured here and counted from the nets; returns the feed of a GPU."""
    torch.set_num_threads(1)
    click.echo(f"{'FCN-8s on':20} {'GFLOP':>8} {'traffic':>9} {'gradient':>9}   one core achieves")
    for backbone in BACKBONES:
        net = net_constants(backbone, SIDE_PX)
        speed = core_flops_per_s(backbone, 192)
        click.echo(
            f"{backbone:20} {net.flops / 1e9:8.1f} {net.traffic_bytes / 1e6:6.0f} MB "
            f"{net.gradient_bytes / 1e6:6.1f} MB   {speed / 1e9:6.1f} GFLOP/s"
        )
    sizes = "data.shapes={num_train: 64, num_val: 1, num_test: 1, height_px: 375, width_px: 500}"
    recipe = load_recipe(
        "demo",
        [
            sizes,
            f"finetune.augment.crop_px=[{SIDE_PX},{SIDE_PX}]",
            "finetune.augment.scale=[0.5,2.0]",
        ],
    )
    made, checked = make_shards(recipe, folder)
    shards = made["train"]
    size = shards.files[0].stat().st_size / len(shards)
    decoded = decoded_per_s(recipe, shards)
    click.echo(
        f"\ndecode and augment   {decoded:8.1f} images/s on one core (375 x 500, crop {SIDE_PX})"
    )
    click.echo(
        f"check and write      {checked:8.1f} images/s on one core, {size / 1e3:.0f} kB each"
    )
    click.echo(f"disk, one reader     {disk_bytes_per_s(folder) / 1e9:8.2f} GB/s")
    opened = seconds_of(lambda: len(Shards(shards.files * 200)), 2) / 200
    click.echo(f"open a shard         {opened * 1e6:8.0f} us")
    order = seconds_of(lambda: epoch_order(10**7, 0, 0), 1)
    click.echo(f"order of an epoch    {order * 1e2:8.1f} ns an image, 8 bytes")
    return replace(GPU_FEED, decoded_per_s=decoded)


def gpu_job(backbone: str, gpu: str, feed: Feed) -> Job:
    """What a row of the prediction is about."""
    net = net_constants(backbone, SIDE_PX)
    return Job(net, ASSUMED[gpu].achieved, GPU_FABRIC, feed, GPU_IMAGES, GPU_MICRO)


def tell_predictions(gpu: str, feed: Feed) -> None:
    """A Markdown table for docs/scaling.md."""
    click.echo(f"\npredicted for {gpu}s; 100 million images once; {PRICE:g} for a GPU hour\n")
    click.echo("| net | GPUs | images/s | efficiency | bound by | hours | cost |")
    click.echo("|---|---|---|---|---|---|---|")
    for backbone in SHOWN:
        job = gpu_job(backbone, gpu, feed)
        for n in DEVICES:
            p = predict(job, n)
            click.echo(
                f"| {backbone} | {n:,} | {p.images_per_s:,.0f} | {efficiency(job, n):.2f} | {p.bound} | "
                f"{hours(job, n, 1e8):,.2f} | {cost(job, n, 1e8, PRICE):,.0f} |"
            )


def draw(path: Path, gpu: str, feed: Feed) -> None:
    """Images/s and efficiency against the number of GPUs, with and without the limits of the feed."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    devices = [2**i for i in range(11)]
    figure, (speed, part) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for colour, backbone in enumerate(SHOWN):
        job = gpu_job(backbone, gpu, feed)
        fed = replace(job, feed=replace(feed, cores=1e9, store_bytes_per_s=float("inf")))
        speeds = [predict(job, n).images_per_s for n in devices]
        speed.plot(devices, speeds, f"C{colour}o-", ms=4, label=backbone)
        free = [predict(fed, n).images_per_s for n in devices]
        speed.plot(devices, free, f"C{colour}--", lw=1)
        part.plot(devices, [efficiency(fed, n) for n in devices], f"C{colour}--", lw=1)
        part.plot(devices, [efficiency(job, n) for n in devices], f"C{colour}o-", ms=4)
    store = feed.store_bytes_per_s / feed.image_bytes
    speed.axhline(store, color="0.5", lw=0.8)
    speed.text(
        1, store * 1.1, f"store: {feed.store_bytes_per_s / 1e9:g} GB/s", color="0.4", fontsize=8
    )
    speed.set(xscale="log", yscale="log", ylabel="images/s", title=f"predicted for {gpu}s")
    part.set(xscale="log", ylim=(0, 1.05), ylabel="efficiency", title="against N single GPUs")
    for axes in (speed, part):
        axes.set_xlabel("GPUs (8 a node)")
        axes.set_xticks([1, 8, 64, 512, 1024], ["1", "8", "64", "512", "1,024"])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    speed.plot([], [], "k--", lw=1, label="if loader and store were no limit")
    speed.legend(fontsize=8)
    figure.savefig(path, dpi=110)


@click.command(help=__doc__)
@click.option("--gpu", default="H200", show_default=True, type=click.Choice(list(ASSUMED)))
@click.option("--rounds", default=5, show_default=True, help="Of the trial with two workers.")
@click.option("--picture", type=click.Path(path_type=Path), help="Where to draw the prediction.")
def main(gpu: str, rounds: int, picture: Path | None) -> None:
    """Measure, check, predict."""
    with tempfile.TemporaryDirectory() as folder:
        feed = tell_constants(Path(folder))
        check_two_workers(Path(folder), rounds)
    tell_predictions(gpu, feed)
    if picture:
        draw(picture, gpu, feed)


if __name__ == "__main__":
    main()
