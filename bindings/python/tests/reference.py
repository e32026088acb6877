"""The truth for the tests: batch normalization in NumPy's longdouble, for arrays (N, C, ...).

Written to be read, straight from the formulas in batchnorm.h. Every result is longdouble.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Real = NDArray[Any]  # longdouble; any float array is accepted


def per_channel(values: Real | None, like: Real, absent: float) -> Real:
    """(C,) as longdouble in a shape that broadcasts over (N, C, ...)."""
    channels = like.shape[1]
    wide = np.full(channels, absent) if values is None else values
    return np.asarray(wide, np.longdouble).reshape(1, channels, *[1] * (like.ndim - 2))


def sum_over_batch(values: Real) -> Real:
    """(N, C, ...) to (C,)."""
    result: Real = values.sum(axis=(0, *range(2, values.ndim)))
    return result


class Moments(NamedTuple):
    mean: Real
    variance: Real  # biased
    values: int  # per channel


def moments(x: Real) -> Moments:
    x = x.astype(np.longdouble)
    count = x.size // x.shape[1]
    mean = sum_over_batch(x) / count
    centered = x - per_channel(mean, x, 0)
    return Moments(mean, sum_over_batch(centered * centered) / count, count)


def invstd_of(variance: Real, eps: float) -> Real:
    """1 / sqrt(variance + eps), but 0 where that would divide by 0."""
    sum_ = np.asarray(variance, np.longdouble) + eps
    return np.where(sum_ == 0, 0, 1 / np.sqrt(np.where(sum_ == 0, 1, sum_)))


class Result(NamedTuple):
    """A tensor, and what its error is measured by."""

    values: Real
    scale: Real  # by element: the largest of what its error is stated in units of
    rounded: Real  # by channel: the terms that carry the rounding of a float64 mean


def normalize(
    x: Real, mean: Real, invstd: Real, weight: Real | None = None, bias: Real | None = None
) -> Result:
    x = x.astype(np.longdouble)
    factor = per_channel(weight, x, 1) * per_channel(invstd, x, 1)
    scaled = (x - per_channel(mean, x, 0)) * factor
    shift = per_channel(bias, x, 0)
    y = scaled + shift
    return Result(
        y,
        largest(per_channel(weight, x, 1), scaled, shift, y),
        (factor * per_channel(mean, x, 0)).ravel(),
    )


class Gradients(NamedTuple):
    grad_input: Result
    grad_weight: Real
    grad_weight_terms: Real  # the sum of the absolute values of its terms
    grad_weight_rounded: Real  # the terms that carry the rounding of a float64 mean
    grad_bias: Real
    grad_bias_terms: Real


def backward(
    grad_output: Real,
    x: Real,
    mean: Real,
    invstd: Real,
    weight: Real | None = None,
    *,
    frozen: bool = False,
) -> Gradients:
    x = x.astype(np.longdouble)
    dy = grad_output.astype(np.longdouble)
    count = x.size // x.shape[1]
    r = per_channel(invstd, x, 1)
    c = x - per_channel(mean, x, 0)
    factor = per_channel(weight, x, 1) * r
    s1 = sum_over_batch(dy)
    s2 = sum_over_batch(dy * c)
    terms = [factor * dy]
    if not frozen:
        terms += [
            -factor * per_channel(s1, x, 0) / count,
            -factor * c * r * r * per_channel(s2, x, 0) / count,
        ]
    grad_input = np.asarray(sum(terms))
    usual = per_channel(np.sqrt(sum_over_batch(dy * dy) / count), x, 0)
    return Gradients(
        Result(
            grad_input,
            largest(*terms, grad_input, *([] if frozen else [factor * usual])),
            (factor * usual * per_channel(mean, x, 0) * r).ravel(),
        ),
        s2 * np.asarray(invstd, np.longdouble),
        sum_over_batch(abs(dy * c * r)),
        sum_over_batch(abs(dy * per_channel(mean, x, 0) * r)),
        s1,
        sum_over_batch(abs(dy)),
    )


def largest(*terms: Real) -> Real:
    """The largest absolute value, element by element."""
    return np.asarray(np.max([abs(each) for each in np.broadcast_arrays(*terms)], axis=0))


def assert_accurate(actual: Real | None, expected: Result, ulps: float = 3) -> None:
    """The library's promise for tensors.

    float32: within `ulps` units in the last place of the largest of the element's terms, weight,
    and, of gradients, the usual size of grad_output on its way back. float64: within
    64, and of the channel's largest term, because there the mean and the sums are themselves
    rounded to the tensor's own type, and an element near 0 cannot be exact to its own last place.
    """
    assert actual is not None
    if actual.dtype == np.float32:
        assert_within_ulps(actual, expected.values, expected.scale, ulps)
    else:
        by_channel = expected.scale.max(axis=(0, *range(2, actual.ndim)))
        by_channel = np.maximum(by_channel, abs(expected.rounded))
        assert_within_ulps(actual, expected.values, per_channel(by_channel, actual, 0), 64)


def assert_sums_accurate(
    grad_weight: Real | None, grad_bias: Real | None, expected: Gradients
) -> None:
    """The library's promise for the gradients of weight and bias: 8 roundings of all terms.

    float64 as in assert_accurate: 64, and the rounding of the mean is in the terms.
    """
    for sums, exact, terms, rounded in (
        (
            grad_weight,
            expected.grad_weight,
            expected.grad_weight_terms,
            expected.grad_weight_rounded,
        ),
        (grad_bias, expected.grad_bias, expected.grad_bias_terms, 0),
    ):
        assert sums is not None
        if sums.dtype == np.float32:
            bound = 8 * 2.0**-24 * terms
        else:
            bound = 64 * 2.0**-53 * (terms + rounded)
        assert np.all(abs(sums - exact) <= bound), f"{sums!r} instead of {exact!r}, +-{bound!r}"


def assert_within_ulps(actual: Real, expected: Real, scale: Real, ulps: float) -> None:
    """|actual - expected| <= ulps * ulp(scale), in units of actual's dtype, element by element."""
    kind: Any = actual.dtype.type
    limit = ulps * np.spacing(np.maximum(scale, np.finfo(kind).tiny).astype(kind))
    ratio = abs(actual - expected) / limit
    worst = int(np.argmax(ratio)) if ratio.size else 0
    assert np.all(ratio <= 1), (
        f"at {np.unravel_index(worst, ratio.shape)}: {actual.flat[worst]!r} differs from "
        f"{expected.flat[worst]!r} by {ratio.flat[worst] * ulps:.2f} ulp "
        f"of {np.broadcast_to(scale, ratio.shape).flat[worst]!r}"
    )
