"""Options as words: the strings of the Python interface and the enums of the C one.

A word is the C enumerator's name in lower case.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, Literal, TypeVar

from ._lowlevel import (
    Activation,
    Layout,
    Masked,
    Nonfinite,
    OneValue,
    Operation,
    Statistics,
    Variance,
)

RunningVariance = Literal["unbiased", "biased"]
OneValuePolicy = Literal["error", "use_running", "allow"]
NonfinitePolicy = Literal["report", "error"]
StatisticsUsed = Literal["batch", "running"]
ActivationName = Literal["relu", "leaky_relu"]
MaskedPolicy = Literal["zero", "pass"]

_E = TypeVar("_E", bound=IntEnum)


def _words(kind: type[_E]) -> dict[str, _E]:
    return {member.name.lower(): member for member in kind}


VARIANCES = _words(Variance)
ONE_VALUES = _words(OneValue)
NONFINITES = _words(Nonfinite)
STATISTICS = _words(Statistics)
OPERATIONS = _words(Operation)
LAYOUTS = _words(Layout)
MASKED = _words(Masked)
#: No activation is None, as no residual and no mask are.
ACTIVATIONS: dict[str | None, Activation] = {
    None: Activation.NONE,
    "relu": Activation.RELU,
    "leaky_relu": Activation.LEAKY_RELU,
}
STATISTICS_WORDS: tuple[StatisticsUsed, ...] = ("batch", "running")


def parse(words: Mapping[Any, _E], name: str, word: str | None) -> _E:
    """The enumerator for a word. Raises ValueError that lists the words there are."""
    try:
        return words[word]
    except (KeyError, TypeError):
        known = " or ".join(repr(each) for each in words)
        raise ValueError(f"{name} is {word!r}, expected {known}") from None


def integer(name: str, value: int, bits: int = 64) -> int:
    """A whole number that fits the C type: ctypes cuts off the rest without a word."""
    number = operator.index(value)
    limit = 2 ** (bits - 1)
    if not -limit <= number < limit:
        raise ValueError(f"{name} is {number}, expected a number from 0 to {limit - 1}")
    return number
