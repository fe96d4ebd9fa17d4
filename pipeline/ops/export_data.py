"""What an ingest understood, as files for others: parquet as Hugging Face has it, or folders.

Beside the data lies a recipe that reads it again.
"""

from __future__ import annotations

import io
import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fcn.images import FORMATS
from fcn.labels import VOID, ClassTable
from pipeline.config.data import DataSpec
from pipeline.config.recipe import Recipe
from pipeline.config.schema import Split
from pipeline.data.shards import open_shard
from pipeline.errors import DataError
from pipeline.flow import Flow
from pipeline.results import REPORT, Dataset
from pipeline.storage.store import StoredFile

Kind = Literal["parquet", "folder"]
RECIPE, CLASSES = "recipe.yaml", "classes.txt"
FILE_BYTES = 400 << 20
"""A parquet file is ended when it holds more; several readers then share the work."""
ENDINGS = {"JPEG": "jpg", "TIFF": "tif"}
"""Endings of image files that are not their format's name."""
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
COLUMNS = pa.schema(
    [("image", PICTURE), ("label", PICTURE), ("id", pa.string()), ("split", pa.string())]
)
FEATURES = {
    "image": {"_type": "Image"},
    "label": {"_type": "Image"},
    "id": {"dtype": "string", "_type": "Value"},
    "split": {"dtype": "string", "_type": "Value"},
}
"""What tells Hugging Face's readers that the columns hold pictures."""


def export_data(recipe: Recipe, kind: Kind, target: Path) -> Dataset:
    """Write the data set of a recipe to a new folder, whole or not at all; it is ingested if need be.

    Raises:
        DataError: the target is not empty, or images were scaled, so that labels do not fit them.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target} is there already and not empty; name another folder with -o")
    flow = Flow(recipe)
    flow.run("ingest")
    data: Dataset = flow.result("ingest")
    if scaled := data.notes.get("scaled"):
        raise DataError(
            f"{scaled} images were made smaller by data.max_side_px={data.max_side_px}, and labels of "
            "evaluated splits were not, so they do not fit; export with --set data.max_side_px=null"
        )
    table = recipe.data.class_table()
    with _draft(target) as draft:
        for split in data.files:
            shards = flow.shards(split)
            if kind == "parquet":
                _write_parquet(draft / "data", split, shards, table)
            else:
                _write_folder(draft / split, shards)
        (draft / CLASSES).write_text("".join(f"{n}\n" for n in table.names), encoding="utf-8")
        again = recipe.model_copy(update={"data": _spec(table, data, kind, target)})
        (draft / RECIPE).write_text(again.to_yaml(), encoding="utf-8")
        shutil.copy(data.folder / REPORT, draft / REPORT)
    return data


@contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """A folder beside the target, which takes its place when the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}"
    draft.mkdir()
    try:
        yield draft
        draft.replace(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_parquet(folder: Path, split: Split, shards: list[StoredFile], table: ClassTable) -> None:
    """Files of one split, each shard a row group; their number is in their names."""
    folder.mkdir(exist_ok=True)
    meta = {
        "huggingface": json.dumps({"info": {"features": FEATURES}}),
        "classes": json.dumps(asdict(table)),
    }
    files: list[Path] = []
    writer: pq.ParquetWriter | None = None
    try:
        for shard in shards:
            if writer is None:
                files.append(folder / f"{split}-{len(files)}")
                # Pictures are compressed already, and no two are equal.
                writer = pq.ParquetWriter(
                    files[-1], COLUMNS.with_metadata(meta), compression="none", use_dictionary=False
                )
            writer.write_table(_pictures(open_shard(shard), split))
            if files[-1].stat().st_size > FILE_BYTES:
                writer.close()
                writer = None
    finally:
        if writer:
            writer.close()
    for i, file in enumerate(files):
        file.rename(folder / f"{split}-{i:05d}-of-{len(files):05d}.parquet")


def _pictures(shard: pa.Table, split: Split) -> pa.Table:
    """The rows of a shard in the columns of the export."""
    ids = shard["id"].to_pylist()
    endings = [_ending(cell.as_buffer()) for cell in shard["image"]]
    paths = [f"{name}.{ending}" for name, ending in zip(ids, endings, strict=True)]
    image = [shard["image"].combine_chunks(), pa.array(paths, pa.string())]
    label = [
        shard["label"].combine_chunks(),
        pa.array([f"{name}.png" for name in ids], pa.string()),
    ]
    columns = [
        pa.StructArray.from_arrays(image, fields=list(PICTURE)),
        pa.StructArray.from_arrays(label, fields=list(PICTURE)),
        shard["id"].combine_chunks(),
        pa.array([split] * len(ids), pa.string()),
    ]
    return pa.table(columns, schema=COLUMNS)


def _write_folder(folder: Path, shards: list[StoredFile]) -> None:
    """Images and label maps under their samples' names, and the order of the samples as a list."""
    folder.mkdir()
    with (folder / "names.txt").open("w", encoding="utf-8") as names:
        for shard in shards:
            for row in open_shard(shard).select(["id", "image", "label"]).to_pylist():
                ending = _ending(row["image"])
                _write(folder / "images", f"{row['id']}.{ending}", row["image"])
                _write(folder / "labels", f"{row['id']}.png", row["label"])
                names.write(f"{row['id']}\n")


def _write(folder: Path, name: str, content: bytes) -> None:
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts:
        raise DataError(f"sample {name} cannot be a file in {folder}; export it as parquet")
    path = folder / parts
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _ending(encoded: Any) -> str:  # noqa: ANN401 - bytes or a buffer of Arrow
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        kind = "JPEG" if image.format == "MPO" else str(image.format)
    return ENDINGS.get(kind, kind.lower())


def _spec(table: ClassTable, data: Dataset, kind: Kind, target: Path) -> DataSpec:
    """The section of a recipe that reads the export."""
    places = {
        "parquet": lambda split: {"images": f"data/{split}-*.parquet", "labels": "label"},
        "folder": lambda split: {
            "images": f"{split}/images/{{stem}}",
            "labels": f"{split}/labels/{{stem}}.png",
            "list": f"{split}/names.txt",
        },
    }
    return DataSpec.model_validate(
        {
            "source": {"parquet": "huggingface", "folder": "folder"}[kind],
            "root": target.absolute(),
            "splits": {split: places[kind](split) for split in data.files},
            "classes": [
                {"name": name, "colour": colour}
                for name, colour in zip(table.names, table.colours, strict=True)
            ],
            "void_ids": [VOID],
        }
    )
