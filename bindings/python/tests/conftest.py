from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import settings

import batchnorm

# A deadline would assert a time; the machine that runs the tests may be busy.
settings.register_profile("batchnorm", deadline=None)
settings.load_profile("batchnorm")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260101)


@pytest.fixture
def machine() -> Iterator[None]:
    """Puts the settings of the process back after a test that changes them."""
    yield
    batchnorm.set_num_threads(0)
    batchnorm.set_max_isa("avx512")
    batchnorm.set_threading("auto")
