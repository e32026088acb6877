"""Settings of the whole process, and what is loaded.

Results have the same bits whatever is set here. Safe to call from any thread; a call in progress
keeps what it began with.
"""

from __future__ import annotations

from typing import Literal, cast

from . import _lowlevel as c
from ._options import integer, parse

__all__ = ["get_isa", "get_num_threads", "set_max_isa", "set_num_threads", "version"]

InstructionSet = Literal["generic", "avx2", "avx512"]
_ISAS = {member.name.lower(): member for member in c.Isa}


def set_num_threads(threads: int) -> None:
    """Limit the threads of a call; 0 (the default) is what OpenMP says. Small calls use fewer.

    Raises `BatchNormError` if `threads` is negative.
    """
    c.bn_set_num_threads(integer("threads", threads, bits=32))


def get_num_threads() -> int:
    """The largest number of threads that a call may use."""
    return int(c.bn_get_num_threads())


def set_max_isa(isa: InstructionSet) -> None:
    """Cap the instruction set, for tests: "generic", "avx2" or "avx512".

    A cap above what the CPU has is allowed and changes nothing. The environment variable
    BATCHNORM_MAX_ISA does the same from outside. Raises `ValueError` for any other word.
    """
    c.bn_set_max_isa(parse(_ISAS, "isa", isa))


def get_isa() -> InstructionSet:
    """The instruction set in use: "generic", "avx2" or "avx512"."""
    return cast(InstructionSet, c.bn_isa_name(c.bn_get_isa()).decode())


def version() -> str:
    """The version of the loaded library, "MAJOR.MINOR.PATCH"."""
    return cast(str, c.bn_version().decode())
