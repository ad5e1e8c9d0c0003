"""torch.compile for the parts of a model that do nearly all of the work; names of weights stay as they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from samlit.errors import UsageError, did_you_mean
from samlit.model import Sam

__all__ = ["arguments", "compile_parts"]


def arguments(how: bool | str) -> dict[str, Any]:
    """What torch.compile is called with: a mode of its own compiler's, or another backend.

    Raises:
        UsageError: There is no such mode or backend.
    """
    if isinstance(how, bool):
        return {}
    modes, backends = list(torch._inductor.list_mode_options()), torch._dynamo.list_backends(())
    if how in modes:
        return {"mode": how}
    if how in backends:
        return {"backend": how}
    near = did_you_mean(how, [*modes, *backends])
    raise UsageError(f"model.compile: there is no mode {how!r}{near} (modes: {', '.join(modes)})")


def compile_parts(net: Sam, how: bool | str) -> None:
    """Compile the encoder's pieces, one by one, for they are alike, and the decoder; each when it is first called.

    Args:
        net: The model; changed in place.
        how: True, a mode, or a backend; False leaves it as it is.
    """
    if how is False:
        return
    given = arguments(how)
    pieces: list[nn.Module] = [*(net.encoder.shards() or [net.encoder]), net.decoder]
    for piece in pieces:
        piece.compile(**given)
