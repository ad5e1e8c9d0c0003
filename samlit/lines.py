"""A figure of lines, as a file: for what an evaluation says about a number of clicks, a strength, a threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from samlit import atomic

__all__ = ["draw"]

COLOURS = ("#2369e1", "#e08214", "#1eaa5a", "#de2d30", "#7b4ab5", "#737880")
INK, GREY = "#1c2026", "#737880"


def draw(
    file: Path,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    title: str,
    across: str,
    up: str,
    range_up: tuple[float | None, float | None] = (0.0, 1.0),
) -> None:
    """Draw lines, each with its name where there are several, as a PNG.

    Args:
        file: Where; written whole or not at all.
        lines: Points (x, y) by name.
        title: Over the figure.
        across: What is to the right.
        up: What is upward.
        range_up: Lowest and highest value that is shown; None for what the lines need.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4.4), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, (name, points) in enumerate(lines.items()):
        x, y = [p[0] for p in points], [p[1] for p in points]
        axes.plot(x, y, "o-", color=COLOURS[number % len(COLOURS)], linewidth=1.6, markersize=3.5, label=name)
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel(across, color=GREY)
    axes.set_ylabel(up, color=GREY)
    axes.set_ylim(*range_up)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c5c9d0")
    axes.tick_params(colors=GREY, labelsize=9)
    axes.grid(axis="y", color="#eceef1", linewidth=0.8)
    axes.set_axisbelow(True)
    if all(float(x).is_integer() for points in lines.values() for x, _ in points):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    with atomic.writing(file) as stream:
        figure.savefig(stream, format="png")
