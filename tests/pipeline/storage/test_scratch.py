"""Temporary folders are one user's own and do not outlive their process."""

import os
import stat
import subprocess
import sys

import pytest

from pipeline.errors import StoreError
from pipeline.storage.scratch import private_folder, scratch_folder

HOLDS = """
import sys, time
from pipeline.storage.scratch import scratch_folder
folder = scratch_folder("x")
(folder / "weights").write_text("a checkpoint")
print(folder, flush=True)
time.sleep(float(sys.argv[1]))
"""


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))


def test_it_is_for_this_user_alone_whatever_the_umask_is(tmp_path) -> None:
    before = os.umask(0)
    try:
        folder = scratch_folder("ray")
    finally:
        os.umask(before)
    assert folder.parent == private_folder() == tmp_path / f"fcn-{os.getuid()}"
    for each in (folder, folder.parent):
        assert stat.S_IMODE(each.stat().st_mode) == 0o700


def test_a_folder_of_this_user_that_others_could_read_is_closed() -> None:
    private_folder().chmod(0o777)
    assert stat.S_IMODE(private_folder().stat().st_mode) == 0o700


def test_what_another_user_put_in_its_place_is_not_used(tmp_path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / f"fcn-{os.getuid()}").symlink_to(tmp_path / "theirs")
    with pytest.raises(StoreError, match="TMPDIR"):
        private_folder()


def test_it_is_gone_when_its_process_has_ended() -> None:
    done = subprocess.run([sys.executable, "-c", HOLDS, "0"], capture_output=True, text=True)
    assert done.stdout.startswith(str(private_folder()))
    assert not list(private_folder().iterdir())


def test_what_a_killed_process_left_goes_with_the_next_one_and_a_living_one_keeps_its_own() -> None:
    both = [
        subprocess.Popen([sys.executable, "-c", HOLDS, "60"], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        dead, living = (private_folder() / each.stdout.readline().strip() for each in both)
        both[0].kill()
        both[0].wait()
        assert (dead / "weights").exists()
        scratch_folder("next")
        assert not dead.exists()
        assert (living / "weights").exists()
    finally:
        for each in both:
            each.kill()
            each.wait()
