"""Conversion of models: the same numbers as torch's own modules, and exactly what is fused."""

# Networks are written as people write them, mostly without types: what a child of a module is, and
# what it returns, mypy does not know.
# mypy: disable-error-code="assignment, no-any-return, union-attr, operator"
# mypy: disable-error-code="no-untyped-call, unused-ignore"

from __future__ import annotations

import ast
import copy
import io
import logging
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from batchnorm.torch import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    _source,
    convert,
    report,
    revert,
)
from batchnorm.torch.modules import _Forward

TWINS = (BatchNorm1d, BatchNorm2d, BatchNorm3d)


class Calls(list[tuple[bool, str | None]]):
    """The fused calls of batch norms: whether with a residual, and the activation."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    seen = Calls()
    plain = _Forward.forward

    def forward(
        self: Any,
        input: Tensor,
        residual: Tensor | None = None,
        activation: Any = None,
        negative_slope: float = 0.01,
    ) -> Tensor:
        if activation is not None:
            seen.append((residual is not None, activation))
        return plain(self, input, residual, activation, negative_slope)

    monkeypatch.setattr(_Forward, "forward", forward)
    return seen


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


RELU, ADD_RELU = (False, "relu"), (True, "relu")
LEAKY, ADD_LEAKY = (False, "leaky_relu"), (True, "leaky_relu")


# Networks, written as people write them.


class Basic(nn.Module):
    """torchvision's BasicBlock."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x

        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)

        out = self.conv2(out)
        out = self.bn2(out)

        if self.downsample is not None:
            identity = self.downsample(x)

        out += identity
        out = self.relu(out)

        return out


class Bottleneck(nn.Module):
    """Three convolutions, functions for activations."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += self.shortcut(x)
        out = F.relu(out)
        return out


class ResNet(nn.Module):
    """torchvision's: the work is in a method that forward calls."""

    def __init__(self, blocks: list[nn.Module], channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(2)
        self.layers = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, 5)

    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.relu(x)
        x = self.maxpool(x)
        x = self.layers(x)
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
        return self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self._forward_impl(x)


class PreActivation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.act = nn.LeakyReLU(0.1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.act(self.bn1(x)))
        out = self.bn2(out)
        out = self.conv2(self.act(out))
        return out + x


class Dense(nn.Module):
    """torchvision's _DenseLayer: helper methods, a list or a tensor."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(inputs, 2 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * growth)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def bn_function(self, inputs: list[Tensor]) -> Tensor:
        concated = torch.cat(inputs, 1)
        return self.conv1(self.relu1(self.norm1(concated)))

    def forward(self, input: Tensor | list[Tensor]) -> Tensor:
        previous = [input] if isinstance(input, Tensor) else input
        bottleneck_output = self.bn_function(previous)
        return self.conv2(self.relu2(self.norm2(bottleneck_output)))


class DenseBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layers = nn.ModuleList(Dense(6 + 4 * index, 4) for index in range(3))

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)


def conv_bn_relu6(inputs: int, outputs: int, kernel: int, groups: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, 1, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(inplace=True),
    ]


class InvertedResidual(nn.Module):
    """MobileNetV2's: ReLU6, and a linear end. Nothing of it can be fused."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = 2 * channels
        self.conv = nn.Sequential(
            *conv_bn_relu6(channels, hidden, 1),
            *conv_bn_relu6(hidden, hidden, 3, hidden),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


def vgg() -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = 3
    for outputs in (6, 8, 8):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)]
        layers += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        inputs = outputs
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(5))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = self.twice(3, 6)
        self.middle = self.twice(6, 12)
        self.up = nn.ConvTranspose2d(12, 6, 2, 2)
        self.bn_up = nn.BatchNorm2d(6)
        self.last = self.twice(12, 6)

    @staticmethod
    def twice(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            *(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()),
            *(nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()),
        )

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        x = self.middle(F.max_pool2d(skip, 2))
        x = self.bn_up(self.up(x)).relu()
        return self.last(torch.cat([skip, x], 1))


class Loop(nn.Module):
    """Modules out of lists, an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.bns = nn.ModuleList([nn.BatchNorm1d(6), nn.BatchNorm1d(6), nn.Identity()])

    def forward(self, x: Tensor) -> Tensor:
        for linear, bn in zip(self.linears, self.bns, strict=True):
            x = F.relu(bn(linear(x)))
        for index in range(2):
            x = torch.relu(self.bns[index](x) + x)
        return x


class Volumes(nn.Module):
    """Both sides of the sum are batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv3d(3, 4, 1), nn.Conv3d(3, 4, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm3d(4), nn.BatchNorm3d(4)

    def forward(self, x: Tensor) -> Tensor:
        left = self.bn1(self.conv1(x))
        right = self.bn2(self.conv2(x))
        return F.leaky_relu(left + right, negative_slope=0.3)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[tuple[bool, str]]]] = {
    "resnet": (
        lambda: ResNet([Basic(8, 8), Basic(8, 12, 2)], 12),
        (4, 3, 16, 16),
        [RELU, *[RELU, ADD_RELU] * 2],
    ),
    "bottleneck": (
        lambda: ResNet([Bottleneck(8, 2), Bottleneck(8, 4, 2), Bottleneck(16, 4)], 16),
        (4, 3, 16, 16),
        # An empty Sequential gives the input itself: only what runs there tells.
        [RELU, *[RELU, RELU, ADD_RELU] * 3],
    ),
    "pre-activation": (lambda: PreActivation(3), (4, 3, 8, 8), [LEAKY, LEAKY]),
    "densenet": (DenseBlock, (4, 3, 8, 8), [RELU] * 6),
    "mobilenet": (lambda: InvertedResidual(3), (4, 3, 8, 8), []),
    "vgg": (vgg, (4, 3, 16, 16), [RELU] * 3),
    "unet": (UNet, (2, 3, 8, 8), [RELU] * 7),
    "loop": (Loop, (5, 6), [RELU, RELU, ADD_RELU, ADD_RELU]),
    "volumes": (Volumes, (2, 3, 4, 4, 4), [ADD_LEAKY]),
}


def pair(make: Callable[[], nn.Module], *shape: int) -> tuple[nn.Module, nn.Module]:
    """A model in float64 with statistics of some batches, and its converted copy."""
    stock = make().double()
    with torch.no_grad():
        for _ in range(2):
            stock(torch.randn(shape, dtype=torch.float64))
    return stock, convert(copy.deepcopy(stock))


def assert_same_model(actual: nn.Module, expected: nn.Module) -> None:
    torch.testing.assert_close(
        OrderedDict(actual.state_dict()),
        OrderedDict(expected.state_dict()),
        rtol=1e-12,
        atol=1e-12,
    )


def assert_same_step(actual: nn.Module, expected: nn.Module, *inputs: Any) -> None:
    """The same output, gradients and running statistics."""
    models = actual, expected
    assert actual.training == expected.training
    actual, expected = (getattr(each, "_orig_mod", each) for each in models)
    results = []
    for called, model in zip(models, (actual, expected), strict=True):
        own = [
            each.clone().requires_grad_() if isinstance(each, Tensor) else each for each in inputs
        ]
        model.zero_grad()
        # A leaf may not be written to in place, as some models do with their input.
        output = called(*(each * 1 if isinstance(each, Tensor) else each for each in own))
        output.backward(torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output))
        gradients = [each.grad for each in own if isinstance(each, Tensor)]
        of_parameters = {name: each.grad for name, each in model.named_parameters()}
        results.append([output, gradients, of_parameters])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-10)
    assert_same_model(actual, expected)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_compute_the_same_and_are_fused(name: str, training: bool, calls: Calls) -> None:
    make, shape, expected = NETWORKS[name]
    stock, model = pair(make, *shape)
    stock.train(training)
    model.train(training)
    calls.clear()
    assert_same_step(model, stock, torch.randn(shape, dtype=torch.float64))
    assert calls == expected


@pytest.mark.parametrize("name", NETWORKS)
def test_without_fusion_only_batch_norms_change(name: str, calls: Calls) -> None:
    make, shape, _ = NETWORKS[name]
    stock = make().double()
    input = torch.randn(shape, dtype=torch.float64)
    stock(input)
    model = convert(copy.deepcopy(stock), fuse_relu=False)
    for new, old in zip(model.modules(), stock.modules(), strict=True):
        assert type(new) is (type(old) if type(new) not in TWINS else type(new))
    assert_same_step(model, stock, input)
    assert calls == []


@pytest.mark.parametrize("name", NETWORKS)
def test_revert_gives_back_what_there_was(name: str, calls: Calls) -> None:
    make, shape, _ = NETWORKS[name]
    stock, model = pair(make, *shape)
    for each in (copy.deepcopy(model), model):
        assert revert(each) is each
        assert [type(module) for module in each.modules()] == [
            type(module) for module in stock.modules()
        ]
        assert [set(module.__dict__) for module in each.modules()] == [
            set(module.__dict__) for module in stock.modules()
        ]
        calls.clear()
        input = torch.randn(shape, dtype=torch.float64)
        assert torch.equal(each(input), copy.deepcopy(stock)(input))
        assert calls == []


def test_identity_state_and_names_stay() -> None:
    model = ResNet([Basic(8, 8)], 8)
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters())
    text, keys = repr(model), list(model.state_dict())
    seen: list[nn.Module] = []
    model.fc.register_forward_hook(lambda module, *_: seen.append(module))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    assert convert(model) is model
    assert all(each is modules[name] for name, each in model.named_modules())
    assert all(each is parameters[name] for name, each in model.named_parameters())
    assert (repr(model), list(model.state_dict())) == (text, keys)
    before = model.bn1.weight.clone()
    model(torch.randn(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    assert seen == [model.fc]
    assert not torch.equal(model.bn1.weight, before)
    assert isinstance(model, ResNet)
    assert isinstance(model.bn1, nn.BatchNorm2d)


def test_converting_twice_is_converting_once(calls: Calls) -> None:
    model = convert(ResNet([Basic(8, 8)], 8))
    kinds = [type(each) for each in model.modules()]
    convert(model)
    assert [type(each) for each in model.modules()] == kinds
    convert(model, fuse_relu=False)
    assert type(model) is ResNet
    model(torch.randn(4, 3, 8, 8))
    assert calls == []
    convert(model)
    assert [type(each) for each in model.modules()] == kinds


def test_modules_of_a_class_share_their_fused_class() -> None:
    model = convert(nn.Sequential(Basic(4, 4), Basic(4, 4), Basic(4, 8)))
    assert type(model[0]) is type(model[1])
    # In the third, one more batch norm is no other place.
    assert type(model[2]) is type(model[0])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_what_is_no_batch_norm_of_torchs_is_left_alone() -> None:
    class Own(nn.BatchNorm2d):
        pass

    left = [Own(3), nn.SyncBatchNorm(3), nn.LazyBatchNorm2d(), nn.InstanceNorm2d(3)]
    script = torch.jit.script(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    kinds = [type(each) for each in [*left, *script.modules()]]
    with pytest.warns(UserWarning, match="nothing was converted"):
        convert(nn.Sequential(*left, script))
    assert [type(each) for each in [*left, *script.modules()]] == kinds


def test_a_batch_norm_alone() -> None:
    layer = nn.BatchNorm1d(3)
    assert type(convert(layer)) is BatchNorm1d
    assert type(revert(layer)) is nn.BatchNorm1d


def test_a_module_in_two_places(calls: Calls) -> None:
    block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU())
    stock, model = pair(lambda: nn.Sequential(block, nn.Tanh(), block), 4, 3, 5, 5)
    calls.clear()
    assert_same_step(model, stock, torch.randn(4, 3, 5, 5, dtype=torch.float64))
    assert calls == [RELU, RELU]


def test_sequentials_go_on_as_containers(calls: Calls) -> None:
    model = convert(vgg())
    model(torch.randn(2, 3, 16, 16))
    calls.clear()
    input = torch.randn(2, 3, 16, 16)
    head = model[:3]
    assert torch.equal(head(input), model[2](model[1](model[0](input))))
    assert calls == [RELU]  # the slice; modules that are called one by one are not fused
    model.insert(2, nn.Identity())
    calls.clear()
    model.eval()(input)
    assert calls == [RELU, RELU]


# What must not be fused, or not any more.


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(3)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


HOOKS: dict[str, Callable[[nn.Module, list[Tensor]], Any]] = {
    "forward": lambda module, seen: module.register_forward_hook(
        lambda _, inputs, output: seen.extend([*inputs, output])
    ),
    "forward_pre": lambda module, seen: module.register_forward_pre_hook(
        lambda _, inputs: seen.extend(inputs)
    ),
    "full_backward": lambda module, seen: module.register_full_backward_hook(
        lambda _, inputs, outputs: seen.extend([*inputs, *outputs])
    ),
    "full_backward_pre": lambda module, seen: module.register_full_backward_pre_hook(
        lambda _, outputs: seen.extend(outputs)
    ),
    "global": lambda module, seen: nn.modules.module.register_module_forward_hook(
        lambda each, inputs, output: seen.extend([*inputs, output]) if each is module else None
    ),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("child", ["bn", "relu"])
@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("sequential", [False, True], ids=["method", "Sequential"])
def test_hooks_see_what_they_would_see(
    kind: str, child: str, when: str, sequential: bool, calls: Calls
) -> None:
    def make() -> nn.Module:
        if not sequential:
            return Small().double()
        children = OrderedDict(Small().double().named_children())
        return nn.Sequential(children)

    stock = make()
    model = copy.deepcopy(stock)
    seen: dict[str, list[Tensor]] = {"stock": [], "model": []}
    handles = [HOOKS[kind](stock.get_submodule(child), seen["stock"])]
    if when == "after":
        convert(model)
    handles.append(HOOKS[kind](model.get_submodule(child), seen["model"]))
    if when == "before":
        convert(model)
    input = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert_same_step(model, stock, input)
    assert seen["model"]
    torch.testing.assert_close(seen["model"], seen["stock"], rtol=1e-9, atol=1e-10)
    assert calls == []
    for handle in handles:
        handle.remove()
    model(input)
    assert calls == [RELU]


def test_children_that_are_exchanged_later(calls: Calls) -> None:
    stock, model = pair(Small, 2, 3, 4, 4)
    input = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    for name, child, expected in [
        ("relu", nn.GELU(), []),
        ("relu", nn.LeakyReLU(0.2), [LEAKY]),
        ("relu", nn.LeakyReLU(0.0), [RELU]),
        ("relu", nn.LeakyReLU(-1.0), []),  # the library has no such slope, torch has
        ("bn", nn.Identity(), []),
        ("bn", nn.BatchNorm2d(3, eps=0.1).double(), []),
        ("bn", BatchNorm2d(3, eps=0.1).double(), []),
    ]:
        setattr(stock, name, copy.deepcopy(child))
        setattr(model, name, child)
        calls.clear()
        assert_same_step(model, stock, input)
        assert calls == expected, child
    model.relu, stock.relu = nn.ReLU(), nn.ReLU()
    assert_same_step(model, stock, input)
    assert calls == [RELU]


class Traps(nn.Module):
    """One batch norm, one ReLU, and a forward that each subclass writes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(3)
        self.relu = nn.ReLU()
        self.other = nn.Conv2d(3, 3, 1)
        self.flag = True


class TwoUsers(Traps):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(x)
        z = self.relu(y)
        return z + y


class ReadAgainLater(Traps):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(x)
        z = self.relu(y + x)
        if self.flag:
            z = z * y
        return z


class SumIsUsed(Traps):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(x)
        y = y + x
        z = self.relu(y)
        return z * y


class LeftByBreak(Traps):
    def forward(self, x: Tensor) -> Tensor:
        y = x
        for step in range(2):
            y = self.bn(y)
            if step == 1:
                break
            y = self.relu(y)
        return y


class Caught(Traps):
    def forward(self, x: Tensor) -> Tensor:
        try:
            y = self.bn(x)
            y = self.relu(y, nonsense=True)
        except TypeError:
            y = y * 2
        return y


class Captured(Traps):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(x)
        double = lambda: y * 2  # noqa: E731
        z = double()
        y = self.relu(y)
        return y + z


class NotExecuted(Traps):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(x)
        y = self.relu(y) if not self.flag else x * 3
        return y


class Locals(Traps):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(x)
        z = locals()["y"] * 2
        y = self.relu(y)
        return y + z


class WritesToInput(Traps):
    """What the residual does in place reaches the batch norm's input, if that came later."""

    def forward(self, x: Tensor) -> Tensor:
        c = x * 2
        y = self.bn(c)
        y = y + c.add_(1)
        return self.relu(y)


class WritesThroughAlias(Traps):
    def forward(self, x: Tensor) -> Tensor:
        c = x * 2
        alias = c.view_as(c)
        y = self.bn(c)
        alias += 1
        y = y + c
        return self.relu(y)


class WritesByModule(Traps):
    def forward(self, x: Tensor) -> Tensor:
        c = x * 2
        y = self.bn(c)
        r = F.relu(c, inplace=True)
        return self.relu(y + r)


class AddsToResidual(Traps):
    def forward(self, x: Tensor) -> Tensor:
        r = x * 2
        kept = r
        r += self.bn(x)
        return self.relu(r) + kept


class BatchNormTwice(Traps):
    """The order of a batch norm's own calls is that of its running statistics."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        z = self.bn(self.other(x)) * 2
        return self.relu(y + z)


class Broadcast(Traps):
    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(x) + x.mean((2, 3), keepdim=True))


class Number(Traps):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(x)
        y += 0.5
        return self.relu(y)


class OtherDtype(Traps):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(x)
        y += x.float()
        return self.relu(y)


class Alpha(Traps):
    def forward(self, x: Tensor) -> Tensor:
        return self.relu(torch.add(self.bn(x), x, alpha=2))


class Threshold(Traps):
    """Named as if it were a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.Threshold(0.5, 0.0)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(x))


@pytest.mark.parametrize(
    "kind",
    [
        *(TwoUsers, ReadAgainLater, SumIsUsed, LeftByBreak, Caught, Captured, NotExecuted, Locals),
        *(AddsToResidual, BatchNormTwice, Broadcast, Number, OtherDtype, Alpha, Threshold),
    ],
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_traps_are_not_fused(kind: type[Traps], training: bool, calls: Calls) -> None:
    stock, model = pair(kind, 2, 3, 4, 4)
    stock.train(training)
    model.train(training)
    calls.clear()
    assert_same_step(model, stock, torch.randn(2, 3, 4, 4, dtype=torch.float64))
    assert calls == []


@pytest.mark.parametrize("kind", [WritesToInput, WritesThroughAlias, WritesByModule])
@torch.no_grad()
def test_batch_norms_read_their_input_before_it_is_written_to(
    kind: type[Traps], calls: Calls
) -> None:
    # Without gradients: torch refuses a backward through what was overwritten.
    stock, model = pair(kind, 2, 3, 4, 4)
    calls.clear()
    input = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(model(input), stock(input), rtol=1e-9, atol=1e-10)
    assert_same_model(model, stock)
    assert calls == []


class Spellings(nn.Module):
    """Ways to write one and the same thing."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.branch = nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(3)
        self.relu = nn.ReLU()
        self.function = torch.relu
        self.blocks = nn.ModuleDict({"bn": self.bn})
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        c = self.conv(x)
        if self.way == "torch.add":
            return F.relu(torch.add(self.bn(c), x))
        if self.way == "add":
            return F.relu(self.bn(c).add(x))
        if self.way == "add_":
            return F.relu_(self.bn(c).add_(x))
        if self.way == "residual first":
            y = self.bn(c)
            y = x + y
            return y.relu_()
        if self.way == "function of its own":
            return self.function(x + self.bn(c))
        if self.way == "item":
            y = self.blocks["bn"](c)
            return torch.relu_(y + x)
        if self.way == "branch":
            return self.relu(self.bn(self.conv(x)) + self.branch(x).mul_(2))
        if self.way == "branch in between":
            y = self.bn(self.conv(x))
            r = self.branch(x)
            if self.training:
                r = F.dropout(r, 0.0)
            r = r.mul(2)
            return self.relu(r + y)
        if self.way == "within":
            with torch.enable_grad():
                for _ in range(1):
                    c = self.bn(c)
                    c += x
                    c = self.relu(c)
            return c
        if self.way == "other names":
            normalized = self.bn(c)
            total = normalized + x
            rectified = self.relu(total)
            return rectified
        if self.way == "chained":
            y = self.bn(c)
            return self.relu(y + x).mul(2).flatten(1).sum(1)
        raise ValueError(self.way)


@pytest.mark.parametrize(
    "way",
    [
        *("torch.add", "add", "add_", "residual first", "function of its own", "item", "branch"),
        *("branch in between", "within", "other names", "chained"),
    ],
)
def test_spellings_that_are_fused(way: str, calls: Calls) -> None:
    stock, model = pair(lambda: Spellings(way), 2, 3, 4, 4)
    calls.clear()
    assert_same_step(model, stock, torch.randn(2, 3, 4, 4, dtype=torch.float64))
    assert calls == [ADD_RELU]


# What Python has that a trace would have frozen or lost.


class Optional(Small):
    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """An argument that is there or not."""
        out = self.bn(x)
        if residual is not None:
            out = self.conv(out) + residual
        return self.relu(out)


class Flag(Small):
    scale = 1.0

    def forward(self, x: Tensor, *rest: Tensor, scale: float | None = None) -> Tensor:  # type: ignore[override]
        self.calls = getattr(self, "calls", 0) + 1
        out = self.relu(self.bn(x))
        for each in rest:
            out = out + each
        return out * (self.scale if scale is None else scale)


class NoGrad(Small):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            gate = self.relu(self.bn(x))
        return self.conv(x) * gate


class Private(Small):
    """A private name, super(), a docstring and a default that only this class knows."""

    def __double(self, x: Tensor) -> Tensor:
        return x * 2

    def forward(self, x: Tensor, factor: float = 3.0) -> Tensor:  # type: ignore[override]
        """Multiply what the class before made."""
        out = self.relu(self.bn(self.__double(x)))
        return super().forward(out) * factor


def test_arguments_that_may_be_missing(calls: Calls) -> None:
    stock, model = pair(Optional, 2, 3, 4, 4)
    x, residual = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    assert_same_step(model, stock, x)
    assert_same_step(model, stock, x, residual)


def test_state_of_python_is_read_when_it_is_used(calls: Calls) -> None:
    stock, model = pair(Flag, 2, 3, 4, 4)
    calls.clear()
    x, y = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    assert_same_step(model, stock, x)
    stock.scale = model.scale = 3.0
    assert_same_step(model, stock, x, y)
    assert torch.equal(model(x, y, scale=1.0) * 3, model(x, y))
    assert model.calls == stock.calls + 2
    assert calls == [RELU] * 4


def test_gradient_modes_stay(calls: Calls) -> None:
    stock, model = pair(NoGrad, 2, 3, 4, 4)
    calls.clear()
    input = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    for each in (stock, model):
        each(input).sum().backward()
        assert each.bn.weight.grad is None
    assert calls == [RELU]


def test_the_method_is_the_one_that_was_written(calls: Calls) -> None:
    stock, model = pair(Private, 2, 3, 4, 4)
    calls.clear()
    assert_same_step(model, stock, torch.randn(2, 3, 4, 4, dtype=torch.float64))
    assert calls == [RELU]  # Small.forward, called by super(), is not this class's
    new, old = type(model).forward, Private.forward
    for name in ("__doc__", "__name__", "__qualname__", "__module__", "__defaults__"):
        assert getattr(new, name) == getattr(old, name)
    assert new.__annotations__ == old.__annotations__
    assert new.__code__.co_filename == old.__code__.co_filename
    assert new.__code__.co_firstlineno == old.__code__.co_firstlineno
    with pytest.raises(RuntimeError) as raised:
        model(torch.randn(2, 4, 4, 4, dtype=torch.float64))
    lines = [entry.lineno for entry in raised.traceback if entry.path == Path(__file__)]
    assert any(line == old.__code__.co_firstlineno + 1 for line in lines)


def test_a_class_without_its_source_is_not_fused(calls: Calls) -> None:
    names = dict(globals())
    exec(
        "class Sourceless(Small):\n"
        "    def forward(self, x):\n"
        "        return self.relu(self.bn(x))\n",
        names,
    )
    stock, model = pair(names["Sourceless"], 2, 3, 4, 4)
    assert type(model) is names["Sourceless"]
    assert type(model.bn) is BatchNorm2d
    assert_same_step(model, stock, torch.randn(2, 3, 4, 4, dtype=torch.float64))
    assert calls == []


def test_a_file_is_parsed_once_and_a_method_compiled_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: Calls
) -> None:
    text = (
        "from torch import nn\n"
        "def make(factor):\n"
        "    class Block(nn.Module):\n"
        "        def __init__(self):\n"
        "            super().__init__()\n"
        "            self.bn, self.relu = nn.BatchNorm1d(3), nn.ReLU()\n"
        "        def forward(self, x):\n"
        "            return self.__tail(self.relu(self.bn(x))) * factor\n"
        "        def __tail(self, x):\n"
        "            return self.relu(self.bn(x))\n"
        "    return Block\n"
        "Two, Three = make(2), make(3)\n"
    )
    (tmp_path / "parsed_once.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    import parsed_once  # type: ignore[import-not-found]

    parsed: list[str] = []
    compiled: list[str] = []

    def parse(text: str) -> ast.Module:
        parsed.append(text)
        return plain_parse(text)

    def counted(tree: ast.Module, *args: Any, **kwargs: Any) -> Any:
        methods = [each.name for each in ast.walk(tree) if isinstance(each, ast.FunctionDef)]
        compiled.append(methods[-1])
        return compile(tree, *args, **kwargs)

    plain_parse = ast.parse
    two, three = parsed_once.Two, parsed_once.Three
    with monkeypatch.context() as patch:
        patch.setattr(ast, "parse", parse)
        patch.setattr(_source, "compile", counted, raising=False)
        model = convert(nn.Sequential(two(), three(), two(), three()))
        reports = [report(convert(model)), report(copy.deepcopy(model))]
    assert [len(each.fused) for each in reports] == [8, 8]
    assert parsed == [text]
    # Once as it was read, and once for each of two classes that share the code.
    assert sorted(compiled) == ["__tail"] * 3 + ["forward"] * 3
    calls.clear()
    x = torch.randn(4, 3)
    torch.testing.assert_close(model[1](x), revert(copy.deepcopy(model))[1](x))
    assert calls == [RELU, RELU]


def test_source_that_changed_since_is_not_used(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, calls: Calls
) -> None:
    path = tmp_path / "edited_network.py"
    text = (
        "from torch import nn\n"
        "class Edited(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.bn, self.relu = nn.BatchNorm1d(3), nn.ReLU()\n"
        "    def forward(self, x):\n"
        "        return self.relu(self.bn(x)) * 2\n"
    )
    path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    import edited_network  # type: ignore[import-not-found]

    path.write_text(text.replace("* 2", "* 3"))
    model = convert(edited_network.Edited())
    assert type(model) is edited_network.Edited
    path.write_text(text)


def test_a_method_that_was_decorated_or_replaced_is_left_alone(calls: Calls) -> None:
    class Decorated(Small):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.bn(x))

    model = convert(Decorated())
    assert not model(torch.randn(2, 3, 4, 4)).requires_grad
    assert calls == []

    patched = Small()
    patched.forward = lambda x: x + 1  # type: ignore[method-assign]
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(convert(patched)(x), x + 1)
    patched = convert(Small())
    patched.bn.forward = lambda x: x - 1  # type: ignore[method-assign]
    assert torch.equal(patched(x), F.relu(patched.conv(x) - 1))
    assert calls == []


def test_classes_that_want_to_know_their_subclasses(calls: Calls) -> None:
    known: list[type] = []

    class Registered(Small):
        def __init_subclass__(cls, **kwargs: Any) -> None:
            known.append(cls)

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.bn(x))

    model = convert(Registered())
    assert (known, type(model)) == ([], Registered)

    class Recursive(Small):
        def forward(self, x: Tensor) -> Tensor:
            return super(self.__class__, self).forward(x) + self.relu(self.bn(x))

    model = convert(Recursive())
    assert model(torch.randn(2, 3, 4, 4)).shape == (2, 3, 4, 4)


# What people do with models.


def test_copies_and_pickles_stay_fused(calls: Calls) -> None:
    stock, model = pair(*NETWORKS["resnet"][:1], 4, 3, 16, 16)
    # Lambdas cannot be pickled, the network can.
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [
        copy.deepcopy(model),
        copy.copy(model),
        pickle.loads(pickle.dumps(model)),
        pickle.loads(pickle.dumps(model, protocol=0)),
        torch.load(file, weights_only=False),
    ]
    input = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    for each in copies:
        assert [type(module) for module in each.modules()] == [
            type(module) for module in model.modules()
        ]
        calls.clear()
        assert_same_step(copy.deepcopy(each), copy.deepcopy(stock), input)
        assert calls == NETWORKS["resnet"][2]


def test_a_copy_runs_its_own_modules() -> None:
    model = convert(Small())
    other = copy.copy(model)
    other._modules = dict(model._modules)
    other.bn = BatchNorm2d(3, eps=1e6)
    x = torch.randn(2, 3, 4, 4)
    assert other(x).abs().max() < 0.1 < model(x).abs().max()


def test_state_dicts_pass_between_stock_and_converted() -> None:
    stock, model = pair(*NETWORKS["bottleneck"][:1], 4, 3, 16, 16)
    other = NETWORKS["bottleneck"][0]().double()
    other.load_state_dict(model.state_dict())
    assert_same_model(other, stock)
    model.load_state_dict(NETWORKS["bottleneck"][0]().double().state_dict(), strict=True)
    assert model.bn1.num_batches_tracked == 0


def test_modes_dtypes_and_apply(calls: Calls) -> None:
    model = convert(Small())
    assert model.eval().bn.training is False
    assert model.to(torch.bfloat16).bn.weight.dtype is torch.bfloat16
    visited: list[nn.Module] = []
    model.apply(visited.append)
    assert len(visited) == 4
    model.float().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    output = model(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last))
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert calls == [RELU]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", NETWORKS)
def test_compile_without_a_graph_break(name: str) -> None:
    make, shape, _ = NETWORKS[name]
    stock, model = pair(make, *shape)
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled: Any = torch.compile(model, fullgraph=True, backend=backend)
    assert_same_step(compiled, stock, torch.randn(shape, dtype=torch.float64))
    functions = {str(node.target) for graph in graphs for node in graph.graph.nodes}
    relus = [each for each in functions if "relu" in each.lower() and "relu6" not in each.lower()]
    # Fused sites leave no ReLU behind; Loop's Identity keeps its own.
    assert bool(relus) == (name in ("loop",)), functions
    assert len(graphs) == 1


@pytest.mark.filterwarnings("default")
def test_a_compiled_module_converts_what_it_wraps(calls: Calls) -> None:
    torch._dynamo.reset()
    stock = Small().double()
    compiled: Any = torch.compile(copy.deepcopy(stock), backend="eager")
    input = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    compiled(input)
    stock(input)
    convert(compiled)
    assert type(compiled._orig_mod.bn) is BatchNorm2d
    assert_same_step(compiled, stock, input)
    assert calls
    revert(compiled)
    assert type(compiled._orig_mod) is Small


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_export(strict: bool) -> None:
    stock, model = pair(*NETWORKS["resnet"][:1], 4, 3, 16, 16)
    input = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    program = torch.export.export(model.eval(), (input,), strict=strict)
    targets = [str(node.target) for node in program.graph.nodes]
    assert not [each for each in targets if "relu" in each]
    torch.testing.assert_close(program.module()(input), stock.eval()(input))


@pytest.mark.parametrize("name", ["resnet", "vgg", "unet", "pre-activation"])
def test_symbolic_traces_call_the_modules_one_by_one(name: str, calls: Calls) -> None:
    make, shape, _ = NETWORKS[name]
    stock, model = pair(make, *shape)
    calls.clear()
    for graph in (
        torch.fx.symbolic_trace(model),
        convert(torch.fx.symbolic_trace(copy.deepcopy(stock))),
    ):
        assert_same_step(copy.deepcopy(graph), copy.deepcopy(stock), torch.randn(shape).double())
        assert {type(each) for each in graph.modules()} & set(TWINS)
        assert calls == []
        revert(graph)
        assert not {type(each) for each in graph.modules()} & set(TWINS)


@pytest.mark.filterwarnings("default")
def test_jit_trace(calls: Calls) -> None:
    stock, model = pair(*NETWORKS["resnet"][:1], 4, 3, 16, 16)
    input = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    traced = torch.jit.trace(model.eval(), input)
    torch.testing.assert_close(traced(input), stock.eval()(input))


@pytest.fixture
def process_group(tmp_path: Any) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("default")
def test_distributed_data_parallel(calls: Calls) -> None:
    parallel = nn.parallel.DistributedDataParallel
    make, shape, expected = NETWORKS["resnet"]
    stock, model = pair(make, *shape)
    input = torch.randn(shape, dtype=torch.float64)
    for each in (parallel(copy.deepcopy(model)), convert(parallel(copy.deepcopy(stock)))):
        calls.clear()
        assert_same_step(each.module, copy.deepcopy(stock), input)
        each(input).sum().backward()
        assert calls == expected * 2


def test_checkpointing_recomputes_the_same(calls: Calls) -> None:
    from torch.utils.checkpoint import checkpoint

    stock, model = pair(*NETWORKS["resnet"][:1], 4, 3, 16, 16)
    input = torch.randn(4, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    grads = []
    for each in (stock, model):
        checkpoint(each, input, use_reentrant=False).square().sum().backward()
        grads.append([parameter.grad for parameter in each.parameters()])
    torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-9)


def test_functional_call_uses_the_parameters_it_is_given(calls: Calls) -> None:
    stock, model = pair(Small, 2, 3, 4, 4)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    parameters = {name: torch.randn_like(each) for name, each in stock.named_parameters()}
    torch.testing.assert_close(
        torch.func.functional_call(model, parameters, (x,)),
        torch.func.functional_call(stock, parameters, (x,)),
    )
    assert calls[-1] == RELU


def test_the_log_tells_what_was_done(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "batchnorm.torch.convert"):
        convert(ResNet([Basic(8, 8), Basic(8, 12, 2)], 12))
    assert caplog.messages[-1] == "converted 6 batch norms, fused 5 places"
    assert len(caplog.messages) == 6


def test_what_is_no_module_is_refused() -> None:
    for function in (convert, revert, report):
        with pytest.raises(TypeError, match=r"model is a dict, expected a torch\.nn\.Module"):
            function({})  # type: ignore[type-var, arg-type]


class Reduced(nn.Module):
    """Says itself how it is pickled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.bn, self.relu = nn.BatchNorm2d(channels), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.bn(x))
        return y

    def __reduce__(self) -> Any:
        return type(self), (self.channels,), self.__dict__


def test_copies_of_a_class_that_says_how_it_is_pickled(calls: Calls) -> None:
    model = convert(Reduced(4))
    x = torch.randn(2, 4, 3, 3)
    for copied in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        calls.clear()
        assert isinstance(copied, Reduced)
        torch.testing.assert_close(copied(x), nn.BatchNorm2d(4)(x).relu())
        assert calls == [RELU]


class TwoSums(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x) + x + self.b(x)
        y = y + self.a(x) + x
        return F.relu(y) + F.relu(self.b(x) + x + x)


def test_sums_of_three() -> None:
    stock, model = pair(TwoSums, 2, 4, 3, 3)
    assert_same_step(model, stock, torch.randn(2, 4, 3, 3, dtype=torch.float64))


# Classes that others make over those of a conversion.


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


class Scaled(Small):
    """A block with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x))) * self.scale


class Mixin:
    """What fully_shard and others put first among the bases."""

    def name_of_mixin(self) -> str:
        return type(self).__name__


def mixed(module: nn.Module) -> None:
    kind = type(module)
    module.__class__ = type(f"Mixed{kind.__name__}", (Mixin, kind), {})


def parametrized(module: nn.Module) -> None:
    parametrize.register_parametrization(module, "scale", Twice())


@pytest.mark.parametrize("cover", [mixed, parametrized])
def test_a_class_made_over_a_fused_one_is_left_alone(
    cover: Callable[[nn.Module], None], calls: Calls
) -> None:
    stock: Any
    model: Any
    stock, model = pair(lambda: nn.Sequential(Scaled(), Scaled()), 2, 3, 4, 4)
    cover(model[0])
    if cover is parametrized:
        cover(stock[0])
    kind = type(model[0])
    input = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    for act in (
        lambda: convert(model),
        lambda: convert(model, fuse_relu=False),
        lambda: revert(model),
        lambda: convert(model),
    ):
        with pytest.warns(
            UserWarning, match=r"left as they are.* 0 \((Mixed|Parametrized)Scaled\)"
        ):
            act()
        assert type(model[0]) is kind
        calls.clear()
        assert_same_step(model, stock, input)
    assert calls == [RELU, RELU]
    copied = copy.deepcopy(model)
    assert type(copied[0]) is kind
    assert_same_step(copied, copy.deepcopy(stock), input)
    if cover is mixed:
        assert model[0].name_of_mixin() == "MixedScaled"
        model[0].__class__ = kind.__bases__[1]
    else:
        for each in (model, stock):
            parametrize.remove_parametrizations(each[0], "scale")
    assert [type(each) for each in revert(model)] == [Scaled, Scaled]
    assert_same_step(model, stock, input)


class MixedOverFused(Mixin, type(convert(Scaled()))):  # type: ignore[misc]
    """Of a name that a pickle finds."""


def test_a_class_made_over_a_fused_one_is_pickled_by_its_own_name() -> None:
    model = MixedOverFused()
    for each in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert type(each) is MixedOverFused
        assert each.name_of_mixin() == "MixedOverFused"


def test_what_is_parametrized_first_is_not_fused(calls: Calls) -> None:
    """Or remove_parametrizations would not find the class that it takes away."""
    stock = nn.Sequential(Scaled(), Scaled()).double()
    model = copy.deepcopy(stock)
    for each in (stock, model):
        parametrized(each[0])
    convert(model)
    input = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert_same_step(model, stock, input)
    assert calls == [RELU]
    (left,) = report(model).not_fused
    assert left[:2] == ("0", "ParametrizedScaled")
    for each in (model, stock):
        parametrize.remove_parametrizations(each[0], "scale")
    assert type(model[0]) is Scaled
    assert_same_step(convert(model), stock, input)


@pytest.mark.parametrize("first", ["convert", "parametrize"])
def test_parametrized_batch_norms_are_converted_and_reverted(first: str) -> None:
    stock = Small().double()
    model = copy.deepcopy(stock)
    if first == "convert":
        convert(model)
    for each in (stock, model):
        parametrize.register_parametrization(each.bn, "weight", Twice())
    other = copy.deepcopy(model)
    convert(model)
    assert isinstance(model.bn, BatchNorm2d)
    assert report(model).converted == ("bn",)
    input = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert_same_step(model, stock, input)
    revert(model)
    assert type(model.bn).__name__ == "ParametrizedBatchNorm2d"
    assert not isinstance(model.bn, BatchNorm2d)
    assert isinstance(other.bn, BatchNorm2d) == (first == "convert")
    assert_same_step(model, stock, input)
    assert_same_step(copy.deepcopy(model), copy.deepcopy(stock), input)
    parametrize.remove_parametrizations(model.bn, "weight")
    assert type(model.bn) is nn.BatchNorm2d


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore")
def test_fully_sharded_models() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    model: Any
    stock, model = pair(lambda: nn.Sequential(Small(), Small()), 2, 3, 4, 4)
    fully_shard(model[0], mesh=init_device_mesh("cpu", (1,)))
    kind = type(model[0])
    with pytest.warns(UserWarning, match=r"left as they are.* 0 \(FSDPSmall\)"):
        revert(model)
    assert type(model[0]) is kind
    assert isinstance(model[0], FSDPModule)
    input = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(model(input), stock(input))


# What a conversion tells.


def test_the_report_tells_what_was_done_and_what_not() -> None:
    names = dict(globals())
    exec(
        "class Sourceless(Small):\n"
        "    def forward(self, x):\n"
        "        return self.relu(self.bn(x))\n",
        names,
    )

    class Own(nn.BatchNorm2d):
        pass

    model = nn.Sequential(
        *(Small(), names["Sourceless"](), Own(3), nn.SyncBatchNorm(3), nn.LazyBatchNorm2d()),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3)),
        torch.fx.symbolic_trace(Small()),
    )
    before = report(model)
    assert not before.converted
    assert not before.fused
    assert {each.reason for each in before.left if each.kind == "BatchNorm2d"} == {
        "not converted yet"
    }
    kinds = [type(each) for each in model.modules()]
    convert(model)
    found = report(model)
    assert found.found == before.found == 8
    assert found.converted == ("0.bn", "1.bn", "5.1", "5.3", "6.bn")
    assert [(name, kind) for name, kind, _ in found.left] == [
        *(("2", "Own"), ("3", "SyncBatchNorm"), ("4", "LazyBatchNorm2d"))
    ]
    assert "lazy" in found.left[2].reason
    line = Small.forward.__code__.co_firstlineno + 1
    assert found.fused == (
        ("0", "Small", f"forward, line {line}: self.bn, self.relu"),
        ("5", "Sequential", "BatchNorm2d, ReLU"),
    )
    assert [(name, kind) for name, kind, _ in found.not_fused] == [
        ("1", "Sourceless"),
        ("6", "Small"),  # a GraphModule by that name
    ]
    text = str(found)
    assert text.startswith("batch norm modules: 8, of which 5 converted\n  2 (Own): a subclass")
    assert "  1 (Sourceless): the source of forward cannot be read" in text
    revert(model)
    assert [type(each) for each in model.modules()] == kinds
    assert report(model) == before


def test_a_residual_is_in_the_report() -> None:
    (_, second) = report(convert(Basic(4, 4))).fused
    assert second.place.endswith(": self.bn2, addition, self.relu")


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.Sequential(nn.SyncBatchNorm(3))], ids=str)
def test_a_conversion_of_nothing_warns(model: nn.Module) -> None:
    with pytest.warns(UserWarning, match="nothing was converted") as warned:
        assert convert(model) is model
    assert warned[0].filename == __file__
    assert str(report(model)) in str(warned[0].message)


@pytest.mark.filterwarnings("default")
def test_tools_that_look_for_types_want_a_reverted_model() -> None:
    """As convert's docstring says; should it change, so must that."""
    from torch.fx.experimental.optimization import fuse

    def batch_norms(model: nn.Module) -> int:
        return sum(isinstance(each, nn.BatchNorm2d) for each in model.modules())

    model = convert(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU())).eval()
    x = torch.randn(2, 3, 4, 4)
    assert batch_norms(fuse(model)) == 1
    folded = fuse(revert(model))
    assert batch_norms(folded) == 0
    torch.testing.assert_close(folded(x), model(x))


@pytest.mark.parametrize("training", [True, False])
def test_a_profile_shows_the_calls(training: bool) -> None:
    model = convert(Small()).train(training)
    x = torch.randn(2, 3, 4, 4)
    kind = "training" if training else "inference"
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(x).sum().backward()
        with torch.no_grad():
            model(x)
    names = [event.name for event in profile.events()]
    assert names.count(f"bn_forward_{kind}") == 2
    assert names.count("bn_backward") == 1
