"""The experiments: which networks are trained, on what, and what is kept of them.

Trainings that are compared share their seed: the first weights and the order of the images.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import batchnorm
import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]

from .data import CLASSES, Digits
from .parts import Network
from .training import (
    History,
    Recipe,
    Series,
    accuracy,
    convolutional_network,
    dense_network,
    predict,
    train,
)

Trials = dict[Recipe, list[History]]  # a history per seed

ACTIVATIONS = {"relu": "ReLU", "sigmoid": "sigmoid"}  # and what to call them
USUAL_RATE, HIGH_RATE = 0.1, 1.0
WITH_AND_WITHOUT = (False, True)


@dataclass(frozen=True)
class Size:
    """How much is trained: everything for a person to look at, little for a test."""

    name: str
    train_per_class: int
    test_per_class: int
    seeds: int  # of the main experiment
    more_seeds: int  # of the others
    epochs: int
    more_epochs: int
    gains: tuple[float, ...]
    depths: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    batch_epochs: int
    convolution_epochs: int
    convolution_seeds: int


FULL = Size(
    name="full",
    train_per_class=400,
    test_per_class=100,
    seeds=6,
    more_seeds=4,
    epochs=20,
    more_epochs=10,
    gains=(0.1, 0.3, 1, 3, 10),
    depths=(2, 4, 8),
    batch_sizes=(2, 5, 10, 25, 100),
    batch_epochs=3,
    convolution_epochs=3,
    convolution_seeds=3,
)
QUICK = Size(
    name="quick",
    train_per_class=100,
    test_per_class=50,
    seeds=2,
    more_seeds=2,
    epochs=4,
    more_epochs=3,
    gains=(0.1, 1, 10),
    depths=(2, 4),
    batch_sizes=(5, 25, 100),
    batch_epochs=2,
    convolution_epochs=1,
    convolution_seeds=1,
)


@dataclass
class Statistics:
    """Three ways to get the statistics for inference, for the same weights; per seed and epoch."""

    moving: Series  # test accuracy with 1/N·Σ over every batch since the training began
    exponential: Series  # test accuracy with the exponential average
    exact: (
        Series  # test accuracy with 1/N·Σ over the training set, all with the weights as they are
    )
    moving_error: Series  # distance of the running means from the exact ones, in deviations
    exponential_error: Series


@dataclass
class Convolution:
    """The convolutional networks, and how the one with batch normalization does at inference."""

    trials: Trials
    modes: dict[str, list[float]]  # way to evaluate -> test accuracy per seed
    largest_difference: float  # between logits of images evaluated alone and together


@dataclass
class Results:
    """What all experiments found."""

    size: Size
    train_images: int
    test_images: int
    learning: Trials
    gains: Trials
    depths: Trials
    batch_sizes: Trials
    statistics: dict[float, Statistics]  # by learning rate
    convolution: Convolution
    one_image_message: str  # what the library says to a training batch of one image
    seconds: float = 0.0


@contextmanager
def _progress(title: str, epochs: int) -> Iterator[Callable[[Network], None]]:
    """A bar that advances with every epoch, and one line in the end, on a terminal or not."""
    start = time.perf_counter()
    with tqdm(total=epochs, desc=title, unit="epoch", leave=False, disable=None) as bar:
        yield lambda _network: bar.update()
    print(f"  {title}: {epochs} epochs in {time.perf_counter() - start:.1f} s", flush=True)


def _run(
    title: str,
    recipes: Iterable[Recipe],
    seeds: int,
    digits: Digits,
    looks: int = 0,
    build: Callable[[Recipe, int], Network] = dense_network,
    finished: Callable[[Network, Recipe], None] | None = None,
) -> Trials:
    """Trains every recipe with every seed."""
    recipes = list(recipes)
    trials: Trials = {recipe: [] for recipe in recipes}
    with _progress(title, seeds * sum(recipe.epochs + 1 for recipe in recipes)) as advance:
        for seed in range(seeds):
            for recipe in recipes:
                network = build(recipe, seed)
                history = train(network, recipe, digits, seed, looks=looks, after_epoch=advance)
                trials[recipe].append(history)
                if finished is not None:
                    finished(network, recipe)
    return trials


def learning(size: Size, digits: Digits) -> Trials:
    """Source note 004's network: with and without, two activations, two learning rates."""
    recipes = (
        Recipe(activation, batch_norm, rate, size.epochs)
        for activation in ACTIVATIONS
        for rate in (USUAL_RATE, HIGH_RATE)
        for batch_norm in WITH_AND_WITHOUT
    )
    return _run("note 004's network", recipes, size.seeds, digits, looks=size.epochs + 1)


def gains(size: Size, digits: Digits) -> Trials:
    """The same network from Xavier weights multiplied by a gain."""
    recipes = (
        Recipe(activation, batch_norm, USUAL_RATE, size.more_epochs, gain=gain)
        for activation in ACTIVATIONS
        for gain in size.gains
        for batch_norm in WITH_AND_WITHOUT
    )
    return _run("initial weights", recipes, size.more_seeds, digits)


def depths(size: Size, digits: Digits) -> Trials:
    """More hidden layers of 32 units."""
    recipes = (
        Recipe(activation, batch_norm, USUAL_RATE, size.more_epochs, hidden=(32,) * depth)
        for activation in ACTIVATIONS
        for depth in size.depths
        for batch_norm in WITH_AND_WITHOUT
    )
    return _run("depth", recipes, size.more_seeds, digits, looks=1)


def batch_sizes(size: Size, digits: Digits) -> Trials:
    """Smaller batches, the learning rate in proportion: an epoch moves the weights as far."""
    recipes = (
        Recipe("relu", batch_norm, USUAL_RATE * batch / 100, size.batch_epochs, batch_size=batch)
        for batch in size.batch_sizes
        for batch_norm in WITH_AND_WITHOUT
    )
    return _run("batch size", recipes, size.more_seeds, digits)


def _exact_statistics(network: Network, digits: Digits, batch_size: int) -> Network:
    """A copy whose running statistics are 1/N·Σ over the training set, with the weights fixed.

    The network's layers must average cumulatively (momentum=None).
    """
    fixed = copy.deepcopy(network)
    for part in fixed.batch_norms:
        part.layer.reset_running_stats()
    for start in range(0, len(digits.train_images), batch_size):
        fixed.forward(digits.train_images[start : start + batch_size])
    return fixed


def statistics(size: Size, digits: Digits) -> dict[float, Statistics]:
    """Note 000's moving and exponential averages, against the statistics that they stand for."""
    found = {}
    for rate in (USUAL_RATE, HIGH_RATE):
        per_seed = []
        with _progress(
            f"inference statistics, learning rate {rate:g}",
            2 * size.more_seeds * (size.more_epochs + 1),
        ) as advance:
            for seed in range(size.more_seeds):
                per_seed.append(_statistics_of_one(size, digits, rate, seed, advance))
        found[rate] = Statistics(*(np.array(series) for series in zip(*per_seed)))
    return found


def _statistics_of_one(
    size: Size, digits: Digits, rate: float, seed: int, advance: Callable[[Network], None]
) -> tuple[list[float], list[float], list[float], list[float], list[float]]:
    recipe = Recipe("relu", True, rate, size.more_epochs, momentum=None)
    exact_means: list[list[Series]] = []
    exact_deviations: list[list[Series]] = []
    exact_accuracy: list[float] = []
    errors: tuple[list[float], list[float]] = ([], [])

    def error(network: Network, epoch: int) -> float:
        scaled = [
            (part.layer.running_mean - mean) / deviation
            for part, mean, deviation in zip(
                network.batch_norms, exact_means[epoch], exact_deviations[epoch]
            )
        ]
        return float(np.sqrt(np.mean(np.square(np.concatenate(scaled)))))

    def after_cumulative(network: Network) -> None:
        exact = _exact_statistics(network, digits, recipe.batch_size)
        exact_means.append(
            [np.array(part.layer.running_mean, np.float64) for part in exact.batch_norms]
        )
        exact_deviations.append(
            [np.sqrt(np.array(part.layer.running_var, np.float64)) for part in exact.batch_norms]
        )
        exact_accuracy.append(accuracy(predict(exact, digits.test_images), digits.test_labels))
        errors[0].append(error(network, len(errors[0])))
        advance(network)

    def after_exponential(network: Network) -> None:
        errors[1].append(error(network, len(errors[1])))
        advance(network)

    cumulative = dense_network(recipe, seed)
    moving = train(cumulative, recipe, digits, seed, after_epoch=after_cumulative)
    recipe = replace(recipe, momentum=0.1)
    exponential = dense_network(recipe, seed)
    history = train(exponential, recipe, digits, seed, after_epoch=after_exponential)
    # How statistics are averaged has no part in training, and the library repeats every bit.
    for (one, _), (other, _) in zip(cumulative.parameters(), exponential.parameters()):
        assert np.array_equal(one, other), "the same training gave different weights"
    return moving.test_accuracy, history.test_accuracy, exact_accuracy, errors[0], errors[1]


def _predict_in_training_mode(network: Network, digits: Digits, batches: list[np.ndarray]) -> float:
    """Test accuracy by the statistics of each batch: what forgetting `eval()` does."""
    copied = copy.deepcopy(network)
    right = 0
    for batch in batches:
        logits = copied.forward(digits.test_images[batch])
        right += int(np.sum(logits.argmax(axis=1) == digits.test_labels[batch]))
    return right / sum(len(batch) for batch in batches)


def convolution(size: Size, digits: Digits) -> Convolution:
    """A small convolutional network, and every way to evaluate it, right and wrong."""
    digits = digits.as_images()
    count = len(digits.test_images)
    shuffled = np.random.default_rng(0).permutation(count)
    training_mode = {
        "train(), mixed batches of 100": [shuffled[i : i + 100] for i in range(0, count, 100)],
        "train(), one image at a time": list(np.arange(count).reshape(-1, 1)),
        "train(), batches of one digit": [
            np.flatnonzero(digits.test_labels == digit) for digit in range(CLASSES)
        ],
    }
    modes: dict[str, list[float]] = {}
    differences = [0.0]

    def evaluate_every_way(network: Network, recipe: Recipe) -> None:
        if not recipe.batch_norm:
            return
        together = predict(network, digits.test_images)
        alone = predict(network, digits.test_images, chunk=1)
        differences.append(float(np.max(np.abs(together - alone))))
        modes.setdefault("eval(), batches of 500", []).append(
            accuracy(together, digits.test_labels)
        )
        modes.setdefault("eval(), one image at a time", []).append(
            accuracy(alone, digits.test_labels)
        )
        for mode, batches in training_mode.items():
            modes.setdefault(mode, []).append(_predict_in_training_mode(network, digits, batches))

    recipes = (
        Recipe("relu", batch_norm, USUAL_RATE, size.convolution_epochs)
        for batch_norm in (False, True)
    )
    trials = _run(
        "convolutional network",
        recipes,
        size.convolution_seeds,
        digits,
        build=convolutional_network,
        finished=evaluate_every_way,
    )
    return Convolution(trials, modes, max(differences))


def one_image_message() -> str:
    """Batch statistics of one value per channel do not exist; this is how the library says so."""
    try:
        batchnorm.BatchNorm1d(32).forward(np.zeros((1, 32), np.float32))
    except ValueError as error:
        return str(error)
    return ""


def run_all(size: Size, digits: Digits) -> Results:
    """Every experiment, one after the other."""
    start = time.perf_counter()
    results = Results(
        size=size,
        train_images=len(digits.train_images),
        test_images=len(digits.test_images),
        learning=learning(size, digits),
        gains=gains(size, digits),
        depths=depths(size, digits),
        batch_sizes=batch_sizes(size, digits),
        statistics=statistics(size, digits),
        convolution=convolution(size, digits),
        one_image_message=one_image_message(),
    )
    results.seconds = time.perf_counter() - start
    return results
