"""Where samlit keeps what it has downloaded or made."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["folder"]


def folder() -> Path:
    """The cache folder: $SAMLIT_CACHE, or the system's usual place; it need not exist yet."""
    named = os.environ.get("SAMLIT_CACHE")
    if named:
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_path("samlit"))
