"""Images and label maps of the same name in parallel folders (CamVid, VOC, one's own)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.data import SplitSpec
from pipeline.config.schema import Split
from pipeline.data.sources.base import Rejected, Sample
from pipeline.errors import DataError
from pipeline.storage.store import fingerprint

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
LABEL_SUFFIXES = {".png", ".bmp", ".tif", ".tiff"}
READ_THREADS = 16


@dataclass(frozen=True)
class FolderSource:
    """Folders under a root, a pair for each split; a list file may choose among the images."""

    root: Path
    splits: Mapping[Split, SplitSpec]

    def samples(self) -> tuple[list[Sample], list[Rejected]]:
        """Pairs by name, sorted.

        Raises:
            DataError: a folder or list is missing, or a split is empty.
        """
        whole: list[Sample] = []
        broken: list[Rejected] = []
        for split, spec in self.splits.items():
            images = self._by_stem(split, spec.images, IMAGE_SUFFIXES)
            labels = self._by_stem(split, spec.labels, LABEL_SUFFIXES)
            names = self._listed(spec.list) if spec.list else sorted({*images, *labels})
            if not names:
                raise DataError(f"split {split} has no samples in {self.root / spec.images}")
            for name in names:
                if name in images and name in labels:
                    whole.append(Sample(split, name, str(images[name]), str(labels[name])))
                else:
                    lacking = spec.labels if name in images else spec.images
                    found = images.get(name) or labels.get(name) or self.root / str(spec.list)
                    evidence = f"no file named {name} in {lacking}"
                    broken.append(Rejected(split, name, "missing partner", evidence, str(found)))
        return whole, broken

    def read(self, sample: Sample) -> tuple[bytes, bytes]:
        """The bytes of both files."""
        return Path(sample.image).read_bytes(), Path(sample.label).read_bytes()

    def state(self) -> str:
        """Of all files of all splits and of the lists.

        Images count by name, size and time of change. Labels and lists count by their content: a
        label that was changed in place is another data set, even if its size and time are the same.
        """
        images: set[Path] = set()
        contents: set[Path] = set()
        for spec in self.splits.values():
            images |= set(self._folder(spec.images).iterdir())
            contents |= {path for path in self._folder(spec.labels).iterdir() if path.is_file()}
            contents |= {self.root / spec.list} if spec.list else set()
        stats = {path: path.stat() for path in images if path.is_file()}
        with ThreadPoolExecutor(READ_THREADS) as threads:  # most of the time is the disk's
            hashes = dict(zip(contents, threads.map(_sha256, contents), strict=True))
        return fingerprint(
            sorted((self._name(path), i.st_size, i.st_mtime_ns) for path, i in stats.items()),
            sorted((self._name(path), content) for path, content in hashes.items()),
        )

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.root))

    def _folder(self, name: str) -> Path:
        folder = self.root / name
        if not folder.is_dir():
            raise DataError(
                f"{folder} is not a folder; set data.root to the folder that holds {name}, or "
                "data.splits to the names that your folders have"
            )
        return folder

    def _by_stem(self, split: Split, name: str, suffixes: set[str]) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for path in sorted(self._folder(name).iterdir()):
            if path.suffix.lower() in suffixes:
                if path.stem in found:
                    raise DataError(
                        f"split {split}: {path} and {found[path.stem].name} share a name"
                    )
                found[path.stem] = path
        return found

    def _listed(self, name: str) -> list[str]:
        path = self.root / name
        try:
            return [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
        except OSError as error:
            raise DataError(
                f"{path}: the list of samples cannot be read: {error.strerror}"
            ) from error


def _sha256(path: Path) -> str:
    """Hash of a file; of what the system says if it cannot be read, which the ingest will find too."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return str(error)
