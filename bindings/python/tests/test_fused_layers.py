"""Layers with activation, residual and mask, and the kinds of pass, against the functions."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d, BatchNormError, Status
from batchnorm import functional as F
from test_fused import Case, cases


def layer_for(case: Case, **options: Any) -> Any:
    kind = (BatchNorm1d, BatchNorm1d, BatchNorm2d, BatchNorm3d)[case.x.ndim - 2]
    layer = kind(case.x.shape[1], dtype=case.x.dtype, **options)
    layer.weight = case.weight
    layer.bias = case.bias
    return layer


def assert_same_bits(*pairs: tuple[Any, Any]) -> None:
    for one, other in pairs:
        if other is None:
            assert one is None
        else:
            assert one.tobytes() == other.tobytes()


@given(cases(lowest=2))
def test_training_is_what_the_functions_do(case: Case) -> None:
    layer = layer_for(case)
    output = layer(case.x, residual=case.residual, **case.options)
    mean, variance = np.zeros_like(case.bias), np.ones_like(case.bias)
    result = F.forward_training(
        case.x,
        mean,
        variance,
        case.weight,
        case.bias,
        residual=case.residual,
        activation_mask=True,
        **case.options,
    )
    grad = layer.backward(case.grad)
    gradients = F.backward(
        case.grad,
        case.x,
        case.weight,
        saved_mean=result.saved_mean,
        saved_invstd=result.saved_invstd,
        saved_mean_rest=result.saved_mean_rest,
        activation_mask=result.activation_mask,
        grad_residual=case.residual is not None,
        **case.options,
    )
    assert_same_bits(
        (output, result.output),
        (layer.running_mean, mean),
        (layer.running_var, variance),
        (grad, gradients.grad_input),
        (layer.grad_weight, gradients.grad_weight),
        (layer.grad_bias, gradients.grad_bias),
        (layer.grad_residual, gradients.grad_residual),
    )


@given(cases())
def test_evaluation_is_what_the_functions_do(case: Case) -> None:
    layer = layer_for(case).eval()
    layer.running_mean = mean = case.bias
    layer.running_var = variance = abs(case.weight)
    output = layer(case.x, residual=case.residual, **case.options)
    expected = F.forward_inference(
        case.x, mean, variance, case.weight, case.bias, residual=case.residual, **case.options
    )
    grad = layer.backward(case.grad, grad_residual=True)
    gradients = F.backward(
        case.grad,
        case.x,
        case.weight,
        statistics="running",
        running_mean=mean,
        running_var=variance,
        output=expected,
        grad_residual=True,
        **case.options,
    )
    assert_same_bits(
        (output, expected),
        (grad, gradients.grad_input),
        (layer.grad_weight, gradients.grad_weight),
        (layer.grad_bias, gradients.grad_bias),
        (layer.grad_residual, gradients.grad_residual),
    )


@given(cases(lowest=2))
def test_passes_that_do_not_count(case: Case) -> None:
    layer = layer_for(case)
    arguments: dict[str, Any] = dict(case.options, residual=case.residual)
    before = layer.state_dict()
    output = layer(case.x, update_running=False, **arguments)
    for name, value in layer.state_dict().items():
        assert_same_bits((value, before[name]))

    assert_same_bits((layer(case.x, **arguments), output))
    assert layer.num_batches_tracked == 1
    saved, state = layer.saved_mean, layer.to_bytes()
    assert_same_bits((layer.recompute(case.x, **arguments), output), (layer.saved_mean, saved))
    assert layer.to_bytes() == state
    grad = layer.backward(case.grad)

    layer.eval()  # a recomputation goes by what the forward did, not by the mode
    place = np.full_like(case.x, 9)
    assert layer.recompute(case.x, place, **arguments) is place
    assert_same_bits((place, output), (layer.backward(case.grad), grad))


def test_recomputing_frees_the_memory_between(rng: np.random.Generator) -> None:
    """Activation checkpointing: forward in place, and later the same once more."""
    x = rng.standard_normal((4, 3, 5, 5)).astype(np.float32)
    layer, other = BatchNorm2d(3), BatchNorm2d(3)
    place = x.copy()
    layer(place, place, activation="relu")
    assert_same_bits((layer.recompute(x, activation="relu"), other(x, activation="relu")))
    assert_same_bits((layer.backward(x), other.backward(x)))
    assert layer.num_batches_tracked == 1


def test_channel_axis_and_lengths(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 6, 3))
    lengths = np.array([6, 2])
    one = BatchNorm1d(3, dtype=np.float64, channel_axis=-1)
    other = BatchNorm1d(3, dtype=np.float64, channel_axis=-1)
    output = one(x, lengths=lengths)
    assert_same_bits((output, other(x, mask=np.arange(6) < lengths[:, np.newaxis])))
    assert np.all(output[1, 2:] == 0)
    assert_same_bits((one.backward(x), other.backward(x)))


def test_the_residual_and_its_gradient_in_place(rng: np.random.Generator) -> None:
    x, residual, grad = rng.standard_normal((3, 4, 3, 5, 5)).astype(np.float32)
    layer = BatchNorm2d(3)
    expected = layer(x, residual=residual, activation="relu")
    expected_grad = layer.backward(grad)
    expected_residual = layer.grad_residual
    place = residual.copy()
    assert layer(x, place, residual=place, activation="relu") is place
    assert_same_bits((place, expected))
    place = grad.copy()
    assert_same_bits((layer.backward(place, grad_residual=place), expected_grad))
    assert layer.grad_residual is place
    assert_same_bits((place, expected_residual))

    layer.backward(grad, grad_residual=False)
    assert layer.grad_residual is None
    layer(x)
    layer.backward(grad)
    assert layer.grad_residual is None  # that forward had none


def test_copies_are_complete(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 3))
    layer = BatchNorm1d(3, dtype=np.float64)
    layer(x, residual=x)
    layer.backward(x)
    other = copy.deepcopy(layer)
    assert other.grad_residual is None
    assert_same_bits((other(x, activation="relu"), layer(x, activation="relu")))


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"mask": np.ones((4, 3, 5), bool)}, ValueError,
     r"mask has shape \(4, 3, 5\), expected \(4, 5\)"),
    ({"lengths": np.ones(3, np.int64)}, ValueError, r"lengths has shape \(3,\), expected \(4,\)"),
    ({"lengths": np.array([5, 5, 5, 6])}, ValueError, r"lengths\[3\].* 6"),
    ({"mask": np.ones((4, 5), bool), "lengths": np.full(4, 5)}, ValueError, "mask and lengths"),
    ({"residual": np.ones((4, 3, 5))}, TypeError, "residual has dtype float64, expected float32"),
    ({"activation": "gelu"}, ValueError, "'gelu', expected None or 'relu' or 'leaky_relu'"),
    ({"activation": "leaky_relu", "negative_slope": -1.0}, ValueError, "-1"),
    ({"masked": "one"}, ValueError, "masked is 'one', expected 'zero' or 'pass'"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "kind", "message"), WRONG, ids=lambda each: str(each)[:40])
def test_wrong_arguments(
    arguments: dict[str, Any], kind: Any, message: str, rng: np.random.Generator
) -> None:
    x = rng.standard_normal((4, 3, 5)).astype(np.float32)
    layer = BatchNorm1d(3)
    layer(x)
    grad = layer.backward(x)
    state, out = layer.to_bytes(), np.full_like(x, 7)
    for call in (layer, layer.recompute):
        with pytest.raises(kind, match=message):
            call(x + 1, out, **arguments)
    assert layer.to_bytes() == state
    assert (out == 7).all()
    assert_same_bits((layer.backward(x), grad))  # still of the forward that succeeded


def test_wrong_recomputations(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 3, 5)).astype(np.float32)
    layer = BatchNorm1d(3)
    with pytest.raises(BatchNormError) as raised:
        layer.recompute(x)
    assert raised.value.status is Status.NO_FORWARD
    layer(x)
    with pytest.raises(BatchNormError) as raised:
        layer.recompute(x[:2].copy())
    assert raised.value.status is Status.LAYER_MISMATCH
    with pytest.raises(BatchNormError, match=r"by 0\.0, expected that of the last forward, 1\.0"):
        layer.recompute(x, activation="relu")
    call: Any = layer.recompute
    with pytest.raises(TypeError, match="update_running"):
        call(x, update_running=False)
    with pytest.raises(ValueError, match=r"grad_residual has shape \(4, 3\), expected \(4, 3, 5\)"):
        layer.backward(x, grad_residual=x[:, :, 0].copy())
