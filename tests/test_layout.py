"""The README's tree is true, and what people import stays."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_readmes_tree_names_every_folder_and_no_other() -> None:
    text = (ROOT / "README.md").read_text()
    tree = next(
        block for block in re.findall(r"```text\n(.*?)```", text, re.S) if "  cli/ " in block
    )
    named: set[str] = set()
    parents: list[str] = []
    for line in tree.splitlines():
        depth, word = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        if word.endswith("/"):
            parents = [*parents[:depth], word.rstrip("/")]
            named.add("/".join(parents))
    there = {
        str(path.relative_to(ROOT))
        for package in ("fcn", "pipeline", "tuning")
        for path in (ROOT / package, *(ROOT / package).rglob("*"))
        if path.is_dir() and path.name != "__pycache__"
    }
    assert {name for name in named if name.split("/")[0] in ("fcn", "pipeline", "tuning")} == there
    assert all((ROOT / name).is_dir() for name in named)


def tracked_python() -> list[Path]:
    folders = ("fcn", "pipeline", "tuning", "tests", "benchmarks")
    return [path for folder in folders for path in (ROOT / folder).rglob("*.py")]


def test_no_file_grows_past_what_can_be_read() -> None:
    sizes = {p: len(p.read_text().splitlines()) for p in tracked_python()}
    assert {str(p): n for p, n in sizes.items() if n > 400} == {}


def test_the_readmes_commands_are_the_makefiles() -> None:
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", readme, re.M):
        assert f"\n{target}:" in makefile
