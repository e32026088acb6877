"""The layers against an independent model of PyTorch's, and what only the layers have."""

from __future__ import annotations

import copy
import gc
import inspect
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import batchnorm
from batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from batchnorm import functional as F
from layouts import LAYOUTS, in_layout
from torch_model import TorchBatchNorm

CLASSES: dict[int, Any] = {2: BatchNorm1d, 3: BatchNorm1d, 4: BatchNorm2d, 5: BatchNorm3d}
SHAPES = {2: (9, 3), 3: (4, 3, 5), 4: (4, 3, 5, 2), 5: (2, 3, 2, 3, 4)}

steps = st.lists(
    st.sampled_from(["forward", "forward", "backward", "train", "eval", "sgd", "reset"]),
    max_size=12,
)


@given(
    steps,
    st.sampled_from(sorted(SHAPES)),
    st.sampled_from(LAYOUTS),
    st.sampled_from([0.1, 0.7, None]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_any_sequence_of_steps_is_pytorchs(
    steps: list[str],
    rank: int,
    layout: str,
    momentum: float | None,
    affine: bool,
    track: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    arguments = (3, 1e-3, momentum, affine, track)
    ours = CLASSES[rank](*arguments, dtype=np.float64)
    model = TorchBatchNorm(*arguments)
    has_forward = False
    for step in ["forward", *steps]:
        if step == "forward":
            x = in_layout(rng.normal(2, 3, SHAPES[rank]), layout)
            close(ours(x), model.forward(x))
            has_forward = True
        elif step == "backward" and has_forward:
            grad = in_layout(rng.standard_normal(SHAPES[rank]), layout)
            expected = model.backward(grad)
            close(ours.backward(grad), expected[0])
            if affine:
                close(ours.grad_weight, expected[1])
                close(ours.grad_bias, expected[2])
            else:
                assert ours.grad_weight is None
                assert ours.grad_bias is None
        elif step in ("train", "eval"):
            assert getattr(ours, step)() is ours
            model.training = step == "train"
        elif step == "sgd" and affine:
            change = rng.standard_normal((2, 3))
            ours.weight -= change[0]
            ours.bias -= change[1]
            model.weight = model.weight - change[0]
            model.bias = model.bias - change[1]
        elif step == "reset" and track:
            ours.reset_running_stats()
            model.reset_running_stats(3)
        assert ours.training == model.training
        if track:
            close(ours.running_mean, model.running_mean)
            close(ours.running_var, model.running_var)
            assert ours.num_batches_tracked == model.num_batches_tracked
        else:
            assert ours.running_mean is None
            assert ours.running_var is None
            assert ours.num_batches_tracked is None


def close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layer_gives_the_bits_of_the_functions(layout: str, rng: np.random.Generator) -> None:
    x = in_layout(rng.standard_normal((4, 3, 6, 6)).astype(np.float32), layout)
    grad = in_layout(rng.standard_normal((4, 3, 6, 6)).astype(np.float32), layout)
    weight, bias = rng.standard_normal((2, 3)).astype(np.float32)
    layer = BatchNorm2d(3)
    layer.weight, layer.bias = weight, bias
    mean, var = np.zeros(3, np.float32), np.ones(3, np.float32)

    result = F.forward_training(x, mean, var, weight, bias)
    assert layer(x).tobytes() == result.output.tobytes()
    np.testing.assert_array_equal(layer.saved_mean, result.saved_mean)
    np.testing.assert_array_equal(layer.saved_invstd, result.saved_invstd)
    np.testing.assert_array_equal(layer.running_mean, mean)
    np.testing.assert_array_equal(layer.running_var, var)
    used: list[str] = [layer.statistics_used]
    assert layer.nonfinite_channels == 0
    expected = F.backward(
        grad, x, weight, saved_mean=result.saved_mean, saved_invstd=result.saved_invstd
    )
    np.testing.assert_array_equal(layer.backward(grad), expected.grad_input)
    np.testing.assert_array_equal(layer.grad_weight, expected.grad_weight)
    np.testing.assert_array_equal(layer.grad_bias, expected.grad_bias)

    layer.eval()
    np.testing.assert_array_equal(layer(x), F.forward_inference(x, mean, var, weight, bias))
    used.append(layer.statistics_used)
    assert used == ["batch", "running"]


def test_channel_axis_at_the_end(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 6, 5, 3)).astype(np.float32)
    layer = BatchNorm2d(3, channel_axis=-1)
    np.testing.assert_allclose(layer(x).mean((0, 1, 2)), 0, atol=1e-6)
    grad = layer.backward(x)
    assert grad.shape == x.shape
    assert "channel_axis=-1" in repr(layer)


def test_out_and_in_place(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 3, 6, 6)).astype(np.float32)
    grad = rng.standard_normal((4, 3, 6, 6)).astype(np.float32)
    layer = BatchNorm2d(3)
    expected = layer(x)
    expected_grad = layer.backward(grad)

    out = np.empty_like(x)
    assert layer(x, out=out) is out
    np.testing.assert_array_equal(out, expected)
    place = grad.copy()
    assert layer.backward(place, out=place) is place
    np.testing.assert_array_equal(place, expected_grad)

    place = x.copy()
    assert layer(place, out=place) is place
    np.testing.assert_array_equal(place, expected)
    with pytest.raises(ValueError, match="in place"):
        layer.backward(grad)
    np.testing.assert_array_equal(layer.backward(grad, input=x), expected_grad)


def test_skipped_gradients(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 3)).astype(np.float32)
    layer = BatchNorm1d(3)
    layer(x)
    assert layer.backward(x, output_mask=(False, True, False)) is None
    assert layer.grad_weight is not None
    assert layer.grad_bias is None
    with pytest.raises(ValueError, match="out was given"):
        layer.backward(x, out=np.empty_like(x), output_mask=(False, True, True))


def test_backward_stays_with_its_forward_when_the_mode_changes(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 3))
    layer = BatchNorm1d(3, dtype=np.float64)
    layer(x)
    expected = layer.backward(x)
    layer.eval()
    layer.running_mean = np.full(3, 100.0)
    np.testing.assert_array_equal(layer.backward(x), expected)


@pytest.mark.parametrize(("has_weight", "has_bias"), [(True, False), (False, True)])
def test_weight_without_bias_and_the_reverse(has_weight: bool, has_bias: bool) -> None:
    layer = BatchNorm1d(3, has_weight=has_weight, has_bias=has_bias)
    assert (layer.weight is not None, layer.bias is not None) == (has_weight, has_bias)
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    layer(x)
    layer.backward(x)
    assert (layer.grad_weight is not None, layer.grad_bias is not None) == (has_weight, has_bias)
    absent = "has_bias" if has_weight else "has_weight"
    assert f"{absent}=False" in repr(layer)


def test_parameters_are_views_that_keep_the_layer_alive() -> None:
    layer = BatchNorm1d(3)
    weight = layer.weight
    assert weight is layer.weight
    weight[:] = [1, 2, 3]
    assert layer.state_dict()["weight"].tolist() == [1, 2, 3]
    layer.weight = np.array([4, 5, 6], np.float32)
    assert weight.tolist() == [4, 5, 6]
    layer.weight = layer.weight[::-1]  # its own memory, the other way round
    assert weight.tolist() == [6, 5, 4]

    gone = weakref.ref(layer)
    del layer
    gc.collect()
    assert gone() is None
    weight += 1  # the memory is still the layer's, and still there
    assert weight.tolist() == [7, 6, 5]


def test_running_statistics_are_copies() -> None:
    layer = BatchNorm1d(2)
    before = layer.running_mean
    assert not before.flags.writeable
    layer.running_mean = np.array([3, 4], np.float32)
    assert before.tolist() == [0, 0]
    assert layer.running_mean.tolist() == [3, 4]
    layer.num_batches_tracked = 7
    assert layer.num_batches_tracked == 7


@pytest.mark.parametrize(
    ("policy", "used", "expected"), [("use_running", "running", 1.5), ("allow", "batch", 0.0)]
)
def test_one_value_per_channel(policy: Any, used: str, expected: float) -> None:
    layer = BatchNorm1d(2, eps=0.0, one_value=policy, dtype=np.float64)
    layer.running_var = np.array([4.0, 4.0])
    y = layer(np.array([[3.0, 3.0]]))
    assert y.tolist() == [[expected, expected]]
    assert layer.statistics_used == used
    assert layer.running_var.tolist() == [4, 4]


def test_the_input_is_kept_only_until_the_next_forward() -> None:
    layer = BatchNorm1d(3)
    x = np.ones((4, 3), np.float32)
    kept = weakref.ref(x)
    layer(x)
    del x
    assert kept() is not None
    layer(np.ones((4, 3), np.float32))
    assert kept() is None


def test_repr_is_pytorchs_and_can_be_evaluated() -> None:
    assert (
        repr(BatchNorm2d(3))
        == "BatchNorm2d(3, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)"
    )
    layer = BatchNorm1d(
        3,
        momentum=None,
        affine=False,
        dtype=np.float64,
        running_variance="biased",
        one_value="allow",
        nonfinite="error",
    )
    scope = {"BatchNorm1d": BatchNorm1d, "float64": np.float64}
    assert repr(eval(repr(layer), scope)) == repr(layer)


def test_version_is_that_of_the_header() -> None:
    import re
    from pathlib import Path

    header = Path(__file__).resolve().parents[3] / "include" / "batchnorm.h"
    numbers = re.findall(r"#define BN_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", header.read_text())
    assert batchnorm.version() == batchnorm.__version__ == ".".join(numbers)


def test_pytorchs_arguments_are_taken() -> None:
    torch = pytest.importorskip("torch")
    for kind in (BatchNorm1d, BatchNorm2d, BatchNorm3d):
        theirs = inspect.signature(getattr(torch.nn, kind.__name__).__init__).parameters
        ours = inspect.signature(kind.__init__).parameters
        for name, parameter in theirs.items():
            assert ours[name].kind == parameter.kind, name
        positional = [n for n, p in theirs.items() if p.kind == p.POSITIONAL_OR_KEYWORD]
        assert list(ours)[: len(positional)] == positional
    layer = BatchNorm2d(3, 1e-5, 0.1, True, True, "cpu", np.float64, bias=False)
    assert layer.bias is None
    assert layer.weight is not None
    assert layer.dtype == np.float64
    assert BatchNorm2d(3, device=torch.device("cpu")).dtype == np.float32
    with pytest.raises(ValueError, match="device is 'cuda:0', expected 'cpu'"):
        BatchNorm2d(3, device="cuda:0")
    with pytest.raises(ValueError, match="has_bias is True and bias is False"):
        BatchNorm2d(3, bias=False, has_bias=True)


def test_eps_and_momentum_can_be_set(rng: np.random.Generator) -> None:
    x = rng.standard_normal((6, 3, 4, 4)).astype(np.float32)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    layer, other = BatchNorm2d(3), BatchNorm2d(3, eps=0.5, momentum=0.75)
    layer.eps, layer.momentum = 0.5, 0.75
    assert (layer.eps, layer.momentum) == (0.5, 0.75)
    np.testing.assert_array_equal(layer(x), other(x))
    np.testing.assert_array_equal(layer.running_var, other.running_var)
    layer.eps = 3.0  # backward goes by what the forward used
    np.testing.assert_array_equal(layer.backward(dy), other.backward(dy))
    layer.momentum = None
    assert layer.momentum is None
    assert "momentum=None" in repr(layer)
    assert BatchNorm2d.from_bytes(layer.to_bytes()).momentum is None
    for name, value in (("eps", -1.0), ("eps", float("nan")), ("momentum", float("inf"))):
        with pytest.raises(ValueError, match=name):
            setattr(layer, name, value)
    assert (layer.eps, layer.momentum) == (3.0, None)


def test_read_only_statistics_say_what_to_do() -> None:
    layer = BatchNorm1d(3, momentum=None)
    layer(np.eye(4, 3, dtype=np.float32))
    for name in ("running_mean", "running_var", "skipped_batches"):
        statistic = getattr(layer, name)
        advice = f"assign all of it: layer.{name} = values"
        with pytest.raises(ValueError, match=advice):
            statistic[0] = 1
        with pytest.raises(ValueError, match=advice):
            statistic += 1
        with pytest.raises(ValueError, match=advice):
            statistic[:1] *= 2
        assert type(statistic + 1) is np.ndarray
        changed = copy.deepcopy(statistic)  # the caller's own
        changed[0] = 1
        setattr(layer, name, changed)
    with pytest.raises(ValueError, match="what the last forward saved"):
        layer.saved_mean[0] = 1
