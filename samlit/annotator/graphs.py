"""A model's decoder as the graphs that the page runs: `prepare.onnx` once an image, `prompt.onnx` for each prompt."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from samlit.annotator import assets
from samlit.embeddings import fingerprint
from samlit.export import onnx as onnx_export
from samlit.model import Sam

__all__ = ["folder"]

FORMAT = 1
"""Raised when graphs of the same weights become other graphs."""


def folder(net: Sam, image_size: int, cache: Path) -> Path:
    """The folder that the server offers as `/decoder/`: both graphs, `model.json`, and `ort/` with the runtime.

    Made once for a model's weights and kept.

    Args:
        net: The model.
        image_size: Side of its frame.
        cache: Folder of such folders.

    Raises:
        UsageError: A package is missing.
        SamlitError: The runtime cannot be had.
        ValueError: The model cannot be said in these graphs.
    """
    runtime = assets.runtime()
    made = cache / f"{fingerprint(net)}-{image_size}-{FORMAT}"
    if not (made / "prompt.onnx").exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        beside = made.with_name(f".{made.name}.{secrets.token_hex(4)}.tmp")
        try:
            onnx_export.write(net, image_size, beside, onnx_export.Options(("browser",)))
            try:
                beside.rename(made)
            except OSError:  # another process was faster
                if not (made / "prompt.onnx").exists():
                    raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    link = made / "ort"
    if not link.exists() or link.resolve() != runtime.resolve():
        fresh = made / f".ort.{secrets.token_hex(4)}"
        fresh.symlink_to(runtime.resolve(), target_is_directory=True)
        os.replace(fresh, link)
    return made
