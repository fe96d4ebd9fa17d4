"""What a user of the search types and reads."""

import pytest
from click.testing import CliRunner

from pipeline.recipe import load_recipe
from tests.tuning.made import events_of
from tuning.cli import main
from tuning.events import Journal


def call(*arguments: str):
    return CliRunner().invoke(main, list(arguments))


def test_a_space_shows_the_recipe_itself_first_and_then_points_that_load(tmp_path) -> None:
    done = call("space", "demo", "--set", f"store={tmp_path}", "--trials", "5")
    assert done.exit_code == 0, done.output
    lines = [line.split("  ") for line in done.output.splitlines()]
    assert lines[0] == ["finetune.optimizer.lr=0.001", "finetune.optimizer.weight_decay=0.0001"]
    rates = {load_recipe("demo", line).finetune.optimizer.lr for line in lines}
    assert len(rates) == 5
    assert (
        call("space", "demo", "--set", f"store={tmp_path}", "--trials", "5").output == done.output
    )


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ("finetune.optimizer.momentum: {uniform: [0.8, 0.99]}", "momentum"),
        ("finetune.optimiser.lr: {log: [1.0e-5, 1.0e-2]}", "did you mean optimizer?"),
        ("finetune.optimizer.lr: {log: [1.0e-2, 1.0e-5]}", "finetune.optimizer.lr"),
        ("cluster.num_workers: {choice: [1, 2]}", "cluster.num_workers"),
    ],
)
def test_a_space_that_would_waste_trials_is_refused(tmp_path, space, words) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(space)
    done = call("space", "demo", "--set", f"store={tmp_path}", "--space", str(path))
    assert done.exit_code == 2
    assert words in done.output


def test_a_journal_becomes_a_page(tmp_path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    for event in events_of(6):
        journal.append(event)
    done = call("report", str(path), "-o", str(tmp_path / "page"))
    assert done.exit_code == 0, done.output
    assert "data:image/png;base64" in (tmp_path / "page" / "search.html").read_text()
