"""The scripts as callers meet them: help, refusals, and what `scripts/setup` installs for whom.

They run in a folder that has nothing but them, with an empty environment. What setup would install
is told by stand-ins for the tools that it calls.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ["setup", "build", "demo", "wheel", "test", "bench", "format"]

SWIFT = 'echo "Swift version 6.3.1"'
PACKAGES = 'echo "asked $3" >>"$LOG"; echo installed'
# `python3 -m venv … FOLDER` makes a Python there that notes what it is asked to install.
PYTHON = """
case "$*" in
--version) echo "Python 3.11.2" ;;
-m\\ venv*)
    for folder in "$@"; do :; done
    echo "venv" >>"$LOG"
    mkdir -p "$folder/bin"
    cp "$0" "$folder/bin/python"
    ;;
-m\\ pip*) echo "$*" >>"$LOG" ;;
esac
"""


class Project:
    """A copy of the scripts alone, and a PATH on which stand-ins come first."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "project"
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        self.log = folder / "log"
        self.stubs = folder / "stubs"
        self.stubs.mkdir()

    def stub(self, name: str, code: str) -> None:
        path = self.stubs / name
        path.write_text(f"#!/bin/sh\n{code}\n")
        path.chmod(0o755)

    def files(self) -> set[Path]:
        return set(self.root.rglob("*"))

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.root / "scripts" / script, *arguments],
            cwd=self.root.parent,
            env={"PATH": f"{self.stubs}:/usr/bin:/bin", "LOG": str(self.log)},
            capture_output=True,
            text=True,
        )

    def installed(self, *jobs: str) -> str:
        """What setup asked for, in its order."""
        self.log.write_text("")
        done = self.run("setup", *jobs)
        assert done.returncode == 0, done.stdout + done.stderr
        return self.log.read_text()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def furnished(project: Project) -> Project:
    """Where Swift and every Debian package are there, and Python packages are not."""
    project.stub("swift", SWIFT)
    project.stub("dpkg-query", PACKAGES)
    project.stub("python3", PYTHON)
    for tool in ("cmake", "ninja", "gcc", "g++", "make", "git", "pkg-config", "valgrind", "nm"):
        project.stub(tool, "exit 1")
    project.stub("readelf", "exit 1")
    return project


def test_these_are_all_scripts() -> None:
    programs = {path.name for path in (ROOT / "scripts").iterdir() if os.access(path, os.X_OK)}
    assert programs == set(SCRIPTS)


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_helps_and_does_nothing_else(project: Project, script: str, flag: str) -> None:
    before = project.files()
    done = project.run(script, flag)
    assert done.returncode == 0, done.stderr
    assert f"scripts/{script} " in done.stdout
    assert not done.stderr
    assert "#" not in done.stdout
    assert project.files() == before
    assert project.run(script, "--output", flag).stdout == done.stdout, "not wherever it stands"


@pytest.mark.parametrize("argument", ["--nonsense", "nonsense"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_unknown_arguments_are_refused_by_name(
    project: Project, script: str, argument: str
) -> None:
    before = project.files()
    done = project.run(script, argument)
    assert done.returncode == 1
    assert f"'{argument}', expected" in done.stderr
    assert project.files() == before


def test_help_of_test_names_every_stage(project: Project) -> None:
    stages = project.run("test", "nonsense").stderr.partition("expected: ")[2].split()
    assert len(stages) > 10
    assert set(stages) <= set(project.run("test", "--help").stdout.split())


def test_help_of_bench_names_every_option_of_its_programs(project: Project) -> None:
    told = project.run("bench", "--help").stdout
    for program in ("run.py", "network.py", "loop.py"):
        text = (ROOT / "benchmarks" / program).read_text()
        options = {part.split('"')[1] for part in text.split("add_argument(")[1:]}
        missing = {o for o in options - {"--library", "--programs"} if o not in told}
        assert not missing, f"{program} takes {missing}"


@pytest.mark.parametrize("job", ["demo", "wheel", "bench"])
def test_a_part_needs_neither_pytorch_nor_tests(furnished: Project, job: str) -> None:
    installed = furnished.installed(job)
    assert "-m pip install" in installed
    for unwanted in ("torch", "requirements-test.txt", "libcmocka-dev"):
        assert unwanted not in installed


def test_building_needs_no_python(furnished: Project) -> None:
    (furnished.stubs / "python3").unlink()
    assert "libomp-dev" in furnished.installed("build")
    assert not (furnished.root / ".venv").exists()


def test_what_is_there_is_left_as_it_is(furnished: Project) -> None:
    assert "venv" in furnished.installed("demo")
    assert "pip" not in furnished.installed("demo")
    added = furnished.installed("demo", "wheel")
    assert "requirements-wheel.txt" in added
    assert "requirements-plots.txt" not in added
    assert "venv\n" not in added, "the environment was made anew"


def test_without_jobs_all_of_it_is_installed(furnished: Project) -> None:
    installed = furnished.installed()
    files = {path.name for path in (ROOT / "scripts").glob("requirements-*.txt")}
    assert {name for name in files if name in installed} == files - {"requirements-torch.txt"}
    assert "torch" in installed
    assert "libcmocka-dev" in installed
    assert "pip" not in furnished.installed("test", "bench", "torch", "demo", "wheel", "build")


def test_other_requirements_and_another_python_are_noticed(furnished: Project) -> None:
    furnished.installed("wheel")
    with (furnished.root / "scripts" / "requirements-wheel.txt").open("a") as file:
        file.write("another\n")
    assert "requirements-wheel.txt" in furnished.installed("wheel")
    furnished.stub("python3", PYTHON.replace("3.11.2", "3.12.0"))
    assert "venv\n" in furnished.installed("wheel")


def test_an_old_swift_is_told(project: Project) -> None:
    project.stub("swift", SWIFT.replace("6.3.1", "6.1.3"))
    done = project.run("setup", "build")
    assert done.returncode == 1
    assert "is Swift 6.1.3; expected 6.2 or newer" in done.stderr
