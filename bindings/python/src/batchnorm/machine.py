"""Settings of the whole process, and what is loaded.

Results have the same bits whatever is set here. Safe to call from any thread; a call in progress
keeps what it began with.
"""

from __future__ import annotations

from typing import Literal, cast

from . import _lowlevel as c
from ._options import integer, parse

__all__ = [
    "get_isa",
    "get_num_threads",
    "get_thread_runtime",
    "get_threading",
    "set_max_isa",
    "set_num_threads",
    "set_threading",
    "version",
]

InstructionSet = Literal["generic", "avx2", "avx512"]
Threading = Literal["auto", "own", "shared"]
# A pool has to come from C: a team of Python threads costs more than it gains, and an executor that
# refused a task could not tell the library so.
_THREADINGS = {
    member.name.lower(): member for member in c.Threading if member is not c.Threading.POOL
}
_ISAS = {member.name.lower(): member for member in c.Isa}


def set_num_threads(threads: int) -> None:
    """Limit the threads of a call. Small calls use fewer.

    0 (the default) is what the OpenMP runtime in use says: OMP_NUM_THREADS,
    `torch.set_num_threads`, else the cores. Whatever the number, a call uses at most as many
    threads as the process may use processors, or 64 if these are fewer.

    Raises `BatchNormError` if `threads` is negative.

    Examples
    --------
    >>> set_num_threads(1)
    >>> get_num_threads()
    1
    >>> set_num_threads(0)
    """
    c.bn_set_num_threads(integer("threads", threads, bits=32))


def get_num_threads() -> int:
    """The largest number of threads that a call may use.

    What was set, or the default, as far as the machine can run it.

    Examples
    --------
    >>> get_num_threads() >= 1
    True
    """
    return int(c.bn_get_num_threads())


def set_threading(threading: Threading) -> None:
    """Choose whose threads calls run on: `threading` is "auto" (the default), "own" or "shared".

    A process should have one set of threads that compute: those of two OpenMP runtimes take the
    cores from each other, for they go on spinning after a parallel region. "own" is this library's
    libomp, "shared" the runtime that others have loaded (PyTorch's libgomp, say), and "auto" shares
    as soon as there is one. In a forked child there is none: libgomp does not survive a fork.

    Raises `BatchNormValueError` for any other word, and `BatchNormRuntimeError` (NO_SHARED_RUNTIME)
    if there is no runtime to share; then nothing changes.

    Examples
    --------
    >>> set_threading("own")
    >>> get_thread_runtime().startswith("libomp")
    True
    >>> set_threading("auto")
    """
    c.bn_set_threading(parse(_THREADINGS, "threading", threading))


def get_threading() -> Literal[Threading, "pool"]:
    """What `set_threading` has chosen; "pool" if C code in this process has given a pool.

    Examples
    --------
    >>> get_threading()
    'auto'
    """
    word = c.Threading(c.bn_get_threading()).name.lower()
    return cast(Literal[Threading, "pool"], word)


def get_thread_runtime() -> str:
    """Whose threads a call made now would run on: "libomp.so.5", "libgomp.so.1", ... or "pool".

    Examples
    --------
    >>> "omp" in get_thread_runtime()
    True
    """
    return cast(str, c.bn_get_thread_runtime().decode())


def set_max_isa(isa: InstructionSet) -> None:
    """Cap the instruction set, for tests: `isa` is "generic", "avx2" or "avx512".

    What is left is that one and those that it builds on. One that this CPU does not have, be it
    newer or of another family, leaves all that it has. The environment variable BATCHNORM_MAX_ISA
    does the same from outside. Raises `BatchNormValueError` for any other word.

    Examples
    --------
    >>> before = get_isa()
    >>> set_max_isa("generic")
    >>> get_isa()
    'generic'
    >>> set_max_isa(before)
    """
    c.bn_set_max_isa(parse(_ISAS, "isa", isa))


def get_isa() -> InstructionSet:
    """The instruction set in use: "generic", "avx2" or "avx512".

    Examples
    --------
    >>> get_isa() in ("generic", "avx2", "avx512")
    True
    """
    return cast(InstructionSet, c.bn_isa_name(c.bn_get_isa()).decode())


def version() -> str:
    """The version of the loaded library, "MAJOR.MINOR.PATCH".

    Examples
    --------
    >>> len(version().split("."))
    3
    """
    return cast(str, c.bn_version().decode())
