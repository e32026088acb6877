"""Recycled memory: blocks are used again, never twice at once, and within the limit."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import os
import pickle
import resource
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import batchnorm
from batchnorm import _memory_limit, memory
from batchnorm import functional as F

MIB = 1 << 20
SMALLEST = 2 * MIB


@pytest.fixture(autouse=True)
def pool() -> Iterator[None]:
    """Each test begins with no idle blocks and a limit that its own sizes fit in."""
    before = memory.get_limit()
    gc.collect()
    memory.set_limit(256 * MIB)
    memory.clear()
    yield
    memory.set_limit(before)


def bytes_of(size: int) -> NDArray[np.uint8]:
    return memory.empty((size,), np.uint8)


def allocated(nbytes: int) -> ctypes.Array[ctypes.c_ubyte]:
    block = memory.allocate(nbytes)
    assert block is not None
    return block


def address(array: NDArray[Any]) -> int:
    return array.ctypes.data


def images(channels_last: bool = False) -> NDArray[np.float32]:
    values = np.arange(8 * 16 * 64 * 80, dtype=np.float32).reshape(8, 64, 80, 16)  # 2.5 MiB
    return values.transpose(0, 3, 1, 2) if channels_last else values.reshape(8, 16, 64, 80)


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a fresh interpreter, where every warning and every ignored exception is seen."""
    return subprocess.run(
        [sys.executable, "-X", "dev", "-c", code],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(batchnorm.__file__).parents[1]),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
    )


# Used again.


def test_the_next_result_has_the_memory_of_the_one_that_died() -> None:
    first = F.forward_training(images()).output
    place = address(first)
    before = memory.stats()
    del first
    second = F.forward_training(images()).output
    assert address(second) == place
    after = memory.stats()
    assert (after.hits, after.misses) == (before.hits + 1, before.misses)


def test_every_large_result_of_a_step_is_recycled() -> None:
    x = images()
    layer = batchnorm.BatchNorm2d(16)

    def step() -> None:
        layer(x, residual=x, activation="relu")
        layer.backward(x)
        layer.grad_residual = None
        forward = F.forward_training(x, activation="relu", residual=x, activation_mask=True)
        saved: dict[str, Any] = {
            "saved_mean": forward.saved_mean,
            "saved_invstd": forward.saved_invstd,
        }
        F.backward(
            x, x, activation="relu", activation_mask=forward.activation_mask, grad_residual=True,
            **saved,
        )  # fmt: skip
        F.forward_inference(x, np.zeros(16, np.float32), np.ones(16, np.float32))
        batchnorm.normalize(x, batchnorm.Moments.of(x))

    before = memory.stats()
    step()
    first = memory.stats()
    assert first.misses > before.misses
    step()
    second = memory.stats()
    # Output, grad_input, grad_residual of the layer and of the functions, inference, normalize.
    assert (second.hits - first.hits, second.misses - first.misses) == (8, 0)


def test_a_large_activation_mask_is_recycled() -> None:
    assert bytes_of(SMALLEST).base is not None
    x = np.zeros((1, 1, 4096, 4096), np.float32)  # a bit a value: 2 MiB
    out = np.empty_like(x)
    before = memory.stats()
    result = F.forward_training(x, activation="relu", activation_mask=True, out=out)
    after = memory.stats()
    assert after.hits + after.misses == before.hits + before.misses + 1
    assert after.lent_bytes - before.lent_bytes == result.activation_mask.nbytes


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def test_recycled_memory_has_no_page_faults() -> None:
    size = 64 * MIB
    place = address(bytes_of(size))  # makes the block; nothing has touched it yet
    pages = size // mmap.PAGESIZE
    before = page_faults()
    first = bytes_of(size)
    first.fill(1)
    fresh = page_faults() - before
    assert address(first) == place
    del first
    before = page_faults()
    second = bytes_of(size)
    second.fill(2)
    recycled = page_faults() - before
    assert address(second) == place
    assert fresh >= size // SMALLEST  # at least one a huge page, or the test would show nothing
    assert recycled < min(fresh, pages // 100)


@pytest.mark.parametrize("size", [SMALLEST - 1, 1, 0])
def test_small_results_are_left_to_malloc(size: int) -> None:
    before = memory.stats()
    assert memory.allocate(size) is None
    assert bytes_of(size).flags.owndata
    assert memory.stats() == before


@given(st.integers(SMALLEST, 100 * MIB))
@settings(max_examples=50)
def test_a_block_is_an_eighth_too_large_at_most(size: int) -> None:
    block = allocated(size)
    assert size <= len(block) <= size * 9 // 8
    assert ctypes.addressof(block) % SMALLEST == 0


# Never twice at once.


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["make", "drop", "slice", "clear", "limit"]),
            st.integers(0, 7),
            st.integers(SMALLEST, 3 * MIB),
        ),
        max_size=40,
    )
)
def test_live_results_never_share_memory(steps: list[tuple[str, int, int]]) -> None:
    """Each array holds a number of its own, which must still be there whatever came after."""
    alive: list[tuple[NDArray[np.uint8], int]] = []
    for number, (what, which, size) in enumerate(steps):
        if what == "make":
            array = bytes_of(size)
            array[:: mmap.PAGESIZE] = number
            array[-1] = number
            alive.append((array, number))
        elif what == "clear":
            memory.clear()
        elif what == "limit":
            memory.set_limit(which * MIB * 2)
        elif alive and what == "drop":
            alive.pop(which % len(alive))
        elif alive:  # a view keeps the block when the array itself has gone
            array, content = alive.pop(which % len(alive))
            alive.append((array[-1:], content))
        assert memory.stats().idle_bytes <= memory.get_limit()
        for array, content in alive:
            assert array[0] == content == array[-1]


def test_a_slice_keeps_the_whole_block() -> None:
    array = bytes_of(SMALLEST)
    array[5] = 77
    piece = array[5:6]
    lent = memory.stats().lent_blocks
    del array
    assert memory.stats().lent_blocks == lent
    other = bytes_of(SMALLEST)
    other.fill(1)
    assert piece[0] == 77
    del piece
    assert memory.stats().lent_blocks == lent  # one came back, `other` is out


@pytest.mark.parametrize(
    "keep",
    [
        memoryview,
        lambda array: array.view(np.float32).reshape(2, -1).T,
        lambda array: np.frombuffer(array, np.int16),
        lambda array: np.asarray(memoryview(array)),
        lambda array: array.base,
    ],
    ids=["memoryview", "view", "frombuffer", "array of a memoryview", "base"],
)
def test_whatever_reaches_the_memory_keeps_it(keep: Any) -> None:
    array = bytes_of(SMALLEST)
    place = address(array)
    kept = keep(array)
    del array
    other = bytes_of(SMALLEST)
    assert address(other) != place
    del kept, other
    again = [bytes_of(SMALLEST) for _ in range(2)]
    assert place in [address(array) for array in again]


def test_arrays_in_cycles_come_back_when_collected() -> None:
    class Node:
        pass

    lent = memory.stats().lent_blocks
    gc.disable()
    try:
        node: Any = Node()
        node.itself, node.array = node, bytes_of(SMALLEST)
        del node
        assert memory.stats().lent_blocks == lent + 1
        gc.collect()
        assert memory.stats().lent_blocks == lent
        assert memory.stats().idle_blocks == 1
    finally:
        gc.enable()


def test_a_finalizer_that_revives_memory_keeps_it() -> None:
    """In a cycle, weak references hear of a death before the finalizer that may prevent it."""
    revived: list[Any] = []

    class Node:
        def __del__(self) -> None:
            revived.append(self.memory)

        memory: Any = None

    node: Any = Node()
    node.itself, node.memory = node, allocated(SMALLEST)
    node.memory[0] = 77
    del node
    gc.collect()
    others = [allocated(SMALLEST) for _ in range(2)]
    for other in others:
        other[0] = 1
    assert revived[0][0] == 77


# Bounded.


def test_idle_memory_is_bounded_and_the_oldest_goes_first() -> None:
    memory.set_limit(6 * MIB)
    arrays = [bytes_of(size * MIB) for size in (2, 3, 2, 3)]
    second, third, fourth = (address(array) for array in arrays[1:])
    while arrays:
        del arrays[0]
        assert memory.stats().idle_bytes <= 6 * MIB
    assert memory.stats()[2:4] == (5 * MIB, 2)  # 2 and 3 gave way to the last two
    assert address(bytes_of(2 * MIB)) == third
    assert address(bytes_of(3 * MIB)) == fourth != second


def test_a_block_beyond_the_limit_is_not_kept() -> None:
    memory.set_limit(4 * MIB)
    bytes_of(5 * MIB)  # dies at once
    assert memory.stats().idle_blocks == 0


def test_a_lower_limit_holds_at_once() -> None:
    arrays = [bytes_of(SMALLEST) for _ in range(4)]
    del arrays
    assert memory.stats().idle_bytes == 4 * SMALLEST
    memory.set_limit(2 * SMALLEST)
    assert memory.get_limit() == 2 * SMALLEST
    assert memory.stats().idle_bytes == 2 * SMALLEST


def test_zero_switches_it_off() -> None:
    array = bytes_of(SMALLEST)
    memory.set_limit(0)
    before = memory.stats()
    assert memory.allocate(SMALLEST) is None
    assert bytes_of(SMALLEST).flags.owndata
    assert memory.stats() == before
    del array  # lent before: goes to the system
    assert memory.stats().idle_blocks == 0


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_clear_gives_memory_back_to_the_system() -> None:
    bytes_of(128 * MIB).fill(1)
    held = resident()
    assert memory.stats().idle_bytes == 128 * MIB
    memory.clear()
    assert memory.stats().idle_bytes == 0
    assert resident() < held - 100 * MIB


def test_blocks_that_nobody_used_for_long_go_back_when_another_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(memory._pool, "clock", lambda: now)
    first, second, third = bytes_of(4 * MIB), bytes_of(8 * MIB), bytes_of(16 * MIB)
    del first
    now += 59
    del second
    assert memory.stats().idle_bytes == 12 * MIB
    now += 2  # a minute after the first, but not after the second
    del third
    assert memory.stats().idle_bytes == 24 * MIB
    now += 61  # and all of them but the one that is in use time and again
    last = bytes_of(16 * MIB)
    del last
    assert memory.stats().idle_bytes == 16 * MIB


@pytest.mark.parametrize(
    ("limit", "error", "message"),
    [
        (-1, ValueError, "limit is -1, expected a number of bytes, 0 or more"),
        (1.5, TypeError, "limit is 1.5 of type float, expected an integer"),
        ("1G", TypeError, "limit is '1G' of type str, expected an integer"),
        (None, TypeError, "limit is None of type NoneType, expected an integer"),
    ],
)
def test_bad_limits_are_refused(limit: Any, error: type[Exception], message: str) -> None:
    before = memory.get_limit()
    with pytest.raises(error, match=f"^{message}$"):
        memory.set_limit(limit)
    assert memory.get_limit() == before


# From outside.


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("0", 0),
        ("123", 123),
        ("3k", 3 << 10),
        ("512M", 512 << 20),
        (" 2G ", 2 << 30),
        ("1T", 1 << 40),
    ],
)
def test_the_environment_sets_the_limit(
    text: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHNORM_MEMORY_LIMIT", text)
    assert _memory_limit.initial_limit() == limit


@pytest.mark.parametrize("text", ["-1", "much", "1.5G", "2GB", "G", "٣"])
def test_a_bad_environment_is_a_warning(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BATCHNORM_MEMORY_LIMIT", raising=False)
    default = _memory_limit.initial_limit()
    monkeypatch.setenv("BATCHNORM_MEMORY_LIMIT", text)
    with pytest.warns(RuntimeWarning, match="BATCHNORM_MEMORY_LIMIT is .*, expected a number of"):
        assert _memory_limit.initial_limit() == default


@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_environment_is_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHNORM_MEMORY_LIMIT", text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _memory_limit.initial_limit() == _memory_limit.usable_memory() // 8


def test_import_reads_the_environment() -> None:
    code = "import batchnorm; print(batchnorm.memory.get_limit())"
    assert run(code, BATCHNORM_MEMORY_LIMIT="3M").stdout.strip() == str(3 * MIB)
    bad = run(code, BATCHNORM_MEMORY_LIMIT="lots")
    assert bad.returncode == 0
    assert "RuntimeWarning: BATCHNORM_MEMORY_LIMIT is 'lots'" in bad.stderr


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/a/b\n", {"a/memory.max": "5000", "a/b/memory.max": "max"}, 5000),
        ("0::/a/b\n", {"memory.max": "7000", "a/b/memory.max": "6000\n"}, 6000),
        ("0::/gone/in/here\n", {"memory.max": "8000"}, 8000),  # a container
        ("3:cpu,memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "9000"}, 9000),
        ("3:cpu:/a\n0::/\n", {"cpu/a/memory.max": "10"}, None),
        ("", {}, None),
    ],
)
def test_control_groups_bound_the_memory_there_is(
    groups: str, files: dict[str, str], expected: int | None, tmp_path: Path
) -> None:
    own = tmp_path / "cgroup"
    own.write_text(groups)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert _memory_limit.usable_memory(own, tmp_path) == (expected or machine)
    assert _memory_limit.usable_memory(tmp_path / "none", tmp_path) == machine


def test_without_memory_the_caller_falls_back() -> None:
    """First the idle blocks go; only then it is said that there is nothing."""
    code = """
import resource, numpy as np
from batchnorm import memory
MIB = 1 << 20
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
memory.set_limit(1 << 40)
resource.setrlimit(resource.RLIMIT_AS, (used + 200 * MIB, used + 200 * MIB))
memory.allocate(100 * MIB)                            # waits now
other = memory.allocate(150 * MIB)                    # fits only in its place
print(other is not None, memory.stats().idle_blocks, memory.allocate(150 * MIB))
try:
    memory.empty((150 * MIB,), np.uint8)
except MemoryError as error:
    print(error)
"""
    result = run(code)
    assert result.stdout.startswith("True 0 None\nUnable to allocate 150. MiB"), result


# Arrays as NumPy makes them.


@given(st.permutations(range(4)), st.sampled_from(["f4", "f8", "f2"]), st.data())
@settings(max_examples=50)
def test_memory_order_is_that_of_numpy(order: list[int], dtype: str, data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(64, 32, 16, 64), (1, 1024, 1, 2048), (2, 1, 1024, 1024)]))
    array = np.empty(shape, dtype).transpose(order)
    expected, result = np.empty_like(array), memory.empty_like(array)
    assert result.base is not None
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
    steps = [
        (size, stride)
        for size, stride in zip(result.shape, result.strides, strict=True)
        if size > 1
    ]
    assert steps == [
        (size, stride)
        for size, stride in zip(expected.shape, expected.strides, strict=True)
        if size > 1
    ]
    assert result.flags.writeable
    assert result.flags.aligned


@pytest.mark.parametrize("channels_last", [False, True])
def test_values_are_those_of_a_fresh_array(channels_last: bool) -> None:
    x = images(channels_last)
    memory.set_limit(0)
    expected = F.forward_training(x).output
    memory.set_limit(256 * MIB)
    for _ in range(2):
        y = F.forward_training(x).output
        assert y.strides == expected.strides == x.strides
        assert y.tobytes() == expected.tobytes()
        del y


def test_subclasses_and_objects_are_numpys() -> None:
    masked: Any = np.ma.masked_array(np.zeros(SMALLEST, np.uint8))
    assert type(memory.empty_like(masked)) is np.ndarray
    objects = memory.empty((SMALLEST,), object)
    assert objects.flags.owndata
    assert objects[0] is None


def test_results_can_be_copied_pickled_and_not_resized() -> None:
    y = F.forward_training(images()).output
    for copy in (y.copy(), deepcopy(y), pickle.loads(pickle.dumps(y))):
        assert np.array_equal(copy, y)
        assert not np.shares_memory(copy, y)
    with pytest.raises(ValueError, match="does not own its data"):
        y.resize(3)


# Threads, processes, exit.


def test_threads_never_share_memory() -> None:
    """Blocks come back in other threads than they were lent in, while others take them."""
    memory.set_limit(8 * SMALLEST)
    box: list[NDArray[np.uint8]] = []
    failures: list[int] = []
    interval = sys.getswitchinterval()

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for turn in range(300):
            array = bytes_of(SMALLEST + int(rng.integers(2)) * MIB)
            mark = seed * 1000 + turn
            words = array.view(np.int64)
            words[:4] = mark
            box.append(array)
            if len(box) > 6:
                with contextlib.suppress(IndexError):  # others pop too
                    box.pop(int(rng.integers(3)))
            if (words[:4] != mark).any():
                failures.append(mark)
            if turn % 50 == 0:
                memory.stats()
                memory.set_limit(int(rng.integers(1, 8)) * SMALLEST)
            if turn % 97 == 0:
                memory.clear()

    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as executor:
            for done in [executor.submit(work, seed) for seed in range(8)]:
                done.result()
    finally:
        sys.setswitchinterval(interval)
    assert failures == []
    box.clear()
    memory.set_limit(4 * SMALLEST)
    after = memory.stats()
    assert after.idle_bytes <= 4 * SMALLEST


def test_blocks_come_back_in_another_thread() -> None:
    holder = [bytes_of(SMALLEST)]
    place = address(holder[0])
    thread = threading.Thread(target=holder.clear)
    thread.start()
    thread.join()
    assert address(bytes_of(SMALLEST)) == place


def in_child(check: Any) -> None:
    """Runs `check` in a forked child, which must end well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            check()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_forked_child_has_its_own_memory() -> None:
    array = bytes_of(SMALLEST)
    array.fill(7)
    waiting = bytes_of(4 * MIB)
    del waiting
    assert memory.stats().idle_blocks == 1

    def child() -> None:
        nonlocal array
        assert memory.stats().idle_blocks == 0
        assert memory.stats().lent_blocks >= 1
        assert array[0] == 7
        array.fill(8)
        place = address(array)
        del array
        assert memory.stats().idle_blocks == 1
        again = bytes_of(SMALLEST)
        assert address(again) == place
        again.fill(9)

    in_child(child)
    assert memory.stats().idle_blocks == 1
    assert array[0] == 7 == array[-1]


def test_forks_amid_busy_threads() -> None:
    done = threading.Event()

    def busy() -> None:
        while not done.is_set():
            bytes_of(SMALLEST)[:8] = 1

    def child() -> None:
        for _ in range(20):
            arrays = [bytes_of(SMALLEST) for _ in range(3)]
            assert len({address(array) for array in arrays}) == 3
            del arrays
        assert memory.stats().idle_bytes <= memory.get_limit()

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            in_child(child)
    finally:
        done.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize(
    "ending",
    [
        "",
        "raise SystemExit(0)",
        "import builtins; builtins.kept = arrays",
        "import sys; sys.modules['kept'] = arrays",
        "import threading; threading.Thread(target=busy, daemon=True).start()",
        "import gc; gc.disable(); arrays.append(arrays); del arrays",
    ],
    ids=["globals", "SystemExit", "builtins", "modules", "daemon", "cycle"],
)
def test_the_interpreter_ends_well_with_arrays_alive(ending: str) -> None:
    code = f"""
import numpy as np
from batchnorm import functional as F, memory
def busy():
    while True:
        memory.empty((4 << 20,), np.uint8)
arrays = [F.forward_training(np.ones((8, 16, 64, 80), np.float32)).output for _ in range(3)]
del arrays[0]
print("done", flush=True)
{ending}
"""
    result = run(code)
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", "")


# What malloc keeps.

_FAULTS = """
import resource
import numpy as np
from batchnorm import memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        blocks = [np.ones(12 << 17) for _ in range(4)]  # 48 MiB together
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) << 12

faults()
found = [faults()]
memory.keep_pages()
faults()
found.append(faults())
kept = resident()
memory.keep_pages(False)
given_back = kept - resident()
found.append(faults())
print(*found, given_back)
"""


def test_pages_are_kept_and_given_back() -> None:
    # Small pages, which are the same everywhere: a huge one is a single fault.
    result = run(_FAULTS, NUMPY_MADVISE_HUGEPAGE="0")
    assert result.returncode == 0, result.stderr
    by_default, kept, undone, given_back = map(int, result.stdout.split())
    assert kept < 100
    assert kept < by_default / 10
    assert undone > 10 * max(kept, 1)
    assert given_back > 40 * MIB


def test_keeping_pages_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    with pytest.raises(RuntimeError, match="the C library has no mallopt"):
        memory.keep_pages()


def test_keeping_pages_may_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        def mallopt(self, parameter: int, value: int) -> int:
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Library())
    with pytest.raises(RuntimeError, match=r"mallopt\(-4, 0\) was refused"):
        memory.keep_pages()
