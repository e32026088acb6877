"""The accuracy table of the library's design, row by row, in both layouts, against longdouble."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import reference
from batchnorm import functional as F
from layouts import LAYOUTS, in_layout

SHAPE = (16, 3, 28, 28)  # 12,544 values per channel
EPS = 1e-5


def normal(mean: float, std: float) -> Any:
    return lambda rng: (mean + std * rng.standard_normal(SHAPE)).astype(np.float32)


def constant_channel(value: float) -> Any:
    def make(rng: np.random.Generator) -> NDArray[np.float32]:
        x = rng.standard_normal(SHAPE).astype(np.float32)
        x[:, 1] = value
        return x

    return make


ROWS = {
    "standard normal": normal(0, 1),
    "mean 1e2, std 1": normal(1e2, 1),
    "mean 1e4, std 1e-2": normal(1e4, 1e-2),
    "channel of 1e4": constant_channel(1e4),
    "channel of 3.7": constant_channel(3.7),
    "values of 3e19, whose squares overflow": normal(0, 3e19),
    "values of 1e-30, whose squares vanish": normal(0, 1e-30),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("row", ROWS)
def test_training_forward_and_backward(
    row: str, layout: str, dtype: Any, rng: np.random.Generator
) -> None:
    x = in_layout(ROWS[row](rng).astype(dtype), layout)
    channels: int = x.shape[1]
    weight = rng.uniform(0.5, 2, channels).astype(dtype)
    bias = rng.standard_normal(channels).astype(dtype)
    grad = in_layout(rng.standard_normal(x.shape, np.float32).astype(dtype), layout)

    result = F.forward_training(x, weight=weight, bias=bias, eps=EPS)
    gradients = F.backward(
        grad, x, weight, saved_mean=result.saved_mean, saved_invstd=result.saved_invstd
    )

    mean, variance, _ = reference.moments(x)
    invstd = reference.invstd_of(variance, EPS)
    reference.assert_accurate(result.output, reference.normalize(x, mean, invstd, weight, bias))
    expected = reference.backward(grad, x, mean, invstd, weight)
    reference.assert_accurate(gradients.grad_input, expected.grad_input)
    reference.assert_sums_accurate(gradients.grad_weight, gradients.grad_bias, expected)
    if "channel of" in row:
        assert np.all(result.output[:, 1] == bias[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("mean", "std"), [(0, 1), (1e4, 1e-2), (0, 1e18)])
def test_inference_and_frozen_backward(
    mean: float, std: float, layout: str, dtype: Any, rng: np.random.Generator
) -> None:
    x = in_layout(normal(mean, std)(rng).astype(dtype), layout)
    grad = in_layout(rng.standard_normal(SHAPE).astype(dtype), layout)
    running_mean = np.asarray(mean + std * rng.standard_normal(3), dtype)
    running_var = np.asarray(std * std * rng.uniform(0.5, 2, 3), dtype)
    weight, bias = rng.standard_normal((2, 3)).astype(dtype)

    y = F.forward_inference(x, running_mean, running_var, weight, bias, eps=EPS)
    gradients = F.backward(
        grad,
        x,
        weight,
        running_mean=running_mean,
        running_var=running_var,
        statistics="running",
        eps=EPS,
    )

    invstd = reference.invstd_of(running_var, EPS)
    reference.assert_accurate(y, reference.normalize(x, running_mean, invstd, weight, bias))
    expected = reference.backward(grad, x, running_mean, invstd, weight, frozen=True)
    reference.assert_accurate(gradients.grad_input, expected.grad_input)
    reference.assert_sums_accurate(gradients.grad_weight, gradients.grad_bias, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_long_channels_of_near_constant_values(layout: str, rng: np.random.Generator) -> None:
    """1.76e7 values per channel. The truth in float64 here, exact enough once the mean is gone."""
    deviations = 1e-3 * rng.standard_normal((11, 2, 1600, 1000), np.float32)
    x = in_layout(deviations + np.float32(100), layout)
    weight, bias = rng.standard_normal((2, 2)).astype(np.float32)

    result = F.forward_training(x, weight=weight, bias=bias, eps=EPS)

    for channel in range(2):
        centered = x[:, channel].astype(np.float64) - 100
        mean = centered.mean()
        np.testing.assert_allclose(result.saved_mean[channel], 100 + mean, rtol=1e-15)
        centered -= mean
        slope = weight[channel] / np.sqrt(np.mean(centered * centered) + EPS)
        expected = slope * centered + bias[channel]
        scale = reference.largest(expected, slope * centered, bias[channel])
        reference.assert_within_ulps(result.output[:, channel], expected, scale, 3)


def test_saved_statistics_are_as_exact_as_float64(rng: np.random.Generator) -> None:
    x = normal(1e4, 1e-2)(rng)
    result = F.forward_training(x, eps=0.0)
    mean, variance, _ = reference.moments(x)
    np.testing.assert_allclose(result.saved_mean, mean.astype(np.float64), rtol=1e-15)
    np.testing.assert_allclose(
        result.saved_invstd, (1 / np.sqrt(variance)).astype(np.float64), rtol=1e-6
    )
