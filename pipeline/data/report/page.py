"""The data report as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Iterator, Mapping
from html import escape

from pipeline.config.schema import Split
from pipeline.data.ceiling import stride_ceilings
from pipeline.data.near import NEAR_BITS
from pipeline.data.report.content import Content, Place
from pipeline.data.report.pictures import Rows, rejected_picture

SPLIT_COLOURS: Mapping[Split, str] = {"train": "#0072B2", "val": "#E69F00", "test": "#009E73"}
"""From a palette that people with any colour vision can tell apart."""
SIZES = 5
"""Sizes of images that are listed for a split."""
STYLE = """
body { max-width: 75rem; margin: 0 auto; padding: 1rem; line-height: 1.5; color: #1f2933;
  background: #fff; font-family: system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.note, figcaption, th { color: #52606d; font-size: .87rem; } .wide { overflow-x: auto; }
.doubts { padding: .6rem 1rem; border-left: .4rem solid #D55E00; background: #fdf3ea; }
.doubts li { margin: .3rem 0; } .doubts ul { margin: 0; padding-left: 1.1rem; }
table { border-collapse: collapse; font-size: .9rem; overflow-wrap: normal; }
th { text-align: left; font-weight: 600; } .n { text-align: right; white-space: nowrap; }
th, td { padding: .3rem .7rem .3rem 0; border-bottom: 1px solid #e4e7eb; vertical-align: baseline; }
td:first-child { white-space: nowrap; }
.grid { display: grid; gap: .9rem;
  grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); }
.small { grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); }
figure { margin: 0; min-width: 0; } img { display: block; max-width: 100%; height: auto; }
.grid:not(.small) img { width: 100%; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; padding: 0; list-style: none; }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .4em;
  border: 1px solid #52606d; vertical-align: -.1em; }
.void { background: repeating-linear-gradient(135deg, #3c3c3c 0 3px, #c8c8c8 3px 6px); }
.bar { min-width: 7rem; } .bar i { display: block; height: .5rem; min-width: 1px; }
"""


def page(content: Content) -> str:
    """The whole page. Reads the samples that it shows from their shards, and rejected files."""
    with Rows() as rows:
        body = "\n".join(
            [
                *_head(content),
                *_splits(content),
                *_sheet(content, rows),
                *_classes(content),
                *_ceilings(content, rows),
                *_pairs(content, rows),
                *_quarantine(content),
                *_decided(content),
            ]
        )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Data of {escape(content.title)}</title><style>{STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _head(content: Content) -> Iterator[str]:
    data = content.data
    accepted = data.num_seen - data.num_quarantined
    yield f"<h1>Data of {escape(content.title)}</h1>"
    yield (
        f"<p class=note>{escape(content.origin)}. {data.num_seen:,} samples seen, {accepted:,} "
        f"accepted, {data.num_quarantined:,} rejected. Digest {data.digest}.</p>"
    )
    if not data.doubts:
        yield "<p>No doubts: each class is in each split, and no image is nearly the same in two.</p>"
        return
    items = "".join(
        f"<li>{'' if d.level == 'warning' else 'Note: '}{escape(d.text)}</li>" for d in data.doubts
    )
    yield f"<div class=doubts><b>Doubts</b><ul>{items}</ul></div>"


def _splits(content: Content) -> Iterator[str]:
    yield "<h2>Splits</h2>"
    rows = []
    for split, count in content.data.counts.items():
        labelled, void = sum(content.data.class_px[split]), content.data.void_px.get(split, 0)
        rows.append(
            f"<td>{_swatch(SPLIT_COLOURS[split])}{split}</td>{_n(f'{count:,}')}"
            f"{_n(f'{labelled / 1e6:,.1f}')}{_n(_percent(void, labelled + void))}"
            f"<td>{_sizes(content.sizes.get(split, {}))}</td>"
        )
    heads = (
        "<th>split</th><th class=n>images</th><th class=n>labelled Mpx</th><th class=n>void</th>"
    )
    yield _table(f"{heads}<th>sizes of the images in px</th>", rows)


def _sizes(sizes: Mapping[tuple[int, int], int]) -> str:
    if len(sizes) == 1:
        ((width, height),) = sizes
        return f"all {width}x{height}"
    common = sorted(sizes.items(), key=lambda item: -item[1])[:SIZES]
    words = [f"{count:,} of {width}x{height}" for (width, height), count in common]
    if len(sizes) > SIZES:
        by_area = sorted(sizes, key=math.prod)
        least, most = (f"{width}x{height}" for width, height in (by_area[0], by_area[-1]))
        words.append(f"{len(sizes) - SIZES:,} other sizes, all from {least} to {most}")
    return ", ".join(words)


def _sheet(content: Content, rows: Rows) -> Iterator[str]:
    yield "<h2>What was understood</h2>"
    yield (
        "<p class=note>Each image, and beside it the same with its label over it. If a class has the "
        "wrong name or place here, the recipe is wrong.</p><ul class=legend>"
    )
    for name, colour in zip(content.table.names, content.table.colours, strict=True):
        yield f"<li>{_swatch('rgb({},{},{})'.format(*colour))}{escape(name)}</li>"
    yield '<li><span class="swatch void"></span>void</li></ul><div class=grid>'
    for place in content.shown:
        yield _figure(rows.labelled(place, content.table), _name(place))
    yield "</div>"


def _classes(content: Content) -> Iterator[str]:
    data = content.data
    totals = {split: max(1, sum(px)) for split, px in data.class_px.items()}
    widest = max((max(px) / totals[split] for split, px in data.class_px.items()), default=1) or 1
    yield "<h2>Classes</h2><p class=note>Shares of the labelled pixels, void left out.</p>"
    lines = []
    for k, name in enumerate(content.table.names):
        colour = "rgb({},{},{})".format(*content.table.colours[k])
        cells = [f"<td>{_swatch(colour)}{escape(name)}</td>"]
        for split, px in data.class_px.items():
            width = 100 * px[k] / totals[split] / widest
            bar = f'<i style="width:{width:.1f}%;background:{SPLIT_COLOURS[split]}"></i>'
            share = _percent(px[k], totals[split]) if px[k] else "<b>none</b>"
            images = content.images_with.get(split, [0] * len(content.table))[k]
            cells.append(f"{_n(share)}<td class=bar>{bar if px[k] else ''}</td>{_n(f'{images:,}')}")
        lines.append("".join(cells))
    heads = "".join(f"<th class=n>{split}</th><th></th><th class=n>images</th>" for split in totals)
    yield _table(f"<th>class</th>{heads}", lines)


def _ceilings(content: Content, rows: Rows) -> Iterator[str]:
    if not content.labels:
        return
    labels = [rows.label(place) for place in content.labels]
    found = stride_ceilings(labels, len(content.table))
    yield "<h2>What a stride allows</h2>"
    yield (
        "<p class=note>Mean IU of the labels themselves, made as coarse as the score maps of a net of "
        "that stride and fine again: about what a perfect net could reach. On a sample of "
        f"{len(labels)} labels.</p>"
    )
    lines = [f"<td>{stride}</td>{_n(f'{iu:.3f}')}" for stride, iu in found.items()]
    yield _table("<th>net.stride</th><th class=n>mean IU at most about</th>", lines)


def _pairs(content: Content, rows: Rows) -> Iterator[str]:
    if not content.pairs:
        return
    yield "<h2>Nearly the same in two splits</h2>"
    yield (
        f"<p class=note>Evaluated images ({content.num_pairs:,}) that differ from one of train in at "
        f"most {NEAR_BITS} of the 64 bits of their perceptual hashes, the nearest first. Whether they "
        "are copies, neighbours in a video, or only alike is for you to see.</p><div class=grid>"
    )
    for one, other, bits in content.pairs:
        words = f"{_name(one)} and {_name(other)}: {bits} bits differ"
        yield _figure(rows.pair(one, other), words)
    yield "</div>"


def _quarantine(content: Content) -> Iterator[str]:
    if not content.rejected:
        return
    yield "<h2>Rejected</h2><p class=note>All of them are listed in quarantine.csv.</p>"
    for reason, count in content.num_rejected.items():
        rows = [row for row in content.rejected if row.reason == reason]
        pictures = []
        items = []
        for row in rows:
            name = f"{row.split}/{row.id}"
            items.append(f"<li><b>{escape(name)}</b>: {escape(row.evidence)}</li>")
            if picture := rejected_picture(row, content.data.input_rule()):
                # Of an exact copy both pictures are the same, so one stands for the pair.
                same = row.evidence.removeprefix("same pixels as ")
                words = f"{name} = {same}" if same != row.evidence else name
                pictures.append(_figure(picture, words))
        more = f"<li>and {count - len(rows):,} more</li>" if count > len(rows) else ""
        yield f"<h3>{escape(reason)}: {count:,}</h3><ul>{''.join(items)}{more}</ul>"
        yield f'<div class="grid small">{"".join(pictures)}</div>'


def _decided(content: Content) -> Iterator[str]:
    data = content.data
    words = {
        "overlap_px": "px of the labels were drawn on by more than one class",
        "moved_px": "px of the labels became the nearest class's colour (data.colour_tolerance)",
        "unknown_colour_px": "px of the labels have a colour of no class and are void",
        "scaled": f"images are larger than data.max_side_px={data.max_side_px} and were made smaller",
    }
    lines = [f"{count:,} {words.get(key, key)}" for key, count in data.notes.items()]
    if data.range:
        lines.append(f"values from {data.range[0]:g} (black) to {data.range[1]:g} (white) are seen")
    if lines:
        items = "".join(f"<li>{escape(line)}</li>" for line in lines)
        yield f"<h2>What was decided</h2><ul>{items}</ul>"


def _name(place: Place) -> str:
    return f"{place.split}/{place.id}"


def _figure(jpeg: bytes, words: str) -> str:
    encoded = base64.b64encode(jpeg).decode()
    return (
        f'<figure><img loading="lazy" alt="{escape(words)}" src="data:image/jpeg;base64,{encoded}">'
        f"<figcaption>{escape(words)}</figcaption></figure>"
    )


def _swatch(colour: str) -> str:
    return f'<span class=swatch style="background:{colour}"></span>'


def _table(heads: str, rows: Iterable[str]) -> str:
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<div class=wide><table><tr>{heads}</tr>{body}</table></div>"


def _n(text: str) -> str:
    return f"<td class=n>{text}</td>"


def _percent(part: int, whole: int) -> str:
    """A share with two digits that count, so that rare is told from absent."""
    share = 100 * part / max(1, whole)
    return f"{share:.1f} %" if share >= 1 or not share else f"{share:.2g} %"
