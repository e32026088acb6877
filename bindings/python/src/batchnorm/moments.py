"""Split operations (reduce, apply) for a batch in several places.

A batch may come in parts (gradient accumulation) or lie on several devices (synchronized batch
normalization). Each part gives its `Moments`, these are merged, and each part is normalized by
what they say together; backward likewise adds up `GradientSums`:

>>> import numpy as np
>>> rng = np.random.default_rng(0)
>>> batch = rng.normal(3, 2, (8, 3, 4, 4))
>>> parts = batch[:3], batch[3:]
>>> moments = Moments.of(parts[0]).merge(Moments.of(parts[1]))
>>> outputs = [normalize(part, moments).output for part in parts]
>>> saved = normalize(parts[0], moments)
>>> grads = [np.ones_like(part) for part in parts]
>>> mean = {"saved_mean": saved.saved_mean, "saved_mean_rest": saved.saved_mean_rest}
>>> sums = GradientSums.none(3)
>>> for dy, x in zip(grads, parts):
...     sums += backward_reduce(dy, x, **mean)
>>> dx = [
...     backward_apply(dy, x, sums, **mean, saved_invstd=saved.saved_invstd).grad_input
...     for dy, x in zip(grads, parts)
... ]
>>> bool(abs(np.concatenate(outputs).mean()) < 1e-12 and abs(dx[1]).max() < 1e-12)
True

When the results have the same bits as those of the whole batch in one call stands in batchnorm.h;
with one part they always do. The arithmetic is the library's; nothing is computed here. What
PyTorch has for this, on GPUs alone, are `torch.batch_norm_stats` and its relatives.
"""

from __future__ import annotations

from ctypes import byref, sizeof
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from . import _arguments as arguments
from . import _foreign as foreign
from . import _lowlevel as c
from ._arrays import (
    FLOAT64,
    Array,
    Bits,
    ChannelAxis,
    Counter,
    Counters,
    Float64Array,
    Lengths,
    Mask,
    address,
    form_of,
    vector_address,
)
from ._options import (
    VARIANCES,
    ActivationName,
    MaskedPolicy,
    NonfinitePolicy,
    OneValuePolicy,
    RunningVariance,
    StatisticsUsed,
    integer,
    parse,
    real,
    wrong_type,
)
from .errors import BatchNormValueError
from .functional import Gradients, TrainingResult, _training_result

__all__ = [
    "GradientSums",
    "Moments",
    "RunningUpdate",
    "backward_apply",
    "backward_reduce",
    "normalize",
    "normalize_saved",
]


class RunningUpdate(NamedTuple):
    """What `Moments.update_running` tells.

    Examples
    --------
    >>> import numpy as np
    >>> mean, var = np.zeros(2), np.array([1.0, np.nan])
    >>> Moments.of(np.array([[np.inf, 1.0], [3.0, 4.0]])).update_running(mean, var)
    RunningUpdate(nonfinite_channels=1, nonfinite_running_channels=1)
    """

    nonfinite_channels: int
    """How many channels of the moments held NaN or infinity; their statistics stay as they are."""
    nonfinite_running_channels: int
    """How many channels' running mean or variance was NaN or infinite, and has stayed so."""


class Moments:
    """Count, mean and sum of squared distances from the mean, per channel; they can be merged.

    Attributes
    ----------
    count : int
        Values per channel, the same for all; with 0 the arrays say nothing.
    mean, mean_rest : float64 (C,) array
        The mean is their sum, not carried out: float64 alone would cost float64 tensors digits
        where the mean is large beside the deviation.
    m2 : float64 (C,) array
        sum((x - mean)**2); NaN in a channel that holds NaN or infinity.

    Examples
    --------
    >>> import numpy as np
    >>> some = Moments.of(np.array([[1.0], [3.0]]))
    >>> some
    Moments(count=2, mean=[2.], m2=[2.])
    >>> some.merge(Moments.of(np.array([[8.0]])))
    Moments(count=3, mean=[4.], m2=[26.])
    >>> some.variance(), some.variance("unbiased"), some.invstd(eps=0.0).round(4)
    (array([8.66666667]), array([13.]), array([0.3397]))

    From elsewhere, an all-gather for example:

    >>> Moments(count=2, mean=np.array([2.0]), m2=np.array([2.0])).variance()
    array([1.])
    """

    __slots__ = ("count", "m2", "mean", "mean_rest")

    def __init__(
        self,
        *,
        count: int,
        mean: Float64Array,
        mean_rest: Float64Array | None = None,
        m2: Float64Array,
    ) -> None:
        """Moments from elsewhere. The arrays are kept, not copied; `mean_rest` is 0 by default."""
        self.count = integer("count", count)
        self.mean = foreign.as_ndarray(mean, "mean")
        rest = np.zeros_like(self.mean) if mean_rest is None else mean_rest
        self.mean_rest = foreign.as_ndarray(rest, "mean_rest")
        self.m2 = foreign.as_ndarray(m2, "m2")
        self._c()

    @classmethod
    def none(cls, num_features: int) -> Moments:
        """Moments of no values and `num_features` channels, to which others are merged."""
        mean, mean_rest, m2 = np.zeros((3, num_features))
        return cls(count=0, mean=mean, mean_rest=mean_rest, m2=m2)

    @classmethod
    def of(
        cls,
        input: Array,
        *,
        mask: Mask | None = None,
        lengths: Lengths | None = None,
        channel_axis: ChannelAxis = 1,
        allow_copy: bool = False,
    ) -> Moments:
        """The moments of a tensor: (N, C, ...), or (N, ..., C) with ``channel_axis=-1``.

        `mask`, `lengths` and `allow_copy` as in `functional.forward_training`. Of an empty batch,
        or one that is masked as a whole, they are those of `none`. NaN or infinity is no error
        here; it is what `normalize`'s `nonfinite` is about.
        """
        if type(input) is not ndarray or allow_copy:
            moments: Moments = foreign.call(Moments.of.__func__, locals())  # type: ignore[attr-defined]
            return moments
        form = form_of(input, "input", channel_axis)
        result = cls.none(form.channels)
        raw = result._c()
        positions = c.bn_positions()
        arguments.set_positions(positions, form, channel_axis, (mask, lengths, "zero"))
        c.bn_moments_compute(
            form.problem,
            *(address(input), form.elements),
            positions,
            raw,
        )
        result.count = raw.count
        return result

    @property
    def num_features(self) -> int:
        """The number of channels, C."""
        return self.mean.size

    def merge(self, other: Moments) -> Moments:
        """Takes `other` in, and returns self: then it is the moments of all values of both.

        The order matters for the last bits. Follows Chan, Golub and LeVeque, 1979. On an error
        nothing has changed.
        """
        raw = self._c(written=True)
        c.bn_moments_merge(raw, _moments("other", other)._c())
        self.count = raw.count
        return self

    def copy(self) -> Moments:
        """Independent moments with the same values."""
        return Moments(
            count=self.count,
            mean=self.mean.copy(),
            mean_rest=self.mean_rest.copy(),
            m2=self.m2.copy(),
        )

    def variance(self, kind: RunningVariance = "biased") -> Float64Array:
        """m2 / count, or m2 / (count - 1) if `kind` is "unbiased".

        NaN in channels with NaN or infinity.
        """
        out = np.empty(self.num_features)
        code = parse(VARIANCES, "kind", kind)
        c.bn_moments_statistics(self._c(), 0.0, code, address(out), out.size, None, 0)
        return out

    def invstd(self, eps: float = 1e-5) -> Float64Array:
        """1 / sqrt(biased variance + eps), as `forward_training` saves it."""
        out = np.empty(self.num_features)
        c.bn_moments_statistics(self._c(), eps, c.Variance.BIASED, None, 0, address(out), out.size)
        return out

    def update_running(
        self,
        running_mean: Array,
        running_var: Array,
        *,
        num_batches_tracked: Counter | None = None,
        skipped_batches: Counters | None = None,
        momentum: float | None = 0.1,
        running_variance: RunningVariance = "unbiased",
        one_value: OneValuePolicy = "error",
        nonfinite: NonfinitePolicy = "report",
    ) -> RunningUpdate:
        """Takes these moments into running statistics, in place, as `forward_training` does.

        Arguments are those of `functional.forward_training`. With moments of no values nothing
        changes.
        """
        if type(running_mean) is not ndarray:
            return foreign.call(Moments.update_running, locals(), "running_mean")
        nothing = np.empty((0, self.num_features), running_mean.dtype)
        result = normalize(
            nothing,
            self,
            running_mean,
            running_var,
            num_batches_tracked=num_batches_tracked,
            skipped_batches=skipped_batches,
            momentum=momentum,
            running_variance=running_variance,
            one_value=one_value,
            nonfinite=nonfinite,
        )
        return RunningUpdate(result.nonfinite_channels, result.nonfinite_running_channels)

    def __repr__(self) -> str:
        return f"Moments(count={self.count}, mean={self.mean}, m2={self.m2})"

    def _c(self, *, written: bool = False) -> c.bn_moments:
        """The C struct; it borrows the arrays, which must outlive it."""
        raw = c.bn_moments(sizeof(c.bn_moments), 0, 0, integer("count", self.count))
        raw.mean, raw.channels = vector_address(self.mean, "mean", FLOAT64, written=written)
        for name in ("mean_rest", "m2"):
            array = getattr(self, name)
            where, size = vector_address(array, name, FLOAT64, written=written)
            if size != raw.channels:
                raise BatchNormValueError(
                    f"{name} has {size} elements, expected {raw.channels} as mean has"
                )
            setattr(raw, name, where)
        return raw


class GradientSums:
    """What the backward of a batch needs of all its values; those of parts add up with ``+``.

    Attributes
    ----------
    count : int
        Values per channel.
    sum_dy, sum_dy_xmu : float64 (C,) array
        sum(grad_output) and sum(grad_output * (input - mean)).

    Examples
    --------
    >>> import numpy as np
    >>> own = GradientSums(count=2, sum_dy=np.array([3.0]), sum_dy_xmu=np.array([0.5]))
    >>> GradientSums.none(1) + own
    GradientSums(count=2, sum_dy=[3.], sum_dy_xmu=[0.5])
    """

    __slots__ = ("count", "sum_dy", "sum_dy_xmu")

    def __init__(self, *, count: int, sum_dy: Float64Array, sum_dy_xmu: Float64Array) -> None:
        """Sums from elsewhere, an all-reduce for example. The arrays are kept, not copied."""
        self.count = integer("count", count)
        self.sum_dy = foreign.as_ndarray(sum_dy, "sum_dy")
        self.sum_dy_xmu = foreign.as_ndarray(sum_dy_xmu, "sum_dy_xmu")
        self._c()

    @classmethod
    def none(cls, num_features: int) -> GradientSums:
        """Sums over no values in `num_features` channels, where a sum of others begins."""
        return cls(count=0, sum_dy=np.zeros(num_features), sum_dy_xmu=np.zeros(num_features))

    def __add__(self, other: GradientSums) -> GradientSums:
        if self.sum_dy.size != _sums("other", other).sum_dy.size:
            raise BatchNormValueError(
                f"the number of channels is {other.sum_dy.size}, expected {self.sum_dy.size}"
            )
        return GradientSums(
            count=self.count + other.count,
            sum_dy=self.sum_dy + other.sum_dy,
            sum_dy_xmu=self.sum_dy_xmu + other.sum_dy_xmu,
        )

    def __repr__(self) -> str:
        return (
            f"GradientSums(count={self.count}, sum_dy={self.sum_dy}, sum_dy_xmu={self.sum_dy_xmu})"
        )

    def _c(self) -> c.bn_gradient_sums:
        raw = c.bn_gradient_sums(sizeof(c.bn_gradient_sums), 0, 0, integer("count", self.count))
        raw.sum_dy, raw.channels = vector_address(self.sum_dy, "sum_dy", FLOAT64)
        raw.sum_dy_xmu, size = vector_address(self.sum_dy_xmu, "sum_dy_xmu", FLOAT64)
        if size != raw.channels:
            raise BatchNormValueError(
                f"sum_dy_xmu has {size} elements, expected {raw.channels} as sum_dy has"
            )
        return raw


def _moments(name: str, value: Moments) -> Moments:
    if not isinstance(value, Moments):
        raise wrong_type(name, value, "Moments")
    return value


def _sums(name: str, value: GradientSums) -> GradientSums:
    if not isinstance(value, GradientSums):
        raise wrong_type(name, value, "GradientSums")
    return value


def normalize(
    input: Array,
    moments: Moments,
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
    """`functional.forward_training` with given moments: the input is not reduced.

    All arguments and results mean what they mean there, with ``moments.count`` for the number of
    values; masked positions of `input` are not normalized, whatever `moments` are of. Running
    statistics, if given, take in the moments: of several parts, only one call should get them.

    For a second forward (activation checkpointing) keep the moments and leave running_mean and
    running_var out: it has the first one's bits, and updates nothing.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0], [3.0]])
    >>> normalize(x, Moments.of(np.array([[0.0], [0.0], [8.0], [8.0]])), eps=0.0).output.ravel()
    array([-0.75, -0.25])
    >>> through = normalize(x, Moments.of(x), eps=0.0, activation="relu", activation_mask=True)
    >>> through.output.ravel(), through.activation_mask
    (array([0., 1.]), array([2], dtype=uint8))
    """
    if type(input) is not ndarray or allow_copy:
        return foreign.call(normalize, locals())
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
    c.bn_normalize(form.problem, _moments("moments", moments)._c(), args)
    return _training_result(args, out, kept, bits)


def normalize_saved(
    input: Array,
    saved_mean: Float64Array,
    saved_invstd: Float64Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    saved_mean_rest: Float64Array | None = None,
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
    """The forward once more from what `functional.forward_training` saved.

    ``activation((input - saved_mean) * saved_invstd * weight + bias + residual)``. With the
    forward's `saved_mean_rest` it has that forward's bits; by how much it may differ without stands
    in batchnorm.h. (A forward whose input is not float64 saves it only where it was given a
    destination.) Arguments and errors are those of `functional.forward_inference`; returns a new
    array like `input`, or `out`.

    Examples
    --------
    >>> import numpy as np
    >>> normalize_saved(np.array([[1.0], [5.0]]), np.array([3.0]), np.array([0.5])).ravel()
    array([-1.,  1.])

    With the forward's epilogue:

    >>> from batchnorm.functional import forward_training
    >>> x = np.array([[1.0], [5.0]])
    >>> first = forward_training(x, activation="relu", residual=x)
    >>> again = normalize_saved(
    ...     x,
    ...     first.saved_mean,
    ...     first.saved_invstd,
    ...     saved_mean_rest=first.saved_mean_rest,
    ...     activation="relu",
    ...     residual=x,
    ... )
    >>> again.tobytes() == first.output.tobytes()
    True
    """
    if type(input) is not ndarray or allow_copy:
        return foreign.call(normalize_saved, locals())
    form = form_of(input, "input", channel_axis)
    args = c.bn_forward_inference_args(arguments.INFERENCE_SIZE)
    out = arguments.affine(args, form, input, weight, bias, out)
    epilogue = activation, negative_slope, residual, activation_mask
    arguments.extend_forward(args, form, channel_axis, epilogue, (mask, lengths, masked))
    c.bn_normalize_saved(
        form.problem,
        arguments.saved(saved_mean, saved_invstd, saved_mean_rest),
        args,
    )
    return out


def backward_reduce(
    grad_output: Array,
    input: Array,
    *,
    saved_mean: Float64Array | None = None,
    saved_mean_rest: Float64Array | None = None,
    running_mean: Array | None = None,
    statistics: StatisticsUsed = "batch",
    channel_axis: ChannelAxis = 1,
    activation: ActivationName | None = None,
    negative_slope: float = 0.01,
    activation_mask: Bits | None = None,
    output: Array | None = None,
    mask: Mask | None = None,
    lengths: Lengths | None = None,
    allow_copy: bool = False,
) -> GradientSums:
    """The reduce part of `functional.backward`: the sums of one part of the batch.

    Arguments and errors are those of `functional.backward`. `saved_mean` and `saved_mean_rest` are
    the whole batch's; `running_mean` is for ``statistics="running"``. `activation_mask` or `output`
    is this part's, and so are `mask` or `lengths`.

    Examples
    --------
    >>> import numpy as np
    >>> x, dy = np.array([[1.0], [5.0]]), np.array([[1.0], [0.5]])
    >>> backward_reduce(dy, x, saved_mean=np.array([3.0]))
    GradientSums(count=2, sum_dy=[1.5], sum_dy_xmu=[-1.])
    >>> y = np.array([[0.0], [1.0]])  # through a ReLU
    >>> backward_reduce(dy, x, saved_mean=np.array([3.0]), activation="relu", output=y)
    GradientSums(count=2, sum_dy=[0.5], sum_dy_xmu=[1.])
    """
    if type(input) is not ndarray or allow_copy:
        return foreign.call(backward_reduce, locals())
    form = form_of(input, "input", channel_axis)
    saved, running = (saved_mean, None, saved_mean_rest), (running_mean, None)
    args = arguments.backward_args(form, grad_output, input, statistics, saved, running)
    epilogue = activation, negative_slope, activation_mask, output
    arguments.extend_backward(args, form, channel_axis, epilogue, (mask, lengths, "zero"))
    sums = GradientSums.none(form.channels)
    raw = sums._c()
    c.bn_backward_reduce(form.problem, args, byref(raw))
    sums.count = raw.count
    return sums


def backward_apply(
    grad_output: Array,
    input: Array,
    sums: GradientSums,
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
    """The apply part of `functional.backward`: gradients of one part from the whole batch's sums.

    Arguments and errors are those of `functional.backward`; tensors, `activation_mask` and `mask`
    or `lengths` are this part's, and activation and masks are those that `backward_reduce` got.
    grad_weight and grad_bias are those that `sums` say; from a part's own sums they are that
    part's.

    Examples
    --------
    >>> import numpy as np
    >>> x, dy = np.array([[1.0], [5.0]]), np.array([[1.0], [0.5]])
    >>> saved = {"saved_mean": np.array([3.0]), "saved_invstd": np.array([0.5])}
    >>> sums = backward_reduce(dy, x, saved_mean=saved["saved_mean"])
    >>> backward_apply(dy, x, sums, **saved).grad_weight
    array([-0.5])

    Through a ReLU and a residual, whose gradient needs no sums:

    >>> through = {"activation": "relu", "output": np.array([[0.0], [1.0]])}
    >>> sums = backward_reduce(dy, x, saved_mean=saved["saved_mean"], **through)
    >>> backward_apply(dy, x, sums, **saved, **through, grad_residual=True).grad_residual.ravel()
    array([0. , 0.5])
    """
    if type(input) is not ndarray or allow_copy:
        return foreign.call(backward_apply, locals())
    form = form_of(input, "input", channel_axis)
    saved, running = (saved_mean, saved_invstd, saved_mean_rest), (running_mean, running_var)
    args = arguments.backward_args(form, grad_output, input, statistics, saved, running)
    args.epsilon = real("eps", eps)
    args.weight, args.weight_count = vector_address(weight, "weight", form.parameter)
    epilogue = activation, negative_slope, activation_mask, output
    arguments.extend_backward(args, form, channel_axis, epilogue, (mask, lengths, masked))
    wanted = grad_input, grad_weight, grad_bias, grad_residual
    results = arguments.gradients(args, form, input, output_mask, wanted)
    c.bn_backward_apply(form.problem, _sums("sums", sums)._c(), args)
    return Gradients(*results)
