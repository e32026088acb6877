"""results.md, from what results.csv has."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

from results import (
    BEYOND,
    GROUPS,
    OURS,
    TINY,
    Case,
    Cell,
    Comparison,
    Row,
    family,
    faster_than_limit,
    grouped,
    is_plain,
    over_limit,
    over_row,
    quickest,
)
from styles import LABELS, contenders, operation_title

Sweeps = dict[int, dict[str, Row]]
NONE = "–"


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def table(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def means(found: list[Comparison]) -> str:
    medians, minima = ([getattr(c, kind) for c in found] for kind in ("median", "minima"))
    return f"{geometric_mean(medians):.2f} / {geometric_mean(minima):.2f}"


def label(name: str) -> str:
    """PyTorch operator, oneDNN 3.13, ..."""
    release = name.partition("@")[2]
    return f"{LABELS.get(family(name), family(name))} {release}".strip()


# ---- the limit itself ----------------------------------------------------------------------------


def broken_limits(cells: list[Cell]) -> str:
    found = sorted(faster_than_limit(cells), key=lambda item: item[1].median)
    if not found:
        return "No contender is faster than its honest limit by more than both times spread.\n"
    body = [
        [
            f"{ratio.cell.case} {ratio.cell.shape}",
            label(row.contender),
            ratio.cell.honest.contender,
            str(ratio),
            f"{noise:.2f}",
            f"{row.others_percent:.0f} %",
        ]
        for row, ratio, noise in found
    ]
    head = ["**faster than the limit**", "", "limit", "time / limit", "spread of both"]
    head.append("others used")
    return f"**Faster than the limit: {len(found)}**. There it is none.\n\n" + table(head, body)


def machine_best(sweeps: Sweeps, threads: int, base: str) -> Row | None:
    rows = sweeps.get(threads, {})
    return quickest(row for name, row in rows.items() if name.startswith(base))


def machine_speed(sweeps: Sweeps) -> str:
    body = []
    for threads in sorted(sweeps):
        best = [machine_best(sweeps, threads, base) for base in ("read", "copy", "triad")]
        plain = quickest(
            row
            for name, row in sweeps[threads].items()
            if name.startswith("copy") and is_plain(name)
        )
        body.append(
            [
                str(threads),
                *(f"{row.gb_per_s:.1f} ({row.contender})" for row in best),
                f"{plain.gb_per_s:.1f} ({plain.contender})",
                f"{100 * plain.gb_per_s / best[1].gb_per_s:.0f} %",
            ]
        )
    head = ["threads", "read", "copy", "triad", "plain copy", "of the best copy"]
    return table(head, body) if body else "Not measured.\n"


def share_of_memory(cell: Cell, sweeps: Sweeps) -> str:
    """The cell's best single pass, as a part of what the machine's memory can do."""
    base = "copy" if cell.single_pass.contender.startswith("copy") else "triad"
    memory = machine_best(sweeps, cell.case.threads, base)
    if not memory or cell.group != BEYOND:
        return NONE
    return f"{100 * cell.single_pass.gb_per_s / memory.gb_per_s:.0f} %"


# ---- summary -------------------------------------------------------------------------------------


def in_groups(cells: list[Cell]) -> Iterable[tuple[Case, str, list[Cell]]]:
    for case, part in grouped((c for c in cells if c.ours), lambda cell: cell.case).items():
        groups = grouped(part, lambda cell: cell.group)
        for name in GROUPS:
            if name in groups:
                yield case, name, groups[name]


def summary(cells: list[Cell]) -> str:
    body = []
    for case, group, part in in_groups(cells):
        limits = [over_limit(cell.ours, cell) for cell in part]
        worst = max(limits)
        plain = geometric_mean([cell.ours.over_plain for cell in part])
        line = [str(case), group, str(len(part)), f"{plain:.2f}"]
        line += [means(limits), str(worst), worst.cell.shape]
        rivals = [over_row(c.ours, c.fastest_peer, c) for c in part if c.fastest_peer]
        if rivals:
            worst = max(rivals)
            ahead = sum(rival.median > 1 for rival in rivals)
            line += [means(rivals), str(worst), worst.cell.shape, str(ahead)]
        else:
            line += [NONE] * 4
        body.append(line)
    head = ["ours", "", "cells", "over the plain limit", "over the limit", "worst", "at"]
    head.append("over the fastest peer")
    return table([*head, "worst", "at", "peer ahead in"], body) if body else "Nothing of ours.\n"


def peers_ahead(cells: list[Cell]) -> str:
    """One list for each group, the worst first; then what another layout is faster in."""
    text = ""

    def listed(title: str, part: list[Cell], rival: Callable[[Cell], Row | None]) -> str:
        found = [over_row(c.ours, rival(c), c) for c in part if c.ours and rival(c)]
        ahead = sorted((r for r in found if r.median > 1), reverse=True)
        lines = [
            [
                f"{r.cell.case} {r.cell.shape}",
                label(rival(r.cell).contender),
                str(r),
                str(over_limit(r.cell.ours, r.cell)),
            ]
            for r in ahead
        ]
        head = ["ours", "ahead", "ours / theirs", "ours / limit"]
        end = "\n" + table(head, lines) if lines else ""
        return f"\n{title}: {len(ahead)} of {len(found)} cells.\n{end}"

    groups = grouped(cells, lambda cell: cell.group)
    for name in GROUPS:
        text += listed(f"**{name}**", groups.get(name, []), lambda cell: cell.fastest_peer)
    blocked = "**oneDNN's blocked layout**, which is not NCHW"
    return text + listed(blocked, cells, lambda cell: cell.families.get("oneDNN-blocked"))


def against_each_peer(cells: list[Cell]) -> str:
    body = []
    for case, part in grouped((c for c in cells if c.ours), lambda cell: cell.case).items():
        for name in contenders(part)[1:]:
            found = [over_row(c.ours, c.families[name], c) for c in part if c.families.get(name)]
            worst = max(found)
            slower = sum(comparison.median > 1 for comparison in found)
            line = [str(case), label(name), str(len(found)), means(found)]
            body.append([*line, str(worst), worst.cell.shape, str(slower)])
    head = ["ours over", "", "cells", "geometric mean", "worst", "at", "slower in"]
    return table(head, body) if body else "No peer in this run.\n"


# ---- within the library --------------------------------------------------------------------------


def relations(cells: list[Cell]) -> str:
    """Ours against ours: half types, threads, what is fused, masks. Tiny tensors do not count."""
    found = {(cell.case, cell.shape): cell for cell in cells if cell.ours and cell.group != TINY}
    speeds: dict[str, list[tuple[Cell, Cell]]] = {}
    excess: dict[str, list[tuple[Cell, Cell]]] = {}

    def pair(to: dict, name: str, cell: Cell, **changed) -> None:
        other = found.get((cell.case._replace(**changed), cell.shape))
        if other:
            to.setdefault(name, []).append((cell, other))

    for cell in found.values():
        op, layout, dtype, threads, _ = cell.case
        where = f"{layout.upper()}, {cell.group}"
        base, _, parts = op.partition("+")
        if dtype in ("bfloat16", "float16"):
            pair(speeds, f"{op} {where}: {dtype} over float32", cell, dtype="float32")
        if threads > 1:
            pair(excess, f"{op} {where} {dtype}: {threads} threads over 1", cell, threads=1)
        if parts:
            pair(excess, f"{op} {where} {dtype}: over {base}", cell, op=base)

    def line(name: str, pairs, ratio: Callable[[Cell, Cell], float], worst) -> list[str]:
        values = [(ratio(a, b), a.shape) for a, b in pairs]
        mean = geometric_mean([value for value, _ in values])
        extreme, shape = worst(values)
        return [name, str(len(values)), f"{mean:.2f}", f"{extreme:.2f}", shape]

    def speed(cell: Cell, other: Cell) -> float:
        return other.ours.median / cell.ours.median

    def over(cell: Cell, other: Cell) -> float:
        """Each to its own limit: a residual must be read, and threads share the memory."""
        return cell.ours.over_honest / other.ours.over_honest

    body = [line(name, pairs, speed, min) for name, pairs in speeds.items()]
    text = table(["speed-up", "cells", "geometric mean", "least", "at"], body) if body else ""
    body = [line(name, pairs, over, max) for name, pairs in excess.items()]
    if body:
        head = ["ratio to the limit, over the other's ratio to its own", "cells", "geometric mean"]
        text += "\n" + table([*head, "most", "at"], body)
    return text or "Nothing to compare in this run.\n"


# ---- cells ---------------------------------------------------------------------------------------


def timing(row: Row) -> str:
    """Median, minimum and spread of a contender's repetitions."""
    return f"{row.median:.1f} / {row.minimum:.1f} / {100 * row.spread:.1f} %"


def every_cell(cells: list[Cell], sweeps: Sweeps) -> str:
    text = ""
    for case, part in grouped(cells, lambda cell: cell.case).items():
        names = contenders(part)[1:]
        body = []
        for cell in part:
            ours, families = cell.ours, cell.families
            body.append(
                [
                    cell.shape,
                    cell.group,
                    f"{cell.honest.contender}: {timing(cell.honest)}",
                    f"{cell.single_pass.gb_per_s:.1f}",
                    share_of_memory(cell, sweeps),
                    f"{cell.plain.over_honest:.2f}",
                    timing(ours) if ours else NONE,
                    str(over_limit(ours, cell)) if ours else NONE,
                    *(
                        f"{families[name].over_honest:.2f}" if name in families else NONE
                        for name in names
                    ),
                ]
            )
        head = ["shape", "", "limit, µs", "one pass, GB/s", "of memory", "plain / limit"]
        head += ["libbatchnorm, µs", "libbatchnorm / limit", *map(label, names)]
        op, layout, dtype, threads, buffers = case
        what = f"{operation_title(op)}, {layout.upper()}, {dtype}"
        title = f"{what}, threads: {threads}, {buffers} buffers"
        text += f"\n### {title[0].upper()}{title[1:]}\n\n{table(head, body)}"
    return text


def call_costs(cells: list[Cell]) -> str:
    """Tiny tensors, in microseconds: what a call costs beyond the arithmetic."""
    body = []
    peers = [name for name in contenders(cells) if name != OURS]
    for cell in cells:
        rows = {**cell.rows, **cell.families}
        if "bare" not in rows or OURS not in rows:
            continue

        def time(name: str, rows=rows) -> str:
            return f"{rows[name].median:.2f} / {rows[name].minimum:.2f}" if name in rows else NONE

        def over(name: str, other: str, rows=rows) -> str:
            if name not in rows:
                return NONE
            a, b = rows[name], rows[other]
            return f"{a.median - b.median:+.2f} / {a.minimum - b.minimum:+.2f}"

        body.append(
            [
                str(cell.case),
                cell.shape,
                time("bare"),
                time(OURS),
                over(OURS, "bare"),
                time("batchnorm-python"),
                over("batchnorm-python", OURS),
                *(time(name) for name in peers),
            ]
        )
    head = ["", "shape", "bare loop", "from C", "over the loop", "from Python", "over C"]
    return table([*head, *map(label, peers)], body) if body else "No tiny tensor in this run.\n"


# ---- the whole -----------------------------------------------------------------------------------

INTRODUCTION = """\
# Benchmark

Made by benchmarks/report.py from results.csv. Lower is better: figures are ratios of times in one
run, interleaved round by round, and shown as `median / minima`: the median of the rounds' ratios,
and one's fastest repetition over the other's fastest, which a neighbour on the machine disturbs
less.

The **limit** of a cell is the fastest sweep found that moves what the operation must: a copy
(forward), a triad (backward, or a forward with a residual) or a tetrad (a backward with the
residual's gradient), behind a read of the inputs where they must come from memory twice. Its name
tells how: `-xK` streams, `-near` and `-far` prefetches, `-nt` non-temporal stores; behind `+reads`
the same of that read, `-both` inputs in one loop, `-back`: written from the end. The *plain* limit
is the simple loop without any of this.

Cells are in three groups: tensors that together are larger than what is counted on of the
last-level cache (all up to 64 MiB, else 8 MiB a core), those that fit, and tiny ones, where a call
is the cost (up to 65,536 values).
"""
BROKEN = "## Is the limit one?\n"
SPEED = """\
## The machine's memory, in GB/s

Read and written, of tensors of {size}: the best sweep of each kind. `Of memory` below is what a
cell's best single pass reaches of that.
"""
SUMMARY = "## Against the limit and the fastest peer in the same layout\n"
AHEAD = """\
## Where a peer is ahead

Of the peers in the same layout, the fastest one, and of two releases the faster. The worst first.
"""
EACH = "## Against each peer\n"
RELATIONS = "## Half types, threads, what is fused, masks\n"
CALLS = """\
## Cost of a call on tiny tensors, in µs

The bare loop is plain C on one thread, without checks, with sums of the element type. Figures are
median / minimum, and the differences of both.
"""
CELLS = """\
## Every cell

Times are median / minimum / spread (interquartile range) of the repetitions; peers are told as
ratios to the limit.
"""


def disturbance(cells: list[Cell]) -> str:
    others = sorted(next(iter(cell.rows.values())).others_percent for cell in cells)
    return f"{others[len(others) // 2]:.0f} % of the machine (median), at most {others[-1]:.0f} %"


def write_tables(header: dict[str, str], cells: list[Cell], sweeps: Sweeps, path: Path) -> None:
    facts = [*header.items(), ("used by other processes meanwhile", disturbance(cells))]
    parts = [
        INTRODUCTION,
        table(["", ""], [list(map(str, fact)) for fact in facts]),
        BROKEN,
        broken_limits(cells),
        SPEED.format(size=header.get("memory_tensors", "512 MB")),
        machine_speed(sweeps),
        SUMMARY,
        summary(cells),
        AHEAD + peers_ahead(cells),
        EACH,
        against_each_peer(cells),
        RELATIONS,
        relations(cells),
        CALLS,
        call_costs(cells),
        CELLS + every_cell(cells, sweeps),
    ]
    path.write_text("\n".join(parts))
