#!/usr/bin/env python3
"""Whole networks in PyTorch, stock against converted to this library.

A training step (forward, loss, backward, SGD) and an inference pass, each contender in a process of
its own; they take turns (A B, A B, ...). Before that, both must compute the same. Writes
network.csv, of which network_report.py makes the table and the picture. See README.md.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from run import PEER_ENVIRONMENT, ROOT, Watch, Worker, WorkerError, binding, machine, numbers, words

NETWORKS = ("resnet18-cifar", "resnet50-cifar", "resnet18", "resnet50", "mobilenetv2")
FORMATS = ("contiguous", "channels_last")
PASSES = ("inference", "training")  # in this order: the peak of memory grows with the second
CONTENDERS = ("stock", "converted")
# What becomes of freed memory, for both contenders alike? "kept": it stays with the process, as
# after batchnorm.memory.keep_pages(). "huge": and lies in huge pages where it can. "system": the C
# library's default, which gives large blocks back: what is timed are page faults then.
KEPT = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=68719476736"
ALLOCATORS = {"kept": {"GLIBC_TUNABLES": KEPT}, "huge": PEER_ENVIRONMENT, "system": {}}
QUICK = ("resnet18-cifar", "mobilenetv2")
WARM_UP = 2  # rounds that do not count


@dataclass(frozen=True)
class Cell:
    network: str
    format: str
    threads: int
    allocator: str

    def __str__(self) -> str:
        return f"{self.network} {self.format} x{self.threads} {self.allocator}"


def start(cell: Cell, contender: str, options: argparse.Namespace) -> Worker:
    command = [str(ROOT / "benchmarks" / "network_worker.py"), cell.network]
    command += ["--format", cell.format, "--contender", contender]
    if options.images:
        command += ["--images", str(options.images)]
    environment = {
        "OMP_NUM_THREADS": str(cell.threads),
        "BATCHNORM_LIBRARY": str(options.library),
        "PYTHONPATH": str(ROOT / "bindings" / "python" / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
        **binding(cell.threads),
        **ALLOCATORS[cell.allocator],
    }
    return Worker(contender, [sys.executable, *command], environment)


def pairs(answer: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in answer)


def differences(cell: Cell, options: argparse.Namespace) -> dict[str, str]:
    """Of the converted network from the stock one; an error if they are more than rounding."""
    worker = start(cell, "converted", options)
    found = pairs(worker.ask("differences"))
    worker.stop()
    return found


Times = dict[str, list[list[float]]]  # of each contender, round by round: what timed() returns


def take_turns(workers: list[Worker], what: str, rounds: int) -> tuple[Times, float]:
    """What each round told of each contender, and the percentage of the machine others used."""
    times: Times = {worker.name: [] for worker in workers}
    for count in (WARM_UP, rounds):
        watch = Watch(workers)
        for _ in range(count):
            for worker in workers:
                times[worker.name].append([float(word) for word in worker.ask(what)])
                worker.settle()
    return {name: found[WARM_UP:] for name, found in times.items()}, watch.others_percent()


def quartile_range(values: list[float]) -> float:
    """In percent of the median."""
    quarters = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return 100 * (quarters[2] - quarters[0]) / statistics.median(values)


def measure(
    cell: Cell, options: argparse.Namespace
) -> tuple[dict[str, str], list[dict[str, object]]]:
    """Versions and rows."""
    workers = [start(cell, contender, options) for contender in CONTENDERS]
    rows = []
    try:
        versions = pairs([word for worker in workers for word in worker.ready])
        for what in options.passes:
            times, others = take_turns(workers, what, options.rounds)
            seconds = {name: [turn[0] for turn in turns] for name, turns in times.items()}
            stock = seconds["stock"]
            for worker in workers:
                own = seconds[worker.name]
                _, faults, kernel = map(statistics.median, zip(*times[worker.name], strict=True))
                ratios = [a / b for a, b in zip(own, stock, strict=True)]
                rows.append(
                    {
                        **asdict(cell),
                        "pass": what,
                        "contender": worker.name,
                        "median_ms": f"{1e3 * statistics.median(own):.2f}",
                        "min_ms": f"{1e3 * min(own):.2f}",
                        "spread_percent": f"{quartile_range(own):.1f}",
                        "ratio": f"{statistics.median(ratios):.3f}",
                        "ratio_minima": f"{min(own) / min(stock):.3f}",
                        "page_faults": f"{faults:.0f}",
                        "kernel_ms": f"{1e3 * kernel:.1f}",
                        "peak_mib": int(worker.ask("memory")[0]) >> 20,
                        "rounds": options.rounds,
                        "others_percent": f"{others:.0f}",
                        # last: its records are memory too, which the peak above must not show
                        **{f"{k}_ms": v for k, v in pairs(worker.ask(f"profile {what}")).items()},
                    }
                )
                worker.settle()
    finally:
        for worker in workers:
            worker.stop()
    return versions, rows


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    for choice in itertools.product(
        options.networks, options.formats, options.threads, options.allocators
    ):
        yield Cell(*choice)


def parse_options() -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], prog="scripts/bench --torch"
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"{','.join(QUICK)} on all cores, few rounds"
    )
    parser.add_argument("--networks", type=words(NETWORKS), help=f"of {','.join(NETWORKS)}")
    parser.add_argument("--formats", type=words(FORMATS), default=FORMATS, help="memory formats")
    parser.add_argument("--passes", type=words(PASSES), default=PASSES, help=",".join(PASSES))
    parser.add_argument("--threads", type=numbers, help="default: 1 and all cores")
    parser.add_argument(
        "--allocators",
        type=words(tuple(ALLOCATORS)),
        default=["kept"],
        help="kept: it keeps its pages (default); huge: and these are huge; system: neither",
    )
    parser.add_argument("--images", type=int, help="of a batch; default: by network")
    parser.add_argument("--rounds", type=int, help="turns of each contender (default 9, quick 5)")
    parser.add_argument("--output", type=Path, default=ROOT / "bench-output", help="folder")
    parser.add_argument("--library", type=Path, default=ROOT / "build" / "libbatchnorm.so")
    options = parser.parse_args()
    options.networks = options.networks or (QUICK if options.quick else NETWORKS)
    options.threads = options.threads or ([cores] if options.quick else sorted({1, cores}))
    options.rounds = options.rounds or (5 if options.quick else 9)
    options.library = options.library.resolve()
    for name in ("images", "rounds"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} {value}, expected at least 1")
    if not options.library.exists():
        sys.exit(f"error: {options.library} is missing: scripts/build makes it")
    return options


def main() -> None:
    options = parse_options()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "network.csv"
    found: list[dict[str, object]] = []
    checked: dict[tuple[str, str], dict[str, str]] = {}
    header = {key: value for key, value in machine().items() if key != "buffers"}
    header["malloc"] = "; ".join(
        f"{name}: {' '.join(ALLOCATORS[name].values()) or 'as it is'}"
        for name in options.allocators
    )
    try:
        for cell in cells(options):
            case = cell.network, cell.format
            if case not in checked:
                checked[case] = differences(cell, options)
                told = ", ".join(f"{key} {value}" for key, value in checked[case].items())
                print(f"{cell.network} {cell.format}: differences {told}", flush=True)
            versions, rows = measure(cell, options)
            header.update(versions)
            for row in rows:
                found.append({**row, **checked[case]})
                if row["contender"] == "converted":
                    print(
                        f"{str(cell):40} {row['pass']:9} {row['median_ms']:>9} ms, "
                        f"{row['ratio']} of stock ({row['ratio_minima']} by minima)",
                        flush=True,
                    )
    finally:  # what has been measured is written, even if the run is stopped
        if found:
            with path.open("w", newline="") as file:
                for key, value in header.items():
                    file.write(f"# {key}: {value}\n")
                writer = csv.DictWriter(file, list(found[0]))
                writer.writeheader()
                writer.writerows(found)
    print(path)


if __name__ == "__main__":
    try:
        main()
    except WorkerError as error:
        sys.exit(f"error: {error}")
