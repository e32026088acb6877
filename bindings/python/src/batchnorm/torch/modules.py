"""PyTorch's BatchNorm1d, BatchNorm2d and BatchNorm3d, run by this library.

Each is a subclass of PyTorch's own without any state added, so that `isinstance`, `state_dict`,
hooks, pickles and every tool that looks for PyTorch's classes go on working, and so that assigning
`module.__class__` converts a module completely. What the library has no part in (other devices,
sparse or quantized tensors, dtypes that do not go together, wrong sizes) is handed to PyTorch,
which runs it or refuses it in its own words.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import Proxy, Tracer

from .._options import ACTIVATIONS, ActivationName, parse
from ._activations import BY_NAME, is_slope
from ._call import Call
from ._fitness import check_addable, judge
from ._operators import forward, forward_directly
from ._private import BATCH_NORM, graph_task_id, tensors_of

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"]


class _Forward(BATCH_NORM):
    """The forward that the three classes share."""

    def forward(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        activation: ActivationName | None = None,
        negative_slope: float = 0.01,
    ) -> Tensor:
        """activation(batch_norm(input) + residual).

        Parameters
        ----------
        input : (N, C, ...) tensor
            float32, float64, bfloat16 or float16. Its memory order (contiguous, channels_last) is
            the output's.
        residual : tensor or None
            Added before the activation, in the same sweep over memory if it has the input's shape
            and dtype. In another memory order it is copied first.
        activation : "relu", "leaky_relu" or None
            Applied in the same sweep over memory.
        negative_slope : float
            Of "leaky_relu", at least 0 and finite; 0 is "relu".

        Raises
        ------
        ValueError
            For another number of dimensions, one value per channel in training, an unknown
            activation, a slope that there is not. No output and no statistic is written then.
        RuntimeError
            Where PyTorch raises it. What it refuses in training, it has counted by then, as ever,
            in num_batches_tracked.
        BatchNormValueError
            Running statistics that lie in the input's memory or in each other's. Nothing is
            written.
        """
        if isinstance(input, Proxy):
            return _leaf(self, input, residual, activation, negative_slope)
        self._check_input_dim(input)
        if activation is not None:
            _check_activation(activation, negative_slope)
        if residual is not None and not isinstance(residual, Tensor):
            raise TypeError(
                f"residual is a {type(residual).__name__}, expected a torch.Tensor or None"
            )
        call = self._call(input, residual, activation, negative_slope)
        fitness = judge(call)
        if fitness.reason is None:
            return forward_directly(call) if fitness.direct else forward(call)
        if residual is not None:
            check_addable(residual, input)
        return _compose(super().forward(input), residual, activation, negative_slope)

    def _call(
        self,
        input: Tensor,
        residual: Tensor | None,
        activation: str | None,
        negative_slope: float,
    ) -> Call:
        """What this module's mode and tensors ask for."""
        weight, bias, mean, var, counter = tensors_of(self)
        training = self.training
        if not training:
            counter = None
        elif not self.track_running_stats or _is_recomputation():
            mean = var = counter = None
        return Call(
            input,
            weight,
            bias,
            mean,
            var,
            counter,
            self.momentum,
            self.eps,
            residual,
            activation,
            negative_slope,
            not (training or mean is None or var is None),
        )


def _leaf(module: nn.Module, input: Proxy, *extras: object) -> Tensor:
    """Under torch.fx: a node that calls the module, as for PyTorch's own modules."""
    tracer = cast(Tracer, input.tracer)
    plain = extras[0] is None and extras[1] is None
    args = (input,) if plain else (input, *extras)
    return cast(Tensor, tracer.create_proxy("call_module", tracer.path_of_module(module), args, {}))


def _check_activation(activation: str, negative_slope: float) -> None:
    """Whoever does the call: before anything is written, and in the same words."""
    parse(ACTIVATIONS, "activation", activation)
    if BY_NAME[activation].slope is not None and not is_slope(negative_slope):
        raise ValueError(
            f"negative_slope is {negative_slope}, expected a finite number of at least 0"
        )


def _compose(
    output: Tensor, residual: Tensor | None, activation: str | None, negative_slope: float
) -> Tensor:
    """The same by PyTorch's operators."""
    if residual is not None:
        output = output + residual
    if activation is None:
        return output
    row = BY_NAME[activation]
    function = row.functions[0]
    return cast(Tensor, function(output) if row.slope is None else function(output, negative_slope))


def _is_recomputation() -> bool:
    """Whether a backward is running: a forward inside of one repeats an earlier forward.

    That is activation checkpointing. The earlier forward has updated the running statistics.
    torch.compile repeats operators, not this code.
    """
    return not torch.compiler.is_compiling() and graph_task_id() != -1


class BatchNorm1d(_Forward, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` for (N, C) and (N, C, L) tensors, run by libbatchnorm.

    Parameters and extras are those of `BatchNorm2d`.

    Examples
    --------
    >>> layer = BatchNorm1d(100)
    >>> layer(torch.randn(20, 100)).shape
    torch.Size([20, 100])
    """


class BatchNorm2d(_Forward, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` for (N, C, H, W) tensors, run by libbatchnorm.

    Parameters
    ----------
    num_features : int
        C, the number of channels.
    eps : float
        Added to the variance; greater than 0 in training.
    momentum : float or None
        Weight of the newest batch in the running statistics; None averages all batches alike.
    affine, bias : bool
        Whether there are `weight` and `bias`; a bias needs a weight.
    track_running_stats : bool
        Whether there are running statistics. Without them, batches are normalized by their own
        statistics in evaluation too.
    device, dtype
        Of parameters and buffers.

    All of it is PyTorch's, and documented in full there; `forward` has arguments that PyTorch's
    has not, for what may follow batch normalization in the same sweep over memory.

    Examples
    --------
    >>> layer = BatchNorm2d(16)
    >>> x = torch.randn(4, 16, 8, 8)
    >>> y = layer(x, residual=x, activation="relu")  # relu(batch_norm(x) + x)
    >>> bool((y >= 0).all()), layer.num_batches_tracked.item()
    (True, 1)
    """


class BatchNorm3d(_Forward, nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` for (N, C, D, H, W) tensors, run by libbatchnorm.

    Parameters and extras are those of `BatchNorm2d`.

    Examples
    --------
    >>> layer = BatchNorm3d(5, affine=False).eval()
    >>> layer(torch.zeros(2, 5, 4, 4, 4)).abs().max().item()
    0.0
    """
