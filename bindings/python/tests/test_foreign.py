"""Arrays that are not NumPy's: the same bits, no copies, results in their kind, clear refusals."""

from __future__ import annotations

import gc
import mmap
import os
import subprocess
import sys
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import batchnorm
from batchnorm import BatchNorm1d, BatchNorm2d, Moments, _foreign
from batchnorm import functional as F


class Interface:
    """`__array_interface__` and nothing else."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.__array_interface__ = values.__array_interface__


class Exporter:
    """DLPack of version 1, as NumPy's, of no package that has `from_dlpack`."""

    where: tuple[int, int] = (1, 0)

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __dlpack__(self, **options: Any) -> Any:
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.where


class OldExporter(Exporter):
    """DLPack before version 1, which knows no words."""

    def __dlpack__(self) -> Any:  # type: ignore[override]
        return self.values.__dlpack__()


class OnGPU(Exporter):
    where = (2, 1)
    device = "cuda:1"


class OnNPU(Exporter):
    where = (16, 0)


class Copying(Exporter):
    """Its package made a copy, and says so."""

    def __dlpack__(self, **options: Any) -> Any:
        capsule = self.values.__dlpack__(**options)
        self.managed(capsule).flags |= 2
        return capsule

    @staticmethod
    def managed(capsule: Any) -> Any:
        assert _foreign._capsule_name(capsule) == b"dltensor_versioned"
        pointer = _foreign._capsule_pointer(capsule, b"dltensor_versioned")
        return _foreign._DLManagedTensorVersioned.from_address(pointer)


class FromTheFuture(Copying):
    def __dlpack__(self, **options: Any) -> Any:
        capsule = self.values.__dlpack__(**options)
        self.managed(capsule).major = 2
        return capsule


KINDS: dict[str, Callable[[np.ndarray], Any]] = {
    "torch": torch.from_numpy,
    "memoryview": lambda values: values.data,
    "interface": Interface,
    "dlpack": Exporter,
    "old dlpack": OldExporter,
    "memmap": lambda values: values.view(np.memmap),
}
KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
TORCH_DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
FORMATS = [torch.contiguous_format, torch.channels_last]


def images(rng: np.random.Generator, dtype: Any = np.float32) -> np.ndarray:
    return rng.normal(1, 2, (4, 3, 5, 6)).astype(dtype)


def as_bytes(tensor: Any) -> bytes:
    """The bytes of an array of any kind, in its axes' order."""
    if isinstance(tensor, torch.Tensor):
        tensor = tensor.detach().contiguous().view(torch.uint8).numpy()
    return np.asarray(tensor).tobytes()


# ---- taken where they lie ----


@KIND
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_the_same_bits_in_every_kind(kind: Any, layout: str, rng: np.random.Generator) -> None:
    x, dy, residual = images(rng), images(rng), images(rng)
    if layout == "NHWC":
        x, dy, residual = (
            np.ascontiguousarray(each.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
            for each in (x, dy, residual)
        )
    weight, bias = rng.normal(size=(2, 3)).astype(np.float32)
    lengthy: Any = {"activation": "relu", "activation_mask": True, "masked": "pass"}
    mask = rng.random((4, 5, 6)) < 0.7

    def step(make: Callable[[np.ndarray], Any]) -> list[Any]:
        given = [make(each) for each in (x, weight, bias, residual, mask)]
        forward = F.forward_training(
            given[0], weight=given[1], bias=given[2], residual=given[3], mask=given[4], **lengthy
        )
        gradients = F.backward(
            make(dy),
            given[0],
            given[1],
            saved_mean=forward.saved_mean,
            saved_invstd=forward.saved_invstd,
            activation="relu",
            activation_mask=forward.activation_mask,
            mask=given[4],
            grad_residual=True,
        )
        inference = F.forward_inference(given[0], given[2], make(np.abs(bias)), given[1])
        return [forward.output, forward.saved_mean, *gradients, inference]

    for found, expected in zip(step(kind), step(np.asarray), strict=True):
        assert as_bytes(found) == as_bytes(expected)
        assert found.shape == expected.shape


@KIND
def test_destinations_are_written_in_place(kind: Any, rng: np.random.Generator) -> None:
    x = images(rng)
    mean, var, count = np.zeros(3, np.float32), np.ones(3, np.float32), np.zeros(1, np.int64)
    target = np.empty_like(x)
    destinations = {
        "out": kind(target),
        "running_mean": kind(mean),
        "running_var": kind(var),
        "num_batches_tracked": kind(count),
    }
    if kind is OldExporter:
        with pytest.raises(ValueError, match=r"is read-only, expected a writeable array"):
            F.forward_training(kind(x), **destinations)
        assert count[0] == 0
        return
    result = F.forward_training(kind(x), **destinations)
    assert result.output is destinations["out"]
    assert target.tobytes() == F.forward_training(x).output.tobytes()
    np.testing.assert_allclose(mean, 0.1 * x.mean((0, 2, 3)), rtol=1e-4)
    assert count[0] == 1
    place = kind(x)
    assert F.forward_training(place, out=place).output is place
    assert x.tobytes() == target.tobytes()


def test_buffers_become_ndarrays(rng: np.random.Generator, tmp_path: Path) -> None:
    x = images(rng)
    expected = F.forward_training(x)
    path = tmp_path / "images"
    path.write_bytes(x.tobytes())
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        pixels = memoryview(mapped).cast("f", x.shape)
        output = F.forward_training(pixels, weight=array("f", [1, 1, 1])).output
        del pixels
    assert type(output) is np.ndarray
    assert output.tobytes() == expected.output.tobytes()


def test_read_only_memory_is_read_and_not_written(rng: np.random.Generator) -> None:
    x = images(rng)
    view = memoryview(x.tobytes()).cast("f", x.shape)
    assert F.forward_training(view).output.tobytes() == F.forward_training(x).output.tobytes()
    with pytest.raises(ValueError, match="out is read-only, expected a writeable array"):
        F.forward_training(view, out=view)


@KIND
def test_memory_is_given_back(kind: Any, rng: np.random.Generator) -> None:
    x = images(rng)
    before = sys.getrefcount(x)
    for _ in range(3):
        F.forward_training(kind(x), residual=kind(x))
        with pytest.raises(TypeError, match="weight"):
            F.forward_training(kind(x), weight=[1, 2, 3])
    gc.collect()
    assert sys.getrefcount(x) == before


# ---- PyTorch ----


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_tensors_give_tensors(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    torch.manual_seed(5)
    x = torch.randn(4, 3, 5, 6).to(dtype).contiguous(memory_format=memory_format)
    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    weight, bias = torch.rand(2, 3, dtype=parameters)
    mean, var = torch.zeros(3, dtype=parameters), torch.ones(3, dtype=parameters)
    forward = F.forward_training(x, mean, var, weight, bias, activation_mask=True)
    gradients = F.backward(
        x, x, weight, saved_mean=forward.saved_mean, saved_invstd=forward.saved_invstd
    )
    for tensor, expected in (
        (forward.output, dtype),
        (forward.saved_mean, torch.float64),
        (forward.activation_mask, torch.uint8),
        (gradients.grad_input, dtype),
        (gradients.grad_weight, parameters),
    ):
        assert type(tensor) is torch.Tensor
        assert tensor.dtype == expected
    results: Any = forward.output, gradients.grad_input
    assert [each.stride() for each in results] == [x.stride()] * 2
    wide_mean, wide_var = torch.zeros(3).double(), torch.ones(3).double()
    wide = torch.nn.functional.batch_norm(
        x.double(), wide_mean, wide_var, weight.double(), bias.double(), training=True
    )
    torch.testing.assert_close(forward.output, wide.to(dtype))
    torch.testing.assert_close(mean, wide_mean.to(parameters))
    torch.testing.assert_close(var, wide_var.to(parameters))


def test_subclasses_of_tensors_give_tensors() -> None:
    frozen = torch.nn.Parameter(torch.randn(4, 3), requires_grad=False)
    assert isinstance(F.forward_training(frozen).output, torch.Tensor)

    class Mine(torch.Tensor):
        pass

    assert isinstance(F.forward_training(torch.randn(4, 3).as_subclass(Mine)).output, torch.Tensor)


def test_the_first_array_decides_the_kind(rng: np.random.Generator) -> None:
    x = images(rng)
    mixed = F.forward_training(torch.from_numpy(x), weight=np.ones(3, np.float32), out=x.copy())
    assert type(mixed.output) is np.ndarray  # the destination that was given
    assert type(mixed.saved_mean) is torch.Tensor
    with pytest.raises(TypeError, match=r"weight is of type Tensor, expected numpy.ndarray; .*"):
        F.forward_training(x, weight=torch.ones(3))


def test_empty_tensors() -> None:
    result = F.forward_training(torch.empty(0, 3, 4))
    assert result.output.shape == (0, 3, 4)
    assert type(result.output) is torch.Tensor


def test_bfloat16_without_ml_dtypes() -> None:
    """In a process of its own, which cannot import ml_dtypes, nor has imported torch before."""
    program = """
import sys
sys.modules["ml_dtypes"] = None
import batchnorm
assert "torch" not in sys.modules
import torch
x = torch.randn(4, 3, 5, 6).bfloat16()
result = batchnorm.functional.forward_training(x, residual=x, out=(out := torch.empty_like(x)))
assert result.output is out
wide = torch.nn.functional.batch_norm(x.double(), None, None, training=True) + x.double()
torch.testing.assert_close(out, wide.bfloat16())
layer = batchnorm.BatchNorm2d(3, dtype="bfloat16")
torch.testing.assert_close(layer(x, residual=x), out)
assert layer.backward(x).dtype == layer.grad_residual.dtype == torch.bfloat16
assert "dtype=bfloat16" in repr(layer)
try:
    batchnorm.functional.forward_training(x, residual=x.half())
except TypeError as error:
    assert "residual has dtype float16, expected bfloat16 as the input has" in str(error)
else:
    raise AssertionError("residual of another dtype was taken")
"""
    env = {**os.environ, "PYTHONPATH": str(Path(batchnorm.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", program], check=True, env=env)


# ---- layers, moments, folding ----


def test_layers_take_tensors_and_keep_them_alive(rng: np.random.Generator) -> None:
    x, dy = images(rng), images(rng)
    expected, layer = BatchNorm2d(3), BatchNorm2d(3)
    y = layer(torch.from_numpy(x.copy()), residual=torch.from_numpy(x), activation="relu")
    gc.collect()  # the layer alone holds the first tensor now
    assert type(y) is torch.Tensor
    assert as_bytes(y) == as_bytes(expected(x, residual=x, activation="relu"))
    grad = layer.backward(torch.from_numpy(dy))
    assert type(grad) is type(layer.grad_residual) is torch.Tensor
    assert type(layer.grad_weight) is type(layer.weight) is np.ndarray
    assert as_bytes(grad) == as_bytes(expected.backward(dy))
    assert as_bytes(layer.grad_residual) == as_bytes(expected.grad_residual)
    place = torch.empty_like(grad)
    layer.backward(torch.from_numpy(dy), grad_residual=place)
    assert layer.grad_residual is place
    again = layer.recompute(torch.from_numpy(x), residual=torch.from_numpy(x), activation="relu")
    assert as_bytes(again) == as_bytes(y)
    assert layer.num_batches_tracked == 1


def test_layers_are_assigned_tensors() -> None:
    layer = BatchNorm2d(3)
    layer.weight = torch.tensor([1.0, 2.0, 3.0])
    layer.running_mean = torch.tensor([4.0, 5.0, 6.0])
    assert layer.weight.tolist() == [1, 2, 3]
    assert layer.running_mean.tolist() == [4, 5, 6]
    with pytest.raises(TypeError, match="bias has dtype float64"):
        layer.bias = torch.zeros(3).double()


def test_a_layer_holds_the_buffer_of_its_input() -> None:
    memory = bytearray(array("f", range(12)).tobytes())
    layer = BatchNorm1d(3)
    layer(memoryview(memory).cast("f", (4, 3)))
    with pytest.raises(BufferError):
        memory.append(0)
    layer(np.ones((2, 3), np.float32))  # the next forward lets go
    memory.append(0)


def test_moments_and_halves_of_operations(rng: np.random.Generator) -> None:
    x, dy = images(rng), images(rng)
    tx, tdy = torch.from_numpy(x), torch.from_numpy(dy)
    moments = Moments.of(tx)
    assert as_bytes(moments.m2) == as_bytes(Moments.of(x).m2)
    fused: Any = {"activation": "relu", "residual": tdy, "activation_mask": True}
    own = batchnorm.normalize(tx, moments, **fused)
    whole = F.forward_training(tx, **fused)
    for name in ("output", "saved_mean", "saved_invstd", "activation_mask"):
        assert type(getattr(own, name)) is torch.Tensor
        assert as_bytes(getattr(own, name)) == as_bytes(getattr(whole, name))
    result = batchnorm.normalize(tx, moments)
    assert as_bytes(result.output) == as_bytes(F.forward_training(x).output)
    saved: Any = {"saved_mean": result.saved_mean, "saved_invstd": result.saved_invstd}
    sums = batchnorm.backward_reduce(tdy, tx, saved_mean=result.saved_mean)
    gradients = batchnorm.backward_apply(tdy, tx, sums, **saved)
    assert as_bytes(gradients.grad_input) == as_bytes(F.backward(tdy, tx, **saved).grad_input)
    assert type(batchnorm.normalize_saved(tx, **saved)) is torch.Tensor

    mean, var = torch.zeros(3), torch.ones(3)
    moments.update_running(mean, var)
    torch.testing.assert_close(mean, 0.1 * tx.mean((0, 2, 3)))
    kept = Moments(count=2, mean=torch.zeros(3).double(), m2=torch.ones(3).double())
    assert as_bytes(kept.merge(Moments.none(3)).mean) == as_bytes(np.zeros(3))
    ones = torch.ones(3).double()
    sums = batchnorm.GradientSums(count=2, sum_dy=ones, sum_dy_xmu=ones)
    assert sums.sum_dy.tolist() == [1, 1, 1]

    layer = BatchNorm2d(3)
    batchnorm.recalibrate(layer, [tx])
    np.testing.assert_allclose(layer.running_mean, x.mean((0, 2, 3)), rtol=1e-5)


def test_folding_gives_tensors() -> None:
    weight, mean, var = torch.rand(3, 2, 5, 5), torch.rand(3), torch.rand(3) + 1
    folded = batchnorm.fold_into(weight, None, mean, var)
    assert type(folded.weight) is type(folded.bias) is torch.Tensor
    fused = torch.nn.utils.fuse_conv_bn_weights(weight, None, mean, var, 1e-5, None, None)
    torch.testing.assert_close(folded.weight, fused[0].detach())
    assert type(batchnorm.fold_affine(mean, var).weight) is torch.Tensor
    assert type(BatchNorm2d(3).eval().fold_into(weight).weight) is torch.Tensor


# ---- refused, or copied on request ----


def test_copies_on_request(rng: np.random.Generator) -> None:
    x = images(rng)
    strided = np.repeat(x, 2, axis=-1)[..., ::2]
    nhwc = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    spread = np.repeat(np.arange(1, 4, dtype=np.float32), 2)[::2]
    expected = F.forward_training(x, weight=spread.copy(), residual=x).output
    for make in (np.asarray, torch.from_numpy):
        refused: Any = {"weight": make(spread), "residual": make(nhwc)}
        with pytest.raises(ValueError, match=r"input\.contiguous.*or allow_copy=True"):
            F.forward_training(make(strided), **refused)
        with pytest.raises(ValueError, match=r"weight has strides .* contiguous"):
            F.forward_training(make(x), weight=make(spread))
        with pytest.raises(ValueError, match=r"residual has strides .*allow_copy=True"):
            F.forward_training(make(x), residual=make(nhwc))
        found = F.forward_training(make(strided), **refused, allow_copy=True).output
        assert as_bytes(found) == as_bytes(expected)
        assert type(found) is type(make(x))
        # In the input's order: the residual's is another.
        found = F.forward_training(make(nhwc), residual=make(x), allow_copy=True).output
        assert as_bytes(found) == as_bytes(F.forward_training(nhwc, residual=nhwc).output)

        layer = BatchNorm2d(3)
        y = layer(make(strided), allow_copy=True)
        assert as_bytes(y) == as_bytes(F.forward_training(x).output)
        assert as_bytes(layer.recompute(make(strided), allow_copy=True)) == as_bytes(y)
        assert as_bytes(layer.backward(make(strided), allow_copy=True)) == as_bytes(
            layer.backward(make(x))
        )
        assert as_bytes(Moments.of(make(strided), allow_copy=True).m2) == as_bytes(Moments.of(x).m2)


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
def test_destinations_are_never_copied(make: Any, rng: np.random.Generator) -> None:
    x = images(rng)
    wide = np.zeros((4, 3, 5, 12), np.float32)
    bits = np.zeros(2 * ((x.size + 7) // 8), np.uint8)
    for name, destination in (
        ("out", wide[..., ::2]),
        ("running_mean", wide[0, :, 0, 0]),
        ("activation_mask", bits[::2]),
    ):
        arguments: Any = {"running_var": make(np.ones(3, np.float32)), name: make(destination)}
        if name != "running_mean":
            del arguments["running_var"]
        if name == "activation_mask":
            arguments["activation"] = "relu"
        with pytest.raises(ValueError, match=f"{name} has strides"):
            F.forward_training(make(x), **arguments, allow_copy=True)
    assert not wide.any()
    assert not bits.any()


def quantized() -> torch.Tensor:
    return torch._empty_affine_quantized([2, 3], scale=1.0, zero_point=0, dtype=torch.qint8)


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "grad": (
        lambda: torch.ones(2, 3, requires_grad=True),
        BufferError,
        r"input cannot be read: .*require.* grad.*detach\(\).*; batchnorm\.torch has",
    ),
    "meta": (lambda: torch.ones(2, 3, device="meta"), BufferError, "input .*meta"),
    "GPU": (lambda: OnGPU(np.ones((2, 3))), BufferError, "on device cuda:1, expected the CPU"),
    "NPU": (lambda: OnNPU(np.ones((2, 3))), BufferError, "on device of DLPack's type 16, expected"),
    "sparse": (lambda: torch.ones(2, 3).to_sparse(), BufferError, "other than torch.strided"),
    "quantized": (quantized, BufferError, "input cannot be read: .*[Qq][uU]?[Ii]nt"),
    "complex": (lambda: torch.ones(2, 3).to(torch.cfloat), TypeError, "input has dtype complex64"),
    "conjugate": (lambda: torch.ones(2, 3).to(torch.cfloat).conj(), BufferError, "conjugate bit"),
    "negative": (
        lambda: torch.ones(2, 3).to(torch.cfloat).conj().imag,
        BufferError,
        r"negative bit is set, use tensor\.resolve_neg\(\)",
    ),
    "float8": (
        lambda: torch.ones(2, 3).to(torch.float8_e5m2),
        BufferError,
        "type code 12, 8 bits and 1 lanes",
    ),
    "integers": (lambda: torch.ones(2, 3).int(), TypeError, "input has dtype int32, expected"),
    "copying": (lambda: Copying(np.ones((2, 3))), BufferError, "exported as a copy only"),
    "future": (lambda: FromTheFuture(np.ones((2, 3))), BufferError, r"DLPack 2\.\d, expected 1"),
    "bytes": (lambda: b"123456", TypeError, "input has dtype uint8"),
    "text": (lambda: "123456", TypeError, "input is of type str, expected numpy.ndarray or"),
    "scalar": (lambda: np.float32(1), TypeError, "input is of type float32"),
    "masked": (lambda: np.ma.masked_array(np.ones((2, 3))), TypeError, "masked array"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize(("make", "error", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    mean, var = torch.zeros(3), torch.ones(3)
    with pytest.raises(error, match=message):
        F.forward_training(make(), mean, var)
    with pytest.raises(error, match=message):
        F.forward_training(make(), mean, var, allow_copy=True)
    assert mean.tolist() == [0, 0, 0]
    layer = BatchNorm1d(3)
    with pytest.raises(error, match=message):
        layer(make())
    assert layer.num_batches_tracked == 0


def test_any_argument_is_named() -> None:
    x = torch.ones(2, 3)
    with pytest.raises(BufferError, match=r"weight cannot be read: .*batchnorm\.torch"):
        F.forward_training(x, weight=torch.nn.Parameter(torch.ones(3)))
    with pytest.raises(BufferError, match="residual is on device"):
        F.forward_training(x, residual=OnGPU(np.ones((2, 3), np.float32)))
    with pytest.raises(BufferError, match="grad_output is on device"):
        BatchNorm1d(3).backward(OnGPU(np.ones((2, 3), np.float32)))


# ---- JAX ----


def test_jax_arrays(rng: np.random.Generator) -> None:
    jax = pytest.importorskip("jax")
    jnp = jax.numpy
    x = images(rng)
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        given = jnp.asarray(x).astype(dtype)
        forward = F.forward_training(given)
        assert isinstance(forward.output, jax.Array)
        assert forward.output.dtype == dtype
        expected = F.forward_training(np.asarray(given))
        assert as_bytes(forward.output) == as_bytes(expected.output)
        saved: Any = {"saved_mean": forward.saved_mean, "saved_invstd": forward.saved_invstd}
        assert as_bytes(forward.saved_mean) == as_bytes(expected.saved_mean)  # float64 whatever JAX
        assert isinstance(F.backward(given, given, **saved).grad_weight, jax.Array)
    with pytest.raises(ValueError, match="out is read-only"):
        F.forward_training(given, out=given)
