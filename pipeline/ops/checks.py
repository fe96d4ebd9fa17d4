"""What the facts of a cluster mean for a run: pure rules, no Ray and no network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.markup import escape
from rich.table import Table

from pipeline.cluster import fit_in_words, fit_remedy, workers_that_fit
from pipeline.config.schema import ClusterSpec
from pipeline.ops.node_probe import SOURCE, NodeReport

Level = Literal["ok", "warning", "failure"]
STYLES: dict[Level, str] = {"ok": "green", "warning": "yellow", "failure": "bold red"}
NAMED = 3
"""If more nodes than these have one fault, the others are counted and not named."""


@dataclass(frozen=True)
class Node:
    """A node of the cluster and what it reported."""

    name: str
    resources: Mapping[str, float]
    is_driver: bool = False
    """Whether this command runs there; the driver of a run would run there too."""
    report: NodeReport | None = None
    silent: str = ""
    """Why there is no report."""
    unseen: tuple[str, ...] = ()
    """Nodes whose files in the store this node does not see."""


@dataclass(frozen=True)
class Requirements:
    """What a run needs of its cluster."""

    spec: ClusterSpec
    store: Path | str
    """The store's folder, or its URI."""
    store_bytes: int
    """Of checkpoints."""
    tmp_bytes: int
    mlflow: str | None = None
    """The address of MLflow; None is the store's own database."""
    mlflow_everywhere: bool = False
    """Whether tasks on any node speak to MLflow, not only the driver."""
    refused: str | None = None
    """Why MLflow did not do what the driver asked."""

    @property
    def remote(self) -> bool:
        """Whether the store is an object store, of which each node caches what it uses."""
        return isinstance(self.store, str)


@dataclass(frozen=True)
class Finding:
    """A line of the table."""

    check: str
    level: Level
    result: str
    meaning: str = ""


def judge(needs: Requirements, nodes: Sequence[Node]) -> list[Finding]:
    """All findings, in the order in which a user mends them."""
    checks = (fit, answers, store, inputs, disk, mlflow, versions, gpus)
    return [finding for check in checks for finding in check(needs, nodes)]


def fit(needs: Requirements, nodes: Sequence[Node]) -> Iterator[Finding]:
    """Enough workers fit on the nodes, by the rule that the run itself obeys."""
    spec, have = needs.spec, [node.resources for node in nodes]
    number, words = workers_that_fit(spec, have), fit_in_words(spec, have)
    if number >= spec.max_workers:
        yield Finding("fit", "ok", words, f"the run takes {spec.max_workers}")
    elif number >= spec.min_workers:
        later = f"the run starts with {number} and grows to {spec.max_workers} when nodes join"
        yield Finding("fit", "warning", words, later)
    elif spec.autoscaling:
        later = f"the run waits until the cluster has added nodes for {spec.min_workers}"
        yield Finding("fit", "warning", words, later)
    else:
        remedy = f"the run needs {spec.min_workers} and is refused: {fit_remedy(spec, have)}"
        yield Finding("fit", "failure", words, remedy)


def answers(needs: Requirements, nodes: Sequence[Node]) -> Iterator[Finding]:
    """Each node can run our code at all."""
    silent = [(node.name, node.silent) for node in nodes if node.report is None]
    yield from _grouped(
        *("nodes", "failure", silent),
        "its tasks would hang or fail: look at `ray status` and at its log, and see that the same "
        "environment is installed there",
    )
    if not silent:
        yield Finding("nodes", "ok", f"all {len(nodes)} answered")


def store(needs: Requirements, nodes: Sequence[Node]) -> Iterator[Finding]:
    """Every node can write the store, and it is the same store for all."""
    remedy, otherwise = (
        "give every node the address of the object store and credentials that read and write there "
        "(docs/storage.md)",
        "another object store there: see that AWS_ENDPOINT_URL is the same on every node",
    )
    if not needs.remote:
        remedy, otherwise = (
            "set store=... to a folder that every node may write",
            "each node's own folder there, so shards and checkpoints of one node would be missing on "
            "the next: set store=... to shared storage",
        )
    known = [(node, node.report) for node in nodes if node.report]
    unwritable = [(n.name, report.unwritable) for n, report in known if report.unwritable]
    lost = f"results and checkpoints could not be written to {needs.store}: {remedy}"
    yield from _grouped("store", "failure", unwritable, lost)
    apart = [(n.name, f"does not see what {_some(n.unseen)} wrote") for n, _ in known if n.unseen]
    yield from _grouped("store", "failure", apart, f"{needs.store} is {otherwise}")
    if known and not unwritable and not apart:
        seen = ", and each sees what the others wrote" if len(known) > 1 else ""
        words = f"{len(known)} node{'s' * (len(known) != 1)} wrote and read it{seen}"
        yield Finding("store", "ok", words, str(needs.store))


def inputs(needs: Requirements, nodes: Sequence[Node]) -> Iterator[Finding]:
    """What the first stages read is on every node where they may run."""
    reports = [(n.name, n.report.missing) for n in nodes if n.report]
    yield from _grouped(
        *("inputs", "failure", ((name, ", ".join(map(str, m))) for name, m in reports if m)),
        "not there, and the tasks that read it may run on any node: put it on shared storage",
    )


def disk(needs: Requirements, nodes: Sequence[Node]) -> Iterator[Finding]:
    """Each node has space for the checkpoints that are kept and for the one that is being written."""
    reports = [(node.name, node.report) for node in nodes if node.report]
    where = "the cache of the store" if needs.remote else "the store"
    in_store = [(name, r.store_free_bytes, needs.store_bytes, where) for name, r in reports]
    in_tmp = [(name, r.tmp_free_bytes, needs.tmp_bytes, "temporary files") for name, r in reports]
    short = [
        (name, f"{_gib(free)} free for {what}")
        for name, free, need, what in (*in_store, *in_tmp)
        if free < need
    ]
    wants = (
        f"checkpoints take up to {_gib(needs.store_bytes)} of {where} and {_gib(needs.tmp_bytes)} of "
        "temporary files; the data set comes on top"
    )
    remedy = "FCN_CACHE names another disk" if needs.remote else "`fcn-pipeline gc` frees some"
    yield from _grouped("disk", "failure", short, f"{wants}: {remedy}, and so does TMPDIR")
    if reports and not short:
        least_store, least_tmp = (min(row[1] for row in rows) for rows in (in_store, in_tmp))
        result = f"{_gib(least_store)} free for {where}, {_gib(least_tmp)} for temporary files"
        yield Finding("disk", "ok", result, wants)


def mlflow(needs: Requirements, nodes: Sequence[Node]) -> Iterator[Finding]:
    """MLflow answers those that speak to it: the driver, and tasks that load a registered model."""
    if needs.mlflow is None:
        yield _own_database(needs, nodes)
        return
    if not is_server(needs.mlflow):
        yield Finding("mlflow", "warning", "not asked", "only http:// and https:// can be asked")
        return
    deaf = [(n, n.report.unreachable) for n in nodes if n.report and n.report.unreachable]
    matters = {n.name: n.is_driver or needs.mlflow_everywhere for n in nodes}
    yield from _grouped(
        *("mlflow", "failure", ((n.name, why) for n, why in deaf if matters[n.name])),
        f"{needs.mlflow} must answer here: the flow would train without it, but not register; start "
        "the server, open its port or set tracking.uri",
    )
    if needs.refused and not any(matters[n.name] for n, _ in deaf):
        yield Finding("mlflow", "failure", needs.refused, "the flow would stop at its start")
    yield from _grouped(
        *("mlflow", "warning", ((n.name, why) for n, why in deaf if not matters[n.name])),
        f"{needs.mlflow} does not answer there, which matters only if a driver runs there "
        "(`ray job submit` starts it on the head)",
    )
    if not deaf and not needs.refused:
        yield Finding("mlflow", "ok", f"{needs.mlflow} answers every node and takes this user")


def is_server(uri: str | None) -> bool:
    """Whether an address of MLflow is one that any node can ask."""
    return uri is not None and uri.startswith(("http://", "https://"))


def _own_database(needs: Requirements, nodes: Sequence[Node]) -> Finding:
    words = "the store's own database, which only the driver opens"
    remedy = "set tracking.uri to a server (docs/mlflow.md)"
    if needs.remote:
        meaning = (
            "it lies in the cache of this machine, so a driver on another machine would not find "
        )
        return Finding("mlflow", "warning", words, f"{meaning}its runs and models: {remedy}")
    if len({node.report.host for node in nodes if node.report}) < 2:
        return Finding("mlflow", "ok", words)
    meaning = (
        "the locks of sqlite cannot be trusted on network folders; with drivers on several hosts"
    )
    return Finding("mlflow", "warning", words, f"{meaning} {remedy}")


def versions(needs: Requirements, nodes: Sequence[Node]) -> Iterator[Finding]:
    """What results depend on is the same on every node as on the driver's."""
    reports = [(node.name, node.report.versions) for node in nodes if node.report]
    ours = next((n.report.versions for n in nodes if n.is_driver and n.report), {})
    found: list[Finding] = []
    for package, here in ours.items():
        differ = [(name, theirs[package]) for name, theirs in reports if theirs[package] != here]
        same_release = all(public(there) == public(here) for _, there in differ)
        meaning = f"the driver's is {here}: " + (
            "another build of the same release"
            if same_release
            else "install one environment everywhere"
            + ", or send the code with the job" * (package == SOURCE)
        )
        found += _grouped(
            *("versions", "warning" if same_release else "failure"),
            [(name, f"{package} {there}") for name, there in differ],
            meaning,
        )
    yield from found
    if ours and not found:
        yield Finding("versions", "ok", ", ".join(f"{k} {v}" for k, v in ours.items()))


def public(version: str) -> str:
    """A version without the name of its build."""
    return version.partition("+")[0]


def gpus(needs: Requirements, nodes: Sequence[Node]) -> Iterator[Finding]:
    """PyTorch sees the GPUs that Ray gives out."""
    if not needs.spec.use_gpu:
        return
    counts = [(n.name, n.resources.get("GPU", 0.0), n.report.num_gpus) for n in nodes if n.report]
    blind = [
        (name, f"Ray gives out {given:g}, PyTorch sees {'none' if seen is None else seen}")
        for name, given, seen in counts
        if (seen or 0) < given
    ]
    yield from _grouped(
        *("gpus", "failure", blind),
        "workers there would fail: compare `nvidia-smi` with torch.cuda.is_available() (driver, "
        "CPU-only build of torch, container without --gpus)",
    )
    if not blind and (total := sum(given for _, given, _ in counts)):
        yield Finding("gpus", "ok", f"PyTorch sees all {total:g}")


def _grouped(
    check: str, level: Level, faults: Iterable[tuple[str, str]], meaning: str
) -> Iterator[Finding]:
    """A finding for each fault, with the nodes that have it."""
    by_text: dict[str, list[str]] = defaultdict(list)
    for name, text in faults:
        by_text[text].append(name)
    for text, names in by_text.items():
        yield Finding(check, level, f"{_some(names)}: {text}", meaning)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"


def findings_table(findings: Iterable[Finding]) -> Table:
    """The findings for the screen."""
    table = Table("check", "", "result", "what it means", box=None)
    for f in findings:
        mark = f"[{STYLES[f.level]}]{f.level}[/]"
        table.add_row(f.check, mark, escape(f.result), escape(f.meaning))
    return table
