"""What the C library has to know about a NumPy array: checked, without copying.

Called by: functional and modules. Invariant: an address leaves this file only for an array whose
dtype, shape, memory order and writability have been checked, because C cannot see any of them.
"""

from __future__ import annotations

import ctypes
import math
from ctypes import c_int64, c_void_p, sizeof
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._lowlevel import Dtype, Layout, bn_problem

#: A float32 or float64 array.
Array = NDArray[np.floating[Any]]
#: As a result: an array, or None where the caller asked for none. `Any` is typeshed's way to spare
#: callers who know which of the two the proof of it.
MaybeArray = Array | Any
Float64Array = NDArray[np.float64]
ChannelAxis = Literal[1, -1]

DTYPES = {np.dtype(np.float32): Dtype.FLOAT32, np.dtype(np.float64): Dtype.FLOAT64}
_FLOAT64 = np.dtype(np.float64)
_INT64 = np.dtype(np.int64)
# Plain integers: an enum member as a key of the cache below would be hashed by Python code.
_NCHW, _NHWC = int(Layout.NCHW), int(Layout.NHWC)


class Form(NamedTuple):
    """How a tensor lies in memory; all tensors of one call share it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: tuple[int, ...] | None  # transpose that makes it C-contiguous; None if it is already
    elements: int
    channels: int
    problem: bn_problem  # constant, so that threads may share it


def form_of(array: Array, name: str, channel_axis: ChannelAxis) -> Form:
    """The form of a call's first tensor. Raises TypeError or ValueError."""
    _check_array(array, name)
    dtype = array.dtype
    if dtype not in DTYPES:
        raise TypeError(
            f"{name} has dtype {_name(dtype)}, expected float32 or float64 in native byte order"
        )
    ndim = array.ndim
    if channel_axis == 1:
        own, other = _NCHW, _NHWC
        order = (0, *range(2, ndim), 1) if ndim > 2 else None
    elif channel_axis == -1:
        own, other = _NHWC, _NCHW
        order = (0, ndim - 1, *range(1, ndim - 1)) if ndim > 2 else None
    else:
        raise ValueError(f"channel_axis is {channel_axis!r}, expected 1 or -1")

    if array.flags.c_contiguous:
        return _form(array.shape, dtype, None, own, channel_axis)
    if order is not None and array.transpose(order).flags.c_contiguous:
        return _form(array.shape, dtype, order, other, channel_axis)
    raise ValueError(
        f"{name} with shape {array.shape} and strides {array.strides} is dense neither in NCHW "
        f"nor in NHWC order; pass np.ascontiguousarray({name})"
    )


@lru_cache(maxsize=512)
def _form(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    order: tuple[int, ...] | None,
    layout: int,
    channel_axis: int,
) -> Form:
    logical = shape
    if channel_axis == -1 and len(shape) > 2:
        logical = (shape[0], shape[-1], *shape[1:-1])
    sizes = (c_int64 * 5)(*logical[:5])
    problem = bn_problem(sizeof(bn_problem), DTYPES[dtype], layout, len(shape), sizes)
    channels = logical[1] if len(logical) > 1 else 0
    return Form(shape, dtype, order, math.prod(shape), channels, problem)


def destination(array: Array | None, name: str, form: Form, like: Array) -> tuple[Array, int]:
    """The caller's destination for a tensor of this form, or a new one like `like`; its address."""
    if array is None:
        array = np.empty_like(like, subok=False)
        return array, address(array)
    return array, tensor_address(array, name, form, written=True)


def tensor_address(array: Array, name: str, form: Form, *, written: bool = False) -> int:
    """The address of a tensor that must have exactly this form. Raises TypeError or ValueError."""
    _check_array(array, name)
    if array.dtype is not form.dtype and array.dtype != form.dtype:
        raise TypeError(
            f"{name} has dtype {_name(array.dtype)}, expected {form.dtype} as the input has"
        )
    if array.shape != form.shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {form.shape} as the input has")
    ordered = array if form.order is None else array.transpose(form.order)
    if not ordered.flags.c_contiguous:
        expected = (
            "C-contiguous" if form.order is None else f"C-contiguous in axis order {form.order}"
        )
        fix = "np.empty_like(input)" if written else "np.copyto(np.empty_like(input), ...)"
        raise ValueError(
            f"{name} has strides {array.strides}, expected the input's memory order ({expected}); "
            f"{fix} makes an array of that order"
        )
    if written:
        _check_writeable(array, name)
    return address(array)


def vector_address(
    array: Array | None,
    name: str,
    dtype: np.dtype[Any] = _FLOAT64,
    *,
    written: bool = False,
) -> tuple[int | None, int]:
    """Address and number of elements of a one-dimensional array; (None, 0) for None."""
    if array is None:
        return None, 0
    _check_array(array, name)
    if array.dtype is not dtype and array.dtype != dtype:
        raise TypeError(f"{name} has dtype {_name(array.dtype)}, expected {dtype}")
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}, expected one dimension, (C,)")
    if not array.flags.c_contiguous:
        raise ValueError(
            f"{name} has strides {array.strides}, expected a contiguous array; "
            f"pass np.ascontiguousarray({name})"
        )
    if written:
        _check_writeable(array, name)
    return address(array), array.size


def counter_address(array: NDArray[np.int64] | None, name: str) -> int | None:
    """The address of a counter: an int64 array of one element, written by the call."""
    if array is None:
        return None
    _check_array(array, name)
    if array.dtype != _INT64:
        raise TypeError(f"{name} has dtype {_name(array.dtype)}, expected int64")
    if array.size != 1:
        raise ValueError(f"{name} has shape {array.shape}, expected one element")
    _check_writeable(array, name)
    return address(array)


class _ArrayInterface(ctypes.Structure):
    """PyArrayInterface of NumPy's array interface protocol, up to its data pointer."""

    _fields_ = (
        ("two", ctypes.c_int),
        ("nd", ctypes.c_int),
        ("typekind", ctypes.c_char),
        ("itemsize", ctypes.c_int),
        ("flags", ctypes.c_int),
        ("shape", c_void_p),
        ("strides", c_void_p),
        ("data", c_void_p),
    )


_interface_of = ctypes.PYFUNCTYPE(
    ctypes.POINTER(_ArrayInterface), ctypes.py_object, ctypes.c_char_p
)(("PyCapsule_GetPointer", ctypes.pythonapi))


def address(array: NDArray[Any]) -> int:
    """The address of an array's first element.

    The C side of the array interface protocol, because it takes half the time of array.ctypes.data
    (0.7 against 1.4 microseconds), and a call asks for up to eight addresses.
    """
    data: int = _interface_of(array.__array_struct__, None)[0].data
    return data


def _check_array(array: Any, name: str) -> None:
    if type(array) is np.ndarray:
        return
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} is of type {type(array).__name__}, expected numpy.ndarray")
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be ignored; pass {name}.data")


def _check_writeable(array: NDArray[Any], name: str) -> None:
    if not array.flags.writeable:
        raise ValueError(f"{name} is read-only, expected a writeable array")


def _name(dtype: np.dtype[Any]) -> str:
    """'float32', or '>f4' where the name would hide the byte order."""
    return str(dtype.name if dtype.isnative else dtype.str)
