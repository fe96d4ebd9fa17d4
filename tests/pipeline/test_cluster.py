"""One rule says what fits on the nodes of a Ray: for a run, a search, `plan` and preflight alike."""

import logging
import os
import socket
import stat
import time
from pathlib import Path

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cluster import (
    cause_in_words,
    connect,
    floods_kept,
    protect_token,
    require_fit,
    trials_that_fit,
    workers_that_fit,
)
from pipeline.config.schema import ClusterSpec
from pipeline.errors import ClusterError

GPUS = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 4.0}]

node = st.fixed_dictionaries(
    {}, optional={"CPU": st.integers(0, 64).map(float), "GPU": st.integers(0, 8).map(float)}
)
nodes_of_a_ray = st.lists(node, max_size=6)
share = st.sampled_from([0.1, 0.2, 0.25, 0.3, 1 / 3, 0.4, 0.5, 0.7, 1.0])


@st.composite
def specs(draw) -> ClusterSpec:
    cpus = draw(st.one_of(share, st.sampled_from([1.5, 2.0, 3.0, 7.0])))
    if draw(st.booleans()):
        gpus = draw(share)
        number = draw(st.integers(1, 6)) if gpus == 1 else 1
        return ClusterSpec(
            num_workers=number, cpus_per_worker=cpus, use_gpu=True, gpus_per_worker=gpus
        )
    low = draw(st.integers(1, 6))
    high = low + draw(st.integers(0, 6))
    return ClusterSpec(num_workers=(low, high), cpus_per_worker=cpus)


@given(specs(), nodes_of_a_ray)
def test_each_node_counts_by_itself_and_more_nodes_never_hold_fewer(spec, nodes) -> None:
    number = workers_that_fit(spec, nodes)
    assert number == sum(workers_that_fit(spec, [each]) for each in nodes)
    assert number == workers_that_fit(spec, nodes[::-1])
    assert workers_that_fit(spec, [*nodes, {"CPU": 4.0, "GPU": 1.0}]) >= number
    total = {kind: sum(each.get(kind, 0.0) for each in nodes) for kind in ("CPU", "GPU")}
    assert number <= workers_that_fit(spec, [total]), "a worker was split over two nodes"


@given(specs(), node)
def test_what_is_said_to_fit_does_and_one_more_would_not(spec, node) -> None:
    number, cpus, gpus = workers_that_fit(spec, [node]), node.get("CPU", 0.0), node.get("GPU", 0.0)
    used = number * spec.cpus_per_worker
    assert used <= cpus + 1e-5
    if not spec.use_gpu:
        assert used + spec.cpus_per_worker > cpus
        return
    on_one_gpu = next(n for n in range(20, 0, -1) if n * spec.gpus_per_worker <= 1 + 1e-6)
    assert number <= on_one_gpu * gpus
    assert used + spec.cpus_per_worker > cpus or number == on_one_gpu * gpus


@given(specs(), nodes_of_a_ray)
def test_a_run_is_refused_exactly_when_fewer_workers_fit_than_it_needs(spec, nodes) -> None:
    number = workers_that_fit(spec, nodes)
    if number >= spec.min_workers:
        require_fit(spec, nodes)
        return
    with pytest.raises(ClusterError) as error:
        require_fit(spec, nodes)
    assert f"needs {spec.min_workers} worker" in str(error.value)
    remedy = f"cluster.num_workers={number}" if number else "lower cluster.cpus_per_worker"
    assert remedy in str(error.value)


@given(specs(), nodes_of_a_ray, st.integers(1, 50))
def test_trials_side_by_side_hold_no_more_workers_than_fit(spec, nodes, at_most) -> None:
    number = workers_that_fit(spec, nodes)
    if number < spec.max_workers:
        with pytest.raises(ClusterError, match="a trial needs"):
            trials_that_fit(spec, nodes, at_most)
        return
    trials = trials_that_fit(spec, nodes, at_most)
    assert 1 <= trials <= at_most
    assert trials * spec.max_workers <= number
    assert trials == at_most or (trials + 1) * spec.max_workers > number


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        ({"num_workers": 1}, 20),
        ({"num_workers": 3}, 6),
        ({"num_workers": 1, "cpus_per_worker": 4}, 5),
        ({"num_workers": 1, "cpus_per_worker": 5}, 2),
        ({"num_workers": 1, "use_gpu": True}, 3),
        ({"num_workers": 2, "use_gpu": True}, 1),
        ({"num_workers": 1, "use_gpu": True, "gpus_per_worker": 0.25}, 12),
        ({"num_workers": 1, "use_gpu": True, "gpus_per_worker": 0.4}, 6),  # two share a GPU
        ({"num_workers": 1, "use_gpu": True, "gpus_per_worker": 0.1}, 16),
    ],
)
def test_trials_share_nodes_but_no_worker_does(spec, count) -> None:
    assert trials_that_fit(ClusterSpec(**spec), GPUS, at_most=100) == count
    assert trials_that_fit(ClusterSpec(**spec), GPUS, at_most=1) == 1


@pytest.mark.parametrize(
    ("spec", "nodes", "words"),
    [
        ({"cpus_per_worker": 2}, [{"CPU": 1.0}] * 2, ["0 workers of 2 CPU", "2 x 1 CPU"]),
        ({"num_workers": 3, "cpus_per_worker": 2}, [{"CPU": 2.0}], ["num_workers=1", "1 x 2 CPU"]),
        ({"use_gpu": True}, [{"CPU": 8.0}], ["1 x 8 CPU and 0 GPU", "cluster.gpus_per_worker"]),
        ({"num_workers": (2, 16)}, [{"CPU": 1.0}], ["needs 2 workers", "num_workers=1"]),
        ({}, [], ["0 workers of 1 CPU fit on 0 nodes", "cluster.autoscaling=true"]),
        ({}, [{"memory": float(n)} for n in range(9)], ["9 x 0 CPU"]),
    ],
)
def test_what_cannot_fit_is_refused_with_the_arithmetic_and_a_remedy(spec, nodes, words) -> None:
    with pytest.raises(ClusterError) as error:
        require_fit(ClusterSpec(**spec), nodes)
    for each in words:
        assert each in str(error.value)


def test_a_trial_that_cannot_fit_is_refused_with_the_option_that_mends_it() -> None:
    spec = ClusterSpec(num_workers=4, use_gpu=True, cpus_per_worker=2)
    with pytest.raises(ClusterError, match=r"a trial needs 4 workers.*fit on 3 nodes") as error:
        trials_that_fit(spec, GPUS, at_most=10)
    assert "--workers=3" in str(error.value)


@pytest.mark.timeout(30)
def test_an_address_where_nobody_listens_is_refused_in_seconds() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ClusterError, match=rf"no Ray at {address}: .*cluster\.address"):
        connect(ClusterSpec(address=address))


@pytest.mark.timeout(60)
def test_what_listens_but_is_no_ray_is_refused_in_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(ClusterError, match=rf"no Ray at {address}: .*gave no answer"):
            connect(ClusterSpec(address=address))
        assert time.monotonic() - began < 10


@pytest.mark.timeout(60)
@pytest.mark.parametrize("address", ["nonsense", "auto"])
def test_an_address_that_leads_nowhere_is_refused_in_seconds(
    address, monkeypatch, tmp_path
) -> None:
    """`auto` is what a Ray wrote down: here one that was killed, so that nobody took it away."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        stale = f"127.0.0.1:{free.getsockname()[1]}"
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(stale)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", address)
    began = time.monotonic()
    with pytest.raises(ClusterError, match=f"no Ray at {address}: .*RAY_ADDRESS"):
        connect(ClusterSpec())
    assert time.monotonic() - began < 10


def test_rays_token_is_for_this_user_alone(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path, before = tmp_path / ".ray" / "auth_token", os.umask(0)
    try:
        protect_token()
    finally:
        os.umask(before)
    token = path.read_text()
    assert len(token) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)  # as Ray itself makes it
    protect_token()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == token


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_a_token_that_the_user_names_is_left_alone(monkeypatch, tmp_path, name) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(name, "x")
    protect_token()
    assert not list(tmp_path.iterdir())


def raised(error: Exception, folder: Path) -> str:
    with pytest.raises(ClusterError) as caught, floods_kept(folder):
        raise error
    return str(caught.value)


def test_what_ray_says_at_length_is_in_a_file_and_said_in_two_lines(tmp_path) -> None:
    flood = "\n".join(["Task was killed due to the node running low on memory.", *["stack"] * 120])
    said = raised(ray.exceptions.OutOfMemoryError(flood), tmp_path / "errors")
    first, second = said.splitlines()
    for words in ("low on memory", "finetune.micro_batch", "the same command goes on"):
        assert words in first
    kept = Path(second.removeprefix("All that Ray said is in "))
    assert kept.parent == tmp_path / "errors"
    assert kept.read_text().count("stack") == 120


def test_an_error_of_ours_that_came_from_ray_keeps_its_words(tmp_path) -> None:
    error = ClusterError("the workers failed too often")
    error.__cause__ = ray.exceptions.WorkerCrashedError()
    said = raised(error, tmp_path)
    assert said.startswith("the workers failed too often\nAll that Ray said is in")
    alone = ClusterError("no Ray there")
    assert raised(alone, tmp_path) == "no Ray there"


def test_an_error_of_a_task_says_what_was_raised_there_and_nothing_of_its_stack() -> None:
    error = ray.exceptions.RayTaskError(
        "f", "Traceback\n  line 1\nValueError: 3 is odd", ValueError()
    )
    assert cause_in_words(error).startswith("ValueError: 3 is odd; the same command")


def test_an_elastic_run_starts_with_its_least_number() -> None:
    require_fit(ClusterSpec(num_workers=(2, 16)), [{"CPU": 1.0}, {"CPU": 1.0}])


def test_where_the_cluster_adds_nodes_run_and_search_wait_and_say_so(caplog) -> None:
    caplog.set_level(logging.INFO, "pipeline.cluster")
    spec = ClusterSpec(num_workers=2, autoscaling=True)
    require_fit(spec, [{"CPU": 1.0}])
    assert trials_that_fit(spec, [{"CPU": 1.0}], at_most=8) == 1
    assert caplog.text.count("waiting for nodes") == 2
    assert "1 worker of 1 CPU fits on 1 node (1 x 1 CPU)" in caplog.text


@pytest.mark.ray
def test_shares_of_gpus_fit_as_ray_itself_gives_them_out() -> None:
    """Ray starts exactly so many actors of 0.4 of a GPU; it counts GPUs that are not there."""

    class Holder:
        def ready(self) -> bool:
            return True

    ray.init(address="local", num_cpus=8, num_gpus=2, log_to_driver=False)
    try:
        spec = ClusterSpec(num_workers=1, use_gpu=True, gpus_per_worker=0.4)
        number = workers_that_fit(spec, [each["Resources"] for each in ray.nodes()])
        assert number == 4
        holder = ray.remote(Holder).options(num_cpus=1, num_gpus=0.4)
        holders = [holder.remote() for _ in range(number + 1)]
        refs = [each.ready.remote() for each in holders]
        ready, _ = ray.wait(refs, num_returns=number, timeout=120)
        assert len(ready) == number
        ready, _ = ray.wait(refs, num_returns=number + 1, timeout=3)
        assert len(ready) == number
    finally:
        ray.shutdown()
