"""A live cluster is asked, in seconds, what would go wrong with a run in hours."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import cluster
from pipeline.config.recipe import Recipe
from pipeline.errors import TrackingError
from pipeline.flow import Flow
from pipeline.ops.checks import Finding, Node, Requirements, is_server, judge
from pipeline.ops.node_probe import Probe, ProbeRequest
from pipeline.ops.plan import state_bytes
from pipeline.tracking.client import greet
from pipeline.training.checkpoint import KEPT

ANSWER_S = 90.0
"""A node that takes longer to start a process and to answer would hold up every task."""
CLEAN_S = 10.0


def preflight(recipe: Recipe, timeout_s: float = ANSWER_S) -> list[Finding]:
    """All findings, in the order in which a user mends them.

    Raises:
        ClusterError: there is no Ray at the address.
    """
    cluster.join(recipe.cluster)
    flow = Flow(recipe)
    return judge(_requirements(recipe), ask(_request(flow), timeout_s))


def _request(flow: Flow) -> ProbeRequest:
    recipe, uri = flow.recipe, flow.recipe.tracking.uri
    return ProbeRequest(
        store=_store(recipe),
        token=uuid.uuid4().hex[:12],
        inputs=tuple(_inputs(flow)),
        health_url=f"{uri.rstrip('/')}/health" if uri and is_server(uri) else None,
        gpus=recipe.cluster.use_gpu,
    )


def _store(recipe: Recipe) -> Path | str:
    """The store as every node is to find it."""
    return recipe.store if isinstance(recipe.store, str) else recipe.store.absolute()


def _inputs(flow: Flow) -> Iterator[Path]:
    """The folder of the data set and the file of the weights, if a stage is still to read them."""
    to_do = {step.stage.name for step in flow.steps.values() if not flow.published(step)}
    root, section = flow.recipe.data.root, flow.recipe.transplant
    if root and "ingest" in to_do:
        yield root.absolute()
    if section and "transplant" in to_do and Path(section.weights).is_file():
        yield Path(section.weights).absolute()


def _requirements(recipe: Recipe) -> Requirements:
    largest = max(state_bytes(recipe, phase) for phase in recipe.phases)
    return Requirements(
        spec=recipe.cluster,
        store=_store(recipe),
        # those of this attempt, those that an older attempt left, and the one that is being written
        store_bytes=largest * (2 * KEPT + 1),
        tmp_bytes=largest,
        mlflow=recipe.tracking.uri,
        mlflow_everywhere=bool(
            recipe.transplant and recipe.transplant.weights.startswith("models:/")
        ),
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


def ask(request: ProbeRequest, timeout_s: float) -> list[Node]:
    """What every living node answers; the driver's node comes first."""
    here = ray.get_runtime_context().get_node_id()
    nodes = {
        node["NodeID"]: Node(
            f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})",
            node["Resources"],
            is_driver=node["NodeID"] == here,
        )
        for node in ray.nodes()
        if node["Alive"]
    }
    probes = {key: _start(key, request) for key in nodes}
    try:
        reports, silent = _gather(
            {k: probe.report.remote() for k, probe in probes.items()}, timeout_s
        )
        for key, why in silent.items():
            nodes[key] = replace(nodes[key], silent=why)
        for key, report in reports.items():
            nodes[key] = replace(nodes[key], report=report)
        wrote = [key for key, report in reports.items() if not report.unwritable]
        looking = {key: probes[key].unseen.remote(wrote) for key in wrote}
        for key, unseen in _gather(looking, timeout_s)[0].items():
            nodes[key] = replace(nodes[key], unseen=tuple(nodes[other].name for other in unseen))
        made = [path for report in reports.values() for path in report.made]
        for (
            key
        ) in reports:  # one after the other: two that remove the same folder disturb each other
            ray.wait([probes[key].clean.remote(made)], timeout=CLEAN_S)
    finally:
        for probe in probes.values():
            ray.kill(probe)
    return sorted(nodes.values(), key=lambda node: (not node.is_driver, node.name))


def _start(node: str, request: ProbeRequest) -> Any:  # noqa: ANN401 - Ray's handle of a Probe
    pinned = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(Probe).options(num_cpus=0, scheduling_strategy=pinned).remote(node, request)


def _gather(refs: Mapping[str, Any], timeout_s: float) -> tuple[dict[str, Any], dict[str, str]]:
    """Answers by node, and the reason from those nodes that gave none."""
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
