"""What a flow would do and what it has done, in words and numbers for the screen."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from pipeline.config.recipe import Recipe
from pipeline.config.schema import ClusterSpec, PhaseSpec
from pipeline.data.sources import open_source
from pipeline.errors import ClusterError
from pipeline.flow import Flow, Report
from pipeline.results import RECEIPT, REPORT, Dataset, Evaluation


def plan_rows(recipe: Recipe) -> Iterator[tuple[str, str, str, str, str]]:
    """A row for each step: its name, its fingerprint, what would be done, why, and what it needs."""
    flow = Flow(recipe)
    num_train: int | None = None
    fresh: set[str] = set()
    for step in flow.steps.values():
        if flow.published(step):
            yield step.name, step.key, "reuse", "its result is in the store", ""
            continue
        changed = [name for name in step.needs if name in fresh]
        why = f"{', '.join(changed)} runs" if changed else "no result with this fingerprint"
        if step.is_phase and flow.begun(step):
            why = "begun; goes on from its last checkpoint"
        needs = ""
        if step.is_phase:
            if num_train is None:  # once: to list the samples may take a while
                num_train = _num_train(flow)
            needs = _needs(recipe, step.phase, num_train)
        fresh.add(step.name)
        yield step.name, step.key, "run", why, needs


def _needs(recipe: Recipe, phase: PhaseSpec, num_train: int) -> str:
    from pipeline.training.model import require_normalisable  # noqa: PLC0415 - torch takes seconds

    spec, tune = recipe.cluster, recipe.finetune
    device = "GPU" if spec.use_gpu else f"{spec.cpus_per_worker:g} CPU"
    number = "-".join(map(str, sorted({spec.min_workers, spec.max_workers})))
    words = [f"{number} workers x {device}", *_fit(spec), f"{phase.epochs} epochs"]
    if num_train:
        require_normalisable(recipe, num_train)
        steps = recipe.num_steps(phase, num_train)
        words.append(f"{steps} steps of {tune.global_batch} images")
    size = state_bytes(recipe, phase)
    words.append(f"{size / 2**20:,.0f} MiB of net and optimiser each")
    return ", ".join(words)


@cache
def _fit(spec: ClusterSpec) -> tuple[str, ...]:
    """How many workers fit on the Ray that is there already, else on this machine; none is started."""
    from pipeline import cluster  # noqa: PLC0415 - only if something would be trained

    try:
        nodes, where = cluster.reachable_nodes(spec), "the cluster"
    except ClusterError as error:
        return (str(error),)
    if nodes is None:
        if spec.use_gpu:  # without a Ray nobody here counts GPUs
            return ()
        nodes, where = [{"CPU": float(os.cpu_count() or 1)}], "this machine"
    fit = cluster.workers_that_fit(spec, nodes)
    otherwise = ": the run would " + ("wait" if spec.autoscaling else "be refused")
    return (f"{where} holds {fit} at a time{otherwise * (fit < spec.min_workers)}",)


def _num_train(flow: Flow) -> int:
    """Images to train on: those ingested; before that those listed, of which some may be rejected."""
    if counts := flow.published_counts():
        return counts["train"]
    samples, _ = open_source(flow.recipe).samples()
    return sum(sample.split == "train" for sample in samples)


def state_bytes(recipe: Recipe, phase: PhaseSpec) -> int:
    """Bytes of weights, gradients and optimiser state of one worker; activations come on top.

    A checkpoint is at most as large: it holds the best weights in place of the gradients.
    """
    import torch  # noqa: PLC0415 - only for nets that would be trained

    from fcn.nets import FCN  # noqa: PLC0415
    from pipeline.training.model import blueprint  # noqa: PLC0415

    with torch.device("meta"):
        net = FCN(blueprint(recipe, phase.stride))
    copies = 4 if recipe.finetune.optimizer.kind == "adamw" else 3
    return copies * sum(p.numel() * p.element_size() for p in net.parameters())


def receipt_table(folder: Path) -> Table:
    """A row for each tensor of a transplant: its source, its target and what became of it."""
    table = Table(box=None)
    for name in ("source", "target", "became", "shape", "sha256"):
        table.add_column(name, overflow="fold")
    for entry in json.loads((folder / RECEIPT).read_text())["entries"]:
        shapes = [s for s in (entry["source_shape"], entry["target_shape"]) if s is not None]
        distinct = [s for i, s in enumerate(shapes) if s not in shapes[:i]]
        shape = " -> ".join("x".join(map(str, s)) or "scalar" for s in distinct)
        row = (entry["source"] or "", entry["target"] or "", entry["fate"], shape)
        table.add_row(*row, entry["sha256"][:12])
    return table


def closing_lines(report: Report) -> Iterator[str]:
    """The last lines of a run: its steps, scores, pictures and model, and the address of MLflow."""
    for name, how, seconds in report.steps:
        yield f"{name:16} {how:10} {seconds:7.1f} s"
    if all(how == "unchanged" for _, how, _ in report.steps):
        yield "[bold]nothing changed, so nothing was computed again[/]"
    results = report.results
    if data := results.get("ingest"):
        yield _data_line(data)
    if done := results.get("transplant"):
        yield (
            f"transplant       {done.copied} tensors copied, {done.reshaped} reshaped, "
            f"{done.initialised} initialised, {done.dropped} dropped; {done.proof}, "
            f"greatest difference {done.max_difference:.1e} (at most {done.tolerance:.0e})"
        )
    if scores := results.get("evaluate"):
        yield from _score_lines(scores)
    if version := results.get("register"):
        yield f"model            {version.sentence()}"
    if report.tracking:
        yield f"tracked in       mlflow ui --backend-store-uri {report.tracking}"


def _data_line(data: Dataset) -> str:
    doubts = sum(doubt.level == "warning" for doubt in data.doubts)
    found = f", {doubts} doubt{'s' * (doubts > 1)}" if doubts else ""
    return f"data report      {_short(data.folder / REPORT)}{found}"


def _score_lines(scores: Evaluation) -> Iterator[str]:
    yield (
        f"{scores.split} of {scores.num_images} images: [bold]mean IU {scores.mean_iu:.4f}[/], "
        f"pixel accuracy {scores.pixel_accuracy:.4f}, mean accuracy {scores.mean_accuracy:.4f}, "
        f"f.w. IU {scores.frequency_weighted_iu:.4f}"
    )
    if scores.absent:
        words = [
            name if scores.class_iu[name] is None else f"{name} (predicted, so its IU is 0)"
            for name in scores.absent
        ]
        yield f"not in the split {escape(', '.join(words))}"
    yield f"pictures         {_short(scores.folder / 'predictions.png')}"


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
