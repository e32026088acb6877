"""How much memory may wait to be recycled at first: what the environment or the system says."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from pathlib import Path

_VARIABLE = "BATCHNORM_MEMORY_LIMIT"


def usable_memory(
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


def initial_limit() -> int:
    """What the environment says, else an eighth of the memory there is."""
    default = usable_memory() // 8
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
