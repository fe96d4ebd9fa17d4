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
from pipeline.checkpoints import HISTORY, OPTIMIZER, History, newest
from pipeline.errors import ClusterError, RecipeError
from pipeline.faults import FAULTS, SURVIVED, Ground
from pipeline.flow import Step, plan
from pipeline.recipe import Recipe
from pipeline.specs import TrackingSpec
from pipeline.store import Store
from pipeline.telemetry import NAMESPACE, Worker, telemetry_name
from pipeline.tracking import Tracker

log = logging.getLogger(__name__)

POLL_S = 0.02
PATIENCE_S = 1800.0
"""Longest that a training is waited for."""
ATTEMPTS = 5
"""A fault that came too late, after the last step, is tried again."""


@dataclass
class Training:
    """One training in a store of its own, as a user runs it: a command in its own process."""

    ground: Ground
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
        self.phase, self.run = phase, self.store / "runs" / self.name / phase.key

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
            telemetry = ray.get_actor(telemetry_name(self.phase.key), namespace=NAMESPACE)
            return ray.get(getattr(telemetry, question).remote())
        except (ValueError, ray.exceptions.RayActorError):  # not there yet, or gone with its driver
            return None

    def wait_for(self, step: int) -> bool:
        """Until the phase has come that far; False if the command ended before."""
        return self._wait_until(lambda: self.step() >= step)

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
class Outcome:
    """A faulted training beside the undisturbed one."""

    fault: str
    step: int
    num_steps: int
    back_s: float
    """From the fault until a step was done that had not been done before."""
    tensors: int
    changed: int
    """Tensors, of the nets and of the optimiser, that differ by more than the tolerance."""
    metrics: int
    wrong: int
    """Metric values in MLflow that differ, are missing or are there twice."""
    largest: float
    """Greatest difference, relative where a tensor or a metric is greater than 1."""

    @property
    def equal(self) -> bool:
        """Whether nothing shows that there was a fault."""
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
        self.folder = recipe.store.absolute() / "drill"
        phases = [step for step in plan(recipe, Store(recipe.store)) if step.stage == "finetune"]
        self.phases = phases
        self.ground = Ground(
            recipe.cluster, recipe.cluster.address or os.environ.get("RAY_ADDRESS")
        )

    def hold(self, faults: Sequence[str], times: int, seed: int) -> Iterator[Outcome]:
        """The outcomes, one by one."""
        chance = random.Random(seed)
        with Store(self.recipe.store).flow("drill"):
            shutil.rmtree(self.folder, ignore_errors=True)
            Tracker(TrackingSpec(), self.folder / "empty")  # made once, copied for each training
            self.ground.start()
            try:
                self.reference = self._training("reference", "")
                self.reference.start()
                _require(self.reference.finish() == 0, self.reference)
                for number in range(times):
                    for fault in faults:
                        yield self._trial(f"{number}-{fault}", fault, chance)
            finally:
                self.ground.stop()

    def _training(self, name: str, fault: str) -> Training:
        store = self.folder / name
        store.mkdir(parents=True)
        shutil.copy(self.folder / "empty" / "mlflow.db", store)
        if name != "reference":  # data and pretrained weights are not drilled: they are shared
            for kind in ("datasets", "weights"):
                if (self.folder / "reference" / kind).exists():
                    (store / kind).symlink_to(self.folder / "reference" / kind)
        loaders = ["--set=cluster.loader_workers=1"] if fault == "loader" else []
        arguments = [*self.arguments, *loaders]
        return Training(self.ground, arguments, store, self.phases, self.recipe.name)

    def _trial(self, name: str, fault: str, chance: random.Random) -> Outcome:
        for attempt in range(ATTEMPTS):
            training = self._training(f"{name}-{attempt}", fault)
            phase = chance.choice(self.phases)
            training.aim_at(phase)
            num_steps = max(step for step, _ in self._history(phase).rows())
            aim = chance.randrange(1, max(num_steps // (attempt + 1), 2))
            training.start()
            if not training.wait_for(aim):
                _require(training.finish() == 0, training)
                continue
            step, workers, began = training.step(), training.workers(), time.monotonic()
            FAULTS[fault](training)
            if fault in SURVIVED:
                hit = training.wait_for_others(workers)
            else:
                hit = training.finish() != 0
                training.start()
            step = max(step, training.step())
            came_back = training.wait_for(step + 1)
            back_s = time.monotonic() - began
            _require(training.finish() == 0, training)
            if hit and (came_back or step == num_steps):
                outcome = self._compare(training, fault, step, num_steps, back_s)
                words = "%s at step %d of %d: back after %.1f s, %s"
                verdict = "equal" if outcome.equal else "DIFFERS"
                log.info(words, fault, step, num_steps, back_s, verdict)
                if outcome.equal:  # what differs stays, to be looked at
                    shutil.rmtree(training.store)
                return outcome
        raise ClusterError(f"fault {fault} came too late {ATTEMPTS} times; train for more steps")

    def _history(self, phase: Step) -> History:
        return History.read(self.reference.store / "nets" / phase.key / HISTORY)

    def _compare(
        self, training: Training, fault: str, step: int, num_steps: int, back_s: float
    ) -> Outcome:
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
        return Outcome(fault, step, num_steps, back_s, tensors, changed, metrics, wrong, largest)


def drill_table(outcomes: Sequence[Outcome]) -> Table:
    """A row for each fault."""
    columns = ("fault", "at step", "back after", "same tensors", "same metrics", "largest", "")
    table = Table(*columns, box=None)
    for each in outcomes:
        table.add_row(
            each.fault,
            f"{each.step} of {each.num_steps}",
            f"{each.back_s:.1f} s",
            f"{each.tensors - each.changed} of {each.tensors}",
            f"{each.metrics - each.wrong} of {each.metrics}",
            f"{each.largest:.1e}" if each.largest else "0",
            "equal" if each.equal else "[bold red]DIFFERS[/]",
        )
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
    last, _ = newest(training.store / "runs" / training.name / phase.key)
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
    tracker = Tracker(TrackingSpec(), store)
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
