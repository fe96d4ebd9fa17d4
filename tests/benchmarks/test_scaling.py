"""The model of docs/scaling.md: its identities, and the constants that it takes from the nets."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.scaling import (
    Device,
    Fabric,
    Feed,
    Job,
    Link,
    Net,
    all_reduce_s,
    efficiency,
    exposed_s,
    net_constants,
    ring_s,
    step_s,
)

size = st.floats(1e3, 1e12)
jobs = st.builds(
    Job,
    net=st.builds(Net, size, size, size),
    device=st.builds(Device, st.floats(1e9, 1e15), st.floats(1e9, 1e13)),
    fabric=st.builds(
        Fabric,
        st.sampled_from([1, 2, 8]),
        st.builds(Link, st.floats(1e8, 1e12), st.floats(0, 1e-3)),
        st.builds(Link, st.floats(1e8, 1e12), st.floats(0, 1e-3)),
        st.booleans(),
    ),
    feed=st.builds(
        Feed,
        st.floats(1, 1e5),
        st.sampled_from([0, 1, 12]),
        st.floats(1e3, 1e7),
        st.floats(1e8, 1e12),
    ),
    images=st.sampled_from([1, 8, 64]),
    micro=st.sampled_from([1, 8]),
)
POWERS = [2**i for i in range(11)]


@given(jobs)
def test_one_device_exchanges_nothing(job) -> None:
    assert exposed_s(job, 1) == 0
    assert efficiency(job, 1) == 1


@given(jobs)
def test_n_devices_are_never_faster_than_n_times_one_and_a_step_never_gets_shorter(job) -> None:
    steps = [step_s(job, n) for n in POWERS]
    assert all(b >= a * (1 - 1e-12) for a, b in itertools.pairwise(steps))
    assert all(efficiency(job, n) <= 1 + 1e-12 for n in POWERS)


@given(jobs)
def test_no_more_is_trained_on_than_is_read_and_decoded(job) -> None:
    for n in POWERS:
        speed = n * job.images / step_s(job, n) * (1 - 1e-12)
        assert speed <= job.feed.store_bytes_per_s / job.feed.image_bytes
        assert speed <= n * job.feed.decoded_per_s * max(job.feed.cores, 1)


@given(jobs)
def test_with_links_and_a_store_without_end_n_devices_are_n_times_as_fast(job) -> None:
    free = Link(float("inf"), 0)
    fabric = job.fabric._replace(inside=free, between=free)
    ideal = job._replace(fabric=fabric, feed=job.feed._replace(store_bytes_per_s=float("inf")))
    assert all(efficiency(ideal, n) == pytest.approx(1) for n in POWERS)


def test_a_ring_sends_nearly_twice_the_gradient_however_many_share_it() -> None:
    link = Link(1e9, 0)
    assert ring_s(1e9, 2, link) == pytest.approx(1)
    assert ring_s(1e9, 1024, link) == pytest.approx(2, rel=1e-2)
    assert ring_s(0, 1024, Link(1e9, 1e-6)) == pytest.approx(2046e-6)


def test_between_nodes_each_device_carries_its_part() -> None:
    fabric = Fabric(8, inside=Link(float("inf"), 0), between=Link(1e9, 0))
    assert all_reduce_s(8e9, 8, fabric) == 0
    assert all_reduce_s(8e9, 16, fabric) == pytest.approx(ring_s(1e9, 2, Link(1e9, 0)))


def test_a_nets_constants_are_those_of_its_layers() -> None:
    """VGG16: 134 million weights; its first 3 x 3 convolution alone is 2 * 27 * 64 FLOPs a pixel."""
    vgg, resnet = net_constants("vgg16", 64), net_constants("resnet18", 64)
    assert vgg.gradient_bytes == pytest.approx(4 * 134e6, rel=0.02)
    assert resnet.gradient_bytes == pytest.approx(4 * 11.2e6, rel=0.02)
    larger = net_constants("resnet18", 128)
    # all grows with the pixels but the upsampling, whose matrix products grow a little faster
    assert larger.flops == pytest.approx(4 * resnet.flops, rel=0.01)
    assert larger.gradient_bytes == resnet.gradient_bytes
    # ResNet-18 is 1.8 GMAC at 224 px; three times that forward and backward, scores come on top
    assert resnet.flops * (224 / 64) ** 2 == pytest.approx(3 * 2 * 1.8e9, rel=0.1)
