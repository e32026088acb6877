"""One hierarchy: the same mistake is the same exception, whichever argument it is made in."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import batchnorm
from batchnorm import (
    BatchNorm2d,
    BatchNormBufferError,
    BatchNormError,
    BatchNormTypeError,
    BatchNormValueError,
    LayoutError,
)
from batchnorm import functional as F

SHAPE = (4, 3, 5, 5)
# Through names that the type checker does not look into: it would say the same.
layer: Any = BatchNorm2d
library: Any = batchnorm


def aligned_at_one(shape: tuple[int, ...], dtype: Any) -> Any:
    count, size = int(np.prod(shape)), np.dtype(dtype).itemsize
    return np.frombuffer(bytearray(count * size + 1), dtype, count, offset=1).reshape(shape)


def training(**changed: Any) -> Callable[[], object]:
    arguments: dict[str, Any] = {
        "input": np.ones(SHAPE, np.float32),
        "out": np.zeros(SHAPE, np.float32),
        "running_mean": np.zeros(3, np.float32),
        "running_var": np.zeros(3, np.float32),
        "saved_mean": np.zeros(3),
        "activation_mask": np.zeros(38, np.uint8),
    }
    return unwritten(F.forward_training, {**arguments, "activation": "relu", **changed})


def backward(**changed: Any) -> Callable[[], object]:
    arguments: dict[str, Any] = {
        "grad_output": np.ones(SHAPE, np.float32),
        "input": np.ones(SHAPE, np.float32),
        "saved_mean": np.zeros(3),
        "saved_invstd": np.ones(3),
        "grad_input": np.zeros(SHAPE, np.float32),
        "grad_weight": np.zeros(3, np.float32),
    }
    return unwritten(F.backward, {**arguments, **changed})


def unwritten(function: Callable[..., object], arguments: dict[str, Any]) -> Callable[[], object]:
    def call() -> object:
        arrays = [each for each in arguments.values() if isinstance(each, np.ndarray)]
        before = [each.tobytes() for each in arrays]
        try:
            return function(**arguments)
        finally:
            assert before == [each.tobytes() for each in arrays], "a failing call wrote something"

    return call


# Who takes it, its name, its right shape and dtype, and whether it is written to.
ARRAYS: list[tuple[Callable[..., Callable[[], object]], str, tuple[int, ...], Any, bool]] = [
    (training, "out", SHAPE, np.float32, True),
    (training, "residual", SHAPE, np.float32, False),
    (training, "mask", (4, 5, 5), np.bool_, False),
    (training, "running_mean", (3,), np.float32, True),
    (training, "weight", (3,), np.float32, False),
    (training, "saved_mean", (3,), np.float64, True),
    (training, "activation_mask", (38,), np.uint8, True),
    (training, "skipped_batches", (2, 3), np.int64, True),
    (backward, "grad_output", SHAPE, np.float32, False),
    (backward, "grad_input", SHAPE, np.float32, True),
    (backward, "grad_weight", (3,), np.float32, True),
    (backward, "saved_invstd", (3,), np.float64, False),
]


@pytest.mark.parametrize(("call", "name", "shape", "dtype", "written"), ARRAYS)
def test_the_same_mistake_is_the_same_exception(
    call: Callable[..., Callable[[], object]],
    name: str,
    shape: tuple[int, ...],
    dtype: Any,
    written: bool,
) -> None:
    def refused(value: Any, kind: type[BatchNormError], *quoted: str) -> BatchNormError:
        with pytest.raises(BatchNormError) as raised:
            call(**{name: value})()
        assert type(raised.value) is kind
        message = str(raised.value)
        assert all(each in message for each in (name, *quoted)), message
        return raised.value

    refused("text", BatchNormTypeError, "str", "numpy.ndarray")
    refused(np.ones(shape, np.int16), BatchNormTypeError, "int16", np.dtype(dtype).name)
    if len(shape) == 1:
        refused(np.ones((*shape, 1), dtype), BatchNormValueError, "1)", "expected")
    longer = (*shape[:-1], shape[-1] + 1)
    refused(np.ones(longer, dtype), BatchNormValueError, str(longer[-1]), str(shape[-1]))
    strided = np.ones((*shape[:-1], 2 * shape[-1]), dtype)[..., ::2]
    error = refused(strided, LayoutError, "strides")
    assert isinstance(error, LayoutError)
    assert (error.name, error.destination) == (name, written)
    if np.dtype(dtype).itemsize > 1:
        error = refused(aligned_at_one(shape, dtype), LayoutError, "expected a multiple of")
        assert isinstance(error, LayoutError)
        assert (error.name, error.destination) == (name, written)
    if written:
        constant = np.zeros(shape, dtype)
        constant.flags.writeable = False
        refused(constant, BatchNormValueError, "read-only", "writeable")


REFUSALS: list[tuple[Callable[[], object], type[BatchNormError], str]] = [
    (lambda: layer("3"), BatchNormTypeError, "num_features is '3' of type str, expected an int"),
    (lambda: layer(-3), BatchNormValueError, "num_features is -3, expected 1 or more"),
    (lambda: layer(3, eps="x"), BatchNormTypeError, "eps is 'x' of type str, expected a number"),
    (lambda: layer(3, eps=-1), BatchNormValueError, "eps is -1"),
    (lambda: layer(3, momentum="x"), BatchNormTypeError, "momentum is 'x'"),
    (lambda: layer(3, dtype="x"), BatchNormTypeError, "dtype is 'x', expected float32"),
    (lambda: layer(3, channel_axis=0), BatchNormValueError, "channel_axis is 0, expected 1 or -1"),
    (lambda: setattr(layer(3), "eps", "x"), BatchNormTypeError, "eps is 'x'"),
    (lambda: layer(3).load_bytes(3), BatchNormTypeError, "state is 3 of type int, expected a by"),
    (lambda: layer(3)(np.ones((2, 4, 1, 1), np.float32)), BatchNormValueError,
     "input has 4 channels, expected the layer's 3"),
    (lambda: layer(3).backward(np.ones(SHAPE, np.float32), input=np.ones((2, 3, 1, 1))),
     batchnorm.BatchNormRuntimeError, "the layer has not run forward yet"),
    (training(running_mean=None), BatchNormValueError, "running_mean is None, but required"),
    (training(channel_axis=[]), BatchNormValueError, "channel_axis is [], expected 1 or -1"),
    (training(negative_slope="x"), BatchNormTypeError, "negative_slope is 'x'"),
    (training(lengths=[[1], [2, 3]]), BatchNormTypeError, "lengths is nested"),
    (training(momentum="x"), BatchNormTypeError, "momentum is 'x'"),
    (backward(output_mask=3), BatchNormTypeError, "output_mask is 3, expected three truth"),
    (backward(output_mask=(True,)), BatchNormValueError, "output_mask is (True,), expected three"),
    (lambda: F.batch_norm([1.0], None, None), BatchNormTypeError, "input is of type list"),
    (lambda: library.explain(3), BatchNormTypeError, "shape is 3 of type int, expected"),
    (lambda: library.explain((2, -3)), BatchNormValueError, "shape[1] is -3, expected 0 or more"),
    (lambda: library.explain((2, 3), "x"), BatchNormValueError, "operation is 'x', expected"),
    (lambda: library.set_num_threads("2"), BatchNormTypeError, "threads is '2' of type str"),
    (lambda: library.memory.set_limit(-1), BatchNormValueError, "limit is -1, expected"),
    (lambda: library.memory.empty(3, "x"), BatchNormTypeError, "dtype is 'x'"),
    (lambda: library.memory.empty((-3,), "f4"), BatchNormValueError, "shape is (-3,), expected"),
    (lambda: library.memory.empty_like(3), BatchNormTypeError, "array is 3 of type int"),
    (lambda: library.show_config(mode="x"), BatchNormValueError, "mode is 'x', expected"),
    (lambda: library.fold_affine(np.zeros(3), None), BatchNormValueError,
     "running_var is None, but required"),
    (lambda: library.Moments(count=3, mean=np.zeros(3), m2=np.zeros(2)), BatchNormValueError,
     "m2 has 2 elements, expected 3"),
    (lambda: F.batch_norm(np.array([{}]).__array_interface__, None, None), BatchNormTypeError,
     "input is of type dict"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "words"), REFUSALS, ids=range(len(REFUSALS)))
def test_refusals(call: Callable[[], object], kind: type[BatchNormError], words: str) -> None:
    with pytest.raises(BatchNormError) as raised:
        call()
    assert type(raised.value) is kind
    message = str(raised.value)
    assert words in message, message
    assert not any(c_word in message for c_word in ("NULL", "_count", "->", "epsilon"))


def test_memory_that_cannot_be_had() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.ones(SHAPE, requires_grad=True)
    with pytest.raises(BatchNormBufferError, match="input cannot be read"):
        F.forward_training(tensor)


def test_no_refusal_is_a_bare_built_in_exception() -> None:
    package = Path(batchnorm.__file__).parent
    built_in = {"ValueError", "TypeError", "RuntimeError", "MemoryError", "ImportError"}
    bare = [
        f"{path.name}:{node.lineno}"
        for path in package.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and getattr(node.exc.func, "id", "") in built_in | {"BufferError", "OSError"}
    ]
    assert not bare


MATRIX = np.ones((4, 3), np.float32)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: library.normalize(MATRIX, None), "moments is None of type NoneType, expected"),
        (lambda: library.Moments.none(3).merge(3), "other is 3 of type int, expected Moments"),
        (lambda: library.GradientSums.none(3) + 3, "other is 3 of type int, expected GradientSums"),
        (
            lambda: library.backward_apply(MATRIX, MATRIX, {}, saved_mean=np.zeros(3)),
            "sums is {} of type dict, expected GradientSums",
        ),
        (lambda: library.recalibrate(None, [MATRIX]), "layer is None of type NoneType"),
        (lambda: library.recalibrate(library.BatchNorm1d(3), 3), "batches is 3 of type int"),
        (lambda: library.BatchNorm1d(3).load_state_dict(3), "state is 3 of type int"),
    ],
)
def test_other_objects_than_those_meant(call: Callable[[], object], words: str) -> None:
    with pytest.raises(library.BatchNormTypeError, match=words):
        call()


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_a_misaligned_array_is_copied_where_that_is_allowed(offset: int) -> None:
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    memory = np.zeros(x.nbytes + 8, np.uint8)
    shifted = memory[offset : offset + x.nbytes].view(np.float32).reshape(x.shape)
    shifted[...] = x
    assert not shifted.flags.aligned
    with pytest.raises(library.LayoutError, match="input") as caught:
        F.forward_training(shifted)
    assert caught.value.name == "input"
    got = F.forward_training(shifted, residual=shifted, allow_copy=True)
    expected = F.forward_training(x, residual=x)
    assert got.output.tobytes() == expected.output.tobytes()
    with pytest.raises(library.LayoutError, match="out") as caught:
        F.forward_training(x, out=shifted, allow_copy=True)
    assert caught.value.destination
