#!/usr/bin/env python3
"""Makes network.md and network.png from network.csv, and from nothing else.

network_report.py FOLDER        reads FOLDER/network.csv, writes beside it
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
from results import grouped, read_csv
from tables import geometric_mean, table

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

Row = dict[str, str]

PARTS = {  # the CSV's columns without "_ms"
    "convolution": ("convolution", "#b0b7c3"),
    "batch_norm_forward": ("batch norm forward", "#d62728"),
    "batch_norm_backward": ("batch norm backward", "#ff9896"),
    "activation_add": ("activation, addition", "#ff9f43"),
    "optimizer": ("optimizer", "#8c6bb1"),
    "rest": ("rest", "#dddddd"),
}
CHANGED = ("batch_norm_forward", "batch_norm_backward", "activation_add")  # by a conversion
CASE = ("network", "format", "threads", "allocator")

INTRODUCTION = """\
# Networks in PyTorch, stock against converted

Made by benchmarks/network_report.py from network.csv. `ratio` is the time of the converted network
over the stock one's, below 1 is faster: the median over the rounds of each round's ratio. `By
minima` is fastest over fastest, which a neighbour on the machine disturbs less. Times are
median / minimum. `malloc` is the same for both: *kept* keeps the memory that is freed, as
`batchnorm.memory.keep_pages()` does, *huge* in huge pages; *system* gives large blocks back.
"""

SHARES = """
## Where the time goes

Of a profiled pass, the fastest of three, in milliseconds, stock → converted. `Could gain` is the
ratio that would be left if what a conversion changes (batch norm, activations, additions) cost
nothing: what goes below it is noise, or memory that convolutions got back warm.
"""

MEMORY = """
## Memory

Page faults of one pass, time in the kernel (all threads) and the process's peak so far, stock →
converted. Inference is measured first.
"""

DIFFERENCES = """
## Do both compute the same?

Relative differences (L2) of the converted network's results from the stock one's, after one
training step: in float64 on small images, where more than 1e-8 ends the run, and in float32 on what
is timed.
"""


def group(rows: list[Row], *keys: str) -> dict[tuple[str, ...], list[Row]]:
    return grouped(rows, lambda row: tuple(row[key] for key in keys))


def value(row: Row, column: str) -> float:
    return float(row[column])


def milliseconds(row: Row, parts=PARTS) -> float:
    return sum(value(row, f"{part}_ms") for part in parts)


def both(rows: list[Row]) -> tuple[Row, Row]:
    """Of one cell and pass: stock, converted."""
    by_name = {row["contender"]: row for row in rows}
    return by_name["stock"], by_name["converted"]


def title(case: tuple[str, ...]) -> list[str]:
    name, memory_format, threads, allocator, what = case
    return [f"{name} {what}", memory_format, threads, allocator]


def write_table(header: dict[str, str], rows: list[Row], path: Path) -> None:
    times, shares, memory, differences, ratios = [], [], [], [], {}
    for case, part in group(rows, *CASE, "pass").items():
        stock, ours = both(part)
        what = title(case)
        ratios.setdefault((case[-1], case[2]), []).append(value(ours, "ratio"))
        shown = [f"{row['median_ms']} / {row['min_ms']}" for row in (stock, ours)]
        times.append(
            [*what, *shown, ours["ratio"], ours["ratio_minima"], f"{ours['others_percent']} %"]
        )
        gain = 1 - milliseconds(stock, CHANGED) / milliseconds(stock)
        parts = [" → ".join(f"{value(r, f'{p}_ms'):.1f}" for r in (stock, ours)) for p in PARTS]
        shares.append([*what, *parts, f"{gain:.2f}", ours["ratio"]])
        columns = ("page_faults", "kernel_ms", "peak_mib")
        memory.append([*what, *(f"{stock[name]} → {ours[name]}" for name in columns)])
    kinds = [name for name in rows[0] if name.endswith(("_float64", "_float32"))]
    for (name, memory_format), part in group(rows, "network", "format").items():
        differences.append([f"{name} {memory_format}", *(part[0][kind] for kind in kinds)])
    named = ["", "memory format", "threads", "malloc"]
    means = [
        [f"{what}, threads: {threads}", f"{geometric_mean(found):.3f}", f"{max(found):.3f}"]
        for (what, threads), found in sorted(ratios.items())
    ]
    labels = [label for label, _ in PARTS.values()]
    parts = [
        INTRODUCTION,
        table(["", ""], [[key, text] for key, text in header.items()]),
        table(["ratio", "geometric mean", "worst"], means),
        table([*named, "stock, ms", "converted, ms", "ratio", "by minima", "others used"], times),
        SHARES,
        table([*named, *labels, "could gain", "ratio"], shares),
        MEMORY,
        table([*named, "page faults", "kernel, ms", "peak, MiB"], memory),
        DIFFERENCES,
        table(["", *(kind.replace("_", " ") for kind in kinds)], differences),
    ]
    path.write_text("\n".join(parts))


def draw(axes, rows: list[Row]) -> None:
    """A pair of bars a cell: the parts' shares of the stock network's time, and the converted
    network's on the same scale, as high as its ratio by minima.
    """
    cells = list(group(rows, *CASE).items())
    for place, (_, part) in enumerate(cells):
        for offset, row in zip((-0.21, 0.21), both(part), strict=True):
            base, scale = 0.0, value(row, "ratio_minima") / milliseconds(row)
            for name, (label, color) in PARTS.items():
                height = scale * value(row, f"{name}_ms")
                axes.bar(
                    place + offset,
                    height,
                    0.38,
                    base,
                    color=color,
                    label=None if place or offset > 0 else label,
                    zorder=3,
                )
                base += height
            if row["contender"] == "converted":
                axes.text(
                    place + offset, base + 0.01, f"{base:.2f}", ha="center", va="bottom", fontsize=8
                )
    axes.axhline(1, color="black", linewidth=0.8, zorder=4)
    names = ["\n".join(case[:2]) for case, _ in cells]
    if len({case[3] for case, _ in cells}) > 1:
        names = [f"{name}\n{case[3]}" for name, (case, _) in zip(names, cells, strict=True)]
    axes.set_xticks(range(len(cells)), names, fontsize=7)
    axes.set_xlim(-0.6, len(cells) - 0.4)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6, zorder=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def picture(header: dict[str, str], rows: list[Row], path: Path) -> None:
    """A panel per pass and number of threads."""
    panels = group(rows, "pass", "threads")
    passes = [what for what in ("training", "inference") if any(key[0] == what for key in panels)]
    threads = sorted({key[1] for key in panels}, key=int)
    wide = max(len(group(part, *CASE)) for part in panels.values())
    figure, grid = plt.subplots(
        len(passes),
        len(threads),
        figsize=(max(9.5, 1.5 + len(threads) * 1.05 * wide), 1.2 + 3.6 * len(passes)),
        squeeze=False,
        sharey=True,
    )
    for line, what in zip(grid, passes, strict=True):
        for axes, count in zip(line, threads, strict=True):
            draw(axes, panels[what, count])
            name = {"training": "training step", "inference": "inference pass"}[what]
            axes.set_title(f"{name}, threads: {count}", loc="left", fontsize=10)
        line[0].set_ylabel("share of the stock network's time")
    figure.legend(
        *grid[0][0].get_legend_handles_labels(),
        loc="upper left",
        bbox_to_anchor=(0.0, 0.96),
        ncols=len(PARTS),
        fontsize=8,
        frameon=False,
    )
    figure.suptitle(
        "Where a network's time goes: stock (left) and converted (right, its ratio above)",
        x=0.01,
        ha="left",
        fontsize=12,
    )
    told = (header.get(key, "") for key in ("cpu", "date"))
    versions = (f"{key} {header[key]}" for key in ("PyTorch", "batchnorm") if key in header)
    allocators = sorted({row["allocator"] for row in rows})
    malloc = f"malloc {', '.join(allocators)}, for both"
    text = "; ".join([*told, *versions, malloc, "float32; heights by minima, shares by a profile"])
    figure.text(0.01, 0.005, text, fontsize=7, color="#666666")
    figure.tight_layout(rect=(0, 0.02, 1, 0.93))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    header, rows = read_csv(folder / "network.csv")
    write_table(header, rows, folder / "network.md")
    picture(header, rows, folder / "network.png")
    print(folder / "network.md", folder / "network.png", sep="\n")


if __name__ == "__main__":
    main()
