"""Images and label maps that are paired by name: in parallel folders, in one, or in a tree."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.data import SplitSpec
from pipeline.config.schema import Split
from pipeline.data.sources.base import Rejected, Sample, read_file
from pipeline.errors import DataError
from pipeline.storage.store import fingerprint

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".npy", ".jpg")
STEM = "{stem}"
READ_THREADS = 16


@dataclass(frozen=True)
class FolderSource:
    """Files under a root, a pair of places for each split; a list may choose among the images."""

    root: Path
    splits: Mapping[Split, SplitSpec]

    def samples(self) -> tuple[list[Sample], list[Rejected]]:
        """Pairs by name, sorted.

        Raises:
            DataError: a folder or list is missing, a split is empty, or a sample is named twice.
        """
        whole: list[Sample] = []
        broken: list[Rejected] = []
        for split, spec in self.splits.items():
            if spec.images == spec.labels:
                raise DataError(
                    f"split {split}: images and labels are both {spec.images}, so each image would be "
                    "its own label; write where the labels are, such as photos/{stem}_mask.png"
                )
            images = find_files(self.root, spec.images, IMAGE_SUFFIXES)
            labels = find_files(self.root, spec.labels, LABEL_SUFFIXES)
            names = (
                listed_names(self.root / spec.list, images)
                if spec.list
                else sorted({*images, *labels})
            )
            if not names:
                raise DataError(
                    f"split {split} has no samples: no file in {self.root} is {spec.images} with an "
                    f"ending among {' '.join(IMAGE_SUFFIXES)}"
                )
            for name in names:
                if not _is_text(name):
                    reason, evidence = "name is not UTF-8", "rename the files"
                elif name in images and name in labels:
                    whole.append(Sample(split, name, str(images[name]), str(labels[name])))
                    continue
                else:
                    reason, evidence = "missing partner", self._lacking(spec, name, name in images)
                path = images.get(name) or labels.get(name) or self.root / str(spec.list)
                broken.append(Rejected(split, _text(name), reason, evidence, _text(str(path))))
        return whole, broken

    def read(self, sample: Sample) -> tuple[bytes, bytes]:
        """The bytes of both files.

        Raises:
            ImageError, OSError: one is no regular file, or cannot be read.
        """
        return read_file(sample.image), read_file(sample.label)

    def state(self) -> str:
        """Of all files of all splits and of the lists."""
        images: set[Path] = set()
        contents: set[Path] = set()
        for spec in self.splits.values():
            images |= set(find_files(self.root, spec.images, IMAGE_SUFFIXES).values())
            contents |= set(find_files(self.root, spec.labels, LABEL_SUFFIXES).values())
            contents |= {self.root / spec.list} if spec.list else set()
        return files_state(self.root, images, contents)

    def _lacking(self, spec: SplitSpec, name: str, has_image: bool) -> str:
        """Which file was looked for, and which files of that name there are instead."""
        place, suffixes = (
            (spec.labels, LABEL_SUFFIXES) if has_image else (spec.images, IMAGE_SUFFIXES)
        )
        folder, pattern = _place(place)
        wanted = pattern.removesuffix(".*").replace(STEM, name)
        if _any_ending(pattern):
            wanted += f" with an ending of {' '.join(suffixes)}"
        beside = _children((self.root / folder / name).parent)
        same = [_text(path.name) for path in beside if path.stem == Path(name).name]
        there = f"; of that name there is {', '.join(same)}" if same else ""
        return f"no file {wanted} in {folder or '.'}{there}"


def find_files(root: Path, place: str, suffixes: Sequence[str]) -> dict[str, Path]:
    """Files by the name of their sample: the children of a folder, or all that fit a template.

    Raises:
        DataError: there is no such folder, or two files have one name.
    """
    folder, pattern = _place(place)
    base = root / folder
    if not base.is_dir():
        raise DataError(
            f"{base} is not a folder; set data.root to the folder that holds {folder or place}, or "
            "data.splits to the names that your folders have"
        )
    head, tail = pattern.removesuffix(".*").split(STEM)
    fits = re.compile(f"{re.escape(head)}(?P<stem>.+){re.escape(tail)}", re.DOTALL)
    found: dict[str, Path] = {}
    paths = _tree(base) if STEM in place else _children(base)
    for path in paths:
        name = path.relative_to(base).as_posix()
        if _any_ending(pattern):
            if path.suffix.lower() not in suffixes:
                continue
            name = name[: -len(path.suffix)]
        if not (match := fits.fullmatch(name)):
            continue
        if other := found.get(match["stem"]):
            raise DataError(
                f"{path} and {other.name} share a name; a template with an ending, such as "
                f"{place if STEM in place else place + '/' + STEM}{path.suffix}, chooses one"
            )
        found[match["stem"]] = path
    return found


def _place(place: str) -> tuple[str, str]:
    """The folder of a place, and how the files under it are named."""
    if STEM not in place:
        return place, STEM
    if place.count(STEM) != 1:
        raise DataError(f"{place} has {STEM} {place.count(STEM)} times; write it once")
    folder, slash, rest = place[: place.index(STEM)].rpartition("/")
    return folder + slash, rest + place[place.index(STEM) :]


def _any_ending(pattern: str) -> bool:
    return pattern.endswith(".*") or "." not in pattern.rpartition(STEM)[2]


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _tree(base: Path) -> Iterator[Path]:
    """All files under a folder, through links, each real folder once."""
    seen: set[str] = set()
    for folder, inner, files in os.walk(base, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # a link to a folder above
            inner.clear()
            continue
        seen.add(real)
        inner.sort()
        yield from (Path(folder) / name for name in sorted(files))


def listed_names(path: Path, known: Mapping[str, object]) -> list[str]:
    """The names of samples that a list file holds, one a line.

    A line is a name, a file or a path of one of `known`, or begins with it; an ending of an image and
    leading folders do not matter. What fits none of `known` is returned as it stands.

    Raises:
        DataError: the list cannot be read, or names a sample twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the list of samples cannot be read as UTF-8: {error}") from error
    names = [_listed(line.strip(), known) for line in lines if line.strip()]
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise DataError(
            f"{path} names {', '.join(twice[:5])} more than once; each sample counts once, so remove "
            "the other lines"
        )
    return names


def _listed(line: str, known: Mapping[str, object]) -> str:
    for text in (line, line.split()[0]):
        suffix = Path(text).suffix
        bare = text[: -len(suffix)] if suffix.lower() in IMAGE_SUFFIXES else text
        for name in (text, bare):
            parts = name.strip("/").split("/")
            for i in range(len(parts)):
                if (tail := "/".join(parts[i:])) in known:
                    return tail
    return line.split()[0]


def files_state(root: Path, images: set[Path], contents: set[Path]) -> str:
    """Changes when files do.

    Images count by name, size and time of change. Labels and lists count by their content: a label
    that was changed in place is another data set, even if its size and time are the same.
    """
    stats = {path: path.stat() for path in images if path.is_file()}
    with ThreadPoolExecutor(READ_THREADS) as threads:  # most of the time is the disk's
        hashes = dict(zip(contents, threads.map(_sha256, contents), strict=True))

    def name(path: Path) -> str:
        return _text(os.path.relpath(path, root))

    return fingerprint(
        sorted((name(path), i.st_size, i.st_mtime_ns) for path, i in stats.items()),
        sorted((name(path), content) for path, content in hashes.items()),
    )


def _sha256(path: Path) -> str:
    """Hash of a file; of what the system says if it cannot be read, which the ingest will find too."""
    if not path.is_file():
        return "no regular file"
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return str(error)


def _is_text(name: str) -> bool:
    return _text(name) == name


def _text(name: str) -> str:
    """A file name in UTF-8; what is none of it is escaped."""
    return name.encode("utf-8", "backslashreplace").decode()
