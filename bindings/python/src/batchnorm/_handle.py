"""A layer's handle of the C library, and arrays on what it owns: views, and copies that say so."""

from __future__ import annotations

import threading
from ctypes import c_void_p
from typing import Any

import numpy as np
from numpy import ndarray
from numpy.typing import NDArray

from . import _lowlevel as c
from .errors import BatchNormValueError


class Handle:
    """Owns one bn_layer: destroyed when the layer and every view on its memory are gone."""

    __slots__ = ("lock", "pointer")

    def __init__(self, pointer: c_void_p) -> None:
        self.pointer = pointer
        self.lock = threading.Lock()

    def __del__(self, _destroy: Any = c.bn_layer_destroy) -> None:
        _destroy(self.pointer)


class Borrowed:
    """Lets NumPy make an array on a handle's memory that keeps the handle alive (as its base)."""

    def __init__(self, handle: Handle, pointer: int, count: int, dtype: np.dtype[Any]) -> None:
        self.handle = handle
        self.__array_interface__ = {
            "version": 3,
            "shape": (count,),
            "typestr": dtype.str,
            "data": (pointer, False),
        }


class _Copy(np.ndarray):
    """A read-only copy of numbers that are the layer's: writing to it says what to do instead."""

    advice = ""

    def __array_finalize__(self, origin: Any) -> None:
        self.advice = getattr(origin, "advice", "")

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return array[()] if return_scalar else array.view(ndarray)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._refuse()
        super().__setitem__(index, value)

    def _refuse(self) -> None:
        if not self.flags.writeable and self.advice:
            raise BatchNormValueError(self.advice)

    def __reduce__(self) -> Any:
        return self.view(ndarray).__reduce__()

    def __repr__(self) -> str:
        return repr(self.view(ndarray))


def _in_place(name: str) -> Any:
    plain = getattr(ndarray, name)

    def method(self: _Copy, other: Any) -> Any:
        self._refuse()
        return plain(self, other)

    return method


_IN_PLACE = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift"
for _operator in _IN_PLACE.split():
    setattr(_Copy, f"__i{_operator}__", _in_place(f"__i{_operator}__"))
del _operator


ASSIGN = "{0} is a read-only copy of the layer's; assign all of it: layer.{0} = values"
SAVED = "{} is a read-only copy of what the last forward saved; work on a copy of your own"


def read_only(values: NDArray[Any], advice: str) -> NDArray[Any]:
    copy = values.view(_Copy)
    copy.advice = advice
    copy.flags.writeable = False
    return copy
