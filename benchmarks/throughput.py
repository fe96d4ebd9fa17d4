"""Images per second of a training on N devices, predicted from constants; pure functions.

A step computes, updates, exchanges gradients and sums, while loaders read and decode the next one:

    step = max(compute + update + exposed exchange, decode, read)

with decode added instead where the worker decodes itself. Every device holds the same number of images:
the global batch grows with the devices (weak scaling), unless the caller shrinks `images`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

UPDATE_PASSES = 8
"""AdamW reads parameter, gradient and two moments and writes three of them; the norm reads gradients."""
BUCKET_BYTES = 25 << 20
"""DDP's: the last bucket is exchanged after the backward pass has ended."""
BACKWARD_FRAC = 2 / 3
"""Of the compute; what an exchange can hide behind."""
SUMS = 2
"""Small all-reduces of the loop in each step: counts and the loss."""


@dataclass(frozen=True)
class Net:
    """What one image costs, forward and backward, and how large the gradient is."""

    name: str
    flops: float
    traffic_bytes: float
    """Activations read and written."""
    gradient_bytes: float


@dataclass(frozen=True)
class Device:
    """What a device achieves, not its data sheet's peak."""

    flops_per_s: float
    bytes_per_s: float


class Link(NamedTuple):
    """Of one device, in one direction."""

    bytes_per_s: float
    latency_s: float


@dataclass(frozen=True)
class Fabric:
    """Devices in nodes."""

    per_node: int
    inside: Link
    between: Link
    overlaps: bool = True
    """Whether an exchange leaves the device free to compute."""


@dataclass(frozen=True)
class Feed:
    """Where images come from."""

    decoded_per_s: float
    """By one core."""
    cores: float
    """For each device; 0: the worker itself decodes, between its steps."""
    image_bytes: float
    store_bytes_per_s: float
    """Of the whole store, shared by all."""


@dataclass(frozen=True)
class Job:
    """What is trained on what."""

    net: Net
    device: Device
    fabric: Fabric
    feed: Feed
    images: int
    """In a step, on each device."""
    micro: int
    """In a micro-batch; gradients are exchanged during the backward pass of the last."""


@dataclass(frozen=True)
class Prediction:
    """A step on N devices, in seconds."""

    devices: int
    images: int
    compute_s: float
    exchange_s: float
    """What is not hidden behind the backward pass."""
    decode_s: float
    read_s: float
    step_s: float

    @property
    def images_per_s(self) -> float:
        """Of all devices."""
        return self.images / self.step_s

    @property
    def bound(self) -> str:
        """What to improve first."""
        parts = {
            "compute": self.compute_s,
            "gradients": self.exchange_s,
            "loader": self.decode_s,
            "storage": self.read_s,
        }
        return max(parts, key=lambda name: parts[name])


def ring_s(size_bytes: float, devices: float, link: Link) -> float:
    """An all-reduce by a ring: each device sends 2 (n - 1) parts of 1 / n."""
    hops = 2 * (devices - 1)
    return hops / devices * size_bytes / link.bytes_per_s + hops * link.latency_s


def all_reduce_s(size_bytes: float, devices: int, fabric: Fabric) -> float:
    """Inside the nodes, then between nodes, where each device carries its part of the sum."""
    inside = min(devices, fabric.per_node)
    between = devices / inside
    return ring_s(size_bytes, inside, fabric.inside) + ring_s(
        size_bytes / inside, between, fabric.between
    )


def exposed_s(job: Job, devices: int, micro_compute_s: float) -> float:
    """The part of the exchange for which devices wait."""
    sums = SUMS * all_reduce_s(8, devices, job.fabric)
    whole = all_reduce_s(job.net.gradient_bytes, devices, job.fabric)
    if not job.fabric.overlaps:
        return whole + sums
    last_bucket = min(1.0, BUCKET_BYTES / job.net.gradient_bytes)
    return max(whole * last_bucket, whole - BACKWARD_FRAC * micro_compute_s) + sums


def compute_s(net: Net, device: Device, images: int) -> float:
    """Arithmetic or memory traffic, whichever takes longer."""
    return images * max(net.flops / device.flops_per_s, net.traffic_bytes / device.bytes_per_s)


def predict(job: Job, devices: int) -> Prediction:
    """A step on that many devices."""
    net, feed = job.net, job.feed
    compute = compute_s(net, job.device, job.images)
    compute += UPDATE_PASSES * net.gradient_bytes / job.device.bytes_per_s
    micro = compute_s(net, job.device, min(job.micro, job.images))
    exchange = exposed_s(job, devices, micro)
    decode = job.images / (feed.decoded_per_s * (feed.cores or 1))
    read = devices * job.images * feed.image_bytes / feed.store_bytes_per_s
    busy = compute + exchange + (0 if feed.cores else decode)
    step = max(busy, read, decode)
    return Prediction(devices, devices * job.images, compute, exchange, decode, read, step)


def efficiency(job: Job, devices: int) -> float:
    """Throughput over that of as many single devices."""
    return predict(job, devices).images_per_s / (devices * predict(job, 1).images_per_s)


def hours(job: Job, devices: int, images: float) -> float:
    """To train on so many images."""
    return images / predict(job, devices).images_per_s / 3600


def cost(job: Job, devices: int, images: float, per_device_hour: float) -> float:
    """In the currency of the price."""
    return hours(job, devices, images) * devices * per_device_hour
