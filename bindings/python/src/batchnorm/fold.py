"""Folding: normalization by running statistics as one affine map, or inside the layer before it.

This file knows where the output channels lie in an array; the C library does the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from ctypes import sizeof
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy import ndarray

from . import _foreign as foreign
from . import _lowlevel as c
from ._arrays import Array, address, dtype_code, folded_dtype, vector_address, written_address
from ._options import integer, real, unknown
from .errors import BatchNormValueError

__all__ = ["Folded", "fold_affine", "fold_into"]

WeightLayout = Literal["OIHW", "OHWI", "IOHW", "HWIO", "HWOI", "HWIM"]

# The axes of the output channels; "HW" stands for any number of spatial axes, also none.
_OUTPUT_AXES: dict[str, slice] = {
    "OIHW": slice(0, 1),
    "OHWI": slice(0, 1),
    "IOHW": slice(1, 2),
    "HWIO": slice(-1, None),
    "HWOI": slice(-2, -1),
    "HWIM": slice(-2, None),
}


class Folded(NamedTuple):
    """What `fold_affine` and `fold_into` return."""

    weight: Array
    """The new weight, like the given one; of an affine pair the scale, (C,)."""
    bias: Array
    """The new bias, one per output channel, (C,); of an affine pair the shift."""
    weight_error: float
    """The largest |rounded - float64| of a weight, relative to the largest weight of its output
    channel. 0 for float64; up to 6e-8, half a unit, for float32, unless weights underflow."""
    bias_error: float
    """The largest |rounded - float64| of a bias, relative to the size of the normalized output,
    the larger of |gamma| and |beta| of its channel. It grows with |mean| / deviation."""


def fold_affine(
    running_mean: Array,
    running_var: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    eps: float = 1e-5,
) -> Folded:
    """Express normalization by running statistics as one affine map per channel.

    Parameters
    ----------
    running_mean, running_var : (C,) array, float32 or float64
    weight, bias : (C,) array or None
        Of the normalization; None means 1 and 0.
    eps : float
        At least 0. With 0, a channel of variance 0 gets scale 0.

    Returns
    -------
    Folded
        ``y = x * weight + bias`` per channel, formed in float64 and rounded once.

    Raises
    ------
    BatchNormTypeError, BatchNormValueError
        Wrong types, dtypes and shapes; NaN, infinity, a negative variance, or a result beyond the
        range of the dtype (`Status.NUMBER`).

    Examples
    --------
    >>> import numpy as np
    >>> pair = fold_affine(np.array([3.0]), np.array([4.0]), eps=0.0)
    >>> pair.weight, pair.bias
    (array([0.5]), array([-1.5]))
    """
    if type(running_mean) is not ndarray:
        return foreign.call(fold_affine, locals(), "running_mean")
    args = _statistics(running_mean, running_var, weight, bias, eps)
    shape = affine_shape(running_mean.size, running_mean.dtype)
    return fold(c.bn_fold, args, shape, None, None, None, None)


def fold_into(
    conv_weight: Array,
    conv_bias: Array | None,
    running_mean: Array,
    running_var: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    eps: float = 1e-5,
    layout: WeightLayout = "OIHW",
    groups: int = 1,
    folded_weight: Array | None = None,
    folded_bias: Array | None = None,
) -> Folded:
    """Fold normalization by running statistics into the convolution or linear layer before it.

    With ``scale = weight / sqrt(running_var + eps)``, the new weight is ``conv_weight * scale`` per
    output channel, and the new bias ``(conv_bias - running_mean) * scale + bias``: formed in
    float64 and rounded once. Follows `torch.nn.utils.fuse_conv_bn_weights`.

    Parameters
    ----------
    conv_weight : array of two or more dimensions, float32 or float64
        Of any strides; what is not C-contiguous is copied.
    conv_bias : (C,) array or None
        None means 0. C is the number of output channels.
    running_mean, running_var : (C,) array
        Of `conv_weight`'s dtype, as all arrays are.
    weight, bias : (C,) array or None
        Of the normalization; None means 1 and 0.
    eps : float
        At least 0. With 0, a channel of variance 0 gets scale 0.
    layout : str
        The axes of `conv_weight`. "HW" stands for any number of spatial axes, also none:

        - "OIHW": PyTorch's and ONNX's convolutions, grouped and depthwise too, and linear layers;
          "OHWI": the same with the input channels last.
        - "IOHW": PyTorch's and ONNX's transposed convolutions, (I, O / groups, ...).
        - "HWIO": convolutions and dense layers of Keras, Flax and JAX; "HWOI": Keras's transposed
          convolutions; "HWIM": Keras's depthwise ones, (..., I, multiplier).
    groups : int
        Of the convolution. It tells where output channels lie in "IOHW"; elsewhere it is only
        checked.
    folded_weight, folded_bias : array or None
        Destinations, C-contiguous; they may be `conv_weight` and `conv_bias` themselves.

    Returns
    -------
    Folded

    Raises
    ------
    BatchNormTypeError, BatchNormValueError
        Wrong types, dtypes, shapes and options; NaN, infinity, a negative variance, or a result
        beyond the range of the dtype (`Status.NUMBER`). Nothing has been written.

    Examples
    --------
    >>> import numpy as np
    >>> linear = np.array([[2.0, 4.0], [1.0, 0.0]])  # (O, I)
    >>> mean, var = np.array([1.0, 0.0]), np.array([4.0, 1.0])
    >>> folded = fold_into(linear, None, mean, var, eps=0.0)
    >>> folded.weight, folded.bias
    (array([[1., 2.],
           [1., 0.]]), array([-0.5,  0. ]))
    """
    if type(conv_weight) is not ndarray:
        return foreign.call(fold_into, locals(), "conv_weight")
    shape = weight_shape(conv_weight, layout, groups)
    args = _statistics(running_mean, running_var, weight, bias, eps, conv_weight.dtype)
    return fold(c.bn_fold, args, shape, conv_weight, conv_bias, folded_weight, folded_bias)


def affine_shape(channels: int, dtype: np.dtype[Any]) -> c.bn_weight_shape:
    """The shape of a weight with one value per channel."""
    return c.bn_weight_shape(sizeof(c.bn_weight_shape), dtype_code(dtype), 1, 1, channels, 1)


def weight_shape(conv_weight: Array, layout: WeightLayout, groups: int) -> c.bn_weight_shape:
    """How the library sees a weight. Raises BatchNormError."""
    dtype = folded_dtype(conv_weight, "conv_weight")
    if layout not in _OUTPUT_AXES:
        raise unknown("layout", layout, _OUTPUT_AXES)
    sizes = conv_weight.shape
    if len(sizes) < 2:
        raise BatchNormValueError(f"conv_weight has shape {sizes}, expected two dimensions or more")
    parts = integer("groups", groups)
    start, stop, _ = _OUTPUT_AXES[layout].indices(len(sizes))
    outer, channels, inner = (
        math.prod(each) for each in (sizes[:start], sizes[start:stop], sizes[stop:])
    )
    divided = outer if layout == "IOHW" else channels
    if parts < 1 or divided % parts:
        which = "input" if layout == "IOHW" else "output"
        raise BatchNormValueError(
            f"groups is {parts}, expected a divisor of the {divided} {which} channels that "
            f"conv_weight with shape {sizes} has in layout {layout!r}"
        )
    if layout != "IOHW":
        parts = 1
    return c.bn_weight_shape(
        sizeof(c.bn_weight_shape), dtype_code(dtype), parts, outer // parts, channels, inner
    )


def fold(
    call: Callable[[c.bn_weight_shape, c.bn_fold_args], object],
    args: c.bn_fold_args,
    shape: c.bn_weight_shape,
    conv_weight: Array | None,
    conv_bias: Array | None,
    folded_weight: Array | None,
    folded_bias: Array | None,
) -> Folded:
    """Fills in what every fold has, and runs it."""
    channels = shape.groups * shape.channels
    sizes = (channels,) if conv_weight is None else conv_weight.shape
    dtype = np.dtype(c.Dtype(shape.dtype).name.lower())
    if conv_weight is not None:
        conv_weight = np.ascontiguousarray(conv_weight)
        args.conv_weight, args.conv_weight_count = address(conv_weight), conv_weight.size
    args.conv_bias, args.conv_bias_count = vector_address(conv_bias, "conv_bias", dtype)
    if folded_weight is None:
        folded_weight = np.empty(sizes, dtype)
    if folded_bias is None:
        folded_bias = np.empty(channels, dtype)
    args.folded_weight, args.folded_weight_count = written_address(
        folded_weight, "folded_weight", sizes, dtype
    )
    args.folded_bias, args.folded_bias_count = written_address(
        folded_bias, "folded_bias", (channels,), dtype
    )
    call(shape, args)
    return Folded(folded_weight, folded_bias, args.weight_error, args.bias_error)


def _statistics(
    running_mean: Array,
    running_var: Array,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    dtype: np.dtype[Any] | None = None,
) -> c.bn_fold_args:
    if dtype is None:
        dtype = folded_dtype(running_mean, "running_mean")
    args = c.bn_fold_args(sizeof(c.bn_fold_args))
    args.epsilon = real("eps", eps)
    args.running_mean, args.running_mean_count = vector_address(running_mean, "running_mean", dtype)
    args.running_var, args.running_var_count = vector_address(running_var, "running_var", dtype)
    args.weight, args.weight_count = vector_address(weight, "weight", dtype)
    args.bias, args.bias_count = vector_address(bias, "bias", dtype)
    return args
