#!/usr/bin/env python3
"""Memory that the library takes beyond the caller's buffers: allocations of one call, and the peak.

    memory.py            prints a table
    memory.py --check    and ends with status 1 where a bound is broken

The bounds: a stateless call takes at most BYTES_PER_CHANNEL * C + BYTES_PER_THREAD * threads,
whatever N and S are, and frees it; a layer allocates nothing once it has seen a shape. Counted by
allocations.c, so exact; the growth of the process (peak RSS) stands beside it.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BYTES_PER_CHANNEL = 2048
BYTES_PER_THREAD = 16384

SHAPES = (
    "2x64x8x8",
    "32x64x56x56",
    "128x64x56x56",
    "32x2048x7x7",
    "64x1x512x512",
    "32768x8",
    "1048576x8",
)
OPS = ("forward", "inference", "backward", "frozen")


def run(programs: Path, environment: dict[str, str], **options: object) -> dict[str, float]:
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    result = subprocess.run(
        [str(programs / "harness"), "--memory", "3", *words],
        env={**os.environ, **environment, "LD_PRELOAD": str(programs / "liballocations.so")},
        capture_output=True,
        text=True,
    )
    if result.returncode:
        sys.exit(f"error: harness {' '.join(words)}: {result.stdout}{result.stderr}".rstrip())
    return {key: float(value) for key, value in (word.split("=") for word in result.stdout.split())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--programs", type=Path, default=ROOT / "build-bench")
    parser.add_argument("--library", type=Path, default=ROOT / "build" / "libbatchnorm.so")
    options = parser.parse_args()
    environment = {
        "BATCHNORM_LIBRARY": str(options.library.resolve()),
        "OMP_NUM_THREADS": str(options.threads),
    }
    broken = []
    print(
        f"{'op':10} {'layout':6} {'shape':14} {'api':9} {'allocations':>11} {'peak bytes':>10} "
        f"{'RSS':>9}"
    )
    for shape, op, api in itertools.product(SHAPES, OPS, ("stateless", "layer")):
        bound = BYTES_PER_CHANNEL * int(shape.split("x")[1]) + BYTES_PER_THREAD * options.threads
        for layout in ("nchw", "nhwc") if shape.count("x") > 1 else ("nchw",):
            found = run(options.programs, environment, op=op, layout=layout, shape=shape, api=api)
            what = f"{op:10} {layout:6} {shape:14} {api:9}"
            peak, count = int(found["peak_bytes"]), found["allocations_per_call"]
            print(f"{what} {count:11g} {peak:10} {int(found['rss_growth_kb']):6} KB")
            if api == "layer" and count > 0:
                broken.append(f"{what}: {count:g} allocations a call, expected none")
            if peak > bound:
                broken.append(f"{what}: {peak} bytes, expected at most {bound}")
            if found["kept_bytes"] > 0:
                broken.append(f"{what}: {found['kept_bytes']:g} bytes are not freed")
    for line in broken:
        print(f"bound broken: {line}", file=sys.stderr)
    if options.check and broken:
        sys.exit(1)


if __name__ == "__main__":
    main()
