"""Weights from files into models: what fits is loaded, what does not is one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samlit.errors import UsageError, one_line

__all__ = ["start_from"]


def start_from(net: nn.Module, path: str | Path) -> None:
    """Load all of a model's weights from a samlit checkpoint; nothing but tensors and plain values is unpickled.

    An encoder may interpolate what belongs to another image size.

    Raises:
        UsageError: There is no such file, it is no checkpoint of samlit's, or it is of another model.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"weights: there is no file {str(path)!r}; `samlit fit` writes runs/NAME/best.ckpt")
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
        state: dict[str, Tensor] = {
            key.removeprefix("net."): value for key, value in loaded["state_dict"].items() if key.startswith("net.")
        }
    except Exception as error:  # what damaged and foreign files make of torch's reader is endless
        raise UsageError(f"weights: {path} is no checkpoint of samlit's, or is damaged ({one_line(error)})") from error
    own = net.state_dict()
    missing, foreign = [key for key in own if key not in state], [key for key in state if key not in own]
    if missing or foreign:
        key, what = (missing[0], "lacks") if missing else (foreign[0], "has, and this model has not,")
        more = len(missing) + len(foreign) - 1
        raise UsageError(
            f"weights: {path} is of another model: it {what} {key!r}" + (f" and {more} more" if more else "")
        )
    try:
        net.load_state_dict(state)
    except RuntimeError as error:  # of all the lines, the first that names a weight
        which = next((line.strip() for line in str(error).splitlines() if "size mismatch" in line), one_line(error))
        raise UsageError(f"weights: {path} is of another model: {which}") from error
