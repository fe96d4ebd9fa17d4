"""A data set as MLflow shows it: where it is, its digest, its columns, and what is in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array

from pipeline.data.shards import SCHEMA
from pipeline.results import Dataset

TYPES: dict[pa.DataType, Any] = {
    pa.string(): DataType.string,
    pa.binary(): DataType.binary,
    pa.int32(): DataType.integer,
    pa.int64(): DataType.long,
    pa.list_(pa.int64()): Array(DataType.long),
}


class ShardDataset(MetaDataset):
    """The shards of a data set: their columns are the schema, what is in them is the profile."""

    def __init__(
        self, source: DatasetSource, name: str, data: Dataset, classes: Sequence[str]
    ) -> None:
        columns: list[Any] = [ColSpec(TYPES[field.type], field.name) for field in SCHEMA]
        super().__init__(source=source, name=name, digest=data.digest, schema=Schema(columns))
        self._data, self._classes = data, classes

    @property
    def profile(self) -> dict[str, Any]:
        """Images by split, shares of the classes in what is labelled, the share of void, and doubts."""
        data = self._data
        return {
            "num_images": data.counts,
            "num_quarantined": data.num_quarantined,
            "num_classes": len(self._classes),
            "class_frac": {
                split: {
                    name: n / max(1, sum(px)) for name, n in zip(self._classes, px, strict=True)
                }
                for split, px in data.class_px.items()
            },
            "void_frac": {
                split: void / max(1, void + sum(data.class_px[split]))
                for split, void in data.void_px.items()
            },
            "doubts": [doubt.text for doubt in data.doubts],
        }

    def to_dict(self) -> dict[str, str]:
        """What MLflow keeps, as texts."""
        return super().to_dict() | {"profile": json.dumps(self.profile)}
