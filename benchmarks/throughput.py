"""Images per second of a training on N devices, predicted from constants; pure functions.

A step computes, updates, exchanges gradients and sums, while loaders read and decode the next one:

    step = max(compute + update + exposed exchange, decode, read)

with decode added instead where the worker decodes itself. Every device holds the same number of images,
so the global batch grows with the devices (weak scaling), unless the caller shrinks `images`.
"""

from __future__ import annotations

from typing import NamedTuple

UPDATE_PASSES = 8
"""AdamW reads parameter, gradient and two moments and writes three of them; the norm reads gradients."""
BUCKET_BYTES = 25 << 20
"""The size of DDP's buckets; the last one is exchanged after the backward pass has ended."""
BACKWARD_FRAC = 2 / 3
"""The part of the compute that an exchange can hide behind."""
SUMS = 2
"""Small all-reduces of the training loop in each step: counts and the loss."""


class Net(NamedTuple):
    """What one image costs, forward and backward; traffic is of activations read and written."""

    flops: float
    traffic_bytes: float
    gradient_bytes: float


class Device(NamedTuple):
    """What a device achieves, not the peak of its data sheet."""

    flops_per_s: float
    bytes_per_s: float


class Link(NamedTuple):
    """The link of one device, in one direction."""

    bytes_per_s: float
    latency_s: float


class Fabric(NamedTuple):
    """Devices in nodes; `overlaps`: an exchange leaves the device free to compute."""

    per_node: int
    inside: Link
    between: Link
    overlaps: bool = True


class Feed(NamedTuple):
    """What a core decodes, cores of each device (0: the worker decodes), what the store gives to all."""

    decoded_per_s: float
    cores: float
    image_bytes: float
    store_bytes_per_s: float


class Job(NamedTuple):
    """What is trained on what; images in a step and in a micro-batch are those of one device."""

    net: Net
    device: Device
    fabric: Fabric
    feed: Feed
    images: int
    micro: int


class Prediction(NamedTuple):
    """A step on N devices: images of all devices, seconds, and seconds by what bounds it."""

    images: int
    step_s: float
    parts_s: dict[str, float]

    @property
    def images_per_s(self) -> float:
        """Of all devices."""
        return self.images / self.step_s

    @property
    def bound(self) -> str:
        """What to improve first."""
        return max(self.parts_s, key=lambda name: self.parts_s[name])


def ring_s(size_bytes: float, devices: float, link: Link) -> float:
    """An all-reduce by a ring: each device sends 2 (n - 1) parts of 1 / n."""
    hops = 2 * (devices - 1)
    return hops / devices * size_bytes / link.bytes_per_s + hops * link.latency_s


def all_reduce_s(size_bytes: float, devices: int, fabric: Fabric) -> float:
    """Inside the nodes, then between nodes, where each device carries its part of the sum."""
    inside = min(devices, fabric.per_node)
    within = ring_s(size_bytes, inside, fabric.inside)
    return within + ring_s(size_bytes / inside, devices / inside, fabric.between)


def exposed_s(job: Job, devices: int) -> float:
    """The part of the exchange for which devices wait."""
    sums = SUMS * all_reduce_s(8, devices, job.fabric)
    whole = all_reduce_s(job.net.gradient_bytes, devices, job.fabric)
    if not job.fabric.overlaps:
        return whole + sums
    last_bucket = min(1.0, BUCKET_BYTES / job.net.gradient_bytes)
    hidden = BACKWARD_FRAC * compute_s(job, min(job.micro, job.images))
    return max(whole * last_bucket, whole - hidden) + sums


def compute_s(job: Job, images: int) -> float:
    """Arithmetic or memory traffic, whichever takes longer."""
    net, device = job.net, job.device
    return images * max(net.flops / device.flops_per_s, net.traffic_bytes / device.bytes_per_s)


def predict(job: Job, devices: int) -> Prediction:
    """A step on that many devices."""
    feed, update = job.feed, UPDATE_PASSES * job.net.gradient_bytes / job.device.bytes_per_s
    compute, exchange = compute_s(job, job.images) + update, exposed_s(job, devices)
    decode = job.images / (feed.decoded_per_s * (feed.cores or 1))
    read = devices * job.images * feed.image_bytes / feed.store_bytes_per_s
    step = max(compute + exchange + (0 if feed.cores else decode), read, decode)
    parts = {"compute": compute, "gradients": exchange, "loader": decode, "storage": read}
    return Prediction(devices * job.images, step, parts)


def efficiency(job: Job, devices: int) -> float:
    """Throughput over that of as many single devices."""
    return predict(job, devices).images_per_s / (devices * predict(job, 1).images_per_s)
