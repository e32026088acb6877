"""What a call would do on this machine now: `explain` and the `Plan` that it returns.

Nothing is run; the C library answers from the plan that the operation itself would get.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ctypes import byref, c_int64, create_string_buffer, sizeof
from dataclasses import dataclass, field, fields
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import DTypeLike

from . import _lowlevel as c
from ._arguments import set_activation
from ._arrays import layer_dtype
from ._options import (
    LAYOUTS,
    OPERATIONS,
    ActivationName,
    integer,
    parse,
    real,
    triple,
    truth,
    wrong_type,
)
from .machine import InstructionSet

__all__ = ["Plan", "explain"]

Operation = Literal["forward_training", "forward_inference", "backward", "backward_frozen"]
MemoryLayout = Literal["nchw", "nhwc"]


@dataclass(frozen=True)
class Plan:
    """How a call would be done, from `explain`; `str(plan)` tells it in words.

    Sizes are in bytes.

    The tensor is seen as rows x channels x inner values: N x C x S in NCHW, (N * S) x C x 1 in
    NHWC. It is cut into pieces, each of which one thread reduces; those at the ends of the tensor
    may be smaller. An empty batch has no piece and no step, and neither has a backward of which
    nothing is wanted.
    """

    operation: Operation
    """What was asked about."""
    shape: tuple[int, ...]
    """Sizes (N, C, ...) whatever the layout."""
    dtype: np.dtype[Any]
    """Of the tensors."""
    layout: MemoryLayout
    """Their order in memory."""
    activation: ActivationName | None
    """What is fused, as `explain` was asked; and what else the call has: """
    negative_slope: float
    """of "leaky_relu","""
    residual: bool
    """a residual, or its gradient,"""
    activation_mask: bool
    """where the activation let pass,"""
    mask: bool
    """a mask of positions,"""
    lengths: bool
    """or lengths,"""
    output_mask: tuple[bool, bool, bool]
    """and of a backward these gradients."""
    isa: InstructionSet
    """The instruction set."""
    threads: int
    """Of the call; 1 means that there is no parallel region."""
    by_columns: bool
    """Whether neighbouring channels fill the vectors; if not, one channel's inner values do."""
    steps: int
    """1: each run of channels is reduced and then applied by one thread (inference: only applied).
    3: all pieces are reduced, then merged, then all is applied. 2: the same, where a backward needs
    no sums or applies nothing."""
    nontemporal: bool
    """Whether stores bypass the caches."""
    run_channels: int
    """Neighbouring channels that are taken together."""
    rows_per_line: int
    """Rows that count as one longer row; 1 if none are folded."""
    piece_rows: int
    """A piece is piece_rows x run_channels x piece_values."""
    piece_values: int
    """Of one channel in one row of a piece."""
    pieces: int
    """Of the whole tensor."""
    workspace_bytes: int
    """What the call allocates, for sums and for a mask made of lengths; a layer keeps it for its
    next call."""
    tensor_bytes: int
    """One tensor."""
    bytes_read: int
    """What is read of tensors and masks, from memory or from a cache that the caller left them in.
    A second read counts only if what the first one brought is not expected to stay in cache."""
    bytes_written: int
    """What is written of them."""
    limit_bytes_read: int
    """What any implementation must read: each tensor and mask that results depend on, once."""
    limit_bytes_written: int
    """What any implementation must write: each result once."""
    l2_bytes: int
    """One core's second-level cache, as the plan assumes it."""
    l3_bytes: int
    """What the plan counts on of the last-level cache: of more than 64 MiB at most 8 MiB for each
    of the machine's cores, for they are a whole socket's, and a virtual machine is shown all."""
    text: str = field(repr=False)
    """The plan in words, a dozen lines or more. The wording may change from version to version."""

    def __str__(self) -> str:
        return self.text


def explain(
    shape: Sequence[int],
    operation: Operation = "forward_training",
    *,
    dtype: DTypeLike = np.float32,
    layout: MemoryLayout = "nchw",
    activation: ActivationName | None = None,
    negative_slope: float = 0.01,
    residual: bool = False,
    activation_mask: bool = False,
    mask: bool = False,
    lengths: bool = False,
    output_mask: tuple[bool, bool, bool] = (True, True, True),
) -> Plan:
    """Tell what a call on tensors of this shape would do on this machine now.

    Nothing is run, and nothing allocated that grows with the shape. `set_num_threads` and
    `set_max_isa` count as they do for the call itself. The keywords are those of the functions; of
    arrays it is enough whether they are there.

    Parameters
    ----------
    shape : sequence of int
        Sizes (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W), whatever the layout.
    operation : str
        "forward_training", "forward_inference", "backward" (of a training forward) or
        "backward_frozen" (through running statistics).
    dtype : float32, float64, bfloat16 or float16
        Of the tensors.
    layout : "nchw" or "nhwc"
        The order in memory: C-contiguous, or channels last.
    activation : "relu", "leaky_relu" or None
        What a forward does in the end, and a backward goes back through.
    negative_slope : float
        Of "leaky_relu".
    residual : bool
        Whether a forward adds a residual, or a backward writes its gradient.
    activation_mask : bool
        Whether a forward writes where its activation let pass, or a backward reads it; without, the
        backward of an activation reads the forward's output.
    mask, lengths : bool
        Whether there is a mask, or lengths; it is explained as if all positions took part. What
        stands at masked positions makes no difference.
    output_mask : (bool, bool, bool)
        Which gradients a backward computes: input, weight, bias.

    Returns
    -------
    Plan
        The numbers; `str(plan)` tells them in words.

    Raises
    ------
    BatchNormTypeError, BatchNormValueError
        Wrong dtype, shape, operation, layout or keyword. One value per channel is no error here: it
        is explained as ``one_value="allow"`` would run it.

    Examples
    --------
    >>> plan = explain((32, 64, 56, 56), "backward")
    >>> plan.tensor_bytes, plan.limit_bytes_read
    (25690112, 51380224)
    >>> print(plan)  # doctest: +ELLIPSIS
    backward, batch statistics: float32 (32, 64, 56, 56) NCHW, 25.7 MB a tensor
    ...
    >>> fused = explain((32, 64, 56, 56), activation="relu", residual=True)
    >>> fused.limit_bytes_read == 2 * fused.tensor_bytes
    True
    """
    kind, code = layer_dtype(dtype)
    if not isinstance(shape, Iterable):
        raise wrong_type("shape", shape, "a sequence of sizes")
    sizes = tuple(integer(f"shape[{index}]", size) for index, size in enumerate(shape))
    which = parse(OPERATIONS, "operation", operation)
    order = parse(LAYOUTS, "layout", layout)
    problem = c.bn_problem(sizeof(c.bn_problem), code, order, len(sizes), (c_int64 * 5)(*sizes[:5]))
    args = c.bn_explain_args(sizeof(c.bn_explain_args), which)
    set_activation(args, activation, real("negative_slope", negative_slope))
    args.residual = truth("residual", residual)
    args.activation_mask = truth("activation_mask", activation_mask)
    args.mask = truth("mask", mask)
    args.lengths = truth("lengths", lengths)
    wanted = triple("output_mask", output_mask)
    args.grad_input, args.grad_weight, args.grad_bias = map(bool, wanted)
    info = c.bn_plan_info(sizeof(c.bn_plan_info))
    c.bn_explain(byref(problem), byref(args), byref(info))
    text = create_string_buffer(c.EXPLAIN_TEXT_SIZE)
    c.bn_explain_text(byref(problem), byref(args), text, c.EXPLAIN_TEXT_SIZE)

    there = {name for name, *_ in c.bn_plan_info._fields_}
    numbers = {each.name: getattr(info, each.name) for each in fields(Plan) if each.name in there}
    numbers["isa"] = cast(InstructionSet, c.bn_isa_name(info.isa).decode())
    numbers["by_columns"] = bool(info.by_columns)
    numbers["nontemporal"] = bool(info.nontemporal)
    return Plan(
        operation,
        sizes,
        kind,
        layout,
        activation,
        negative_slope,
        residual,
        activation_mask,
        mask,
        lengths,
        wanted,
        **numbers,
        text=text.value.decode(),
    )
