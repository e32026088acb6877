"""Statuses of the C library and the exceptions that carry them.

Every exception that comes from the library
is a BatchNormError; it is also the built-in exception that fits, so `except ValueError` works as
usual.
"""

from __future__ import annotations

import enum

__all__ = [
    "BatchNormError",
    "BatchNormMemoryError",
    "BatchNormRuntimeError",
    "BatchNormValueError",
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
    """A call of the C library failed.

    Attributes
    ----------
    status : Status or int
        The reason. An `int` if the library is newer than this package and knows a status that this
        package does not.

    The message is the library's own sentence; it quotes the actual and the expected value.

    Examples
    --------
    >>> from batchnorm import BatchNorm2d
    >>> try:
    ...     BatchNorm2d(3, eps=-1.0)
    ... except BatchNormError as error:
    ...     error.status.name, isinstance(error, ValueError)
    ('EPSILON', True)
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, status)
        self.status: Status | int = _known(status)

    def __str__(self) -> str:
        return str(self.args[0])


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


def error_for(status: int, message: str) -> BatchNormError:
    """The exception for a failed call: status and sentence in, exception (not raised) out."""
    return _CLASSES.get(_known(status), BatchNormValueError)(message, status)
