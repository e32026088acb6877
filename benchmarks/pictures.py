"""The pictures, from what results.csv has."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import FuncFormatter, MultipleLocator, NullFormatter  # noqa: E402
from results import (  # noqa: E402
    BEYOND,
    GROUPS,
    INSIDE,
    OURS,
    TINY,
    Cell,
    Row,
    grouped,
    is_plain,
    is_single_pass,
    moved_tensors,
)
from styles import LABELS, contenders, operation_title  # noqa: E402

BLUE, GREY, INK, FADED, FAINT = "#0b5fa5", "#b8bfc6", "#1f2328", "#59636e", "#d8dee4"
LINES = {  # of a picture with a line for each contender
    OURS: (BLUE, "o"),
    "PyTorch": ("#e8590c", "s"),
    "PyTorch-module": ("#f59f00", "D"),
    "PyTorch-compile": ("#a0522d", "d"),
    "oneDNN": ("#2b8a3e", "^"),
    "oneDNN-blocked": ("#82c91e", "v"),
    "JAX": ("#9c36b5", "P"),
    "ONNXRuntime": ("#c2255c", "X"),
}
SHORT = {"PyTorch-module": "PyTorch", "PyTorch-compile": "compiled", "ONNXRuntime": "ONNX RT"}
LONGEST = 6.0  # of a bar; its number tells what was cut off

Header = dict[str, str]


def megabytes(size: float) -> str:
    return f"{size / 2**20:.0f} MB"


def times(shape: str) -> str:
    return shape.replace("x", "×")


def caption(figure, header: Header, rest: str) -> None:
    versions = ", ".join(
        f"{name} {header[name]}"
        for name in ("PyTorch", "oneDNN", "JAX", "ONNXRuntime")
        if name in header
    )
    machine = ", ".join(header.get(key, "?") for key in ("cpu", "isa"))
    lines = [f"{machine}; {rest}", "; ".join(filter(None, [versions, header.get("date")]))]
    figure.text(0.008, 0.006, "\n".join(lines), fontsize=7, color=FADED)


def frame(axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(length=0, labelsize=8, colors=INK)


# ---- our bars against the fastest peer -----------------------------------------------------------


def draw_bar(axes, place: float, ratio: float, color: str, text: str, weight: str) -> None:
    axes.barh(place, min(ratio, LONGEST), height=0.36, color=color, zorder=2)
    if ratio > LONGEST:  # a gap near the end: this bar is longer than it is drawn
        axes.barh(place, 0.06, left=LONGEST - 0.2, height=0.4, color="white", zorder=3)
    axes.text(
        max(1, min(ratio, LONGEST)) + 0.06,
        place,
        text,
        va="center",
        fontsize=7.5,
        color=INK,
        fontweight=weight,
        zorder=4,
    )


def draw_group(axes, cells: dict[str, Cell], shapes: list[str], group: str) -> None:
    for place, shape in enumerate(shapes):
        cell = cells.get(shape)
        if not cell or not cell.ours:
            why = "a matrix has one layout" if shape.count("x") == 1 else "not timed"
            axes.text(1.06, place, why, va="center", fontsize=7, color=FADED)
            continue
        bare = cell.rows.get("bare") if group == TINY else None

        def ratio(row: Row, bare=bare) -> float:
            return row.median / bare.median if bare else row.over_honest

        ours, peer = cell.ours, cell.fastest_peer
        reads = "" if is_single_pass(cell.honest.contender) else "  +reads"
        draw_bar(axes, place - 0.2, ratio(ours), BLUE, f"{ratio(ours):.2f}{reads}", "bold")
        if peer:
            name, _, release = peer.contender.partition("@")
            text = f"{ratio(peer):.2f}  {SHORT.get(name, name)} {release}"
            draw_bar(axes, place + 0.2, ratio(peer), GREY, text, "normal")
    axes.axvline(1, color=INK, linewidth=1.4, zorder=5)
    axes.set_xlim(0, LONGEST + 1.3)
    axes.xaxis.set_major_locator(MultipleLocator(1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}" if x <= LONGEST else ""))
    axes.set_ylim(len(shapes) - 0.4, -0.6)
    axes.set_yticks(range(len(shapes)), [times(shape) for shape in shapes])
    axes.grid(axis="x", color=FAINT, linewidth=0.6, zorder=0)
    frame(axes)


def group_title(group: str, header: Header) -> str:
    llc = megabytes(float(header.get("LLC_share", 0)))
    return {
        BEYOND: f"Beyond {llc} of L3: 1 is the speed of memory",
        INSIDE: "Inside L3: 1 is the speed of the cache",
        TINY: "Tiny, where the call is the cost: 1 is a bare loop",
    }[group]


def ratio_picture(header: Header, cells: list[Cell], path: Path) -> None:
    layouts = list(grouped(cells, lambda cell: cell.case.layout))
    by_group = grouped(cells, lambda cell: cell.group)
    groups = {
        name: list(dict.fromkeys(cell.shape for cell in by_group[name]))
        for name in GROUPS
        if name in by_group
    }
    rows = sum(map(len, groups.values()))
    height = 1.35 + 0.42 * rows + 0.62 * len(groups)
    figure, panels = plt.subplots(
        len(groups),
        len(layouts),
        figsize=(1.6 + 4.7 * len(layouts), height),
        squeeze=False,
        sharey="row",
        height_ratios=[len(shapes) + 0.4 for shapes in groups.values()],
    )
    for row, (group, shapes) in zip(panels, groups.items(), strict=True):
        for axes, layout in zip(row, layouts, strict=True):
            there = {c.shape: c for c in by_group[group] if c.case.layout == layout}
            draw_group(axes, there, shapes, group)
        row[0].set_title(group_title(group, header), loc="left", fontsize=9, color=INK, pad=5)
    case = cells[0].case
    twice = any(not is_single_pass(cell.honest.contender) for cell in cells)
    title = operation_title(case.op)
    figure.text(
        0.008,
        1 - 0.3 / height,
        f"{title[0].upper()}{title[1:]}: time over that of the limit, shorter is better",
        fontsize=12,
        color=INK,
        fontweight="bold",
    )
    figure.tight_layout(rect=(0, 0.35 / height, 1, 1 - 0.75 / height), h_pad=1.2)
    for axes, layout in zip(panels[0], layouts, strict=True):
        box = axes.get_position()
        figure.text(box.x0, 1 - 0.86 / height, layout.upper(), fontsize=11, color=INK)
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in (BLUE, GREY)]
    figure.legend(
        handles,
        ["libbatchnorm", "the fastest peer in the same layout"],
        loc="upper right",
        bbox_to_anchor=(1, 1 - 0.42 / height),
        ncols=2,
        fontsize=9,
        frameon=False,
        handlelength=1.2,
        handleheight=0.8,
    )
    reads = "; +reads: the limit reads the inputs twice" if twice else ""
    rest = f"{case.dtype}, {case.threads} threads, {case.buffers} buffers{reads}"
    caption(figure, header, rest)
    figure.savefig(path, dpi=130, facecolor="white")
    plt.close(figure)


# ---- threads -------------------------------------------------------------------------------------


def threads_picture(header: Header, cells: list[Cell], path: Path) -> bool:
    cells = [
        cell
        for cell in cells
        if cell.case.dtype == "float32"
        and cell.case.buffers == "warm"
        and cell.case.op in ("forward", "backward")
        and cell.file != "sizes"
    ]
    counts = sorted({cell.case.threads for cell in cells})
    if len(counts) < 2:
        return False
    first, last = counts[0], counts[-1]
    parts = grouped(cells, lambda cell: (cell.case.op, cell.case.layout))
    figure, panels = plt.subplots(
        1, len(parts), figsize=(2 + 3.6 * len(parts), 4.6), squeeze=False, sharey=True
    )
    compared = (
        ("libbatchnorm", BLUE, lambda cell: cell.ours),
        ("the limit", GREY, lambda cell: cell.honest),
        ("PyTorch operator", LINES["PyTorch"][0], lambda cell: cell.families.get("PyTorch")),
    )
    for axes, ((op, layout), part) in zip(panels[0], parts.items(), strict=True):
        by_threads = grouped(part, lambda cell: cell.case.threads)
        one, all_ = ({cell.shape: cell for cell in by_threads[count]} for count in (first, last))
        shapes = [shape for shape in one if shape in all_]
        for offset, (label, color, row_of) in enumerate(compared):
            points = [
                (
                    place + 0.26 * (offset - 1),
                    row_of(one[shape]).median / row_of(all_[shape]).median,
                )
                for place, shape in enumerate(shapes)
                if row_of(one[shape]) and row_of(all_[shape])
            ]
            if points:
                axes.bar(*zip(*points, strict=True), width=0.24, color=color, label=label, zorder=3)
        axes.axhline(1, color=INK, linewidth=0.8)
        axes.set_title(f"{op} {layout.upper()}", loc="left", fontsize=10)
        axes.set_xticks(
            range(len(shapes)), [times(s) for s in shapes], rotation=40, ha="right", fontsize=7
        )
        axes.grid(axis="y", color=FAINT, linewidth=0.6, zorder=0)
    panels[0][0].set_ylabel(f"time on {first} thread / time on {last} threads")
    panels[0][-1].legend(fontsize=8, frameon=False)
    figure.suptitle(
        f"From {first} to {last} threads: as the limit itself scales",
        x=0.01,
        ha="left",
        fontsize=12,
    )
    caption(figure, header, "float32, warm buffers")
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=130, facecolor="white")
    plt.close(figure)
    return True


# ---- sizes ---------------------------------------------------------------------------------------


def size_label(size: int) -> str:
    for shift, unit in ((30, "GB"), (20, "MB"), (10, "KB")):
        if size >> shift:
            return f"{size >> shift} {unit}"
    return f"{size} B"


def sizes_picture(header: Header, cells: list[Cell], path: Path) -> bool:
    cells = [cell for cell in cells if cell.file == "sizes"]
    if not cells:
        return False
    threads = max(cell.case.threads for cell in cells)
    parts = grouped((c for c in cells if c.case.threads == threads), lambda cell: cell.case.op)
    figure, panels = plt.subplots(
        1, len(parts), figsize=(2 + 4.2 * len(parts), 4.6), squeeze=False, sharey=True
    )
    for axes, (op, part) in zip(panels[0], parts.items(), strict=True):
        part = sorted(part, key=lambda cell: cell.moved)
        tensors = moved_tensors(part[0].plain.contender)
        sizes = [cell.moved / tensors for cell in part]

        def line(row_of: Callable[[Cell], Row | None], part=part, sizes=sizes, axes=axes, **style):
            rows = map(row_of, part)
            axes.plot(sizes, [row.gb_per_s if row else math.nan for row in rows], **style)

        line(lambda c: c.fastest(is_plain), color=INK, linewidth=1.2, label="plain limit")
        dashes = {"color": FADED, "linewidth": 1, "linestyle": "--", "label": "limit"}
        line(lambda c: c.fastest(is_single_pass), **dashes)
        for name in contenders(part):
            color, marker = LINES.get(name, (INK, "."))
            line(
                lambda cell, name=name: cell.families.get(name),
                color=color,
                marker=marker,
                markersize=4,
                linewidth=2 if name == OURS else 1,
                label=LABELS.get(name, name),
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = [2**power for power in range(12, 31, 3)]
        axes.set_xticks(ticks, [size_label(tick) for tick in ticks])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        for cache in ("L2", "LLC_share"):
            if header.get(cache, "0") != "0":
                axes.axvline(int(header[cache]) / tensors, color="#cccccc", linewidth=0.8, zorder=0)
        axes.set_title(operation_title(op), loc="left", fontsize=10)
        axes.set_xlabel("one tensor (grey: working set = L2, L3)")
        axes.grid(color="#eeeeee", linewidth=0.6, zorder=0)
    panels[0][0].set_ylabel("GB/s of necessary traffic (log)")
    panels[0][-1].legend(fontsize=8, frameon=False)
    figure.suptitle("Speed against size: higher is better", x=0.01, ha="left", fontsize=12)
    caption(figure, header, f"NCHW, float32, {threads} threads, warm buffers")
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=130, facecolor="white")
    plt.close(figure)
    return True


# ---- all -----------------------------------------------------------------------------------------


def draw_pictures(header: Header, cells: list[Cell], folder: Path) -> list[Path]:
    """In float32, on the most threads: one for each operation, shape file and kind of buffers."""
    for old in (*folder.glob("ratio-*.png"), folder / "threads.png", folder / "sizes.png"):
        old.unlink(missing_ok=True)
    written = []
    threads = max(cell.case.threads for cell in cells)
    usual = [
        cell
        for cell in cells
        if cell.case.threads == threads and cell.case.dtype == "float32" and cell.file != "sizes"
    ]
    parts = grouped(usual, lambda cell: (cell.case.op, cell.file, cell.case.buffers))
    for (op, file, buffers), part in parts.items():
        words = ["ratio", op, *([file] if file != "design" else [])]
        words += [buffers] if buffers != "warm" else []
        written.append(folder / f"{'-'.join(words)}.png")
        ratio_picture(header, part, written[-1])
    for draw, name in ((threads_picture, "threads.png"), (sizes_picture, "sizes.png")):
        if draw(header, cells, folder / name):
            written.append(folder / name)
    return written
