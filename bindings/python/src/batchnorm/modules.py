"""Layers that keep parameters, running statistics and mode: torch.nn.BatchNorm1d/2d/3d for NumPy.

A layer is a handle of the C library, which owns all of its numbers and rules; this file checks
arrays and names things. Invariant: every use of a handle holds its lock, because the library
serves one thread at a time per layer and ctypes releases the interpreter lock.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from ctypes import POINTER, byref, c_int32, c_int64, c_void_p, sizeof
from ctypes import cast as pointer_cast
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypedDict, TypeVar, cast

import numpy as np
from numpy import ndarray
from numpy.typing import DTypeLike, NDArray

from . import _arguments as arguments
from . import _foreign as foreign
from . import _lowlevel as c
from ._arrays import (
    FLOAT32,
    FLOAT64,
    Array,
    ChannelAxis,
    Float64Array,
    Form,
    Lengths,
    Mask,
    MaybeArray,
    address,
    destination,
    dtype_name,
    form_of,
    layer_dtype,
    named_dtype,
    tensor_address,
    unknown_axis,
)
from ._options import (
    NONFINITES,
    ONE_VALUES,
    STATISTICS_WORDS,
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
    triple,
    wrong_type,
)
from .errors import (
    BatchNormError,
    BatchNormRuntimeError,
    BatchNormTypeError,
    BatchNormValueError,
    Status,
)
from .fold import Folded, WeightLayout, affine_shape, fold, weight_shape
from .memory import empty_like
from .plan import MemoryLayout, Operation, Plan, explain

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "IncompatibleKeys"]

# Looked up once: an enum takes as long to give a member as an array to be checked.
_NORMAL, _KEEP_RUNNING, _RECOMPUTE = c.Pass

_Self = TypeVar("_Self", bound="_BatchNorm")


class _ForwardOptions(TypedDict, total=False):
    """What a forward can do beside normalizing; `_BatchNorm.forward` has the words."""

    activation: ActivationName | None
    negative_slope: float
    residual: Array | None
    mask: Mask | None
    lengths: Lengths | None
    masked: MaskedPolicy
    update_running: bool
    allow_copy: bool


def _block(state: bytes | bytearray | memoryview) -> NDArray[np.uint8]:
    """A saved state's bytes."""
    try:
        return np.frombuffer(state, np.uint8)
    except TypeError:
        raise wrong_type("state", state, "a bytes-like object") from None


class _Handle:
    """Owns one bn_layer: destroyed when the layer and every view on its memory are gone."""

    __slots__ = ("lock", "pointer")

    def __init__(self, pointer: c_void_p) -> None:
        self.pointer = pointer
        self.lock = threading.Lock()

    def __del__(self, _destroy: Any = c.bn_layer_destroy) -> None:
        _destroy(self.pointer)


class _Borrowed:
    """Lets NumPy make an array on a handle's memory that keeps the handle alive (as its base)."""

    def __init__(self, handle: _Handle, pointer: int, count: int, dtype: np.dtype[Any]) -> None:
        self.handle = handle
        self.__array_interface__ = {
            "version": 3,
            "shape": (count,),
            "typestr": dtype.str,
            "data": (pointer, False),
        }


class _Copy(np.ndarray):
    """A read-only copy of numbers that are the layer's: writing to it says what to do instead."""

    advice = ""

    def __array_finalize__(self, origin: Any) -> None:
        self.advice = getattr(origin, "advice", "")

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return array[()] if return_scalar else array.view(ndarray)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._refuse()
        super().__setitem__(index, value)

    def _refuse(self) -> None:
        if not self.flags.writeable and self.advice:
            raise BatchNormValueError(self.advice)

    def __reduce__(self) -> Any:
        return self.view(ndarray).__reduce__()

    def __repr__(self) -> str:
        return repr(self.view(ndarray))


def _in_place(name: str) -> Any:
    plain = getattr(ndarray, name)

    def method(self: _Copy, other: Any) -> Any:
        self._refuse()
        return plain(self, other)

    return method


_IN_PLACE = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift"
for _operator in _IN_PLACE.split():
    setattr(_Copy, f"__i{_operator}__", _in_place(f"__i{_operator}__"))
del _operator


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict` returns, as PyTorch's does: empty lists where all fitted.

    Examples
    --------
    >>> layer = BatchNorm1d(3, bias=False)
    >>> state = {**layer.state_dict(), "gamma": 1}
    >>> layer.load_state_dict(state, strict=False)
    IncompatibleKeys(missing_keys=[], unexpected_keys=['gamma'])
    """

    missing_keys: list[str]
    """Which names the layer has and the state has not."""
    unexpected_keys: list[str]
    """Which names the state has and the layer has not."""


class _BatchNorm:
    """What the three layers share. See BatchNorm2d for the user's documentation."""

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

    _RANKS: ClassVar[dict[int, str]]

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
        self._adopt(_Handle(pointer), channel_axis)

    def _adopt(self, handle: _Handle, channel_axis: ChannelAxis) -> None:
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
        return np.asarray(_Borrowed(self._handle, pointer, self.num_features, self.parameter_dtype))

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

    # Forward and backward.

    def __call__(
        self, input: Array, out: Array | None = None, **options: Unpack[_ForwardOptions]
    ) -> Array:
        """The same as `forward`."""
        return self.forward(input, out, **options) if options else self.forward(input, out)

    def forward(
        self,
        input: Array,
        out: Array | None = None,
        *,
        activation: ActivationName | None = None,
        negative_slope: float = 0.01,
        residual: Array | None = None,
        mask: Mask | None = None,
        lengths: Lengths | None = None,
        masked: MaskedPolicy = "zero",
        update_running: bool = True,
        allow_copy: bool = False,
    ) -> Array:
        """Normalize, in the layer's mode: ``activation(batch normalization of input + residual)``.

        Parameters
        ----------
        input : array of the layer's dtype and rank
            C-contiguous or channels-last, see `batchnorm.functional`; of NumPy's kind or another.
            The layer keeps a reference to it for `backward`, until the next forward; do not write
            to it in between (nor resize a bytearray, or close an mmap, that it lies in).
        out : array like `input`, optional
            Where the result goes. It may be `input` itself; `backward` then needs a copy of the
            input.
        activation : "relu", "leaky_relu" or None
            What is done to each value in the end; `negative_slope` is that of "leaky_relu".
        residual : array like `input`, optional
            Added before the activation. `out` may be the residual itself. After such a forward,
            `backward` sets `grad_residual`.
        mask : bool or uint8 array of the input's shape without its channels, optional
            True where a position takes part; the others enter neither statistics nor gradients.
        lengths : (N,) array or sequence of integers, optional
            Of sequences, instead of `mask`: how many steps of each take part.
        masked : "zero" or "pass"
            The output at masked positions: 0, or the input.
        update_running : bool
            False: in training, leave running statistics and their counter as they are.
        allow_copy : bool
            True: copy arrays whose memory does not lie as it must, instead of refusing them.

        Returns
        -------
        array
            A new array like `input`, or `out`.

        Raises
        ------
        BatchNormTypeError, BatchNormValueError
            Wrong type, dtype, rank, channel count, strides or memory of `input`, `out` or another
            array; one value per channel in training (see `one_value`). Nothing has been changed.
        BatchNormError
            With `Status.NONFINITE`, if `nonfinite="error"`: everything has been done nevertheless.
        """
        if type(input) is not ndarray or allow_copy:
            return foreign.call(_BatchNorm.forward, locals())
        form = self._form_of(input)
        args = None
        if (
            activation is not None
            or residual is not None
            or mask is not None
            or lengths is not None
            or masked != "zero"
            or not update_running
        ):
            epilogue = activation, negative_slope, residual, None
            how = _NORMAL if update_running else _KEEP_RUNNING
            args = self._extend(how, form, epilogue, (mask, lengths, masked))
        return self._normalize(form, input, out, args)

    def recompute(
        self,
        input: Array,
        out: Array | None = None,
        *,
        activation: ActivationName | None = None,
        negative_slope: float = 0.01,
        residual: Array | None = None,
        mask: Mask | None = None,
        lengths: Lengths | None = None,
        masked: MaskedPolicy = "zero",
        allow_copy: bool = False,
    ) -> Array:
        """Compute the last forward once more, for activation checkpointing.

        Normalizes by the statistics that the last forward used, whatever the mode is now, and
        updates nothing, so that a batch counts once. With the arguments of that forward, the result
        is the same to the bit, provided that the weight and the bias are.

        Parameters
        ----------
        input : array of the last forward's shape and memory order
        out, activation, negative_slope, residual, mask, lengths, masked, allow_copy
            As in `forward`.

        Returns
        -------
        array
            A new array like `input`, or `out`.

        Raises
        ------
        BatchNormTypeError, BatchNormValueError
            As `forward`, and for another shape, activation or mask than the last forward's, or a
            residual where that had none.
        BatchNormRuntimeError
            With `Status.NO_FORWARD`, before the first forward.
        """
        if type(input) is not ndarray or allow_copy:
            return foreign.call(_BatchNorm.recompute, locals())
        form = self._form_of(input)
        epilogue = activation, negative_slope, residual, None
        args = self._extend(_RECOMPUTE, form, epilogue, (mask, lengths, masked))
        return self._normalize(form, input, out, args)

    def _form_of(self, input: Array) -> Form:
        """The form of a forward's input, checked."""
        form = form_of(input, "input", self._channel_axis)
        self._check_rank(form.shape)
        return form

    def _extend(
        self,
        how: c.Pass,
        form: Form,
        epilogue: arguments.Epilogue,
        positions: arguments.Positions,
    ) -> c.bn_layer_forward_args:
        """What only a forward with more than an input needs, checked."""
        args = c.bn_layer_forward_args(sizeof(c.bn_layer_forward_args), how)
        arguments.extend(args, form, self._channel_axis, epilogue, positions)
        arguments.set_residual(args, form, epilogue[2])
        return args

    def _normalize(
        self, form: Form, input: Array, out: Array | None, args: c.bn_layer_forward_args | None
    ) -> Array:
        """Every forward; `args` are None where there is only an input."""
        out, target = destination(out, "out", form, input)
        source = address(input)
        kept = None if source == target else input
        residual = args is not None and args.residual is not None
        handle = self._handle
        with handle.lock:
            try:
                if args is None:
                    c.bn_layer_forward(
                        handle.pointer,
                        form.problem,
                        source,
                        form.elements,
                        target,
                        form.elements,
                    )
                else:
                    args.input, args.output = source, target
                    args.input_count = args.output_count = form.elements
                    c.bn_layer_forward_with(handle.pointer, form.problem, args)
            except BatchNormError as error:
                if error.status == Status.NONFINITE:  # after the work: a forward to remember
                    self._form, self._input, self._residual = form, kept, residual
                raise
            self._form, self._input, self._residual = form, kept, residual
        return out

    def _check_rank(self, shape: tuple[int, ...]) -> None:
        if len(shape) not in self._RANKS:
            expected = " or ".join(f"{rank} {text}" for rank, text in self._RANKS.items())
            raise BatchNormValueError(
                f"input has {len(shape)} dimensions, shape {shape}, expected {expected}"
            )

    def backward(
        self,
        grad_output: Array,
        out: Array | None = None,
        *,
        input: Array | None = None,
        output_mask: tuple[bool, bool, bool] = (True, True, True),
        grad_residual: Array | bool | None = None,
        allow_copy: bool = False,
    ) -> MaybeArray:
        """Gradients of a loss, for the last forward and the statistics which that one used.

        Sets `grad_weight` and `grad_bias` to new arrays (C,) (written, not added; None if the
        layer has no such parameter or `output_mask` skips it), and `grad_residual` if the forward
        had a residual (None otherwise). The forward's activation and mask need not be given again:
        the layer keeps what it needs of them. May be called more than once per forward.

        The result and `grad_residual` are of `grad_output`'s kind of array. `grad_weight` and
        `grad_bias` are ndarrays, as `weight` and `bias` are.

        Parameters
        ----------
        grad_output : array like the forward's input
            Gradient of the loss with respect to the forward's output.
        out : array like the forward's input, optional
            Where the result goes; may be `grad_output`.
        input : array, optional
            The forward's input, only needed after a forward in place, which has overwritten it.
        output_mask : (bool, bool, bool)
            Which gradients to compute: input, weight, bias.
        grad_residual : bool or array like the forward's input, optional
            False: skip the residual's gradient. An array: the destination for it; may be
            `grad_output`.
        allow_copy : bool
            As in `forward`.

        Returns
        -------
        array or None
            Gradient with respect to the input, `out` if that was given; None if skipped.

        Raises
        ------
        BatchNormTypeError, BatchNormValueError
            Wrong type, dtype, shape, strides or memory. Nothing has been changed.
        BatchNormRuntimeError
            With `Status.NO_FORWARD`, before the first forward.
        """
        if type(grad_output) is not ndarray or allow_copy:
            return foreign.call(_BatchNorm.backward, locals(), "grad_output", also="grad_residual")
        form = self._form
        if input is None:
            input = self._input
        if form is None:
            form = form_of(grad_output, "grad_output", self._channel_axis)
            input = grad_output  # any will do: there was no forward, and the library says so
        if input is None:
            raise BatchNormValueError(
                "the last forward was in place and has overwritten its input; "
                "pass a copy that was made before: backward(grad_output, input=copy)"
            )
        want_input, want_weight, want_bias = triple("output_mask", output_mask)
        if out is not None and not want_input:
            raise BatchNormValueError(
                f"out was given, but output_mask {output_mask} skips grad_input"
            )
        features = self._features
        dtype = form.parameter
        weight = np.empty(features, dtype) if want_weight and self._weight is not None else None
        bias = np.empty(features, dtype) if want_bias and self._bias is not None else None

        count = form.elements
        source = tensor_address(input, "input", form)
        gradient = tensor_address(grad_output, "grad_output", form)
        target = None
        if want_input:
            out, target = destination(out, "out", form, input)
        if grad_residual is None:
            grad_residual = self._residual
        if isinstance(grad_residual, bool):
            grad_residual = empty_like(input) if grad_residual else None
        numbers = (
            source,
            count,
            gradient,
            count,
            target,
            0 if target is None else count,
            None if weight is None else address(weight),
            0 if weight is None else features,
            None if bias is None else address(bias),
            0 if bias is None else features,
        )
        handle = self._handle
        if grad_residual is None:
            with handle.lock:
                c.bn_layer_backward(handle.pointer, form.problem, *numbers)
        else:
            place = tensor_address(grad_residual, "grad_residual", form, written=True)
            args = c.bn_layer_backward_args(
                sizeof(c.bn_layer_backward_args), 0, *numbers, place, count
            )
            with handle.lock:
                c.bn_layer_backward_with(handle.pointer, form.problem, args)
        self.grad_weight = weight
        self.grad_bias = bias
        self.grad_residual = grad_residual
        return out

    def explain(
        self,
        shape: Sequence[int],
        call: Literal["forward", "backward"] = "forward",
        *,
        layout: MemoryLayout | None = None,
    ) -> Plan:
        """Tell what a call on an array of this shape would do, in the layer's mode; nothing is run.

        Parameters
        ----------
        shape : sequence of int
            The shape of the array, with its channels at the layer's `channel_axis`.
        call : "forward" or "backward"
            `backward` is that of a forward in this mode.
        layout : "nchw" or "nhwc", optional
            The array's order in memory; None means that it is C-contiguous.

        Returns
        -------
        Plan
            See `batchnorm.explain`, which also tells what is raised.
        """
        sizes = tuple(shape)
        self._check_rank(sizes)
        if self._channel_axis == -1:
            sizes = (sizes[0], sizes[-1], *sizes[1:-1])
            layout = layout or "nhwc"
        if sizes[1] != self.num_features:
            raise BatchNormValueError(
                f"shape {tuple(shape)} has {sizes[1]} channels, expected {self.num_features}"
            )
        by_batch = self.training or not self.track_running_stats
        operations: dict[str, Operation] = (
            {"forward": "forward_training", "backward": "backward"}
            if by_batch
            else {"forward": "forward_inference", "backward": "backward_frozen"}
        )
        if call not in operations:
            raise BatchNormValueError(f"call is {call!r}, expected 'forward' or 'backward'")
        return explain(sizes, operations[call], dtype=self.dtype, layout=layout or "nchw")

    # Folding.

    def fold_affine(self) -> Folded:
        """What the layer does in evaluation as one affine map per channel; see `fold_affine`.

        Raises `BatchNormRuntimeError` if the layer keeps no running statistics.
        """
        args = c.bn_fold_args(sizeof(c.bn_fold_args))
        return self._fold(
            args, affine_shape(self.num_features, self.parameter_dtype), None, None, None, None
        )

    def fold_into(
        self,
        conv_weight: Array,
        conv_bias: Array | None = None,
        *,
        layout: WeightLayout = "OIHW",
        groups: int = 1,
        folded_weight: Array | None = None,
        folded_bias: Array | None = None,
    ) -> Folded:
        """Fold what the layer does in evaluation into the convolution or linear layer before it.

        The layer itself, whatever its mode, stays as it is. Arguments, result and errors are those
        of `batchnorm.fold_into`; the arrays have the layer's `parameter_dtype`. Raises
        `BatchNormRuntimeError` if the layer keeps no running statistics.
        """
        if type(conv_weight) is not ndarray:
            return foreign.call(_BatchNorm.fold_into, locals(), "conv_weight")
        shape = weight_shape(conv_weight, layout, groups)
        args = c.bn_fold_args(sizeof(c.bn_fold_args))
        return self._fold(args, shape, conv_weight, conv_bias, folded_weight, folded_bias)

    def _fold(self, *arguments: Any) -> Folded:
        def call(shape: c.bn_weight_shape, args: c.bn_fold_args) -> None:
            with self._handle.lock:
                c.bn_layer_fold(self._handle.pointer, shape, args)

        return fold(call, *arguments)

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
        return _read_only(counters, _ASSIGN.format("skipped_batches"))

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
        return self._copy(getter, self.parameter_dtype, _ASSIGN.format(name))

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
        return _read_only(values, advice)

    # What the last forward found. Before the first: BatchNormRuntimeError with Status.NO_FORWARD.

    @property
    def saved_mean(self) -> Float64Array:
        """The mean (C,) that the last forward normalized with: a read-only float64 copy."""
        return self._copy(c.bn_layer_get_saved_mean, FLOAT64, _SAVED.format("saved_mean"))

    @property
    def saved_mean_rest(self) -> Float64Array:
        """What `saved_mean` lacks of the mean (C,): a read-only float64 copy."""
        return self._copy(c.bn_layer_get_saved_mean_rest, FLOAT64, _SAVED.format("saved_mean_rest"))

    @property
    def saved_invstd(self) -> Float64Array:
        """1 / sqrt(variance + eps) (C,) of the last forward: a read-only float64 copy."""
        return self._copy(c.bn_layer_get_saved_invstd, FLOAT64, _SAVED.format("saved_invstd"))

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

    # State.

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Copies of parameters and running statistics under PyTorch's names.

        Keys: "weight", "bias", "running_mean", "running_var" (each (C,), of the layer's
        `parameter_dtype`) and "num_batches_tracked" (int64, no dimensions), as far as the layer has
        them. Where a cumulative average (``momentum=None``) had to skip a batch, "skipped_batches"
        as well, which PyTorch does not know.
        """
        state: dict[str, NDArray[Any]] = {}
        for name in self._state_names():
            value = getattr(self, name)
            state[name] = np.array(
                value, np.int64 if name == "num_batches_tracked" else self.parameter_dtype
            )
        if self.track_running_stats and self.momentum is None and self.skipped_batches.any():
            state["skipped_batches"] = np.array(self.skipped_batches)
        return state

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Take over a `state_dict`, of this class or of PyTorch's (as arrays or CPU tensors).

        Everything is checked before anything is changed.

        Parameters
        ----------
        state : mapping from names to arrays
            What `state_dict` returns. "skipped_batches" may be missing, and "num_batches_tracked"
            of states that do not say that they are of PyTorch's second version: the counter then
            stays as it is, as in PyTorch.
        strict : bool
            False: leave what is missing as it is, and what is unexpected alone.

        Returns
        -------
        IncompatibleKeys
            Missing and unexpected keys; both empty if `strict`.

        Raises
        ------
        BatchNormValueError
            Missing or unexpected keys (if `strict`), wrong shapes, a negative counter.
        BatchNormTypeError
            Wrong dtypes.
        """
        if not isinstance(state, Mapping):
            raise wrong_type("state", state, "a mapping from names to arrays")
        names = self._state_names()
        missing = [name for name in names if name not in state]
        version = getattr(state, "_metadata", {}).get("", {}).get("version")
        if "num_batches_tracked" in missing and (version is None or version < 2):
            missing.remove("num_batches_tracked")
        optional = ["skipped_batches"] if self.track_running_stats else []
        unexpected = [name for name in state if name not in names + optional]
        if strict and (missing or unexpected):
            raise BatchNormValueError(
                self._incompatible(missing, unexpected), Status.LAYER_MISMATCH
            )
        values = {name: np.asarray(state[name]) for name in names if name in state}
        for name in values:
            if name != "num_batches_tracked":
                self._check(name, values[name])
        skipped = None
        if "skipped_batches" in state and self.track_running_stats:
            skipped = self._counters("skipped_batches", np.asarray(state["skipped_batches"]))
        if "num_batches_tracked" in values:  # first, for it is the one that the library may refuse
            counter = values.pop("num_batches_tracked")
            if counter.dtype.kind not in "iu":
                raise BatchNormTypeError(
                    f"num_batches_tracked has dtype {counter.dtype}, expected int64"
                )
            if counter.size != 1:
                raise BatchNormValueError(
                    f"num_batches_tracked has shape {counter.shape}, expected one element"
                )
            number = int(counter.item())
            if skipped is not None and not ((skipped >= 0) & (skipped <= number)).all():
                raise BatchNormValueError(
                    f"skipped_batches has numbers from {skipped.min()} to {skipped.max()}, "
                    f"expected 0 to {number} (num_batches_tracked)"
                )
            self.num_batches_tracked = number
            if skipped is not None:
                self.skipped_batches = skipped
        elif skipped is not None:
            self.skipped_batches = skipped
        for name, value in values.items():
            setattr(self, name, value)
        return IncompatibleKeys(missing, unexpected)

    def _incompatible(self, missing: list[str], unexpected: list[str]) -> str:
        """PyTorch's words."""
        text = f"Error(s) in loading state_dict for {type(self).__name__}:"
        for what, names in (("Missing", missing), ("Unexpected", unexpected)):
            if names:
                quoted = ", ".join(f'"{name}"' for name in names)
                text += f"\n\t{what} key(s) in state_dict: {quoted}. "
        return text

    def _state_names(self) -> list[str]:
        names = [name for name in ("weight", "bias") if getattr(self, name) is not None]
        if self.track_running_stats:
            names += ["running_mean", "running_var", "num_batches_tracked"]
        return names

    def to_bytes(self) -> bytes:
        """Options, mode, parameters, running statistics and counter as one checksummed block.

        The format is the C library's (batchnorm.h, section STATE), the same on every machine.
        `channel_axis` and what `backward` needs are not part of it.
        """
        size = c_int64()
        with self._handle.lock:
            c.bn_layer_state_size(self._handle.pointer, byref(size))
            block = np.empty(size.value, np.uint8)
            c.bn_layer_save_state(self._handle.pointer, address(block), block.size)
        return block.tobytes()

    def load_bytes(self, state: bytes | bytearray | memoryview) -> None:
        """Take over mode, parameters, statistics and counter from `to_bytes` of a layer like this.

        Raises `BatchNormError` if `state` is damaged, foreign, or from a layer with another dtype,
        number of channels, or other parameters or statistics; nothing has been changed then.
        """
        block = _block(state)
        with self._handle.lock:
            c.bn_layer_load_state(self._handle.pointer, address(block), block.size)

    @classmethod
    def from_bytes(
        cls: type[_Self], state: bytes | bytearray | memoryview, *, channel_axis: ChannelAxis = 1
    ) -> _Self:
        """Make a layer, options and all, from `to_bytes`.

        Raises `BatchNormError` if `state` is damaged or foreign. `channel_axis` is not part of it.
        """
        block = _block(state)
        pointer = c_void_p()
        c.bn_layer_create_from_state(address(block), block.size, byref(pointer))
        layer = cls.__new__(cls)
        layer._adopt(_Handle(pointer), channel_axis)
        return layer

    def __reduce__(self) -> tuple[Any, ...]:
        # pickle, copy.copy and copy.deepcopy: the state, and whatever a subclass keeps in __dict__.
        extra = getattr(self, "__dict__", None) or None
        return _restore, (type(self), self.to_bytes(), self._channel_axis), extra

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


_ASSIGN = "{0} is a read-only copy of the layer's; assign all of it: layer.{0} = values"
_SAVED = "{} is a read-only copy of what the last forward saved; work on a copy of your own"


def _read_only(values: NDArray[Any], advice: str) -> NDArray[Any]:
    copy = values.view(_Copy)
    copy.advice = advice
    copy.flags.writeable = False
    return copy


def _restore(cls: type[_BatchNorm], state: bytes, channel_axis: ChannelAxis) -> Any:
    return cls.from_bytes(state, channel_axis=channel_axis)


class BatchNorm1d(_BatchNorm):
    """Batch normalization of (N, C) or (N, C, L) arrays; see `torch.nn.BatchNorm1d`.

    Parameters and notes: as for `BatchNorm2d`.

    Examples
    --------
    >>> import numpy as np
    >>> layer = BatchNorm1d(2, dtype=np.float64)
    >>> layer(np.array([[1.0, 10.0], [3.0, 30.0]])).round(3)
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> layer.running_mean
    array([0.2, 2. ])
    """

    __slots__ = ()
    _RANKS: ClassVar = {2: "(N, C)", 3: "(N, C, L)"}


class BatchNorm2d(_BatchNorm):
    """Batch normalization of (N, C, H, W) arrays; see `torch.nn.BatchNorm2d`.

    Parameters
    ----------
    num_features : int
        Number of channels C, at least 1.
    eps : float
        At least 0; added to the variance inside the square root.
    momentum : float or None
        Weight of a new batch in the running statistics (PyTorch's direction). None: the plain mean
        over all batches.
    affine : bool
        Whether there are `weight` (from 1) and `bias` (from 0).
    track_running_stats : bool
        Whether to keep running statistics. If not, evaluation uses the batch's statistics too.
    device : "cpu" or None
        PyTorch's argument; nothing else is known here.
    dtype : float32, float64, bfloat16 (of ml_dtypes) or float16; None means float32
        Of tensors, parameters and running statistics; those of half types are float32.
    bias : bool, keyword only from here
        False: `weight` alone, as in PyTorch.
    has_weight, has_bias : bool or None
        One of the two without the other; None means as `affine` and `bias` say.
    running_variance : "unbiased" or "biased"
        Which batch variance enters `running_var`: PyTorch's, or that of ONNX, Keras and Flax.
    one_value : "error", "use_running" or "allow"
        Training on one value per channel: refuse, normalize by the running statistics, or return
        `bias`.
    nonfinite : "report" or "error"
        NaN or infinity in a channel: only count it in `nonfinite_channels`, or raise after the
        work.
    channel_axis : 1 or -1
        Which axis of the tensors is the channel; -1 takes (N, H, W, C).

    Notes
    -----
    Threads: a layer does one call at a time; calls from other threads wait. Different layers are
    independent. Two threads that train one layer mix their statistics, and `backward` belongs to
    whatever forward was last: use one layer per thread, or the functions of `batchnorm.functional`.

    Fork: a child process has its own copy of the layer and can go on using it, provided that no
    other thread was inside a call of that layer at the time of the fork.

    Pickling and copying keep options, mode, parameters, statistics and counter (and attributes that
    a subclass adds), but not the last forward and its gradients.

    Mode, parameters, statistics, `eps` and `momentum` can change; other options are fixed when the
    layer is made.

    Examples
    --------
    A step of training, and evaluation:

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> layer = BatchNorm2d(3)
    >>> x = rng.normal(size=(4, 3, 8, 8)).astype(np.float32)
    >>> y = layer(x)
    >>> grad_x = layer.backward(y)
    >>> layer.weight -= 0.1 * layer.grad_weight
    >>> layer.bias -= 0.1 * layer.grad_bias
    >>> layer.eval()(x[:1]).shape
    (1, 3, 8, 8)
    >>> layer
    BatchNorm2d(3, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
    """

    __slots__ = ()
    _RANKS: ClassVar = {4: "(N, C, H, W)"}


class BatchNorm3d(_BatchNorm):
    """Batch normalization of (N, C, D, H, W) arrays; see `torch.nn.BatchNorm3d`.

    Parameters and notes: as for `BatchNorm2d`.

    Examples
    --------
    >>> import numpy as np
    >>> BatchNorm3d(2)(np.ones((1, 2, 2, 2, 2), np.float32)).max()
    np.float32(0.0)
    """

    __slots__ = ()
    _RANKS: ClassVar = {5: "(N, C, D, H, W)"}
