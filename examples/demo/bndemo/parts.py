"""The parts of a network in plain NumPy, each with its own backward pass.

The one part that is not NumPy is BatchNorm: there the library does all the work.
Every part keeps from its last forward what its backward needs; gradients are written, not added.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

import batchnorm
import numpy as np

from .data import Floats, Labels


class Part(ABC):
    """One step of a network: y = forward(x), dL/dx = backward(dL/dy)."""

    @abstractmethod
    def forward(self, x: Floats) -> Floats: ...

    @abstractmethod
    def backward(self, grad: Floats) -> Floats: ...

    def parameters(self) -> list[tuple[Floats, Floats]]:
        """(value, gradient) of each parameter; an optimizer updates the value in place."""
        return []

    def set_training(self, training: bool) -> None:  # noqa: B027 — a default, not a forgotten body
        """Most parts do the same in training and in evaluation."""


class Linear(Part):
    """(n, inputs) -> (n, outputs): x·Wᵀ + b; W as torch.nn.init.xavier_normal_(W, gain), b = 0.

    If it is the first part of a network, nobody wants ∂L/∂x: backward returns an empty array.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        rng: np.random.Generator,
        gain: float = 1.0,
        dtype: type[np.floating] = np.float32,
        first: bool = False,
    ) -> None:
        self.first = first
        deviation = gain * np.sqrt(2.0 / (inputs + outputs))
        self.weight: Floats = rng.normal(0.0, deviation, (outputs, inputs)).astype(dtype)
        self.bias: Floats = np.zeros(outputs, dtype)
        self.grad_weight, self.grad_bias = np.zeros_like(self.weight), np.zeros_like(self.bias)

    def forward(self, x: Floats) -> Floats:
        self.input = x
        return x @ self.weight.T + self.bias

    def backward(self, grad: Floats) -> Floats:
        self.grad_weight = grad.T @ self.input
        self.grad_bias = grad.sum(axis=0)
        return np.empty(0, grad.dtype) if self.first else grad @ self.weight

    def parameters(self) -> list[tuple[Floats, Floats]]:
        return [(self.weight, self.grad_weight), (self.bias, self.grad_bias)]


class Conv2d(Part):
    """(n, c, h, w) -> (n, outputs, h, w): odd kernel, stride 1, zero padding that keeps the size.

    All pixels' neighbourhoods become the rows of one matrix (im2col), so that the convolution is
    one matrix product. That product's result lies in memory as (n, h, w, outputs); it is
    returned as a channels-last view, which batchnorm takes as it is, without a copy.
    `first` is Linear's.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        rng: np.random.Generator,
        dtype: type[np.floating] = np.float32,
        first: bool = False,
    ) -> None:
        if kernel % 2 == 0:
            raise ValueError(f"kernel: expected an odd size, got {kernel}")
        self.first = first
        deviation = np.sqrt(2.0 / ((inputs + outputs) * kernel * kernel))
        self.weight: Floats = rng.normal(0.0, deviation, (outputs, inputs, kernel, kernel)).astype(
            dtype
        )
        self.bias: Floats = np.zeros(outputs, dtype)
        self.grad_weight, self.grad_bias = np.zeros_like(self.weight), np.zeros_like(self.bias)

    def _neighbourhoods(self, x: Floats) -> Floats:
        """(n, c, h, w) -> (n·h·w, kernel·kernel·c)."""
        n, c, h, w = x.shape
        k = self.weight.shape[2]
        p = k // 2
        padded = np.zeros((n, h + 2 * p, w + 2 * p, c), x.dtype)
        padded[:, p : p + h, p : p + w] = x.transpose(0, 2, 3, 1)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k), axis=(1, 2))
        return windows.transpose(0, 1, 2, 4, 5, 3).reshape(n * h * w, k * k * c)

    def forward(self, x: Floats) -> Floats:
        n, _, h, w = x.shape
        self.rows = self._neighbourhoods(x)
        matrix = self.weight.transpose(2, 3, 1, 0).reshape(-1, len(self.bias))
        y = self.rows @ matrix + self.bias
        return y.reshape(n, h, w, -1).transpose(0, 3, 1, 2)

    def backward(self, grad: Floats) -> Floats:
        n, outputs, h, w = grad.shape
        _, inputs, k, _ = self.weight.shape
        flat = grad.transpose(0, 2, 3, 1).reshape(n * h * w, outputs)
        grad_matrix = self.rows.T @ flat
        self.grad_weight = grad_matrix.reshape(k, k, inputs, outputs).transpose(3, 2, 0, 1)
        self.grad_bias = flat.sum(axis=0)
        if self.first:
            return np.empty(0, grad.dtype)
        # The gradient of a convolution is the convolution of the gradient with the mirrored kernel.
        mirrored = self.weight[:, :, ::-1, ::-1].transpose(2, 3, 0, 1).reshape(-1, inputs)
        return (
            (self._neighbourhoods(grad) @ mirrored).reshape(n, h, w, inputs).transpose(0, 3, 1, 2)
        )

    def parameters(self) -> list[tuple[Floats, Floats]]:
        return [(self.weight, self.grad_weight), (self.bias, self.grad_bias)]


class MaxPool2d(Part):
    """(n, c, h, w) -> (n, c, h/2, w/2): the largest of each 2×2 block, h and w even."""

    def forward(self, x: Floats) -> Floats:
        n, c, h, w = x.shape
        self.blocks = x.transpose(0, 2, 3, 1).reshape(n, h // 2, 2, w // 2, 2, c)
        # Pair by pair, which NumPy does much faster than max(axis=(2, 4)).
        rows = np.maximum(self.blocks[:, :, 0], self.blocks[:, :, 1])
        self.largest = np.maximum(rows[:, :, :, 0], rows[:, :, :, 1])
        return self.largest.transpose(0, 3, 1, 2)

    def backward(self, grad: Floats) -> Floats:
        n, c, h, w = grad.shape
        # Equal largest values share the gradient; after a ReLU these are zeros, where it ends.
        winners = self.blocks == self.largest[:, :, None, :, None]
        counts = winners[:, :, 0].astype(np.int8) + winners[:, :, 1]
        shares = grad.transpose(0, 2, 3, 1) / (counts[:, :, :, 0] + counts[:, :, :, 1])
        spread = np.empty(self.blocks.shape, grad.dtype)
        np.multiply(winners, shares[:, :, None, :, None], out=spread)
        return spread.reshape(n, 2 * h, 2 * w, c).transpose(0, 3, 1, 2)


class Flatten(Part):
    """(n, c, h, w) -> (n, h·w·c), in the channels-last order that the convolutions produce."""

    def forward(self, x: Floats) -> Floats:
        channels_last = x.transpose(0, 2, 3, 1)
        self.shape = channels_last.shape
        return channels_last.reshape(len(x), -1)

    def backward(self, grad: Floats) -> Floats:
        return grad.reshape(self.shape).transpose(0, 3, 1, 2)


class Activation(Part):
    """Keeps its input: the pre-activations whose distribution the demo shows."""

    input: Floats


class ReLU(Activation):
    """max(x, 0)."""

    def forward(self, x: Floats) -> Floats:
        self.input = x
        return np.maximum(x, 0)

    def backward(self, grad: Floats) -> Floats:
        return grad * (self.input > 0)


class Sigmoid(Activation):
    """1 / (1 + e⁻ˣ), as (1 + tanh(x/2)) / 2, which does not overflow."""

    def forward(self, x: Floats) -> Floats:
        self.input = x
        self.output = (1 + np.tanh(x / 2)) / 2
        return self.output

    def backward(self, grad: Floats) -> Floats:
        return grad * self.output * (1 - self.output)


class BatchNorm(Part):
    """A layer of the library, and a stopwatch around its calls."""

    def __init__(self, layer: batchnorm.BatchNorm1d | batchnorm.BatchNorm2d) -> None:
        self.layer = layer
        self.seconds = 0.0

    def forward(self, x: Floats) -> Floats:
        start = time.perf_counter()
        y: Floats = self.layer.forward(x)
        self.seconds += time.perf_counter() - start
        return y

    def backward(self, grad: Floats) -> Floats:
        start = time.perf_counter()
        grad_input: Floats = self.layer.backward(grad)
        self.seconds += time.perf_counter() - start
        return grad_input

    def parameters(self) -> list[tuple[Floats, Floats]]:
        # weight and bias are views on the layer's own memory: updating them updates the layer.
        layer = self.layer
        pairs = ((layer.weight, layer.grad_weight), (layer.bias, layer.grad_bias))
        return [(value, grad) for value, grad in pairs if value is not None and grad is not None]

    def set_training(self, training: bool) -> None:
        self.layer.train(training)


class Network(Part):
    """Parts one after the other, in training mode until told otherwise."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = list(parts)

    def forward(self, x: Floats) -> Floats:
        for part in self.parts:
            x = part.forward(x)
        return x

    def backward(self, grad: Floats) -> Floats:
        for part in reversed(self.parts):
            grad = part.backward(grad)
        return grad

    def parameters(self) -> list[tuple[Floats, Floats]]:
        return [pair for part in self.parts for pair in part.parameters()]

    def set_training(self, training: bool) -> None:
        for part in self.parts:
            part.set_training(training)

    @property
    def batch_norms(self) -> list[BatchNorm]:
        return [part for part in self.parts if isinstance(part, BatchNorm)]

    @property
    def activations(self) -> list[Activation]:
        return [part for part in self.parts if isinstance(part, Activation)]

    @property
    def linears(self) -> list[Linear]:
        return [part for part in self.parts if isinstance(part, Linear)]


def softmax_cross_entropy(logits: Floats, labels: Labels) -> tuple[float, Floats]:
    """Mean loss over the batch, and its gradient with respect to the logits."""
    rows = np.arange(len(labels))
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    totals = exponentials.sum(axis=1, keepdims=True)
    loss = float(np.mean(np.log(totals[:, 0]) - shifted[rows, labels]))
    grad = exponentials / totals
    grad[rows, labels] -= 1
    return loss, grad / len(labels)


def descend(network: Part, learning_rate: float) -> None:
    """One step of plain stochastic gradient descent."""
    for value, grad in network.parameters():
        value -= value.dtype.type(learning_rate) * grad
