"""`samlit export`: weights for SAM's own code, for transformers, as safetensors, and graphs for ONNX."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samlit import atomic, checkpoints
from samlit.errors import UsageError
from samlit.model import PIXEL_MEAN, PIXEL_STD, Sam
from samlit.shell import terminal
from samlit.shell.options import ArgumentParser
from samlit.training import lora
from samlit.weights import architecture, layouts
from samlit.weights.architecture import Architecture

__all__ = ["PARTS", "huggingface", "main", "official", "onnx", "safetensors", "sam"]

PARTS = ("encoder", "decoder", "single", "batched", "browser")

EPILOG = """formats:
  sam           one file of tensors by SAM's own names, as segment-anything and MobileSAM load it
  safetensors   the same as safetensors
  hf            a folder that transformers' SamModel and SamProcessor load
  onnx          a folder of graphs, each of them run and compared before it is kept: encoder; decoder, with the inputs
                and outputs of SAM's own export, and single, its one-mask form; batched, several prompts at once; and
                for browsers prepare, once an image, and prompt, once a click

what hf and onnx write says itself what it is, to a program too: config.json there, model.json here

what a format cannot say (a prompt type, a decoder or an encoder that its readers have not) is refused

examples:
  samlit export --weights runs/own/best.ckpt --to sam --out own.pth
  samlit export --weights sam_vit_b --to hf --out sam_vit_b_hf
  samlit export --weights mobile_sam --to onnx --out mobile_sam_onnx
  samlit export --weights mobile_sam --to onnx --part browser --precision int8 --out page
"""


def main(argv: list[str]) -> int:
    """Run the command with the words after `samlit export`."""
    parser = ArgumentParser(
        prog="samlit export",
        description="Take weights elsewhere.",
        epilog=EPILOG,
    )
    told = "published weights (`samlit list weights`), or a file: runs/NAME/best.ckpt"
    parser.reads.add_argument("--weights", required=True, metavar="NAME|FILE", help=told)
    parser.writes.add_argument(
        "--to",
        required=True,
        choices=[*FORMATS, "onnx"],
        metavar="FORMAT",
        help=f"{', '.join(FORMATS)} or onnx: see below",
    )
    parser.writes.add_argument("--out", required=True, metavar="PATH", help="a file, or for hf and onnx a new folder")
    graphs = parser.add_argument_group("with --to onnx")
    graphs.add_argument(
        "--part", nargs="+", choices=PARTS, metavar="PART", help=f"which graphs: {', '.join(PARTS)}; all if not given"
    )
    graphs.add_argument("--opset", type=int, metavar="N", help="version of ONNX's operators, 18 if not given")
    graphs.add_argument("--precision", choices=("fp32", "fp16", "int8"), help="of weights and arithmetic; fp32")
    options = parser.parse_args(argv)
    out = Path(options.out)
    asked = {name: value for name in ("part", "opset", "precision") if (value := getattr(options, name)) is not None}
    if asked and options.to != "onnx":
        raise UsageError(f"--{next(iter(asked))} is for --to onnx")
    if not 18 <= asked.get("opset", 18) <= 23:
        raise UsageError(f"--opset {options.opset}: from 18 to 23")
    _check_name(out, options.to)
    net, image_size = checkpoints.load(options.weights)
    try:
        if options.to == "onnx":
            for line in onnx(net, image_size, out, **asked):
                terminal.say(line)
        else:
            FORMATS[options.to](net, image_size, out)
    except ValueError as error:
        raise ValueError(f"{options.weights} cannot be exported to {options.to}: {error}") from error
    terminal.say(f"saved to {out}")
    return 0


def _check_name(out: Path, to: str) -> None:
    """Refuse a name that its readers would take for something else, before anything is loaded."""
    if to in ("hf", "onnx"):
        if out.is_file() or (out.is_dir() and any(out.iterdir())):
            raise UsageError(f"--out {out}: is there already; --to {to} makes a new folder")
        return
    if out.is_dir():
        raise UsageError(f"--out {out}: is a folder; --to {to} writes a file")
    if (out.suffix == ".safetensors") != (to == "safetensors"):
        wanted = "out.safetensors" if to == "safetensors" else "out.pth"
        raise UsageError(f"--out {out}: the name of a file from --to {to} ends like {wanted}")


def official(net: Sam, image_size: int) -> tuple[dict[str, Tensor], Architecture]:
    """A model's weights by SAM's own names, float32, and what a reader takes them to be.

    Raises:
        ValueError: SAM's layout cannot say what this model is; one line that says by what.
    """
    net = lora.merged(net)
    state = layouts.to_sam(net.state_dict(), "samlit")
    model = architecture.recognise(state)
    read = model.build()
    wanted = layouts.to_sam(read.state_dict(), "samlit")
    if differing := [name for name in state.keys() ^ wanted.keys() if not name.endswith("num_batches_tracked")]:
        name = min(differing)
        raise ValueError(
            f"its readers have no {name!r}" if name in state else f"it has no {name!r}, which readers want"
        )
    if type(read.encoder).forward is not type(net.encoder).forward:
        raise ValueError(f"its readers would take the encoder for a {type(read.encoder).__name__}")
    for name in model.encoder.arguments:  # names and shapes do not tell which maps an encoder emits
        here, there = (getattr(encoder, name, None) for encoder in (net.encoder, read.encoder))
        if here != there:
            raise ValueError(f"readers take its encoder's {name} to be {there}, and it is {here}")
    if model.image_size != image_size:
        raise ValueError(
            f"these weights do not say the size of their frame, {image_size} here, and readers take it to be "
            f"{model.image_size}"
        )
    try:
        alike = architecture.answer_alike(net.decoder, read.decoder, net.encoder.channels, model.decoder)
    except ValueError as error:
        raise ValueError(f"its decoder needs more than readers give it: {error}") from error
    if not alike:
        told = f"{architecture.HEADS} attention heads and the released choices"
        raise ValueError(f"readers take its decoder to have {told}, and it has not")
    whole = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    return {name: value.detach().contiguous() for name, value in (whole | _unused(model)).items()}, model


def _unused(model: Architecture) -> dict[str, Tensor]:
    """What MobileSAM's own code wants to find in a file though no mask depends on it: TinyViT's classifier."""
    if model.encoder.name != "tiny_vit":
        return {}
    dim = model.encoder.arguments["dims"][-1]
    sizes = {"norm_head.weight": (dim,), "norm_head.bias": (dim,), "head.weight": (1000, dim), "head.bias": (1000,)}
    return {f"image_encoder.{name}": torch.zeros(size) for name, size in sizes.items()}


def sam(net: Sam, image_size: int, out: Path) -> None:
    """Write the file that SAM's own code loads.

    Raises:
        ValueError: SAM's layout cannot say what this model is.
    """
    state, _ = official(net, image_size)
    atomic.replacing(out, lambda beside: torch.save(state, beside))


def safetensors(net: Sam, image_size: int, out: Path) -> None:
    """Write the same tensors as safetensors.

    Raises:
        ValueError: SAM's layout cannot say what this model is.
    """
    state, _ = official(net, image_size)
    atomic.replacing(out, lambda beside: _save(state, beside))


def _save(state: dict[str, Tensor], path: Path) -> None:
    """Write safetensors that others may read as they may read other files; its writer lets nobody else."""
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    save_file(state, path, {"format": "pt"})
    path.chmod(mode)


def huggingface(net: Sam, image_size: int, out: Path) -> None:
    """Write the folder that transformers' SamModel and SamProcessor load.

    Raises:
        ValueError: SamModel cannot say what this model is.
    """
    state, model = official(net, image_size)
    for part, only in ((model.encoder, "vit"), (model.decoder, "mask")):
        if part.name != only:
            raise ValueError(f"transformers' SamModel has no {part.name!r}, only samlit's {only!r}")
    config = _config(model, net.encoder.channels, state["prompt_encoder.mask_downscaling.3.weight"].shape[0])
    # Made beside its place and then renamed, so that the folder is there as a whole or not at all.
    beside = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    beside.mkdir(parents=True)
    try:
        _save(layouts.from_sam(state, "hf"), beside / "model.safetensors")
        _write(beside / "preprocessor_config.json", _preprocessing(image_size, net.encoder.stride))
        _write(beside / "config.json", config)
        beside.replace(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def onnx(
    net: Sam, image_size: int, out: Path, part: Sequence[str] = PARTS, opset: int = 18, precision: str = "fp32"
) -> list[str]:
    """Write graphs for ONNX; see `samlit.export.onnx.write`."""
    from samlit.export import onnx as onnx_export  # its packages are an extra

    return onnx_export.write(net, image_size, out, onnx_export.Options(tuple(part), opset, precision))


def _write(path: Path, tree: dict[str, Any]) -> None:
    atomic.write(path, json.dumps(tree, indent=2) + "\n")


def _config(model: Architecture, channels: int, hidden: int) -> dict[str, Any]:
    """What SamConfig reads."""
    encoder, decoder = model.encoder.arguments, model.decoder.arguments
    frame = {"image_size": model.image_size, "patch_size": encoder["patch"]}
    return {
        "architectures": ["SamModel"],
        "model_type": "sam",
        "vision_config": {
            **frame,
            "hidden_size": encoder["dim"],
            "output_channels": channels,
            "num_hidden_layers": encoder["depth"],
            "num_attention_heads": encoder["heads"],
            "mlp_ratio": encoder["mlp_ratio"],
            "mlp_dim": round(encoder["dim"] * encoder["mlp_ratio"]),
            "window_size": encoder["window"],
            "global_attn_indexes": list(encoder["global_blocks"]),
            "num_pos_feats": channels // 2,
            "layer_norm_eps": 1e-6,
        },
        "prompt_encoder_config": {**frame, "hidden_size": channels, "mask_input_channels": hidden},
        "mask_decoder_config": {
            "hidden_size": channels,
            "mlp_dim": decoder["mlp_dim"],
            "num_hidden_layers": decoder["depth"],
            "num_attention_heads": decoder["heads"],
            "num_multimask_outputs": decoder["multimask_outputs"],
            "iou_head_hidden_dim": decoder["iou_hidden"],
            "layer_norm_eps": 1e-5,  # as SAM has it; transformers' default is another
        },
    }


def _preprocessing(image_size: int, stride: int) -> dict[str, Any]:
    """What SamImageProcessor reads: SAM's frame (SAM_SPEC 1.7)."""
    prompt = 4 * (image_size // stride)
    return {
        "image_processor_type": "SamImageProcessor",
        "processor_class": "SamProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"longest_edge": image_size},
        "mask_size": {"longest_edge": prompt},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [value / 255 for value in PIXEL_MEAN],
        "image_std": [value / 255 for value in PIXEL_STD],
        "do_pad": True,
        "pad_size": {"height": image_size, "width": image_size},
        "mask_pad_size": {"height": prompt, "width": prompt},
    }


FORMATS: dict[str, Callable[[Sam, int, Path], None]] = {"sam": sam, "safetensors": safetensors, "hf": huggingface}
