"""Conversion of whole models: torch's batch norms into this package's, and back.

Only classes change (_classes), by `module.__class__ = ...`. So parameters, buffers, hooks, names
and identities stay what they are, and the way back is the class that was there.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import TypeVar

from torch import nn

from . import _classes
from ._report import report

__all__ = ["convert", "revert"]

_logger = logging.getLogger(__name__)
_M = TypeVar("_M", bound=nn.Module)


def convert(model: _M, fuse_relu: bool = True) -> _M:
    """Let a model's batch normalization be done by libbatchnorm, in place.

    Every module whose class is exactly torch.nn.BatchNorm1d, BatchNorm2d or BatchNorm3d gets the
    class of the same name of this package. It stays the same object with the same parameters,
    buffers, hooks and state_dict keys; optimizers, checkpoints and wrappers notice nothing. So does
    one that is parametrized. Other subclasses (also SyncBatchNorm and lazy modules) and what is in
    a ScriptModule are left alone. Converting twice changes nothing more, `revert` undoes it, and
    `report` tells what was done: print(batchnorm.torch.report(model)).

    Parameters
    ----------
    model
        Any module: a network, a part of one, a single batch norm, or what DistributedDataParallel
        or torch.compile has wrapped.
    fuse_relu
        Do BN → ReLU and BN → add → ReLU in one sweep over memory, where a Sequential has them in
        a row or a module's methods are written so: torch.nn.ReLU and LeakyReLU, their functions,
        or `x.relu()`, in place or not. A module in which that is so gets a subclass of its class,
        of the same name, whose methods are the same source but for these calls.

    Returns
    -------
    torch.nn.Module
        The model that was given.

    Raises
    ------
    TypeError
        If the model is no torch.nn.Module.

    Warns
    -----
    UserWarning
        If the model has no batch norm that is converted now; or a module whose fused class somebody
        has made a class over (register_parametrization, fully_shard): that is left as it is.

    Notes
    -----
    **Tools that look for modules by their exact type find none in a converted model, and say
    nothing**: torch.fx.experimental.optimization.fuse, prepare_fx and prepare_qat_fx of
    torch.ao.quantization leave its batch norms as they are. So do fuse_modules and torch.jit.script
    with an error. Use them on a model that `revert` was given.

    Fusion never changes what a model computes. It is done in those calls in which batch norm and
    ReLU are still plain modules without hooks, and the residual has the batch norm's shape and
    dtype; in others the same modules run one by one. Methods are taken from their source, which
    must be there (`inspect.getsource`): without it, as for what was typed into `python` itself,
    batch norms are converted and nothing is fused, as in the graphs of torch.fx; torch.compile and
    torch.export take the fused calls as they are. The logger "batchnorm.torch.convert" tells at
    level INFO how much was converted, at level DEBUG what was fused where; torch.profiler shows
    the library's calls by their names in C, bn_forward_training, bn_forward_inference, bn_backward.

    A model that is saved whole (`torch.save(model)`, pickle) needs this package where it is loaded;
    its state_dict does not.

    Examples
    --------
    >>> import torch, batchnorm.torch
    >>> model = torch.nn.Sequential(
    ...     torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()
    ... )
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> model = batchnorm.torch.convert(model)
    >>> model(torch.randn(4, 3, 16, 16)).shape
    torch.Size([4, 8, 14, 14])
    >>> [name for name in model.state_dict() if "running" in name]
    ['1.running_mean', '1.running_var']
    """
    _check(model)
    converted = fused = 0
    for module in model.modules():
        converted += _classes.swap(module, _classes.TWINS)
    for name, module in model.named_modules():
        if fuse_relu:
            fused += _classes.fuse(module, name)
        else:
            _classes.unfuse(module)
    _logger.info("converted %d batch norms, fused %d places", converted, fused)
    found = report(model)
    if not found.converted:
        warnings.warn(f"nothing was converted:\n{found}", stacklevel=2)
    _warn_of(model, _classes.is_covered, "convert")
    return model


def revert(model: _M) -> _M:
    """Undo `convert`, in place: every batch norm and every module around it is torch's again.

    Parameters, buffers, hooks and identities stay. Batch norms that were made as
    batchnorm.torch.BatchNorm1d, BatchNorm2d or BatchNorm3d become torch.nn's as well, parametrized
    ones too.

    Parameters
    ----------
    model
        A module that `convert` was given, or a copy of one.

    Returns
    -------
    torch.nn.Module
        The model that was given.

    Raises
    ------
    TypeError
        If the model is no torch.nn.Module.

    Warns
    -----
    UserWarning
        If somebody has made a class over one that `convert` made (register_parametrization of a
        module that is fused, fully_shard), or over this package's: these modules are left alone.

    Examples
    --------
    >>> import torch, batchnorm.torch
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.ReLU())
    >>> model = batchnorm.torch.revert(batchnorm.torch.convert(model))
    >>> type(model) is torch.nn.Sequential, type(model[0]) is torch.nn.BatchNorm1d
    (True, True)
    """
    _check(model)
    for module in model.modules():
        _classes.unfuse(module)
        _classes.swap(module, _classes.STOCK)
    _warn_of(model, _classes.is_converted, "revert")
    return model


def _check(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, expected a torch.nn.Module")


def _warn_of(model: nn.Module, is_left: Callable[[nn.Module], bool], what: str) -> None:
    """Tell of modules that are left, for a class that is not this package's."""
    left = [
        f"{name or 'the model'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if is_left(module)
    ]
    if left:
        warnings.warn(
            f"left as they are, for somebody has made their classes of this package's: "
            f"{', '.join(left)}. To {what} them as well, first undo that (remove_parametrizations, "
            f"say; where it cannot be undone, {what} before it is done), then {what} again",
            stacklevel=3,
        )
