"""SBD (Semantic Boundaries Dataset) to train on, and what it leaves of PASCAL VOC's val list."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.data import SplitSpec
from pipeline.data.sources.base import Rejected, Sample
from pipeline.data.sources.folder import FolderSource
from pipeline.data.sources.matlab import MAT_SUFFIX
from pipeline.errors import DataError
from pipeline.storage.store import fingerprint

log = logging.getLogger(__name__)

VOC_LIST, OWN_LIST = (f"ImageSets/Segmentation/{name}.txt" for name in ("val", "seg11valid"))


@dataclass(frozen=True)
class SbdSource:
    """Train is SBD's train list, 8,498 images. Val is PASCAL VOC's val list less those names.

    With the list of VOC 2011 these are the 736 images that the paper's later figures are of. The tree of
    VOC 2012 holds them too, but its own val list names more; put the 736 names, or VOC 2011's val.txt,
    there as `ImageSets/Segmentation/seg11valid.txt` to score on the 736. A name of SBD's train list is
    left out of either.
    """

    root: Path
    """The folder with img, cls and train.txt, or the one with `dataset`, which holds them."""
    voc_root: Path

    @property
    def _train(self) -> FolderSource:
        inner = self.root / "dataset"
        spec = SplitSpec(images="img", labels="cls", list="train.txt")
        return FolderSource(inner if inner.is_dir() else self.root, {"train": spec}, (MAT_SUFFIX,))

    @property
    def _val(self) -> FolderSource:
        names = OWN_LIST if (self.voc_root / OWN_LIST).is_file() else VOC_LIST
        spec = SplitSpec(images="JPEGImages", labels="SegmentationClass", list=names)
        return FolderSource(self.voc_root, {"val": spec})

    def samples(self) -> tuple[list[Sample], list[Rejected]]:
        """The pairs of both lists.

        Raises:
            DataError: a folder or a list is missing, or nothing is left of val.
        """
        train, broken = self._train.samples()
        listed, lacking = self._val.samples()
        taken = {sample.id for sample in train} | {rejected.id for rejected in broken}
        val = [sample for sample in listed if sample.id not in taken]
        if not val:
            raise DataError(
                f"SBD's train list names all {len(listed)} images of the val list in {self.voc_root}; "
                "data.voc_root should be the folder of PASCAL VOC 2011 or 2012"
            )
        log.info(
            "val: %d of %d images, which SBD's train list does not name", len(val), len(listed)
        )
        return train + val, broken + [each for each in lacking if each.id not in taken]

    def read(self, sample: Sample) -> tuple[bytes, bytes]:
        """The image's bytes, and its label map's.

        Raises:
            ImageError, OSError: one cannot be read.
        """
        return self._train.read(sample)

    def state(self) -> str:
        """Of all images, label maps and lists."""
        return fingerprint(self._train.state(), self._val.state())
