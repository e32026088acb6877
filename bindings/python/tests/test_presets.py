"""Each preset against its framework: the framework itself where the tests' environment has it,
else its formula, as its documentation or source says it (docs/coming-from.md names the versions).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from batchnorm import BatchNorm2d, presets
from batchnorm import functional as F

Array = NDArray[Any]
Step = tuple[Array, Array, Array]  # output, running mean, running variance


def keras(x: Array, mean: Array, var: Array) -> Step:
    """Keras 3: ``moving_var = moving_var * momentum + var(batch) * (1 - momentum)``.

    By default its momentum is 0.99, its epsilon 1e-3, and the channel the last axis.
    """
    return decayed(x, mean, var, momentum=0.99, epsilon=1e-3)


def flax(x: Array, mean: Array, var: Array) -> Step:
    """Flax: ``ra_var = momentum * ra_var + (1 - momentum) * var``, var = E[|x|^2] - |E[x]|^2."""
    return decayed(x, mean, var, momentum=0.99, epsilon=1e-5)


def decayed(x: Array, mean: Array, var: Array, *, momentum: float, epsilon: float) -> Step:
    axes = tuple(range(x.ndim - 1))
    batch_mean, batch_var = x.mean(axes), x.var(axes)
    y = (x - batch_mean) / np.sqrt(batch_var + epsilon)
    return (
        y,
        mean * momentum + batch_mean * (1.0 - momentum),
        var * momentum + batch_var * (1.0 - momentum),
    )


def tensorflow(x: Array, mean: Array, var: Array) -> Step:
    """Keras 2 on FusedBatchNormV3: ``(1 - factor) * old + factor * batch``, factor = 1 - momentum,
    with Bessel's correction by ``rest_size / max(rest_size - 1, 1)``.
    """
    axes, factor, epsilon = tuple(range(x.ndim - 1)), 1 - 0.99, 1e-3
    batch_mean, batch_var = x.mean(axes), x.var(axes)
    count = x.size // x.shape[-1]
    y = (x - batch_mean) / np.sqrt(batch_var + epsilon)
    corrected = batch_var * count / max(count - 1, 1)
    return y, (1 - factor) * mean + factor * batch_mean, (1 - factor) * var + factor * corrected


def mlx(x: Array, mean: Array, var: Array) -> Step:
    """MLX: ``(1 - mu) * running_var + mu * var(x, ddof=1)``; the channel is the last axis."""
    axes, mu, eps = tuple(range(x.ndim - 1)), 0.1, 1e-5
    y = (x - x.mean(axes)) / np.sqrt(x.var(axes) + eps)
    return y, (1 - mu) * mean + mu * x.mean(axes), (1 - mu) * var + mu * x.var(axes, ddof=1)


def pytorch(x: Array, mean: Array, var: Array) -> Step:
    """The module itself, as it comes."""
    torch = pytest.importorskip("torch")
    module = torch.nn.BatchNorm2d(x.shape[1], dtype=torch.float64)
    module.running_mean, module.running_var = torch.tensor(mean), torch.tensor(var)
    y = module(torch.tensor(x)).detach()
    return y.numpy(), module.running_mean.numpy(), module.running_var.numpy()


def onnx(x: Array, mean: Array, var: Array) -> Step:
    """ONNX's reference evaluator, with the operator's own attributes."""
    package = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    model = package.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["": 15]>
        graph (double[N, C, H, W] X, double[C] scale, double[C] B, double[C] mean, double[C] var)
            => (double[N, C, H, W] Y, double[C] m, double[C] v)
        { Y, m, v = BatchNormalization <training_mode = 1> (X, scale, B, mean, var) }
        """
    )
    ones, zeros = np.ones_like(mean), np.zeros_like(mean)
    inputs = {"X": x, "scale": ones, "B": zeros, "mean": mean, "var": var}
    y, new_mean, new_var = map(np.asarray, ReferenceEvaluator(model).run(None, inputs))
    return y, new_mean, new_var


FRAMEWORKS: list[tuple[str, Callable[[Array, Array, Array], Step]]] = [
    ("PYTORCH", pytorch),
    ("KERAS", keras),
    ("FLAX", flax),
    ("ONNX", onnx),
    ("TENSORFLOW", tensorflow),
    ("MLX", mlx),
]


def test_every_preset_has_its_framework() -> None:
    assert {name for name, _ in FRAMEWORKS} | {"Preset"} == set(presets.__all__)


# Few values per channel, so that biased and unbiased variances differ much.
@pytest.mark.parametrize(("name", "framework"), FRAMEWORKS)
def test_trains_and_evaluates_as_the_framework_does(name: str, framework: Any) -> None:
    preset: presets.Preset = getattr(presets, name)
    rng = np.random.default_rng(0)
    layer = BatchNorm2d(3, dtype=np.float64, **preset)
    mean, var = np.zeros(3), np.ones(3)
    shape = (1, 3, 2, 2) if preset["channel_axis"] == 1 else (1, 2, 2, 3)
    for _ in range(4):
        x = rng.normal(5, 0.1, shape)  # a small deviation, so that epsilon counts
        y, mean, var = framework(x, mean, var)
        np.testing.assert_allclose(layer(x), y, rtol=1e-6)
        np.testing.assert_allclose(layer.running_mean, mean, rtol=1e-6)
        np.testing.assert_allclose(layer.running_var, var, rtol=1e-6)
    per_channel = [-1 if axis == preset["channel_axis"] % 4 else 1 for axis in range(4)]
    expected = (x - mean.reshape(per_channel)) / np.sqrt(var.reshape(per_channel) + preset["eps"])
    np.testing.assert_allclose(layer.eval()(x), expected, rtol=1e-6)


@pytest.mark.parametrize(("name", "framework"), FRAMEWORKS)
def test_one_value_per_channel_is_what_the_framework_makes_of_it(name: str, framework: Any) -> None:
    preset: presets.Preset = getattr(presets, name)
    x = np.arange(1.0, 4.0).reshape((1, 3, 1, 1) if preset["channel_axis"] == 1 else (1, 1, 1, 3))
    layer = BatchNorm2d(3, dtype=np.float64, **preset)
    if preset["one_value"] == "error":  # PyTorch and MLX refuse as well
        with pytest.raises(ValueError, match="1 value per channel"):
            layer(x)
        return
    y, mean, _ = framework(x, np.zeros(3), np.ones(3))
    np.testing.assert_allclose(layer(x), y, rtol=1e-6)
    np.testing.assert_allclose(layer.running_mean, mean, rtol=1e-6)
    # Theirs takes in a variance of 0, for which there is no option here.
    np.testing.assert_array_equal(layer.running_var, np.ones(3))


@pytest.mark.parametrize("name", [name for name, _ in FRAMEWORKS])
def test_the_functions_take_presets_as_well(name: str) -> None:
    preset: presets.Preset = getattr(presets, name)
    x = np.random.default_rng(0).normal(5, 2, (2, 3, 4, 3))
    layer = BatchNorm2d(3, dtype=np.float64, **preset)
    mean, var = np.zeros(3), np.ones(3)
    result = F.forward_training(x, mean, var, **preset)
    assert result.output.tobytes() == layer(x).tobytes()
    assert var.tobytes() == layer.running_var.tobytes()
