"""What the facts of a cluster mean for a run."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.cluster import require_fit
from pipeline.config.schema import ClusterSpec
from pipeline.errors import ClusterError
from pipeline.ops.checks import Node, Requirements, judge
from pipeline.ops.node_probe import SOURCE, NodeReport

GIB = 1 << 30
REPORT = NodeReport(
    host="a",
    versions={"python": "3.11.9", "torch": "2.15.0+cpu", SOURCE: "aa"},
    unwritable=None,
    made=(),
    store_free_bytes=100 * GIB,
    tmp_free_bytes=100 * GIB,
    missing=(),
    unreachable=None,
    num_gpus=None,
)
DRIVER = Node("driver", {"CPU": 2.0}, is_driver=True, report=REPORT)
OTHER = replace(DRIVER, name="other", is_driver=False, report=replace(REPORT, host="b"))
NEEDS = Requirements(ClusterSpec(), Path("/store"), GIB, GIB, mlflow="http://mlflow:5000")


def reporting(node: Node, **facts) -> Node:
    return replace(node, report=replace(node.report, **facts))


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
    assert [f.check for f in findings] == [*("fit", "nodes", "store", "disk", "mlflow", "versions")]


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
        ({"num_workers": 1, "cpus_per_worker": 2.5}, 0, "failure"),  # 2 nodes of 2 CPUs
        ({"num_workers": 1, "use_gpu": True, "gpus_per_worker": 0.5}, 1, None),
        ({"num_workers": 1, "use_gpu": True}, 0, "failure"),
        ({"num_workers": 4, "use_gpu": True}, 2, None),
        ({"num_workers": 3, "use_gpu": True}, 1, "failure"),
        ({"num_workers": 3, "use_gpu": True, "cpus_per_worker": 2}, 4, "failure"),
    ],
)
def test_workers_are_counted_node_by_node_as_the_run_itself_counts(spec, gpus, level) -> None:
    have = {"CPU": 2.0, "GPU": float(gpus)}
    nodes = [reporting(replace(node, resources=have), num_gpus=gpus) for node in (DRIVER, OTHER)]
    fit = found(replace(NEEDS, spec=ClusterSpec(**spec)), *nodes).get("fit", [])
    assert [text.partition(":")[0] for text in fit] == ([level] if level else [])
    if level == "failure":
        with pytest.raises(ClusterError):
            require_fit(ClusterSpec(**spec), [have, have])
        waits = ClusterSpec(**spec, autoscaling=True)
        (fit,) = found(replace(NEEDS, spec=waits), *nodes)["fit"]
        assert fit.startswith("warning")
    else:
        require_fit(ClusterSpec(**spec), [have, have])


@pytest.mark.parametrize(
    ("facts", "findings"),
    [
        ({"unwritable": "Permission denied: /store"}, {"store": ["failure: other: Permission"]}),
        ({"missing": (Path("/data"),)}, {"inputs": ["failure: other: /data"]}),
        ({"store_free_bytes": GIB // 2}, {"disk": ["failure: other: 0.5 GiB free for the store"]}),
        ({"tmp_free_bytes": 0}, {"disk": ["failure: other: 0.0 GiB free for temporary files"]}),
        ({"unreachable": "Connection refused"}, {"mlflow": ["warning: other: Connection refused"]}),
        (
            {"versions": {**REPORT.versions, "torch": "2.14.0"}},
            {"versions": ["failure: other: torch 2.14.0"]},
        ),
        (
            {"versions": {**REPORT.versions, "torch": "2.15.0+cu132"}},
            {"versions": ["warning: other: torch 2.15.0+cu132"]},
        ),
        (
            {"versions": {**REPORT.versions, SOURCE: "bb"}},
            {"versions": ["failure: other: fcn-pipeline's files bb"]},
        ),
    ],
)
def test_what_a_node_reports_is_found_and_the_node_named(facts, findings) -> None:
    bad = found(NEEDS, DRIVER, reporting(OTHER, **facts))
    assert bad.keys() == findings.keys()
    for check, texts in findings.items():
        assert len(bad[check]) == len(texts)
        assert all(map(str.startswith, bad[check], texts))


def test_mlflow_must_answer_the_driver_and_all_nodes_whose_tasks_speak_to_it() -> None:
    deaf = {"unreachable": "timed out"}
    assert found(NEEDS, reporting(DRIVER, **deaf), OTHER) == {
        "mlflow": ["failure: driver: timed out"]
    }
    everywhere = replace(NEEDS, mlflow_everywhere=True)
    assert found(everywhere, DRIVER, reporting(OTHER, **deaf)) == {
        "mlflow": ["failure: other: timed out"]
    }
    refused = replace(NEEDS, refused="MLflow refused: 401")
    assert found(refused, DRIVER, OTHER) == {"mlflow": ["failure: MLflow refused: 401"]}
    database = replace(NEEDS, mlflow="postgresql://db/mlflow")
    assert found(database, DRIVER, OTHER) == {"mlflow": ["warning: not asked"]}


def test_the_stores_own_database_is_doubtful_only_on_several_hosts() -> None:
    own = replace(NEEDS, mlflow=None)
    assert found(own, DRIVER) == {}
    assert found(own, DRIVER, reporting(OTHER, host="a")) == {}
    assert found(own, DRIVER, OTHER)["mlflow"][0].startswith("warning: the store's own database")


def test_a_node_that_does_not_answer_is_a_finding_and_hides_no_other() -> None:
    dead = replace(OTHER, report=None, silent="no answer in 90 s")
    bad = found(NEEDS, reporting(DRIVER, store_free_bytes=0), dead)
    assert bad["nodes"] == ["failure: other: no answer in 90 s"]
    assert bad["disk"] == ["failure: driver: 0.0 GiB free for the store"]


def test_folders_that_are_not_shared_and_gpus_that_torch_cannot_use_are_found() -> None:
    apart = replace(OTHER, unseen=("driver",))
    assert found(NEEDS, DRIVER, apart)["store"] == [
        "failure: other: does not see what driver wrote"
    ]
    needs = replace(NEEDS, spec=ClusterSpec(num_workers=1, use_gpu=True))
    blind = replace(reporting(OTHER, num_gpus=1), resources={"CPU": 2.0, "GPU": 2.0})
    assert found(needs, DRIVER, blind)["gpus"] == [
        "failure: other: Ray gives out 2, PyTorch sees 1"
    ]
    assert "gpus" not in found(needs, DRIVER, reporting(blind, num_gpus=2))


def test_many_nodes_with_one_fault_are_one_finding() -> None:
    many = [reporting(replace(OTHER, name=f"n{i}"), unwritable="Read-only") for i in range(100)]
    assert found(NEEDS, DRIVER, *many)["store"] == ["failure: n0, n1, n2 and 97 more: Read-only"]


def test_an_object_store_has_remedies_of_its_own() -> None:
    bucket = replace(NEEDS, store="s3://bucket/x", mlflow=None)
    nodes = (
        reporting(DRIVER, unwritable="denied", store_free_bytes=0),
        replace(OTHER, unseen=("a",)),
    )
    text = " ".join(f"{f.result} {f.meaning}" for f in judge(bucket, nodes))
    for words in (
        "credentials",
        "AWS_ENDPOINT_URL",
        "free for the cache of the store",
        "FCN_CACHE",
    ):
        assert words in text
    assert found(bucket, DRIVER)["mlflow"][0].startswith("warning: the store's own database")
