"""The exceptions of this package, and the statuses of the C library that they carry.

Whatever a function or layer of this package refuses, it raises a BatchNormError, be it that Python
found the mistake or the C library. Each is also the built-in exception that fits, so
`except ValueError` works as usual. Only what Python itself refuses before the package runs, as an
argument of an unknown name, is Python's own TypeError; and `batchnorm.torch` uses PyTorch's words
and exceptions for what PyTorch refuses.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BatchNormBufferError",
    "BatchNormError",
    "BatchNormImportError",
    "BatchNormMemoryError",
    "BatchNormRuntimeError",
    "BatchNormTypeError",
    "BatchNormValueError",
    "LayoutError",
    "Status",
]


class Status(enum.IntEnum):
    """The C library's `bn_status`: why a call failed. Values are pinned; there may be more.

    batchnorm.h says what each means.

    Examples
    --------
    >>> Status.NO_FORWARD == 502, Status(100).name
    (True, 'NULL_POINTER')
    """

    OK = 0

    NULL_POINTER = 100
    STRUCT_SIZE = 101
    INVALID_OPTION = 102
    EXCLUSIVE = 103

    RANK = 200
    NEGATIVE_SIZE = 201
    NO_CHANNELS = 202
    SIZE_OVERFLOW = 203
    COUNT_MISMATCH = 204
    LENGTH = 205

    MISALIGNED = 300
    OVERLAP = 301
    OUT_OF_MEMORY = 302

    EPSILON = 400
    MOMENTUM = 401
    ONE_VALUE = 402
    NONFINITE = 403
    BATCH_COUNTER = 404
    NEGATIVE_SLOPE = 405
    MOMENTS = 406
    NUMBER = 410

    NO_RUNNING_STATISTICS = 500
    NO_PARAMETER = 501
    NO_FORWARD = 502
    LAYER_MISMATCH = 503

    STATE_TRUNCATED = 600
    STATE_FOREIGN = 601
    STATE_VERSION = 602
    STATE_CHECKSUM = 603
    STATE_INVALID = 604
    BUFFER_TOO_SMALL = 605

    NO_SHARED_RUNTIME = 700

    INTERNAL = 900


class BatchNormError(Exception):
    """A call was refused or has failed: the base of all exceptions of this package.

    Attributes
    ----------
    status : Status, int or None
        The reason. An `int` if the library is newer than this package and knows a status that this
        package does not; None for what only Python can see, as types, dtypes and strides.

    The message is a sentence that names the argument and quotes the actual and the expected value.

    Examples
    --------
    >>> from batchnorm import BatchNorm2d
    >>> try:
    ...     BatchNorm2d(3, eps=-1.0)
    ... except BatchNormError as error:
    ...     error.status.name, isinstance(error, ValueError)
    ('EPSILON', True)
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message, status)
        self.status: Status | int | None = None if status is None else _known(status)

    def __str__(self) -> str:
        return str(self.args[0])


class BatchNormTypeError(BatchNormError, TypeError):
    """An argument is of the wrong type or an array of the wrong dtype.

    Examples
    --------
    >>> from batchnorm import BatchNorm2d
    >>> try:
    ...     BatchNorm2d("3")
    ... except BatchNormTypeError as error:
    ...     print(error)
    num_features is '3' of type str, expected an integer
    """


class BatchNormValueError(BatchNormError, ValueError):
    """An argument or a saved state has a value that the call cannot accept.

    Examples
    --------
    >>> from batchnorm import BatchNorm2d
    >>> try:
    ...     BatchNorm2d.from_bytes(b"no state of a layer")
    ... except BatchNormValueError as error:
    ...     error.status.name
    'STATE_FOREIGN'
    """


class LayoutError(BatchNormValueError):
    """An array whose memory does not lie as it must: its strides, its order or its alignment.

    A copy of it would do, which ``allow_copy=True`` makes where a function has that argument; not
    of destinations, for the caller would never see what was written into a copy.

    Attributes
    ----------
    name : str
        The argument.
    destination : bool
        Whether the array is there to be written to.

    Examples
    --------
    >>> import numpy as np
    >>> from batchnorm.functional import forward_training
    >>> try:
    ...     forward_training(np.ones((4, 6), np.float32)[:, ::2])
    ... except LayoutError as error:
    ...     error.name, error.destination
    ('input', False)
    """

    def __init__(
        self,
        message: str,
        status: int | None = None,
        *,
        name: str = "",
        order: tuple[int, ...] | None = None,
        destination: bool = False,
    ) -> None:
        super().__init__(message, status)
        self.name = name
        self.destination = destination
        self._order = order

    def copy(self, array: NDArray[Any]) -> NDArray[Any]:
        """The array in the order that was missed; new memory, aligned."""
        if self._order is None:
            return np.array(array, order="C")
        dense: NDArray[Any] = np.array(array.transpose(self._order), order="C")
        back: NDArray[Any] = dense.transpose(np.argsort(self._order))
        return back


class BatchNormRuntimeError(BatchNormError, RuntimeError):
    """Layer or process are not in a condition for this call, or the library has a defect.

    Examples
    --------
    >>> import numpy as np
    >>> from batchnorm import BatchNorm1d
    >>> try:
    ...     BatchNorm1d(2).backward(np.ones((4, 2), np.float32))
    ... except BatchNormRuntimeError as error:
    ...     error.status.name
    'NO_FORWARD'
    """


class BatchNormMemoryError(BatchNormError, MemoryError):
    """The library could not allocate its small workspace.

    Examples
    --------
    >>> issubclass(BatchNormMemoryError, MemoryError)
    True
    """


class BatchNormBufferError(BatchNormError, BufferError):
    """The memory of another package's array cannot be had: on a device, sparse, part of a graph.

    Examples
    --------
    >>> issubclass(BatchNormBufferError, BufferError)
    True
    """


class BatchNormImportError(BatchNormError, ImportError):
    """The shared library cannot be loaded, or is another one. `name` and `path` are ImportError's.

    Examples
    --------
    >>> BatchNormImportError("no such file", path="libbatchnorm.so").path
    'libbatchnorm.so'
    """

    def __init__(self, message: str, status: int | None = None, *, path: str | None = None) -> None:
        super().__init__(message, status)
        self.msg, self.name, self.path = message, "batchnorm", path


_CLASSES: dict[Status | int, type[BatchNormError]] = {
    Status.OUT_OF_MEMORY: BatchNormMemoryError,
    Status.NO_RUNNING_STATISTICS: BatchNormRuntimeError,
    Status.NO_PARAMETER: BatchNormRuntimeError,
    Status.NO_FORWARD: BatchNormRuntimeError,
    Status.NO_SHARED_RUNTIME: BatchNormRuntimeError,
    Status.INTERNAL: BatchNormRuntimeError,
}


def _known(status: int) -> Status | int:
    try:
        return Status(status)
    except ValueError:
        return status


def error_for(status: int, message: str, function: str = "") -> BatchNormError:
    """The exception for a failed call: status and sentence in, exception (not raised) out.

    The sentence is put into Python's words; `function` is the C function that failed.
    """
    message = in_python(message, function)
    if status == Status.MISALIGNED:
        name = message.partition(" ")[0]
        return LayoutError(message, status, name=name, destination=_is_written(name, function))
    return _CLASSES.get(_known(status), BatchNormValueError)(message, status)


# What the library calls otherwise than this package, as it has C's pointers, counts and enums.
_WORDS: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"\bsaved\.(mean_rest|mean|invstd)", r"saved_\1"),
    (r"^activation\.slope is", "negative_slope is"),
    (r"^(\w+) is NULL, but required$", r"\1 is None, but required"),
    (r"^(\w+ and \w+) are NULL, but one", r"\1 are None, but one"),
    (r"^residual\.count is 0, expected .*$",
     "residual is None, expected one as in the last forward"),
    (r"^residual\.count is .*$", "residual was given, expected None as in the last forward"),
    (r"^num_features\.count is (-\d+), expected 0 or more$",
     r"num_features is \1, expected 1 or more"),
    (r"^([\w.]+)\.count is (-?\d+), expected (\d+) \(num_features\)$",
     r"\1 has \2 elements, expected \3, the number of channels"),
    (r"^([\w.]+)\.count is (-?\d+), expected", r"\1 has \2 elements, expected"),
    (r"^(\w+)->channels is (-?\d+), expected (\d+).*$", r"\1 has \2 channels, expected \3"),
    (r"(\w+)->", r"\1."),
    (r"^sizes (\(.*\)) have 1 value", r"input of sizes \1 has 1 value"),
    (r"^sizes (\(.*\)) of \d+ bytes per element need", r"arrays of sizes \1 need"),
    (r"^sizes\[(\d+)\]", r"shape[\1]"),
    (r"^rank is (\d+), expected 2 to 5", r"input has \1 dimensions, expected 2 to 5"),
    (r"but rank is (\d+), expected 3", r"but input has \1 dimensions, expected 3"),
    (r" \(num_features, sizes\[1\], groups \* channels\)", ""),
    (r"^epsilon is", "eps is"),
    (r"track_running_stats is 0", "track_running_stats is False"),
    (r"\b\d \(([a-z][a-z0-9 ]*)\)", lambda found: repr(found[1].replace(" ", "_"))),
]  # fmt: skip
_COMPILED = [(re.compile(pattern), new) for pattern, new in _WORDS]


def in_python(message: str, function: str = "") -> str:
    """The library's sentence in the words of this package's callers."""
    for pattern, new in _COMPILED:
        message = pattern.sub(new, message)
    if "backward" not in function:  # where `output` is the forward's, and read
        message = re.sub(r"\boutput\b", "out", message)
    if function.startswith("bn_layer_backward"):  # whose destination is called `out` there
        message = re.sub(r"\bgrad_input\b", "out", message)
    elif function.startswith("bn_explain"):
        message = message.replace("input has", "shape has").replace("dimensions", "sizes")
    elif function.startswith(("bn_layer_forward", "bn_layer_fold")):
        array = "input" if "forward" in function else "conv_weight"
        message = re.sub("^dtype is", f"{array} has dtype", message)
        message = re.sub(r"^the number of channels is (\d+)", rf"{array} has \1 channels", message)
    return message


def _is_written(name: str, function: str) -> bool:
    """Whether an argument of the library's is a destination."""
    if name in ("out", "grad_input", "grad_weight", "grad_bias", "grad_residual"):
        return True
    if name in ("skipped_batches", "num_batches_tracked"):
        return True
    if name.startswith(("saved_", "running_", "activation_mask")):
        return "backward" not in function and "inference" not in function
    return name.startswith("folded_")
