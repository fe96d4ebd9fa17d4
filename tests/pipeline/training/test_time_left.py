"""The time that is left counts steps and validations, each by what it took."""

import pytest

from pipeline.training.time_left import TimeLeft

STEP, VALIDATION = {"train/loss": 1.0, "perf/epoch": 0.1}, {"val/mean_iu": 0.5, "val/iu/sky": 0.1}


def run_epochs(left: TimeLeft, epochs: range, step_s: float, val_s: float, now: float) -> float:
    """Ten steps and a validation each; rows come as they are made."""
    for epoch in epochs:
        for step in range(1, 11):
            now += step_s
            left.add([(10 * epoch + step, STEP)], now)
        now += val_s
        left.add([(10 * epoch + 10, VALIDATION)], now)
    return now


def test_validations_to_come_are_part_of_it() -> None:
    left = TimeLeft(num_steps=100, num_validations=10)
    left.add([], 0.0)
    run_epochs(left, range(5), step_s=1.0, val_s=50.0, now=0.0)
    assert left.in_words() == "5 min left"  # 50 steps of 1 s and 5 validations of 50 s


def test_before_the_first_validation_it_is_said_to_be_the_least() -> None:
    left = TimeLeft(num_steps=40, num_validations=4)
    assert left.in_words() == ""
    left.add([(1, STEP)], 0.0)
    assert left.in_words() == ""
    left.add([(2, STEP), (3, STEP)], 4.0)
    assert left.in_words() == "> 74 s left"


def test_what_was_done_before_a_resume_counts_as_done_and_not_as_fast() -> None:
    left = TimeLeft(num_steps=40, num_validations=4)
    left.add([*((s, STEP) for s in range(1, 31)), *((s, VALIDATION) for s in (10, 20, 30))], 100.0)
    now = run_epochs(left, range(3, 4), step_s=2.0, val_s=7.0, now=100.0)
    assert now == 127.0
    assert left.in_words() == "0 s left"


@pytest.mark.parametrize("together", [1, 4, 10])
def test_how_rows_are_bundled_matters_little(together) -> None:
    left = TimeLeft(num_steps=100, num_validations=10)
    left.add([(0, {})], 0.0)
    now = 0.0
    for epoch in range(5):
        for start in range(0, 10, together):
            number = min(together, 10 - start)
            now += number * 1.0
            rows = [(10 * epoch + start + n, STEP) for n in range(number)]
            if start + number == 10 and epoch:
                now += 50.0
                rows.append((10 * epoch + 10, VALIDATION))
            left.add(rows, now)
    assert left.in_words() in ("5 min left", "6 min left")
