"""torch.nn.BatchNorm in plain NumPy: what PyTorch's documentation and source say, for the tests.

Independent of the library: statistics by NumPy's own mean and var, in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class TorchBatchNorm:
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        self.eps, self.momentum = eps, momentum
        self.training = True
        self.weight: Any = np.ones(num_features) if affine else None
        self.bias: Any = np.zeros(num_features) if affine else None
        self.track = track_running_stats
        self.reset_running_stats(num_features)

    def reset_running_stats(self, num_features: int) -> None:
        self.running_mean: Any = np.zeros(num_features) if self.track else None
        self.running_var: Any = np.ones(num_features) if self.track else None
        self.num_batches_tracked = 0

    def forward(self, x: Array) -> Array:
        axes = (0, *range(2, x.ndim))
        shape = (1, -1, *[1] * (x.ndim - 2))
        self.by_batch = self.training or not self.track
        if self.by_batch:
            mean, var = x.mean(axes), x.var(axes)
        else:
            mean, var = self.running_mean, self.running_var
        if self.training and self.track:
            self.num_batches_tracked += 1
            share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
            self.running_mean = (1 - share) * self.running_mean + share * mean
            self.running_var = (1 - share) * self.running_var + share * x.var(axes, ddof=1)
        self.x_hat = (x - mean.reshape(shape)) / np.sqrt(var.reshape(shape) + self.eps)
        self.invstd = 1 / np.sqrt(var.reshape(shape) + self.eps)
        y: Array = self.x_hat
        if self.weight is not None:
            y = y * self.weight.reshape(shape)
        if self.bias is not None:
            y = y + self.bias.reshape(shape)
        return y

    def backward(self, grad: Array) -> tuple[Array, Array, Array]:
        axes = (0, *range(2, grad.ndim))
        shape = (1, -1, *[1] * (grad.ndim - 2))
        grad_bias = grad.sum(axes)
        grad_weight = (grad * self.x_hat).sum(axes)
        inner = grad if self.weight is None else grad * self.weight.reshape(shape)
        if self.by_batch:
            inner = (
                inner
                - inner.mean(axes).reshape(shape)
                - self.x_hat * (inner * self.x_hat).mean(axes).reshape(shape)
            )
        return inner * self.invstd, grad_weight, grad_bias
