"""Threads, instruction sets, processes: the same bits everywhere, and nothing stands still."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import batchnorm
from batchnorm import BatchNorm2d
from batchnorm import functional as F
from layouts import LAYOUTS, in_layout

SHAPES = [(8, 17, 9, 31), (1, 3, 64, 64), (64, 1, 30, 7), (300, 40), (2, 130, 7, 7)]


def run_everything(x: Any, grad: Any, weight: Any, bias: Any) -> list[bytes]:
    result = F.forward_training(x, weight=weight, bias=bias)
    saved: dict[str, Any] = {"saved_mean": result.saved_mean, "saved_invstd": result.saved_invstd}
    gradients = F.backward(grad, x, weight, **saved)
    running: dict[str, Any] = {"running_mean": bias, "running_var": weight}
    y = F.forward_inference(x, weight=weight, bias=bias, **running)
    frozen = F.backward(grad, x, weight, statistics="running", **running)
    arrays = [result.output, result.saved_mean, result.saved_invstd, *gradients, y, *frozen]
    return [array.tobytes() for array in arrays if array is not None]


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_same_bits_on_any_threads_and_instruction_set(
    shape: tuple[int, ...], layout: str, dtype: type, rng: np.random.Generator
) -> None:
    x = in_layout(rng.normal(3, 2, shape).astype(dtype), layout)
    grad = in_layout(rng.standard_normal(shape).astype(dtype), layout)
    weight, bias = rng.uniform(0.5, 2, (2, shape[1])).astype(dtype)
    expected = run_everything(x, grad, weight, bias)
    used = set()
    for isa in ("generic", "avx2", "avx512"):
        batchnorm.set_max_isa(isa)
        used.add(batchnorm.get_isa())
        for threads in (1, 2, 3, 5, 8):
            batchnorm.set_num_threads(threads)
            assert run_everything(x, grad, weight, bias) == expected, (isa, threads)
    assert "generic" in used


@pytest.mark.usefixtures("machine")
def test_settings_can_be_asked_for() -> None:
    batchnorm.set_num_threads(3)
    assert batchnorm.get_num_threads() == 3
    batchnorm.set_num_threads(0)
    assert batchnorm.get_num_threads() >= 1
    batchnorm.set_max_isa("generic")
    assert batchnorm.get_isa() == "generic"
    batchnorm.set_max_isa("avx512")
    assert batchnorm.get_isa() in ("generic", "avx2", "avx512")


@pytest.mark.usefixtures("machine")
def test_the_interpreter_lock_is_released() -> None:
    """Another thread counts on while a call is in progress.

    No forced switches: the only moments at which the counter can run are those in which this thread
    lets go of the lock, and between the two readings only the call can do that.
    """
    batchnorm.set_num_threads(1)
    x = np.ones((64, 16, 64, 64), np.float32)
    out = np.empty_like(x)
    counter, stop, started = [0], threading.Event(), threading.Event()

    def count() -> None:
        started.set()
        while not stop.is_set():
            counter[0] += 1
            time.sleep(0)  # lets go of the lock, too

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=count)
    thread.start()
    started.wait()
    sys.setswitchinterval(1000)
    time.sleep(0.05)  # until no thread waits by the old interval any more
    try:
        progress = 0
        for _ in range(50):
            before = counter[0]
            F.forward_training(x, out=out)
            progress = counter[0] - before
            if progress > 0:
                break
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join()
    assert progress > 0


def test_many_threads_each_with_a_layer_of_its_own(rng: np.random.Generator) -> None:
    batches = rng.standard_normal((6, 4, 5, 8, 8)).astype(np.float32)

    def train(batch: Any) -> bytes:
        layer = BatchNorm2d(5)
        for _ in range(20):
            layer(batch)
            layer.backward(batch)
            layer.weight -= 0.01 * layer.grad_weight
        return layer.to_bytes()

    expected = [train(batch) for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(train, batches)) == expected


def test_one_layer_shared_by_threads_stays_whole() -> None:
    """Calls wait for each other: every batch is counted, and sizes that change do no harm."""
    layer = BatchNorm2d(3)

    def train(size: int) -> None:
        for _ in range(50):
            layer(np.ones((size, 3, size, size), np.float32))
            layer.state_dict()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(train, [2, 5, 9, 17]))
    assert layer.num_batches_tracked == 200


@pytest.mark.parametrize(
    "call",
    [
        lambda layer, x: layer(x),
        lambda layer, x: layer.backward(x),
        lambda layer, x: layer.state_dict(),
        lambda layer, x: layer.to_bytes(),
        lambda layer, x: layer.load_bytes(BatchNorm2d(3).to_bytes()),
        lambda layer, x: layer.eval(),
        lambda layer, x: layer.reset_running_stats(),
        lambda layer, x: layer.saved_mean,
        lambda layer, x: setattr(layer, "running_mean", np.zeros(3, np.float32)),
        lambda layer, x: setattr(layer, "weight", np.zeros(3, np.float32)),
    ],
)
def test_a_call_waits_while_another_thread_is_inside_the_layer(call: Any) -> None:
    layer = BatchNorm2d(3)
    x = np.ones((2, 3, 4, 4), np.float32)
    layer(x)
    thread = threading.Thread(target=call, args=(layer, x))
    with layer._handle.lock:  # as a call does
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
    thread.join()


# What follows needs processes of its own: a runtime that has come into a process stays there.

GOMP = """
import ctypes, os, signal
import numpy as np

def bring_libgomp():
    gomp = ctypes.CDLL("libgomp.so.1")
    body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda context: None)
    gomp.GOMP_parallel(body, None, 2, 0)  # its threads exist now
    return gomp

def normalize():
    import batchnorm
    x = np.random.default_rng(1).standard_normal((8, 8, 64, 64)).astype(np.float32)
    return batchnorm.functional.forward_training(x).output.tobytes()

def in_a_child(check):
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # threads that are not there would be waited for
        try:
            check()
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def in_a_process(program: str) -> None:
    package = str(Path(batchnorm.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": "2"}
    environment["PYTHONWARNINGS"] = "ignore"  # of forks beside threads
    done = subprocess.run(
        [sys.executable, "-c", GOMP + program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_another_openmp_runtime_is_shared() -> None:
    in_a_process("""
import batchnorm
own = batchnorm.get_thread_runtime()
assert own.startswith(("libomp", "libiomp5")), own
assert batchnorm.get_threading() == "auto"
expected = normalize()
try:
    batchnorm.set_threading("shared")
    raise SystemExit("shared, with whom?")
except batchnorm.BatchNormRuntimeError as error:
    assert error.status is batchnorm.Status.NO_SHARED_RUNTIME, error
    assert "threading is 'shared'" in str(error), error
assert batchnorm.get_threading() == "auto"

gomp = bring_libgomp()
assert batchnorm.get_thread_runtime() == "libgomp.so.1"
gomp.omp_set_num_threads(3)
assert batchnorm.get_num_threads() == 3
for threading in ("shared", "own", "auto"):
    batchnorm.set_threading(threading)
    assert batchnorm.get_threading() == threading
    assert batchnorm.get_thread_runtime() == (own if threading == "own" else "libgomp.so.1")
    assert normalize() == expected, threading
""")


@pytest.mark.parametrize("loaded", ["before", "after"])
def test_a_forked_child_does_not_wait_for_threads_of_its_parent(loaded: str) -> None:
    """Whether this library came into the process before the fork or after it."""
    in_a_process(f"""
bring_libgomp()
expected = None
if "{loaded}" == "before":
    expected = normalize()
    import batchnorm
    assert batchnorm.get_thread_runtime() == "libgomp.so.1"

def child():
    found = normalize()
    assert found == (expected or found)
    import batchnorm
    assert not batchnorm.get_thread_runtime().startswith("libgomp")
    try:
        batchnorm.set_threading("shared")
        raise SystemExit("shared, with whom?")
    except batchnorm.BatchNormRuntimeError as error:
        assert "forked" in str(error), error
    in_a_child(normalize)  # a grandchild, after libomp has run

in_a_child(child)
assert normalize() == (expected or normalize())
""")


def test_multiprocessing_by_fork() -> None:
    in_a_process("""
import multiprocessing
bring_libgomp()
expected = normalize()
with multiprocessing.get_context("fork").Pool(2) as pool:
    found = pool.apply_async(normalize).get(timeout=60)
assert found == expected
""")


# Python 3.12 and later warn of any fork beside threads; that it works here is the point.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_can_go_on(rng: np.random.Generator) -> None:
    x = rng.standard_normal((16, 8, 32, 32)).astype(np.float32)
    layer = BatchNorm2d(8)
    layer(x)  # the OpenMP threads exist now; the child will not have them
    expected = BatchNorm2d.from_bytes(layer.to_bytes())(x)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        status = 1
        try:
            status = 0 if layer(x).tobytes() == expected.tobytes() else 2
        finally:
            os.write(write, bytes([status]))
            os._exit(status)
    os.close(write)
    assert os.read(read, 1) == b"\0"
    os.waitpid(child, 0)
    os.close(read)


def test_no_number_of_threads_is_too_large(machine: None, rng: np.random.Generator) -> None:
    x = rng.normal(size=(64, 64, 32, 32)).astype(np.float32)
    expected = F.forward_training(x).output
    for number in (1_000_000, 2**31 - 1):
        batchnorm.set_num_threads(number)
        assert 64 <= batchnorm.get_num_threads() < 1 << 16
        assert F.forward_training(x).output.tobytes() == expected.tobytes()
