"""A drop-in for PyTorch's batch normalization on CPUs.

`BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d` are PyTorch's modules, run by libbatchnorm: the same
constructors, attributes, state_dict and errors, other devices left to PyTorch. `convert` puts them
into a model that is there, `report` tells what it has done, and `revert` takes them out again.

>>> import torch, batchnorm.torch
>>> layer = batchnorm.torch.BatchNorm2d(3)
>>> output = layer(torch.randn(8, 3, 16, 16) * 2 + 5)
>>> output.mean().abs().item() < 1e-6, layer.num_batches_tracked.item()
(True, 1)
>>> sorted(layer.state_dict()) == sorted(torch.nn.BatchNorm2d(3).state_dict())
True
"""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "batchnorm.torch needs PyTorch (it is tested with 2.13): pip install torch, or its CPU "
        "build, see https://pytorch.org/get-started/locally",
        name="torch",
    ) from error

from ._report import Fused, Left, Report, report
from .convert import convert, revert
from .modules import BatchNorm1d, BatchNorm2d, BatchNorm3d

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Fused",
    "Left",
    "Report",
    "convert",
    "report",
    "revert",
]
