"""Tensors out of files: PyTorch's, safetensors, folders of transformers. Nothing but tensors is ever unpickled."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samlit.errors import SamlitError, one_line
from samlit.weights import layouts, pieces

__all__ = ["Tensors", "read"]

# What training code of many projects puts a model's weights under.
WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state")
PREFIXES = ("net.", "module.", "sam.", "model.")


@dataclass(frozen=True)
class Tensors:
    """What a file holds.

    Attributes:
        state: Weights by name.
        layout: Whose names they are.
        parameters: What a samlit checkpoint says of its model; empty in all other files.
        config: What a folder of transformers says of it; empty in all other files.
    """

    state: dict[str, Tensor]
    layout: layouts.Layout
    parameters: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


def read(path: Path) -> Tensors:
    """Read a file of weights.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged, no file of weights, of no known layout, or holds more than tensors; one line that
            names it and says what to do.
    """
    if pieces.is_folder(path):
        loaded = _pieces(path)
    elif path.is_dir():
        state, config = _folder(path)
        return Tensors(state, _layout(state, path), config=config)
    elif path.is_file():
        loaded = _file(path)
    else:
        raise FileNotFoundError(f"{path}: there is no such file of weights")
    parameters: Any = loaded.get("hyper_parameters")
    state = _unwrap(loaded)
    return Tensors(state, _layout(state, path), parameters if isinstance(parameters, dict) else {})


def _pieces(path: Path) -> dict[str, Any]:
    """A samlit checkpoint that is a folder, without what only going on with the training needs."""
    try:
        return pieces.read(path, moments=False)
    except SamlitError as error:
        raise ValueError(f"{path}: {one_line(error)}") from error


def _folder(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A folder that transformers wrote: config.json, and the weights in one file or in several."""
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"{path}: is a folder, and not one of transformers': there is no config.json in it")
    config = _json(path / "config.json")
    if config.get("model_type") != "sam":
        raise ValueError(f"{path}: is a model of the type {config.get('model_type')!r}, not 'sam'")
    index = path / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(_json(index).get("weight_map", {}).values()))
        return {name: value for part in names for name, value in _file(path / part).items()}, config
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path / name).is_file():
            return _unwrap(_file(path / name)), config
    raise FileNotFoundError(f"{path}: there is no model.safetensors in it")


def _json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({one_line(error)}): copy the folder again") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: is not what transformers writes there")
    return tree


def _file(path: Path) -> dict[str, Any]:
    """What one file holds: tensors by name, perhaps with other plain values around them."""
    try:
        with path.open("rb") as stream:
            head = stream.read(9)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({one_line(error)})") from error
    if not head:
        raise ValueError(f"{path}: is empty: download or copy it again")
    if path.suffix == ".safetensors" or (head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size):
        return _safetensors(path)
    is_zip = zipfile.is_zipfile(path)
    if head.startswith(b"PK"):
        _whole(path, is_zip)
    try:
        # Mapped into memory, a file of gigabytes is read as the model takes it over, and never stands beside it.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise ValueError(_refused(path, error)) from error
    except Exception as error:  # what damaged and foreign files make of torch's reader is endless
        raise ValueError(f"{path}: is no file of weights, or is damaged ({_brief(error)})") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path}: is no file of weights: it holds a {type(loaded).__name__}, not tensors by name")
    return loaded


def _whole(path: Path, is_zip: bool) -> None:
    """Refuse an archive that is cut off or damaged: torch's reader sees no flipped bit."""
    damaged: str | None = "its end is missing"
    if is_zip:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    if damaged:
        raise ValueError(f"{path}: is damaged ({damaged}): download or copy it again")


def _refused(path: Path, error: pickle.UnpicklingError) -> str:
    """Code in a file, or bytes that look like it."""
    if "global" in str(error).lower() or "allowlist" in str(error).lower():
        return (
            f"{path}: holds code or objects besides tensors, which samlit never runs; if you trust it, load it where "
            "it was made and save its state_dict() alone"
        )
    return f"{path}: is no file of weights, or is damaged ({_brief(error)})"


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        what = "is cut off or damaged, or no safetensors file"
        raise ValueError(f"{path}: {what} ({_brief(error)}): download or copy it again") from error


def _unwrap(loaded: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors by name, without what training code puts around them and before their names."""
    for wrapper in WRAPPERS:
        inner = loaded.get(wrapper)
        if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
            loaded = inner
            break
    state = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    if layouts.which(state) is None:
        for prefix in PREFIXES:
            shorter = {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
            if layouts.which(shorter) is not None:
                return shorter
    return state


def _layout(state: dict[str, Tensor], path: Path) -> layouts.Layout:
    found = layouts.which(state)
    if found is None:
        what = f"names like {next(iter(state))!r}" if state else "no tensors at all"
        raise ValueError(
            f"{path}: is of no model that is known here ({what}): weights of samlit, SAM, MobileSAM, SAM-HQ, "
            "transformers' SamModel, timm's samvit and MAE are"
        )
    return found


def _brief(error: BaseException) -> str:
    """The first words of an error, which may be a page."""
    text = one_line(error)
    return text if len(text) <= 160 else f"{text[:160]}..."
