"""Gradients against central differences of the library's own forward, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from batchnorm import functional as F
from layouts import LAYOUTS, in_layout

Array = NDArray[np.float64]
SHAPES = [(5, 3), (4, 3, 5), (2, 3, 3, 2), (2, 2, 2, 3, 2)]


def central_differences(loss: Callable[[Array], float], at: Array, step: float = 1e-5) -> Array:
    gradient = np.empty_like(at)
    for index in np.ndindex(at.shape):
        value = at[index]
        at[index] = value + step
        above = loss(at)
        at[index] = value - step
        below = loss(at)
        at[index] = value
        gradient[index] = (above - below) / (2 * step)
    return gradient


@pytest.fixture(params=SHAPES, ids=str)
def case(request: pytest.FixtureRequest, rng: np.random.Generator) -> dict[str, Any]:
    shape = request.param
    weight, bias, running_mean = rng.standard_normal((3, shape[1]))
    return {
        "x": rng.standard_normal(shape),
        "weight": weight,
        "bias": bias,
        "running_mean": running_mean,
        "running_var": rng.uniform(0.5, 2, shape[1]),
        "toward": rng.standard_normal(shape),  # the loss is the sum of toward * y
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_against_central_differences(case: dict[str, Any], statistics: Any, layout: str) -> None:
    eps = 1e-3
    x, toward = in_layout(case["x"], layout), in_layout(case["toward"], layout)
    weight, bias = case["weight"], case["bias"]
    running: dict[str, Any] = {name: case[name] for name in ("running_mean", "running_var")}

    def forward(x: Array, weight: Array, bias: Array) -> NDArray[Any]:
        if statistics == "running":
            return F.forward_inference(x, weight=weight, bias=bias, eps=eps, **running)
        return F.forward_training(x, weight=weight, bias=bias, eps=eps).output

    saved: dict[str, Any] = {}
    if statistics == "batch":
        result = F.forward_training(x, eps=eps)
        saved = {"saved_mean": result.saved_mean, "saved_invstd": result.saved_invstd}
    gradients = F.backward(toward, x, weight, statistics=statistics, eps=eps, **(saved or running))

    def loss(y: NDArray[Any]) -> float:
        return float((y * toward).sum())

    for actual, expected in (
        (gradients.grad_input, central_differences(lambda v: loss(forward(v, weight, bias)), x)),
        (gradients.grad_weight, central_differences(lambda v: loss(forward(x, v, bias)), weight)),
        (gradients.grad_bias, central_differences(lambda v: loss(forward(x, weight, v)), bias)),
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("mask", list(np.ndindex(2, 2, 2)), ids=str)
@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_skipped_gradients_leave_the_others_alone(
    case: dict[str, Any], statistics: Any, mask: tuple[bool, bool, bool]
) -> None:
    x = case["x"]
    result = F.forward_training(x)
    arguments: dict[str, Any] = {
        "saved_mean": result.saved_mean,
        "saved_invstd": result.saved_invstd,
        "running_mean": case["running_mean"],
        "running_var": case["running_var"],
        "statistics": statistics,
    }
    everything = F.backward(case["toward"], x, case["weight"], **arguments)
    some = F.backward(case["toward"], x, case["weight"], output_mask=mask, **arguments)
    for wanted, whole, part in zip(mask, everything[:3], some[:3], strict=True):
        if wanted:
            assert part.tobytes() == whole.tobytes()
        else:
            assert part is None


def test_absent_weight_means_one(case: dict[str, Any]) -> None:
    x = case["x"]
    result = F.forward_training(x)
    saved: dict[str, Any] = {"saved_mean": result.saved_mean, "saved_invstd": result.saved_invstd}
    without = F.backward(case["toward"], x, **saved)
    with_ones = F.backward(case["toward"], x, np.ones(x.shape[1]), **saved)
    for one, other in zip(without[:3], with_ones[:3], strict=True):
        assert one.tobytes() == other.tobytes()
