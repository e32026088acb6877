"""What a layer has: options, mode, parameters, running statistics, and what its last forward found.

The C library owns it, and Python copies out of it, but for the arrays of the last forward that its
backward needs again. Invariant: every call on a handle holds its lock, because the library serves
one thread at a time per layer and ctypes releases the interpreter lock.
"""

from __future__ import annotations

from ctypes import POINTER, byref, c_int32, c_int64, c_void_p, sizeof
from ctypes import cast as pointer_cast
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import _foreign as foreign
from . import _lowlevel as c
from ._arrays import (
    FLOAT32,
    FLOAT64,
    Array,
    ChannelAxis,
    Float64Array,
    Form,
    MaybeArray,
    address,
    dtype_name,
    layer_dtype,
    named_dtype,
    unknown_axis,
)
from ._handle import ASSIGN, SAVED, Borrowed, Handle, read_only
from ._options import (
    NONFINITES,
    ONE_VALUES,
    STATISTICS_WORDS,
    VARIANCES,
    NonfinitePolicy,
    OneValuePolicy,
    RunningVariance,
    StatisticsUsed,
    integer,
    parse,
    real,
)
from .errors import BatchNormRuntimeError, BatchNormTypeError, BatchNormValueError, Status

_Self = TypeVar("_Self", bound="Layer")


class Layer:
    """What a layer is made of. See BatchNorm2d for the user's documentation."""

    __slots__ = (
        "__weakref__",
        "_bias",
        "_channel_axis",
        "_features",
        "_form",
        "_handle",
        "_input",
        "_options",
        "_residual",
        "_weight",
        "grad_bias",
        "grad_residual",
        "grad_weight",
    )

    grad_weight: MaybeArray
    grad_bias: MaybeArray
    grad_residual: MaybeArray

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: DTypeLike | None = None,
        *,
        bias: bool = True,
        has_weight: bool | None = None,
        has_bias: bool | None = None,
        running_variance: RunningVariance = "unbiased",
        one_value: OneValuePolicy = "error",
        nonfinite: NonfinitePolicy = "report",
        channel_axis: ChannelAxis = 1,
    ) -> None:
        if device is not None and str(device) != "cpu":
            raise BatchNormValueError(f"device is {str(device)!r}, expected 'cpu' or None")
        if has_bias and not bias:
            raise BatchNormValueError(
                "has_bias is True and bias is False, expected the same", Status.EXCLUSIVE
            )
        _, code = layer_dtype(FLOAT32 if dtype is None else dtype)
        options = c.bn_layer_options(
            sizeof(c.bn_layer_options),
            code,
            integer("num_features", num_features),
            real("eps", eps),
            0.0 if momentum is None else real("momentum", momentum),
            c.Averaging.CUMULATIVE if momentum is None else c.Averaging.EXPONENTIAL,
            parse(VARIANCES, "running_variance", running_variance),
            parse(ONE_VALUES, "one_value", one_value),
            parse(NONFINITES, "nonfinite", nonfinite),
            bool(affine if has_weight is None else has_weight),
            bool((affine and bias) if has_bias is None else has_bias),
            bool(track_running_stats),
        )
        pointer = c_void_p()
        c.bn_layer_create(byref(options), byref(pointer))
        self._adopt(Handle(pointer), channel_axis)

    def _adopt(self, handle: Handle, channel_axis: ChannelAxis) -> None:
        if channel_axis not in (1, -1):
            raise unknown_axis(channel_axis)
        options = c.bn_layer_options(sizeof(c.bn_layer_options))
        c.bn_layer_get_options(handle.pointer, byref(options))
        self._handle = handle
        self._options = options
        self._features: int = options.num_features
        self._channel_axis: ChannelAxis = channel_axis
        self._weight = self._view(c.bn_layer_weight_data(handle.pointer))
        self._bias = self._view(c.bn_layer_bias_data(handle.pointer))
        self._input: Array | None = None
        self._form: Form | None = None
        self._residual = False  # whether the last forward had one
        self.grad_weight = None
        self.grad_bias = None
        self.grad_residual = None

    def _view(self, pointer: int | None) -> Array | None:
        if pointer is None:
            return None
        return np.asarray(Borrowed(self._handle, pointer, self.num_features, self.parameter_dtype))

    # Options.

    @property
    def num_features(self) -> int:
        """Number of channels C."""
        return self._features

    @property
    def eps(self) -> float:
        """What is added to the variance inside the square root. Assignable, at least 0.

        From the next forward on: `backward` and `recompute` go by what the last forward used.
        """
        return cast(float, self._options.epsilon)

    @eps.setter
    def eps(self, value: float) -> None:
        self._set_option(c.bn_layer_set_epsilon, real("eps", value))

    @property
    def momentum(self) -> float | None:
        """Weight of a new batch in the running statistics; None: the plain mean of all batches.

        Assignable, from the next forward on.
        """
        if self._options.averaging == c.Averaging.CUMULATIVE:
            return None
        return cast(float, self._options.momentum)

    @momentum.setter
    def momentum(self, value: float | None) -> None:
        if value is None:
            self._set_option(c.bn_layer_set_momentum, 0.0, c.Averaging.CUMULATIVE)
        else:
            self._set_option(
                c.bn_layer_set_momentum, real("momentum", value), c.Averaging.EXPONENTIAL
            )

    def _set_option(self, setter: Any, value: float, *more: int) -> None:
        with self._handle.lock:
            setter(self._handle.pointer, value, *more)
            c.bn_layer_get_options(self._handle.pointer, byref(self._options))

    @property
    def affine(self) -> bool:
        """Whether the layer has a weight or a bias."""
        return bool(self._options.has_weight or self._options.has_bias)

    @property
    def track_running_stats(self) -> bool:
        """Whether the layer keeps running statistics; if not, evaluation uses the batch's."""
        return bool(self._options.track_running_stats)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of tensors. Parameters and running statistics have `parameter_dtype`."""
        return named_dtype(c.Dtype(self._options.dtype).name.lower())

    @property
    def parameter_dtype(self) -> np.dtype[Any]:
        """Of weight, bias and running statistics: float64 of float64 tensors, else float32."""
        return FLOAT64 if self._options.dtype == c.Dtype.FLOAT64 else FLOAT32

    # Mode.

    @property
    def training(self) -> bool:
        """True after construction and `train()`, False after `eval()`."""
        mode = c_int32()
        with self._handle.lock:
            c.bn_layer_get_training(self._handle.pointer, byref(mode))
        return bool(mode.value)

    def train(self: _Self, mode: bool = True) -> _Self:
        """Normalize by the batch and update the running statistics from now on. Returns self.

        With ``mode=False`` it is `eval`.
        """
        with self._handle.lock:
            c.bn_layer_set_training(self._handle.pointer, bool(mode))
        return self

    def eval(self: _Self) -> _Self:
        """Normalize by the running statistics from now on. Returns self."""
        return self.train(False)

    # Parameters: views on the layer's own memory.

    @property
    def weight(self) -> MaybeArray:
        """The scale (C,), None if there is none: a writable view on the layer's own memory.

        ``layer.weight -= rate * layer.grad_weight`` updates the layer. The view stays valid when
        the layer is gone. Assigning copies an array of the same shape and dtype into the layer.
        """
        return self._weight

    @weight.setter
    def weight(self, value: Array) -> None:
        self._assign(self._weight, "weight", value)

    @property
    def bias(self) -> MaybeArray:
        """The shift (C,), None if there is none: a writable view, as `weight` is."""
        return self._bias

    @bias.setter
    def bias(self, value: Array) -> None:
        self._assign(self._bias, "bias", value)

    def _assign(self, view: Array | None, name: str, value: Array) -> None:
        if value is view:  # the second half of `layer.weight -= ...`
            return
        if view is None:
            raise BatchNormRuntimeError(f"the layer has no {name} to assign", Status.NO_PARAMETER)
        value = foreign.as_ndarray(value, name)
        self._check(name, value)
        with self._handle.lock:
            view[...] = value

    def _check(self, name: str, value: Array) -> None:
        shape = (self.num_features,)
        if value.dtype != self.parameter_dtype:
            raise BatchNormTypeError(
                f"{name} has dtype {value.dtype}, expected {self.parameter_dtype}; "
                f"convert it with .astype(numpy.{self.parameter_dtype})"
            )
        if value.shape != shape:
            raise BatchNormValueError(f"{name} has shape {value.shape}, expected {shape}")

    # Running statistics: copies out, copies in.

    @property
    def running_mean(self) -> MaybeArray:
        """The running mean (C,), a read-only copy; None if the layer keeps none. Assignable."""
        return self._running(c.bn_layer_get_running_mean, "running_mean")

    @running_mean.setter
    def running_mean(self, value: Array) -> None:
        self._set_running(c.bn_layer_set_running_mean, "running_mean", value)

    @property
    def running_var(self) -> MaybeArray:
        """The running variance (C,), a read-only copy; None if the layer keeps none. Assignable."""
        return self._running(c.bn_layer_get_running_var, "running_var")

    @running_var.setter
    def running_var(self, value: Array) -> None:
        self._set_running(c.bn_layer_set_running_var, "running_var", value)

    @property
    def num_batches_tracked(self) -> int | Any:
        """How many batches the running statistics took in; None if there are none. Assignable."""
        if not self.track_running_stats:
            return None
        count = c_int64()
        with self._handle.lock:
            c.bn_layer_get_num_batches_tracked(self._handle.pointer, byref(count))
        return count.value

    @num_batches_tracked.setter
    def num_batches_tracked(self, value: int) -> None:
        count = integer("num_batches_tracked", value)
        with self._handle.lock:
            c.bn_layer_set_num_batches_tracked(self._handle.pointer, count)

    @property
    def skipped_batches(self) -> NDArray[np.int64] | Any:
        """Of the batches tracked, how many each mean and each variance has not taken in, (2, C).

        NaN and infinity in a channel leave both alone, one value per channel (with
        ``one_value="allow"``) the variance. A read-only copy; None if the layer keeps no running
        statistics. Assignable; assigning `num_batches_tracked` makes it 0.
        """
        if not self.track_running_stats:
            return None
        counters = np.empty((2, self.num_features), np.int64)
        with self._handle.lock:
            c.bn_layer_get_skipped_batches(
                self._handle.pointer,
                pointer_cast(address(counters), POINTER(c_int64)),
                counters.size,
            )
        return read_only(counters, ASSIGN.format("skipped_batches"))

    @skipped_batches.setter
    def skipped_batches(self, value: Array) -> None:
        counters = self._counters("skipped_batches", value)
        with self._handle.lock:
            c.bn_layer_set_skipped_batches(
                self._handle.pointer,
                pointer_cast(address(counters), POINTER(c_int64)),
                counters.size,
            )

    def _counters(self, name: str, value: Array) -> NDArray[np.int64]:
        """Counters as the library takes them."""
        counters = foreign.as_ndarray(value, name)
        if counters.dtype.kind not in "iu":
            raise BatchNormTypeError(f"{name} has dtype {counters.dtype}, expected int64")
        if counters.shape != (2, self.num_features):
            raise BatchNormValueError(
                f"{name} has shape {counters.shape}, expected {(2, self.num_features)}"
            )
        return np.ascontiguousarray(counters, np.int64)

    def reset_running_stats(self) -> None:
        """Running mean 0, running variance 1, counters 0.

        Raises `BatchNormRuntimeError` if the layer keeps no running statistics.
        """
        with self._handle.lock:
            c.bn_layer_reset_running_stats(self._handle.pointer)

    def _running(self, getter: Any, name: str) -> MaybeArray:
        if not self.track_running_stats:
            return None
        return self._copy(getter, self.parameter_dtype, ASSIGN.format(name))

    def _set_running(self, setter: Any, name: str, value: Array) -> None:
        value = foreign.as_ndarray(value, name)
        if self.track_running_stats:
            self._check(name, value)
        value = np.ascontiguousarray(value)
        with self._handle.lock:
            setter(self._handle.pointer, address(value), value.size)

    def _copy(self, getter: Any, dtype: np.dtype[Any], advice: str) -> NDArray[Any]:
        values = np.empty(self.num_features, dtype)
        with self._handle.lock:
            getter(self._handle.pointer, address(values), values.size)
        return read_only(values, advice)

    # What the last forward found. Before the first: BatchNormRuntimeError with Status.NO_FORWARD.

    @property
    def saved_mean(self) -> Float64Array:
        """The mean (C,) that the last forward normalized with: a read-only float64 copy."""
        return self._copy(c.bn_layer_get_saved_mean, FLOAT64, SAVED.format("saved_mean"))

    @property
    def saved_mean_rest(self) -> Float64Array:
        """What `saved_mean` lacks of the mean (C,): a read-only float64 copy."""
        return self._copy(c.bn_layer_get_saved_mean_rest, FLOAT64, SAVED.format("saved_mean_rest"))

    @property
    def saved_invstd(self) -> Float64Array:
        """1 / sqrt(variance + eps) (C,) of the last forward: a read-only float64 copy."""
        return self._copy(c.bn_layer_get_saved_invstd, FLOAT64, SAVED.format("saved_invstd"))

    @property
    def statistics_used(self) -> StatisticsUsed:
        """Which statistics the last forward used: "batch" or "running"."""
        used = c_int32()
        with self._handle.lock:
            c.bn_layer_get_statistics_used(self._handle.pointer, byref(used))
        return STATISTICS_WORDS[used.value]

    @property
    def nonfinite_channels(self) -> int:
        """How many channels of the last forward's input held NaN or infinity."""
        return self._count(c.bn_layer_get_nonfinite_channels)

    @property
    def nonfinite_running_channels(self) -> int:
        """How many channels' running mean or variance the last forward found NaN or infinite.

        No average mends these: assign the statistics, or `reset_running_stats`. 0 if the forward
        updated none.
        """
        return self._count(c.bn_layer_get_nonfinite_running_channels)

    def _count(self, getter: Any) -> int:
        count = c_int64()
        with self._handle.lock:
            getter(self._handle.pointer, byref(count))
        return count.value

    def __repr__(self) -> str:
        text = (
            f"{type(self).__name__}({self.num_features}, eps={self.eps:g}, "
            f"momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )
        options = self._options
        if self.affine and not options.has_weight:
            text += ", has_weight=False"
        if self.affine and not options.has_bias:
            text += ", has_bias=False"
        if self.dtype != np.float32:
            text += f", dtype={dtype_name(self.dtype)}"
        for name, word, default in (
            ("running_variance", c.Variance(options.running_variance).name.lower(), "unbiased"),
            ("one_value", c.OneValue(options.one_value).name.lower(), "error"),
            ("nonfinite", c.Nonfinite(options.nonfinite).name.lower(), "report"),
        ):
            if word != default:
                text += f", {name}={word!r}"
        if self._channel_axis != 1:
            text += f", channel_axis={self._channel_axis}"
        return text + ")"
