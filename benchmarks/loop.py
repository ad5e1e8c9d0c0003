"""The data engine's loop without a person: annotate by clicks, retrain the decoder on the new masks, annotate again.

    python benchmarks/loop.py --annotations nuclei/train/annotations.json --weights mobile_sam --out loop

A simulated annotator clicks where a mask is wrong, farthest inside the larger error, until the mask has enough IoU with
the true one, and accepts it. A mask that the most clicks do not bring there is painted by hand, as people do
with a brush, and counts as that many clicks. Between two rounds the recipe `finetune` takes a model further on all
masks so far: accepted ones as the model drew them, painted ones as they truly are. Each round has images of its own, so
that no model has seen what it proposes for; how many clicks the first model takes on the same masks is told beside it,
for images differ in difficulty. For the same reason each model is also tried on images that no round has: those tell
whether the clicks become fewer from round to round.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from samlit import atomic
from samlit.masks import clicks, rle
from samlit.masks.rle import Rle
from samlit.predictor import Predictor
from samlit_sources.coco import Coco


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", required=True, help="COCO JSON with the true masks, its images beside it")
    parser.add_argument("--weights", default="mobile_sam")
    parser.add_argument("--out", required=True, help="a folder; what is there already is not done again")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=10, help="images a round")
    parser.add_argument("--held", type=int, default=10, help="images that no round has, to try each model on")
    parser.add_argument("--masks", type=int, default=8, help="most masks of an image")
    parser.add_argument("--iou", type=float, default=0.9, help="from which a mask is accepted")
    parser.add_argument("--clicks", type=int, default=20, help="after which a mask is painted by hand")
    parser.add_argument("--steps", type=int, default=80, help="of a training, for each round that it learns from")
    parser.add_argument("--rate", type=float, default=3e-5, help="learning rate of each training")
    told = "which model a training starts from: the last one, or each time the first"
    parser.add_argument("--start", choices=("last", "first"), default="last", help=told)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    out = Path(options.out)
    source = Coco(options.annotations)
    source.prepare()
    needed = options.rounds * options.images + options.held
    if needed > len(source):
        parser.error(
            f"{needed} images are needed, and {options.annotations} has {len(source)}: fewer --images or --held"
        )
    order = random.Random(0).sample(range(len(source)), len(source))
    held = order[len(order) - options.held :]
    weights = options.weights
    rounds: list[dict[str, Any]] = []
    tried = [kept(out / "held0.json", partial(annotated, source, held, weights, options))]
    tell(f"first model, on {len(held)} images of no round", tried[0], tried[0])
    for number in range(options.rounds):
        if number:  # what the last round brings nobody learns from: no round comes after it
            start = weights if options.start == "last" else options.weights
            weights = retrained(source, rounds, start, options)
            tried.append(kept(out / f"held{number}.json", partial(annotated, source, held, weights, options)))
            tell(f"model {number}, on the images of no round", tried[-1], tried[0])
            if number > 1:
                fewer, low, high = saved(tried[-1], tried[-2])
                print(f"that is {fewer:.2f} fewer than model {number - 1} takes, {low:.2f} to {high:.2f}", flush=True)
        images = order[number * options.images : (number + 1) * options.images]
        file = out / f"round{number + 1}.json"
        rounds.append(kept(file, partial(both, source, images, weights, options)))
        tell(f"round {number + 1}", rounds[-1]["now"], rounds[-1]["first"])
    summary = {
        "options": vars(options),
        "rounds": [summed(one["now"], one["first"]) for one in rounds],
        "held": [summed(one, tried[0]) for one in tried],
    }
    atomic.write(out / "loop.json", json.dumps(summary, indent=1) + "\n")
    plot(summary["rounds"], summary["held"], out / "loop.png")
    print(f"saved to {out / 'loop.json'} and {out / 'loop.png'}")


def kept(file: Path, work: Callable[[], Any]) -> Any:
    """What a file has, or what is worked out now and kept there."""
    if not file.exists():
        atomic.write(file, json.dumps(work()))
    return json.loads(file.read_bytes())


def both(source: Coco, images: list[int], weights: str, options: argparse.Namespace) -> dict[str, Any]:
    """The round's images with the model of now, and with the first."""
    began = time.monotonic()
    now = annotated(source, images, weights, options)
    first = now if weights == options.weights else annotated(source, images, options.weights, options)
    return {"now": now, "first": first, "seconds": round(time.monotonic() - began, 1)}


def annotated(source: Coco, images: list[int], weights: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What a person who clicks does with a model: a row for each mask."""
    predictor = Predictor.load(weights, options.device)
    rows = []
    for image in images:
        sample = source[image]
        predictor.set_image(sample.pixels())
        chosen = random.Random(image).sample(range(len(sample.masks)), min(options.masks, len(sample.masks)))
        for which in chosen:
            truth = rle.decode(sample.masks[which])
            if truth.any():
                given, iou, drawn = clicked(predictor, truth, options.iou, options.clicks)
                painted = iou < options.iou
                mask = rle.encode(truth if painted else drawn)
                row = {"image": image, "mask": which, "clicks": options.clicks if painted else given, "iou": iou}
                rows.append({**row, "painted": painted, "counts": mask.counts})
    return rows


def clicked(predictor: Predictor, truth: np.ndarray, enough: float, most: int) -> tuple[int, float, np.ndarray]:
    """Click until a mask is good enough: how many clicks, its IoU, and the mask."""
    points: list[tuple[float, float, int]] = []
    drawn = np.zeros_like(truth)
    low_res: Any = None
    iou = 0.0
    while len(points) < most:
        xy, label, wrong = clicks.centre(torch.from_numpy(truth)[None], torch.from_numpy(drawn)[None])
        if not wrong[0]:
            break
        x, y = xy[0].tolist()
        points.append((x, y, int(label[0])))
        prompts: dict[str, Any] = {"points": points}
        if low_res is not None:
            prompts["masks"] = [low_res]
        answer = predictor.predict(prompts)
        best = int(answer.iou.argmax())  # the person sees what the model is most confident of
        drawn = answer.masks[best].cpu().numpy()
        low_res = answer.prompt(best)
        iou = float((drawn & truth).sum() / (drawn | truth).sum())
        if iou >= enough:
            break
    return len(points), iou, drawn


def retrained(source: Coco, rounds: list[dict[str, Any]], weights: str, options: argparse.Namespace) -> str:
    """The weights after they learn from what has been accepted so far."""
    folder = Path(options.out) / f"model{len(rounds)}"
    last = folder / "last.ckpt"
    done = folder / "seconds"  # written last: a training that was stopped leaves last.ckpt too
    if done.exists():
        return str(last)
    masks = folder.parent / f"accepted{len(rounds)}.json"
    accepted = [row for one in rounds for row in one["now"]]
    atomic.write(masks, json.dumps(coco(source, accepted, Path(options.annotations))))
    steps = str(options.steps * len(rounds))  # as often over many images as over few
    words = ["fit", "--recipe", "finetune", "--model.weights", weights]
    words += ["--data.source.annotations", str(masks), "--data.validation.annotations", str(masks)]
    words += ["--data.source.images", str(Path(options.annotations).parent / "images")]
    words += ["--data.validation.images", str(Path(options.annotations).parent / "images")]
    words += ["--data.embeddings", str(folder.parent / "embeddings"), "--trainer.max_steps", steps]
    words += ["--trainer.limit_val_batches", "2", "--trainer.val_check_interval", steps]
    words += ["--trainer.num_sanity_val_steps", "0", "--trainer.default_root_dir", str(folder)]
    words += ["--trainer.accelerator", "cpu" if options.device == "cpu" else "gpu"]
    words += ["--model.optim.lr", str(options.rate)]
    words += ["--ckpt_path", "last"] if last.exists() else []
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "samlit", *words], check=True, env=os.environ)
    seconds = time.monotonic() - began
    atomic.write(done, f"{seconds:.0f}\n")
    print(f"learned from {len(accepted)} masks in {seconds:.0f} s", flush=True)
    return str(last)


def coco(source: Coco, rows: list[dict[str, Any]], file: Path) -> dict[str, Any]:
    """Accepted masks as a COCO file of the images that they are of."""
    known = {Path(one["file_name"]).stem: one for one in json.loads(file.read_bytes())["images"]}
    images, annotations = {}, []
    for row in rows:
        sample = source[row["image"]]
        image = known[Path(sample.key).stem]
        images[image["id"]] = image
        mask = Rle(sample.size, row["counts"])
        x0, y0, x1, y1 = rle.box(mask)
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": image["id"],
                "category_id": 1,
                "iscrowd": 0,
                "area": rle.area(mask),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "segmentation": {"size": list(mask.size), "counts": mask.counts},
            }
        )
    categories = [{"id": 1, "name": "object"}]
    return {"images": list(images.values()), "annotations": annotations, "categories": categories}


def summed(now: list[dict[str, Any]], first: list[dict[str, Any]]) -> dict[str, float]:
    """What became of some masks, in numbers: with a model, and with the first."""
    told: dict[str, float] = {"masks": len(now)}
    for name, rows in (("now", now), ("first", first)):
        told[f"{name}_painted"] = sum(row["painted"] for row in rows) / len(rows)
        told[f"{name}_clicks"] = sum(row["clicks"] for row in rows) / len(rows)
        told[f"{name}_first_click"] = sum(row["clicks"] == 1 and not row["painted"] for row in rows) / len(rows)
    told["saved"], told["saved_low"], told["saved_high"] = saved(now, first)
    return told


def saved(now: list[dict[str, Any]], first: list[dict[str, Any]]) -> tuple[float, float, float]:
    """Clicks a mask fewer than with the first model, and the middle 90 % of that over images drawn with replacement."""
    by_image: dict[int, list[int]] = {}
    for one, before in zip(now, first, strict=True):
        by_image.setdefault(one["image"], []).append(before["clicks"] - one["clicks"])
    sums = np.array([[sum(fewer), len(fewer)] for fewer in by_image.values()], float)
    drawn = np.random.default_rng(0).integers(0, len(sums), (4000, len(sums)))
    total, masks = sums[drawn].sum(1).T
    low, high = np.percentile(total / masks, (5, 95))
    return float(sums[:, 0].sum() / sums[:, 1].sum()), float(low), float(high)


def tell(what: str, now: list[dict[str, Any]], first: list[dict[str, Any]]) -> None:
    told = summed(now, first)
    line = (
        f"{what}: {told['masks']} masks, {told['now_clicks']:.2f} clicks per mask, "
        f"{told['now_first_click']:.0%} with the first click, {told['now_painted']:.0%} painted"
    )
    if now != first:
        line += (
            f"; the first model: {told['first_clicks']:.2f} clicks, {told['first_first_click']:.0%}, "
            f"{told['first_painted']:.0%}; saved {told['saved']:.2f}, 90 % of draws of images from "
            f"{told['saved_low']:.2f} to {told['saved_high']:.2f}"
        )
    print(line, flush=True)


def plot(rounds: list[dict[str, float]], held: list[dict[str, float]], file: Path) -> None:
    """Clicks per mask on the images of no round, after each training; and in each round beside the first model's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    seen = [0, *np.cumsum([one["masks"] for one in rounds])][: len(held)]
    values = [one["now_clicks"] for one in held]
    low = [one["saved"] - one["saved_low"] for one in held]
    high = [one["saved_high"] - one["saved"] for one in held]
    left.errorbar(seen, values, (high, low), fmt="o-", color="#e8710a", lw=2, capsize=3)
    for x, y in zip(seen, values, strict=True):
        left.annotate(f"{y:.2f}", (x, y), (8, 8), textcoords="offset points", color="#e8710a")
    left.set(xticks=seen, xlabel="masks learned from", ylabel="clicks per accepted mask")
    left.margins(x=0.12)
    left.set_title(f"the same {held[0]['masks']} masks of images in no round", fontsize=10)
    at = range(1, len(rounds) + 1)
    for name, label, colour in (("first", "first model", "#9aa0a6"), ("now", "retrained each round", "#e8710a")):
        values = [one[f"{name}_clicks"] for one in rounds]
        right.plot(at, values, "o-", color=colour, label=label, lw=2)
        for x, y in zip(at, values, strict=True):
            right.annotate(f"{y:.2f}", (x, y), (0, 8), textcoords="offset points", ha="center", color=colour)
    right.set(xticks=list(at), xlabel="round")
    right.margins(x=0.12)
    right.set_title("what each round annotated", fontsize=10)
    right.legend(frameon=False, loc="lower left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    top = max(*values, *(one["first_clicks"] for one in rounds), *(one["now_clicks"] for one in held))
    left.set_ylim(0, 1.2 * top)
    atomic.replacing(file, lambda path: figure.savefig(path, format="png", dpi=150))


if __name__ == "__main__":
    main()
