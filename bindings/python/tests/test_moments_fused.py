"""Split operations with activation, residual and masks: what the whole ones do, bit for bit."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import batchnorm
from batchnorm import BatchNormError, GradientSums, Moments, Status
from batchnorm import functional as F
from batchnorm.moments import backward_apply, backward_reduce, normalize, normalize_saved
from layouts import in_layout

Array = NDArray[Any]
CHANNELS = 5
DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
ORDERS = ["contiguous", "channels_last", "last axis"]
FUSIONS = ["nothing", "relu", "leaky_relu", "residual", "residual and relu"]
POSITIONS = ["all", "mask", "lengths"]


class Case(NamedTuple):
    x: Array
    dy: Array
    weight: Array
    bias: Array
    channel_axis: Any
    positions: dict[str, Any]  # mask or lengths
    activation: dict[str, Any]
    residual: Array | None

    def both(self) -> dict[str, Any]:
        """What forward and backward are told alike."""
        return {"channel_axis": self.channel_axis, **self.positions, **self.activation}

    def part(self, rows: slice) -> Case:
        positions = {
            name: value[rows] if isinstance(value, np.ndarray) else value
            for name, value in self.positions.items()
        }
        residual = None if self.residual is None else self.residual[rows]
        return self._replace(
            x=self.x[rows], dy=self.dy[rows], positions=positions, residual=residual
        )

    def moments(self) -> Moments:
        where = {name: self.positions[name] for name in self.positions if name != "masked"}
        return Moments.of(self.x, channel_axis=self.channel_axis, **where)


def case(
    dtype: Any, order: str, fusion: str, positions: str, shape: tuple[int, ...] = (6, CHANNELS, 37)
) -> Case:
    rng = np.random.default_rng(11)
    x, dy, residual = rng.normal(2, 3, (3, *shape))
    where: dict[str, Any] = {}
    if positions != "all":
        lengths = np.array([37, 0, 17, 30, 1, 36])
        kept = np.arange(37) < lengths[:, np.newaxis]
        np.moveaxis(x, 1, -1)[~kept] = np.nan
        where = {"lengths": lengths} if positions == "lengths" else {"mask": kept}
        where["masked"] = "pass"

    def tensor(values: Array) -> Array:
        if order == "last axis":
            return np.ascontiguousarray(np.moveaxis(values, 1, -1)).astype(dtype)
        return in_layout(values.astype(dtype), order)

    parameter = dtype if dtype in (np.float32, np.float64) else np.float32
    weight, bias = rng.standard_normal((2, shape[1])).astype(parameter)
    activation: dict[str, Any] = {}
    if "relu" in fusion:
        activation = {"activation": fusion.removeprefix("residual and "), "negative_slope": 0.25}
    return Case(
        tensor(x),
        tensor(dy),
        weight,
        bias,
        -1 if order == "last axis" else 1,
        where,
        activation,
        tensor(residual) if "residual" in fusion else None,
    )


def running(case: Case) -> dict[str, Any]:
    return {
        "running_mean": np.full_like(case.weight, 0.5),
        "running_var": np.full_like(case.weight, 2),
        "num_batches_tracked": np.zeros(1, np.int64),
        "skipped_batches": np.zeros((2, case.weight.size), np.int64),
    }


def same(got: Any, expected: Any) -> None:
    """The same bits in every member of two results."""
    for name in expected._fields:
        one, other = getattr(got, name), getattr(expected, name)
        if isinstance(other, np.ndarray):
            assert (one.dtype, one.shape, one.strides) == (other.dtype, other.shape, other.strides)
            assert one.tobytes() == other.tobytes(), name
        else:
            assert one == other, name


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_part_is_the_whole(dtype: Any, order: str, fusion: str, positions: str) -> None:
    it = case(dtype, order, fusion, positions)
    forward: Any = {"residual": it.residual, "activation_mask": True, **it.both()}
    kept, again = running(it), running(it)
    rest, rest_again = np.zeros((2, CHANNELS))
    whole = F.forward_training(
        it.x, weight=it.weight, bias=it.bias, saved_mean_rest=rest, **kept, **forward
    )
    moments = it.moments()
    part = normalize(
        it.x,
        moments,
        weight=it.weight,
        bias=it.bias,
        saved_mean_rest=rest_again,
        **again,
        **forward,
    )
    same(part, whole)
    assert whole.values_per_channel == moments.count > 1
    assert part.saved_mean_rest is rest_again
    for name, statistic in kept.items():
        np.testing.assert_array_equal(again[name], statistic)

    bits = np.zeros_like(whole.activation_mask)
    recomputed = normalize_saved(
        it.x,
        whole.saved_mean,
        whole.saved_invstd,
        it.weight,
        it.bias,
        saved_mean_rest=whole.saved_mean_rest,
        **{**forward, "activation_mask": bits},
    )
    assert recomputed.tobytes() == whole.output.tobytes()
    np.testing.assert_array_equal(bits, whole.activation_mask)

    residual = it.residual is not None
    mean: Any = {"saved_mean": whole.saved_mean, "saved_mean_rest": whole.saved_mean_rest}
    saved: Any = {**mean, "saved_invstd": whole.saved_invstd, "grad_residual": residual}
    passed: Any
    for passed in ({"activation_mask": whole.activation_mask}, {"output": whole.output}):
        gradients = F.backward(it.dy, it.x, it.weight, **saved, **it.both(), **passed)
        reduced = {name: value for name, value in it.both().items() if name != "masked"}
        sums = backward_reduce(it.dy, it.x, **mean, **reduced, **passed)
        assert sums.count == moments.count
        applied = backward_apply(it.dy, it.x, sums, it.weight, **saved, **it.both(), **passed)
        assert (applied.grad_residual is not None) == residual
        same(applied, gradients)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_frozen_halves_through_an_activation(activation: Any) -> None:
    it = case(np.float32, "contiguous", activation, "all")
    statistics: Any = {
        "running_mean": np.full_like(it.weight, 0.5),
        "running_var": np.full_like(it.weight, 2),
    }
    bits = np.zeros((it.x.size + 7) // 8, np.uint8)
    passed: Any = {"weight": it.weight, "bias": it.bias, "activation_mask": bits}
    F.forward_inference(it.x, **statistics, **passed, **it.activation)
    kind: Any = {"statistics": "running", "activation_mask": bits, **it.activation}
    sums = backward_reduce(it.dy, it.x, running_mean=statistics["running_mean"], **kind)
    same(
        backward_apply(it.dy, it.x, sums, it.weight, **statistics, **kind),
        F.backward(it.dy, it.x, it.weight, **statistics, **kind),
    )


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_pieces_of_the_whole_have_its_bits(dtype: Any, fusion: str) -> None:
    """Cut as batchnorm.h says, several parts are the whole, too."""
    it = case(dtype, "contiguous", fusion, "all", (20, 2, 64, 64))
    plan = batchnorm.explain(it.x.shape, dtype=np.dtype(dtype))
    rows = [slice(at, at + plan.piece_rows) for at in range(0, len(it.x), plan.piece_rows)]
    parts = [it.part(each) for each in rows]
    assert len(parts) > 1
    assert plan.piece_values == 64 * 64
    for part in parts:
        own = batchnorm.explain(part.x.shape, dtype=np.dtype(dtype))
        assert own.piece_rows == len(part.x)

    rest = np.zeros(2)
    options: Any = {"weight": it.weight, "bias": it.bias, "saved_mean_rest": rest, **it.both()}
    whole = F.forward_training(it.x, residual=it.residual, **options)
    moments = parts[0].moments()
    for part in parts[1:]:
        moments.merge(part.moments())
    results = [normalize(part.x, moments, residual=part.residual, **options) for part in parts]
    assert b"".join(each.output.tobytes() for each in results) == whole.output.tobytes()
    np.testing.assert_array_equal(results[-1].saved_invstd, whole.saved_invstd)

    mean: Any = {"saved_mean": whole.saved_mean, "saved_mean_rest": rest}
    residual = it.residual is not None
    saved: Any = {**mean, "saved_invstd": whole.saved_invstd, "grad_residual": residual}
    expected = F.backward(it.dy, it.x, it.weight, output=whole.output, **saved, **it.both())
    sums = None
    for part, each in zip(parts, results, strict=True):
        own_sums = backward_reduce(part.dy, part.x, output=each.output, **mean, **it.both())
        sums = own_sums if sums is None else sums + own_sums
    assert sums is not None
    applied = [
        backward_apply(part.dy, part.x, sums, part.weight, output=each.output, **saved, **it.both())
        for part, each in zip(parts, results, strict=True)
    ]
    for name in ("grad_input", "grad_residual"):
        if getattr(expected, name) is not None:
            joined = b"".join(getattr(each, name).tobytes() for each in applied)
            assert joined == getattr(expected, name).tobytes()
    np.testing.assert_array_equal(applied[0].grad_weight, expected.grad_weight)
    np.testing.assert_array_equal(applied[0].grad_bias, expected.grad_bias)


def test_float64_gradients_need_the_rest() -> None:
    """Where the mean is large beside the deviation; both halves hand it on."""
    rng = np.random.default_rng(3)
    x, dy = 1e9 + rng.standard_normal((64, 3, 9)), rng.standard_normal((64, 3, 9))
    whole = F.forward_training(x)
    assert whole.saved_mean_rest is not None
    saved: Any = {"saved_mean": whole.saved_mean, "saved_invstd": whole.saved_invstd}
    without = backward_reduce(dy, x, saved_mean=whole.saved_mean)
    rest: Any = {"saved_mean_rest": whole.saved_mean_rest}
    sums = backward_reduce(dy, x, saved_mean=whole.saved_mean, **rest)
    assert (sums.sum_dy_xmu != without.sum_dy_xmu).all()
    assert (
        backward_apply(dy, x, sums, **saved).grad_input.tobytes()
        != backward_apply(dy, x, sums, **saved, **rest).grad_input.tobytes()
    )


# ---- destinations ----


def test_destinations_are_written_and_returned() -> None:
    it = case(np.float32, "contiguous", "residual and relu", "all")
    forward: Any = {
        "out": np.empty_like(it.x),
        "saved_mean": np.empty(CHANNELS),
        "saved_invstd": np.empty(CHANNELS),
        "saved_mean_rest": np.empty(CHANNELS),
        "activation_mask": np.empty((it.x.size + 7) // 8, np.uint8),
    }
    result = normalize(it.x, it.moments(), residual=it.residual, **it.activation, **forward)
    forward["output"] = forward.pop("out")
    for name, destination in forward.items():
        assert getattr(result, name) is destination, name
    same(
        result,
        F.forward_training(
            it.x,
            residual=it.residual,
            saved_mean_rest=np.empty(CHANNELS),
            activation_mask=True,
            **it.activation,
        ),
    )

    backward: Any = {
        "grad_input": np.empty_like(it.x),
        "grad_weight": np.empty_like(it.weight),
        "grad_bias": np.empty_like(it.bias),
        "grad_residual": np.empty_like(it.x),
    }
    passed: Any = {"activation_mask": result.activation_mask, **it.activation}
    sums = backward_reduce(it.dy, it.x, saved_mean=result.saved_mean, **passed)
    saved: Any = {"saved_mean": result.saved_mean, "saved_invstd": result.saved_invstd}
    gradients = backward_apply(it.dy, it.x, sums, it.weight, **saved, **passed, **backward)
    for name, destination in backward.items():
        assert getattr(gradients, name) is destination, name
    same(gradients, F.backward(it.dy, it.x, it.weight, grad_residual=True, **saved, **passed))


def test_in_place() -> None:
    it = case(np.float32, "contiguous", "residual and relu", "all")
    assert it.residual is not None
    expected = normalize(it.x, it.moments(), residual=it.residual, **it.activation).output
    out = it.residual.copy()
    normalize(it.x, it.moments(), residual=out, out=out, **it.activation)
    np.testing.assert_array_equal(out, expected)


def test_a_part_that_is_masked_as_a_whole() -> None:
    x, mask = np.array([[[1.0, 3.0]], [[5.0, 7.0]]]), np.array([[True, True], [False, False]])
    moments = Moments.none(1).merge(Moments.of(x[:1], mask=mask[:1]))
    moments.merge(Moments.of(x[1:], mask=mask[1:]))
    whole = F.forward_training(x, mask=mask, masked="pass", activation="relu")
    for row in (slice(0, 1), slice(1, 2)):
        part = normalize(x[row], moments, mask=mask[row], masked="pass", activation="relu")
        assert part.values_per_channel == whole.values_per_channel == 2
        np.testing.assert_array_equal(part.output, whole.output[row])
        np.testing.assert_array_equal(part.saved_invstd, whole.saved_invstd)


# ---- nothing is left out ----


def names(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters)


def test_they_take_what_the_whole_operations_take() -> None:
    saved = {"saved_mean", "saved_invstd", "saved_mean_rest"}
    statistics = {"running_mean", "running_var", "eps"}
    not_reduced = {
        *("weight", "saved_invstd", "running_var", "eps", "output_mask", "masked"),
        *("grad_input", "grad_weight", "grad_bias", "grad_residual"),
    }
    assert names(normalize) == names(F.forward_training) | {"moments"}
    assert names(normalize_saved) == (names(F.forward_inference) - statistics) | saved
    assert names(backward_reduce) == names(F.backward) - not_reduced
    assert names(backward_apply) == names(F.backward) | {"sums"}


def test_moments_and_sums_are_made_by_keyword() -> None:
    """By position, and in C's order, mean_rest would be taken for m2: variance 0."""
    mean, rest, m2 = np.array([[2.0], [0.0], [8.0]])
    with pytest.raises(TypeError, match="positional"):
        Moments(4, mean, rest, m2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional"):
        GradientSums(4, mean, m2)  # type: ignore[call-arg]
    assert Moments(count=4, mean=mean, mean_rest=rest, m2=m2).variance().tolist() == [2]
    assert Moments(count=4, mean=mean, m2=m2).mean_rest.tolist() == [0]


# ---- bad input ----


def test_what_they_refuse() -> None:
    x = np.ones((2, 3, 4), np.float32)
    one: Any = {"saved_mean": np.zeros(3), "saved_invstd": np.ones(3)}
    moments, sums = Moments.of(x), GradientSums(count=8, sum_dy=np.zeros(3), sum_dy_xmu=np.zeros(3))
    out = np.full_like(x, 7)
    calls: list[Callable[..., Any]] = [
        lambda **options: normalize(x, moments, out=out, **options),
        lambda **options: normalize_saved(x, *one.values(), out=out, **options),
        lambda **options: backward_reduce(x, x, saved_mean=one["saved_mean"], **options),
        lambda **options: backward_apply(x, x, sums, **one, grad_input=out, **options),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="activation is 'gelu'"):
            call(activation="gelu")
        with pytest.raises(BatchNormError, match=r"negative_slope is -1") as failure:
            call(activation="leaky_relu", negative_slope=-1.0, **passing(call, calls, x))
        assert failure.value.status is Status.NEGATIVE_SLOPE
        with pytest.raises(ValueError, match=r"activation_mask has shape \(2,\)"):
            call(activation="relu", activation_mask=np.zeros(2, np.uint8))
        with pytest.raises(ValueError, match=r"saved_mean_rest has shape \(3, 1\)"):
            call(saved_mean_rest=np.zeros((3, 1)))
    for call in calls[:2]:
        with pytest.raises(ValueError, match="residual has shape"):
            call(residual=x[:1])
    for call in calls[2:]:
        with pytest.raises(ValueError, match="activation_mask"):
            call(activation="relu")
        with pytest.raises(ValueError, match="output has shape"):
            call(activation="relu", output=x[:1])
    with pytest.raises(TypeError, match="activation_mask"):
        calls[1](activation_mask=True)  # an array is all that it returns
    for name in ("grad_weight", "grad_bias"):
        with pytest.raises(ValueError, match=f"{name} was given, but output_mask"):
            calls[3](output_mask=(True, False, False), **{name: np.zeros(3, np.float32)})
        with pytest.raises(TypeError, match=f"{name} has dtype float64, expected float32"):
            calls[3](**{name: np.zeros(3)})
    assert (out == 7).all()


def passing(call: Any, calls: list[Any], x: Array) -> dict[str, Any]:
    """What a backward through an activation needs besides."""
    return {"output": x} if call in calls[2:] else {}
