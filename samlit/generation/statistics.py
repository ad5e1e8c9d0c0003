"""What was generated, in numbers and pictures: masks an image, their areas, predicted IoU and stability."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from samlit.masks import rle
from samlit.shards.records import Record

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["counted", "plot", "sheet", "summary"]

Numbers = npt.NDArray[np.float64]

BINS: dict[str, Numbers] = {
    "predicted_iou": np.linspace(0, 1, 201),
    "stability_score": np.linspace(0, 1, 201),
    "area": np.logspace(-6, 0, 61),  # share of the image
}
TITLES = {"predicted_iou": "predicted IoU", "stability_score": "stability", "area": "area, share of the image"}
COLOUR, DARK = "#e8710a", "#3c4043"


def counted(records: Iterable[Record]) -> dict[str, Any]:
    """The statistics of some images; those of several can be added up."""
    masks: list[int] = []
    values: dict[str, list[float]] = {name: [] for name in BINS}
    for record in records:
        masks.append(len(record.annotations))
        for one in record.annotations:
            values["predicted_iou"].append(one.predicted_iou)
            values["stability_score"].append(one.stability_score)
            values["area"].append(rle.area(one.mask) / (record.size[0] * record.size[1]))
    told: dict[str, Any] = {"masks": masks}
    for name, bins in BINS.items():
        # A predicted IoU may exceed 1, and an area be less than a millionth.
        histogram = np.histogram(np.clip(values[name], bins[0], bins[-1]), bins)[0]
        told[name] = {"sum": float(sum(values[name])), "histogram": histogram.tolist()}
    return told


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The statistics of all images.

    Args:
        rows: Of shards, each with its `statistics`.

    Returns:
        Images and masks; masks an image with mean, quantiles and how many images have none; of areas, predicted IoU
        and stability the mean and a histogram with its edges.
    """
    masks = np.array([count for row in rows for count in row["statistics"]["masks"]])
    total = int(masks.sum())
    told: dict[str, Any] = {"images": len(masks), "masks": total}
    if len(masks):
        quantiles = {f"{q}%": float(np.percentile(masks, q)) for q in (5, 25, 50, 75, 95)}
        told["masks_per_image"] = {"mean": total / len(masks), **quantiles, "max": int(masks.max())}
        told["images_without_masks"] = int((masks == 0).sum())
    for name, bins in BINS.items():
        parts = [row["statistics"][name] for row in rows]
        histogram = np.sum([part["histogram"] for part in parts], axis=0).tolist() if parts else []
        mean = sum(part["sum"] for part in parts) / total if total else None
        told[name] = {"mean": mean, "edges": [float(f"{edge:.6g}") for edge in bins], "histogram": histogram}
    return told


def plot(told: dict[str, Any], rows: Sequence[dict[str, Any]]) -> Any:
    """The statistics as four histograms, a figure of matplotlib's.

    Args:
        told: The `summary` of the rows.
        rows: Of shards.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((9, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    first, *others = figure.subplots(2, 2).flat
    masks = [count for row in rows for count in row["statistics"]["masks"]]
    first.hist(masks, bins=min(max(masks, default=1), 40) or 1, color=COLOUR)
    mean = sum(masks) / max(len(masks), 1)
    first.axvline(mean, color=DARK, lw=1)
    first.set(xlabel="masks an image", ylabel="images")
    first.set_title(f"{len(masks)} images, {mean:.1f} masks each", loc="left", fontsize=10)
    for axes, (name, title) in zip(others, TITLES.items(), strict=True):
        edges, counts = np.array(told[name]["edges"]), np.array(told[name]["histogram"])
        axes.stairs(counts, edges, fill=True, color=COLOUR)
        seen = np.flatnonzero(counts)
        if name == "area":
            axes.set_xscale("log")
        if len(seen):
            axes.set_xlim(edges[seen[0]], edges[seen[-1] + 1])
            axes.set_title(f"mean {told[name]['mean']:.3f}", loc="left", fontsize=10)
        axes.set(xlabel=title, ylabel="masks")
    for axes in (first, *others):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def sheet(records: Sequence[Record], columns: int = 4, width: int = 400) -> Image.Image:
    """Some images with their masks in colours.

    Args:
        records: With their pictures.
        columns: Of the sheet.
        width: Of an image on it, pixels.
    """
    from PIL import Image, ImageOps

    from samlit.drawing.colouring import coloured

    rows = -(-len(records) // columns)
    high, gap = width * 3 // 4, 8
    size = (min(columns, len(records)) * (width + gap) + gap, rows * (high + gap) + gap)
    whole = Image.new("RGB", size, "white")
    for at, record in enumerate(records):
        drawn = Image.fromarray(coloured(record.image.pixels(), [one.mask for one in record.annotations]))
        drawn = ImageOps.contain(drawn, (width, high))
        x = gap + at % columns * (width + gap) + (width - drawn.width) // 2
        y = gap + at // columns * (high + gap) + (high - drawn.height) // 2
        whole.paste(drawn, (x, y))
    return whole
