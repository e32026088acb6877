#!/usr/bin/env python3
"""Instructions per element, counted by valgrind's callgrind: a figure of speed without noise.

    instructions.py            prints a table beside the bounds of instructions.txt
    instructions.py --check    and ends with status 1 where a bound is broken
    instructions.py --write    writes instructions.txt anew: the counts found, and a quarter on top

A count is the difference between runs of three calls and of one, on one thread: start, buffers and
the first call's set-up drop out. valgrind knows no AVX-512, so the instruction sets are AVX2 and
generic. A smaller count is not always faster; a much larger one is always slower. The quarter is
what another compiler or another cache may change; a loop that is no longer vectorized costs four
times and more.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BOUNDS = Path(__file__).with_name("instructions.txt")
HEAD = """\
# Bounds on instructions per element, held by benchmarks/instructions.py --check.
# instruction set, operation, layout, type, shape, bound
"""
SLACK = 1.25

# Small enough for valgrind, large enough to be all kernel; then tiny: the call itself.
KERNEL_SHAPES = ("8x16x56x56", "8x64x14x14", "8x128x7x7", "4x17x28x28", "2048x64")
TINY_SHAPES = ("128x32",)
# As many bytes: three tensors stay in a last-level cache of 8 MB, beyond which stores are others.
FLOAT64_SHAPE = "8x8x56x56"
OPS = ("forward", "inference", "backward", "frozen")


def cells() -> list[tuple[str, ...]]:
    """(isa, op, layout, dtype, shape)"""
    found = []
    for shape in (*KERNEL_SHAPES, *TINY_SHAPES):
        for layout in ("nchw", "nhwc") if shape.count("x") > 1 else ("nchw",):
            found += [("avx2", op, layout, "float32", shape) for op in OPS]
    found += [("avx2", op, "nchw", "float64", FLOAT64_SHAPE) for op in OPS]
    found += [
        ("generic", op, "nchw", "float32", KERNEL_SHAPES[0]) for op in ("forward", "backward")
    ]
    return found


def count(options: argparse.Namespace, cell: tuple[str, ...], calls: int) -> int:
    isa, op, layout, dtype, shape = cell
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    command += [str(options.programs / "harness"), "--calls", str(calls), "--threads", "1"]
    command += ["--op", op, "--layout", layout, "--dtype", dtype, "--shape", shape]
    environment = {
        **os.environ,
        "BATCHNORM_LIBRARY": str(options.library.resolve()),
        "BATCHNORM_MAX_ISA": isa,
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    found = re.search(r"Collected\s*:\s*(\d+)", result.stderr)
    if result.returncode or not found:
        raise SystemExit(f"error: {' '.join(command)}: {result.stdout}{result.stderr[-1000:]}")
    return int(found.group(1))


def per_element(options: argparse.Namespace, cell: tuple[str, ...]) -> float:
    elements = math.prod(int(size) for size in cell[-1].split("x"))
    return (count(options, cell, 3) - count(options, cell, 1)) / 2 / elements


def read_bounds() -> dict[tuple[str, ...], float]:
    if not BOUNDS.exists():
        return {}
    lines = (line.split() for line in BOUNDS.read_text().splitlines() if not line.startswith("#"))
    return {tuple(words[:-1]): float(words[-1]) for words in lines if words}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--programs", type=Path, default=ROOT / "build-bench")
    parser.add_argument("--library", type=Path, default=ROOT / "build" / "libbatchnorm.so")
    options = parser.parse_args()
    if not shutil.which("valgrind"):
        sys.exit("error: valgrind is missing: scripts/setup installs it (apt-get install valgrind)")
    if " avx2 " not in Path("/proc/cpuinfo").read_text():
        sys.exit("error: this CPU has no AVX2, whose instructions are to be counted")
    for path, how in (
        (options.library, "scripts/build"),
        (options.programs / "harness", "scripts/test figures"),
    ):
        if not path.exists():
            sys.exit(f"error: {path} is missing: {how} makes it")
    bounds = {} if options.write else read_bounds()
    lines, broken = [HEAD], []
    print(f"{'instructions per element':48} {'found':>9} {'bound':>9}")
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        counts = pool.map(lambda cell: per_element(options, cell), cells())
        for cell, found in zip(cells(), counts, strict=True):
            bound = bounds.get(cell)
            if bound and found > bound:
                # Starting a process may take some 200,000 instructions more once in a while. A
                # kernel that has become slower is so the second time as well.
                found = min(found, per_element(options, cell))
            shown = f"{bound:.3f}" if bound else "–"
            print(f"{' '.join(cell):48} {found:9.3f} {shown:>9}", flush=True)
            lines.append(f"{' '.join(cell)} {SLACK * found:.3f}\n")
            if bound is None:
                broken.append(f"{' '.join(cell)}: no bound in {BOUNDS.name}")
            elif found > bound:
                broken.append(f"{' '.join(cell)}: {found:.3f}, expected at most {bound:.3f}")
    if options.write:
        BOUNDS.write_text("".join(lines))
    elif options.check and broken:
        sys.exit("\n".join(f"bound broken: {line}" for line in broken))


if __name__ == "__main__":
    main()
