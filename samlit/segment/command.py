"""`samlit segment`: masks of pictures, from the shell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from samlit import atomic
from samlit.contracts import Prompt
from samlit.drawing import pictures
from samlit.errors import UsageError
from samlit.evaluation import evaluate
from samlit.loading import images
from samlit.masks import rle
from samlit.predictor import Masks, Predictor
from samlit.segment import everything as segment_everything
from samlit.segment import text as segment_text
from samlit.shell import terminal
from samlit.shell.options import ArgumentParser

__all__ = ["main"]

EPILOG = """prompts, in pixels of the image, each as often as you like; together they ask for one thing:
  --point X,Y[,LABEL]   a click on what is wanted (LABEL 1, the default) or on what is not (0)
  --box X0,Y0,X1,Y1     a box around it
  --mask FILE           a rough mask of it, an image of the same size
  --text WORDS          what it is, for a model that was trained with text (docs/text.md)
and --OPTION VALUE for any other prompt type that the model was trained with

--text WORDS with --find SCORE finds all that is called so, or says that nothing is (docs/text.md)

or no prompt, and --everything: masks of all there is, by a grid of points; with --everything.KEY VALUE for the keys of
SAM's automatic mask generator (points_per_side, pred_iou_thresh, crop_n_layers, ...: docs/tasks.md)

examples:
  samlit segment photo.jpg --weights runs/tiny/best.ckpt --point 120,80 --point 30,40,0 --out masks.png
  samlit segment photo.jpg --weights runs/text_tiny/best.ckpt --text "the striped red star" --out star.png
  samlit segment photo.jpg --weights mobile_sam --everything --everything.points_per_side 16 --out masks.json
"""


def main(argv: list[str]) -> int:
    """Run the command with the words after `samlit segment`."""
    parser = ArgumentParser(
        prog="samlit segment",
        usage="samlit segment IMAGE ... --weights W --out PATH [PROMPT ... | --everything] [OPTION ...]",
        description="Masks of pictures, from the shell.",
        epilog=EPILOG,
    )
    parser.reads.add_argument("images", nargs="+", metavar="IMAGE", help="one or more image files")
    parser.reads.add_argument(
        "--weights",
        required=True,
        metavar="NAME|FILE",
        help="published weights (sam_vit_b, mobile_sam, ...: `samlit list weights`), or a file: runs/NAME/best.ckpt",
    )
    parser.writes.add_argument(
        "--out",
        required=True,
        metavar="PATH",
        help="a picture (.png, .jpg), for a program COCO results (.json), or a folder for one PNG a mask; "
        "a folder, or .json, where there are several images",
    )
    parser.runs.add_argument(
        "--all", action="store_true", help="all masks of an ambiguous prompt, not only the most confident"
    )
    parser.runs.add_argument(
        "--find",
        type=float,
        metavar="SCORE",
        help="with --text alone: all masks that are called so, of at least this score of CLIP's, or none",
    )
    parser.runs.add_argument("--everything", action="store_true", help="masks of all there is, instead of prompts")
    parser.runs.add_argument(
        "--device", default="cpu", help="where the model runs: cpu, cuda, mps (default: %(default)s)"
    )
    words, rest = _split(argv)
    options = parser.parse_args(words)
    out = Path(options.out)
    if out.suffix.lower() in PICTURES and len(options.images) > 1:
        raise UsageError(f"--out {out}: one picture cannot show {len(options.images)} images; give a folder or a .json")
    stems = [Path(name).stem for name in options.images]
    if out.suffix.lower() not in {*PICTURES, ".json"} and len(set(stems)) < len(stems):
        raise UsageError(f"--out {out}: two of the images have the same name, and so would their masks; give a .json")

    keys, rest = _of_everything(rest)
    if keys and not options.everything:
        raise UsageError(f"{keys[0].partition('=')[0]} is for --everything")
    if options.find is not None and (options.everything or len(rest) != 1 or not rest[0].startswith("--text=")):
        raise UsageError("--find goes with one --text WORDS, and with no other prompt")
    if options.everything and rest:
        raise UsageError(f"--everything takes no prompts, and {rest[0].partition('=')[0]} is one")
    # Before gigabytes are loaded.
    task = evaluate.everything({}, keys, "--everything")[0] if options.everything else None
    predictor = Predictor.load(options.weights, options.device)
    types = predictor.net.prompt_types
    if task is not None:
        segment_everything.run(predictor.net, predictor.image_size, options.images, out, task)
        terminal.say(f"saved to {out}")
        return 0
    asked = _prompts(rest, types, parser.prog)
    if options.find is not None:
        phrase = rest[0].partition("=")[2]
        segment_text.run(predictor.net, predictor.image_size, options.images, out, phrase, options.find)
        terminal.say(f"saved to {out}")
        return 0
    pixels = [images.read(name) for name in options.images]
    answers = []
    for name, image in zip(options.images, pixels, strict=True):
        predictor.set_image(image)
        answer = predictor.predict(asked)
        answers.append(
            answer if options.all else Masks(*(x[:1] for x in (answer.masks, answer.iou, answer.low_res_logits)))
        )
        for i, (mask, iou) in enumerate(zip(answers[-1].masks, answers[-1].iou, strict=True)):
            terminal.say(f"{name}: mask {i + 1}, {int(mask.sum())} pixels, predicted IoU {float(iou):.2f}")
    _save(out, options.images, pixels, answers, asked, types)
    terminal.say(f"saved to {out}")
    return 0


COLOURS = (pictures.ORANGE, pictures.BLUE, pictures.GREEN)
PICTURES = {".png", ".jpg", ".jpeg"}

OWN = {"--weights", "--out", "--device", "--all", "--find", "--everything", "--help"}


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """The command's own words, and the prompts', each as `--OPTION=VALUE`, for a value may begin with a minus.

    Which prompts there are only the model knows, so that any other option takes the word after it.
    """
    own: list[str] = []
    prompts: list[str] = []
    option = ""
    for word in argv:
        if word.startswith("--") and word != "--":
            option = "" if word.partition("=")[0] in OWN else word
            (prompts if option else own).append(word)
        elif option and "=" not in option:
            prompts[-1], option = f"{option}={word}", ""
        else:
            own.append(word)
            option = ""
    return own, prompts


def _of_everything(words: list[str]) -> tuple[list[str], list[str]]:
    """The words that are keys of everything-mode, and the others."""
    keys = [word for word in words if word.startswith(evaluate.EVERYTHING)]
    return keys, [word for word in words if word not in keys]


def _prompts(words: list[str], types: dict[str, Prompt], prog: str) -> dict[str, list[Tensor]]:
    """The prompts on the command line, by prompt type."""
    parser = ArgumentParser(prog=prog, add_help=False)
    for name, prompt in types.items():
        parser.add_argument(f"--{prompt.option}", dest=name, action="append", default=[])
    options = [f"--{prompt.option}" for prompt in types.values()]
    for word in words:
        if (option := word.partition("=")[0]) not in options:
            raise UsageError(f"this model takes {', '.join(options)}; {option} is none of them")
    typed = vars(parser.parse_args(words))
    if not any(typed.values()):
        known = ", ".join(f"--{prompt.option}" for prompt in types.values())
        raise UsageError(f"give at least one prompt (this model takes {known})")
    try:
        return {name: [types[name].parse(text) for text in texts] for name, texts in typed.items() if texts}
    except ValueError as error:
        raise UsageError(str(error)) from error


def _save(
    out: Path,
    names: Sequence[str],
    pixels: Sequence[np.ndarray],
    answers: Sequence[Masks],
    asked: dict[str, list[Tensor]],
    types: dict[str, Prompt],
) -> None:
    """Write a picture, COCO results, or a folder of masks, each file whole or not at all."""
    if out.suffix.lower() == ".json":
        rows = [row for name, answer in zip(names, answers, strict=True) for row in _coco(name, answer)]
        atomic.write(out, json.dumps(rows, indent=1) + "\n")
        return
    if out.suffix.lower() in PICTURES:
        picture = Image.fromarray(pixels[0])
        for mask, colour in zip(answers[0].masks.cpu().numpy(), COLOURS, strict=False):
            picture = Image.fromarray(pictures.overlay(np.asarray(picture), mask, colour))
        for name, values in asked.items():
            for value in values:
                types[name].draw(picture, value)
        _write(out, picture)
        return
    for name, answer in zip(names, answers, strict=True):
        for i, mask in enumerate(answer.masks.cpu().numpy()):
            _write(out / f"{Path(name).stem}_{i + 1}.png", Image.fromarray(mask.astype(np.uint8) * 255))


def _write(path: Path, picture: Image.Image) -> None:
    with atomic.writing(path) as stream:
        picture.save(stream, format="PNG" if path.suffix.lower() == ".png" else "JPEG", quality=95)


def _coco(name: str, answer: Masks) -> list[dict[str, Any]]:
    """Rows of a COCO results file; images are named, for they have no number."""
    rows = []
    for mask, iou in zip(answer.masks.cpu().numpy(), answer.iou.tolist(), strict=True):
        drawn = rle.encode(mask)
        x0, y0, x1, y1 = rle.box(drawn)
        segmentation = {"size": list(drawn.size), "counts": drawn.counts}
        rows.append(
            {
                "file_name": name,
                "segmentation": segmentation,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": round(iou, 4),
            }
        )
    return rows
