"""Numbers from one end of a type's range to the other, against decimals of 60 digits.

Whatever the size of mean, deviation, weight, bias, epsilon and gradient: a result that fits is
right, one that does not is infinite, and nothing on the way overflows or vanishes before it.
"""

from __future__ import annotations

import decimal
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

from batchnorm import functional as F
from batchnorm import normalize_saved

decimal.getcontext().prec = 60
decimal.getcontext().Emax = 999999
decimal.getcontext().Emin = -999999

CHANNELS = 48


class Kind(NamedTuple):
    """A type of tensors, that of parameters, and by how many units a result may be off."""

    dtype: Any
    parameter: Any
    smallest: int  # exponents of two
    largest: int
    digits: int
    units: float


KINDS = {
    "float32": Kind(np.float32, np.float32, -149, 128, 24, 4),
    "float64": Kind(np.float64, np.float64, -1074, 1024, 53, 32),
    "bfloat16": Kind(ml_dtypes.bfloat16, np.float32, -133, 128, 8, 1),
}


def total(values: Iterable[Decimal]) -> Decimal:
    return sum(values, Decimal(0))


def unit(kind: Kind, size: Decimal) -> Decimal:
    """One unit in the last place of numbers of this size, also where they are subnormal."""
    exponent = kind.smallest
    if size > 0:
        power = int((size.ln() / Decimal(2).ln()).to_integral_value(decimal.ROUND_FLOOR))
        exponent = max(exponent, power - kind.digits + 1)
    return Decimal(2) ** exponent


def assert_close(kind: Kind, got: np.ndarray, terms: list[list[Decimal]], case: str) -> None:
    """Each value is the sum of its terms, within some units of the largest of them."""
    largest = (Decimal(2) - Decimal(2) ** (1 - kind.digits)) * Decimal(2) ** (kind.largest - 1)
    for value, parts in zip(got.ravel().tolist(), terms, strict=True):
        exact = total(parts)
        allowed = Decimal(kind.units) * unit(kind, max(abs(part) for part in [*parts, exact]))
        if np.isinf(value):
            assert abs(exact) + allowed > largest, f"{case}: {value}, expected {exact:.9}"
            assert (value > 0) == (exact > 0), f"{case}: {value}, expected {exact:.9}"
        else:
            assert abs(Decimal(value) - exact) <= allowed, f"{case}: {value}, expected {exact:.9}"


def numbers(kind: Kind, rng: np.random.Generator, low: int, high: int) -> np.ndarray:
    """Of either sign, their exponents anywhere in [low, high): one a channel, a few of them 0."""
    sizes = np.ldexp(rng.uniform(1, 2, CHANNELS), rng.integers(low, high, CHANNELS))
    sizes[rng.random(CHANNELS) < 0.05] = 0
    signed: np.ndarray = sizes * rng.choice([-1, 1], CHANNELS)
    return signed.astype(kind.parameter)


def arranged(values: np.ndarray, layout: str, kind: Kind) -> np.ndarray:
    """(M, C) as a tensor whose channels are reduced by columns, by rows, or channels last."""
    m = len(values)
    if layout == "columns":
        matrix: np.ndarray = values.astype(kind.dtype)
        return matrix
    if layout == "rows":  # long enough to be taken by rows
        repeated = np.repeat(values.T, 300, axis=1)
        return np.ascontiguousarray(repeated.reshape(1, CHANNELS, m * 300)).astype(kind.dtype)
    nhwc = values.reshape(1, m, 1, CHANNELS).astype(kind.dtype)
    return np.moveaxis(nhwc, -1, 1)


def back(tensor: np.ndarray, layout: str, m: int) -> np.ndarray:
    """The same (M, C) again; of repeated values, which must be equal, one."""
    if layout == "columns":
        return tensor
    if layout == "rows":
        repeated = tensor.reshape(CHANNELS, m, 300)
        same = (repeated == repeated[..., :1]) | (np.isnan(repeated) & np.isnan(repeated[..., :1]))
        assert same.all()
        one: np.ndarray = repeated[..., 0].T
        return one
    return np.moveaxis(tensor, 1, -1).reshape(m, CHANNELS)


def invstd_of(variance: Decimal, eps: float) -> Decimal:
    power = variance + Decimal(eps)
    return 1 / power.sqrt() if power > 0 else Decimal(0)


LAYOUTS = ("columns", "rows", "nhwc")
EPSILONS = (1e-5, 0.0, 1e-70, 2.2e-308, 1e90)


@pytest.mark.parametrize("eps", EPSILONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", KINDS)
def test_inference_and_frozen_backward(name: str, layout: str, eps: float) -> None:
    kind = KINDS[name]
    rng = np.random.default_rng(7)
    low, high = kind.smallest, kind.largest - 1
    for _ in range(4):
        mean, weight = numbers(kind, rng, low, high), numbers(kind, rng, low, high)
        bias = numbers(kind, rng, low, high)
        var = abs(numbers(kind, rng, low, high))
        x = np.array([numbers(kind, rng, low, high) for _ in range(4)])
        x[0] = mean  # a constant channel, if there were no others
        x = x.astype(kind.dtype).astype(kind.parameter)
        if name != "bfloat16":
            x[1] = mean * kind.parameter(1 + 2.0 ** (2 - kind.digits))
        with np.errstate(over="ignore"):
            y = F.forward_inference(arranged(x, layout, kind), mean, var, weight, bias, eps=eps)
        dy = np.array([numbers(kind, rng, low, high) for _ in range(4)])
        dy = dy.astype(kind.dtype).astype(kind.parameter)
        dx = F.backward(
            arranged(dy, layout, kind),
            arranged(x, layout, kind),
            weight,
            running_mean=mean,
            running_var=var,
            statistics="running",
            eps=eps,
            output_mask=(True, False, False),
        ).grad_input
        got_y, got_dx = back(y, layout, 4), back(dx, layout, 4)
        for c in range(CHANNELS):
            gain = Decimal(float(weight[c])) * invstd_of(Decimal(float(var[c])), eps)
            case = f"mean {mean[c]}, var {var[c]}, weight {weight[c]}, bias {bias[c]}, eps {eps}"
            terms = [
                [(Decimal(float(v)) - Decimal(float(mean[c]))) * gain, Decimal(float(bias[c]))]
                for v in x[:, c]
            ]
            assert_close(kind, got_y[:, c], terms, f"{case}, x {x[:, c]}")
            terms = [[Decimal(float(v)) * gain] for v in dy[:, c]]
            assert_close(kind, got_dx[:, c], terms, f"{case}, dy {dy[:, c]}")


@pytest.mark.parametrize("eps", EPSILONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", KINDS)
def test_training_and_backward(name: str, layout: str, eps: float) -> None:
    kind = KINDS[name]
    rng = np.random.default_rng(11)
    m = 5
    # Of float64 the squares of deviations have to fit; of the others they always do.
    low, high = (-480, 480) if name == "float64" else (kind.smallest, kind.largest - 4)
    for _ in range(4):
        middle, weight = numbers(kind, rng, low, high), numbers(kind, rng, low, high)
        bias, deviation = numbers(kind, rng, low, high), abs(numbers(kind, rng, low, high))
        dy_size = abs(numbers(kind, rng, low, high))
        with np.errstate(over="ignore"):
            x = middle + deviation * rng.uniform(-1, 1, (m, CHANNELS)).astype(kind.parameter)
            x[:, ::7] = middle[::7]  # constant channels
            x = np.clip(x, np.finfo(kind.parameter).min / 8, np.finfo(kind.parameter).max / 8)
            x = x.astype(kind.dtype).astype(kind.parameter)
            dy = dy_size * rng.uniform(-1, 1, (m, CHANNELS))
            dy = dy.astype(kind.dtype).astype(kind.parameter)
        forward = F.forward_training(arranged(x, layout, kind), None, None, weight, bias, eps=eps)
        assert forward.nonfinite_channels == 0
        backward = F.backward(
            arranged(dy, layout, kind),
            arranged(x, layout, kind),
            weight,
            saved_mean=forward.saved_mean,
            saved_invstd=forward.saved_invstd,
            saved_mean_rest=forward.saved_mean_rest,
        )
        got_y, got_dx = back(forward.output, layout, m), back(backward.grad_input, layout, m)
        for c in range(CHANNELS):
            case = f"x {x[:, c]}, weight {weight[c]}, bias {bias[c]}, eps {eps}"
            values = [Decimal(float(v)) for v in x[:, c]]
            mean = total(values) / m if len(set(values)) > 1 else values[0]
            invstd = invstd_of(total((v - mean) ** 2 for v in values) / m, eps)
            gain = Decimal(float(weight[c])) * invstd
            offset = Decimal(float(bias[c]))
            # Sums of float64 are no more exact than its results: the channel's largest term counts.
            most = max(abs(v - mean) for v in values) * gain
            if name != "float64":
                most = Decimal(float(weight[c]))
            assert_close(
                kind,
                got_y[:, c],
                [[(v - mean) * gain, offset, most, -most] for v in values],
                case,
            )
            gradients = [Decimal(float(g)) for g in dy[:, c]]
            dot = total(g * (v - mean) for g, v in zip(gradients, values, strict=True)) / m
            largest = max(abs(g) for g in gradients) * gain
            terms = []
            for g, v in zip(gradients, values, strict=True):
                own = [g, -total(gradients) / m, -(v - mean) * invstd**2 * dot]
                terms.append([*(term * gain for term in own), largest, -largest])
            assert_close(kind, got_dx[:, c], terms, f"{case}, dy {dy[:, c]}")


# Cases that were wrong once, one by one.


@pytest.mark.parametrize(
    ("dtype", "value", "eps"),
    [
        (np.float32, 1.4e36, 1e-5),
        (ml_dtypes.bfloat16, 1.4e36, 1e-5),
        (np.float64, 8e305, 1e-5),
        (np.float32, 1e4, 1e-70),
        (np.float32, 5, 2.2e-308),
        (np.float32, 5, 1e90),
    ],
)
@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 400), (4, 3, 5, 5)])
def test_a_constant_channel_is_exactly_bias(
    dtype: Any, value: float, eps: float, shape: tuple[int, ...]
) -> None:
    x = np.full(shape, value, dtype)
    parameter = np.float64 if dtype is np.float64 else np.float32
    bias = np.array([0.3, -0.7, 0], parameter)
    expected = np.broadcast_to(bias.reshape(1, 3, *(1,) * (len(shape) - 2)).astype(dtype), shape)
    result = F.forward_training(x, None, None, None, bias, eps=eps)
    assert result.output.tobytes() == np.ascontiguousarray(expected).tobytes()
    assert result.nonfinite_channels == 0
    mean, zero = np.full(3, value, dtype).astype(parameter), np.zeros(3, parameter)
    inferred = F.forward_inference(x, mean, zero, None, bias, eps=eps)
    assert inferred.tobytes() == np.ascontiguousarray(expected).tobytes()


def test_a_tiny_invstd_is_no_division_by_zero() -> None:
    x = np.array([[1.0], [-2.0], [3e38]], np.float32)
    y = normalize_saved(x, np.zeros(1), np.array([1e-50]), bias=np.array([0.25], np.float32))
    np.testing.assert_array_equal(y, np.full((3, 1), 0.25, np.float32))


@pytest.mark.parametrize(
    ("x", "var", "weight", "expected"),
    [(3.2e38, 0.04, 0.1, 1.5998e38), (1.2e-42, 6.4e9, 1e30, 1.5e-17)],
)
def test_inference_at_either_end_of_the_range(
    x: float, var: float, weight: float, expected: float
) -> None:
    def one(value: float) -> np.ndarray:
        return np.array([value], np.float32)

    for size in (1, 400):
        values = np.full((1, 1, size), x, np.float32)
        y = F.forward_inference(values, one(0), one(var), one(weight), one(0))
        np.testing.assert_allclose(y, expected, rtol=2e-3)
        fused = F.forward_inference(
            values, one(0), one(var), one(weight), one(1e-20), activation="relu"
        )
        np.testing.assert_allclose(fused, expected, rtol=2e-3)


def test_bfloat16_gradients_of_a_vanishing_deviation() -> None:
    rng = np.random.default_rng(3)
    x = (rng.uniform(-1, 1, (8, 2)) * 2.0**-130).astype(ml_dtypes.bfloat16)
    dy = (rng.uniform(-1, 1, (8, 2)) * 2.0**-120).astype(ml_dtypes.bfloat16)
    forward = F.forward_training(x, eps=0.0)
    assert (forward.saved_invstd > 2.0**127).all()
    dx = F.backward(
        dy, x, saved_mean=forward.saved_mean, saved_invstd=forward.saved_invstd
    ).grad_input.astype(np.float64)
    assert np.isfinite(dx).all()
    np.testing.assert_allclose(dx.sum(axis=0), 0, atol=np.abs(dx).max() * 8 * 2.0**-8)


def test_float64_gradients_of_a_huge_deviation() -> None:
    rng = np.random.default_rng(4)
    x, dy = rng.standard_normal((50, 2)), rng.standard_normal((50, 2))
    near = F.forward_training(x, eps=0.0)
    far = F.forward_training(x * 2.0**465, eps=0.0)
    expected = F.backward(dy, x, saved_mean=near.saved_mean, saved_invstd=near.saved_invstd)
    got = F.backward(
        dy * 2.0**-106, x * 2.0**465, saved_mean=far.saved_mean, saved_invstd=far.saved_invstd
    )
    assert (got.grad_input * 2.0**571).tobytes() == expected.grad_input.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_passes_where_nothing_else_does(dtype: Any) -> None:
    mean = np.array([1e36 if dtype is np.float32 else 1e300, 0], dtype)
    x = np.array([[np.nan, np.nan], [np.inf, np.inf], [0, 0]], dtype)
    zero, one = np.zeros(2, dtype), np.ones(2, dtype)
    for weight, var in ((zero, one), (one, zero)):  # in either case 0 times the distance
        y = F.forward_inference(x, mean, var, weight, one, eps=0.0)
        np.testing.assert_array_equal(np.isnan(y), [[True, True], [True, True], [False, False]])
        np.testing.assert_array_equal(y[2], 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_bias_of_0_is_exactly_that(dtype: Any) -> None:
    x = np.full((4, 2), 1.4e36 if dtype is np.float32 else 8e305, dtype)
    y = F.forward_training(x, None, None, -np.ones(2, dtype), np.zeros(2, dtype)).output
    assert y.tobytes() == np.zeros((4, 2), dtype).tobytes()
