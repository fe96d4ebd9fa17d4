"""What the labels mean: classes, void and the map between, each line with its reason.

What is not known is asked: such a line has options, and the recipe is refused until one is chosen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fcn.labels import VOID, Colour
from pipeline.config.data import LAYOUTS, VOID_NAME
from pipeline.ops.new.detect import Found
from pipeline.ops.new.look import Looked
from pipeline.ops.new.names import Table
from pipeline.ops.new.palette import safe_colours
from pipeline.ops.new.write import Line, flow

MANY_IDS = 250
"""With so many different values, 255 is one of them; and they hardly are classes."""
RARE_COLOUR = 0.002
"""Colours of a smaller share are not taken for classes where no table says so."""
LOSSY_DISTANCE = 64
MOST_COLOURS = 2000
"""Of more colours the rarest are left out of account."""
TOLERANCES = (16, 32, 64)
VOC_BORDER: Colour = (224, 224, 192)
"""What PASCAL VOC's palette has at 255."""
OPTION_ROWS = 6


@dataclass
class Classes:
    """Names, colours, and what raw values become."""

    names: list[str]
    from_file: str
    colours: list[Colour] = field(default_factory=list)
    """Those in the label files, where they hold colours."""
    rows: dict[str, str] = field(default_factory=dict)
    """The label map."""
    rows_why: str = ""
    otherwise: list[str] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    """Further lines of the data section."""

    def section(self) -> list[Line]:
        """All lines about classes."""
        colours = self.colours or safe_colours(self.names)
        classes = [{"name": n, "colour": list(c)} for n, c in zip(self.names, colours, strict=True)]
        found = [
            Line("data.classes", classes, self.from_file, notes=[""] * len(classes)),
            *(
                [Line("data.label_kind", "colours", "the labels are colour maps")]
                * bool(self.colours)
            ),
        ]
        if self.rows or self.otherwise:
            found.append(
                Line("data.label_map", self.rows, self.rows_why, otherwise=tuple(self.otherwise))
            )
        return [*found, *self.lines]


def label_lines(found: Found, looked: Looked) -> list[Line]:
    """The lines of the data section that say what the labels mean."""
    layout = LAYOUTS[found.source]
    if layout.draws:
        return _drawn(found)
    if layout.table is not None and found.table is None and _fits_own_table(found, looked):
        return []
    table = found.table
    coloured = looked.num_coloured > 0 or (
        table is not None and bool(table.colours) and _are_table_colours(table, looked)
    )
    return (_colours if coloured else _ids)(found, looked)


def _fits_own_table(found: Found, looked: Looked) -> bool:
    layout = LAYOUTS[found.source]
    known = {int(raw) for raw in layout.label_map} or set(range(len(layout.table or ())))
    return not looked.num_coloured and set(looked.ids) <= known | {*layout.void_ids}


def _are_table_colours(table: Table, looked: Looked) -> bool:
    """Whether grey or palette labels show the table's colours, and are not its ids."""
    fits = set(looked.colours) <= {*table.colours, VOC_BORDER}
    return fits and (looked.num_palette > 0 or max(looked.ids, default=0) >= len(table.names))


def _drawn(found: Found) -> list[Line]:
    assert found.table is not None
    table = found.table
    names = [n for i, n in enumerate(table.names) if not table.is_void(i)]
    rows = {n: VOID_NAME for i, n in enumerate(table.names) if table.is_void(i)}
    ground = [n for n in names if n.lower().strip("_ ") in ("background", "bg")]
    covered = found.covered and len(names) > 1
    if not ground and not covered:
        ground = ["background"]
        names.insert(0, "background")
    why = "by their names"
    if found.source == "yolo":
        rows = {str(i): VOID_NAME if table.is_void(i) else n for i, n in enumerate(table.names)}
        why = "the numbers in the text files"
    classes = Classes(names, f"names from {table.file}", rows=rows, rows_why=why)
    if covered:
        why = "panoptic annotations cover the images; what they leave is not known"
        classes.lines.append(Line("data.unlabelled", VOID_NAME, why))
    else:
        other = f"if nothing is known of those pixels: unlabelled: {VOID_NAME}, and no class {ground[0]}"
        why = "pixels that no annotation covers"
        classes.lines.append(Line("data.unlabelled", ground[0], why, otherwise=(other,)))
    return classes.section()


def _ids(found: Found, looked: Looked) -> list[Line]:
    ids, table = set(looked.ids), found.table
    pixels = sum(looked.ids.values())
    shares = ", ".join(f"{i} {looked.ids[i] / max(1, pixels):.1%}" for i in sorted(ids)[:30])
    seen = f"in the labels ({looked.words} looked at): {shares}{' ...' * (len(ids) > 30)}"
    if len(ids) < 2 or len(ids) > MANY_IDS:
        what = "one value alone" if len(ids) < 2 else f"{len(ids)} different values"
        return [_ask_classes(f"{what} {seen}; that is no map of classes", table)]
    two = sorted(ids)
    if len(two) == 2 and two[0] == 0 and two[1] != 1 and (table is None or len(table.names) <= 2):
        return _two_values(two[1], seen, table)
    others = ids - {VOID} if VOID in ids else ids
    classes = _named(others, table, seen) if table else _numbered(others, seen)
    if VOID in ids:
        classes.lines.append(_about_255(found, looked, classes))
    return classes.section()


def _two_values(value: int, seen: str, table: Table | None) -> list[Line]:
    names = list(table.names) if table else ["foreground"]
    names = names if len(names) == 2 else ["background", *names]
    why = f"names from {table.file}" if table else "two values; write the name of what you look for"
    classes = Classes(names, why, rows={"0": names[0], str(value): names[1]}, rows_why=seen)
    if value == VOID:
        classes.otherwise = [
            f"if nothing is known where {VOID} is, it is no class: label_map: {{0: {names[0]}, {VOID}: "
            f"{VOID_NAME}}}; but then a single class is left"
        ]
    return classes.section()


def _numbered(ids: set[int], seen: str) -> Classes:
    """No names: a class for each id."""
    most = max(ids)
    if 2 * len(ids) < most + 1:  # such as 0, 50, 100
        order = sorted(ids)
        names = [f"class_{i}" for i in order]
        rows = {str(i): name for i, name in zip(order, names, strict=True)}
        return Classes(names, "no file names them; write your names", rows=rows, rows_why=seen)
    if min(ids) == 1:
        names = [f"class_{i}" for i in range(1, most + 1)]
        rows = {str(i + 1): name for i, name in enumerate(names)}
        return Classes(
            names, "no file names them; write your names", rows=rows, rows_why=f"no 0; {seen}"
        )
    names = [f"class_{i}" for i in range(max(2, most + 1))]
    gap = sorted(set(range(most)) - ids)
    lacking = f"; {', '.join(map(str, gap[:8]))} not seen" if gap else ""
    return Classes(names, f"no file names them; write your names; {seen}{lacking}")


def _named(ids: set[int], table: Table, seen: str) -> Classes:
    """Names in a file: they are matched with the ids, or it is asked how."""
    names, n = list(table.names), len(table.names)
    why = f"names from {table.file}; {seen}"
    raw_ids = list(table.ids) if table.ids else list(range(n))
    shifted = False
    if not table.ids and max(ids) == n and min(ids) == 1:
        raw_ids, shifted = list(range(1, n + 1)), True
    kept = [name for i, name in enumerate(names) if not table.is_void(i)]
    rows = {str(raw): VOID_NAME if table.is_void(i) else names[i] for i, raw in enumerate(raw_ids)}
    classes = Classes(kept, why)
    unnamed = sorted(ids - set(raw_ids))
    if raw_ids[0] == 1 and table.ids and unnamed in ([], [0]):
        rows = {"0": VOID_NAME, **rows}
        unnamed = []
        classes.rows_why = f"ids begin at 1 in {table.file}; 0 has no name there, so it is void"
    elif shifted:
        classes.rows_why = f"the ids begin at 1, and there are {n} names"
    elif len(kept) < n:
        classes.rows_why = "by their names"
    elif not table.ids:
        rows = {}
    classes.rows = rows
    if unnamed:
        _ask_unnamed(classes, unnamed, raw_ids, names)
    return classes


def _ask_unnamed(
    classes: Classes, unnamed: list[int], raw_ids: list[int], names: list[str]
) -> None:
    listed = ", ".join(map(str, unnamed[:10]))
    base = classes.rows or {str(r): n for r, n in zip(raw_ids, names, strict=True)}
    void = {**base, **{str(i): VOID_NAME for i in unnamed}}
    options = [(flow(void), f"{listed}: nothing is known there")]
    if unnamed == [len(names)] and min(raw_ids) == 0:
        by_one = {"0": VOID_NAME, **{str(i + 1): n for i, n in enumerate(names)}}
        options.append((flow(by_one), "the names begin at 1, and 0 is void"))
    options.append((flow(base), f"and a class more for {listed}, here and in classes"))
    classes.rows, classes.rows_why = {}, ""
    why = f"to decide: the labels hold {listed}, which {classes.from_file.split(';')[0]} lack"
    classes.lines.append(Line("data.label_map", void, why, tuple(options)))


def _about_255(found: Found, looked: Looked, classes: Classes) -> Line:
    share = looked.ids[VOID] / sum(looked.ids.values())
    if found.void_255:
        return Line("data.void_ids", [VOID], f"void in PASCAL VOC; {share:.1%} of the pixels")
    rows = classes.rows or {str(i): name for i, name in enumerate(classes.names)}
    as_class = flow({**rows, str(VOID): "other"})
    return Line(
        "data.void_ids",
        [VOID],
        f"to decide: {VOID} is in the labels ({share:.1%} of the pixels); is it void, or a class?",
        (
            (f"[{VOID}]", "void: nothing is known there; not trained on, not scored"),
            ("[]", f"a class: then add one, here named other, with label_map: {as_class}"),
        ),
    )


def _ask_classes(why: str, table: Table | None) -> Line:
    names = list(table.names[:OPTION_ROWS]) if table else ["background", "object"]
    tried = [f"class_{i}" for i in range(VOID)]
    options = ((flow(names), "names in the order of the ids, if these files are the labels"),)
    return Line("data.classes", tried, f"to decide: {why}", options)


def _colours(found: Found, looked: Looked) -> list[Line]:
    table, px = found.table, sum(looked.colours.values())
    shares = {c: n / px for c, n in looked.colours.most_common()}
    if table and table.colours:
        known = dict(zip(table.colours, range(len(table.names)), strict=True))
        keep = [i for i in range(len(table.names)) if not table.is_void(i)]
        void = [c for c, i in known.items() if table.is_void(i)]
        classes = Classes(
            [table.names[i] for i in keep],
            f"names and colours from {table.file}",
            [table.colours[i] for i in keep],
            {_text(c): VOID_NAME for c in void},
            "void by its name" * bool(void),
        )
    else:
        big = sorted(_main_colours(shares, LOSSY_DISTANCE if looked.num_lossy else 0))
        void = [VOC_BORDER] if VOC_BORDER in big and (0, 0, 0) in big else []
        big = [c for c in big if c not in void][: VOID - 1]
        if len(big) < 2:
            return [_ask_classes(f"{looked.words} labels have {len(shares)} colours", table)]
        known = dict.fromkeys([*big, *void], 0)
        classes = Classes(
            _colour_names(big),
            f"no file names the colours; write your names ({looked.words} labels looked at)",
            big,
            {_text(c): VOID_NAME for c in void},
            "the border of PASCAL VOC" * bool(void),
        )
    rest = {c: share for c, share in shares.items() if c not in known}
    if looked.num_lossy:
        classes.lines += _about_loss(looked.num_lossy, rest, list(known))
    elif rest:
        classes.lines.append(_about_rest(rest))
    return classes.section()


def _main_colours(shares: Mapping[Colour, float], distance: int) -> list[Colour]:
    """Colours of a share worth a class; each stands for those around it, up to a distance."""
    found: dict[Colour, float] = {}
    for colour, share in sorted(shares.items(), key=lambda item: -item[1])[:MOST_COLOURS]:
        near = [c for c in found if _apart(colour, [c]) <= distance] if distance else []
        found[near[0] if near else colour] = share + (found[near[0]] if near else 0)
    return [colour for colour, share in found.items() if share >= RARE_COLOUR]


def _apart(colour: Colour, others: Sequence[Colour]) -> int:
    """The greatest difference in a channel to the nearest of some colours."""
    return min(max(abs(a - b) for a, b in zip(colour, o, strict=True)) for o in others)


def _colour_names(colours: Sequence[Colour]) -> list[str]:
    if set(colours) == {(0, 0, 0), (255, 255, 255)}:
        return ["background", "foreground"]
    return [f"class_{i}" for i in range(len(colours))]


def _about_rest(rest: Mapping[Colour, float]) -> Line:
    options = (
        ("void", "those pixels are not trained on and not scored"),
        ("quarantine", "samples that have them are rejected; or add classes for them"),
    )
    return Line("data.unknown_colours", "void", f"to decide: {_no_class(rest)}", options)


def _about_loss(num: int, rest: Mapping[Colour, float], known: list[Colour]) -> list[Line]:
    """Colours that compression has changed: how far may they be from a class's?"""
    moved = {t: sum(s for c, s in rest.items() if _apart(c, known) <= t) for t in TOLERANCES}
    options = [
        (
            str(t),
            f"moves {s:.2%} of the pixels to the nearest class, leaves {sum(rest.values()) - s:.2%}",
        )
        for t, s in moved.items()
    ]
    why = f"to decide: {num} labels are compressed with loss; {_no_class(rest)}"
    edges = "what the tolerance leaves: mixed colours at edges"
    return [
        Line("data.colour_tolerance", TOLERANCES[-1], why, options),
        Line("data.unknown_colours", "void", edges),
    ]


def _no_class(rest: Mapping[Colour, float]) -> str:
    listed = ", ".join(f"{list(c)} {share:.2%}" for c, share in list(rest.items())[:4])
    return (
        f"{sum(rest.values()):.2%} of the pixels have colours of no class ({len(rest)}): {listed}"
    )


def _text(colour: Colour) -> str:
    return ",".join(map(str, colour))


def group_pattern(stems: Sequence[str]) -> str | None:
    """An expression for the part of names that many samples share, such as a video or a patient."""
    for pattern in (
        r"^(.+?)/",
        r"^(.+)[_\-. ](?:frame|slice|f|s|t|z)?\d+$",
        r"^([A-Za-z]+\d+)[_\-. ]",
    ):
        groups: dict[str, int] = {}
        for stem in stems:
            match = re.search(pattern, stem)
            if match is None:
                break
            groups[match[1]] = groups.get(match[1], 0) + 1
        else:
            if 4 <= len(groups) <= len(stems) / 2:
                return pattern
    return None
