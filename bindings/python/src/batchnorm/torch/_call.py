"""What the operations are called with, and what they give: a tuple each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

#: Tensors without a class of a user's.
PLAIN_TYPES = frozenset((Parameter, Tensor))
HALVES = frozenset((torch.bfloat16, torch.float16))
DTYPES = HALVES | {torch.float32, torch.float64}
#: Rows of what a training forward saves: mean, mean_rest, invstd.
SAVED = 3


def vector_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of weight, bias and running statistics inside the library."""
    return torch.float32 if dtype in HALVES else dtype


class Call(NamedTuple):
    """activation(batch_norm(input) + residual); all but the last in the training operator's order.

    Statistics are the batch's, and the running ones take them in; `frozen` is by the running ones.
    """

    input: Tensor
    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    momentum: float | None
    eps: float
    residual: Tensor | None
    activation: str | None
    negative_slope: float
    frozen: bool = False

    @classmethod
    def of_frozen(cls, args: Sequence[Any]) -> Call:
        """From the arguments of the inference operators."""
        return cls._make((*args[:5], None, None, *args[5:], True))

    def arguments(self) -> tuple[Any, ...]:
        """Those of the operator."""
        return (*self[:5], *self[7:11]) if self.frozen else self[:11]


class Wanted(NamedTuple):
    """Which gradients to compute."""

    input: bool
    weight: bool
    bias: bool
    residual: bool


class BackwardCall(NamedTuple):
    """Of a backward, in its operator's order."""

    grad_output: Tensor
    input: Tensor
    weight: Tensor | None
    saved: Tensor | None  # mean, its rest and invstd: (SAVED, C); None if the forward was frozen
    running_mean: Tensor | None
    running_var: Tensor | None
    eps: float
    output: Tensor | None  # of a forward with an activation
    activation: str | None
    negative_slope: float
    wanted: Wanted


class Gradients(NamedTuple):
    """Gradients of a loss; None where none was wanted."""

    input: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    residual: Tensor | None
