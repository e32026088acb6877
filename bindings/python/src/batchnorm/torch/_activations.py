"""The activations that a batch norm's sweep can do, and PyTorch's spellings of them: a row each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class Row(NamedTuple):
    """One activation."""

    name: str
    """The library's."""
    module: type[nn.Module]
    functions: tuple[Callable[..., Any], ...]
    """The first one is used where PyTorch has to do it."""
    methods: tuple[str, ...] = ()
    """Of a tensor, without arguments."""
    slope: str | None = None
    """The module's attribute and the functions' second argument; None for what has no slope."""
    default: float = 0.0
    """The slope where a function is given none, and of what has none."""
    blocked: Callable[[float], float] = lambda slope: slope
    """What a gradient is multiplied with where the output is not above 0."""


ROWS = (
    Row(
        "relu",
        nn.ReLU,
        (F.relu, torch.relu, F.relu_, torch.relu_),
        ("relu", "relu_"),
        blocked=lambda _: 0.0,
    ),
    Row(
        "leaky_relu",
        nn.LeakyReLU,
        (F.leaky_relu, F.leaky_relu_),
        slope="negative_slope",
        default=0.01,
    ),
)
BY_NAME = {row.name: row for row in ROWS}
MODULES = tuple(row.module for row in ROWS)
FUNCTIONS = tuple(function for row in ROWS for function in row.functions)
METHODS = tuple(method for row in ROWS for method in row.methods)


def is_slope(value: float) -> bool:
    """Whether the library takes it; PyTorch takes any."""
    return 0.0 <= value < math.inf


def row_of(how: Any) -> Row | None:
    """The row of a module, a function, or a tensor's method by its name."""
    for row in ROWS:
        if type(how) is row.module or how in (
            row.methods if isinstance(how, str) else row.functions
        ):
            return row
    return None
