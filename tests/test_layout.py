"""The README's tree is true, and what people import stays."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_readmes_tree_names_every_module_and_no_other() -> None:
    text = (ROOT / "README.md").read_text()
    tree = next(
        block for block in re.findall(r"```text\n(.*?)```", text, re.S) if "  labels.py" in block
    )
    said: set[str] = set()
    folder = ""
    for line in tree.splitlines():
        if not line.startswith(" "):
            folder = line.split()[0]
        else:
            said |= {folder + name for name in re.findall(r"\b(\w+\.py)\b", line[:24])}
    there = {
        f"{package}/{path.name}"
        for package in ("fcn", "pipeline", "tuning")
        for path in (ROOT / package).glob("*.py")
        if not path.name.startswith("__")
    }
    assert said == there


def test_no_file_grows_past_what_can_be_read() -> None:
    sizes = {p: len(p.read_text().splitlines()) for p in ROOT.glob("*/*.py")}
    assert {str(p): n for p, n in sizes.items() if n > 400} == {}


def test_the_readmes_commands_are_the_makefiles() -> None:
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", readme, re.M):
        assert f"\n{target}:" in makefile
