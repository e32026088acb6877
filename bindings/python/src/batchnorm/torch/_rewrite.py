"""Writes a module's methods anew, with each batch norm fused that a ReLU follows.

A method is taken as it is written, statement by statement, and only the calls of a batch norm, an
addition and a ReLU that belong together (_patterns) are put into calls of _fusion's functions:

    out = self.bn2(self.conv2(out))         out = self._batchnorm_later(self.bn2, self.conv2(out))
    out += identity                         out = self._batchnorm_add("+=", out, identity)
    return self.relu(out)                   return self._batchnorm_activate(self.relu, out)

Why not a trace (torch.fx)? A trace keeps what happened once: an `if residual is not None`, a flag,
`isinstance`, a random number, an assignment to an attribute, `with torch.no_grad()`, `x += 1` seen
through another name are frozen or lost, mostly without a word. Source keeps all of it, line numbers
for tracebacks, signature and docstring included.
"""

from __future__ import annotations

import ast
import inspect
import types
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import nn

from ._fusion import BATCH_NORMS
from ._patterns import Edit, Method, Place
from ._private import children
from ._source import Source, source_of

#: Functions that see all local names, also those that hold something pending.
_NOSY = frozenset({"locals", "vars", "dir", "eval", "exec"})
_GENERATORS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class Rewritten(NamedTuple):
    """A method with the places to fuse in it, not yet written."""

    name: str
    written: Any  # a function, which mypy would take for a method of this class
    source: Source
    places: tuple[Place, ...]

    def compiled(self) -> types.FunctionType:
        """The function: the given one's globals, closure, defaults and docstring, and new code."""
        old: types.FunctionType = self.written
        edits = [edit for place in self.places for edit in place.edits]
        code = self.source.compile(_write(self.source.node, edits, old.__code__.co_varnames[0]))
        assert code is not None
        new = types.FunctionType(code, old.__globals__, old.__name__, None, old.__closure__)
        # From Python 3.14 on annotations are computed when asked for, and may not exist yet.
        annotations = "__annotate__" if hasattr(old, "__annotate__") else "__annotations__"
        for attribute in ("__defaults__", "__kwdefaults__", "__doc__", annotations):
            setattr(new, attribute, getattr(old, attribute))
        new.__qualname__, new.__module__ = old.__qualname__, old.__module__
        new.__dict__.update(old.__dict__)
        return new


def rewrite(module: nn.Module) -> list[Rewritten]:
    """The methods of a module in which something can be fused, rewritten for this module."""
    found = []
    for name, function in _candidates(module):
        source = source_of(function)
        if source is None:
            continue
        places = Method(module, function, source.node).places(name)
        if places:
            found.append(Rewritten(name, function, source, tuple(places)))
    return found


def without_source(module: nn.Module) -> list[str]:
    """The methods in which something could be fused, if their source could be read."""
    return [name for name, function in _candidates(module) if source_of(function) is None]


def _candidates(module: nn.Module) -> Iterator[tuple[str, types.FunctionType]]:
    """The methods that mention a child with a batch norm in it."""
    names = {
        name
        for name, child in children(module).items()
        if child is not None and any(type(each) in BATCH_NORMS for each in child.modules())
    }
    for name, function in _methods(type(module)):
        code = function.__code__
        if not (
            names.isdisjoint(code.co_names)
            or not _NOSY.isdisjoint(code.co_names)
            or code.co_flags & _GENERATORS
        ):
            yield name, function


def _methods(kind: type) -> Iterator[tuple[str, types.FunctionType]]:
    """The methods that instances have: of each name the first in the order of resolution."""
    seen: set[str] = set()
    for each in kind.__mro__:
        if each is nn.Module:
            return
        for name, value in vars(each).items():
            if name in seen:
                continue
            seen.add(name)
            # What a decorator has wrapped is not the function whose source stands there.
            if (
                isinstance(value, types.FunctionType)
                and not hasattr(value, "__wrapped__")
                and not name.startswith("__")
            ):
                yield name, value


def _write(definition: ast.FunctionDef, edits: Sequence[Edit], me: str) -> ast.FunctionDef:
    """A copy of a definition with the edits in it; `me` is its name for the module."""
    by_node: dict[ast.AST, Edit] = {edit.node: edit for edit in edits}

    def written(value: Any) -> Any:
        if isinstance(value, list):
            return [written(each) for each in value]
        if not isinstance(value, ast.AST):
            return value
        edit = by_node.get(value)
        if edit is None:
            return ast.copy_location(
                type(value)(**{name: written(each) for name, each in ast.iter_fields(value)}), value
            )
        helper = ast.Attribute(ast.Name(me, ast.Load()), edit.helper, ast.Load())
        call = ast.Call(helper, written([*edit.arguments]), written([*edit.keywords]))
        if isinstance(value, ast.AugAssign):
            return ast.copy_location(ast.Assign([written(value.target)], call), value)
        return ast.copy_location(call, value)

    new: ast.FunctionDef = written(definition)
    return new
