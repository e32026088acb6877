"""Every part's backward against central differences, in float64."""

from __future__ import annotations

from collections.abc import Callable

import batchnorm
import numpy as np
import pytest
from bndemo.data import Floats
from bndemo.parts import (
    BatchNorm,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    Network,
    Part,
    ReLU,
    Sigmoid,
    descend,
    softmax_cross_entropy,
)


def numeric_gradient(loss: Callable[[], float], values: Floats, step: float = 1e-6) -> Floats:
    """Of a function of no arguments with respect to an array that it reads."""
    gradient = np.empty(values.shape)
    for index in np.ndindex(values.shape):
        kept = values[index]
        values[index] = kept + step
        above = loss()
        values[index] = kept - step
        below = loss()
        values[index] = kept
        gradient[index] = (above - below) / (2 * step)
    return gradient


def weights() -> np.random.Generator:
    return np.random.default_rng(1)


def float64_layer(dimensions: int, channels: int) -> BatchNorm:
    kind = {1: batchnorm.BatchNorm1d, 2: batchnorm.BatchNorm2d}[dimensions]
    layer = kind(channels, dtype=np.float64)
    layer.weight[:] = np.linspace(0.5, 2, channels)
    layer.bias[:] = np.linspace(-1, 1, channels)
    return BatchNorm(layer)


PARTS = {
    "Linear": ((4, 5), lambda: Linear(5, 3, weights(), dtype=np.float64)),
    "Conv2d 3x3": ((2, 3, 4, 5), lambda: Conv2d(3, 2, 3, weights(), dtype=np.float64)),
    "Conv2d 1x1": ((2, 3, 2, 2), lambda: Conv2d(3, 4, 1, weights(), dtype=np.float64)),
    "MaxPool2d": ((2, 3, 4, 6), MaxPool2d),
    "Flatten": ((2, 3, 2, 4), Flatten),
    "ReLU": ((4, 5), ReLU),
    "Sigmoid": ((4, 5), Sigmoid),
    "BatchNorm1d": ((6, 4), lambda: float64_layer(1, 4)),
    "BatchNorm2d": ((3, 2, 4, 4), lambda: float64_layer(2, 2)),
    "small network": (
        (4, 1, 4, 4),
        lambda: Network(
            [
                Conv2d(1, 2, 3, weights(), dtype=np.float64),
                float64_layer(2, 2),
                Sigmoid(),
                MaxPool2d(),
                Flatten(),
                Linear(8, 3, weights(), dtype=np.float64),
            ]
        ),
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_gradients(name: str) -> None:
    shape, make = PARTS[name]
    part: Part = make()
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape)
    upstream = rng.normal(size=part.forward(x).shape)

    def loss() -> float:
        return float(np.sum(part.forward(x) * upstream))

    loss()
    grad_input = part.backward(upstream)
    gradients = [grad.copy() for _, grad in part.parameters()]

    assert grad_input.shape == x.shape
    np.testing.assert_allclose(grad_input, numeric_gradient(loss, x), rtol=1e-6, atol=1e-7)
    for (value, _), grad in zip(part.parameters(), gradients):
        np.testing.assert_allclose(grad, numeric_gradient(loss, value), rtol=1e-6, atol=1e-7)


def test_convolution_is_the_sum_over_neighbourhoods() -> None:
    part = Conv2d(2, 3, 3, weights(), dtype=np.float64)
    part.bias[:] = (1, 2, 3)
    x = np.random.default_rng(0).normal(size=(2, 2, 5, 4))
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    expected = np.empty((2, 3, 5, 4))
    for n, o, i, j in np.ndindex(expected.shape):
        expected[n, o, i, j] = np.sum(padded[n, :, i : i + 3, j : j + 3] * part.weight[o]) + (o + 1)
    np.testing.assert_allclose(part.forward(x), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda **o: Linear(5, 3, weights(), **o), (4, 5)),
        (lambda **o: Conv2d(2, 3, 3, weights(), **o), (2, 2, 4, 4)),
    ],
)
def test_the_first_part_passes_no_gradient_on(
    make: Callable[..., Part], shape: tuple[int, ...]
) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    first, other = make(first=True), make()
    upstream = np.ones_like(first.forward(x))
    other.forward(x)
    assert first.backward(upstream).size == 0
    assert other.backward(upstream).shape == x.shape
    for (_, one), (_, two) in zip(first.parameters(), other.parameters()):
        np.testing.assert_array_equal(one, two)


def test_convolution_refuses_an_even_kernel() -> None:
    with pytest.raises(ValueError, match="expected an odd size, got 2"):
        Conv2d(1, 1, 2, weights())


def test_pooling_takes_the_largest_of_each_block() -> None:
    x = np.arange(16.0).reshape(1, 1, 4, 4)
    assert MaxPool2d().forward(x).tolist() == [[[[5, 7], [13, 15]]]]


def test_softmax_cross_entropy() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(5, 4)), rng.integers(0, 4, 5)
    loss, grad = softmax_cross_entropy(logits, labels)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert loss == pytest.approx(-np.log(probabilities[np.arange(5), labels]).mean())
    expected = numeric_gradient(lambda: softmax_cross_entropy(logits, labels)[0], logits)
    np.testing.assert_allclose(grad, expected, rtol=1e-6, atol=1e-9)


def test_softmax_cross_entropy_survives_huge_logits() -> None:
    loss, grad = softmax_cross_entropy(np.array([[1e4, -1e4]]), np.array([0]))
    assert loss == 0
    assert np.isfinite(grad).all()


def test_descend_moves_the_layer_of_the_library_itself() -> None:
    part = float64_layer(1, 3)
    x = np.random.default_rng(0).normal(size=(8, 3))
    part.forward(x)
    part.backward(x)
    before, grad = part.layer.weight.copy(), part.layer.grad_weight.copy()
    descend(part, 0.5)
    np.testing.assert_array_equal(part.layer.weight, before - 0.5 * grad)
