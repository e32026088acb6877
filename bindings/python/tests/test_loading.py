"""How the package finds its library, and what it says when it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import batchnorm


def import_with(library: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "BATCHNORM_LIBRARY": library,
        "PYTHONPATH": str(Path(batchnorm.__file__).parents[1]),
    }
    return subprocess.run(
        [sys.executable, "-c", "import batchnorm"], env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("library", "message"),
    [
        ("/nowhere/libbatchnorm.so", "named by the environment variable BATCHNORM_LIBRARY"),
        ("libm.so.6", "libm.so.6 has no function bn_status_name"),
    ],
)
def test_a_wrong_library_is_an_import_error(library: str, message: str) -> None:
    result = import_with(library)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("batchnorm.errors.BatchNormImportError: ")
    assert message in last


def test_the_name_is_the_soname_of_this_version() -> None:
    from batchnorm import _lowlevel

    until = 2 if batchnorm.__version__.startswith("0.") else 1
    version = batchnorm.__version__.split(".")[:until]
    assert ".".join(["libbatchnorm.so", *version]) == _lowlevel.LIBRARY_NAME


def test_the_environment_comes_first() -> None:
    from batchnorm import _lowlevel

    assert import_with(_lowlevel._library._name).returncode == 0
