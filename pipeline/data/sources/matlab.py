"""Label maps in MATLAB's files, as SBD, NYUDv2 and SIFT Flow have them."""

from __future__ import annotations

import io
import zlib

import numpy as np

from fcn.images import DAMAGE, ImageError

MAT_SUFFIX = ".mat"
MOST_BYTES = 1 << 20
"""A label map of a photograph has a few kB; what deflate can make of this many fits in memory."""
MOST_ID = 1 << 31
SBD_STRUCT, SBD_FIELD = "GTcls", "Segmentation"


def mat_to_npy(encoded: bytes) -> bytes:
    """The label map in a .mat file as an array in NumPy's format.

    It is `GTcls.Segmentation`, or the only matrix of numbers with more than one row and column.

    Raises:
        ImageError: the file holds no such matrix, several, or is damaged.
    """
    from scipy.io import loadmat  # noqa: PLC0415 - takes a second
    from scipy.io.matlab import MatReadError  # noqa: PLC0415

    if len(encoded) > MOST_BYTES:
        raise ImageError("undecodable label", f"a .mat file of {len(encoded)} bytes")
    try:
        content = loadmat(io.BytesIO(encoded))
        if SBD_STRUCT in content:
            found = [content[SBD_STRUCT][SBD_FIELD][0, 0]]
        else:
            found = [v for v in content.values() if _is_map(v)]
    except (*DAMAGE, MatReadError, zlib.error, AssertionError) as error:
        raise ImageError("undecodable label", f"damaged .mat file: {error}") from error
    if len(found) != 1 or not _is_map(found[0]):
        raise ImageError(
            "undecodable label",
            f"the .mat file holds {', '.join(k for k in content if not k.startswith('__'))}; a label "
            "map is its only matrix",
        )
    ids = found[0]
    if ids.dtype.kind == "f":  # as MATLAB's numbers are by default
        whole = (ids == np.rint(ids)) & (np.abs(ids) < MOST_ID)
        ids = ids.astype(np.int64) if whole.all() else ids
    buffer = io.BytesIO()
    np.save(buffer, ids, allow_pickle=False)
    return buffer.getvalue()


def _is_map(value: object) -> bool:
    return (
        isinstance(value, np.ndarray)
        and value.ndim == 2
        and value.dtype.kind in "buif"
        and min(value.shape) > 1
    )
