"""How busy a search keeps its slots at uneven speeds, and how often a trial is started.

Everything is the search's own (Tune, its schedulers, records, MLflow), but for the training: a trial
sleeps, each at a speed of its own, and reports a mean IU that follows from its number.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import numpy as np
import ray
from ray import tune
from ray.tune.trainable import wrap_function

from pipeline.config.recipe import load_recipe
from tuning import search
from tuning.logger import SearchLogger
from tuning.records import Records
from tuning.schedulers import scheduler_of
from tuning.searchers import suggest_by
from tuning.settings import Settings

EPOCHS = 9
SMALL = (
    "data.shapes={num_train: 22, num_val: 6, num_test: 4, height_px: 48, width_px: 64}",
    "finetune.init=scratch",
    f"finetune.epochs={EPOCHS}",
    "finetune.validate_every_epochs=1",
)


def sleep_as_if_trained(config: dict[str, Any]) -> None:
    """Nine epochs, of which each takes 1 to 4 s, the same for all epochs of a trial."""
    task, began = config["task"], time.time()
    rng = np.random.default_rng(task.number)
    speed_s, top = rng.uniform(1, 4), rng.uniform(0.2, 0.8)
    journal = Path(task.store.files.local) / "journal"
    journal.mkdir(exist_ok=True)
    try:
        for epoch in range(1, EPOCHS + 1):
            time.sleep(speed_s)
            images = 22 * epoch
            tune.report({"images": images, "step": epoch, "mean_iu": top * epoch / (epoch + 2)})
    finally:
        line = {"number": task.number, "began": began, "ended": time.time()}
        (journal / f"{task.number}-{began}.json").write_text(json.dumps(line))


def busy(spans: list[tuple[float, float]], begin: float, end: float, slots: int) -> float:
    """The share of the slots' time between two moments in which a trial trained."""
    trained = sum(max(0.0, min(end, b) - max(begin, a)) for a, b in spans)
    return trained / (slots * (end - begin))


@click.command()
@click.option("--slots", default=4, show_default=True)
@click.option("--trials", default=32, show_default=True)
@click.option("--scheduler", default="asha", show_default=True)
def main(slots: int, trials: int, scheduler: str) -> None:
    """Print how busy the slots were and how many starts there were."""
    os.environ.update(search.ENVIRONMENT)
    search.TrialTrainable = wrap_function(sleep_as_if_trained)  # type: ignore[misc]
    ray.init("local", num_cpus=slots, log_to_driver=False, include_dashboard=False)
    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe("demo", [*SMALL, f"store={folder}", "cluster.num_workers=1"])
        settings = Settings(name="slots", trials=trials, scheduler=scheduler, sampler="random")
        with SearchLogger(recipe, Path(folder), "search slots", "slots") as logger:
            records = Records(search.Store(folder), "slots")
            driver = search.Driver(recipe, settings, records, logger, "slots")
            plan = driver.plan("random", scheduler)
            records.begin(plan, recipe, settings)
            driver.fit(suggest_by(plan, recipe), scheduler_of(plan), slots)
        lines = [json.loads(p.read_text()) for p in (Path(folder) / "journal").iterdir()]
    spans = [(line["began"], line["ended"]) for line in lines]
    begin, last = min(a for a, _ in spans), max(a for a, _ in spans)
    end, counts = max(b for _, b in spans), records.search.counts()
    starts = Counter(line["number"] for line in lines)
    click.echo(f"{slots} slots, {trials} trials ({scheduler}), {dict(counts)}, {end - begin:.0f} s")
    click.echo(f"busy until the last trial began  {busy(spans, begin, last, slots):.0%}")
    click.echo(f"busy over the whole search       {busy(spans, begin, end, slots):.0%}")
    click.echo(f"starts of trials                 {starts.total()} for {len(starts)} trials")


if __name__ == "__main__":
    main()
