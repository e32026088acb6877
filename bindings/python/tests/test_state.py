"""Saving and restoring: state_dict, bytes, pickle and copy."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

from batchnorm import BatchNorm1d, BatchNorm2d, BatchNormError, Status


class Named(BatchNorm1d):
    """A user's subclass with an attribute and a constructor of its own."""

    def __init__(self, name: str) -> None:
        super().__init__(3, momentum=None)
        self.name = name


@pytest.fixture(params=[np.float32, np.float64])
def used(request: pytest.FixtureRequest, rng: np.random.Generator) -> BatchNorm1d:
    layer = BatchNorm1d(3, eps=1e-3, momentum=0.3, running_variance="biased", dtype=request.param)
    layer.weight = rng.standard_normal(3).astype(request.param)
    layer.bias = rng.standard_normal(3).astype(request.param)
    for _ in range(3):
        layer(rng.normal(4, 2, (8, 3)).astype(request.param))
    return layer.eval()


def test_state_dict_has_pytorchs_keys(used: BatchNorm1d) -> None:
    state = used.state_dict()
    assert list(state) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert state["num_batches_tracked"].shape == ()
    assert state["num_batches_tracked"].dtype == np.int64
    assert state["num_batches_tracked"] == 3
    state["weight"][:] = 0  # a copy
    assert np.all(used.weight != 0)
    assert list(BatchNorm1d(3, affine=False).state_dict()) == [
        "running_mean", "running_var", "num_batches_tracked",
    ]  # fmt: skip
    assert list(BatchNorm1d(3, track_running_stats=False).state_dict()) == ["weight", "bias"]


def test_state_dict_roundtrip(used: BatchNorm1d) -> None:
    other = BatchNorm1d(3, dtype=used.dtype)
    other.load_state_dict(used.state_dict())
    for name, value in used.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name], value)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"bias": None}, ValueError, r'Missing key\(s\) in state_dict: "bias"'),
        (
            {"gamma": np.ones(3, np.float32)},
            ValueError,
            r'Unexpected key\(s\) in state_dict: "gamma"',
        ),
        ({"running_var": np.ones(4, np.float32)}, ValueError, r"shape \(4,\), expected \(3,\)"),
        ({"running_var": np.ones(3, int)}, TypeError, "dtype int64, expected float32"),
        ({"num_batches_tracked": np.array(-1)}, BatchNormError, "-1"),
        ({"num_batches_tracked": np.array(1.5)}, TypeError, "float64, expected int64"),
        ({"num_batches_tracked": np.zeros(2, int)}, ValueError, "expected one element"),
        ({"skipped_batches": np.ones((2, 3), int)}, ValueError, "from 1 to 1, expected 0 to 0"),
        ({"skipped_batches": np.zeros((2, 4), int)}, ValueError, r"\(2, 4\), expected \(2, 3\)"),
        ({"skipped_batches": np.zeros((2, 3))}, TypeError, "float64, expected int64"),
    ],
)
def test_a_wrong_state_dict_changes_nothing(change: Any, error: type, message: str) -> None:
    state: dict[str, Any] = BatchNorm1d(3).state_dict()
    state["weight"][:] = 5
    state.update(change)
    state = {name: value for name, value in state.items() if value is not None}
    layer = BatchNorm1d(3)
    before = layer.to_bytes()
    with pytest.raises(error, match=message):
        layer.load_state_dict(state)
    assert layer.to_bytes() == before


def test_skipped_batches_are_part_of_a_cumulative_state() -> None:
    layer = BatchNorm1d(2, momentum=None)
    layer(np.array([[np.inf, 1], [0, 2]], np.float32))
    layer(np.array([[5, 1], [7, 2]], np.float32))
    state = layer.state_dict()
    assert state["skipped_batches"].tolist() == [[1, 0], [1, 0]]
    loaded = BatchNorm1d(2, momentum=None)
    loaded.load_state_dict(state)
    pickled = pickle.loads(pickle.dumps(layer))
    for other in (loaded, pickled, copy.copy(layer)):
        assert other.skipped_batches.tolist() == [[1, 0], [1, 0]]
        other(np.array([[5, 1], [7, 2]], np.float32))
        np.testing.assert_allclose(other.running_mean, [6, 1.5], rtol=1e-6)
        np.testing.assert_allclose(other.running_var, [2, 0.5], rtol=1e-6)
    # A checkpoint of PyTorch's has none: every batch counts as taken in.
    del state["skipped_batches"]
    loaded.load_state_dict(state)
    assert not loaded.skipped_batches.any()
    # Exponential averages do not need them, and PyTorch does not know the key.
    exponential = BatchNorm1d(2)
    exponential(np.array([[np.inf, 1], [0, 2]], np.float32))
    assert exponential.skipped_batches.tolist() == [[1, 0], [1, 0]]
    assert "skipped_batches" not in exponential.state_dict()


def test_bytes_roundtrip(used: BatchNorm1d, rng: np.random.Generator) -> None:
    blob = used.to_bytes()
    x = rng.standard_normal((5, 3)).astype(used.dtype)
    other = BatchNorm1d.from_bytes(blob)
    assert repr(other) == repr(used)
    assert not other.training
    assert other.to_bytes() == blob
    np.testing.assert_array_equal(other(x), used(x))

    loaded = BatchNorm1d(3, dtype=used.dtype)
    loaded.load_bytes(memoryview(blob))
    assert not loaded.training
    for name, value in used.state_dict().items():
        np.testing.assert_array_equal(loaded.state_dict()[name], value)
    loaded.load_bytes(bytearray(blob))


def test_bytes_at_any_alignment(used: BatchNorm1d) -> None:
    blob = used.to_bytes()
    for offset in range(1, 9):
        padded = bytes(offset) + blob
        assert BatchNorm1d.from_bytes(memoryview(padded)[offset:]).to_bytes() == blob


def test_every_damaged_byte_is_noticed() -> None:
    blob = BatchNorm1d(3).to_bytes()
    for position in range(len(blob)):
        damaged = bytearray(blob)
        damaged[position] ^= 0x10
        with pytest.raises(BatchNormError) as raised:
            BatchNorm1d.from_bytes(damaged)
        assert raised.value.status in range(600, 700)


def test_every_length_is_noticed() -> None:
    blob = BatchNorm1d(3).to_bytes()
    for length in range(len(blob)):
        with pytest.raises(BatchNormError) as raised:
            BatchNorm1d.from_bytes(blob[:length])
        assert raised.value.status in (Status.STATE_TRUNCATED, Status.STATE_FOREIGN)


@pytest.mark.parametrize(
    "how", [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))]
)
def test_copies_are_independent(how: Any, used: BatchNorm1d) -> None:
    other = how(used)
    assert type(other) is BatchNorm1d
    assert repr(other) == repr(used)
    assert other.to_bytes() == used.to_bytes()
    other.weight[:] = 0
    assert np.all(used.weight != 0)


def test_pickling_keeps_the_channel_axis_and_a_subclass() -> None:
    layer = pickle.loads(pickle.dumps(BatchNorm2d(3, channel_axis=-1)))
    assert layer(np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype("f4")).shape[-1] == 3
    named = copy.deepcopy(Named("first"))
    assert named.name == "first"
    assert named.momentum is None


def test_what_does_not_fit_may_be_left_alone() -> None:
    layer = BatchNorm1d(3)
    state = {"weight": np.full(3, 2, np.float32), "gamma": np.ones(3)}
    found = layer.load_state_dict(state, strict=False)
    assert found.missing_keys == ["bias", "running_mean", "running_var"]
    assert found.unexpected_keys == ["gamma"]
    np.testing.assert_array_equal(layer.weight, 2)
    np.testing.assert_array_equal(layer.running_var, 1)
    with pytest.raises(ValueError, match=r"shape \(4,\), expected \(3,\)"):
        layer.load_state_dict({"weight": np.ones(4, np.float32)}, strict=False)


def test_states_before_pytorchs_second_version_have_no_counter() -> None:
    torch = pytest.importorskip("torch")
    module, layer = torch.nn.BatchNorm1d(3), BatchNorm1d(3)
    layer.num_batches_tracked = 7
    state = module.state_dict()
    del state["num_batches_tracked"]
    with pytest.raises(ValueError, match="num_batches_tracked"):  # it says that it is of version 2
        layer.load_state_dict(state)
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        torch.nn.BatchNorm1d(3).load_state_dict(state)
    state._metadata[""]["version"] = 1
    for old in (state, dict(state)):
        assert layer.load_state_dict(old) == ([], [])
        assert layer.num_batches_tracked == 7
        module.load_state_dict(old)


def test_skipped_batches_without_a_counter_go_with_the_layers_own() -> None:
    layer = BatchNorm1d(3, momentum=None)
    layer.num_batches_tracked = 4
    state = {**layer.state_dict(), "skipped_batches": np.full((2, 3), 2)}
    del state["num_batches_tracked"]
    for strict in (True, False):
        layer.skipped_batches = np.zeros((2, 3), int)
        layer.load_state_dict(state, strict=strict)
        np.testing.assert_array_equal(layer.skipped_batches, 2)
    before = layer.to_bytes()
    state["skipped_batches"] = np.full((2, 3), 5)
    state["weight"] = np.full(3, 9, np.float32)
    with pytest.raises(ValueError, match="skipped_batches"):
        layer.load_state_dict(state, strict=False)
    assert layer.to_bytes() == before
