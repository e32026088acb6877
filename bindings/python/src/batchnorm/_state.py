"""A layer's state as names and arrays, as PyTorch has it, and as one block of bytes."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import byref, c_int64, c_void_p
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import _lowlevel as c
from ._arrays import ChannelAxis, address
from ._handle import Handle
from ._layer import Layer
from ._options import wrong_type
from .errors import BatchNormTypeError, BatchNormValueError, Status

_Self = TypeVar("_Self", bound="StatefulLayer")


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict` returns, as PyTorch's does: empty lists where all fitted.

    Examples
    --------
    >>> from batchnorm import BatchNorm1d
    >>> layer = BatchNorm1d(3, bias=False)
    >>> state = {**layer.state_dict(), "gamma": 1}
    >>> layer.load_state_dict(state, strict=False)
    IncompatibleKeys(missing_keys=[], unexpected_keys=['gamma'])
    """

    missing_keys: list[str]
    """Which names the layer has and the state has not."""
    unexpected_keys: list[str]
    """Which names the state has and the layer has not."""


class StatefulLayer(Layer):
    """A layer whose state can be saved, loaded, pickled and copied."""

    __slots__ = ()

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Copies of parameters and running statistics under PyTorch's names.

        Keys: "weight", "bias", "running_mean", "running_var" (each (C,), of the layer's
        `parameter_dtype`) and "num_batches_tracked" (int64, no dimensions), as far as the layer has
        them. Where a cumulative average (``momentum=None``) had to skip a batch, "skipped_batches"
        as well, which PyTorch does not know.
        """
        state: dict[str, NDArray[Any]] = {}
        for name in self._state_names():
            value = getattr(self, name)
            state[name] = np.array(
                value, np.int64 if name == "num_batches_tracked" else self.parameter_dtype
            )
        if self.track_running_stats and self.momentum is None and self.skipped_batches.any():
            state["skipped_batches"] = np.array(self.skipped_batches)
        return state

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Take over a `state_dict`, of this class or of PyTorch's (as arrays or CPU tensors).

        Everything is checked before anything is changed.

        Parameters
        ----------
        state : mapping from names to arrays
            What `state_dict` returns. "skipped_batches" may be missing, and "num_batches_tracked"
            of states that do not say that they are of PyTorch's second version: the counter then
            stays as it is, as in PyTorch.
        strict : bool
            False: leave what is missing as it is, and what is unexpected alone.

        Returns
        -------
        IncompatibleKeys
            Missing and unexpected keys; both empty if `strict`.

        Raises
        ------
        BatchNormValueError
            Missing or unexpected keys (if `strict`), wrong shapes, a negative counter.
        BatchNormTypeError
            Wrong dtypes.
        """
        if not isinstance(state, Mapping):
            raise wrong_type("state", state, "a mapping from names to arrays")
        names = self._state_names()
        missing = [name for name in names if name not in state]
        version = getattr(state, "_metadata", {}).get("", {}).get("version")
        if "num_batches_tracked" in missing and (version is None or version < 2):
            missing.remove("num_batches_tracked")
        optional = ["skipped_batches"] if self.track_running_stats else []
        unexpected = [name for name in state if name not in names + optional]
        if strict and (missing or unexpected):
            raise BatchNormValueError(
                self._incompatible(missing, unexpected), Status.LAYER_MISMATCH
            )
        values = {name: np.asarray(state[name]) for name in names if name in state}
        for name in values:
            if name != "num_batches_tracked":
                self._check(name, values[name])
        skipped = None
        if "skipped_batches" in state and self.track_running_stats:
            skipped = self._counters("skipped_batches", np.asarray(state["skipped_batches"]))
        if "num_batches_tracked" in values:  # first, for it is the one that the library may refuse
            counter = values.pop("num_batches_tracked")
            if counter.dtype.kind not in "iu":
                raise BatchNormTypeError(
                    f"num_batches_tracked has dtype {counter.dtype}, expected int64"
                )
            if counter.size != 1:
                raise BatchNormValueError(
                    f"num_batches_tracked has shape {counter.shape}, expected one element"
                )
            number = int(counter.item())
            if skipped is not None and not ((skipped >= 0) & (skipped <= number)).all():
                raise BatchNormValueError(
                    f"skipped_batches has numbers from {skipped.min()} to {skipped.max()}, "
                    f"expected 0 to {number} (num_batches_tracked)"
                )
            self.num_batches_tracked = number
            if skipped is not None:
                self.skipped_batches = skipped
        elif skipped is not None:
            self.skipped_batches = skipped
        for name, value in values.items():
            setattr(self, name, value)
        return IncompatibleKeys(missing, unexpected)

    def _incompatible(self, missing: list[str], unexpected: list[str]) -> str:
        """PyTorch's words."""
        text = f"Error(s) in loading state_dict for {type(self).__name__}:"
        for what, names in (("Missing", missing), ("Unexpected", unexpected)):
            if names:
                quoted = ", ".join(f'"{name}"' for name in names)
                text += f"\n\t{what} key(s) in state_dict: {quoted}. "
        return text

    def _state_names(self) -> list[str]:
        names = [name for name in ("weight", "bias") if getattr(self, name) is not None]
        if self.track_running_stats:
            names += ["running_mean", "running_var", "num_batches_tracked"]
        return names

    def to_bytes(self) -> bytes:
        """Options, mode, parameters, running statistics and counter as one checksummed block.

        The format is the C library's (batchnorm.h, section STATE), the same on every machine.
        `channel_axis` and what `backward` needs are not part of it.
        """
        size = c_int64()
        with self._handle.lock:
            c.bn_layer_state_size(self._handle.pointer, byref(size))
            block = np.empty(size.value, np.uint8)
            c.bn_layer_save_state(self._handle.pointer, address(block), block.size)
        return block.tobytes()

    def load_bytes(self, state: bytes | bytearray | memoryview) -> None:
        """Take over mode, parameters, statistics and counter from `to_bytes` of a layer like this.

        Raises `BatchNormError` if `state` is damaged, foreign, or from a layer with another dtype,
        number of channels, or other parameters or statistics; nothing has been changed then.
        """
        block = _block(state)
        with self._handle.lock:
            c.bn_layer_load_state(self._handle.pointer, address(block), block.size)

    @classmethod
    def from_bytes(
        cls: type[_Self], state: bytes | bytearray | memoryview, *, channel_axis: ChannelAxis = 1
    ) -> _Self:
        """Make a layer, options and all, from `to_bytes`.

        Raises `BatchNormError` if `state` is damaged or foreign. `channel_axis` is not part of it.
        """
        block = _block(state)
        pointer = c_void_p()
        c.bn_layer_create_from_state(address(block), block.size, byref(pointer))
        layer = cls.__new__(cls)
        layer._adopt(Handle(pointer), channel_axis)
        return layer

    def __reduce__(self) -> tuple[Any, ...]:
        # pickle, copy.copy and copy.deepcopy: the state, and whatever a subclass keeps in __dict__.
        extra = getattr(self, "__dict__", None) or None
        return _restore, (type(self), self.to_bytes(), self._channel_axis), extra


def _block(state: bytes | bytearray | memoryview) -> NDArray[np.uint8]:
    """A saved state's bytes."""
    try:
        return np.frombuffer(state, np.uint8)
    except TypeError:
        raise wrong_type("state", state, "a bytes-like object") from None


def _restore(cls: type[StatefulLayer], state: bytes, channel_axis: ChannelAxis) -> Any:
    return cls.from_bytes(state, channel_axis=channel_axis)
