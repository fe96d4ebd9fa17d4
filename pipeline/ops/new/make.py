"""A recipe and a contact sheet for a folder."""

from __future__ import annotations

import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config.data import LAYOUTS
from pipeline.config.recipe import Recipe, load_recipe
from pipeline.config.schema import Split
from pipeline.data.check import Rules
from pipeline.data.sources import Rejected, Sample, open_source
from pipeline.errors import RecipeError
from pipeline.ops.new.decide import group_pattern, label_lines
from pipeline.ops.new.detect import Found, detect
from pipeline.ops.new.look import Checked, Looked, check, flatness, look, stride_ceilings
from pipeline.ops.new.sheet import contact_sheet
from pipeline.ops.new.train import image_lines, training_lines
from pipeline.ops.new.tree import Tree
from pipeline.ops.new.write import Line, flow, recipe_text

HELD_OUT = 0.15
MOST_LONE = 3
"""So many samples without a partner never stop an ingest."""


@dataclass(frozen=True)
class Made:
    """What was written, and what a reader should know of it."""

    recipe: Path
    sheet: Path
    facts: tuple[str, ...]
    """What was understood, in words."""
    to_decide: tuple[str, ...]
    """Keys that the recipe asks for; it is refused until they are filled in."""

    def lines(self) -> Iterator[str]:
        """What to tell the user."""
        yield from self.facts
        yield f"recipe           {self.recipe}"
        yield f"contact sheet    {self.sheet}   look at it: is each class where it should be?"
        yield from (f"to decide        {key}" for key in self.to_decide)
        if self.to_decide:
            yield f"Choose among the lines in {self.recipe} before it can run."


def make_recipe(folder: Path, output: Path) -> Made:
    """Look at a folder, and write the recipe and its contact sheet.

    Raises:
        RecipeError: the folder holds nothing that could be images and labels, or `output` is there.
        DataError: what was found cannot be read as its layout.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        raise RecipeError(f"{folder} is no folder; name the one that holds images and labels")
    if output.exists():
        raise RecipeError(f"{output} is there already; -o names another file, or remove it")
    tree = Tree.of(folder)
    found = detect(tree, lambda name: flatness(folder / name))
    source = open_source(_unlabelled_recipe(found))
    samples, rejected = source.samples()
    looked = look(source, samples)
    if not looked.sizes:
        raise RecipeError(f"{folder}: no pair of {found.source} can be read: {looked.faults[:3]}")
    lines = [
        Line("name", recipe_name(folder)),
        *_place_lines(found, looked, samples, rejected),
        *label_lines(found, looked),
        *image_lines(looked),
    ]
    recipe, checked = _try(lines)
    lines = [_with_shares(line, checked) if line.key == "data.classes" else line for line in lines]
    counts = Counter(s.split for s in open_source(recipe).samples()[0])
    ceilings = (
        stride_ceilings([label for *_, label in checked.pictures], len(checked.class_px))
        if checked.class_px.any()
        else {}
    )
    lines += training_lines(looked, counts["train"], recipe.data.split_names(), ceilings)
    facts = _facts(found, looked, checked, counts, rejected)
    facts += _unused(tree, samples, rejected)
    facts = tuple(f.encode("utf-8", "backslashreplace").decode() for f in facts)
    sheet = output.with_suffix(".contact.png")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(recipe_text([f"{recipe_name(folder)}: {facts[0]}", *facts[1:]], lines))
    title = [f"{folder}   {facts[0]}", *(line.why for line in lines if line.options)]
    contact_sheet(checked, recipe.data.class_table(), title).save(sheet)
    asked = tuple(
        f"{line.key}: {line.why.removeprefix('to decide: ')}" for line in lines if line.options
    )
    if not asked:
        load_recipe(str(output))
    return Made(output, sheet, facts, asked)


def _unlabelled_recipe(found: Found) -> Recipe:
    """Enough of a recipe to list the samples; what their labels mean is not known yet."""
    layout = LAYOUTS[found.source]
    names = found.table.names if layout.draws and found.table else ("one", "two")
    data: dict[str, Any] = {
        "source": found.source,
        "root": found.root,
        "splits": found.splits,
        **found.extra,
    }
    if layout.table is None:
        data["classes"] = names if len(names) > 1 else [*names, f"not {names[0]}"]
    if layout.draws:
        data["unlabelled"] = "void"
    if found.held_out:
        data["held_out"] = {"val": HELD_OUT}
    net = {"backbone": "efficientnet_lite0"}
    return Recipe.model_validate({"name": "looked-at", "data": data, "net": net})


def _place_lines(
    found: Found, looked: Looked, samples: Sequence[Sample], rejected: Sequence[Rejected]
) -> list[Line]:
    lines = [Line("data.source", found.source, found.why), Line("data.root", str(found.root))]
    lines += [Line(f"data.{key}", value) for key, value in found.extra.items()]
    for i, (split, places) in enumerate(found.splits.items()):
        options: tuple[tuple[str, str], ...] = ()
        if found.undecided and i == 0:
            turned = {"images": places["labels"], "labels": places["images"]}
            options = (
                (flow(places), ""),
                (flow(turned), "the other way round"),
            )
        why = f"to decide: {found.undecided}" if options else found.pairs if i == 0 else ""
        lines.append(Line(f"data.splits.{split}", dict(places), why, options))
    if found.held_out:
        lines.append(_held_out(found, samples))
    lone = len(rejected)
    if lone > max(MOST_LONE, 0.01 * (lone + len(samples))):
        frac = math.ceil(100 * lone / (lone + len(samples)) + 1) / 100
        why = f"{lone} of {lone + len(samples)} have no partner: {rejected[0].evidence}"
        lines.append(Line("data.max_quarantined_frac", min(frac, 1.0), why))
    return lines


def _held_out(found: Found, samples: Sequence[Sample]) -> Line:
    train = [s.id for s in samples if s.split in ("train", "val")]
    value: dict[str, object] = {"val": HELD_OUT}
    if "test" not in found.splits and len(train) >= 20:
        value["test"] = HELD_OUT
    why = "no such splits are given, so a seeded share of the train split is taken"
    if group := group_pattern(train):
        value["group"] = group
        why += "; names show groups (videos, patients), which stay together"
    return Line("data.held_out", value, why)


def _try(lines: Sequence[Line]) -> tuple[Recipe, Checked]:
    """The recipe as it would be with the first option of each line to decide, and a check of samples."""
    net = Line("net.backbone", "efficientnet_lite0")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tried.yaml"
        path.write_text(recipe_text([], [*lines, net]))
        recipe = load_recipe(str(path), [line.trial for line in lines if line.options])
    source = open_source(recipe)
    rules = Rules(recipe.data.input_rule(), recipe.data.label_rule())
    return recipe, check(source, source.samples()[0], rules, auto_range=recipe.data.range == "auto")


def _with_shares(line: Line, checked: Checked) -> Line:
    if line.options:
        return line
    return replace(line, notes=[f"{share:.2%}" for share in checked.shares()])


def _facts(
    found: Found,
    looked: Looked,
    checked: Checked,
    counts: Mapping[Split, int],
    rejected: Sequence[Rejected],
) -> tuple[str, ...]:
    listed = ", ".join(f"{n} {split}" for split, n in counts.items())
    facts = [f"{found.source}, {found.why}; {sum(counts.values())} pairs ({listed})"]
    facts += found.notes
    if rejected:
        facts.append(
            f"{len(rejected)} are left out, the first: {rejected[0].id}: {rejected[0].evidence}"
        )
    for faults, what in ((looked.faults, "cannot be read"), (checked.faults, "would be rejected")):
        if faults:
            facts.append(f"{len(faults)} of the samples looked at {what}, the first: {faults[0]}")
    if looked.num_turned:
        facts.append(
            f"{looked.num_turned} images have an EXIF orientation: they are turned upright, and their "
            "labels with them where the sizes prove which way they lie"
        )
    void = checked.void_px / max(1, checked.void_px + int(checked.class_px.sum()))
    if void:
        facts.append(f"{void:.2%} of the pixels looked at are void")
    return tuple(" ".join(fact.split()) for fact in facts)


def _unused(tree: Tree, samples: Sequence[Sample], rejected: Sequence[Rejected]) -> tuple[str, ...]:
    """Pictures that are neither an image nor a label of any sample."""
    used = {path for s in samples for path in (s.image, s.label)} | {r.path for r in rejected}
    if not any(str(tree.root / name) in used for name in tree.pictures):
        return ()  # the pictures are inside other files
    left = [name for name in tree.pictures if str(tree.root / name) not in used]
    return (f"{len(left)} pictures are not used, such as {left[0]}",) if left else ()


def recipe_name(folder: Path) -> str:
    """The name of a recipe for a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.absolute().name).strip("-._") or "mine"
