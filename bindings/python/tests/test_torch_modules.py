"""The drop-in modules beside PyTorch's own: numbers, state, memory formats, refusals."""

from __future__ import annotations

import contextlib
import copy
import pickle
import runpy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import batchnorm
from batchnorm.torch import BatchNorm1d, BatchNorm2d, BatchNorm3d, _operators, _private, modules

PAIRS = [
    (BatchNorm1d, nn.BatchNorm1d, (6, 5)),
    (BatchNorm1d, nn.BatchNorm1d, (4, 5, 7)),
    (BatchNorm2d, nn.BatchNorm2d, (3, 5, 4, 6)),
    (BatchNorm3d, nn.BatchNorm3d, (2, 5, 3, 4, 2)),
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"eps": 1e-3, "momentum": 0.3},
    {"momentum": None},
    {"affine": False},
    {"bias": False},
    {"track_running_stats": False},
    {"affine": False, "track_running_stats": False},
]
HALVES = (torch.bfloat16, torch.float16)
# PyTorch's own error, in units of the dtype; ours is below one rounding.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(20261121)


class Seen(TorchDispatchMode):
    """A mode that looks at every operator, so that calls take the dispatcher's way."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return function(*args, **(kwargs or {}))


def twins(
    ours: type[nn.Module], theirs: type[nn.Module], channels: int, **options: Any
) -> tuple[Any, Any]:
    """Two modules with the same random parameters and buffers."""
    a: Any = ours(channels, **options)
    b: Any = theirs(channels, **options)
    with torch.no_grad():
        for parameter in b.parameters():
            parameter.uniform_(0.5, 1.5)
    if b.running_mean is not None:
        b.running_mean.normal_()
        b.running_var.uniform_(0.5, 2.0)
    a.load_state_dict(b.state_dict())
    return a, b


def close(actual: Tensor | None, expected: Tensor | None, scale: float = 1.0) -> None:
    if actual is None or expected is None:
        assert actual is expected
        return
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    tolerance = TOLERANCE[actual.dtype] * scale
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("ours", "theirs", "shape"), PAIRS)
def test_the_same_numbers_as_pytorch(
    ours: type[nn.Module],
    theirs: type[nn.Module],
    shape: tuple[int, ...],
    options: dict[str, Any],
    dtype: torch.dtype,
) -> None:
    a, b = twins(ours, theirs, shape[1], **options)
    if dtype is torch.float64:
        a, b = a.double(), b.double()
    for training in (True, True, False):
        a.train(training)
        b.train(training)
        x = (torch.randn(shape) * 2 + 1).to(dtype)
        x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
        y1, y2 = a(x1), b(x2)
        close(y1, y2)
        g = torch.randn(shape).to(dtype)
        y1.backward(g)
        y2.backward(g)
        close(x1.grad, x2.grad, 4)
        for p1, p2 in zip(a.parameters(), b.parameters(), strict=True):
            if dtype not in HALVES:  # PyTorch adds halves in float
                close(p1.grad, p2.grad, 20)
        for name, value in b.state_dict().items():
            if value.is_floating_point():
                close(a.state_dict()[name], value)
            else:
                assert torch.equal(a.state_dict()[name], value)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_parameters_may_be_half_as_well(dtype: torch.dtype) -> None:
    a, b = twins(BatchNorm2d, nn.BatchNorm2d, 5)
    a, b = a.to(dtype), b.to(dtype)
    x1 = torch.randn(4, 5, 6, 6).to(dtype).requires_grad_()
    x2 = x1.detach().clone().requires_grad_()
    y1, y2 = a(x1), b(x2)
    close(y1, y2)
    y1.sum().backward()
    y2.sum().backward()
    assert a.weight.grad.dtype == dtype
    close(a.bias.grad, b.bias.grad)
    close(a.running_mean, b.running_mean)
    close(a.running_var, b.running_var)


def fused(module: nn.Module, x: Tensor, r: Tensor | None, activation: str | None) -> Tensor:
    y: Tensor = module(x)
    if r is not None:
        y = y + r
    if activation == "relu":
        return torch.relu(y)
    return y if activation is None else nn.functional.leaky_relu(y, 0.1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_activation_and_residual(
    activation: Any, with_residual: bool, training: bool, memory_format: torch.memory_format
) -> None:
    a, b = twins(BatchNorm2d, nn.BatchNorm2d, 5, dtype=torch.float64)
    a.train(training)
    b.train(training)

    def tensor() -> Tensor:
        return torch.randn(3, 5, 4, 4, dtype=torch.float64).to(memory_format=memory_format)

    x, r, g = tensor(), tensor(), tensor()
    results = []
    for run in (
        lambda x, r: a(x, r, activation, 0.1),
        lambda x, r: fused(b, x, r, activation),
    ):
        xs = x.clone().requires_grad_()
        rs = r.clone().requires_grad_() if with_residual else None
        y = run(xs, rs)
        assert y.is_contiguous(memory_format=memory_format)
        y.backward(g)
        results.append((y.detach(), xs.grad, None if rs is None else rs.grad))
    for ours, theirs in zip(*results, strict=True):
        close(ours, theirs)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        close(p.grad, q.grad)


@pytest.mark.parametrize(
    "residual",
    [
        torch.ones(5, 1, 1),
        torch.ones(3, 5, 4, 4, dtype=torch.float64),
        torch.randn(3, 5, 4, 4).to(memory_format=torch.channels_last),
    ],
    ids=["broadcast", "float64", "channels_last"],
)
def test_other_residuals_are_added_as_pytorch_does(residual: Tensor) -> None:
    a, b = twins(BatchNorm2d, nn.BatchNorm2d, 5)
    x = torch.randn(3, 5, 4, 4)
    close(a(x, residual, "relu"), fused(b, x, residual, "relu"))


def test_unknown_activation_is_refused_and_nothing_is_written() -> None:
    layer = BatchNorm2d(5)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match="activation is 'gelu', expected None or 'relu'"):
        layer(torch.randn(3, 5, 4, 4), None, "gelu")
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])


def with_a_broadcast(layer: Any, activation: Any, slope: float = 0.01) -> Tensor:
    """A call that PyTorch does itself, for its residual."""
    result: Tensor = layer(torch.randn(3, 5, 4, 4), torch.ones(5, 1, 1), activation, slope)
    return result


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda layer: with_a_broadcast(layer, "gelu"), ValueError, "activation is 'gelu'"),
        (
            lambda layer: with_a_broadcast(layer, "leaky_relu", -0.5),
            ValueError,
            "negative_slope is -0.5, expected a finite number of at least 0",
        ),
        (
            lambda layer: layer(torch.randn(3, 5, 4, 4), None, "leaky_relu", float("nan")),
            ValueError,
            "negative_slope is nan, expected",
        ),
        (
            lambda layer: layer(torch.randn(3, 5, 4, 4), torch.ones(3, 5, 4, 3)),
            ValueError,
            r"residual has shape \[3, 5, 4, 3\], expected .* \[3, 5, 4, 4\]",
        ),
        (
            lambda layer: layer(torch.randn(3, 5, 4, 4), torch.ones(3, 5, 4, 4, device="meta")),
            ValueError,
            "residual is on meta, expected it on cpu",
        ),
        (
            lambda layer: layer(torch.randn(3, 5, 4, 4), None, ["relu"]),
            ValueError,
            r"activation is \['relu'\], expected None or 'relu'",
        ),
        (
            lambda layer: layer(torch.randn(3, 5, 4, 4), 1.0),
            TypeError,
            r"residual is a float, expected a torch\.Tensor",
        ),
        (
            lambda layer: layer(torch.randn(3, 5, 4, 4).requires_grad_(), torch.ones(7, 1)),
            ValueError,
            "residual has shape",
        ),
    ],
)
def test_what_follows_is_checked_before_anything_is_written(
    call: Callable[[Any], Tensor], error: type[Exception], match: str
) -> None:
    layer = BatchNorm2d(5)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(error, match=match):
        call(layer)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("call", [with_a_broadcast, fused], ids=["by PyTorch", "fused"])
def test_a_slope_of_0_is_a_relu(call: Any) -> None:
    x = torch.randn(3, 5, 4, 4)
    results = []
    for activation, slope in (("relu", 0.01), ("leaky_relu", 0.0)):
        torch.manual_seed(1)
        layer, own = BatchNorm2d(5), x.clone().requires_grad_()
        y = (
            layer(own, None, activation, slope)
            if call is fused
            else with_a_broadcast(layer, activation, slope)
        )
        y.square().sum().backward()
        results.append([y.abs(), own.grad, layer.weight.grad])
    torch.testing.assert_close(*results, rtol=0, atol=0)


def strided(shape: tuple[int, ...]) -> dict[str, Tensor]:
    wide = torch.randn(*shape[:-1], 2 * shape[-1])
    return {
        "every second": wide[..., ::2],
        "transposed": torch.randn(shape[0], shape[1], shape[3], shape[2]).transpose(2, 3),
        "expanded": torch.randn(1, shape[1], 1, shape[3]).expand(shape),
        "permuted": torch.randn(shape[1], shape[0], *shape[2:]).transpose(0, 1),
    }


@pytest.mark.parametrize("kind", ["every second", "transposed", "expanded", "permuted"])
def test_any_strides_for_input_and_gradient(kind: str) -> None:
    shape = (4, 5, 6, 3)
    a, b = twins(BatchNorm2d, nn.BatchNorm2d, 5)
    x, g = strided(shape)[kind], strided(shape)[kind]
    x1, x2 = (x.detach().requires_grad_() for _ in range(2))
    y1, y2 = a(x1), b(x2)
    close(y1, y2)
    y1.backward(g)
    y2.backward(g)
    close(x1.grad, x2.grad, 4)


def test_memory_formats_are_kept() -> None:
    cases = [
        (BatchNorm2d(5), torch.randn(2, 5, 3, 4).to(memory_format=torch.channels_last)),
        (BatchNorm3d(5), torch.randn(2, 5, 3, 4, 2).to(memory_format=torch.channels_last_3d)),
        (BatchNorm2d(5), torch.randn(2, 5, 3, 4)),
    ]
    for layer, x in cases:
        x.requires_grad_()
        y = layer(x)
        assert y.stride() == x.stride()
        (grad,) = torch.autograd.grad(y.square().sum(), x)
        assert grad.stride() == x.stride()


def dense(x: Tensor) -> Tensor:
    return x.to(memory_format={4: torch.channels_last, 5: torch.channels_last_3d}[x.dim()])


WITH_ORDER: dict[str, Callable[[], Tensor]] = {
    "first half": lambda: dense(torch.randn(4, 6, 5, 7)).chunk(2, 1)[0],
    "second half": lambda: dense(torch.randn(4, 6, 5, 7)).chunk(2, 1)[1],
    "every second channel": lambda: dense(torch.randn(4, 6, 5, 7))[:, ::2],
    "one channel": lambda: dense(torch.randn(4, 6, 5, 7))[:, :1],
    "one pixel": lambda: dense(torch.randn(4, 6, 5, 7))[:, :, :1, :1],
    "one column": lambda: dense(torch.randn(4, 6, 5, 7))[..., :1],
    "one image": lambda: dense(torch.randn(4, 6, 5, 7))[:1, ::2],
    "every second row": lambda: dense(torch.randn(4, 6, 5, 7))[:, :, ::2],
    "transposed": lambda: dense(torch.randn(4, 6, 5, 7)).transpose(2, 3),
    "expanded": lambda: dense(torch.randn(1, 6, 5, 7)).expand(4, 6, 5, 7),
    "half a volume": lambda: dense(torch.randn(2, 6, 3, 4, 5)).chunk(2, 1)[1],
    "half of contiguous": lambda: torch.randn(4, 6, 5, 7).chunk(2, 1)[0],
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("way", ["direct", "dispatcher", "compiled"])
@pytest.mark.parametrize("kind", WITH_ORDER)
@pytest.mark.filterwarnings("ignore")  # of PyTorch's compiler, about itself
def test_slices_have_the_memory_format_that_pytorch_gives(
    kind: str, way: str, training: bool
) -> None:
    x = WITH_ORDER[kind]()
    ours, theirs = (BatchNorm2d, nn.BatchNorm2d) if x.dim() == 4 else (BatchNorm3d, nn.BatchNorm3d)
    a, b = twins(ours, theirs, x.shape[1])
    results = []
    for layer in (a.train(training), b.train(training)):
        own = x.detach().requires_grad_()
        with Seen() if way == "dispatcher" else contextlib.nullcontext():
            run = torch.compile(layer, backend="aot_eager") if way == "compiled" else layer
            y = run(own)
            (grad,) = torch.autograd.grad(y.square().sum(), own)
        results.append((y, grad))
    for one, other in zip(*results, strict=True):
        assert one.stride() == other.stride()
        close(one, other, 20)


def test_what_is_strided_or_half_takes_the_direct_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(modules, "forward")
    monkeypatch.delattr(_operators, "_backward_dispatched")
    shape = (4, 5, 6, 3)
    gradients = [*strided(shape).values(), torch.randn(shape), dense(torch.randn(shape))]
    inputs = [*gradients, dense(torch.randn(4, 10, 6, 3)).chunk(2, 1)[0]]
    for x in inputs:
        for gradient in gradients:
            for training in (True, False):
                a, b = twins(BatchNorm2d, nn.BatchNorm2d, 5)
                rows = []
                for layer in (a.train(training), b.train(training)):
                    own = x.detach().requires_grad_()
                    if layer is a:
                        y = layer(own, gradient, "relu")
                    else:
                        y = fused(layer, own, gradient, "relu")
                    y.backward(gradient)
                    rows.append((y, own.grad))
                for one, other in zip(*rows, strict=True):
                    close(one, other, 20)
    for dtype in HALVES:
        for training in (True, False):
            layer = BatchNorm2d(5).to(dtype).train(training)
            x = torch.randn(shape).to(dtype).requires_grad_()
            layer(x).sum().backward()
            assert layer.weight.grad is not None
            assert layer.weight.grad.dtype is dtype


def test_transposed_sequences_give_contiguous_ones_as_in_pytorch() -> None:
    x = torch.randn(4, 7, 5).transpose(1, 2)
    for kind in (BatchNorm1d, nn.BatchNorm1d):
        for training in (True, False):
            assert kind(5).train(training)(x).is_contiguous()


def test_results_may_be_changed_in_place() -> None:
    for side in (4, 128):  # the larger one lies in recycled memory
        layer = BatchNorm2d(16)
        x = torch.randn(4, 16, side, side, requires_grad=True)
        y = layer(x)
        y.relu_()
        y.sum().backward()
        assert x.grad is not None


def test_the_same_bits_on_any_number_of_threads() -> None:
    layer = BatchNorm2d(16)
    x = torch.randn(8, 16, 28, 28)
    outputs = []
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            outputs.append(copy.deepcopy(layer)(x))
        finally:
            torch.set_num_threads(before)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_a_mean_of_a_million_does_not_matter() -> None:
    """Where PyTorch's own sums lose digits, these do not."""
    x = torch.randn(64, 3, 8, 8, dtype=torch.float64) + 1e6
    single = x.float()
    reference = nn.BatchNorm2d(3).double()(single.double())
    torch.testing.assert_close(
        BatchNorm2d(3)(single).double(), reference.detach(), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("way", ["direct", "dispatcher"])
def test_gradients_of_float64_keep_the_means_rest(way: str) -> None:
    """A float64 mean of a million deviations is not the mean: 1e-10 of a deviation is missing."""
    x = torch.randn(64, 3, 5, dtype=torch.float64) + 1e6
    g = torch.randn(64, 3, 5, dtype=torch.float64)
    wide, gradient = (
        np.moveaxis(t.numpy().astype(np.longdouble), 1, 0).reshape(3, -1) for t in (x, g)
    )
    centred = wide - wide.mean(1, keepdims=True)
    invstd = 1 / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    h = centred * invstd
    expected = invstd * (
        gradient - gradient.mean(1, keepdims=True) - h * (gradient * h).mean(1, keepdims=True)
    )
    own = x.requires_grad_()
    with Seen() if way == "dispatcher" else contextlib.nullcontext():
        BatchNorm1d(3, dtype=torch.float64)(own).backward(g)
    assert own.grad is not None
    ours = np.moveaxis(own.grad.numpy(), 1, 0).reshape(3, -1)
    assert abs(ours - expected).max() < 1e-14


# What a module is.


@pytest.mark.parametrize(("ours", "theirs", "shape"), PAIRS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_is_the_module_that_pytorch_has(
    ours: type[nn.Module], theirs: type[nn.Module], shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    a, b = ours(5, **options), theirs(5, **options)
    assert isinstance(a, theirs)
    assert repr(a) == repr(b)
    assert a.extra_repr() == b.extra_repr()
    assert list(a.state_dict()) == list(b.state_dict())
    assert vars(a).keys() == vars(b).keys()
    for copied in (copy.deepcopy(a), pickle.loads(pickle.dumps(a))):
        assert type(copied) is ours
        assert list(copied.state_dict()) == list(a.state_dict())


def test_state_of_each_loads_into_the_other() -> None:
    a, b = BatchNorm2d(5), nn.BatchNorm2d(5)
    a(torch.randn(4, 5, 3, 3))
    b.load_state_dict(a.state_dict())
    assert b.num_batches_tracked == 1
    old = {k: v for k, v in a.state_dict().items() if k != "num_batches_tracked"}
    fresh = BatchNorm2d(5)
    fresh.load_state_dict(old, strict=False)
    assert torch.equal(fresh.state_dict()["running_var"], a.state_dict()["running_var"])


def test_frozen_in_eval_and_after_requires_grad() -> None:
    a, b = twins(BatchNorm2d, nn.BatchNorm2d, 5)
    for module in (a, b):
        module.eval()
        module.weight.requires_grad_(False)
        module.bias.requires_grad_(False)
    x1 = torch.randn(2, 5, 4, 4, requires_grad=True)
    x2 = x1.detach().clone().requires_grad_()
    a(x1).sum().backward()
    b(x2).sum().backward()
    close(x1.grad, x2.grad)
    assert a.weight.grad is None


def test_inference_mode_and_no_grad() -> None:
    a, b = twins(BatchNorm2d, nn.BatchNorm2d, 5)
    x = torch.randn(2, 5, 4, 4)
    for training in (True, False):
        a.train(training)
        b.train(training)
        with torch.inference_mode():
            close(a(x), b(x))
        with torch.no_grad():
            close(a(x), b(x))
    close(a.running_var, b.running_var)
    assert not a(x.clone().requires_grad_().detach()).isnan().any()


def retrain(layer: Any) -> None:
    layer.train()((torch.randn(2, 5, 4, 4) * 3 + 2).to(layer.weight.dtype))


def assign(layer: Any) -> None:
    layer.running_var.fill_(9.0)
    layer.running_mean.data.add_(1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("change", [retrain, assign])
@pytest.mark.parametrize("way", ["direct", "dispatcher", "compiled"])
@pytest.mark.filterwarnings("ignore")  # of PyTorch's compiler, about itself
def test_a_backward_takes_the_statistics_of_its_forward(
    way: str, change: Callable[[Any], None], activation: Any, dtype: torch.dtype
) -> None:
    """Evaluated, trained or edited since, and one backward through all of it."""
    torch._dynamo.reset()  # or it gives up after some, and runs what is not compiled
    a, b = twins(BatchNorm2d, nn.BatchNorm2d, 5)
    a, b = a.to(dtype).eval(), b.to(dtype).eval()
    x1 = torch.randn(2, 5, 4, 4).to(dtype).requires_grad_()
    x2 = x1.detach().clone().requires_grad_()
    with Seen() if way == "dispatcher" else contextlib.nullcontext():
        run = torch.compile(a, backend="aot_eager") if way == "compiled" else a
        y = run(x1, None, activation)
    change(a)
    y.sum().backward()
    fused(b, x2, None, activation).sum().backward()
    close(x1.grad, x2.grad)
    close(a.weight.grad, b.weight.grad, 20)


def test_forwards_of_both_modes_and_one_backward() -> None:
    """PyTorch's own backward takes the statistics of its own time, so it gets a copy."""
    results = []
    for layer in twins(BatchNorm2d, nn.BatchNorm2d, 5, dtype=torch.float64):
        torch.manual_seed(3)
        x, z = torch.randn(2, 2, 5, 4, 4, dtype=torch.float64)
        x.requires_grad_()
        if type(layer) is BatchNorm2d:
            frozen = layer.eval()(x)
        else:
            statistics = layer.running_mean.clone(), layer.running_var.clone()
            frozen = nn.functional.batch_norm(x, *statistics, layer.weight, layer.bias)
        trained = layer.train()(z) + layer(x)
        (frozen * trained).square().sum().backward()
        results.append([x.grad, layer.weight.grad, layer.bias.grad, layer.running_var])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("missing", ["running_mean", "running_var"])
@pytest.mark.parametrize("way", ["direct", "dispatcher"])
def test_one_of_the_two_statistics_is_refused_as_in_pytorch(
    way: str, missing: str, training: bool
) -> None:
    messages = []
    for kind in (BatchNorm2d, nn.BatchNorm2d):
        layer: Any = kind(5).train(training)
        setattr(layer, missing, None)
        other = layer.running_mean if missing == "running_var" else layer.running_var
        before = other.clone()
        seen = Seen() if way == "dispatcher" else contextlib.nullcontext()
        with seen, pytest.raises((ValueError, RuntimeError)) as raised:
            layer(torch.randn(2, 5, 4, 4))
        messages.append(f"{type(raised.value).__name__}: {raised.value}")
        assert torch.equal(other, before)
    assert messages[0] == messages[1]


@pytest.mark.filterwarnings("ignore")  # of PyTorch's compiler, about itself
def test_an_eps_of_0_is_the_same_on_every_way() -> None:
    """A variance of 0 has an invstd of 0 then, where PyTorch divides by 0."""
    torch._dynamo.reset()
    a, b = twins(BatchNorm2d, nn.BatchNorm2d, 5, eps=0.0)
    for layer in (a.eval(), b.eval()):
        layer.running_var[2] = 0.0
    x = torch.randn(2, 5, 4, 4)
    results: list[list[Any]] = []
    for run in (a, a, torch.compile(a, fullgraph=True, backend="aot_eager"), b):
        a.weight.grad = None
        own = x.clone().requires_grad_()
        with Seen() if len(results) == 1 else contextlib.nullcontext():
            y = run(own)
            y.sum().backward()
        results.append([y.detach(), own.grad, (b if run is b else a).weight.grad])  # type: ignore[union-attr]
    for ours in results[1:3]:
        for one, other in zip(ours, results[0], strict=True):
            assert torch.equal(one, other)
    y, grad, grad_weight = results[0]
    assert torch.equal(y[:, 2], a.bias[2].expand(2, 4, 4).detach())
    assert grad[:, 2].count_nonzero() == grad_weight[2] == 0
    others = [0, 1, 3, 4]
    for one, other in zip(results[0], results[3], strict=True):
        if one.dim() == 4:
            close(one[:, others], other[:, others])
        else:
            close(one[others], other[others], 20)


@pytest.mark.parametrize("option", ["eps", "momentum"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("training", [True, False])
def test_numbers_that_pytorch_alone_takes(option: str, value: float, training: bool) -> None:
    a, b = twins(BatchNorm2d, nn.BatchNorm2d, 5, **{option: value})
    x = torch.randn(2, 5, 4, 4)
    torch.testing.assert_close(a.train(training)(x), b.train(training)(x), equal_nan=True)
    torch.testing.assert_close(a.running_mean, b.running_mean, equal_nan=True)


def test_autocast() -> None:
    a, b = twins(BatchNorm2d, nn.BatchNorm2d, 5)
    x = torch.randn(2, 3, 6, 6)
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y1, y2 = a(conv(x)), b(conv(x))
    assert y1.dtype == y2.dtype == torch.bfloat16
    close(y1, y2)


def test_tensor_subclasses_stay_themselves() -> None:
    class Named(Tensor):
        pass

    x = torch.randn(2, 5, 4, 4).as_subclass(Named)
    y = BatchNorm2d(5)(x)
    assert type(y) is type(nn.BatchNorm2d(5)(x))


def test_lazily_negated_tensors() -> None:
    strided = torch.randn(4, 5, 3, 3, dtype=torch.complex64).conj().imag
    gradient = torch.randn(4, 5, 3, 3)
    for x in (strided, torch._neg_view(torch.randn(4, 5, 3, 3))):
        a, b = twins(BatchNorm2d, nn.BatchNorm2d, 5)
        x1, x2 = (x.detach().requires_grad_() for _ in range(2))
        y1, y2 = a(x1), b(x2)
        close(y1, y2)
        y1.backward(gradient)
        y2.backward(gradient)
        close(x1.grad, x2.grad)
        close(a.weight.grad, b.weight.grad, 20)


def test_parametrized_weights() -> None:
    class Twice(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight * 2

    a, b = twins(BatchNorm2d, nn.BatchNorm2d, 5)
    for module in (a, b):
        nn.utils.parametrize.register_parametrization(module, "weight", Twice())
    x = torch.randn(2, 5, 4, 4)
    close(a(x), b(x))


def test_large_results_come_from_recycled_memory() -> None:
    layer = BatchNorm2d(16)
    x = torch.randn(4, 16, 128, 128, requires_grad=True)  # 4 MiB
    batchnorm.memory.clear()
    for _ in range(2):
        layer(x).sum().backward()
    before = batchnorm.memory.stats()
    layer(x).sum().backward()
    after = batchnorm.memory.stats()
    assert after.hits - before.hits == 3  # output, its gradient made dense, the input's gradient
    assert after.misses == before.misses


# What is refused, in PyTorch's words.


def refusals() -> dict[str, tuple[Callable[[Any], Any], type[Exception]]]:
    x = torch.randn(2, 5, 4, 4)

    def with_buffer(layer: Any) -> Any:
        layer.running_mean.requires_grad_()
        return layer(x)

    def with_attribute(layer: Any, name: str, value: Any) -> Any:
        setattr(layer, name, value)
        return layer(x)

    def with_weight(layer: Any) -> Any:
        layer.weight = nn.Parameter(torch.ones(4))
        return layer(x)

    return {
        "dimensions": (lambda layer: layer(x[0]), ValueError),
        "channels": (lambda layer: layer(x[:, :4]), RuntimeError),
        "one value": (lambda layer: layer(x[:1, :, :1, :1]), ValueError),
        "integers": (lambda layer: layer(x.long()), RuntimeError),
        "complex": (lambda layer: layer(x.to(torch.complex64)), RuntimeError),
        "double input": (lambda layer: layer(x.double()), RuntimeError),
        "half weight": (lambda layer: layer.half()(x), RuntimeError),
        "one vector of other dtype": (
            lambda layer: with_attribute(layer, "running_var", layer.running_var.double()),
            RuntimeError,
        ),
        "weight's size": (with_weight, RuntimeError),
        "sparse": (lambda layer: layer(x.to_sparse()), RuntimeError),
        "quantized": (
            lambda layer: layer(torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)),
            RuntimeError,
        ),
        "weight elsewhere": (lambda layer: layer.to("meta")(x), RuntimeError),
        "eps": (lambda layer: with_attribute(layer, "eps", -1.0), ValueError),
        "eps of 0": (lambda layer: with_attribute(layer, "eps", 0.0), ValueError),
        "no tensor": (lambda layer: layer([1.0]), AttributeError),
        "buffer that requires grad": (with_buffer, RuntimeError),
    }


@pytest.mark.filterwarnings("ignore")  # of PyTorch, about sparse and quantized tensors
@pytest.mark.parametrize("kind", refusals())
def test_refused_in_pytorchs_words(kind: str) -> None:
    call, expected = refusals()[kind]
    messages = []
    for kind_of_module in (BatchNorm2d, nn.BatchNorm2d):
        layer: Any = kind_of_module(5)
        before = layer.running_var.clone()
        with pytest.raises(expected) as raised:
            call(layer)
        messages.append(f"{type(raised.value).__name__}: {raised.value}")
        now = layer.running_var
        assert now.is_meta or torch.equal(now.to(before.dtype), before)
    ours, theirs = messages
    assert ours == theirs


def test_empty_batches() -> None:
    a, b = twins(BatchNorm2d, nn.BatchNorm2d, 5)
    for training in (True, False):
        a.train(training)
        b.train(training)
        x = torch.randn(0, 5, 4, 4, requires_grad=True)
        assert a(x).shape == b(x).shape == x.shape
        a(x).sum().backward()
        assert x.grad is not None


def test_meta_tensors_and_other_devices_are_pytorchs() -> None:
    layer = BatchNorm2d(5, device="meta")
    x = torch.randn(2, 5, 4, 4, device="meta")
    y = layer(x, x, "relu")
    assert y.is_meta
    assert y.shape == x.shape


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("pack", [Tensor.float, lambda saved: torch.stack([saved] * 2, -1)[..., 0]])
def test_hooks_may_change_how_tensors_are_saved(
    pack: Callable[[Tensor], Tensor], activation: Any
) -> None:
    weights = torch.randn(8, 3, 4, 5)
    gradients = []
    for hook in (lambda saved: saved, pack):
        torch.manual_seed(0)
        input = torch.randn(8, 3, 4, 5, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(hook, lambda saved: saved):
            output = BatchNorm2d(3)(input, activation=activation)
        output.backward(weights)
        gradients.append(input.grad)
    torch.testing.assert_close(*gradients)


def test_hooks_that_lose_what_was_saved_are_refused() -> None:
    def lose(saved: Tensor) -> Tensor:
        return saved[:1].clone() if saved.dtype is torch.float64 else saved

    with torch.autograd.graph.saved_tensors_hooks(lose, lambda saved: saved):
        output = BatchNorm2d(3)(torch.randn(8, 3, 4, 5, requires_grad=True))
    with pytest.raises(RuntimeError, match=r"shape \[1, 3\].*expected.*\[3, 3\]"):
        output.sum().backward()


def test_one_value_without_statistics_is_refused_in_eval_too() -> None:
    messages = []
    for kind in (nn.BatchNorm1d, BatchNorm1d):
        layer = kind(2, track_running_stats=False).eval()
        with pytest.raises(ValueError, match="Expected more than 1 value per channel") as caught:
            layer(torch.ones(1, 2))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_without_a_count_cumulative_averages_stand_still() -> None:
    layer = BatchNorm1d(2, momentum=None)
    layer.num_batches_tracked = None
    layer(torch.randn(8, 2) + 5)
    stock = nn.BatchNorm1d(2, momentum=None)
    stock.num_batches_tracked = None
    stock(torch.randn(8, 2) + 5)
    assert torch.equal(layer.running_mean, stock.running_mean)  # type: ignore[arg-type]
    assert torch.equal(layer.running_var, stock.running_var)  # type: ignore[arg-type]


def test_a_statistic_that_cannot_be_written_to_leaves_the_other_alone() -> None:
    messages = []
    for kind in (nn.BatchNorm1d, BatchNorm1d):
        layer = kind(2)
        with torch.inference_mode():
            layer.running_var = torch.ones(2)
        with pytest.raises(RuntimeError, match=r"[Ii]nference") as caught:
            layer(torch.randn(8, 2))
        messages.append(str(caught.value))
        assert torch.equal(layer.running_mean, torch.zeros(2))  # type: ignore[arg-type]
    assert messages[0] == messages[1]


@pytest.mark.parametrize("training", [True, False])
def test_a_module_without_a_counter_runs(training: bool) -> None:
    """As loaded from before PyTorch had counters, or stripped of them."""
    layer = BatchNorm2d(3).train(training)
    stock = nn.BatchNorm2d(3).train(training)
    del layer.num_batches_tracked
    if training:
        stock.num_batches_tracked = None
    else:
        del stock.num_batches_tracked
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(layer(x), stock(x))
    torch.testing.assert_close(layer.running_mean, stock.running_mean)


def test_a_counter_that_is_no_buffer_counts() -> None:
    layer = BatchNorm2d(3)
    del layer.num_batches_tracked
    layer.num_batches_tracked = torch.tensor(3)
    assert "num_batches_tracked" not in dict(layer.named_buffers())
    layer(torch.randn(4, 3, 5, 5))
    assert layer.num_batches_tracked == 4


def strange_counters() -> dict[str, Tensor]:
    with torch.inference_mode():
        inference = torch.tensor(3)
    return {
        "negated": torch._neg_view(torch.tensor(-3)),
        "of two": torch.tensor([3, 3]),
        "strided": torch.tensor([[3, 9]])[0, :1],
        "inference": inference,
    }


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("which", strange_counters())
def test_strange_counters_count_as_in_pytorch(which: str, momentum: Any) -> None:
    is_refused = which == "inference" or (which == "of two" and momentum is None)
    tensors = []
    for kind in (nn.BatchNorm1d, BatchNorm1d):
        layer = kind(2, momentum=momentum)
        layer.num_batches_tracked = strange_counters()[which]
        torch.manual_seed(0)
        refused = pytest.raises((RuntimeError, ValueError))
        with refused if is_refused else contextlib.nullcontext():
            layer(torch.randn(8, 2))
        counter = None if is_refused else layer.num_batches_tracked.clone()
        tensors.append((counter, layer.running_mean))
    torch.testing.assert_close(tensors[1], tensors[0])


def test_a_counter_goes_on_without_statistics() -> None:
    for kind in (nn.BatchNorm1d, BatchNorm1d):
        layer = kind(2)
        layer.running_mean = layer.running_var = None
        layer(torch.randn(8, 2))
        assert layer.num_batches_tracked == 1


def test_statistics_whose_values_share_memory_are_pytorchs() -> None:
    results = []
    for kind in (nn.BatchNorm1d, BatchNorm1d):
        layer = kind(3)
        layer.running_var = torch.ones(1).expand(3)
        torch.manual_seed(0)
        layer(torch.randn(8, 3))
        # Which channel's variance comes to stay there depends on PyTorch's threads.
        assert layer.running_var.isfinite().all()
        results.append((layer.running_mean, layer.num_batches_tracked))
    torch.testing.assert_close(results[1], results[0])


# Half statistics.

# A tenth of the variance of +-LARGE is beyond what the dtype holds.
LARGE = {torch.float16: 6e4, torch.bfloat16: 1e20}


def large(dtype: torch.dtype) -> Tensor:
    """Three channels, of which the second is as large as it can be."""
    x = torch.randn(8, 3, 4, 4)
    x[:, 1] = x[:, 1].sign() * LARGE[dtype]
    return x.to(dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("way", ["direct", "dispatcher", "compiled"])
@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
@pytest.mark.filterwarnings("ignore")  # of PyTorch's compiler, about itself
def test_a_half_statistic_that_would_be_infinite_is_kept(
    momentum: Any, way: str, dtype: torch.dtype
) -> None:
    """Both of its channel, as float32 ones of a variance beyond float32; all others take part."""
    layer = BatchNorm2d(3, momentum=momentum).to(dtype)
    reference = BatchNorm2d(3, momentum=momentum)
    run = torch.compile(layer, backend="aot_eager") if way == "compiled" else layer
    for _ in range(2):
        x = large(dtype)
        with Seen() if way == "dispatcher" else contextlib.nullcontext():
            y = run(x)
        close(y, reference(x.float()).to(dtype))
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert layer.num_batches_tracked == 2
    assert layer.running_mean[1] == 0.0
    assert layer.running_var[1] == 1.0
    for name in ("running_mean", "running_var"):
        ours, wide = getattr(layer, name)[::2], getattr(reference, name)[::2]
        assert ours.dtype is dtype
        close(ours, wide.to(dtype), 2)
    small = torch.randn(8, 3, 4, 4).to(dtype)
    run(small)
    assert layer.running_var[1] != 1.0
    assert layer.running_var.isfinite().all()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_statistics_that_still_fit_are_taken_in(dtype: torch.dtype) -> None:
    """The average counts, not the batch: 0.9 * 1 + 0.1 * (more than the dtype holds)."""
    bound = torch.finfo(dtype).max
    x = torch.tensor([-1.0, 1.0, -1.0, 1.0]) * (2 * bound) ** 0.5
    layer = BatchNorm1d(1).to(dtype)
    layer(x.to(dtype).view(4, 1))
    assert layer.running_var is not None
    assert 0.2 * bound < layer.running_var.item() < 0.4 * bound


def test_a_statistic_between_float32s_end_and_bfloat16s() -> None:
    """Finite in float32, infinite once rounded."""
    layer = BatchNorm1d(1, momentum=1.0)
    x = torch.full((150, 1), 2.0**64 - 2.0**56)
    x[::2] *= -1
    layer(x.bfloat16())
    assert layer.running_var is not None
    assert layer.running_var.isfinite().all()
    assert layer.running_var.bfloat16().isinf().all()
    half = BatchNorm1d(1, momentum=1.0).bfloat16()
    half(x.bfloat16())
    assert half.running_var is not None
    assert half.running_var.item() == 1.0


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_old_half_statistics_are_treated_as_wide_ones(momentum: Any, dtype: torch.dtype) -> None:
    """NaN and infinity among them too, such as `.half()` makes of a running_var beyond 65504."""
    half, wide = BatchNorm2d(3, momentum=momentum).to(dtype), BatchNorm2d(3, momentum=momentum)
    for layer in (half, wide):
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_var[1] = float("inf")
        layer.running_mean[2] = float("nan")
    for _ in range(3):
        x = torch.randn(8, 3, 4, 4).to(dtype)
        half(x)
        wide(x)
    for name in ("running_mean", "running_var"):
        ours, expected = getattr(half, name), getattr(wide, name)
        torch.testing.assert_close(ours.float(), expected, rtol=2e-2, atol=2e-2, equal_nan=True)


# Cumulative averages of what a channel has taken in.


def spoiled(dtype: torch.dtype) -> Tensor:
    """A batch of which the second channel takes nothing in: for infinity, or for its size."""
    x = torch.randn(8, 3, 4, 4)
    x[:, 1] = LARGE[dtype] * x[:, 1].sign() if dtype in HALVES else float("inf")
    return x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
def test_cumulative_averages_are_those_of_what_was_taken_in(dtype: torch.dtype) -> None:
    layer = BatchNorm2d(3, momentum=None).to(dtype)
    reference = nn.BatchNorm2d(3, momentum=None).double()
    batches = [torch.randn(8, 3, 4, 4).to(dtype) * (k + 1) for k in range(3)]
    for x in (spoiled(dtype), batches[0], spoiled(dtype), *batches[1:]):
        layer(x)
    for x in batches:
        reference(x.double())
    assert layer.num_batches_tracked == 5
    for name in ("running_mean", "running_var"):
        close(getattr(layer, name)[1], getattr(reference, name)[1].to(dtype), 4)


def test_skipped_batches_are_no_state_and_go_with_the_counter() -> None:
    layer = BatchNorm2d(3, momentum=None)
    stock = nn.BatchNorm2d(3, momentum=None)
    layer(spoiled(torch.float32))
    assert list(layer.state_dict()) == list(stock.state_dict())
    assert vars(layer).keys() == vars(stock).keys()
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    x = torch.randn(2, 8, 3, 4, 4)
    for each in (layer, *copies):
        each(x[0])
        assert torch.equal(each.running_var, layer.running_var)  # type: ignore[arg-type]
    assert layer.running_var is not None
    close(layer.running_var[1], x[0, :, 1].var())
    # Another state, whose counter has another value: all of it was taken in.
    stock(x[0])
    layer.load_state_dict(stock.state_dict())
    layer(x[1])
    stock(x[1])
    close(layer.running_var, stock.running_var)
    layer(spoiled(torch.float32))
    layer.reset_running_stats()
    stock.reset_running_stats()
    close(layer.running_var, stock.running_var)
    layer(x[0])
    layer(x[1])
    stock(x[0])
    stock(x[1])
    close(layer.running_var, stock.running_var)


def test_skipped_batches_do_not_go_with_another_counter_of_that_number() -> None:
    layer, other = BatchNorm2d(3, momentum=None), nn.BatchNorm2d(3, momentum=None)
    x = torch.randn(3, 8, 3, 4, 4)
    layer(spoiled(torch.float32))
    layer(x[0])
    other(x[1])
    other(x[2])
    layer.load_state_dict(other.state_dict())  # two batches, as here, of which none was skipped
    layer(x[0])
    other(x[0])
    close(layer.running_var, other.running_var)


@pytest.mark.parametrize("momentum", [1.0, None])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_infinite_half_statistics_are_replaced_where_nothing_is_averaged(
    momentum: Any, dtype: torch.dtype
) -> None:
    layer = BatchNorm2d(3, momentum=momentum).to(dtype)
    assert layer.running_var is not None
    layer.running_var[1] = float("inf")
    x = torch.randn(8, 3, 4, 4).to(dtype)
    layer(x)
    close(layer.running_var[1], x[:, 1].float().var().to(dtype), 4)


def test_a_pytorch_without_an_inner_name_is_refused_at_import(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(torch._C, "_is_tracing")
    with pytest.raises(ImportError, match=r"PyTorch 2\..* lacks one: .*_is_tracing.* with 2\.13"):
        runpy.run_path(_private.__file__)
