"""The classes that a conversion gives to modules, and takes away again.

A batch norm gets its twin, which has the same state. A module whose methods call a batch norm and
then a ReLU gets a subclass of its own class, in which those methods are rewritten (_rewrite).

Invariant: only a class that was made here, or a twin itself, is ever taken away. Others make
classes over those of modules as well (fully_shard, for one): what such a class is for, nobody here
knows. The one exception is register_parametrization's over a batch norm, which is known to add
properties alone, and is made anew over the twin.
"""

from __future__ import annotations

import copyreg
import logging
from abc import ABCMeta
from collections.abc import Callable, Mapping
from itertools import pairwise
from types import FunctionType
from typing import Any, ClassVar, Generic

from torch import nn
from torch.fx import GraphModule
from torch.nn.utils.parametrize import is_parametrized

from . import _activations, _fusion, _rewrite
from .modules import BatchNorm1d, BatchNorm2d, BatchNorm3d

_logger = logging.getLogger("batchnorm.torch.convert")

Classes = Mapping[type[nn.Module], type[nn.Module]]
TWINS: Classes = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
}
STOCK: Classes = {twin: stock for stock, twin in TWINS.items()}


def swap(module: nn.Module, classes: Classes) -> bool:
    """Give a module the class that stands for its own, if there is one."""
    kind = type(module)
    own = kind.__bases__[0] if _is_parametrized(module) else kind
    new = classes.get(own)
    if new is None:
        return False
    if own is not kind:
        members = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
        new = type(f"Parametrized{new.__name__}", (new,), members)
    _set_class(module, new)
    return True


def _is_parametrized(module: nn.Module) -> bool:
    """Whether a module's class is the one that register_parametrization made for it."""
    kind = type(module)
    return (
        len(kind.__bases__) == 1
        and kind.__name__ == f"Parametrized{kind.__bases__[0].__name__}"
        and is_parametrized(module)
    )


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
        kind = type(self)
        if not is_made(kind):
            return super().__reduce_ex__(protocol)
        reduced = super().__reduce_ex__(max(protocol, 2))
        if not isinstance(reduced, tuple):
            return reduced
        if reduced[0] is copyreg.__newobj__ and reduced[1][0] is kind:  # type: ignore[attr-defined]
            return (_new, (_stock_class(kind), *reduced[1][1:]), *reduced[2:])
        if reduced[0] is kind:  # a class with a __reduce__ of its own
            return (_construct, (_stock_class(kind), *reduced[1]), *reduced[2:])
        return reduced

    def __setstate__(self, state: Any) -> None:
        """What `_new` made has its modules now, and can be fused as the original was."""
        super().__setstate__(state)
        if is_made(type(self)):
            fuse(self)


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


def fuse(module: nn.Module, name: str = "") -> int:
    """Give a module the class in which all is fused that can be, and say how many places are."""
    unfuse(module)
    kind = type(module)
    if is_covered(module) or obstacle(module):
        return 0
    if isinstance(module, nn.Sequential) and kind.forward is nn.Sequential.forward:
        # Its forward sees when it runs what follows what; one class does for all.
        sites: list[object] = [*neighbours(module)]
        rewritten = []
        key: tuple[object, ...] = (nn.Sequential,)
    else:
        rewritten = _rewrite.rewrite(module)
        sites = [place.site for each in rewritten for place in each.places]
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


def neighbours(modules: nn.Sequential) -> list[str]:
    """The batch norms of a Sequential that an activation follows."""
    return [
        f"{type(first).__name__}, {type(second).__name__}"
        for first, second in pairwise(modules)
        if type(first) in STOCK and type(second) in _activations.MODULES
    ]


def sites(module: nn.Module) -> list[str]:
    """The places that are fused in a module, in words."""
    if not isinstance(module, _Fused):
        return []
    if type(module)._batchnorm_sites == (nn.Sequential,) and isinstance(module, nn.Sequential):
        return neighbours(module)
    return [str(site) for site in type(module)._batchnorm_sites]


def unfuse(module: nn.Module) -> None:
    """Give a module back the class that `fuse` has found."""
    kind = type(module)
    if is_made(kind):
        _set_class(module, _stock_class(kind))


def is_made(kind: type) -> bool:
    """Whether a class is one that `fuse` made, not one that somebody made of it."""
    return "_batchnorm_sites" in vars(kind) and kind is not _Fused


def is_covered(module: nn.Module) -> bool:
    """Whether somebody has made a class over the one that `fuse` gave to a module."""
    return isinstance(module, _Fused) and not is_made(type(module))


def is_converted(module: nn.Module) -> bool:
    """Whether a module has something of this package in its class, whoever put it there."""
    return isinstance(module, (_Fused, *STOCK))


def _set_class(module: nn.Module, kind: type[nn.Module]) -> None:
    # Past a __setattr__ of the user's.
    object.__setattr__(module, "__class__", kind)


def _stock_class(fused: type) -> type[nn.Module]:
    stock: type[nn.Module] = fused.__bases__[1]
    return stock


def _subclass(kind: type[nn.Module], key: tuple[object, ...]) -> type[nn.Module] | None:
    """The fused class that exists already. Python remembers it, for as long as it is used."""
    for each in kind.__subclasses__():
        if issubclass(each, _Fused) and is_made(each) and each._batchnorm_sites == key:
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


def obstacle(module: nn.Module) -> str:
    """Why no class can be made over a module's without consequences in the user's code, or ""."""
    kind = type(module)
    if issubclass(kind, GraphModule):
        # Its class is its own, and written anew by each recompile.
        return "a graph of torch.fx, whose code is written anew"
    if type(kind) not in (type, ABCMeta):
        return f"its class is made by {type(kind).__name__}"
    if _is_parametrized(module):
        return "parametrized: register_parametrization's class has to be the last one"
    for each in kind.__mro__:
        if each is nn.Module:
            break
        if "__init_subclass__" in vars(each) and each is not Generic:
            return f"{each.__name__} wants to know its subclasses"  # a registry of models, say
        for name, value in vars(each).items():
            names = set(value.__code__.co_names) if isinstance(value, FunctionType) else set()
            # super(self.__class__, self) would find the method it stands in, for ever.
            if name != "__init__" and "super" in names and names & {"__class__", "type"}:
                return f"{each.__name__}.{name} calls super() of the instance's class"
    return ""
