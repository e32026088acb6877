"""Every fenced code block of the project's Markdown files is run, or checked as far as it goes.

c        a whole program: compiled by pkg-config against the installed tree, and run
cmake    a project's lines: configured with find_package against the installed tree, and built
python   the blocks of a file in their order, as one program
swift    a whole program: built in a package that depends on this one, and run; a block with
         `.package(` is the manifest's part: its version must be this one's
sh       its syntax, and that each script of this project which it names exists

Environment: BATCHNORM_PREFIX (an installed tree), BATCHNORM_LIBRARY and PYTHONPATH (the binding).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PREFIX = Path(os.environ["BATCHNORM_PREFIX"])
PKG_CONFIG = {**os.environ, "PKG_CONFIG_PATH": str(PREFIX / "lib" / "pkgconfig")}
LANGUAGES = {"c", "cmake", "python", "swift", "sh", "text"}


class Block(NamedTuple):
    file: str
    line: int
    language: str
    code: str


def project_files() -> list[str]:
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return sorted(
        name for name in set(listing.stdout.split("\0")) if name and (ROOT / name).exists()
    )


def blocks_of(file: str) -> list[Block]:
    found: list[Block] = []
    fence: Block | None = None
    lines: list[str] = []
    for number, line in enumerate((ROOT / file).read_text().splitlines(), start=1):
        stripped = line.strip()
        if fence is None and stripped.startswith("```"):
            fence, lines = Block(file, number, stripped[3:].strip() or "text", ""), []
        elif fence is not None and stripped == "```":
            found.append(fence._replace(code="\n".join(lines) + "\n"))
            fence = None
        elif fence is not None:
            lines.append(line)
    assert fence is None, f"{file}:{fence and fence.line}: the block has no end"
    return found


BLOCKS = [block for file in project_files() for block in blocks_of(file)]


def of(language: str, part: str = "") -> list[object]:
    return [
        pytest.param(block, id=f"{block.file}:{block.line}")
        for block in BLOCKS
        if block.language == language and part in block.code
    ]


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


def version() -> str:
    header = (ROOT / "include" / "batchnorm.h").read_text()
    return ".".join(re.findall(r"#define BN_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", header))


def test_readme_has_an_example_in_each_language() -> None:
    there = {block.language for block in BLOCKS if block.file == "README.md"}
    assert {"c", "python", "swift", "sh"} <= there


def test_languages_are_known() -> None:
    unknown = [f"{b.file}:{b.line}: {b.language}" for b in BLOCKS if b.language not in LANGUAGES]
    assert not unknown, f"{unknown}, expected one of {sorted(LANGUAGES)}"


@pytest.mark.parametrize("block", of("c"))
def test_c(block: Block, tmp_path: Path) -> None:
    (tmp_path / "program.c").write_text(block.code)
    flags = run("pkg-config", "--cflags", "--libs", "batchnorm", cwd=tmp_path, env=PKG_CONFIG)
    run("gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "program.c", "-o", "program",
        *flags.split(), f"-Wl,-rpath,{PREFIX / 'lib'}", "-lm", cwd=tmp_path)  # fmt: skip
    assert run("./program", cwd=tmp_path), "the program prints nothing"


@pytest.mark.parametrize("block", of("cmake"))
def test_cmake(block: Block, tmp_path: Path) -> None:
    target = re.search(r"target_link_libraries\((\w+)", block.code)
    assert target, "no target_link_libraries(…) to build"
    (tmp_path / "program.c").write_text(
        "#include <batchnorm.h>\nint main(void) { return bn_version() == 0; }\n"
    )
    executable = f"add_executable({target[1]} program.c)\n"
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\nproject(readme LANGUAGES C)\n"
        + ("" if "add_executable" in block.code else executable)
        + block.code
    )
    run("cmake", "-S", ".", "-B", "build", f"-DCMAKE_PREFIX_PATH={PREFIX}", cwd=tmp_path)
    run("cmake", "--build", "build", cwd=tmp_path)
    run(f"build/{target[1]}", cwd=tmp_path)


@pytest.mark.parametrize("file", sorted({b.file for b in BLOCKS if b.language == "python"}))
def test_python(file: str, tmp_path: Path) -> None:
    program = "\n".join(b.code for b in BLOCKS if (b.file, b.language) == (file, "python"))
    (tmp_path / "program.py").write_text(program)
    path = os.pathsep.join(
        str((ROOT / part).resolve()) for part in os.environ["PYTHONPATH"].split(os.pathsep)
    )
    run(sys.executable, "program.py", cwd=tmp_path, env={**os.environ, "PYTHONPATH": path})


SWIFT_PROGRAMS = [b for b in BLOCKS if b.language == "swift" and ".package(" not in b.code]


def test_swift() -> None:
    """All programs in one package, so that the library is compiled once."""
    assert SWIFT_PROGRAMS
    package = ROOT / "build" / "readme-swift"
    targets = []
    for number, block in enumerate(SWIFT_PROGRAMS):
        source = package / "Sources" / f"readme{number}" / "main.swift"
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text(block.code)
        targets.append(
            f'.executableTarget(name: "readme{number}", dependencies: '
            '[.product(name: "BatchNorm", package: "libbatchnorm")])'
        )
    (package / "Package.swift").write_text(
        "// swift-tools-version: 6.2\nimport PackageDescription\n"
        'let package = Package(name: "readme", dependencies: '
        f'[.package(name: "libbatchnorm", path: "{ROOT}")], targets: [{", ".join(targets)}])\n'
    )
    run("swift", "build", cwd=package)
    for number, block in enumerate(SWIFT_PROGRAMS):
        output = run(package / ".build" / "debug" / f"readme{number}", cwd=package)
        assert output, f"{block.file}:{block.line} prints nothing"


@pytest.mark.parametrize("block", of("swift", ".package("))
def test_swift_manifest(block: Block) -> None:
    versions = re.findall(r'from: "([^"]+)"', block.code)
    assert versions == [version()]
    assert '.product(name: "BatchNorm", package: "libbatchnorm")' in block.code


@pytest.mark.parametrize("block", of("sh"))
def test_sh(block: Block, tmp_path: Path) -> None:
    (tmp_path / "block.sh").write_text(block.code)
    run("bash", "-n", "block.sh", cwd=tmp_path)
    folders = "scripts|examples|bindings|include|Sources|Tests|benchmarks"
    named = re.findall(rf"(?:^|[\s=;&|])(?:\./)?((?:{folders})/[\w./-]+)", block.code)
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing, f"{block.file}:{block.line} names {missing}, which this project lacks"
