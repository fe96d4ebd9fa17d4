"""What a node reports of itself: the store, the inputs, versions, MLflow's server."""

import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from pipeline.ops import node_probe
from pipeline.ops.node_probe import Probe, ProbeRequest
from pipeline.storage.object_store import ObjectStore
from tests.transcript import free_ports


def test_two_nodes_with_one_store_see_each_other_and_leave_nothing(tmp_path) -> None:
    asked = ProbeRequest(tmp_path / "not" / "yet" / "store", "token", inputs=(tmp_path / "no",))
    probes = {name: Probe(name, asked) for name in ("a", "b")}
    reports = {name: probe.report() for name, probe in probes.items()}
    assert [f.unwritable for f in reports.values()] == [None, None]
    assert reports["a"].missing == (tmp_path / "no",)
    assert reports["a"].store_free_bytes > 0
    assert probes["a"].unseen(["a", "b"]) == probes["b"].unseen(["a", "b"]) == []
    made = [path for report in reports.values() for path in report.made]
    for each in probes.values():
        each.clean(made)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_ones_own_is_told_from_a_shared_one(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(node_probe, "SEEN_S", 0.1)
    mine, theirs = (Probe(name, ProbeRequest(tmp_path / name, "token")) for name in ("a", "b"))
    mine.report(), theirs.report()
    assert mine.unseen(["a", "b"]) == ["b"]
    assert theirs.unseen(["a", "b"]) == ["a"]


def test_two_nodes_with_one_bucket_see_each_other_and_leave_nothing(s3, monkeypatch) -> None:
    probes = {name: Probe(name, ProbeRequest(s3, "token")) for name in ("a", "b")}
    assert [each.report().unwritable for each in probes.values()] == [None, None]
    assert probes["a"].unseen(["a", "b"]) == probes["b"].unseen(["a", "b"]) == []
    monkeypatch.setattr(node_probe, "SEEN_S", 0.1)
    assert probes["a"].unseen(["c"]) == ["c"]
    for each in probes.values():
        each.clean(())
    assert ObjectStore(s3).names("") == []
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    assert (
        "see that the bucket is there" in Probe("a", ProbeRequest(s3, "token")).report().unwritable
    )


def test_a_store_that_cannot_be_written_says_why_and_leaves_what_was_there(tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    probe = Probe("a", ProbeRequest(tmp_path / "file" / "store", "token"))
    report = probe.report()
    assert "Not a directory" in report.unwritable
    probe.clean(report.made)
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
        node_probe.why_unreachable(f"http://127.0.0.1:{free_ports(1)[0]}/health")
        == "Connection refused"
    )


def test_versions_are_those_installed_and_the_hash_follows_the_files(tmp_path) -> None:
    here = node_probe.versions()
    assert re.match(r"3\.\d+\.\d+", here["python"])
    assert "not installed" not in (here["torch"], here["ray"], here["mlflow"])
    root = Path(node_probe.__file__).parents[2]
    for package in ("fcn", "pipeline"):
        shutil.copytree(root / package, tmp_path / package, ignore=lambda *_: ["__pycache__"])
    assert node_probe.source_hash(tmp_path) == here[node_probe.SOURCE]
    with (tmp_path / "fcn" / "losses.py").open("a") as file:
        file.write("# changed\n")
    assert node_probe.source_hash(tmp_path) != here[node_probe.SOURCE]
