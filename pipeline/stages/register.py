"""Stage 5: the evaluated net as a version of a registered model; the gate moves the alias."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from fcn.labels import ClassTable
from fcn.weights import ABOUT, class_table, describe, read_about
from pipeline.errors import DataError, PipelineError
from pipeline.results import Evaluation, Registered
from pipeline.tracking.registry import ModelRegistry


@dataclass(frozen=True)
class Decision:
    """Whether the alias `champion` moves, and why."""

    promote: bool
    reason: str


@dataclass(frozen=True)
class Gate:
    """Compares a version with the champion of the same model, on the same images and classes."""

    registry: ModelRegistry
    model: str
    rescore: Callable[[Path], float]
    """The mean IU, on the challenger's images, of the net in a folder."""

    def judge(self, version: int, scores: Evaluation) -> Registered:
        """Decide whether a version is the champion, and move the alias if it is.

        If another version becomes the champion meanwhile, it is decided again, against that one.
        """
        while True:
            champion = self.registry.champion(self.model)
            decision = _tells_nothing(scores) or self._decide(champion, version, scores)
            holder = champion[0] if champion else None
            if not decision.promote or self.registry.move_alias(self.model, version, holder):
                break
        self.registry.note_verdict(self.model, version, decision.reason)
        return Registered(
            model=self.model, version=version, champion=decision.promote, reason=decision.reason
        )

    def _decide(
        self, champion: tuple[int, dict[str, str]] | None, version: int, scores: Evaluation
    ) -> Decision:
        if champion is None:
            return decide(None, scores.mean_iu)
        number, tags = champion
        if number == version:
            return Decision(True, f"mean IU {scores.mean_iu:.4f}; it was the champion already")
        if scores.measured_on().items() <= tags.items() and "mean_iu" in tags:
            return decide(float(tags["mean_iu"]), scores.mean_iu)
        return self._against_rescored(f"models:/{self.model}/{number}", scores)

    def _against_rescored(self, uri: str, scores: Evaluation) -> Decision:
        """The champion was scored on other images, on another split, or never: score it anew."""
        try:
            folder = self.registry.download_net(uri)
            theirs, mine = list(class_table(read_about(folder)).names), list(scores.class_iu)
            if theirs != mine:
                raise DataError(f"its classes are {_listed(theirs)}, this one's {_listed(mine)}")
            decision = decide(self.rescore(folder), scores.mean_iu)
        except (PipelineError, ValueError, KeyError) as error:
            return Decision(
                False,
                f"not comparable with {uri}, the alias stays: {error}. Register under a name of its "
                "own (register.model), or move the alias in MLflow if this one is to take over",
            )
        return Decision(decision.promote, f"{decision.reason}, {uri} scored anew on these images")


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


def enter(registry: ModelRegistry, run_id: str, model: str, net: Path, scores: Evaluation) -> int:
    """The version of these weights with these scores; a new one if there is none."""
    about = read_about(net)
    tags = {
        "mean_iu": repr(scores.mean_iu),
        "pixel_accuracy": repr(scores.pixel_accuracy),
        "num_images": str(scores.num_images),
        "weights_sha256": about["sha256"],
        **scores.measured_on(),
    }
    known = registry.version_with(model, tags)
    return registry.register(run_id, model, net, tags) if known is None else known


def decide(champion_mean_iu: float | None, challenger_mean_iu: float) -> Decision:
    """The challenger takes the alias if there is no champion or it scores at least as well.

    A challenger without a score (NaN) never does, and a champion without one is replaced.
    """
    new = f"challenger's mean IU {challenger_mean_iu:.4f}"
    if math.isnan(challenger_mean_iu):
        return Decision(False, "the challenger has no mean IU")
    if champion_mean_iu is None or math.isnan(champion_mean_iu):
        return Decision(True, f"{new}; there was no champion with a score")
    if challenger_mean_iu >= champion_mean_iu:
        return Decision(True, f"{new} >= champion's {champion_mean_iu:.4f}")
    return Decision(False, f"{new} < champion's {champion_mean_iu:.4f}")


def _tells_nothing(scores: Evaluation) -> Decision | None:
    """A decision against scores that any constant answer could have; None if they are none of those."""
    if scores.classes_seen >= 2:
        return None
    return Decision(
        False,
        f"split {scores.split} has pixels of {scores.classes_seen} of the classes, so its score tells "
        "nothing; give it images of at least two",
    )


def _listed(names: list[str], most: int = 6) -> str:
    """Such as: 9 (sky, road, ...)."""
    return f"{len(names)} ({', '.join(names[:most])}{', ...' * (len(names) > most)})"
