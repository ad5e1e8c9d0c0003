"""Drawing: masks over images, a sheet of examples, the learning curve; no files, no state."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from samlit.run.examples import Answer, Example, Played

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "INK",
    "ORANGE",
    "PANELS",
    "RED",
    "apart",
    "contact_sheet",
    "errors",
    "extremes_sheet",
    "hexadecimal",
    "learning_curve",
    "overlay",
    "panels",
    "prompted",
    "rounds_to_show",
    "series",
    "smooth",
]

Colour = tuple[int, int, int]
Picture = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.float64]

ORANGE: Colour = (255, 138, 0)
GREEN: Colour = (30, 170, 90)
RED: Colour = (222, 45, 48)
BLUE: Colour = (35, 105, 225)
GREY: Colour = (115, 120, 128)
INK: Colour = (28, 32, 38)

CELL = 224
"""Side of a picture on the sheet, in pixels."""
GAP = 6
BETWEEN = 18
MARGIN = 18
PANELS = ("prompt", "prediction", "truth", "error")
COLUMNS = 6
"""Most rounds of a task on the sheet."""


def overlay(image: Picture, mask: Mask, colour: Colour, strength: float = 0.45) -> Picture:
    """Tint an image where a mask is, and draw the mask's outline.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) bool.
        colour: RGB.
        strength: Of the tint, 0 to 1.

    Returns:
        (H, W, 3) uint8.
    """
    out = image.astype(np.float32)
    out[mask] += (np.array(colour, np.float32) - out[mask]) * strength
    picture = np.ascontiguousarray(out.round().astype(np.uint8))
    # One pixel of nothing around, so that a mask is outlined where it meets the border too.
    padded = np.pad(mask, 1).astype(np.uint8)
    outlines, _ = cv2.findContours(padded, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    width = max(1, round(max(mask.shape) / 120))
    cv2.drawContours(picture, outlines, -1, colour, width, cv2.LINE_AA, offset=(-1, -1))
    return picture


def errors(image: Picture, mask: Mask, truth: Mask) -> Picture:
    """The image in pale grey, what is missing of the truth in blue, what is too much in red, what is right in grey."""
    grey = image.astype(np.float32) @ np.array((0.299, 0.587, 0.114), np.float32)
    out = np.repeat((255 - (255 - grey) * 0.3)[..., None], 3, 2)
    for where, colour, strength in (
        (mask & truth, GREY, 0.55),
        (mask & ~truth, RED, 0.85),
        (truth & ~mask, BLUE, 0.85),
    ):
        out[where] += (np.array(colour, np.float32) - out[where]) * strength
    return out.round().astype(np.uint8)


def prompted(picture: Image.Image, example: Example, answer: Answer) -> None:
    """Draw an answer's prompts onto a picture of the example's image, which may have been resized."""
    rows, columns = example.truth.shape
    scale = (picture.width / columns, picture.height / rows)
    frame = (round(example.frame[0] * scale[1]), round(example.frame[1] * scale[0]))
    for prompt, value in answer.prompts:
        if value.ndim == 2:  # a map over the whole frame: without its padding
            h, w = round(value.shape[0] * rows / example.frame[0]), round(value.shape[1] * columns / example.frame[1])
            prompt.draw(picture, value[: max(h, 1), : max(w, 1)])
        else:
            prompt.draw(picture, prompt.rescale(value, scale, frame))


def panels(example: Example, answer: Answer) -> dict[str, Image.Image]:
    """One answer in four pictures, by the names of `PANELS`."""
    image, truth = _resized(example.image, example.truth)
    _, mask = _resized(example.image, answer.mask)
    given = Image.fromarray(image)
    prompted(given, example, answer)
    return {
        "prompt": given,
        "prediction": Image.fromarray(overlay(image, mask, ORANGE)),
        "truth": Image.fromarray(overlay(image, truth, GREEN)),
        "error": Image.fromarray(errors(image, mask, truth)),
    }


def contact_sheet(examples: Sequence[Example], title: str = "", labels: Sequence[str] = ()) -> Image.Image:
    """A sheet with a block for each example and, in it, a column for each round: answers above, their errors below.

    Blocks stand under each other, and beside each other where their rounds are few.

    Args:
        examples: With their answers.
        title: Over the sheet.
        labels: A word for each example, before its name.
    """
    names = rounds_to_show(examples)
    images = [_resized(example.image, example.truth) for example in examples]
    head, width = MARGIN + (34 if title else 0), (len(names) + 1) * (CELL + BETWEEN) + BETWEEN // 2
    across = max(1, min(len(examples), COLUMNS // (len(names) + 1)))
    places, y = list[tuple[int, int]](), head + 28
    for first in range(0, len(examples), across):
        band = images[first : first + across]
        places += [(MARGIN + k * width, y) for k in range(len(band))]
        y += 2 * max(image.shape[0] for image, _ in band) + GAP + 46
    whole = MARGIN + across * width
    sheet = Image.new("RGB", (whole, y + 12 + 22 * len(_legend_rows(whole))), "white")
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((MARGIN, 14), title, INK, _font(20))
    offsets = [i * (CELL + BETWEEN) + (BETWEEN // 2 if i else 0) for i in range(len(names) + 1)]
    for block in range(across):
        for offset, name in zip(offsets, ["image, truth", *names], strict=True):
            middle = MARGIN + block * width + offset + CELL / 2
            draw.text((middle, head + 16), name, INK, _font(17), anchor="ms")
    said = [f"{word}: " for word in labels] or [""] * len(examples)
    for example, (image, truth), (left, top), before in zip(examples, images, places, said, strict=True):
        below = top + image.shape[0] + GAP
        words = below + image.shape[0] + 5
        _place(sheet, image, left, top)
        _place(sheet, overlay(image, truth, GREEN), left, below)
        draw.text((left, words + 2), _cut(before + (example.phrase or example.key), CELL, _font(14)), GREY, _font(14))
        for offset, name in zip(offsets[1:], names, strict=True):
            if name not in example.answers:
                continue
            answer, x = example.answers[name], left + offset
            _, mask = _resized(example.image, answer.mask)
            picture = Image.fromarray(overlay(image, mask, ORANGE))
            prompted(picture, example, answer)
            _place(sheet, np.asarray(picture), x, top)
            _place(sheet, errors(image, mask, truth), x, below)
            draw.text((x, words), f"IoU {answer.iou:.2f}", INK, _font(16))
            says = f"predicted {answer.predicted_iou:.2f}"
            draw.text((x + CELL, words + 2), says, GREY, _font(14), anchor="ra")
    _legend(draw, y + 2, whole)
    return sheet


def extremes_sheet(played: Played, when: str) -> Image.Image:
    """A sheet of the masks answered best and of those answered worst."""
    labels = [word for word, mine in (("best", played.best), ("worst", played.worst)) for _ in mine]
    return contact_sheet([*played.best, *played.worst], f"Answered best and worst, {when}", labels)


def rounds_to_show(examples: Sequence[Example]) -> list[str]:
    """The rounds to show: of a long series the first ones, and fewer and fewer of the later ones."""
    names = list(dict.fromkeys(name for example in examples for name in example.answers))
    series: dict[str, list[str]] = {}
    for name in names:
        series.setdefault(re.sub(r"\d+ ", "", name).removesuffix("s"), []).append(name)
    keep: set[str] = set()
    for mine in series.values():
        steps = np.geomspace(1, len(mine), min(COLUMNS - 1, len(mine)))
        keep.update(mine[round(step) - 1] for step in steps)
    return [name for name in names if name in keep]


def _resized(image: Picture, mask: Mask) -> tuple[Picture, Mask]:
    """Image and mask so large that they fit a cell; small images with their pixels blurred as little as may be."""
    scale = CELL / max(mask.shape)
    size = (max(round(mask.shape[1] * scale), 1), max(round(mask.shape[0] * scale), 1))
    larger = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    smooth = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR if scale > 1 else cv2.INTER_AREA)
    return cv2.resize(image, size, interpolation=larger).astype(np.uint8), smooth >= 0.5


def _place(sheet: Image.Image, picture: Picture, x: int, y: int) -> None:
    """Paste into the middle of a column."""
    sheet.paste(Image.fromarray(picture), (x + (CELL - picture.shape[1]) // 2, y))


LEGEND = (
    (GREEN, "truth"),
    (ORANGE, "the model's most confident mask"),
    (RED, "too much (false positive)"),
    (BLUE, "missing (false negative)"),
    (GREY, "right"),
)


def _legend_rows(width: int) -> list[list[tuple[float, tuple[int, int, int], str]]]:
    """What the colours mean, with their places, in as many rows as a sheet of a width needs."""
    rows: list[list[tuple[float, tuple[int, int, int], str]]] = [[]]
    x = float(MARGIN)
    for colour, meaning in LEGEND:
        wide = 49 + _font(14).getlength(meaning)
        if rows[-1] and x + wide > width:
            rows.append([])
            x = MARGIN
        rows[-1].append((x, colour, meaning))
        x += wide
    return rows


def _legend(draw: ImageDraw.ImageDraw, y: int, width: int) -> None:
    """Draw the rows."""
    for row in _legend_rows(width):
        for x, colour, meaning in row:
            draw.rounded_rectangle((x, y, x + 16, y + 16), 3, fill=colour)
            draw.text((x + 23, y + 13), meaning, INK, _font(14), anchor="ls")
        y += 22


def _cut(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """The text, or as much of it as fits."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """The figure's typeface: the one that comes with Matplotlib, so that all machines have it."""
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def learning_curve(
    history: Sequence[Mapping[str, float]], baseline: Mapping[str, float] | None = None, title: str = ""
) -> bytes:
    """Loss and mIoU over the steps of a run, as a PNG.

    Args:
        history: Numbers by name, in the order of their "step": "train/loss", "train/miou", and any "val/NAME".
        baseline: Levels to compare with, drawn as dotted lines.
        title: Over the figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.35))
    figure.subplots_adjust(0.055, 0.13, 0.855, 0.86, wspace=0.16)
    if title:
        figure.suptitle(title, x=0.055, y=0.985, ha="left", fontsize=12, color=hexadecimal(INK))
    for axes, name in ((left, "training loss"), (right, "mIoU")):
        axes.set_title(name, loc="left", fontsize=11, color=hexadecimal(INK))
        axes.set_xlabel("step", color=hexadecimal(GREY))
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#c5c9d0")
        axes.tick_params(colors=hexadecimal(GREY), labelsize=9)
        axes.grid(axis="y", color="#eceef1", linewidth=0.8)
        axes.set_axisbelow(True)

    steps, loss = series(history, "train/loss")
    if len(steps):
        left.plot(steps, loss, color=hexadecimal(BLUE), alpha=0.3 if len(steps) > 20 else 1, linewidth=1.2)
        if len(steps) > 20:
            left.plot(steps, smooth(loss), color=hexadecimal(BLUE), linewidth=2)
        left.set_ylim(min(0.0, float(loss.min())), None)
    _scores(right, history, baseline or {})
    last = max([row["step"] for row in history], default=0)
    for axes in (left, right):
        axes.set_xlim(0, max(last, 1))
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _scores(axes: Any, history: Sequence[Mapping[str, float]], baseline: Mapping[str, float]) -> None:
    """The right half: training mIoU, each validation number, and what they are compared with."""
    labels: list[tuple[float, str, str]] = []
    steps, train = series(history, "train/miou")
    if len(steps):
        train = smooth(train) if len(steps) > 20 else train
        axes.plot(steps, train, color="#b4b9c1", linewidth=1.5)
        labels.append((float(train[-1]), "training", "#8d939c"))
    names = list(dict.fromkeys(n for row in history for n in row if n.startswith("val/") and n != "val/miou"))
    colours = ("#0b4f9c", "#1b86c9", "#2fa79b", "#7fb241", "#e08214", "#c23b5e", "#7b4fb5", "#8c5a3c")
    plain = [name for name in names if not (name.endswith("_best") and name.removesuffix("_best") in names)]
    best = False
    for i, name in enumerate(plain):
        colour = colours[i % len(colours)]
        steps, values = series(history, name)
        if not len(steps):
            continue
        axes.plot(steps, values, color=colour, linewidth=2, marker="o", markersize=3.5, clip_on=False)
        labels.append((float(values[-1]), f"{name.removeprefix('val/').replace('_', ' ')}  {values[-1]:.2f}", colour))
        if f"{name}_best" in names:
            best = True
            axes.plot(*series(history, f"{name}_best"), color=colour, linewidth=1, linestyle=(0, (4, 2)))
    for name, level in baseline.items():
        axes.axhline(level, color="#555b65", linewidth=1, linestyle=":")
        labels.append((level, f"{name}  {level:.2f}", "#555b65"))
    if best:
        said, grey = "dashed: best of three", hexadecimal(GREY)
        axes.text(1, 1.03, said, transform=axes.transAxes, ha="right", fontsize=8.5, color=grey)
    axes.set_ylim(0, max([1.0, *(axes.get_ylim()[1:] if any(value > 1 for value, _, _ in labels) else ())]))
    span = axes.get_ylim()[1]
    # Labels stand at the ends of their lines, moved apart as far as a line of text needs.
    labels.sort()
    for (value, text, colour), y in zip(labels, apart([v for v, _, _ in labels], 0.062 * span, span), strict=True):
        axes.annotate(
            text,
            (1, value / span),
            (1.02, y / span),
            xycoords="axes fraction",
            fontsize=9.5,
            color=colour,
            va="center",
            annotation_clip=False,
        )


def series(history: Sequence[Mapping[str, float]], name: str) -> tuple[Numbers, Numbers]:
    """Steps and values of the rows that have a number of that name."""
    rows = [(row["step"], row[name]) for row in history if name in row and np.isfinite(row[name])]
    table = np.array(rows, np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def smooth(values: Numbers) -> Numbers:
    """A running mean over a twentieth of the values, shorter at the ends."""
    half = max(len(values) // 40, 2)
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    mean: Numbers = (total[high] - total[low]) / (high - low)
    return mean


def apart(values: Sequence[float], gap: float, top: float) -> list[float]:
    """Ascending places, each as near to its value as a gap between neighbours allows, none above the top."""
    # Isotonic regression of value minus rank times gap: neighbours that are too near form a block around their mean.
    blocks: list[list[float]] = []
    for rank, value in enumerate(values):
        blocks.append([value - rank * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, size = blocks.pop()
            blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + mean * size) / (blocks[-1][1] + size), blocks[-1][1] + size]
    places = [mean for mean, size in blocks for _ in range(int(size))]
    placed = [place + rank * gap for rank, place in enumerate(places)]
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], top if i == len(placed) - 1 else placed[i + 1] - gap)
    return placed


def hexadecimal(colour: Colour) -> str:
    """The colour as Matplotlib takes it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)
