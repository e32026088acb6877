"""The blocks that results are made of: mapped from the system, lent, waiting, and given back.

What users see of it is in memory.py.
"""

from __future__ import annotations

import contextlib
import mmap
import weakref
from collections import deque
from ctypes import Array, addressof, c_char, c_ubyte
from functools import partial
from time import monotonic
from typing import Any, NamedTuple

#: Blocks begin at a multiple of this, so that the system can back them with pages of this size.
_HUGE_PAGE = 2 << 20
#: Below, `malloc` has hardly a page fault either, and takes some 8 µs less.
SMALLEST = 2 << 20


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
        self.idle_since = 0.0

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


class Pool:
    """The blocks that are lent and those that wait.

    There is no lock, because blocks come back at any point of any thread, inside these functions as
    well: wherever an object dies or the collector runs. Instead every step is one operation of a
    dict or deque, which no other thread can see half done, and a block belongs to whoever has
    popped it. State is in attributes, which live as long as the callbacks that need it, longer than
    a module's globals when the interpreter ends.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        #: Seconds that a block waits at most. What is computed again comes sooner. The next block
        #: that comes back looks after it, so that no thread has to.
        self.longest_wait = 60.0
        self.clock = monotonic
        self.hits = self.misses = 0
        self._lent: dict[_Block, weakref.ref[Any]] = {}
        self._idle: dict[int, deque[_Block]] = {}  # by size; the last one has waited least

    def allocate(self, nbytes: int) -> Array[c_ubyte] | None:
        if nbytes < SMALLEST or self.limit == 0:
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
        block.idle_since = self.clock()
        self._idle.setdefault(block.size, deque()).append(block)
        self.trim()

    def trim(self) -> None:
        """Lets go of blocks that nobody has used for long, and of what is beyond the limit.

        Those that have waited longest go first.
        """
        too_old = self.clock() - self.longest_wait
        while True:
            try:
                waiting = [blocks for blocks in list(self._idle.values()) if blocks]
                if not waiting:
                    return
                oldest = min(waiting, key=lambda blocks: blocks[0].idle_since)
                if oldest[0].idle_since >= too_old and self.idle_bytes() <= self.limit:
                    return
                oldest.popleft()
            except IndexError:  # another thread was faster: look again
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
