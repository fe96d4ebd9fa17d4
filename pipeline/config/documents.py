"""YAML from anybody: small, of plain values, each key once, and read in a moment or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import RecipeError

MAX_BYTES, MAX_VALUES, MAX_DEPTH, MAX_DIGITS = 100_000, 20_000, 30, 30
"""Of a document; what an alias stands for counts each time."""
TOO_DEEP = f"it is nested more than {MAX_DEPTH} deep; write it flatter"


def read_text(path: Path) -> str:
    """The text of a regular file of moderate size.

    Raises:
        OSError: there is no such file, or it may not be read.
        ValueError: it is a folder or a device, too large, or not UTF-8.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is a folder or a device; give a file")
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES:,} bytes; give a smaller text")
    return content.decode()


def read_yaml(path: str, holds: str) -> dict[str, Any]:
    """The mapping in a YAML file; `holds` says what it should hold, for the message.

    Raises:
        RecipeError: no such file, or no mapping in it.
    """
    try:
        text = read_text(Path(path))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} should hold {holds} but cannot be read: {error}") from None
    return parse_mapping(text, path, holds)


def parse_mapping(text: str, source: str, holds: str) -> dict[str, Any]:
    """The mapping in a YAML text.

    Raises:
        RecipeError: it is no YAML, holds too much, or no mapping.
    """
    try:
        tree = parse(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{source} is not YAML: {error}") from None
    except ValueError as error:
        raise RecipeError(f"{source} cannot be taken: {error}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{source} holds {type(tree).__name__}, not {holds}")
    return tree


def parse(text: str) -> Any:  # noqa: ANN401 - any plain value
    """The value that a YAML text stands for.

    Raises:
        YAMLError: it is no YAML.
        ValueError: it has a key twice, or more than a document should hold.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {})
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    finally:
        loader.dispose()


def loses_a_comment(text: str) -> bool:
    """Whether YAML takes a part of this text for a comment."""
    if "#" not in text:
        return False
    marks = ((token.start_mark.index, token.end_mark.index) for token in yaml.scan(text))
    return "#" in text[max((end for start, end in marks if start < end), default=0) :]


class _Loader(yaml.SafeLoader):
    """Each key once; no dates, which no key takes, and no endless integers."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as yaml has it
        first: [(tag, rule) for tag, rule in rules if tag != "tag:yaml.org,2002:timestamp"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:  # noqa: ANN401 - yaml's signature
        if getattr(self.peek_event(), "tag", None) is not None:
            raise ValueError(
                "a value has a tag (!...); write it plainly, or in quotes if it is a text"
            )
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # noqa: ANN401 - yaml's signature
        node = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError("a key is no single value; write KEY: VALUE")
            line = key.start_mark.line + 1
            if first := seen.get((key.tag, key.value)):
                raise ValueError(
                    f"{key.value} is given twice, in lines {first} and {line}; keep one of them"
                )
            seen[key.tag, key.value] = line
        return node

    def integer(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > MAX_DIGITS:
            raise ValueError(
                f"it has a number of {len(node.value)} digits; {MAX_DIGITS} are allowed"
            )
        return self.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.integer)


def _measure(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """How many values a node stands for, and how deep they are nested."""
    if id(node) not in known:
        known[id(node)] = None
        inner = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            inner = [value for pair in inner for value in pair]
        sizes = [_measure(each, known) for each in inner]
        known[id(node)] = 1 + sum(n for n, _ in sizes), 1 + max((d for _, d in sizes), default=0)
    if (measured := known[id(node)]) is None:
        raise ValueError("an alias lies inside of what it stands for; write its value out")
    if measured[0] > MAX_VALUES:
        raise ValueError(f"it stands for more than {MAX_VALUES:,} values; write fewer")
    if measured[1] > MAX_DEPTH:
        raise ValueError(TOO_DEEP)
    return measured
