"""The data are the real digits, trainings do what is said, and a quick run leaves everything."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from bndemo import cli
from bndemo.data import Digits, load_digits
from bndemo.report import COLUMNS
from bndemo.training import Recipe, convolutional_network, dense_network, predict, train

PICTURES = {
    "batch-size.png",
    "convolution.png",
    "depth.png",
    "gradients.png",
    "inference-statistics.png",
    "initial-weights.png",
    "learning-curves.png",
    "preactivations-high-rate.png",
    "preactivations-usual-rate.png",
}


@pytest.fixture(scope="module")
def digits() -> Digits:
    return load_digits(train_per_class=40, test_per_class=20)


def test_digits(digits: Digits) -> None:
    assert digits.train_images.shape == (400, 784)
    assert digits.train_images.dtype == np.float32
    assert (digits.train_images.min(), digits.train_images.max()) == (0, 1)
    assert np.bincount(digits.train_labels).tolist() == [40] * 10
    assert np.bincount(digits.test_labels).tolist() == [20] * 10
    train_rows = {row.tobytes() for row in digits.train_images}
    assert not any(row.tobytes() in train_rows for row in digits.test_images)


def test_digits_refuses_more_than_there_are() -> None:
    with pytest.raises(ValueError, match="expected at least 601 images of digit 0, got 500"):
        load_digits(train_per_class=600, test_per_class=1)


def test_trainings_to_compare_start_alike(digits: Digits) -> None:
    plain = dense_network(Recipe(batch_norm=False), seed=3)
    normalized = dense_network(Recipe(batch_norm=True), seed=3)
    for one, other in zip(plain.linears, normalized.linears):
        np.testing.assert_array_equal(one.weight, other.weight)


def test_watching_does_not_change_a_training(digits: Digits) -> None:
    recipe = Recipe(epochs=2)
    networks = [dense_network(recipe, 0), dense_network(recipe, 0)]
    watched, alone = (
        train(network, recipe, digits, 0, looks=looks) for network, looks in zip(networks, (3, 0))
    )
    assert watched.test_loss == alone.test_loss
    assert len(watched.observations) == 3
    assert watched.train_loss[-1] < watched.train_loss[0]
    for (one, _), (other, _) in zip(networks[0].parameters(), networks[1].parameters()):
        np.testing.assert_array_equal(one, other)


def test_a_training_that_leaves_the_finite_numbers_says_so(digits: Digits) -> None:
    recipe = Recipe(batch_norm=False, learning_rate=1e30, epochs=3)
    history = train(dense_network(recipe, 0), recipe, digits, 0)
    assert history.diverged
    assert len(history.test_accuracy) < 1 + recipe.epochs


def test_in_evaluation_an_image_does_not_see_its_batch(digits: Digits) -> None:
    images = digits.as_images()
    recipe = Recipe(epochs=1, batch_size=50)
    network = convolutional_network(recipe, 0)
    train(network, recipe, images, 0)
    some = images.test_images[:20]
    together, alone = predict(network, some), predict(network, some, chunk=1)
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)
    assert not np.allclose(together, network.forward(some), atol=1e-2)  # in training mode it does


def test_quick_run_leaves_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--quick", "--output", str(tmp_path / "results")]) == 0
    written = {path.name for path in (tmp_path / "results").iterdir()}
    assert written == PICTURES | {"report.md", "table.csv"}
    for name in PICTURES:
        assert (tmp_path / "results" / name).read_bytes().startswith(b"\x89PNG")

    with (tmp_path / "results" / "table.csv").open(encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == COLUMNS
    assert len(rows) == 8 + 2
    numbers = [[float(cell) for cell in row[4:]] for row in rows]
    assert all(math.isfinite(number) for row in numbers for number in row)
    for row, values in zip(rows, numbers):
        assert (values[-1] > 0) == (
            row[3] == "with"
        )  # time in the library, exactly where it is used

    report = (tmp_path / "results" / "report.md").read_text(encoding="utf-8")
    assert all(f"({name})" in report for name in PICTURES)
    assert report.count("Measured: ") == 10
    assert str(tmp_path / "results" / "report.md") in capsys.readouterr().out
