"""Batch normalization on CPUs, forward and backward, for arrays and PyTorch models.

`batchnorm.functional` has the stateless functions, `BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d`
are layers that keep parameters and running statistics, `fold_into` puts normalization into the
convolution before it, `explain` tells what a call would do. Names and conventions are PyTorch's;
`batchnorm.presets` has those of other frameworks. `batchnorm.torch`, which has to be imported by
itself, is the drop-in for PyTorch models; `batchnorm.memory` bounds the memory that results are
recycled in, and `show_config` tells how all of it runs.
The work is done by libbatchnorm, a C library, without copying arrays and without holding the
interpreter lock.

>>> import numpy as np, batchnorm
>>> layer = batchnorm.BatchNorm2d(3)
>>> images = np.random.default_rng(0).normal(5, 2, (8, 3, 16, 16)).astype(np.float32)
>>> normalized = layer(images)
>>> float(abs(normalized.mean()).round(4)), float(normalized.std().round(4))
(0.0, 1.0)
"""

from __future__ import annotations

from . import functional, memory, presets
from .config import show_config
from .errors import (
    BatchNormBufferError,
    BatchNormError,
    BatchNormImportError,
    BatchNormMemoryError,
    BatchNormRuntimeError,
    BatchNormTypeError,
    BatchNormValueError,
    LayoutError,
    Status,
)
from .fold import Folded, fold_affine, fold_into
from .machine import (
    get_isa,
    get_num_threads,
    get_thread_runtime,
    get_threading,
    set_max_isa,
    set_num_threads,
    set_threading,
    version,
)
from .modules import BatchNorm1d, BatchNorm2d, BatchNorm3d
from .moments import (
    GradientSums,
    Moments,
    backward_apply,
    backward_reduce,
    normalize,
    normalize_saved,
)
from .plan import Plan, explain
from .recalibration import StatisticsAccumulator, recalibrate

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchNormBufferError",
    "BatchNormError",
    "BatchNormImportError",
    "BatchNormMemoryError",
    "BatchNormRuntimeError",
    "BatchNormTypeError",
    "BatchNormValueError",
    "Folded",
    "GradientSums",
    "LayoutError",
    "Moments",
    "Plan",
    "StatisticsAccumulator",
    "Status",
    "backward_apply",
    "backward_reduce",
    "explain",
    "fold_affine",
    "fold_into",
    "functional",
    "get_isa",
    "get_num_threads",
    "get_thread_runtime",
    "get_threading",
    "memory",
    "normalize",
    "normalize_saved",
    "presets",
    "recalibrate",
    "set_max_isa",
    "set_num_threads",
    "set_threading",
    "show_config",
    "version",
]

#: The version of the library that is loaded; the package has no other.
__version__ = version()
