"""Other frameworks' batch normalization, as options of this package's layers and functions.

Frameworks differ in what momentum means, in epsilon, in the variance that enters the running
statistics, in what one value per channel does, and in the channel's axis. A preset says all five as
the framework's layer has them by default:

>>> import numpy as np
>>> from batchnorm import BatchNorm2d, presets
>>> BatchNorm2d(64, **presets.KERAS)  # doctest: +NORMALIZE_WHITESPACE
BatchNorm2d(64, eps=0.001, momentum=0.01, affine=True, track_running_stats=True,
            running_variance='biased', one_value='allow', channel_axis=-1)

What your network sets otherwise goes on top. Mind the direction of momentum: here, as in PyTorch,
it is the share of the *new* batch; Keras, Flax and ONNX call the share of the old value so.

>>> layer = BatchNorm2d(64, **{**presets.FLAX, "momentum": 1 - 0.9})  # nn.BatchNorm(momentum=0.9)
>>> layer.eps, round(layer.momentum, 3)
(1e-05, 0.1)

`batchnorm.functional.forward_training` takes the same options. docs/coming-from.md has the tables,
what no option can express, and how to bring weights along.
"""

from __future__ import annotations

from typing import Final, TypedDict

from ._arrays import ChannelAxis
from ._options import OneValuePolicy, RunningVariance

__all__ = ["FLAX", "KERAS", "MLX", "ONNX", "PYTORCH", "TENSORFLOW", "Preset"]


class Preset(TypedDict):
    """The options in which frameworks differ; `BatchNorm2d` tells what each means.

    Examples
    --------
    >>> sorted(PYTORCH) == sorted(Preset.__annotations__)
    True
    """

    eps: float
    momentum: float
    running_variance: RunningVariance
    one_value: OneValuePolicy
    channel_axis: ChannelAxis


#: `torch.nn.BatchNorm1d` to `3d`, and the defaults of this package.
PYTORCH: Final[Preset] = {
    "eps": 1e-5,
    "momentum": 0.1,
    "running_variance": "unbiased",
    "one_value": "error",
    "channel_axis": 1,
}

#: `keras.layers.BatchNormalization` of Keras 3, whose momentum is 0.99.
KERAS: Final[Preset] = {
    "eps": 1e-3,
    "momentum": 0.01,
    "running_variance": "biased",
    "one_value": "allow",
    "channel_axis": -1,
}

#: `flax.linen.BatchNorm` and `flax.nnx.BatchNorm`, whose momentum is 0.99.
FLAX: Final[Preset] = {
    "eps": 1e-5,
    "momentum": 0.01,
    "running_variance": "biased",
    "one_value": "allow",
    "channel_axis": -1,
}

#: ONNX's BatchNormalization since opset 14, whose momentum is 0.9.
ONNX: Final[Preset] = {
    "eps": 1e-5,
    "momentum": 0.1,
    "running_variance": "biased",
    "one_value": "allow",
    "channel_axis": 1,
}

#: `tf.keras.layers.BatchNormalization` of Keras 2 (TensorFlow to 2.15, and the package tf_keras) on
#: images and volumes, which TensorFlow's fused operation computes; its momentum is 0.99.
TENSORFLOW: Final[Preset] = {
    "eps": 1e-3,
    "momentum": 0.01,
    "running_variance": "unbiased",
    "one_value": "allow",
    "channel_axis": -1,
}

#: `mlx.nn.BatchNorm`: PyTorch's choices on MLX's axes.
MLX: Final[Preset] = {**PYTORCH, "channel_axis": -1}
