"""Stage 4: one confusion matrix over a whole split, and pictures of what the net does."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import ray
import torch
from PIL import Image

from fcn.inference import predict_at
from fcn.metrics import Confusion, Scores
from fcn.weights import load_net
from pipeline import cluster
from pipeline.cluster import set_threads, task_options
from pipeline.config.recipe import Recipe
from pipeline.data.loader import eval_batches
from pipeline.data.sampler import share
from pipeline.data.shards import Shards
from pipeline.logs import progress_bar
from pipeline.results import Evaluation
from pipeline.storage.store import Store, StoredFile
from pipeline.tracking import plots
from pipeline.training.distributed import DistContext
from pipeline.training.evaluation import count_errors, require_all_seen

TASKS_PER_WORKER = 2


def run(recipe: Recipe, store: Store, key: str, net: StoredFile, shards: Shards) -> Evaluation:
    """Count on all workers, draw a few predictions, publish.

    Raises:
        TrainingError: the images counted are not as many as the split has.
    """
    manifest: dict[str, object] = {}
    table = recipe.data.class_table()
    with store.publish("scores", key, manifest) as draft:
        drawing = ray.remote(_drawn).options(**task_options(recipe.cluster))
        drawn = drawing.remote(recipe, net, shards)
        confusion = _count(recipe, net, shards)
        scores, counts = confusion.scores(), confusion.counts.numpy()
        absent = [name for name, n in zip(table.names, counts.sum(1), strict=True) if not n]
        (draft / "confusion.json").write_text(
            json.dumps({"classes": table.names, "counts": counts.tolist()})
        )
        plots.confusion_matrix(draft / "confusion.png", counts, table)
        plots.class_bars(draft / "classes.png", scores, table, absent)
        for name, content in cluster.get(drawn).items():
            (draft / name).parent.mkdir(exist_ok=True)
            (draft / name).write_bytes(content)
        result = _result(recipe, draft, len(shards), scores, absent)
        manifest |= result.model_dump(mode="json")
    return result


def _count(recipe: Recipe, net: StoredFile, shards: Shards) -> Confusion:
    """Every image in exactly one task; integer counts, so their sum does not depend on the cut."""
    num_tasks = min(len(shards), TASKS_PER_WORKER * recipe.cluster.max_workers)
    task = ray.remote(count_rows).options(**task_options(recipe.cluster))
    rows = [share(len(shards), i, num_tasks) for i in range(num_tasks)]
    refs = [task.remote(recipe, net, shards, r) for r in rows]
    total, seen = Confusion(len(recipe.data.class_table())), 0
    with progress_bar() as progress:
        bar = progress.add_task("evaluate", total=len(shards), note="images")
        waiting = list(refs)
        while waiting:
            done, waiting = ray.wait(waiting)
            for counts, num_images in cluster.get(done):
                total.counts += counts
                seen += num_images
                progress.advance(bar, num_images)
    require_all_seen(seen, len(shards))
    return total


def count_rows(
    recipe: Recipe, net: StoredFile, shards: Shards, rows: range
) -> tuple[torch.Tensor, int]:
    """Confusion counts of some rows of a split, and how many images they were."""
    set_threads(recipe.cluster.cpus_per_worker)
    device = torch.device("cuda" if recipe.cluster.use_gpu else "cpu")
    batches = eval_batches(shards, rows, recipe.finetune.micro_batch, 0)
    confusion, seen = count_errors(
        load_net(net.localize()).to(device), batches, DistContext(device=device)
    )
    return confusion.counts.cpu(), seen


def _drawn(recipe: Recipe, net: StoredFile, shards: Shards) -> dict[str, bytes]:
    """The pictures by name: the task may be on a machine that shares no disk with the driver."""
    with tempfile.TemporaryDirectory(prefix="fcn-drawn-") as scratch:
        folder = Path(scratch)
        draw(recipe, net.localize(), shards, folder)
        files = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def draw(recipe: Recipe, net_folder: Path, shards: Shards, folder: Path) -> None:
    """Panels of a fixed handful of images, spread evenly over the split, and a sheet of them all."""
    number = min(recipe.evaluate.num_pictures, len(shards))
    if not number:
        return
    set_threads(recipe.cluster.cpus_per_worker)
    net, table = load_net(net_folder), recipe.data.class_table()
    panels = []
    (folder / "panels").mkdir()
    for row in np.linspace(0, len(shards) - 1, number).astype(int).tolist():
        image, truth = shards.image_label(row)
        prediction = predict_at(net, image, truth.shape)
        if image.shape[:2] != truth.shape:  # the net saw it smaller than its file is
            size = (truth.shape[1], truth.shape[0])
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        panels.append(plots.panel(image, truth, prediction, table))
        name = shards.id(row)
        plots.rgb_png(folder / "panels" / f"{name}.png", panels[-1])
        plots.label_png(folder / "panels" / f"{name}.prediction.png", prediction, table)
    plots.contact_sheet(folder / "predictions.png", panels, table)


def _result(
    recipe: Recipe, folder: Path, num_images: int, scores: Scores, absent: list[str]
) -> Evaluation:
    names = recipe.data.class_table().names
    known = (None if np.isnan(iu) else iu for iu in scores.class_iu)
    return Evaluation(
        folder=folder,
        split=recipe.evaluate.split,
        num_images=num_images,
        class_iu=dict(zip(names, known, strict=True)),
        absent=absent,
        **scores.summary(),
    )
