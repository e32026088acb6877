"""Activations, residuals, masks and lengths, in any combination, against longdouble.

Normalizing with a mask is normalizing the matrix (M, C) of the values that take part: that is what
the reference gets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import reference
from batchnorm import BatchNorm1d, Moments
from batchnorm import functional as F
from layouts import LAYOUTS, in_layout

Array = NDArray[Any]
SIZES = st.sampled_from([1, 2, 3, 5, 15, 16, 17, 35])


class Case(NamedTuple):
    x: Array  # (N, C, ...), NaN where masked
    grad: Array
    keep: NDArray[np.bool_]  # (N, ...)
    weight: Array
    bias: Array
    residual: Array | None
    slope: float | None  # of the activation; None: there is none
    options: dict[str, Any]  # what forward and backward are given

    def rows(self, tensor: Array) -> Array:
        """(M, C): what takes part."""
        rows: Array = np.moveaxis(tensor, 1, -1)[self.keep]
        return rows

    def masked(self, tensor: Array) -> Array:
        """What does not."""
        rows: Array = np.moveaxis(tensor, 1, -1)[~self.keep]
        return rows

    def gate(self, tensor: Array, output: Array) -> Array:
        """`tensor` through the activation, which let pass where `output` is not <= 0."""
        if self.slope is None:
            return tensor
        gated: Array = np.where(output <= 0, tensor * tensor.dtype.type(self.slope), tensor)
        return np.where(gated == 0, 0, gated).astype(tensor.dtype)


@st.composite
def cases(draw: st.DrawFn, lowest: int = 0) -> Case:
    """`lowest`: how many values of a channel take part at least."""
    rank = draw(st.integers(2, 5))
    shape = tuple(draw(SIZES) for _ in range(rank))
    while np.prod(shape) > 30_000:
        shape = tuple(max(1, size // 2) for size in shape)
    if np.prod(shape) < lowest * shape[1]:
        shape = (lowest, *shape[1:])
    dtype: Any = draw(st.sampled_from([np.float32, np.float64]))
    layout = draw(st.sampled_from(LAYOUTS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    positions = (shape[0], *shape[2:])
    options: dict[str, Any] = {}

    kind = draw(st.sampled_from(["no mask", "random", "all", "none", "lengths"]))
    keep = np.ones(positions, bool)
    if kind == "random":
        keep = rng.random(positions) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    elif kind == "none":
        keep[...] = False
    elif kind == "lengths" and rank == 3:
        lengths = rng.integers(0, shape[2] + 1, shape[0])
        keep = np.arange(shape[2]) < lengths[:, np.newaxis]
        options["lengths"] = lengths
    if np.count_nonzero(keep) < lowest:
        keep[...] = True
        options = {}
        kind = "all"
    if kind not in ("no mask", "lengths"):
        options["mask"] = keep if draw(st.booleans()) else keep.astype(np.uint8) * 7
    options["masked"] = draw(st.sampled_from(["zero", "pass"]))
    name = draw(st.sampled_from([None, "relu", "leaky_relu"]))
    slope = {None: None, "relu": 0.0, "leaky_relu": 0.3}[name]
    if name is not None:
        options["activation"] = name
        options["negative_slope"] = 0.3

    def tensor() -> Array:
        values = rng.standard_normal(shape).astype(dtype)
        np.moveaxis(values, 1, -1)[~keep] = np.nan  # must reach nothing
        return in_layout(values, layout)

    return Case(
        x=tensor(),
        grad=tensor(),
        keep=keep,
        weight=rng.uniform(-2, 2, shape[1]).astype(dtype),
        bias=rng.uniform(-2, 2, shape[1]).astype(dtype),
        residual=tensor() if draw(st.booleans()) else None,
        slope=slope,
        options=options,
    )


def expected_output(case: Case, mean: Array, invstd: Array) -> reference.Result:
    """Of the values that take part, (M, C)."""
    result = reference.normalize(case.rows(case.x), mean, invstd, case.weight, case.bias)
    values, scale = result.values, result.scale
    if case.residual is not None:
        added = case.rows(case.residual)
        values = values + added
        scale = reference.largest(scale, added, values)
    return reference.Result(case.gate(values, values), scale, result.rounded)


def assert_masked(case: Case, tensor: Array, passed: Array) -> None:
    if case.options["masked"] == "zero":
        assert np.all(case.masked(tensor) == 0)
    else:
        np.testing.assert_array_equal(case.masked(tensor), case.masked(passed))


def assert_bits(case: Case, bits: Array, output: Array) -> None:
    """As documented: little-endian bits in the order of memory, 0 where masked."""
    inner = np.moveaxis(~(output <= 0), 1, -1) & case.keep[..., np.newaxis]
    order = np.moveaxis(inner, -1, 1) if output.flags.c_contiguous else inner
    np.testing.assert_array_equal(
        np.unpackbits(bits, count=output.size, bitorder="little"), order.ravel()
    )
    assert bits.shape == ((output.size + 7) // 8,)


def assert_backward(
    case: Case, y: Array, mean: Array, invstd: Array, *, frozen: bool, **arguments: Any
) -> None:
    gradients = F.backward(
        case.grad, case.x, case.weight, grad_residual=True, **case.options, **arguments
    )
    through = case.gate(case.grad, y)
    np.testing.assert_array_equal(case.rows(gradients.grad_residual), case.rows(through))
    assert np.all(case.masked(gradients.grad_residual) == 0)
    assert_masked(case, gradients.grad_input, case.grad)
    if case.keep.any():
        truth = reference.backward(
            case.rows(through), case.rows(case.x), mean, invstd, case.weight, frozen=frozen
        )
        reference.assert_accurate(case.rows(gradients.grad_input), truth.grad_input, ulps=4)
        reference.assert_sums_accurate(gradients.grad_weight, gradients.grad_bias, truth)
    else:
        assert np.all(gradients.grad_weight == 0)
        assert np.all(gradients.grad_bias == 0)


@given(cases(lowest=2), st.booleans())
def test_training(case: Case, by_bits: bool) -> None:
    result = F.forward_training(
        case.x,
        weight=case.weight,
        bias=case.bias,
        residual=case.residual,
        activation_mask=True,
        **case.options,
    )
    count = int(case.keep.sum())
    assert result.values_per_channel == count
    mean, variance, _ = reference.moments(case.rows(case.x))
    invstd = reference.invstd_of(variance, 1e-5)
    reference.assert_accurate(
        case.rows(result.output), expected_output(case, mean, invstd), ulps=3.6
    )
    assert_masked(case, result.output, case.x)
    assert_bits(case, result.activation_mask, result.output)
    way = {"activation_mask": result.activation_mask} if by_bits else {"output": result.output}
    assert_backward(
        case,
        result.output,
        mean,
        invstd,
        frozen=False,
        saved_mean=result.saved_mean,
        saved_invstd=result.saved_invstd,
        **way,
    )


@given(cases(), st.booleans())
def test_inference_and_frozen_backward(case: Case, by_bits: bool) -> None:
    rng = np.random.default_rng(7)
    mean, variance = rng.uniform(0.5, 2, (2, case.x.shape[1])).astype(case.x.dtype)
    bits = np.full((case.x.size + 7) // 8, 0xAA, np.uint8)
    output = F.forward_inference(
        case.x,
        mean,
        variance,
        case.weight,
        case.bias,
        residual=case.residual,
        activation_mask=bits,
        **case.options,
    )
    invstd = reference.invstd_of(variance, 1e-5)
    if case.keep.any():
        reference.assert_accurate(case.rows(output), expected_output(case, mean, invstd), ulps=3.6)
    assert_masked(case, output, case.x)
    assert_bits(case, bits, output)
    way = {"activation_mask": bits} if by_bits else {"output": output}
    assert_backward(
        case,
        output,
        mean,
        invstd,
        frozen=True,
        statistics="running",
        running_mean=mean,
        running_var=variance,
        **way,
    )


@given(cases(lowest=2))
def test_in_place_and_channel_axis_give_the_same_bits(case: Case) -> None:
    def run(x: Array, residual: Array | None, out: Array | None, axis: Any = 1) -> Array:
        return F.forward_training(
            x,
            weight=case.weight,
            bias=case.bias,
            residual=residual,
            out=out,
            channel_axis=axis,
            **case.options,
        ).output

    expected = run(case.x, case.residual, None)
    place = case.x.copy("K")
    assert run(place, case.residual, place) is place
    assert place.tobytes() == expected.tobytes()
    if case.residual is not None:
        place = case.residual.copy("K")
        assert run(case.x, place, place) is place
        assert place.tobytes() == expected.tobytes()

    def last(tensor: Array | None) -> Any:
        return None if tensor is None else np.moveaxis(tensor, 1, -1)

    ambiguous = case.x.shape[1] == 1 or case.x[0, 0].size == 1  # both memory orders are the same

    moved = run(last(case.x), last(case.residual), None, -1)
    assert ambiguous or moved.tobytes() == last(expected).tobytes()

    arguments: dict[str, Any] = dict(
        case.options, statistics="running", running_mean=case.bias, running_var=abs(case.weight)
    )
    whole = F.backward(case.grad, case.x, output=expected, grad_residual=True, **arguments)
    place = case.grad.copy("K")
    other = F.backward(place, case.x, output=expected, grad_residual=place, **arguments)
    assert other.grad_residual is place
    assert place.tobytes() == whole.grad_residual.tobytes()
    assert other.grad_input.tobytes() == whole.grad_input.tobytes()
    turned = F.backward(
        last(case.grad),
        last(case.x),
        output=last(expected),
        grad_residual=True,
        channel_axis=-1,
        **arguments,
    )
    assert ambiguous or turned.grad_input.tobytes() == last(whole.grad_input).tobytes()
    assert turned.grad_residual.tobytes() == last(whole.grad_residual).tobytes()


@pytest.mark.parametrize("masked", ["zero", "pass"])
def test_all_masked_updates_nothing(masked: Any) -> None:
    x = np.full((2, 3, 4), np.nan)
    mean, variance, counter = np.full(3, 5.0), np.full(3, 6.0), np.array(7)
    result = F.forward_training(
        x, mean, variance, num_batches_tracked=counter, lengths=np.zeros(2, np.int64), masked=masked
    )
    assert result.values_per_channel == 0
    np.testing.assert_array_equal(result.output, x if masked == "pass" else np.zeros_like(x))
    assert (mean == 5).all()
    assert (variance == 6).all()
    assert counter == 7
    assert (result.saved_mean == 0).all()  # as of an empty batch
    assert (result.saved_invstd == 1).all()


def test_running_statistics_take_in_what_is_not_masked(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 6, 3))
    lengths = np.array([6, 0, 2, 3])
    mean, variance = np.zeros(3), np.ones(3)
    x[np.arange(6) >= lengths[:, np.newaxis]] = np.inf
    F.forward_training(x, mean, variance, lengths=lengths, channel_axis=-1, momentum=1.0)
    rows = np.concatenate([x[i, :n] for i, n in enumerate(lengths)])
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(variance, rows.var(axis=0, ddof=1), rtol=1e-14)


def test_an_image_mask_lies_in_the_order_of_positions(rng: np.random.Generator) -> None:
    """One mask, whatever the memory order of the tensor."""
    x = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
    mask = rng.random((2, 4, 5)) < 0.5
    one = F.forward_training(x, mask=mask).output
    other = F.forward_training(in_layout(x, "channels_last"), mask=mask).output
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(one[:, 0] != 0, mask)


def test_what_is_not_asked_for_is_none(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 3))
    result = F.forward_training(x, activation="relu", activation_mask=False)
    assert result.activation_mask is None
    assert result.values_per_channel == 4
    gradients = F.backward(
        x,
        x,
        saved_mean=result.saved_mean,
        saved_invstd=result.saved_invstd,
        activation="relu",
        output=result.output,
        grad_residual=False,
        output_mask=(False, False, False),
    )
    assert gradients == (None, None, None, None)


def test_destinations_are_returned(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 3, 5))
    bits = np.zeros(8, np.uint8)
    result = F.forward_training(x, activation="relu", activation_mask=bits)
    assert result.activation_mask is bits
    fresh = F.forward_training(x, activation="relu", activation_mask=True)
    np.testing.assert_array_equal(bits, fresh.activation_mask)
    assert bits.any()


@pytest.mark.parametrize(
    "convert",
    [
        list,
        tuple,
        lambda lengths: range(6, 0, -2),
        lambda lengths: lengths.astype(np.int32),
        lambda lengths: lengths.astype(np.uint8),
        lambda lengths: lengths.astype(np.uint64),
        lambda lengths: lengths.astype(">i8"),
        lambda lengths: np.repeat(lengths, 2)[::2],
        lambda lengths: [np.int16(each) for each in lengths],
    ],
    ids=["list", "tuple", "range", "int32", "uint8", "uint64", ">i8", "strided", "scalars"],
)
def test_lengths_are_integers_of_any_kind(convert: Callable[[Any], Any]) -> None:
    lengths = np.array([6, 4, 2])
    x = np.random.default_rng(0).normal(3, 2, (3, 2, 6))

    def everything(lengths: Any) -> bytes:
        layer = BatchNorm1d(2, dtype=np.float64)
        output, grad_input = layer(x, lengths=lengths), layer.backward(x)
        again = layer.recompute(x, lengths=lengths)
        mean, invstd = layer.saved_mean, layer.saved_invstd
        grads = F.backward(x, x, saved_mean=mean, saved_invstd=invstd, lengths=lengths)
        result = F.forward_training(x, lengths=lengths)
        moments = Moments.of(x, lengths=lengths)
        outputs = (output, grad_input, again, grads.grad_input, result.output, moments.m2)
        return b"".join(each.tobytes() for each in outputs)

    assert everything(convert(lengths)) == everything(lengths)


def test_an_empty_batch_has_an_empty_list_of_lengths() -> None:
    assert F.forward_training(np.ones((0, 2, 6)), lengths=[]).values_per_channel == 0


# Errors: what only Python can see. The library's own are in test_errors.


def tensors() -> dict[str, Any]:
    return {"x": np.ones((4, 3, 5), np.float32), "out": np.full((4, 3, 5), 7, np.float32)}


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"mask": np.ones((4, 3, 5), bool)}, ValueError,
     r"mask has shape \(4, 3, 5\), expected \(4, 5\)"),
    ({"mask": np.ones((5, 4), bool)}, ValueError, r"mask has shape \(5, 4\), expected \(4, 5\)"),
    ({"mask": np.ones((4, 5, 1), bool)}, ValueError, r"mask has shape \(4, 5, 1\), expected"),
    ({"mask": np.ones((5, 4), bool).T}, ValueError, r"mask has strides \(1, 4\), expected"),
    ({"mask": np.ones((4, 5))}, TypeError, "mask has dtype float64, expected bool or uint8"),
    ({"mask": [[True] * 5] * 4}, TypeError, "mask is of type list"),
    ({"lengths": np.ones(3, np.int64)}, ValueError, r"lengths has shape \(3,\), expected \(4,\)"),
    ({"lengths": np.ones((4, 1), np.int64)}, ValueError, r"lengths has shape \(4, 1\), expected"),
    ({"lengths": [1, 2, 3]}, ValueError, r"lengths has shape \(3,\), expected \(4,\)"),
    ({"lengths": 5}, ValueError, r"lengths has shape \(\), expected \(4,\)"),
    ({"lengths": np.ones(4)}, TypeError, "lengths has dtype float64, expected integers"),
    ({"lengths": [1, 2, 3, 4.0]}, TypeError, "lengths has dtype float64, expected integers"),
    ({"lengths": np.ones(4, bool)}, TypeError, "lengths has dtype bool, expected integers"),
    ({"lengths": [1, 2, 3, None]}, TypeError, "lengths has dtype object, expected integers"),
    ({"lengths": [2**63] * 4}, ValueError, "lengths has 9223372036854775808, expected no"),
    ({"lengths": np.ma.ones(4, np.int64)}, TypeError, "lengths is a masked array"),
    ({"activation": "gelu"}, ValueError, "'gelu', expected None or 'relu' or 'leaky_relu'"),
    ({"masked": "one"}, ValueError, "masked is 'one', expected 'zero' or 'pass'"),
    ({"negative_slope": "flat", "activation": "leaky_relu"}, TypeError, "str"),
    ({"residual": np.ones((4, 3, 6), np.float32)}, ValueError,
     r"residual has shape \(4, 3, 6\), expected \(4, 3, 5\)"),
    ({"residual": np.ones((4, 3, 5))}, TypeError, "residual has dtype float64, expected float32"),
    ({"residual": np.ones((4, 5, 3), np.float32).transpose(0, 2, 1)}, ValueError, "memory order"),
    ({"activation_mask": np.zeros(7, np.uint8)}, ValueError,
     r"activation_mask has shape \(7,\), expected \(8,\)"),
    ({"activation_mask": np.zeros(8, bool)}, TypeError, "has dtype bool, expected uint8"),
    ({"activation_mask": np.frombuffer(bytes(8), np.uint8)}, ValueError,
     "activation_mask is read-only"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "kind", "message"), WRONG, ids=lambda each: str(each)[:40])
def test_wrong_arguments(arguments: dict[str, Any], kind: Any, message: str) -> None:
    x, out = tensors().values()
    running = np.full((2, 3), 2, np.float32)
    forward: Any = F.forward_training
    inference: Any = F.forward_inference
    backward: Any = F.backward
    with pytest.raises(kind, match=message):
        forward(x, running[0], running[1], out=out, **arguments)
    with pytest.raises(kind, match=message):
        inference(x, running[0], running[1], out=out, **arguments)
    if "residual" in arguments:  # its gradient is wrong in the same way
        arguments = {"grad_residual": arguments["residual"]}
        message = message.replace("residual", "grad_residual")
    if message != "activation_mask is read-only":  # backward reads it
        arguments = {"activation": "relu", "output": out, **arguments}
        with pytest.raises(kind, match=message):
            backward(
                x,
                x,
                statistics="running",
                running_mean=running[0],
                running_var=running[1],
                grad_input=out,
                **arguments,
            )
    assert (out == 7).all()
    assert (running == 2).all()


def test_outputs_of_another_form_are_refused() -> None:
    x, _ = tensors().values()
    saved: dict[str, Any] = {"saved_mean": np.zeros(3), "saved_invstd": np.ones(3)}
    with pytest.raises(ValueError, match=r"output has shape \(4, 3, 4\), expected \(4, 3, 5\)"):
        F.backward(x, x, **saved, activation="relu", output=x[:, :, :4])
