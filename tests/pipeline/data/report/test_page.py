"""The page needs no other file, shows what the shards hold, and lets no name become HTML."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from pipeline.config.recipe import load_recipe
from pipeline.data.check import Rules, check_samples
from pipeline.data.doubts import near_duplicates
from pipeline.data.report import Content, Written, facts_by_split, gather, page
from pipeline.data.report.content import MOST_SHOWN
from pipeline.data.shards import write_shard
from pipeline.data.sources import Rejected, open_source
from pipeline.results import Doubt
from pipeline.storage.store import Store
from tests.conftest import a_dataset, write_pair


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data) -> None:
        self.text += data

    def pictures(self) -> dict[str, Image.Image]:
        found = {}
        for tag, attributes in self.tags:
            if tag == "img":
                encoded = attributes["src"].removeprefix("data:image/jpeg;base64,")
                found[attributes["alt"]] = Image.open(io.BytesIO(base64.b64decode(encoded)))
        return found


@pytest.fixture
def make(folder_recipe, tmp_path):
    """The content of the report over the little folder, its shards in a store."""

    def content(rejected=(), **changes) -> Content:
        recipe = load_recipe(str(folder_recipe), [])
        table, store = recipe.data.class_table(), Store(tmp_path / "store")
        draft = tmp_path / "store" / "datasets" / "key" / "draft"
        draft.mkdir(parents=True)
        source = open_source(recipe)
        samples, _ = source.samples()
        rules = Rules(recipe.data.input_rule(), recipe.data.label_rule())
        written = []
        for split in ("train", "val"):
            mine = [sample for sample in samples if sample.split == split]
            (facts, _), rows = check_samples(source, mine, rules)
            part = store.stage_file(draft, f"{split}.arrow")
            with part.open() as path:
                write_shard(path, rows, split, table)
            written.append(Written(part, split, facts))
        pairs = near_duplicates(facts_by_split(written))
        px = {"train": [60, 40, 0], "val": [1, 2, 3]}
        data = a_dataset(**{"class_px": px, "counts": {"train": 6, "val": 2}, **changes})
        return gather(recipe, data, written, pairs, rejected)

    return content


def test_the_page_stands_alone_and_shows_images_beside_their_labels(make) -> None:
    html = page(make())
    found = Page(html)
    assert "<script" not in html
    links = [a[k] for _, a in found.tags for k in ("src", "href") if k in a]
    assert all(link.startswith("data:image/jpeg;base64,") for link in links)
    assert any(tag == "meta" and a.get("name") == "viewport" for tag, a in found.tags)
    pictures = found.pictures()
    assert set(pictures) == {*(f"train/train{i}" for i in range(6)), "val/val0", "val/val1"}
    assert pictures["train/train3"].size == (30 + 4 + 30, 23)  # side by side
    assert "all 30x20" not in found.text
    assert "1 of 30x24, 1 other sizes, all from 30x20 to 30x25" in found.text
    assert "40.0 %" in found.text
    assert "No doubts" in found.text


def test_void_is_striped_and_classes_have_their_colours(make, tmp_path) -> None:
    label = np.full((40, 60), 11)
    label[:20] = 2
    write_pair(tmp_path / "data", "train", "half", label)
    pixels = np.asarray(Page(page(make())).pictures()["train/half"].convert("RGB")).astype(int)
    labelled = pixels[:, 64:]
    assert (
        np.abs(labelled[:18].mean((0, 1)) - (0.65 * np.array([0, 128, 0]) + 0.35 * 127)).max() < 15
    )
    stripes = labelled[24:].mean(-1)
    assert stripes.std() > 50


def test_doubts_rejected_samples_and_decisions_are_told_and_escaped(make, tmp_path) -> None:
    image = str(tmp_path / "data" / "train" / "train0.png")
    rejected = [
        Rejected("train", "<b>bad", "size mismatch", "image is 30x20 px & label 9x9", image),
        *(
            Rejected("train", f"gone{i}", "missing partner", "no file", "/nowhere")
            for i in range(20)
        ),
        Rejected("train", "twin", "leak into val", "same pixels as val/val0", image),
    ]
    doubts = [Doubt(level="warning", text="void is > 50 % <i>of val</i>")]
    html = page(make(rejected, doubts=doubts, notes={"moved_px": 12}, range=(0, 4095)))
    found = Page(html)
    assert "void is > 50 % <i>of val</i>" in found.text
    assert "<i>of val" not in html
    assert "<b>bad" not in html
    assert "missing partner: 20" in found.text
    assert "and 16 more" in found.text
    assert "image is 30x20 px & label 9x9" in found.text
    assert "12 px of the labels became the nearest class's colour" in found.text
    assert "values from 0 (black) to 4095 (white)" in found.text
    pictures = found.pictures()
    assert "train/<b>bad" in pictures
    assert "train/twin = val/val0" in pictures
    assert not any("gone" in words for words in pictures)


def test_near_duplicates_are_drawn_as_pairs(make, tmp_path) -> None:
    root = tmp_path / "data"
    write_pair(root, "train", "seen", np.tile([0, 1], (20, 15)))
    with Image.open(root / "train" / "seen.png") as image:
        brighter = Image.fromarray((np.asarray(image) * 0.9).astype(np.uint8))
    write_pair(root, "val", "again", np.tile([0, 1], (20, 15)))
    brighter.save(root / "val" / "again.png")
    pictures = Page(page(make())).pictures()
    (pair,) = [words for words in pictures if " and " in words]
    assert re.fullmatch(r"val/again and train/seen: \d bits differ", pair)
    assert pictures[pair].size == (64, 20)


def test_a_data_set_of_which_nothing_is_left_has_a_page(make) -> None:
    content = make()
    empty = {"train": [0] * 11, "val": [0] * 11}
    data = a_dataset(class_px=empty, counts={"train": 0, "val": 0}, num_quarantined=6)
    nothing = gather(load_recipe("camvid"), data, [], [], [])
    assert "0 accepted" in Page(page(nothing)).text
    assert "What a stride allows" in page(content)


def test_the_chosen_images_show_every_class_and_are_few(make, tmp_path) -> None:
    for i in range(40):
        write_pair(tmp_path / "data", "train", f"x{i:02d}", np.zeros((20, 30)))
    rare = np.zeros((20, 30))
    rare[3:9, 3:9] = 1
    write_pair(tmp_path / "data", "train", "x17", rare)
    for name in ("train1", "train4"):  # the other images with class 1
        write_pair(tmp_path / "data", "train", name, np.zeros((20, 30)))
    shown = make().shown
    train = [place.id for place in shown if place.split == "train"]
    assert len(train) == MOST_SHOWN // 2
    assert "x17" in train
    assert {"train2", "train5"} & set(train)
    assert len(shown) == MOST_SHOWN // 2 + 2
