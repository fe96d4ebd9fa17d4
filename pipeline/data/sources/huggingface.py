"""Hugging Face data sets: parquet files with a column of images and one of label maps."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fcn.images import ImageError
from pipeline.config.data import SplitSpec
from pipeline.config.schema import Split
from pipeline.data.sources.base import Rejected, Sample, read_file
from pipeline.data.sources.folder import files_state
from pipeline.errors import DataError

IMAGE_COLUMNS = ("image", "pixel_values", "img")
"""Names of the column of images; the first that is there is taken."""
ID_COLUMN = "id"
"""The column that names samples, if all of its texts in a split differ."""
DAMAGE = (pa.ArrowException, UnicodeDecodeError)
"""What Arrow raises for damaged files; the second for names and texts that are not UTF-8."""
ROW = "#"
"""Between a file and the number of a row in it."""


@dataclass(frozen=True)
class HuggingFaceSource:
    """Parquet files of each split; cells hold an encoded image, or the `bytes` or `path` of one."""

    root: Path
    splits: Mapping[Split, SplitSpec]

    def samples(self) -> tuple[list[Sample], list[Rejected]]:
        """All rows of all files; a sample is called by its id, else by its file and its row.

        Raises:
            DataError: there are no rows, or a file is no parquet file with such columns.
        """
        samples: list[Sample] = []
        for split, spec in self.splits.items():
            rows = [
                (path, row)
                for path in self._files(spec)
                for row in range(_num_rows(path, spec.labels))
            ]
            if not rows:
                raise DataError(f"split {split} has no samples: {spec.images} holds no rows")
            names = _ids(self._files(spec)) or [
                f"{path.relative_to(self.root).with_suffix('')}/{row:06d}" for path, row in rows
            ]
            samples += [
                Sample(split, name, f"{path}{ROW}{row}", spec.labels)
                for name, (path, row) in zip(names, rows, strict=True)
            ]
        return samples, []

    def read(self, sample: Sample) -> tuple[bytes, bytes]:
        """The bytes of both cells.

        Raises:
            ImageError, OSError: the file is damaged, or a cell is empty.
        """
        file, _, row = sample.image.rpartition(ROW)
        try:
            table, start = _rows_around(file, int(row), sample.label)
        except DAMAGE as error:
            raise ImageError("unreadable file", f"row {row} of {file}: {error}") from error
        image, label = (column[int(row) - start].as_py() for column in table.columns)
        return self._bytes(image, "image"), self._bytes(label, sample.label)

    def _bytes(self, cell: object, column: str) -> bytes:
        given = cell
        if isinstance(cell, dict):
            given = cell.get("bytes") or cell.get("path")
        if isinstance(given, str) and given:
            return read_file(self.root / given)
        if not isinstance(given, bytes) or not given:
            raise ImageError("empty cell", f"column {column} has neither bytes nor a path")
        return given

    def _files(self, spec: SplitSpec) -> list[Path]:
        pattern = spec.images if spec.images.endswith(".parquet") else f"{spec.images}/*.parquet"
        try:
            found = sorted(self.root.glob(pattern))
        except (NotImplementedError, ValueError) as error:  # an absolute path, an empty pattern
            raise DataError(f"data.splits: {pattern} cannot be looked for: {error}") from error
        if not found:
            raise DataError(
                f"no file in {self.root} is {pattern}; data.splits names a folder of parquet files, or "
                "files such as data/train-*.parquet"
            )
        return found

    def state(self) -> str:
        """Of the names, sizes and times of change of all files, of which some are too large to hash."""
        files = {path for spec in self.splits.values() for path in self._files(spec)}
        return files_state(self.root, files, set())


def _num_rows(path: Path, label: str) -> int:
    try:
        with pq.ParquetFile(path) as file:
            _columns(file.schema_arrow, label, str(path))
            rows = file.metadata.num_rows
    except (*DAMAGE, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}; fetch it again") from error
    if rows != (there := _group_starts(str(path), _changed(path))[-1]):
        raise DataError(f"{path} says that it has {rows} rows, and has {there}; fetch it again")
    return rows


def _ids(files: Sequence[Path]) -> list[str] | None:
    """The names that the files give to all of their rows; None if some have none, or one twice."""
    names: list[str] = []
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                schema = file.schema_arrow
                if ID_COLUMN not in schema.names or schema.field(ID_COLUMN).type != pa.string():
                    return None
                names += file.read(columns=[ID_COLUMN])[ID_COLUMN].to_pylist()
        except DAMAGE as error:
            raise DataError(
                f"{path}: column {ID_COLUMN} is damaged: {error}; fetch it again"
            ) from error
    return names if all(names) and len(set(names)) == len(names) else None


def _columns(schema: pa.Schema, label: str, path: str) -> list[str]:
    """The columns of images and of label maps."""
    images = [name for name in IMAGE_COLUMNS if name in schema.names and name != label]
    if not images or label not in schema.names:
        raise DataError(
            f"{path} has the columns {', '.join(schema.names)}; data.splits gives the one of label maps "
            f"as labels ({label}), and that of images is called {' or '.join(IMAGE_COLUMNS)}"
        )
    return [images[0], label]


def _changed(path: str | Path) -> int:
    """When a file was written; another file of that name is read anew."""
    return Path(path).stat().st_mtime_ns


@lru_cache(maxsize=1)
def _row_group(path: str, _changed: int, group: int, label: str) -> pa.Table:
    """Two columns of a part of a file; samples that follow each other are in the same."""
    with pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=_columns(file.schema_arrow, label, path))


@lru_cache(maxsize=64)
def _group_starts(path: str, _changed: int) -> tuple[int, ...]:
    """The first row of each row group, and the number of rows."""
    metadata = pq.read_metadata(path)
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return tuple(accumulate(sizes, initial=0))


def _rows_around(path: str, row: int, label: str) -> tuple[pa.Table, int]:
    """The row group that holds a row, and the number of its first row."""
    changed = _changed(path)
    starts = _group_starts(path, changed)
    if row >= starts[-1]:
        raise ImageError("unreadable file", f"{path} has {starts[-1]} rows, and no row {row}")
    group = bisect_right(starts, row) - 1
    return _row_group(path, changed, group, label), starts[group]
