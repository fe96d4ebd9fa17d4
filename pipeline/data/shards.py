"""The data set as memory-mapped Arrow IPC files: schema, writer, reader.

Any Arrow reader opens them; the class table and the split are in the schema's metadata.
"""

from __future__ import annotations

import bisect
import io
import json
import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from fcn.labels import ClassTable
from pipeline.errors import DataError, StoreError
from pipeline.storage.store import File, localize

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.binary()),  # as it was encoded, untouched
        ("label", pa.binary()),  # class ids as an 8-bit PNG, void = 255
        ("height_px", pa.int32()),
        ("width_px", pa.int32()),
        ("valid_px", pa.int64()),
        ("class_px", pa.list_(pa.int64())),
        ("source", pa.string()),
        ("sha256", pa.string()),  # of the image's bytes
    ]
)


@dataclass(frozen=True)
class Row:
    """One accepted sample, as the schema has it."""

    id: str
    image: bytes
    label: bytes
    height_px: int
    width_px: int
    valid_px: int
    class_px: list[int]
    source: str
    sha256: str


def write_shard(path: Path, rows: Iterable[Row], split: str, table: ClassTable) -> None:
    """One Arrow IPC file."""
    meta = {
        "schema_version": str(SCHEMA_VERSION),
        "split": split,
        "classes": json.dumps(asdict(table)),
    }
    schema = SCHEMA.with_metadata(meta)
    columns = pa.Table.from_pylist([vars(row) for row in rows], schema=schema)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(columns)


def drop_rows(path: Path, ids: set[str]) -> None:
    """Rewrite a shard without some of its samples."""
    with pa.memory_map(str(path)) as source:
        columns = pa.ipc.open_file(source).read_all()
        keep = pa.array([row_id not in ids for row_id in columns["id"].to_pylist()])
        columns = columns.filter(keep)
        draft = path.with_suffix(".draft")
        with pa.OSFile(str(draft), "wb") as sink, pa.ipc.new_file(sink, columns.schema) as writer:
            writer.write_table(columns)
    draft.replace(path)


def decode_image(encoded: bytes) -> NDArray[np.uint8]:
    """RGB pixels (H, W, 3) uint8, as stored: an EXIF rotation is not applied, labels have none."""
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB"))


def open_image(encoded: bytes) -> NDArray[np.integer]:
    """Pixels as stored: (H, W) of ids, palette indices or 16-bit values, or (H, W, channels)."""
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image)


def encode_label(label: NDArray[np.uint8]) -> bytes:
    """Class ids (H, W) uint8 as a single-channel PNG."""
    buffer = io.BytesIO()
    Image.fromarray(label).save(buffer, "PNG")
    return buffer.getvalue()


class Shards:
    """A split, read by row number from memory-mapped files, which are opened when first needed.

    A file that lies in an object store is fetched when it is opened; with the numbers of their rows
    given, no other has to be. Of those not used the longest the last `max_open` stay open: the disk
    that a removed file takes is free once nobody has it open.
    """

    def __init__(
        self,
        files: Sequence[File],
        rows: Sequence[int] | None = None,
        max_open: int | None = None,
    ) -> None:
        self.files, self._rows, self.max_open = list(files), rows, max_open
        self._tables: dict[int, pa.Table] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # A memory map does not travel; each opens its own.
        return Shards, (self.files, self._rows, self.max_open)

    def places(self, shards: Iterable[int] | None = None) -> list[File]:
        """Some files, or all."""
        return self.files if shards is None else [self.files[shard] for shard in shards]

    def _table(self, shard: int) -> pa.Table:
        table = self._tables.pop(shard, None)
        if table is None:
            if self.max_open and len(self._tables) >= self.max_open:
                del self._tables[next(iter(self._tables))]
            table = _open(self.files[shard])
        self._tables[shard] = table  # the last of all
        return table

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """Samples of each file."""
        return tuple(self._rows or (len(self._table(i)) for i in range(len(self.files))))

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self.rows))

    def __len__(self) -> int:
        """Samples in the split."""
        return self._ends[-1] if self._ends else 0

    def _cell(self, index: int, column: str) -> Any:  # noqa: ANN401 - by the column's type
        shard = bisect.bisect_right(self._ends, index)
        start = self._ends[shard - 1] if shard else 0
        return self._table(shard)[column][index - start].as_py()

    def id(self, index: int) -> str:
        """Name of a sample."""
        return str(self._cell(index, "id"))

    def size_px(self, index: int) -> tuple[int, int]:
        """Height and width of a sample."""
        return self._cell(index, "height_px"), self._cell(index, "width_px")

    def image_label(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Image (H, W, 3) and label (H, W), both uint8."""
        return (
            decode_image(self._cell(index, "image")),
            open_image(self._cell(index, "label")).astype(np.uint8, copy=False),
        )


def _open(place: File, *, again: bool = True) -> pa.Table:
    """A file's columns, memory-mapped."""
    path = localize(place)
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        if again and isinstance(error, FileNotFoundError):
            return _open(place, again=False)  # another run on this machine has just needed the room
        raise DataError(f"a shard cannot be read: {error}; remove its data set's folder") from error


def fetch_ahead(places: Sequence[File]) -> threading.Thread | None:
    """Begin to have files on this machine, so that whoever reads them need not wait."""
    if all(isinstance(place, Path) for place in places):
        return None
    thread = threading.Thread(target=_fetch, args=(places,), name="shards", daemon=True)
    thread.start()
    return thread


def _fetch(places: Iterable[File]) -> None:
    try:
        for place in places:
            localize(place)
    except StoreError as error:  # raised again to whoever reads that shard
        log.warning("shards are fetched when they are read, not before: %s", error)
