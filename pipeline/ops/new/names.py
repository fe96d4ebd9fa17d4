"""Class tables in the files that people keep beside their labels."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fcn.labels import Colour
from pipeline.config.documents import read_yaml
from pipeline.errors import RecipeError
from pipeline.ops.new.tree import Tree

VOID_WORD = re.compile(r"void|ignored?|unlabell?ed|don'?t ?care", re.I)
"""Names that say that nothing is known of their pixels."""


@dataclass(frozen=True)
class Table:
    """Names of classes, and where they stand."""

    file: str
    names: tuple[str, ...]
    colours: tuple[Colour, ...] = ()
    ids: tuple[int, ...] = ()
    """Their ids in the label files; empty if the file does not say them."""

    def is_void(self, index: int) -> bool:
        """Whether the name says that nothing is known."""
        return VOID_WORD.fullmatch(self.names[index].strip()) is not None


def find_table(tree: Tree) -> Table | None:
    """The first class table among the files, those nearest to the root first."""
    for name in sorted(tree.files, key=lambda n: (n.count("/"), n)):
        for pattern, read in _READERS.items():
            if re.fullmatch(pattern, name.rpartition("/")[2], re.I) and (table := read(tree, name)):
                return table
    return None


def _labelmap(tree: Tree, name: str) -> Table | None:
    """CVAT's: `name:r,g,b:parts:actions`."""
    rows = [line.split(":") for line in _lines(tree, name)]
    found = [(row[0].strip(), _rgb(row[1])) for row in rows if len(row) >= 2]
    return _table(name, found) if found and all(colour for _, colour in found) else None


def _class_dict(tree: Tree, name: str) -> Table | None:
    """`name,r,g,b` with a first line that says so."""
    found = []
    for row in list(csv.reader(_lines(tree, name)))[1:]:
        texts = [cell for cell in row if not cell.strip().isdigit()]
        numbers = [int(cell) for cell in row if cell.strip().isdigit()]
        if len(texts) != 1 or len(numbers) < 3:
            return None
        found.append((texts[0].strip(), (numbers[-3], numbers[-2], numbers[-1])))
    return _table(name, found)


def _plain(tree: Tree, name: str) -> Table | None:
    """A name a line, perhaps with a colour before or after it, or an id before it."""
    found: list[tuple[str, Colour | None]] = []
    ids: list[int] = []
    for line in _lines(tree, name):
        numbers = re.findall(r"(?<!\S)\d+(?!\S)", line.replace(",", " "))
        text = re.sub(r"(?<!\S)\d+(?!\S)", " ", line.replace(",", " ")).strip(" :\t")
        if not text:
            return None
        colour = (
            (int(numbers[-3]), int(numbers[-2]), int(numbers[-1])) if len(numbers) > 2 else None
        )
        ids += [int(numbers[0])] if len(numbers) in (1, 4) else []
        found.append((re.sub(r"\s+", " ", text), colour))
    return _table(name, found, ids)


def _yolo(tree: Tree, name: str) -> Table | None:
    """`names:` as a list or by number."""
    try:
        names = read_yaml(str(tree.root / name), "names of classes").get("names")
    except RecipeError:
        return None
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names)]
    return _table(name, [(str(n), None) for n in names]) if isinstance(names, list) else None


def _ade20k(tree: Tree, name: str) -> Table | None:
    """Columns Idx, Ratio, Train, Val, Stuff, Name; ids are from 1, and 0 is other."""
    rows = [re.split(r"\t+", line) for line in _lines(tree, name)]
    found = [(int(row[0]), row[-1].strip()) for row in rows if row[0].strip().isdigit()]
    return _table(name, [(text, None) for _, text in found], [i for i, _ in found])


def _lines(tree: Tree, name: str) -> list[str]:
    lines = [line.strip() for line in tree.text(name).splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _rgb(text: str) -> Colour | None:
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    return (numbers[0], numbers[1], numbers[2]) if len(numbers) == 3 else None


def _table(
    file: str, rows: Sequence[tuple[str, Colour | None]], ids: Sequence[int] = ()
) -> Table | None:
    names = tuple(name for name, _ in rows)
    if not names or len(set(names)) != len(names):
        return None
    colours = tuple(colour for _, colour in rows if colour)
    return Table(
        file,
        names,
        colours if len(colours) == len(names) == len(set(colours)) else (),
        tuple(ids) if len(ids) == len(names) else (),
    )


_READERS: Mapping[str, Callable[[Tree, str], Table | None]] = {
    r"labelmap\.txt": _labelmap,
    r"objectInfo150\.txt": _ade20k,
    r"(class|label)_?(dict|colou?rs?|map)\.csv": _class_dict,
    r"classes\.csv": _class_dict,
    r"(classes|names|labels|codes|(class|label)_(names|colou?rs))\.txt": _plain,
    r"\w+\.names": _plain,
    r".*\.ya?ml": _yolo,
}
"""How each kind of file is read, by its name."""
