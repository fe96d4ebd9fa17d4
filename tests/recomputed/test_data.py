"""Claims about data, recomputed from the files on disk with NumPy, Pillow and OpenCV alone."""

import csv
import hashlib
import io

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from pipeline.config.recipe import load_recipe
from pipeline.data.sampler import smallest_micro_batch
from pipeline.stages import ingest
from pipeline.storage.store import Store

SPLITS = {"train": 6, "val": 3}
SETTINGS = [
    "data.splits={train: {images: train, labels: trainannot}, val: {images: val, labels: valannot}}",
    "data.classes=[sky, road, tree]",
    "data.void_ids=[11, 255]",
    "data.max_quarantined_frac=1",
    "evaluate.split=val",
]


@pytest.fixture
def root(tmp_path):
    """A folder of small noisy images, labels of three classes and of void."""
    rng = np.random.default_rng(5)
    for split, num in SPLITS.items():
        for folder in (split, f"{split}annot"):
            (tmp_path / folder).mkdir()
        for i in range(num):
            image = rng.integers(0, 256, (18, 26 + i, 3)).astype(np.uint8)
            label = rng.choice([0, 1, 2, 11, 255], (18, 26 + i)).astype(np.uint8)
            cv2.imwrite(str(tmp_path / split / f"{split}{i}.png"), image)
            cv2.imwrite(str(tmp_path / f"{split}annot" / f"{split}{i}.png"), label)
    return tmp_path


def ingested(root, name: str = "key"):
    recipe = load_recipe("camvid", [*SETTINGS, f"data.root={root}"])
    return ingest.run(recipe, Store(root / "store"), name)


def rows_of(dataset) -> dict[str, dict]:
    files = [path for split in dataset.files for path in dataset.paths(split)]
    tables = [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in files]
    return {row["id"]: row for table in tables for row in table.to_pylist()}


def quarantined(dataset) -> dict[str, str]:
    rows = csv.DictReader((dataset.folder / "quarantine.csv").open())
    return {row["id"]: row["reason"] for row in rows}


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
class TestIngest:
    """What the shards, the digest and the quarantine say is what is in the folder."""

    def test_rows_hold_the_files_and_their_hashes(self, root) -> None:
        rows = rows_of(ingested(root))
        assert len(rows) == sum(SPLITS.values())
        for name, row in rows.items():
            split = name.rstrip("0123456789")
            file = root / split / f"{name}.png"
            pixels = cv2.imread(str(file))[..., ::-1]
            ids = cv2.imread(str(root / f"{split}annot" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
            ids[ids == 11] = 255
            height, width = ids.shape
            assert row["image"] == file.read_bytes()
            assert row["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
            shape = f"{height}x{width}".encode()
            image_hash = hashlib.sha256(shape + b"x3/" + pixels.tobytes()).hexdigest()
            assert row["pixels_sha256"] == image_hash
            assert row["label_sha256"] == hashlib.sha256(shape + b"/" + ids.tobytes()).hexdigest()
            stored = cv2.imdecode(np.frombuffer(row["label"], np.uint8), cv2.IMREAD_UNCHANGED)
            assert (stored == ids).all()
            assert row["class_px"] == [int((ids == k).sum()) for k in range(3)]

    def test_a_label_turned_by_180_degrees_is_another_data_set(self, root) -> None:
        path = root / "trainannot" / "train2.png"
        before = ingested(root, "before")
        again = ingested(root, "again")
        label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), label[::-1, ::-1])
        after = ingested(root, "after")
        assert before.class_px == after.class_px
        assert before.digest == again.digest
        assert before.digest != after.digest

    def test_the_same_label_in_another_encoding_is_the_same_data_set(self, root) -> None:
        path = root / "trainannot" / "train2.png"
        before = ingested(root, "before")
        label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        path.unlink()
        cv2.imwrite(str(path.with_suffix(".bmp")), label)
        assert ingested(root, "after").digest == before.digest

    @pytest.mark.parametrize("encoding", ["png -c 0", "bmp", "tiff", "webp", "rgba", "palette"])
    def test_a_val_image_in_another_encoding_is_no_training_image(self, root, encoding) -> None:
        with Image.open(root / "val" / "val1.png") as image:
            picture = image.convert("RGB")
        if encoding == "palette":
            grey = picture.convert("L")
            grey.save(root / "val" / "val1.png")
            picture = grey.convert("P")
        copy = root / "train" / f"copy.{encoding if encoding in ('bmp', 'tiff', 'webp') else 'png'}"
        if encoding == "rgba":
            picture = picture.convert("RGBA")
        picture.save(copy, **({"lossless": True} if encoding == "webp" else {"compress_level": 0}))
        assert copy.read_bytes() != (root / "val" / "val1.png").read_bytes()
        label = Image.new("L", picture.size, 1)
        label.save(root / "trainannot" / "copy.png")
        dataset = ingested(root)
        assert quarantined(dataset) == {"copy": "leak into val"}
        assert dataset.counts == SPLITS


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_an_image_of_16_bits_is_neither_learned_from_nor_labelled(root, tmp_path) -> None:
    """The same file at both ends; of 600 to 60,000 it would be white by Pillow's clipping."""
    from fcn.images import AS_STORED
    from fcn.nets import FCN, Blueprint
    from pipeline.tracking.pyfunc_model import Segmenter

    grey = np.linspace(600, 60_000, 18 * 26).reshape(18, 26).astype(np.uint16)
    file = root / "train" / "deep.png"
    cv2.imwrite(str(file), grey)
    Image.new("L", (26, 18)).save(root / "trainannot" / "deep.png")
    dataset = ingested(root)
    assert quarantined(dataset) == {"deep": "16-bit image"}
    served = Segmenter()
    served.net, served.rule = FCN(Blueprint("resnet18", 3, 32)), AS_STORED
    with pytest.raises(ValueError, match=r"16-bit image: .*600 to 60000.*data.range"):
        served.predict(None, file.read_bytes())
    eight = io.BytesIO()
    Image.fromarray((grey // 256).astype(np.uint8)).save(eight, "PNG")
    assert served.predict(None, eight.getvalue()).shape == (18, 26)


@pytest.mark.parametrize("micro", [1, 2, 3, 4])
@pytest.mark.parametrize("num_micro", [1, 2, 3])
def test_the_smallest_micro_batch_by_cutting_lists(micro, num_micro) -> None:
    for num in range(1, 40):
        rest, sizes = list(range(num)), []
        while rest:
            batch, rest = rest[: micro * num_micro], rest[micro * num_micro :]
            while batch:
                sizes.append(len(batch[:micro]))
                batch = batch[micro:]
        assert smallest_micro_batch(num, micro * num_micro, micro) == min(sizes)


def test_five_images_in_global_batches_of_4_leave_one_value_to_normalise() -> None:
    """Of a crop of 32 px the map at stride 32 is one pixel: torch cannot normalise one value."""
    smallest = smallest_micro_batch(num_samples=5, global_batch=4, micro_batch=2)
    assert smallest == 1
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        torch.nn.BatchNorm2d(8)(torch.ones(smallest, 8, 1, 1))


def test_scores_of_a_scaled_split_are_those_of_the_files_in_their_own_size(root, tmp_path) -> None:
    """What the shards hold smaller is scored as a prediction of the file is, pixel by pixel."""
    from fcn.images import InputRule, decode_rgb
    from fcn.inference import predict
    from fcn.nets import FCN, Blueprint
    from pipeline.data.check import Rules, check_samples
    from pipeline.data.loader import eval_batches
    from pipeline.data.shards import Shards, write_shard
    from pipeline.data.sources import open_source
    from pipeline.training.distributed import DistContext
    from pipeline.training.evaluation import count_errors

    recipe = load_recipe("camvid", [*SETTINGS, f"data.root={root}"])
    source, table = open_source(recipe), recipe.data.class_table()
    samples = [sample for sample in source.samples()[0] if sample.split == "val"]
    rule = InputRule(max_side_px=20)
    _, rows = check_samples(source, samples, Rules(rule, recipe.data.label_rule()))
    write_shard(tmp_path / "val.arrow", rows, "val", table)
    torch.manual_seed(0)
    net = FCN(Blueprint("resnet18", 3, 8)).eval()
    for score in net.score.values():
        torch.nn.init.normal_(score.weight)
    batches = eval_batches(Shards([tmp_path / "val.arrow"]), range(3), 2, 0)
    confusion, _ = count_errors(net, batches, DistContext())
    expected = np.zeros((3, 3), int)
    for sample in samples:
        image, label = source.read(sample)
        prediction = predict(net, decode_rgb(image), rule)
        truth = cv2.imdecode(np.frombuffer(label, np.uint8), cv2.IMREAD_UNCHANGED)
        assert prediction.shape == truth.shape
        valid = truth < 3
        np.add.at(expected, (truth[valid], prediction[valid]), 1)
    assert (expected.sum(0) > 0).sum() > 1
    assert (confusion.counts.numpy() == expected).all()
