#!/usr/bin/env python3
"""Times this library, the limit and the peers in turn, and writes one CSV.

One worker process per family of contenders, because two OpenMP runtimes in one process disturb each
other: idle threads of the one spin while the other's compute. One round is one repetition of every
contender (A B C, A B C, ...), and a worker is waited for until it is silent. See README.md.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import itertools
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from results import MEMORY, SWEEPS, honest, is_plain, is_single_pass, moved_tensors

ROOT = Path(__file__).resolve().parent.parent
SHAPES = ROOT / "benchmarks" / "shapes"
DISTURBED = 10  # percent of the machine used by others: such a cell is timed again
SPARE_BYTES = 1 << 30  # of memory, that no cell may claim
LARGE_BYTES = 1 << 28  # a tensor whose times vary little, and take long: a third of the rounds
MEMORY_MB = 512  # of a tensor for the speed of the machine
SILENT = 0.05  # share of a CPU below which a process counts as silent

OPS = ("forward", "inference", "backward", "frozen")
FUSED = tuple(  # a training forward also writes the activation's bits, which backward reads
    f"{op}{fusion}"
    for op in ("forward", "inference", "backward")
    for fusion in ("+relu", "+add+relu")
)
MASKED = ("forward+lengths", "backward+lengths")  # sequences of which 56 % take part
LAYOUTS = ("nchw", "nhwc")
DTYPES = ("float32", "float64", "bfloat16", "float16")
BUFFERS = ("warm", "cold")
GRIDS = ("quick", "targets", "full")
ITEM = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}

# glibc keeps and reuses large blocks (and asks for huge pages), so that a peer that allocates its
# outputs is not charged for page faults at each call.
PEER_ENVIRONMENT = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=68719476736"
    ":glibc.malloc.hugetlb=1",
    "THP_MEM_ALLOC_ENABLE": "1",
}
PEERS = {  # worker: the module that must be there, and its command
    "torch": ("torch", ["torch_peer.py"]),
    "torch.compile": ("torch", ["torch_peer.py", "--compile"]),
    "jax": ("jax", ["jax_peer.py"]),
    "onnxruntime": ("onnxruntime", ["onnxruntime_peer.py"]),
}
# These take seconds to get ready for a cell. In a full run they see the design shapes only, and
# the large ones.
SLOW_STARTERS = ("torch.compile",)
PYTHON_COPIES = 2  # of a cell's buffers: tensors, and the results that a library allocates

COLUMNS = (
    "op",
    "layout",
    "dtype",
    "shape",
    "file",
    "threads",
    "buffers",
    "contender",
    "median_us",
    "min_us",
    "spread_percent",
    "ratio_plain",
    "ratio_best",
    "ratio_honest",
    "bytes",
    "gb_per_s",
    "rounds",
    "others_percent",
)


@dataclass(frozen=True)
class Cell:
    op: str
    layout: str
    dtype: str
    shape: str
    threads: int
    buffers: str

    def __str__(self) -> str:
        values = (self.op, self.layout, self.dtype, self.shape, f"x{self.threads}", self.buffers)
        return " ".join(values)

    @property
    def sizes(self) -> list[int]:
        return [int(size) for size in self.shape.split("x")]

    @property
    def tensor_bytes(self) -> int:
        return math.prod(self.sizes) * ITEM[self.dtype]

    @property
    def operation(self) -> str:
        """Without what is fused with it."""
        return self.op.partition("+")[0]

    @property
    def tensors(self) -> int:
        """That the operation must move: x and y, or x, dy and dx; the residual, or its gradient."""
        if self.op == MEMORY:
            return SWEEPS["triad"]
        return 2 + (self.operation in ("backward", "frozen")) + ("+add" in self.op)

    def buffer_bytes(self, llc: int) -> int:
        """What the harness allocates: see cell_open in cell.c."""
        once = self.tensors * self.tensor_bytes
        return once if self.buffers == "warm" else once * (4 * llc // once + 1)


class WorkerError(Exception):
    pass


class Worker:
    """A process that times its contenders on command; see cell.h for the protocol."""

    def __init__(
        self, name: str, command: list[str], environment: dict[str, str], copies: int = 1
    ) -> None:
        self.name = name
        self.copies = copies  # of a cell's buffers, that it may hold
        self.command = command
        self.environment = {**os.environ, **environment}
        self.contenders: list[str] = []
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self.environment,
            text=True,
        )
        self.ready = self.answer()

    def answer(self) -> list[str]:
        line = self.process.stdout.readline()
        word, _, rest = line.strip().partition(" ")
        if word in ("", "error"):
            self.process.kill()
            self.process.wait()
            raise WorkerError(
                rest or f"{self.name} ended without an answer (status {self.process.returncode})"
            )
        return rest.split()

    def ask(self, command: str) -> list[str]:
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise WorkerError(f"{self.name} is gone") from error
        return self.answer()

    def open(self, cell: Cell, ms: float, llc: int) -> None:
        if self.process.poll() is not None:
            self.start()
        words = {**asdict(cell), "ms": ms, "llc": llc}
        self.contenders = self.ask(
            "cell " + " ".join(f"{key}={value}" for key, value in words.items())
        )

    def round(self) -> list[float]:
        return [float(seconds) for seconds in self.ask("round")]

    def cpu_seconds(self) -> float:
        total = 0
        for task in Path(f"/proc/{self.process.pid}/task").glob("*/schedstat"):
            try:
                total += int(task.read_text().split()[0])
            except OSError:
                pass  # a thread that ended meanwhile
        return 1e-9 * total

    def settle(self) -> None:
        """Returns when the process no longer computes, at the latest after a quarter second."""
        pause, used = 0.004, self.cpu_seconds()
        for _ in range(int(0.25 / pause)):
            time.sleep(pause)
            before, used = used, self.cpu_seconds()
            if used - before < SILENT * pause:
                return

    def stop(self) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Watch:
    """How much of the machine others use meanwhile: what a measurement is worth."""

    def __init__(self, workers: list[Worker]) -> None:
        self.workers = workers
        self.start = self.now()

    def now(self) -> tuple[float, float, float]:
        """Seconds: wall, all CPUs busy, our processes."""
        user, nice, system, _, _, irq, softirq, steal, *_ = map(
            int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        )
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return time.monotonic(), busy, sum(worker.cpu_seconds() for worker in self.workers)

    def others_percent(self) -> float:
        wall, busy, ours = (b - a for a, b in zip(self.start, self.now(), strict=True))
        return max(0.0, 100 * (busy - ours) / (wall * (os.cpu_count() or 1)))


def binding(threads: int) -> dict[str, str]:
    """One OpenMP thread a core, for ours and the peers alike: when anything else runs, the
    scheduler puts two that wait for each other on one core, and a region costs 40 us instead of 1.
    """
    if threads == 1 or "OMP_PROC_BIND" in os.environ:
        return {}
    return {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}


def start_workers(threads: int, options: argparse.Namespace, log) -> list[Worker]:
    """The harness first; then whatever else is there and starts."""
    peers = ROOT / "benchmarks" / "peers"
    threaded = {"OMP_NUM_THREADS": str(threads), **binding(threads)}
    ours = {**threaded, "BATCHNORM_LIBRARY": str(options.library)}
    small = {
        **ours,
        "PYTHONPATH": str(ROOT / "bindings" / "python" / "src"),
        "KMP_BLOCKTIME": "0",  # its threads sleep at once; its tensors are too small to need them
    }
    guest = {**threaded, **PEER_ENVIRONMENT}
    candidates = [("binding", [sys.executable, str(peers / "binding.py")], small, 0)]
    for program in sorted(options.programs.glob("peer_onednn_?")):  # one for each release
        candidates.append((program.name, [str(program)], guest, 1))
    if options.peers:
        for name, (module, (script, *arguments)) in PEERS.items():
            there = [options.peers, "-c", f"import {module}"]
            if subprocess.run(there, capture_output=True).returncode == 0:
                command = [str(options.peers), str(peers / script), *arguments]
                candidates.append((name, command, guest, PYTHON_COPIES))
            else:
                log(f"{name}: {module} is not installed: left out")
    workers = [Worker("harness", [str(options.programs / "harness"), "--serve"], ours)]
    for candidate in candidates:
        try:
            workers.append(Worker(*candidate))
        except WorkerError as error:
            log(f"{candidate[0]} does not start: {error}")
    return workers


# ---- a cell --------------------------------------------------------------------------------------


@dataclass
class Result:
    times: dict[str, list[float]]  # seconds per call of each contender, round by round
    others: float  # percent of the machine that other processes used meanwhile


def sits_out(worker: Worker, cell: Cell, file: str, options: argparse.Namespace) -> bool:
    if worker.name == "harness":
        return False
    if cell.op == MEMORY:
        return True
    return worker.name in SLOW_STARTERS and file not in ("design", "large") and not options.shapes


def measure(
    cell: Cell, file: str, workers: list[Worker], options: argparse.Namespace, log
) -> Result | None:
    """None if the harness itself fails; a peer that fails is left out."""
    times: dict[str, list[float]] = {}
    running = []
    left = options.free - SPARE_BYTES
    for worker in workers:
        if sits_out(worker, cell, file, options):
            continue
        claim = worker.copies * cell.buffer_bytes(options.llc)
        if claim > left:
            log(f"{worker.name}: {cell}: sits out, {left / 2**30:.1f} GiB of memory are left")
            continue
        left -= claim
        try:
            worker.open(cell, options.ms, options.llc)
            worker.settle()
        except WorkerError as error:
            log(f"{worker.name}: {cell}: {error}")
            continue
        if worker.contenders:
            running.append(worker)
            times.update({name: [] for name in worker.contenders})
    watch = Watch(workers)  # only now: compilers of a peer are no disturbance
    large = cell.tensor_bytes >= LARGE_BYTES
    for _ in range(max(5, options.rounds // 3) if large else options.rounds):
        for worker in list(running):
            try:
                seconds = worker.round()
                if len(running) > 1:
                    worker.settle()
            except WorkerError as error:
                log(f"{worker.name}: {cell}: {error}")
                running.remove(worker)
                for name in worker.contenders:
                    del times[name]
                continue
            for name, value in zip(worker.contenders, seconds, strict=True):
                times[name].append(value)
    result = Result(times, watch.others_percent()) if workers[0] in running else None
    if large:  # an allocator that keeps its pages would keep gigabytes
        for worker in running:
            worker.stop()
    return result


def limits(times: dict[str, list[float]]) -> dict[str, str]:
    """The fastest of each kind."""
    kinds = {
        "ratio_plain": [name for name in times if is_plain(name)],
        "ratio_best": [name for name in times if is_single_pass(name)],
        "ratio_honest": honest(times),
    }
    return {
        kind: min(names, key=lambda name: statistics.median(times[name]))
        for kind, names in kinds.items()
    }


def rows(cell: Cell, file: str, result: Result) -> Iterator[dict[str, object]]:
    times = result.times
    chosen = limits(times) if cell.op != MEMORY else {}
    for name, seconds in times.items():
        moved = cell.tensor_bytes * (moved_tensors(name) if cell.op == MEMORY else cell.tensors)
        middle = statistics.median(seconds)
        quarters = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [middle] * 3
        row: dict[str, object] = {
            **asdict(cell),
            "file": file,
            "contender": name,
            "median_us": f"{1e6 * middle:.3f}",
            "min_us": f"{1e6 * min(seconds):.3f}",
            "spread_percent": f"{100 * (quarters[2] - quarters[0]) / middle:.1f}",
            "bytes": moved,
            "gb_per_s": f"{moved / middle * 1e-9:.2f}",
            "rounds": len(seconds),
            "others_percent": f"{result.others:.0f}",
        }
        for kind, limit in chosen.items():
            ratio = statistics.median(a / b for a, b in zip(seconds, times[limit], strict=True))
            row[kind] = f"{ratio:.3f}"
        yield row


def explanations(found: dict[Cell, Result], library: Path) -> Iterator[str]:
    """How this library does each cell, in its own words: asked through the binding, nothing is run.

    Raises ImportError if the library cannot explain itself.
    """
    os.environ["BATCHNORM_LIBRARY"] = str(library)
    sys.path.insert(0, str(ROOT / "bindings" / "python" / "src"))
    import batchnorm

    names = ("forward_training", "forward_inference", "backward", "backward_frozen")
    operations = dict(zip(OPS, names, strict=True))
    for cell in found:
        if cell.op == MEMORY:
            continue
        batchnorm.set_num_threads(cell.threads)
        operation = operations[cell.operation]
        fused = cell.op.split("+")[1:]
        try:
            plan = batchnorm.explain(
                cell.sizes,
                operation,
                dtype=cell.dtype,
                layout=cell.layout,
                activation="relu" if "relu" in fused else None,
                activation_mask="relu" in fused and operation != "forward_inference",
                residual="add" in fused,
                lengths="lengths" in fused,
            )
        except TypeError as error:  # NumPy may not know the half types
            plan = f"no plan: {error}"
        yield f"# {' '.join(str(value) for value in asdict(cell).values())}\n{plan}\n"


# ---- what is timed -------------------------------------------------------------------------------


def read_shapes(path: Path) -> list[str]:
    shapes = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        sizes = text.split("x")
        if not (2 <= len(sizes) <= 5 and all(size.isdigit() and int(size) > 0 for size in sizes)):
            sys.exit(f"error: {path}:{number}: '{text}', expected NxC, NxCxL, NxCxHxW or NxCxDxHxW")
        shapes.append(text)
    return shapes


def passes(options: argparse.Namespace) -> list[tuple]:
    """(files, operations, layouts, dtypes, buffers, threads)"""
    every, most = options.threads, [max(options.threads)]
    design, large, sequences, sizes = (
        [SHAPES / f"{name}.txt"] for name in ("design", "large", "sequences", "sizes")
    )
    trained = ("forward", "backward")
    with_lengths = any("+lengths" in op for op in options.ops or ())
    if options.shapes:
        return [(options.shapes, OPS, LAYOUTS, DTYPES[:1], BUFFERS[:1], every)]
    if options.grid == "quick":
        files = design + sequences if with_lengths else design
        return [(files, trained, LAYOUTS, DTYPES[:1], BUFFERS[:1], most)]
    targets = [
        (design, OPS, LAYOUTS, DTYPES[:1], BUFFERS[:1], every),
        (design, OPS[:3], LAYOUTS, DTYPES[:1], BUFFERS[1:], every),
        (design, OPS[:3], LAYOUTS, DTYPES[2:], BUFFERS[:1], most),
        (design, FUSED, LAYOUTS, ("float32", "bfloat16"), BUFFERS[:1], most),
        (sequences, (*trained, *MASKED), LAYOUTS, DTYPES[:1], BUFFERS[:1], most),
        (large, OPS[:3], LAYOUTS, DTYPES[:1], BUFFERS[:1], every),
    ]
    if options.grid == "targets":
        return targets
    others = sorted(set(SHAPES.glob("*.txt")) - {*design, *large, *sequences, *sizes})
    return [
        *targets,
        (design, trained, LAYOUTS, DTYPES[1:2], BUFFERS[:1], most),
        (sizes, OPS[:3], LAYOUTS[:1], DTYPES[:1], BUFFERS[:1], every),
        (others, OPS[:3], LAYOUTS, DTYPES[:1], BUFFERS[:1], most),
    ]


def cells(options: argparse.Namespace) -> dict[Cell, str]:
    """What is timed, each cell once, and the shape file that it comes from."""
    chosen: dict[Cell, str] = {}
    for files, ops, layouts, dtypes, buffers, threads in passes(options):
        for file, t, dtype, buffer in itertools.product(
            files, threads, options.dtypes or dtypes, options.buffers or buffers
        ):
            for shape, op, layout in itertools.product(
                read_shapes(file), options.ops or ops, options.layouts or layouts
            ):
                cell = Cell(op, layout, dtype, shape, t, buffer)
                if layout == "nhwc" and len(cell.sizes) == 2:
                    continue  # the same as nchw
                if "+lengths" in op and len(cell.sizes) != 3:
                    continue  # not a sequence
                chosen.setdefault(cell, file.stem)
    return chosen


def memory_cell(threads: int, free: int, log) -> Cell:
    """Plain sweeps over tensors far beyond the caches: what the machine's memory can do."""
    megabytes = MEMORY_MB
    while 3 * megabytes << 20 > free - SPARE_BYTES and megabytes > 4:
        megabytes //= 2
    if megabytes < MEMORY_MB:
        log(f"the speed of memory is told by tensors of {megabytes} MB, not {MEMORY_MB}: no room")
    return Cell(MEMORY, "nchw", "float32", f"{megabytes // 4}x1024x1024", threads, "warm")


# ---- the machine ---------------------------------------------------------------------------------


def command_output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip()
    except OSError:
        return ""


def memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_bytes() -> int:
    """What can be allocated without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))


def last_level_share() -> int:
    """What can be counted on of the last-level cache: as platform.c has it."""
    size = cache_size(3)
    return min(size, (8 << 20) * (os.cpu_count() or 1)) if size > 64 << 20 else size


def cache_size(index: int) -> int:
    """The kernel's figure: getconf's is that of the whole socket on some machines."""
    path = Path(f"/sys/devices/system/cpu/cpu0/cache/index{index}/size")
    text = path.read_text().strip() if path.exists() else ""
    return int(text[:-1]) << 10 if text.endswith("K") else 0


def machine() -> dict[str, object]:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": f"{model}, {len(os.sched_getaffinity(0))} cores",
        "L2": cache_size(2),
        "LLC": cache_size(3),
        "LLC_share": last_level_share(),
        "memory_gib": round(memory_bytes() / 2**30),
        "kernel": platform.release(),
        "transparent_huge_pages": pages.read_text().strip() if pages.exists() else "unknown",
        "buffers": "one arena, aligned to 2 MiB, madvise(MADV_HUGEPAGE)",
        "threads": "OMP_PROC_BIND=" + binding(2).get("OMP_PROC_BIND", "as set"),
        "commit": command_output("git", "describe", "--always", "--dirty") or "unknown",
        **{
            key: os.environ[key]
            for key in sorted(os.environ)
            if key.startswith(("OMP_", "KMP_", "GOMP_", "BATCHNORM_MAX"))
        },
    }


def versions(workers: list[Worker]) -> dict[str, str]:
    found: dict[str, str] = {}
    for worker in workers:
        for word in worker.ready:
            name, version = word.split("=", 1)
            if version not in found.setdefault(name, version):
                found[name] += f" and {version}"
    return found


def numbers(text: str) -> list[int]:
    values = [int(word) for word in text.split(",")]
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"'{text}', expected numbers of threads of at least 1")
    return values


def words(allowed: tuple[str, ...]):
    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        for word in chosen:
            if word not in allowed:
                raise argparse.ArgumentTypeError(f"'{word}', expected some of {','.join(allowed)}")
        return chosen

    return parse


def parse_options() -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], prog="scripts/bench")
    parser.add_argument(
        "--grid",
        choices=GRIDS,
        help="quick: the nine design shapes, training, float32; targets: all that the library's "
        "targets are stated for; full (default): every shape",
    )
    parser.add_argument(
        "--quick", action="store_true", help="--grid quick --rounds 5 --ms 5 --retries 0"
    )
    parser.add_argument("--shapes", type=Path, nargs="+", metavar="FILE", help="these shapes only")
    parser.add_argument(
        "--threads", type=numbers, default=sorted({1, cores}), help="default: 1 and all cores"
    )
    ops = (*OPS, *FUSED, *MASKED)
    parser.add_argument("--ops", type=words(ops), help=f"of {','.join(ops)}")
    parser.add_argument("--layouts", type=words(LAYOUTS), help=f"of {','.join(LAYOUTS)}")
    parser.add_argument("--dtypes", type=words(DTYPES), help=f"of {','.join(DTYPES)}")
    parser.add_argument("--buffers", type=words(BUFFERS), help=f"of {','.join(BUFFERS)}")
    parser.add_argument(
        "--rounds", type=int, help="repetitions of each contender (default 15, quick 5)"
    )
    parser.add_argument(
        "--ms", type=float, help="milliseconds of a repetition (default 20, quick 5)"
    )
    parser.add_argument(
        "--retries", type=int, help="for cells that others disturbed (default 1, quick 0)"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "bench-output", help="folder")
    parser.add_argument("--library", type=Path, default=ROOT / "build" / "libbatchnorm.so")
    parser.add_argument(
        "--programs", type=Path, default=ROOT / "build-bench", help="where the harness is"
    )
    parser.add_argument("--peers", type=Path, metavar="PYTHON", help="the peers' Python")
    options = parser.parse_args()
    options.grid = options.grid or ("quick" if options.quick else "full")
    options.rounds = options.rounds or (5 if options.quick else 15)
    options.ms = options.ms or (5 if options.quick else 20)
    if options.retries is None:
        options.retries = 0 if options.quick else 1
    options.llc = cache_size(3) or 32 << 20
    options.library = options.library.resolve()
    for path, how in (
        (options.library, "scripts/build"),
        (options.programs / "harness", "scripts/bench"),
    ):
        if not path.exists():
            sys.exit(f"error: {path} is missing: {how} makes it")
    return options


def main() -> None:
    options = parse_options()
    try:
        from tqdm import tqdm
    except ImportError:
        sys.exit("error: tqdm is missing: run scripts/bench, which installs it")
    chosen = cells(options)
    if not chosen:
        sys.exit(
            "error: these options leave nothing to time (a matrix has one layout: nchw; +lengths "
            "needs shapes NxCxL)"
        )
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "results.csv"
    failures = []

    def log(text: str) -> None:
        failures.append(text)
        tqdm.write(text, file=sys.stderr)

    free = options.free = free_bytes()
    for cell in list(chosen):
        needed = cell.buffer_bytes(options.llc)
        if needed > free - SPARE_BYTES:
            del chosen[cell]
            log(
                f"{cell} left out: "
                f"needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB of memory are free"
            )
    threads = sorted({cell.threads for cell in chosen})
    chosen = {memory_cell(t, free, log): "machine" for t in threads} | chosen
    header: dict[str, object] = {}
    found: dict[Cell, Result] = {}
    progress = tqdm(total=len(chosen), unit="cell", smoothing=0.05)
    try:
        for count in threads:
            workers = start_workers(count, options, log)
            header = {**machine(), **versions(workers), "rounds": options.rounds}
            header["repetition_ms"] = options.ms
            memory = next(cell for cell in chosen if cell.op == MEMORY)
            header["memory_tensors"] = f"{memory.tensor_bytes >> 20} MB"
            todo = [cell for cell in chosen if cell.threads == count]
            for attempt in range(1 + options.retries):
                for cell in todo:
                    text = f"{cell.op} {cell.layout} {cell.shape} x{count}"
                    progress.set_description(text + " again" * (attempt > 0))
                    result = measure(cell, chosen[cell], workers, options, log)
                    if result and (cell not in found or result.others < found[cell].others):
                        found[cell] = result
                    progress.update(attempt == 0)
                todo = [c for c in todo if c in found and found[c].others > DISTURBED]
            for worker in workers:
                worker.stop()
    finally:  # what has been measured is written, even if the run is stopped
        progress.close()
        with path.open("w", newline="") as file:
            for key, value in header.items():
                file.write(f"# {key}: {value}\n")
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            for cell, result in found.items():
                writer.writerows(rows(cell, chosen[cell], result))
    try:
        text = "\n".join(explanations(found, options.library))
        path.with_name("plans.txt").write_text(text)
    except ImportError as error:
        log(f"no plans.txt: {error}")
    disturbed = sum(result.others > DISTURBED for result in found.values())
    print(f"{len(found)} of {len(chosen)} cells, {len(failures)} messages: {path}")
    if disturbed:
        print(f"{disturbed} cells disturbed: others used more than {DISTURBED} % of the machine")
    if len(found) < len(chosen):
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except WorkerError as error:
        sys.exit(f"error: {error}")
