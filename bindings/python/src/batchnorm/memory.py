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
may use. Blocks beyond it go back to the system, those that have waited longest first.

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

import contextlib
import ctypes
import itertools
import math
import mmap
import os
import re
import warnings
import weakref
from collections import deque
from collections.abc import Sequence
from ctypes import Array, addressof, c_char, c_ubyte
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ._options import integer, wrong_type
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

#: Blocks begin at a multiple of this, so that the system can back them with pages of this size.
_HUGE_PAGE = 2 << 20
#: Below, `malloc` has hardly a page fault either, and takes some 8 µs less.
_SMALLEST = 2 << 20
_VARIABLE = "BATCHNORM_MEMORY_LIMIT"
#: mallopt's parameters, from glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4


class Stats(NamedTuple):
    """What `stats` tells. Bytes are those of whole blocks, up to an eighth more than was needed."""

    lent_bytes: int
    """Memory of results that are alive."""
    lent_blocks: int
    """How many blocks they have."""
    idle_bytes: int
    """Memory that waits for the next result; at most the limit."""
    idle_blocks: int
    """How many blocks wait."""
    hits: int
    """How many results had a block that was there, since the package was imported."""
    misses: int
    """How many results needed a new one."""


class _Block:
    """Memory of its own, mapped apart from `malloc`'s; unmapped when nobody refers to it."""

    __slots__ = ("_kind", "_mapping", "_start", "idle_since", "size")

    def __init__(self, size: int) -> None:
        # Not every kernel aligns large mappings to huge pages: hence one page more than is needed.
        # Pages that are never touched take no memory.
        mapping = mmap.mmap(-1, size + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._start = -addressof(c_char.from_buffer(mapping)) % _HUGE_PAGE
        # Whole huge pages only: another one at the end would be taken for a few bytes of it.
        with contextlib.suppress(OSError):  # a kernel without huge pages
            mapping.madvise(mmap.MADV_HUGEPAGE, self._start, size - size % _HUGE_PAGE)
        self._mapping = mapping
        self._kind = c_ubyte * size
        self.size = size
        self.idle_since = 0

    def memory(self) -> Array[c_ubyte]:
        """A new object that owns the block as long as it lives, for NumPy and PyTorch to keep.

        Not a memoryview: NumPy would keep the mapping below it, and not the object that is watched.
        """
        return self._kind.from_buffer(self._mapping, self._start)

    def is_free(self) -> bool:
        """Whether nothing can reach the memory any more.

        That the object has died is known from its weak reference, and the collector of cycles calls
        those before finalizers, which may bring back what they can reach. The mapping knows better:
        it cannot be resized, be it to the size that it has, while somebody uses its memory.
        """
        try:
            self._mapping.resize(len(self._mapping))
        except (BufferError, OSError):
            return False
        return True


class _Pool:
    """The blocks that are lent and those that wait.

    There is no lock, because blocks come back at any point of any thread, inside these functions as
    well: wherever an object dies or the collector runs. Instead every step is one operation of a
    dict or deque, which no other thread can see half done, and a block belongs to whoever has
    popped it. State is in attributes, which live as long as the callbacks that need it, longer than
    a module's globals when the interpreter ends.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.hits = self.misses = 0
        self._lent: dict[_Block, weakref.ref[Any]] = {}
        self._idle: dict[int, deque[_Block]] = {}  # by size; the last one has waited least
        self._clock = itertools.count()

    def allocate(self, nbytes: int) -> Array[c_ubyte] | None:
        if nbytes < _SMALLEST or self.limit == 0:
            return None
        size = _block_size(nbytes)
        block = self._take(size) or self._make(size)
        if block is None:
            return None
        memory = block.memory()
        self._lent[block] = weakref.ref(memory, partial(self._give_back, block))
        return memory

    def _take(self, size: int) -> _Block | None:
        idle = self._idle.get(size)
        if idle is None:
            return None
        for _ in range(len(idle)):
            try:
                block = idle.pop()
            except IndexError:  # another thread was faster
                break
            if block.is_free():
                self.hits += 1
                return block
            idle.appendleft(block)  # another thread is just giving it back, as a rule
        return None

    def _make(self, size: int) -> _Block | None:
        self.misses += 1
        try:
            return _Block(size)
        except OSError:
            self.clear()  # what is missing may wait here
        try:
            return _Block(size)
        except OSError:
            return None

    def _give_back(self, block: _Block, _: object) -> None:
        del self._lent[block]
        block.idle_since = next(self._clock)
        self._idle.setdefault(block.size, deque()).append(block)
        self.trim()

    def trim(self) -> None:
        """Lets go of the blocks that have waited longest, until the rest is within the limit."""
        while self.idle_bytes() > self.limit:
            try:
                waiting = [blocks for blocks in list(self._idle.values()) if blocks]
                min(waiting, key=lambda blocks: blocks[0].idle_since).popleft()
            except (IndexError, ValueError):  # another thread was faster: look again
                continue

    def clear(self) -> None:
        for blocks in list(self._idle.values()):
            blocks.clear()

    def idle_bytes(self) -> int:
        return sum(size * len(blocks) for size, blocks in list(self._idle.items()))

    def stats(self) -> Stats:
        lent = list(self._lent)
        return Stats(
            sum(block.size for block in lent),
            len(lent),
            self.idle_bytes(),
            sum(map(len, list(self._idle.values()))),
            self.hits,
            self.misses,
        )


def _block_size(nbytes: int) -> int:
    """`nbytes` rounded up to one of eight sizes between powers of two, so that blocks fit others.

    What is rounded up is untouched, and takes no memory but for the rest of a page.
    """
    step = 1 << (nbytes.bit_length() - 4)
    return -(-nbytes // step) * step


def _usable_memory(
    groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> int:
    """The memory that this process may use: the machine's, or what a control group leaves it."""
    amounts = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError):
        for line in groups.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers == "":
                top, file = root, "memory.max"
            elif "memory" in controllers.split(","):
                top, file = root / "memory", "memory.limit_in_bytes"
            else:
                continue
            # A group's limit holds for all below it. A container sees its own group as the top.
            folder = top / group.lstrip("/")
            for each in (folder, *folder.parents):
                with contextlib.suppress(OSError, ValueError):  # no such file; "max"
                    amounts.append(int((each / file).read_text()))
    return min(amounts)


def _initial_limit() -> int:
    """What the environment says, else an eighth of the memory there is."""
    default = _usable_memory() // 8
    text = os.environ.get(_VARIABLE, "").strip()
    if not text:
        return default
    parsed = re.fullmatch(r"([0-9]+)([KMGT]?)", text, re.ASCII | re.IGNORECASE)
    if parsed is None:
        warnings.warn(
            f"{_VARIABLE} is {text!r}, expected a number of bytes such as 0, 512M or 2G; "
            f"the default holds, {default}",
            RuntimeWarning,
            stacklevel=2,
        )
        return default
    return int(parsed[1]) << 10 * " KMGT".index(parsed[2].upper() or " ")


_pool = _Pool(_initial_limit())
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
    if array.nbytes < _SMALLEST:
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
