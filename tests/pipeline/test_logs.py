"""What a flow says, in a file as on a terminal, and how soon."""

import logging
import subprocess
import sys

from pipeline.logs import configure_logging

LONG = "a store somewhere far away " * 10


def test_a_line_in_a_file_is_a_line_however_long_it_is(capsys) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        configure_logging()
        logging.getLogger("pipeline.x").info("%s", LONG)
        logging.getLogger("pipeline.x").warning("[/x] is no markup")
        logging.getLogger("somebody.else").info("not shown")
    finally:
        root.handlers[:], root.level = before, level
    first, second = capsys.readouterr().err.splitlines()
    assert LONG.strip() in first
    assert " INFO " in first
    assert "[/x] is no markup" in second


FIRST_WORDS = """
import logging, os, sys
import pipeline.logs

class First(logging.Handler):
    def emit(self, record):
        heavy = sorted({"ray", "torch", "mlflow", "albumentations"} & sys.modules.keys())
        print(record.getMessage(), heavy, flush=True)
        os._exit(0)

pipeline.logs.configure_logging = lambda level: logging.basicConfig(
    level=level, handlers=[First()], force=True
)
from pipeline.cli import main
main(["run", "demo", "--set", "store=" + sys.argv[1]])
"""


def test_a_flow_speaks_before_it_loads_what_takes_seconds(tmp_path) -> None:
    command = [sys.executable, "-c", FIRST_WORDS, str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.startswith("demo: "), done.stderr
    assert done.stdout.rstrip().endswith("[]")
