"""What has been done of long work, in a file, so that nothing is done twice."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samlit import atomic
from samlit.errors import UsageError, one_line

__all__ = ["Partial"]

EVERY = 60.0
"""Seconds after which what has been done is due to be written down."""


class Partial:
    """A file that says how far some work has come.

    Args:
        file: Where; nothing is kept if not given.
        about: What the work depends on.
        what: The work, as a person calls it.

    Attributes:
        found: What was saved before, tensors and plain values by name; nothing if the work begins.

    Raises:
        UsageError: The file is damaged, or about something else.
    """

    def __init__(self, file: Path | None, about: Mapping[str, Any], what: str) -> None:
        import torch

        self.file, self.found = file, dict[str, Any]()
        self._mark = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()
        self._saved = time.monotonic()
        if file is None or not file.exists():
            return
        try:
            self.found = torch.load(file, weights_only=True, map_location="cpu")
            known = self.found.pop("mark") == self._mark
        except Exception as error:
            raise UsageError(f"{file} is damaged ({one_line(error)}): remove it to begin anew") from error
        if not known:
            raise UsageError(f"{file} is of another {what}: give another --out, or remove it")

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved > EVERY

    def save(self, **state: Any) -> None:
        """Write down what has been done."""
        import torch

        if self.file is not None:
            whole = {"mark": self._mark, **state}
            self.file.parent.mkdir(parents=True, exist_ok=True)
            atomic.replacing(self.file, lambda path: torch.save(whole, path))
        self._saved = time.monotonic()

    def forget(self) -> None:
        """Remove the file: the work is done."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)
