"""Recognises in a method the batch norms that a ReLU follows, and says what to write instead.

Nothing is written here: a place that can be fused comes with its edits, and the tree stays as it
was read. Invariant: a name that holds a pending batch norm is read once, by the addition or
activation it is for. What cannot be shown to be so is left as it was written.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import types
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._activations import FUNCTIONS, METHODS, MODULES
from ._fusion import BATCH_NORMS, MAKERS
from ._private import children
from ._syntax import (
    SCOPES,
    assigns,
    blocks,
    calls,
    expressions,
    leading,
    loads,
    mentions,
    stores,
)

#: Attributes of the fused class, by which a rewritten method finds _fusion's functions.
LATER, LATER_IF_FRESH, ADD, ACTIVATE = (
    "_batchnorm_later",
    "_batchnorm_later_if_fresh",
    "_batchnorm_add",
    "_batchnorm_activate",
)

_UNKNOWN = object()
_TRIES = (ast.Try, getattr(ast, "TryStar", ast.Try))


class Site(NamedTuple):
    """A place in a method where a batch norm is fused, in words."""

    method: str
    line: int
    column: int
    batch_norm: str
    """The line and column at which the batch norm's name is written, and the name."""
    activation: str
    residual: bool

    def __str__(self) -> str:
        _, name = self.batch_norm.split(" ", 1)
        middle = ", addition" if self.residual else ""
        return f"{self.method}, line {self.line}: {name}{middle}, {self.activation}"


class Edit(NamedTuple):
    """A call of one of _fusion's functions that is written in place of a node.

    In place of `x += ...` it is assigned to x.
    """

    node: ast.expr | ast.AugAssign
    helper: str
    arguments: tuple[ast.expr, ...]
    """Nodes of the tree, with edits of their own in them, and constants."""
    keywords: tuple[ast.keyword, ...] = ()


class Place(NamedTuple):
    """Where a batch norm can be fused, and how."""

    site: Site
    edits: tuple[Edit, ...]


class _Spot(NamedTuple):
    """A statement in its block, from which names are followed back."""

    block: list[ast.stmt]
    at: int

    @property
    def statement(self) -> ast.stmt:
        return self.block[self.at]


class _Sum(NamedTuple):
    """An addition in the source."""

    node: ast.expr | ast.AugAssign
    left: ast.expr
    right: ast.expr
    how: ast.expr
    in_place: bool


class _Match(NamedTuple):
    """A pending value that was found: its batch norm, and the edits that make it pending."""

    batch_norm: ast.Call
    edits: tuple[Edit, ...]
    residual: bool = False
    waits: bool = False
    """Whether other code runs between the batch norm and what follows it."""


class Method:
    """One method of one module, and what names stand for in it."""

    def __init__(
        self, module: nn.Module, function: types.FunctionType, node: ast.FunctionDef
    ) -> None:
        code = function.__code__
        self.module = module
        self.function = function
        self.node = node
        self.me = code.co_varnames[0] if code.co_argcount else ""
        self.scoped = {*code.co_varnames, *code.co_cellvars, *code.co_freevars}
        self.plain = set(code.co_varnames) - set(code.co_cellvars) - {self.me}

    def places(self, name: str) -> list[Place]:
        """Where something can be fused; `name` is the method's."""
        if not self.me or stores(self.node, self.me):
            return []
        return list(self._block(self.node.body, follow=True, name=name))

    def _block(self, block: list[ast.stmt], follow: bool, name: str) -> Iterator[Place]:
        for index, statement in enumerate(block):
            if isinstance(statement, SCOPES):
                continue
            spot = _Spot(block, index) if follow else None
            first = list(leading(statement)) if follow else []
            for node in expressions(statement):
                if isinstance(node, ast.Call):
                    place = self._activation(node, spot if node in first else None, name)
                    if place:
                        yield place
            # A handler could read a name whose batch norm was never computed.
            inner = follow and not isinstance(statement, _TRIES)
            for nested in blocks(statement):
                yield from self._block(nested, inner, name)

    def _activation(self, call: ast.Call, spot: _Spot | None, name: str) -> Place | None:
        """The place of an activation's call, if a batch norm waits for it."""
        func = call.func
        known: bool | None = True
        if isinstance(func, ast.Attribute) and func.attr in METHODS and not call.args:
            if call.keywords:
                return None
            operand, title = func.value, func.attr
            how: ast.expr = ast.Constant(func.attr)
        else:
            if not call.args or any(isinstance(each, ast.Starred) for each in call.args):
                return None
            if any(each.arg is None for each in call.keywords) or calls(
                *call.args[1:], *(each.value for each in call.keywords)
            ):
                return None
            known = self._is_activation(func)
            operand, title = call.args[0], ast.unparse(func)
            how = func
        if known is False:
            return None
        match = self._pending(operand, spot, sure=True)
        if match is None and known:
            match = self._pending(operand, spot, sure=False)
        if match is None:
            return None
        written = match.batch_norm
        where = f"{written.lineno}:{written.col_offset} {ast.unparse(written.func)}"
        arguments = (how, operand, *call.args[1:])
        return Place(
            Site(name, call.lineno, call.col_offset, where, title, match.residual),
            (*match.edits, Edit(call, ACTIVATE, arguments, tuple(call.keywords))),
        )

    def _pending(self, value: ast.expr, spot: _Spot | None, sure: bool) -> _Match | None:
        """An activation's operand: a batch norm, a sum with one, or a name of either."""
        if self._is_batch_norm_call(value, sure):
            assert isinstance(value, ast.Call)
            return self._later(value, [])
        total = self._sum(value)
        if total:
            return self._residual(total, spot, sure)
        if not isinstance(value, ast.Name) or spot is None or not self._dies(value.id, spot):
            return None
        if spot.at == 0:
            return None
        before = _Spot(spot.block, spot.at - 1)
        statement = before.statement
        if isinstance(statement, ast.Assign) and assigns(statement, value.id):
            total = self._sum(statement.value)
            if total is None:
                return self._named(value.id, spot, [], sure)
        elif isinstance(statement, ast.AugAssign) and stores(statement.target, value.id):
            total = self._sum(statement)
        return self._residual(total, before, sure) if total else None

    def _residual(self, total: _Sum, spot: _Spot | None, sure: bool) -> _Match | None:
        """A sum of which one side is a batch norm, written there or in a statement before."""
        found = []
        for side, other in ((total.right, total.left), (total.left, total.right)):
            if total.in_place and side is total.right:
                continue  # it is the residual that the source writes to
            match = None
            if self._is_batch_norm_call(side, sure):
                assert isinstance(side, ast.Call)
                match = self._later(side, [other] if side is total.left else [])
            elif (
                isinstance(side, ast.Name)
                and spot
                and not mentions(other, side.id)
                and self._dies(side.id, spot)
            ):
                match = self._named(side.id, spot, [other], sure)
            if match:
                found.append(match)
        if not found:
            return None
        best = min(found, key=lambda each: each.waits)
        # Names stay as they are, and a batch norm's call is edited where it stands.
        edit = Edit(total.node, ADD, (total.how, total.left, total.right))
        return best._replace(edits=(*best.edits, edit), residual=True)

    def _named(self, name: str, spot: _Spot, after: list[ast.expr], sure: bool) -> _Match | None:
        """The batch norm whose result a name holds at a statement."""
        for index in range(spot.at - 1, -1, -1):
            statement = spot.block[index]
            if not mentions(statement, name):
                continue
            if (
                isinstance(statement, ast.Assign)
                and assigns(statement, name)
                and self._is_batch_norm_call(statement.value, sure)
            ):
                assert isinstance(statement.value, ast.Call)
                between = [*spot.block[index + 1 : spot.at], *after]
                return self._later(
                    statement.value, between, spot.block[index - 1] if index else None
                )
            return None
        return None

    def _later(
        self, call: ast.Call, between: Sequence[ast.AST], before: ast.stmt | None = None
    ) -> _Match | None:
        """A batch norm's call made pending while `between` runs, if that can be done."""
        waits = bool(calls(*between)) or any(isinstance(each, ast.stmt) for each in between)
        maker = None
        if waits:
            maker = self._maker(call.args[0], between, before)
            if maker is None or not self._is_quiet(between, self._resolve(call.func)):
                return None
        if maker is None:
            edit = Edit(call, LATER, (call.func, call.args[0]))
        else:
            edit = Edit(call, LATER_IF_FRESH, (call.func, call.args[0], maker))
        return _Match(call, (edit,), waits=waits)

    def _maker(
        self, input: ast.expr, between: Sequence[ast.AST], before: ast.stmt | None
    ) -> ast.expr | None:
        """The module that made a batch norm's input, if nothing else can reach that memory."""
        made = input
        if (
            isinstance(input, ast.Name)
            and isinstance(before, ast.Assign)
            and assigns(before, input.id)
            and not any(mentions(each, input.id) for each in between)
        ):
            made = before.value
        if isinstance(made, ast.Call) and type(self._resolve(made.func)) in MAKERS:
            return None if calls(made.func) else made.func
        return None

    def _is_quiet(self, between: Sequence[ast.AST], batch_norm: object) -> bool:
        """Whether what runs meanwhile always comes to its end, and leaves the batch norm alone."""
        quiet = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Expr, ast.If, ast.Pass, ast.expr)
        loud = (ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr, *SCOPES)
        for node in (each for part in between for each in ast.walk(part)):
            if isinstance(node, ast.stmt | ast.expr) and not isinstance(node, quiet):
                return False
            if isinstance(node, loud):
                return False
            if isinstance(node, ast.Call) and not self._is_quiet_call(node.func, batch_norm):
                return False
        return isinstance(batch_norm, nn.Module)

    def _is_quiet_call(self, func: ast.expr, batch_norm: object) -> bool:
        called = self._resolve(func)
        if called is _UNKNOWN:
            root = func
            while isinstance(root, ast.Attribute):
                root = root.value
            # A method of a tensor: of a local name, or of what another call returns.
            local = isinstance(root, ast.Call) or (
                isinstance(root, ast.Name) and root.id in self.plain
            )
            return local and isinstance(func, ast.Attribute) and hasattr(Tensor, func.attr)
        if isinstance(called, nn.Module):
            return all(each is not batch_norm for each in called.modules())
        if called is None:
            return True  # the branch of `if self.downsample is not None`
        return getattr(F, getattr(called, "__name__", ""), None) is called or (
            isinstance(called, types.BuiltinFunctionType)
            and getattr(torch, called.__name__, None) is called
        )

    def _dies(self, name: str, spot: _Spot) -> bool:
        """Whether a name's value is read once in a statement and never after it."""
        statement = spot.statement
        if name not in self.plain or loads(statement, name) != 1:
            return False
        return (
            isinstance(statement, ast.Return)
            or (isinstance(statement, ast.Assign) and assigns(statement, name))
            or (isinstance(statement, ast.AugAssign) and stores(statement.target, name))
            or loads(self.node, name) == 1
        )

    def _sum(self, value: ast.expr | ast.AugAssign) -> _Sum | None:
        if isinstance(value, ast.AugAssign):
            target = value.target
            if not isinstance(value.op, ast.Add) or not isinstance(target, ast.Name):
                return None
            left = ast.copy_location(ast.Name(target.id, ast.Load()), target)
            return _Sum(value, left, value.value, ast.Constant("+="), True)
        if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
            return _Sum(value, value.left, value.right, ast.Constant("+"), False)
        if not isinstance(value, ast.Call) or value.keywords:
            return None
        if any(isinstance(each, ast.Starred) for each in value.args):
            return None
        func = value.func
        if len(value.args) == 2 and self._resolve(func) is torch.add:
            return _Sum(value, value.args[0], value.args[1], func, False)
        if (
            len(value.args) == 1
            and isinstance(func, ast.Attribute)
            and func.attr in ("add", "add_")
            and self._resolve(func) is _UNKNOWN
        ):
            how = ast.Constant(func.attr)
            return _Sum(value, func.value, value.args[0], how, func.attr == "add_")
        return None

    def _is_batch_norm_call(self, value: ast.expr, sure: bool) -> bool:
        if (
            not isinstance(value, ast.Call)
            or value.keywords
            or len(value.args) != 1
            or isinstance(value.args[0], ast.Starred)
        ):
            return False
        called = self._resolve(value.func)
        if called is _UNKNOWN:
            # A loop's variable, a list's item: the call itself will see.
            return not sure and isinstance(value.func, ast.Name | ast.Subscript)
        return type(called) in BATCH_NORMS

    def _is_activation(self, func: ast.expr) -> bool | None:
        called = self._resolve(func)
        if called is _UNKNOWN:
            return None if isinstance(func, ast.Name | ast.Subscript) else False
        return type(called) in MODULES or any(called is each for each in FUNCTIONS)

    def _resolve(self, value: ast.expr) -> object:
        """What an expression stands for in this module, without running any of its code."""
        if isinstance(value, ast.Name):
            if value.id == self.me:
                return self.module
            if value.id in self.scoped:
                return _UNKNOWN
            names = self.function.__globals__
            return names.get(value.id, getattr(builtins, value.id, _UNKNOWN))
        if isinstance(value, ast.Attribute):
            return _member(self._resolve(value.value), value.attr)
        if isinstance(value, ast.Subscript) and isinstance(value.slice, ast.Constant):
            return _item(self._resolve(value.value), value.slice.value)
        return _UNKNOWN


def _member(owner: object, name: str) -> object:
    if isinstance(owner, nn.Module):
        for members in (children(owner), owner.__dict__):
            if name in members:
                return members[name]
        return inspect.getattr_static(type(owner), name, _UNKNOWN)
    if isinstance(owner, types.ModuleType):
        return vars(owner).get(name, _UNKNOWN)
    return _UNKNOWN


def _item(owner: object, index: object) -> object:
    if isinstance(owner, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        try:
            return owner[index]  # type: ignore[index, call-overload]
        except (IndexError, KeyError, TypeError):
            pass
    return _UNKNOWN
