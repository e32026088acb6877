"""The Python side of a benchmark worker: the protocol of cell.h, for peers that live in Python.

A peer gives `line_up(cell)`: a list of (name, calls), where `calls` has one function without
arguments for each buffer set that is rotated.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

Contender = tuple[str, list[Callable[[], object]]]


MOST_SETS = 1024  # of cold buffers; beyond it Python objects, not tensors, are what is measured


@dataclass
class Cell:
    op: str = "forward"
    layout: str = "nchw"
    dtype: str = "float32"
    shape: str = "32x64x56x56"
    buffers: str = "warm"
    threads: str = "1"
    ms: str = "20"
    llc: str = str(32 << 20)
    pages: str = "huge"
    parameters: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(int(size) for size in self.shape.split("x"))

    @property
    def operation(self) -> str:
        """Without what is fused with it."""
        return self.op.partition("+")[0]

    @property
    def plain(self) -> bool:
        """Nothing is fused, and NumPy has the data type."""
        return self.op == self.operation and self.dtype in ("float32", "float64")

    @property
    def add(self) -> bool:
        return "+add" in self.op

    @property
    def relu(self) -> bool:
        return "+relu" in self.op

    @property
    def lengths(self) -> bool:
        return "+lengths" in self.op

    @property
    def backward(self) -> bool:
        return self.operation in ("backward", "frozen")

    @property
    def fixed(self) -> bool:
        """Statistics are constants."""
        return self.operation in ("inference", "frozen")

    @property
    def parameter_dtype(self) -> str:
        return "float64" if self.dtype == "float64" else "float32"

    @property
    def sets(self) -> int:
        if self.buffers == "warm":
            return 1
        tensors = 2 + self.backward + self.add
        item = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}[self.dtype]
        size = math.prod(self.sizes) * item
        return min(4 * int(self.llc) // (tensors * size) + 1, 1 << 16)

    def tensor(self, seed: int) -> np.ndarray:
        """Values in logical order; a peer lays them out, and rounds them to half types."""
        generator = np.random.default_rng(seed)
        count = math.prod(self.sizes)
        values = generator.standard_normal(min(count, 1 << 16), dtype=self.parameter_dtype)
        return np.resize(values + values.dtype.type(0.5), self.sizes).copy()

    def channel(self, name: str) -> np.ndarray:
        value = {"weight": 1.0, "bias": 0.01, "mean": 0.4, "var": 0.9}[name]
        return np.full(self.sizes[1], value, dtype=self.parameter_dtype)


def wake(calls: list[Callable[[], object]]) -> None:
    """The cores have idled while other processes had their turns: see cell.c."""
    start = time.perf_counter()
    while time.perf_counter() - start < 0.1:
        repetition(calls, 1)


def repetition(calls: list[Callable[[], object]], loops: int) -> float:
    """Seconds per call."""
    sets = len(calls)
    if sets == 1:
        call = calls[0]
        start = time.perf_counter()
        for _ in range(loops):
            call()
        return (time.perf_counter() - start) / loops
    start = time.perf_counter()
    for i in range(loops):
        calls[i % sets]()
    return (time.perf_counter() - start) / loops


def calibrate(calls: list[Callable[[], object]], seconds: float) -> int:
    best = repetition(calls, 1)
    loops = 1
    while best * loops < seconds / 8:
        best = min(best, repetition(calls, loops))
        loops *= 4
    return math.ceil(seconds / best)


def serve(ready: str, line_up: Callable[[Cell], list[Contender]]) -> None:
    answer = sys.stdout
    sys.stdout = sys.stderr  # what a library prints is no answer

    def say(text: str) -> None:
        answer.write(text + "\n")
        answer.flush()

    say(f"ready {ready}")
    contenders: list[Contender] = []
    loops: list[int] = []
    rounds = 0
    try:
        for line in sys.stdin:
            command, *words = line.split()
            if command == "cell":
                contenders = []  # gives the buffers back first
                cell = Cell(**dict(word.split("=", 1) for word in words))
                contenders = line_up(cell) if cell.sets <= MOST_SETS else []
                loops = [calibrate(calls, float(cell.ms) / 1000) for _, calls in contenders]
                say(" ".join(["contenders", *(name for name, _ in contenders)]))
            elif command == "round":
                times = [0.0] * len(contenders)
                if contenders:
                    wake(contenders[0][1])
                for i in range(len(contenders)):
                    turn = (rounds + i) % len(contenders)  # whoever is first is a little slower
                    calls = contenders[turn][1]
                    repetition(calls, 1)
                    times[turn] = repetition(calls, loops[turn])
                rounds += 1
                say(" ".join(["times", *(f"{seconds:.9g}" for seconds in times)]))
            elif command == "close":
                contenders = []
                say("closed")
            else:
                raise ValueError(f"unknown command {command!r}")
    except Exception as error:  # whatever it is, the coordinator must hear of it
        say(f"error {type(error).__name__}: {error}".replace("\n", " "))
        raise SystemExit(2) from error
