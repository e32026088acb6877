"""Arrays in the memory orders that the binding knows, for the tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LAYOUTS = ("contiguous", "channels_last")


def in_layout(array: NDArray[Any], layout: str) -> NDArray[Any]:
    """A copy of (N, C, ...) in that memory order."""
    if layout == "channels_last":
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)
    return np.ascontiguousarray(array)


def in_memory_order(array: NDArray[Any]) -> bytes:
    """All bytes of an array that owns dense memory."""
    return array.ravel(order="K").tobytes()
