"""Hypothesis: any small problem, any combination of options, against longdouble."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import reference
from batchnorm import functional as F
from layouts import LAYOUTS, in_layout

# Around the kernels' lane count of 16, as well as nothing and one.
SIZES = st.sampled_from([1, 2, 3, 5, 7, 15, 16, 17, 35])


class Case(NamedTuple):
    x: NDArray[Any]
    grad: NDArray[Any]
    weight: NDArray[Any] | None
    bias: NDArray[Any] | None
    running_mean: NDArray[Any]
    running_var: NDArray[Any]
    eps: float


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rank = draw(st.integers(2, 5))
    shape = tuple(draw(SIZES) for _ in range(rank))
    while np.prod(shape) > 50_000:
        shape = tuple(max(1, size // 2) for size in shape)
    if np.prod(shape) == shape[1]:
        shape = (2, *shape[1:])  # at least two values per channel
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    layout = draw(st.sampled_from(LAYOUTS))
    mean = draw(st.sampled_from([0.0, 1.0, -100.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def vector(low: float, high: float) -> NDArray[Any]:
        return rng.uniform(low, high, shape[1]).astype(dtype)

    return Case(
        x=in_layout((mean + rng.standard_normal(shape)).astype(dtype), layout),
        grad=in_layout(rng.standard_normal(shape).astype(dtype), layout),
        weight=vector(-2, 2) if draw(st.booleans()) else None,
        bias=vector(-2, 2) if draw(st.booleans()) else None,
        running_mean=vector(-1, 1),
        running_var=vector(0.5, 2),
        eps=draw(st.sampled_from([1e-5, 1e-3, 0.5])),
    )


@given(cases())
def test_training(case: Case) -> None:
    result = F.forward_training(case.x, weight=case.weight, bias=case.bias, eps=case.eps)
    mean, variance, _ = reference.moments(case.x)
    invstd = reference.invstd_of(variance, case.eps)
    reference.assert_accurate(
        result.output, reference.normalize(case.x, mean, invstd, case.weight, case.bias)
    )
    assert result.statistics_used == "batch"
    assert result.nonfinite_channels == 0

    gradients = F.backward(
        case.grad,
        case.x,
        case.weight,
        saved_mean=result.saved_mean,
        saved_invstd=result.saved_invstd,
    )
    truth = reference.backward(case.grad, case.x, mean, invstd, case.weight)
    check_gradients(gradients, truth)


@given(cases())
def test_inference_and_frozen_backward(case: Case) -> None:
    y = F.batch_norm(
        case.x, case.running_mean, case.running_var, case.weight, case.bias, eps=case.eps
    )
    invstd = reference.invstd_of(case.running_var, case.eps)
    reference.assert_accurate(
        y, reference.normalize(case.x, case.running_mean, invstd, case.weight, case.bias)
    )

    gradients = F.backward(
        case.grad,
        case.x,
        case.weight,
        running_mean=case.running_mean,
        running_var=case.running_var,
        statistics="running",
        eps=case.eps,
    )
    truth = reference.backward(
        case.grad, case.x, case.running_mean, invstd, case.weight, frozen=True
    )
    check_gradients(gradients, truth)


def check_gradients(actual: F.Gradients, expected: reference.Gradients) -> None:
    # 3 on the table of test_accuracy.py; on random data a few elements in 10^7 reach 3.4.
    reference.assert_accurate(actual.grad_input, expected.grad_input, ulps=4)
    reference.assert_sums_accurate(actual.grad_weight, actual.grad_bias, expected)


@given(
    cases(),
    st.sampled_from([0.0, 0.1, 0.9, 1.0, -0.5, None]),
    st.sampled_from(["unbiased", "biased"]),
    st.integers(0, 5),
)
def test_running_statistics(
    case: Case, momentum: float | None, running_variance: Any, batches: int
) -> None:
    running_mean, running_var = case.running_mean.copy(), case.running_var.copy()
    counter = np.array(batches)
    F.forward_training(
        case.x,
        running_mean,
        running_var,
        num_batches_tracked=counter,
        momentum=momentum,
        running_variance=running_variance,
    )
    assert counter == batches + 1
    mean, variance, count = reference.moments(case.x)
    if running_variance == "unbiased":
        variance = variance * count / (count - 1)
    share = 1 / np.longdouble(batches + 1) if momentum is None else momentum
    deviation = np.sqrt(reference.moments(case.x).variance)
    for actual, old, new, rounded in (
        (running_mean, case.running_mean, mean, abs(mean) + deviation),
        (running_var, case.running_var, variance, variance),
    ):
        # The batch's own statistics are as exact as its deviation lets them be.
        terms = reference.largest((1 - share) * old, share * new, share * rounded)
        ulps = 3 if case.x.dtype == np.float32 else 64
        reference.assert_within_ulps(actual, (1 - share) * old + share * new, terms, ulps)


@given(cases(), st.data())
def test_nonfinite_values_stay_in_their_channel(case: Case, data: st.DataObject) -> None:
    channel = data.draw(st.integers(0, case.x.shape[1] - 1))
    where = (0, channel, *[0] * (case.x.ndim - 2))
    others = np.arange(case.x.shape[1]) != channel
    broken = case.x.copy("K")
    broken[where] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    stats = case.running_mean.copy(), case.running_var.copy()

    clean = F.forward_training(case.x, weight=case.weight, bias=case.bias)
    result = F.forward_training(broken, *stats, weight=case.weight, bias=case.bias)

    assert result.nonfinite_channels == 1
    assert np.all(np.isnan(result.output[:, channel]))
    assert result.output[:, others].tobytes() == clean.output[:, others].tobytes()
    assert stats[0][channel] == case.running_mean[channel]
    assert stats[1][channel] == case.running_var[channel]
    assert np.all(np.isfinite(stats[0]))
    assert np.all(np.isfinite(stats[1]))
