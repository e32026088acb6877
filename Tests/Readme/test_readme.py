"""Every fenced code block of the project's Markdown files is run, or checked as far as it goes.

README.md's ways in (C, Python, Swift) are gone as they stand: in a copy of this project and in a
folder of the reader's that is empty at first, with PATH and an empty HOME alone in the environment.

python   besides, the blocks of each file in their order, as one program, on this build
sh       besides, its syntax, and that each script of this project which it names exists

Environment: BATCHNORM_LIBRARY and PYTHONPATH (the binding).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = {"c", "cmake", "python", "swift", "sh", "text"}
RUN = {"C", "Python", "Swift"}  # the sections that are gone as they stand
LONG = {"Two commands", "Speed"}  # what tests and benchmark are is not run again


class Block(NamedTuple):
    file: str
    line: int
    section: str
    language: str
    code: str


def project_files(*patterns: str) -> list[str]:
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *patterns],
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
    section = ""
    for number, line in enumerate((ROOT / file).read_text().splitlines(), start=1):
        stripped = line.strip()
        if fence is None and stripped.startswith("```"):
            fence, lines = Block(file, number, section, stripped[3:].strip() or "text", ""), []
        elif fence is not None and stripped == "```":
            found.append(fence._replace(code="\n".join(lines) + "\n"))
            fence = None
        elif fence is not None:
            lines.append(line)
        elif line.startswith("## "):
            section = line[3:].strip()
    assert fence is None, f"{file}:{fence and fence.line}: the block has no end"
    return found


BLOCKS = [block for file in project_files("*.md") for block in blocks_of(file)]
README = [block for block in BLOCKS if block.file == "README.md"]


def of(language: str, *, section: str) -> list[Block]:
    return [b for b in README if (b.language, b.section) == (language, section)]


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


class Reader:
    """Someone with a copy of this project, a folder of their own, and an empty home."""

    def __init__(self, folder: Path) -> None:
        self.project = folder / "libbatchnorm"
        self.own = folder / "own"
        home = folder / "home"
        self.own.mkdir()
        home.mkdir()
        for name in project_files():
            (self.project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.project / name, follow_symlinks=False)
        # Swift lies somewhere; everything else is the system's.
        swift = shutil.which("swift")
        assert swift, "swift is not on PATH"
        path = f"{Path(swift).parent}:/usr/local/bin:/usr/bin:/bin"
        # SwiftPM remembers versions in the home that Foundation finds, which HOME does not move.
        self.env = {"PATH": path, "HOME": str(home), "CFFIXED_USER_HOME": str(home)}

    def follow(self, block: Block) -> str:
        """Runs a block: in the project if it begins with a script there, else in their folder."""
        folder = self.project if block.code.startswith("scripts/") else self.own
        return run("bash", "-euo", "pipefail", "-c", block.code, cwd=folder, env=self.env)

    def write(self, name: str, code: str) -> None:
        (self.own / name).parent.mkdir(parents=True, exist_ok=True)
        (self.own / name).write_text(code)


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(tmp_path)


def test_languages_are_known() -> None:
    unknown = [f"{b.file}:{b.line}: {b.language}" for b in BLOCKS if b.language not in LANGUAGES]
    assert not unknown, f"{unknown}, expected one of {sorted(LANGUAGES)}"


def test_every_command_of_the_readme_is_run() -> None:
    assert {b.section for b in README if b.language == "sh"} == RUN | LONG
    assert {(b.file, b.section) for b in BLOCKS if b.language == "cmake"} == {("README.md", "C")}


def test_c(reader: Reader) -> None:
    (program,) = of("c", section="C")
    (project,) = of("cmake", section="C")
    install, by_pkg_config, by_cmake = of("sh", section="C")
    reader.follow(install)
    for block in [b for b in BLOCKS if b.language == "c"]:
        reader.write("program.c", block.code)
        assert reader.follow(by_pkg_config), f"{block.file}:{block.line} prints nothing"
    reader.write("program.c", program.code)
    reader.write("CMakeLists.txt", project.code)
    assert reader.follow(by_cmake).endswith(reader.follow(by_pkg_config))


def test_python(reader: Reader) -> None:
    """What stands in front of the section on PyTorch and behind it, by the wheel alone."""
    (install,) = of("sh", section="Python")
    printed = reader.follow(install)
    assert "Successfully installed batchnorm" in printed
    # A part of what tests need; PyTorch is not among it.
    environment = reader.project / ".venv"
    assert not [*environment.glob("lib/python*/site-packages/torch")], "PyTorch was installed"
    blocks = [b for b in README if b.language == "python" and b.section != "PyTorch"]
    reader.write("program.py", "\n".join(block.code for block in blocks))
    python = Path(reader.env["HOME"]) / "batchnorm" / "bin" / "python"
    assert run(python, "program.py", cwd=reader.own, env=reader.env)


@pytest.mark.parametrize("file", sorted({b.file for b in BLOCKS if b.language == "python"}))
def test_python_blocks(file: str, tmp_path: Path) -> None:
    program = "\n".join(b.code for b in BLOCKS if (b.file, b.language) == (file, "python"))
    (tmp_path / "program.py").write_text(program)
    path = os.pathsep.join(
        str((ROOT / part).resolve()) for part in os.environ["PYTHONPATH"].split(os.pathsep)
    )
    run(sys.executable, "program.py", cwd=tmp_path, env={**os.environ, "PYTHONPATH": path})


def test_swift(reader: Reader) -> None:
    manifest, program = of("swift", section="Swift")
    (command,) = of("sh", section="Swift")
    others = [b for b in BLOCKS if b.language == "swift" and b not in (manifest, program)]

    # The URL leads to this copy, under the version that the manifest asks for.
    (url,) = re.findall(r'url: "([^"]+)"', manifest.code)
    (version,) = re.findall(r'from: "([^"]+)"', manifest.code)
    header = (ROOT / "include" / "batchnorm.h").read_text()
    current = re.findall(r"#define BN_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", header)
    assert version == ".".join(current)

    def git(*arguments: str) -> None:
        run("git", "-c", "user.name=reader", "-c", "user.email=reader@localhost", *arguments,
            cwd=reader.project, env=reader.env)  # fmt: skip

    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", version)
    git("tag", version)
    git("config", "--global", f"url.file://{reader.project}.insteadOf", url)

    reader.write("Package.swift", manifest.code)
    for block in (program, *others):
        reader.write("Sources/Program/main.swift", block.code)
        assert reader.follow(command), f"{block.file}:{block.line} prints nothing"


@pytest.mark.parametrize(
    "block",
    [pytest.param(b, id=f"{b.file}:{b.line}") for b in BLOCKS if b.language == "sh"],
)
def test_sh(block: Block, tmp_path: Path) -> None:
    (tmp_path / "block.sh").write_text(block.code)
    run("bash", "-n", "block.sh", cwd=tmp_path)
    folders = "scripts|examples|bindings|include|Sources|Tests|benchmarks"
    named = re.findall(rf"(?:^|[\s=;&|])(?:\./)?((?:{folders})/[\w./-]+)", block.code)
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing, f"{block.file}:{block.line} names {missing}, which this project lacks"
