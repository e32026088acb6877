"""The shared library as a file, and the header as text: what a packager or a linker sees of them.

Environment variables tell what to look at: CMakeLists.txt beside it. Needs Python alone; reads the
library with binutils' nm and readelf.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
HEADER = HERE.parents[1] / "include" / "batchnorm.h"
LIBRARY = Path(os.environ["BATCHNORM_LIBRARY"])
LIBOMP = Path(os.environ["BATCHNORM_LIBOMP"])
KERNELS = os.environ["BATCHNORM_KERNELS"].split(":")
CLANG = os.environ["BATCHNORM_CLANG"]
SIZE_LIMIT = int(os.environ["BATCHNORM_SIZE_LIMIT"])

# Newer clangs call these for dynamic schedules and `parallel if(…)`; older libomps lack them.
NOT_IN_EVERY_LIBOMP = {"__kmpc_dispatch_deinit", "__kmpc_fork_call_if"}


def run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def symbols(*command: str | Path) -> set[str]:
    """The names in nm's output, without versions ("omp_get_max_threads@@VERSION")."""
    lines = run("nm", *command).splitlines()
    return {line.split()[-1].split("@")[0] for line in lines if line and not line.endswith(":")}


def header_functions() -> set[str]:
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    return set(re.findall(r"^BN_API\b[^;(]*?\b(bn_\w+)\(", text, flags=re.MULTILINE))


def dynamic_entries(tag: str) -> set[str]:
    return set(re.findall(rf"\({tag}\).*\[(.+)\]", run("readelf", "--dynamic", "--wide", LIBRARY)))


class SharedLibrary(unittest.TestCase):
    def test_exports_exactly_the_list(self) -> None:
        expected = set((HERE / "exports.txt").read_text().split())
        self.assertEqual(symbols("--dynamic", "--defined-only", LIBRARY), expected)

    def test_list_is_the_header(self) -> None:
        expected = (HERE / "exports.txt").read_text().split()
        self.assertEqual(expected, sorted(header_functions()))

    def test_needs_only_libc_libm_and_libomp(self) -> None:
        needed = {name.split(".so")[0] for name in dynamic_entries("NEEDED")}
        loader = {name for name in needed if name.startswith("ld-linux")}
        self.assertLessEqual(needed - loader, {"libc", "libm", "libomp", "libomp5", "libiomp5"})
        self.assertIn("libc", needed)

    def test_soname_moves_with_what_may_break(self) -> None:
        version = re.findall(r"BN_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", HEADER.read_text())
        self.assertEqual(len(version), 3)
        until = 2 if version[0] == "0" else 1
        name = ".".join(["libbatchnorm.so", *version[:until]])
        self.assertEqual(dynamic_entries("SONAME"), {name})

    @unittest.skipUnless(SIZE_LIMIT, "the size is promised of a Release build")
    def test_is_small(self) -> None:
        self.assertLess(LIBRARY.stat().st_size, SIZE_LIMIT)

    def test_stack_is_not_executable(self) -> None:
        stack = re.search(r"^ *GNU_STACK .*$", run("readelf", "-lW", LIBRARY), re.MULTILINE)
        assert stack, "no GNU_STACK header"
        self.assertNotIn("RWE", stack[0])


class Kernels(unittest.TestCase):
    def test_use_only_what_libomp_has(self) -> None:
        used = {
            name
            for name in symbols("--undefined-only", *KERNELS)
            if name.startswith(("__kmpc_", "omp_", "kmp_"))
        }
        self.assertTrue(used, "the kernels use no OpenMP at all")
        self.assertEqual(used - symbols("--dynamic", "--defined-only", LIBOMP), set())
        self.assertEqual(used & NOT_IN_EVERY_LIBOMP, set())

    def test_define_only_names_of_their_own(self) -> None:
        names = symbols("--extern-only", "--defined-only", *KERNELS)
        self.assertEqual({name for name in names if not name.startswith("bnk_")}, set())


STRUCTS_WITH_DEFAULTS = [
    "bn_forward_training_args",
    "bn_forward_inference_args",
    "bn_backward_args",
    "bn_layer_options",
    "bn_layer_forward_args",
    "bn_layer_backward_args",
    "bn_fold_args",
]


class Header(unittest.TestCase):
    """The header alone, then twice, with every warning, as C11 and C++17, with gcc and clang."""

    def test_compiles_alone(self) -> None:
        compilers = {"gcc": "c11", "g++": "c++17", CLANG: "c11", f"{CLANG}++": "c++17"}
        for compiler, standard in compilers.items():
            with self.subTest(compiler=compiler, standard=standard):
                if not shutil.which(compiler):
                    self.skipTest(f"{compiler} is not installed")
                suffix = ".cpp" if "++" in compiler else ".c"
                with tempfile.TemporaryDirectory() as folder:
                    source = Path(folder, "header" + suffix)
                    source.write_text(
                        "#include <batchnorm.h>\n#include <batchnorm.h>\n"
                        "bn_problem problem = BN_PROBLEM_INIT;\n"
                        "bn_problem images = BN_PROBLEM_2D(BN_DTYPE_FLOAT32, BN_LAYOUT_NCHW,"
                        " 2, 3, 4, 4);\n"
                        "bn_forward_training_args training = BN_FORWARD_TRAINING_ARGS_INIT;\n"
                        "bn_forward_inference_args inference = BN_FORWARD_INFERENCE_ARGS_INIT;\n"
                        "bn_backward_args backward = BN_BACKWARD_ARGS_INIT;\n"
                        "bn_layer_options options = BN_LAYER_OPTIONS_INIT;\n"
                        "bn_plan_info info = BN_PLAN_INFO_INIT;\n"
                        "bn_moments moments = BN_MOMENTS_INIT;\n"
                        "bn_gradient_sums sums = BN_GRADIENT_SUMS_INIT;\n"
                        "bn_layer_forward_args forward = BN_LAYER_FORWARD_ARGS_INIT;\n"
                        "bn_layer_backward_args back = BN_LAYER_BACKWARD_ARGS_INIT;\n"
                        "bn_fold_args fold = BN_FOLD_ARGS_INIT;\n"
                        "bn_activation relu = BN_RELU;\n"
                        "bn_activation leaky(int slope);\n"
                        "bn_activation leaky(int slope)\n"
                        "{ bn_activation a = BN_LEAKY_RELU(slope); return a; }\n"
                    )
                    if suffix == ".c":  # see Structs in the header's introduction
                        with source.open("a") as file:
                            for name in STRUCTS_WITH_DEFAULTS:
                                defaults = f"{name.upper()}_DEFAULTS"
                                file.write(f"{name} named_{name} = {{ {defaults} }};\n")
                            file.write(
                                "bn_forward_training_args with = {"
                                " BN_FORWARD_TRAINING_ARGS_DEFAULTS, .input = { NULL, 96 },"
                                " .activation = BN_LEAKY_RELU(0.01) };\n"
                            )
                    run(
                        compiler,
                        f"-std={standard}",
                        "-Wall",
                        "-Wextra",
                        "-pedantic",
                        "-Wconversion",
                        "-Werror",
                        "-fsyntax-only",
                        "-I",
                        HEADER.parent,
                        source,
                    )

    def test_macros_take_any_integer(self) -> None:
        """Sizes come as size_t from C++ containers; braces take no narrowing."""
        compilers = {"gcc": "c11", "g++": "c++17", CLANG: "c11", f"{CLANG}++": "c++17"}
        macros = {
            "bn_problem": [
                "BN_PROBLEM_MATRIX(dtype, n, c)",
                "BN_PROBLEM_1D(dtype, layout, n, c, s)",
                "BN_PROBLEM_2D(dtype, layout, n, c, s, s)",
                "BN_PROBLEM_3D(dtype, layout, n, c, s, s, s)",
            ],
            "bn_weight_shape": [
                "BN_WEIGHT_OUTPUT_FIRST(dtype, n, c)",
                "BN_WEIGHT_OUTPUT_LAST(dtype, n, c)",
                "BN_WEIGHT_TRANSPOSED(dtype, n, c, s, s)",
                "BN_WEIGHT_AFFINE(dtype, c)",
            ],
        }
        defined = re.findall(r"^#define (BN_(?:PROBLEM|WEIGHT)_\w+)\(", HEADER.read_text(), re.M)
        used = [macro.split("(")[0] for values in macros.values() for macro in values]
        self.assertEqual(sorted(defined), sorted(used))
        program = "#include <batchnorm.h>\n"
        for number in ("size_t", "int", "int64_t", "unsigned", "short"):
            for struct, values in macros.items():
                for index, macro in enumerate(values):
                    function = f"{struct} {struct}_{index}_{number}"
                    parameters = f"({number} n, {number} c, {number} s)"
                    program += (
                        f"{function}{parameters};\n{function}{parameters} {{\n"
                        "    const bn_dtype dtype = BN_DTYPE_FLOAT32;\n"
                        "    const bn_layout layout = BN_LAYOUT_NHWC;\n"
                        "    (void)n, (void)s, (void)layout;\n"
                        f"    {struct} made = {macro};\n    return made;\n}}\n"
                    )
        warnings = ["-Wall", "-Wextra", "-Wconversion", "-Wsign-conversion", "-Werror"]
        for compiler, standard in compilers.items():
            with self.subTest(compiler=compiler), tempfile.TemporaryDirectory() as folder:
                if not shutil.which(compiler):
                    self.skipTest(f"{compiler} is not installed")
                is_cpp = "++" in compiler
                source = Path(folder, "macros").with_suffix(".cpp" if is_cpp else ".c")
                source.write_text(program)
                options = [*warnings, "-Wold-style-cast"] if is_cpp else warnings
                run(
                    compiler,
                    f"-std={standard}",
                    *options,
                    "-fsyntax-only",
                    "-I",
                    HEADER.parent,
                    source,
                )

    def test_first_program_compiles_and_is_complete(self) -> None:
        """Section 2 of the header, as printed."""
        text = re.search(r"A FIRST PROGRAM\n \* -+\n(.*?) \* Build:", HEADER.read_text(), re.DOTALL)
        assert text
        program = re.sub(r"^ \*(     )?", "", text[1], flags=re.MULTILINE)
        with tempfile.TemporaryDirectory() as folder:
            source, executable = Path(folder, "program.c"), Path(folder, "program")
            source.write_text(program)
            run(
                CLANG,
                "-std=c11",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-I",
                HEADER.parent,
                source,
                "-o",
                executable,
                LIBRARY,
                f"-Wl,-rpath,{LIBRARY.parent}",
            )
            # Channel 0 of the two images holds 0..15 and 48..63.
            values = [*range(16), *range(48, 64)]
            mean = sum(values) / 32
            variance = sum((value - mean) ** 2 for value in values) / 32
            expected = f"{(0 - mean) / (variance + 1e-5) ** 0.5:.3f}\n"
            self.assertEqual(run(executable), expected)


if __name__ == "__main__":
    unittest.main()
