"""Numbers of a device, read without waiting for what it is doing."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Later"]


class Later:
    """Hands numbers over to the host: at once on a CPU, on a GPU at the next call, when they have long been there.

    Which call hands over what depends on nothing but the kind of device, so that ranks that decide by it decide alike.
    """

    def __init__(self) -> None:
        self._sent: tuple[Tensor, torch.cuda.Event] | None = None

    def hand_over(self, numbers: Tensor) -> list[float] | None:
        """Send numbers (n,); those that are there: these, or those of the call before; None where there was none."""
        if numbers.device.type != "cuda":
            return [float(x) for x in numbers.tolist()]
        before = self.rest()
        host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        host.copy_(numbers, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._sent = host, event
        return before

    def rest(self) -> list[float] | None:
        """What was sent and not yet handed over."""
        if self._sent is None:
            return None
        (host, event), self._sent = self._sent, None
        event.synchronize()
        return [float(x) for x in host.tolist()]
