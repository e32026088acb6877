"""What a conversion has done to a model, read off the model itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from . import _classes, _rewrite
from ._private import BATCH_NORM

__all__ = ["Fused", "Left", "Report", "report"]

_OURS = tuple(_classes.STOCK)
_NAMES = {kind.__name__ for kind in _classes.TWINS}


class Left(NamedTuple):
    """A module that is as it was, as `report` tells it."""

    name: str
    """As in named_modules(); empty for the model itself."""
    kind: str
    """The name of its class."""
    reason: str
    """Why it is."""


class Fused(NamedTuple):
    """A place where a batch norm and the activation behind it are one sweep; see `report`."""

    name: str
    """The module's, as in named_modules(); empty for the model itself."""
    kind: str
    """The name of its class."""
    place: str
    """Method, line, batch norm and activation; in a Sequential the two classes."""


@dataclass(frozen=True)
class Report:
    """What `report` tells; `print` shows it as text."""

    converted: tuple[str, ...]
    """Names of the batch norms that the library runs."""
    left: tuple[Left, ...]
    """Batch norms that PyTorch runs, and why."""
    fused: tuple[Fused, ...]
    """Places that are fused. Each call looks anew whether it can be: a hook, say, prevents it."""
    not_fused: tuple[Left, ...]
    """Modules with converted batch norms in which nothing could be looked at, and why."""

    @property
    def found(self) -> int:
        """How many batch norms there are; F.batch_norm is a function, and not among them."""
        return len(self.converted) + len(self.left)

    def __str__(self) -> str:
        lines = [
            f"batch norm modules: {self.found}, of which {len(self.converted)} converted",
            *map(_line, self.left),
            f"places fused with the activation behind: {len(self.fused)}",
            *map(_line, self.fused),
        ]
        if self.not_fused:
            lines += ["modules that cannot be fused:", *map(_line, self.not_fused)]
        return "\n".join(lines)


def _line(each: Left | Fused) -> str:
    name, kind, told = each
    return f"  {name or 'the model'} ({kind}): {told}"


def report(model: nn.Module) -> Report:
    """Tell what the library does in a model: after `convert`, or at any other time.

    Parameters
    ----------
    model
        Any module. It is not changed.

    Returns
    -------
    Report
        Which batch norms are converted, which are left and why, and what is fused where.

    Raises
    ------
    TypeError
        If the model is no torch.nn.Module.

    Examples
    --------
    >>> import torch, batchnorm.torch
    >>> model = torch.nn.Sequential(
    ...     torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
    ...     torch.nn.SyncBatchNorm(8),
    ... )
    >>> print(batchnorm.torch.report(batchnorm.torch.convert(model)))
    batch norm modules: 2, of which 1 converted
      3 (SyncBatchNorm): a subclass, which synchronizes devices
    places fused with the activation behind: 1
      the model (Sequential): BatchNorm2d, ReLU
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, expected a torch.nn.Module")
    converted: list[str] = []
    left: list[Left] = []
    fused: list[Fused] = []
    not_fused: list[Left] = []
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, _OURS):
            converted.append(name)
        elif reason := _reason_left(module):
            left.append(Left(name, kind, reason))
        places = _classes.sites(module)
        fused += [Fused(name, kind, place) for place in places]
        if not places and (reason := _reason_not_fused(module)):
            not_fused.append(Left(name, kind, reason))
    return Report(tuple(converted), tuple(left), tuple(fused), tuple(not_fused))


def _reason_left(module: nn.Module) -> str:
    """Why a batch norm is not the library's; "" for what is no batch norm."""
    if isinstance(module, torch.jit.ScriptModule):
        if getattr(module, "original_name", None) in _NAMES:
            return "in a ScriptModule: convert before torch.jit.script"
        return ""
    if not isinstance(module, BATCH_NORM):
        return ""
    if isinstance(module, LazyModuleMixin):
        return "lazy: convert after its first forward"
    if isinstance(module, nn.SyncBatchNorm):
        return "a subclass, which synchronizes devices"
    if type(module) in _classes.TWINS:
        return "not converted yet"
    return "a subclass, which may do something else"


def _reason_not_fused(module: nn.Module) -> str:
    """Why nothing could be looked at in a module that holds a converted batch norm."""
    if not any(isinstance(child, _OURS) for child in module.children()):
        return ""
    if reason := _classes.obstacle(module):
        return reason
    methods = _rewrite.without_source(module)
    return f"the source of {', '.join(methods)} cannot be read" if methods else ""
