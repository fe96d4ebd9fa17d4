"""A recipe as lines, each with its reason, and as text."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.config.recipe import CHOOSE

_BARE = re.compile(r"[A-Za-z_./][\w./{}*-]*")
_NO_TEXT = {"true", "false", "yes", "no", "on", "off", "null", "y", "n", "~", ".", ".inf", ".nan"}
COMMENT_COLUMN = 46
WIDTH = 100


@dataclass(frozen=True)
class Line:
    """A key of the recipe, its value, and why it has it."""

    key: str
    """Dotted."""
    value: object
    why: str = ""
    options: Sequence[tuple[str, str]] = ()
    """Lines to choose from, each with its meaning; if there are any, `value` is only tried."""
    otherwise: Sequence[str] = ()
    """Comments below: what else could be written."""
    notes: Sequence[str] = ()
    """The reason of each item, where the value is a list with an item a line."""

    @property
    def shown(self) -> object:
        """The value that stands in the recipe."""
        return CHOOSE if self.options else self.value

    @property
    def trial(self) -> str:
        """As an override that decides for the first option, to draw what it would mean."""
        return f"{self.key}={json.dumps(self.value)}"


def recipe_text(head: Sequence[str], lines: Sequence[Line]) -> str:
    """YAML with comments; sections come in the order of their first lines."""
    text = [f"# {row}" for row in head]
    order: dict[str, list[Line]] = {}
    for line in lines:
        order.setdefault(line.key.partition(".")[0], []).append(line)
    for group in order.values():
        text += _group(group)
    return "\n".join(text) + "\n"


def _group(lines: Sequence[Line]) -> Iterator[str]:
    opened: list[str] = []
    for line in lines:
        *sections, key = line.key.split(".")
        for depth, section in enumerate(sections):
            if opened[: depth + 1] != sections[: depth + 1]:
                yield f"{'  ' * depth}{section}:"
        opened = sections
        yield from _entry(line, key, "  " * len(sections))


def _entry(line: Line, key: str, indent: str) -> Iterator[str]:
    if line.notes and isinstance(line.value, Sequence):
        yield from _with_comment(f"{indent}{key}:", line.why, indent)
        for item, note in zip(line.value, line.notes, strict=True):
            yield from _with_comment(f"{indent}  - {flow(item)}", note, indent)
    else:
        yield from _with_comment(f"{indent}{key}: {flow(line.shown)}", line.why, indent)
    for option, meaning in line.options:
        yield from _with_comment(f"{indent}# {key}: {option}", meaning, indent)
    for text in line.otherwise:
        yield from (f"{indent}# {row}" for row in textwrap.wrap(text, WIDTH - len(indent)))


def _with_comment(code: str, comment: str, indent: str) -> Iterator[str]:
    comment = " ".join(comment.split())
    if not comment:
        yield code
    elif max(len(code), COMMENT_COLUMN) + len(comment) + 4 <= WIDTH:
        yield f"{code:{COMMENT_COLUMN}}  # {comment}"
    else:
        yield from (f"{indent}# {row}" for row in textwrap.wrap(comment, WIDTH - len(indent)))
        yield code


def flow(value: object) -> str:
    """A value on one line of YAML."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_key(k)}: {flow(v)}' for k, v in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(flow, value))}]"
    return _text(value) if isinstance(value, str) else json.dumps(value)


def _key(key: object) -> str:
    return str(key) if str(key).isdecimal() else flow(key)


def _text(value: str) -> str:
    plain = _BARE.fullmatch(value) and value.lower() not in _NO_TEXT and "{" not in value
    return value if plain else json.dumps(value, ensure_ascii=False)
