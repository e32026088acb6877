"""float16 and bfloat16 arrays: tensors in halves, parameters in float32."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import batchnorm
from batchnorm import functional
from batchnorm.moments import Moments, normalize

HALVES: list[Any] = [np.float16, ml_dtypes.bfloat16]


def images(dtype: Any, channel_axis: int = 1) -> np.ndarray:
    shape = (4, 5, 9, 7) if channel_axis == 1 else (4, 9, 7, 5)
    return np.random.default_rng(3).normal(1, 2, shape).astype(dtype)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("channel_axis", [1, -1])
def test_inference_is_float32_rounded(dtype: Any, channel_axis: Any) -> None:
    x = images(dtype, channel_axis)
    rng = np.random.default_rng(4)
    mean, bias = rng.normal(size=(2, 5)).astype(np.float32)
    var = rng.uniform(0.5, 2, 5).astype(np.float32)
    y = functional.forward_inference(x, mean, var, None, bias, channel_axis=channel_axis)
    wide = functional.forward_inference(
        x.astype(np.float32), mean, var, None, bias, channel_axis=channel_axis
    )
    assert y.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(y, wide.astype(dtype))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("channel_axis", [1, -1])
def test_training_against_float64(dtype: Any, channel_axis: Any) -> None:
    x = images(dtype, channel_axis)
    running_mean, running_var = np.zeros(5, np.float32), np.ones(5, np.float32)
    result = functional.forward_training(x, running_mean, running_var, channel_axis=channel_axis)
    wide = functional.forward_training(x.astype(np.float64), channel_axis=channel_axis)
    step = 2.0**-10 if dtype is np.float16 else 2.0**-7
    error = np.abs(result.output.astype(np.float64) - wide.output)
    assert (error <= step * np.maximum(np.abs(wide.output), 0.01)).all()
    np.testing.assert_allclose(result.saved_mean, wide.saved_mean, rtol=1e-5)
    np.testing.assert_allclose(running_mean, 0.1 * wide.saved_mean, rtol=1e-5)

    dy = images(dtype, channel_axis)[::-1].copy()
    saved: Any = {"saved_mean": wide.saved_mean, "saved_invstd": wide.saved_invstd}
    grads = functional.backward(dy, x, channel_axis=channel_axis, **saved)
    exact = functional.backward(
        dy.astype(np.float64), x.astype(np.float64), channel_axis=channel_axis, **saved
    )
    assert grads.grad_input.dtype == np.dtype(dtype)
    assert grads.grad_weight.dtype == grads.grad_bias.dtype == np.float32
    np.testing.assert_allclose(grads.grad_weight, exact.grad_weight, rtol=1e-5)
    scale = np.abs(exact.grad_input).max()
    assert np.abs(grads.grad_input.astype(np.float64) - exact.grad_input).max() <= step * scale


@pytest.mark.parametrize("dtype", HALVES)
def test_layer(dtype: Any) -> None:
    layer = batchnorm.BatchNorm2d(5, dtype=dtype)
    x = images(dtype)
    y = layer(x, residual=x, activation="relu")
    assert y.dtype == layer.dtype == np.dtype(dtype)
    assert layer.parameter_dtype == layer.running_mean.dtype == layer.weight.dtype == np.float32
    assert layer.backward(np.ones_like(y)).dtype == np.dtype(dtype)
    assert layer.grad_residual.dtype == np.dtype(dtype)
    layer.weight -= np.float32(0.5)
    assert (layer.state_dict()["weight"] == 0.5).all()
    again = batchnorm.BatchNorm2d.from_bytes(layer.to_bytes())
    assert again.dtype == layer.dtype
    np.testing.assert_array_equal(again.running_var, layer.running_var)
    np.testing.assert_array_equal(again.eval()(x), layer.eval()(x))
    assert layer.fold_affine().weight.dtype == np.float32


@pytest.mark.parametrize("dtype", HALVES)
def test_moments_and_explain(dtype: Any) -> None:
    x = images(dtype)
    whole = functional.forward_training(x)
    part = normalize(x, Moments.of(x))
    np.testing.assert_array_equal(part.output, whole.output)
    assert batchnorm.explain(x.shape, "forward_training", dtype=dtype).tensor_bytes == x.nbytes


@pytest.mark.parametrize("dtype", HALVES)
def test_refused(dtype: Any) -> None:
    x = images(dtype)
    with pytest.raises(TypeError, match=r"weight has dtype .*16, expected float32"):
        functional.forward_training(x, weight=np.ones(5, dtype))
    with pytest.raises(batchnorm.BatchNormError, match="16, expected the layer's float32"):
        batchnorm.BatchNorm2d(5)(x)
    with pytest.raises(TypeError, match="expected float32 or float64"):
        batchnorm.BatchNorm2d(5, dtype=dtype).fold_into(np.ones((5, 1, 1, 1), dtype))
    with pytest.raises(TypeError, match="uint16, expected float32, float64, bfloat16"):
        functional.forward_training(x.view(np.uint16))
