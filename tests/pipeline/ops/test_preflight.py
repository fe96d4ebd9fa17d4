"""What would fail in hours is said in seconds: the judgement, a node's answers, a real cluster."""

import re
import shutil
import socket
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.config.schema import ClusterSpec
from pipeline.ops import node_probe
from pipeline.ops.checks import Node, Requirements, Skew, judge
from pipeline.ops.node_probe import NodeReport, Probe, ProbeRequest
from pipeline.ops.preflight import measure_skew
from pipeline.storage.object_store import ObjectStore
from tests.conftest import TINY

GIB = 1 << 30
FACTS = NodeReport(
    host="a",
    versions={"python": "3.11.9", "torch": "2.15.0+cpu", node_probe.SOURCE: "aa"},
    unwritable=None,
    made=(),
    store_free_bytes=100 * GIB,
    tmp_free_bytes=100 * GIB,
    missing=(),
    unreachable=None,
    num_gpus=None,
)
DRIVER = Node("driver", cpus=2, gpus=0, drives=True, facts=FACTS, skew=Skew(0.0, 1e-3))
OTHER = replace(DRIVER, name="other", drives=False, facts=replace(FACTS, host="b"))
NEEDS = Requirements(ClusterSpec(), Path("/store"), GIB, GIB, mlflow="http://mlflow:5000")


def told(node: Node, **facts) -> Node:
    return replace(node, facts=replace(node.facts, **facts))


def found(needs: Requirements, *nodes: Node) -> dict[str, list[str]]:
    """Level and result of the findings that are not well, by check."""
    bad = {}
    for finding in judge(needs, nodes):
        if finding.level != "ok":
            assert finding.meaning, finding
            bad.setdefault(finding.check, []).append(f"{finding.level}: {finding.result}")
    return bad


def test_a_sound_cluster_has_nothing_but_good_findings() -> None:
    findings = judge(NEEDS, [DRIVER, OTHER])
    assert {f.level for f in findings} == {"ok"}
    assert [f.check for f in findings] == [
        *("room", "nodes", "store", "disk", "mlflow", "versions", "clocks")
    ]


@pytest.mark.parametrize(
    ("spec", "gpus", "level"),
    [
        ({"num_workers": 4}, 0, None),
        ({"num_workers": 5}, 0, "failure"),
        ({"num_workers": (4, 5)}, 0, "warning"),
        ({"num_workers": (5, 6)}, 0, "failure"),
        ({"num_workers": 2, "cpus_per_worker": 1.5}, 0, None),  # one on each node
        ({"num_workers": 3, "cpus_per_worker": 1.3}, 0, "failure"),  # 4 CPUs, but none is shared
        ({"num_workers": 1, "cpus_per_worker": 3}, 0, "failure"),
        ({"num_workers": 20, "cpus_per_worker": 0.2}, 0, None),
        ({"num_workers": 1, "use_gpu": True}, 0, "failure"),
        ({"num_workers": 4, "use_gpu": True}, 2, None),
        ({"num_workers": 3, "use_gpu": True}, 1, "failure"),
        ({"num_workers": 3, "use_gpu": True, "cpus_per_worker": 2}, 4, "failure"),
    ],
)
def test_workers_are_counted_node_by_node(spec, gpus, level) -> None:
    nodes = [told(replace(node, gpus=gpus), num_gpus=gpus) for node in (DRIVER, OTHER)]
    room = found(replace(NEEDS, spec=ClusterSpec(**spec)), *nodes).get("room", [])
    assert [text.partition(":")[0] for text in room] == ([level] if level else [])


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"unwritable": "Permission denied: /store"}, {"store": ["failure: other: Permission"]}),
        ({"missing": (Path("/data"),)}, {"inputs": ["failure: other: /data"]}),
        ({"store_free_bytes": GIB // 2}, {"disk": ["failure: other: 0.5 GiB free in the store"]}),
        ({"tmp_free_bytes": 0}, {"disk": ["failure: other: 0.0 GiB free for temporary files"]}),
        ({"unreachable": "Connection refused"}, {"mlflow": ["warning: other: Connection refused"]}),
        (
            {"versions": {**FACTS.versions, "torch": "2.14.0"}},
            {"versions": ["failure: other: torch 2.14.0"]},
        ),
        (
            {"versions": {**FACTS.versions, "torch": "2.15.0+cu132"}},
            {"versions": ["warning: other: torch 2.15.0+cu132"]},
        ),
        (
            {"versions": {**FACTS.versions, node_probe.SOURCE: "bb"}},
            {"versions": ["failure: other: fcn-pipeline's files bb"]},
        ),
    ],
)
def test_what_a_node_tells_is_found_and_the_node_named(facts, said) -> None:
    bad = found(NEEDS, DRIVER, told(OTHER, **facts))
    assert bad.keys() == said.keys()
    for check, texts in said.items():
        assert len(bad[check]) == len(texts)
        assert all(map(str.startswith, bad[check], texts))


def test_mlflow_must_answer_the_driver_and_all_nodes_whose_tasks_speak_to_it() -> None:
    deaf = {"unreachable": "timed out"}
    assert found(NEEDS, told(DRIVER, **deaf), OTHER) == {"mlflow": ["failure: driver: timed out"]}
    everywhere = replace(NEEDS, mlflow_everywhere=True)
    assert found(everywhere, DRIVER, told(OTHER, **deaf)) == {
        "mlflow": ["failure: other: timed out"]
    }
    refused = replace(NEEDS, refused="MLflow refused: 401")
    assert found(refused, DRIVER, OTHER) == {"mlflow": ["failure: MLflow refused: 401"]}
    database = replace(NEEDS, mlflow="postgresql://db/mlflow")
    assert found(database, DRIVER, OTHER) == {"mlflow": ["warning: not asked"]}


def test_the_stores_own_database_is_doubtful_only_on_several_hosts() -> None:
    own = replace(NEEDS, mlflow=None)
    assert found(own, DRIVER) == {}
    assert found(own, DRIVER, told(OTHER, host="a")) == {}
    assert found(own, DRIVER, OTHER)["mlflow"][0].startswith("warning: the store's own database")


@pytest.mark.parametrize(
    ("ahead_s", "uncertainty_s", "said"),
    [
        (0.9, 0.001, []),
        (-3.0, 0.001, ["warning: other: -3 s (+- 0.001)"]),
        (3.0, 2.5, []),  # may as well be half a second
        (400.0, 0.001, ["failure: other: +400 s (+- 0.001)"]),
        (-4000.0, 0.1, ["failure: other: -4e+03 s (+- 0.1)"]),
    ],
)
def test_a_clock_is_wrong_by_what_is_beyond_the_uncertainty(ahead_s, uncertainty_s, said) -> None:
    off = replace(OTHER, skew=Skew(ahead_s, uncertainty_s))
    assert found(NEEDS, DRIVER, off).get("clocks", []) == said


def test_a_node_that_does_not_answer_is_a_finding_and_hides_no_other() -> None:
    dead = replace(OTHER, facts=None, skew=None, silent="no answer in 90 s")
    bad = found(NEEDS, told(DRIVER, store_free_bytes=0), dead)
    assert bad["nodes"] == ["failure: other: no answer in 90 s"]
    assert bad["disk"] == ["failure: driver: 0.0 GiB free in the store"]


def test_folders_that_are_not_shared_and_gpus_that_torch_cannot_use_are_found() -> None:
    apart = replace(OTHER, unseen=("driver",))
    assert found(NEEDS, DRIVER, apart)["store"] == [
        "failure: other: does not see what driver wrote"
    ]
    needs = replace(NEEDS, spec=ClusterSpec(num_workers=1, use_gpu=True))
    blind = replace(told(OTHER, num_gpus=1), gpus=2)
    assert found(needs, DRIVER, blind)["gpus"] == [
        "failure: other: Ray gives out 2, PyTorch sees 1"
    ]
    assert "gpus" not in found(needs, DRIVER, told(blind, num_gpus=2))


def test_many_nodes_with_one_fault_are_one_finding() -> None:
    many = [told(replace(OTHER, name=f"n{i}"), unwritable="Read-only") for i in range(100)]
    assert found(NEEDS, DRIVER, *many)["store"] == ["failure: n0, n1, n2 and 97 more: Read-only"]


@pytest.mark.parametrize("ahead_s", [-400.0, 0.0, 7.0])
def test_skew_is_within_its_uncertainty(ahead_s) -> None:
    def theirs() -> float:
        time.sleep(0.01)
        now = time.time() + ahead_s
        time.sleep(0.02)
        return now

    skew = measure_skew(theirs)
    assert abs(skew.ahead_s - ahead_s) <= skew.uncertainty_s < 1


def test_two_nodes_with_one_store_see_each_other_and_leave_nothing(tmp_path) -> None:
    asked = ProbeRequest(tmp_path / "not" / "yet" / "store", "token", inputs=(tmp_path / "no",))
    probes = {name: Probe(name, asked) for name in ("a", "b")}
    facts = {name: probe.look() for name, probe in probes.items()}
    assert [f.unwritable for f in facts.values()] == [None, None]
    assert facts["a"].missing == (tmp_path / "no",)
    assert facts["a"].store_free_bytes > 0
    assert probes["a"].unseen(["a", "b"]) == probes["b"].unseen(["a", "b"]) == []
    for probe_ in probes.values():
        probe_.take_back()
    for probe_ in probes.values():
        probe_.tidy([path for f in facts.values() for path in f.made])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_ones_own_is_told_from_a_shared_one(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(node_probe, "SEEN_S", 0.1)
    mine, theirs = (Probe(name, ProbeRequest(tmp_path / name, "token")) for name in ("a", "b"))
    mine.look(), theirs.look()
    assert mine.unseen(["a", "b"]) == ["b"]
    assert theirs.unseen(["a", "b"]) == ["a"]


def test_two_nodes_with_one_bucket_see_each_other_and_leave_nothing(s3, monkeypatch) -> None:
    probes = {name: Probe(name, ProbeRequest(s3, "token")) for name in ("a", "b")}
    assert [probe_.look().unwritable for probe_ in probes.values()] == [None, None]
    assert probes["a"].unseen(["a", "b"]) == probes["b"].unseen(["a", "b"]) == []
    monkeypatch.setattr(node_probe, "SEEN_S", 0.1)
    assert probes["a"].unseen(["c"]) == ["c"]
    for probe_ in probes.values():
        probe_.take_back()
    for probe_ in probes.values():
        probe_.tidy(())
    assert ObjectStore(s3).names("") == []
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    assert "see that the bucket is there" in Probe("a", ProbeRequest(s3, "token")).look().unwritable


def test_an_object_store_has_remedies_of_its_own() -> None:
    bucket = replace(NEEDS, store="s3://bucket/x", mlflow=None)
    nodes = (told(DRIVER, unwritable="denied", store_free_bytes=0), replace(OTHER, unseen=("a",)))
    said = " ".join(f"{f.result} {f.meaning}" for f in judge(bucket, nodes))
    for words in (
        "credentials",
        "AWS_ENDPOINT_URL",
        "free in the mirror of the store",
        "FCN_CACHE",
    ):
        assert words in said
    assert found(bucket, DRIVER)["mlflow"][0].startswith("warning: a database in the mirror")


def test_a_store_that_cannot_be_written_says_why_and_leaves_what_was_there(tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    facts = Probe("a", ProbeRequest(tmp_path / "file" / "store", "token")).look()
    assert facts.unwritable.startswith("Not a directory")
    assert facts.made == ()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 503)
        self.end_headers()

    def log_message(self, *_) -> None:
        pass


def test_a_server_is_well_refuses_or_is_not_there() -> None:
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert node_probe.why_unreachable(f"{address}/health") is None
        assert node_probe.why_unreachable(f"{address}/ill") == "HTTP 503 Service Unavailable"
        server.shutdown()
    assert (
        node_probe.why_unreachable(f"http://127.0.0.1:{free_port()}/health") == "Connection refused"
    )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_versions_are_those_installed_and_the_hash_follows_the_files(tmp_path) -> None:
    told = node_probe.versions()
    assert re.match(r"3\.\d+\.\d+", told["python"])
    assert "not installed" not in (told["torch"], told["ray"], told["mlflow"])
    root = Path(node_probe.__file__).parents[2]
    for package in ("fcn", "pipeline"):
        shutil.copytree(root / package, tmp_path / package, ignore=lambda *_: ["__pycache__"])
    assert node_probe.source_hash(tmp_path) == told[node_probe.SOURCE]
    with (tmp_path / "fcn" / "losses.py").open("a") as file:
        file.write("# changed\n")
    assert node_probe.source_hash(tmp_path) != told[node_probe.SOURCE]


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_several_planted_faults_are_found_on_a_real_cluster_in_one_go(tmp_path) -> None:
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        nodes.add_node(num_cpus=1)
        common = [*TINY, f"cluster.address={nodes.address}"]

        def check(*values: str):
            sets = [f"--set={value}" for value in (*common, *values)]
            done = CliRunner().invoke(main, ["plan", "demo", "--cluster", *sets])
            return done, re.sub(r"\s+", " ", done.output)

        done, text = check(
            "store=/proc/store",  # where not even root may write
            f"tracking.uri=http://127.0.0.1:{free_port()}",
            "cluster.num_workers=3",
        )
        assert done.exit_code == 1, done.output
        for check_ in ("room", "store", "mlflow"):
            assert f"{check_} failure" in text
        for said in ("clocks ok", "versions ok", "nodes ok", "set cluster.num_workers=2"):
            assert said in text
        done, text = check(f"store={tmp_path}/store")
        assert done.exit_code == 0, done.output
        assert "failure" not in text
        assert "each sees what the others wrote" in text
        assert list(tmp_path.iterdir()) == []  # no trace is left
    finally:
        ray.shutdown()
        nodes.shutdown()
