"""Finds batch norms that a ReLU follows in the source of a module's methods, and fuses them there.

A method is taken as it is written, statement by statement, and only the calls of a batch norm, an
addition and a ReLU that belong together are put into calls of _fusion's functions:

    out = self.bn2(self.conv2(out))         out = self._batchnorm_later(self.bn2, self.conv2(out))
    out += identity                         out = self._batchnorm_add("+=", out, identity)
    return self.relu(out)                   return self._batchnorm_activate(self.relu, out)

Why not a trace (torch.fx)? A trace keeps what happened once: an `if residual is not None`, a flag,
`isinstance`, a random number, an assignment to an attribute, `with torch.no_grad()`, `x += 1` seen
through another name are frozen or lost, mostly without a word. Source keeps all of it, line numbers
for tracebacks, signature and docstring included.

Invariant: a name that holds a pending batch norm is read once, by the addition or activation it is
for. What cannot be shown to be so is left as it was written.
"""

from __future__ import annotations

import ast
import builtins
import copy
import inspect
import linecache
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._fusion import ACTIVATIONS, BATCH_NORMS, LEAKY_RELUS, MAKERS, RELUS

#: Attributes of the fused class, by which a rewritten method finds _fusion's functions.
LATER, LATER_IF_FRESH, ADD, ACTIVATE = (
    "_batchnorm_later",
    "_batchnorm_later_if_fresh",
    "_batchnorm_add",
    "_batchnorm_activate",
)

_UNKNOWN = object()
_SCOPES = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Lambda,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
)
_TRIES = (ast.Try, getattr(ast, "TryStar", ast.Try))
#: Functions that see all local names, also those that hold something pending.
_NOSY = frozenset({"locals", "vars", "dir", "eval", "exec"})
_GENERATORS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class Site(NamedTuple):
    """A place in a method where a batch norm is fused."""

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


class Rewritten(NamedTuple):
    """A method with its fused places, not yet compiled."""

    name: str
    written: Any  # a function, which mypy would take for a method of this class
    node: ast.FunctionDef
    sites: tuple[Site, ...]

    def compiled(self) -> types.FunctionType:
        """The function: the given one's globals, closure, defaults and docstring, and new code."""
        source = _source(self.written)
        assert source is not None
        # The copy takes the rewritten definition where the original one stands.
        tree = copy.deepcopy(source.tree, {id(source.node): self.node})
        old: types.FunctionType = self.written
        code = _find_code(tree, old.__code__)
        assert code is not None
        new = types.FunctionType(code, old.__globals__, old.__name__, None, old.__closure__)
        # From Python 3.14 on annotations are computed when asked for, and may not exist yet.
        annotations = "__annotate__" if hasattr(old, "__annotate__") else "__annotations__"
        for attribute in ("__defaults__", "__kwdefaults__", "__doc__", annotations):
            setattr(new, attribute, getattr(old, attribute))
        new.__qualname__, new.__module__ = old.__qualname__, old.__module__
        new.__dict__.update(old.__dict__)
        return new


class _Source(NamedTuple):
    tree: ast.Module
    node: ast.FunctionDef


_sources: WeakKeyDictionary[types.FunctionType, _Source | None] = WeakKeyDictionary()


def rewrite(module: nn.Module) -> list[Rewritten]:
    """The methods of a module in which something can be fused, rewritten for this module."""
    found = []
    for name, function in _candidates(module):
        source = _source(function)
        if source is None:
            continue
        node = copy.deepcopy(source.node)
        sites = _Method(module, function, node).fuse(name)
        if sites:
            found.append(Rewritten(name, function, node, tuple(sites)))
    return found


def without_source(module: nn.Module) -> list[str]:
    """The methods in which something could be fused, if their source could be read."""
    return [name for name, function in _candidates(module) if _source(function) is None]


def _candidates(module: nn.Module) -> Iterator[tuple[str, types.FunctionType]]:
    """The methods that mention a child with a batch norm in it."""
    names = {
        name
        for name, child in module._modules.items()
        if child is not None and _holds_batch_norm(child)
    }
    for name, function in _methods(type(module)):
        code = function.__code__
        if not (
            names.isdisjoint(code.co_names)
            or not _NOSY.isdisjoint(code.co_names)
            or code.co_flags & _GENERATORS
        ):
            yield name, function


def _holds_batch_norm(module: nn.Module | None) -> bool:
    return module is not None and any(type(each) in BATCH_NORMS for each in module.modules())


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


def _source(function: types.FunctionType) -> _Source | None:
    """The definition of a function, None unless it compiles to exactly the code that runs."""
    try:
        return _sources[function]
    except KeyError:
        found = _sources[function] = _read_source(function)
        return found


def _read_source(function: types.FunctionType) -> _Source | None:
    code = function.__code__
    tree = _parse("".join(linecache.getlines(code.co_filename, function.__globals__)))
    if tree is None:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            # A file that was edited since, or code that was changed after it was read
            # (pytest's asserts, coverage tools), is not what runs.
            if first == code.co_firstlineno and _find_code(tree, code) == code:
                return _Source(tree, node)
    return None


@lru_cache(maxsize=16)
def _parse(text: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except SyntaxError:
        return None


def _find_code(tree: ast.Module, like: types.CodeType) -> types.CodeType | None:
    """The code of the function that is named as `like` and stands on its line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        codes = [compile(tree, like.co_filename, "exec", dont_inherit=True)]
    while codes:
        code = codes.pop()
        if (code.co_name, code.co_firstlineno) == (like.co_name, like.co_firstlineno):
            return code if code.co_freevars == like.co_freevars else None
        codes += [each for each in code.co_consts if isinstance(each, types.CodeType)]
    return None


class _Place(NamedTuple):
    """A statement in its block, before which names can be followed."""

    block: list[ast.stmt]
    at: int

    @property
    def statement(self) -> ast.stmt:
        return self.block[self.at]


class _Sum(NamedTuple):
    """An addition in the source."""

    left: ast.expr
    right: ast.expr
    how: ast.expr
    in_place: bool


class _Match(NamedTuple):
    """A pending value that was found: its batch norm, and how its expression is made so."""

    batch_norm: ast.Call
    make: Callable[[], ast.expr]
    residual: bool = False
    waits: bool = False
    """Whether other code runs between the batch norm and what follows it."""


class _Method:
    """One method of one module: finds the places, then edits the definition."""

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
        self.edits: list[Callable[[], None]] = []

    def fuse(self, name: str) -> list[Site]:
        """Edits the definition, and says where."""
        if not self.me or _stores(self.node, self.me):
            return []
        sites = list(self._block(self.node.body, follow=True, name=name))
        # Not before all is found: what is looked at must be what was written.
        for edit in self.edits:
            edit()
        ast.fix_missing_locations(self.node)
        return sites

    def _block(self, block: list[ast.stmt], follow: bool, name: str) -> Iterator[Site]:
        for index, statement in enumerate(block):
            if isinstance(statement, _SCOPES):
                continue
            place = _Place(block, index) if follow else None
            leading = list(_leading(statement)) if follow else []
            for node in _expressions(statement):
                if isinstance(node, ast.Call):
                    site = self._activation(node, place if node in leading else None, name)
                    if site:
                        yield site
            # A handler could read a name whose batch norm was never computed.
            inner = follow and not isinstance(statement, _TRIES)
            for nested in _blocks(statement):
                yield from self._block(nested, inner, name)

    def _activation(self, call: ast.Call, place: _Place | None, name: str) -> Site | None:
        """The site of an activation's call, if a batch norm waits for it."""
        func = call.func
        if isinstance(func, ast.Attribute) and func.attr in ("relu", "relu_") and not call.args:
            if call.keywords:
                return None
            known: bool | None = True
            operand, title = func.value, func.attr
            how: ast.expr = ast.Constant(func.attr)
            rest: list[ast.expr] = []
        else:
            if not call.args or any(isinstance(each, ast.Starred) for each in call.args):
                return None
            if any(each.arg is None for each in call.keywords) or _calls(
                *call.args[1:], *(each.value for each in call.keywords)
            ):
                return None
            known = self._is_activation(func)
            operand, title = call.args[0], ast.unparse(func)
            how, rest = func, call.args[1:]
        if known is False:
            return None
        match = self._pending(operand, place, sure=True)
        if match is None and known:
            match = self._pending(operand, place, sure=False)
        if match is None:
            return None

        def edit() -> None:
            call.func, call.args = self._helper(ACTIVATE), [how, match.make(), *rest]

        self.edits.append(edit)
        written = match.batch_norm
        return Site(
            name,
            call.lineno,
            call.col_offset,
            f"{written.lineno}:{written.col_offset} {ast.unparse(written.func)}",
            title,
            match.residual,
        )

    def _pending(self, value: ast.expr, place: _Place | None, sure: bool) -> _Match | None:
        """An activation's operand: a batch norm, a sum with one, or a name of either."""
        if self._is_batch_norm_call(value, sure):
            assert isinstance(value, ast.Call)
            return self._later(value, [])
        total = self._sum(value)
        if total:
            return self._residual(total, place, sure)
        if not isinstance(value, ast.Name) or place is None or not self._dies(value.id, place):
            return None
        if place.at == 0:
            return None
        before = _Place(place.block, place.at - 1)
        statement = before.statement
        if isinstance(statement, ast.Assign) and _assigns(statement, value.id):
            total = self._sum(statement.value)
            if total:
                match = self._residual(total, before, sure)
            else:
                match = self._named(value.id, place, [], sure)
            return match and match._replace(make=partial(_assign, statement, match, value))
        if (
            isinstance(statement, ast.AugAssign)
            and isinstance(statement.op, ast.Add)
            and isinstance(statement.target, ast.Name)
            and statement.target.id == value.id
        ):
            target = statement.target
            left = ast.copy_location(ast.Name(target.id, ast.Load()), target)
            total = _Sum(left, statement.value, ast.Constant("+="), True)
            match = self._residual(total, before, sure)
            if match is None:
                return None
            assignment = ast.copy_location(ast.Assign([target], value), statement)

            def replace() -> ast.expr:
                before.block[before.at] = assignment
                return _assign(assignment, match, value)

            return match._replace(make=replace)
        return None

    def _residual(self, total: _Sum, place: _Place | None, sure: bool) -> _Match | None:
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
                and place
                and not _mentions(other, side.id)
                and self._dies(side.id, place)
            ):
                match = self._named(side.id, place, [other], sure)
            if match:
                found.append(match)
        if not found:
            return None
        best = min(found, key=lambda each: each.waits)

        def make() -> ast.expr:
            # Names stay as they are, and a batch norm's call is edited where it stands.
            best.make()
            return self._call(ADD, [total.how, total.left, total.right], total.left)

        return best._replace(make=make, residual=True)

    def _named(self, name: str, place: _Place, after: list[ast.expr], sure: bool) -> _Match | None:
        """The batch norm whose result a name holds at a statement."""
        for index in range(place.at - 1, -1, -1):
            statement = place.block[index]
            if not _mentions(statement, name):
                continue
            if (
                isinstance(statement, ast.Assign)
                and _assigns(statement, name)
                and self._is_batch_norm_call(statement.value, sure)
            ):
                assert isinstance(statement.value, ast.Call)
                between = [*place.block[index + 1 : place.at], *after]
                return self._later(
                    statement.value, between, place.block[index - 1] if index else None
                )
            return None
        return None

    def _later(
        self, call: ast.Call, between: Sequence[ast.AST], before: ast.stmt | None = None
    ) -> _Match | None:
        """A batch norm's call made pending while `between` runs, if that can be done."""
        waits = bool(_calls(*between)) or any(isinstance(each, ast.stmt) for each in between)
        maker = None
        if waits:
            maker = self._maker(call.args[0], between, before)
            if maker is None or not self._is_quiet(between, self._resolve(call.func)):
                return None

        def make() -> ast.expr:
            arguments = [call.func, call.args[0]]
            if maker is not None:
                arguments.append(copy.deepcopy(maker))
            call.func = self._helper(LATER_IF_FRESH if maker is not None else LATER)
            call.args = arguments
            return call

        return _Match(call, make, waits=waits)

    def _maker(
        self, input: ast.expr, between: Sequence[ast.AST], before: ast.stmt | None
    ) -> ast.expr | None:
        """The module that made a batch norm's input, if nothing else can reach that memory."""
        made = input
        if (
            isinstance(input, ast.Name)
            and isinstance(before, ast.Assign)
            and _assigns(before, input.id)
            and not any(_mentions(each, input.id) for each in between)
        ):
            made = before.value
        if isinstance(made, ast.Call) and type(self._resolve(made.func)) in MAKERS:
            return None if _calls(made.func) else made.func
        return None

    def _is_quiet(self, between: Sequence[ast.AST], batch_norm: object) -> bool:
        """Whether what runs meanwhile always comes to its end, and leaves the batch norm alone."""
        quiet = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Expr, ast.If, ast.Pass, ast.expr)
        loud = (ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr, *_SCOPES)
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

    def _dies(self, name: str, place: _Place) -> bool:
        """Whether a name's value is read once in a statement and never after it."""
        statement = place.statement
        if name not in self.plain or _loads(statement, name) != 1:
            return False
        return (
            isinstance(statement, ast.Return)
            or (isinstance(statement, ast.Assign) and _assigns(statement, name))
            or (isinstance(statement, ast.AugAssign) and _stores(statement.target, name))
            or _loads(self.node, name) == 1
        )

    def _sum(self, value: ast.expr) -> _Sum | None:
        if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
            return _Sum(value.left, value.right, ast.Constant("+"), False)
        if not isinstance(value, ast.Call) or value.keywords:
            return None
        if any(isinstance(each, ast.Starred) for each in value.args):
            return None
        func = value.func
        if len(value.args) == 2 and self._resolve(func) is torch.add:
            return _Sum(value.args[0], value.args[1], func, False)
        if (
            len(value.args) == 1
            and isinstance(func, ast.Attribute)
            and func.attr in ("add", "add_")
            and self._resolve(func) is _UNKNOWN
        ):
            how = ast.Constant(func.attr)
            return _Sum(func.value, value.args[0], how, func.attr == "add_")
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
        return type(called) in ACTIVATIONS or any(called is each for each in (*RELUS, *LEAKY_RELUS))

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

    def _helper(self, name: str) -> ast.expr:
        return ast.Attribute(ast.Name(self.me, ast.Load()), name, ast.Load())

    def _call(self, name: str, arguments: list[ast.expr], at: ast.expr) -> ast.expr:
        return ast.copy_location(ast.Call(self._helper(name), arguments, []), at)


def _assign(statement: ast.Assign, match: _Match, name: ast.expr) -> ast.expr:
    """Let a statement give a name the pending value; what reads it goes on reading the name."""
    statement.value = match.make()
    return name


def _member(owner: object, name: str) -> object:
    if isinstance(owner, nn.Module):
        for members in (owner._modules, owner.__dict__):
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


def _blocks(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    """The blocks of statements in a statement."""
    for _, value in ast.iter_fields(statement):
        if isinstance(value, list):
            if value and isinstance(value[0], ast.stmt):
                yield value
            for each in value:
                if isinstance(each, ast.ExceptHandler | ast.match_case):
                    yield each.body


def _expressions(statement: ast.stmt) -> Iterator[ast.AST]:
    """The expressions of a statement itself, outer ones first, without those of inner scopes."""
    nodes: list[ast.AST] = [statement]
    for node in nodes:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, (ast.stmt, ast.ExceptHandler, ast.match_case, *_SCOPES)):
                nodes.append(child)
                yield child


def _leading(statement: ast.stmt) -> Iterator[ast.Call]:
    """The calls that a statement makes in any case, and before which it runs nothing else."""
    value: ast.expr | None = None
    if isinstance(statement, ast.Assign | ast.Return | ast.Expr):
        value = statement.value
    while value is not None:
        if isinstance(value, ast.Call):
            yield value
            if _calls(value.func):
                value = value.func
            elif value.args:
                value = value.args[0]
            elif isinstance(value.func, ast.Attribute):
                value = value.func.value
            else:
                value = None
        elif isinstance(value, ast.BinOp):
            value = value.left
        elif isinstance(value, ast.Attribute | ast.Subscript):
            value = value.value
        elif isinstance(value, ast.Tuple | ast.List) and value.elts:
            value = value.elts[0]
        else:
            value = None


def _calls(*nodes: ast.AST) -> bool:
    return any(isinstance(each, ast.Call) for node in nodes for each in ast.walk(node))


def _assigns(statement: ast.Assign, name: str) -> bool:
    target = statement.targets[0]
    return len(statement.targets) == 1 and isinstance(target, ast.Name) and target.id == name


def _mentions(node: ast.AST, name: str) -> bool:
    return any(isinstance(each, ast.Name) and each.id == name for each in ast.walk(node))


def _stores(node: ast.AST, name: str) -> bool:
    return any(
        isinstance(each, ast.Name) and each.id == name and not isinstance(each.ctx, ast.Load)
        for each in ast.walk(node)
    )


def _loads(node: ast.AST, name: str) -> int:
    """How often a name is read; `name += 1` reads it once."""
    count = 0
    for each in ast.walk(node):
        if isinstance(each, ast.Name) and each.id == name:
            count += isinstance(each.ctx, ast.Load)
        elif isinstance(each, ast.AugAssign):
            count += isinstance(each.target, ast.Name) and each.target.id == name
    return count
