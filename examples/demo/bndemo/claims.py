"""The claims of the study notes, each held against the numbers of these runs.

A claim is a list of comparisons that would have to come out one way. Compared trainings share their
seed, and a comparison counts only if every seed agrees about it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from .experiments import ACTIVATIONS, HIGH_RATE, USUAL_RATE, Results, Trials
from .training import History, Recipe

TARGET_ACCURACY = 0.9
EQUAL_ACCURACY = 0.01  # closer than a percentage point counts as equally good


class Outcome(Enum):
    AS_CLAIMED = "as claimed"
    NO_DIFFERENCE = "seeds disagree"
    OPPOSITE = "the opposite"


@dataclass(frozen=True)
class Comparison:
    """One number of a claim in two situations, as means over the seeds."""

    where: str
    claimed_better: float
    other: float
    outcome: Outcome
    unit: str

    def __str__(self) -> str:
        better, other = (_number(x, self.unit) for x in (self.claimed_better, self.other))
        return f"{self.where}: {better} against {other} — {self.outcome.value}"


@dataclass(frozen=True)
class Claim:
    """A sentence of the notes, what was measured for it, and how that came out."""

    sentence: str
    notes: str
    measured: str
    comparisons: tuple[Comparison, ...]

    @property
    def verdict(self) -> str:
        outcomes = [comparison.outcome for comparison in self.comparisons]
        confirmed = outcomes.count(Outcome.AS_CLAIMED)
        if confirmed == len(outcomes):
            return "confirmed"
        if confirmed:
            return f"confirmed in {confirmed} of {len(outcomes)} comparisons"
        if outcomes.count(Outcome.OPPOSITE) == len(outcomes):
            return "not confirmed: the opposite showed"
        return "not confirmed"

    @property
    def headline(self) -> str:
        """The sentence itself where it holds, and else the sentence with its verdict."""
        if self.verdict == "confirmed":
            return self.sentence
        return f"“{self.sentence}”: {self.verdict}"


def _number(value: float, unit: str) -> str:
    if unit == "%":
        return f"{100 * value:.1f} %"
    return f"{value:.3g}{' ' + unit if unit else ''}"


def compare(
    where: str,
    claimed_better: Sequence[float],
    other: Sequence[float],
    *,
    higher_is_better: bool,
    unit: str = "",
) -> Comparison:
    """Decides whether the first is better than the second; both hold one finite value per seed."""
    first, second = np.asarray(claimed_better, float), np.asarray(other, float)
    if first.shape != second.shape or not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError(
            f"{where}: expected finite values for the same seeds, got {first} and {second}"
        )
    gains = first - second if higher_is_better else second - first
    if (gains > 0).all():
        outcome = Outcome.AS_CLAIMED
    elif (gains < 0).all():
        outcome = Outcome.OPPOSITE
    else:
        outcome = Outcome.NO_DIFFERENCE
    return Comparison(where, float(first.mean()), float(second.mean()), outcome, unit)


def compare_equal(
    where: str, value: Sequence[float], truth: Sequence[float], *, margin: float, unit: str = ""
) -> Comparison:
    """Decides whether the means are within a margin of each other, as claimed."""
    first, second = float(np.mean(value)), float(np.mean(truth))
    outcome = Outcome.AS_CLAIMED if abs(first - second) <= margin else Outcome.OPPOSITE
    return Comparison(where, first, second, outcome, unit)


# What is measured of one training -----------------------------------------------------------------


def final_accuracy(history: History) -> float:
    return history.test_accuracy[-1]


def epochs_to_target(history: History) -> float:
    """Epochs to the target accuracy; the number of all epochs stands for never."""
    return min(history.epochs_to(TARGET_ACCURACY), float(history.recipe.epochs))


def accuracy_gap(history: History) -> float:
    return history.train_accuracy[-1] - history.test_accuracy[-1]


def held_out_loss_at(history: History, train_loss: float) -> float:
    """The test loss when the training loss first came down to this, interpolated."""
    losses = np.minimum.accumulate(history.train_loss)
    return float(np.interp(-train_loss, -losses, history.test_loss))


def drift(history: History) -> float:
    """How far the pre-activations of a unit move between two looks, in standard deviations."""
    looks = history.observations
    moves = []
    for before, after in zip(looks, looks[1:]):
        deviations = np.maximum(before.unit_deviations, 1e-6)
        moves.append(np.median(np.abs(after.unit_means - before.unit_means) / deviations))
    return float(np.mean(moves))


def gradient_change(history: History) -> float:
    """Median over layers and looks of the relative change of a gradient; see training.py."""
    return float(np.nanmedian([look.gradient_changes for look in history.observations]))


def gradient_ratio(history: History) -> float:
    """The gradient of the first hidden-to-hidden layer as a part of the last one's, at the start.

    Only layers of the same size, 32×32, are compared.
    """
    norms = history.observations[0].gradient_norms[1:-1]
    return float(norms[0] / norms[-1])


# The claims ---------------------------------------------------------------------------------------


def _pairs(trials: Trials) -> list[tuple[Recipe, list[History], Recipe, list[History]]]:
    """(with, without) of trials that differ in nothing else."""
    key = {
        (r.activation, r.learning_rate, r.hidden, r.gain, r.batch_size, r.batch_norm): r
        for r in trials
    }
    pairs = []
    for (*rest, batch_norm), recipe in key.items():
        if batch_norm:
            other = key[(*rest, False)]  # type: ignore[index]
            pairs.append((recipe, trials[recipe], other, trials[other]))
    return pairs


def _name(recipe: Recipe) -> str:
    return f"{ACTIVATIONS[recipe.activation]}, learning rate {recipe.learning_rate:g}"


def _compare_all(
    trials: Trials,
    measure: Callable[[History], float],
    *,
    higher_is_better: bool,
    unit: str = "",
    only: Callable[[Recipe], bool] = lambda recipe: True,
    name: Callable[[Recipe], str] = _name,
) -> tuple[Comparison, ...]:
    """With batch normalization, claimed to be better, against without."""
    return tuple(
        compare(
            name(recipe),
            [measure(history) for history in with_it],
            [measure(history) for history in without],
            higher_is_better=higher_is_better,
            unit=unit,
        )
        for recipe, with_it, _, without in _pairs(trials)
        if only(recipe)
    )


def claims(results: Results) -> list[Claim]:
    """Every claim with its verdict."""
    learning = results.learning

    def usual(recipe: Recipe) -> bool:
        return recipe.learning_rate == USUAL_RATE

    def of(trials: Trials, activation: str, batch_norm: bool) -> list[list[History]]:
        return [
            histories
            for recipe, histories in trials.items()
            if recipe.activation == activation and recipe.batch_norm == batch_norm
        ]

    def spread(activation: str, batch_norm: bool) -> list[float]:
        """Per seed: best minus worst final accuracy over the gains of the first weights."""
        final = np.array(
            [[final_accuracy(h) for h in hs] for hs in of(results.gains, activation, batch_norm)]
        )
        return list(final.max(axis=0) - final.min(axis=0))

    def loss(batch: int, batch_norm: bool) -> list[float]:
        """Per seed: accuracy lost by training with this batch size instead of the largest."""
        by_size = {
            recipe.batch_size: np.array([final_accuracy(h) for h in histories])
            for recipe, histories in results.batch_sizes.items()
            if recipe.batch_norm == batch_norm
        }
        return list(by_size[max(by_size)] - by_size[batch])

    def at_equal_training_loss(activation: str) -> Comparison:
        (with_it,), (without,) = (
            [hs for hs in of(learning, activation, bn) if usual(hs[0].recipe)]
            for bn in (True, False)
        )
        levels = [max(a.train_loss[-1], b.train_loss[-1]) for a, b in zip(with_it, without)]
        return compare(
            f"{ACTIVATIONS[activation]}, test loss at the same training loss",
            [held_out_loss_at(h, level) for h, level in zip(with_it, levels)],
            [held_out_loss_at(h, level) for h, level in zip(without, levels)],
            higher_is_better=False,
        )

    deepest = (32,) * max(results.size.depths)
    small = min(results.size.batch_sizes)
    modes = results.convolution.modes
    evaluation = modes["eval(), one image at a time"]

    def in_deep_sigmoid(
        name: str, measure: Callable[[History], float], unit: str
    ) -> tuple[Comparison, ...]:
        return _compare_all(
            results.depths,
            measure,
            higher_is_better=True,
            unit=unit,
            only=lambda recipe: recipe.hidden == deepest and recipe.activation == "sigmoid",
            name=lambda recipe: name,
        )

    return [
        Claim(
            "Batch normalization makes learning faster",
            "001, 002, 004",
            f"epochs to {TARGET_ACCURACY:.0%} test accuracy (all {results.size.epochs} if never), "
            "with batch normalization against without",
            _compare_all(learning, epochs_to_target, higher_is_better=False, unit="epochs"),
        ),
        Claim(
            "Batch normalization allows higher learning rates",
            "000",
            f"final test accuracy at learning rate {HIGH_RATE:g}, with against without",
            _compare_all(
                learning,
                final_accuracy,
                higher_is_better=True,
                unit="%",
                only=lambda recipe: recipe.learning_rate == HIGH_RATE,
            ),
        ),
        Claim(
            "Batch normalization makes the initial weights matter less",
            "004",
            "best minus worst final test accuracy over Xavier weights times "
            f"{', '.join(f'{gain:g}' for gain in results.size.gains)}, with against without",
            tuple(
                compare(
                    ACTIVATIONS[activation],
                    spread(activation, True),
                    spread(activation, False),
                    higher_is_better=False,
                    unit="%",
                )
                for activation in ACTIVATIONS
            ),
        ),
        Claim(
            "Batch normalization keeps gradients from vanishing in sigmoid networks",
            "003, 004",
            f"{len(deepest)} hidden layers: gradient norm of the first hidden-to-hidden layer over "
            "the last one's before training, and final test accuracy, with against without",
            in_deep_sigmoid("gradient ratio", gradient_ratio, "")
            + in_deep_sigmoid("accuracy", final_accuracy, "%"),
        ),
        Claim(
            "Batch normalization reduces overfitting",
            "000, 002, 004",
            "training minus test accuracy in the end, and test loss at the same training loss, "
            f"learning rate {USUAL_RATE:g}, with against without",
            _compare_all(
                learning,
                accuracy_gap,
                higher_is_better=False,
                unit="%",
                only=usual,
                name=lambda r: f"{ACTIVATIONS[r.activation]}, accuracy gap",
            )
            + tuple(at_equal_training_loss(activation) for activation in ACTIVATIONS),
        ),
        Claim(
            "Batch normalization makes distributions inside the network shift less",
            "000, 002, 003, 004",
            "move of a unit's mean pre-activation in an epoch, in standard deviations, with (where "
            "it is that of β, by construction) against without",
            _compare_all(learning, drift, higher_is_better=False, unit="σ"),
        ),
        Claim(
            "Batch normalization lets layers learn more independently of earlier ones",
            "002",
            "relative change of a layer's gradient when only the layers before it take their step, "
            "with against without",
            _compare_all(learning, gradient_change, higher_is_better=False),
        ),
        Claim(
            "Small batches harm batch normalization",
            "000",
            f"test accuracy lost by batches of {small} instead of {max(results.size.batch_sizes)}, "
            "without batch normalization against with",
            (
                compare(
                    "ReLU", loss(small, False), loss(small, True), higher_is_better=False, unit="%"
                ),
            ),
        ),
        Claim(
            "Inference must use the running statistics",
            "000, 004",
            "convolutional network, test accuracy one image at a time in eval() against train()",
            tuple(
                compare(f"against {mode}", evaluation, values, higher_is_better=True, unit="%")
                for mode, values in modes.items()
                if mode.startswith("train()")
            ),
        ),
        Claim(
            "Running averages, moving or exponential, stand in for the statistics of all data",
            "000",
            "final test accuracy with the running average against the exact average over the "
            "training set, equal if within one percentage point",
            tuple(
                compare_equal(
                    f"{average} average, learning rate {rate:g}",
                    list(getattr(found, average)[:, -1]),
                    list(found.exact[:, -1]),
                    margin=EQUAL_ACCURACY,
                    unit="%",
                )
                for rate, found in results.statistics.items()
                for average in ("moving", "exponential")
            ),
        ),
    ]
