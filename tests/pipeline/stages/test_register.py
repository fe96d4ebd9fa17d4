"""The gate: which scores make a challenger the champion."""

import math

import pytest

from pipeline.stages.register import decide


@pytest.mark.parametrize(
    ("champion", "challenger", "promote"),
    [
        (None, 0.1, True),
        (0.5, 0.5, True),
        (0.5, 0.6, True),
        (0.5, 0.4999, False),
        (None, math.nan, False),
        (0.5, math.nan, False),
    ],
)
def test_the_alias_moves_to_what_is_at_least_as_good(champion, challenger, promote) -> None:
    decision = decide(champion, challenger)
    assert decision.promote is promote
    assert decision.reason
