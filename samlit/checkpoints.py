"""Weights into models: a file or a published name, of samlit or of another project, whole or as a training's start."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from samlit.errors import UsageError, did_you_mean, one_line
from samlit.model import Sam
from samlit.training import lora
from samlit.weights import architecture, catalogue, download, layouts, pieces, tensors

__all__ = ["load", "locate", "start_from"]


def locate(weights: str | Path) -> Path:
    """The file, or the folder, of weights that a person names; published ones are downloaded once.

    Raises:
        FileNotFoundError: There is no such file, and nothing is published under that name.
        SamlitError: It cannot be downloaded.
    """
    path = Path(weights)
    if path.exists():
        return path
    if str(weights) not in catalogue.PUBLISHED:
        near = did_you_mean(str(weights), catalogue.PUBLISHED)
        raise FileNotFoundError(
            f"{weights}: there is no such file of weights, and none are published under that name{near} "
            "(`samlit list weights`; `samlit fit` writes runs/NAME/best.ckpt)"
        )
    from samlit.run.progress import bar

    with bar() as report:
        return download.fetch(catalogue.find(str(weights)), report)


def load(weights: str | Path) -> tuple[Sam, int]:
    """A model with its weights, and the side of the frame that it was trained at.

    Args:
        weights: A file of any layout that holds a whole model, a folder of transformers, or a published name.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, of another kind, or needs a plug-in that is not installed; one line.
        SamlitError: It cannot be downloaded.
    """
    path = locate(weights)
    found = tensors.read(path)
    if found.layout in ("mae", "timm"):
        raise ValueError(
            f"{path}: holds an encoder only: start a training from it (`samlit fit --model.weights`) and use what that "
            "writes"
        )
    if found.layout == "samlit":
        return _samlit(path, found)
    try:
        state = layouts.to_sam(found.state, found.layout)
        model = architecture.recognise(state, _heads(found))
        net = model.build()
        _fill(net, layouts.from_sam(state, "samlit"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return net, model.image_size


def _samlit(path: Path, found: tensors.Tensors) -> tuple[Sam, int]:
    """The model that a samlit checkpoint describes."""
    from samlit.module import SamModule

    if not found.parameters:
        raise ValueError(
            f"{path}: says nothing of the model that its weights are of: `samlit fit` writes files that do"
        )
    file: Path | io.BytesIO = path
    if path.is_dir():  # a checkpoint in pieces; Lightning reads files
        file = io.BytesIO()
        torch.save(pieces.read(path, moments=False), file)
        file.seek(0)
    try:
        module = SamModule.load_from_checkpoint(file, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # what foreign parameters make of Lightning and the parser is endless
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path}: its model cannot be built, or a plug-in of it is missing ({why})") from error
    return module.net, module.image_size


def _heads(found: tensors.Tensors) -> int:
    """Attention heads of the decoder, where the file says more than shapes."""
    return int(found.config.get("mask_decoder_config", {}).get("num_attention_heads", architecture.HEADS))


def start_from(net: Sam, weights: str | Path) -> None:
    """Load what a training starts from; an encoder may interpolate what belongs to another image size.

    What the model has and the weights lack as a whole, a prompt type or a part of the decoder, keeps its start, and
    what they have as a whole and the model has not is left out; both are noted.

    Args:
        net: The model.
        weights: A file of any layout, a folder of transformers, or a published name. Weights of an encoder alone
            go into the encoder.

    Raises:
        UsageError: There is no such file, it is damaged, or it is of another model.
        SamlitError: It cannot be downloaded.
    """
    try:
        path = locate(weights)
        found = tensors.read(path)
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(f"weights: {one_line(error)}") from error
    try:
        _start(net, found)
    except ValueError as error:
        raise UsageError(f"weights: {path} is of another model: {error}") from error


def _start(net: Sam, found: tensors.Tensors) -> None:
    if found.layout == "mae":
        warnings.warn(f"the weights of masked autoencoders are {catalogue.NON_COMMERCIAL}", stacklevel=1)
        _fill(net.encoder, net.encoder.convert(found.state, "mae"), lambda name: True)
        return
    state = found.state
    if found.layout != "samlit":
        state = layouts.from_sam(layouts.to_sam(state, found.layout), "samlit")
    if found.layout == "timm":
        _fill(net.encoder, {name.removeprefix("encoder."): value for name, value in state.items()}, lora.is_added)
        return
    own = net.state_dict()
    there, here, kept = _parts(state), _parts(own), []
    for part in sorted(here - there):
        warnings.warn(f"the weights have no {part}: it starts as it is", stacklevel=1)
        kept.append(f"{part}.")
    for part in sorted(there - here):
        warnings.warn(f"the weights have {part}, and this model has not: left out", stacklevel=1)
        state = {name: value for name, value in state.items() if not name.startswith(f"{part}.")}
    _fill(net, state, lambda name: name.startswith(tuple(kept)) or lora.is_added(name))
    if found.layout != "samlit":
        _check_heads(net, layouts.to_sam(found.state, found.layout), _heads(found))


def _check_heads(net: Sam, state: dict[str, Tensor], heads: int) -> None:
    """Refuse a decoder that the weights fit and that does not answer as the one that they were trained in.

    Raises:
        ValueError: It has another number of attention heads.
    """
    part = architecture.decoder(state, heads)
    if type(net.decoder) is not part.type:
        return
    as_trained, alike = part.type(net.encoder.channels, **part.arguments), True
    with suppress(ValueError):  # one that wants finer maps as well cannot be asked without them
        alike = architecture.answer_alike(lora.merged(net.decoder), as_trained, net.encoder.channels, part)
    if not alike:
        raise ValueError(f"its decoder has {heads} attention heads, and this model's another number")


def _parts(names: Iterable[str]) -> set[str]:
    """What may be there or not as a whole: prompt types, and the decoder's own parts."""
    split = (name.split(".") for name in names)
    return {".".join(words[:2]) for words in split if words[0] in ("prompts", "decoder") and len(words) > 2}


def _fill(module: nn.Module, state: dict[str, Tensor], may_lack: Callable[[str], bool] = lambda name: False) -> None:
    """Load all weights into a module that has places for all of them.

    Raises:
        ValueError: They do not fit; the first name that does not, and how many more.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in state and not may_lack(name)]
    foreign = [name for name in state if name not in own]
    if missing or foreign:
        name, what = (missing[0], "it lacks") if missing else (foreign[0], "it has, and this model has not,")
        more = len(missing) + len(foreign) - 1
        raise ValueError(f"{what} {name!r}" + (f" and {more} more" if more else ""))
    try:
        module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # of all the lines, the first that names a weight
        lines = [line.strip() for line in str(error).splitlines()]
        raise ValueError(next((line for line in lines if "size mismatch" in line), one_line(error))) from error
