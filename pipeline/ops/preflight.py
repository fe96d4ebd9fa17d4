"""A live cluster asked, in seconds, what would go wrong with a run in hours."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import cluster
from pipeline.config.recipe import Recipe
from pipeline.errors import TrackingError
from pipeline.flow import Flow
from pipeline.ops.checks import Finding, Node, Requirements, Skew, is_server, judge
from pipeline.ops.node_probe import Probe, ProbeRequest
from pipeline.ops.plan import state_bytes
from pipeline.tracking.client import greet
from pipeline.training.checkpoint import KEPT

ANSWER_S = 90.0
"""A node that takes longer to start a process and answer would hold up every task."""
CLEAN_S = 10.0
ROUND_TRIP_S, ROUND_TRIPS = 5.0, 7


def preflight(recipe: Recipe, timeout_s: float = ANSWER_S) -> list[Finding]:
    """Everything that is checked, in the order in which a user mends it.

    Raises:
        ClusterError: there is no Ray at the address.
    """
    cluster.join(recipe.cluster)
    flow = Flow(recipe)
    return judge(_needs(flow), gather(_question(flow), timeout_s))


def _question(flow: Flow) -> ProbeRequest:
    recipe = flow.recipe
    url = recipe.tracking.uri if is_server(recipe.tracking.uri) else None
    return ProbeRequest(
        store=_place(flow),
        token=uuid.uuid4().hex[:12],
        inputs=tuple(_inputs(flow)),
        url=url and f"{url.rstrip('/')}/health",
        gpus=recipe.cluster.use_gpu,
    )


def _place(flow: Flow) -> Path | str:
    """The store: a folder that is the same for all nodes, or a URI."""
    where = flow.recipe.store
    return where if isinstance(where, str) else flow.store.cache


def _inputs(flow: Flow) -> Iterator[Path]:
    """Folder of the data set and file of the weights, where they will be read."""
    to_do = {step.stage.name for step in flow.steps.values() if not flow.published(step)}
    root, surgery = flow.recipe.data.root, flow.recipe.transplant
    if root and "ingest" in to_do:
        yield root.absolute()
    if surgery and "transplant" in to_do and Path(surgery.weights).is_file():
        yield Path(surgery.weights).absolute()


def _needs(flow: Flow) -> Requirements:
    recipe = flow.recipe
    largest = max(state_bytes(recipe, phase) for phase in recipe.phases)
    surgery = recipe.transplant
    return Requirements(
        spec=recipe.cluster,
        store=_place(flow),
        store_bytes=largest * (KEPT + 1),
        tmp_bytes=largest,
        mlflow=recipe.tracking.uri,
        mlflow_everywhere=surgery is not None and surgery.weights.startswith("models:/"),
        refused=_refusal(recipe),
    )


def _refusal(recipe: Recipe) -> str | None:
    if not is_server(recipe.tracking.uri):
        return None
    try:
        greet(recipe.tracking)
    except TrackingError as error:
        return str(error)
    return None


def gather(question: ProbeRequest, timeout_s: float) -> list[Node]:
    """What every living node tells; the driver's node comes first."""
    here = ray.get_runtime_context().get_node_id()
    nodes = {node["NodeID"]: _unasked(node, here) for node in ray.nodes() if node["Alive"]}
    probes = {key: _start(key, question) for key in nodes}
    try:
        told, silent = _ask({key: probe.look.remote() for key, probe in probes.items()}, timeout_s)
        for key, why in silent.items():
            nodes[key] = replace(nodes[key], silent=why)
        for key, facts in told.items():
            nodes[key] = replace(nodes[key], facts=facts, skew=_skew(probes[key]))
        wrote = [key for key, facts in told.items() if not facts.unwritable]
        looking = {key: probes[key].unseen.remote(wrote) for key in wrote}
        for key, unseen in _ask(looking, timeout_s)[0].items():
            nodes[key] = replace(nodes[key], unseen=tuple(nodes[other].name for other in unseen))
        _clean([probes[key] for key in told], [path for f in told.values() for path in f.made])
    finally:
        for probe in probes.values():
            ray.kill(probe)
    return sorted(nodes.values(), key=lambda node: (not node.drives, node.name))


def _unasked(node: dict[str, Any], here: str) -> Node:
    key, has = node["NodeID"], node["Resources"]
    return Node(
        name=f"{node['NodeManagerAddress']} ({key[:6]})",
        cpus=has.get("CPU", 0.0),
        gpus=has.get("GPU", 0.0),
        drives=key == here,
    )


def _start(node: str, question: ProbeRequest) -> Any:  # noqa: ANN401 - Ray's handle of a Probe
    pinned = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(Probe).options(num_cpus=0, scheduling_strategy=pinned).remote(node, question)


def _ask(refs: Mapping[str, Any], timeout_s: float) -> tuple[dict[str, Any], dict[str, str]]:
    """Answers by node, and why there is none from the others."""
    ready, _ = ray.wait(list(refs.values()), num_returns=len(refs), timeout=timeout_s)
    answers: dict[str, Any] = {}
    silent: dict[str, str] = {}
    for key, ref in refs.items():
        if ref not in ready:
            silent[key] = f"no answer in {timeout_s:.0f} s"
            continue
        try:
            answers[key] = ray.get(ref)
        except ray.exceptions.RayError as error:
            silent[key] = next(line for line in reversed(str(error).splitlines()) if line.strip())
    return answers, silent


def _skew(probe: Any) -> Skew | None:  # noqa: ANN401 - Ray's handle of a Probe
    try:
        return measure_skew(lambda: float(ray.get(probe.now.remote(), timeout=ROUND_TRIP_S)))
    except (
        ray.exceptions.RayError
    ):  # it answered before: that it is gone now is told by its silence
        return None


def measure_skew(their_clock: Callable[[], float]) -> Skew:
    """Of the fastest round trip: they read their clock somewhere between its begin and its end."""
    trips = []
    for _ in range(ROUND_TRIPS):
        began = time.time()
        theirs = their_clock()
        ended = time.time()
        trips.append(Skew(theirs - (began + ended) / 2, (ended - began) / 2))
    return min(trips, key=lambda trip: trip.uncertainty_s)


def _clean(probes: Sequence[Any], made: Sequence[Path]) -> None:
    """First all files, then all folders: none is left because another node's file was still in it."""
    for refs in (
        [probe.take_back.remote() for probe in probes],
        [probe.tidy.remote(made) for probe in probes],
    ):
        ray.wait(refs, num_returns=len(refs), timeout=CLEAN_S)
