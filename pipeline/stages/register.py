"""Stage 5: the evaluated net as a version of a registered model; the gate moves the alias."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from pydantic import BaseModel

from fcn.weights import read_about
from pipeline.config.schema import Split
from pipeline.stages.gate import Decision, decide
from pipeline.tracking.client import TrackingClient


class Scored(Protocol):
    """What the gate looks at."""

    split: Split
    num_images: int
    mean_iu: float
    pixel_accuracy: float


class Registered(BaseModel):
    """What the stage leaves behind."""

    model: str
    version: int
    champion: bool
    """Whether the alias moved to this version."""
    reason: str

    def sentence(self) -> str:
        """The outcome in words."""
        took = "took" if self.champion else "did not take"
        return f"models:/{self.model}/{self.version} {took} @champion: {self.reason}"


def run(tracker: TrackingClient, run_id: str, model: str, net: Path, scores: Scored) -> Registered:
    """Make a version, decide, act."""
    version = enter(tracker, run_id, model, net, scores)
    decision = _gate(tracker, model, scores)
    if decision.promote:
        tracker.move_alias(model, version, decision.reason)
    return Registered(
        model=model, version=version, champion=decision.promote, reason=decision.reason
    )


def enter(tracker: TrackingClient, run_id: str, model: str, net: Path, scores: Scored) -> int:
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


def _gate(tracker: TrackingClient, model: str, scores: Scored) -> Decision:
    holder = tracker.champion(model)
    score = holder[1].get("mean_iu") if holder else None
    return decide(float(score) if score else None, scores.mean_iu)
