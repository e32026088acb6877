"""Questions about Python's syntax trees: what a statement runs, reads and writes."""

from __future__ import annotations

import ast
from collections.abc import Iterator

SCOPES = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Lambda,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
)


def blocks(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    """The blocks of statements in a statement."""
    for _, value in ast.iter_fields(statement):
        if isinstance(value, list):
            if value and isinstance(value[0], ast.stmt):
                yield value
            for each in value:
                if isinstance(each, ast.ExceptHandler | ast.match_case):
                    yield each.body


def expressions(statement: ast.stmt) -> Iterator[ast.AST]:
    """The expressions of a statement itself, outer ones first, without those of inner scopes."""
    nodes: list[ast.AST] = [statement]
    for node in nodes:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, (ast.stmt, ast.ExceptHandler, ast.match_case, *SCOPES)):
                nodes.append(child)
                yield child


def leading(statement: ast.stmt) -> Iterator[ast.Call]:
    """The calls that a statement makes in any case, and before which it runs nothing else."""
    value: ast.expr | None = None
    if isinstance(statement, ast.Assign | ast.Return | ast.Expr):
        value = statement.value
    while value is not None:
        if isinstance(value, ast.Call):
            yield value
            if calls(value.func):
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


def calls(*nodes: ast.AST) -> bool:
    """Whether something is called anywhere in these."""
    return any(isinstance(each, ast.Call) for node in nodes for each in ast.walk(node))


def assigns(statement: ast.Assign, name: str) -> bool:
    """Whether a statement is `name = ...`, with no other target."""
    target = statement.targets[0]
    return len(statement.targets) == 1 and isinstance(target, ast.Name) and target.id == name


def mentions(node: ast.AST, name: str) -> bool:
    """Whether a name is read or written anywhere in this."""
    return any(isinstance(each, ast.Name) and each.id == name for each in ast.walk(node))


def stores(node: ast.AST, name: str) -> bool:
    """Whether a name is written or deleted anywhere in this."""
    return any(
        isinstance(each, ast.Name) and each.id == name and not isinstance(each.ctx, ast.Load)
        for each in ast.walk(node)
    )


def loads(node: ast.AST, name: str) -> int:
    """How often a name is read; `name += 1` reads it once."""
    count = 0
    for each in ast.walk(node):
        if isinstance(each, ast.Name) and each.id == name:
            count += isinstance(each.ctx, ast.Load)
        elif isinstance(each, ast.AugAssign):
            count += isinstance(each.target, ast.Name) and each.target.id == name
    return count
