"""Operations are carried out in order, once, whatever is away; who gives them never waits."""

import logging
import threading
import time
from collections.abc import Iterator

import pytest

from pipeline.errors import OutageError, TrackingError
from pipeline.tracking import retry_queue
from pipeline.tracking.retry_queue import Recorder


@pytest.fixture
def rec(monkeypatch) -> Iterator[Recorder]:
    monkeypatch.setattr(retry_queue, "FIRST_RETRY_S", 0.01)
    one = Recorder("MLflow at here", heartbeat=lambda: None)
    yield one
    one.close(0)


class Away:
    """Refuses until told to come back."""

    def __init__(self) -> None:
        self.back = threading.Event()
        self.attempts = 0
        self.took: list[int] = []

    def take(self, number: int) -> None:
        self.attempts += 1
        if not self.back.is_set():
            raise OutageError("MLflow at here is away (connection refused)")
        self.took.append(number)


def test_what_was_asked_during_an_outage_is_done_in_order_and_told_twice(rec, caplog) -> None:
    caplog.set_level(logging.INFO, "pipeline")
    server = Away()
    began = time.monotonic()
    for number in range(200):
        rec.do(lambda number=number: server.take(number))
    assert time.monotonic() - began < 0.2
    assert not rec.wait(0.3)
    assert server.attempts > 2
    server.back.set()
    assert rec.wait(10)
    assert server.took == list(range(200))
    assert len(caplog.messages) == 2
    assert "away (connection refused) since" in caplog.messages[0]
    assert "the flow goes on" in caplog.messages[0]
    assert "MLflow at here is back" in caplog.messages[1]


def test_an_error_that_is_no_outage_is_kept_and_ends_all_but_what_is_always_done(rec) -> None:
    done: list[str] = []

    def refuse() -> None:
        done.append("refused")
        raise TrackingError("401")

    rec.do(refuse)
    rec.do(lambda: done.append("rows"))
    rec.do(lambda: done.append("close"), always=True)
    with pytest.raises(TrackingError, match="401"):
        rec.wait(5)
    assert rec.close(5) == 0
    assert done == ["refused", "close"]
    with pytest.raises(TrackingError, match="401"):
        rec.check()


def test_the_start_does_not_wait_for_what_is_known_to_be_away(rec) -> None:
    rec.do(lambda: Away().take(1))
    began = time.monotonic()
    assert not rec.wait(20, out_of_an_outage=False)
    assert time.monotonic() - began < 5
    assert rec.away_since


def test_the_end_waits_no_longer_than_it_says_and_counts_what_is_left(rec) -> None:
    server, hung = Away(), threading.Event()
    rec.do(hung.wait)
    rec.do(lambda: server.take(1))
    began = time.monotonic()
    assert rec.close(0.3) == 2
    assert 0.3 <= time.monotonic() - began < 2
    server.back.set()
    hung.set()
    time.sleep(0.1)
    assert server.took == []  # closed is closed


def test_it_says_that_it_lives_between_operations_and_without_them(monkeypatch) -> None:
    monkeypatch.setattr(retry_queue, "HEARTBEAT_S", 0.05)
    beats: list[float] = []
    rec = Recorder("MLflow at here", heartbeat=lambda: beats.append(time.monotonic()))
    ends_at = time.monotonic() + 10
    while len(beats) < 2 and time.monotonic() < ends_at:
        time.sleep(0.01)
    idle = len(beats)
    while len(beats) < idle + 2 and time.monotonic() < ends_at:
        rec.do(lambda: None)
        time.sleep(0.01)
    rec.close(5)
    assert idle >= 2
    assert len(beats) >= idle + 2
