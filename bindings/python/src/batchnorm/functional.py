"""Batch normalization as functions: your arrays in, your arrays or new ones out, nothing kept.

Tensors have the shape (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W), float32, float64,
bfloat16 (of the package ml_dtypes) or float16. They are not copied. Two memory orders are known,
as in PyTorch: C-contiguous (NCHW), and channels-last (NHWC), which is a view such as
``np.moveaxis(nhwc, -1, 1)`` whose strides say that the channel is innermost. Results have the
input's memory order. Where both orders are the same memory (one channel, or one spatial value) the
array counts as C-contiguous. Arrays whose *last axis* is the channel, (N, H, W, C), are taken with
``channel_axis=-1``; results then have that axis order too. Any other strides raise `LayoutError`.

Parameters and running statistics are one-dimensional contiguous arrays of C elements and the
input's dtype, float32 for the half types; `saved_mean` and `saved_invstd` are float64 always,
because a float32 mean can be off by more than the standard deviation.

Destination arguments (`out`, `grad_input`, ...) must have the shape, dtype and memory order of the
array that would be made without them. `out` may be the input or the residual itself, `grad_input`
may be `grad_output` or the input, and `grad_residual` may be `grad_output`; any other overlap of
memory is an error.

Fusion: the forwards compute ``activation(batch normalization of input + residual)``, each of the
two optional, in the one sweep over memory that batch normalization takes anyway. The activation is
"relu" or "leaky_relu"; its backward needs to know where it let pass, and takes that from
`activation_mask`, one bit a value that the forward writes on request, or from the output. (cuDNN
calls this BN_ADD_ACTIVATION.)

Masks: positions that are masked take no part, neither in the statistics nor in a gradient, whatever
stands there, NaN included. `mask` has the input's shape without its channels, true where a position
takes part (Keras' convention); of sequences, (N, C, T) or with ``channel_axis=-1`` (N, T, C),
`lengths` has for each sample how many steps do. `masked` says what stands at the other positions
of an output and of `grad_input`: "zero", or "pass": the input, and `grad_output`, as they are. If
all positions are masked, statistics and counter stay as they are.

>>> import numpy as np
>>> x = np.array([[[1.0], [3.0], [np.nan]], [[5.0], [np.nan], [np.nan]]])  # (N, T, C), padded
>>> lengths = np.array([2, 1])
>>> result = forward_training(x, lengths=lengths, channel_axis=-1, eps=0.0)
>>> result.saved_mean, result.values_per_channel  # of 1, 3 and 5
(array([3.]), 3)
>>> print(result.output[..., 0].round(3))
[[-1.225  0.     0.   ]
 [ 1.225  0.     0.   ]]
>>> mask = np.arange(3) < lengths[:, np.newaxis]  # the same as one truth value a position
>>> same = forward_training(x, mask=mask, channel_axis=-1, eps=0.0)
>>> same.output.tobytes() == result.output.tobytes()
True

Arrays of other packages are taken where they lie, without a copy and without importing these: what
has ``__dlpack__`` on the CPU (PyTorch, JAX), ``__array_interface__`` or the buffer protocol
(`memoryview`, `array.array`, `mmap`). The first array decides: if `input` is a `numpy.ndarray`, all
arrays are; otherwise each may be of any kind, and results are of `input`'s kind, made by its
package's ``from_dlpack``: tensors for tensors. Where there is none, as for buffers, they are
ndarrays. Memory that its owner calls read-only is read, and refused as a destination; DLPack before
version 1.0 (as of JAX) counts as read-only. With ``allow_copy=True`` arrays that lie in another
order than they must are copied, instead of being refused; destinations never are.

>>> from array import array
>>> pixels = memoryview(array("f", range(12))).cast("B").cast("f", (2, 3, 2))
>>> print(batch_norm(pixels, None, None, training=True).mean(axis=(0, 2)).round(3) + 0.0)
[0. 0. 0.]

Errors: all are `BatchNormError`. `BatchNormTypeError` for wrong types and dtypes,
`BatchNormValueError` for wrong shapes and options, its subclass `LayoutError` for wrong strides and
alignment, `BatchNormBufferError` for arrays whose memory cannot be had (on another device, sparse,
part of autograd's graph). That holds for every argument, destinations too. Nothing has been
written.

Threads: all functions may be called from any thread on arrays that do not overlap; the interpreter
lock is released while the library works. After `os.fork` the child can go on using them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy import ndarray

from . import _arguments as arguments
from . import _foreign as foreign
from . import _lowlevel as c
from ._arrays import (
    Array,
    Bits,
    ChannelAxis,
    Counter,
    Counters,
    Float64Array,
    Lengths,
    Mask,
    MaybeArray,
    form_of,
    vector_address,
)
from ._options import (
    STATISTICS_WORDS,
    ActivationName,
    MaskedPolicy,
    NonfinitePolicy,
    OneValuePolicy,
    RunningVariance,
    StatisticsUsed,
    real,
)

__all__ = [
    "Gradients",
    "TrainingResult",
    "backward",
    "batch_norm",
    "forward_inference",
    "forward_training",
]


class TrainingResult(NamedTuple):
    """What `forward_training` returns."""

    output: Array
    """The normalized input; `out` if that was given."""
    saved_mean: Float64Array
    """Mean that normalized each channel, (C,), for `backward`."""
    saved_invstd: Float64Array
    """1 / sqrt(variance + eps) of each channel, (C,), for `backward`."""
    statistics_used: StatisticsUsed
    """"batch", or "running" where `one_value="use_running"` took effect."""
    nonfinite_channels: int
    """How many channels of the input held NaN or infinity."""
    activation_mask: Bits | Any = None
    """Where the activation let pass, a bit a value; None if it was not asked for."""
    values_per_channel: int = 0
    """How many values each channel's statistics are made of: those that are not masked."""
    saved_mean_rest: Float64Array | None = None
    """What `saved_mean` lacks of the mean, (C,), for `backward`; None unless input is float64."""
    nonfinite_running_channels: int = 0
    """How many channels' running mean or variance was NaN or infinite, and has stayed so."""


class Gradients(NamedTuple):
    """What `backward` returns; None for what was skipped or not asked for."""

    grad_input: MaybeArray
    """Gradient of the loss with respect to the input, in the input's shape."""
    grad_weight: MaybeArray
    """... with respect to the weight, (C,)."""
    grad_bias: MaybeArray
    """... with respect to the bias, (C,)."""
    grad_residual: MaybeArray = None
    """... with respect to the residual, in the input's shape; None if it was not asked for."""


def batch_norm(
    input: Array,
    running_mean: Array | None,
    running_var: Array | None,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    channel_axis: ChannelAxis = 1,
    out: Array | None = None,
    allow_copy: bool = False,
) -> Array:
    """Normalize a batch per channel; the counterpart of `torch.nn.functional.batch_norm`.

    ``(input - mean) / sqrt(variance + eps) * weight + bias``, where mean and variance are the
    batch's if `training` is true, and `running_mean` and `running_var` otherwise.

    Parameters
    ----------
    input : (N, C, ...) array, float32, float64, bfloat16 or float16
    running_mean, running_var : (C,) array or None
        Required if not training. In training, optional: updated in place to
        ``(1 - momentum) * old + momentum * batch``, with the unbiased batch variance.
    weight, bias : (C,) array or None
        None means 1 and 0.
    training : bool
    momentum : float
        The weight of the *new* batch, as in PyTorch (Keras, Flax and ONNX call ``1 - momentum``
        so).
    eps : float
        At least 0; added to the variance inside the square root.
    channel_axis : 1 or -1
        Which axis of `input` is the channel.
    out : array or None
        Where the result goes; may be `input`.
    allow_copy : bool
        True: copy arrays whose memory does not lie as it must, instead of refusing them.

    Returns
    -------
    array
        A new array like `input`, or `out`.

    Raises
    ------
    BatchNormTypeError, BatchNormValueError
        As `forward_training`. Nothing has been written.

    See Also
    --------
    forward_training : the same in training, and what `backward` needs.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    >>> y = batch_norm(x, None, None, training=True)
    >>> print(y.mean(axis=(0, 2)).round(3) + 0.0, y.std(axis=(0, 2)).round(3))
    [0. 0. 0.] [1. 1. 1.]
    """
    if type(input) is not ndarray or allow_copy:
        return foreign.call(batch_norm, locals())
    if training:
        form = form_of(input, "input", channel_axis)
        args = arguments.training_args(form, momentum=momentum)
        args.epsilon = real("eps", eps)
        arguments.running(args, form, running_mean, running_var, written=True)
        out = arguments.affine(args, form, input, weight, bias, out)
        c.bn_forward_training(form.problem, args)
        return out
    return forward_inference(
        input, running_mean, running_var, weight, bias, eps=eps, channel_axis=channel_axis, out=out
    )


def forward_training(
    input: Array,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    num_batches_tracked: Counter | None = None,
    skipped_batches: Counters | None = None,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    running_variance: RunningVariance = "unbiased",
    one_value: OneValuePolicy = "error",
    nonfinite: NonfinitePolicy = "report",
    channel_axis: ChannelAxis = 1,
    out: Array | None = None,
    saved_mean: Float64Array | None = None,
    saved_invstd: Float64Array | None = None,
    saved_mean_rest: Float64Array | None = None,
    activation: ActivationName | None = None,
    negative_slope: float = 0.01,
    residual: Array | None = None,
    mask: Mask | None = None,
    lengths: Lengths | None = None,
    masked: MaskedPolicy = "zero",
    activation_mask: Bits | bool | None = None,
    allow_copy: bool = False,
) -> TrainingResult:
    """Normalize by the batch's own statistics, and keep what `backward` needs.

    Parameters
    ----------
    input : (N, C, ...) array, float32, float64, bfloat16 or float16
        An empty batch (N or a spatial size is 0) is allowed: statistics and counter stay as they
        are, and saved_mean is 0 and saved_invstd 1 unless destinations are given, which then stay
        as they are.
    running_mean, running_var : (C,) array or None, updated in place
        Both or neither.
    weight, bias : (C,) array or None
        None means 1 and 0.
    num_batches_tracked : int64 array of one element or None, updated in place
        Counts the batches that the running statistics have taken in.
    skipped_batches : int64 array (2, C) or None, updated in place
        Counts which of these each channel's mean, and each channel's variance, has not taken in:
        of NaN and infinity neither is, of one value per channel the variance not. 0 at first.
    momentum : float or None
        Weight of the new batch in the running statistics. With 1 the new value is the batch's,
        whatever the old one was; otherwise an old NaN or infinity stays, mean and variance each by
        itself, and counts in `nonfinite_running_channels`. None: the plain mean over all batches
        that a channel has taken in, 1/k at the k-th, which needs `num_batches_tracked`. Without
        `skipped_batches` all count as taken in, and the share of a skipped one stays with the old
        value.
    eps : float
        At least 0.
    running_variance : "unbiased" or "biased"
        Which batch variance enters `running_var`: sum / (M - 1) as in PyTorch, or sum / M as in
        ONNX, Keras and Flax, with M values per channel.
    one_value : "error", "use_running" or "allow"
        What to do if a channel has one value only, whose variance says nothing: refuse, as PyTorch
        does; normalize by the running statistics; or return `bias` and leave `running_var` alone.
    nonfinite : "report" or "error"
        Outputs of a channel that holds NaN or infinity are NaN; its running statistics stay as
        they are and the other channels do not notice. "error" raises `BatchNormError` with
        `Status.NONFINITE` *after* that: destinations and running statistics have been written;
        also where running statistics were NaN or infinite and have stayed so.
    channel_axis : 1 or -1
        Which axis of `input` is the channel.
    out : array like `input` or None
        May be `input` itself; but `backward` needs the input.
    saved_mean, saved_invstd, saved_mean_rest : float64 (C,) array or None
        Destinations. Of float64 input the last one is made if it is not given.
    activation : "relu", "leaky_relu" or None
        What is done to each value in the end. Values <= 0 become 0, or `negative_slope` times
        themselves.
    negative_slope : float
        Of "leaky_relu": finite, at least 0.
    residual : array like `input` or None
        Added to what normalization gives, before the activation. `out` may be the residual itself.
    mask : bool or uint8 array of the input's shape without its channels, or None
        C-contiguous; (N, H, W) for images. False or 0: the position takes no part.
    lengths : (N,) array or sequence of integers, or None
        Of sequences, instead of `mask`: how many steps of each take part.
    masked : "zero" or "pass"
        The output at masked positions: 0, or the input.
    activation_mask : bool, uint8 array of (input.size + 7) // 8 bytes, or None
        True: make an array of where the activation let pass, for `backward`; or the destination for
        it. Its bits are those of
        ``np.unpackbits(activation_mask, count=input.size, bitorder="little")``, in the order of
        `input` in memory: 1 where the output is not <= 0.
    allow_copy : bool
        True: copy arrays whose memory does not lie as it must, instead of refusing them.

    Returns
    -------
    TrainingResult

    Raises
    ------
    BatchNormTypeError
        Something is no array, or of the wrong dtype.
    BatchNormValueError
        Wrong shape or option, or one value per channel (`Status.ONE_VALUE`). Its subclass
        `LayoutError` for wrong strides, memory order or alignment. Nothing has been written.
    BatchNormError
        With `Status.NONFINITE`, if `nonfinite="error"`: everything has been written nevertheless.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
    >>> result = forward_training(x)
    >>> result.saved_mean, result.statistics_used
    (array([ 2., 20.]), 'batch')
    >>> result = forward_training(x, activation="relu", activation_mask=True)
    >>> result.output.round(3).tolist(), result.activation_mask.tolist()
    ([[0.0, 0.0], [1.0, 1.0]], [12])
    """
    if type(input) is not ndarray or allow_copy:
        return foreign.call(forward_training, locals())
    form = form_of(input, "input", channel_axis)
    args = arguments.training_args(
        form,
        num_batches_tracked,
        skipped_batches,
        momentum,
        running_variance,
        one_value,
        nonfinite,
    )
    args.epsilon = real("eps", eps)
    saved, positions = (saved_mean, saved_invstd, saved_mean_rest), (mask, lengths, masked)
    kept = arguments.save(args, form, input, saved, positions)
    bits = arguments.wanted_bits(activation_mask, form)
    epilogue = activation, negative_slope, residual, bits
    arguments.extend_forward(args, form, channel_axis, epilogue, positions)
    arguments.running(args, form, running_mean, running_var, written=True)
    out = arguments.affine(args, form, input, weight, bias, out)
    c.bn_forward_training(form.problem, args)
    return _training_result(args, out, kept, bits)


def _training_result(
    args: c.bn_forward_training_args, out: Array, kept: arguments.Saved, bits: Bits | None
) -> TrainingResult:
    """What a training forward, or the apply part of one, has written."""
    saved_mean, saved_invstd, saved_mean_rest = kept
    return TrainingResult(
        out,
        saved_mean,
        saved_invstd,
        STATISTICS_WORDS[args.statistics_used],
        args.nonfinite_channels,
        bits,
        args.values_per_channel,
        saved_mean_rest,
        args.nonfinite_running_channels,
    )


def forward_inference(
    input: Array,
    running_mean: Array | None,
    running_var: Array | None,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    eps: float = 1e-5,
    channel_axis: ChannelAxis = 1,
    out: Array | None = None,
    activation: ActivationName | None = None,
    negative_slope: float = 0.01,
    residual: Array | None = None,
    mask: Mask | None = None,
    lengths: Lengths | None = None,
    masked: MaskedPolicy = "zero",
    activation_mask: Bits | None = None,
    allow_copy: bool = False,
) -> Array:
    """Normalize by running statistics, which are constants here.

    Parameters
    ----------
    input : (N, C, ...) array, float32, float64, bfloat16 or float16
    running_mean, running_var : (C,) array
    weight, bias : (C,) array or None
        None means 1 and 0.
    eps : float
        At least 0.
    channel_axis : 1 or -1
        Which axis of `input` is the channel.
    out : array like `input` or None
        May be `input` itself.
    activation, negative_slope, residual, mask, lengths, masked
        As in `forward_training`.
    activation_mask : uint8 array of (input.size + 7) // 8 bytes, or None
        Destination for what `forward_training` returns under this name.
    allow_copy : bool
        True: copy arrays whose memory does not lie as it must, instead of refusing them.

    Returns
    -------
    array
        A new array like `input`, or `out`.

    Raises
    ------
    BatchNormTypeError, BatchNormValueError
        As `forward_training`; also if a running statistic is missing. Nothing has been written.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0], [5.0]])
    >>> forward_inference(x, np.array([3.0]), np.array([4.0]), eps=0.0).ravel()
    array([-1.,  1.])
    """
    if type(input) is not ndarray or allow_copy:
        return foreign.call(forward_inference, locals())
    form = form_of(input, "input", channel_axis)
    args = c.bn_forward_inference_args(arguments.INFERENCE_SIZE)
    args.epsilon = real("eps", eps)
    out = arguments.affine(args, form, input, weight, bias, out)
    arguments.running(args, form, running_mean, running_var, written=False)
    epilogue = activation, negative_slope, residual, activation_mask
    arguments.extend_forward(args, form, channel_axis, epilogue, (mask, lengths, masked))
    c.bn_forward_inference(form.problem, args)
    return out


def backward(
    grad_output: Array,
    input: Array,
    weight: Array | None = None,
    *,
    saved_mean: Float64Array | None = None,
    saved_invstd: Float64Array | None = None,
    saved_mean_rest: Float64Array | None = None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    statistics: StatisticsUsed = "batch",
    eps: float = 1e-5,
    output_mask: tuple[bool, bool, bool] = (True, True, True),
    channel_axis: ChannelAxis = 1,
    grad_input: Array | None = None,
    grad_weight: Array | None = None,
    grad_bias: Array | None = None,
    activation: ActivationName | None = None,
    negative_slope: float = 0.01,
    activation_mask: Bits | None = None,
    output: Array | None = None,
    mask: Mask | None = None,
    lengths: Lengths | None = None,
    masked: MaskedPolicy = "zero",
    grad_residual: Array | bool | None = None,
    allow_copy: bool = False,
) -> Gradients:
    """Gradients of a loss with respect to input, weight, bias and residual.

    Follows `torch.ops.aten.native_batch_norm_backward`; the formulas stand in batchnorm.h.

    Parameters
    ----------
    grad_output : array like `input`
        Gradient of the loss with respect to the forward's output.
    input : (N, C, ...) array, float32, float64, bfloat16 or float16
        The forward's input.
    weight : (C,) array or None
        The forward's weight.
    saved_mean, saved_invstd : float64 (C,) array
        What `forward_training` returned. Required if `statistics` is "batch".
    saved_mean_rest : float64 (C,) array or None
        The same; None counts as 0. float64 gradients lose digits without it where the mean is large
        beside the deviation, others have no use for it.
    running_mean, running_var : (C,) array
        As they were in the forward. Required if `statistics` is "running".
    statistics : "batch" or "running"
        What the forward normalized by: `TrainingResult.statistics_used`, or "running" after
        `forward_inference` (the statistics are then constants, "frozen").
    eps : float
        The forward's; used if `statistics` is "running".
    output_mask : (bool, bool, bool)
        Which of grad_input, grad_weight and grad_bias to compute.
    channel_axis : 1 or -1
        Which axis of `input` and `grad_output` is the channel.
    grad_input : array like `input` or None
        Destination; may be `grad_output` or `input`.
    grad_weight, grad_bias : (C,) array or None
        Destinations. Gradients are written, not added.
    activation, negative_slope, mask, lengths, masked
        The forward's. `masked` is for `grad_input` here: 0 at masked positions, or `grad_output`.
    activation_mask : uint8 array of (input.size + 7) // 8 bytes, or None
        What the forward wrote. This or `output` is required if there was an activation.
    output : array like `input` or None
        The forward's output, from which can be told as well where the activation let pass.
    grad_residual : bool, array like `input` or None
        True: compute the gradient with respect to the residual; or the destination for it, which
        may be `grad_output`. It is `grad_output` where the activation let pass, and 0 or
        `negative_slope` times it elsewhere; 0 at masked positions.
    allow_copy : bool
        True: copy arrays whose memory does not lie as it must, instead of refusing them.

    Returns
    -------
    Gradients

    Raises
    ------
    BatchNormTypeError, BatchNormValueError
        As `forward_training`; also if what `statistics` or `activation` requires is missing, or a
        destination was given that `output_mask` skips. Nothing has been written.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0], [2.0], [6.0]])
    >>> forward = forward_training(x)
    >>> g = backward(
    ...     np.array([[1.0], [0.0], [0.0]]),
    ...     x,
    ...     saved_mean=forward.saved_mean,
    ...     saved_invstd=forward.saved_invstd,
    ... )
    >>> g.grad_bias
    array([1.])
    >>> bool(abs(g.grad_input.sum()) < 1e-12)  # the mean has no influence on the output
    True

    Through a ReLU and a residual, all in one call:

    >>> forward = forward_training(x, activation="relu", residual=x, activation_mask=True)
    >>> g = backward(
    ...     np.ones_like(x),
    ...     x,
    ...     saved_mean=forward.saved_mean,
    ...     saved_invstd=forward.saved_invstd,
    ...     activation="relu",
    ...     activation_mask=forward.activation_mask,
    ...     grad_residual=True,
    ... )
    >>> g.grad_residual.ravel()
    array([1., 1., 1.])
    """
    if type(input) is not ndarray or allow_copy:
        return foreign.call(backward, locals())
    form = form_of(input, "input", channel_axis)
    saved = saved_mean, saved_invstd, saved_mean_rest
    running = running_mean, running_var
    args = arguments.backward_args(form, grad_output, input, statistics, saved, running)
    args.epsilon = real("eps", eps)
    args.weight, args.weight_count = vector_address(weight, "weight", form.parameter)
    epilogue = activation, negative_slope, activation_mask, output
    arguments.extend_backward(args, form, channel_axis, epilogue, (mask, lengths, masked))
    wanted = grad_input, grad_weight, grad_bias, grad_residual
    results = arguments.gradients(args, form, input, output_mask, wanted)
    c.bn_backward(form.problem, args)
    return Gradients(*results)
