"""Options as words: the strings of the Python interface and the enums of the C one.

Called by: functional, modules and plan. A word is the C enumerator's name in lower case.
"""

from __future__ import annotations

import operator
from enum import IntEnum
from typing import Literal, TypeVar

from ._lowlevel import Layout, Nonfinite, OneValue, Operation, Statistics, Variance

RunningVariance = Literal["unbiased", "biased"]
OneValuePolicy = Literal["error", "use_running", "allow"]
NonfinitePolicy = Literal["report", "error"]
StatisticsUsed = Literal["batch", "running"]

_E = TypeVar("_E", bound=IntEnum)


def _words(kind: type[_E]) -> dict[str, _E]:
    return {member.name.lower(): member for member in kind}


VARIANCES = _words(Variance)
ONE_VALUES = _words(OneValue)
NONFINITES = _words(Nonfinite)
STATISTICS = _words(Statistics)
OPERATIONS = _words(Operation)
LAYOUTS = _words(Layout)
STATISTICS_WORDS: tuple[StatisticsUsed, ...] = ("batch", "running")


def parse(words: dict[str, _E], name: str, word: str) -> _E:
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
