"""Whether the library does a call, and how, or why not.

The kernels trust this judgement: every tensor whose address they take has been looked at here. What
is left to C is memory that overlaps: it refuses statistics that lie in the input or in each other.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ._call import DTYPES, HALVES, PLAIN_TYPES, SAVED, BackwardCall, Call, vector_dtype
from ._private import is_plain, is_transformed


class UnfitError(RuntimeError):
    """A registered operator was called with what the library does not take."""


class Fitness(NamedTuple):
    """What a judgement says."""

    reason: str | None
    """Why PyTorch has to do the call; None if the library does it."""
    direct: bool = False
    """Whether kernels can be called past the dispatcher, which makes tensors fit otherwise."""


_DIRECT, _DISPATCHED = Fitness(None, direct=True), Fitness(None)


def judge(call: Call, dispatched: bool = False) -> Fitness:
    """Judges a forward; with `dispatched`, for the operators' kernels, which write to nothing.

    Memory order does not matter, nor do half parameters beside a half input: they are made to fit.
    """
    input, weight, bias, mean, var, counter, momentum, eps, residual, _, _, frozen = call
    direct = not dispatched and is_plain(input, residual)
    if not (direct or dispatched) and is_transformed():
        return Fitness("torch.func or forward-mode differentiation is at work")
    shape, dtype = input.shape, input.dtype
    if (
        dtype not in DTYPES
        or not 2 <= len(shape) <= 5
        or not (direct or (input.is_cpu and input.layout is torch.strided))
    ):
        return Fitness(_unfit_input(input))
    channels = shape[1]
    if input.numel() <= (0 if frozen else channels):
        if frozen:
            return Fitness(f"there is nothing to normalize in {list(shape)}")
        return Fitness(f"training needs two values per channel, got {list(shape)}")
    # Where eps is 0, PyTorch refuses a training.
    if not (0.0 < eps < math.inf or (frozen and eps == 0.0)):
        expected = "finite number of at least 0" if frozen else "positive number in training"
        return Fitness(f"eps is {eps}, expected a {expected}")
    if residual is not None and not is_like(residual, input):
        return Fitness(_unlike("residual", residual, input))
    if not (frozen or momentum is None or -math.inf < momentum < math.inf):
        return Fitness(f"momentum is {momentum}, expected a finite number or None")
    if mean is None or var is None:
        if mean is not var:
            return Fitness("one of running_mean and running_var is None, expected both or neither")
    elif mean.requires_grad or var.requires_grad:
        return Fitness("a running statistic requires grad")
    # In a half network the vectors may be half as well.
    vector_type = None if dtype in HALVES else dtype
    for vector in (weight, bias, mean, var):
        if vector is None:
            continue
        if vector_type is None:
            vector_type = dtype if vector.dtype is dtype else torch.float32
        if vector.dtype is not vector_type or vector.numel() != channels or not vector.is_cpu:
            return Fitness(_unfit_vector(call, vector, channels, vector_type))
        # As _is_simple says, without four calls of it.
        direct = (
            direct
            and type(vector) in PLAIN_TYPES
            and vector.is_contiguous()
            and not vector.is_neg()
        )
    if not (frozen or dispatched):
        if mean is not None and var is not None:
            return _judge_written(mean, var, counter, direct)
        direct = direct and counter is None  # C counts what running statistics take in
    return _DIRECT if direct else _DISPATCHED


def _judge_written(mean: Tensor, var: Tensor, counter: Tensor | None, direct: bool) -> Fitness:
    """Judges what a training writes to."""
    if not direct and torch.compiler.is_compiling():
        return _DISPATCHED
    written = (mean, var) if counter is None else (mean, var, counter)
    for tensor in written:
        if tensor.is_inference():
            if not torch.is_inference_mode_enabled():
                return Fitness(
                    "a running statistic is an inference tensor, which is not written to"
                )
            direct = False  # it has no version that the direct way could count up
        elif not tensor.is_contiguous() and 0 in tensor.stride():
            return Fitness("a running statistic's values share memory")
    if counter is not None:
        direct = (
            direct
            and counter.dtype is torch.int64
            and counter.is_cpu
            and counter.numel() == 1
            and _is_simple(counter)
        )
    return _DIRECT if direct else _DISPATCHED


def is_like(tensor: Tensor, input: Tensor) -> bool:
    """Whether a tensor goes with an input, in whatever memory order."""
    return (
        tensor.shape == input.shape
        and tensor.dtype is input.dtype
        and tensor.device == input.device
        and tensor.layout is torch.strided
    )


def check_addable(residual: Tensor, input: Tensor) -> None:
    """Refuses what PyTorch cannot add to an input either, before anything is written."""
    if residual.shape != input.shape:
        try:
            torch.broadcast_shapes(residual.shape, input.shape)
        except RuntimeError:
            raise ValueError(
                f"residual has shape {list(residual.shape)}, expected one that can be added to "
                f"the input's, {list(input.shape)}"
            ) from None
    if residual.device != input.device and residual.dim():
        raise ValueError(
            f"residual is on {residual.device}, expected it on {input.device} as the input is"
        )


def judge_backward(call: BackwardCall, dispatched: bool = False) -> Fitness:
    """Judges a backward. A user's hooks may have changed what autograd stored."""
    grad_output, input, weight, saved, mean, var, _, output, activation, _, _ = call
    shape, dtype = input.shape, input.dtype
    if (
        dtype not in DTYPES
        or not 2 <= len(shape) <= 5
        or not input.is_cpu
        or input.layout is not torch.strided
    ):
        return Fitness(_unfit_input(input))
    channels, wide = shape[1], vector_dtype(dtype)
    if not is_like(grad_output, input):
        return Fitness(_unlike("grad_output", grad_output, input))
    # What is computed without grad, nobody will differentiate once more.
    direct = not (dispatched or torch.is_grad_enabled()) and is_plain(grad_output, input, output)
    if activation is not None:
        if output is None:
            return Fitness(f"output is None, expected the forward's: activation is {activation!r}")
        if not is_like(output, input):
            return Fitness(_unlike("output", output, input))
    for vector in (weight, mean, var):
        if vector is None:
            continue
        is_wide = vector.dtype is wide
        if (
            not (is_wide or vector.dtype is dtype)
            or vector.numel() != channels
            or not vector.is_cpu
        ):
            return Fitness(_unfit_vector(call, vector, channels, wide))
        direct = direct and is_wide and _is_simple(vector)
    if saved is None:
        if mean is None or var is None:
            return Fitness("saved is None, expected it, or running_mean and running_var")
    elif saved.shape != (SAVED, channels) or not saved.is_cpu:
        return Fitness(
            f"the saved statistics have shape {list(saved.shape)} on {saved.device}, "
            f"expected [{SAVED}, {channels}] on cpu"
        )
    else:
        direct = direct and saved.dtype is torch.float64 and _is_simple(saved)
    return _DIRECT if direct else _DISPATCHED


def _is_simple(vector: Tensor) -> bool:
    """Whether C can take a vector as it lies."""
    return type(vector) in PLAIN_TYPES and vector.is_contiguous() and not vector.is_neg()


# ---- Words --------------------------------------------------------------------------------------


def _unfit_input(input: Tensor) -> str:
    if input.dtype not in DTYPES:
        return (
            f"batch_norm not implemented for {str(input.dtype).removeprefix('torch.')!r}, "
            "expected float32, float64, bfloat16 or float16"
        )
    if not 2 <= input.dim() <= 5:
        return f"expected 2D to 5D input (got {input.dim()}D input)"
    return f"input is {input.layout} on {input.device}, expected torch.strided on cpu"


def _unfit_vector(
    call: Call | BackwardCall, vector: Tensor, channels: int, dtype: torch.dtype
) -> str:
    name = next(name for name, each in call._asdict().items() if each is vector)
    if vector.numel() != channels:
        return f"{name} should contain {channels} elements not {vector.numel()}"
    return (
        f"{name} is a {type(vector).__name__} with dtype {vector.dtype} on {vector.device}, "
        f"expected {dtype} on cpu"
    )


def _unlike(name: str, tensor: Tensor, input: Tensor) -> str:
    return (
        f"{name} has shape {list(tensor.shape)} and dtype {tensor.dtype} on {tensor.device}, "
        f"expected {list(input.shape)} and {input.dtype} on {input.device} as the input has"
    )
