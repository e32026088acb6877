"""How contenders and operations are called and drawn, in tables and pictures alike."""

from __future__ import annotations

from collections.abc import Iterable

from results import OURS, Cell

OPS = {
    "forward": "training forward",
    "inference": "inference forward",
    "backward": "backward",
    "frozen": "backward, frozen statistics",
}
PARTS = {"lengths": "masked sequences", "add": "residual", "relu": "ReLU"}  # behind a "+"
LABELS = {
    OURS: "libbatchnorm",
    "PyTorch": "PyTorch operator",
    "PyTorch-module": "PyTorch module",
    "PyTorch-compile": "PyTorch, compiled",
    "oneDNN": "oneDNN",
    "oneDNN-blocked": "oneDNN, blocked layout",
    "JAX": "JAX",
    "ONNXRuntime": "ONNX Runtime",
}


def operation_title(op: str) -> str:
    """Of "forward+add+relu", say."""
    operation, *parts = op.split("+")
    return " + ".join([OPS[operation], *(PARTS[part] for part in parts)])


def contenders(cells: Iterable[Cell]) -> list[str]:
    """Ours first, then the peers that are there; those without a label of their own last."""
    names = {name for cell in cells for name in cell.families}
    return (
        [OURS]
        + [name for name in LABELS if name in names and name != OURS]
        + sorted(names - set(LABELS))
    )
