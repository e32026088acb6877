#!/usr/bin/env python3
"""A network's loop: PyTorch operator, batch norm, PyTorch operator. What does the mixture cost?

Alone, each part finds its threads awake and the cores free. In a loop with two OpenMP runtimes the
threads of the one still spin while the other's compute. So: the time of the loop relative to the
sum of its parts. Alone as in the loop every call works on the next buffers of one ring, which no
cache holds: data that came from a cache in only one of the two would decide the figure.

Runs by the peers' Python; writes loop.csv and, from that, loop.md.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import batchnorm
import numpy as np
import torch
from batchnorm import functional

SHAPES = ("32x64x56x56", "32x256x14x14", "8x64x56x56")
OPS = ("forward", "backward")
# name -> threading of this library; None: PyTorch's own batch norm
CONTENDERS = {"batchnorm auto": "auto", "batchnorm own": "own", "PyTorch": None}
COLUMNS = (
    "op",
    "shape",
    "threads",
    "contender",
    "runtime",
    "add_us",
    "batch_norm_us",
    "sum_us",
    "loop_us",
    "ratio",
    "spread_percent",
    "rounds",
)
aten = torch.ops.aten
Calls = list[Callable[[], object]]


def last_level_cache() -> int:
    path = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    text = path.read_text().strip() if path.exists() else ""
    return int(text[:-1]) << 10 if text.endswith("K") else 32 << 20


def ring(shape: tuple[int, ...], tensors: int) -> list[list[torch.Tensor]]:
    """Sets of buffers; the one whose turn it is has long left the caches."""
    size = 4 * math.prod(shape) * tensors
    sets = 4 * last_level_cache() // size + 2
    sets += sets % 3 == 0  # each of three parts that take turns comes to every set
    return [[torch.randn(shape) for _ in range(tensors)] for _ in range(sets)]


def add(x: torch.Tensor, y: torch.Tensor, other: torch.Tensor | float = 1.0):
    return lambda: torch.add(x, other, out=y)


def line_up(op: str, shape: tuple[int, ...]) -> tuple[Calls, Calls, Calls]:
    """torch.add, our batch norm and PyTorch's, each on every set of one ring."""
    channels = shape[1]
    weight, mean, var = torch.ones(channels), torch.zeros(channels), torch.ones(channels)
    bias, save_mean, save_invstd = (torch.zeros(channels) for _ in range(3))
    parameters = [tensor.numpy() for tensor in (mean, var, weight, bias)]
    saved = {"saved_mean": np.zeros(channels), "saved_invstd": np.ones(channels)}
    gradients = {name: np.empty(channels, np.float32) for name in ("grad_weight", "grad_bias")}

    def our_forward(x, y):
        x, y = x.numpy(), y.numpy()
        return lambda: functional.forward_training(x, *parameters, out=y, **saved)

    def our_backward(x, dx, dy):
        x, dx, dy = x.numpy(), dx.numpy(), dy.numpy()
        return lambda: functional.backward(
            dy, x, parameters[2], grad_input=dx, **saved, **gradients
        )

    def their_forward(x, y):
        out = {"out": y, "save_mean": save_mean, "save_invstd": save_invstd}
        return lambda: aten.native_batch_norm.out(
            x, weight, bias, mean, var, True, 0.1, 1e-5, **out
        )

    def their_backward(x, _, dy):  # it allocates its output, always
        return lambda: aten.native_batch_norm_backward(
            dy, x, weight, mean, var, bias, weight, True, 1e-5, [True, True, True]
        )

    if op == "forward":
        makers, sets = (add, our_forward, their_forward), ring(shape, 2)
    else:
        makers, sets = (add, our_backward, their_backward), ring(shape, 3)
    adds, ours, theirs = ([make(*tensors) for tensors in sets] for make in makers)
    return adds, ours, theirs


def settle() -> None:
    """Returns when no thread of this process spins any more, at the latest after half a second."""
    for _ in range(100):
        used = time.process_time()
        time.sleep(0.005)
        if time.process_time() - used < 0.0005:
            return


def seconds(parts: list[Calls], least: float) -> float:
    """Of one pass over the parts, each call on the ring's next set."""
    settle()
    turn = 0

    def go() -> None:
        nonlocal turn
        for calls in parts:
            calls[turn % len(calls)]()
            turn += 1

    for _ in range(5):  # wakes the threads
        go()
    passes, start = 0, time.perf_counter()
    while time.perf_counter() - start < least:
        go()
        passes += 1
    return (time.perf_counter() - start) / passes


def measure(op: str, shape: str, options: argparse.Namespace) -> list[dict[str, object]]:
    sizes = tuple(int(size) for size in shape.split("x"))
    adds, ours, theirs = line_up(op, sizes)
    times: dict[str, list[list[float]]] = {name: [] for name in CONTENDERS}
    runtimes = {}
    for _ in range(options.rounds):
        for name, threading in CONTENDERS.items():
            if threading:
                batchnorm.set_threading(threading)
            middle = ours if threading else theirs
            runtimes[name] = batchnorm.get_thread_runtime() if threading else ""
            parts = ([adds], [middle], [adds, middle, adds])
            times[name].append([seconds(part, options.ms / 1000) for part in parts])
    rows = []
    for name, rounds in times.items():
        one, middle, loop = (1e6 * statistics.median(values) for values in zip(*rounds))
        ratios = [loop / (2 * one + middle) for one, middle, loop in rounds]
        quarters = statistics.quantiles(ratios, n=4)
        ratio = statistics.median(ratios)
        figures = [f"{value:.1f}" for value in (one, middle, 2 * one + middle, loop)]
        quality = [f"{ratio:.3f}", f"{100 * (quarters[2] - quarters[0]) / ratio:.1f}"]
        row = [op, shape, torch.get_num_threads(), name, runtimes[name], *figures, *quality]
        rows.append(dict(zip(COLUMNS, [*row, options.rounds])))
    return rows


# ---- table ---------------------------------------------------------------------------------------

INTRODUCTION = """\
# PyTorch operator, batch norm, PyTorch operator

Made by benchmarks/loop.py from loop.csv. Microseconds for `torch.add`, batch norm, `torch.add`:
each alone, then all three in a loop, on memory that is in no cache. `loop / sum` is what the
mixture costs: 1.00 is nothing. `auto` runs on PyTorch's OpenMP threads, `own` on those of this
library's libomp.

"""


def write_table(source: Path, target: Path) -> None:
    with source.open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [
        "| op | shape | batch norm | runs on | add | batch norm | sum | loop | loop / sum |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        cells = [row["op"], row["shape"], row["contender"], row["runtime"] or "PyTorch's"]
        cells += [f"{float(row[column]):.0f}" for column in COLUMNS[5:9]]
        cells.append(f"{float(row['ratio']):.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    target.write_text(INTRODUCTION + "\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="NxCxHxW")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--ms", type=float, default=60, help="milliseconds of a repetition")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    batchnorm.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "loop.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for op in OPS:
            for shape in options.shapes:
                for row in measure(op, shape, options):
                    writer.writerow(row)
                    print(f"{op:9} {shape:14} {row['contender']:15} {row['ratio']}", flush=True)
                file.flush()
    write_table(path, path.with_suffix(".md"))
    print(path, path.with_suffix(".md"), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
