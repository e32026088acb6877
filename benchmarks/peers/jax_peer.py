"""JAX as a peer: the operation as one jitted function, with Flax's statistics (mean of squares).

JAX has no output argument; the coordinator's allocator settings keep its pages. Its threads are
the CPUs that this process may use, so they are limited before JAX is imported.
"""

from __future__ import annotations

import os

os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(os.environ["OMP_NUM_THREADS"])])

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from worker import Cell, Contender, serve  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_enable_x64", True)
EPSILON = 1e-5


def line_up(cell: Cell) -> list[Contender]:
    if not cell.plain:
        return []
    rank = len(cell.sizes)
    last = cell.layout == "nhwc"
    axes = tuple(range(rank - 1)) if last else (0, *range(2, rank))
    channels = (1,) * (rank - 1) + (-1,) if last else (1, -1) + (1,) * (rank - 2)

    def spread(values):
        return values.reshape(channels)

    def forward(x, weight, bias, mean, var):
        if not cell.fixed:
            batch = x.mean(axes)
            square = jnp.maximum((x * x).mean(axes) - batch * batch, 0)
            moving = 0.9 * mean + 0.1 * batch, 0.9 * var + 0.1 * square
            mean, var = batch, square
        invstd = jax.lax.rsqrt(var + EPSILON)
        y = (x - spread(mean)) * spread(invstd * weight) + spread(bias)
        return y if cell.fixed else (y, mean, invstd, *moving)

    def backward(x, dy, weight, mean, var):
        count = x.size // weight.size
        invstd = jax.lax.rsqrt(var + EPSILON)
        centered = x - spread(mean)
        sum_dy, sum_dyc = dy.sum(axes), (dy * centered).sum(axes)
        dx = dy
        if not cell.fixed:
            dx = dy - spread(sum_dy / count) - centered * spread(invstd * invstd * sum_dyc / count)
        return dx * spread(weight * invstd), sum_dyc * invstd, sum_dy

    def tensor(seed: int):
        values = cell.tensor(seed)
        return jnp.asarray(values.transpose(0, *range(2, rank), 1).copy() if last else values)

    weight, bias, mean, var = (
        jnp.asarray(cell.channel(name)) for name in ("weight", "bias", "mean", "var")
    )
    function = jax.jit(backward if cell.backward else forward)
    calls = []
    for index in range(cell.sets):
        x = tensor(2 * index)
        arguments = (
            (x, tensor(2 * index + 1), weight, mean, var)
            if cell.backward
            else (x, weight, bias, mean, var)
        )
        calls.append(lambda arguments=arguments: jax.block_until_ready(function(*arguments)))
    return [("JAX", calls)]


serve(f"JAX={jax.__version__}", line_up)
