"""Options as words: the strings of the Python interface and the enums of the C one.

A word is the C enumerator's name in lower case.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from ctypes import c_double
from enum import IntEnum
from typing import Any, Literal, NamedTuple, TypeVar

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
from .errors import BatchNormTypeError, BatchNormValueError, Status

RunningVariance = Literal["unbiased", "biased"]
OneValuePolicy = Literal["error", "use_running", "allow"]
NonfinitePolicy = Literal["report", "error"]
StatisticsUsed = Literal["batch", "running"]
ActivationName = Literal["relu", "leaky_relu"]
MaskedPolicy = Literal["zero", "pass"]

_E = TypeVar("_E", bound=IntEnum)
_Meaning = TypeVar("_Meaning")


def _words(kind: type[_E]) -> dict[str, _E]:
    return {member.name.lower(): member for member in kind}


VARIANCES = _words(Variance)
ONE_VALUES = _words(OneValue)
NONFINITES = _words(Nonfinite)
STATISTICS = _words(Statistics)
OPERATIONS = _words(Operation)
LAYOUTS = _words(Layout)
MASKED = _words(Masked)


class ActivationRow(NamedTuple):
    """An activation as C knows it."""

    kind: Activation
    parameter: str | None = None
    """The member of `bn_activation` that the activation's number goes to."""


#: No activation is None, as no residual and no mask are.
ACTIVATIONS: dict[str | None, ActivationRow] = {
    None: ActivationRow(Activation.NONE),
    "relu": ActivationRow(Activation.RELU),
    "leaky_relu": ActivationRow(Activation.LEAKY_RELU, "slope"),
}
STATISTICS_WORDS: tuple[StatisticsUsed, ...] = ("batch", "running")


def parse(words: Mapping[Any, _Meaning], name: str, word: str | None) -> _Meaning:
    """What a word stands for. Raises BatchNormValueError that lists the words there are."""
    try:
        return words[word]
    except (KeyError, TypeError):
        raise unknown(name, word, words) from None


def unknown(name: str, word: object, words: Iterable[object]) -> BatchNormValueError:
    """The exception for a word that is none of `words`."""
    known = " or ".join(repr(each) for each in words)
    return BatchNormValueError(f"{name} is {word!r}, expected {known}", Status.INVALID_OPTION)


def integer(name: str, value: int, bits: int = 64) -> int:
    """A whole number that fits the C type: ctypes cuts off the rest without a word."""
    try:
        number = operator.index(value)
    except TypeError:
        raise wrong_type(name, value, "an integer") from None
    limit = 2 ** (bits - 1)
    if not -limit <= number < limit:
        raise BatchNormValueError(
            f"{name} is {number}, expected a number from 0 to {limit - 1}", Status.INVALID_OPTION
        )
    return number


def real(name: str, value: float) -> float:
    """A number as C's double: ctypes would refuse others without their name."""
    if type(value) is float:
        return value
    try:
        return c_double(value).value
    except TypeError:
        raise wrong_type(name, value, "a number") from None
    except OverflowError:
        raise BatchNormValueError(
            f"{name} is {value}, expected a number in the range of float64"
        ) from None


def wrong_type(name: str, value: object, expected: str) -> BatchNormTypeError:
    """The exception for a value of a type that does not fit; its value is quoted if it is short."""
    text = repr(value)
    shown = f"{text} of type" if len(text) <= 40 else "of type"
    return BatchNormTypeError(f"{name} is {shown} {type(value).__name__}, expected {expected}")


def truth(name: str, value: bool) -> bool:
    """A truth value: an array in its place is a mistake."""
    if not isinstance(value, bool):
        raise wrong_type(name, value, "True or False")
    return value


def triple(name: str, values: tuple[bool, bool, bool]) -> tuple[bool, bool, bool]:
    """Three truth values."""
    try:
        one, two, three = values
    except (TypeError, ValueError) as error:
        text = f"{name} is {values!r}, expected three truth values"
        kind = BatchNormTypeError if isinstance(error, TypeError) else BatchNormValueError
        raise kind(text) from None
    return one, two, three
