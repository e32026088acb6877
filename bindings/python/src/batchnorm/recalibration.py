"""Running statistics collected anew, from the data of many batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, Protocol

import numpy as np

from ._arrays import Array, ChannelAxis, Float64Array
from ._options import VARIANCES, RunningVariance, parse, wrong_type
from .errors import BatchNormValueError
from .moments import Moments

__all__ = ["RunningStatistics", "StatisticsAccumulator", "recalibrate"]

Recalibration = Literal["exact", "mean"]


class RunningStatistics(NamedTuple):
    """What a `StatisticsAccumulator` has collected."""

    mean: Float64Array
    """Mean of each channel, (C,)."""
    var: Float64Array
    """Variance of each channel, (C,)."""
    num_batches: int
    """How many batches, empty ones aside."""


class StatisticsAccumulator:
    """Collects the statistics of a stream of batches, without keeping any of them.

    Running statistics from training lag behind the weights and weigh the last batches most.
    Collected anew after training they fit the weights: "PreciseBN" (Wu and Johnson 2021,
    arXiv:2105.07576).

    Parameters
    ----------
    num_features : int
        C.
    method : "exact" or "mean"
        "exact": mean and variance of all values of all batches together, as Wu and Johnson advise.
        "mean": the plain mean of each batch's mean and variance, as fvcore's update_bn_stats and
        PyTorch's ``momentum=None`` do; batches of different size count the same.
    running_variance : "unbiased" or "biased"
        Which variance: of all values together, or of each batch.

    Examples
    --------
    >>> import numpy as np
    >>> collected = StatisticsAccumulator(1, running_variance="biased")
    >>> for batch in ([[1.0], [3.0]], [[8.0]]):
    ...     collected.add(np.array(batch))
    >>> collected.statistics().mean, collected.statistics().var
    (array([4.]), array([8.66666667]))
    """

    def __init__(
        self,
        num_features: int,
        *,
        method: Recalibration = "exact",
        running_variance: RunningVariance = "unbiased",
    ) -> None:
        if method not in ("exact", "mean"):
            raise BatchNormValueError(f"method is {method!r}, expected 'exact' or 'mean'")
        parse(VARIANCES, "running_variance", running_variance)
        self.method: Recalibration = method
        self.running_variance: RunningVariance = running_variance
        self._all = Moments.none(num_features)
        self._mean, self._var = np.zeros(num_features), np.ones(num_features)
        self._batches = np.zeros(1, np.int64)

    def add(self, batch: Array | Moments, *, channel_axis: ChannelAxis = 1) -> None:
        """Takes a batch in, or the moments of one. An empty one changes nothing.

        `channel_axis` says which axis of a batch is the channel, 1 or -1.

        Raises `BatchNormError` with `Status.NONFINITE`, before anything changes, if a channel holds
        NaN or infinity: it would spoil all that was collected.
        """
        own = batch if isinstance(batch, Moments) else Moments.of(batch, channel_axis=channel_axis)
        if own.num_features != self._all.num_features:
            raise BatchNormValueError(
                f"the number of channels is {own.num_features}, expected {self._all.num_features}"
            )
        # On copies, for a report of NaN comes after the other channels have been written.
        mean, var, batches = self._mean.copy(), self._var.copy(), self._batches.copy()
        own.update_running(
            mean,
            var,
            num_batches_tracked=batches,
            momentum=None,
            running_variance=self.running_variance,
            one_value="allow" if self.method == "exact" else "error",
            nonfinite="error",
        )
        if self.method == "exact":
            self._all.merge(own)
        self._mean, self._var, self._batches = mean, var, batches

    def statistics(self) -> RunningStatistics:
        """What has been collected. Raises BatchNormValueError if there was no batch."""
        batches = int(self._batches[0])
        if batches == 0:
            raise BatchNormValueError("no batch with values was added, expected at least 1")
        if self.method == "mean":
            return RunningStatistics(self._mean.copy(), self._var.copy(), batches)
        mean = self._all.mean + self._all.mean_rest
        return RunningStatistics(mean, self._all.variance(self.running_variance), batches)


class _Layer(Protocol):
    """What `recalibrate` needs of a layer; `BatchNorm1d` and its like have it."""

    running_mean: Array
    running_var: Array
    num_batches_tracked: int

    @property
    def num_features(self) -> int: ...
    @property
    def parameter_dtype(self) -> np.dtype[np.floating]: ...
    @property
    def track_running_stats(self) -> bool: ...


def recalibrate(
    layer: _Layer,
    batches: Iterable[Array | Moments],
    *,
    method: Recalibration = "exact",
    running_variance: RunningVariance = "unbiased",
    channel_axis: ChannelAxis = 1,
) -> None:
    """Replaces a layer's running statistics by those of a stream of its inputs.

    In a network, where each layer's inputs depend on the layers before it, run the network in
    training mode and `add` each layer's input to a `StatisticsAccumulator` of its own.

    Parameters
    ----------
    layer : BatchNorm1d, BatchNorm2d or BatchNorm3d
        With running statistics. They, and the batch counter, change at the very end: on any error
        the layer is as it was.
    batches : iterable of arrays or Moments
        The layer's inputs; read once.
    method, running_variance
        See `StatisticsAccumulator`.
    channel_axis : 1 or -1
        Which axis of the batches is the channel.

    Examples
    --------
    >>> import batchnorm, numpy as np
    >>> rng = np.random.default_rng(0)
    >>> layer = batchnorm.BatchNorm1d(2)
    >>> recalibrate(layer, (rng.normal(5, 3, (100, 2)).astype(np.float32) for _ in range(20)))
    >>> layer.running_mean.round(), layer.running_var.round(), layer.num_batches_tracked
    (array([5., 5.], dtype=float32), array([9., 9.], dtype=float32), 20)
    """
    if not hasattr(layer, "track_running_stats"):
        raise wrong_type("layer", layer, "a BatchNorm1d, BatchNorm2d or BatchNorm3d")
    if not isinstance(batches, Iterable):
        raise wrong_type("batches", batches, "an iterable of arrays")
    if not layer.track_running_stats:
        raise BatchNormValueError(
            "the layer keeps no running statistics (track_running_stats is False)"
        )
    collected = StatisticsAccumulator(
        layer.num_features, method=method, running_variance=running_variance
    )
    for batch in batches:
        collected.add(batch, channel_axis=channel_axis)
    mean, var, count = collected.statistics()
    with np.errstate(over="ignore"):
        rounded_mean, rounded_var = (
            mean.astype(layer.parameter_dtype),
            var.astype(layer.parameter_dtype),
        )
    if not (np.isfinite(rounded_mean).all() and np.isfinite(rounded_var).all()):
        raise BatchNormValueError(
            f"statistics of the batches exceed the range of {layer.parameter_dtype}"
        )
    layer.running_mean = rounded_mean
    layer.running_var = rounded_var
    layer.num_batches_tracked = count
