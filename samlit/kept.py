"""What was made of tensors, kept while they stay as they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["Kept", "forget"]

T = TypeVar("T")

_forgotten = 0


def forget() -> None:
    """Let everything be made again, wherever it is kept: of weights that somebody writes without saying so, as FSDP."""
    global _forgotten
    _forgotten += 1


class Kept:
    """Results by name; each is made again once a tensor that it was made of is another one or has changed.

    Only where no gradient is asked for: in training every call makes its own, so that passes may go backward one by
    one or be recomputed, and nothing outlives its graph. A copy, also a pickled one, starts empty.
    """

    def __init__(self) -> None:
        self._results: dict[str, tuple[Sequence[Tensor], Any, Any]] = {}

    def get(self, name: str, of: Sequence[Tensor], make: Callable[[], T]) -> T:
        """What `make` returns, or returned before.

        Args:
            name: Of the result.
            of: All tensors that it is made of.
            make: Makes it.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return make()
        state = [_state(tensor) for tensor in of]
        before, their_state, result = self._results.get(name, ((), None, None))
        if state == their_state and all(a is b for a, b in zip(of, before, strict=True)):
            known: T = result
            return known
        made = make()
        self._results[name] = (of, state, made)
        return made

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()


def _state(tensor: Tensor) -> tuple[object, ...]:
    """Differs when the numbers may: after a write in place, new memory, or in another precision of arithmetic."""
    device = tensor.device.type
    precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    version = None if tensor.is_inference() else tensor._version
    return version, tensor.data_ptr(), tensor.dtype, precision, _forgotten
