"""What a user of the search types and reads."""

import pytest
from click.testing import CliRunner

from pipeline.config.recipe import load_recipe
from pipeline.storage.store import Store
from tests.tuning.made import begin, fill
from tuning.cli import main
from tuning.records import Records
from tuning.settings import Settings


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


@pytest.fixture
def kept(tmp_path):
    """A store with a search of six trials, which are all over, and nobody at it."""
    fill(begin(tmp_path, Settings(name="made", trials=6, budget="2h")), 6)
    return tmp_path


def test_a_search_becomes_a_page(kept) -> None:
    done = call("report", "made", "--store", str(kept), "-o", str(kept / "page"))
    assert done.exit_code == 0, done.output
    assert (
        "data:image/png;base64"
        in (kept / "page" / "search-made-2026-01-02-d1a5e5d1.html").read_text()
    )


def test_status_says_how_far_it_came_and_that_nobody_is_at_it(kept) -> None:
    done = call("status", "made", "--store", str(kept))
    assert done.exit_code == 0, done.output
    assert "made: 6 of 6 trials are over" in done.output
    assert "120 of 120 min of the budget left; nobody is at it" in done.output
    assert len(done.output.splitlines()) >= 8


def test_best_prints_a_recipe_that_loads_with_the_best_trials_values(kept) -> None:
    best = Records(Store(kept), "made").read()[0].best()
    path = kept / "best.yaml"
    done = call("best", "made", "--store", str(kept), "-o", str(path))
    assert done.exit_code == 0, done.output
    assert load_recipe(str(path)) == load_recipe("demo", [f"store={kept}", *best.overrides()])
    assert call("best", "made", "--store", str(kept)).output == path.read_text()


def test_a_search_that_is_not_there_is_named_with_those_that_are(kept) -> None:
    done = call("status", "lost", "--store", str(kept))
    assert done.exit_code == 1
    assert "there is no search lost in" in done.output
    assert "there are made" in done.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--trials", "0"], "trials=0: input should be greater than 0"),
        (["--budget", "0h"], "budget=0h: write a time above zero, such as 2h"),
        (["--budget", "soon"], "budget=soon: write a time above zero"),
        (["--sampler", "luck"], "sampler=luck: input should be 'tpe', 'random' or 'grid'"),
        (["--reduction", "1"], "reduction=1: input should be greater than or equal to 2"),
        (["--workers", "3"], "cluster.num_workers=3 but finetune.global_batch=16"),
        (["--scheduler", "pbt"], "scheduler=pbt: input should be 'asha', 'median' or 'none'"),
        (
            ["--space", "SPACE"],
            "finetune.epochs: a trial of fewer epochs ends its schedule earlier",
        ),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_anything_starts(
    tmp_path, arguments, words
) -> None:
    (tmp_path / "space.yaml").write_text("finetune.epochs: {choice: [2, 4]}")
    given = [str(tmp_path / "space.yaml") if a == "SPACE" else a for a in arguments]
    done = call("search", "demo", "--set", f"store={tmp_path / 'store'}", *given)
    assert done.exit_code == 2, done.output
    assert words in done.output
    assert not (tmp_path / "store").exists()
