"""PyTorch as a peer: the ATen operators, and nn.BatchNorm as programs use it.

Contiguous for NCHW, channels_last for NHWC. The operators get a preallocated output where there is
a native `out=` (forward and inference); backward allocates, as PyTorch always does.
"""

from __future__ import annotations

import os

import torch
from worker import Cell, Contender, serve

aten = torch.ops.aten
MODULES = {
    2: torch.nn.BatchNorm1d,
    3: torch.nn.BatchNorm1d,
    4: torch.nn.BatchNorm2d,
    5: torch.nn.BatchNorm3d,
}
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def line_up(cell: Cell) -> list[Contender]:
    rank = len(cell.sizes)
    if cell.layout == "nhwc" and rank not in CHANNELS_LAST:
        return []
    memory_format = CHANNELS_LAST[rank] if cell.layout == "nhwc" else torch.contiguous_format

    def tensor(seed: int) -> torch.Tensor:
        return torch.from_numpy(cell.tensor(seed)).contiguous(memory_format=memory_format)

    def channel(name: str) -> torch.Tensor:
        return torch.from_numpy(cell.channel(name))

    weight, bias, mean, var = (channel(name) for name in ("weight", "bias", "mean", "var"))
    invstd = torch.rsqrt(var + 1e-5)
    module = MODULES[rank](cell.sizes[1], dtype=weight.dtype)
    module.train(not cell.fixed)
    operators, modules = [], []
    for index in range(cell.sets):
        x = tensor(2 * index)
        if cell.backward:
            dy = tensor(2 * index + 1)
            operators.append(backward_operator(cell, x, dy, weight, mean, var, invstd))
            modules.append(backward_module(module, x, dy))
        else:
            outputs = {
                "out": torch.empty_like(x),
                "save_mean": torch.empty_like(mean),
                "save_invstd": torch.empty_like(mean),
            }
            operators.append(forward_operator(cell, x, outputs, weight, bias, mean, var))
            modules.append(lambda x=x: module(x))
    return [("PyTorch", operators), ("PyTorch-module", modules)]


def forward_operator(cell, x, outputs, weight, bias, mean, var):
    def call():
        aten.native_batch_norm.out(x, weight, bias, mean, var, not cell.fixed, 0.1, 1e-5, **outputs)

    return call


def backward_operator(cell, x, dy, weight, mean, var, invstd):
    def call():
        aten.native_batch_norm_backward(
            dy, x, weight, mean, var, mean, invstd, not cell.fixed, 1e-5, [True, True, True]
        )

    return call


def backward_module(module, x, dy):
    x = x.requires_grad_()
    y = module(x)
    inputs = [x, *module.parameters()]

    def call():
        torch.autograd.grad(y, inputs, dy, retain_graph=True)

    return call


torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
serve(f"PyTorch={torch.__version__}", line_up)
