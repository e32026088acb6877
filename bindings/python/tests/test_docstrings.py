"""What help() shows: every public symbol has an example that runs, and names its parameters.

The examples run as doctests in the same test run. A parameter counts as documented where its name
stands in the docstring, or in that of a function or class which the docstring refers to. Results,
which only this package makes, may have their example where they are returned.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import batchnorm


def modules() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(batchnorm.__path__, "batchnorm.", onerror=lambda _: None):
        if any(part.startswith("_") for part in found.name.split(".")):
            continue
        try:
            yield importlib.import_module(found.name)
        except ImportError:
            if not found.name.startswith("batchnorm.torch"):  # which needs PyTorch
                raise


MODULES = list(modules())
SYMBOLS = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in MODULES
    for name in getattr(module, "__all__", ())
    if callable(getattr(module, name))
}


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that a class of this package adds, inherited ones included."""
    for name in dir(kind):
        owner = next((base for base in kind.__mro__ if name in base.__dict__), object)
        if name.startswith("_") or not owner.__module__.startswith("batchnorm"):
            continue
        member = inspect.getattr_static(kind, name)
        if isinstance(member, property | classmethod | staticmethod) or inspect.isfunction(member):
            yield name, getattr(member, "__func__", member)


CALLABLES = {
    **SYMBOLS,
    **{
        f"{path}.{name}": member
        for path, symbol in SYMBOLS.items()
        if inspect.isclass(symbol)
        for name, member in members(symbol)
    },
}


def is_result(symbol: Any) -> bool:
    return (
        dataclasses.is_dataclass(symbol)
        or hasattr(symbol, "_fields")
        or typing.is_typeddict(symbol)
    )


def parameters(symbol: Any) -> set[str]:
    """The names that a caller may write; none for what callers do not make."""
    if isinstance(symbol, property) or is_result(symbol):
        return set()
    if inspect.isclass(symbol):
        maker = symbol.__init__
        if issubclass(symbol, Exception) or not inspect.isfunction(maker):
            return set()
        symbol = maker
    named = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    signature = inspect.signature(symbol).parameters.items()
    return {name for name, each in signature if each.kind not in named} - {"self", "cls"}


def own_docstring(symbol: Any) -> str:
    """As written: a class without one does not count its base's."""
    text = symbol.__doc__ or ""
    if inspect.isclass(symbol) and "__init__" in vars(symbol):
        text += "\n" + (symbol.__init__.__doc__ or "")
    return str(text)


def referred(text: str) -> Iterator[str]:
    """Docstrings of the package's symbols that a docstring names in backticks."""
    names = set(re.findall(r"`(?:[\w.]+\.)?(\w+)`", text))
    for path, symbol in CALLABLES.items():
        if path.rsplit(".", 1)[-1] in names:
            yield own_docstring(symbol)


def test_the_walk_finds_what_there_is() -> None:
    names = {module.__name__ for module in MODULES}
    assert {"batchnorm.functional", "batchnorm.modules", "batchnorm.moments"} <= names
    assert {"batchnorm.fold.fold_into", "batchnorm.modules.BatchNorm2d.backward"} <= set(CALLABLES)
    inside = {path.rsplit(".", 1)[-1] for path in SYMBOLS}
    outside = {name for name in batchnorm.__all__ if callable(getattr(batchnorm, name))}
    assert outside <= inside, f"{outside - inside}: in the __all__ of no module"


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_a_module_says_what_it_is_for_and_what_is_public(module: ModuleType) -> None:
    assert module.__doc__
    assert hasattr(module, "__all__")


@pytest.mark.parametrize("path", sorted(SYMBOLS))
def test_a_symbol_has_an_example(path: str) -> None:
    text = own_docstring(SYMBOLS[path])
    if is_result(SYMBOLS[path]):
        text += "\n".join(referred(text))
    assert ">>> " in text


@pytest.mark.parametrize("path", sorted(CALLABLES))
def test_parameters_are_documented(path: str) -> None:
    text = own_docstring(CALLABLES[path])
    assert text.strip()
    everything = "\n".join([text, *referred(text)])
    words = set(re.findall(r"\w+", everything))
    missing = parameters(CALLABLES[path]) - words
    assert not missing, f"{sorted(missing)}: not in the docstring"
