"""results.csv, and what is to be known of a cell: its limits, its peers, where its tensors live.

Shared by what writes the file and by what is made from it.
"""

from __future__ import annotations

import csv
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")

OURS = "batchnorm"
MEMORY = "memory"  # the operation that is none: sweeps far beyond the caches
SWEEPS = {"read": 1, "copy": 2, "triad": 3, "tetrad": 4}  # and the tensors that each moves
LEAST_NOISE = 0.02  # below that no two times differ

BEYOND, INSIDE, TINY = "beyond L3", "inside L3", "tiny"
GROUPS = (BEYOND, INSIDE, TINY)

# ---- contenders, by their names ------------------------------------------------------------------


def is_limit(name: str) -> bool:
    return name.startswith(tuple(SWEEPS))


def is_single_pass(name: str) -> bool:
    """A limit that reads each input once."""
    return is_limit(name) and "+reads" not in name


def is_plain(name: str) -> bool:
    """One stream a thread, nothing prefetched: the loop that anyone would write."""
    parts = name.split("-")
    return is_single_pass(name) and not {"near", "far"} & set(parts) and "-x" not in name


def is_implementation(name: str) -> bool:
    """Neither a limit nor one of the two that tell the cost of a call."""
    return not is_limit(name) and name not in ("bare", "batchnorm-python")


def family(name: str) -> str:
    """Of several releases of a peer, NAME@RELEASE, the fastest one of a cell counts."""
    return name.partition("@")[0]


def same_layout(name: str) -> bool:
    return not family(name).endswith("-blocked")


def honest(names: Iterable[str]) -> list[str]:
    """The limits that can be reached: with a second read of the inputs, where one is needed."""
    limits = [name for name in names if is_limit(name)]
    return [name for name in limits if not is_single_pass(name)] or limits


def moved_tensors(sweep: str) -> int:
    return next(count for base, count in SWEEPS.items() if sweep.startswith(base))


# ---- rows and cells ------------------------------------------------------------------------------


class Row(NamedTuple):
    """One contender of a cell. Times in microseconds."""

    contender: str
    median: float
    minimum: float
    spread: float  # interquartile range over the median
    gb_per_s: float
    over_plain: float  # ratio to the fastest plain limit, median over the rounds
    over_honest: float
    others_percent: float


class Case(NamedTuple):
    op: str
    layout: str
    dtype: str
    threads: int
    buffers: str

    def __str__(self) -> str:
        return f"{self.op} {self.layout.upper()} {self.dtype} x{self.threads} {self.buffers}"


def quickest(rows: Iterable[Row]) -> Row | None:
    return min(rows, key=lambda row: row.median, default=None)


@dataclass(frozen=True)
class Cell:
    case: Case
    shape: str
    file: str
    moved: int  # bytes that the operation must read and write
    llc: int  # what of the last-level cache can be counted on
    rows: dict[str, Row]

    @property
    def ours(self) -> Row | None:
        return self.rows.get(OURS)

    def fastest(self, belongs: Callable[[str], bool]) -> Row | None:
        return quickest(row for name, row in self.rows.items() if belongs(name))

    @property
    def plain(self) -> Row:
        return self.fastest(is_plain)

    @property
    def single_pass(self) -> Row:
        return self.fastest(is_single_pass)

    @property
    def honest_limits(self) -> list[Row]:
        return [self.rows[name] for name in honest(self.rows)]

    @property
    def honest(self) -> Row:
        return quickest(self.honest_limits)

    @property
    def families(self) -> dict[str, Row]:
        """Implementations, the fastest release of each."""
        found: dict[str, Row] = {}
        for name, row in self.rows.items():
            if is_implementation(name):
                key = family(name)
                found[key] = quickest([row, *filter(None, [found.get(key)])])
        return found

    @property
    def peers(self) -> list[Row]:
        """Those in the same layout."""
        found = self.families
        return [row for name, row in found.items() if name != OURS and same_layout(name)]

    @property
    def fastest_peer(self) -> Row | None:
        return quickest(self.peers)

    @property
    def group(self) -> str:
        """Tiny: the call is the cost; the harness has a bare loop for these (BARE_MAX)."""
        if math.prod(map(int, self.shape.split("x"))) <= 1 << 16:
            return TINY
        return INSIDE if self.case.buffers == "warm" and self.moved <= self.llc else BEYOND


class Comparison(NamedTuple):
    """One time over another. The fastest repetitions are what neighbours disturb least."""

    median: float
    minima: float
    cell: Cell

    def __str__(self) -> str:
        return f"{self.median:.2f} / {self.minima:.2f}"


def over_limit(row: Row, cell: Cell) -> Comparison:
    least = min(limit.minimum for limit in cell.honest_limits)
    return Comparison(row.over_honest, row.minimum / least, cell)


def over_row(row: Row, other: Row, cell: Cell) -> Comparison:
    return Comparison(row.median / other.median, row.minimum / other.minimum, cell)


def faster_than_limit(cells: Iterable[Cell]) -> list[tuple[Row, Comparison, float]]:
    """What cannot be, unless the limit is none: contenders ahead of it by more than both times
    spread, in the median, and by the fastest repetitions as well. Sequences are left out, for which
    the limit moves what is masked as well.
    """
    found = []
    for cell in cells:
        if "+lengths" in cell.case.op:
            continue
        for name, row in cell.rows.items():
            if is_implementation(name):
                ratio = over_limit(row, cell)
                noise = max(LEAST_NOISE, math.hypot(row.spread, cell.honest.spread))
                if ratio.median < 1 - noise and ratio.minima < 1 - LEAST_NOISE:
                    found.append((row, ratio, noise))
    return found


# ---- the file ------------------------------------------------------------------------------------


def number(text: str) -> float:
    return float(text) if text else math.nan


def read_csv(path: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """What the run was, of the lines "# KEY: VALUE", and the measurements."""
    with path.open(newline="") as file:
        lines = file.readlines()
    header = dict(line[2:].rstrip("\n").split(": ", 1) for line in lines if line.startswith("# "))
    rows = list(csv.DictReader(line for line in lines if not line.startswith("# ")))
    if not rows:
        sys.exit(f"error: {path} has no measurements")
    return header, rows


def read(path: Path) -> tuple[dict[str, str], list[Cell], dict[int, dict[str, Row]]]:
    """What the run was, its cells, and the machine's sweeps: by threads, by name."""
    header, lines = read_csv(path)
    found: dict[tuple, dict[str, Row]] = defaultdict(dict)
    for row in lines:
        case = Case(row["op"], row["layout"], row["dtype"], int(row["threads"]), row["buffers"])
        moved = 0 if case.op == MEMORY else int(row["bytes"])
        found[case, row["shape"], row["file"], moved][row["contender"]] = Row(
            row["contender"],
            float(row["median_us"]),
            float(row["min_us"]),
            float(row["spread_percent"]) / 100,
            float(row["gb_per_s"]),
            number(row["ratio_plain"]),
            number(row["ratio_honest"]),
            float(row["others_percent"]),
        )
    llc = int(header.get("LLC_share", 0))
    cells = [
        Cell(case, shape, file, moved, llc, rows)
        for (case, shape, file, moved), rows in found.items()
        if case.op != MEMORY
    ]
    sweeps = {case.threads: rows for (case, *_), rows in found.items() if case.op == MEMORY}
    return header, cells, sweeps


def grouped(items: Iterable[Item], key: Callable[[Item], object]) -> dict:
    """In the order in which the keys come first."""
    groups: dict = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups
