"""Layers that keep parameters, running statistics and mode: torch.nn.BatchNorm1d/2d/3d for NumPy.

A layer is a handle of the C library, which owns all of its numbers and rules. What it has is in
_layer.py, saving and loading in _state.py; here is what it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import sizeof
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict

import numpy as np
from numpy import ndarray

from . import _arguments as arguments
from . import _foreign as foreign
from . import _lowlevel as c
from ._arrays import (
    Array,
    Form,
    Lengths,
    Mask,
    MaybeArray,
    address,
    destination,
    form_of,
    tensor_address,
)
from ._options import ActivationName, MaskedPolicy, triple, truth
from ._state import IncompatibleKeys, StatefulLayer
from .errors import BatchNormError, BatchNormValueError, Status
from .fold import Folded, WeightLayout, affine_shape, fold, weight_shape
from .memory import empty_like
from .plan import MemoryLayout, Operation, Plan, explain

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "IncompatibleKeys"]

# Looked up once: an enum takes as long to give a member as an array to be checked.
_NORMAL, _KEEP_RUNNING, _RECOMPUTE = c.Pass


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


class _BatchNorm(StatefulLayer):
    """What the three layers do. See BatchNorm2d for the user's documentation."""

    __slots__ = ()

    _RANKS: ClassVar[dict[int, str]]

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
        form = form_of(input, "input", self._channel_axis)
        self._check_rank(form.shape)
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
        form = form_of(input, "input", self._channel_axis)
        self._check_rank(form.shape)
        epilogue = activation, negative_slope, residual, None
        args = self._extend(_RECOMPUTE, form, epilogue, (mask, lengths, masked))
        return self._normalize(form, input, out, args)

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
        activation: ActivationName | None = None,
        negative_slope: float = 0.01,
        residual: bool = False,
        mask: bool = False,
        lengths: bool = False,
        output_mask: tuple[bool, bool, bool] = (True, True, True),
    ) -> Plan:
        """Tell what a call on an array of this shape would do, in the layer's mode; nothing is run.

        The keywords are those of `forward`, in whose place a backward is that of such a forward.

        Parameters
        ----------
        shape : sequence of int
            The shape of the array, with its channels at the layer's `channel_axis`.
        call : "forward" or "backward"
            `backward` is that of a forward in this mode.
        layout : "nchw" or "nhwc", optional
            The array's order in memory; None means that it is C-contiguous.
        activation, negative_slope, residual, mask, lengths
            As in `forward`; of arrays, whether they are there. The layer itself keeps where an
            activation let pass, and reads it in `backward`.
        output_mask : (bool, bool, bool)
            As in `backward`.

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
        want_input, want_weight, want_bias = triple("output_mask", output_mask)
        if truth("lengths", lengths) and not truth("mask", mask) and call == "backward":
            mask, lengths = True, False  # which is what the forward has left
        return explain(
            sizes,
            operations[call],
            dtype=self.dtype,
            layout=layout or "nchw",
            activation=activation,
            negative_slope=negative_slope,
            residual=residual,
            activation_mask=activation is not None,
            mask=mask,
            lengths=lengths,
            output_mask=(
                want_input,
                want_weight and self._weight is not None,
                want_bias and self._bias is not None,
            ),
        )

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
