"""The table and the verdicts, for the terminal and as files."""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Sequence
from pathlib import Path

import batchnorm
import numpy as np

from .claims import claims
from .experiments import Results, Trials
from .training import History

COLUMNS = (
    "network",
    "activation",
    "learning rate",
    "batch norm.",
    "train accuracy",
    "test accuracy",
    "train loss",
    "test loss",
    "seconds",
    "share in BN",
)


def _rows(network: str, trials: Trials) -> list[tuple[str | float, ...]]:
    """A row per recipe, with means over its seeds; seconds and share are those of one training."""

    def mean(histories: list[History], name: str) -> float:
        return float(np.mean([np.ravel(getattr(history, name))[-1] for history in histories]))

    return [
        (
            network,
            recipe.activation,
            recipe.learning_rate,
            "with" if recipe.batch_norm else "without",
            *(
                mean(histories, name)
                for name in ("train_accuracy", "test_accuracy", "train_loss", "test_loss")
            ),
            mean(histories, "seconds"),
            mean(histories, "batch_norm_share"),
        )
        for recipe, histories in trials.items()
    ]


def table(results: Results) -> list[tuple[str | float, ...]]:
    """The main experiment and the convolutional network; columns as in COLUMNS."""
    return _rows("784–32–32–10", results.learning) + _rows(
        "convolutional", results.convolution.trials
    )


def _markdown(rows: Sequence[tuple[str | float, ...]]) -> str:
    """A Markdown table that also reads well as text."""
    formats = ("s", "s", "g", "s", ".1%", ".1%", ".3f", ".3f", ".2f", ".0%")
    cells = [COLUMNS] + [
        tuple(format(value, form) for value, form in zip(row, formats)) for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells)]
    text = [form == "s" for form in formats]
    lines = [
        "| "
        + " | ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(row, widths, text)
        )
        + " |"
        for row in cells
    ]
    rule = (
        "|"
        + "|".join("-" * (w + 1) + ("-" if left else ":") for w, left in zip(widths, text))
        + "|"
    )
    return "\n".join([lines[0], rule, *lines[1:]])


def _verdicts(results: Results) -> str:
    blocks = []
    for claim in claims(results):
        blocks.append(
            "\n".join(
                [
                    f"- **{claim.sentence}** (notes {claim.notes}): **{claim.verdict}**.",
                    textwrap.fill(
                        f"Measured: {claim.measured}.",
                        100,
                        initial_indent="  ",
                        subsequent_indent="  ",
                    ),
                    *(f"  - {comparison}" for comparison in claim.comparisons),
                ]
            )
        )
    return "\n".join(blocks)


def summary(results: Results) -> str:
    """Table and verdicts as Markdown."""
    diverged = sum(
        history.diverged
        for trials in (results.learning, results.gains, results.depths, results.batch_sizes)
        for histories in trials.values()
        for history in histories
    )
    remarks = [
        f"Means over seeds ({results.size.seeds}, convolutional {results.size.convolution_seeds}) "
        "after the last epoch; accuracy and loss in eval(), by the running statistics, of all test "
        "images and at most 1,000 training images; seconds of "
        "training steps, and the share of them inside the library's calls.",
    ]
    if diverged:
        remarks.append(
            f"{diverged} trainings ended early because their loss was not a finite number."
        )
    if results.one_image_message:
        remarks.append(f"A training batch of one image is refused: “{results.one_image_message}”.")
    if results.size.name == "quick":
        remarks.append(
            "This was a quick run: it shows that all works, and is too small to judge claims."
        )
    return "\n\n".join(
        [
            f"## {results.train_images} training and {results.test_images} test digits",
            _markdown(table(results)),
            *(textwrap.fill(remark, 100) for remark in remarks),
            "## The notes' claims in these runs",
            "Compared trainings share first weights and image order. A comparison counts if every\n"
            f"seed agrees: with {results.size.seeds} seeds chance does so once in "
            f"{2 ** (results.size.seeds - 1)} times, "
            f"with {results.size.more_seeds} once in {2 ** (results.size.more_seeds - 1)}.",
            _verdicts(results),
        ]
    )


def write(results: Results, pictures: Sequence[Path], folder: Path) -> list[Path]:
    """Writes table.csv and report.md, which shows the pictures, and returns their paths."""
    numbers, report = folder / "table.csv", folder / "report.md"
    with numbers.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(table(results))
    images = "\n\n".join(f"![{picture.stem}]({picture.name})" for picture in pictures)
    head = f"# Batch normalization on real digits, with libbatchnorm {batchnorm.version()}"
    report.write_text(f"{head}\n\n{summary(results)}\n\n{images}\n", encoding="utf-8")
    return [numbers, report]
