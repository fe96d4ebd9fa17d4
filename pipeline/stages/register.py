"""Stage 5: the evaluated net as a version of a registered model; the gate moves the alias."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from fcn.labels import ClassTable
from fcn.weights import ABOUT, class_table, describe, read_about
from pipeline.results import Evaluation, Registered
from pipeline.tracking.registry import ModelRegistry


@dataclass(frozen=True)
class Decision:
    """Whether the alias `champion` moves, and why."""

    promote: bool
    reason: str


@contextmanager
def renamed(net: Path, table: ClassTable) -> Iterator[Path]:
    """A net's folder with the recipe's classes, which may have been renamed since it was trained."""
    if class_table(read_about(net)) == table:
        yield net
        return
    with tempfile.TemporaryDirectory(prefix="fcn-renamed-") as scratch:
        folder = Path(scratch)
        for path in net.iterdir():
            (folder / path.name).symlink_to(path.absolute())
        (folder / ABOUT).unlink()
        (folder / ABOUT).write_text((net / ABOUT).read_text())
        describe(folder, classes=asdict(table))
        yield folder


def run(
    registry: ModelRegistry, run_id: str, model: str, net: Path, scores: Evaluation
) -> Registered:
    """Make a version, decide whether it is the champion, and move the alias if it is."""
    version = enter(registry, run_id, model, net, scores)
    champion = registry.champion(model)
    score = champion[1].get("mean_iu") if champion else None
    decision = decide(float(score) if score else None, scores.mean_iu)
    if decision.promote:
        registry.move_alias(model, version, decision.reason)
    return Registered(
        model=model, version=version, champion=decision.promote, reason=decision.reason
    )


def enter(registry: ModelRegistry, run_id: str, model: str, net: Path, scores: Evaluation) -> int:
    """The version of these weights with these scores; a new one if there is none."""
    about = read_about(net)
    tags = {
        "mean_iu": repr(scores.mean_iu),
        "pixel_accuracy": repr(scores.pixel_accuracy),
        "split": scores.split,
        "num_images": str(scores.num_images),
        "classes": json.dumps(class_table(about).names),
        "weights_sha256": about["sha256"],
    }
    known = registry.version_with(model, tags)
    return registry.register(run_id, model, net, tags) if known is None else known


def decide(champion_mean_iu: float | None, challenger_mean_iu: float) -> Decision:
    """The challenger takes the alias if there is no champion or it scores at least as well.

    A challenger without a score (NaN) never does. A champion without one cannot be compared and is
    replaced, as a model that nobody measured should be.
    """
    new = f"challenger's mean IU {challenger_mean_iu:.4f}"
    if math.isnan(challenger_mean_iu):
        return Decision(False, "the challenger has no mean IU")
    if champion_mean_iu is None:
        return Decision(True, f"{new}; there was no champion with a score")
    if challenger_mean_iu >= champion_mean_iu:
        return Decision(True, f"{new} >= champion's {champion_mean_iu:.4f}")
    return Decision(False, f"{new} < champion's {champion_mean_iu:.4f}")
