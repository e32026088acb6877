"""The C library's three operations on plain PyTorch tensors: no autograd, no dispatcher, no copies.

Invariant: an address leaves this file only for strided CPU memory whose dtype, sizes and memory
order have been checked. Whatever does not fit is refused as `UnfitError` before anything is
written; _operators then makes it fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from ctypes import c_int64, sizeof
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.profiler import record_function
from torch.nn import Parameter

from .. import _lowlevel as c
from .._arguments import set_activation
from ._memory import empty_like
from ._private import is_profiled
from ._private import version as version_of

_CODES = {
    torch.float32: c.Dtype.FLOAT32,
    torch.float64: c.Dtype.FLOAT64,
    torch.bfloat16: c.Dtype.BFLOAT16,
    torch.float16: c.Dtype.FLOAT16,
}
DTYPES = frozenset(_CODES)
HALVES = frozenset((torch.bfloat16, torch.float16))
_TRAINING_SIZE = sizeof(c.bn_forward_training_args)
_INFERENCE_SIZE = sizeof(c.bn_forward_inference_args)
_BACKWARD_SIZE = sizeof(c.bn_backward_args)
#: Rows of what a forward saves: mean, mean_rest, invstd.
SAVED = 3


_VECTORS = frozenset((Parameter, Tensor))


class UnfitError(RuntimeError):
    """A tensor is not as the C library takes it."""


class Form(NamedTuple):
    """What the C library has to know about a tensor; all tensors of one call share it."""

    problem: c.bn_problem  # constant, so that threads may share it
    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    elements: int
    channels: int
    vector_dtype: torch.dtype  # of weight, bias and running statistics


def vector_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of weight, bias and running statistics inside the library."""
    return torch.float32 if dtype in HALVES else dtype


def widened(vector: Tensor, dtype: torch.dtype) -> Tensor:
    """A parameter or statistic of a tensor's dtype as the library takes it: float32 for halves."""
    return vector.float() if dtype in HALVES and vector.dtype is dtype else vector


def form_of(input: Tensor) -> Form:
    """The form of a call's first tensor. Raises `UnfitError` or ValueError."""
    return _form(input.shape, input.stride(), input.dtype)


@lru_cache(1024)
def _form(shape: torch.Size, strides: tuple[int, ...], dtype: torch.dtype) -> Form:
    if dtype not in DTYPES:
        raise UnfitError(
            f"batch_norm not implemented for {str(dtype).removeprefix('torch.')!r}, "
            "expected float32, float64, bfloat16 or float16"
        )
    if not 2 <= len(shape) <= 5:
        raise ValueError(f"expected 2D to 5D input (got {len(shape)}D input)")
    channels = shape[1]
    if _is_dense(shape, strides):
        layout = c.Layout.NCHW
    elif len(shape) > 3 and _is_dense(
        (shape[0], *shape[2:], channels), (strides[0], *strides[2:], strides[1])
    ):
        layout = c.Layout.NHWC
    else:
        raise UnfitError(f"input has strides {strides}, dense neither in NCHW nor in NHWC order")
    return Form(
        c.bn_problem(
            sizeof(c.bn_problem), _CODES[dtype], layout, len(shape), (c_int64 * 5)(*shape)
        ),
        *(shape, strides, dtype, shape.numel(), channels, vector_dtype(dtype)),
    )


def _is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Contiguous, as PyTorch sees it: where there is nothing to step to, any stride will do."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if stride != expected and size != 1:
            return False
        expected *= size
    return True


def _address(tensor: Tensor, name: str, form: Form) -> int:
    """Of a tensor of the call's form."""
    if (
        tensor.shape == form.shape
        and tensor.stride() == form.strides
        and tensor.dtype is form.dtype
        and tensor.is_cpu
    ):
        return tensor.data_ptr()
    raise UnfitError(
        f"{name} has shape {list(tensor.shape)}, strides {tensor.stride()} and dtype "
        f"{tensor.dtype} on {tensor.device}, expected {list(form.shape)}, {form.strides} and "
        f"{form.dtype} on cpu as the input has"
    )


def _vector_address(vector: Tensor, name: str, channels: int, dtype: torch.dtype) -> int:
    """Of weight, bias or a running statistic."""
    if (
        type(vector) in _VECTORS
        and vector.numel() == channels
        and vector.dtype is dtype
        and vector.is_contiguous()
        and vector.is_cpu
        and not vector.is_neg()
    ):
        return vector.data_ptr()
    if vector.numel() != channels:
        raise UnfitError(f"{name} should contain {channels} elements not {vector.numel()}")
    raise UnfitError(
        f"{name} is a {type(vector).__name__} with dtype {vector.dtype} and strides "
        f"{vector.stride()} on {vector.device}, expected a contiguous Tensor with {dtype} on cpu"
    )


def _call(function: Callable[..., Any], problem: c.bn_problem, args: Any) -> None:
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


class _Skipped:
    """Of each channel, how many batches mean and variance have not taken in: (2, C).

    Cumulative averages weigh a batch by what they have taken in before it. PyTorch's modules keep
    nothing of the kind, so it lies with their counter, as an attribute that no state_dict holds,
    and only if there is something to keep. What is in it goes for the counter as the library left
    it: loaded, reset or counted up by PyTorch, that is another one.
    """

    _NAME = "_batchnorm_skipped"
    _FRESH = 1  # the version of a tensor that was copied or unpickled, and not written to since

    def __init__(self, num_batches_tracked: Tensor, channels: int) -> None:
        self.counter = num_batches_tracked
        none = torch.zeros((2, channels), dtype=torch.int64, device="cpu")
        left, counts = getattr(num_batches_tracked, self._NAME, (None, none))
        fits = left is not None and self._is_as_left(left) and counts.shape == none.shape
        self.before: Tensor = counts if fits else none
        self.counts = self.before.clone()

    def _state(self) -> tuple[int, int, int]:
        """Which tensor, its number, and how often PyTorch, not the library, has written to it."""
        counter = self.counter
        version = 0 if counter.is_inference() else version_of(counter)
        return id(counter), int(counter), version

    def _is_as_left(self, left: tuple[int, int, int]) -> bool:
        which, number, version = self._state()
        return number == left[1] and version == (left[2] if which == left[0] else self._FRESH)

    def keep(self, channels: Tensor) -> None:
        """Counts a batch that the library has taken in and these channels have not."""
        self.counts = torch.where(channels, self.before + 1, self.counts)

    def store(self) -> None:
        if self.counts.any():
            setattr(self.counter, self._NAME, (self._state(), self.counts))
        elif hasattr(self.counter, self._NAME):
            delattr(self.counter, self._NAME)


def _take_in(
    running: tuple[Tensor, Tensor], wide: tuple[Tensor, Tensor], skipped: _Skipped | None
) -> None:
    """Lets half statistics take in what their wide copies have, or keep a channel's two."""
    if wide[0] is running[0] and wide[1] is running[1]:
        return
    new = [each.to(old.dtype) for each, old in zip(wide, running, strict=True)]
    # Not what was infinite before: that stays, or has been replaced, as the library does it.
    lost = [each.isfinite() & ~half.isfinite() for each, half in zip(wide, new, strict=True)]
    kept = lost[0] | lost[1]
    for old, half in zip(running, new, strict=True):
        old.copy_(torch.where(kept, old, half))
    if skipped is not None:
        skipped.keep(kept)


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
) -> tuple[Tensor, Tensor]:
    """The output, and the saved mean, its rest and invstd as one float64 tensor (3, C).

    Running statistics and `num_batches_tracked` are updated in place; `momentum` None is cumulative
    averaging, by the latter and by the batches that a channel had to skip. Running statistics may
    have a half input's dtype. One that its dtype cannot hold keeps its channel's two as they were,
    as in the library where float32 cannot.
    """
    form = form_of(input)
    channels, dtype = form.channels, form.vector_dtype
    if form.elements <= channels:
        raise UnfitError(f"training needs two values per channel, got {list(form.shape)}")
    if not 0.0 < eps < math.inf:
        raise UnfitError(f"eps is {eps}, expected a positive number in training")
    if momentum is not None and not math.isfinite(momentum):
        raise UnfitError(f"momentum is {momentum}, expected a finite number or None")
    if (running_mean is None) != (running_var is None):
        raise UnfitError("one of running_mean and running_var is None, expected both or neither")
    skipped: _Skipped | None = None
    args = c.bn_forward_training_args(_TRAINING_SIZE)
    args.epsilon = eps
    if momentum is None and num_batches_tracked is not None:
        args.averaging = c.Averaging.CUMULATIVE
    else:
        args.momentum = momentum or 0.0  # PyTorch's, where it cannot count either
    args.input = input.data_ptr()
    args.input_count = args.output_count = form.elements
    if weight is not None:
        args.weight = _vector_address(weight, "weight", channels, dtype)
        args.weight_count = channels
    if bias is not None:
        args.bias = _vector_address(bias, "bias", channels, dtype)
        args.bias_count = channels
    if running_mean is not None and running_var is not None:
        mean, var = widened(running_mean, form.dtype), widened(running_var, form.dtype)
        args.running_mean = _vector_address(mean, "running_mean", channels, dtype)
        args.running_var = _vector_address(var, "running_var", channels, dtype)
        args.running_mean_count = args.running_var_count = channels
        if num_batches_tracked is not None:
            if num_batches_tracked.dtype is not torch.int64 or not num_batches_tracked.is_cpu:
                raise UnfitError(
                    f"num_batches_tracked has dtype {num_batches_tracked.dtype} on "
                    f"{num_batches_tracked.device}, expected torch.int64 on cpu"
                )
            args.num_batches_tracked = num_batches_tracked.data_ptr()
            if momentum is None:
                skipped = _Skipped(num_batches_tracked, channels)
                args.skipped_batches = skipped.counts.data_ptr()
                args.skipped_batches_count = 2 * channels
    if residual is not None:
        args.residual = _address(residual, "residual", form)
        args.residual_count = form.elements
    if activation is not None:
        set_activation(args, activation, negative_slope)
    saved = torch.empty((SAVED, channels), dtype=torch.float64, device="cpu")
    _set_saved(args, saved, channels)
    output = empty_like(input)
    args.output = output.data_ptr()
    _call(c.bn_forward_training, form.problem, args)
    if running_mean is not None and running_var is not None:
        _take_in((running_mean, running_var), (mean, var), skipped)
    if skipped is not None:
        skipped.store()
    return output, saved


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
    form = form_of(input)
    channels, dtype = form.channels, form.vector_dtype
    if not form.elements:
        raise UnfitError(f"there is nothing to normalize in {list(form.shape)}")
    if not 0.0 <= eps < math.inf:
        raise UnfitError(f"eps is {eps}, expected a finite number of at least 0")
    args = c.bn_forward_inference_args(_INFERENCE_SIZE)
    args.epsilon = eps
    args.input = input.data_ptr()
    args.input_count = args.output_count = form.elements
    if weight is not None:
        args.weight = _vector_address(weight, "weight", channels, dtype)
        args.weight_count = channels
    if bias is not None:
        args.bias = _vector_address(bias, "bias", channels, dtype)
        args.bias_count = channels
    mean, var = widened(running_mean, form.dtype), widened(running_var, form.dtype)
    args.running_mean = _vector_address(mean, "running_mean", channels, dtype)
    args.running_var = _vector_address(var, "running_var", channels, dtype)
    args.running_mean_count = args.running_var_count = channels
    if residual is not None:
        args.residual = _address(residual, "residual", form)
        args.residual_count = form.elements
    if activation is not None:
        set_activation(args, activation, negative_slope)
    output = empty_like(input)
    args.output = output.data_ptr()
    _call(c.bn_forward_inference, form.problem, args)
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


def _new_vector(weight: Tensor | None, channels: int, dtype: torch.dtype) -> Tensor:
    """Of the weight's kind; from itself, in half the time."""
    if weight is None:
        return torch.empty(channels, dtype=dtype, device="cpu")
    return torch.empty_like(weight, requires_grad=False)


def backward(
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
    wanted: Wanted,
) -> Gradients:
    """Gradients, from what the forward normalized by: `saved`, else the running statistics.

    The residual's gradient is computed where there is an activation; without one it is
    `grad_output` itself, as the caller knows.
    """
    form = form_of(input)
    channels, dtype = form.channels, form.vector_dtype
    args = c.bn_backward_args(_BACKWARD_SIZE)
    args.epsilon = eps
    args.input_count = args.grad_output_count = form.elements
    args.input = input.data_ptr()
    args.grad_output = _address(grad_output, "grad_output", form)
    if weight is not None:
        args.weight = _vector_address(weight, "weight", channels, dtype)
        args.weight_count = channels
    if saved is not None:
        # It comes from autograd's store, where a hook of the user's may have changed it.
        if not (
            saved.shape == (SAVED, channels)
            and saved.dtype is torch.float64
            and saved.is_contiguous()
            and saved.is_cpu
        ):
            raise UnfitError(
                f"the saved statistics have shape {list(saved.shape)}, strides {saved.stride()} "
                f"and dtype {saved.dtype} on {saved.device}, expected a contiguous Tensor of shape "
                f"[{SAVED}, {channels}] with torch.float64 on cpu"
            )
        _set_saved(args, saved, channels)
    elif running_mean is None or running_var is None:
        raise UnfitError("saved is None, expected it, or running_mean and running_var")
    else:
        args.statistics = c.Statistics.RUNNING
        mean, var = widened(running_mean, form.dtype), widened(running_var, form.dtype)
        args.running_mean = _vector_address(mean, "running_mean", channels, dtype)
        args.running_var = _vector_address(var, "running_var", channels, dtype)
        args.running_mean_count = args.running_var_count = channels
    grad_input = grad_weight = grad_bias = grad_residual = None
    if activation is not None:
        if output is None:
            raise UnfitError(
                f"output is None, expected the forward's: activation is {activation!r}"
            )
        set_activation(args, activation, negative_slope)
        args.output = _address(output, "output", form)
        args.output_count = form.elements
        if wanted.residual:
            grad_residual = empty_like(input)
            args.grad_residual = grad_residual.data_ptr()
            args.grad_residual_count = form.elements
    if wanted.input:
        grad_input = empty_like(input)
        args.grad_input, args.grad_input_count = grad_input.data_ptr(), form.elements
    if wanted.weight:
        grad_weight = _new_vector(weight, channels, dtype)
        args.grad_weight, args.grad_weight_count = grad_weight.data_ptr(), channels
    if wanted.bias:
        grad_bias = _new_vector(weight, channels, dtype)
        args.grad_bias, args.grad_bias_count = grad_bias.data_ptr(), channels
    _call(c.bn_backward, form.problem, args)
    return Gradients(grad_input, grad_weight, grad_bias, grad_residual)
