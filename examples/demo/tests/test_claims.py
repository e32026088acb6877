"""A verdict follows from its numbers, and only from them."""

from __future__ import annotations

import pytest
from bndemo.claims import Claim, Comparison, Outcome, compare, compare_equal, held_out_loss_at
from bndemo.training import History, Recipe


@pytest.mark.parametrize(
    ("first", "second", "higher", "outcome"),
    [
        ([0.9, 0.8], [0.7, 0.6], True, Outcome.AS_CLAIMED),
        ([0.9, 0.8], [0.7, 0.6], False, Outcome.OPPOSITE),
        ([0.9, 0.5], [0.7, 0.6], True, Outcome.NO_DIFFERENCE),
        ([0.9, 0.7], [0.7, 0.7], True, Outcome.NO_DIFFERENCE),
    ],
)
def test_compare(first: list[float], second: list[float], higher: bool, outcome: Outcome) -> None:
    assert compare("here", first, second, higher_is_better=higher).outcome is outcome


def test_compare_refuses_what_it_cannot_compare() -> None:
    with pytest.raises(ValueError, match="here: expected finite values for the same seeds"):
        compare("here", [1.0, float("nan")], [1.0, 2.0], higher_is_better=True)
    with pytest.raises(ValueError, match="here: expected finite values for the same seeds"):
        compare("here", [1.0], [1.0, 2.0], higher_is_better=True)


@pytest.mark.parametrize(
    ("value", "outcome"), [(0.95, Outcome.AS_CLAIMED), (0.9, Outcome.OPPOSITE)]
)
def test_compare_equal(value: float, outcome: Outcome) -> None:
    assert compare_equal("here", [value], [0.955], margin=0.01).outcome is outcome


@pytest.mark.parametrize(
    ("outcomes", "verdict", "headline"),
    [
        ("++", "confirmed", "It helps"),
        ("+-", "confirmed in 1 of 2 comparisons", "“It helps”: confirmed in 1 of 2 comparisons"),
        ("0-", "not confirmed", "“It helps”: not confirmed"),
        (
            "--",
            "not confirmed: the opposite showed",
            "“It helps”: not confirmed: the opposite showed",
        ),
    ],
)
def test_verdict(outcomes: str, verdict: str, headline: str) -> None:
    kinds = {"+": Outcome.AS_CLAIMED, "-": Outcome.OPPOSITE, "0": Outcome.NO_DIFFERENCE}
    comparisons = tuple(Comparison("here", 1, 2, kinds[letter], "") for letter in outcomes)
    claim = Claim("It helps", "000", "something", comparisons)
    assert (claim.verdict, claim.headline) == (verdict, headline)


def test_epochs_and_losses_between_epochs_are_interpolated() -> None:
    history = History(
        Recipe(), 0, test_accuracy=[0.1, 0.5, 0.9], train_loss=[3, 2, 1], test_loss=[3, 2.5, 2]
    )
    assert history.epochs_to(0.7) == pytest.approx(1.5)
    assert history.epochs_to(0.95) == float("inf")
    assert held_out_loss_at(history, 1.5) == pytest.approx(2.25)
