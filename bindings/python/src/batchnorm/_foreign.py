"""Arrays that are not NumPy's: taken as they lie, and results handed back in their kind.

A call whose first array is an ndarray pays one comparison for all of this. Three protocols are
read, in this order: `__dlpack__` (PyTorch, JAX, TensorFlow), `__array_interface__` (Pillow) and the
buffer protocol (memoryview, array.array, mmap). The packages behind them are never imported.

Invariant: nothing is copied unless `allow_copy` says so, and what is made here keeps the export of
the memory, so that nobody can free or resize it as long as the array, or a view on it, lives.

DLPack is read by ctypes rather than by `numpy.from_dlpack`, for NumPy has no bfloat16, and takes
memory for read-only that is not.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from ctypes import (
    POINTER,
    Structure,
    c_char_p,
    c_int32,
    c_int64,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
    py_object,
)
from typing import Any, TypeVar

import numpy as np
from numpy import ndarray
from numpy.typing import NDArray

from ._arrays import _check_array, bfloat16, dtype_name
from .errors import BatchNormBufferError, BatchNormTypeError, LayoutError

_Result = TypeVar("_Result")

# ---- dlpack.h ----


class _DLTensor(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),  # in elements; NULL: C-contiguous
        ("byte_offset", c_uint64),
    ]


class _DLManagedTensorVersioned(Structure):
    _fields_ = [
        ("major", c_uint32),
        ("minor", c_uint32),
        ("manager_ctx", c_void_p),
        ("deleter", c_void_p),
        ("flags", c_uint64),
        ("tensor", _DLTensor),
    ]


_READ_ONLY, _COPIED = 1, 2  # of flags
_BFLOAT16 = 4
_KINDS = {0: "i", 1: "u", 2: "f", 5: "c", 6: "b"}  # of code, as NumPy calls them
_WIDTHS = {"i": (8, 16, 32, 64), "u": (8, 16, 32, 64), "f": (16, 32, 64), "c": (64, 128), "b": (8,)}
_CPU = (1, 3, 11)  # kDLCPU, and memory of the host that a GPU may read: kDLCUDAHost, kDLROCMHost

_capsule_name = ctypes.pythonapi.PyCapsule_GetName
_capsule_name.argtypes, _capsule_name.restype = [py_object], c_char_p
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.argtypes, _capsule_pointer.restype = [py_object, c_char_p], c_void_p


def _opened(capsule: Any) -> tuple[_DLTensor, int]:
    """The tensor in a capsule, and its flags. It lives as long as the capsule."""
    name = _capsule_name(capsule)
    pointer = _capsule_pointer(capsule, name)
    if name == b"dltensor_versioned":
        managed = _DLManagedTensorVersioned.from_address(pointer)
        if managed.major != 1:
            raise BatchNormBufferError(
                f"it is of DLPack {managed.major}.{managed.minor}, expected 1"
            )
        return managed.tensor, managed.flags
    # Before version 1.0 nobody said whether memory may be written; JAX's must not be.
    return _DLTensor.from_address(pointer), _READ_ONLY


class _Export:
    """Lets NumPy make an array on exported memory, and keeps the export (as the array's base).

    The capsule is never marked as used, so that its own destructor gives the memory back.
    """

    def __init__(self, capsule: Any) -> None:
        self.capsule = capsule
        tensor, flags = _opened(capsule)
        if flags & _COPIED:
            raise BatchNormBufferError("it is exported as a copy only")
        bits = tensor.bits
        kind = "u" if tensor.code == _BFLOAT16 else _KINDS.get(tensor.code, "")
        if bits not in _WIDTHS.get(kind, ()) or tensor.lanes != 1:
            raise BatchNormBufferError(
                f"its elements have DLPack's type code {tensor.code}, {bits} bits and "
                f"{tensor.lanes} lanes, which is no dtype of NumPy's, nor bfloat16"
            )
        self.bfloat16 = tensor.code == _BFLOAT16
        size, ndim = bits // 8, tensor.ndim
        self.__array_interface__ = {
            "version": 3,
            "shape": tuple(tensor.shape[:ndim]),
            "strides": tuple(s * size for s in tensor.strides[:ndim]) if tensor.strides else None,
            "typestr": f"{'|' if size == 1 else '<'}{kind}{size}",
            "data": ((tensor.data or 0) + tensor.byte_offset, bool(flags & _READ_ONLY)),
        }


def _from_dlpack(array: Any, name: str) -> NDArray[Any]:
    try:
        device, _ = array.__dlpack_device__()
        if device in _CPU:
            try:
                capsule = array.__dlpack__(max_version=(1, 0), copy=False)
            except TypeError:  # the words of version 1.0 are not known there
                capsule = array.__dlpack__()
            if getattr(array, "is_neg", bool)():  # PyTorch exports the memory without its sign
                raise BatchNormBufferError("its negative bit is set, use tensor.resolve_neg()")
            export = _Export(capsule)
    except Exception as error:
        advice = (
            "; batchnorm.torch has batch normalization that autograd goes through"
            if getattr(array, "requires_grad", False)
            else ""
        )
        raise BatchNormBufferError(f"{name} cannot be read: {error}{advice}") from error
    if device not in _CPU:
        where = getattr(array, "device", f"of DLPack's type {int(device)}")
        raise BatchNormBufferError(
            f"{name} is on device {where}, expected the CPU; move it there first: "
            f"{name}.cpu() in PyTorch, jax.device_put({name}, jax.devices('cpu')[0]) in JAX"
        )
    found = np.asarray(export)
    return found.view(bfloat16()) if export.bfloat16 else found


class _Words:
    """Exports bfloat16, which NumPy will not: its capsule of the words, under their right name."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._words = array.view(np.uint16)

    def __dlpack__(self, **options: Any) -> Any:
        capsule = self._words.__dlpack__(**options)
        _opened(capsule)[0].code = _BFLOAT16
        return capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._words.__dlpack_device__()


# ---- any array ----


def as_ndarray(array: Any, name: str) -> NDArray[Any]:
    """An ndarray on the memory of any kind of array. Raises BatchNormError."""
    if type(array) is ndarray:
        return array
    if isinstance(array, ndarray):
        _check_array(array, name)
        return array.view(ndarray)
    if hasattr(type(array), "__dlpack__"):
        return _from_dlpack(array, name)
    if not _is_array(array):
        raise BatchNormTypeError(
            f"{name} is of type {type(array).__name__}, expected numpy.ndarray or an array that "
            "has __dlpack__, __array_interface__ or the buffer protocol"
        )
    found = np.asarray(array if hasattr(array, "__array_interface__") else memoryview(array))
    if found.dtype.hasobject or (found.size and found.flags.owndata):
        raise BatchNormBufferError(
            f"{name} of type {type(array).__name__} cannot be read without a copy"
        )
    return found


def _is_array(value: Any) -> bool:
    """Whether a value has one of the protocols; NumPy's scalars count as numbers."""
    if value is None or isinstance(value, (bool, int, float, str, np.generic)):
        return False
    if hasattr(type(value), "__dlpack__") or hasattr(value, "__array_interface__"):
        return True
    try:
        memoryview(value)
    except TypeError:
        return False
    return True


def _importer(array: Any) -> Callable[[Any], Any] | None:
    """The `from_dlpack` that makes arrays of this one's kind; None if there is none."""
    kind = type(array)
    if not hasattr(kind, "__dlpack__") or isinstance(array, ndarray):
        return None
    if hasattr(kind, "__array_namespace__"):
        return getattr(array.__array_namespace__(), "from_dlpack", None)
    for base in kind.__mro__:  # of a subclass it may be some package of the user's
        package = sys.modules.get(base.__module__.partition(".")[0])
        found: Callable[[Any], Any] | None = getattr(package, "from_dlpack", None)
        if found is not None:
            return found
    return None


def call(
    function: Callable[..., _Result],
    arguments: dict[str, Any],
    first: str = "input",
    *,
    also: str | None = None,
) -> _Result:
    """`function` with ndarrays for all arrays of `arguments`, and results in the kind of `first`.

    The functions call this themselves, with their own `locals()`, rather than being decorated:
    passing twenty arguments on would cost each call of ndarrays 0.8 us, a twentieth of its time.

    Destinations come back as the objects that they are. `also` is an attribute of `self` that is a
    result as well. With `allow_copy`, what does not lie as it must is copied, destinations aside.
    """
    allow_copy = arguments.get("allow_copy", False)
    taken = {
        name: as_ndarray(value, name) if name == first or _is_array(value) else value
        for name, value in arguments.items()
        if name != "allow_copy"
    }
    own = {id(array): arguments[name] for name, array in taken.items()}
    importer = _importer(arguments[first])

    def back(value: Any) -> Any:
        if not isinstance(value, ndarray):
            return value
        if id(value) in own:
            return own[id(value)]
        if importer is None:
            return value
        made = importer(_Words(value) if value.dtype == bfloat16() else value)
        # JAX makes float32 of float64 unless it was told otherwise; saved_mean would not be itself.
        return made if str(made.dtype).endswith(dtype_name(value.dtype)) else value

    copies = dict(taken)  # `taken` keeps what `own` knows by its id
    while True:
        try:
            result = function(**copies)
            break
        except LayoutError as error:
            if not allow_copy or error.destination or error.name not in copies:
                raise
            copies[error.name] = error.copy(copies[error.name])
    if also is not None:
        setattr(taken["self"], also, back(getattr(taken["self"], also)))
    if isinstance(result, tuple):
        return type(result)(*map(back, result))
    returned: _Result = back(result)
    return returned
