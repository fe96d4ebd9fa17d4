"""How a row of the tables of abuse is tried: a command, its exit code, and a word of the remedy."""

from __future__ import annotations

import time
from pathlib import Path

import click
import numpy as np
from click.testing import CliRunner, Result
from PIL import Image

SECRET = "hunter2"
"""Stands in every password; no output may hold it."""
CPU_S = 3.0
"""A refusal costs so much of a processor at most; it has no time to read or build what was asked for."""


def refused(main: click.Command, *arguments: str) -> Result:
    """The outcome of a command that must end by itself, soon, and without a traceback."""
    began = time.process_time()
    done = CliRunner().invoke(main, list(arguments))
    spent_s = time.process_time() - began
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    assert "Traceback" not in done.output
    assert SECRET not in done.output
    assert spent_s < CPU_S, f"{spent_s:.1f} s"
    return done


def require(main: click.Command, arguments: list[str], code: int, word: str) -> None:
    """Require an exit code and a word."""
    done = refused(main, *arguments)
    assert done.exit_code == code, done.output
    assert word in " ".join(done.output.split()), done.output


def photo(path: Path) -> Path:
    """A small picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path
