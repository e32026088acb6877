"""The C library's three operations on plain PyTorch tensors: no autograd, no dispatcher, no copies.

Called by: _operators. Invariant: an address leaves this file only for a strided CPU tensor whose
dtype, sizes and memory order have been checked. Tensors in another memory order than NCHW or NHWC
are copied first, as PyTorch's own batch_norm does.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_int64, sizeof
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _lowlevel as c
from .._options import ACTIVATIONS, parse
from ._memory import empty_like

_CODES = {
    torch.float32: c.Dtype.FLOAT32,
    torch.float64: c.Dtype.FLOAT64,
    torch.bfloat16: c.Dtype.BFLOAT16,
    torch.float16: c.Dtype.FLOAT16,
}
DTYPES = frozenset(_CODES)
HALVES = (torch.bfloat16, torch.float16)
_TRAINING_SIZE = sizeof(c.bn_forward_training_args)
_INFERENCE_SIZE = sizeof(c.bn_forward_inference_args)
_BACKWARD_SIZE = sizeof(c.bn_backward_args)


class Form(NamedTuple):
    """What the C library has to know about a tensor; all tensors of one call share it."""

    problem: c.bn_problem  # constant, so that threads may share it
    elements: int
    channels: int
    parameter: torch.dtype  # of weight, bias and running statistics inside the library


@lru_cache(1024)
def _form(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> Form | None:
    """None for a tensor in neither memory order."""
    rank = len(shape)
    if _is_dense(shape, strides):
        layout = c.Layout.NCHW
    elif _is_dense((shape[0], *shape[2:], shape[1]), (strides[0], *strides[2:], strides[1])):
        layout = c.Layout.NHWC
    else:
        return None
    problem = c.bn_problem(
        sizeof(c.bn_problem), _CODES[dtype], layout, rank, (c_int64 * 5)(*shape)
    )
    elements = 1
    for size in shape:
        elements *= size
    return Form(problem, elements, shape[1], parameter_dtype(dtype))


def _is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Contiguous, as PyTorch sees it: where there is nothing to step to, any stride will do."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if stride != expected and size != 1:
            return False
        expected *= size
    return True


def in_memory_order(tensor: Tensor) -> Tensor:
    """The tensor itself if it lies in NCHW or NHWC order, else a contiguous copy.

    For tensors without memory as well: the memory order of an operator's result is its input's.
    """
    if tensor.is_contiguous() or tensor.movedim(1, -1).is_contiguous():
        return tensor
    return tensor.contiguous()


def _prepare(input: Tensor) -> tuple[Tensor, Form]:
    check_input(input)
    form = _form(input.shape, input.stride(), input.dtype)
    if form is None:
        input = input.contiguous()
        form = _form(input.shape, input.stride(), input.dtype)
        assert form is not None
    return input, form


def parameter_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of weight, bias and running statistics inside the library."""
    return torch.float32 if dtype in HALVES else dtype


def check_input(input: Tensor) -> None:
    """Raises for a dtype or a number of dimensions that the library does not have."""
    if input.dtype not in DTYPES:
        raise RuntimeError(
            f"batch_norm not implemented for {str(input.dtype).removeprefix('torch.')!r}, "
            "expected float32, float64, bfloat16 or float16"
        )
    if not 2 <= input.dim() <= 5:
        raise ValueError(f"expected 2D to 5D input (got {input.dim()}D input)")


def _like(tensor: Tensor, input: Tensor, name: str) -> Tensor:
    """The tensor in the input's memory order."""
    if tensor.shape != input.shape or tensor.dtype != input.dtype:
        raise RuntimeError(
            f"{name} has shape {list(tensor.shape)} and dtype {tensor.dtype}, expected "
            f"{list(input.shape)} and {input.dtype} as the input has"
        )
    if tensor.stride() == input.stride():
        return tensor
    return torch.empty_like(input).copy_(tensor)


def _vector(vector: Tensor | None, name: str, form: Form) -> Tensor | None:
    """A parameter as the library takes it: of the right dtype, contiguous."""
    if vector is None:
        return None
    if vector.dim() != 1 or vector.shape[0] != form.channels:
        raise RuntimeError(
            f"{name} should contain {form.channels} elements not {vector.numel()}, "
            f"got shape {list(vector.shape)}"
        )
    if vector.dtype == form.parameter and vector.is_contiguous():
        return vector
    return vector.to(form.parameter).contiguous()


def forward_training(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    residual: Tensor | None,
    activation: str | None,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, saved mean and saved invstd; the running statistics are updated in place."""
    input, form = _prepare(input)
    kernel_weight = _vector(weight, "weight", form)
    kernel_bias = _vector(bias, "bias", form)
    kernel_mean = _vector(running_mean, "running_mean", form)
    kernel_var = _vector(running_var, "running_var", form)
    channels = form.channels
    saved = torch.empty((2, channels), dtype=torch.float64)
    args = c.bn_forward_training_args(_TRAINING_SIZE)
    args.epsilon = eps
    args.momentum = momentum
    args.input = input.data_ptr()
    args.input_count = args.output_count = form.elements
    if kernel_weight is not None:
        args.weight, args.weight_count = kernel_weight.data_ptr(), channels
    if kernel_bias is not None:
        args.bias, args.bias_count = kernel_bias.data_ptr(), channels
    if kernel_mean is not None and kernel_var is not None:
        args.running_mean, args.running_mean_count = kernel_mean.data_ptr(), channels
        args.running_var, args.running_var_count = kernel_var.data_ptr(), channels
    args.saved_mean = address = saved.data_ptr()
    args.saved_invstd = address + 8 * channels
    args.saved_mean_count = args.saved_invstd_count = channels
    if activation is not None or residual is not None:
        args.activation = parse(ACTIVATIONS, "activation", activation)
        args.negative_slope = negative_slope
        if residual is not None:
            residual = _like(residual, input, "residual")
            args.residual, args.residual_count = residual.data_ptr(), form.elements
    output = empty_like(input)
    args.output = output.data_ptr()
    c.bn_forward_training(form.problem, args)
    for buffer, written in ((running_mean, kernel_mean), (running_var, kernel_var)):
        if buffer is not None and written is not buffer:
            buffer.copy_(written)
    return output, saved[0], saved[1]


def forward_inference(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    residual: Tensor | None,
    activation: str | None,
    negative_slope: float,
) -> Tensor:
    """Normalized by the running statistics."""
    input, form = _prepare(input)
    kernel_weight = _vector(weight, "weight", form)
    kernel_bias = _vector(bias, "bias", form)
    kernel_mean = _vector(running_mean, "running_mean", form)
    kernel_var = _vector(running_var, "running_var", form)
    assert kernel_mean is not None and kernel_var is not None
    channels = form.channels
    args = c.bn_forward_inference_args(_INFERENCE_SIZE)
    args.epsilon = eps
    args.input = input.data_ptr()
    args.input_count = args.output_count = form.elements
    if kernel_weight is not None:
        args.weight, args.weight_count = kernel_weight.data_ptr(), channels
    if kernel_bias is not None:
        args.bias, args.bias_count = kernel_bias.data_ptr(), channels
    args.running_mean, args.running_mean_count = kernel_mean.data_ptr(), channels
    args.running_var, args.running_var_count = kernel_var.data_ptr(), channels
    if activation is not None or residual is not None:
        args.activation = parse(ACTIVATIONS, "activation", activation)
        args.negative_slope = negative_slope
        if residual is not None:
            residual = _like(residual, input, "residual")
            args.residual, args.residual_count = residual.data_ptr(), form.elements
    output = empty_like(input)
    args.output = output.data_ptr()
    c.bn_forward_inference(form.problem, args)
    return output


class Wanted(NamedTuple):
    """Which gradients to compute."""

    input: bool
    weight: bool
    bias: bool
    residual: bool


class Gradients(NamedTuple):
    """Gradients of a loss; None where none was wanted."""

    input: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    residual: Tensor | None


def backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    spread: Tensor,
    training: bool,
    eps: float,
    output: Tensor | None,
    activation: str | None,
    negative_slope: float,
    wanted: Wanted,
) -> Gradients:
    """Gradients. `mean` and `spread` are what the forward normalized by.

    They are its saved mean and invstd if `training`, else running mean and variance.
    """
    input, form = _prepare(input)
    grad_output = _like(grad_output, input, "grad_output")
    channels = form.channels
    args = c.bn_backward_args(
        _BACKWARD_SIZE, c.Statistics.BATCH if training else c.Statistics.RUNNING
    )
    args.epsilon = eps
    args.input_count = args.grad_output_count = form.elements
    args.input = input.data_ptr()
    args.grad_output = grad_output.data_ptr()
    kernel_weight = _vector(weight, "weight", form)
    if kernel_weight is not None:
        args.weight, args.weight_count = kernel_weight.data_ptr(), channels
    if training:
        mean, spread = mean.contiguous(), spread.contiguous()
        args.saved_mean, args.saved_mean_count = mean.data_ptr(), channels
        args.saved_invstd, args.saved_invstd_count = spread.data_ptr(), channels
    else:
        kernel_mean = _vector(mean, "running_mean", form)
        kernel_var = _vector(spread, "running_var", form)
        assert kernel_mean is not None and kernel_var is not None
        args.running_mean, args.running_mean_count = kernel_mean.data_ptr(), channels
        args.running_var, args.running_var_count = kernel_var.data_ptr(), channels
    grad_residual = None
    if activation is not None:
        assert output is not None
        output = _like(output, input, "output")
        args.activation = parse(ACTIVATIONS, "activation", activation)
        args.negative_slope = negative_slope
        args.output, args.output_count = output.data_ptr(), form.elements
        if wanted.residual:
            grad_residual = empty_like(input)
            args.grad_residual = grad_residual.data_ptr()
            args.grad_residual_count = form.elements
    elif wanted.residual:
        grad_residual = grad_output.clone()
    grad_input = grad_weight = grad_bias = None
    if wanted.input:
        grad_input = empty_like(input)
        args.grad_input, args.grad_input_count = grad_input.data_ptr(), form.elements
    if wanted.weight:
        grad_weight = torch.empty(channels, dtype=form.parameter)
        args.grad_weight, args.grad_weight_count = grad_weight.data_ptr(), channels
    if wanted.bias:
        grad_bias = torch.empty(channels, dtype=form.parameter)
        args.grad_bias, args.grad_bias_count = grad_bias.data_ptr(), channels
    c.bn_backward(form.problem, args)
    if weight is not None and weight.dtype != form.parameter:  # a half model's gradients are half
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        grad_bias = None if grad_bias is None else grad_bias.to(weight.dtype)
    return Gradients(grad_input, grad_weight, grad_bias, grad_residual)
