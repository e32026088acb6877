"""Batch normalization as registered PyTorch operators, with autograd.

`torch.ops.batchnorm.forward_training`, `.forward_inference` and `.backward` are functional: they
change none of their arguments. The dispatcher knows how to run them on CPU tensors, what they
return for tensors without memory (torch.compile, torch.export, fake and meta tensors), and how to
differentiate them, twice and more.

Through the dispatcher, a call of kernels that are in Python costs some 25 us. So a call that
is judged direct takes a shorter way to the same autograd functions, on which running statistics are
updated in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import _kernels
from ._call import SAVED, BackwardCall, Call, Gradients, Wanted, vector_dtype
from ._dense import dense, dense_backward, in_memory_order, vector_of
from ._double_backward import double_backward
from ._fitness import UnfitError, judge, judge_backward
from ._private import below_autograd

_library = torch.library.Library("batchnorm", "DEF")
_library.define(
    "forward_training(Tensor input, Tensor? weight, Tensor? bias, Tensor? running_mean, "
    "Tensor? running_var, Tensor? num_batches_tracked, float? momentum, float eps, "
    "Tensor? residual, str? activation, float negative_slope) -> "
    "(Tensor output, Tensor saved, Tensor new_running_mean, Tensor new_running_var)"
)
_FROZEN = (
    "(Tensor input, Tensor? weight, Tensor? bias, Tensor running_mean, Tensor running_var, "
    "float eps, Tensor? residual, str? activation, float negative_slope)"
)
_library.define(f"forward_inference{_FROZEN} -> Tensor")
# With copies of the statistics, which may have changed when backward comes. They come of the
# operator itself: PyTorch's compiler would put a copy off until backward.
_library.define(f"forward_frozen{_FROZEN} -> (Tensor output, Tensor mean, Tensor var)")
_library.define(
    "backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor? saved, "
    "Tensor? running_mean, Tensor? running_var, float eps, Tensor? output, str? activation, "
    "float negative_slope, bool[4] wanted) -> "
    "(Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)"
)


# ---- Kernels for CPU tensors, and for tensors without memory ------------------------------------


def _fit(call: Call, mean: Tensor | None, var: Tensor | None) -> Call:
    """The call with other statistics, as the kernels take it. Raises `UnfitError`."""
    if reason := judge(call, dispatched=True).reason:
        raise UnfitError(reason)
    input, weight, bias, *_ = call
    vectors = (vector_of(weight, input), vector_of(bias, input), mean, var)
    return dense(Call._make((input, *vectors, *call[5:])))


def _forward_training(*args: Any) -> tuple[Tensor, ...]:
    call = Call(*args)
    momentum, counter = call.momentum, call.num_batches_tracked
    if momentum is None:
        momentum = 0.0 if counter is None else 1.0 / (1 + int(counter))
    mean, var = (
        None
        if statistic is None
        else statistic.clone(memory_format=torch.contiguous_format).as_subclass(Tensor)
        for statistic in call[3:5]
    )
    fit = _fit(call, mean, var)._replace(num_batches_tracked=None, momentum=momentum)
    return (
        *_kernels.forward_training(fit),
        *(call.input.new_empty(0) if each is None else each for each in (mean, var)),
    )


def _forward_inference(*args: Any) -> Tensor:
    call = Call.of_frozen(args)
    mean, var = (vector_of(statistic, call.input) for statistic in call[3:5])
    return _kernels.forward_inference(_fit(call, mean, var))


def _forward_frozen(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    mean, var = args[3:5]
    return _forward_inference(*args), mean.clone(), var.clone()


def _weight_dtype(input: Tensor, weight: Tensor | None) -> torch.dtype:
    return vector_dtype(input.dtype) if weight is None else weight.dtype


def _backward(*args: Any) -> tuple[Tensor, ...]:
    call = BackwardCall._make((*args[:-1], Wanted(*args[-1])))
    if reason := judge_backward(call, dispatched=True).reason:
        raise UnfitError(reason)
    input, dtype = call.input, _weight_dtype(call.input, call.weight)
    call = dense_backward(
        call._replace(
            weight=vector_of(call.weight, input),
            saved=None if call.saved is None else call.saved.double().contiguous(),
            running_mean=vector_of(call.running_mean, input),
            running_var=vector_of(call.running_var, input),
        )
    )
    gradients = _kernels.backward(call)
    if call.wanted.residual and call.activation is None:
        gradients = gradients._replace(residual=call.grad_output.clone())
    dtypes = (input.dtype, dtype, dtype, input.dtype)
    return tuple(
        input.new_empty(0, dtype=dtype) if gradient is None else gradient.to(dtype)
        for gradient, dtype in zip(gradients, dtypes, strict=True)
    )


@torch.library.register_fake("batchnorm::forward_training", lib=_library)
def _fake_forward_training(*args: Any) -> tuple[Tensor, ...]:
    call = Call(*args)
    input = call.input
    return (
        torch.empty_like(in_memory_order(input)),
        input.new_empty((SAVED, input.shape[1]), dtype=torch.float64),
        *(input.new_empty(0) if each is None else torch.empty_like(each) for each in call[3:5]),
    )


@torch.library.register_fake("batchnorm::forward_inference", lib=_library)
def _fake_forward_inference(input: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(in_memory_order(input))


@torch.library.register_fake("batchnorm::forward_frozen", lib=_library)
def _fake_forward_frozen(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    mean, var = args[3:5]
    return _fake_forward_inference(*args), torch.empty_like(mean), torch.empty_like(var)


@torch.library.register_fake("batchnorm::backward", lib=_library)
def _fake_backward(*args: Any) -> tuple[Tensor, ...]:
    call = BackwardCall(*args)
    input, dtype = call.input, _weight_dtype(call.input, call.weight)
    want_input, want_weight, want_bias, want_residual = call.wanted

    def tensor(want: bool) -> Tensor:
        return torch.empty_like(in_memory_order(input)) if want else input.new_empty(0)

    def vector(want: bool) -> Tensor:
        return input.new_empty(input.shape[1] if want else 0, dtype=dtype)

    return tensor(want_input), vector(want_weight), vector(want_bias), tensor(want_residual)


# ---- Autograd -----------------------------------------------------------------------------------

# A forward as autograd sees it: what it returns, and what it normalized by, as backward takes it:
# saved, or mean and var.
_Result = tuple[Any, tuple[Tensor | None, Tensor | None, Tensor | None]]


def _train_directly(call: Call) -> _Result:
    output, saved = _kernels.forward_training(call)
    return output, (saved, None, None)


def _train(call: Call) -> _Result:
    with below_autograd():
        results = torch.ops.batchnorm.forward_training.default(*call.arguments())
    return results, (results[1], None, None)


def _freeze_directly(call: Call) -> _Result:
    output = _kernels.forward_inference(call)
    mean: Any = call.running_mean
    var: Any = call.running_var
    return output, (None, mean.clone(), var.clone())


def _freeze(call: Call) -> _Result:
    with below_autograd():
        output, *statistics = torch.ops.batchnorm.forward_frozen.default(*call.arguments())
    return output, (None, *statistics)


class _Forward(Function):
    @staticmethod
    def forward(
        ctx: Any,
        run: Callable[[Call], _Result],
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        call: Call,
    ) -> Any:
        """The tensors of the call are given once more: autograd sees none that are in a tuple."""
        results, statistics = run(call)
        output = results if isinstance(results, Tensor) else results[0]
        ctx.save_for_backward(
            input, weight, *statistics, None if call.activation is None else output
        )
        ctx.constants = (call.eps, call.activation, call.negative_slope)
        if results is not output:
            ctx.mark_non_differentiable(*results[1:])
            ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
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
        *saved, output = ctx.saved_tensors
        gradients = _backward_now(
            BackwardCall._make((grad_output, *saved, eps, output, activation, slope, wanted))
        )
        return (
            *(None, gradients.input, gradients.weight, gradients.bias),
            *(gradients.residual if residual else grad_residual, None),
        )


def _backward_now(call: BackwardCall) -> Gradients:
    if judge_backward(call).direct:
        return _kernels.backward(dense_backward(call))
    return _backward_dispatched(call)


def _backward_dispatched(call: BackwardCall) -> Gradients:
    results = torch.ops.batchnorm.backward(*call)
    return Gradients(
        *(result if want else None for result, want in zip(results, call.wanted, strict=True))
    )


class _Backward(Function):
    @staticmethod
    def forward(
        ctx: Any,
        grad_output: Tensor,
        input: Tensor,
        weight: Tensor | None,
        output: Tensor | None,
        call: BackwardCall,
    ) -> tuple[Tensor, ...]:
        """The tensors of the call are given once more, as in `_Forward`."""
        with below_autograd():
            results: tuple[Tensor, ...] = torch.ops.batchnorm.backward.default(*call)
        ctx.save_for_backward(grad_output, input, weight, *call[3:6], output)
        ctx.constants = (call.eps, call.activation, call.negative_slope, call.wanted)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(
            *(result for result, want in zip(results, call.wanted, strict=True) if not want)
        )
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        *saved, output = ctx.saved_tensors
        eps, *others = ctx.constants
        call = BackwardCall._make((*saved, eps, output, *others))
        return (*double_backward(call, Gradients(*gradients)), None)


def _apply(run: Callable[[Call], _Result], call: Call) -> Any:
    return _Forward.apply(run, call.input, call.weight, call.bias, call.residual, call)


def _autograd_forward_training(*args: Any) -> Any:
    return _apply(_train, Call(*args))


def _autograd_forward_inference(*args: Any) -> Any:
    input, weight, bias, _, _, _, residual, _, _ = args
    tensors = (input, weight, bias, residual)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _apply(_freeze, Call.of_frozen(args))
    with below_autograd():
        return torch.ops.batchnorm.forward_inference.default(*args)


def _autograd_backward(*args: Any) -> Any:
    call = BackwardCall(*args)
    return _Backward.apply(call.grad_output, call.input, call.weight, call.output, call)


_library.impl("forward_training", _forward_training, "CPU")
_library.impl("forward_training", _autograd_forward_training, "Autograd")
_library.impl("forward_inference", _forward_inference, "CPU")
_library.impl("forward_inference", _autograd_forward_inference, "Autograd")
_library.impl("forward_frozen", _forward_frozen, "CPU")
_library.impl("backward", _backward, "CPU")
_library.impl("backward", _autograd_backward, "Autograd")


# ---- What the modules call ----------------------------------------------------------------------


def forward(call: Call) -> Tensor:
    """The output. Updates running_mean, running_var and num_batches_tracked in place."""
    output: Tensor
    if call.frozen:
        output = torch.ops.batchnorm.forward_inference(*call.arguments())
        return output
    output, _, mean, var = torch.ops.batchnorm.forward_training(*call.arguments())
    if call.running_mean is not None and call.running_var is not None:
        call.running_mean.copy_(mean)
        call.running_var.copy_(var)
    if call.num_batches_tracked is not None:
        call.num_batches_tracked.add_(1)
    return output


def forward_directly(call: Call) -> Tensor:
    """As `forward`, past the dispatcher; of a call that was judged direct."""
    call = dense(call)
    output: Tensor
    if torch.is_grad_enabled():
        output = _apply(_freeze_directly if call.frozen else _train_directly, call)
    elif call.frozen:
        return _kernels.forward_inference(call)
    else:
        output, _ = _kernels.forward_training(call)
    mean, var = call.running_mean, call.running_var
    if not (call.frozen or mean is None or var is None):
        # As every in-place operator does.
        torch.autograd.graph.increment_version((mean, var))
    return output
