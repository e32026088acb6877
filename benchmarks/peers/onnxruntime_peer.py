"""ONNX Runtime as a peer: inference, NCHW, with bound (preallocated) input and output."""

from __future__ import annotations

import os

import onnxruntime
from onnx import TensorProto, helper
from worker import Cell, Contender, serve

TYPES = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}
PARAMETERS = ("weight", "bias", "mean", "var")


def line_up(cell: Cell) -> list[Contender]:
    if cell.op != "inference" or cell.layout != "nchw" or not cell.plain:
        return []
    kind = TYPES[cell.dtype]
    node = helper.make_node("BatchNormalization", ["x", *PARAMETERS], ["y"], epsilon=1e-5)
    constants = [
        helper.make_tensor(name, kind, [cell.sizes[1]], cell.channel(name).tolist())
        for name in PARAMETERS
    ]
    graph = helper.make_graph(
        [node],
        "batchnorm",
        [helper.make_tensor_value_info("x", kind, cell.sizes)],
        [helper.make_tensor_value_info("y", kind, cell.sizes)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"]
    )
    calls = []
    for index in range(cell.sets):
        binding = session.io_binding()
        x = onnxruntime.OrtValue.ortvalue_from_numpy(cell.tensor(index))
        y = onnxruntime.OrtValue.ortvalue_from_numpy(cell.tensor(index))
        binding.bind_ortvalue_input("x", x)
        binding.bind_ortvalue_output("y", y)
        calls.append(lambda binding=binding, keep=(x, y): session.run_with_iobinding(binding))
    return [("ONNXRuntime", calls)]


serve(f"ONNXRuntime={onnxruntime.__version__}", line_up)
