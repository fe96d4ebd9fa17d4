"""Which points are tried, and in which order they are handed out."""

import pytest
from ray.tune.search import Searcher

from pipeline.config.recipe import load_recipe
from pipeline.errors import RecipeError
from tests.tuning.made import FOUR, JITTER, LR, Unwritten, fill, plan
from tuning.searchers import TrialSearcher, grid_points, suggest_by
from tuning.space import Space

SPACE = Space.model_validate(FOUR)
DEMO = load_recipe("demo")


def config_of(trial) -> dict:
    return {"point": trial.point}


def by(kind: str, recipe=DEMO, space=SPACE, seed=0, num_trials=20):
    made = plan(sampler=kind, space=space, seed=seed, grid_trials=num_trials)
    return suggest_by(made, recipe)


@pytest.mark.parametrize("kind", ["tpe", "random", "grid"])
def test_the_first_point_is_the_recipes_own(kind) -> None:
    assert by(kind)(0, []) == SPACE.own(DEMO)


def test_a_grid_is_whole_and_no_larger_than_wanted() -> None:
    space = Space.model_validate({LR: FOUR[LR], JITTER: FOUR[JITTER]})
    assert len(grid_points(space, DEMO, 20)) == 4 * 4 + 1
    suggest = by("grid", space=space)
    points = [tuple(suggest(n, []).values()) for n in range(17)]
    assert len(set(points)) == 17


def searcher(records, num_trials=4, ending=lambda: "", config=config_of) -> TrialSearcher:
    return TrialSearcher(records, by("random"), num_trials, config, ending)


def test_what_was_under_way_is_handed_out_before_anything_new() -> None:
    records = Unwritten()
    fill(records, 2)
    records.add(2, {LR: 0.1})
    records.update(2, status="stopped", reason="the budget is spent")
    found = searcher(records)
    assert found.suggest("a") == {"number": 2, "point": {LR: 0.1}}
    assert records.search.trials[2].status == "running"
    assert found.suggest("b")["number"] == 3
    assert found.suggest("c") == Searcher.FINISHED
    assert len(records.search.trials) == 4


def test_nothing_begins_once_the_session_ends() -> None:
    records = Unwritten()
    assert searcher(records, ending=lambda: "the budget is spent").suggest("a") == Searcher.FINISHED
    assert records.search.trials == {}


def test_a_point_that_the_recipe_refuses_is_a_failed_trial() -> None:
    def config(trial) -> dict:
        if trial.number == 1:
            raise RecipeError("micro_batch=16 does not fit")
        return {}

    records = Unwritten()
    found = searcher(records, config=config)
    assert [found.suggest(id)["number"] for id in "abc"] == [0, 2, 3]
    assert records.search.trials[1].status == "failed"
    assert "does not fit" in records.search.trials[1].reason


def test_an_error_of_ours_ends_the_search_and_is_kept() -> None:
    def broken(trial) -> dict:
        raise OSError("the disk is gone")

    found = searcher(Unwritten(), config=broken)
    assert found.suggest("a") == Searcher.FINISHED
    assert "the disk is gone" in str(found.failure)


def test_a_grid_that_holds_the_recipes_own_point_is_the_same_when_it_is_asked_for_again() -> None:
    """By its own size, as the next session asks; of its four points one is the recipe's own."""
    space = Space.model_validate({LR: {"choice": [1e-3, 1e-2]}, JITTER: {"choice": [0.2, 0.4]}})
    recipe = load_recipe("demo", [f"{LR}=1e-3", f"{JITTER}=0.2"])
    points = grid_points(space, recipe, 5)
    assert len(points) == 4
    assert grid_points(space, recipe, len(points)) == points
