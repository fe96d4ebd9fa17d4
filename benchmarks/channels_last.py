"""Training step of FCN-8s on EfficientNet-Lite0, contiguous against channels_last, side by side.

    python benchmarks/channels_last.py

One thread, 4 images of 352 x 480 (half of the camvid recipe's global batch); the layouts take turns,
the medians and their ratio are printed.
"""

from __future__ import annotations

import statistics
import time

import torch

from fcn.losses import cross_entropy_sum
from fcn.nets import FCN, Blueprint
from fcn.normalise import set_batch_norm

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
ROUNDS = 7


def main() -> None:
    """Print a line a layout, then the ratio."""
    torch.set_num_threads(1)
    image = torch.randint(0, 256, (4, 3, 352, 480), dtype=torch.uint8)
    label = torch.randint(0, 11, (4, 352, 480))
    nets = {}
    for name, layout in LAYOUTS.items():
        net = set_batch_norm(FCN(Blueprint("efficientnet_lite0", 11, 8)), "frozen")
        nets[name] = net.to(memory_format=layout)  # type: ignore[call-overload]
    times_s: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    for turn in range(ROUNDS + 1):
        for name, layout in LAYOUTS.items():
            began = time.perf_counter()
            scores = nets[name](image.contiguous(memory_format=layout))
            (cross_entropy_sum(scores, label) / label.numel()).backward()
            if turn:  # the first warms up
                times_s[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in times_s.items()}
    for name, median_s in medians.items():
        print(f"{name:14} {median_s:.2f} s a step")  # noqa: T201
    print(f"ratio          {medians['contiguous'] / medians['channels_last']:.2f}")  # noqa: T201


if __name__ == "__main__":
    main()
