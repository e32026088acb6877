"""ONNX's own tests for its BatchNormalization operator, as they come inside the onnx package."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchnorm import functional as F

onnx = pytest.importorskip("onnx", reason="ONNX's tests come inside the onnx package")


def node_cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other operators' cases
        from onnx.backend.test.case.node import collect_testcases

        return list(collect_testcases("BatchNormalization"))


def attributes(node: Any) -> dict[str, Any]:
    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}


def batch_normalization(node: Any, inputs: list[Any]) -> list[Any]:
    """One ONNX node by this library. ONNX's momentum is the share of the *old* value."""
    options = attributes(node)
    x, scale, shift, mean, var = inputs
    eps = options.get("epsilon", 1e-5)
    if not options.get("training_mode", 0):
        return [F.batch_norm(x, mean, var, scale, shift, eps=eps)]
    mean, var = mean.copy(), var.copy()
    result = F.forward_training(
        x,
        mean,
        var,
        scale,
        shift,
        momentum=1 - options.get("momentum", 0.9),
        eps=eps,
        running_variance="biased",
    )
    return [result.output, mean, var]


NODE_CASES = node_cases()


def test_the_cases_are_there() -> None:
    names = {case.name for case in NODE_CASES}
    assert {"test_batchnorm_example", "test_batchnorm_example_training_mode"} <= names
    assert len(MODELS) >= 5


@pytest.mark.parametrize("case", NODE_CASES, ids=lambda case: case.name)
def test_node(case: Any) -> None:
    (node,) = case.model.graph.node
    assert case.data_sets
    for inputs, outputs in case.data_sets:
        results = batch_normalization(node, inputs)
        assert len(results) == len(outputs)
        for actual, expected in zip(results, outputs, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=case.rtol, atol=case.atol)


MODELS = sorted(
    (Path(onnx.__file__).parent / "backend/test/data/pytorch-converted").glob(
        "test_BatchNorm*_eval"
    )
)


def read_tensor(path: Path) -> Any:
    return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes()))


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_model_converted_from_pytorch(folder: Path) -> None:
    graph = onnx.load(folder / "model.onnx").graph
    (node,) = graph.node
    values = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    data = folder / "test_data_set_0"
    (free,) = [each.name for each in graph.input if each.name not in values]
    values[free] = read_tensor(data / "input_0.pb")
    (actual,) = batch_normalization(node, [values[name] for name in node.input])
    np.testing.assert_allclose(actual, read_tensor(data / "output_0.pb"), rtol=1e-3, atol=1e-7)
