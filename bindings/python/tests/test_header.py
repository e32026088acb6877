"""The binding against include/batchnorm.h: functions, signatures, structs, enums and defaults.

pycparser reads the declarations; a small C program, compiled here, tells sizes and defaults.
"""

from __future__ import annotations

import ctypes
import enum
import inspect
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pycparser import c_ast, c_parser

from batchnorm import BatchNorm2d, Status, _lowlevel, explain, fold_into
from batchnorm import functional as F

HEADER = Path(__file__).resolve().parents[3] / "include" / "batchnorm.h"
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")

SCALARS = {
    "uint8_t": ctypes.c_uint8,
    "int32_t": ctypes.c_int32,
    "uint32_t": ctypes.c_uint32,
    "int64_t": ctypes.c_int64,
    "double": ctypes.c_double,
}
# A pointer to these is an address that the binding passes as a number.
ADDRESSES = {"void", "double", "bn_layer"}
ENUMS: dict[str, type[enum.IntEnum]] = {
    "BN_STATUS_": Status,
    "BN_DTYPE_": _lowlevel.Dtype,
    "BN_LAYOUT_": _lowlevel.Layout,
    "BN_AVERAGING_": _lowlevel.Averaging,
    "BN_VARIANCE_": _lowlevel.Variance,
    "BN_ONE_VALUE_": _lowlevel.OneValue,
    "BN_NONFINITE_": _lowlevel.Nonfinite,
    "BN_ACTIVATION_": _lowlevel.Activation,
    "BN_MASKED_": _lowlevel.Masked,
    "BN_PASS_": _lowlevel.Pass,
    "BN_STATISTICS_": _lowlevel.Statistics,
    "BN_ISA_": _lowlevel.Isa,
    "BN_THREADING_": _lowlevel.Threading,
    "BN_OPERATION_": _lowlevel.Operation,
}


@pytest.fixture(scope="module")
def declarations(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The header's declarations, without those of the C library."""
    assert COMPILER, "these tests need a C compiler: cc, gcc or clang"
    empty = tmp_path_factory.mktemp("include")
    for name in ("stddef.h", "stdint.h"):
        (empty / name).write_text("")
    text = subprocess.run(
        [COMPILER, "-E", "-P", "-nostdinc", f"-I{empty}", "-D__attribute__(x)=", str(HEADER)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    integers = "".join(
        f"typedef {'unsigned ' * name.startswith('u')}long {name};\n"
        for name in ("uint8_t", "int32_t", "uint32_t", "int64_t", "size_t")
    )
    return list(c_parser.CParser().parse(integers + text).ext)


class Types:
    """C types of the header as ctypes."""

    def __init__(self, declarations: list[Any]) -> None:
        self.aliases = dict[str, Any](SCALARS)
        for each in declarations:
            if isinstance(each, c_ast.Typedef) and each.name.startswith("bn_"):
                inner = each.type
                if isinstance(inner, c_ast.PtrDecl):  # to a function
                    self.aliases[each.name] = self.callback(inner.type)
                elif isinstance(inner.type, c_ast.Struct):
                    self.aliases[each.name] = getattr(_lowlevel, each.name, None)
                else:
                    self.aliases[each.name] = self.aliases[inner.type.names[0]]

    def callback(self, function: Any) -> Any:
        parameters = [self.of(parameter.type) for parameter in function.args.params]
        return ctypes.CFUNCTYPE(self.of(function.type), *parameters)

    def of(self, node: Any) -> Any:
        if isinstance(node, c_ast.PtrDecl):
            if isinstance(node.type, c_ast.PtrDecl):
                return ctypes.POINTER(self.of(node.type))
            name = node.type.type.names[0]
            if name == "char":
                return ctypes.c_char_p
            return ctypes.c_void_p if name in ADDRESSES else ctypes.POINTER(self.aliases[name])
        if isinstance(node, c_ast.ArrayDecl):
            return self.of(node.type) * int(node.dim.value)
        name = node.type.names[0]
        return None if name == "void" else self.aliases[name]


@pytest.fixture(scope="module")
def types(declarations: list[Any]) -> Types:
    return Types(declarations)


def test_functions(declarations: list[Any], types: Types) -> None:
    declared: dict[str, Any] = {}
    for each in declarations:
        if isinstance(each, c_ast.Decl) and isinstance(each.type, c_ast.FuncDecl):
            parameters = each.type.args.params if each.type.args else []
            arguments = [types.of(parameter.type) for parameter in parameters]
            declared[each.name] = (
                types.of(each.type.type),
                () if arguments == [None] else tuple(arguments),
                getattr(each.type.type.type, "names", [""])[0] == "bn_status",
            )
    bound: dict[str, Any] = {
        name: (
            function.restype,
            tuple(function.argtypes),
            getattr(function, "errcheck", None) is _lowlevel._raise_on_failure,
        )
        for name, function in vars(_lowlevel).items()
        if type(function) is type(_lowlevel.bn_version)
    }
    assert sorted(bound) == sorted(declared)
    for name, signature in declared.items():
        assert bound[name] == signature, name


# Structs that are seen through others only: the binding spreads them out where they are embedded.
EMBEDDED = re.compile("bn_(mutable_)?(byte_|int64_|float64_)?view|bn_activation")


def flat_name(path: str) -> str:
    """What the binding calls a member of an embedded struct: saved.mean.count: saved_mean_count."""
    name = path.removesuffix(".data").removesuffix(".kind").removeprefix("positions.")
    if name in ("activation.slope", "activation.limit"):
        name = name.removeprefix("activation.")
    return "positions_reserved" if path == "positions.reserved" else name.replace(".", "_")


@pytest.fixture(scope="module")
def structs(declarations: list[Any], types: Types) -> dict[str, list[tuple[str, Any]]]:
    """Of each struct its members as paths, those of embedded structs in their place."""
    found: dict[str, list[tuple[str, Any]]] = {}
    for each in declarations:
        if not (isinstance(each, c_ast.Typedef) and isinstance(each.type.type, c_ast.Struct)):
            continue
        members: list[tuple[str, Any]] = []
        for member in each.type.type.decls or ():  # None: bn_layer, which is opaque
            name = getattr(getattr(member.type, "type", None), "names", [""])[0]
            if isinstance(member.type, c_ast.PtrDecl):  # also to one number
                members.append((member.name, ctypes.c_void_p))
            elif name in found:
                members += [(f"{member.name}.{path}", kind) for path, kind in found[name]]
            else:
                members.append((member.name, types.of(member.type)))
        if members:
            found[each.name] = members
    return found


def test_struct_members(structs: dict[str, list[tuple[str, Any]]]) -> None:
    seen = {name for name in structs if not EMBEDDED.fullmatch(name)}
    for name in seen:
        prefix = name.removeprefix("bn_") + "." if name in ("bn_positions", "bn_saved") else ""
        expected = [(flat_name(prefix + path), kind) for path, kind in structs[name]]
        assert list(getattr(_lowlevel, name)._fields_) == expected, name
    bound = {
        name
        for name, value in vars(_lowlevel).items()
        if inspect.isclass(value)
        and issubclass(value, ctypes.Structure)
        and value is not ctypes.Structure
    }
    assert bound == seen


def test_enumerators(declarations: list[Any]) -> None:
    declared: dict[str, int] = {}
    for each in declarations:
        node = getattr(each, "type", None)
        if isinstance(node, c_ast.Enum):
            for item in node.values.enumerators:
                if not item.name.endswith("_LEAST"):  # of a struct's size, no option
                    declared[item.name] = int(item.value.value)
    bound = {
        prefix + member.name: member.value for prefix, kind in ENUMS.items() for member in kind
    }
    assert bound == declared


def test_status_names() -> None:
    for status in Status:
        assert _lowlevel.bn_status_name(status) == f"BN_STATUS_{status.name}".encode()
    assert _lowlevel.bn_status_name(12345) == b"BN_STATUS_UNKNOWN"


@pytest.fixture(scope="module")
def compiled(
    tmp_path_factory: pytest.TempPathFactory, structs: dict[str, list[tuple[str, Any]]]
) -> dict[str, float]:
    """Sizes, offsets and defaults as a C compiler sees them."""
    assert COMPILER, "these tests need a C compiler: cc, gcc or clang"
    lines = []
    for name, members in structs.items():
        lines.append(f'printf("\\"{name}\\": %zu,", sizeof({name}));')
        for path, _ in members:
            lines.append(f'printf("\\"{name}.{path}\\": %zu,", offsetof({name}, {path}));')
    lines.append('printf("\\"BN_EXPLAIN_TEXT_SIZE:\\": %d,", BN_EXPLAIN_TEXT_SIZE);')
    for name, defaults in DEFAULTS.items():
        lines.append(f"{{ {name} value = {name.upper()}_INIT;")
        lines += [
            f'printf("\\"{name}:{member}\\": %.17g,", (double)value.{member});'
            for member in defaults
        ]
        lines.append("}")
    folder = tmp_path_factory.mktemp("compiled")
    source = folder / "layout.c"
    source.write_text(
        "#include <batchnorm.h>\n#include <stdio.h>\nint main(void) {\nputchar('{');\n"
        + "\n".join(lines)
        + '\nputs("\\"end\\": 0}");\nreturn 0;\n}\n'
    )
    program = folder / "layout"
    subprocess.run([COMPILER, f"-I{HEADER.parent}", str(source), "-o", str(program)], check=True)
    output = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    result: dict[str, float] = json.loads(output)
    return result


# The header's initializers, and the Python defaults that must be the same.
DEFAULTS: dict[str, dict[str, Any]] = {
    "bn_forward_training_args": {
        "epsilon": (F.forward_training, "eps"),
        "momentum": (F.forward_training, "momentum"),
        "running_variance": (F.forward_training, "running_variance"),
        "one_value": (F.forward_training, "one_value"),
        "nonfinite": (F.forward_training, "nonfinite"),
        "activation.kind": (F.forward_training, "activation"),
        "positions.masked": (F.forward_training, "masked"),
    },
    "bn_forward_inference_args": {
        "epsilon": (F.forward_inference, "eps"),
        "activation.kind": (F.forward_inference, "activation"),
        "positions.masked": (F.forward_inference, "masked"),
    },
    "bn_backward_args": {
        "epsilon": (F.backward, "eps"),
        "statistics": (F.backward, "statistics"),
        "activation.kind": (F.backward, "activation"),
        "positions.masked": (F.backward, "masked"),
    },
    "bn_fold_args": {"epsilon": (fold_into, "eps")},
    "bn_explain_args": {
        "activation.kind": (explain, "activation"),
        "residual": (explain, "residual"),
        "activation_mask": (explain, "activation_mask"),
        "mask": (explain, "mask"),
        "lengths": (explain, "lengths"),
    },
    "bn_layer_forward_args": {
        "activation.kind": (BatchNorm2d.forward, "activation"),
        "positions.masked": (BatchNorm2d.forward, "masked"),
    },
    "bn_layer_options": {
        "epsilon": (BatchNorm2d, "eps"),
        "momentum": (BatchNorm2d, "momentum"),
        "running_variance": (BatchNorm2d, "running_variance"),
        "one_value": (BatchNorm2d, "one_value"),
        "nonfinite": (BatchNorm2d, "nonfinite"),
        "track_running_stats": (BatchNorm2d, "track_running_stats"),
    },
}
WORDS: dict[str, type[enum.IntEnum]] = {
    "running_variance": _lowlevel.Variance,
    "one_value": _lowlevel.OneValue,
    "nonfinite": _lowlevel.Nonfinite,
    "statistics": _lowlevel.Statistics,
    "positions.masked": _lowlevel.Masked,
}


def test_struct_layouts(compiled: dict[str, float]) -> None:
    checked = 0
    for key, expected in compiled.items():
        name, _, path = key.partition(".")
        if ":" in key or key == "end" or EMBEDDED.fullmatch(name):
            continue
        struct = getattr(_lowlevel, name)
        prefix = name.removeprefix("bn_") + "." if name in ("bn_positions", "bn_saved") else ""
        member = flat_name(prefix + path)
        actual = getattr(struct, member).offset if path else ctypes.sizeof(struct)
        assert actual == expected, key
        checked += 1
    assert checked > 80


def test_defaults(compiled: dict[str, float]) -> None:
    for struct, members in DEFAULTS.items():
        for member, (function, name) in members.items():
            default = inspect.signature(function).parameters[name].default
            if isinstance(default, str):
                default = WORDS[member][default.upper()]
            if default is None:  # no activation
                default = _lowlevel.Activation.NONE
            assert default == compiled[f"{struct}:{member}"], (struct, member)


def test_constants(compiled: dict[str, float]) -> None:
    assert compiled["BN_EXPLAIN_TEXT_SIZE:"] == _lowlevel.EXPLAIN_TEXT_SIZE
