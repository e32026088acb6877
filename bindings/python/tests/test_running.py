"""Running statistics where a channel cannot take a batch in, functions, moments and layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from batchnorm import (
    BatchNorm1d,
    BatchNormError,
    Moments,
    StatisticsAccumulator,
    Status,
    normalize,
    recalibrate,
)
from batchnorm.functional import forward_training

BAD = np.array([[np.inf, 1.0], [0.0, 3.0]])
GOOD = np.array([[5.0, 1.0], [7.0, 3.0]])
PADDED = np.array([[[5.0], [np.nan]], [[7.0], [np.nan]]])  # (N, T, C)


class Statistics:
    """Arguments of a function that updates running statistics."""

    def __init__(self, mean: list[float], var: list[float], batches: int = 0) -> None:
        self.mean, self.var = np.array(mean), np.array(var)
        self.tracked = np.array([batches])
        self.skipped = np.zeros((2, len(mean)), np.int64)

    def arguments(self) -> dict[str, Any]:
        return {
            "running_mean": self.mean,
            "running_var": self.var,
            "num_batches_tracked": self.tracked,
            "skipped_batches": self.skipped,
        }


def whole(x: np.ndarray[Any, Any], running: Statistics, **options: Any) -> tuple[int, int]:
    result = forward_training(x, **running.arguments(), **options)
    return result.nonfinite_channels, result.nonfinite_running_channels


def halves(x: np.ndarray[Any, Any], running: Statistics, **options: Any) -> tuple[int, int]:
    result = normalize(x, Moments.of(x), **running.arguments(), **options)
    return result.nonfinite_channels, result.nonfinite_running_channels


def alone(x: np.ndarray[Any, Any], running: Statistics, **options: Any) -> tuple[int, int]:
    update = Moments.of(x).update_running(**running.arguments(), **options)
    return update.nonfinite_channels, update.nonfinite_running_channels


WAYS = pytest.mark.parametrize("take", [whole, halves, alone])


@WAYS
def test_a_cumulative_average_is_of_what_was_taken_in(take: Any) -> None:
    running = Statistics([0.0, 0.0], [1.0, 1.0])
    found = [take(x, running, momentum=None) for x in (BAD, GOOD, GOOD)]
    assert found == [(1, 0), (0, 0), (0, 0)]
    np.testing.assert_allclose(running.mean, [6, 2])
    np.testing.assert_allclose(running.var, [2, 2])
    assert running.tracked.tolist() == [3]
    assert running.skipped.tolist() == [[1, 0], [1, 0]]


def test_without_counters_the_share_stays_with_the_old_value() -> None:
    mean, var, tracked = np.zeros(2), np.ones(2), np.zeros(1, np.int64)
    for x in (BAD, GOOD, GOOD):
        forward_training(x, mean, var, num_batches_tracked=tracked, momentum=None)
    np.testing.assert_allclose(mean, [4, 2])
    np.testing.assert_allclose(var, [5 / 3, 2])


@WAYS
def test_one_value_is_skipped_by_the_variance(take: Any) -> None:
    running = Statistics([0.0, 0.0], [1.0, 1.0])
    for x in (GOOD[:1], GOOD, GOOD):
        take(x, running, momentum=None, one_value="allow")
    np.testing.assert_allclose(running.mean, [17 / 3, 5 / 3])
    np.testing.assert_allclose(running.var, [2, 2])
    assert running.skipped.tolist() == [[0, 0], [1, 1]]


@WAYS
@pytest.mark.parametrize("old", [np.nan, np.inf, -np.inf])
def test_broken_statistics_are_replaced_or_told(take: Any, old: float) -> None:
    for momentum, batches in ((1.0, 5), (None, 0)):
        running = Statistics([old, 0.0], [1.0, old], batches)
        assert take(GOOD, running, momentum=momentum) == (0, 0)
        np.testing.assert_allclose((running.mean, running.var), ([6, 2], [2, 2]))
    for momentum, batches in ((0.5, 0), (None, 1)):
        running = Statistics([old, 0.0], [1.0, old], batches)
        assert take(GOOD, running, momentum=momentum) == (0, 2)
        np.testing.assert_allclose((running.mean, running.var), ([old, 1], [1.5, old]))
        assert running.skipped.tolist() == [[1, 0], [0, 1]]


@WAYS
def test_the_error_tells_input_from_statistics(take: Any) -> None:
    with pytest.raises(BatchNormError, match=r"input .* 1 of 2") as caught:
        take(BAD, Statistics([0.0, 0.0], [1.0, 1.0]), nonfinite="error")
    assert caught.value.status == Status.NONFINITE
    assert "running" not in str(caught.value)
    with pytest.raises(BatchNormError, match=r"running statistics .* 1 of 2") as caught:
        take(GOOD, Statistics([0.0, np.nan], [1.0, 1.0]), nonfinite="error")
    assert "input" not in str(caught.value)
    with pytest.raises(BatchNormError, match=r"input .*; the running statistics"):
        take(BAD, Statistics([0.0, np.nan], [1.0, 1.0]), nonfinite="error")


@pytest.mark.parametrize(
    ("skipped", "error", "message"),
    [
        (np.zeros((2, 3), np.int64), ValueError, r"\(2, 3\), expected \(2, 2\)"),
        (np.zeros(4, np.int64), ValueError, r"\(4,\), expected \(2, 2\)"),
        (np.zeros((2, 2), np.int32), TypeError, "int32, expected int64"),
        (np.zeros((2, 2), np.int64, order="F"), ValueError, "strides"),
        (np.array([[0, 0], [0, 4]]), BatchNormError, r"skipped_batches\[3\] is 4, expected 0 to 3"),
        (np.array([[0, -1], [0, 0]]), BatchNormError, r"skipped_batches\[1\] is -1"),
        (np.broadcast_to(np.int64(0), (2, 2)), ValueError, "skipped_batches"),
    ],
)
def test_wrong_counters_change_nothing(skipped: Any, error: type, message: str) -> None:
    for function in (
        lambda running: forward_training(GOOD, **running.arguments()),
        lambda running: normalize(GOOD, Moments.of(GOOD), **running.arguments()),
        lambda running: Moments.of(GOOD).update_running(**running.arguments()),
    ):
        running = Statistics([0.0, 0.0], [1.0, 1.0], 3)
        running.skipped = skipped
        with pytest.raises(error, match=message):
            function(running)
        assert running.mean.tolist() == [0, 0]
        assert running.tracked.tolist() == [3]


def test_counters_need_the_number_of_batches() -> None:
    with pytest.raises(BatchNormError, match="num_batches_tracked"):
        forward_training(GOOD, np.zeros(2), np.ones(2), skipped_batches=np.zeros((2, 2), np.int64))


def test_a_layer_keeps_count() -> None:
    layer = BatchNorm1d(2, momentum=None, dtype=np.float64)
    assert layer.skipped_batches.tolist() == [[0, 0], [0, 0]]
    for x in (BAD, GOOD, GOOD):
        layer(x)
    np.testing.assert_allclose(layer.running_mean, [6, 2])
    np.testing.assert_allclose(layer.running_var, [2, 2])
    assert layer.skipped_batches.tolist() == [[1, 0], [1, 0]]
    assert not layer.skipped_batches.flags.writeable

    layer.skipped_batches = np.array([[3, 2], [1, 0]])
    assert layer.skipped_batches.tolist() == [[3, 2], [1, 0]]
    with pytest.raises(BatchNormError, match=r"skipped_batches\[0\] is 4, expected 0 to 3"):
        layer.skipped_batches = np.full((2, 2), 4)
    layer.num_batches_tracked = 7
    assert not layer.skipped_batches.any()
    layer.skipped_batches = np.full((2, 2), 4)
    layer.reset_running_stats()
    assert not layer.skipped_batches.any()
    assert BatchNorm1d(2, track_running_stats=False).skipped_batches is None


def test_a_layer_tells_input_from_statistics() -> None:
    layer = BatchNorm1d(2, dtype=np.float64)
    layer.running_mean = np.array([0.0, np.nan])
    layer(BAD)
    assert (layer.nonfinite_channels, layer.nonfinite_running_channels) == (1, 1)
    layer(GOOD)
    assert (layer.nonfinite_channels, layer.nonfinite_running_channels) == (0, 1)
    assert np.isnan(layer.running_mean).tolist() == [False, True]
    assert np.isfinite(layer.running_var).all()
    layer.eval()(GOOD)
    assert layer.nonfinite_running_channels == 0
    layer.train().reset_running_stats()
    layer(GOOD)
    assert layer.nonfinite_running_channels == 0


def test_masked_positions_are_not_skipped_batches() -> None:
    layer = BatchNorm1d(1, momentum=None, channel_axis=-1, dtype=np.float64)
    layer(PADDED, lengths=[0, 0])  # as good as no batch
    layer(PADDED, lengths=[2, 2])  # NaN takes part
    layer(PADDED, lengths=[1, 1])
    assert layer.num_batches_tracked == 2
    assert layer.skipped_batches.tolist() == [[1], [1]]
    np.testing.assert_allclose((layer.running_mean, layer.running_var), ([6], [2]))


def test_recalibration_starts_anew() -> None:
    layer = BatchNorm1d(2, momentum=None, dtype=np.float64)
    layer(BAD)
    layer.running_mean = np.array([np.nan, np.inf])
    recalibrate(layer, [GOOD, GOOD + 2], method="mean")
    assert layer.num_batches_tracked == 2
    assert not layer.skipped_batches.any()
    np.testing.assert_allclose(layer.running_mean, [7, 3])
    # What cannot be taken in is refused there, and nothing has changed.
    collected = StatisticsAccumulator(2, method="mean")
    collected.add(GOOD)
    with pytest.raises(BatchNormError, match="input"):
        collected.add(BAD)
    collected.add(GOOD)
    np.testing.assert_allclose(collected.statistics().mean, [6, 2])
