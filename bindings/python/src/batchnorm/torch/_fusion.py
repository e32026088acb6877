"""What a rewritten method calls: a batch norm that waits for the ReLU behind it.

A batch norm that may be fused is not computed at once; it travels as `Pending` through at most one
addition to an activation. What arrives there decides: a plain ReLU is fused, anything else gets the
sum computed as it would have been. So every condition of fusion is looked at when it counts, in
each call, and a hook or another activation that comes later needs no new conversion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ._activations import is_slope, row_of
from ._fitness import is_like
from ._private import untouched
from .modules import BatchNorm1d, BatchNorm2d, BatchNorm3d

BATCH_NORMS: tuple[type[nn.Module], ...] = (BatchNorm1d, BatchNorm2d, BatchNorm3d)
#: Modules whose output is memory of its own, which nobody else can write to.
MAKERS: tuple[type[nn.Module], ...] = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)

Addition = Literal["+", "+=", "add", "add_"] | Callable[..., Tensor]
Activation = str | Callable[..., Tensor]  # a tensor's method, or what is called


class Pending(NamedTuple):
    """A batch norm, and what is added to it, that wait for what follows."""

    batch_norm: nn.Module
    input: Tensor
    residual: Tensor | None = None


def later(batch_norm: Any, input: Any) -> Any:
    """`batch_norm(input)`, pending if it can be fused."""
    # fx.Proxy is no Tensor: a symbolic trace sees the modules one by one.
    if type(batch_norm) in BATCH_NORMS and isinstance(input, Tensor) and untouched(batch_norm):
        return Pending(batch_norm, input)
    return batch_norm(input)


def later_if_fresh(batch_norm: Any, input: Any, maker: Any) -> Any:
    """As `later`, of an input that `maker` made, while other modules run before the activation.

    They could write to the input in place, unless it is memory that only the batch norm knows.
    """
    if type(maker) in MAKERS and untouched(maker):
        return later(batch_norm, input)
    return batch_norm(input)


def add(how: Addition, left: Any, right: Any) -> Any:
    """`left + right` as the source wrote it (`how`), pending if one side is."""
    pending, other = (left, right) if isinstance(left, Pending) else (right, left)
    if isinstance(pending, Pending):
        input = pending.input
        if (
            pending.residual is None
            and isinstance(other, Tensor)
            and (how is torch.add or isinstance(how, str))
            and is_like(other, input)
        ):
            return Pending(pending.batch_norm, input, other)
        left, right = now(left), now(right)
    if not isinstance(how, str):
        return how(left, right)
    if how == "+":
        return left + right
    if how == "+=":
        left += right
        return left
    return left.add(right) if how == "add" else left.add_(right)


def now(value: Any) -> Any:
    """What is pending, computed without an activation; anything else as it is."""
    if not isinstance(value, Pending):
        return value
    output = value.batch_norm(value.input)
    return output if value.residual is None else output + value.residual


def activate(how: Activation, value: Any, *args: Any, **kwargs: Any) -> Any:
    """`how(value, ...)`, or `value.relu()`: with the batch norm in one sweep, if one is pending."""
    if isinstance(value, Pending):
        fused = _fused(how, args, kwargs)
        if fused is not None:
            name, slope = fused
            return value.batch_norm(
                value.input, residual=value.residual, activation=name, negative_slope=slope
            )
        value = now(value)
    if isinstance(how, str):
        return getattr(value, how)()
    return how(value, *args, **kwargs)


def _fused(how: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, float] | None:
    """The library's name and slope of an activation, None for what is not fused."""
    row = row_of(how)
    if row is None or (isinstance(how, nn.Module) and not untouched(how)):
        return None
    slope: Any = row.default
    if row.slope is not None:
        if isinstance(how, nn.Module):
            slope = getattr(how, row.slope)
        else:
            slope = args[0] if args else kwargs.get(row.slope, row.default)
    if isinstance(slope, (int, float)) and is_slope(slope):
        # A leaky ReLU of slope 0 is a ReLU.
        return row.name if slope or row.slope is None else "relu", float(slope)
    return None


def sequential_forward(self: nn.Sequential, input: Any) -> Any:
    """Run the modules one after the other, a batch norm together with the ReLU behind it."""
    value = input
    for module in self:
        if isinstance(value, Pending):
            value = activate(module, value)
        elif type(module) in BATCH_NORMS:
            value = later(module, value)
        else:
            value = module(value)
    return now(value)
