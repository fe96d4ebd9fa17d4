"""Speed is told from every worker, and what it is bound by in words."""

import re
import time
import urllib.request

import pytest
import ray

from pipeline.training.checkpoint import Checkpoints, LocalCheckpointManager
from pipeline.training.distributed import DistContext
from pipeline.training.gauges import EpochThroughput, WorkerGauges, verdict
from pipeline.training.trainer import StepTiming
from tests.pipeline.training.test_trainer import phase


def rows(*steps: tuple[float, float, float]):
    keys = ("perf/epoch", "perf/images_per_s", "perf/wait_frac")
    return [(i, dict(zip(keys, step, strict=True))) for i, step in enumerate(steps)]


def test_an_epoch_is_summed_up_by_time_not_by_steps() -> None:
    """One step a hundred times as slow as the others, all of it waiting, decides the epoch."""
    paces = EpochThroughput()
    assert paces.add(rows((0.5, 100.0, 0.0))) is None
    assert paces.add([(1, {"val/mean_iu": 0.5})]) is None
    said = paces.add(rows((1.0, 1.0, 1.0)))
    assert said.startswith("epoch 1: 2.0 images/s, loader-bound (99% of the time")
    assert "cluster.loader_workers" in said
    said = paces.add(rows((1.5, 10.0, 0.1), (2.0, 10.0, 0.1)))
    assert said.startswith("epoch 2: 10.0 images/s, compute-bound (10% of")


def test_of_epochs_told_again_the_last_is_summed_up() -> None:
    said = EpochThroughput().add(rows((1.0, 5.0, 0.0), (2.0, 4.0, 0.0), (2.5, 3.0, 0.0)))
    assert said.startswith("epoch 2: 4.0 images/s")


def test_the_verdict_changes_once() -> None:
    assert [verdict(frac).partition("-")[0] for frac in (0, 0.1, 0.3, 1)] == [
        *("compute", "compute", "loader", "loader")
    ]


def test_waiting_for_a_slow_loader_is_seen_by_the_loop(tiny_shards, tmp_path, monkeypatch) -> None:
    paces: list[StepTiming] = []
    told: list = []
    work = phase(tiny_shards, "finetune.batch_norm=frozen", epochs=1, log_rows=told.extend)
    work.log_timing = paces.append
    loader = work._micro_batches

    def slow(first_step):
        for micro_batches in loader(first_step):
            time.sleep(0.3)
            yield micro_batches

    monkeypatch.setattr(work, "_micro_batches", slow)
    work.run(LocalCheckpointManager(Checkpoints.in_folder(tmp_path)))
    assert [pace.images for pace in paces] == [8, 8, 6]
    assert all(0.3 <= pace.wait_s < pace.whole_s for pace in paces)
    fractions = [m["perf/wait_frac"] for _, m in told if "perf/wait_frac" in m]
    assert fractions == [pace.wait_frac for pace in paces]
    assert all(0 < frac < 1 for frac in fractions)


@ray.remote(num_cpus=0)
class Worker:
    def work(self) -> None:
        self.gauges = WorkerGauges("demo", "finetune-8s", DistContext(rank=3))
        for _ in range(4):
            self.gauges.show(StepTiming(images=8, wait_s=0.5, whole_s=2.0))


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_ray_exports_a_workers_speed_to_prometheus() -> None:
    worker = Worker.remote()
    ray.get(worker.work.remote())
    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = {
        "fcn_images_total": 32.0,
        "fcn_images_per_s": 4.0,
        "fcn_step_seconds": 2.0,
        "fcn_loader_wait_fraction": 0.25,
    }
    ends_at = time.monotonic() + 120
    while (seen := scrape(address)) != wanted and time.monotonic() < ends_at:
        time.sleep(1)
    assert seen == wanted


def scrape(address: str) -> dict[str, float]:
    text = urllib.request.urlopen(address, timeout=10).read().decode()
    lines = re.findall(r"^ray_(fcn_\w+)\{(.*)\} (\S+)$", text, re.M)
    return {
        name: float(value)
        for name, tags, value in lines
        if all(tag in tags for tag in ('run="demo"', 'phase="finetune-8s"', 'rank="3"'))
    }
