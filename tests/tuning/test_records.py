"""The journal: what was written is known after any kill, and nothing else is."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import StoreError
from tuning.events import (
    Cloned,
    Failed,
    Journal,
    Rung,
    SearchBegun,
    SessionBegun,
    TrialBegun,
    TrialEnded,
)
from tuning.records import Search

LR = "finetune.optimizer.lr"
BEGUN = SearchBegun(
    recipe="demo",
    seed=0,
    space={LR: {"log": [1e-5, 1e-2]}},
    sampler="random",
    scheduler="asha",
    rungs=(30, 60, 90),
)


def began(number: int) -> TrialBegun:
    return TrialBegun(number=number, point={LR: (number + 1) / 3000})


def ended(number: int, status: str, steps: int) -> TrialEnded:
    return TrialEnded(number=number, status=status, reason=status, seconds=1.5, steps=steps)


def rung(number: int, step: int, mean_iu: float) -> Rung:
    return Rung(number=number, step=step, mean_iu=mean_iu)


def lines(*events) -> list[bytes]:
    return [event.model_dump_json().encode() for event in events]


def fold(*events) -> Search:
    return Search.fold(lines(BEGUN, *events))


THREE = (
    *(began(0), rung(0, 30, 0.5), began(1), rung(1, 30, 0.2), ended(1, "pruned", 30)),
    *(rung(0, 90, 0.7), began(2), ended(2, "failed", 4), ended(0, "finished", 90)),
)


@st.composite
def journals(draw) -> list:
    """Events as an engine would tell them: trials side by side, some ended, some begun again."""
    events: list = [BEGUN]
    state: dict[int, str] = {}
    for _ in range(draw(st.integers(0, 25))):
        running = [n for n, status in state.items() if status == "running"]
        again = [n for n, status in state.items() if status in ("running", "failed", "stopped")]
        what = draw(st.sampled_from(["new", "again", "rung", "ended", "search"]))
        if what == "new" or not state:
            number = len(state)
            events.append(began(number))
            state[number] = "running"
        elif what == "again" and again:
            number = draw(st.sampled_from(again))
            events.append(began(number))
            state[number] = "running"
        elif what == "rung" and running:
            number = draw(st.sampled_from(running))
            events.append(rung(number, draw(st.sampled_from([30, 60, 90])), draw(st.floats(0, 1))))
        elif what == "ended" and running:
            number = draw(st.sampled_from(running))
            state[number] = draw(st.sampled_from(["finished", "pruned", "failed", "stopped"]))
            events.append(ended(number, state[number], draw(st.integers(0, 90))))
        else:
            events.append(BEGUN)
    return events


def require_nothing_invented(search: Search, events: list) -> None:
    """Each thing that the fold tells is what the last event about it said."""
    assert set(search.trials) == {e.number for e in events if isinstance(e, TrialBegun)}
    for number, trial in search.trials.items():
        mine = [e for e in events if getattr(e, "number", None) == number]
        last = next(e for e in reversed(mine) if isinstance(e, TrialBegun | TrialEnded))
        assert trial.status == (last.status if isinstance(last, TrialEnded) else "running")
        assert trial.seconds == (last.seconds if isinstance(last, TrialEnded) else None)
        assert trial.rungs == {e.step: e.mean_iu for e in mine if isinstance(e, Rung)}
        assert list(trial.rungs) == sorted(trial.rungs)
        assert trial.point == began(number).point
        assert (number in search.ended) == (trial.status != "running")
    assert len(set(search.ended)) == len(search.ended)
    best = search.best()
    assert best is None or best in search.trials.values()
    assert len(search.rows()) == len(search.trials)
    assert search.steps_trained >= 0
    assert search.steps_saved <= BEGUN.max_steps * search.count("pruned")


@given(journals(), st.data())
def test_a_journal_cut_off_at_any_byte_tells_what_its_whole_lines_say(events, data) -> None:
    text = b"".join(line + b"\n" for line in lines(*events))
    cut = data.draw(st.integers(0, len(text)))
    whole = text[:cut].count(b"\n")
    if whole == 0:
        return
    kept = events[:whole]
    search = Search.fold(text[:cut].split(b"\n")[:whole])
    require_nothing_invented(search, kept)
    assert search == Search.fold(lines(*kept))


def test_a_journal_survives_a_kill_within_a_line_and_goes_on(tmp_path) -> None:
    path = tmp_path / "search" / "journal.jsonl"
    journal = Journal(path)
    for event in (BEGUN, *THREE):
        journal.append(event)
    whole = path.read_bytes()
    assert Search.read(path) == fold(*THREE)
    path.write_bytes(whole[:-9])
    assert Search.read(path) == fold(*THREE[:-1])
    Journal(path).append(THREE[-1])
    assert Search.read(path) == fold(*THREE)


def test_a_point_comes_back_to_the_last_bit(tmp_path) -> None:
    point = {LR: 0.1 + 0.2, "net.upscore": "fixed", "finetune.augment.crop_px": [352, 480]}
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append(BEGUN)
    journal.append(TrialBegun(number=0, point=point))
    assert Search.read(journal.path).trials[0].point == point


def test_a_search_adds_up() -> None:
    search = fold(*THREE)
    assert search.ended == (1, 2, 0)
    assert [t.number for t in search.finished()] == [0]
    assert search.best() == search.trials[0]
    assert [row["number"] for row in search.rows()] == [0, 1, 2]
    assert search.rows()[0] == {
        "number": 0,
        LR: 1 / 3000,
        "mean_iu": 0.7,
        "steps": 90,
        "status": "finished",
        "reason": "finished",
        "seconds": 1.5,
    }
    assert json.loads(json.dumps(search.rows())) == search.rows()
    assert (search.steps_trained, search.steps_saved) == (90 + 30 + 4, 60)


def test_a_finished_trial_is_best_even_if_a_pruned_one_once_scored_higher() -> None:
    lucky = (began(1), rung(1, 30, 0.9), ended(1, "pruned", 30))
    finished = (began(0), rung(0, 90, 0.7), ended(0, "finished", 90))
    assert fold(*lucky, *finished).best().number == 0
    assert fold(*lucky).best().number == 1


def test_the_first_of_equals_is_best_and_what_failed_never_is() -> None:
    equal = [e for n in (2, 1) for e in (began(n), rung(n, 90, 0.7), ended(n, "finished", 90))]
    assert fold(*equal).best().number == 1
    assert fold(began(0), rung(0, 30, 0.9), ended(0, "failed", 40)).best() is None
    assert fold().best() is None


def test_the_best_net_of_a_trial_counts_and_not_its_last() -> None:
    assert fold(began(0), rung(0, 30, 0.6), rung(0, 60, 0.5)).trials[0].mean_iu == 0.6


def test_a_stopped_trial_that_goes_on_keeps_its_rungs_and_is_running_again() -> None:
    search = fold(began(0), rung(0, 30, 0.4), ended(0, "stopped", 45), began(0))
    assert (search.trials[0].status, search.ended) == ("running", ())
    assert search.trials[0].rungs == {30: 0.4}
    assert search.trials[0].steps == 45


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([rung(0, 30, 0.4)], "line 2: .*trial 0 is not running"),
        ([began(0), ended(0, "finished", 9), rung(0, 30, 0.4)], "line 4: .*not running"),
        ([began(0), ended(0, "pruned", 9), began(0)], "line 4: .*trial 0 had pruned"),
        ([began(0), TrialBegun(number=0, point={LR: 1.0})], "line 3: .*another point"),
        ([BEGUN.model_copy(update={"seed": 1})], "line 2: .*another search began"),
    ],
)
def test_what_cannot_have_happened_is_damage_and_names_its_line(events, words) -> None:
    with pytest.raises(StoreError, match=words):
        fold(*events)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "holds no event"),
        (b'{"event": "sea', "holds no event"),
        (b'{"event": "rung", "number": 0, "step": 1, "mean_iu": 0.5}\n', "begins with its search"),
        (lines(BEGUN)[0] + b"\nrubbish\n" + lines(began(0))[0] + b"\n", "line 2: rubbish"),
        (lines(BEGUN)[0] + b'\n{"event":"rung","number":0,"step":1,"mean_iu":7}\n', "line 2"),
    ],
)
def test_journals_that_are_none_are_refused(tmp_path: Path, text, words) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(text)
    with pytest.raises(StoreError, match=words):
        Search.read(path)


def test_a_missing_journal_is_named(tmp_path) -> None:
    with pytest.raises(StoreError, match=r"nowhere\.jsonl: the search's journal cannot be read"):
        Search.read(tmp_path / "nowhere.jsonl")


def test_time_is_what_the_drivers_lived_not_what_lay_between() -> None:
    events = [
        SessionBegun(at=100.0),
        began(0),
        rung(0, 30, 0.5),
        SessionBegun(at=900.0),
        rung(0, 60, 0.6),
    ]
    events = [
        e.model_copy(update={"at": at})
        for e, at in zip(events, (100, 110, 160, 900, 940), strict=True)
    ]
    assert fold(*events).spent_s == 60 + 40


def test_a_clone_has_its_new_point_and_a_failure_its_reason() -> None:
    other = Cloned(number=0, step=30, source=1, point={LR: 0.25})
    failed = Failed(number=0, step=31, reason="the loss became nan", seconds=2.0)
    trial = fold(began(0), rung(0, 30, 0.1), other, failed).trials[0]
    assert (trial.point, trial.clones) == ({LR: 0.25}, {30: 1})
    assert (trial.status, trial.failure, trial.steps) == ("running", "the loss became nan", 31)
