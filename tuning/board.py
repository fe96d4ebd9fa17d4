"""Metrics of all trials under way to the driver, and its wish to stop back to them."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.training.progress import NAMESPACE, Row


class Board:
    """What came from each trial, in its order."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, list[Row]]] = []
        self._leave = False

    def push(self, number: int, rows: list[Row]) -> bool:
        """From a trial, by its number; the answer is whether it is to save and leave."""
        self._rows.append((number, rows))
        return self._leave

    def drain(self) -> list[tuple[int, list[Row]]]:
        """To the driver: what came since the last call."""
        rows, self._rows = self._rows, []
        return rows

    def leave(self) -> None:
        """From the driver: all trials are to save and leave."""
        self._leave = True


def board_name(key: str) -> str:
    """Of the actor of a search."""
    return f"board-{key}"


def start_board(key: str) -> Any:  # noqa: ANN401 - Ray's handle of a Board
    """On the driver's node, so that the loss of another loses no rows; it dies with the driver.

    `ray.get_actor(board_name(key), namespace=NAMESPACE)` finds it.
    """
    here = ray.get_runtime_context().get_node_id()
    return (
        ray.remote(num_cpus=0)(Board)
        .options(
            name=board_name(key),
            namespace=NAMESPACE,
            enable_task_events=False,  # Ray would remember a call for each step
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
        )
        .remote()
    )
