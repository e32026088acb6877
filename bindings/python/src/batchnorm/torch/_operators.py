"""Batch normalization as registered PyTorch operators, with autograd.

`torch.ops.batchnorm.forward_training`, `.forward_inference` and `.backward` are functional: they
change none of their arguments. The dispatcher knows how to run them on CPU tensors, what they
return for tensors without memory (torch.compile, torch.export, fake and meta tensors), and how to
differentiate them, twice and more.

The dispatcher costs about 25 us per call when kernels are in Python. So plain CPU tensors take
a shorter way to the same autograd functions, on which the running statistics are updated in place;
`is_plain` says when, and whatever it does not know goes through the dispatcher.

Called by: modules. Calls: _kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import Parameter

from . import _kernels
from ._kernels import Gradients, Wanted

_library = torch.library.Library("batchnorm", "DEF")
_library.define(
    "forward_training(Tensor input, Tensor? weight, Tensor? bias, Tensor? running_mean, "
    "Tensor? running_var, Tensor? num_batches_tracked, float? momentum, float eps, "
    "Tensor? residual, str? activation, float negative_slope) -> "
    "(Tensor output, Tensor saved_mean, Tensor saved_invstd, Tensor new_running_mean, "
    "Tensor new_running_var)"
)
_library.define(
    "forward_inference(Tensor input, Tensor? weight, Tensor? bias, Tensor running_mean, "
    "Tensor running_var, float eps, Tensor? residual, str? activation, "
    "float negative_slope) -> Tensor"
)
_library.define(
    "backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor mean, Tensor spread, "
    "bool training, float eps, Tensor? output, str? activation, float negative_slope, "
    "bool[4] wanted) -> "
    "(Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)"
)


# ---- Which way ----------------------------------------------------------------------------------


def _keys(tensor: Tensor) -> int:
    return int(torch._C._dispatch_keys(tensor).raw_repr())


with torch.inference_mode(False):
    _plain = _keys(torch.empty(1, device="cpu"))
with torch.inference_mode():
    _plain_inference = _keys(torch.empty(1, device="cpu"))


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether these are ordinary CPU tensors that nobody wants to look at on their way.

    The keys of a tensor tell whether it is strided memory of the CPU: not sparse, quantized, fake,
    wrapped by torch.func, negated lazily, a subclass that dispatches. Modes, tracing and
    torch.compile look at operators, so they have to see some.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._is_tracing()
    ):
        return False
    for tensor in tensors:
        if tensor is not None:
            keys = _keys(tensor)
            if keys not in (_plain, _plain_inference):
                return False
    return True


def are_plain_vectors(*vectors: Tensor | None) -> bool:
    """`is_plain` in less time, for parameters and buffers."""
    for vector in vectors:
        if vector is not None and not (
            type(vector) in (Parameter, Tensor) and vector.is_cpu and vector.is_contiguous()
        ):
            return False
    return True


# ---- Forward, training --------------------------------------------------------------------------


def _momentum(num_batches_tracked: Tensor | None, momentum: float | None) -> float:
    if momentum is not None:
        return momentum
    return 0.0 if num_batches_tracked is None else 1.0 / float(num_batches_tracked)


def _forward_training(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float | None,
    eps: float,
    residual: Tensor | None,
    activation: str | None,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    new_mean = input.new_empty(0) if running_mean is None else running_mean.clone()
    new_var = input.new_empty(0) if running_var is None else running_var.clone()
    output, mean, invstd = _kernels.forward_training(
        input,
        weight,
        bias,
        None if running_mean is None else new_mean,
        None if running_var is None else new_var,
        _momentum(num_batches_tracked, momentum),
        eps,
        residual,
        activation,
        negative_slope,
    )
    # An operator's results share no memory.
    return output, mean.clone(), invstd.clone(), new_mean, new_var


def _forward_training_in_place(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float | None,
    eps: float,
    residual: Tensor | None,
    activation: str | None,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    results = _kernels.forward_training(
        input,
        weight,
        bias,
        running_mean,
        running_var,
        _momentum(num_batches_tracked, momentum),
        eps,
        residual,
        activation,
        negative_slope,
    )
    for buffer in (running_mean, running_var):
        if buffer is not None and not buffer.is_inference():
            torch.autograd.graph.increment_version(buffer)  # as every in-place operator does
    return results


def _forward_training_dispatched(*args: Any) -> tuple[Tensor, ...]:
    with torch._C._AutoDispatchBelowAutograd():
        results: tuple[Tensor, ...] = torch.ops.batchnorm.forward_training.default(*args)
    return results


class _ForwardTraining(Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        kernel: Callable[..., tuple[Tensor, ...]],
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        num_batches_tracked: Tensor | None,
        momentum: float | None,
        eps: float,
        residual: Tensor | None,
        activation: str | None,
        negative_slope: float,
    ) -> Tensor | tuple[Tensor, ...]:
        results = kernel(
            input,
            weight,
            bias,
            running_mean,
            running_var,
            num_batches_tracked,
            momentum,
            eps,
            residual,
            activation,
            negative_slope,
        )
        output, mean, invstd, *_ = results
        ctx.save_for_backward(
            input, weight, mean, invstd, None if activation is None else output
        )
        ctx.options = (True, eps, activation, negative_slope)
        if kernel is _forward_training_in_place:
            return output
        ctx.mark_non_differentiable(*results[1:])
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad_output: Tensor | None, *_: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        _, input, weight, bias, *_unused, residual, _, _ = ctx.needs_input_grad
        gradients = _gradients(ctx, grad_output, Wanted(input, weight, bias, residual))
        return (
            *(None, gradients.input, gradients.weight, gradients.bias),
            *(None,) * 5,
            *(gradients.residual, None, None),
        )


def forward_training(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float | None,
    eps: float,
    residual: Tensor | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
) -> Tensor:
    """activation(batch_norm(input) + residual), by the batch's statistics.

    Updates running_mean and running_var in place. `momentum` None stands for 1 /
    `num_batches_tracked`, which the caller has counted up.
    """
    args = (
        *(input, weight, bias, running_mean, running_var, num_batches_tracked),
        *(momentum, eps, residual, activation, negative_slope),
    )
    if is_plain(input, residual) and are_plain_vectors(weight, bias, running_mean, running_var):
        if torch.is_grad_enabled():
            output: Tensor = _ForwardTraining.apply(_forward_training_in_place, *args)
            return output
        return _forward_training_in_place(*args)[0]
    output, _, _, new_mean, new_var = torch.ops.batchnorm.forward_training(*args)
    if running_mean is not None and running_var is not None:
        running_mean.copy_(new_mean)
        running_var.copy_(new_var)
    return output


@torch.library.register_fake("batchnorm::forward_training", lib=_library)
def _fake_forward_training(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float | None,
    eps: float,
    residual: Tensor | None,
    activation: str | None,
    negative_slope: float,
) -> tuple[Tensor, ...]:
    _kernels.check_input(input)
    saved = input.shape[1:2]
    return (
        torch.empty_like(_kernels.in_memory_order(input)),
        input.new_empty(saved, dtype=torch.float64),
        input.new_empty(saved, dtype=torch.float64),
        input.new_empty(0) if running_mean is None else torch.empty_like(running_mean),
        input.new_empty(0) if running_var is None else torch.empty_like(running_var),
    )


def _autograd_forward_training(*args: Any) -> Any:
    return _ForwardTraining.apply(_forward_training_dispatched, *args)


_library.impl("forward_training", _forward_training, "CPU")
_library.impl("forward_training", _autograd_forward_training, "Autograd")


# ---- Forward, inference -------------------------------------------------------------------------


def _forward_inference_dispatched(*args: Any) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        result: Tensor = torch.ops.batchnorm.forward_inference.default(*args)
    return result


class _ForwardInference(Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        kernel: Callable[..., Tensor],
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
        output = kernel(
            *(input, weight, bias, running_mean, running_var),
            *(eps, residual, activation, negative_slope),
        )
        ctx.save_for_backward(
            input, weight, running_mean, running_var, None if activation is None else output
        )
        ctx.options = (False, eps, activation, negative_slope)
        return output

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad_output: Tensor
    ) -> tuple[Tensor | None, ...]:
        _, input, weight, bias, _, _, _, residual, _, _ = ctx.needs_input_grad
        gradients = _gradients(ctx, grad_output, Wanted(input, weight, bias, residual))
        return (
            *(None, gradients.input, gradients.weight, gradients.bias),
            *(None,) * 3,
            *(gradients.residual, None, None),
        )


def forward_inference(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    residual: Tensor | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
) -> Tensor:
    """activation(batch_norm(input) + residual), by the running statistics."""
    args = (
        *(input, weight, bias, running_mean, running_var),
        *(eps, residual, activation, negative_slope),
    )
    if is_plain(input, residual) and are_plain_vectors(weight, bias, running_mean, running_var):
        if torch.is_grad_enabled():
            output: Tensor = _ForwardInference.apply(_kernels.forward_inference, *args)
            return output
        return _kernels.forward_inference(*args)
    output = torch.ops.batchnorm.forward_inference(*args)
    return output


@torch.library.register_fake("batchnorm::forward_inference", lib=_library)
def _fake_forward_inference(input: Tensor, *_: Any) -> Tensor:
    _kernels.check_input(input)
    return torch.empty_like(_kernels.in_memory_order(input))


def _autograd_forward_inference(*args: Any) -> Any:
    return _ForwardInference.apply(_forward_inference_dispatched, *args)


_library.impl("forward_inference", _kernels.forward_inference, "CPU")
_library.impl("forward_inference", _autograd_forward_inference, "Autograd")


# ---- Backward -----------------------------------------------------------------------------------


def _gradients(ctx: Any, grad_output: Tensor | None, wanted: Wanted) -> Gradients:
    """The gradients of a forward, from what it kept in `ctx`."""
    if grad_output is None or not any(wanted):
        return Gradients(None, None, None, None)
    input, weight, mean, spread, output = ctx.saved_tensors
    training, eps, activation, negative_slope = ctx.options
    if activation is None and wanted == (False, False, False, True):
        return Gradients(None, None, None, grad_output)
    # What nobody will differentiate again, and nobody looks at, needs no operator.
    if not torch.is_grad_enabled() and is_plain(grad_output, input):
        own = wanted._replace(residual=wanted.residual and activation is not None)
        gradients = _kernels.backward(
            *(grad_output, input, weight, mean, spread, training, eps),
            *(output, activation, negative_slope, own),
        )
        if wanted.residual and activation is None:
            gradients = gradients._replace(residual=grad_output)
        return gradients
    results = torch.ops.batchnorm.backward(
        *(grad_output, input, weight, mean, spread, training, eps),
        *(output, activation, negative_slope, wanted),
    )
    return Gradients(
        *(result if want else None for result, want in zip(results, wanted, strict=True))
    )


def _backward(
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
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    gradients = _kernels.backward(
        *(grad_output, input, weight, mean, spread, training, eps),
        *(output, activation, negative_slope, Wanted(*wanted)),
    )
    return tuple(input.new_empty(0) if each is None else each for each in gradients)


@torch.library.register_fake("batchnorm::backward", lib=_library)
def _fake_backward(
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
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    tensor = _kernels.in_memory_order(input)
    vector_dtype = _kernels.parameter_dtype(input.dtype) if weight is None else weight.dtype

    def like_input(want: bool) -> Tensor:
        return torch.empty_like(tensor) if want else input.new_empty(0)

    def like_weight(want: bool) -> Tensor:
        if not want:
            return input.new_empty(0)
        return input.new_empty(input.shape[1:2], dtype=vector_dtype)

    return (
        like_input(wanted[0]),
        like_weight(wanted[1]),
        like_weight(wanted[2]),
        like_input(wanted[3]),
    )


class _Backward(Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
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
        wanted: Sequence[bool],
    ) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            results: tuple[Tensor, ...] = torch.ops.batchnorm.backward.default(
                *(grad_output, input, weight, mean, spread, training, eps),
                *(output, activation, negative_slope, wanted),
            )
        ctx.save_for_backward(grad_output, input, weight, mean, spread, output)
        ctx.options = (training, eps, activation, negative_slope)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(
            *(result for result, want in zip(results, wanted, strict=True) if not want)
        )
        return results

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, *gradients: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        return (*_double_backward(ctx, Gradients(*gradients)), *(None,) * 8)


def _double_backward(
    ctx: Any, gradients: Gradients
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients with respect to grad_output, input and weight of a backward.

    `gradients` are those of a loss with respect to the backward's results. In float64, by PyTorch's
    own operators: what they compute can be differentiated once more, any number of times.

    With g the gated grad_output, h the normalized input, r invstd and <.> the mean over a channel,
    the backward is

        grad_input  = weight * r * (g - <g> - h * <g*h>)        (RUNNING: weight * r * g)
        grad_weight = sum(g * h),  grad_bias = sum(g),  grad_residual = g

    and each sum below is the derivative of one of these products.
    """
    if all(gradient is None for gradient in gradients):
        return None, None, None
    saved_output, saved_input, saved_weight, mean, spread, output = ctx.saved_tensors
    training, eps, activation, negative_slope = ctx.options
    axes = [0, *range(2, saved_input.dim())]
    shape = [1, -1] + [1] * (saved_input.dim() - 2)

    def channel_mean(values: Tensor) -> Tensor:
        return values.mean(axes, keepdim=True)

    input = saved_input.double()
    grad = saved_output.double()
    gate: Tensor | None = None
    if activation is not None:
        blocked = 0.0 if activation == "relu" else negative_slope
        gate = torch.where(output <= 0, blocked, 1.0)
        grad = grad * gate
    if training:  # from the input once more: both depend on it
        centred = input - channel_mean(input)
        invstd = (channel_mean(centred * centred) + eps).rsqrt()
    else:
        centred = input - mean.double().view(shape)
        invstd = (spread.double().view(shape) + eps).rsqrt()
    normalized = centred * invstd
    weight = torch.ones_like(invstd) if saved_weight is None else saved_weight.double().view(shape)

    by_grad = torch.zeros_like(grad)
    by_normalized = torch.zeros_like(grad)
    by_invstd = torch.zeros_like(invstd)  # divided by the number of values
    by_weight: Tensor | None = None
    if gradients.input is not None:
        u = gradients.input.double()
        if training:
            u_h, g_h = channel_mean(u * normalized), channel_mean(grad * normalized)
            by_grad = by_grad + weight * invstd * (u - channel_mean(u) - normalized * u_h)
            by_normalized = by_normalized - weight * invstd * (u * g_h + grad * u_h)
            product = channel_mean(u * (grad - channel_mean(grad))) - u_h * g_h
            by_invstd = weight * product
        else:
            by_grad = by_grad + weight * invstd * u
            product = channel_mean(u * grad)
        count = grad.numel() // grad.shape[1]
        by_weight = (invstd * product * count).flatten()
    if gradients.weight is not None:
        v = gradients.weight.double().view(shape)
        by_grad = by_grad + v * normalized
        by_normalized = by_normalized + v * grad
    if gradients.bias is not None:
        by_grad = by_grad + gradients.bias.double().view(shape)
    if gradients.residual is not None:
        by_grad = by_grad + gradients.residual.double()

    by_input = by_normalized * invstd
    if training:
        by_input = (
            by_input
            - channel_mean(by_input)
            - normalized * channel_mean(by_input * normalized)
            - normalized * invstd.square() * by_invstd
        )
    if gate is not None:
        by_grad = by_grad * gate
    return (
        by_grad.to(saved_output.dtype),
        by_input.to(saved_input.dtype),
        None if saved_weight is None or by_weight is None else by_weight.to(saved_weight.dtype),
    )


def _autograd_backward(*args: Any) -> Any:
    return _Backward.apply(*args)


_library.impl("backward", _backward, "CPU")
_library.impl("backward", _autograd_backward, "Autograd")
