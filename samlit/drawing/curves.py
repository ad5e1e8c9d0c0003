"""Plots of a run: its answers pass by pass over the steps, and whether its predicted IoU can be believed."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from samlit.drawing.pictures import BLUE, GREY, INK, apart, hexadecimal, series, smooth
from samlit.evaluation.calibration import Reliability

__all__ = ["by_pass", "passes", "reliability"]


def passes(history: Sequence[Mapping[str, float]]) -> int:
    """How many passes a run's history tells apart."""
    names = {name for row in history for name in row}
    number = 0
    while f"train/pass_{number + 1:02}/miou" in names:
        number += 1
    return number


def by_pass(history: Sequence[Mapping[str, float]], title: str = "") -> bytes:
    """Training loss and mIoU of each pass over the steps, as a PNG.

    Args:
        history: Numbers by name, in the order of their "step": "train/pass_01/loss", "train/pass_01/miou", ...
        title: Over the figure.
    """
    figure, (left, right) = _figure(2, title)
    count = passes(history)
    labels: list[tuple[float, str, str]] = []
    for axes, name in ((left, "loss"), (right, "miou")):
        _axes(axes, "training loss of a pass" if name == "loss" else "training mIoU of a pass", "step")
        for number in range(1, count + 1):
            steps, values = series(history, f"train/pass_{number:02}/{name}")
            if not len(steps):
                continue
            colour = _shade((number - 1) / max(count - 1, 1))
            mean = smooth(values) if len(values) > 20 else values
            axes.plot(steps, mean, color=colour, linewidth=1.8 if number in (1, count) else 1.2)
            if name == "miou":
                labels.append((float(mean[-1]), f"pass {number}  {mean[-1]:.2f}", colour))
        axes.set_xlim(0, max([row["step"] for row in history], default=1))
        axes.set_ylim(0, 1 if name == "miou" else None)
    labels.sort()
    places = apart([value for value, _, _ in labels], 0.055, 1.0)
    for n, ((value, text, colour), y) in enumerate(zip(labels, places, strict=True)):
        right.annotate(
            text,
            (1, value),
            (1.02, max(y, 0.055 * n)),
            xycoords="axes fraction",
            fontsize=8.5,
            color=colour,
            va="center",
            annotation_clip=False,
        )
    return _png(figure)


def reliability(found: Reliability, title: str = "") -> bytes:
    """Actual over predicted IoU, bin by bin, with how many answers are in each bin, as a PNG.

    Args:
        found: Of one validation.
        title: Over the figure.
    """
    figure, (left, right) = _figure(2, title)
    predicted, actual, count = (np.array(x, np.float64) for x in found)
    some = count > 0
    bins = len(count)
    middle, width = (np.arange(bins) + 0.5) / bins, 0.92 / bins
    _axes(left, "mean actual IoU", "predicted IoU")
    left.bar(middle[some], np.minimum(predicted, actual)[some], width, color=hexadecimal(BLUE), alpha=0.85)
    for more, less, colour in ((actual, predicted, "#9cc3f5"), (predicted, actual, "#f2a48f")):
        off = some & (more > less)
        left.bar(middle[off], (more - less)[off], width, less[off], color=colour)
    for x, a in zip(middle[some], actual[some], strict=True):
        left.plot([x - width / 2, x + width / 2], [a, a], color=hexadecimal(INK), linewidth=2)
    left.plot([0, 1], [0, 1], color="#8d939c", linewidth=1, linestyle=":")
    left.text(0.03, 0.95, f"calibration error {found.error:.3f}", fontsize=10, color=hexadecimal(INK), va="top")
    for y, colour, said in ((0.875, "#f2a48f", "predicted too high"), (0.82, "#9cc3f5", "predicted too low")):
        left.text(0.03, y, "■", fontsize=10, color=colour, va="top")
        left.text(0.07, y, said, fontsize=8.5, color=hexadecimal(GREY), va="top")
    left.set_xlim(0, 1)
    left.set_ylim(0, 1)
    _axes(right, "share of the answers", "predicted IoU")
    total = max(float(count.sum()), 1.0)
    right.bar(middle, count / total, width, color="#c5c9d0")
    for x, n in zip(middle[some], count[some], strict=True):
        right.text(x, n / total, f"{int(n):,}", ha="center", va="bottom", fontsize=7.5, color=hexadecimal(GREY))
    right.set_xlim(0, 1)
    return _png(figure)


def _figure(columns: int, title: str) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns)
    figure.subplots_adjust(0.055, 0.13, 0.885, 0.86, wspace=0.16)
    if title:
        figure.suptitle(title, x=0.055, y=0.985, ha="left", fontsize=12, color=hexadecimal(INK))
    return figure, axes


def _axes(axes: Any, title: str, below: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=hexadecimal(INK))
    axes.set_xlabel(below, color=hexadecimal(GREY))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c5c9d0")
    axes.tick_params(colors=hexadecimal(GREY), labelsize=9)
    axes.grid(axis="y", color="#eceef1", linewidth=0.8)
    axes.set_axisbelow(True)


def _shade(share: float) -> str:
    """From the first pass, orange, to the last, dark blue."""
    stops = np.array([(224, 130, 20), (64, 158, 150), (15, 60, 130)], np.float64)
    at = min(max(share, 0.0), 1.0) * (len(stops) - 1)
    low = min(int(at), len(stops) - 2)
    r, g, b = (stops[low] + (stops[low + 1] - stops[low]) * (at - low)).round().astype(int)
    return hexadecimal((int(r), int(g), int(b)))


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
