"""The registered operators: derivatives, PyTorch's own check of operators, compilers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from batchnorm.torch import BatchNorm2d, _operators

ACTIVATIONS = [None, "relu", "leaky_relu"]
SHAPES = [(5, 3), (2, 3, 4), (2, 3, 2, 3), (2, 3, 2, 1, 2)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(20261121)


def tensors(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """input, weight, bias, residual."""
    channels = shape[1]
    made = [torch.randn(shape), torch.rand(channels) + 0.5, torch.randn(channels)]
    return [each.to(dtype).requires_grad_() for each in (*made, torch.randn(shape))]


def statistics(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(3).to(dtype), (torch.rand(3) + 0.5).to(dtype)


Operator = Callable[..., Tensor]


def training(activation: str | None, run: Operator = _operators.forward_training) -> Operator:
    def call(x: Tensor, w: Tensor | None, b: Tensor | None, r: Tensor | None = None) -> Tensor:
        return run(x, w, b, None, None, None, 0.1, 1e-5, r, activation, 0.1)

    return call


def inference(activation: str | None, run: Operator = _operators.forward_inference) -> Operator:
    mean, var = statistics()

    def call(x: Tensor, w: Tensor | None, b: Tensor | None, r: Tensor | None = None) -> Tensor:
        return run(x, w, b, mean, var, 1e-5, r, activation, 0.1)

    return call


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("operator", [training, inference])
@pytest.mark.parametrize("with_residual", [True, False])
def test_first_and_second_derivatives(
    operator: Any, activation: str | None, shape: tuple[int, ...], with_residual: bool
) -> None:
    args = tensors(shape)[: 4 if with_residual else 3]
    assert gradcheck(operator(activation), args)
    assert gradgradcheck(operator(activation), args)


@pytest.mark.parametrize(
    "operator",
    [
        training("relu", _operators.forward_training_directly),
        inference("relu", _operators.forward_inference_directly),
    ],
    ids=["training", "inference"],
)
def test_derivatives_past_the_dispatcher(operator: Operator) -> None:
    args = tensors((2, 3, 2, 3))
    assert gradcheck(operator, args)
    assert gradgradcheck(operator, args)


@pytest.mark.parametrize("operator", [training, inference])
def test_third_derivatives(operator: Any) -> None:
    forward = operator("leaky_relu")

    def second(x: Tensor, w: Tensor, b: Tensor, r: Tensor) -> Tensor:
        y = forward(x, w, b, r)
        (grad,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        return grad

    assert gradgradcheck(second, tensors((2, 3, 2)))


def test_derivatives_without_weight_and_of_a_few_arguments() -> None:
    x, w, _, r = tensors((2, 3, 4))
    assert gradgradcheck(lambda x, r: training("relu")(x, None, None, r), (x, r))
    assert gradgradcheck(lambda w: training(None)(x.detach(), w, None), (w,))
    assert gradgradcheck(lambda r: training("relu")(x.detach(), None, None, r), (r,))


@pytest.mark.parametrize(
    ("activation", "dtype"),
    [(None, torch.float32), ("relu", torch.float64), ("leaky_relu", torch.bfloat16)],
    ids=str,
)
def test_pytorchs_check_of_operators(activation: str | None, dtype: torch.dtype) -> None:
    x, w, b, r = tensors((2, 3, 4, 5), dtype)
    ops = torch.ops.batchnorm
    for vectors in ((w, b, *statistics(dtype)), (None, None, *statistics(dtype))):
        for momentum in (0.1, None):
            opcheck(
                ops.forward_training.default,
                (x, *vectors, torch.tensor(2), momentum, 1e-5, r, activation, 0.1),
            )
        opcheck(ops.forward_inference.default, (x, *vectors, 1e-5, r, activation, 0.1))
    opcheck(
        ops.forward_training.default,
        (x.detach().transpose(2, 3), w, b, None, None, None, 0.1, 1e-5, None, activation, 0.1),
    )
    output = r.detach()
    saved = torch.stack(statistics())
    for wanted in ([True] * 4, [True, False, False, False], [False, True, True, True]):
        opcheck(
            ops.backward.default,
            (r, x, w, saved, None, None, 1e-5, output, activation, 0.1, wanted),
        )
        opcheck(
            ops.backward.default,
            (r, x, w, None, *statistics(dtype), 1e-5, output, activation, 0.1, wanted),
        )


def test_gradients_of_gradients_as_pytorch_has_them() -> None:
    """A gradient penalty, through the modules."""
    grads = []
    torch.manual_seed(1)
    x = torch.randn(4, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    for kind in (BatchNorm2d, nn.BatchNorm2d):
        layer = kind(5, dtype=torch.float64)
        (grad,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
        penalty = grad.pow(2).sum()
        grads.append(torch.autograd.grad(penalty, [x, layer.weight]))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_forward_mode() -> None:
    x, t = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64)
    derivatives = []
    for kind in (BatchNorm2d, nn.BatchNorm2d):
        layer = kind(3, dtype=torch.float64)
        with torch.autograd.forward_ad.dual_level():
            y = layer(torch.autograd.forward_ad.make_dual(x, t))
            derivatives.append(torch.autograd.forward_ad.unpack_dual(y).tangent)
    torch.testing.assert_close(*derivatives)


def test_torch_func() -> None:
    layer = BatchNorm2d(3, track_running_stats=False, dtype=torch.float64)
    x = tensors((4, 3, 2, 2))[0].detach()
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        result: Tensor = torch.func.functional_call(layer, parameters, (x,)).pow(2).sum()
        return result

    gradients = torch.func.grad(loss)(parameters)
    y = layer(x)
    expected = torch.autograd.grad(y.pow(2).sum(), list(layer.parameters()))
    for ours, theirs in zip(gradients.values(), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


# Compilers.


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = BatchNorm2d(8)
        self.last = BatchNorm2d(8, momentum=None)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x), None, "relu")
        result: Tensor = self.last(y, y, "relu")
        return result


def compare(a: nn.Module, b: Callable[..., Any], state: nn.Module) -> None:
    """Outputs, gradients and statistics of a module and of its compiled copy, after two steps."""
    for size in (6, 7):
        x = torch.randn(2, 3, size, size)
        y, z = a(x), b(x)
        torch.testing.assert_close(y, z)
        if y.requires_grad:
            y.square().sum().backward()
            z.square().sum().backward()
    for p, q in zip(a.parameters(), state.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-4)
    for key, value in a.state_dict().items():
        torch.testing.assert_close(value, state.state_dict()[key])


@pytest.mark.filterwarnings("ignore")  # of PyTorch, about itself
@pytest.mark.parametrize(
    ("training", "backend"), [(True, "aot_eager"), (False, "aot_eager"), (True, "inductor")]
)
def test_compiled_without_a_graph_break(training: bool, backend: str) -> None:
    a = Block().train(training)
    b = copy.deepcopy(a)
    torch._dynamo.reset()
    compare(a, torch.compile(b, fullgraph=True, backend=backend), b)


@pytest.mark.filterwarnings("ignore")
def test_exported() -> None:
    a = Block().eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    x = torch.randn(3, 3, 6, 6)
    program = torch.export.export(a, (x,), dynamic_shapes={"x": {0: batch}})
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("batchnorm.forward_inference.default") == 2
    more = torch.randn(5, 3, 6, 6)
    torch.testing.assert_close(program.module()(more), a(more))
    trained = torch.export.export(Block(), (x,))
    assert "batchnorm.forward_training.default" in [str(n.target) for n in trained.graph.nodes]


@pytest.mark.filterwarnings("ignore")
def test_traced_by_jit_and_fx() -> None:
    a = Block().eval()
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(torch.jit.trace(a, x)(x), a(x))
    graph = torch.fx.symbolic_trace(Block())
    assert [n.target for n in graph.graph.nodes if n.op == "call_module"] == [
        "conv",
        "norm",
        "last",
    ]
    graph.eval()
    graph.load_state_dict(a.state_dict())
    torch.testing.assert_close(graph(x), a(x))


# A forward that is repeated.


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_updates_once(reentrant: bool) -> None:
    a = Block()
    b = copy.deepcopy(a)
    x = torch.randn(2, 3, 6, 6)
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    a(x1).square().sum().backward()
    checkpoint(b, x2, use_reentrant=reentrant).square().sum().backward()
    assert torch.equal(x1.grad, x2.grad)  # type: ignore[arg-type]
    for key, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[key]), key


@pytest.mark.filterwarnings("ignore")
def test_compiled_checkpointing_updates_once() -> None:
    a = Block()
    b = copy.deepcopy(a)
    x = torch.randn(2, 3, 6, 6)
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    a(x1).square().sum().backward()
    torch._dynamo.reset()

    def run(x: Tensor) -> Tensor:
        result: Tensor = checkpoint(b, x, use_reentrant=False)
        return result

    torch.compile(run, fullgraph=True, backend="aot_eager")(x2).square().sum().backward()
    torch.testing.assert_close(x1.grad, x2.grad)
    for key, value in a.state_dict().items():
        torch.testing.assert_close(value, b.state_dict()[key])
