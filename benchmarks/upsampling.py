"""Fixed bilinear upsampling, forward and backward: two matrix products against a transposed convolution.

    python -m benchmarks.upsampling

Both are timed in turns in one process; the fastest of some runs each, on all threads that torch has.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import torch
from torch import Tensor
from torch.nn.functional import conv_transpose2d

from fcn.upsample import Upscore, bilinear_kernel

CASES = {  # factor: (images, classes, height, width) of the map that is upsampled
    32: (8, 21, 11, 16),
    8: (4, 21, 45, 61),
}
RUNS = 7


def main() -> None:
    """Print a line for each case."""
    for factor, shape in CASES.items():
        ours = Upscore(shape[1], 2 * factor, factor, "fixed")
        kernel = bilinear_kernel(2 * factor)[None, None]

        def theirs(x: Tensor, kernel: Tensor = kernel, factor: int = factor) -> Tensor:
            up = conv_transpose2d(x.flatten(0, 1).unsqueeze(1), kernel, stride=factor)
            return up.unflatten(0, x.shape[:2]).squeeze(2)

        x = torch.rand(shape, requires_grad=True)
        times = [(_seconds(ours, x), _seconds(theirs, x)) for _ in range(RUNS)]
        mine, other = (min(column) for column in zip(*times, strict=True))
        click.echo(
            f"{factor}x of {shape}: {mine:.3f} s, {other:.3f} s: {other / mine:.1f} times as fast"
        )


def _seconds(upsample: Callable[[Tensor], Tensor], x: Tensor) -> float:
    began = time.perf_counter()
    upsample(x).sum().backward()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
