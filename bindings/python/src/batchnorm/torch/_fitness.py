"""Whether the library can do a call, by the module and the tensors in it.

What no call may get past, the sizes and memory order of all that C sees, _kernels checks itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._kernels import DTYPES, HALVES, UnfitError
from ._private import BATCH_NORM, is_transformed


def is_fit(module: BATCH_NORM, input: Tensor) -> bool:
    """Whether the library does a module's call. If not, PyTorch does it, or says what is wrong.

    It is asked on the dispatcher's way. On the direct one the checks below and those of the C call
    itself say so, for less.
    """
    dtype = input.dtype
    by_batch = module.training or module.running_mean is None
    momentum = module.momentum
    if not (
        not is_transformed()
        and input.is_cpu
        and dtype in DTYPES
        and input.layout is torch.strided
        and 2 <= input.dim() <= 5
        and input.shape[1] == module.num_features
        and input.numel() > (module.num_features if by_batch else 0)
        and (0.0 < module.eps < math.inf or (module.eps == 0.0 and not by_batch))
        and (momentum is None or math.isfinite(momentum))
    ):
        return False
    weight, bias, mean, var = module.weight, module.bias, module.running_mean, module.running_var
    vectors = [vector for vector in (weight, bias, mean, var) if vector is not None]
    # In a half network the parameters may be half as well.
    expected = vectors[0].dtype if vectors and dtype in HALVES else dtype
    if expected is not dtype and expected is not torch.float32:
        return False
    for vector in vectors:
        if (
            vector.dtype is not expected
            or vector.numel() != module.num_features
            or not vector.is_cpu
        ):
            return False
    if mean is None or var is None:
        return mean is var
    if mean.requires_grad or var.requires_grad:
        return False
    return not by_batch or not _is_unwritable(mean, var)


def _is_unwritable(*statistics: Tensor) -> bool:
    """Whether one cannot be written to: an inference tensor where there is no inference mode."""
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
        return False
    return any(each.is_inference() for each in statistics)


def check_vectors(input: Tensor, *vectors: Tensor | None) -> None:
    """Raises `UnfitError` for parameters and statistics of several dtypes beside a half input."""
    if input.dtype in HALVES:
        dtypes = {vector.dtype for vector in vectors if vector is not None}
        if len(dtypes) > 1:
            raise UnfitError(f"parameters and statistics have several dtypes: {dtypes}")


def check_statistics(mean: Tensor, var: Tensor, written: bool) -> None:
    """Raises `UnfitError` for running statistics that autograd, or who writes them, forbids."""
    if mean.requires_grad or var.requires_grad:
        raise UnfitError("a running statistic requires grad")
    if written and (mean.is_inference() or var.is_inference()):
        raise UnfitError("a running statistic is an inference tensor")


def is_like(residual: Tensor, input: Tensor) -> bool:
    """Whether the library can add it as it is, or in another memory order."""
    return (
        residual.shape == input.shape
        and residual.dtype == input.dtype
        and residual.device == input.device
        and residual.layout is torch.strided
    )


def can_add(residual: Tensor, input: Tensor) -> bool:
    """Whether the library can add it. What cannot be added at all is refused here."""
    if not isinstance(residual, Tensor):
        raise TypeError(f"residual is a {type(residual).__name__}, expected a torch.Tensor or None")
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
    return is_like(residual, input)
