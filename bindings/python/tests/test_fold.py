"""Folding: the folded layer does what convolution and normalization did, in every layout."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import batchnorm
from batchnorm import BatchNorm1d, BatchNorm2d, BatchNormError, Status
from batchnorm import functional as F

Array = NDArray[Any]
DTYPES = (np.float32, np.float64)
# A unit of the last place; half of it is what one rounding may cost.
UNITS = {np.float32: 2.0**-23, np.float64: 2.0**-52}


def convolution(x: Array, weight: Array, bias: Array | None, groups: int) -> Array:
    """A convolution with weight (O, I / groups, K), in float64, without padding."""
    wide = np.asarray(weight, np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), wide.shape[2], axis=2)
    parts = [
        np.einsum("nilk,oik->nol", windows[:, own], each)
        for each, own in zip(
            np.split(wide, groups), np.split(np.arange(x.shape[1]), groups), strict=True
        )
    ]
    y = np.concatenate(parts, axis=1)
    return y if bias is None else y + np.asarray(bias, np.float64)[:, None]


def transposed(x: Array, weight: Array, bias: Array | None, groups: int) -> Array:
    """A transposed convolution with weight (I, O / groups, K), in float64: what scatters."""
    wide = np.asarray(weight, np.float64)
    n, inputs, length = x.shape
    per_group, taps = wide.shape[1:]
    y = np.zeros((n, groups * per_group, length + taps - 1))
    for i in range(inputs):
        group = i // (inputs // groups)
        for o in range(per_group):
            for k in range(taps):
                y[:, group * per_group + o, k : k + length] += x[:, i] * wide[i, o, k]
    return y if bias is None else y + np.asarray(bias, np.float64)[:, None]


Layer = Callable[[Array, Array, Any, int], Array]
# Layout, groups, the weight's shape for 4 inputs, 6 outputs and 3 taps, how to get to the layer's.
CASES: dict[str, tuple[Any, int, tuple[int, ...], Callable[[Array], Array], Layer]] = {
    "oihw": ("OIHW", 1, (6, 4, 3), lambda w: w, convolution),
    "grouped": ("OIHW", 2, (6, 2, 3), lambda w: w, convolution),
    "depthwise": ("OIHW", 4, (8, 1, 3), lambda w: w, convolution),
    "ohwi": ("OHWI", 1, (6, 3, 4), lambda w: w.transpose(0, 2, 1), convolution),
    "hwio": ("HWIO", 1, (3, 4, 6), lambda w: w.transpose(2, 1, 0), convolution),
    "hwio grouped": ("HWIO", 2, (3, 2, 6), lambda w: w.transpose(2, 1, 0), convolution),
    "keras depthwise": (
        "HWIM", 4, (3, 4, 2), lambda w: w.reshape(3, 1, 8).transpose(2, 1, 0), convolution,
    ),
    "transposed": ("IOHW", 1, (4, 6, 3), lambda w: w, transposed),
    "transposed grouped": ("IOHW", 2, (4, 3, 3), lambda w: w, transposed),
    "transposed depthwise": ("IOHW", 4, (4, 2, 3), lambda w: w, transposed),
    "keras transposed": ("HWOI", 1, (3, 6, 4), lambda w: w.transpose(2, 1, 0), transposed),
    "linear": ("OIHW", 1, (6, 4), lambda w: w[:, :, None], convolution),
    "dense": ("HWIO", 1, (4, 6), lambda w: w.T[:, :, None], convolution),
}  # fmt: skip


def normalized(y: Array, *args: Any, eps: float = 1e-5) -> Array:
    mean, var, weight, bias = (None if a is None else a.astype(np.float64) for a in args)
    return F.forward_inference(np.ascontiguousarray(y), mean, var, weight, bias, eps=eps)


def parameters(rng: np.random.Generator, channels: int, dtype: Any) -> tuple[Array, ...]:
    """Running mean, running variance, weight and bias."""
    return tuple(
        np.asarray(values, dtype)
        for values in (
            rng.normal(0, 3, channels),
            rng.uniform(0.1, 4, channels),
            rng.normal(0, 1, channels),
            rng.normal(0, 1, channels),
        )
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_folded_layer_does_both(
    name: str, has_bias: bool, dtype: Any, rng: np.random.Generator
) -> None:
    layout, groups, shape, as_layer, layer = CASES[name]
    weight = rng.normal(size=shape).astype(dtype)
    x = rng.normal(size=(2, 4, 9))
    channels = layer(x, as_layer(weight), None, groups).shape[1]
    bias = rng.normal(size=(channels,)).astype(dtype) if has_bias else None
    statistics = parameters(rng, channels, dtype)
    expected = normalized(layer(x, as_layer(weight), bias, groups), *statistics)
    before = weight.tobytes()

    folded = batchnorm.fold_into(weight, bias, *statistics, layout=layout, groups=groups)

    assert weight.tobytes() == before
    assert (folded.weight.shape, folded.weight.dtype) == (shape, dtype)
    assert (folded.bias.shape, folded.bias.dtype) == ((channels,), dtype)
    actual = layer(x, as_layer(folded.weight), folded.bias, groups)
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=50 * UNITS[dtype] * scale)
    # In another order of channels it would be wrong: the check can fail.
    assert np.abs(actual - np.roll(expected, 1, axis=1)).max() > 0.1 * scale

    bn = BatchNorm1d(channels, dtype=dtype)
    bn.running_mean, bn.running_var, bn.weight, bn.bias = statistics
    own = bn.fold_into(weight, bias, layout=layout, groups=groups)
    assert own.weight.tobytes() == folded.weight.tobytes()
    assert own.bias.tobytes() == folded.bias.tobytes()
    assert own[2:] == folded[2:]

    # In place, and from other strides.
    same = weight.copy()
    result = batchnorm.fold_into(
        same, bias, *statistics, layout=layout, groups=groups, folded_weight=same,
        folded_bias=bias,
    )  # fmt: skip
    assert result.weight is same
    assert same.tobytes() == folded.weight.tobytes()
    assert result.bias.tobytes() == folded.bias.tobytes()
    assert bias is None or result.bias is bias
    strided = np.asfortranarray(weight)
    again = bn.fold_into(strided, None, layout=layout, groups=groups)
    assert again.weight.tobytes() == folded.weight.tobytes()


@given(st.data())
def test_every_element_gets_its_channel(data: st.DataObject) -> None:
    layout: Any = data.draw(st.sampled_from(["OIHW", "OHWI", "IOHW", "HWIO", "HWOI", "HWIM"]))
    spatial = data.draw(st.lists(st.integers(0, 3), max_size=3))
    groups = data.draw(st.integers(1, 4))
    inputs, outputs = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 4))
    dtype = data.draw(st.sampled_from(DTYPES))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    # Sizes, and for each element the channel that it belongs to.
    if layout in ("OIHW", "OHWI"):
        sizes = [
            groups * outputs,
            *([inputs, *spatial] if layout == "OIHW" else [*spatial, inputs]),
        ]
        axis, channels = 0, groups * outputs
    elif layout == "IOHW":
        sizes, axis, channels = [groups * inputs, outputs, *spatial], 1, outputs
    elif layout == "HWIO":
        sizes, axis, channels = [*spatial, inputs, groups * outputs], -1, groups * outputs
    elif layout == "HWOI":
        sizes, axis, channels = [*spatial, groups * outputs, inputs], -2, groups * outputs
    else:
        sizes, axis, channels = [*spatial, groups, outputs], -1, outputs
    index = np.indices(sizes)
    channel = index[axis]
    if layout == "IOHW":
        channel = channel + (index[0] // max(inputs, 1)) * outputs
    if layout == "HWIM":
        channel = channel + index[-2] * outputs
    channels = groups * outputs

    weight = rng.normal(size=sizes).astype(dtype)
    bias = rng.normal(size=channels).astype(dtype)
    mean, var, gamma, beta = parameters(rng, channels, dtype)
    folded = batchnorm.fold_into(weight, bias, mean, var, gamma, beta, layout=layout, groups=groups)
    wide = [each.astype(np.float64) for each in (bias, mean, var, gamma, beta)]
    scale = wide[3] / np.sqrt(wide[2] + 1e-5)
    unit = UNITS[dtype]
    np.testing.assert_allclose(folded.weight, weight * scale[channel], rtol=4 * unit)
    exact = (wide[0] - wide[1]) * scale + wide[4]
    bound = 4 * unit * (abs((wide[0] - wide[1]) * scale) + abs(wide[4]))
    assert (abs(folded.bias - exact) <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_affine_pair_normalizes(dtype: Any, rng: np.random.Generator) -> None:
    statistics = parameters(rng, 5, dtype)
    x = rng.normal(size=(3, 5, 4))
    pair = batchnorm.fold_affine(*statistics, eps=1e-3)
    expected = normalized(x, *statistics, eps=1e-3)
    actual = x * pair.weight[:, None].astype(np.float64) + pair.bias[:, None].astype(np.float64)
    np.testing.assert_allclose(actual, expected, atol=20 * UNITS[dtype] * np.abs(expected).max())

    bn = BatchNorm2d(5, eps=1e-3, dtype=dtype, affine=False)
    bn.running_mean, bn.running_var = statistics[:2]
    bare = bn.fold_affine()
    again = batchnorm.fold_affine(*statistics[:2], eps=1e-3)
    assert bare.weight.tobytes() == again.weight.tobytes()
    assert bare.bias.tobytes() == again.bias.tobytes()


def test_one_rounding_and_what_it_costs(rng: np.random.Generator) -> None:
    weight = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    mean, var, gamma, beta = parameters(rng, 4, np.float32)
    folded = batchnorm.fold_into(weight, None, mean, var, gamma, beta)
    wide = [each.astype(np.float64) for each in (weight, mean, var, gamma, beta)]
    scale = wide[3] * (1 / np.sqrt(wide[2] + 1e-5))
    exact_weight = wide[0] * scale[:, None, None, None]
    exact_bias = -wide[1] * scale + wide[4]
    assert (folded.weight == exact_weight.astype(np.float32)).all()
    assert (folded.bias == exact_bias.astype(np.float32)).all()
    error = np.abs(folded.weight - exact_weight).reshape(4, -1).max(1)
    error /= np.abs(exact_weight).reshape(4, -1).max(1)
    assert folded.weight_error == error.max() > 0
    error = np.abs(folded.bias - exact_bias) / np.maximum(abs(wide[3]), abs(wide[4]))
    assert folded.bias_error == pytest.approx(error.max(), rel=1e-6)
    assert folded.weight_error <= 2**-24

    exact = batchnorm.fold_into(wide[0], None, *wide[1:])
    assert exact.weight_error == exact.bias_error == 0

    # A mean far beyond the deviation costs the bias its digits: one rounding of 1e6, in units of 1.
    far = np.full(1, 1e6 + 1 / 16, np.float32), np.full(1, 0.7, np.float32)
    bias_error = batchnorm.fold_affine(*far).bias_error
    assert 1e-4 < bias_error <= 2**-24 * 2**21

    # Weights that underflow are reported: nothing is left of them.
    tiny = batchnorm.fold_into(
        np.full((1, 1), 1e-30, np.float32), None, np.zeros(1, np.float32),
        np.full(1, 1e38, np.float32),
    )  # fmt: skip
    assert (tiny.weight.item(), tiny.weight_error) == (0, 1)


def test_no_variance_and_no_epsilon() -> None:
    mean, var = np.array([3.0, 3.0]), np.array([0.0, 4.0])
    bias = np.array([5.0, 0.0])
    folded = batchnorm.fold_into(np.ones((2, 1)), None, mean, var, None, bias, eps=0)
    assert folded.weight.ravel().tolist() == [0, 0.5]
    assert folded.bias.tolist() == [5, -1.5]


def test_torch_agrees(rng: np.random.Generator) -> None:
    fusion = pytest.importorskip("torch.nn.utils.fusion")
    torch = pytest.importorskip("torch")
    cases: list[tuple[bool, Any]] = [(False, "OIHW"), (True, "IOHW")]
    for transpose, layout in cases:
        weight = rng.normal(size=(4, 4, 3, 3))
        bias = rng.normal(size=4)
        mean, var, gamma, beta = parameters(rng, 4, np.float64)
        tensors = [torch.from_numpy(each) for each in (weight, bias, mean, var, gamma, beta)]
        theirs = fusion.fuse_conv_bn_weights(*tensors[:4], 1e-5, *tensors[4:], transpose)
        ours = batchnorm.fold_into(weight, bias, mean, var, gamma, beta, layout=layout)
        np.testing.assert_allclose(ours.weight, theirs[0].detach().numpy(), rtol=1e-14)
        np.testing.assert_allclose(ours.bias, theirs[1].detach().numpy(), rtol=1e-12, atol=1e-14)


# Bad input: what is changed, what is raised, what it says.

ANEW = {"folded_weight": None, "folded_bias": None}
BAD: list[tuple[dict[str, Any], Any, str]] = [
    ({"conv_weight": [1.0]}, TypeError, "conv_weight is of type list"),
    ({"conv_weight": np.ones((4, 2), np.float16)}, TypeError, "float16, expected float32 or"),
    ({"conv_weight": np.ones(4, np.float32)}, ValueError, r"shape \(4,\), expected two"),
    ({"conv_weight": np.ones((4, 2))}, TypeError, "running_mean has dtype float32"),
    ({"conv_weight": np.ones((3, 2), np.float32), **ANEW}, Status.COUNT_MISMATCH,
     "running_mean has 4 elements, expected 3"),
    ({"conv_weight": np.ones((0, 2), np.float32), **ANEW}, Status.NO_CHANNELS, "channels is 0"),
    ({"layout": "NCHW"}, ValueError, "layout is 'NCHW', expected 'OIHW' or"),
    ({"layout": "HWIO", **ANEW}, Status.COUNT_MISMATCH, "running_mean has 4 elements, expected 2"),
    ({"groups": 0}, ValueError, "groups is 0, expected a divisor of the 4 output channels"),
    ({"groups": 3}, ValueError, r"groups is 3, .* \(4, 2\) has in layout 'OIHW'"),
    ({"groups": 3, "layout": "IOHW"}, ValueError, "groups is 3, .* the 4 input channels"),
    ({"groups": 1.5}, TypeError, "float"),
    ({"conv_bias": np.ones(3, np.float32)}, Status.COUNT_MISMATCH, "conv_bias has 3 elements"),
    ({"conv_bias": np.ones(4)}, TypeError, "conv_bias has dtype float64, expected float32"),
    ({"running_mean": None}, Status.NULL_POINTER, "running_mean"),
    ({"running_var": None}, Status.NULL_POINTER, "running_var"),
    ({"running_var": np.ones(5, np.float32)}, Status.COUNT_MISMATCH, "running_var has 5 elements"),
    ({"weight": np.ones(5, np.float32)}, Status.COUNT_MISMATCH, "weight has 5 elements"),
    ({"bias": np.ones(5, np.float32)}, Status.COUNT_MISMATCH, "bias has 5 elements, expected 4"),
    ({"eps": -1.0}, Status.EPSILON, "eps is -1"),
    ({"eps": math.nan}, Status.EPSILON, "eps is nan"),
    ({"folded_weight": np.ones((2, 4), np.float32)}, ValueError, r"\(2, 4\), expected \(4, 2\)"),
    ({"folded_weight": np.ones((4, 2))}, TypeError, "folded_weight has dtype float64"),
    ({"folded_weight": np.ones((2, 4), np.float32).T}, ValueError, "C-contiguous"),
    ({"folded_bias": np.ones(5, np.float32)}, ValueError, r"folded_bias has shape \(5,\)"),
    ({"folded_bias": np.broadcast_to(np.float32(1), 4)}, ValueError, "folded_bias has strides"),
]  # fmt: skip
NUMBERS = [
    (name, index, value)
    for name in ("conv_weight", "conv_bias", "running_mean", "running_var", "weight", "bias")
    for index, value in ((0, np.nan), (1, np.inf), (3, -np.inf))
] + [("running_var", 2, -1.0)]


def good() -> dict[str, Any]:
    names = ("conv_bias", "running_mean", "running_var", "weight", "bias")
    vectors = {name: np.ones(4, np.float32) for name in names}
    return {
        "conv_weight": np.ones((4, 2), np.float32),
        **vectors,
        "folded_weight": np.full((4, 2), 7, np.float32),
        "folded_bias": np.full(4, 7, np.float32),
    }


def refuses(arguments: dict[str, Any], kind: Any, words: str) -> None:
    arrays = [each for each in arguments.values() if isinstance(each, np.ndarray)]
    before = [each.tobytes() for each in arrays]
    exception = BatchNormError if isinstance(kind, Status) else kind
    with pytest.raises(exception, match=words) as raised:
        batchnorm.fold_into(**arguments)
    if isinstance(kind, Status):
        assert raised.value.status == kind
        assert isinstance(raised.value, ValueError)
    assert [each.tobytes() for each in arrays] == before


@pytest.mark.parametrize(("change", "kind", "words"), BAD)
def test_bad_input(change: dict[str, Any], kind: Any, words: str) -> None:
    batchnorm.fold_into(**good())
    refuses(good() | change, kind, words)


@pytest.mark.parametrize(("name", "index", "value"), NUMBERS)
def test_bad_numbers(name: str, index: int, value: float) -> None:
    arguments = good()
    arguments[name].flat[index] = value
    refuses(arguments, Status.NUMBER, rf"^{name}\[{index}\] is {value}, expected a finite number")


def test_results_beyond_the_range() -> None:
    arguments = good()
    arguments["conv_weight"][2, 1] = 3e38
    arguments["running_var"][:] = 0
    refuses(arguments, Status.NUMBER, r"^folded_weight\[5\] is inf, expected a finite number")
    arguments = good()
    arguments["running_mean"][3] = 3e38
    arguments["running_var"][:] = 0
    refuses(arguments, Status.NUMBER, r"^folded_bias\[3\] is -inf, expected a finite number")


def test_overlapping_destinations() -> None:
    memory = np.ones(9, np.float32)
    arguments = good()
    arguments["conv_weight"], arguments["folded_weight"] = (
        memory[:8].reshape(4, 2),
        memory[1:].reshape(4, 2),
    )
    refuses(arguments, Status.OVERLAP, "folded_weight overlaps conv_weight partly")
    arguments = good()
    arguments["folded_bias"] = arguments["running_mean"]
    refuses(arguments, Status.OVERLAP, "folded_bias overlaps running_mean")


def test_layers_that_cannot_fold() -> None:
    weight = np.ones((3, 2), np.float32)
    without = BatchNorm2d(3, track_running_stats=False)
    for call in (without.fold_affine, lambda: without.fold_into(weight)):
        with pytest.raises(batchnorm.BatchNormRuntimeError) as raised:
            call()
        assert raised.value.status == Status.NO_RUNNING_STATISTICS
    for layer, words in (
        (BatchNorm2d(4), "conv_weight has 3 channels, expected the layer's 4"),
        (BatchNorm2d(3, dtype=np.float64), "conv_weight has dtype float32, expected the layer's"),
    ):
        with pytest.raises(BatchNormError, match=words) as error:
            layer.fold_into(weight)
        assert error.value.status == Status.LAYER_MISMATCH
    with pytest.raises(TypeError, match="running_mean is of type"):
        batchnorm.fold_affine(1.0, 1.0)
