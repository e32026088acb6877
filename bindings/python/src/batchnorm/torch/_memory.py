"""Where the tensors that this package returns get their memory: large ones from recycled blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import memory


def empty_like(tensor: Tensor) -> Tensor:
    """A new tensor of the same sizes, strides and dtype; `tensor` is dense."""
    # Any: typeshed does not know that a ctypes array is a buffer.
    block: Any = memory.allocate(tensor.nbytes)
    if block is None:
        return torch.empty_like(tensor)
    flat = torch.frombuffer(block, dtype=tensor.dtype, count=tensor.numel())
    # Not flat.view(): what is a view cannot be modified in place once autograd knows it.
    result = torch.empty(0, dtype=tensor.dtype, device="cpu")
    return result.set_(flat.untyped_storage(), 0, tensor.shape, tensor.stride())
