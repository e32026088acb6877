"""Builds a network from a recipe, trains it, and notes down what the figures and verdicts need."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import batchnorm
import numpy as np
import numpy.typing as npt

from .data import CLASSES, SIDE, Digits, Floats, Labels
from .parts import (
    BatchNorm,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    Network,
    Part,
    ReLU,
    Sigmoid,
    descend,
    softmax_cross_entropy,
)

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)

Series = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training besides the seed and the data."""

    activation: str = "relu"  # or "sigmoid"
    batch_norm: bool = True
    learning_rate: float = 0.1
    epochs: int = 20
    batch_size: int = 100
    hidden: tuple[int, ...] = (32, 32)
    gain: float = 1.0  # of the Xavier weights; 1 is Xavier's own
    momentum: float | None = 0.1  # of the running statistics; None is the cumulative average


@dataclass(frozen=True)
class Observation:
    """One look at a network in training mode, on a fixed batch; one row or entry per layer."""

    epoch: int
    quantiles: Series  # (activations, len(QUANTILES)) of the pre-activations, all units together
    unit_means: Series  # (activations, units)
    unit_deviations: Series  # (activations, units)
    gradient_norms: Series  # (linears,): ‖∂L/∂W‖
    gradient_changes: Series  # (linears - 1,): see _gradient_changes


@dataclass
class History:
    """What a training left behind. Index 0 of a series is before the first step."""

    recipe: Recipe
    seed: int
    train_loss: list[float] = field(default_factory=list)  # on 1,000 of the training images
    train_accuracy: list[float] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    seconds: float = 0.0  # in training steps alone
    batch_norm_seconds: float = 0.0  # of those, inside the library's calls
    diverged: bool = False  # the loss left the finite numbers; the network stayed as it was then

    @property
    def batch_norm_share(self) -> float:
        return self.batch_norm_seconds / self.seconds if self.seconds else 0.0

    def epochs_to(self, accuracy: float) -> float:
        """The first epoch with this test accuracy, interpolated; inf if never."""
        before = self.test_accuracy[0]
        if before >= accuracy:
            return 0.0
        for epoch, now in enumerate(self.test_accuracy[1:], start=1):
            if now >= accuracy:
                return epoch - (now - accuracy) / (now - before)
            before = now
        return float("inf")


def dense_network(recipe: Recipe, seed: int) -> Network:
    """784–hidden–10, with BatchNorm1d before each activation if the recipe says so (note 004).

    The weights depend on the seed and the sizes only, so that trainings with and without batch
    normalization start from the same ones.
    """
    rng = np.random.default_rng([seed, 0])
    sizes = (SIDE * SIDE, *recipe.hidden)
    parts: list[Part] = []
    for inputs, outputs in zip(sizes, sizes[1:]):
        parts.append(Linear(inputs, outputs, rng, recipe.gain, first=not parts))
        if recipe.batch_norm:
            layer = batchnorm.BatchNorm1d(outputs, momentum=recipe.momentum, dtype=np.float32)
            parts.append(BatchNorm(layer))
        parts.append(ReLU() if recipe.activation == "relu" else Sigmoid())
    parts.append(Linear(sizes[-1], CLASSES, rng, recipe.gain))
    return Network(parts)


def convolutional_network(recipe: Recipe, seed: int) -> Network:
    """(n, 1, 28, 28) -> 8 and 16 channels of 3×3 convolution, BatchNorm2d, ReLU, pooling -> 10."""
    rng = np.random.default_rng([seed, 0])
    parts: list[Part] = []
    for inputs, outputs in ((1, 8), (8, 16)):
        parts.append(Conv2d(inputs, outputs, 3, rng, first=not parts))
        if recipe.batch_norm:
            layer = batchnorm.BatchNorm2d(outputs, momentum=recipe.momentum, dtype=np.float32)
            parts.append(BatchNorm(layer))
        parts += [ReLU(), MaxPool2d()]
    parts += [Flatten(), Linear(16 * (SIDE // 4) ** 2, CLASSES, rng)]
    return Network(parts)


def predict(network: Network, images: Floats, *, chunk: int = 500) -> Floats:
    """Logits in evaluation mode: every image on its own, by the running statistics."""
    network.set_training(False)
    logits = [network.forward(images[i : i + chunk]) for i in range(0, len(images), chunk)]
    network.set_training(True)
    return np.concatenate(logits)


def evaluate(network: Network, images: Floats, labels: Labels) -> tuple[float, float]:
    """(loss, accuracy) in evaluation mode."""
    logits = predict(network, images)
    loss, _ = softmax_cross_entropy(logits, labels)
    return loss, accuracy(logits, labels)


def accuracy(logits: Floats, labels: Labels) -> float:
    return float(np.mean(logits.argmax(axis=1) == labels))


def gradients(network: Network, images: Floats, labels: Labels) -> None:
    """Forward and backward in training mode: leaves the gradients in the network's parts."""
    _, grad = softmax_cross_entropy(network.forward(images), labels)
    network.backward(grad)


def _gradient_changes(
    network: Network, images: Floats, labels: Labels, learning_rate: float
) -> Series:
    """How much a layer's gradient changes when only the layers before it take their step.

    ‖g′ − g‖ / ‖g‖ for the weights of every linear layer but the first: the internal covariate shift
    as Santurkar et al. (2018) measure it. 0 would mean that layers learn independently.
    """
    changes = []
    for position in [i for i, part in enumerate(network.parts) if isinstance(part, Linear)][1:]:
        moved = copy.deepcopy(network)
        layer = moved.parts[position]
        assert isinstance(layer, Linear)
        gradients(moved, images, labels)
        before = layer.grad_weight
        descend(Network(moved.parts[:position]), learning_rate)
        gradients(moved, images, labels)
        norm = float(np.linalg.norm(before))
        change = float(np.linalg.norm(layer.grad_weight - before))
        changes.append(change / norm if norm > 0 else float("nan"))
    return np.array(changes)


def observe(
    network: Network, epoch: int, images: Floats, labels: Labels, learning_rate: float
) -> Observation:
    """Looks at a copy, so that the observed training is the same as an unobserved one."""
    probe = copy.deepcopy(network)
    gradients(probe, images, labels)
    inputs = [part.input.astype(np.float64) for part in probe.activations]
    return Observation(
        epoch=epoch,
        quantiles=np.array([np.quantile(x, QUANTILES) for x in inputs]),
        unit_means=np.array([x.mean(axis=0) for x in inputs]),
        unit_deviations=np.array([x.std(axis=0) for x in inputs]),
        gradient_norms=np.array([float(np.linalg.norm(p.grad_weight)) for p in probe.linears]),
        gradient_changes=_gradient_changes(probe, images, labels, learning_rate),
    )


def train(
    network: Network,
    recipe: Recipe,
    digits: Digits,
    seed: int,
    *,
    looks: int = 0,
    after_epoch: Callable[[Network], None] | None = None,
) -> History:
    """Trains by plain SGD; the order of the images depends on the seed only.

    Before the first step and after every epoch it notes loss and accuracy, makes the first so many
    `looks` into the network and calls `after_epoch`. It stops if the loss is no longer finite.
    """
    history = History(recipe, seed)
    order = np.random.default_rng([seed, 1])
    images, labels = digits.train_images, digits.train_labels
    steps = len(images) // recipe.batch_size
    probe = slice(0, 500)  # of images in random order
    judged = slice(0, 1000)

    def note(epoch: int) -> None:
        for losses, accuracies, x, t in (
            (history.train_loss, history.train_accuracy, images[judged], labels[judged]),
            (history.test_loss, history.test_accuracy, digits.test_images, digits.test_labels),
        ):
            loss, share = evaluate(network, x, t)
            losses.append(loss)
            accuracies.append(share)
        if epoch < looks:
            history.observations.append(
                observe(network, epoch, images[probe], labels[probe], recipe.learning_rate)
            )
        if after_epoch is not None:
            after_epoch(network)

    with np.errstate(over="ignore", invalid="ignore"):
        note(0)
        for epoch in range(1, recipe.epochs + 1):
            for batch in np.array_split(order.permutation(len(images)), steps):
                batch_norm_before = sum(part.seconds for part in network.batch_norms)
                start = time.perf_counter()
                loss, grad = softmax_cross_entropy(network.forward(images[batch]), labels[batch])
                if not np.isfinite(loss):
                    history.diverged = True
                    break
                network.backward(grad)
                descend(network, recipe.learning_rate)
                history.seconds += time.perf_counter() - start
                history.batch_norm_seconds += (
                    sum(part.seconds for part in network.batch_norms) - batch_norm_before
                )
            note(epoch)
            if history.diverged:
                break
    return history
