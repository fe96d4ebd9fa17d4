"""What the facts of a cluster mean for a run: pure judgement, no Ray and no network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from rich.markup import escape
from rich.table import Table

from pipeline.config.schema import ClusterSpec
from pipeline.ops.node_probe import SOURCE, NodeReport
from pipeline.tracking.owner import STALE_S

Level = Literal["ok", "warning", "failure"]
STYLES: dict[Level, str] = {"ok": "green", "warning": "yellow", "failure": "bold red"}
SKEW_WARNS_S, SKEW_FAILS_S = 1.0, STALE_S / 2
"""Half of what makes a living owner look dead: the other half is left to grow into."""
NAMED = 3
"""More nodes than these are counted, not listed."""


class Skew(NamedTuple):
    """How far a node's clock is ahead of the driver's, and the half-width of that in seconds."""

    ahead_s: float
    uncertainty_s: float


@dataclass(frozen=True)
class Node:
    """A node of the cluster and what it told."""

    name: str
    cpus: float
    gpus: float
    drives: bool = False
    """Whether this command runs there: the driver of a run would too."""
    facts: NodeReport | None = None
    silent: str = ""
    """Why there are no facts."""
    unseen: tuple[str, ...] = ()
    """Nodes whose files in the store this one does not see."""
    skew: Skew | None = None


@dataclass(frozen=True)
class Requirements:
    """What a run asks of its cluster."""

    spec: ClusterSpec
    store: Path | str
    """Its folder, or its URI."""
    store_bytes: int
    tmp_bytes: int
    mlflow: str | None = None
    """Address of its server; None is the store's own database."""
    mlflow_everywhere: bool = False
    """Whether tasks on any node speak to it, not only the driver."""
    refused: str | None = None
    """What MLflow told the driver, if it did not do as it was asked."""

    @property
    def mirrored(self) -> bool:
        """Whether the store is an object store, of which each node keeps what it uses."""
        return isinstance(self.store, str)


@dataclass(frozen=True)
class Finding:
    """A line of the table."""

    check: str
    level: Level
    result: str
    meaning: str = ""


def judge(needs: Requirements, nodes: Sequence[Node]) -> list[Finding]:
    """All findings in the order in which a user mends them."""
    checks = (room, answers, store, inputs, disk, mlflow, versions, clocks, gpus)
    return [finding for check in checks for finding in check(needs, nodes)]


def room(needs: Requirements, nodes: Sequence[Node]) -> Iterator[Finding]:
    """Workers against nodes; a worker is never split over two."""
    spec = needs.spec
    each = f"{spec.cpus_per_worker:g} CPU" + (" and 1 GPU" if spec.use_gpu else "")
    fit = sum(workers_on(node, spec) for node in nodes)
    have = f"{sum(n.cpus for n in nodes):g} CPU and {sum(n.gpus for n in nodes):g} GPU"
    result = f"{fit} workers of {each} fit on {len(nodes)} nodes with {have}"
    if not fit:
        wide = max(nodes, key=lambda n: (n.gpus if spec.use_gpu else 0, n.cpus))
        yield Finding(
            *("room", "failure", result),
            f"no node holds one worker: the largest has {wide.cpus:g} CPU and {wide.gpus:g} GPU; "
            "lower cluster.cpus_per_worker" + (" or add GPU nodes" * spec.use_gpu),
        )
    elif fit < spec.min_workers:
        yield Finding(
            *("room", "failure", result),
            f"the run needs {spec.min_workers}: it would wait for ever; set "
            f"cluster.num_workers={fit}, or add nodes",
        )
    elif fit < spec.max_workers:
        yield Finding(
            *("room", "warning", result),
            f"it starts with {fit} and grows to {spec.max_workers} when nodes join",
        )
    else:
        yield Finding("room", "ok", result, f"the run takes {spec.max_workers}")


def workers_on(node: Node, spec: ClusterSpec) -> int:
    """How many workers a node has room for when nothing else runs."""
    by_cpu = int(node.cpus / spec.cpus_per_worker + 1e-9)
    return min(by_cpu, int(node.gpus)) if spec.use_gpu else by_cpu


def answers(needs: Requirements, nodes: Sequence[Node]) -> Iterator[Finding]:
    """Whether each node can run our code at all."""
    silent = [(node.name, node.silent) for node in nodes if node.facts is None]
    yield from _grouped(
        *("nodes", "failure", silent),
        "its tasks would hang or fail: look at `ray status` and at its log, and see that the same "
        "environment is installed there",
    )
    if not silent:
        yield Finding("nodes", "ok", f"all {len(nodes)} answered")


def store(needs: Requirements, nodes: Sequence[Node]) -> Iterator[Finding]:
    """Every node writes it, and all mean the same one."""
    known = [(node, node.facts) for node in nodes if node.facts]
    unwritable = [(n.name, facts.unwritable) for n, facts in known if facts.unwritable]
    yield from _grouped(
        *("store", "failure", unwritable),
        f"results and checkpoints could not be written to {needs.store}: "
        + (
            "give every node credentials that read and write there, and the way to it (docs/storage.md)"
            if needs.mirrored
            else "set store=... to a folder that every node may write"
        ),
    )
    apart = [(n.name, f"does not see what {_some(n.unseen)} wrote") for n, _ in known if n.unseen]
    yield from _grouped(
        *("store", "failure", apart),
        f"{needs.store} is "
        + (
            "another object store there: see that AWS_ENDPOINT_URL is the same on every node"
            if needs.mirrored
            else "each node's own folder there: shards and checkpoints of one node would be missing on "
            "the next; set store=... to shared storage"
        ),
    )
    if known and not unwritable and not apart:
        seen = ", each sees what the others wrote" if len(known) > 1 else ""
        yield Finding(
            "store",
            "ok",
            f"written, read and removed on {_count(len(known))}{seen}",
            str(needs.store),
        )


def inputs(needs: Requirements, nodes: Sequence[Node]) -> Iterator[Finding]:
    """What the first stages read is there wherever they may run."""
    missing = [
        (n.name, ", ".join(map(str, n.facts.missing))) for n in nodes if n.facts and n.facts.missing
    ]
    yield from _grouped(
        *("inputs", "failure", missing),
        "not there, and the tasks that read it may run on any node: put it on shared storage",
    )


def disk(needs: Requirements, nodes: Sequence[Node]) -> Iterator[Finding]:
    """Room for the checkpoints that are kept and the one under way."""
    known = [(node, node.facts) for node in nodes if node.facts]
    where = "the mirror of the store" if needs.mirrored else "the store"
    short = [
        (n.name, f"{_gib(f.store_free_bytes)} free in {where}")
        for n, f in known
        if f.store_free_bytes < needs.store_bytes
    ] + [
        (n.name, f"{_gib(f.tmp_free_bytes)} free for temporary files")
        for n, f in known
        if f.tmp_free_bytes < needs.tmp_bytes
    ]
    wants = (
        f"checkpoints take up to {_gib(needs.store_bytes)} of {where} and {_gib(needs.tmp_bytes)} of "
        "temporary files, the data set comes on top"
    )
    yield from _grouped(
        "disk",
        "failure",
        short,
        f"{wants}: free some ("
        + ("FCN_CACHE names another disk" if needs.mirrored else "`fcn-pipeline gc`")
        + "), or set TMPDIR",
    )
    if known and not short:
        least_store = min(f.store_free_bytes for _, f in known)
        least_tmp = min(f.tmp_free_bytes for _, f in known)
        result = f"{_gib(least_store)} free in {where}, {_gib(least_tmp)} for temporary files"
        yield Finding("disk", "ok", result, wants)


def mlflow(needs: Requirements, nodes: Sequence[Node]) -> Iterator[Finding]:
    """Its server answers those that speak to it: the driver, and tasks where they load a model."""
    if needs.mlflow is None:
        yield _own_database(needs, nodes)
        return
    if not is_server(needs.mlflow):
        yield Finding(*("mlflow", "warning", "not asked"), "only servers, http(s)://, can be")
        return
    deaf = [(n, n.facts.unreachable) for n in nodes if n.facts and n.facts.unreachable]
    matter = [(n.name, why) for n, why in deaf if n.drives or needs.mlflow_everywhere]
    others = [(n.name, why) for n, why in deaf if not n.drives and not needs.mlflow_everywhere]
    yield from _grouped(
        *("mlflow", "failure", matter),
        f"{needs.mlflow} must answer here: the flow would train without it, but not register; start "
        "the server, open its port or set tracking.uri",
    )
    if needs.refused and not matter:
        yield Finding("mlflow", "failure", needs.refused, "the flow would stop at its start")
    yield from _grouped(
        *("mlflow", "warning", others),
        f"{needs.mlflow} does not answer there, which matters only if a driver runs there "
        "(`ray job submit` puts it on the head)",
    )
    if not deaf and not needs.refused:
        yield Finding("mlflow", "ok", f"{needs.mlflow} answers every node and takes this user")


def is_server(uri: str | None) -> bool:
    """Whether an address of MLflow is one that any node can ask."""
    return uri is not None and uri.startswith(("http://", "https://"))


def _own_database(needs: Requirements, nodes: Sequence[Node]) -> Finding:
    if needs.mirrored:
        return Finding(
            *("mlflow", "warning", "a database in the mirror of the driver's machine"),
            "a driver on another machine would not find its runs and models: set tracking.uri to a "
            "server (docs/mlflow.md)",
        )
    hosts = {node.facts.host for node in nodes if node.facts}
    words = "the store's own database, which only the driver opens"
    if len(hosts) < 2:
        return Finding("mlflow", "ok", words)
    return Finding(
        *("mlflow", "warning", words),
        "sqlite's locks cannot be trusted on network folders: with drivers on several hosts set "
        "tracking.uri to a server (docs/mlflow.md)",
    )


def versions(needs: Requirements, nodes: Sequence[Node]) -> Iterator[Finding]:
    """What results depend on is the same everywhere; the driver's is the measure."""
    ours = next((n.facts.versions for n in nodes if n.drives and n.facts), {})
    found: list[Finding] = []
    for package, here in ours.items():
        others = [(n.name, n.facts.versions[package]) for n in nodes if n.facts]
        differ = [(name, f"{package} {there}") for name, there in others if there != here]
        built = all(public(text.split()[-1]) == public(here) for _, text in differ)
        found += _grouped(
            *("versions", "warning" if built else "failure", differ),
            f"the driver's is {here}"
            + (": another build of the same" if built else "; install one environment everywhere")
            + (", or ship the code with the job" if package == SOURCE else ""),
        )
    yield from found
    if ours and not found:
        yield Finding("versions", "ok", ", ".join(f"{k} {v}" for k, v in ours.items()))


def public(version: str) -> str:
    """A version without the name of its build."""
    return version.partition("+")[0]


def clocks(needs: Requirements, nodes: Sequence[Node]) -> Iterator[Finding]:
    """Against the driver's; what the measurement cannot tell is left in the node's favour."""
    known = [(node.name, node.skew) for node in nodes if node.skew]
    for level, low, high, meaning in (
        ("warning", SKEW_WARNS_S, SKEW_FAILS_S, "log lines of the nodes do not sort by time"),
        (
            "failure",
            SKEW_FAILS_S,
            float("inf"),
            f"a run whose owner seems silent for {STALE_S / 60:.0f} minutes is set to KILLED, and "
            "object stores refuse wrong clocks",
        ),
    ):
        off = [
            (name, f"{s.ahead_s:+.3g} s (+- {s.uncertainty_s:.1g})")
            for name, s in known
            if low <= abs(s.ahead_s) - s.uncertainty_s < high
        ]
        yield from _grouped("clocks", level, off, f"{meaning}; run NTP")  # type: ignore[arg-type]
    worst = max(known, key=lambda pair: abs(pair[1].ahead_s), default=None)
    if worst and abs(worst[1].ahead_s) - worst[1].uncertainty_s < SKEW_WARNS_S:
        skew = worst[1]
        words = (
            f"at most {abs(skew.ahead_s) * 1e3:.1f} ms apart (+- {skew.uncertainty_s * 1e3:.1f})"
        )
        yield Finding("clocks", "ok", words)


def gpus(needs: Requirements, nodes: Sequence[Node]) -> Iterator[Finding]:
    """PyTorch sees the GPUs that Ray gives out."""
    if not needs.spec.use_gpu:
        return
    known = [(n, n.facts.num_gpus) for n in nodes if n.facts and n.gpus]
    blind = [
        (n.name, f"Ray gives out {n.gpus:g}, PyTorch sees {seen if seen is not None else 'none'}")
        for n, seen in known
        if (seen or 0) < n.gpus
    ]
    yield from _grouped(
        *("gpus", "failure", blind),
        "workers there would fail: compare `nvidia-smi` with torch.cuda.is_available() (driver, "
        "CPU-only build of torch, container without --gpus)",
    )
    if known and not blind:
        yield Finding("gpus", "ok", f"PyTorch sees all {sum(n.gpus for n, _ in known):g}")


def _grouped(
    check: str, level: Level, said: Iterable[tuple[str, str]], meaning: str
) -> Iterator[Finding]:
    """A finding for each thing said, with the nodes that say it."""
    by_text: dict[str, list[str]] = defaultdict(list)
    for name, text in said:
        by_text[text].append(name)
    for text, names in by_text.items():
        yield Finding(check, level, f"{_some(names)}: {text}", meaning)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _count(number: int) -> str:
    return f"{number} node{'s' * (number != 1)}"


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"


def findings_table(findings: Iterable[Finding]) -> Table:
    """For the screen."""
    table = Table("check", "", "result", "what it means", box=None)
    for f in findings:
        mark = f"[{STYLES[f.level]}]{f.level}[/]"
        table.add_row(f.check, mark, escape(f.result), escape(f.meaning))
    return table
