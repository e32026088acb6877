"""The registered operators: derivatives, PyTorch's own check of operators, compilers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from batchnorm.torch import BatchNorm2d
from batchnorm.torch._call import Call
from batchnorm.torch._operators import forward, forward_directly

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


def training(activation: str | None, run: Operator = forward) -> Operator:
    def call(x: Tensor, w: Tensor | None, b: Tensor | None, r: Tensor | None = None) -> Tensor:
        return run(Call(x, w, b, None, None, None, 0.1, 1e-5, r, activation, 0.1))

    return call


def inference(activation: str | None, run: Operator = forward) -> Operator:
    mean, var = statistics()

    def call(x: Tensor, w: Tensor | None, b: Tensor | None, r: Tensor | None = None) -> Tensor:
        return run(Call.of_frozen((x, w, b, mean, var, 1e-5, r, activation, 0.1)))

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
        training("relu", forward_directly),
        inference("relu", forward_directly),
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
    mean, invstd = statistics()
    saved = torch.stack([mean, torch.zeros(3, dtype=torch.float64), invstd])
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


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_gradient_penalty_reaches_all_of_a_fused_call(
    activation: str | None, with_residual: bool, training: bool
) -> None:
    """Bias and residual as well, if only with zeros: whoever sums gradients looks for them."""
    grads = []
    for kind in (BatchNorm2d, nn.BatchNorm2d):
        torch.manual_seed(1)
        layer: Any = kind(5, dtype=torch.float64).train(training)
        x, r, g = torch.randn(3, 4, 5, 3, 3, dtype=torch.float64)
        x.requires_grad_()
        r = r.requires_grad_() if with_residual else None
        if kind is BatchNorm2d:
            y = layer(x, r, activation, 0.1)
        else:
            y = layer(x) if r is None else layer(x) + r
            if activation is not None:
                y = nn.functional.leaky_relu(y, 0.1 if activation == "leaky_relu" else 0.0)
        inputs = [x, layer.weight, *([] if r is None else [r])]
        first = torch.autograd.grad(y, inputs, g * y.detach(), create_graph=True)
        torch.stack([each.square().sum() for each in first]).sum().backward()
        grads.append([x.grad, layer.weight.grad, layer.bias.grad, None if r is None else r.grad])
    for ours, theirs in zip(*grads, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert (grads[0][2] is None) == (activation is None)


def test_second_derivatives_where_a_channel_has_no_deviation() -> None:
    """With eps 0 and a running_var of 0, invstd is 0: so are all derivatives of that channel."""
    x, w, b, _ = tensors((2, 3, 2, 3))
    mean, var = statistics()
    var[1] = 0.0

    def call(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return forward(Call.of_frozen((x, w, b, mean, var, 0.0, None, "relu", 0.1)))

    y = call(x, w, b)
    (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    found = torch.autograd.grad(grad.square().sum(), [x, w])
    assert all(each.isfinite().all() for each in (grad, *found))
    assert grad[:, 1].count_nonzero() == 0


def backward_with(**changed: Any) -> Any:
    """torch.ops.batchnorm.backward with some of its arguments changed."""
    x = torch.randn(2, 3, 4)
    values = {
        "grad_output": torch.randn(2, 3, 4),
        "input": x,
        "weight": None,
        "saved": torch.ones(3, 3, dtype=torch.float64),
        "running_mean": None,
        "running_var": None,
        "eps": 1e-5,
        "output": None,
        "activation": None,
        "negative_slope": 0.1,
        "wanted": [True] * 4,
        **changed,
    }
    return torch.ops.batchnorm.backward(*values.values())


def training_with(**changed: Any) -> Any:
    """torch.ops.batchnorm.forward_training with some of its arguments changed."""
    values = {
        "input": torch.randn(2, 3, 4),
        "weight": None,
        "bias": None,
        "running_mean": torch.zeros(3),
        "running_var": torch.ones(3),
        "num_batches_tracked": None,
        "momentum": 0.1,
        "eps": 1e-5,
        "residual": None,
        "activation": None,
        "negative_slope": 0.1,
        **changed,
    }
    return torch.ops.batchnorm.forward_training(*values.values())


def inference_with(**changed: Any) -> Any:
    """torch.ops.batchnorm.forward_inference with some of its arguments changed."""
    values = {
        "input": torch.randn(2, 3, 4),
        "weight": None,
        "bias": None,
        "running_mean": torch.zeros(3),
        "running_var": torch.ones(3),
        "eps": 1e-5,
        "residual": None,
        "activation": None,
        "negative_slope": 0.1,
        **changed,
    }
    return torch.ops.batchnorm.forward_inference(*values.values())


REFUSALS: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (backward_with, {"saved": None}, "saved is None, expected it, or running_mean"),
    (
        backward_with,
        {"saved": None, "running_mean": torch.zeros(3)},
        "saved is None, expected it, or running_mean and running_var",
    ),
    (backward_with, {"activation": "relu"}, "output is None, expected the forward's"),
    (backward_with, {"activation": "gelu", "output": torch.ones(2, 3, 4)}, "activation is 'gelu'"),
    (backward_with, {"grad_output": torch.ones(2, 3, 5)}, r"grad_output has shape \[2, 3, 5\]"),
    (backward_with, {"saved": torch.ones(2, 4)}, r"saved statistics have shape \[2, 4\]"),
    (backward_with, {"weight": torch.ones(4)}, "weight should contain 3 elements not 4"),
    (backward_with, {"input": torch.ones(2, 3, 4).int()}, "not implemented for 'int32'"),
    (training_with, {"running_var": None}, "one of running_mean and running_var is None"),
    (training_with, {"running_mean": None}, "one of running_mean and running_var is None"),
    (training_with, {"eps": 0.0}, "eps is 0.0, expected a positive"),
    (training_with, {"eps": float("nan")}, "eps is nan, expected a positive"),
    (training_with, {"momentum": float("inf")}, "momentum is inf, expected a finite number"),
    (training_with, {"input": torch.ones(1, 3)}, r"two values per channel, got \[1, 3\]"),
    (training_with, {"residual": torch.ones(2, 3, 1)}, r"residual has shape \[2, 3, 1\]"),
    (training_with, {"running_var": torch.ones(2)}, "running_var should contain 3 elements not 2"),
    (training_with, {"activation": "gelu"}, "activation is 'gelu'"),
    (inference_with, {"eps": -1.0}, "eps is -1.0, expected a finite number of at least 0"),
    (inference_with, {"input": torch.ones(0, 3)}, r"nothing to normalize in \[0, 3\]"),
    (inference_with, {"input": torch.ones(3)}, "expected 2D to 5D input"),
    (inference_with, {"bias": torch.ones(3).double()}, "bias is a Tensor with dtype torch.float64"),
]


@pytest.mark.parametrize(
    ("call", "changed", "match"),
    REFUSALS,
    ids=[f"{call.__name__}-{'-'.join(changed)}" for call, changed, _ in REFUSALS],
)
def test_operators_say_what_is_wrong(
    call: Callable[..., Any], changed: dict[str, Any], match: str
) -> None:
    call()
    with pytest.raises((RuntimeError, ValueError), match=match):
        call(**changed)


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
    # What another version of the operators was compiled to may lie in the cache on disk.
    with torch._inductor.config.patch(force_disable_caches=True):
        compare(a, torch.compile(b, fullgraph=True, backend=backend), b)


@pytest.mark.filterwarnings("ignore")  # of PyTorch, about itself
@pytest.mark.parametrize("training", [True, False])
def test_compiled_for_any_size(training: bool) -> None:
    """Momentum and eps are symbols then."""
    a = Block().train(training)
    b = copy.deepcopy(a)
    torch._dynamo.reset()
    compare(a, torch.compile(b, fullgraph=True, dynamic=True, backend="aot_eager"), b)


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
