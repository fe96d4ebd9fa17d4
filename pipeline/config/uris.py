"""Credentials in a URI: found wherever one stands, so that nothing keeps or prints them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

REMEDY = (
    "what is written here is kept with the run and printed; give credentials by the environment (for "
    "example MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, AZURE_STORAGE_ACCOUNT_KEY) or by the machine's role"
)
USER = re.compile(r"([a-z][a-z0-9+.-]{0,30})://([^/?#\s]*)@", re.IGNORECASE)
NAMES_ALONE = ("abfs", "abfss", "gs", "gcs", "hdfs", "ssh")
"""Schemes that have a name before the @ which is no secret, such as a container."""
DATABASES = ("sqlite", "postgresql", "mysql", "mssql", "oracle")
PARAMETER = re.compile(
    r"[?&;][^=&;\s]{0,40}(?:key|secret|token|passw|pwd|credential|signature|\bsig)[^=&;\s]{0,40}=[^&;\s]",
    re.IGNORECASE,
)


def has_credentials(text: str) -> bool:
    """Whether a text holds a URI with a password, a lone user or a secret parameter."""
    if "://" not in (plain := unquote(text)):
        return False
    name_alone = (*NAMES_ALONE, *DATABASES)
    for scheme, user in USER.findall(plain):
        if ":" in user or scheme.lower().partition("+")[0] not in name_alone:
            return True
    return PARAMETER.search(plain) is not None


def keys_with_credentials(tree: Any, path: str = "") -> Iterator[str]:  # noqa: ANN401 - plain values
    """The dotted paths of all texts in plain values that hold credentials."""
    if isinstance(tree, str) and has_credentials(tree):
        yield path
    inner = dict(enumerate(tree)) if isinstance(tree, list) else tree
    if not isinstance(inner, dict):
        return
    for key, value in inner.items():
        if has_credentials(str(key)):
            yield f"a key of {path or 'the recipe'}"
        else:
            yield from keys_with_credentials(value, f"{path}.{key}".lstrip("."))
