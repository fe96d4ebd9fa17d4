"""Splits that are made: exact shares, whole groups, the same on every machine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.data import HeldOutSpec
from pipeline.data.sources.held_out import group_of, hold_out
from pipeline.errors import DataError

NAMES = [f"p{i // 10:02d}_{i:03d}" for i in range(100)]


@given(st.integers(0, 99), st.permutations(NAMES))
def test_shares_are_exact_and_do_not_depend_on_the_order_of_the_files(seed, names) -> None:
    spec = HeldOutSpec(val=0.2, test=0.1, seed=seed)
    splits = hold_out(names, spec)
    counts = [list(splits.values()).count(split) for split in ("train", "val", "test")]
    assert counts == [70, 20, 10]
    assert splits == hold_out(NAMES, spec)


def test_another_seed_makes_other_splits() -> None:
    made = [hold_out(NAMES, HeldOutSpec(val=0.2, seed=seed)) for seed in (0, 1)]
    assert made[0] != made[1]


@given(st.integers(0, 20))
def test_a_group_stays_together(seed) -> None:
    splits = hold_out(NAMES, HeldOutSpec(val=0.2, test=0.2, group="^p[0-9]+", seed=seed))
    for patient in range(10):
        assert len({splits[n] for n in NAMES if n.startswith(f"p{patient:02d}")}) == 1
    assert list(splits.values()).count("val") == 20


def test_the_group_is_what_the_expression_finds_or_its_first_bracket() -> None:
    assert group_of("video_12_frame", r"video_(\d+)") == "12"
    assert group_of("video_12_frame", r"video_\d+") == "video_12"
    assert group_of("photo", r"video_\d+") == "photo"


def test_one_group_cannot_be_split() -> None:
    with pytest.raises(DataError, match=r"100 samples are 1 groups.*data\.held_out\.group"):
        hold_out(NAMES, HeldOutSpec(val=0.2, group="^p"))
