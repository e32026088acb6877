"""What the C library has to know about a NumPy array: checked, without copying.

Invariant: C gets an address only of an array whose dtype, memory order and writability have been
checked here, because it cannot see any of them; how many elements there are it is told, and checks
itself. An array that is as it should be costs five comparisons; only others are looked at more
closely.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Sequence
from ctypes import POINTER, c_int64, c_uint64, sizeof
from functools import cache, lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy import ndarray
from numpy.typing import DTypeLike, NDArray

from ._lowlevel import Dtype, Layout, bn_problem
from .errors import BatchNormTypeError, BatchNormValueError, LayoutError, Status
from .memory import empty_like

#: An array of float32, float64, bfloat16 or float16. `Any`: a parameter takes arrays of other kinds
#: too, see _foreign, and results are of the kind of the first.
Array = NDArray[np.floating[Any]] | Any
#: As a result: an array, or None where the caller asked for none. `Any` is typeshed's way to spare
#: callers who know which of the two the proof of it.
MaybeArray = Array | Any
Float64Array = NDArray[np.float64] | Any
#: One bit or byte a value: `activation_mask`.
Bits = NDArray[np.uint8] | Any
#: One truth value a position: `mask`.
Mask = NDArray[np.bool_] | NDArray[np.uint8] | Any
#: One number of steps a sample: `lengths`.
Lengths = NDArray[np.integer[Any]] | Sequence[int] | Any
Counter = NDArray[np.int64] | Any
#: Of each channel's mean and of each variance: (2, C).
Counters = NDArray[np.int64] | Any
ChannelAxis = Literal[1, -1]

FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)
_DTYPES = {
    FLOAT32: Dtype.FLOAT32,
    FLOAT64: Dtype.FLOAT64,
    np.dtype(np.float16): Dtype.FLOAT16,
}
KNOWN_DTYPES = "float32, float64, bfloat16 (ml_dtypes) or float16"


def dtype_code(dtype: np.dtype[Any]) -> Dtype | None:
    """The library's number of a dtype; None if it knows none.

    bfloat16 is no dtype of NumPy's: whoever has such arrays has the package ml_dtypes, which brings
    it. It is known by its name, so that this package need not import that one.
    """
    code = _DTYPES.get(dtype)
    return Dtype.BFLOAT16 if code is None and _is_bfloat16(dtype) else code


@cache
def bfloat16() -> np.dtype[Any]:
    """The dtype of tensors of bfloat16 that other packages bring: ml_dtypes', if it is installed.

    Without it, an opaque one: NumPy cannot compute with it, but the tensors pass through.
    """
    try:
        import ml_dtypes
    except ImportError:
        return np.dtype([("bfloat16", np.uint16)])
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def named_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """numpy.dtype, which knows the name "bfloat16" only where ml_dtypes has been imported."""
    if isinstance(dtype, str) and dtype == "bfloat16":
        return bfloat16()
    try:
        return np.dtype(dtype)
    except TypeError:
        raise BatchNormTypeError(f"dtype is {dtype!r}, expected {KNOWN_DTYPES}") from None


def layer_dtype(dtype: DTypeLike) -> tuple[np.dtype[Any], Dtype]:
    """A dtype that was asked for, and the library's number of it."""
    kind = named_dtype(dtype)
    code = dtype_code(kind)
    if code is None:
        raise BatchNormTypeError(f"dtype is {kind}, expected {KNOWN_DTYPES}")
    return kind, code


def _is_bfloat16(dtype: np.dtype[Any]) -> bool:
    return dtype.name == "bfloat16" or dtype.names == ("bfloat16",)


def parameter_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of weight, bias, running statistics and their gradients for tensors of `dtype`."""
    return FLOAT64 if dtype == FLOAT64 else FLOAT32


_INT64 = np.dtype(np.int64)
_UINT8 = np.dtype(np.uint8)
_BOOL = np.dtype(np.bool_)


class Form(NamedTuple):
    """How a tensor lies in memory; all tensors of one call share it."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    parameter: np.dtype[Any]  # of weight, bias and running statistics
    order: tuple[int, ...] | None  # transpose that makes it C-contiguous; None if it is already
    elements: int
    channels: int
    problem: bn_problem  # constant, so that threads may share it


def form_of(array: Array, name: str, channel_axis: ChannelAxis) -> Form:
    """The form of a call's first tensor. Raises BatchNormError."""
    if type(array) is not ndarray:
        _check_array(array, name)
    if channel_axis != 1 and channel_axis != -1:
        raise unknown_axis(channel_axis)  # also what cannot be hashed
    return _form(array.shape, array.strides, array.dtype, channel_axis, name)


def unknown_axis(channel_axis: object) -> BatchNormValueError:
    """The exception for a `channel_axis` that is none."""
    return BatchNormValueError(
        f"channel_axis is {channel_axis!r}, expected 1 or -1", Status.INVALID_OPTION
    )


@lru_cache(512)
def _form(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: np.dtype[Any],
    channel_axis: ChannelAxis,
    name: str,
) -> Form:
    code = dtype_code(dtype)
    if code is None:
        raise BatchNormTypeError(
            f"{name} has dtype {dtype_name(dtype)}, expected {KNOWN_DTYPES} in native byte order"
        )
    ndim = len(shape)
    order: tuple[int, ...] | None
    if channel_axis == 1:
        own, other = Layout.NCHW, Layout.NHWC
        order = (0, *range(2, ndim), 1)
        logical = shape
    elif channel_axis == -1:
        own, other = Layout.NHWC, Layout.NCHW
        order = (0, ndim - 1, *range(1, ndim - 1))
        logical = (shape[0], shape[-1], *shape[1:-1]) if ndim > 2 else shape
    else:
        raise unknown_axis(channel_axis)

    if _is_dense(shape, strides, dtype.itemsize):
        layout, order = own, None
    elif ndim > 2 and _is_dense(
        [shape[axis] for axis in order], [strides[axis] for axis in order], dtype.itemsize
    ):
        layout = other
    else:
        raise LayoutError(
            f"{name} with shape {shape} and strides {strides} is dense neither in NCHW "
            f"nor in NHWC order; pass np.ascontiguousarray({name}), "
            f"{name}.contiguous() of a tensor, or allow_copy=True",
            name=name,
        )
    sizes = (c_int64 * 5)(*logical[:5])
    problem = bn_problem(sizeof(bn_problem), code, layout, ndim, sizes)
    channels = logical[1] if ndim > 1 else 0
    parameter = parameter_dtype(dtype)
    return Form(shape, strides, dtype, parameter, order, math.prod(shape), channels, problem)


def _is_dense(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> bool:
    """C-contiguous, as NumPy sees it: where there is nothing to step to, any stride will do."""
    expected = itemsize
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if stride != expected and size != 1 and 0 not in shape:
            return False
        expected *= size
    return True


def destination(array: Array | None, name: str, form: Form, like: Array) -> tuple[Array, int]:
    """The caller's destination for a tensor of this form, or a new one like `like`; its address."""
    if array is None:
        array = empty_like(like)
        return array, address(array)
    return array, tensor_address(array, name, form, written=True)


def tensor_address(array: Array, name: str, form: Form, *, written: bool = False) -> int:
    """The address of a tensor that must have exactly this form. Raises BatchNormError."""
    if (
        type(array) is ndarray
        and array.dtype is form.dtype
        and array.shape == form.shape
        and array.strides == form.strides
        and array.flags.writeable
    ):
        return address(array)
    _check_array(array, name)
    if array.dtype != form.dtype:
        raise BatchNormTypeError(
            f"{name} has dtype {dtype_name(array.dtype)}, "
            f"expected {dtype_name(form.dtype)} as the input has"
        )
    if array.shape != form.shape:
        raise _wrong_shape(
            f"{name} has shape {array.shape}, expected {form.shape} as the input has"
        )
    ordered = array if form.order is None else array.transpose(form.order)
    if not ordered.flags.c_contiguous:
        expected = (
            "C-contiguous" if form.order is None else f"C-contiguous in axis order {form.order}"
        )
        text = f"{name} has strides {array.strides}, expected the input's memory order ({expected})"
        if written:
            text = f"{text}; np.empty_like(input) makes an array of that order"
            raise LayoutError(text, name=name, destination=True)
        raise LayoutError(
            f"{text}; np.copyto(np.empty_like(input), {name}) makes an array of that order, "
            "or pass allow_copy=True",
            name=name,
            order=form.order,
        )
    if written:
        _check_writeable(array, name)
    return address(array)


def vector_address(
    array: Array | None, name: str, dtype: np.dtype[Any], *, written: bool = False
) -> tuple[int | None, int]:
    """Address and number of elements of a one-dimensional array; (None, 0) for None."""
    if type(array) is ndarray and array.dtype is dtype and array.ndim == 1 and array.flags.carray:
        return address(array), array.size  # carray: contiguous, aligned and writeable
    if array is None:
        return None, 0
    _check_array(array, name)
    if array.dtype != dtype:
        raise BatchNormTypeError(f"{name} has dtype {dtype_name(array.dtype)}, expected {dtype}")
    if array.ndim != 1:
        raise _wrong_shape(f"{name} has shape {array.shape}, expected one dimension, (C,)")
    if not array.flags.c_contiguous:
        text = f"{name} has strides {array.strides}, expected a contiguous array"
        if written:
            raise LayoutError(text, name=name, destination=True)
        raise LayoutError(f"{text}; pass np.ascontiguousarray({name})", name=name)
    if written:
        _check_writeable(array, name)
    return address(array), array.size


def folded_dtype(array: Array, name: str) -> np.dtype[Any]:
    """The dtype of a weight to be folded into. Raises BatchNormTypeError if it is another."""
    _check_array(array, name)
    dtype: np.dtype[Any] = array.dtype
    if dtype not in (FLOAT32, FLOAT64):
        raise BatchNormTypeError(
            f"{name} has dtype {dtype_name(dtype)}, expected float32 or float64 in native byte "
            "order"
        )
    return dtype


def written_address(
    array: NDArray[Any], name: str, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> tuple[int, int]:
    """Address and number of elements of a C-contiguous destination of this shape."""
    return _dense_address(array, name, shape, dtype, written=True)


def bits_address(bits: Bits, name: str, form: Form, *, written: bool = False) -> tuple[int, int]:
    """Address and bytes of an activation mask for a tensor of this form: a bit a value."""
    return _dense_address(bits, name, bits_shape(form), _UINT8, written=written)


def bits_shape(form: Form) -> tuple[int]:
    """The shape of an activation mask: eight values a byte, the last one filled up."""
    return ((form.elements + 7) // 8,)


def mask_address(mask: Mask, form: Form, channel_axis: ChannelAxis) -> tuple[int, int]:
    """Address and number of positions of a mask: the tensor's shape without its channels."""
    shape = form.shape
    positions = shape[:-1] if channel_axis == -1 else shape[:1] + shape[2:]
    return _dense_address(mask, "mask", positions, _BOOL, _UINT8)


def lengths_array(lengths: Lengths, form: Form) -> NDArray[np.int64]:
    """A batch's lengths, (N,), as C wants them; a new array if they are not so already.

    They are few, so that any integers will do. The caller keeps the array until C has read it.
    """
    if isinstance(lengths, ndarray):
        _check_array(lengths, "lengths")
    try:
        array = np.asarray(lengths)
    except ValueError:  # sequences of several lengths
        raise BatchNormTypeError("lengths is nested, expected one integer a sample") from None
    if array.dtype.kind not in "iu" and (array.size or isinstance(lengths, ndarray)):
        raise BatchNormTypeError(f"lengths has dtype {dtype_name(array.dtype)}, expected integers")
    if array.shape != form.shape[:1]:
        raise _wrong_shape(f"lengths has shape {array.shape}, expected {form.shape[:1]}")
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise BatchNormValueError(
            f"lengths has {array.max()}, expected no more than the number of steps"
        )
    return np.ascontiguousarray(array, _INT64)


def _dense_address(
    array: NDArray[Any],
    name: str,
    shape: tuple[int, ...],
    *dtypes: np.dtype[Any],
    written: bool = False,
) -> tuple[int, int]:
    """Address and count of a C-contiguous array of this shape and any of the dtypes."""
    _check_array(array, name)
    if array.dtype not in dtypes:
        expected = " or ".join(str(dtype) for dtype in dtypes)
        raise BatchNormTypeError(f"{name} has dtype {dtype_name(array.dtype)}, expected {expected}")
    if array.shape != shape:
        raise _wrong_shape(f"{name} has shape {array.shape}, expected {shape}")
    if not array.flags.c_contiguous:
        text = f"{name} has strides {array.strides}, expected a C-contiguous array"
        raise LayoutError(text, name=name, destination=written)
    if written:
        _check_writeable(array, name)
    return address(array), array.size


def counter_address(array: NDArray[np.int64], name: str) -> int:
    """The address of a counter: an int64 array of one element, written by the call."""
    _check_array(array, name)
    if array.dtype != _INT64:
        raise BatchNormTypeError(f"{name} has dtype {dtype_name(array.dtype)}, expected int64")
    if array.size != 1:
        raise _wrong_shape(f"{name} has shape {array.shape}, expected one element")
    _check_writeable(array, name)
    return address(array)


def counters_address(array: NDArray[np.int64], name: str, channels: int) -> tuple[int, int]:
    """Address and number of elements of counters, (2, C) and int64, written by the call."""
    _check_array(array, name)
    if array.dtype != _INT64:
        raise BatchNormTypeError(f"{name} has dtype {dtype_name(array.dtype)}, expected int64")
    if array.shape != (2, channels):
        raise _wrong_shape(f"{name} has shape {array.shape}, expected {(2, channels)}")
    if not array.flags.c_contiguous:
        text = f"{name} has strides {array.strides}, expected a contiguous array"
        raise LayoutError(text, name=name, destination=True)
    _check_writeable(array, name)
    return address(array), array.size


if sys.implementation.name == "cpython" and sizeof(ctypes.c_void_p) == sizeof(c_uint64):
    # CPython's id of an object is its address; NumPy's array begins with CPython's head of an
    # object, and then comes what is wanted. That is part of NumPy's binary interface: every
    # compiled extension reads it there. _words[i] is the word at address 8 * i + sizeof(head).
    _words: Any = ctypes.cast(object.__basicsize__, POINTER(c_uint64))

    def address(array: NDArray[Any]) -> int:
        """The address of an array's first element: array.ctypes.data in a tenth of the time."""
        data: int = _words[id(array) >> 3]
        return data

else:

    def address(array: NDArray[Any]) -> int:
        """The address of an array's first element."""
        return array.ctypes.data


def _check_array(array: Any, name: str) -> None:
    if not isinstance(array, ndarray):
        raise BatchNormTypeError(
            f"{name} is of type {type(array).__name__}, expected numpy.ndarray; "
            f"np.asarray({name}) or np.from_dlpack({name}) may make it one"
        )
    if isinstance(array, np.ma.MaskedArray):
        raise BatchNormTypeError(
            f"{name} is a masked array, whose mask would be ignored; pass {name}.data"
        )


def _wrong_shape(text: str) -> BatchNormValueError:
    return BatchNormValueError(text, Status.COUNT_MISMATCH)


def _check_writeable(array: NDArray[Any], name: str) -> None:
    if not array.flags.writeable:
        raise BatchNormValueError(f"{name} is read-only, expected a writeable array")


def dtype_name(dtype: np.dtype[Any]) -> str:
    """'float32', or '>f4' where the name would hide the byte order."""
    if _is_bfloat16(dtype):
        return "bfloat16"
    return str(dtype.name if dtype.isnative else dtype.str)
