"""What a flow would do, and what it has done, in words and figures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from pipeline.config.recipe import Recipe
from pipeline.config.schema import PhaseSpec
from pipeline.data.sampler import steps_per_epoch
from pipeline.flow import Flow, Report
from pipeline.results import RECEIPT
from pipeline.stage_table import Step


def outlook(recipe: Recipe) -> Iterator[tuple[str, str, str, str, str]]:
    """A row for each step: name, fingerprint, what would be done, why, what it takes."""
    flow = Flow(recipe)
    fresh: set[str] = set()
    for step in flow.steps.values():
        if flow.published(step):
            yield step.name, step.key, "reuse", "its result is in the store", ""
            continue
        changed = [name for name in step.needs if name in fresh]
        why = f"{', '.join(changed)} runs" if changed else "no result with this fingerprint"
        if step.is_phase and flow.begun(step):
            why = "begun; goes on from its last checkpoint"
        fresh.add(step.name)
        yield step.name, step.key, "run", why, _needs(flow, step)


def _needs(flow: Flow, step: Step) -> str:
    recipe, data = flow.recipe, flow.published_counts()
    if not step.is_phase:
        return ""
    cluster, tune = recipe.cluster, recipe.finetune
    device = "GPU" if cluster.use_gpu else f"{cluster.cpus_per_worker:g} CPU"
    number = "-".join(map(str, sorted({cluster.min_workers, cluster.max_workers})))
    words = [f"{number} workers x {device}", f"{step.phase.epochs} epochs"]
    if data:
        steps = step.phase.epochs * steps_per_epoch(data["train"], tune.global_batch)
        words.append(f"{steps} steps of {tune.global_batch} images")
    size = state_bytes(recipe, step.phase)
    words.append(f"{size / 2**20:,.0f} MiB of net and optimiser each")
    return ", ".join(words)


def state_bytes(recipe: Recipe, phase: PhaseSpec) -> int:
    """Weights, gradients and optimiser state of one worker; activations come on top.

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
    """Every tensor of a transplant: where it came from, where it went, and what became of it."""
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
    """The last lines of a run: steps, scores, model, pictures, where to look."""
    for name, how, seconds in report.steps:
        yield f"{name:16} {how:10} {seconds:7.1f} s"
    if all(how == "unchanged" for _, how, _ in report.steps):
        yield "[bold]nothing changed, so nothing was computed again[/]"
    results = report.results
    if surgery := results.get("transplant"):
        yield (
            f"transplant       {surgery.copied} tensors copied, {surgery.reshaped} reshaped, "
            f"{surgery.initialised} initialised, {surgery.dropped} dropped; {surgery.proof}, "
            f"greatest difference {surgery.max_difference:.1e} (at most {surgery.tolerance:.0e})"
        )
    if scores := results.get("evaluate"):
        yield (
            f"{scores.split} of {scores.num_images} images: [bold]mean IU {scores.mean_iu:.4f}[/], "
            f"pixel accuracy {scores.pixel_accuracy:.4f}, mean accuracy {scores.mean_accuracy:.4f}, "
            f"f.w. IU {scores.frequency_weighted_iu:.4f}"
        )
        yield f"pictures         {_short(scores.folder / 'predictions.png')}"
    if version := results.get("register"):
        yield f"model            {version.sentence()}"
    if report.tracking:
        yield f"tracked in       mlflow ui --backend-store-uri {report.tracking}"


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
