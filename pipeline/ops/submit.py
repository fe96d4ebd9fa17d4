"""A flow as a job on a Ray cluster: checked here, sent with its folder and followed to its exit code."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import click
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from pipeline.config.recipe import Recipe, load_recipe, recipe_names
from pipeline.errors import ClusterError, RecipeError
from pipeline.ops.package import contents, is_excluded, looks_secret, package

log = logging.getLogger(__name__)

API_SERVER = "RAY_API_SERVER_ADDRESS"
STOP_S = 300
"""A stopped job may take so long for its checkpoint; by itself Ray kills it after three seconds."""
POLL_S = 0.5
STOPPED, INTERRUPTED = 143, 130
CHATTY = [
    *("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"),
    "ray._private.runtime_env.packaging",
]
"""Loggers that print each upload and each closed connection."""


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
        ClusterError: there is no cluster or it does not admit us, the job's name is taken, the folder is
            too large, or a variable that the job is to have is not set.
    """
    entrypoint, environment = prepare(recipe, overrides, target)
    with in_our_words():
        client = connect(target.address)
        name = client.submit_job(
            entrypoint=entrypoint, submission_id=target.name, runtime_env=environment
        )
    return Submitted(client, name)


def prepare(recipe: str, overrides: Sequence[str], target: Target) -> tuple[str, dict[str, Any]]:
    """What the job runs, and its runtime environment; nothing is sent.

    Raises:
        RecipeError, ClusterError: as `submit` does.
    """
    folder = target.folder.absolute()
    require_shared_paths(load_recipe(recipe, overrides))
    entrypoint = command(path_in(folder, recipe), overrides)
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S), **variables_of(target.env)}
    return entrypoint, {"env_vars": variables, **package(folder)}


def dry_run_lines(recipe: str, overrides: Sequence[str], target: Target) -> Iterator[str]:
    """What would be sent: each file with its size, the names of the variables, and what would run.

    Raises:
        RecipeError, ClusterError: as `submit` does.
    """
    entrypoint, environment = prepare(recipe, overrides, target)
    with in_our_words():
        files = list(contents(environment))
    yield from (f"{size:>12,}  {name}" for name, size in files)
    yield f"{sum(size for _, size in files):>12,}  bytes in {len(files)} files, before compression"
    yield f"variables     {', '.join(environment['env_vars'])}"
    yield f"would run     {entrypoint}"


def variables_of(names: Sequence[str]) -> dict[str, str]:
    """The named variables of this process.

    Raises:
        ClusterError: one is not set, or is given with its value, which is not repeated.
    """
    for name in names:
        if "=" in name:
            raise ClusterError(
                f"--env {name.partition('=')[0]}=...: give the name alone; its value is taken from this "
                "shell, as everybody on this machine sees the arguments of commands"
            )
        if name not in os.environ:
            raise ClusterError(f"--env {name}: no such variable here; export it first")
    return {name: os.environ[name] for name in names}


def require_shared_paths(recipe: Recipe) -> None:
    """Refuse paths in the job's own folder, a copy that is thrown away: what stays must lie elsewhere.

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
            "submitted to; use --set cluster.address=null, and name the cluster with --address"
        )
    if mistakes:
        raise RecipeError("\n".join([f"{recipe.name} cannot be submitted:", *mistakes]))


def path_in(folder: Path, recipe: str) -> str:
    """How the job finds the recipe: by its name, or by its path inside the folder.

    Raises:
        RecipeError: the job would not have it.
    """
    if recipe in recipe_names():
        return recipe
    path = Path(recipe).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise RecipeError(
            f"{recipe} is not in {folder}, so the job would not have it; copy it there, or name its "
            "folder with --working-dir"
        )
    inside = path.relative_to(folder.resolve())
    if is_excluded(inside) or any(map(looks_secret, inside.parts)):
        raise RecipeError(
            f"{recipe} is never sent, because secrets, data and results have such names, so the job "
            "would not have it; rename or move it"
        )
    return inside.as_posix()


def command(recipe: str, overrides: Sequence[str]) -> str:
    """What the job runs, for a shell."""
    sets = [f"--set={value}" for value in overrides]
    return shlex.join(["python", "-m", "pipeline", "run", recipe, *sets])


def connect(address: str | None) -> JobSubmissionClient:
    """The client of the cluster's job server."""
    if address is not None:  # Ray's client prefers this variable and RAY_ADDRESS to its argument
        os.environ[API_SERVER] = address if "://" in address else f"http://{address}"
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    return JobSubmissionClient()


class Submitted:
    """A job that was sent."""

    def __init__(self, client: JobSubmissionClient, name: str) -> None:
        self.client, self.name = client, name
        url = urlsplit(client.get_address())  # without the password that it may hold
        self.address = url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()

    def how_to(self) -> str:
        """The commands that follow and stop it."""
        address, name = shlex.quote(self.address), shlex.quote(self.name)
        return (
            f"follow  ray job logs --address {address} --follow {name}\n"
            f"stop    ray job stop --address {address} {name}"
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
    return code if code >= 0 else 128 - code  # ended by a signal: the code that a shell gives


@contextmanager
def in_our_words(besides: str = "") -> Iterator[None]:
    """Turn what Ray's client raises into an error with a remedy."""
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
    except OSError as error:
        raise ClusterError(
            f"{error.filename} cannot be taken along: {error.strerror}; name it in .rayignore"
        ) from error
    except RuntimeError as error:
        reason = str(error).rstrip(". \n").rsplit("\n", 1)[-1]  # the last line of its traceback
        if limit := re.search(
            r"maximum (?:request body )?size(?: of)? ([\d.]+)(MiB)?", reason, re.I
        ):
            size_mib = float(limit[1].rstrip(".")) / (1 if limit[2] else 2**20)
            besides = (
                f"The working directory makes a larger package than the {size_mib:,.0f} MiB that this "
                "cluster takes: name its large files and folders in .rayignore, or choose another "
                "--working-dir"
            )
        raise ClusterError(f"{reason}. {besides}") from error


def first_line(error: Exception) -> str:
    """The rest is of Ray's own making."""
    return str(error).strip().split("\n", 1)[0]
