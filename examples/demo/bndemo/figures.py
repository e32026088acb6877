"""The pictures. Every title is made from the numbers that are drawn.

Colours are Okabe and Ito's, which people with any colour vision tell apart; line styles repeat what
the colours say.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

from .claims import (
    TARGET_ACCURACY,
    Claim,
    claims,
    epochs_to_target,
    final_accuracy,
    gradient_ratio,
)
from .experiments import ACTIVATIONS, HIGH_RATE, USUAL_RATE, WITH_AND_WITHOUT, Results, Trials
from .training import QUANTILES, History, Recipe, Series

WITH, WITHOUT = "#0072B2", "#D55E00"
LAYERS = ("#CC79A7", "#009E73", "#56B4E9", "#E69F00")
INK, MUTED, GRID = "#222222", "#5F6368", "#E3E3E3"
STYLE = {
    False: (WITHOUT, (0, (4, 2)), "without"),
    True: (WITH, "solid", "with batch normalization"),
}

plt.rcParams.update(
    {
        "figure.facecolor": "white",
        "savefig.dpi": 150,
        "font.size": 10,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.edgecolor": MUTED,
        "axes.labelcolor": MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "lines.linewidth": 2,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "legend.frameon": False,
    }
)


def _figure(
    rows: int, columns: int, size: tuple[float, float], **options: Any
) -> tuple[Figure, np.ndarray]:
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
    return plt.subplots(rows, columns, figsize=size, squeeze=False, layout=layout, **options)


def _save(figure: Figure, path: Path, title: str, subtitle: str) -> Path:
    """Headline and explanation above the panels, then the file."""
    width, height = figure.get_size_inches()
    title = textwrap.fill(title, int(width * 8.6))
    subtitle = textwrap.fill(subtitle, int(width * 12.8))
    below_title = 0.12 + 0.27 * (title.count("\n") + 1) + 0.05
    below_subtitle = below_title + 0.19 * (subtitle.count("\n") + 1) + 0.15
    layout = figure.get_layout_engine()
    assert isinstance(layout, ConstrainedLayoutEngine)
    layout.set(rect=(0, 0, 1, 1 - below_subtitle / height))
    figure.text(0.012, 1 - 0.12 / height, title, fontsize=14, fontweight="bold", va="top")
    figure.text(0.012, 1 - below_title / height, subtitle, fontsize=10, color=MUTED, va="top")
    figure.savefig(path)
    plt.close(figure)
    return path


def _find(results: Results, words: str) -> Claim:
    (claim,) = (claim for claim in claims(results) if words in claim.sentence)
    return claim


def _matrix(histories: list[History], name: str) -> Series:
    """(seeds, epochs + 1) of one series; a diverged training stays where it ended."""
    series = [list(getattr(history, name)) for history in histories]
    longest = max(len(values) for values in series)
    return np.array([values + [values[-1]] * (longest - len(values)) for values in series])


def _curve(
    axes: Axes, x: Series, values: Series, batch_norm: bool, label: str | None = None
) -> None:
    """Mean over the seeds, and the range of the seeds as a band."""
    colour, style, name = STYLE[batch_norm]
    axes.fill_between(
        x, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0
    )
    axes.plot(x, values.mean(axis=0), color=colour, linestyle=style, label=label or name)


def _pick(trials: Trials, **wanted: object) -> dict[bool, list[History]]:
    """With and without batch normalization, of the recipes with these fields."""
    return {
        recipe.batch_norm: histories
        for recipe, histories in trials.items()
        if all(getattr(recipe, name) == value for name, value in wanted.items())
    }


def learning_curves(results: Results, path: Path) -> Path:
    claim = _find(results, "learning faster")
    settings = [
        (activation, rate) for activation in ACTIVATIONS for rate in (USUAL_RATE, HIGH_RATE)
    ]
    figure, axes = _figure(2, 4, (14, 7), sharex=True, sharey="row")
    mean_epochs = []
    for column, (activation, rate) in enumerate(settings):
        pair = _pick(results.learning, activation=activation, learning_rate=rate)
        for batch_norm in WITH_AND_WITHOUT:
            histories = pair[batch_norm]
            for row, name in enumerate(("train_loss", "test_accuracy")):
                values = _matrix(histories, name)
                x = np.arange(values.shape[1], dtype=float)
                if name == "train_loss":
                    values = np.clip(np.nan_to_num(values, nan=1e3), 1e-3, 1e3)
                _curve(axes[row, column], x, values, batch_norm)
        low, high = axes[0, column], axes[1, column]
        low.set_yscale("log")
        low.set_title(f"{ACTIVATIONS[activation]}, learning rate {rate:g}")
        high.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        high.axhline(TARGET_ACCURACY, color=MUTED, linewidth=0.8, linestyle=":")
        high.set_ylim(0, 1.02)
        high.set_xlabel("epoch")
        final = {bn: float(np.mean([final_accuracy(h) for h in pair[bn]])) for bn in pair}
        high.text(
            0.97, 0.06,
            f"in the end\n{final[True]:.1%} with\n{final[False]:.1%} without",
            transform=high.transAxes, ha="right", va="bottom", fontsize=9.5, color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
        )  # fmt: skip
        if rate == USUAL_RATE:
            epochs = {bn: float(np.mean([epochs_to_target(h) for h in pair[bn]])) for bn in pair}
            never = results.size.epochs
            mean_epochs.append(
                f"{ACTIVATIONS[activation]} {epochs[True]:.1f} epochs instead of "
                + (f"{epochs[False]:.1f}" if epochs[False] < never else f"more than {never}")
            )
    axes[0, 0].set_ylabel("training loss")
    axes[1, 0].set_ylabel("test accuracy")
    axes[0, 0].legend(loc="lower left")
    subtitle = (
        f"784–32–32–10 on {results.train_images} MNIST digits; test accuracy {TARGET_ACCURACY:.0%} "
        f"(dotted) at the usual learning rate: {', '.join(mean_epochs)}. "
        f"Line: mean of {results.size.seeds} seeds; band: their range."
    )
    return _save(figure, path, claim.headline, subtitle)


def preactivations(results: Results, path: Path, rate: float) -> Path:
    claim = _find(results, "distributions inside")
    figure, axes = _figure(2, 4, (14, 6.6), sharex=True, sharey="col")
    for first, activation in zip((0, 2), ACTIVATIONS):
        pair = _pick(results.learning, activation=activation, learning_rate=rate)
        for row, batch_norm in enumerate(WITH_AND_WITHOUT):
            looks = pair[batch_norm][0].observations
            x = np.array([look.epoch for look in looks])
            quantiles = np.array([look.quantiles for look in looks])
            colour = STYLE[batch_norm][0]
            for layer in range(2):
                panel = axes[row, first + layer]
                half = len(QUANTILES) // 2
                for inner in range(half):
                    panel.fill_between(
                        x, quantiles[:, layer, inner], quantiles[:, layer, -1 - inner],
                        color=colour, alpha=0.22, linewidth=0,
                    )  # fmt: skip
                panel.axhline(0, color=INK, linewidth=0.6)
                panel.plot(x, quantiles[:, layer, half], color=colour)
                if activation == "sigmoid":
                    for edge in (-4, 4):
                        panel.axhline(edge, color=INK, linewidth=0.8, linestyle=":")
                if row == 0:
                    panel.set_title(f"{ACTIVATIONS[activation]}, hidden layer {layer + 1}")
                else:
                    panel.set_xlabel("epoch")
        for row, label in enumerate(("without\nbatch normalization", "with\nbatch normalization")):
            axes[row, 0].set_ylabel(label, color=STYLE[bool(row)][0], fontweight="bold")
    for panel in axes.flat:
        panel.margins(x=0)
    comparisons = [c for c in claim.comparisons if c.where.endswith(f"rate {rate:g}")]
    moves = "; ".join(
        f"{c.where.split(',')[0]} {c.claimed_better:.2g} σ with, {c.other:.2g} σ without"
        for c in comparisons
    )
    subtitle = (
        f"What enters each activation at learning rate {rate:g}, one seed. Line: median; bands: "
        "the middle 50, 90 and 98 % of the values. Beyond the dotted lines a sigmoid is flat. "
        f"Typical move of a unit in an epoch: {moves}."
    )
    return _save(figure, path, claim.headline, subtitle)


def gradients(results: Results, path: Path) -> Path:
    settings = [
        (activation, rate) for activation in ACTIVATIONS for rate in (USUAL_RATE, HIGH_RATE)
    ]
    figure, axes = _figure(2, 4, (14, 6.6), sharex=True, sharey=True)
    ranges: dict[bool, list[float]] = {False: [], True: []}
    for column, (activation, rate) in enumerate(settings):
        pair = _pick(results.learning, activation=activation, learning_rate=rate)
        for row, batch_norm in enumerate(WITH_AND_WITHOUT):
            panel = axes[row, column]
            looks = [h.observations for h in pair[batch_norm]]
            shortest = min(len(seed) for seed in looks)
            x = np.array([look.epoch for look in looks[0][:shortest]])
            norms = np.array([[look.gradient_norms for look in seed[:shortest]] for seed in looks])
            middle = np.maximum(np.median(norms, axis=0), 1e-8)
            for layer, (colour, style) in enumerate(
                zip(LAYERS, ("solid", (0, (5, 1.5)), (0, (1.5, 1))))
            ):
                panel.plot(
                    x, middle[:, layer], color=colour, linestyle=style, label=f"layer {layer + 1}"
                )
            ranges[batch_norm].append(float(middle[0].max() / middle[0].min()))
            panel.set_yscale("log")
            if row == 0:
                panel.set_title(f"{ACTIVATIONS[activation]}, learning rate {rate:g}")
            else:
                panel.set_xlabel("epoch")
    for row, label in enumerate(("without batch norm.", "with batch norm.")):
        axes[row, 0].set_ylabel(f"{label}\n‖∂loss/∂W‖")
    axes[0, 0].legend(loc="lower left", ncols=1, fontsize=9)
    widest = {bn: max(values) for bn, values in ranges.items()}
    title = (
        f"Before training, layers' gradients differ by up to {widest[False]:.0f} × without batch "
        f"normalization and {widest[True]:.0f} × with it"
    )
    subtitle = (
        "Gradient norm of each layer's weights, on the same 500 training images after every epoch; "
        f"median of {results.size.seeds} seeds. Layer 1 is next to the image, 3 to the loss. "
        "Eight layers: depth.png."
    )
    return _save(figure, path, title, subtitle)


def _against(panel: Axes, trials: Trials, activation: str, key: Callable[[Recipe], float]) -> None:
    """Final test accuracy over one property of the recipe: seeds as dots, their mean as a line."""
    for batch_norm in WITH_AND_WITHOUT:
        colour, style, name = STYLE[batch_norm]
        points = sorted(
            (key(recipe), [final_accuracy(h) for h in histories])
            for recipe, histories in trials.items()
            if (recipe.activation, recipe.batch_norm) == (activation, batch_norm)
        )
        x = [value for value, _ in points]
        panel.plot(x, [np.mean(y) for _, y in points], color=colour, linestyle=style, label=name)
        for value, y in points:
            panel.scatter(
                [value] * len(y), y, color=colour, s=18, alpha=0.6, linewidths=0, zorder=3
            )
    panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panel.set_ylim(0, 1.02)


def _ticks(panel: Axes, values: tuple[float, ...]) -> None:
    panel.set_xscale("log")
    panel.set_xticks(values, [f"{value:g}" for value in values])
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.tick_params(axis="x", which="minor", length=0)


def initial_weights(results: Results, path: Path) -> Path:
    claim = _find(results, "initial weights")
    figure, axes = _figure(1, 2, (11, 4.6), sharey=True)
    for panel, activation in zip(axes[0], ACTIVATIONS):
        _against(panel, results.gains, activation, lambda recipe: recipe.gain)
        _ticks(panel, results.size.gains)
        panel.set_title(ACTIVATIONS[activation])
        panel.set_xlabel("first weights: Xavier times")
    axes[0, 0].set_ylabel("final test accuracy")
    axes[0, 0].legend(loc="lower center")
    spread = "; ".join(
        f"{c.where} {100 * c.claimed_better:.0f} with, {100 * c.other:.0f} without"
        for c in claim.comparisons
    )
    subtitle = (
        f"Best minus worst accuracy, in percentage points: {spread}. "
        "Dots are seeds, lines their means."
    )
    return _save(figure, path, claim.headline, subtitle)


def depth(results: Results, path: Path) -> Path:
    claim = _find(results, "gradients from vanishing")
    figure, axes = _figure(1, 3, (14, 4.8))
    for panel, activation in zip(axes[0], ACTIVATIONS):
        _against(panel, results.depths, activation, lambda recipe: len(recipe.hidden))
        _ticks(panel, results.size.depths)
        panel.set_title(f"{ACTIVATIONS[activation]}: accuracy")
        panel.set_xlabel("hidden layers of 32 units")
        panel.set_ylabel("final test accuracy")
    deepest = max(results.size.depths)
    panel = axes[0, 2]
    ratios = {}
    for batch_norm, histories in _pick(
        results.depths, activation="sigmoid", hidden=(32,) * deepest
    ).items():
        norms = np.array([history.observations[0].gradient_norms for history in histories])
        _curve(panel, np.arange(1.0, deepest + 2), norms, batch_norm)
        ratios[batch_norm] = float(np.mean([gradient_ratio(history) for history in histories]))
    panel.set_yscale("log")
    panel.set_title(f"sigmoid, {deepest} hidden layers: gradients")
    panel.set_xlabel("layer (1 is next to the image)")
    panel.set_ylabel("‖∂loss/∂W‖ before training")
    axes[0, 0].legend(loc="lower left")
    subtitle = (
        f"Gradient of the first hidden-to-hidden layer over the last one's, {deepest} sigmoid "
        f"layers: {ratios[True]:.2g} with batch normalization, {ratios[False]:.2g} without."
    )
    return _save(figure, path, claim.headline, subtitle)


def batch_size(results: Results, path: Path) -> Path:
    claim = _find(results, "Small batches")
    figure, axes = _figure(1, 1, (9.5, 4.8))
    panel = axes[0, 0]
    _against(panel, results.batch_sizes, "relu", lambda recipe: recipe.batch_size)
    _ticks(panel, results.size.batch_sizes)
    panel.set_xlabel("images in a batch (learning rate in proportion)")
    panel.set_ylabel("final test accuracy")
    panel.legend(loc="lower right")
    (c,) = claim.comparisons
    subtitle = (
        f"Accuracy lost at {min(results.size.batch_sizes)} images instead of "
        f"{max(results.size.batch_sizes)}, in percentage points: {100 * c.other:.1f} with, "
        f"{100 * c.claimed_better:.1f} without."
    )
    if results.one_image_message:
        subtitle += " A single image is refused."
    return _save(figure, path, claim.headline, subtitle)


def inference_statistics(results: Results, path: Path) -> Path:
    claim = _find(results, "Running averages")
    figure, axes = _figure(2, 2, (11, 6.6), sharex=True, sharey="row")
    lines = (
        ("moving", "moving: average of all batches so far", LAYERS[3], (0, (4, 2))),
        ("exponential", "exponential, momentum 0.1", WITH, "solid"),
        ("exact", "exact: training set, weights as they are", INK, (0, (1, 1))),
    )
    for column, (rate, found) in enumerate(results.statistics.items()):
        top, bottom = axes[:, column]
        for name, label, colour, style in lines:
            for panel, values in (
                (top, getattr(found, name)),
                (bottom, getattr(found, f"{name}_error", None)),
            ):
                if values is None:
                    continue
                x = np.arange(1, values.shape[1])
                low, high = values[:, 1:].min(axis=0), values[:, 1:].max(axis=0)
                panel.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
                panel.plot(
                    x, values[:, 1:].mean(axis=0), color=colour, linestyle=style, label=label
                )
        top.set_title(f"ReLU, learning rate {rate:g}")
        top.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        bottom.set_xlabel("epoch")
    axes[1, 0].set_ylim(bottom=0)
    axes[0, 0].set_ylabel("test accuracy")
    axes[1, 0].set_ylabel("error of the running mean, σ")
    axes[0, 1].legend(loc="lower right")
    usual = results.statistics[USUAL_RATE]
    subtitle = (
        "Same weights, three statistics. In the end the running mean is off by "
        f"{usual.moving_error[:, -1].mean():.2g} σ (moving) and "
        f"{usual.exponential_error[:, -1].mean():.2g} σ (exponential) at learning rate "
        f"{USUAL_RATE:g}."
    )
    return _save(figure, path, claim.headline, subtitle)


def convolution(results: Results, path: Path) -> Path:
    found = results.convolution
    figure, axes = _figure(1, 3, (14, 4.8), width_ratios=(1, 1, 1.35))
    for recipe, histories in found.trials.items():
        for panel, name in zip(axes[0], ("train_loss", "test_accuracy")):
            values = _matrix(histories, name)
            _curve(panel, np.arange(values.shape[1], dtype=float), values, recipe.batch_norm)
            panel.set_xlabel("epoch")
            panel.set_title({"train_loss": "training loss", "test_accuracy": "test accuracy"}[name])
            panel.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_yscale("log")
    axes[0, 0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0, 0].yaxis.set_major_formatter("{x:g}")
    axes[0, 0].yaxis.set_minor_formatter(NullFormatter())
    axes[0, 0].legend(loc="lower left")
    axes[0, 1].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0, 1].set_ylim(0, 1.02)
    panel = axes[0, 2]
    modes = list(found.modes)[::-1]
    shares = [float(np.mean(found.modes[mode])) for mode in modes]
    colours = [WITH if mode.startswith("eval") else MUTED for mode in modes]
    panel.barh(modes, shares, color=colours, height=0.62)
    for y, value in enumerate(shares):
        panel.text(
            value - 0.015,
            y,
            f"{value:.1%}",
            va="center",
            ha="right",
            color="white",
            fontweight="bold",
        )
    panel.set_xlim(0, 1)
    panel.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panel.grid(axis="y", visible=False)
    panel.tick_params(axis="y", length=0, labelcolor=INK)
    panel.set_title("test accuracy, by how it is evaluated")
    best = np.mean(found.modes["eval(), one image at a time"])
    alone = np.mean(found.modes["train(), one image at a time"])
    title = (
        f"With running statistics the convolutional network recognizes {best:.1%} of single "
        f"digits, with their own statistics {alone:.1%}"
    )
    subtitle = (
        "BatchNorm2d after both 3×3 convolutions. In eval() an image alone and the same image in "
        f"a batch give logits that differ by {found.largest_difference:.0e} at most."
    )
    return _save(figure, path, title, subtitle)


def draw_all(results: Results, folder: Path) -> list[Path]:
    """Writes every picture into the folder and returns their paths."""
    return [
        learning_curves(results, folder / "learning-curves.png"),
        preactivations(results, folder / "preactivations-usual-rate.png", USUAL_RATE),
        preactivations(results, folder / "preactivations-high-rate.png", HIGH_RATE),
        gradients(results, folder / "gradients.png"),
        initial_weights(results, folder / "initial-weights.png"),
        depth(results, folder / "depth.png"),
        batch_size(results, folder / "batch-size.png"),
        inference_statistics(results, folder / "inference-statistics.png"),
        convolution(results, folder / "convolution.png"),
    ]
