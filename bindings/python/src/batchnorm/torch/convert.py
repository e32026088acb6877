"""Conversion of whole models: torch's batch norms into this package's, and back.

Only classes change, by `module.__class__ = ...`: a batch norm gets its twin's, which has the same
state, and a module whose methods call a batch norm and then a ReLU a subclass of its own class, in
which those methods are rewritten (_rewrite). So parameters, buffers, hooks, names and identities
stay what they are, and the way back is the class that was there.
"""

from __future__ import annotations

import copyreg
import logging
from abc import ABCMeta
from collections.abc import Callable
from itertools import pairwise
from types import FunctionType
from typing import Any, ClassVar, Generic, TypeVar

from torch import nn
from torch.fx import GraphModule

from . import _fusion, _rewrite
from .modules import BatchNorm1d, BatchNorm2d, BatchNorm3d

__all__ = ["convert", "revert"]

_logger = logging.getLogger(__name__)
_M = TypeVar("_M", bound=nn.Module)

_TWINS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
}
_STOCK = {twin: stock for stock, twin in _TWINS.items()}


def convert(model: _M, fuse_relu: bool = True) -> _M:
    """Let a model's batch normalization be done by libbatchnorm, in place.

    Every module whose class is exactly torch.nn.BatchNorm1d, BatchNorm2d or BatchNorm3d gets the
    class of the same name of this package. It stays the same object with the same parameters,
    buffers, hooks and state_dict keys; optimizers, checkpoints and wrappers notice nothing.
    Subclasses (also SyncBatchNorm and lazy modules) and what is in a ScriptModule are left alone.
    Converting twice changes nothing more, `revert` undoes it.

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

    Notes
    -----
    Fusion never changes what a model computes. It is done in those calls in which batch norm and
    ReLU are still plain modules without hooks, and the residual has the batch norm's shape and
    dtype; in others the same modules run one by one. Methods are taken from their source, which
    must be there (`inspect.getsource`): without it, as for what was typed into `python` itself,
    batch norms are converted and nothing is fused, as in the graphs of torch.fx; torch.compile and
    torch.export take the fused calls as they are. The logger "batchnorm.torch.convert" tells at
    level INFO how much was converted, at level DEBUG what was fused where.

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
        twin = _TWINS.get(type(module))
        if twin is not None:
            _set_class(module, twin)
            converted += 1
    for name, module in model.named_modules():
        fused += _fuse(module, name) if fuse_relu else _unfuse(module)
    _logger.info("converted %d batch norms, fused %d places", converted, fused)
    return model


def revert(model: _M) -> _M:
    """Undo `convert`, in place: every batch norm and every module around it is torch's again.

    Parameters, buffers, hooks and identities stay. Batch norms that were made as
    batchnorm.torch.BatchNorm1d, BatchNorm2d or BatchNorm3d become torch.nn's as well.

    Parameters
    ----------
    model
        A module that `convert` was given, or a copy of one.

    Returns
    -------
    torch.nn.Module
        The model that was given.

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
        _unfuse(module)
        stock = _STOCK.get(type(module))
        if stock is not None:
            _set_class(module, stock)
    return model


class _Fused(nn.Module):
    """First base of every fused class; the second is the user's. It adds nothing to an instance."""

    #: What tells two fused classes of one class apart.
    _batchnorm_sites: ClassVar[tuple[object, ...]] = ()

    _batchnorm_later = staticmethod(_fusion.later)
    _batchnorm_later_if_fresh = staticmethod(_fusion.later_if_fresh)
    _batchnorm_add = staticmethod(_fusion.add)
    _batchnorm_activate = staticmethod(_fusion.activate)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles name the user's class, since nobody can import this one."""
        reduced = super().__reduce_ex__(max(protocol, 2))
        if not isinstance(reduced, tuple):
            return reduced
        kind = type(self)
        if reduced[0] is copyreg.__newobj__ and reduced[1][0] is kind:  # type: ignore[attr-defined]
            return (_new, (_stock_class(kind), *reduced[1][1:]), *reduced[2:])
        if reduced[0] is kind:  # a class with a __reduce__ of its own
            return (_construct, (_stock_class(kind), *reduced[1]), *reduced[2:])
        return reduced

    def __setstate__(self, state: Any) -> None:
        """What `_new` made has its modules now, and can be fused as the original was."""
        super().__setstate__(state)
        _fuse(self)


def _new(kind: type[nn.Module], *arguments: Any) -> nn.Module:
    """Begin the copy of a fused module: see _Fused.__setstate__."""
    fused = _fused_class(kind)
    return fused.__new__(fused, *arguments)


def _construct(kind: type[nn.Module], *arguments: Any) -> nn.Module:
    """As `_new`, of a class whose copies are constructed."""
    module = kind(*arguments)
    module.__class__ = _fused_class(kind)
    return module


def _fused_class(kind: type[nn.Module]) -> type[nn.Module]:
    return _subclass(kind, ()) or _make_subclass(kind, (), {})


def _fuse(module: nn.Module, name: str = "") -> int:
    """Give a module the class in which all is fused that can be, and say how many places are."""
    _unfuse(module)
    kind = type(module)
    if not _may_have_subclass(kind):
        return 0
    if isinstance(module, nn.Sequential) and kind.forward is nn.Sequential.forward:
        # Its forward sees when it runs what follows what; one class does for all.
        sites = _neighbours(module)
        rewritten = []
        key: tuple[object, ...] = (nn.Sequential,)
    else:
        rewritten = _rewrite.rewrite(module)
        sites = [site for each in rewritten for site in each.sites]
        key = tuple(sites)
    if not sites:
        return 0
    fused = _subclass(kind, key)
    if fused is None:
        methods = {each.name: each.compiled() for each in rewritten}
        fused = _make_subclass(kind, key, methods or {"forward": _fusion.sequential_forward})
    _set_class(module, fused)
    for site in sites:
        _logger.debug("%s (%s): fused %s", name or "model", kind.__name__, site)
    return len(sites)


def _check(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, expected a torch.nn.Module")


def _neighbours(modules: nn.Sequential) -> list[object]:
    return [
        f"{type(first).__name__}, {type(second).__name__}"
        for first, second in pairwise(modules)
        if type(first) in _STOCK and type(second) in _fusion.ACTIVATIONS
    ]


def _unfuse(module: nn.Module) -> int:
    if isinstance(module, _Fused):
        _set_class(module, _stock_class(type(module)))
    return 0


def _set_class(module: nn.Module, kind: type[nn.Module]) -> None:
    # Past a __setattr__ of the user's.
    object.__setattr__(module, "__class__", kind)


def _stock_class(fused: type) -> type[nn.Module]:
    stock: type[nn.Module] = fused.__bases__[1]
    return stock


def _subclass(kind: type[nn.Module], key: tuple[object, ...]) -> type[nn.Module] | None:
    """The fused class that exists already. Python remembers it, for as long as it is used."""
    for each in kind.__subclasses__():
        if issubclass(each, _Fused) and each._batchnorm_sites == key:
            return each
    return None


def _make_subclass(
    kind: type[nn.Module], key: tuple[object, ...], methods: dict[str, Any]
) -> type[nn.Module]:
    namespace = {
        **methods,
        "_batchnorm_sites": key,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
    }
    make: Callable[..., type[nn.Module]] = type(kind)
    return make(kind.__name__, (_Fused, kind), namespace)


def _may_have_subclass(kind: type[nn.Module]) -> bool:
    """Whether a subclass stays without consequences in the user's code."""
    # A GraphModule's class is its own, and written anew by each recompile.
    if type(kind) not in (type, ABCMeta) or issubclass(kind, GraphModule):
        return False
    for each in kind.__mro__:
        if each is nn.Module:
            break
        if "__init_subclass__" in vars(each) and each is not Generic:
            return False  # a registry of models, say
        for name, value in vars(each).items():
            names = set(value.__code__.co_names) if isinstance(value, FunctionType) else set()
            # super(self.__class__, self) would find the method it stands in, for ever.
            if name != "__init__" and "super" in names and names & {"__class__", "type"}:
                return False
    return True
