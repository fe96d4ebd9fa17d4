"""What a job takes along of a folder, and what never leaves this machine."""

from __future__ import annotations

import logging
import os
import re
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePath
from typing import Any

from ray._private.runtime_env.packaging import create_package

import fcn
import pipeline

log = logging.getLogger(__name__)

MAYBE = (
    *("*token*", "*secret*", "*passw*", "*api_key*", "*apikey*", "*private_key*", "id_*"),
    *("!*.py", "!*.pyi"),  # tokenizer.py is code
)
"""Words in names; what comes after an exclamation mark is taken along all the same."""
RESULTS = ("/store", "/data", "/demo", "mlruns", "mlartifacts", "mlflow.db", "*.arrow")
WEIGHTS = ("*.pt", "*.pth", "*.ckpt", "*.safetensors")
ENVIRONMENTS = (".git", ".venv", "venv", "node_modules", "*.egg-info", "/build", "/dist")
CACHES = ("__pycache__", "*.pyc", ".*_cache", ".hypothesis", ".coverage", ".DS_Store")
SECRETS = (
    *("*.env", ".env", ".env.*", ".envrc", "*.pem", "*.key", "*.p12", "*.pfx", "*.pkcs12"),
    *("*.jks", "*.keystore", "*.kdb", "*.kdbx", "*.ppk", "*.keytab", "*.gpg", "*.pgp", "*.age"),
    *(".netrc", "_netrc", ".pgpass", ".my.cnf", ".pypirc", ".npmrc", ".htpasswd", "htpasswd"),
    *(".git-credentials", ".s3cfg", ".boto", "rclone.conf", ".terraformrc", "*.ovpn", "*_history"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "auth_token", "*credential*"),
    *("auth.ini", "auth.json", "auth.toml", "auth.yaml", "auth.yml", "basic_auth*"),
    *("secret", "secrets", "secret.*", "secrets.*", ".secret*", "passwords.*", "kubeconfig*"),
    *("service-account*.json", "service_account*.json", "serviceaccount*.json"),
    *("*.tfstate", "*.tfstate.*", "*.tfvars", ".databrickscfg", ".dockercfg", ".dockerconfigjson"),
    *(".aws", ".azure", ".config", ".docker", ".gcloud", ".gnupg", ".kube", ".mlflow", ".oci"),
    *(".ray", ".ssh", ".terraform", ".vault*"),
)
EXCLUDES = (*MAYBE, *RESULTS, *WEIGHTS, *ENVIRONMENTS, *CACHES, *SECRETS)
"""What never goes along, as .gitignore writes it; the last pattern that fits decides. No pattern ends in
a slash: Ray would then look at each file of such a folder before it leaves it out."""
MAX_NAMED = 20
NOT_UTF8 = re.compile("[\ud800-\udfff]")
"""What Python makes of bytes in a file's name that are no UTF-8."""


def package(folder: Path) -> dict[str, Any]:
    """What goes along, as Ray's runtime environment; Ray leaves out what .gitignore names, too."""
    secrets, odd = left_here(folder)
    _say("left here, as their names look like secrets: %s", secrets)
    _say("symbolic links stay here, and files that are no regular ones: %s", odd)
    excludes, ours = [*EXCLUDES, *map(pattern, (*secrets, *odd))], {}
    if not (folder / "pipeline" / "__init__.py").is_file():  # then this very code goes along
        packages = [Path(module.__path__[0]) for module in (fcn, pipeline)]
        ours["py_modules"] = list(map(str, packages))
        # Ray applies the excludes to these as well, and `pipeline` has a folder `data` of its own
        excludes.remove("/data")
        there = [path.relative_to(folder) for path in (folder / "data").glob("*")]
        excludes += [pattern(path) for path in there if not (packages[1] / path).exists()]
    return {"working_dir": str(folder), "excludes": excludes, **ours}


def contents(environment: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """The files that Ray would send, by name, with their sizes; its packages are made and removed."""
    with tempfile.TemporaryDirectory(prefix="fcn-package-") as scratch:
        for number, path in enumerate(
            [environment["working_dir"], *environment.get("py_modules", ())]
        ):
            target = Path(scratch) / f"{number}.zip"
            create_package(
                path,
                target,
                include_gitignore=os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1",
                include_parent_dir=number > 0,
                excludes=environment["excludes"],
                logger=log,
            )
            with zipfile.ZipFile(target) as archive:
                files = [info for info in archive.infolist() if not info.is_dir()]
            yield from sorted((info.filename, info.file_size) for info in files)


def left_here(folder: Path) -> tuple[list[PurePath], list[PurePath]]:
    """Names below a folder that look like secrets; and those that lead elsewhere or cannot be sent.

    Ray would send what a link points at, wherever that lies.
    """
    secrets: list[PurePath] = []
    odd: list[PurePath] = []
    for top, folders, files in os.walk(folder):
        inside = Path(top).relative_to(folder)
        names = [inside / name for name in (*folders, *files)]
        hidden = [path for path in names if looks_secret(path.name)]
        there = [path for path in names if path not in hidden and not is_excluded(path)]
        secrets += hidden
        odd += [path for path in there if _is_odd(folder / path)]
        kept = {path.name for path in there}
        folders[:] = [name for name in folders if name in kept]
    return secrets, odd


def _is_odd(path: Path) -> bool:
    """Whether it is a link, a pipe or the like, or has a name that is not UTF-8."""
    is_sent = path.is_file() or path.is_dir()
    return path.is_symlink() or not is_sent or NOT_UTF8.search(path.name) is not None


def looks_secret(name: str) -> bool:
    """Whether secrets have such names, in capitals or not."""
    return _excludes(name.lower(), (*MAYBE, *SECRETS))


def is_excluded(path: PurePath) -> bool:
    """Whether EXCLUDES names a file or folder, by its path below the working directory."""
    anywhere = [name for name in EXCLUDES if not name.startswith("/")]
    in_any_folder = any(_excludes(part, anywhere) for part in path.parts)
    return in_any_folder or f"/{path.parts[0]}" in EXCLUDES


def _excludes(name: str, patterns: Sequence[str]) -> bool:
    fitting = [each for each in patterns if fnmatch(name, each.removeprefix("!"))]
    return bool(fitting) and not fitting[-1].startswith("!")


def pattern(path: PurePath) -> str:
    """A line of .gitignore that names this path; a byte that is no UTF-8 is any character there."""
    quoted = re.sub(r"([\\*?\[\]!# ])", r"\\\1", path.as_posix())
    return "/" + NOT_UTF8.sub("?", quoted)


def _say(words: str, paths: Sequence[PurePath]) -> None:
    if paths:
        names = sorted(NOT_UTF8.sub("?", str(path)) for path in paths)
        more = [f"and {len(names) - MAX_NAMED} more"] * (len(names) > MAX_NAMED)
        log.warning(words, ", ".join([*names[:MAX_NAMED], *more]))
