"""The page of a search: one file, true to the records, whatever became of the trials."""

import base64
import io
import json
import re
import shutil
import subprocess
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tuning.made import FOUR, JITTER, OWN, UPSCORE, Unwritten, made
from tuning.charts import axes_of, point_map, short_names
from tuning.importance import importances
from tuning.records import Search
from tuning.report import write_report
from tuning.space import LR, WEIGHT_DECAY

VOID = ("meta", "img", "br")


class Page(HTMLParser):
    """A page as its reader has it: text, table cells, pictures; every tag closed in its order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.links: list[str] = []
        self.feed(path.read_text())
        self.close()
        assert self.open == []
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs) -> None:
        assert tag != "script"
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if "style" in self.open:
            return
        self.words.append(data)
        if "td" in self.open:
            self.rows[-1][-1] += data


def reported(search: Search, folder: Path) -> Page:
    return Page(write_report(search, folder))


def pictures(page: Page) -> list[Image.Image]:
    prefix = "data:image/png;base64,"
    assert all(link.startswith(prefix) for link in page.links)
    return [Image.open(io.BytesIO(base64.b64decode(link[len(prefix) :]))) for link in page.links]


def test_the_page_says_what_the_records_say(tmp_path) -> None:
    search = made(24)
    best = search.best()
    page = reported(search, tmp_path)
    assert (
        f"{best.mean_iu:.4f} best mean IU on the validation images, by trial {best.number}, +"
        in (page.text)
    )
    assert f"--set finetune.optimizer.lr={best.point[LR]!r}" in page.text
    for status in ("finished", "pruned", "failed"):
        assert search.counts()[status] > 0
        assert f"{search.counts()[status]} {status}" in page.text
    saved = 100 * search.steps_saved / (search.steps_saved + search.steps_trained)
    assert f"{saved:.0f} % of all saved by pruning" in page.text
    assert "17 & others" in page.text


def test_the_table_holds_every_trial_in_the_order_of_mean_iu(tmp_path) -> None:
    search = made(24)
    rows = [row for row in reported(search, tmp_path).rows if len(row) == 9]
    assert [int(row[0].split()[-1]) for row in rows] == [t.number for t in search.ranked()]
    scores = [float(row[1]) for row in rows if row[1]]
    assert scores == sorted(scores, reverse=True)
    assert [row[0].split() for row in rows if "recipe" in row[0]] == [["recipe", "0"]]


def test_the_page_needs_nothing_else_and_its_pictures_are_those_beside_it(tmp_path) -> None:
    page = reported(made(24), tmp_path)
    drawn = pictures(page)
    assert len(drawn) == 3
    beside = [Image.open(p) for p in tmp_path.glob("*.png")]
    assert sorted(p.size for p in drawn) == sorted(p.size for p in beside)
    text = (tmp_path / "search-made-2026-01-02-d1a5e5d1.html").read_text()
    assert "url(" not in text
    assert "@import" not in text
    assert not re.search(r"https?://", text)


def test_the_same_records_give_the_same_page(tmp_path) -> None:
    first, second = (write_report(made(8), tmp_path / name) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    write_report(made(9), tmp_path / "a")
    assert first.read_bytes() != second.read_bytes()
    assert not list(tmp_path.rglob("*.draft"))


def test_the_map_rings_the_trial_of_the_highest_mean_iu(tmp_path) -> None:
    search = made(24)
    point_map(search, [LR, WEIGHT_DECAY]).savefig(tmp_path / "map.png")
    rgb = np.asarray(Image.open(tmp_path / "map.png").convert("RGB")).astype(int)
    ring = np.argwhere(np.abs(rgb - (0xD5, 0x5E, 0x00)).sum(-1) < 12)
    rows, columns = ring[ring[:, 0] < 0.8 * len(rgb)].T  # without the legend
    best = rgb[(rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2]
    assert np.abs(best - (253, 231, 37)).max() < 4  # the highest of viridis


def test_one_trial_makes_a_page(tmp_path) -> None:
    page = reported(made(1), tmp_path)
    assert "by trial 0, the recipe as it is" in page.text
    assert "1 trial of demo over" in page.text
    assert "too few to tell" in page.text
    assert len(pictures(page)) == 2


def test_a_search_of_failures_says_so(tmp_path) -> None:
    records = Unwritten()
    for number in range(3):
        records.add(number, {**OWN, LR: 10.0 ** (number - 4)})
        why = "worker <0> ran out of memory & died"
        records.update(number, 0, 4000, status="failed", reason=why)
    page = reported(records.search, tmp_path)
    assert "No trial came through" in page.text
    assert "worker <0> ran out of memory & died" in page.text
    assert "1:06:40" in page.text
    assert len(pictures(page)) == 1


def test_a_search_before_its_first_trial_makes_a_page(tmp_path) -> None:
    page = reported(made(0), tmp_path)
    assert "0 trials of demo over lr, weight decay, jitter, upscore" in page.text
    assert "No score yet" in page.text
    assert pictures(page) == []


def test_a_search_that_is_under_way_does_not_claim_an_end(tmp_path) -> None:
    records = Unwritten()
    records.add(0, OWN)
    records.score(0, 100, 20, 0.3)
    page = reported(records.search, tmp_path)
    assert "1 not over yet" in page.text
    assert "It is running after 100 of 1,000 images; no trial has finished" in page.text


CROP = "finetune.augment.crop_px"
CATEGORIES = {
    UPSCORE: {"choice": ["fixed", "learned"]},
    CROP: {"choice": [[96, 96], [120, 160]]},
    "finetune.batch_norm": {"choice": [None, "frozen"]},
}


@pytest.mark.parametrize(
    "space",
    [CATEGORIES, {JITTER: FOUR[JITTER]}, {UPSCORE: CATEGORIES[UPSCORE]}],
    ids=["choices", "one-number", "one-choice"],
)
def test_spaces_of_any_kind_make_a_page(tmp_path, space) -> None:
    page = reported(made(12, space, lambda p: 0.5), tmp_path)
    assert len(pictures(page)) == 3
    if CROP in space:
        assert "--set 'finetune.augment.crop_px=[" in page.text


def test_a_recipes_own_value_outside_the_space_is_drawn_too(tmp_path) -> None:
    records = Unwritten()
    records.add(0, {**OWN, WEIGHT_DECAY: 0.0, LR: 0.5, UPSCORE: "other"})
    records.score(0, 1000, 200, 0.3, status="finished")
    page = reported(records.search, tmp_path)
    assert "by trial 0" in page.text


def test_the_map_is_of_rate_and_decay_or_of_what_mattered_most() -> None:
    assert axes_of(made(24), None) == [LR, WEIGHT_DECAY]
    space = {UPSCORE: FOUR[UPSCORE], WEIGHT_DECAY: FOUR[WEIGHT_DECAY], JITTER: FOUR[JITTER]}
    search = made(24, space, lambda p: 0.7 - p[JITTER])
    assert axes_of(search, importances(search))[0] == JITTER
    assert axes_of(search, None) == [UPSCORE, WEIGHT_DECAY]


def test_short_names_never_hide_which_key_is_meant() -> None:
    keys = ["finetune.schedule.kind", "finetune.optimizer.kind", LR]
    assert list(short_names(keys).values()) == [*keys[:2], "lr"]


def test_text_from_outside_cannot_become_markup(tmp_path) -> None:
    evil = '<script>alert("x")</script>'
    records = Unwritten(recipe=evil)
    records.add(0, {**OWN, UPSCORE: evil})
    records.update(0, status="failed", reason=evil)
    path = write_report(records.search, tmp_path)
    assert Page(path).text.count(evil) >= 2
    assert evil in unescape(path.read_text())


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
MEASURE = """
<iframe id=shown style="width: {width}px; height: 900px; border: 0" srcdoc="{page}"></iframe>
<pre id=measured></pre>
<script>
onload = () => {{
  const page = document.getElementById("shown").contentDocument;
  const images = [...page.images];
  document.getElementById("measured").textContent = JSON.stringify({{
    title: page.title, width: page.documentElement.scrollWidth,
    drawn: images.filter(i => i.complete && i.naturalWidth > 0).length,
    widest: Math.max(...images.map(i => i.getBoundingClientRect().right)),
    smallest: Math.min(...images.map(i => i.getBoundingClientRect().width)),
  }});
}};
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width_px", [360, 1280], ids=["phone", "desk"])
def test_a_browser_shows_the_page_whole_on_screens_of_any_width(width_px, tmp_path) -> None:
    """Nothing sticks out to the side; the three pictures are there and are not tiny."""
    page = write_report(made(24), tmp_path / "page").read_text()
    frame = tmp_path / "frame.html"
    frame.write_text(MEASURE.format(width=width_px, page=escape(page)))
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking")
    command = [
        CHROMIUM,
        *options,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        frame.as_uri(),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = json.loads(unescape(re.search("<pre id=.measured.>(.*?)</pre>", shown, re.S)[1]))
    assert found["title"] == "Search made, 2026-01-02, data d1a5e5d1"
    assert found["width"] <= width_px
    assert found["drawn"] == 3
    assert found["widest"] <= width_px
    assert found["smallest"] > 280
