"""What a checkpoint costs: how long training stands still for it, beside the time of a step.

    python benchmarks/checkpoints.py

One worker, FCN-8s with AdamW, 4 images of 352 x 480 a step. Ray's two ways of carrying a checkpoint to
the store take turns in one run: while training waits (SYNC) and beside the training (ASYNC, which the
pipeline uses). Medians.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import ray
import ray.train as train
import torch
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.torch import TorchTrainer

from fcn.losses import cross_entropy_sum
from fcn.nets import FCN, Blueprint
from fcn.normalise import set_batch_norm
from pipeline.training.state import TrainState, save_state

MODES = {"SYNC": CheckpointUploadMode.SYNC, "ASYNC": CheckpointUploadMode.ASYNC}
STEPS_BETWEEN = 4


def worker(config: dict[str, Any]) -> dict[str, list[float]]:
    """Steps and checkpoints by turns; seconds of each."""
    torch.set_num_threads(1)
    net = set_batch_norm(FCN(Blueprint(config["backbone"], 11, 8)), "frozen")
    optimizer = torch.optim.AdamW(net.parameters())
    image = torch.randint(0, 256, (4, 3, 352, 480), dtype=torch.uint8)
    label = torch.randint(0, 11, (4, 352, 480))
    times_s: dict[str, list[float]] = {"step": [], "write": [], **{mode: [] for mode in MODES}}
    for turn in range(config["rounds"] + 1):
        for mode, upload in MODES.items():
            for _ in range(STEPS_BETWEEN):
                began = time.perf_counter()
                (cross_entropy_sum(net(image), label) / label.numel()).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                times_s["step"].append(time.perf_counter() - began)
            began = time.perf_counter()
            scratch = Path(tempfile.mkdtemp())
            save_state(scratch, net, optimizer, TrainState(turn))
            written = time.perf_counter()
            checkpoint = Checkpoint.from_directory(scratch)
            train.report({"turn": turn}, checkpoint=checkpoint, checkpoint_upload_mode=upload)
            if turn:  # the first warms up
                times_s["write"].append(written - began)
                times_s[mode].append(time.perf_counter() - began)
    return times_s


@click.command(help=__doc__)
@click.option("--backbone", default="efficientnet_lite0", show_default=True)
@click.option("--rounds", default=5, show_default=True)
def main(backbone: str, rounds: int) -> None:
    """Print a line each, and the ratios."""
    import pipeline.cluster  # noqa: F401, PLC0415 - sets the intervals at which Ray Train looks

    ray.init(address="local", log_to_driver=False)
    with tempfile.TemporaryDirectory() as store:
        trainer = TorchTrainer(
            worker,
            train_loop_config={"backbone": backbone, "rounds": rounds},
            scaling_config=train.ScalingConfig(num_workers=1),
            run_config=train.RunConfig(
                name="cost",
                storage_path=store,
                checkpoint_config=train.CheckpointConfig(num_to_keep=2),
            ),
        )
        times_s = trainer.fit().return_value
    step_s = statistics.median(times_s["step"])
    click.echo(f"{'a step':28} {step_s:7.3f} s")
    for name, words in (
        ("write", "written and hashed"),
        ("SYNC", "training stands still, SYNC"),
        ("ASYNC", "training stands still, ASYNC"),
    ):
        seconds = statistics.median(times_s[name])
        click.echo(f"{words:28} {seconds:7.3f} s  {seconds / step_s:5.2f} steps")
    ray.shutdown()


if __name__ == "__main__":
    main()
