"""What the library is told of an array: its address, and the order of its memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from batchnorm import _arrays
from batchnorm import functional as F


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array


ARRAYS: dict[str, NDArray[Any]] = {
    "owned": np.arange(12.0).reshape(3, 4),
    "a view inside": np.arange(12.0)[5:],
    "transposed": np.arange(12.0).reshape(3, 4).T,
    "reversed": np.arange(12.0)[::-1],
    "read-only": read_only(np.arange(3.0)),
    "of bytes": np.frombuffer(b"01234567", np.uint8),
    "empty": np.empty((0, 3)),
    "without dimensions": np.array(2.0),
    "of a subclass": np.ma.masked_array(np.arange(3.0)),
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS.keys())
def test_addresses_are_those_that_numpy_tells(array: NDArray[Any]) -> None:
    assert _arrays.address(array) == array.ctypes.data


def test_the_address_follows_an_array_that_is_resized() -> None:
    array = np.zeros(3)
    array.resize(1 << 20, refcheck=False)
    assert _arrays.address(array) == array.ctypes.data


@given(st.lists(st.integers(0, 3), min_size=2, max_size=5), st.data())
def test_density_is_as_numpy_sees_it(shape: list[int], data: st.DataObject) -> None:
    """Transposed, sliced, flipped in any way: an array is taken exactly if NumPy calls it dense."""
    array = np.zeros(shape, np.float32).transpose(data.draw(st.permutations(range(len(shape)))))
    array = array[tuple(slice(None, None, data.draw(st.sampled_from([1, 2, -1]))) for _ in shape)]
    last = np.moveaxis(array, 1, -1)
    if array.flags.c_contiguous or last.flags.c_contiguous:
        form = _arrays.form_of(array, "input", 1)
        assert (form.order is None) == array.flags.c_contiguous
        assert form.elements == array.size
    else:
        with pytest.raises(ValueError, match="neither in NCHW nor in NHWC order"):
            _arrays.form_of(array, "input", 1)


def test_arrays_may_be_read_only_where_they_are_read(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 3, 5)).astype(np.float32)
    weight, mean, variance = rng.uniform(1, 2, (3, 3)).astype(np.float32)
    expected = F.forward_inference(x, mean, variance, weight)
    gradients = F.backward(
        x, x, weight, statistics="running", running_mean=mean, running_var=variance
    )
    for array in (x, weight, mean, variance):
        read_only(array)
    assert F.forward_inference(x, mean, variance, weight).tobytes() == expected.tobytes()
    again = F.backward(x, x, weight, statistics="running", running_mean=mean, running_var=variance)
    assert again.grad_input.tobytes() == gradients.grad_input.tobytes()


def test_memory_mapped_files_are_arrays(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=(2, 3, 4))
    mapped[...] = np.arange(24).reshape(2, 3, 4)
    plain = np.array(mapped)
    assert F.forward_training(mapped).output.tobytes() == F.forward_training(plain).output.tobytes()


def test_dtypes_that_are_equal_without_being_the_same(rng: np.random.Generator) -> None:
    annotated = np.dtype(np.float32, metadata={"unit": "volt"})
    x = rng.standard_normal((4, 3)).astype(np.float32)
    y = F.forward_training(x.astype(annotated), weight=np.ones(3, np.float32)).output
    assert y.tobytes() == F.forward_training(x, weight=np.ones(3, annotated)).output.tobytes()
