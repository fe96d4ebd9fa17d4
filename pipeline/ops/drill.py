"""The verb `drill`: train once undisturbed, then again and again with real faults, and compare.

Users run it on their own cluster before they trust it. Each training has a store of its own below the
recipe's store, `drill/<name>`, in a folder or in an object store.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.fs
import torch
from rich.table import Table
from safetensors.torch import load_file

from fcn.weights import NET
from pipeline.config.recipe import Recipe
from pipeline.config.schema import TrackingSpec
from pipeline.errors import ClusterError, RecipeError, StoreError
from pipeline.flow import plan
from pipeline.ops.faults import FAULTS, NEED_A_CHECKPOINT, SURVIVED, RayUnderTest, Training
from pipeline.stage_table import Step
from pipeline.storage.store import Store
from pipeline.tracking.client import TrackingClient
from pipeline.training.state import HISTORY, OPTIMIZER, History

log = logging.getLogger(__name__)

MAX_MISSES = 5
"""So many trainings may end before any fault came."""
METRICS_DATABASE = "mlflow.db"


@dataclass(frozen=True)
class FaultResult:
    """A fault that came while there was something to disturb."""

    fault: str
    step: int
    num_steps: int
    back_s: float
    """From the fault until a step was done that had not been done before."""


@dataclass(frozen=True)
class DrillResult:
    """A faulted training beside the undisturbed one."""

    hits: list[FaultResult]
    num_tensors: int
    num_changed: int
    """Tensors, of the nets and of the optimiser, that differ by more than the tolerance."""
    num_metrics: int
    num_wrong: int
    """Metric values in MLflow that differ, are missing or are there twice."""
    largest: float
    """Greatest difference, relative where a tensor is greater than 1."""

    @property
    def equal(self) -> bool:
        """Whether nothing shows that there were faults."""
        return not (self.num_changed or self.num_wrong)


class Drill:
    """An undisturbed training and its repetitions, on one Ray."""

    def __init__(self, recipe: Recipe, arguments: Sequence[str], tolerance: float) -> None:
        weights = recipe.transplant.weights if recipe.transplant else ""
        if weights.startswith(("run:", "models:/")):
            raise RecipeError(
                f"transplant.weights={weights} is in this store, a drill trains in stores of its own; "
                "drill with package, torchvision or a file"
            )
        self.recipe, self.tolerance = recipe, tolerance
        self.missed: list[str] = []
        """Faults that never came while there was something to disturb."""
        local = ["--set=tracking.uri=null", "--set=evaluate.num_pictures=0"]
        self.arguments = [*arguments, *local]
        self.store = Store(recipe.store)
        self.files = self.store.files
        self.phases = [step for step in plan(recipe, self.store) if step.is_phase]
        self.ray_under_test = RayUnderTest(
            recipe.cluster, recipe.cluster.address or os.environ.get("RAY_ADDRESS")
        )

    def run(self, faults: Sequence[str], times: int, seed: int) -> Iterator[DrillResult]:
        """Yield the results one by one: each training has every fault once, in random order.

        Faults that came too late again and again are in `missed` afterwards.
        """
        chance = random.Random(seed)
        with self.store.flow_lock("drill"), TemporaryDirectory() as folder:
            self._make_room()
            TrackingClient(TrackingSpec(), Path(folder))  # made once, copied for each training
            self.empty_database = Path(folder) / METRICS_DATABASE
            self.ray_under_test.start()
            try:
                self.reference = self._training("reference", ())
                self.reference.start()
                _require_success(self.reference)
                self.num_steps = {phase.key: self._num_steps(phase) for phase in self.phases}
                yield from self._disturbed(list(faults) * times, len(faults), chance)
            finally:
                self.ray_under_test.stop()

    def _make_room(self) -> None:
        if self.files.names("drill") and not self.store.drill_marker().exists():
            raise StoreError(
                f"{self.store}/drill was made by no drill, and a drill would remove it; move it away"
            )
        self.files.remove_folder("drill")
        self.store.drill_marker().set()

    def _disturbed(
        self, waiting: list[str], at_once: int, chance: random.Random
    ) -> Iterator[DrillResult]:
        number = misses = 0
        while waiting:
            faults, waiting = waiting[:at_once], waiting[at_once:]
            result, late = self._disturb(str(number), faults, chance)
            waiting += late
            number += 1
            if result.hits or not result.equal:
                yield result
            elif (misses := misses + 1) == MAX_MISSES:
                self.missed = waiting
                return

    def _training(self, name: str, faults: Sequence[str]) -> Training:
        arguments = [*self.arguments, f"--set=cluster.max_failures={len(faults)}"]
        arguments += ["--set=cluster.loader_workers=1"] * ("loader" in faults)
        root, mark, options = str(self.store).partition("?")
        store = f"{root.rstrip('/')}/drill/{name}{mark}{options}"
        training = Training(self.ray_under_test, arguments, store, self.phases, self.recipe.name)
        shutil.rmtree(training.cache, ignore_errors=True)
        training.cache.mkdir(parents=True)
        shutil.copy(self.empty_database, training.cache)
        if name != "reference":  # data and pretrained weights are not drilled: they are shared
            for kind in ("datasets", "weights"):
                self._share(kind, name)
        return training

    def _share(self, kind: str, name: str) -> None:
        source, target = f"drill/reference/{kind}", f"drill/{name}/{kind}"
        if not self.files.names(source):
            return
        if self.files.local is not None:
            (self.files.local / target).symlink_to(self.files.local / source)
            return
        filesystem, base = self.files.filesystem, self.files.base
        pyarrow.fs.copy_files(
            f"{base}/{source}",
            f"{base}/{target}",
            source_filesystem=filesystem,
            destination_filesystem=filesystem,
        )

    def _disturb(
        self, name: str, faults: list[str], chance: random.Random
    ) -> tuple[DrillResult, list[str]]:
        """One training with some faults; and those that came too late, after its end."""
        training = self._training(name, faults)
        moments = [
            (p, s)
            for p, phase in enumerate(self.phases)
            for s in range(1, self.num_steps[phase.key])
        ]
        hits, late = [], []
        training.start()
        for fault, (p, step) in zip(
            chance.sample(faults, len(faults)),
            sorted(chance.choices(moments, k=len(faults))),
            strict=True,
        ):
            training.phase = self.phases[p]
            hit = self._strike(training, fault, step)
            hits += [hit] if hit else []
            late += [] if hit else [fault]
        _require_success(training)
        result = self._compare(training, hits)
        log.info("training %s: %s", name, "equal" if result.equal else "DIFFERS")
        if result.equal:  # what differs stays, to be looked at
            self.files.remove_folder(f"drill/{name}")
            shutil.rmtree(training.cache, ignore_errors=True)
        return result, late

    def _strike(self, training: Training, fault: str, step: int) -> FaultResult | None:
        """Do it once the phase has come that far; None if it had ended."""
        if not training.wait_for(step) or (
            fault in NEED_A_CHECKPOINT
            and not training.wait_until(lambda: training.checkpoints().newest()[0] is not None)
        ):
            return None
        step, workers, began = training.step(), training.workers(), time.monotonic()
        FAULTS[fault](training)
        if fault in SURVIVED:
            struck = training.wait_until(lambda: bool(w := training.workers()) and w != workers)
        elif struck := training.finish() != 0:
            training.start()
        if not struck:
            return None
        step = max(step, training.step())
        training.wait_for(step + 1)
        hit = FaultResult(fault, step, self.num_steps[training.phase.key], time.monotonic() - began)
        log.info("%s at step %d of %d, back after %.1f s", *vars(hit).values())
        return hit

    def _num_steps(self, phase: Step) -> int:
        history = History.read(self.reference.net(phase) / HISTORY)
        return max(step for step, _ in history.rows())

    def _compare(self, training: Training, hits: list[FaultResult]) -> DrillResult:
        differences: list[float] = []
        num_metrics = num_wrong = 0
        for phase in self.phases:
            tensors = (_tensors(t, phase) for t in (self.reference, training))
            differences += [_difference(a, b) for a, b in zip(*tensors, strict=True)]
            wanted, logged = (_metrics(t, phase) for t in (self.reference, training))
            num_metrics += sum(map(len, wanted.values()))
            for key in wanted.keys() | logged.keys():
                num_wrong += _num_wrong(wanted.get(key, []), logged.get(key, []), self.tolerance)
        num_changed = sum(difference > self.tolerance for difference in differences)
        return DrillResult(
            hits, len(differences), num_changed, num_metrics, num_wrong, max(differences)
        )


def drill_table(results: Sequence[DrillResult]) -> Table:
    """A row for each fault; beside a training's last one, how its result compares."""
    table = Table("training", "fault", "at step", "back after", box=None)
    for title in ("same tensors", "same metrics", ""):
        table.add_column(title)
    for number, each in enumerate(results, 1):
        verdict = "equal" if each.equal else f"[bold red]DIFFERS[/] by {each.largest:.0e}"
        comparison = (
            f"{each.num_tensors - each.num_changed} of {each.num_tensors}",
            f"{each.num_metrics - each.num_wrong} of {each.num_metrics}",
            verdict,
        )
        for hit in each.hits:
            row = (str(number), hit.fault, f"{hit.step} of {hit.num_steps}", f"{hit.back_s:.1f} s")
            table.add_row(*row, *(comparison if hit is each.hits[-1] else ()))
    return table


def verdict(results: Sequence[DrillResult], missed: Sequence[str]) -> str:
    """What the table comes to, in words."""
    equal, hits = sum(each.equal for each in results), sum(len(each.hits) for each in results)
    lines = [
        f"{equal} of {len(results)} trainings with {hits} faults in all are equal to the undisturbed one"
    ]
    if missed:
        lines.append(f"not drilled: {', '.join(missed)} came too late each time; train for longer")
    return "\n".join(lines)


def require_faults(names: Sequence[str]) -> None:
    """Check the names of faults, from the command line.

    Raises:
        RecipeError: there is no such fault.
    """
    if unknown := [name for name in names if name not in FAULTS]:
        raise RecipeError(f"--faults: {', '.join(unknown)} is none of {', '.join(FAULTS)}")


def _require_success(training: Training) -> None:
    if training.finish() != 0:
        raise ClusterError(
            f"the training in {training.store} failed:\n{training.printed()[-4000:]}"
        )


def _tensors(training: Training, phase: Step) -> Iterator[torch.Tensor]:
    """Those of the best net, of the last net and of its optimiser."""
    last, _ = training.checkpoints(phase).newest()
    assert last is not None
    yield from load_file(training.net(phase) / NET).values()
    yield from load_file(last / NET).values()
    state = torch.load(last / OPTIMIZER, map_location="cpu", weights_only=True)["state"]
    for entry in state.values():
        yield from (value for value in entry.values() if isinstance(value, torch.Tensor))


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    if torch.equal(a, b):
        return 0.0
    scale = a.double().abs().max().clamp(min=1)
    return float((a.double() - b.double()).abs().max() / scale)


def _metrics(training: Training, phase: Step) -> dict[str, list[tuple[int, float]]]:
    """All that MLflow has of a phase except speeds, which no two trainings share."""
    tracker = TrackingClient(TrackingSpec(), training.cache)
    run_id = tracker.find_phase(phase.key)
    assert run_id is not None
    return {
        key: points
        for key, points in tracker.histories(run_id).items()
        if not key.startswith("perf/")
    }


def _num_wrong(
    expected: list[tuple[int, float]], found: list[tuple[int, float]], tolerance: float
) -> int:
    if [step for step, _ in expected] != [step for step, _ in found]:
        return max(len(expected), len(found), 1)
    pairs = zip(expected, found, strict=True)
    return sum(abs(a - b) > tolerance * max(1.0, abs(a)) for (_, a), (_, b) in pairs)
