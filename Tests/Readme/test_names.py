"""What documents and comments name is there, and is said once.

files     that a Markdown file, a comment or a docstring names
symbols   of C in Markdown
links     of Markdown, with their anchors
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_readme import ROOT, project_files

MARKDOWN = project_files("*.md")
SOURCES = project_files("*.c", "*.h", "*.swift", "*.py", "scripts/*", "*.cmake", "*CMakeLists.txt")
NAMES = {Path(name).name for name in project_files()}

# What programs write, what the reader writes, and what is others'.
ELSEWHERE = {
    "program.c", "program.py", "leaves_neon.c", "omp.h", "dlpack.h", "stddef.h", "stdint.h",
    "results.md", "loop.md", "network.md", "report.md", "cmake_install.cmake", "self.c",
    "BatchNormConfig.cmake", "BatchNormConfigVersion.cmake", "BatchNormTargets.cmake",
    "block.sh", "layout.c", "edited_network.py", "parsed_once.py",
}  # fmt: skip


@pytest.mark.parametrize("file", [*MARKDOWN, *SOURCES])
def test_files_that_are_named_exist(file: str) -> None:
    text = re.sub(r"^\s*#\s*include.*", "", (ROOT / file).read_text(), flags=re.MULTILINE)
    named = re.findall(r"(?<![\w.*$}<])([\w/.-]*\w\.(?:c|h|swift|py|md|cmake|sh))(?![\w(*/])", text)
    missing = {name for name in named if Path(name).name not in NAMES | ELSEWHERE}
    assert not missing


@pytest.mark.parametrize("file", MARKDOWN)
def test_c_symbols_that_are_named_exist(file: str) -> None:
    code = "\n".join((ROOT / name).read_text() for name in project_files("include/*", "Sources/*"))
    named = set(re.findall(r"\b(?:bnk?|BNK?)_\w*\w", (ROOT / file).read_text()))
    missing = {name for name in named if name not in code}
    assert not missing


def anchors(file: Path) -> set[str]:
    """GitHub's, of a file's headings."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", MARKDOWN)
def test_links_lead_somewhere(file: str) -> None:
    folder = (ROOT / file).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / file).read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = folder / path if path else ROOT / file
        assert there.exists(), f"{target} leads nowhere"
        assert not anchor or anchor in anchors(there), f"{target}: no such heading"


@pytest.mark.parametrize("file", SOURCES)
def test_comments_say_truly_who_includes_a_file(file: str) -> None:
    """Who calls it, they do not say: nobody would keep that up."""
    head = (ROOT / file).read_text()[:1500]
    assert not re.search(r"\b(?:[Cc]alled by:|Called by|Implemented in|Used by)\s", head)
    for by in re.findall(r"Included by\s+(?:\*\s+)?(\w+\.[ch])", head):
        (includer,) = project_files(f"*/{by}")
        assert f'#include "{Path(file).name}"' in (ROOT / includer).read_text()


def test_changelog_says_each_thing_once() -> None:
    names = re.findall(r"`(b(?:n_|atchnorm\.)\w+)`", (ROOT / "CHANGELOG.md").read_text())
    assert names
    assert len(names) == len(set(names)), sorted(n for n in names if names.count(n) > 1)


def test_python_readme_lists_every_file() -> None:
    folder = ROOT / "bindings" / "python"
    package = folder / "src" / "batchnorm"
    listed = set(re.findall(r"^\| `([\w/]+\.py)` \|", (folder / "README.md").read_text(), re.M))
    there = {str(f.relative_to(package)) for f in package.rglob("*.py") if "__" not in f.name}
    assert listed == there


def test_accuracy_is_said_in_one_place() -> None:
    """Whatever else speaks of units in the last place points to the header's contract."""
    for file in MARKDOWN:
        text = (ROOT / file).read_text()
        if re.search(r"units? in the last place", text) and file != "CHANGELOG.md":
            assert "accuracy contract" in text, f"{file} states a bound of its own"
    assert "Accuracy contract." in (ROOT / "include" / "batchnorm.h").read_text()
