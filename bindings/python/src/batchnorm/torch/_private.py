"""What PyTorch's documentation does not promise, by name.

Seen in PyTorch 2.13. Where an imported name is missing, the import of batchnorm.torch fails and
says which, instead of a call much later. Besides there are a method that `modules` inherits
(_check_input_dim), and names that PyTorch gives to what torch.fx and parametrizations make
(_report, _classes).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.compiler import is_compiling

try:
    from torch._C import (
        _are_functorch_transforms_active,
        _dispatch_keys,
        _is_tracing,
        _len_torch_dispatch_stack,
    )
    from torch._C import _AutoDispatchBelowAutograd as below_autograd
    from torch._C import _current_graph_task_id as graph_task_id  # -1: no backward is running
    from torch._C._autograd import _profiler_enabled as is_profiled
    from torch._prims_common import suggest_memory_format
    from torch.nn.modules.batchnorm import _BatchNorm as BATCH_NORM
    from torch.nn.modules.module import _has_any_global_hook

    _ = forward_ad._current_level
except (ImportError, AttributeError) as error:
    raise ImportError(
        f"batchnorm.torch uses inner names of PyTorch, and PyTorch {torch.__version__} lacks one: "
        f"{error}. It is tested with 2.13"
    ) from error

__all__ = [
    "BATCH_NORM",
    "below_autograd",
    "children",
    "graph_task_id",
    "is_plain",
    "is_profiled",
    "is_transformed",
    "suggest_memory_format",
    "tensors_of",
    "untouched",
    "version",
]

_plain = set()
for _inference in (False, True):
    with torch.inference_mode(_inference):
        _plain.add(_dispatch_keys(torch.empty(1, device="cpu")).raw_repr())


def is_transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is at work.

    Operators whose kernels are in Python have no part in these; PyTorch's own batch_norm has.
    """
    return _are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether these are ordinary CPU tensors that nobody wants to look at on their way.

    The keys of a tensor tell whether it is strided memory of the CPU: not sparse, quantized, fake,
    wrapped by torch.func, negated lazily, a subclass that dispatches. Modes, tracing and
    torch.compile look at operators, so they have to see some.
    """
    if is_compiling() or _len_torch_dispatch_stack() or is_transformed() or _is_tracing():
        return False
    for tensor in tensors:
        if tensor is not None and _dispatch_keys(tensor).raw_repr() not in _plain:
            return False
    return True


def version(tensor: Tensor) -> int:
    """How often a tensor was written to in place."""
    return tensor._version


def children(module: nn.Module) -> dict[str, nn.Module | None]:
    """The modules in a module by name, as it keeps them."""
    return module._modules


def tensors_of(module: BATCH_NORM) -> tuple[Tensor | None, ...]:
    """weight, bias, running_mean, running_var and num_batches_tracked: a microsecond less for each.

    A parametrization takes a name out of the module's tensors and makes it an attribute. A module
    from before there were counters, or stripped of them, has none.
    """
    own, buffers = module._parameters, module._buffers
    try:
        return (
            own["weight"],
            own["bias"],
            buffers["running_mean"],
            buffers["running_var"],
            buffers["num_batches_tracked"],
        )
    except KeyError:
        return (
            module.weight,
            module.bias,
            module.running_mean,
            module.running_var,
            getattr(module, "num_batches_tracked", None),
        )


def untouched(module: nn.Module) -> bool:
    """Whether a call is the class's forward and nothing else: a hook would see other values."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or _has_any_global_hook()
    )
