"""The folder that a job takes along: what is in it, and what never is."""

from __future__ import annotations

import logging
from pathlib import Path

from ray._private.runtime_env import packaging

from pipeline.errors import ClusterError

LIMIT_BYTES = packaging.GCS_STORAGE_MAX_SIZE
"""Ray carries no larger package."""
NUM_NAMED = 5
"""So many of the largest files are named if it is too large."""
RESULTS = ("/store", "/data", "/demo", "mlruns", "mlartifacts", "mlflow.db", "*.arrow")
WEIGHTS = ("*.pt", "*.pth", "*.ckpt", "*.safetensors")
ENVIRONMENTS = (".git", ".venv", "venv", "node_modules", "*.egg-info", "/build", "/dist")
CACHES = ("__pycache__", "*.pyc", ".*_cache", ".hypothesis", ".coverage", ".DS_Store")
SECRETS = (
    *(".env", ".env.*", ".envrc", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.kdbx"),
    *(".netrc", "_netrc", ".pgpass", ".pypirc", ".npmrc", ".htpasswd", ".git-credentials"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "auth_token", "*credentials*"),
    *("secret", "secrets", "secret.*", "secrets.*", "kubeconfig", ".databrickscfg"),
    *(".aws", ".azure", ".config", ".docker", ".gnupg", ".kube", ".mlflow", ".ray", ".ssh"),
)
EXCLUDES = (*RESULTS, *WEIGHTS, *ENVIRONMENTS, *CACHES, *SECRETS)
"""Beside what .gitignore and .rayignore name, as these write it. No pattern ends in a slash: Ray
would then look at each file of the folder before it leaves it out."""

quiet = logging.getLogger(__name__)


def packed(folder: Path) -> dict[str, int]:
    """Bytes of each file that goes along, by its path inside the folder."""
    sizes: dict[str, int] = {}

    def note(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(folder).as_posix()] = path.stat().st_size

    excludes = [packaging._get_excludes(folder, list(EXCLUDES))]
    packaging._dir_travel(folder, excludes, note, include_gitignore=True, logger=quiet)
    return sizes


def pack(folder: Path, target: Path) -> dict[str, int]:
    """Write the package as a zip; what `packed` says is in it.

    Raises:
        ClusterError: it is larger than Ray carries; the largest files are named.
    """
    sizes = packed(folder)
    total = sum(sizes.values())
    if total >= LIMIT_BYTES:
        largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:NUM_NAMED]
        named = ", ".join(f"{name} ({sizes[name] / 2**20:,.1f} MiB)" for name in largest)
        raise ClusterError(
            f"{folder} makes a package of {total / 2**20:,.1f} MiB; Ray carries less than "
            f"{LIMIT_BYTES / 2**20:,.1f}. The largest are {named}: name them in .rayignore, or choose "
            "another --working-dir"
        )
    packaging.create_package(
        str(folder), target, include_gitignore=True, excludes=list(EXCLUDES), logger=quiet
    )
    return sizes
