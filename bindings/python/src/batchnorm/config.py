"""What this installation is and how it would run: for bug reports and for a look at one's setup."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict, overload

import numpy as np

from . import _lowlevel as c
from . import memory
from ._options import unknown
from .machine import get_isa, get_num_threads, get_thread_runtime, get_threading, version

__all__ = ["Config", "OpenMPRuntime", "show_config"]

# GNU's, LLVM's and Intel's, also as wheels and distributions rename them: libomp-3bc5b92b.so.5,
# libgomp.so.1.0.0, libiomp5.so. LLVM's offloading libraries (libomptarget) are no runtimes.
_RUNTIME = re.compile(r"lib(gomp|omp|iomp)5?[.-]")
_VARIABLES = ("BATCHNORM_", "OMP_", "KMP_", "GOMP_")


class OpenMPRuntime(TypedDict):
    """An OpenMP runtime that is in this process, as `show_config` lists them."""

    path: str  #: the file
    in_use: bool  #: whether calls made now run on its threads


class Config(TypedDict):
    """What `show_config` returns in the mode "dicts"."""

    versions: dict[str, str]  #: of batchnorm, python, numpy, and torch if it is imported
    package: str  #: the folder that was imported
    library: str  #: the file that was loaded
    isa: str  #: the instruction set in use
    num_threads: int  #: the most threads that a call may use
    threading: str  #: what `set_threading` has chosen
    thread_runtime: str  #: whose threads calls made now run on
    openmp: list[OpenMPRuntime]  #: every OpenMP runtime in this process
    environment: dict[str, str]  #: variables that batchnorm and OpenMP read
    memory: dict[str, int]  #: the limit and `batchnorm.memory.stats()`


@overload
def show_config(mode: Literal["stdout"] = ...) -> None: ...


@overload
def show_config(mode: Literal["dicts"]) -> Config: ...


def show_config(mode: Literal["stdout", "dicts"] = "stdout") -> Config | None:
    """Print versions, instruction set, threads and OpenMP runtimes; or return them.

    Parameters
    ----------
    mode
        "stdout" prints for people, "dicts" returns a `Config`, as `numpy.show_config` does.

    Returns
    -------
    Config or None
        Read anew in each call: a library imported meanwhile may have brought an OpenMP runtime.

    Raises
    ------
    BatchNormValueError
        If `mode` is another word.

    Examples
    --------
    >>> import batchnorm
    >>> config = batchnorm.show_config(mode="dicts")
    >>> config["versions"]["batchnorm"] == batchnorm.__version__
    True
    >>> batchnorm.show_config()  # doctest: +ELLIPSIS
    batchnorm        ...
    package          ...
    """
    if mode not in ("stdout", "dicts"):
        raise unknown("mode", mode, ("stdout", "dicts"))
    config = _config()
    if mode == "dicts":
        return config
    print(_text(config))
    return None


def _config() -> Config:
    versions = {
        "batchnorm": version(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    if torch := sys.modules.get("torch"):
        versions["torch"] = str(getattr(torch, "__version__", "unknown"))
    mappings = _mappings()
    runtime = get_thread_runtime()
    # Others' runtimes are not asked anything: LLVM's starts when it is asked, and ends the process
    # if another of its family runs.
    runtimes = dict.fromkeys(m.path for m in mappings if _RUNTIME.match(Path(m.path).name))
    return {
        "versions": versions,
        "package": str(Path(__file__).parent),
        "library": _library_path(mappings),
        "isa": get_isa(),
        "num_threads": get_num_threads(),
        "threading": get_threading(),
        "thread_runtime": runtime,
        "openmp": [{"path": path, "in_use": _is_file(path, runtime)} for path in runtimes],
        "environment": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)
        },
        "memory": {"limit": memory.get_limit(), **memory.stats()._asdict()},
    }


class _Mapping(NamedTuple):
    """A part of a file in the memory of this process."""

    start: int
    end: int
    path: str


def _mappings() -> list[_Mapping]:
    """All of them (proc_pid_maps(5)); none where the kernel does not tell."""
    try:
        lines = Path("/proc/self/maps").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        addresses, *_, path = line.split(maxsplit=5)
        if path.startswith("/"):  # else memory that is no file's
            start, end = (int(address, 16) for address in addresses.split("-"))
            found.append(_Mapping(start, end, path))
    return found


def _library_path(mappings: list[_Mapping]) -> str:
    """The file that the library's code is from: it may have been loaded by its name alone."""
    address = ctypes.cast(c.bn_version, ctypes.c_void_p).value or 0
    here = (mapping.path for mapping in mappings if mapping.start <= address < mapping.end)
    return next(here, str(c._library._name))


def _is_file(path: str, name: str) -> bool:
    """Whether `path` is what the loader knows as `name`, maybe a link to it in the same folder."""
    return os.path.realpath(Path(path).with_name(name)) == os.path.realpath(path)


def _text(config: Config) -> str:
    names = {"python": "Python", "numpy": "NumPy"}
    versions = [f"{names.get(name, name)} {number}" for name, number in config["versions"].items()]
    rows = {
        "batchnorm": [", ".join(versions).removeprefix("batchnorm ")],
        "package": [config["package"]],
        "library": [config["library"]],
        "instruction set": [config["isa"]],
        "threads": [
            f"{config['num_threads']} of {config['thread_runtime']}, "
            f"threading {config['threading']!r}"
        ],
        "OpenMP runtimes": [
            runtime["path"] + (" (in use)" if runtime["in_use"] else "")
            for runtime in config["openmp"]
        ],
        "environment": [f"{name}={value}" for name, value in config["environment"].items()],
        "memory": [f"{name} {value:,}" for name, value in config["memory"].items()],
    }
    return "\n".join(
        f"{label if i == 0 else '':<15}  {line}"
        for label, lines in rows.items()
        for i, line in enumerate(lines or ["none"])
    )
