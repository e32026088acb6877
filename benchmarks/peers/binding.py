"""This library through its Python binding, on tensors so small that the call is the cost.

Not a peer, but timed like one: the difference to the same call from C is what the binding takes.
"""

from __future__ import annotations

import math
import os

import batchnorm
import numpy as np
from batchnorm import functional
from worker import Cell, Contender, serve

LARGEST = 1 << 16  # elements; above it the difference drowns in the noise


def line_up(cell: Cell) -> list[Contender]:
    if math.prod(cell.sizes) > LARGEST or not cell.plain:
        return []

    def tensor(seed: int) -> np.ndarray:
        values = cell.tensor(seed)
        if cell.layout == "nchw":
            return values
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(values, 1, -1)), -1, 1)

    weight, bias, mean, var = (cell.channel(name) for name in ("weight", "bias", "mean", "var"))
    saved = {name: np.ones(cell.sizes[1]) for name in ("saved_mean", "saved_invstd")}
    running = {"running_mean": mean, "running_var": var}
    gradients = {name: np.empty_like(weight) for name in ("grad_weight", "grad_bias")}
    calls = []
    for index in range(cell.sets):
        x, y, dy = (tensor(3 * index + i) for i in range(3))

        def forward(x=x, y=y):
            functional.forward_training(x, mean, var, weight, bias, out=y, **saved)

        def inference(x=x, y=y):
            functional.forward_inference(x, mean, var, weight, bias, out=y)

        def backward(x=x, y=y, dy=dy):
            functional.backward(dy, x, weight, grad_input=y, **saved, **gradients)

        def frozen(x=x, y=y, dy=dy):
            functional.backward(
                dy, x, weight, statistics="running", grad_input=y, **running, **gradients
            )

        calls.append(
            {"forward": forward, "inference": inference, "backward": backward, "frozen": frozen}[
                cell.op
            ]
        )
    return [("batchnorm-python", calls)]


batchnorm.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
serve(f"Python={os.sys.version.split()[0]}", line_up)
