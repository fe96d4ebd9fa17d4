"""Stage 5: the evaluated net as a version of a registered model; the gate moves the alias."""

from __future__ import annotations

from pathlib import Path

from fcn.weights import read_about
from pipeline.results import Evaluation, Registered
from pipeline.stages.gate import Decision, decide
from pipeline.tracking.client import TrackingClient


def run(
    tracker: TrackingClient, run_id: str, model: str, net: Path, scores: Evaluation
) -> Registered:
    """Make a version, decide, act."""
    version = enter(tracker, run_id, model, net, scores)
    decision = _gate(tracker, model, scores)
    if decision.promote:
        tracker.move_alias(model, version, decision.reason)
    return Registered(
        model=model, version=version, champion=decision.promote, reason=decision.reason
    )


def enter(tracker: TrackingClient, run_id: str, model: str, net: Path, scores: Evaluation) -> int:
    """The version of these weights with these scores; a new one if there is none."""
    tags = {
        "mean_iu": repr(scores.mean_iu),
        "pixel_accuracy": repr(scores.pixel_accuracy),
        "split": scores.split,
        "num_images": str(scores.num_images),
        "weights_sha256": read_about(net)["sha256"],
    }
    known = tracker.version_with(model, tags)
    return tracker.register(run_id, model, net, tags) if known is None else known


def _gate(tracker: TrackingClient, model: str, scores: Evaluation) -> Decision:
    holder = tracker.champion(model)
    score = holder[1].get("mean_iu") if holder else None
    return decide(float(score) if score else None, scores.mean_iu)
