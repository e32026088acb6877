"""Numbers from one end of a type's range to the other, against decimals of 60 digits.

Whatever the size of mean, deviation, weight, bias, epsilon and gradient: a result that fits is right,
one that does not is infinite, and nothing on the way overflows or vanishes before it.
"""

from __future__ import annotations

import decimal
from decimal import Decimal
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

from batchnorm import functional as F

decimal.getcontext().prec = 60
decimal.getcontext().Emax = 999999
decimal.getcontext().Emin = -999999

CHANNELS = 48


class Kind(NamedTuple):
    """A type of tensors: what the library computes in, and the units that a result may be off by."""

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
        exact = sum(parts, Decimal(0))
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
    return (sizes * rng.choice([-1, 1], CHANNELS)).astype(kind.parameter)


def arranged(values: np.ndarray, layout: str, kind: Kind) -> np.ndarray:
    """(M, C) as a tensor whose channels are reduced by columns, by rows, or channels last."""
    m = len(values)
    if layout == "columns":
        return values.astype(kind.dtype)
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
        return repeated[..., 0].T
    return np.moveaxis(tensor, 1, -1).reshape(m, CHANNELS)


def invstd_of(variance: Decimal, eps: float) -> Decimal:
    total = variance + Decimal(eps)
    return 1 / total.sqrt() if total > 0 else Decimal(0)


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
        forward = F.forward_training(
            arranged(x, layout, kind), None, None, weight, bias, eps=eps
        )
        assert forward.nonfinite_channels == 0
        backward = F.backward(
            arranged(dy, layout, kind),
            arranged(x, layout, kind),
            weight,
            saved_mean=forward.saved_mean,
            saved_invstd=forward.saved_invstd,
        )
        got_y, got_dx = back(forward.output, layout, m), back(backward.grad_input, layout, m)
        for c in range(CHANNELS):
            case = f"x {x[:, c]}, weight {weight[c]}, bias {bias[c]}, eps {eps}"
            values = [Decimal(float(v)) for v in x[:, c]]
            mean = sum(values) / m if len(set(values)) > 1 else values[0]
            invstd = invstd_of(sum((v - mean) ** 2 for v in values) / m, eps)
            gain = Decimal(float(weight[c])) * invstd
            offset = Decimal(float(bias[c]))
            assert_close(kind, got_y[:, c], [[(v - mean) * gain, offset] for v in values], case)
            gradients = [Decimal(float(g)) for g in dy[:, c]]
            dot = sum(g * (v - mean) for g, v in zip(gradients, values, strict=True)) / m
            largest = max(abs(g) for g in gradients) * gain
            terms = []
            for g, v in zip(gradients, values, strict=True):
                own = [g, -sum(gradients) / m, -(v - mean) * invstd**2 * dot]
                terms.append([*(term * gain for term in own), largest, -largest])
            assert_close(kind, got_dx[:, c], terms, f"{case}, dy {dy[:, c]}")
