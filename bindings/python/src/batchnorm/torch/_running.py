"""What of the running statistics the C library does not keep: half ones, and skipped batches."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from ._call import Call
from ._private import version


class Skipped:
    """Of each channel, how many batches mean and variance have not taken in: (2, C).

    Cumulative averages weigh a batch by what they have taken in before it. PyTorch's modules keep
    nothing of the kind, so it lies with their counter, as an attribute that no state_dict holds,
    and only if there is something to keep. What is in it goes for the counter as the library left
    it: loaded, reset or counted up by PyTorch, that is another one.
    """

    _NAME = "_batchnorm_skipped"
    _FRESH = 1  # the version of a tensor that was copied or unpickled, and not written to since

    def __init__(self, num_batches_tracked: Tensor, channels: int) -> None:
        self.counter = num_batches_tracked
        none = torch.zeros((2, channels), dtype=torch.int64, device="cpu")
        left, counts = getattr(num_batches_tracked, self._NAME, (None, none))
        fits = left is not None and self._is_as_left(left) and counts.shape == none.shape
        self.before: Tensor = counts if fits else none
        self.counts = self.before.clone()

    def _state(self) -> tuple[int, int, int]:
        """Which tensor, its number, and how often PyTorch, not the library, has written to it."""
        counter = self.counter
        written = 0 if counter.is_inference() else version(counter)
        return id(counter), int(counter), written

    def _is_as_left(self, left: tuple[int, int, int]) -> bool:
        which, number, version = self._state()
        return number == left[1] and version == (left[2] if which == left[0] else self._FRESH)

    def keep(self, channels: Tensor) -> None:
        """Counts a batch that the library has taken in and these channels have not."""
        self.counts = torch.where(channels, self.before + 1, self.counts)

    def store(self) -> None:
        if self.counts.any():
            setattr(self.counter, self._NAME, (self._state(), self.counts))
        elif hasattr(self.counter, self._NAME):
            delattr(self.counter, self._NAME)


def narrow(half: Call, wide: Call, skipped: Skipped | None) -> None:
    """Lets half statistics take in what their wide copies have, or keep a channel's two."""
    old = cast("list[Tensor]", half[3:5])
    new = cast("list[Tensor]", wide[3:5])
    narrowed = [each.to(old[0].dtype) for each in new]
    # Not what was infinite before: that stays, or has been replaced, as the library does it.
    lost = [a.isfinite() & ~b.isfinite() for a, b in zip(new, narrowed, strict=True)]
    kept = lost[0] | lost[1]
    for statistic, value in zip(old, narrowed, strict=True):
        statistic.copy_(torch.where(kept, statistic, value))
    if skipped is not None:
        skipped.keep(kept)
