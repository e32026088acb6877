"""PyTorch's own cases for batch norm modules, from the installed PyTorch, run against the drop-in.

The inputs, the reference functions and the refusals are those of its module tests
(torch.testing._internal.common_modules); the checks below follow what its test/test_modules.py does
with them, which is not installed.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

import batchnorm.torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_modules import module_db

TWINS = {
    nn.BatchNorm1d: batchnorm.torch.BatchNorm1d,
    nn.BatchNorm2d: batchnorm.torch.BatchNorm2d,
    nn.BatchNorm3d: batchnorm.torch.BatchNorm3d,
}
INFOS = [info for info in module_db if info.module_cls in TWINS]
FLOATS = (torch.float32, torch.float64)

pytestmark = pytest.mark.filterwarnings("ignore")


def inputs(info: Any, dtype: torch.dtype, training: bool, requires_grad: bool) -> list[Any]:
    cases: list[Any] = info.module_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=requires_grad, training=training
    )
    return cases


def every(dtypes: tuple[torch.dtype, ...], requires_grad: bool) -> list[Any]:
    return [
        pytest.param(
            *(info, case, dtype, training),
            id=f"{info.name}-{case.desc or 'default'}-{dtype}-{training}",
        )
        for info in INFOS
        for dtype in dtypes
        for training in (True, False)
        for case in inputs(info, dtype, training, requires_grad)
    ]


def make(info: Any, case: Any, dtype: torch.dtype, training: bool, kind: Any = None) -> Any:
    kind = kind or TWINS[info.module_cls]
    arguments = case.constructor_input
    return kind(*arguments.args, **arguments.kwargs, dtype=dtype).train(training)


def test_there_are_cases() -> None:
    assert {info.module_cls for info in INFOS} == set(TWINS)
    assert len(every(FLOATS, False)) > 60


@pytest.mark.parametrize(("info", "case", "dtype", "training"), every(FLOATS, True))
def test_as_the_original(info: Any, case: Any, dtype: torch.dtype, training: bool) -> None:
    """Output, gradients and statistics; and the reference function, where a case brings one."""
    ours = make(info, case, dtype, training)
    theirs = make(info, case, dtype, training, info.module_cls)
    results = []
    for module in (ours, theirs):
        (x,) = (each.detach().clone().requires_grad_() for each in case.forward_input.args)
        y = module(x)
        y.backward(torch.ones_like(y) if y.numel() else y)
        results.append((y, x.grad, *module.buffers(), *(p.grad for p in module.parameters())))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    if case.reference_fn is not None:
        (x,) = case.forward_input.args
        expected = case.reference_fn(copy.deepcopy(ours), list(ours.parameters()), x)
        torch.testing.assert_close(ours(x), expected)


@pytest.mark.parametrize(("info", "case", "dtype", "training"), every((torch.float64,), True))
def test_grad_and_gradgrad(info: Any, case: Any, dtype: torch.dtype, training: bool) -> None:
    module = make(info, case, dtype, training)
    parameters = dict(module.named_parameters())
    (x,) = case.forward_input.args
    if not x.numel():
        pytest.skip("there is nothing to differentiate")

    def call(x: Tensor, *values: Tensor) -> Any:
        fresh = copy.deepcopy(module)
        return torch.func.functional_call(fresh, dict(zip(parameters, values, strict=True)), (x,))

    arguments = [
        x.detach().requires_grad_(),
        *(p.detach().requires_grad_() for p in parameters.values()),
    ]
    assert gradcheck(call, arguments)
    assert gradgradcheck(call, arguments)


@pytest.mark.parametrize(("info", "case", "dtype", "training"), every((torch.float32,), False))
def test_non_contiguous_and_memory_formats(
    info: Any, case: Any, dtype: torch.dtype, training: bool
) -> None:
    module = make(info, case, dtype, training)
    (x,) = case.forward_input.args
    expected = copy.deepcopy(module)(x)
    wide = torch.empty(*x.shape, 2)[..., 0].copy_(x)
    torch.testing.assert_close(copy.deepcopy(module)(wide), expected)
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if x.dim() in formats and x.numel():
        y = copy.deepcopy(module)(x.to(memory_format=formats[x.dim()]))
        assert y.is_contiguous(memory_format=formats[x.dim()])
        torch.testing.assert_close(y, expected)


@pytest.mark.parametrize(("info", "case", "dtype", "training"), every((torch.float32,), False))
def test_pickled_saved_and_printed(
    info: Any, case: Any, dtype: torch.dtype, training: bool, tmp_path: Any
) -> None:
    module = make(info, case, dtype, training)
    (x,) = case.forward_input.args
    module(x)
    torch.save(module.state_dict(), tmp_path / "state")
    loaded = make(info, case, dtype, training)
    loaded.load_state_dict(torch.load(tmp_path / "state"))
    for other in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module), loaded):
        torch.testing.assert_close(
            copy.deepcopy(other)(x), copy.deepcopy(module)(x), rtol=0, atol=0
        )
    assert str(module) == str(make(info, case, dtype, training, info.module_cls))


@pytest.mark.parametrize(("info", "case", "dtype", "training"), every((torch.float32,), True))
def test_train_and_eval_differ_as_they_should(
    info: Any, case: Any, dtype: torch.dtype, training: bool
) -> None:
    module = make(info, case, dtype, training)
    (x,) = case.forward_input.args
    differ = not torch.allclose(copy.deepcopy(module).train()(x), copy.deepcopy(module).eval()(x))
    assert differ == (module.track_running_stats and x.numel() > 0)


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_what_pytorch_refuses(info: Any) -> None:
    errors = info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float32, requires_grad=False, training=True
    )
    assert errors
    for error in errors:
        arguments = error.module_error_input.constructor_input
        module = TWINS[info.module_cls](*arguments.args, **arguments.kwargs)
        forward = error.module_error_input.forward_input
        with pytest.raises(error.error_type, match=error.error_regex):
            module(*forward.args, **forward.kwargs)
