"""A run's owner is dead if its process on this host has ended; of other hosts nothing is known."""

import os
import subprocess
import sys

from pipeline.tracking import owner


def test_this_process_lives_and_a_run_without_an_owner_is_nobodys_to_end() -> None:
    assert owner.why_dead(owner.tags()) is None
    assert owner.why_dead({}) is None


def test_a_process_that_ended_is_dead_and_named() -> None:
    child = subprocess.run(
        [sys.executable, "-c", "from pipeline.tracking import owner; print(owner.tags())"],
        capture_output=True,
        check=True,
        text=True,
    )
    tags = eval(child.stdout)
    assert f"process {tags['fcn.pid']} on {tags['fcn.host']} is gone" == owner.why_dead(tags)


def test_an_owner_on_another_host_is_left_alone() -> None:
    gone = {**owner.tags(), "fcn.pid": "1", "fcn.pid_started": "1"}
    assert owner.why_dead(gone) is not None
    assert owner.why_dead({**gone, "fcn.host": "elsewhere"}) is None


def test_a_process_id_that_was_given_again_is_another_process() -> None:
    reused = {**owner.tags(), "fcn.pid_started": "1"}
    assert f"process {os.getpid()}" in (owner.why_dead(reused) or "")
