"""What a rewritten method calls: a batch norm that waits for the ReLU behind it.

A batch norm that may be fused is not computed at once; it travels as `Pending` through at most one
addition to an activation. What arrives there decides: a plain ReLU is fused, anything else gets the
sum computed as it would have been. So every condition of fusion is looked at when it counts, in
each call, and a hook or another activation that comes later needs no new conversion.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._fitness import is_like
from ._private import untouched
from .modules import BatchNorm1d, BatchNorm2d, BatchNorm3d

BATCH_NORMS: tuple[type[nn.Module], ...] = (BatchNorm1d, BatchNorm2d, BatchNorm3d)
RELUS = (F.relu, torch.relu, F.relu_, torch.relu_)
LEAKY_RELUS = (F.leaky_relu, F.leaky_relu_)
ACTIVATIONS = (nn.ReLU, nn.LeakyReLU)
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
Activation = Literal["relu", "relu_"] | Callable[..., Tensor]


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
        slope = _slope(how, args, kwargs)
        if slope is not None:
            return value.batch_norm(
                value.input,
                residual=value.residual,
                activation="leaky_relu" if slope else "relu",
                negative_slope=slope,
            )
        value = now(value)
    if isinstance(how, str):
        return value.relu() if how == "relu" else value.relu_()
    return how(value, *args, **kwargs)


def _slope(how: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:
    """The slope of values below 0 (ReLU: 0), None for what is not fused."""
    slope: Any = None
    if isinstance(how, str) or how in RELUS:
        slope = 0.0
    elif how in LEAKY_RELUS:
        slope = args[0] if args else kwargs.get("negative_slope", 0.01)
    elif type(how) is nn.ReLU and untouched(how):
        slope = 0.0
    elif type(how) is nn.LeakyReLU and untouched(how):
        slope = how.negative_slope
    # The library's limits; torch takes any slope.
    if isinstance(slope, (int, float)) and 0 <= slope < math.inf:
        return float(slope)
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
