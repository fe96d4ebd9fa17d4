"""Whoever asks a flow to stop is obeyed in every stage, with a sentence, and nothing stays behind."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.errors import InterruptError, StoppedError
from pipeline.signals import STOPS, deferred, interruptible, kept
from tests.pipeline.test_flow import command

WAIT_S = 300
EPOCHS = "finetune.epochs=20"
SAVED = "runs/demo/*/*/checkpoint_*/manifest.json"


@pytest.fixture(autouse=True)
def in_the_foreground() -> Iterator[None]:
    """In the background Ctrl-C is ignored."""
    before = {each: signal.signal(each, signal.SIG_DFL) for each in STOPS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_is_an_interrupt_that_is_known_by_its_name(number) -> None:
    with interruptible() as asked, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    error = asked.error("here")
    assert type(error) is (InterruptError if number == signal.SIGINT else StoppedError)
    name = "Ctrl-C" if number == signal.SIGINT else number.name
    assert str(error) == f"stopped by {name} here"


def test_the_first_signal_is_deferred_and_the_second_is_not() -> None:
    calls: list[int] = []
    with interruptible(), deferred(lambda: calls.append(1)):
        signal.raise_signal(signal.SIGTERM)
        assert calls == [1]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert calls == [1]


def test_a_signal_that_was_ignored_at_the_start_stays_so() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    with interruptible() as asked:
        signal.raise_signal(signal.SIGHUP)
    assert asked.by is None


def test_a_library_that_takes_signals_for_itself_has_to_give_them_back() -> None:
    with interruptible():
        mine = [signal.getsignal(each) for each in STOPS]
        with kept():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            signal.signal(signal.SIGTERM, lambda *_: None)
        assert [signal.getsignal(each) for each in STOPS] == mine


class Run:
    """A flow in a session of its own, as in a terminal."""

    def __init__(self, store: Path) -> None:
        self.output = store.parent / "output.txt"
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                command(store, EPOCHS),
                cwd=store.parent,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self) -> str:
        return re.sub(r"\s+", " ", self.output.read_text())

    def wait_for(self, what: Callable[[], object]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not what():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def left(self) -> list[str]:
        """The names of the processes of its session."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                name, _, rest = path.read_text().rpartition(")")
            except OSError:
                continue
            if int(rest.split()[3]) == self.process.pid and rest.split()[0] != "Z":
                found.append(name)
        return found


@contextmanager
def running(store: Path) -> Iterator[Run]:
    run = Run(store)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            os.killpg(run.process.pid, signal.SIGKILL)
            run.process.wait()


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """Each of the tests goes on from where the one before was stopped."""
    return tmp_path_factory.mktemp("signals") / "store"


@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("sign", "number", "whole_group", "code", "words"),
    [
        (
            "datasets/*/*.draft",
            signal.SIGTERM,
            False,
            143,
            "by SIGTERM in ingest; what is finished",
        ),
        (SAVED, signal.SIGINT, True, 130, r"by Ctrl-C after step \d+ of 60, which is in a check"),
        (SAVED, signal.SIGHUP, True, 143, r"by SIGHUP after step \d+ of 60, which is in a check"),
        ("scores/*/*.draft", signal.SIGINT, True, 130, "by Ctrl-C in evaluate; what is finished"),
        ("scores/*/manifest.json", signal.SIGTERM, False, 143, "by SIGTERM (in|after) "),
    ],
)
def test_a_flow_is_stopped_in_every_stage(store, sign, number, whole_group, code, words) -> None:
    """The sign is a file that appears when it has come that far; the last one is before registering."""
    before = set(store.glob(sign))
    with running(store) as run:
        run.wait_for(lambda: set(store.glob(sign)) - before)
        if whole_group:  # as a terminal does
            os.killpg(run.process.pid, number)
        else:
            run.process.send_signal(number)
        assert run.process.wait(WAIT_S) == code, run.said()
        assert re.search(f"stopped {words}", run.said()), run.said()
        assert "Traceback" not in run.said()
        deadline = time.monotonic() + 30
        while left := run.left():
            assert time.monotonic() < deadline, left
            time.sleep(0.5)
    if sign == SAVED:
        planned = subprocess.run(
            command(store, EPOCHS, verb="plan"),
            capture_output=True,
            text=True,
            env=os.environ | {"COLUMNS": "300"},
        )
        step = re.search(r"after step (\d+)", run.said())[1]
        assert f"goes on from checkpoint {step}" in planned.stdout


def test_plan_goes_on_from_no_checkpoint_that_is_not_sound(tmp_path) -> None:
    from pipeline.flow import Flow
    from pipeline.ops.plan import plan_rows
    from tests.conftest import tiny

    recipe = tiny(f"store={tmp_path}", "finetune.init=scratch", "net.backbone=resnet18")
    flow = Flow(recipe)
    step = next(step for step in flow.steps.values() if step.is_phase)
    name = flow.store.checkpoints(recipe.name, step.key) + "/attempt-000001-00000000/checkpoint_1"
    flow.store.files.write(f"{name}/net.safetensors", b"cut sho")
    assert flow.begun(step) is None
    flow.store.files.write(
        f"{name}/manifest.json", b'{"step": 7, "files": {"net.safetensors": "0"}}'
    )
    assert flow.begun(step) is None
    said = {row[0]: row[3] for row in plan_rows(recipe)}
    assert "checkpoint" not in said[step.name]
