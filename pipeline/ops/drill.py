"""The verb `drill`: train once undisturbed, then again and again with real faults, and compare.

Users run it on their own cluster before they trust it.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import ray
import torch
from rich.table import Table
from safetensors.torch import load_file

from fcn.weights import NET
from pipeline.config.recipe import Recipe
from pipeline.config.schema import TrackingSpec
from pipeline.errors import ClusterError, RecipeError
from pipeline.flow import Step, plan
from pipeline.ops.faults import FAULTS, SPOILS, SURVIVED, RayUnderTest
from pipeline.storage.store import Store
from pipeline.tracking.client import TrackingClient
from pipeline.training.checkpoint import HISTORY, OPTIMIZER, History, newest
from pipeline.training.progress import NAMESPACE, Worker, metrics_actor_name

log = logging.getLogger(__name__)

POLL_S = 0.02
PATIENCE_S = 1800.0
"""Longest that a training is waited for."""
ATTEMPTS = 5
"""So many trainings may end before any fault came."""


@dataclass
class Training:
    """One training in a store of its own, as a user runs it: a command in its own process."""

    ground: RayUnderTest
    arguments: list[str]
    store: Path
    steps: list[Step]
    """Phases of the fine-tuning."""
    name: str
    phase: Step = field(init=False)
    run: Path = field(init=False)

    def __post_init__(self) -> None:
        self.aim_at(self.steps[-1])

    def aim_at(self, phase: Step) -> None:
        """The phase that is watched."""
        self.phase, self.run = phase, self.checkpoints(phase)

    def checkpoints(self, phase: Step) -> Path:
        """The folder of a phase's checkpoints."""
        return Store(self.store).checkpoints(self.name, phase.key)

    def start(self) -> None:
        """Type the command."""
        self.output = TemporaryFile()  # noqa: SIM115 - read when it has ended
        where = [f"store={self.store}", f"cluster.address={self.ground.address}"]
        command = [sys.executable, "-m", "pipeline", "evaluate", *self.arguments]
        self.process = subprocess.Popen(
            [*command, *(f"--set={value}" for value in where)],
            stdout=self.output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def step(self) -> int:
        """The newest step of the phase that anybody has heard of; 0 before the first."""
        return self._ask("step") or 0

    def workers(self) -> list[Worker]:
        """Where they are; none before they begin."""
        return self._ask("workers") or []

    def _ask(self, question: str) -> Any:  # noqa: ANN401 - whatever the actor answers
        try:
            telemetry = ray.get_actor(metrics_actor_name(self.phase.key), namespace=NAMESPACE)
            return ray.get(getattr(telemetry, question).remote())
        except (ValueError, ray.exceptions.RayActorError):  # not there yet, or gone with its driver
            return None

    def wait_for(self, step: int) -> bool:
        """Until the phase has come that far; False if the command ended before."""
        return self._wait_until(lambda: self.step() >= step)

    def wait_for_checkpoint(self) -> bool:
        """Until there is a sound one; False if the command ended before."""
        return self._wait_until(lambda: newest(self.run)[0] is not None)

    def wait_for_others(self, workers: list[Worker]) -> bool:
        """Until others are in their place; False if the command ended before."""
        return self._wait_until(lambda: bool(now := self.workers()) and now != workers)

    def finish(self) -> int:
        """Until the command has ended; its exit code."""
        return self.process.wait(PATIENCE_S)

    def said(self) -> str:
        """What it printed."""
        self.output.seek(0)
        return self.output.read().decode(errors="replace")

    def _wait_until(self, condition: Callable[[], bool]) -> bool:
        end = time.monotonic() + PATIENCE_S
        while not condition():
            if self.process.poll() is not None:
                return False
            if time.monotonic() > end:
                self.process.kill()
                raise ClusterError(f"nothing moved for {PATIENCE_S:g} s:\n{self.said()[-2000:]}")
            time.sleep(POLL_S)
        return True


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
    tensors: int
    changed: int
    """Tensors, of the nets and of the optimiser, that differ by more than the tolerance."""
    metrics: int
    wrong: int
    """Metric values in MLflow that differ, are missing or are there twice."""
    largest: float
    """Greatest difference, relative where a tensor is greater than 1."""

    @property
    def equal(self) -> bool:
        """Whether nothing shows that there were faults."""
        return not (self.changed or self.wrong)


class Drill:
    """A reference and its repetitions; each in a folder of the recipe's store, on one Ray."""

    def __init__(self, recipe: Recipe, arguments: Sequence[str], tolerance: float) -> None:
        weights = recipe.transplant.weights if recipe.transplant else ""
        if weights.startswith(("run:", "models:/")):
            raise RecipeError(
                f"transplant.weights={weights} is in this store, a drill trains in stores of its own; "
                "drill with package, torchvision or a file"
            )
        self.recipe, self.tolerance = recipe, tolerance
        local = ["--set=tracking.uri=null", "--set=evaluate.num_pictures=0"]
        self.arguments = [*arguments, *local]
        self.store = Store(recipe.store)
        self.folder = self.store.root / "drill"
        self.phases = [step for step in plan(recipe, self.store) if step.stage == "finetune"]
        self.ground = RayUnderTest(
            recipe.cluster, recipe.cluster.address or os.environ.get("RAY_ADDRESS")
        )

    def hold(self, faults: Sequence[str], times: int, seed: int) -> Iterator[DrillResult]:
        """The outcomes, one by one: each training has every fault once, in random order."""
        chance = random.Random(seed)
        with self.store.flow("drill"):
            shutil.rmtree(self.folder, ignore_errors=True)
            TrackingClient(
                TrackingSpec(), self.folder / "empty"
            )  # made once, copied for each training
            self.ground.start()
            try:
                self.reference = self._training("reference", ())
                self.reference.start()
                _require(self.reference.finish() == 0, self.reference)
                self.num_steps = {phase.key: self._steps(phase) for phase in self.phases}
                yield from self._trainings(list(faults) * times, len(faults), chance)
            finally:
                self.ground.stop()

    def _trainings(
        self, waiting: list[str], at_once: int, chance: random.Random
    ) -> Iterator[DrillResult]:
        number = barren = 0
        while waiting:
            faults, waiting = waiting[:at_once], waiting[at_once:]
            outcome, late = self._trial(str(number), faults, chance)
            waiting += late
            number += 1
            if outcome.hits or not outcome.equal:
                yield outcome
            elif (barren := barren + 1) == ATTEMPTS:
                raise ClusterError(f"{', '.join(late)} came too late each time; train for longer")

    def _training(self, name: str, faults: Sequence[str]) -> Training:
        store = self.folder / name
        store.mkdir(parents=True)
        shutil.copy(self.folder / "empty" / "mlflow.db", store)
        if name != "reference":  # data and pretrained weights are not drilled: they are shared
            for kind in ("datasets", "weights"):
                if (self.folder / "reference" / kind).exists():
                    (store / kind).symlink_to(self.folder / "reference" / kind)
        arguments = [*self.arguments, f"--set=cluster.max_failures={len(faults)}"]
        arguments += ["--set=cluster.loader_workers=1"] * ("loader" in faults)
        return Training(self.ground, arguments, store, self.phases, self.recipe.name)

    def _trial(
        self, name: str, faults: list[str], chance: random.Random
    ) -> tuple[DrillResult, list[str]]:
        """One training with some faults; and those that came too late, after its end."""
        training = self._training(name, faults)
        places = [
            (p, s)
            for p, phase in enumerate(self.phases)
            for s in range(1, self.num_steps[phase.key])
        ]
        hits, late = [], []
        training.start()
        for fault, (p, aim) in zip(
            chance.sample(faults, len(faults)),
            sorted(chance.choices(places, k=len(faults))),
            strict=True,
        ):
            training.aim_at(self.phases[p])
            hit = self._strike(training, fault, aim)
            hits += [hit] if hit else []
            late += [] if hit else [fault]
        _require(training.finish() == 0, training)
        outcome = self._compare(training, hits)
        log.info("training %s: %s", name, "equal" if outcome.equal else "DIFFERS")
        if outcome.equal:  # what differs stays, to be looked at
            shutil.rmtree(training.store)
        return outcome, late

    def _strike(self, training: Training, fault: str, aim: int) -> FaultResult | None:
        """Do it once the phase has come that far; None if it had ended."""
        if not training.wait_for(aim) or (fault in SPOILS and not training.wait_for_checkpoint()):
            return None
        step, workers, began = training.step(), training.workers(), time.monotonic()
        FAULTS[fault](training)
        if fault in SURVIVED:
            struck = training.wait_for_others(workers)
        elif struck := training.finish() != 0:
            training.start()
        if not struck:
            return None
        step = max(step, training.step())
        training.wait_for(step + 1)
        hit = FaultResult(fault, step, self.num_steps[training.phase.key], time.monotonic() - began)
        log.info("%s at step %d of %d, back after %.1f s", *vars(hit).values())
        return hit

    def _steps(self, phase: Step) -> int:
        history = History.read(self.reference.store / "nets" / phase.key / HISTORY)
        return max(step for step, _ in history.rows())

    def _compare(self, training: Training, hits: list[FaultResult]) -> DrillResult:
        tensors = changed = metrics = wrong = 0
        largest = 0.0
        for phase in self.phases:
            for ours, theirs in zip(
                _tensors(self.reference, phase), _tensors(training, phase), strict=True
            ):
                apart = _apart(ours, theirs)
                tensors, changed = tensors + 1, changed + (apart > self.tolerance)
                largest = max(largest, apart)
            expected, told = (_metrics(t.store, phase) for t in (self.reference, training))
            metrics += sum(map(len, expected.values()))
            for key in expected.keys() | told.keys():
                wrong += _number_wrong(expected.get(key, []), told.get(key, []), self.tolerance)
        return DrillResult(hits, tensors, changed, metrics, wrong, largest)


def drill_table(outcomes: Sequence[DrillResult]) -> Table:
    """A row for each fault; what its training came to beside the last."""
    table = Table("training", "fault", "at step", "back after", box=None)
    for title in ("same tensors", "same metrics", ""):
        table.add_column(title)
    for number, each in enumerate(outcomes, 1):
        verdict = "equal" if each.equal else f"[bold red]DIFFERS[/] by {each.largest:.0e}"
        came_to = (
            f"{each.tensors - each.changed} of {each.tensors}",
            f"{each.metrics - each.wrong} of {each.metrics}",
            verdict,
        )
        for hit in each.hits:
            row = (str(number), hit.fault, f"{hit.step} of {hit.num_steps}", f"{hit.back_s:.1f} s")
            table.add_row(*row, *(came_to if hit is each.hits[-1] else ()))
    return table


def require_faults(names: Sequence[str]) -> None:
    """Names of faults, from the command line.

    Raises:
        RecipeError: there is no such fault.
    """
    if unknown := [name for name in names if name not in FAULTS]:
        raise RecipeError(f"--faults: {', '.join(unknown)} is none of {', '.join(FAULTS)}")


def _require(ok: bool, training: Training) -> None:
    if not ok:
        raise ClusterError(f"the training in {training.store} failed:\n{training.said()[-4000:]}")


def _tensors(training: Training, phase: Step) -> Iterator[torch.Tensor]:
    """Of the best net, of the last net and of its optimiser."""
    last, _ = newest(training.checkpoints(phase))
    assert last is not None
    yield from load_file(training.store / "nets" / phase.key / NET).values()
    yield from load_file(last / NET).values()
    state = torch.load(last / OPTIMIZER, map_location="cpu", weights_only=True)["state"]
    for entry in state.values():
        yield from (value for value in entry.values() if isinstance(value, torch.Tensor))


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    if torch.equal(a, b):
        return 0.0
    scale = a.double().abs().max().clamp(min=1)
    return float((a.double() - b.double()).abs().max() / scale)


def _metrics(store: Path, phase: Step) -> dict[str, list[tuple[int, float]]]:
    """All that MLflow has of a phase but the speed, which is nobody's promise."""
    tracker = TrackingClient(TrackingSpec(), store)
    run_id = tracker.find_phase(phase.key)
    assert run_id is not None
    return {
        key: points
        for key, points in tracker.histories(run_id).items()
        if not key.startswith("perf/")
    }


def _number_wrong(
    expected: list[tuple[int, float]], told: list[tuple[int, float]], tolerance: float
) -> int:
    if [step for step, _ in expected] != [step for step, _ in told]:
        return max(len(expected), len(told), 1)
    pairs = zip(expected, told, strict=True)
    return sum(abs(a - b) > tolerance * max(1.0, abs(a)) for (_, a), (_, b) in pairs)
