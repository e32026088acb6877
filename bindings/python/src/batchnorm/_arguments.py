"""Fills in C's argument structs, each in one place for whole and split operations."""

from __future__ import annotations

from ctypes import sizeof

import numpy as np

from . import _lowlevel as c
from ._arrays import (
    FLOAT64,
    Array,
    Bits,
    ChannelAxis,
    Counter,
    Counters,
    Float64Array,
    Form,
    Lengths,
    Mask,
    MaybeArray,
    address,
    bits_address,
    bits_shape,
    counter_address,
    counters_address,
    destination,
    lengths_array,
    mask_address,
    tensor_address,
    vector_address,
)
from ._options import (
    ACTIVATIONS,
    MASKED,
    NONFINITES,
    ONE_VALUES,
    STATISTICS,
    VARIANCES,
    ActivationName,
    MaskedPolicy,
    NonfinitePolicy,
    OneValuePolicy,
    RunningVariance,
    StatisticsUsed,
    parse,
    real,
    triple,
)
from .errors import BatchNormValueError
from .memory import empty, empty_like

_TRAINING_SIZE = sizeof(c.bn_forward_training_args)
INFERENCE_SIZE = sizeof(c.bn_forward_inference_args)
_BACKWARD_SIZE = sizeof(c.bn_backward_args)
# Looked up once: an enum takes as long to give a member as an array to be checked.
_CUMULATIVE, _EXPONENTIAL = c.Averaging.CUMULATIVE, c.Averaging.EXPONENTIAL
_BATCH = c.Statistics.BATCH

_Forward = c.bn_forward_training_args | c.bn_forward_inference_args

# ---- forward ----


def training_args(
    form: Form,
    num_batches_tracked: Counter | None = None,
    skipped_batches: Counters | None = None,
    momentum: float | None = 0.1,
    running_variance: RunningVariance = "unbiased",
    one_value: OneValuePolicy = "error",
    nonfinite: NonfinitePolicy = "report",
) -> c.bn_forward_training_args:
    """Of a training forward: its policies and counters."""
    args = c.bn_forward_training_args(
        _TRAINING_SIZE,
        _CUMULATIVE if momentum is None else _EXPONENTIAL,
        parse(VARIANCES, "running_variance", running_variance),
        parse(ONE_VALUES, "one_value", one_value),
        parse(NONFINITES, "nonfinite", nonfinite),
    )
    if momentum is not None:
        args.momentum = real("momentum", momentum)
    if num_batches_tracked is not None:
        args.num_batches_tracked = counter_address(num_batches_tracked, "num_batches_tracked")
    if skipped_batches is not None:
        args.skipped_batches, args.skipped_batches_count = counters_address(
            skipped_batches, "skipped_batches", form.channels
        )
    return args


Saved = tuple[Float64Array, Float64Array, Float64Array | None]
"""What a training forward keeps for its backward: mean, invstd and the mean's rest."""
GivenSaved = tuple[Float64Array | None, Float64Array | None, Float64Array | None]
"""The same as a caller gives it: where it goes, or what a backward reads."""


def save(
    args: c.bn_forward_training_args,
    form: Form,
    input: Array,
    given: GivenSaved,
    positions: Positions,
) -> Saved:
    """Where mean, invstd and the mean's rest go; makes what is not given."""
    mean, invstd, rest = given
    mask, lengths, _ = positions
    # Of a batch without values, and one that is masked as a whole, the library may write none.
    written = form.elements and mask is None and lengths is None
    if mean is None:
        mean = np.empty(form.channels) if written else np.zeros(form.channels)
    if invstd is None:
        invstd = np.empty(form.channels) if written else np.ones(form.channels)
    if rest is None and input.dtype == FLOAT64:
        rest = np.empty(form.channels) if written else np.zeros(form.channels)
    args.saved_mean, args.saved_mean_count = vector_address(
        mean, "saved_mean", FLOAT64, written=True
    )
    args.saved_invstd, args.saved_invstd_count = vector_address(
        invstd, "saved_invstd", FLOAT64, written=True
    )
    if rest is not None:
        args.saved_mean_rest, args.saved_mean_rest_count = vector_address(
            rest, "saved_mean_rest", FLOAT64, written=True
        )
    return mean, invstd, rest


def saved(
    mean: Float64Array | None, invstd: Float64Array | None, rest: Float64Array | None
) -> c.bn_saved:
    """What a forward has kept, to be read."""
    return c.bn_saved(
        *vector_address(mean, "saved_mean", FLOAT64),
        *vector_address(invstd, "saved_invstd", FLOAT64),
        *vector_address(rest, "saved_mean_rest", FLOAT64),
    )


def running(
    args: _Forward,
    form: Form,
    running_mean: Array | None,
    running_var: Array | None,
    written: bool,
) -> None:
    """The running statistics."""
    args.running_mean, args.running_mean_count = vector_address(
        running_mean, "running_mean", form.parameter, written=written
    )
    args.running_var, args.running_var_count = vector_address(
        running_var, "running_var", form.parameter, written=written
    )


def affine(
    args: _Forward,
    form: Form,
    input: Array,
    weight: Array | None,
    bias: Array | None,
    out: Array | None,
) -> Array:
    """Input, weight, bias and output; makes the output if it is not given, and returns it."""
    args.input = address(input)
    args.input_count = args.output_count = form.elements
    out, args.output = destination(out, "out", form, input)
    args.weight, args.weight_count = vector_address(weight, "weight", form.parameter)
    args.bias, args.bias_count = vector_address(bias, "bias", form.parameter)
    return out


def wanted_bits(activation_mask: Bits | bool | None, form: Form) -> Bits | None:
    """The destination of an activation mask: made for True, None for False."""
    if isinstance(activation_mask, bool):
        return empty(bits_shape(form), np.uint8) if activation_mask else None
    return activation_mask


Epilogue = tuple[ActivationName | None, float, MaybeArray, MaybeArray]
"""What is done to normalized values: activation, negative_slope, and two arrays. Of a forward these
are residual and activation_mask; of a backward activation_mask and output, which tell where the
activation let pass."""
Positions = tuple[Mask | None, Lengths | None, MaskedPolicy]
"""Which positions take part: mask, lengths, and masked, what stands at the others."""


def extend_forward(
    args: _Forward, form: Form, channel_axis: ChannelAxis, epilogue: Epilogue, positions: Positions
) -> None:
    """Epilogue and positions of a forward."""
    activation, _, residual, activation_mask = epilogue
    mask, lengths, masked = positions
    if (
        activation is None
        and residual is None
        and activation_mask is None
        and mask is None
        and lengths is None
        and masked == "zero"
    ):
        return
    extend(args, form, channel_axis, epilogue, positions)
    set_residual(args, form, residual)
    if activation_mask is not None:
        args.activation_mask, args.activation_mask_count = bits_address(
            activation_mask, "activation_mask", form, written=True
        )


def set_residual(
    args: _Forward | c.bn_layer_forward_args, form: Form, residual: Array | None
) -> None:
    """The residual, if there is one."""
    if residual is not None:
        args.residual = tensor_address(residual, "residual", form)
        args.residual_count = form.elements


def extend(
    args: _Forward | c.bn_backward_args | c.bn_layer_forward_args,
    form: Form,
    channel_axis: ChannelAxis,
    epilogue: Epilogue,
    positions: Positions,
) -> None:
    """Activation and positions, which every struct that has them calls alike."""
    activation, negative_slope, _, _ = epilogue
    set_activation(args, activation, real("negative_slope", negative_slope))
    set_positions(args, form, channel_axis, positions)


def set_activation(
    args: _Forward | c.bn_backward_args | c.bn_layer_forward_args | c.bn_explain_args,
    activation: str | None,
    negative_slope: float,
) -> None:
    """The activation, with the number that its kind takes."""
    args.activation, parameter = parse(ACTIVATIONS, "activation", activation)
    if parameter is not None:
        setattr(args, parameter, negative_slope)


def set_positions(
    args: _Forward | c.bn_backward_args | c.bn_layer_forward_args | c.bn_positions,
    form: Form,
    channel_axis: ChannelAxis,
    positions: Positions,
) -> None:
    """Which positions take part."""
    mask, lengths, masked = positions
    args.masked = parse(MASKED, "masked", masked)
    if mask is not None:
        args.mask, args.mask_count = mask_address(mask, form, channel_axis)
    if lengths is not None:
        args.kept = numbers = lengths_array(lengths, form)  # C sees no more than its address
        args.lengths, args.lengths_count = address(numbers), numbers.size


# ---- backward ----


def backward_args(
    form: Form,
    grad_output: Array,
    input: Array,
    statistics: StatisticsUsed,
    saved: GivenSaved,
    running: tuple[Array | None, Array | None],
) -> c.bn_backward_args:
    """Of a backward: its tensors and statistics, `saved` as in `save`."""
    args = c.bn_backward_args(_BACKWARD_SIZE, parse(STATISTICS, "statistics", statistics))
    args.input_count = args.grad_output_count = form.elements
    args.input = address(input)
    args.grad_output = tensor_address(grad_output, "grad_output", form)
    if args.statistics == _BATCH:
        mean, invstd, rest = saved
        args.saved_mean, args.saved_mean_count = vector_address(mean, "saved_mean", FLOAT64)
        args.saved_invstd, args.saved_invstd_count = vector_address(invstd, "saved_invstd", FLOAT64)
        if rest is not None:
            args.saved_mean_rest, args.saved_mean_rest_count = vector_address(
                rest, "saved_mean_rest", FLOAT64
            )
    else:
        mean, var = running
        args.running_mean, args.running_mean_count = vector_address(
            mean, "running_mean", form.parameter
        )
        args.running_var, args.running_var_count = vector_address(
            var, "running_var", form.parameter
        )
    return args


def extend_backward(
    args: c.bn_backward_args,
    form: Form,
    channel_axis: ChannelAxis,
    epilogue: Epilogue,
    positions: Positions,
) -> None:
    """Epilogue and positions of the forward."""
    activation, _, activation_mask, output = epilogue
    mask, lengths, masked = positions
    if activation is None and mask is None and lengths is None and masked == "zero":
        return
    extend(args, form, channel_axis, epilogue, positions)
    if activation_mask is not None:
        args.activation_mask, args.activation_mask_count = bits_address(
            activation_mask, "activation_mask", form
        )
    if output is not None:
        args.output = tensor_address(output, "output", form)
        args.output_count = form.elements


Destinations = tuple[MaybeArray, MaybeArray, MaybeArray, Array | bool | None]
"""Where a caller wants grad_input, grad_weight, grad_bias and grad_residual."""


def gradients(
    args: c.bn_backward_args,
    form: Form,
    input: Array,
    output_mask: tuple[bool, bool, bool],
    given: Destinations,
) -> tuple[MaybeArray, MaybeArray, MaybeArray, MaybeArray]:
    """Where gradients go; makes those that are wanted and not given, and returns all."""
    grad_input, grad_weight, grad_bias, grad_residual = given
    want_input, want_weight, want_bias = triple("output_mask", output_mask)
    if want_input:
        grad_input, args.grad_input = destination(grad_input, "grad_input", form, input)
        args.grad_input_count = form.elements
    elif grad_input is not None:
        raise _unwanted("grad_input", output_mask)
    if want_weight:
        if grad_weight is None:
            grad_weight = np.empty(form.channels, form.parameter)
        args.grad_weight, args.grad_weight_count = vector_address(
            grad_weight, "grad_weight", form.parameter, written=True
        )
    elif grad_weight is not None:
        raise _unwanted("grad_weight", output_mask)
    if want_bias:
        if grad_bias is None:
            grad_bias = np.empty(form.channels, form.parameter)
        args.grad_bias, args.grad_bias_count = vector_address(
            grad_bias, "grad_bias", form.parameter, written=True
        )
    elif grad_bias is not None:
        raise _unwanted("grad_bias", output_mask)
    if isinstance(grad_residual, bool):
        grad_residual = empty_like(input) if grad_residual else None
    if grad_residual is not None:
        args.grad_residual = tensor_address(grad_residual, "grad_residual", form, written=True)
        args.grad_residual_count = form.elements
    return grad_input, grad_weight, grad_bias, grad_residual


def _unwanted(name: str, output_mask: tuple[bool, bool, bool]) -> BatchNormValueError:
    return BatchNormValueError(f"{name} was given, but output_mask {output_mask} skips it")
