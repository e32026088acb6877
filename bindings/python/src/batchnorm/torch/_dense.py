"""Makes a call's tensors fit: dense in an order of the library's, half parameters wide."""

from __future__ import annotations

import torch
from torch import Tensor

from ._call import HALVES, PLAIN_TYPES, BackwardCall, Call
from ._memory import empty_like
from ._private import suggest_memory_format

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def in_memory_order(tensor: Tensor) -> Tensor:
    """The tensor itself if it lies in NCHW or NHWC order, else a dense copy, as autograd sees it.

    The copy's order is that of PyTorch's own batch_norm: channels_last where the strides of an
    image or volume are in that order, else contiguous. For tensors without memory as well: the
    memory order of an operator's results is that of its input.
    """
    if tensor.is_contiguous():
        return tensor
    last = _CHANNELS_LAST.get(tensor.dim())
    if last is not None and tensor.is_contiguous(memory_format=last):
        return tensor
    return tensor.contiguous(memory_format=suggest_memory_format(tensor))


def _like(tensor: Tensor, input: Tensor) -> Tensor:
    """In the input's memory order."""
    if tensor.stride() == input.stride():
        return tensor
    return empty_like(input).copy_(tensor)


def widened(vector: Tensor, dtype: torch.dtype) -> Tensor:
    """A parameter or statistic of a tensor's dtype as the library takes it: float32 for halves."""
    return vector.float() if dtype in HALVES and vector.dtype is dtype else vector


def vector_of(vector: Tensor | None, input: Tensor) -> Tensor | None:
    """Contiguous, wide and without a class of its own."""
    if vector is None:
        return None
    vector = widened(vector, input.dtype).contiguous()
    return vector if type(vector) in PLAIN_TYPES else vector.as_subclass(Tensor)


def with_wide_statistics(call: Call) -> Call:
    """The call itself, or, if its running statistics are half, with wide copies of them."""
    mean, var = call.running_mean, call.running_var
    if mean is None or var is None or mean.dtype not in HALVES:
        return call
    return call._replace(running_mean=mean.float(), running_var=var.float())


def dense(call: Call) -> Call:
    """A forward's call as the kernels take it. A training writes to its statistics as they are."""
    input, residual = call.input, call.residual
    if not input.is_contiguous():
        input = in_memory_order(input)
    if residual is not None:
        residual = _like(residual, input)
    if input.dtype in HALVES:
        weight, bias = (
            None if vector is None else widened(vector, input.dtype) for vector in call[1:3]
        )
        call = call._replace(input=input, weight=weight, bias=bias, residual=residual)
        return with_wide_statistics(call) if call.frozen else call
    if input is call.input and residual is call.residual:
        return call
    return call._replace(input=input, residual=residual)


def dense_backward(call: BackwardCall) -> BackwardCall:
    """A backward's call as the kernels take it."""
    input, output = in_memory_order(call.input), call.output
    grad_output = _like(call.grad_output, input)
    if output is not None:
        output = _like(output, input)
    if input is call.input and grad_output is call.grad_output and output is call.output:
        return call
    return call._replace(input=input, grad_output=grad_output, output=output)
