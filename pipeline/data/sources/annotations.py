"""Files of annotations: read as what they should be, or refused in words."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from fcn.images import ImageError
from pipeline.config.data import SplitSpec
from pipeline.data.sources.base import Rejected, Sample
from pipeline.data.sources.folder import listed_names
from pipeline.errors import DataError

Model = TypeVar("Model")
Lean = Callable[[dict[str, Any]], object]
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def parse_file(model: TypeAdapter[Model], path: Path, what: str, lean: Lean | None = None) -> Model:
    """The JSON file of a whole split; `lean` makes each object smaller as soon as it is read.

    Raises:
        DataError: it cannot be read, or is not `what` it should be.
    """
    if not path.is_file():
        raise DataError(f"{path} is no file; data.splits should name the {what}")
    try:
        encoded = path.read_bytes().removeprefix(BYTE_ORDER_MARK)
        return (
            _parse(model, encoded)
            if lean is None
            else model.validate_python(json.loads(encoded, object_hook=lean))
        )
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        raise DataError(f"{path} is no {what}: {_first(error)}; export it again") from None
    except (ValueError, RecursionError) as error:  # no JSON, or of objects without end
        raise DataError(f"{path} is no {what}: {error}; export it again") from None


def parse_label(model: TypeAdapter[Model], encoded: bytes, what: str) -> Model:
    """The JSON of a single sample.

    Raises:
        ImageError: it is not `what` it should be.
    """
    try:
        return _parse(model, encoded)
    except ValidationError as error:
        raise ImageError("unreadable annotations", f"no {what}: {_first(error)}") from None


def _parse(model: TypeAdapter[Model], encoded: bytes) -> Model:
    return model.validate_json(encoded.removeprefix(BYTE_ORDER_MARK))


def _first(error: ValidationError) -> str:
    """The first mistake: where, what should be there, what is."""
    mistake = error.errors(include_url=False)[0]
    where = ".".join(map(str, mistake["loc"]))
    value = "" if mistake["type"] in ("json_invalid", "missing") else f", is {mistake['input']!r}"
    return f"{where}{': ' if where else ''}{mistake['msg']}{value:.80}"


def file_samples(
    root: Path, split: str, spec: SplitSpec, found: Iterable[Sample | Rejected]
) -> tuple[list[Sample], list[Rejected]]:
    """The samples of an annotation file that the split's list names, or all; each name once.

    Two entries of one name would have one label each, so neither is taken.

    Raises:
        DataError: there are none, or the list cannot be read.
    """
    entries = list(found)
    times = Counter(entry.id for entry in entries)
    names = listed_names(root / spec.list, times) if spec.list else list(times)
    if not names:
        raise DataError(f"split {split} has no samples: {root / spec.labels} names no image")
    first: Mapping[str, Sample | Rejected] = {entry.id: entry for entry in reversed(entries)}
    whole: list[Sample] = []
    broken: list[Rejected] = []
    for name in names:
        entry, where = first.get(name), str(root / spec.labels)
        if entry is None:
            broken.append(Rejected(split, name, "missing partner", f"{where} lacks it", where))
        elif times[name] > 1:
            evidence = f"{where} has {times[name]} entries of this name; leave one"
            broken.append(Rejected(split, name, "named twice", evidence, where))
        elif isinstance(entry, Sample):
            whole.append(entry)
        else:
            broken.append(entry)
    return whole, broken
