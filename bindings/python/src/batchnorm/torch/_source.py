"""Reads the definition of a function from its source, and compiles one that stands in its place.

A file is parsed once, for all functions in it. What is compiled is one definition behind the file's
imports and in empty copies of the scopes around it, never the file.

Invariant: a definition is given only if it compiles to exactly the code that runs.
"""

from __future__ import annotations

import ast
import copy
import linecache
import types
import warnings
from functools import lru_cache
from typing import NamedTuple


class Source(NamedTuple):
    """A function's definition, which several nn.Modules share: it is not written to."""

    code: types.CodeType
    node: ast.FunctionDef
    scopes: tuple[ast.stmt, ...]
    """The functions and classes that it stands in, from outside to inside."""
    imports: list[ast.stmt]
    """Of the whole file: Python compiles calls of what is imported in another way."""

    def compile(self, node: ast.FunctionDef) -> types.CodeType | None:
        """The code of a definition in place of this one; None if it needs another closure."""
        inner: ast.stmt = node
        for scope in reversed(self.scopes):
            inner = self._around(scope, inner)
        module = ast.fix_missing_locations(ast.Module([*self.imports, inner], []))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            codes = [compile(module, self.code.co_filename, "exec", dont_inherit=True)]
        while codes:
            code = codes.pop()
            if _key(code) == _key(self.code):
                return code if code.co_freevars == self.code.co_freevars else None
            codes += [each for each in code.co_consts if isinstance(each, types.CodeType)]
        return None

    def _around(self, scope: ast.stmt, inner: ast.stmt) -> ast.stmt:
        """A scope with one statement in it, of the names that the function takes from around."""
        scope = copy.copy(scope)
        if isinstance(scope, ast.ClassDef):
            scope.bases, scope.keywords = [], []
        else:
            assert isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef)
            names = [ast.arg(name) for name in self.code.co_freevars]
            scope.args = ast.arguments([], names, None, [], [], None, [])
            scope.returns = None
        scope.body, scope.decorator_list = [inner], []
        return scope


def source_of(function: types.FunctionType) -> Source | None:
    """The definition of a function, None unless it compiles to exactly the code that runs."""
    code = function.__code__
    linecache.lazycache(code.co_filename, function.__globals__)  # a file in an archive, say
    return _read(code.co_filename, code)


# By the file's name too: equal codes may come from two files.
@lru_cache(maxsize=1024)
def _read(filename: str, code: types.CodeType) -> Source | None:
    file = _parse("".join(linecache.getlines(filename)))
    found = file.definitions.get(_key(code))
    if found is None:
        return None
    source = Source(code, *found, file.imports)
    # A file that was edited since, or code that was changed after it was read
    # (pytest's asserts, coverage tools), is not what runs.
    return source if source.compile(source.node) == code else None


_Definition = tuple[ast.FunctionDef, tuple[ast.stmt, ...]]


class _File:
    """What is in a file: definitions by name and first line, each with its scopes, and imports."""

    def __init__(self, tree: ast.Module) -> None:
        self.definitions: dict[tuple[str, int], _Definition] = {}
        self.imports: list[ast.stmt] = []
        self._read(tree, ())

    def _read(self, parent: ast.AST, scopes: tuple[ast.stmt, ...]) -> None:
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.Import | ast.ImportFrom) and not scopes:
                self.imports.append(node)
            if isinstance(node, ast.FunctionDef):
                first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                self.definitions[node.name, first] = node, scopes
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                self._read(node, (*scopes, node))
            elif not isinstance(node, ast.expr):  # an expression has no definition in it
                self._read(node, scopes)


@lru_cache(maxsize=16)
def _parse(text: str) -> _File:
    """What is in a file; nothing if it is no Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _File(ast.parse(text))
    except SyntaxError:
        return _File(ast.Module([], []))


def _key(code: types.CodeType) -> tuple[str, int]:
    return code.co_name, code.co_firstlineno
