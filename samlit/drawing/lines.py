"""A figure of lines, as a file: for what an evaluation says about a number of clicks, a strength, a threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from samlit import atomic

__all__ = ["draw", "draw_precision"]

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


def draw_precision(file: Path, recall: Sequence[float], precision: Sequence[float], title: str) -> None:
    """Draw precision by recall over lines of equal F, as a PNG.

    Args:
        file: Where; written whole or not at all.
        recall: By threshold,
        precision: and precision.
        title: Over the figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 5), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for tenth in range(1, 10):
        f = tenth / 10
        least = f / (2 - f)  # where precision is 1
        at = [least + (1 - least) * i / 100 for i in range(101)]
        equal = [f * r / (2 * r - f) for r in at]
        axes.plot(at, equal, color="#d5dbe3", linewidth=0.8)
        axes.annotate(
            f"{f:g}", (1, equal[-1]), color="#a9b1bb", fontsize=7.5, xytext=(3, -2), textcoords="offset points"
        )
    axes.plot(recall, precision, "o-", color=COLOURS[0], linewidth=1.6, markersize=3)
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel("recall", color=GREY)
    axes.set_ylabel("precision; thin lines: equal F", color=GREY)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c5c9d0")
    axes.tick_params(colors=GREY, labelsize=9)
    with atomic.writing(file) as stream:
        figure.savefig(stream, format="png")
