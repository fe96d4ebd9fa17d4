"""What MLflow, file systems and pictures take: asked before anything is computed."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from pathlib import PurePath

from fcn.labels import ClassTable

MAX_NAME, MAX_TEXT = 100, 4096
"""Characters of a name, with which files, metrics and locks are named; and of any other text."""
UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, halves of characters, and line ends."""
MODEL_URI = re.compile(r"models:/[^/@\s]+(@[\w-]+|/[1-9]\d{0,8})")
NOT_IN_MODEL = "/:.%\"'@?#\\"
"""MLflow refuses some of these in a model's name; the others would end the name in its address."""


def require_plain(value: object, *, takes_bool: bool) -> None:
    """Refuse a truth value where none is meant, and texts that no file, table or page can hold.

    Raises:
        ValueError: what is wrong, and what to write.
    """
    for each in value if isinstance(value, list | tuple) else [value]:
        if isinstance(each, bool) and not takes_bool:
            raise ValueError(f"{str(each).lower()} is given where a number or a text is meant")
        if isinstance(each, str | PurePath):
            _require_text(str(each))


def _require_text(text: str) -> None:
    if not text.strip():
        raise ValueError("the text is empty; write a value, or null where none is needed")
    if len(text) > MAX_TEXT:
        raise ValueError(f"{text[:40]}... has {len(text):,} characters; write at most {MAX_TEXT:,}")
    if odd := [char for char in text if unicodedata.category(char) in UNPRINTABLE]:
        raise ValueError(
            f"{text[:60]!a} holds {odd[0]!a}; write printable characters in UTF-8, in one line"
        )


def require_model_name(name: str) -> None:
    """Refuse a name under which MLflow would register no model.

    Raises:
        ValueError: the sign, and the key that gives another name.
    """
    if found := [char for char in NOT_IN_MODEL if char in name]:
        raise ValueError(
            f"the model would be registered as {name}, which holds {found[0]}; set register.model to a "
            f"name without {' '.join(NOT_IN_MODEL)}"
        )


def require_model_uri(text: str) -> None:
    """Refuse what names no version of a registered model.

    Raises:
        ValueError: how it is written.
    """
    if not MODEL_URI.fullmatch(text):
        raise ValueError(f"{text} names no version; write models:/NAME@champion or models:/NAME/3")


def require_legal_classes(table: ClassTable) -> None:
    """Refuse classes that MLflow cannot tell apart or that no picture can show.

    Raises:
        ValueError: the class, and what to change.
    """
    for name, colour in zip(table.names, table.colours, strict=True):
        if len(name) > MAX_NAME or not name.strip("."):
            raise ValueError(
                f"class {name[:40]!r} of {len(name)} characters; write 1 to {MAX_NAME}, not dots alone"
            )
        if not all(0 <= channel <= 255 for channel in colour):
            raise ValueError(
                f"class {name} has the colour {list(colour)}; write [R, G, B] of 0 to 255"
            )
    twice = [key for key, n in Counter(map(metric_name, table.names)).items() if n > 1]
    if twice:
        same = [name for name in table.names if metric_name(name) == twice[0]]
        raise ValueError(
            f"the classes {' and '.join(same)} would both be called {twice[0]} in MLflow; rename one"
        )


def metric_name(class_name: str) -> str:
    """A class's name as a part of a metric's key, with `_` for signs that MLflow does not take."""
    return re.sub(r"[^\w.\- ]", "_", class_name)
