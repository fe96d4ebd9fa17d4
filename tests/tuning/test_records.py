"""What a search remembers: whatever was written is known after any kill, and nothing else is."""

import shutil

import pytest

from pipeline.errors import RecipeError, StoreError
from pipeline.storage.store import Store
from tests.tuning.made import LR, Unwritten, begin, fill
from tuning.records import Records
from tuning.settings import Settings


def run_of_three(records: Records) -> None:
    """One finished, one pruned, one failed."""
    for number in range(3):
        records.add(number, {LR: (number + 1) / 3000})
    records.score(0, 100, 20, 0.5, spent_s=1.0)
    records.score(1, 100, 20, 0.2, spent_s=1.5, status="pruned", reason="by asha")
    records.score(0, 1000, 200, 0.7, spent_s=2.0, status="finished")
    records.update(2, 4, status="failed", reason="the loss became nan")


def test_a_search_adds_up(tmp_path) -> None:
    records = begin(tmp_path)
    run_of_three(records)
    search = records.search
    assert [t.number for t in search.over()] == [1, 0, 2]
    assert [t.status for t in search.trials.values()] == ["finished", "pruned", "failed"]
    assert search.best() == search.trials[0]
    assert [t.number for t in search.ranked()] == [0, 1, 2]
    assert (search.trials[0].mean_iu, search.trials[0].seconds) == (0.7, 3.0)
    assert (search.steps_trained, search.steps_saved) == (200 + 20 + 4, 180)


def test_another_process_reads_what_was_written_to_the_last_bit(tmp_path) -> None:
    records = begin(tmp_path)
    point = {LR: 0.1 + 0.2, "net.upscore": "fixed", "finetune.augment.crop_px": [352, 480]}
    records.add(0, point)
    records.score(0, 100, 20, 1 / 3)
    found, recipe, settings = Records(Store(tmp_path), "made").read()
    assert found.trials == records.search.trials
    assert found.trials[0].point == point
    assert (recipe.name, settings) == ("demo", Settings(name="made"))


@pytest.mark.parametrize("kept", range(9))
def test_a_kill_between_two_writes_loses_nothing_that_was_written(tmp_path, kept) -> None:
    """Each document of the search is what it was after so many writes; a new session goes on there."""
    records = begin(tmp_path)
    done: list[str] = []
    write = records.store.write_json

    def write_some(name, facts) -> None:
        if "records" in name:
            if len(done) == kept:
                raise KeyboardInterrupt
            done.append(name)
        write(name, facts)

    records.store.write_json = write_some
    try:
        run_of_three(records)
    except KeyboardInterrupt:
        known = records.search
    else:
        known = records.search
        assert kept >= len(done)
    assert begin(tmp_path).search.trials == known.trials


def test_a_draft_that_a_killed_writer_left_is_no_record(tmp_path) -> None:
    records = begin(tmp_path)
    records.add(0, {LR: 1.0})
    folder = tmp_path / "searches" / "made" / "records"
    shutil.copy(folder / "0.json", folder / ".1.json.5e1f09ab")
    assert list(begin(tmp_path).search.trials) == [0]


def test_a_record_that_is_damaged_is_named_with_the_remedy(tmp_path) -> None:
    begin(tmp_path).add(0, {LR: 1.0})
    (tmp_path / "searches/made/records/0.json").write_text('{"number": 0, "poi')
    with pytest.raises(StoreError, match=r"records/0\.json is not what was written.*remove it"):
        begin(tmp_path)


def test_a_score_counts_once_and_a_better_earlier_one_stays() -> None:
    records = Unwritten()
    records.add(0, {LR: 1.0})
    for images, mean_iu in ((100, 0.6), (300, 0.5), (100, 0.6)):
        records.score(0, images, images // 5, mean_iu)
    trial = records.search.trials[0]
    assert trial.curve == {100: 0.6, 300: 0.5}
    assert trial.mean_iu == 0.6
    assert trial.steps == 60


def test_a_finished_trial_is_best_even_if_a_pruned_one_once_scored_higher() -> None:
    records = Unwritten()
    for number in range(2):
        records.add(number, {LR: 1.0})
    records.score(1, 100, 20, 0.9, status="pruned")
    assert records.search.best().number == 1
    records.score(0, 1000, 200, 0.7, status="finished")
    assert records.search.best().number == 0


def test_the_first_of_equals_is_best_and_what_failed_never_is() -> None:
    records = Unwritten()
    assert records.search.best() is None
    for number in range(3):
        records.add(number, {LR: 1.0})
    for number in (2, 1):
        records.score(number, 1000, 200, 0.7, status="finished")
    records.score(0, 100, 20, 0.9)
    records.update(0, status="failed", reason="out of memory")
    assert records.search.best().number == 1


def test_a_stopped_trial_is_under_way_and_goes_on_with_its_scores() -> None:
    records = Unwritten()
    records.add(0, {LR: 1.0})
    records.score(0, 100, 20, 0.4)
    records.update(0, 45, status="stopped", reason="the budget is spent")
    assert [t.number for t in records.search.under_way()] == [0]
    assert records.search.over() == []
    trial = records.update(0, status="running", reason="")
    assert (trial.curve, trial.steps) == ({100: 0.4}, 45)


def test_time_is_what_the_sessions_lived_not_what_lay_between(tmp_path, monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr("tuning.records.time.monotonic", lambda: now[0])
    first = begin(tmp_path)
    now[0] = 160.0
    first.add(0, {LR: 1.0})
    now[0] = 900.0
    second = begin(tmp_path)
    now[0] = 940.0
    assert second.spent_s() == 60 + 40


def test_another_search_of_the_same_name_is_refused_with_what_differs(tmp_path) -> None:
    fill(begin(tmp_path), 2)
    with pytest.raises(RecipeError, match="begun otherwise") as error:
        begin(tmp_path, seed=7, created="2027-01-01T00:00:00")
    assert "seed: it has 5, and now 7" in str(error.value)
    assert "created" not in str(error.value)
    assert len(begin(tmp_path, created="2027-01-01T00:00:00").search.trials) == 2


def test_a_grid_cannot_change_its_size_and_others_can(tmp_path) -> None:
    few, many = (Settings(name="made", trials=n) for n in (4, 9))
    begin(tmp_path / "a", few)
    begin(tmp_path / "a", many)
    begin(tmp_path / "b", few, sampler="grid", grid_trials=4)
    with pytest.raises(RecipeError, match="grid_trials: it has 4, and now 9"):
        begin(tmp_path / "b", many, sampler="grid", grid_trials=9)


def test_a_search_lies_in_a_bucket_as_in_a_folder(s3) -> None:
    records = begin(s3)
    run_of_three(records)
    assert Records(Store(s3), "made").read()[0].trials == records.search.trials
