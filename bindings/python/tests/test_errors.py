"""Bad input: every status, the exception it becomes, what it says, and that nothing was written."""

from __future__ import annotations

import ctypes
import inspect
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import batchnorm
from batchnorm import BatchNorm1d, BatchNorm2d, BatchNormError, Moments, Status, _lowlevel
from batchnorm import functional as F
from batchnorm.errors import error_for


def images(dtype: type = np.float32) -> NDArray[Any]:
    return np.random.default_rng(1).standard_normal((4, 3, 5, 5)).astype(dtype)


def stats(value: float = 2, count: int = 3) -> NDArray[Any]:
    return np.full(count, value, np.float32)


def training(**arguments: Any) -> Callable[[], object]:
    """A forward that must fail, with arrays that must not change."""
    x = arguments.pop("input", None)
    x = images() if x is None else x
    out = arguments.setdefault("out", np.full_like(x, 7))
    mean = arguments.setdefault("running_mean", stats(3))
    var = arguments.setdefault("running_var", stats(4))
    written = [each for each in (x, out, mean, var) if isinstance(each, np.ndarray)]
    return unchanged(lambda: F.forward_training(x, **arguments), *written)


def unchanged(call: Callable[[], object], *arrays: NDArray[Any]) -> Callable[[], object]:
    def checked() -> object:
        before = [array.tobytes() for array in arrays]
        try:
            return call()
        finally:
            assert before == [array.tobytes() for array in arrays], "a failing call wrote something"

    return checked


def misaligned() -> NDArray[Any]:
    return np.frombuffer(bytearray(4 * 3 + 1), np.float32, 3, offset=1)


def overlapping() -> Callable[[], object]:
    memory = np.zeros(101, np.float32)
    return training(input=memory[:100].reshape(4, 5, 5), out=memory[1:].reshape(4, 5, 5),
                    running_mean=None, running_var=None)  # fmt: skip


def activation_mask_inside() -> Callable[[], object]:
    out = np.zeros((4, 3, 5, 5), np.float32)
    return training(out=out, activation="relu", activation_mask=out.view(np.uint8).ravel()[:38])


def sequences(**arguments: Any) -> Callable[[], object]:
    return training(input=np.ones((2, 3, 5), np.float32), **arguments)


def no_forward() -> object:
    layer = BatchNorm2d(3)
    return layer.backward(images())


def after_forward(shape: tuple[int, ...]) -> Callable[[], object]:
    layer = BatchNorm2d(3)
    layer(images())
    other = np.ones(shape, np.float32)
    return lambda: layer(other)


def damaged(change: Callable[[bytearray], object], repair: bool = False) -> Callable[[], object]:
    """Loads a changed state; `repair` makes the checksum fit the change."""
    state = bytearray(BatchNorm1d(3).to_bytes())
    change(state)
    if repair:
        state[-4:] = zlib.crc32(state[:-4]).to_bytes(4, "little")
    layer = BatchNorm1d(3)
    before = layer.to_bytes()

    def load() -> None:
        try:
            layer.load_bytes(state)
        finally:
            assert layer.to_bytes() == before

    return load


def set_bytes(at: int, value: bytes) -> Callable[[bytearray], object]:
    return lambda state: state.__setitem__(slice(at, at + len(value)), value)


def low_level_problem(**members: Any) -> Callable[[], object]:
    """A problem that no NumPy array has."""
    problem = _lowlevel.bn_problem(ctypes.sizeof(_lowlevel.bn_problem), 1, 1, 4, (2, 3, 4, 5))
    for name, value in members.items():
        setattr(problem, name, value)
    args = _lowlevel.bn_forward_training_args(ctypes.sizeof(_lowlevel.bn_forward_training_args))
    return lambda: _lowlevel.bn_forward_training(ctypes.byref(problem), ctypes.byref(args))


def sizes(*values: int) -> Any:
    return (ctypes.c_int64 * 5)(*values)


def too_small_buffer() -> object:
    layer = BatchNorm1d(3)
    block = np.empty(10, np.uint8)
    return _lowlevel.bn_layer_save_state(layer._handle.pointer, block.ctypes.data, block.size)


def nonfinite() -> object:
    x = images()
    x[0, 1, 2, 3] = np.nan
    return F.forward_training(x, nonfinite="error")


# status, what raises it, and pieces that its message must quote
CASES: list[tuple[Status, Callable[[], object], list[str]]] = [
    (Status.NULL_POINTER, training(running_var=None), ["running_var"]),
    (Status.NULL_POINTER, lambda: F.batch_norm(images(), None, None), ["running_mean"]),
    (Status.NULL_POINTER, lambda: F.backward(images(), images()), ["saved_mean"]),
    (Status.NULL_POINTER, training(momentum=None), ["num_batches_tracked"]),
    (Status.NULL_POINTER,
     lambda: F.backward(images(), images(), saved_mean=np.zeros(3), saved_invstd=np.ones(3),
                        activation="relu"), ["activation_mask"]),
    (Status.STRUCT_SIZE, low_level_problem(struct_size=8), ["8", "56"]),
    (Status.INVALID_OPTION, low_level_problem(layout=9), ["layout", "9"]),
    (Status.INVALID_OPTION, lambda: batchnorm.set_num_threads(-2), ["-2"]),
    (Status.EXCLUSIVE,
     sequences(mask=np.ones((2, 5), bool), lengths=np.array([5, 5])), ["mask", "lengths"]),
    (Status.RANK, training(lengths=np.full(4, 5)), ["lengths", "4 dimensions", "3"]),
    (Status.RANK, training(input=np.ones(3, np.float32)), ["1", "2 to 5"]),
    (Status.RANK, training(input=np.ones((1, 3, 1, 1, 1, 2), np.float32)), ["6", "2 to 5"]),
    (Status.NEGATIVE_SIZE, low_level_problem(sizes=sizes(2, 3, -4, 5)), ["-4"]),
    (Status.NO_CHANNELS, training(input=np.ones((4, 0, 5), np.float32)), ["0"]),
    (Status.NO_CHANNELS, lambda: BatchNorm2d(0), ["0"]),
    (Status.SIZE_OVERFLOW, low_level_problem(sizes=sizes(2**40, 3, 2**40, 5)), [str(2**40)]),
    (Status.COUNT_MISMATCH, training(weight=stats(1, 4)), ["weight", "4", "3"]),
    (Status.COUNT_MISMATCH, training(running_mean=stats(1, 2)), ["running_mean", "2", "3"]),
    (Status.LENGTH, sequences(lengths=np.array([5, 6])), ["lengths[1]", "6", "5"]),
    (Status.LENGTH, sequences(lengths=np.array([-1, 5])), ["lengths[0]", "-1", "5"]),
    (Status.MISALIGNED, training(bias=misaligned()), ["bias", "4"]),
    (Status.OVERLAP, overlapping(), ["out overlaps input"]),
    (Status.OVERLAP, activation_mask_inside(), ["out overlaps activation_mask"]),
    (Status.OUT_OF_MEMORY, lambda: BatchNorm2d(2**57), [str(2**57 * 4 * 4)]),
    (Status.EPSILON, training(eps=-0.5), ["-0.5"]),
    (Status.EPSILON, training(eps=float("nan")), ["nan"]),
    (Status.EPSILON, lambda: BatchNorm2d(3, eps=-1), ["-1"]),
    (Status.MOMENTUM, training(momentum=float("inf")), ["inf"]),
    (Status.ONE_VALUE, training(input=np.ones((1, 3), np.float32)), ["(1, 3)", "drop_last"]),
    (Status.NONFINITE, nonfinite, ["1", "3"]),
    (Status.BATCH_COUNTER, training(num_batches_tracked=np.array([-3])), ["-3"]),
    (Status.NEGATIVE_SLOPE, training(activation="leaky_relu", negative_slope=-0.5), ["-0.5"]),
    (Status.NEGATIVE_SLOPE,
     training(activation="leaky_relu", negative_slope=float("inf")), ["inf"]),
    (Status.NUMBER, lambda: batchnorm.fold_affine(stats(), stats(-4)),
     ["running_var[0]", "-4", "at least 0"]),
    (Status.MOMENTS,
     lambda: Moments(count=-3, mean=np.zeros(3), m2=np.zeros(3)).variance(), ["-3"]),
    (Status.NO_RUNNING_STATISTICS,
     lambda: BatchNorm2d(3, track_running_stats=False).reset_running_stats(),
     ["running statistics"]),
    (Status.NO_RUNNING_STATISTICS,
     lambda: setattr(BatchNorm2d(3, track_running_stats=False), "running_var", stats()),
     ["running statistics"]),
    (Status.NO_PARAMETER,
     lambda: setattr(BatchNorm2d(3, affine=False), "weight", stats()), ["weight"]),
    (Status.NO_FORWARD, no_forward, ["forward"]),
    (Status.NO_FORWARD, lambda: BatchNorm2d(3).saved_mean, ["forward"]),
    (Status.LAYER_MISMATCH, after_forward((4, 2, 5, 5)), ["2", "3"]),
    (Status.LAYER_MISMATCH, lambda: BatchNorm2d(3)(images(np.float64)), ["float64", "float32"]),
    (Status.LAYER_MISMATCH,
     lambda: BatchNorm1d(4).load_bytes(BatchNorm1d(3).to_bytes()), ["3", "4"]),
    (Status.STATE_TRUNCATED, damaged(lambda state: state.pop()), ["187", "188"]),
    (Status.STATE_TRUNCATED, damaged(lambda state: state.append(0)), ["189", "188"]),
    (Status.STATE_FOREIGN, damaged(set_bytes(0, b"GIF8")), ["state"]),
    (Status.STATE_VERSION, damaged(set_bytes(8, b"\x07"), repair=True), ["7", "1"]),
    (Status.STATE_CHECKSUM, damaged(set_bytes(100, b"\x07")), ["0x"]),
    (Status.STATE_INVALID,
     damaged(set_bytes(40, np.float64(-1).tobytes()), repair=True), ["epsilon", "-1"]),
    (Status.BUFFER_TOO_SMALL, too_small_buffer, ["10", "188"]),
]  # fmt: skip


def shown(each: object) -> str | None:
    """A case's name; not a function's, which is another one in each process that runs tests."""
    return None if inspect.isfunction(each) else str(each)[:40]


@pytest.mark.parametrize(("status", "call", "quoted"), CASES, ids=shown)
def test_status(status: Status, call: Callable[[], object], quoted: list[str]) -> None:
    with pytest.raises(BatchNormError) as raised:
        call()
    assert raised.value.status is status
    message = str(raised.value)
    assert all(piece in message for piece in quoted), message
    expected = {
        Status.OUT_OF_MEMORY: MemoryError,
        Status.NO_RUNNING_STATISTICS: RuntimeError,
        Status.NO_PARAMETER: RuntimeError,
        Status.NO_FORWARD: RuntimeError,
    }.get(status, ValueError)
    assert isinstance(raised.value, expected)


def test_every_status_has_a_case() -> None:
    # INTERNAL is a defect of the library: nobody can ask for one. NO_SHARED_RUNTIME depends on what
    # else this process has loaded: test_threads has it in processes of its own.
    elsewhere = {Status.OK, Status.INTERNAL, Status.NO_SHARED_RUNTIME}
    assert {status for status, _, _ in CASES} == set(Status) - elsewhere


def test_statuses_that_this_package_does_not_know() -> None:
    error = error_for(987, "what the library said")
    assert isinstance(error, ValueError)
    assert error.status == 987
    assert str(error) == "what the library said"
    assert isinstance(error_for(900, ""), RuntimeError)


def test_errors_survive_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(error_for(403, "text")))
    assert (error.status, str(error)) == (Status.NONFINITE, "text")


def test_nonfinite_error_comes_after_the_work() -> None:
    x = images()
    x[0, 1, 2, 3] = np.inf
    out, mean, var = np.empty_like(x), stats(0), stats(1)
    with pytest.raises(BatchNormError):
        F.forward_training(x, mean, var, nonfinite="error", out=out)
    expected = F.forward_training(x)
    np.testing.assert_array_equal(out, expected.output)
    assert mean[1] == 0
    assert var[1] == 1
    assert mean[0] != 0

    layer = BatchNorm2d(3, nonfinite="error")
    with pytest.raises(BatchNormError):
        layer(x)
    assert layer.nonfinite_channels == 1
    grad = layer.backward(np.ones_like(x))  # of that forward
    assert np.all(np.isfinite(grad[:, ::2]))


# What only Python can see: types, dtypes, shapes, strides.

# Through names that the type checker does not look into: it would say the same.
forward: Any = F.forward_training
backward: Any = F.backward
layer_2d: Any = BatchNorm2d
library: Any = batchnorm

WRONG_TYPES: list[tuple[Callable[[], object], str]] = [
    (lambda: forward([[1.0]]), "input is of type list, expected numpy.ndarray"),
    (lambda: forward(np.ones((2, 3), int)), "input has dtype int64, expected float32"),
    (lambda: forward(np.ones((2, 3), ">f4")), "input has dtype >f4"),
    (lambda: forward(np.ma.ones((2, 3))), "masked"),
    (lambda: forward(images(), weight=np.ones(3)), "weight has dtype float64"),
    (lambda: forward(images(), out=images(np.float64)), "out has dtype float64"),
    (lambda: forward(images(), weight=[1, 1, 1]), "weight is of type list"),
    (lambda: forward(images(), saved_mean=stats()), "saved_mean has dtype float32"),
    (lambda: forward(images(), num_batches_tracked=3), "num_batches_tracked is of type"),
    (lambda: forward(images(), num_batches_tracked=stats()), "expected int64"),
    (lambda: forward(images(), eps="small"), "str"),
    (lambda: backward(images(np.float64), images()), "grad_output has dtype float64"),
    (lambda: layer_2d(2.5), "float"),
    (lambda: layer_2d(3, dtype=np.int32), "dtype is int32, expected float32, float64"),
    (lambda: setattr(layer_2d(3), "weight", np.ones(3)), "weight has dtype float64"),
    (lambda: setattr(layer_2d(3), "running_mean", [0, 0, 0]), "running_mean is of type list"),
    (lambda: layer_2d(3).load_bytes("text"), "bytes-like"),
    (lambda: library.set_num_threads(1.5), "float"),
]


@pytest.mark.parametrize(("call", "message"), WRONG_TYPES, ids=shown)
def test_wrong_types(call: Callable[[], object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()


def out_like(**arguments: Any) -> Callable[[], object]:
    return lambda: forward(images(), **arguments)


WRONG_VALUES: list[tuple[Callable[[], object], str]] = [
    (lambda: forward(images()[:, :, ::2]), r"np\.ascontiguousarray\(input\)"),
    (lambda: forward(images()[:, ::-1]), r"np\.ascontiguousarray\(input\)"),
    (lambda: forward(images(), channel_axis=2), "channel_axis is 2, expected 1 or -1"),
    (lambda: layer_2d(3, channel_axis=0), "channel_axis is 0, expected 1 or -1"),
    (out_like(out=np.empty((4, 3, 5, 6), np.float32)),
     r"out has shape \(4, 3, 5, 6\), expected \(4, 3, 5, 5\)"),
    (out_like(out=np.moveaxis(np.empty((4, 5, 5, 3), np.float32), -1, 1)), "memory order"),
    (out_like(weight=np.ones((3, 1), np.float32)), r"weight has shape \(3, 1\), expected one dim"),
    (out_like(weight=np.ones(6, np.float32)[::2]), r"np\.ascontiguousarray\(weight\)"),
    (out_like(num_batches_tracked=np.zeros(2, np.int64)), r"shape \(2,\), expected one element"),
    (out_like(running_variance="Biased"), "'Biased', expected 'unbiased' or 'biased'"),
    (out_like(one_value=1), "one_value is 1, expected 'error' or 'use_running' or 'allow'"),
    (out_like(nonfinite=[]), "nonfinite is"),
    (lambda: backward(images(), images(), statistics="frozen"), "'frozen', expected 'batch'"),
    (lambda: backward(images(), images()[:2]), r"grad_output has shape \(4, 3, 5, 5\), expected"),
    (lambda: backward(images(), images(), output_mask=(False, True, True), grad_input=images()),
     "grad_input was given, but output_mask"),
    (lambda: layer_2d(3)(images()[0]),
     r"input has 3 dimensions, shape \(3, 5, 5\), expected 4 \(N, C, H, W\)"),
    (lambda: BatchNorm1d(3)(images()), r"expected 2 \(N, C\) or 3 \(N, C, L\)"),
    (lambda: setattr(layer_2d(3), "bias", stats(1, 4)), r"bias has shape \(4,\), expected \(3,\)"),
    (lambda: library.set_threading("pool"), "threading is 'pool', expected 'auto' or 'own' or"),
    (lambda: library.set_max_isa("sse2"), "isa is 'sse2', expected 'generic' or"),
    (lambda: library.set_num_threads(2**32), "4294967296"),
    (lambda: layer_2d(2**64 + 3), "18446744073709551619"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), WRONG_VALUES, ids=shown)
def test_wrong_values(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", ["out", "running_mean", "running_var", "saved_mean"])
def test_read_only_destinations(name: str) -> None:
    arrays: dict[str, Any] = {
        "out": images(),
        "running_mean": stats(),
        "running_var": stats(),
        "saved_mean": np.zeros(3),
    }
    arrays[name].flags.writeable = False
    with pytest.raises(ValueError, match=f"{name} is read-only"):
        F.forward_training(images(), **arrays)
