"""Which packages are installed, as pip writes them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata


def installed() -> str:
    """All of them, as name==version lines."""
    found = {f"{d.metadata['Name']}=={d.version}" for d in metadata.distributions()}
    return "\n".join(sorted(found, key=str.lower)) + "\n"


def pins(names: Iterable[str]) -> list[str]:
    """Some of them as name==version, without the build that a version may name after a plus."""
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in names]
