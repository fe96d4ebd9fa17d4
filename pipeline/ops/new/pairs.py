"""Which files are pairs, found by counting: every way to read the names is tried, the best is kept.

A name is read as `folder/prefix + stem + suffix + ending`. Two readings whose stems agree for many files
are a candidate; which of the two are the label maps is seen in the pixels, which a caller measures.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import PurePosixPath
from typing import NamedTuple, cast

from pipeline.config.schema import Split
from pipeline.data.sources.folder import STEM

SPLITS: Mapping[str, Split] = {
    "training": "train",
    "train": "train",
    "validation": "val",
    "valid": "val",
    "val": "val",
    "testing": "test",
    "test": "test",
}
_SPLIT = re.compile(
    rf"(?<![a-z])({'|'.join(SPLITS)})(?=$|[^a-z]|annot|label|mask|img|image|photo|gt|seg)", re.I
)
_SUFFIX = re.compile(r"[_\-. ](?=[^_\-. ]*[A-Za-z])|(?<=\d)(?=[A-Za-z]+$)")
_PREFIX = re.compile(r"^[A-Za-z]+[_\-. ]")
_LABEL_WORD = re.compile(r"(?<![a-z])(mask|label|annot|gt|seg|truth|l$)", re.I)
_OTHER_WORD = re.compile(r"instance|overlay|color|colour|depth|edge|viz|vis(?![a-z])|preview", re.I)
Key = tuple[Split | None, str]
"""A split, None if the folders name none, and a stem."""
SPLIT_MARK = "\0"
MOST_TEMPLATES = 40
MOST_FILES = 3000
"""So many files are read in every way; of more, those of some numbers in their names."""
FLATTER = 0.05
"""Label maps have at least so many more equal neighbours than images have."""


class Template(NamedTuple):
    """One way to read names; the split in the folder's name is replaced by a mark."""

    folder: str
    prefix: str
    suffix: str
    ending: str
    """Empty for any."""

    @property
    def plainness(self) -> tuple[int, int, int]:
        """Less is plainer."""
        return (
            len(self.prefix + self.suffix),
            len(self.ending),
            -len(PurePosixPath(self.folder).parts),
        )

    def place(self, word: str, nested: bool) -> str:
        """As a recipe writes it, for a split whose folders have a word in their names."""
        folder = self.folder.replace(SPLIT_MARK, word)
        if not (self.prefix or self.suffix or self.ending or nested):
            return folder or "."
        name = f"{self.prefix}{STEM}{self.suffix}{self.ending}"
        return f"{folder}/{name}" if folder else name


@dataclass
class Reading:
    """The files that a template fits, by split and stem."""

    files: dict[Key, str] = field(default_factory=dict)
    words: dict[Split | None, str] = field(default_factory=dict)
    """The word for each split in the folders' names."""
    ambiguous: bool = False
    """Whether two files have one stem."""


@dataclass(frozen=True)
class Pairing:
    """The pairs that were found."""

    images: Template
    labels: Template
    places: Mapping[Split | None, tuple[str, str]]
    """Where images and labels of each split lie; None if folders name no split."""
    stems: Mapping[Split | None, Sequence[str]]
    sure: bool
    """Whether it was seen which of the two are the label maps."""
    others: Sequence[str] = ()
    """Other files that would be label maps of as many images."""


def best_pairing(
    images: Sequence[str], labels: Sequence[str], flatness: Callable[[str], float] | None
) -> Pairing | None:
    """The pairing of most files; `flatness` measures how equal neighbouring pixels of a file are.

    Without it, the labels are of another kind (annotations), and each pair is known to be one.
    """
    of_images = _readings(images)
    of_labels = of_images if flatness else _readings(labels)
    measure = _Flatness(flatness) if flatness else None
    candidates = []
    pairs = (
        permutations(of_images, 2) if flatness else ((a, b) for a in of_images for b in of_labels)
    )
    for one, two in pairs:
        left, right = of_images[one].files, of_labels[two].files
        keys = left.keys() & right.keys()
        if keys and all(left[key] != right[key] for key in list(keys)[:3]):
            candidates.append((len(keys), one, two))
    if not candidates:
        return None
    most = max(n for n, *_ in candidates)
    good = [c for c in candidates if c[0] * 2 > most]
    ranked = sorted(good, key=lambda c: _rank(c, of_images, of_labels, measure), reverse=True)
    _, one, two = ranked[0]
    others = _others(ranked, of_labels, measure) if measure else []
    sure = measure is None or measure.tells(of_images[one].files, of_labels[two].files)
    sure = sure or bool(_named(two)) > bool(_named(one))
    return _pairing((one, of_images[one]), (two, of_labels[two]), sure, others)


def _rank(
    candidate: tuple[int, Template, Template],
    of_images: Mapping[Template, Reading],
    of_labels: Mapping[Template, Reading],
    measure: _Flatness | None,
) -> tuple[object, ...]:
    """Greater is better: right kinds of files, then many pairs, then few left over, then plain names."""
    n, one, two = candidate
    kinds, loose = 0, len(of_labels[two].files) - n
    labels = set(of_labels[two].files.values())
    lone = sum(file not in labels for file in of_images[one].files.values()) - n
    mixed = len(of_images[one].files) - n - lone  # label maps that would be read as images too
    named = bool(_named(two)) - bool(_named(one)) - 2 * bool(_other(two)) - 2 * bool(_other(one))
    if measure:
        kinds = measure.order(of_images[one].files, of_labels[two].files)
    plain = tuple(-x for x in (*two.plainness, *one.plainness))
    return (
        kinds,
        -2 * bool(_other(two)) - 2 * bool(_other(one)),
        n,
        -loose - lone,
        -mixed,
        named,
        plain,
    )


def _named(template: Template) -> re.Match[str] | None:
    return _LABEL_WORD.search(f"{template.folder}/{template.prefix} {template.suffix}")


def _other(template: Template) -> re.Match[str] | None:
    return _OTHER_WORD.search(f"{template.folder}/{template.prefix} {template.suffix}")


def _others(
    ranked: Sequence[tuple[int, Template, Template]],
    of_labels: Mapping[Template, Reading],
    measure: _Flatness,
) -> list[str]:
    """Further label maps of as many of the same images, a name for each set of files."""
    (most, chosen, labels), *rest = ranked
    told = {frozenset(of_labels[labels].files.values())}
    found = []
    for n, one, two in rest:
        files = frozenset(of_labels[two].files.values())
        if n < most or one != chosen or any(files <= t or t <= files for t in told):
            continue
        if measure.label_like(of_labels[two].files):
            told.add(files)
            found.append(two.place("*", nested=False).replace(STEM, "*"))
    return found


class _Flatness:
    """How flat the files of a reading are, by a few of them, each measured once."""

    def __init__(self, measure: Callable[[str], float], num: int = 4) -> None:
        self._measure, self._num = measure, num
        self._known: dict[str, float] = {}

    def __call__(self, files: Mapping[Key, str]) -> float:
        names = sorted(files.values())
        some = names[:: max(1, len(names) // self._num)][: self._num]
        for name in some:
            if name not in self._known:
                self._known[name] = self._measure(name)
        return sorted(self._known[name] for name in some)[len(some) // 2]

    def order(self, images: Mapping[Key, str], labels: Mapping[Key, str]) -> int:
        """1 if the second are flatter than the first, -1 if the first are, 0 if neither."""
        keys = sorted(images.keys() & labels.keys(), key=str)
        difference = self({k: labels[k] for k in keys}) - self({k: images[k] for k in keys})
        return 0 if abs(difference) < FLATTER else 1 if difference > 0 else -1

    def tells(self, images: Mapping[Key, str], labels: Mapping[Key, str]) -> bool:
        """Whether the second are seen to be the label maps."""
        return self.order(images, labels) == 1

    def label_like(self, labels: Mapping[Key, str]) -> bool:
        """Whether nearly all neighbours are equal."""
        return self(labels) > 0.8


def _readings(files: Sequence[str]) -> dict[Template, Reading]:
    """The ways to read the names that fit most files."""
    readings: dict[Template, Reading] = {}
    for file in _some(files):
        for template, split, word, stem in _ways(file):
            reading = readings.setdefault(template, Reading())
            if reading.files.setdefault((split, stem), file) != file:
                reading.ambiguous = True
            if reading.words.setdefault(split, word) != word:
                reading.ambiguous = True
    clear = {t: r for t, r in readings.items() if not r.ambiguous}
    order = sorted(clear, key=lambda t: (-len(clear[t].files), t.plainness, t))
    return {template: clear[template] for template in order[:MOST_TEMPLATES]}


def _some(files: Sequence[str]) -> Sequence[str]:
    if len(files) <= MOST_FILES:
        return files
    of = -(-len(files) // MOST_FILES)
    chosen = [f for f in files if int("0" + re.sub(r"\D", "", PurePosixPath(f).name)) % of == 0]
    return chosen or files


def _ways(file: str) -> Iterator[tuple[Template, Split | None, str, str]]:
    path = PurePosixPath(file)
    parts = path.parts[:-1]
    stem, ending = path.stem, path.suffix
    for depth in range(len(parts), max(-1, len(parts) - 4), -1):
        folder, split, word = _split_of(parts[:depth])
        rest = "/".join(parts[depth:])
        if rest and split is None and _split_of(parts)[1]:
            continue  # the folder that names the split is not a part of a stem
        inner = f"{rest}/" if rest else ""
        for prefix, core in _cores(stem, bool(rest)):
            for key, suffix in _keys(core):
                for end in ("", ending):
                    yield Template(folder, prefix, suffix, end), split, word, inner + key


def _split_of(parts: Sequence[str]) -> tuple[str, Split | None, str]:
    for i, part in enumerate(parts):
        if found := _SPLIT.search(part):
            marked = part[: found.start()] + SPLIT_MARK + part[found.end() :]
            split = SPLITS[found[1].lower()]
            return "/".join([*parts[:i], marked, *parts[i + 1 :]]), split, found[1]
    return "/".join(parts), None, ""


def _cores(stem: str, nested: bool) -> Iterator[tuple[str, str]]:
    yield "", stem
    if not nested and (found := _PREFIX.match(stem)) and found.end() < len(stem):
        yield found[0], stem[found.end() :]


def _keys(core: str) -> Iterator[tuple[str, str]]:
    yield core, ""
    cuts = [found.start() for found in _SUFFIX.finditer(core) if found.start() > 0]
    for cut in cuts[-3:]:
        yield core[:cut], core[cut:]


def _pairing(
    image: tuple[Template, Reading], label: tuple[Template, Reading], sure: bool, others: list[str]
) -> Pairing:
    (one, left), (two, right) = image, label
    keys = sorted(left.files.keys() & right.files.keys(), key=lambda key: (str(key[0]), key[1]))
    stems: dict[Split | None, list[str]] = {
        s: [] for s in ("train", "val", "test") if s in dict(keys)
    }
    for split, stem in keys:
        stems.setdefault(split, []).append(stem)
    nested = any("/" in stem for _, stem in keys)
    places = {
        split: (one.place(left.words[split], nested), two.place(right.words[split], nested))
        for split in stems
    }
    return Pairing(
        one,
        two,
        places,
        cast("Mapping[Split | None, Sequence[str]]", stems),
        sure,
        others,
    )
