"""PyTorch as a peer: the ATen operators, and nn.BatchNorm as programs use it.

    torch_peer.py              operators and modules
    torch_peer.py --compile    modules through torch.compile, which needs a C++ compiler

Contiguous for NCHW, channels_last for NHWC. The operators get a preallocated output where there is
a native `out=` (forward and inference); backward allocates, as PyTorch always does. What this
library fuses are operators of their own, one after the other, in place where programs do that. The
half types have float32 parameters, as under autocast.
"""

from __future__ import annotations

import os
import sys

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
    """One contender per way to call; each has a call per buffer set."""
    rank = len(cell.sizes)
    if (cell.layout == "nhwc" and rank not in CHANNELS_LAST) or cell.lengths:
        return []
    memory_format = CHANNELS_LAST[rank] if cell.layout == "nhwc" else torch.contiguous_format

    def tensor(seed: int) -> torch.Tensor:
        values = torch.from_numpy(cell.tensor(seed)).to(getattr(torch, cell.dtype))
        return values.contiguous(memory_format=memory_format)

    def channel(name: str) -> torch.Tensor:
        return torch.from_numpy(cell.channel(name))

    weight, bias, mean, var = (channel(name) for name in ("weight", "bias", "mean", "var"))
    invstd = torch.rsqrt(var + 1e-5)
    module = MODULES[rank](cell.sizes[1], dtype=weight.dtype)
    module.train(not cell.fixed)
    module.requires_grad_(cell.operation != "inference")  # nothing is kept for a backward
    run = fused(module, cell)
    if COMPILE:
        torch.compiler.reset()  # each shape its own code, as in a program that has one shape
        run = torch.compile(run)
    operators, modules = [], []
    for index in range(cell.sets):
        x = tensor(3 * index)
        residual = (tensor(3 * index + 2),) if cell.add else ()
        if cell.backward:
            dy = tensor(3 * index + 1)
            y = tensor(3 * index + 2) if cell.relu else None  # any output: where it is positive
            operators.append(backward_operator(cell, x, y, dy, weight, mean, var, invstd))
            modules.append(backward_module(run, module, x, residual, dy))
        else:
            outputs = {
                "out": torch.empty_like(x),
                "save_mean": torch.empty_like(mean),
                "save_invstd": torch.empty_like(mean),
            }
            operators.append(forward_operator(cell, x, residual, outputs, weight, bias, mean, var))
            modules.append(lambda arguments=(x, *residual): run(*arguments))
    if COMPILE:
        return [("PyTorch-compile", modules)]
    return [("PyTorch", operators), ("PyTorch-module", modules)]


def fused(module, cell):
    """The module and what follows it, as a residual block has them."""
    if not cell.add and not cell.relu:
        return module

    def run(x, *residual):
        y = module(x)
        for values in residual:
            y += values
        return torch.relu_(y) if cell.relu else y

    return run


def forward_operator(cell, x, residual, outputs, weight, bias, mean, var):
    y = outputs["out"]

    def call():
        aten.native_batch_norm.out(x, weight, bias, mean, var, not cell.fixed, 0.1, 1e-5, **outputs)
        for values in residual:
            aten.add_(y, values)
        if cell.relu:
            aten.relu_(y)

    return call


def backward_operator(cell, x, y, dy, weight, mean, var, invstd):
    """The residual's gradient is what comes out of the activation's backward: it costs nothing."""

    def call():
        gradient = aten.threshold_backward(dy, y, 0) if cell.relu else dy
        aten.native_batch_norm_backward(
            gradient, x, weight, mean, var, mean, invstd, not cell.fixed, 1e-5, [True, True, True]
        )

    return call


def backward_module(run, module, x, residual, dy):
    inputs = [tensor.requires_grad_() for tensor in (x, *residual)]
    y = run(*inputs)
    inputs += module.parameters()

    def call():
        torch.autograd.grad(y, inputs, dy, retain_graph=True)

    return call


def compile_once() -> None:
    """Ends the process, with the reason, where torch.compile does not work."""
    import torch._functorch.config
    import torch._inductor.config

    torch._inductor.config.compile_threads = 1  # no pool of processes beside what is timed
    # A compiled backward may be called again and again only if it keeps what it was given.
    torch._functorch.config.donated_buffer = False
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(64))
    except Exception as error:
        print("error torch.compile does not work here:", str(error).strip().splitlines()[0])
        raise SystemExit(2) from None


COMPILE = sys.argv[1:] == ["--compile"]
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
if COMPILE:
    compile_once()
serve(f"PyTorch={torch.__version__}", line_up)
