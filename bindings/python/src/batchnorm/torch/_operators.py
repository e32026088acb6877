"""Batch normalization as registered PyTorch operators, with autograd.

`torch.ops.batchnorm.forward_training`, `.forward_inference` and `.backward` are functional: they
change none of their arguments. The dispatcher knows how to run them on CPU tensors, what they
return for tensors without memory (torch.compile, torch.export, fake and meta tensors), and how to
differentiate them, twice and more.

Through the dispatcher, a call of kernels that are in Python costs some 25 us. So plain CPU tensors
take a shorter way to the same autograd functions, on which running statistics are updated in place.
On both, what lies in no memory order of the library is made dense first, and half parameters wide.
`is_plain` and `UnfitError` say when not; whatever they do not know goes through the dispatcher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import _kernels
from ._fitness import check_statistics, check_vectors
from ._kernels import HALVES, SAVED, Gradients, UnfitError, Wanted, widened
from ._memory import empty_like
from ._private import below_autograd, is_plain, suggest_memory_format

_library = torch.library.Library("batchnorm", "DEF")
_library.define(
    "forward_training(Tensor input, Tensor? weight, Tensor? bias, Tensor? running_mean, "
    "Tensor? running_var, Tensor? num_batches_tracked, float? momentum, float eps, "
    "Tensor? residual, str? activation, float negative_slope) -> "
    "(Tensor output, Tensor saved, Tensor new_running_mean, Tensor new_running_var)"
)
_library.define(
    "forward_inference(Tensor input, Tensor? weight, Tensor? bias, Tensor running_mean, "
    "Tensor running_var, float eps, Tensor? residual, str? activation, float negative_slope) -> "
    "Tensor"
)
_library.define(
    "forward_frozen(Tensor input, Tensor? weight, Tensor? bias, Tensor running_mean, "
    "Tensor running_var, float eps, Tensor? residual, str? activation, float negative_slope) -> "
    "(Tensor output, Tensor kept_mean, Tensor kept_var)"
)
_library.define(
    "backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor? saved, "
    "Tensor? running_mean, Tensor? running_var, float eps, Tensor? output, str? activation, "
    "float negative_slope, bool[4] wanted) -> "
    "(Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)"
)


# ---- Making tensors fit -------------------------------------------------------------------------


def _in_memory_order(tensor: Tensor) -> Tensor:
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


_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _like(tensor: Tensor, input: Tensor) -> Tensor:
    """In the input's memory order."""
    if tensor.stride() == input.stride() or tensor.shape != input.shape:
        return tensor
    if tensor.dtype is input.dtype:
        return empty_like(input).copy_(tensor)
    return torch.empty_like(input, dtype=tensor.dtype).copy_(tensor)


def _fit(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The four of them as the kernels take them."""
    input = _in_memory_order(input)
    if residual is not None:
        residual = _like(residual, input)
    if input.dtype in HALVES:
        weight = None if weight is None else widened(weight, input.dtype)
        bias = None if bias is None else widened(bias, input.dtype)
    return input, weight, bias, residual


def _vector(vector: Tensor | None, input: Tensor) -> Tensor | None:
    """Contiguous, wide and without a class of its own."""
    if vector is None:
        return None
    return widened(vector, input.dtype).contiguous().as_subclass(Tensor)


# ---- Forward, training --------------------------------------------------------------------------


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weight, bias = _vector(weight, input), _vector(bias, input)
    input, weight, bias, residual = _fit(input, weight, bias, residual)
    new_mean, new_var = _copy(running_mean), _copy(running_var)
    if momentum is None:
        momentum = 0.0 if num_batches_tracked is None else 1.0 / (1 + int(num_batches_tracked))
    output, saved = _kernels.forward_training(
        *(input, weight, bias, new_mean, new_var, None),
        *(momentum, eps, residual, activation, negative_slope),
    )
    if new_mean is None or new_var is None:
        return output, saved, input.new_empty(0), input.new_empty(0)
    return output, saved, new_mean, new_var


def _copy(statistic: Tensor | None) -> Tensor | None:
    if statistic is None:
        return None
    return statistic.clone(memory_format=torch.contiguous_format).as_subclass(Tensor)


def _forward_training_dispatched(*args: Any) -> tuple[Tensor, ...]:
    with below_autograd():
        results: tuple[Tensor, ...] = torch.ops.batchnorm.forward_training.default(*args)
    return results


class _ForwardTraining(Function):
    """`constants` are the operator's arguments that have no gradient, in its order."""

    @staticmethod
    def forward(
        ctx: Any,
        kernel: Callable[..., tuple[Tensor, ...]],
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        constants: tuple[Any, ...],
    ) -> Tensor | tuple[Tensor, ...]:
        mean, var, tracked, momentum, eps, activation, slope = constants
        results = kernel(
            *(input, weight, bias, mean, var, tracked),
            *(momentum, eps, residual, activation, slope),
        )
        output, saved = results[:2]
        kept = None if activation is None else output
        ctx.save_for_backward(input, weight, saved, None, None, kept)
        ctx.constants = (eps, activation, slope)
        if kernel is _kernels.forward_training:
            return output
        ctx.mark_non_differentiable(*results[1:])
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, grad_output)


def forward_training(
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
) -> Tensor:
    """activation(batch_norm(input) + residual), by the batch's statistics.

    Updates running_mean, running_var and num_batches_tracked in place. `momentum` None is
    cumulative averaging.
    """
    output: Tensor
    output, _, new_mean, new_var = torch.ops.batchnorm.forward_training(
        *(input, weight, bias, running_mean, running_var, num_batches_tracked),
        *(momentum, eps, residual, activation, negative_slope),
    )
    if running_mean is not None and running_var is not None:
        running_mean.copy_(new_mean)
        running_var.copy_(new_var)
    if num_batches_tracked is not None:
        num_batches_tracked.add_(1)
    return output


def forward_training_directly(
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
) -> Tensor:
    """`forward_training` past the dispatcher, for tensors that `is_plain`. Raises `UnfitError`."""
    if running_mean is not None and running_var is not None:
        check_statistics(running_mean, running_var, written=True)
    check_vectors(input, weight, bias, running_mean, running_var)
    input, weight, bias, residual = _fit(input, weight, bias, residual)
    if torch.is_grad_enabled():
        output: Tensor = _ForwardTraining.apply(
            *(_kernels.forward_training, input, weight, bias, residual),
            (
                *(running_mean, running_var, num_batches_tracked),
                *(momentum, eps, activation, negative_slope),
            ),
        )
    else:
        output, _ = _kernels.forward_training(
            *(input, weight, bias, running_mean, running_var, num_batches_tracked),
            *(momentum, eps, residual, activation, negative_slope),
        )
    if running_mean is not None and running_var is not None:
        # As every in-place operator does.
        torch.autograd.graph.increment_version((running_mean, running_var))
    return output


@torch.library.register_fake("batchnorm::forward_training", lib=_library)
def _fake_forward_training(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *_: Any,
) -> tuple[Tensor, ...]:
    return (
        torch.empty_like(_in_memory_order(input)),
        input.new_empty((SAVED, input.shape[1]), dtype=torch.float64),
        input.new_empty(0) if running_mean is None else torch.empty_like(running_mean),
        input.new_empty(0) if running_var is None else torch.empty_like(running_var),
    )


def _autograd_forward_training(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float | None,
    eps: float,
    residual: Tensor | None,
    *activation: Any,
) -> Any:
    return _ForwardTraining.apply(
        *(_forward_training_dispatched, input, weight, bias, residual),
        (running_mean, running_var, num_batches_tracked, momentum, eps, *activation),
    )


_library.impl("forward_training", _forward_training, "CPU")
_library.impl("forward_training", _autograd_forward_training, "Autograd")


# ---- Forward, inference -------------------------------------------------------------------------


def _forward_inference(
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
    weight, bias = _vector(weight, input), _vector(bias, input)
    input, weight, bias, residual = _fit(input, weight, bias, residual)
    mean = running_mean.contiguous().as_subclass(Tensor)
    var = running_var.contiguous().as_subclass(Tensor)
    return _kernels.forward_inference(
        *(input, weight, bias, mean, var),
        *(eps, residual, activation, negative_slope),
    )


def _forward_inference_dispatched(*args: Any) -> Tensor:
    with below_autograd():
        result: Tensor = torch.ops.batchnorm.forward_inference.default(*args)
    return result


def _forward_frozen(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """With copies of the statistics, which may have changed when backward comes.

    They come of the operator itself: PyTorch's compiler would put a copy off until backward.
    """
    mean, var = args[3:5]
    return _forward_inference(*args), mean.clone(), var.clone()


def _forward_frozen_dispatched(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    with below_autograd():
        results: tuple[Tensor, Tensor, Tensor] = torch.ops.batchnorm.forward_frozen.default(*args)
    return results


def _forward_frozen_directly(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    mean, var = args[3:5]
    return _kernels.forward_inference(*args), mean.clone(), var.clone()


class _ForwardInference(Function):
    """`constants` are the operator's arguments that have no gradient, in its order."""

    @staticmethod
    def forward(
        ctx: Any,
        kernel: Callable[..., tuple[Tensor, Tensor, Tensor]],
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        constants: tuple[Any, ...],
    ) -> Tensor:
        mean, var, eps, activation, slope = constants
        output, mean, var = kernel(
            *(input, weight, bias, mean, var, eps, residual, activation, slope)
        )
        kept = None if activation is None else output
        ctx.save_for_backward(input, weight, None, mean, var, kept)
        ctx.constants = (eps, activation, slope)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, grad_output)


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
    """activation(batch_norm(input) + residual), by the running statistics."""
    output: Tensor = torch.ops.batchnorm.forward_inference(
        *(input, weight, bias, running_mean, running_var),
        *(eps, residual, activation, negative_slope),
    )
    return output


def forward_inference_directly(
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
    """`forward_inference` past the dispatcher, for tensors that `is_plain`. Raises `UnfitError`."""
    check_vectors(input, weight, bias, running_mean, running_var)
    input, weight, bias, residual = _fit(input, weight, bias, residual)
    if not torch.is_grad_enabled():
        return _kernels.forward_inference(
            *(input, weight, bias, running_mean, running_var),
            *(eps, residual, activation, negative_slope),
        )
    check_statistics(running_mean, running_var, written=False)
    output: Tensor = _ForwardInference.apply(
        *(_forward_frozen_directly, input, weight, bias, residual),
        (running_mean, running_var, eps, activation, negative_slope),
    )
    return output


@torch.library.register_fake("batchnorm::forward_inference", lib=_library)
def _fake_forward_inference(input: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(_in_memory_order(input))


def _autograd_forward_inference(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    residual: Tensor | None,
    *activation: Any,
) -> Any:
    needs = any(t is not None and t.requires_grad for t in (input, weight, bias, residual))
    if not (needs and torch.is_grad_enabled()):
        return _forward_inference_dispatched(
            *(input, weight, bias, running_mean, running_var, eps, residual, *activation)
        )
    return _ForwardInference.apply(
        *(_forward_frozen_dispatched, input, weight, bias, residual),
        (running_mean, running_var, eps, *activation),
    )


@torch.library.register_fake("batchnorm::forward_frozen", lib=_library)
def _fake_forward_frozen(input: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    mean, var = args[2:4]
    return _fake_forward_inference(input), torch.empty_like(mean), torch.empty_like(var)


_library.impl("forward_frozen", _forward_frozen, "CPU")
_library.impl("forward_inference", _forward_inference, "CPU")
_library.impl("forward_inference", _autograd_forward_inference, "Autograd")


# ---- Backward -----------------------------------------------------------------------------------


def _gradients(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, ...]:
    """What the backward of both forwards returns."""
    _, input, weight, bias, residual, _ = ctx.needs_input_grad
    eps, activation, slope = ctx.constants
    if grad_output is None:
        return (None,) * 6
    grad_residual = None
    if residual and activation is None:  # the sum hands it on
        residual, grad_residual = False, grad_output
    wanted = Wanted(input, weight, bias, residual)
    if not any(wanted):
        return None, None, None, None, grad_residual, None
    *kept, output = ctx.saved_tensors
    gradients = _backward_now(grad_output, *kept, eps, output, activation, slope, wanted)
    return (
        *(None, gradients.input, gradients.weight, gradients.bias),
        *(gradients.residual if residual else grad_residual, None),
    )


def _backward_now(grad_output: Tensor, input: Tensor, *args: Any) -> Gradients:
    # What nobody will differentiate again, and nobody looks at, needs no operator.
    if not torch.is_grad_enabled() and is_plain(grad_output):
        try:
            return _kernels.backward(_like(grad_output, input), input, *args)
        except UnfitError:
            pass
    results = torch.ops.batchnorm.backward(grad_output, input, *args)
    return Gradients(
        *(result if want else None for result, want in zip(results, args[-1], strict=True))
    )


def _backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    saved: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float,
    output: Tensor | None,
    activation: str | None,
    negative_slope: float,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    input = _in_memory_order(input)
    fit_grad = _like(grad_output, input)
    gradients = _kernels.backward(
        fit_grad,
        input,
        _vector(weight, input),
        None if saved is None else saved.double().contiguous(),
        _vector(running_mean, input),
        _vector(running_var, input),
        eps,
        None if output is None else _like(output, input),
        activation,
        negative_slope,
        Wanted(*wanted),
    )
    if wanted[3] and activation is None:
        gradients = gradients._replace(residual=fit_grad.clone())
    if weight is not None and weight.dtype != _kernels.vector_dtype(input.dtype):
        gradients = gradients._replace(
            weight=None if gradients.weight is None else gradients.weight.to(weight.dtype),
            bias=None if gradients.bias is None else gradients.bias.to(weight.dtype),
        )
    dtypes = (input.dtype, *(_weight_dtype(input, weight),) * 2, input.dtype)
    return tuple(
        input.new_empty(0, dtype=dtype) if gradient is None else gradient
        for gradient, dtype in zip(gradients, dtypes, strict=True)
    )


def _weight_dtype(input: Tensor, weight: Tensor | None) -> torch.dtype:
    return _kernels.vector_dtype(input.dtype) if weight is None else weight.dtype


@torch.library.register_fake("batchnorm::backward", lib=_library)
def _fake_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor | None, *args: Any
) -> tuple[Tensor, ...]:
    want_input, want_weight, want_bias, want_residual = args[-1]
    dtype = _weight_dtype(input, weight)

    def tensor(want: bool) -> Tensor:
        return torch.empty_like(_in_memory_order(input)) if want else input.new_empty(0)

    def vector(want: bool) -> Tensor:
        return input.new_empty(input.shape[1] if want else 0, dtype=dtype)

    return tensor(want_input), vector(want_weight), vector(want_bias), tensor(want_residual)


class _Backward(Function):
    @staticmethod
    def forward(
        ctx: Any,
        grad_output: Tensor,
        input: Tensor,
        weight: Tensor | None,
        output: Tensor | None,
        constants: tuple[Any, ...],
    ) -> tuple[Tensor, ...]:
        saved, running_mean, running_var, eps, activation, slope, wanted = constants
        with below_autograd():
            results: tuple[Tensor, ...] = torch.ops.batchnorm.backward.default(
                *(grad_output, input, weight, saved, running_mean, running_var, eps),
                *(output, activation, slope, wanted),
            )
        ctx.save_for_backward(grad_output, input, weight, running_mean, running_var, output)
        ctx.constants = (saved is not None, eps, activation, slope)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(
            *(result for result, want in zip(results, wanted, strict=True) if not want)
        )
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return (*_double_backward(ctx, Gradients(*gradients)), None)


def _double_backward(ctx: Any, gradients: Gradients) -> tuple[Tensor | None, ...]:
    """Gradients with respect to grad_output, input, weight and output of a backward.

    `gradients` are those of a loss with respect to the backward's results. In float64, by PyTorch's
    own operators: what they compute can be differentiated once more, any number of times.

    With g the gated grad_output, h the normalized input, r invstd and <.> the mean over a channel,
    the backward is

        grad_input  = weight * r * (g - <g> - h * <g*h>)        (RUNNING: weight * r * g)
        grad_weight = sum(g * h),  grad_bias = sum(g),  grad_residual = g

    and each sum below is the derivative of one of these products. The output only says where the
    activation let pass: its gradient is 0, which is also what bias and residual have of it.
    """
    if all(gradient is None for gradient in gradients):
        return None, None, None, None
    saved_grad, saved_input, saved_weight, running_mean, running_var, output = ctx.saved_tensors
    training, eps, activation, negative_slope = ctx.constants
    axes = [0, *range(2, saved_input.dim())]
    shape = [1, -1] + [1] * (saved_input.dim() - 2)

    def channel_mean(values: Tensor) -> Tensor:
        return values.mean(axes, keepdim=True)

    input = saved_input.double()
    grad = saved_grad.double()
    gate: Tensor | None = None
    if activation is not None:
        blocked = 0.0 if activation == "relu" else negative_slope
        gate = torch.ones_like(grad).masked_fill(output <= 0, blocked)
        grad = grad * gate
    if training:  # from the input once more: both depend on it
        centred = input - channel_mean(input)
        squared = channel_mean(centred * centred) + eps
    else:
        centred = input - running_mean.double().view(shape)
        squared = running_var.double().view(shape) + eps
    invstd = torch.where(squared == 0, 0.0, squared.rsqrt())
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
        by_grad.to(saved_grad.dtype),
        by_input.to(saved_input.dtype),
        None if saved_weight is None or by_weight is None else by_weight.to(saved_weight.dtype),
        None if gate is None else torch.zeros_like(output),
    )


def _autograd_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    saved: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float,
    output: Tensor | None,
    *options: Any,
) -> Any:
    return _Backward.apply(
        *(grad_output, input, weight, output),
        (saved, running_mean, running_var, eps, *options),
    )


_library.impl("backward", _backward, "CPU")
_library.impl("backward", _autograd_backward, "Autograd")
