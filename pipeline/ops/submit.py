"""A flow as a job on a Ray cluster: checked here, packed, sent and followed to its exit code."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import click
import requests
from ray.dashboard.modules.job.utils import redact_url_password
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

import fcn
import pipeline
from pipeline.config.recipe import Recipe, load_recipe, recipe_names
from pipeline.errors import ClusterError, RecipeError
from pipeline.ops.packing import pack

API_SERVER = "RAY_API_SERVER_ADDRESS"
STOP_S = 300
"""So long may a stopped job take for its checkpoint; Ray alone kills it after three seconds."""
POLL_S = 0.5
CHATTY = (
    "dashboard.modules.job.sdk",
    "dashboard.modules.dashboard_sdk",
    "_private.runtime_env.packaging",
)
"""They log each upload and each closed connection."""
STOPPED, INTERRUPTED = 143, 130


@dataclass(frozen=True)
class Target:
    """Where a job goes, and what it takes along."""

    address: str | None = None
    """Of the head's job server; RAY_API_SERVER_ADDRESS or the Ray on this machine if not given."""
    folder: Path = Path()
    name: str | None = None
    """Ray makes one up if not given."""
    env: tuple[str, ...] = ()
    """Names of variables of this process that the job is to have; it gets no others."""


def submit(recipe: str, overrides: Sequence[str], target: Target) -> Submitted:
    """Send `fcn-pipeline run RECIPE` with the folder's files to the cluster.

    Raises:
        RecipeError: the recipe has mistakes, or names what the cluster cannot see.
        ClusterError: no cluster there, no admission, the name is taken, or the package is too large.
    """
    folder = target.folder.absolute()
    require_seen_from_afar(load_recipe(recipe, overrides))
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)} | values_of(target.env, os.environ)
    with tempfile.TemporaryDirectory() as scratch, in_our_words():
        package = Path(scratch) / "package.zip"
        files = pack(folder, package)
        entrypoint = command(place_in(folder, files, recipe), overrides)
        runtime_env: dict[str, Any] = {"working_dir": str(package), "env_vars": variables}
        if "pipeline/__init__.py" not in files:  # then this very code goes along
            runtime_env["py_modules"] = [
                str(Path(init).parent) for init in (fcn.__file__, pipeline.__file__)
            ]
        client = connect(target.address)
        name = client.submit_job(
            entrypoint=entrypoint, submission_id=target.name, runtime_env=runtime_env
        )
    return Submitted(client, name)


def require_seen_from_afar(recipe: Recipe) -> None:
    """A job's own folder is a copy that is thrown away: what stays must lie elsewhere.

    Raises:
        RecipeError: a relative path, or an address that leads away from the cluster.
    """
    weights = recipe.transplant.weights if recipe.transplant else ""
    is_file = weights not in ("", "torchvision", "package") and ":" not in weights
    paths = {
        "store": recipe.store,
        "data.root": recipe.data.root,
        "transplant.weights": Path(weights) if is_file else None,
    }
    mistakes = [
        f"  {key}={path}: a relative path would lie in the job's own folder, which is thrown away; "
        f"write one that all nodes share, for example --set {key}=/shared/{path}"
        for key, path in paths.items()
        if isinstance(path, Path) and not path.is_absolute()
    ]
    uri = recipe.tracking.uri or ""
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        mistakes.append(f"  tracking.uri={uri}: a relative path; write sqlite:////shared/...")
    if recipe.cluster.address is not None:
        mistakes.append(
            f"  cluster.address={recipe.cluster.address}: a job works on the cluster that it is "
            "submitted to; --set cluster.address=null, and say where with --address"
        )
    if mistakes:
        raise RecipeError("\n".join([f"{recipe.name} cannot be submitted:", *mistakes]))


def values_of(names: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that the job is to have.

    Raises:
        ClusterError: one of them is not set here.
    """
    for name in names:
        if name not in environment:
            raise ClusterError(f"--env {name}: no such variable here; export it first")
    return {name: environment[name] for name in names}


def place_in(folder: Path, files: Mapping[str, int], recipe: str) -> str:
    """How the job finds the recipe: by its name, or by its path inside the package.

    Raises:
        RecipeError: the package does not hold it.
    """
    if recipe in recipe_names():
        return recipe
    path = Path(recipe).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise RecipeError(
            f"{recipe} is not in {folder}, so the job would not have it; copy it there, or name its "
            "folder with --working-dir"
        )
    inside = path.relative_to(folder.resolve()).as_posix()
    if inside not in files:
        raise RecipeError(
            f"{recipe} stays here, so the job would not have it: .gitignore, .rayignore or "
            "pipeline/ops/packing.py excludes it; rename it"
        )
    return inside


def command(recipe: str, overrides: Sequence[str]) -> str:
    """What the job runs, for a shell."""
    sets = [f"--set={value}" for value in overrides]
    return shlex.join(["python", "-m", "pipeline", "run", recipe, *sets])


def connect(address: str | None) -> JobSubmissionClient:
    """The cluster's job server."""
    if address is not None:  # Ray's client prefers this variable and RAY_ADDRESS to its argument
        os.environ[API_SERVER] = address if "://" in address else f"http://{address}"
    for module in CHATTY:
        logging.getLogger(f"ray.{module}").setLevel(logging.ERROR)
    return JobSubmissionClient()


class Submitted:
    """A job on its way."""

    def __init__(self, client: JobSubmissionClient, name: str) -> None:
        self.client, self.name = client, name
        self.address = redact_url_password(client.get_address())

    def how_to(self) -> str:
        """The commands that follow and stop it."""
        return (
            f"follow  ray job logs --address {self.address} --follow {self.name}\n"
            f"stop    ray job stop --address {self.address} {self.name}"
        )

    def follow(self) -> int:
        """Print its log until it ends; its exit code. An interrupt leaves the job alone.

        Raises:
            ClusterError: the cluster cannot be reached any more, or the job never began.
        """
        try:
            with in_our_words(f"{self.name} may still be at work\n{self.how_to()}"):
                asyncio.run(self._print_log())
                while not (info := self.client.get_job_info(self.name)).status.is_terminal():
                    time.sleep(POLL_S)
        except KeyboardInterrupt:
            click.echo(f"\n{self.name} goes on without you\n{self.how_to()}", err=True)
            return INTERRUPTED
        return exit_code(info)

    async def _print_log(self) -> None:
        async for text in self.client.tail_job_logs(self.name):
            click.echo(text, nl=False)


def exit_code(info: Any) -> int:  # noqa: ANN401 - Ray's JobDetails
    """As if the flow had run here; 143 if it was stopped.

    Raises:
        ClusterError: the job never began.
    """
    if info.status == JobStatus.STOPPED:
        return STOPPED
    if info.driver_exit_code is None:
        raise ClusterError(f"{info.submission_id} did not run: {info.message}")
    code: int = info.driver_exit_code
    return code if code >= 0 else 128 - code  # by a signal, as a shell says it


@contextmanager
def in_our_words(besides: str = "") -> Iterator[None]:
    """What Ray's client raises, as an error with a remedy."""
    try:
        yield
    except AuthenticationError as error:
        raise ClusterError(
            f"the cluster asks for its token: {first_line(error)}; export RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN_PATH=FILE (or have the token in ~/.ray/auth_token)"
        ) from error
    except (ConnectionError, requests.RequestException, aiohttp.ClientError) as error:
        raise ClusterError(
            f"no job server: {first_line(error)} Is the cluster up, and its port 8265 forwarded (`ray "
            f"dashboard cluster.yaml`)? --address names another. {besides}"
        ) from error
    except RuntimeError as error:
        said = str(error).rstrip(". \n").rsplit("\n", 1)[-1]  # the end of the server's traceback
        raise ClusterError(f"{said}. {besides}") from error


def first_line(error: Exception) -> str:
    """The rest is of Ray's own making."""
    return str(error).strip().split("\n", 1)[0]
