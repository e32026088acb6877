#!/usr/bin/env python3
"""Makes the table (results.md) and the pictures from results.csv, and from nothing else.

report.py FOLDER        reads FOLDER/results.csv, writes beside it
"""

from __future__ import annotations

import csv
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import FuncFormatter, NullFormatter  # noqa: E402

OURS = "batchnorm"
OPS = {
    "forward": "training forward",
    "inference": "inference forward",
    "backward": "backward",
    "frozen": "backward, frozen statistics",
}
PARTS = {"lengths": "masked sequences", "add": "residual", "relu": "ReLU"}  # behind a "+"
STYLE = {
    OURS: ("#d62728", "o", "libbatchnorm"),
    "PyTorch": ("#ff9f43", "s", "PyTorch operator"),
    "PyTorch-module": ("#e1b12c", "D", "PyTorch module"),
    "PyTorch-compile": ("#b5651d", "d", "PyTorch, compiled"),
    "oneDNN": ("#1f77b4", "^", "oneDNN"),
    "oneDNN-blocked": ("#74b9ff", "v", "oneDNN, blocked layout"),
    "JAX": ("#2ca02c", "P", "JAX"),
    "ONNXRuntime": ("#8e44ad", "X", "ONNX Runtime"),
}
FASTEST = "the fastest of them"
Row = dict[str, str]
CASE = ("op", "layout", "dtype", "threads", "buffers")


def read(path: Path) -> tuple[dict[str, str], list[Row]]:
    with path.open(newline="") as file:
        lines = file.readlines()
    header = dict(line[2:].rstrip("\n").split(": ", 1) for line in lines if line.startswith("# "))
    rows = list(csv.DictReader(line for line in lines if not line.startswith("# ")))
    if not rows:
        sys.exit(f"error: {path} has no measurements")
    return header, rows


def operation_title(op: str) -> str:
    """Of "forward+add+relu", say."""
    operation, *parts = op.split("+")
    return " + ".join([OPS[operation], *(PARTS[part] for part in parts)])


def tensors(op: str) -> int:
    """That the operation must move; see Cell.tensors in run.py."""
    return 2 + op.startswith(("backward", "frozen")) + ("+add" in op)


def is_tiny(shape: str) -> bool:
    """The call is the cost. The harness has a bare loop for these: BARE_MAX in harness.h."""
    return math.prod(map(int, shape.split("x"))) <= 1 << 16


def is_limit(name: str) -> bool:
    return name.startswith(("copy", "triad", "tetrad"))


def is_plain(name: str) -> bool:
    """A limit of one stream."""
    return is_limit(name) and "-x" not in name and "+" not in name


def is_single_pass(name: str) -> bool:
    return is_limit(name) and "+" not in name


def is_plain_with_reads(name: str) -> bool:
    return is_limit(name) and "-x" not in name and "+" in name


def is_implementation(name: str) -> bool:
    """Neither a limit nor one of the two that tell the cost of a call; see call_costs."""
    return not is_limit(name) and name not in ("bare", "batchnorm-python")


def group(rows: Iterable[Row], *keys: str) -> dict[tuple[str, ...], list[Row]]:
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[key] for key in keys)].append(row)
    return groups


def plain_limit(cell: list[Row]) -> Row:
    """The row that ratio_plain is relative to."""
    names = [row for row in cell if is_plain(row["contender"])]
    return min(names, key=lambda row: float(row["median_us"]))


def fastest(cell: list[Row], belongs) -> Row | None:
    rows = [row for row in cell if belongs(row["contender"])]
    return min(rows, key=lambda row: float(row["median_us"])) if rows else None


def contenders(rows: Iterable[Row]) -> list[str]:
    """Ours first, then the peers that are there; those without a style of their own last."""
    names = {row["contender"] for row in rows if is_implementation(row["contender"])}
    return [name for name in STYLE if name in names] + sorted(names - set(STYLE))


# ---- table ---------------------------------------------------------------------------------------


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def table(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def figure(value: str) -> str:
    return f"{float(value):.2f}" if value else "–"


class Comparison(NamedTuple):
    """Ours over another contender in one cell."""

    median: float  # the median ratio
    minima: float  # our fastest repetition over the other's fastest
    shape: str


COMPARED = ["geometric mean", "by minima", "worst", "by minima", "at", "cells"]


def compared(cells: list[Comparison]) -> list[str]:
    """The columns COMPARED."""
    worst = max(cells)
    return [
        f"{geometric_mean([cell.median for cell in cells]):.2f}",
        f"{geometric_mean([cell.minima for cell in cells]):.2f}",
        f"{worst.median:.2f}",
        f"{worst.minima:.2f}",
        worst.shape,
        str(len(cells)),
    ]


LIMITS = {  # the CSV's ratio, its name, and the limits that it is relative to the fastest of
    "ratio_plain": ("plain limit", is_plain),
    "ratio_best": ("best limit", is_single_pass),
    "ratio_reads": ("plain limit + reads", is_plain_with_reads),
}


def case_name(op: str, layout: str, dtype: str, threads: str, buffers: str) -> str:
    return f"{op} {layout.upper()} {dtype} x{threads} {buffers}"


def microseconds(row: Row, kind: str) -> float:
    return float(row[f"{kind}_us"])


def over_minimum(ours: Row, others: Iterable[Row]) -> float:
    """Our fastest repetition over the fastest of all of theirs."""
    return microseconds(ours, "min") / min(microseconds(row, "min") for row in others)


def cells_of_ours(rows: list[Row]) -> Iterator[tuple[str, Row, list[Row]]]:
    """Shape, our row and all rows of each cell."""
    for (shape,), cell in group(rows, "shape").items():
        for row in cell:
            if row["contender"] == OURS:
                yield shape, row, cell


def against_limits(rows: list[Row]) -> str:
    body = []
    for case, part in group(rows, *CASE).items():
        found: dict[str, list[Comparison]] = defaultdict(list)
        for shape, ours, cell in cells_of_ours(part):
            if is_tiny(shape):
                continue
            for ratio, (name, belongs) in LIMITS.items():
                if ours[ratio]:
                    limits = [row for row in cell if belongs(row["contender"])]
                    minima = over_minimum(ours, limits)
                    found[name].append(Comparison(float(ours[ratio]), minima, shape))
        body += [[case_name(*case), name, *compared(cells)] for name, cells in found.items()]
    return table(["ours over", "", *COMPARED], body) if body else "Tiny tensors only.\n"


def against_peers(rows: list[Row]) -> str:
    body = []
    for case, part in group(rows, *CASE).items():
        names = contenders(part)[1:]
        found: dict[str, list[Comparison]] = {name: [] for name in [*names, FASTEST]}
        for shape, ours, cell in cells_of_ours(part):
            peers = [row for row in cell if row["contender"] in names]
            for name, rivals in [(row["contender"], [row]) for row in peers] + [(FASTEST, peers)]:
                if rivals:
                    best = min(microseconds(row, "median") for row in rivals)
                    median = microseconds(ours, "median") / best
                    found[name].append(Comparison(median, over_minimum(ours, rivals), shape))
        for name, cells in found.items():
            if cells:
                slower = [cell for cell in sorted(cells, reverse=True) if cell.median > 1]
                listed = (
                    f"{cell.shape} ({cell.median:.2f} / {cell.minima:.2f})" for cell in slower
                )
                label = STYLE[name][2] if name in STYLE else name
                body.append(
                    [
                        case_name(*case),
                        label,
                        *compared(cells),
                        str(len(slower)),
                        ", ".join(listed) or "–",
                    ]
                )
    head = ["ours over", "", *COMPARED, "slower in", "which"]
    return table(head, body) if body else "No peer in this run.\n"


def tables(rows: list[Row]) -> str:
    text = ""
    for case, part in group(rows, *CASE).items():
        op, layout, dtype, threads, buffers = case
        names = contenders(part)[1:]
        body = []
        for shape, ours, cell in cells_of_ours(part):
            by_name = {row["contender"]: row for row in cell}
            limit = plain_limit(cell)
            best = fastest(cell, is_single_pass)
            reads = fastest(cell, is_plain_with_reads)
            plain = [row for row in cell if is_plain(row["contender"])]
            body.append(
                [
                    shape,
                    f"{noise_of(limit)} ({limit['contender']})",
                    noise_of(ours),
                    figure(ours["ratio_plain"]),
                    f"{over_minimum(ours, plain):.2f}",
                    figure(best["ratio_plain"]),
                    figure(reads["ratio_plain"]) if reads else "–",
                    *(
                        figure(by_name[name]["ratio_plain"]) if name in by_name else "–"
                        for name in names
                    ),
                ]
            )
        head = [
            "shape",
            "plain limit, µs",
            "libbatchnorm, µs",
            "libbatchnorm",
            "by minima",
            "best limit",
            "with reads",
            *(STYLE[name][2] if name in STYLE else name for name in names),
        ]
        what = f"{operation_title(op)}, {layout.upper()}, {dtype}"
        title = f"{what}, threads: {threads}, {buffers} buffers"
        text += f"\n### {title[0].upper()}{title[1:]}\n\n{table(head, body)}"
    return text


def noise_of(row: Row) -> str:
    """Median, minimum and spread of a contender's repetitions."""
    median, minimum = (microseconds(row, kind) for kind in ("median", "min"))
    return f"{median:.1f} / {minimum:.1f} / {row['spread_percent']} %"


def call_costs(rows: list[Row]) -> str:
    """Tiny tensors, in microseconds: what a call costs beyond the arithmetic."""
    body = []
    peers = [name for name in contenders(rows) if name != OURS]
    for key, cell in group(rows, *CASE, "shape").items():
        *case, shape = key
        by_name = {row["contender"]: row for row in cell}
        if "bare" not in by_name or OURS not in by_name:
            continue

        def time(name: str, by_name=by_name) -> str:
            if name not in by_name:
                return "–"
            median, minimum = (microseconds(by_name[name], kind) for kind in ("median", "min"))
            return f"{median:.2f} / {minimum:.2f}"

        def over(name: str, other: str, by_name=by_name) -> str:
            if name not in by_name:
                return "–"
            median, minimum = (
                microseconds(by_name[name], kind) - microseconds(by_name[other], kind)
                for kind in ("median", "min")
            )
            return f"{median:+.2f} / {minimum:+.2f}"

        body.append(
            [
                case_name(*case),
                shape,
                time("bare"),
                time(OURS),
                over(OURS, "bare"),
                time("batchnorm-python"),
                over("batchnorm-python", OURS),
                *(time(name) for name in peers),
            ]
        )
    labels = [STYLE[name][2] if name in STYLE else name for name in peers]
    head = ["", "shape", "bare loop", "from C", "over the loop", "from Python", "over C", *labels]
    return table(head, body) if body else "No tiny tensor in this run.\n"


INTRODUCTION = """\
# Benchmark

Made by benchmarks/report.py from results.csv. Lower is better: all figures are ratios of times in
one run, interleaved round by round. The plain limit is the faster of two single-stream copies
(forward), triads (backward, or a forward with a residual) or tetrads (a backward with the
residual's gradient), with ordinary and with non-temporal stores, of the same size, on the same
threads. The best limit also tries interleaved, prefetched streams. `With reads` reads the inputs of
the statistics once more, as NHWC must where a strip of channels outgrows the cache.

A ratio is the median over the rounds; `by minima` is our fastest repetition over the other's
fastest, which a neighbour on the machine disturbs less.
"""

LIMIT_SUMMARY = """
## Against the limit

Below 1 is faster. Tiny tensors, whose copy is over before a call has begun, do not count; they have
a table of their own below.
"""

PEER_SUMMARY = """
## Against the peers

Below 1 is faster. `Slower in`: the number of cells in which ours is the slower one, and which, the
worst first: (ratio / by minima). Tiny tensors count.
"""

CALLS = """
## Cost of a call on tiny tensors, in µs

The bare loop is plain C on one thread, without checks, with sums of the element type. Figures are
median / minimum, and the differences of both.
"""

RATIOS = """
## Ratios to the plain limit

Times are median / minimum / spread (interquartile range) of the repetitions.
"""


def noise(rows: list[Row]) -> str:
    others = sorted(float(row["others_percent"]) for row in rows if row["contender"] == OURS)
    return f"{others[len(others) // 2]:.0f} % of the machine (median), at most {others[-1]:.0f} %"


def write_table(header: dict[str, str], rows: list[Row], path: Path) -> None:
    parts = [
        INTRODUCTION,
        table(
            ["", ""],
            [
                *([key, value] for key, value in header.items()),
                ["used by other processes meanwhile", noise(rows)],
            ],
        ),
        LIMIT_SUMMARY,
        against_limits(rows),
        PEER_SUMMARY,
        against_peers(rows),
        CALLS,
        call_costs(rows),
        RATIOS + tables(rows),
    ]
    path.write_text("\n".join(parts))


# ---- pictures ------------------------------------------------------------------------------------


def plain_numbers(axis) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def caption(figure, header: dict[str, str], rest: str) -> None:
    versions = ", ".join(
        f"{key} {header[key]}"
        for key in ("batchnorm", "PyTorch", "oneDNN", "JAX", "ONNXRuntime")
        if key in header
    )
    machine = ", ".join(header.get(key, "?") for key in ("cpu", "isa"))
    text = f"{machine}; {rest}; {versions}; {header.get('date', '')}"
    figure.text(0.01, 0.005, text, fontsize=7, color="#666666")


def draw_ratios(axes, cells: list[list[Row]]) -> None:
    names = contenders(row for cell in cells for row in cell)
    for place, cell in enumerate(cells):
        reads = fastest(cell, is_plain_with_reads)
        best = fastest(cell, is_single_pass)
        for row, label, style in (
            (best, "best copy known", "-"),
            (reads, "limit with the second read", ":"),
        ):
            if row:
                axes.hlines(
                    float(row["ratio_plain"]),
                    place - 0.4,
                    place + 0.4,
                    color="#777777",
                    linestyle=style,
                    linewidth=1.3,
                    label=label if place == 0 else None,
                    zorder=2,
                )
    for name in reversed(names):
        color, marker, label = STYLE.get(name, ("#333333", ".", name))
        points = [
            (place, float(row["ratio_plain"]))
            for place, cell in enumerate(cells)
            for row in cell
            if row["contender"] == name
        ]
        axes.plot(
            *zip(*points, strict=True),
            marker,
            color=color,
            label=label,
            zorder=5 if name == OURS else 3,
            markersize=8 if name == OURS else 6,
            markeredgecolor="white",
            markeredgewidth=0.6,
            linestyle="none",
        )
    axes.axhline(1, color="black", linewidth=1, zorder=1)
    axes.set_yscale("log")
    axes.set_yticks([0.5, 1, 2, 3, 5, 10, 20, 50, 100, 1e3, 1e4])
    plain_numbers(axes.yaxis)
    axes.set_xticks(
        range(len(cells)),
        [cell[0]["shape"].replace("x", "×") for cell in cells],
        rotation=35,
        ha="right",
        fontsize=8,
    )
    axes.set_xlim(-0.6, len(cells) - 0.4)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6, zorder=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def ratio_picture(header, rows: list[Row], op: str, path: Path) -> None:
    layouts = group(rows, "layout")
    wide = max(len(group(part, "shape")) for part in layouts.values())
    figure, panels = plt.subplots(
        1,
        len(layouts),
        figsize=(min(2 + len(layouts) * max(4.2, 0.48 * wide), 24), 5),
        squeeze=False,
        sharey=True,
    )
    for axes, ((layout,), part) in zip(panels[0], layouts.items(), strict=True):
        draw_ratios(axes, list(group(part, "shape").values()))
        axes.set_title(f"{layout.upper()}", loc="left", fontsize=11)
    values = [float(row["ratio_plain"]) for row in rows if is_implementation(row["contender"])]
    panels[0][0].set_ylim(min(0.6, min(values) / 1.2), max(max(values) * 1.3, 8))
    panels[0][0].set_ylabel(
        f"time / time of the plain {('copy', 'triad', 'tetrad')[tensors(op) - 2]}   (log)"
    )
    legend: dict[str, object] = {}
    for axes in panels[0]:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            legend[label] = handle
    order = [style[2] for style in STYLE.values()]
    labels = sorted(legend, key=lambda label: order.index(label) if label in order else len(order))
    figure.legend(
        [legend[label] for label in labels],
        labels,
        loc="upper left",
        bbox_to_anchor=(0.0, 0.955),
        ncols=6,
        fontsize=8,
        frameon=False,
        handletextpad=0.3,
        columnspacing=1.2,
    )
    row, title = rows[0], operation_title(op)
    figure.suptitle(
        f"{title[0].upper()}{title[1:]}: lower is better, 1 is memory speed",
        x=0.01,
        ha="left",
        fontsize=12,
    )
    caption(figure, header, f"{row['dtype']}, {row['threads']} threads, {row['buffers']} buffers")
    figure.tight_layout(rect=(0, 0.02, 1, 0.92))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def threads_picture(header, rows: list[Row], path: Path) -> bool:
    rows = [
        row
        for row in rows
        if row["dtype"] == "float32" and row["buffers"] == "warm" and row["file"] != "sizes"
    ]
    counts = sorted({int(row["threads"]) for row in rows})
    if len(counts) < 2:
        return False
    parts = group((row for row in rows if row["op"] in ("forward", "backward")), "op", "layout")
    if not parts:
        return False
    figure, panels = plt.subplots(
        1, len(parts), figsize=(2 + 3.6 * len(parts), 4.6), squeeze=False, sharey=True
    )
    for axes, ((op, layout), part) in zip(panels[0], parts.items(), strict=True):
        shapes = [
            shape
            for shape, cells in group(part, "shape").items()
            if {int(row["threads"]) for row in cells} >= set(counts)
        ]
        for offset, (label, color, belongs) in enumerate(
            (
                ("libbatchnorm", STYLE[OURS][0], lambda name: name == OURS),
                ("plain limit", "#777777", is_plain),
                ("PyTorch operator", STYLE["PyTorch"][0], lambda name: name == "PyTorch"),
            )
        ):
            points = []
            for place, (shape,) in enumerate(shapes):
                time = {}
                for count in (counts[0], counts[-1]):
                    row = fastest(
                        [r for r in part if r["shape"] == shape and int(r["threads"]) == count],
                        belongs,
                    )
                    time[count] = float(row["median_us"]) if row else math.nan
                points.append((place + 0.26 * (offset - 1), time[counts[0]] / time[counts[-1]]))
            points = [point for point in points if not math.isnan(point[1])]
            if points:
                axes.bar(*zip(*points, strict=True), width=0.24, color=color, label=label, zorder=3)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_title(f"{op} {layout.upper()}", loc="left", fontsize=10)
        axes.set_xticks(
            range(len(shapes)),
            [shape.replace("x", "×") for (shape,) in shapes],
            rotation=40,
            ha="right",
            fontsize=7,
        )
        axes.grid(axis="y", color="#dddddd", linewidth=0.6, zorder=0)
    panels[0][0].set_ylabel(f"time on {counts[0]} thread / time on {counts[-1]} threads")
    panels[0][-1].legend(fontsize=8, frameon=False)
    figure.suptitle(
        f"From {counts[0]} to {counts[-1]} threads: as the copy itself scales",
        x=0.01,
        ha="left",
        fontsize=12,
    )
    caption(figure, header, "float32, warm buffers")
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def sizes_picture(header, rows: list[Row], path: Path) -> bool:
    rows = [row for row in rows if row["file"] == "sizes"]
    if not rows:
        return False
    threads = max(int(row["threads"]) for row in rows)
    parts = group((row for row in rows if int(row["threads"]) == threads), "op")
    figure, panels = plt.subplots(
        1, len(parts), figsize=(2 + 4.2 * len(parts), 4.6), squeeze=False, sharey=True
    )
    for axes, ((op,), part) in zip(panels[0], parts.items(), strict=True):
        cells = sorted(group(part, "shape").values(), key=lambda cell: int(cell[0]["bytes"]))
        moved = tensors(op)
        sizes = [int(cell[0]["bytes"]) / moved for cell in cells]

        def speed(row: Row | None) -> float:
            return float(row["gb_per_s"]) if row else math.nan

        axes.plot(
            sizes,
            [speed(plain_limit(cell)) for cell in cells],
            color="black",
            linewidth=1.2,
            label="plain limit",
        )
        axes.plot(
            sizes,
            [speed(fastest(cell, is_single_pass)) for cell in cells],
            color="#777777",
            linewidth=1,
            linestyle="--",
            label="best limit",
        )
        for name in contenders(part):
            color, marker, label = STYLE.get(name, ("#333333", ".", name))
            values = [
                speed(next((row for row in cell if row["contender"] == name), None))
                for cell in cells
            ]
            axes.plot(
                sizes,
                values,
                color=color,
                marker=marker,
                markersize=4,
                linewidth=2 if name == OURS else 1,
                label=label,
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = [2**power for power in range(12, 31, 3)]
        axes.set_xticks(
            ticks,
            [
                f"{t >> 30} GB" if t >> 30 else f"{t >> 20} MB" if t >> 20 else f"{t >> 10} KB"
                for t in ticks
            ],
        )
        plain_numbers(axes.yaxis)
        for cache in ("L2", "LLC"):
            if header.get(cache, "0") != "0":
                axes.axvline(int(header[cache]) / moved, color="#cccccc", linewidth=0.8, zorder=0)
        axes.set_title(operation_title(op), loc="left", fontsize=10)
        axes.set_xlabel("one tensor (grey: working set = L2, LLC)")
        axes.grid(color="#eeeeee", linewidth=0.6, zorder=0)
    panels[0][0].set_ylabel("GB/s of necessary traffic (log)")
    panels[0][-1].legend(fontsize=8, frameon=False)
    figure.suptitle("Speed against size: higher is better", x=0.01, ha="left", fontsize=12)
    caption(figure, header, f"NCHW, float32, {threads} threads, warm buffers")
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    header, rows = read(folder / "results.csv")
    for old in (*folder.glob("ratio-*.png"), folder / "threads.png", folder / "sizes.png"):
        old.unlink(missing_ok=True)
    write_table(header, rows, folder / "results.md")
    written = [folder / "results.md"]
    threads = max(int(row["threads"]) for row in rows)
    usual = [
        row
        for row in rows
        if int(row["threads"]) == threads
        and row["dtype"] == "float32"
        and row["buffers"] == "warm"
        and row["file"] != "sizes"
    ]
    for (op, file), part in group(usual, "op", "file").items():
        path = folder / (f"ratio-{op}.png" if file == "design" else f"ratio-{op}-{file}.png")
        ratio_picture(header, part, op, path)
        written.append(path)
    for draw, name in ((threads_picture, "threads.png"), (sizes_picture, "sizes.png")):
        if draw(header, rows, folder / name):
            written.append(folder / name)
    print("\n".join(map(str, written)))


if __name__ == "__main__":
    main()
