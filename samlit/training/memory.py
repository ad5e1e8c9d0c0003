"""Out of memory: while doing what, and which keys make it need less."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from samlit.errors import SamlitError

__all__ = ["ENCODER", "OPTIMIZER", "PASS", "VALIDATION", "OutOfMemory", "needing"]

PRECISION = "trainer.precision bf16-mixed"
ENCODER = f"model.encoder.checkpoint true, a smaller data.batch_size, {PRECISION}"
"""What makes the encoder's part smaller."""
PASS = f"a smaller model.masks_at_once, data.max_masks or data.batch_size, {PRECISION}"
"""What makes the answers' part smaller."""
OPTIMIZER = "trainer.strategy fsdp on more devices, model.optim.ema 0"
"""What makes the optimiser's part smaller."""
VALIDATION = "a smaller data.max_val_masks or data.batch_size"
"""What makes a validation smaller."""

WORDS = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
"""Of CUDA and MPS, of PyTorch's allocator for CPUs on Linux and elsewhere, of cuBLAS and cuDNN."""


class OutOfMemory(SamlitError):
    """Memory was not enough; says for what, and what to change."""


@contextmanager
def needing(what: str, remedy: str) -> Iterator[None]:
    """Say what was being done where memory is not enough for it; the innermost one says it.

    Args:
        what: After "while".
        remedy: Keys to change.

    Raises:
        OutOfMemory: It was not enough.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not any(w in str(error) for w in WORDS):
            raise
        raise OutOfMemory(f"out of memory while {what}{_amount(error)}: try {remedy}") from error


def _amount(error: BaseException) -> str:
    found = re.search(r"tried to allocate ([\d.]+ ?\w+)", str(error), re.IGNORECASE)
    return f" (it wanted {found[1]} more)" if found else ""
