"""Recycled memory for results: large arrays that this package makes come from blocks used before.

Memory that the system has never handed out before has to be cleared by it, page by page, when it is
first written: a fresh result of 103 MB costs 25,000 page faults, which take longer than normalizing
does. The C library's ``malloc`` gives large blocks back to the system as soon as they are freed, so
every result is fresh. Here the block of a result that has died is kept for the next one.

Results of 2 MiB or more have such a block; smaller ones are recycled well by ``malloc``. A result
is an array like any other, except that its memory belongs to its ``base``: ``flags.owndata`` is
False, and ``resize`` in place is refused. Its block comes back when the result and every view of it
are gone, so a slice that lives on keeps a whole block, as it does in NumPy.

Blocks that wait for their next result are bounded by `set_limit`, or from outside by the
environment variable BATCHNORM_MEMORY_LIMIT: a number of bytes, or one with the suffix K, M, G or T,
such as 512M; 0 switches recycling off. By default it is an eighth of the memory that this process
may use. Blocks beyond it go back to the system, those that have waited longest first. So do blocks
that have waited for more than a minute, as soon as another block comes back.

>>> import batchnorm, numpy as np
>>> images = np.ones((16, 8, 64, 64), np.float32)  # 2 MiB
>>> y = batchnorm.functional.forward_training(images).output
>>> lent = batchnorm.memory.stats().lent_bytes
>>> del y
>>> lent - batchnorm.memory.stats().lent_bytes
2097152

What other packages allocate has the same page faults, and is nothing that this package could
recycle: `keep_pages` asks ``malloc`` to keep what is freed.

All of it may be called from any thread. A forked child starts without waiting blocks, which would
be copied page by page as it writes to them.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Sequence
from ctypes import Array, c_ubyte
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ._memory_limit import initial_limit
from ._options import integer, wrong_type
from ._pool import SMALLEST, Pool, Stats
from .errors import BatchNormRuntimeError, BatchNormValueError

__all__ = [
    "Stats",
    "allocate",
    "clear",
    "empty",
    "empty_like",
    "get_limit",
    "keep_pages",
    "set_limit",
    "stats",
]

#: mallopt's parameters, from glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4


_pool = Pool(initial_limit())
os.register_at_fork(after_in_child=_pool.clear)


def allocate(nbytes: int) -> Array[c_ubyte] | None:
    """Memory for a result, of at least `nbytes` bytes; their values are arbitrary.

    Parameters
    ----------
    nbytes : int

    Returns
    -------
    object with a writable buffer, or None
        The memory is in use until the object dies: whatever works on it has to keep a reference, as
        `numpy.frombuffer` and `torch.frombuffer` do. It begins at a multiple of 2 MiB. None if
        `nbytes` is too small to be recycled here, recycling is switched off or the system has no
        memory left: allocate in the usual way then.

    Examples
    --------
    >>> import numpy as np
    >>> memory = allocate(3_000_000)
    >>> len(memory) >= 3_000_000
    True
    >>> values = np.frombuffer(memory, np.float32, count=750_000)
    >>> allocate(1000) is None
    True
    """
    return _pool.allocate(integer("nbytes", nbytes))


def empty(shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
    """`numpy.empty`, in recycled memory if the array is large enough.

    Parameters
    ----------
    shape : sequence of int
    dtype : dtype or what NumPy takes for one

    Returns
    -------
    numpy.ndarray
        C-contiguous; its values are arbitrary.

    Examples
    --------
    >>> empty((1024, 1024), "float32").flags.c_contiguous
    True
    """
    try:
        kind = np.dtype(dtype)
    except TypeError:
        raise wrong_type("dtype", dtype, "what numpy.dtype takes") from None
    try:
        size = math.prod(shape)
        if size < 0 or min(shape, default=0) < 0:
            raise BatchNormValueError(f"shape is {shape}, expected sizes of 0 or more")
    except TypeError:
        raise wrong_type("shape", shape, "a sequence of integers") from None
    # Any: typeshed does not know that a ctypes array is a buffer.
    memory: Any = None if kind.hasobject else _pool.allocate(size * kind.itemsize)
    return np.empty(shape, kind) if memory is None else np.ndarray(shape, kind, memory)


def empty_like(array: NDArray[Any]) -> NDArray[Any]:
    """`numpy.empty_like`, in recycled memory if the array is large enough.

    Parameters
    ----------
    array : array

    Returns
    -------
    numpy.ndarray
        Of the shape, dtype and memory order of `array`, never of a subclass. Its values are
        arbitrary.

    Examples
    --------
    >>> import numpy as np
    >>> channels_last = np.zeros((8, 64, 64, 32), np.float32).transpose(0, 3, 1, 2)
    >>> empty_like(channels_last).strides == channels_last.strides
    True
    """
    if not isinstance(array, np.ndarray):
        raise wrong_type("array", array, "numpy.ndarray")
    if array.nbytes < SMALLEST:
        return np.empty_like(array, subok=False)
    if array.flags.c_contiguous:
        return empty(array.shape, array.dtype)
    # From the axis with the widest steps to the one with the narrowest, as numpy.empty_like does.
    steps = [-abs(stride) for stride in array.strides]
    order = sorted(range(array.ndim), key=steps.__getitem__)
    ordered = empty([array.shape[axis] for axis in order], array.dtype)
    result: NDArray[Any] = ordered.transpose(sorted(range(array.ndim), key=order.__getitem__))
    return result


def get_limit() -> int:
    """How many bytes may wait for their next result; 0 if recycling is switched off.

    Examples
    --------
    >>> get_limit() >= stats().idle_bytes
    True
    """
    return _pool.limit


def set_limit(limit: int) -> None:
    """Bound the memory that waits for its next result.

    Blocks beyond the limit go back to the system at once. Results that are alive do not count.

    Parameters
    ----------
    limit : int
        Bytes. 0 switches recycling off: results are then allocated as NumPy does it.

    Raises
    ------
    BatchNormTypeError, BatchNormValueError
        If `limit` is no integer, or negative. Nothing has been changed.

    Examples
    --------
    >>> before = get_limit()
    >>> set_limit(256 << 20)
    >>> get_limit()
    268435456
    >>> set_limit(before)
    """
    number = integer("limit", limit)
    if number < 0:
        raise BatchNormValueError(f"limit is {number}, expected a number of bytes, 0 or more")
    _pool.limit = number
    _pool.trim()


def clear() -> None:
    """Give the memory that waits back to the system. Results that are alive keep theirs.

    Examples
    --------
    >>> clear()
    >>> stats().idle_bytes
    0
    """
    _pool.clear()


def stats() -> Stats:
    """How much memory is lent and how much waits, and how often a block was used again.

    Numbers are those of a moment, and of blocks, which other threads may be taking and returning.

    Examples
    --------
    >>> import numpy as np
    >>> array = empty_like(np.ones(1 << 20, np.float32))
    >>> del array
    >>> before = stats()
    >>> array = empty_like(np.ones(1 << 20, np.float32))  # the same block again
    >>> stats().hits - before.hits, stats().misses - before.misses
    (1, 0)
    """
    return _pool.stats()


def keep_pages(keep: bool = True) -> None:
    """Let ``malloc`` keep the memory that this process frees, for what it allocates next.

    glibc maps large blocks (from 128 KiB on, later up to 32 MiB) anew each time and gives the end
    of its heap back, so that tensors and arrays are page faults again and again. A PyTorch network
    on the CPU can spend half of its time on them. This sets ``mallopt(M_MMAP_MAX, 0)`` and
    ``mallopt(M_TRIM_THRESHOLD, -1)``. For a process from its start, GLIBC_TUNABLES does the same:
    glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=68719476736.

    It costs memory: the process stays as large as it has ever been, and the heap fragments where
    small blocks live on between large ones. It holds for everything in the process, whoever
    allocates. Results of this package lie in blocks of their own, see `set_limit`.

    Parameters
    ----------
    keep : bool
        False undoes it: large blocks are mapped again, and what is free at the end of the heap goes
        back at once. The thresholds then stand where glibc's own adjustment ends, at 32 MiB and
        64 MiB, for it adjusts nothing any more once they have been set. Blocks that live in the
        heap stay there.

    Raises
    ------
    BatchNormRuntimeError
        If the C library has no ``mallopt`` (musl, macOS) or refuses the settings. An allocator that
        was loaded in its place (jemalloc, tcmalloc) has settings of its own, and does not notice.

    Examples
    --------
    >>> keep_pages()
    >>> keep_pages(False)
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        raise BatchNormRuntimeError(
            "the C library has no mallopt, which glibc has: its allocator cannot be told to keep "
            "pages; another one (jemalloc, tcmalloc) may, by settings of its own"
        )
    if keep:
        settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1}
    else:
        settings = {_M_MMAP_THRESHOLD: 32 << 20, _M_TRIM_THRESHOLD: 64 << 20, _M_MMAP_MAX: 65536}
    for parameter, value in settings.items():
        if not mallopt(parameter, value):
            raise BatchNormRuntimeError(
                f"mallopt({parameter}, {value}) was refused by the C library"
            )
    if not keep:
        ctypes.CDLL(None).malloc_trim(0)
