"""Ranks, memory orders, destinations and in-place calls: what is written where, without copies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import reference
from batchnorm import BatchNorm2d
from batchnorm import functional as F
from layouts import LAYOUTS, in_layout

SHAPES = [(7, 3), (4, 3, 5), (2, 3, 4, 5), (2, 3, 2, 4, 3)]
DTYPES = [np.float32, np.float64]


def same_order(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.shape == other.shape and one.strides == other.strides


@pytest.fixture(params=SHAPES, ids=str)
def shape(request: pytest.FixtureRequest) -> tuple[int, ...]:
    return tuple(request.param)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_have_the_memory_order_of_the_input(
    shape: tuple[int, ...], layout: str, dtype: type, rng: np.random.Generator
) -> None:
    x = in_layout(rng.standard_normal(shape).astype(dtype), layout)
    grad = in_layout(rng.standard_normal(shape).astype(dtype), layout)
    result = F.forward_training(x)
    gradients = F.backward(grad, x, saved_mean=result.saved_mean, saved_invstd=result.saved_invstd)
    for tensor in (result.output, gradients.grad_input):
        assert same_order(tensor, x)
        assert tensor.dtype == dtype

    mean, variance, _ = reference.moments(x)
    expected = reference.normalize(x, mean, reference.invstd_of(variance, 1e-5))
    np.testing.assert_allclose(result.output, expected.values.astype(dtype), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_channel_axis_at_the_end_is_the_same_memory(
    shape: tuple[int, ...], dtype: type, rng: np.random.Generator
) -> None:
    logical = in_layout(rng.standard_normal(shape).astype(dtype), "channels_last")
    last = np.moveaxis(logical, 1, -1)
    assert last.flags.c_contiguous
    first_result = F.forward_training(logical)
    last_result = F.forward_training(last, channel_axis=-1)
    assert last_result.output.flags.c_contiguous
    assert last_result.output.tobytes() == np.moveaxis(first_result.output, 1, -1).tobytes()
    np.testing.assert_array_equal(first_result.saved_mean, last_result.saved_mean)

    saved: dict[str, Any] = {
        "saved_mean": last_result.saved_mean,
        "saved_invstd": last_result.saved_invstd,
    }
    first_grad = F.backward(logical, logical, **saved).grad_input
    last_grad = F.backward(last, last, channel_axis=-1, **saved).grad_input
    assert np.moveaxis(first_grad, 1, -1).tobytes() == last_grad.tobytes()


def test_channel_axis_at_the_end_takes_nchw_memory_too(rng: np.random.Generator) -> None:
    nchw = rng.standard_normal((2, 3, 4, 5))
    view = np.moveaxis(nchw, 1, -1)  # (N, H, W, C), but each channel lies together
    result = F.forward_training(view, channel_axis=-1).output
    assert same_order(result, view)
    assert np.moveaxis(result, -1, 1).tobytes() == F.forward_training(nchw).output.tobytes()


@pytest.mark.parametrize("shape", [(2, 1, 4, 5), (2, 3, 1, 1), (1, 3, 1, 5), (1, 1, 1, 2)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sizes_of_one_where_both_orders_are_the_same(
    shape: tuple[int, ...], layout: str, rng: np.random.Generator
) -> None:
    x = in_layout(rng.standard_normal(shape), layout)
    result = F.forward_training(x, one_value="allow", out=np.empty_like(x)).output
    expected = F.forward_training(np.ascontiguousarray(x), one_value="allow").output
    np.testing.assert_allclose(result, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_destinations_are_returned_and_written(
    shape: tuple[int, ...], layout: str, rng: np.random.Generator
) -> None:
    x = in_layout(rng.standard_normal(shape).astype(np.float32), layout)
    channels = shape[1]
    fresh = F.forward_training(x)
    out, mean, invstd = np.full_like(x, 9), np.full(channels, 9.0), np.full(channels, 9.0)
    result = F.forward_training(x, out=out, saved_mean=mean, saved_invstd=invstd)
    assert result.output is out
    assert result.saved_mean is mean
    assert result.saved_invstd is invstd
    np.testing.assert_array_equal(out, fresh.output)
    np.testing.assert_array_equal(mean, fresh.saved_mean)
    np.testing.assert_array_equal(invstd, fresh.saved_invstd)

    dx, dw, db = np.full_like(x, 9), *np.full((2, channels), 9, np.float32)
    saved: dict[str, Any] = {"saved_mean": mean, "saved_invstd": invstd}
    gradients = F.backward(out, x, **saved)
    written = F.backward(out, x, **saved, grad_input=dx, grad_weight=dw, grad_bias=db)
    for destination, one, other in zip((dx, dw, db), written[:3], gradients[:3], strict=True):
        assert one is destination
        np.testing.assert_array_equal(destination, other)

    stats = rng.uniform(1, 2, (2, channels)).astype(np.float32)
    y = F.forward_inference(x, *stats)
    assert F.forward_inference(x, *stats, out=out) is out
    np.testing.assert_array_equal(out, y)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_place_gives_the_same_bits(
    shape: tuple[int, ...], layout: str, rng: np.random.Generator
) -> None:
    x = in_layout(rng.standard_normal(shape).astype(np.float32), layout)
    grad = in_layout(rng.standard_normal(shape).astype(np.float32), layout)
    stats = rng.uniform(1, 2, (2, shape[1])).astype(np.float32)

    result = F.forward_training(x)
    place = x.copy("K")
    assert F.forward_training(place, out=place).output is place
    np.testing.assert_array_equal(place, result.output)

    place = x.copy("K")
    F.forward_inference(place, *stats, out=place)
    np.testing.assert_array_equal(place, F.forward_inference(x, *stats))

    saved: dict[str, Any] = {"saved_mean": result.saved_mean, "saved_invstd": result.saved_invstd}
    expected = F.backward(grad, x, **saved).grad_input
    place = grad.copy("K")
    F.backward(place, x, **saved, grad_input=place)
    np.testing.assert_array_equal(place, expected)
    place = x.copy("K")
    F.backward(grad, place, **saved, grad_input=place)
    np.testing.assert_array_equal(place, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("has_weight", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_weight_and_bias_are_optional_one_by_one(
    layout: str, has_weight: bool, has_bias: bool, rng: np.random.Generator
) -> None:
    x = in_layout(rng.standard_normal((4, 3, 5, 5)).astype(np.float32), layout)
    weight = rng.standard_normal(3).astype(np.float32) if has_weight else None
    bias = rng.standard_normal(3).astype(np.float32) if has_bias else None
    y = F.forward_training(x, weight=weight, bias=bias).output
    mean, variance, _ = reference.moments(x)
    invstd = reference.invstd_of(variance, 1e-5)
    reference.assert_accurate(y, reference.normalize(x, mean, invstd, weight, bias))


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4), (0, 3)], ids=str)
def test_an_empty_batch_changes_nothing(shape: tuple[int, ...]) -> None:
    x = np.empty(shape, np.float32)
    mean, var = np.full(3, 5, np.float32), np.full(3, 7, np.float32)
    counter = np.array([3])
    result = F.forward_training(x, mean, var, num_batches_tracked=counter)
    assert result.output.shape == shape
    assert mean.tolist() == [5, 5, 5]
    assert var.tolist() == [7, 7, 7]
    assert counter.tolist() == [3]
    gradients = F.backward(x, x, saved_mean=np.zeros(3), saved_invstd=np.ones(3))
    assert gradients.grad_weight.tolist() == [0, 0, 0]
    assert gradients.grad_bias.tolist() == [0, 0, 0]


def test_read_only_inputs_are_fine(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 3, 2, 2))
    expected = F.batch_norm(x, None, None, training=True)
    x.flags.writeable = False
    np.testing.assert_array_equal(F.batch_norm(x, None, None, training=True), expected)


def test_subclasses_of_ndarray_go_in_and_plain_arrays_come_out(
    tmp_path: Any, rng: np.random.Generator
) -> None:
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(2, 3, 4, 4))
    x[:] = rng.standard_normal(x.shape)
    y = BatchNorm2d(3)(x)
    assert type(y) is np.ndarray
    np.testing.assert_array_equal(y, BatchNorm2d(3)(np.array(x)))
