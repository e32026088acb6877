"""The C library's three operations on plain PyTorch tensors: no autograd, no dispatcher.

Every call has been found fit (_fitness) and its tensors made dense (_dense), so that all that C
sees is CPU memory of the input's dtype, sizes and memory order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import c_int64, sizeof
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.profiler import record_function

from .. import _lowlevel as c
from .._arguments import set_activation
from ._call import SAVED, BackwardCall, Call, Gradients, vector_dtype
from ._dense import with_wide_statistics
from ._memory import empty_like
from ._private import is_profiled
from ._running import Skipped, narrow

_CODES = {
    torch.float32: c.Dtype.FLOAT32,
    torch.float64: c.Dtype.FLOAT64,
    torch.bfloat16: c.Dtype.BFLOAT16,
    torch.float16: c.Dtype.FLOAT16,
}
_TRAINING_SIZE = sizeof(c.bn_forward_training_args)
_INFERENCE_SIZE = sizeof(c.bn_forward_inference_args)
_BACKWARD_SIZE = sizeof(c.bn_backward_args)


class _Form(NamedTuple):
    """What the C library has to know about a tensor; all tensors of one call share it."""

    problem: c.bn_problem  # constant, so that threads may share it
    elements: int
    channels: int


@lru_cache(1024)
def _form(shape: torch.Size, strides: tuple[int, ...], dtype: torch.dtype) -> _Form:
    layout = c.Layout.NCHW
    if not _is_dense(shape, strides):
        layout = c.Layout.NHWC
        assert _is_dense((shape[0], *shape[2:], shape[1]), (strides[0], *strides[2:], strides[1]))
    problem = c.bn_problem(
        sizeof(c.bn_problem), _CODES[dtype], layout, len(shape), (c_int64 * 5)(*shape)
    )
    return _Form(problem, shape.numel(), shape[1])


def _is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Contiguous, as PyTorch sees it: where there is nothing to step to, any stride will do."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if stride != expected and size != 1:
            return False
        expected *= size
    return True


def _run(function: Callable[..., Any], problem: c.bn_problem, args: Any) -> None:
    """Calls C, as an event of the function's name where a profiler is at work."""
    if not is_profiled():
        function(problem, args)
        return
    with record_function(function.__name__):
        function(problem, args)


def _set_saved(args: Any, saved: Tensor, channels: int) -> None:
    """What a forward saves, or what backward takes from it: a row of each."""
    args.saved_mean = address = saved.data_ptr()
    args.saved_mean_rest = address + 8 * channels
    args.saved_invstd = address + 16 * channels
    args.saved_mean_count = args.saved_mean_rest_count = args.saved_invstd_count = channels


def _set_forward(args: Any, call: Call) -> tuple[_Form, Tensor]:
    """What both forwards have in common. Returns the output as well, which C is to write."""
    input, weight, bias, mean, var, _, _, eps, residual, activation, negative_slope, _ = call
    form = _form(input.shape, input.stride(), input.dtype)
    _, elements, channels = form
    args.epsilon = eps
    args.input = input.data_ptr()
    args.input_count = args.output_count = elements
    if weight is not None:
        args.weight, args.weight_count = weight.data_ptr(), channels
    if bias is not None:
        args.bias, args.bias_count = bias.data_ptr(), channels
    if mean is not None and var is not None:
        args.running_mean, args.running_var = mean.data_ptr(), var.data_ptr()
        args.running_mean_count = args.running_var_count = channels
    if residual is not None:
        args.residual, args.residual_count = residual.data_ptr(), elements
    if activation is not None:
        set_activation(args, activation, negative_slope)
    output = empty_like(input)
    args.output = output.data_ptr()
    return form, output


def forward_training(call: Call) -> tuple[Tensor, Tensor]:
    """The output, and the saved mean, its rest and invstd as one float64 tensor (3, C).

    Running statistics and `num_batches_tracked` are updated in place; `momentum` None is cumulative
    averaging, by the latter and by the batches that a channel had to skip. Running statistics may
    have a half input's dtype. One that its dtype cannot hold keeps its channel's two as they were,
    as in the library where float32 cannot.
    """
    args = c.bn_forward_training_args(_TRAINING_SIZE)
    wide = with_wide_statistics(call)
    form, output = _set_forward(args, wide)
    channels, counter, momentum = form.channels, call.num_batches_tracked, call.momentum
    saved = torch.empty((SAVED, channels), dtype=torch.float64, device="cpu")
    _set_saved(args, saved, channels)
    if momentum is None and counter is not None:
        args.averaging = c.Averaging.CUMULATIVE
    else:
        args.momentum = momentum or 0.0  # PyTorch's, where it cannot count either
    skipped: Skipped | None = None
    if counter is not None and call.running_mean is not None:
        args.num_batches_tracked = counter.data_ptr()
        if momentum is None:
            skipped = Skipped(counter, channels)
            args.skipped_batches = skipped.counts.data_ptr()
            args.skipped_batches_count = 2 * channels
    _run(c.bn_forward_training, form.problem, args)
    if wide is not call:
        narrow(call, wide, skipped)
    if skipped is not None:
        skipped.store()
    return output, saved


def forward_inference(call: Call) -> Tensor:
    """Normalized by the running statistics."""
    args = c.bn_forward_inference_args(_INFERENCE_SIZE)
    form, output = _set_forward(args, call)
    _run(c.bn_forward_inference, form.problem, args)
    return output


def _new_vector(call: BackwardCall) -> Tensor:
    """Of the weight's kind; from itself, in half the time."""
    if call.weight is None:
        dtype = vector_dtype(call.input.dtype)
        return torch.empty(call.input.shape[1], dtype=dtype, device="cpu")
    return torch.empty_like(call.weight, requires_grad=False)


def backward(call: BackwardCall) -> Gradients:
    """Gradients, from what the forward normalized by: `saved`, else the running statistics.

    The residual's gradient is computed where there is an activation; without one it is
    `grad_output` itself, as the caller knows.
    """
    grad_output, input, weight, saved, mean, var, eps, output, activation, slope, wanted = call
    problem, elements, channels = _form(input.shape, input.stride(), input.dtype)
    args = c.bn_backward_args(_BACKWARD_SIZE)
    args.epsilon = eps
    args.input_count = args.grad_output_count = elements
    args.input, args.grad_output = input.data_ptr(), grad_output.data_ptr()
    if weight is not None:
        args.weight, args.weight_count = weight.data_ptr(), channels
    if saved is not None:
        _set_saved(args, saved, channels)
    elif mean is not None and var is not None:
        args.statistics = c.Statistics.RUNNING
        args.running_mean, args.running_var = mean.data_ptr(), var.data_ptr()
        args.running_mean_count = args.running_var_count = channels
    grad_input = grad_weight = grad_bias = grad_residual = None
    if activation is not None and output is not None:
        set_activation(args, activation, slope)
        args.output, args.output_count = output.data_ptr(), elements
        if wanted.residual:
            grad_residual = empty_like(input)
            args.grad_residual, args.grad_residual_count = grad_residual.data_ptr(), elements
    if wanted.input:
        grad_input = empty_like(input)
        args.grad_input, args.grad_input_count = grad_input.data_ptr(), elements
    if wanted.weight:
        grad_weight = _new_vector(call)
        args.grad_weight, args.grad_weight_count = grad_weight.data_ptr(), channels
    if wanted.bias:
        grad_bias = _new_vector(call)
        args.grad_bias, args.grad_bias_count = grad_bias.data_ptr(), channels
    _run(c.bn_backward, problem, args)
    return Gradients(grad_input, grad_weight, grad_bias, grad_residual)
