"""`explain`: numbers that fit each other, words that hold them, and the operations' own errors."""

from __future__ import annotations

import dataclasses
import math
import pickle
import tracemalloc
from typing import Any, get_args

import numpy as np
import pytest

import batchnorm
from batchnorm import BatchNorm1d, BatchNorm2d, BatchNormError, Plan, Status
from batchnorm.plan import MemoryLayout, Operation

OPERATIONS = get_args(Operation)
SHAPES = [(32, 64, 56, 56), (32, 2048, 7, 7), (8, 3, 32, 32), (128, 32), (1, 1, 1 << 22), (0, 3)]


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", get_args(MemoryLayout))
@pytest.mark.parametrize("operation", OPERATIONS)
def test_numbers(shape: tuple[int, ...], layout: Any, operation: Any) -> None:
    for threads in (1, 2, 5):
        for dtype in (np.float32, np.float64, np.float16):
            batchnorm.set_num_threads(threads)
            plan = batchnorm.explain(shape, operation, dtype=dtype, layout=layout)
            assert (plan.operation, plan.shape, plan.layout) == (operation, shape, layout)
            assert plan.dtype == dtype
            assert plan.tensor_bytes == math.prod(shape) * np.dtype(dtype).itemsize
            assert plan.bytes_written == plan.limit_bytes_written == plan.tensor_bytes
            inputs = 2 if operation.startswith("backward") else 1
            assert plan.limit_bytes_read == inputs * plan.tensor_bytes
            assert plan.limit_bytes_read <= plan.bytes_read <= 2 * plan.limit_bytes_read
            assert 1 <= plan.threads <= threads
            assert plan.isa == batchnorm.get_isa()
            if not math.prod(shape):
                assert plan.pieces == plan.steps == 0
                continue
            spatial = math.prod(shape[2:])
            rows, inner = (shape[0], spatial) if layout == "nchw" else (shape[0] * spatial, 1)
            assert plan.pieces == (
                math.ceil(shape[1] / plan.run_channels)
                * math.ceil(rows / plan.piece_rows)
                * math.ceil(inner / plan.piece_values)
            )


@pytest.mark.usefixtures("machine")
def test_the_instruction_set_follows_its_cap() -> None:
    batchnorm.set_max_isa("generic")
    plan = batchnorm.explain((32, 64, 56, 56))
    assert plan.isa == "generic"
    assert "\ngeneric, " in str(plan)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_words(operation: Any) -> None:
    plan = batchnorm.explain((32, 64, 56, 56), operation, layout="nhwc")
    text = str(plan)
    first, *lines = text.split("\n")
    assert first.endswith("float32 (32, 64, 56, 56) NHWC, 25.7 MB a tensor")
    assert lines[0].startswith(f"{plan.isa}, {plan.threads} thread")
    assert f"{plan.pieces} pieces of up to {plan.piece_rows} rows x {plan.run_channels} ch" in text
    assert ("non-temporal" in text) == plan.nontemporal
    assert 6 <= len(lines) + 1 <= 12
    ratio = (plan.bytes_read + plan.bytes_written) / (
        plan.limit_bytes_read + plan.limit_bytes_written
    )
    assert text.endswith(f"{ratio:.2f} times the limit")


# Of a call on (4, 3, 50): operation, keywords, and how many tensors it reads and writes, how many
# bits a value, bytes a position and numbers a sample.
CALLS: list[tuple[Any, dict[str, Any], tuple[int, int], tuple[int, int, int]]] = [
    ("forward_training", {"activation": "relu"}, (1, 1), (0, 0, 0)),
    ("forward_training", {"activation": "relu", "activation_mask": True}, (1, 1), (1, 0, 0)),
    ("forward_inference", {"residual": True, "mask": True}, (2, 1), (0, 1, 0)),
    ("forward_inference", {"lengths": True}, (1, 1), (0, 0, 1)),
    ("backward", {"activation": "leaky_relu"}, (3, 1), (0, 0, 0)),
    ("backward", {"activation": "leaky_relu", "negative_slope": 1.0}, (2, 1), (0, 0, 0)),
    ("backward", {"activation": "relu", "activation_mask": True}, (2, 1), (1, 0, 0)),
    ("backward", {"residual": True, "mask": True}, (2, 2), (0, 1, 0)),
    ("backward", {"output_mask": (False, True, True)}, (2, 0), (0, 0, 0)),
    ("backward_frozen", {"output_mask": (True, False, False)}, (1, 1), (0, 0, 0)),
    ("backward_frozen", {"output_mask": (False, False, False)}, (0, 0), (0, 0, 0)),
]


@pytest.mark.parametrize(("operation", "keywords", "tensors", "masks"), CALLS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_fused_and_masked_counts(
    operation: Any,
    keywords: dict[str, Any],
    tensors: tuple[int, int],
    masks: tuple[int, int, int],
    dtype: Any,
) -> None:
    plan = batchnorm.explain((4, 3, 50), operation, dtype=dtype, **keywords)
    read, written = (number * 600 * np.dtype(dtype).itemsize for number in tensors)
    bits, positions, lengths = masks
    both = 75 * bits + 200 * positions + 32 * lengths
    assert plan.bytes_read + plan.bytes_written == read + written + both
    assert plan.bytes_written == plan.limit_bytes_written
    assert plan.bytes_read == plan.limit_bytes_read
    assert plan.workspace_bytes == 200 * lengths
    assert all(getattr(plan, name) == value for name, value in keywords.items())
    assert ("\nfused: " in str(plan)) == bool({"activation", "residual"} & keywords.keys())
    assert ("\nmasked: " in str(plan)) == bool(positions or lengths)
    assert ("computed in float32" in str(plan)) == (dtype == np.float16 and plan.steps > 0)


def test_a_plan_is_a_value() -> None:
    plan = batchnorm.explain([4, 3, 8, 8])
    assert plan == batchnorm.explain((4, 3, 8, 8)) == pickle.loads(pickle.dumps(plan))
    assert plan != batchnorm.explain((4, 3, 8, 9))
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.threads = 3  # type: ignore[misc]
    assert "25.7" not in repr(plan)


def test_nothing_grows_with_the_tensor() -> None:
    batchnorm.explain((2, 3))
    tracemalloc.start()
    try:
        batchnorm.explain((1 << 20, 1 << 10, 1 << 10))
        assert tracemalloc.get_traced_memory()[1] < 32 << 10
    finally:
        tracemalloc.stop()


def test_errors() -> None:
    with pytest.raises(BatchNormError, match="shape has 1 sizes, expected 2 to 5") as error:
        batchnorm.explain((3,))
    assert error.value.status == Status.RANK
    with pytest.raises(BatchNormError, match="shape has 6 sizes"):
        batchnorm.explain((1, 2, 3, 4, 5, 6))
    with pytest.raises(BatchNormError, match=r"shape\[2\] is -4, expected 0 or more"):
        batchnorm.explain((2, 3, -4))
    with pytest.raises(BatchNormError, match="more bytes than fit in 63 bits"):
        batchnorm.explain((1 << 40, 1 << 22))
    with pytest.raises(ValueError, match=r"shape\[0\] is 9223372036854775808"):
        batchnorm.explain((1 << 63, 3))
    with pytest.raises(TypeError):
        batchnorm.explain((2.5, 3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="dtype is int32, expected float32, float64"):
        batchnorm.explain((2, 3), dtype=np.int32)
    with pytest.raises(ValueError, match="operation is 'forward', expected 'forward_training' or"):
        batchnorm.explain((2, 3), "forward")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layout is 'chwn', expected 'nchw' or 'nhwc'"):
        batchnorm.explain((2, 3), layout="chwn")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="activation is 'gelu', expected None or 'relu' or"):
        batchnorm.explain((2, 3), activation="gelu")  # type: ignore[arg-type]
    with pytest.raises(BatchNormError, match=r"negative_slope is -1\.0, expected"):
        batchnorm.explain((2, 3), activation="leaky_relu", negative_slope=-1)
    for name in ("residual", "activation_mask", "mask", "lengths"):
        array: Any = {name: np.ones(3)}
        with pytest.raises(TypeError, match=rf"{name} is .*ndarray, expected True or False"):
            batchnorm.explain((2, 3), **array)
    with pytest.raises(ValueError, match=r"output_mask is \(True,\), expected three truth values"):
        batchnorm.explain((2, 3), output_mask=(True,))  # type: ignore[arg-type]
    with pytest.raises(BatchNormError, match="mask and lengths were both given") as error:
        batchnorm.explain((2, 3, 4), mask=True, lengths=True)
    assert error.value.status == Status.EXCLUSIVE
    with pytest.raises(BatchNormError, match="lengths were given, but shape has 4 sizes, expected"):
        batchnorm.explain((2, 3, 4, 5), lengths=True)


def test_one_value_per_channel_is_explained() -> None:
    assert "one_value" in str(batchnorm.explain((1, 3)))
    assert "one_value" not in str(batchnorm.explain((1, 3), "forward_inference"))


def test_a_layer_explains_its_calls() -> None:
    layer = BatchNorm2d(64)

    def same(plan: Plan, *arguments: Any, **options: Any) -> bool:
        return plan == batchnorm.explain((32, 64, 56, 58), *arguments, **options)

    shape = (32, 64, 56, 58)
    assert same(layer.explain(shape), "forward_training")
    assert same(layer.explain(shape, "backward"), "backward")
    assert same(layer.explain(shape, layout="nhwc"), "forward_training", layout="nhwc")
    layer.eval()
    assert same(layer.explain(shape), "forward_inference")
    assert same(layer.explain(shape, "backward"), "backward_frozen")
    untracked = BatchNorm2d(64, track_running_stats=False, dtype=np.float64).eval()
    assert same(untracked.explain(shape), "forward_training", dtype=np.float64)
    last = BatchNorm2d(64, channel_axis=-1)
    assert same(last.explain((32, 56, 58, 64)), "forward_training", layout="nhwc")
    assert same(last.explain((32, 56, 58, 64), layout="nchw"), "forward_training")


def test_a_layer_explains_what_is_fused_into_its_calls() -> None:
    shape, options = (20, 3, 50), {"activation": "leaky_relu", "negative_slope": 0.5}
    both: Any = {**options, "residual": True, "lengths": True}
    layer = BatchNorm1d(3)
    expected = batchnorm.explain(shape, activation_mask=True, **both)
    assert layer.explain(shape, **both) == expected
    kept = {**both, "lengths": False, "mask": True, "activation_mask": True}
    expected = batchnorm.explain(shape, "backward", **kept)
    assert layer.explain(shape, "backward", **both) == expected
    bare = BatchNorm1d(3, affine=False).eval()
    expected = batchnorm.explain(shape, "backward_frozen", output_mask=(True, False, False))
    assert bare.explain(shape, "backward") == expected
    expected = batchnorm.explain(shape, "backward", output_mask=(False, True, False))
    assert layer.explain(shape, "backward", output_mask=(False, True, False)) == expected
    with pytest.raises(BatchNormError, match="mask and lengths were both given"):
        layer.explain(shape, "backward", mask=True, lengths=True)


def test_a_layer_refuses_shapes_that_are_not_its_own() -> None:
    with pytest.raises(ValueError, match=r"4 dimensions, shape \(1, 3, 4, 4\), expected 2"):
        BatchNorm1d(3).explain((1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"shape \(1, 4, 4, 3\) has 4 channels, expected 3"):
        BatchNorm2d(3).explain((1, 4, 4, 3))
    with pytest.raises(ValueError, match="call is 'step', expected 'forward' or 'backward'"):
        BatchNorm2d(3).explain((1, 3, 4, 4), "step")  # type: ignore[arg-type]
