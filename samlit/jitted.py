"""Loops that numba compiles, kept on disk where there is a folder that it can write to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

__all__ = ["jitted"]


def jitted(**how: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: `numba.njit` without the interpreter's lock, and with what else is said.

    Division by zero is IEEE's, not an error: the test for it would keep a loop from taking many numbers at a time.
    """

    def compile_(function: Callable[..., Any]) -> Callable[..., Any]:
        options = {"nogil": True, "error_model": "numpy", **how}
        try:
            return numba.njit(cache=True, **options)(function)  # type: ignore[no-any-return]
        except RuntimeError:  # nowhere to keep it
            return numba.njit(**options)(function)  # type: ignore[no-any-return]

    return compile_
