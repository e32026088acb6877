"""Moments and halves of masked batches: those of the whole operation, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from batchnorm import BatchNormError, Status, functional
from batchnorm.moments import GradientSums, Moments, backward_apply, backward_reduce, normalize


def sequences(channel_axis: Any, dtype: Any) -> Any:
    """Input and grad_output of six padded sequences, garbage where they are padded; and lengths."""
    rng = np.random.default_rng(7)
    lengths = np.array([300, 0, 17, 299, 1, 160])
    x, dy = rng.normal(2, 3, (2, 6, 300, 20)).astype(dtype)
    padded = np.arange(300) >= lengths[:, np.newaxis]
    x[padded], dy[padded] = np.nan, np.inf
    if channel_axis == 1:
        x, dy = (np.ascontiguousarray(t.transpose(0, 2, 1)) for t in (x, dy))
    return x, dy, lengths


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_halves_are_the_whole(channel_axis: Any, dtype: Any) -> None:
    x, dy, lengths = sequences(channel_axis, dtype)
    kind: Any = {"channel_axis": channel_axis, "lengths": lengths, "masked": "pass"}
    whole = functional.forward_training(x, **kind)
    moments = Moments.of(x, channel_axis=channel_axis, lengths=lengths)
    assert moments.count == lengths.sum() == whole.values_per_channel
    part = normalize(x, moments, **kind)
    np.testing.assert_array_equal(part.output, whole.output)
    np.testing.assert_array_equal(part.saved_mean, whole.saved_mean)

    saved: Any = {"saved_mean": whole.saved_mean, "saved_invstd": whole.saved_invstd}
    grads = functional.backward(dy, x, **saved, **kind)
    sums = backward_reduce(
        dy, x, saved_mean=whole.saved_mean, channel_axis=channel_axis, lengths=lengths
    )
    assert sums.count == lengths.sum()
    again = backward_apply(dy, x, sums, **saved, **kind)
    np.testing.assert_array_equal(again.grad_input, grads.grad_input)
    np.testing.assert_array_equal(again.grad_weight, grads.grad_weight)
    np.testing.assert_array_equal(again.grad_bias, grads.grad_bias)


@pytest.mark.parametrize("channel_axis", [1, -1])
def test_parts_are_the_values_that_count(channel_axis: Any) -> None:
    x, _, lengths = sequences(channel_axis, np.float64)
    merged = Moments.none(20)
    for sample in range(len(x)):
        own = slice(sample, sample + 1)
        merged.merge(Moments.of(x[own], channel_axis=channel_axis, lengths=lengths[own]))
    rows = x if channel_axis == -1 else x.transpose(0, 2, 1)
    values = np.concatenate([row[:length] for row, length in zip(rows, lengths, strict=True)])
    assert merged.count == len(values)
    np.testing.assert_allclose(merged.mean, values.mean(0), rtol=1e-13)
    np.testing.assert_allclose(merged.variance(), values.var(0), rtol=1e-13)


def test_nothing_counts() -> None:
    moments = Moments.of(np.ones((2, 3, 4)), mask=np.zeros((2, 4), bool))
    assert moments.count == 0
    assert not moments.mean.any()
    assert GradientSums.none(3).count == 0


def test_mask_and_lengths_exclude_each_other() -> None:
    x, mask, lengths = np.ones((2, 3, 4)), np.ones((2, 4), bool), np.array([4, 4])
    with pytest.raises(BatchNormError, match="mask and lengths") as caught:
        Moments.of(x, mask=mask, lengths=lengths)
    assert caught.value.status is Status.EXCLUSIVE
