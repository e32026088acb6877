"""The derivative of a backward, by PyTorch's own operators in float64.

What they compute can be differentiated once more, any number of times. With g the gated
grad_output, h the normalized input, r invstd and <.> the mean over a channel, the backward is

    grad_input  = weight * r * (g - <g> - h * <g*h>)        (frozen: weight * r * g)
    grad_weight = sum(g * h),  grad_bias = sum(g),  grad_residual = g

and each sum below is the derivative of one of these products. The output only says where the
activation let pass: its gradient is 0, which is also what bias and residual have of it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._activations import BY_NAME
from ._call import BackwardCall, Gradients


def double_backward(call: BackwardCall, given: Gradients) -> tuple[Tensor | None, ...]:
    """Gradients with respect to grad_output, input, weight and output of a backward.

    `given` are those of a loss with respect to the backward's results.
    """
    if all(gradient is None for gradient in given):
        return None, None, None, None
    gate = _gate(call)
    again = _Again.of(call, gate)
    by_grad, by_input, by_weight = _derivatives(again, given)
    if gate is not None:
        by_grad = by_grad * gate
    return (
        by_grad.to(call.grad_output.dtype),
        by_input.to(call.input.dtype),
        None if call.weight is None or by_weight is None else by_weight.to(call.weight.dtype),
        None if gate is None or call.output is None else torch.zeros_like(call.output),
    )


def _gate(call: BackwardCall) -> Tensor | None:
    """What the activation lets through of a gradient."""
    if call.activation is None or call.output is None:
        return None
    blocked = BY_NAME[call.activation].blocked(call.negative_slope)
    ones = torch.ones_like(call.grad_output, dtype=torch.float64)
    return ones.masked_fill(call.output <= 0, blocked)


def _channel_mean(values: Tensor) -> Tensor:
    return values.mean([0, *range(2, values.dim())], keepdim=True)


class _Again(NamedTuple):
    """The forward once more, since what it saved depends on the input too."""

    grad: Tensor  # gated
    normalized: Tensor
    invstd: Tensor
    weight: Tensor
    frozen: bool

    @classmethod
    def of(cls, call: BackwardCall, gate: Tensor | None) -> _Again:
        input, grad = call.input.double(), call.grad_output.double()
        shape = [1, -1] + [1] * (input.dim() - 2)
        if call.saved is None:
            assert call.running_mean is not None
            assert call.running_var is not None
            centred = input - call.running_mean.double().view(shape)
            squared = call.running_var.double().view(shape) + call.eps
        else:
            centred = input - _channel_mean(input)
            squared = _channel_mean(centred * centred) + call.eps
        invstd = torch.where(squared == 0, 0.0, squared.rsqrt())
        weight = call.weight
        return cls(
            grad if gate is None else grad * gate,
            centred * invstd,
            invstd,
            torch.ones_like(invstd) if weight is None else weight.double().view(shape),
            call.saved is None,
        )


def _derivatives(again: _Again, given: Gradients) -> tuple[Tensor, Tensor, Tensor | None]:
    """By the gated grad_output, the input and the weight."""
    grad, normalized, invstd, weight, frozen = again
    by_grad = torch.zeros_like(grad)
    by_normalized = torch.zeros_like(grad)
    by_invstd = torch.zeros_like(invstd)  # divided by the number of values
    by_weight: Tensor | None = None
    if given.input is not None:
        u = given.input.double()
        if frozen:
            by_grad = by_grad + weight * invstd * u
            product = _channel_mean(u * grad)
        else:
            u_h, g_h = _channel_mean(u * normalized), _channel_mean(grad * normalized)
            by_grad = by_grad + weight * invstd * (u - _channel_mean(u) - normalized * u_h)
            by_normalized = by_normalized - weight * invstd * (u * g_h + grad * u_h)
            product = _channel_mean(u * (grad - _channel_mean(grad))) - u_h * g_h
            by_invstd = weight * product
        count = grad.numel() // grad.shape[1]
        by_weight = (invstd * product * count).flatten()
    if given.weight is not None:
        v = given.weight.double().view(weight.shape)
        by_grad = by_grad + v * normalized
        by_normalized = by_normalized + v * grad
    if given.bias is not None:
        by_grad = by_grad + given.bias.double().view(weight.shape)
    if given.residual is not None:
        by_grad = by_grad + given.residual.double()
    by_input = by_normalized * invstd
    if not frozen:
        by_input = (
            by_input
            - _channel_mean(by_input)
            - normalized * _channel_mean(by_input * normalized)
            - normalized * invstd.square() * by_invstd
        )
    return by_grad, by_input, by_weight
