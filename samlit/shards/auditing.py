"""`samlit shards audit`: how good masks are that nobody has looked at (paper section 4, SAM_SPEC 3.1).

Some masks are drawn by chance, each as a picture of its own with its surroundings, for a person to correct; then the
IoU of each with its corrected mask is told. Of SA-1B's masks 94 % had more than .90, and 97 % more than .75.
"""

from __future__ import annotations

import html
import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samlit import atomic
from samlit.errors import SamlitError, UsageError, one_line
from samlit.shell import terminal
from samlit.shell.options import ArgumentParser

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from samlit.masks.rle import Rle
    from samlit.shards.store import Store

__all__ = ["compare", "main", "sample"]

AUDIT, PAGE, REPORT = "audit.json", "index.html", "report.json"
SURROUNDINGS = 0.5
"""Of a mask's longer side, by how much its picture shows more to each side; at least 32 pixels."""
PUBLISHED = {"0.90": 0.94, "0.75": 0.97}
"""Of SA-1B's masks the share above an IoU, by the paper."""

EPILOG = """first masks are drawn, each into DIR/masks as a JPEG and a JSON in SA-1B's layout; look at DIR/index.html

then, corrected by whatever reads and writes that layout, they are compared with what became of them: --corrected is a
folder with JSON files of the same names. A file that is missing is not judged yet; one without a mask says that there
is nothing to be seen there, an IoU of 0; of several masks the one with the id of the drawn one counts, or that which is
most like it. DIR/report.json has all numbers for a program, DIR/report.png shows them.

examples:
  samlit shards audit shards --out audit --sample 500
  samlit shards audit --out audit --corrected corrected
"""


def main(argv: list[str]) -> int:
    """Run the command with the words after `samlit shards audit`."""
    parser = ArgumentParser(
        prog="samlit shards audit",
        description="Draw masks by chance for a person to correct, and compare them with what became of them.",
        epilog=EPILOG,
    )
    parser.reads.add_argument("root", nargs="?", metavar="ROOT", help="a folder of sa_*.tar, a tar, or their address")
    parser.writes.add_argument("--out", required=True, type=Path, metavar="DIR", help="the folder of the audit")
    parser.runs.add_argument("--sample", type=int, default=500, metavar="N", help="masks to draw (500)")
    parser.runs.add_argument("--seed", type=int, default=0, metavar="S", help="of the chance (0)")
    told = "the corrected masks: DIR/masks itself where they were corrected in place"
    parser.reads.add_argument("--corrected", type=Path, metavar="DIR", help=told)
    options = parser.parse_args(argv)
    if options.sample < 1:
        raise UsageError(f"--sample is at least 1, not {options.sample}")
    if (options.root is None) == (options.corrected is None):
        raise UsageError("give ROOT, to draw masks of it, or --corrected DIR, to compare them")
    if options.corrected is not None:
        tell(compare(options.out, options.corrected), options.out)
        return 0

    from samlit.shell.bars import bar

    with bar() as progress:
        count = sample(options.root, options.out, options.sample, options.seed, progress)
    terminal.say(f"{count} masks in {options.out / 'masks'}; look at {options.out / PAGE}")
    return 0


def sample(
    root: str,
    folder: Path,
    count: int,
    seed: int = 0,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> int:
    """Draw masks, every mask as likely as any other, and write a picture and a JSON for each, and a page.

    Args:
        root: Of shards.
        folder: Of the audit; made if it is not there.
        count: How many, or all that there are.
        seed: Of the chance: the same shards and seed draw the same masks.
        progress: Told (done, total, what is being done).

    Returns:
        How many.

    Raises:
        SamlitError: The folder has an audit already.
        ValueError: There are no shards, or no mask in them.
    """
    from samlit.shards.store import Store

    if (folder / AUDIT).exists():
        raise SamlitError(f"{folder} has an audit already: name another folder with --out, or remove it")
    store = Store(root)
    store.open(progress)
    rows = []
    for number, (which, at, mask) in enumerate(chosen(store, count, seed, progress), 1):
        rows.append(_written(store, which, at, mask, folder / "masks", number))
        progress(number, count, "drawing masks")
    if not rows:
        raise ValueError(f"{root} has no masks")
    atomic.write(folder / PAGE, page(rows))
    # Last: an audit that was stopped is begun anew.
    about = {"root": root, "seed": seed, "masks": rows}
    atomic.write(folder / AUDIT, json.dumps(about, indent=1) + "\n")
    return len(rows)


def chosen(
    store: Store, count: int, seed: int, progress: Callable[[int, int, str], None] = lambda done, total, what: None
) -> list[tuple[int, int, int]]:
    """Masks drawn by chance: shard, record and mask of each, in order."""
    chance = random.Random(seed)
    drawn: list[tuple[int, int, int]] = []
    seen = 0
    total = sum(row.records for row in store.rows)
    records = [(which, at) for which, row in enumerate(store.rows) for at in range(row.records)]
    for done, (which, at) in enumerate(records, 1):
        try:
            annotations = store.record(which, at).annotations
        except ValueError:  # damaged: `samlit shards check` tells which
            continue
        # A reservoir, for only who has read everything knows how many there are.
        for mask in range(len(annotations)):
            seen += 1
            if len(drawn) < count:
                drawn.append((which, at, mask))
            elif (place := chance.randrange(seen)) < count:
                drawn[place] = (which, at, mask)
        progress(done, total, "counting masks")
    return sorted(drawn)


def compare(folder: Path, corrected: Path) -> dict[str, Any]:
    """IoU of masks with what became of them; written to the audit's folder as JSON and as a plot.

    Args:
        folder: Of the audit.
        corrected: Folder of JSON files in SA-1B's layout, with the names of the audit's.

    Returns:
        How many `masks` were drawn and `judged`, how many were `removed`, the share `above` each IoU, the `mean`, a
        `histogram` of 20 parts, and each mask's IoU by its name.

    Raises:
        SamlitError: There is no audit, or nothing is corrected yet.
        ValueError: A file is damaged.
    """
    import numpy as np

    file = folder / AUDIT
    if not file.exists():
        raise SamlitError(f"{folder} has no audit: draw masks first, `samlit shards audit ROOT --out {folder}`")
    rows = json.loads(file.read_bytes())["masks"]
    found: dict[str, float] = {}
    removed = 0
    for row in rows:
        theirs = corrected / f"{row['name']}.json"
        if not theirs.exists():
            continue
        masks = list(_masks(theirs))
        removed += not masks
        found[row["name"]] = _iou(row, masks)
    if not found:
        raise SamlitError(f"{corrected} has none of the {len(rows)} masks of {folder}: there is nothing to compare")
    values = np.array(list(found.values()))
    told = {
        "masks": len(rows),
        "judged": len(found),
        "removed": removed,
        "above": {edge: float((values > float(edge)).mean()) for edge in PUBLISHED},
        "mean": float(values.mean()),
        "histogram": np.histogram(values, np.linspace(0, 1, 21))[0].tolist(),
        "iou": found,
    }
    atomic.write(folder / REPORT, json.dumps(told, indent=1) + "\n")
    _plot(values, told, folder / "report.png")
    return told


def tell(told: dict[str, Any], folder: Path) -> None:
    """Print what came out, beside the paper's numbers."""
    judged = f"{told['judged']} of {told['masks']} masks judged, {told['removed']} removed"
    terminal.show(f"{judged}, mean IoU {told['mean']:.3f}")
    for edge, published in PUBLISHED.items():
        terminal.show(f"IoU above {edge}: {told['above'][edge]:.1%} (SA-1B, as published: {published:.0%})")
    terminal.say(f"saved {REPORT} and report.png to {folder}")


def _written(store: Store, which: int, at: int, mask: int, folder: Path, number: int) -> dict[str, Any]:
    """A mask with its surroundings as a JPEG and a JSON; what there is to say of it."""
    from PIL import Image

    from samlit.drawing.colouring import coloured
    from samlit.masks import rle
    from samlit.shards.conversion import encode
    from samlit.shards.records import Annotation, Record

    record = store.record(which, at)
    one = record.annotations[mask]
    x0, y0, x1, y1 = rle.box(one.mask)
    more = max(round(max(x1 - x0, y1 - y0) * SURROUNDINGS), 32)
    left, top = max(x0 - more, 0), max(y0 - more, 0)
    right, bottom = min(x1 + more, record.size[1]), min(y1 + more, record.size[0])
    pixels = record.image.pixels()[top:bottom, left:right]
    part = rle.encode(rle.decode(one.mask)[top:bottom, left:right])
    x, y = one.point or ((x0 + x1) / 2, (y0 + y1) / 2)
    crop = Annotation(part, one.phrase, one.predicted_iou, one.stability_score, point=(x - left, y - top), id=number)
    jpeg = encode(Image.fromarray(pixels), 95)
    drawn = Record(number, (bottom - top, right - left), jpeg, (crop,), f"{record.key} mask {mask}")
    name = drawn.key
    with atomic.writing(folder / f"{name}.jpg") as stream:
        stream.write(jpeg)
    atomic.write(folder / f"{name}.json", drawn.text())
    shown = Image.fromarray(coloured(pixels, [part]))
    shown.thumbnail((480, 480))
    kept = io.BytesIO()
    shown.save(kept, "JPEG", quality=85)
    atomic.write(folder.parent / "shown" / f"{name}.jpg", kept.getvalue())
    return {
        "name": name,
        "shard": store.rows[which].name,
        "image": record.key,
        "mask": mask,
        "window": [left, top, right - left, bottom - top],
        "size": list(part.size),
        "counts": part.counts,
        "area": rle.area(part),
        "predicted_iou": one.predicted_iou,
        "stability_score": one.stability_score,
    }


def _masks(file: Path) -> Iterator[tuple[Any, Rle]]:
    """The masks of a corrected file, with their ids; those that are marked as deleted are none."""
    from samlit.masks.rle import Rle

    try:
        for row in json.loads(file.read_bytes())["annotations"]:
            if not row.get("deleted"):
                rows, columns = row["segmentation"]["size"]
                yield row.get("id"), Rle((int(rows), int(columns)), str(row["segmentation"]["counts"]))
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{file} is not in SA-1B's layout: {one_line(error)}") from error


def _iou(row: dict[str, Any], masks: Sequence[tuple[Any, Rle]]) -> float:
    """IoU of a drawn mask with its corrected one; 0 where there is none any more."""
    from samlit.masks import rle
    from samlit.masks.rle import Rle

    mine = Rle((row["size"][0], row["size"][1]), row["counts"])
    number = int(row["name"].removeprefix("sa_"))
    theirs = [mask for id_, mask in masks if id_ == number] or [mask for _, mask in masks]
    if not theirs:
        return 0.0
    if wrong := next((mask for mask in theirs if mask.size != mine.size), None):
        raise ValueError(f"{row['name']}: the corrected mask is of size {wrong.size}, the picture {mine.size}")
    shared = rle.intersections([mine], theirs)[0]
    areas = [rle.area(mask) for mask in theirs]
    return max(float(both / (rle.area(mine) + area - both)) for both, area in zip(shared, areas, strict=True))


def _plot(values: npt.NDArray[np.float64], told: dict[str, Any], file: Path) -> None:
    """A histogram of IoU."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((6, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.hist(values.tolist(), np.linspace(0, 1, 21).tolist(), color="#e8710a")
    for edge in PUBLISHED:
        axes.axvline(float(edge), color="#3c4043", lw=1, ls=":")
    shares = ", ".join(f"{told['above'][edge]:.0%} above {edge}" for edge in PUBLISHED)
    axes.set_title(f"{told['judged']} masks, {shares}", loc="left", fontsize=10)
    axes.set(xlabel="IoU of automatic and corrected mask", ylabel="masks", xlim=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)
    atomic.replacing(file, lambda path: figure.savefig(path, format="png", dpi=120))


STYLE = """
:root { color-scheme: light dark; --back: #fafafa; --card: #fff; --text: #202124; --dim: #5f6368; --line: #e3e5e8 }
@media (prefers-color-scheme: dark) {
  :root { --back: #17181a; --card: #212327; --text: #e8eaed; --dim: #9aa0a6; --line: #34373c }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--back); color: var(--text); font: 15px/1.5 system-ui, sans-serif }
header { max-width: 1600px; margin: 0 auto; padding: 40px 32px 8px }
h1 { margin: 0; font-size: 24px; font-weight: 600 }
p { margin: 4px 0 0; color: var(--dim) }
main { max-width: 1600px; margin: 0 auto; padding: 24px 32px 64px; display: grid; gap: 20px;
  grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)) }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden }
figure a { display: block; aspect-ratio: 4/3; background: var(--line) }
img { width: 100%; height: 100%; object-fit: contain; display: block }
figcaption { padding: 10px 14px 12px; font-size: 13px; color: var(--dim) }
figcaption b { display: block; color: var(--text); font-weight: 600 }
figcaption span { font-variant-numeric: tabular-nums }
"""


def page(rows: Sequence[dict[str, Any]]) -> str:
    """All drawn masks on a page that needs nothing from anywhere else.

    Args:
        rows: What there is to say of each.
    """
    figures = []
    for row in rows:
        name = html.escape(row["name"])
        title = html.escape(f"{row['image']}, mask {row['mask']}")
        numbers = (
            f"{row['area']:,} px · predicted IoU {row['predicted_iou']:.2f} · stability {row['stability_score']:.2f}"
        )
        figures.append(
            f'<figure><a href="masks/{name}.jpg"><img src="shown/{name}.jpg" alt="{title}" loading="lazy"></a>'
            f"<figcaption><b>{title}</b><span>{numbers}</span></figcaption></figure>"
        )
    plural = "mask" if len(rows) == 1 else "masks"
    head = f"<h1>Audit</h1><p>{len(rows)} {plural}, drawn by chance; each opens its picture without the mask.</p>"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Audit</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><header>{head}</header><main>\n"
        + "\n".join(figures)
        + "\n</main></body></html>\n"
    )
