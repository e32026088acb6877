"""The operations in two halves, and statistics of many batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import batchnorm
import reference
from batchnorm import BatchNormError, GradientSums, Moments, StatisticsAccumulator, Status
from batchnorm import functional as F
from layouts import LAYOUTS, in_layout

SHAPES = [(6, 3), (4, 5, 7), (8, 3, 9, 9), (3, 2, 4, 5, 6), (16, 4, 64, 64)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_one_part_has_the_bits_of_the_whole(
    shape: tuple[int, ...], layout: str, dtype: Any, rng: np.random.Generator
) -> None:
    x = in_layout((1e3 + 1e-2 * rng.standard_normal(shape)).astype(dtype), layout)
    dy = in_layout(rng.standard_normal(shape).astype(dtype), layout)
    weight, bias = (rng.standard_normal(shape[1]).astype(dtype) for _ in range(2))
    running = np.zeros(shape[1], dtype), np.ones(shape[1], dtype)
    again = running[0].copy(), running[1].copy()
    counters = np.zeros((2, 1), np.int64)

    whole = F.forward_training(x, *running, weight, bias, num_batches_tracked=counters[0])
    saved: Any = {"saved_mean": whole.saved_mean, "saved_invstd": whole.saved_invstd}
    whole_gradients = F.backward(dy, x, weight, **saved)

    moments = Moments.of(x)
    assert moments.count == x.size // shape[1]
    halves = batchnorm.normalize(x, moments, *again, weight, bias, num_batches_tracked=counters[1])
    sums = batchnorm.backward_reduce(dy, x, saved_mean=halves.saved_mean)
    gradients = batchnorm.backward_apply(dy, x, sums, weight, **saved)
    for got, expected in zip(
        [*halves[:3], *again, *gradients], [*whole[:3], *running, *whole_gradients], strict=True
    ):
        np.testing.assert_array_equal(got, expected)
    assert counters.tolist() == [[1], [1]]
    np.testing.assert_array_equal(moments.invstd(), whole.saved_invstd)
    # The second forward of activation checkpointing.
    second = batchnorm.normalize(x, moments, weight=weight, bias=bias)
    np.testing.assert_array_equal(second.output, whole.output)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parts_against_longdouble(dtype: Any, rng: np.random.Generator) -> None:
    x = rng.normal(3, 2, (12, 5, 6, 7)).astype(dtype)
    dy = rng.standard_normal(x.shape).astype(dtype)
    parts = np.split(x, [2, 2, 9])  # the second one is empty
    moments = Moments.none(5)
    for part in parts:
        assert moments.merge(Moments.of(part)) is moments
    mean, variance, _ = reference.moments(x)
    assert moments.count == 12 * 42
    # Of float32 2^-22 deviations, and twice that of itself, as invstd is its inverse square root.
    near = 2.0**-21 if dtype is np.float32 else 1e-14
    np.testing.assert_allclose(moments.mean, mean.astype(float), rtol=1e-14, atol=near)
    np.testing.assert_allclose(moments.variance(), variance.astype(float), rtol=near)
    unbiased = variance.astype(float) * (moments.count / (moments.count - 1))
    np.testing.assert_allclose(moments.variance("unbiased"), unbiased, rtol=near)

    rtol = 1e-5 if dtype is np.float32 else 1e-11
    whole = F.forward_training(x)
    outputs = [batchnorm.normalize(part, moments) for part in parts]
    joined = np.concatenate([each.output for each in outputs])
    np.testing.assert_allclose(joined, whole.output, rtol=rtol, atol=rtol)
    saved: Any = {"saved_mean": outputs[0].saved_mean, "saved_invstd": outputs[0].saved_invstd}
    expected = F.backward(dy, x, saved_mean=whole.saved_mean, saved_invstd=whole.saved_invstd)
    grads = np.split(dy, [2, 2, 9])
    sums = GradientSums.none(5)
    for part, grad in zip(parts, grads, strict=True):
        sums += batchnorm.backward_reduce(grad, part, saved_mean=saved["saved_mean"])
    applied = [
        batchnorm.backward_apply(grad, part, sums, **saved)
        for part, grad in zip(parts, grads, strict=True)
    ]
    dx = np.concatenate([each.grad_input for each in applied])
    np.testing.assert_allclose(dx, expected.grad_input, rtol=rtol, atol=rtol)
    for each in applied:  # the empty part's, too
        np.testing.assert_allclose(each.grad_weight, expected.grad_weight, rtol=rtol, atol=rtol)
        np.testing.assert_allclose(each.grad_bias, expected.grad_bias, rtol=rtol, atol=rtol)


def test_channel_last_axis(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 3, 5, 6))
    last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    expected = F.forward_training(last, channel_axis=-1).output
    moments = Moments.of(last, channel_axis=-1)
    np.testing.assert_array_equal(
        batchnorm.normalize(last, moments, channel_axis=-1).output, expected
    )


def test_normalize_saved(rng: np.random.Generator) -> None:
    x = rng.normal(2, 3, (8, 4, 5)).astype(np.float32)
    weight, bias = (rng.standard_normal(4).astype(np.float32) for _ in range(2))
    first = F.forward_training(x, weight=weight, bias=bias)
    out = np.empty_like(x)
    second = batchnorm.normalize_saved(
        x, first.saved_mean, first.saved_invstd, weight, bias, out=out
    )
    assert second is out
    np.testing.assert_allclose(second, first.output, rtol=3e-7, atol=3e-7)


def test_frozen_halves(rng: np.random.Generator) -> None:
    x, dy = rng.standard_normal((2, 6, 3, 4))
    running: Any = {"running_mean": rng.standard_normal(3), "running_var": rng.uniform(1, 2, 3)}
    whole = F.backward(dy, x, statistics="running", **running)
    sums = batchnorm.backward_reduce(
        dy, x, running_mean=running["running_mean"], statistics="running"
    )
    halves = batchnorm.backward_apply(dy, x, sums, statistics="running", **running)
    for got, expected in zip(halves, whole, strict=True):
        np.testing.assert_array_equal(got, expected)
    only_bias = batchnorm.backward_apply(
        dy, x, sums, statistics="running", output_mask=(False, False, True), **running
    )
    assert only_bias.grad_input is None
    assert only_bias.grad_weight is None
    np.testing.assert_array_equal(only_bias.grad_bias, whole.grad_bias)


# ---- bad input ----


@contextmanager
def refused(status: Status, match: str) -> Iterator[None]:
    """A context in which a call must fail with this status."""
    with pytest.raises(BatchNormError, match=match) as failure:
        yield
    assert failure.value.status == status


def moments_of(count: int, mean: Any, m2: Any) -> Moments:
    return Moments(count=count, mean=mean, m2=m2)


def two() -> Moments:
    return moments_of(4, np.array([1.0, 2.0]), np.array([3.0, 4.0]))


@pytest.mark.parametrize(
    ("other", "status", "match"),
    [
        (moments_of(-1, np.zeros(2), np.zeros(2)), Status.MOMENTS, r"other.count is -1"),
        (moments_of(2**63 - 1, np.zeros(2), np.zeros(2)), Status.MOMENTS, r"other.count is 9223"),
        (moments_of(3, np.zeros(2), np.array([0, -2.0])), Status.MOMENTS, r"m2\[1\] is -2"),
        (
            moments_of(3, np.zeros(3), np.zeros(3)),
            Status.COUNT_MISMATCH,
            r"other has 3 channels, expected 2",
        ),
    ],
)
def test_bad_moments(other: Moments, status: Status, match: str) -> None:
    moments = two()
    with refused(status, match):
        moments.merge(other)
    assert repr(moments) == repr(two())


def test_too_few_values() -> None:
    x = np.ones((2, 2))
    none = Moments.none(2)
    with refused(Status.MOMENTS, "count is 0, expected 1"):
        batchnorm.normalize(x, none)
    with refused(Status.MOMENTS, "count is 0, expected 1"):
        none.variance()
    one = Moments.of(x[:1])
    with refused(Status.MOMENTS, "count is 1, expected 2"):
        one.variance("unbiased")
    with refused(Status.ONE_VALUE, "count is 1"):
        batchnorm.normalize(x, one)
    assert batchnorm.normalize(x, one, one_value="allow").output.tolist() == [[0, 0], [0, 0]]
    with refused(Status.MOMENTS, "sums.count is 0, expected 1"):
        batchnorm.backward_apply(
            x, x, GradientSums.none(2), saved_mean=np.zeros(2), saved_invstd=np.ones(2)
        )


def test_arrays_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="m2 has 3 elements, expected 2"):
        moments_of(1, np.zeros(2), np.zeros(3))
    with pytest.raises(TypeError, match="mean has dtype float32, expected float64"):
        moments_of(1, np.zeros(2, np.float32), np.zeros(2))
    with pytest.raises(ValueError, match="sum_dy_xmu has 3 elements, expected 2"):
        GradientSums(count=1, sum_dy=np.zeros(2), sum_dy_xmu=np.zeros(3))
    with pytest.raises(ValueError, match="channels is 3, expected 2"):
        GradientSums.none(2) + GradientSums.none(3)
    frozen = two()
    frozen.m2.flags.writeable = False
    with pytest.raises(ValueError, match="m2 is read-only"):
        frozen.merge(two())


# ---- statistics of many batches ----


def batches(rng: np.random.Generator) -> list[NDArray[Any]]:
    return [rng.normal(i, 1 + i, (3 + i, 2, 4)).astype(np.float32) for i in range(5)]


@pytest.mark.parametrize("kind", ["unbiased", "biased"])
def test_exact_recalibration(kind: Any, rng: np.random.Generator) -> None:
    stream = batches(rng)
    layer = batchnorm.BatchNorm1d(2)
    batchnorm.recalibrate(layer, iter(stream), running_variance=kind)
    everything = np.concatenate(stream).astype(np.float64)
    np.testing.assert_allclose(layer.running_mean, everything.mean((0, 2)), rtol=1e-6)
    variance = everything.var((0, 2), ddof=kind == "unbiased")
    np.testing.assert_allclose(layer.running_var, variance, rtol=1e-6)
    assert layer.num_batches_tracked == 5


def test_mean_recalibration_is_momentum_none(rng: np.random.Generator) -> None:
    stream = [each.astype(np.float64) for each in batches(rng)]
    stepped = batchnorm.BatchNorm1d(2, momentum=None, dtype=np.float64)
    for batch in stream:
        stepped(batch)
    layer = batchnorm.BatchNorm1d(2, dtype=np.float64)
    layer(stream[0])  # what was there before does not matter
    batchnorm.recalibrate(layer, stream, method="mean")
    np.testing.assert_array_equal(layer.running_mean, stepped.running_mean)
    np.testing.assert_array_equal(layer.running_var, stepped.running_var)
    assert layer.num_batches_tracked == stepped.num_batches_tracked == 5


def test_accumulator_takes_moments_and_arrays(rng: np.random.Generator) -> None:
    stream = batches(rng)
    from_arrays, from_moments = StatisticsAccumulator(2), StatisticsAccumulator(2)
    for batch in stream:
        from_arrays.add(batch)
        from_moments.add(Moments.of(batch))
        from_arrays.add(batch[:0])  # empty: nothing changes
    for got, expected in zip(from_arrays.statistics(), from_moments.statistics(), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert from_arrays.statistics().num_batches == 5


@pytest.mark.parametrize("method", ["exact", "mean"])
def test_recalibration_fails_as_a_whole(method: Any, rng: np.random.Generator) -> None:
    stream = batches(rng)
    layer = batchnorm.BatchNorm1d(2)
    layer(stream[0])
    before = layer.to_bytes()
    spoilt = stream[1].copy()
    spoilt[0, 1, 2] = np.nan
    with refused(Status.NONFINITE, "1 of 2 channels"):
        batchnorm.recalibrate(layer, [stream[0], spoilt], method=method)
    with pytest.raises(ValueError, match="channels is 3, expected 2"):
        batchnorm.recalibrate(layer, [stream[0], np.ones((4, 3))], method=method)
    with pytest.raises(ValueError, match="no batch with values"):
        batchnorm.recalibrate(layer, [], method=method)
    with pytest.raises(ValueError, match="exceed the range of float32"):
        batchnorm.recalibrate(layer, [np.array([[1e100, 0], [-1e100, 1]])], method=method)
    assert layer.to_bytes() == before
    with pytest.raises(ValueError, match="'exact' or 'mean'"):
        StatisticsAccumulator(2, method="median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="track_running_stats is False"):
        batchnorm.recalibrate(batchnorm.BatchNorm1d(2, track_running_stats=False), stream)


def test_a_batch_that_is_refused_leaves_the_accumulator(rng: np.random.Generator) -> None:
    stream = batches(rng)
    collected = StatisticsAccumulator(2)
    collected.add(stream[0])
    before = collected.statistics()
    with refused(Status.NONFINITE, "2 of 2 channels"):
        collected.add(np.full((3, 2), np.inf))
    for got, expected in zip(collected.statistics(), before, strict=True):
        np.testing.assert_array_equal(got, expected)
