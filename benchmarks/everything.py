"""Masks of everything in a photograph after the encoder, beside SAM's own generator with the same weights.

python benchmarks/everything.py time --weights mobile_sam.pt --image photo.jpg
python benchmarks/everything.py time --weights mobile_sam.pt --image photo.jpg --size 1024x1024 --points 32 --rounds 3
python benchmarks/everything.py parity --weights mobile_sam.pt --image *.jpg --points 16
python benchmarks/everything.py memory --weights mobile_sam.pt --image photo.jpg

The photograph is resized to each size. Both are given the same embedding of it and the same weights, MobileSAM's: the
decoder of every size of SAM is the same. Both write COCO strings. `time` lets them take turns in one process and counts
the masks of one that are not among the other's, at an IoU of .99; `memory` measures each in a process of its own: the
most that is resident in it, above what is once the image is embedded. `parity` leaves photographs as they are, and has
each embed them itself, with 0 and 1 layers of windows.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from segment_anything import SamAutomaticMaskGenerator

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.model import Lap, lap, machine
from samlit.evaluation.answers import Answers
from samlit.loading import frames, images
from samlit.loop import drive
from samlit.masks import rle
from samlit.masks.rle import Rle
from samlit.source import Sample
from samlit.structures import Embedding, Scene
from samlit_tasks._automatic import Automatic
from samlit_tasks.everything import Everything
from tests import official

SIDE = 1024
Ways = dict[str, Callable[[], list[Rle]]]


def ways(weights: str, image: str, size: tuple[int, int], points: int) -> Ways:
    """Both ways to find everything, the image embedded already."""
    released, own = official.mobile(weights)
    pixels = np.asarray(Image.open(image).convert("RGB").resize(size[::-1], Image.Resampling.BICUBIC))
    sample = Sample("one", pixels, ())
    batch = frames.pack([frames.frame(sample, SIDE)])
    batch.samples = [sample]
    embedding = own.embed(batch.image, batch.sizes)
    generator = SamAutomaticMaskGenerator(released, points_per_side=points, output_mode="coco_rle")
    predictor = generator.predictor

    def set_image(*_: Any) -> None:
        predictor.features, predictor.is_image_set = embedding.image, True
        predictor.original_size, predictor.input_size = size, images.fit(*size, SIDE)

    predictor.set_image = set_image
    task = Everything(Automatic(points_per_side=points))

    def plain() -> list[Rle]:
        found = generator.generate(pixels)
        return [Rle(tuple(one["segmentation"]["size"]), one["segmentation"]["counts"]) for one in found]

    def mine() -> list[Rle]:
        fresh = Embedding(embedding.image, embedding.early)  # what is made of the embedding is part of the work
        result = drive(task, Scene(batch, own.prompt_types), Answers(own, batch, fresh))
        return [one.rle for one in result["found"][0]]

    return {"segment-anything": plain, "samlit": mine}


def unmatched(found: list[Rle], others: list[Rle]) -> int:
    """Masks of both that are not among the other's."""
    shared = rle.intersections(found, others)
    areas, sizes = (np.array([rle.area(mask) for mask in masks]) for masks in (found, others))
    alike = shared >= 0.99 * (areas[:, None] + sizes - shared)
    return int((~alike.any(1)).sum() + (~alike.any(0)).sum())


def measure_time(given: argparse.Namespace, console: Console) -> None:
    """Seconds, both in turns."""
    table = Table(
        title=f"{given.points} x {given.points} points, median of {given.rounds} rounds", title_justify="left"
    )
    for column in ("size", "segment-anything s", "samlit s", "ratio", "masks", "not in both"):
        table.add_column(column, justify="right")
    for size in given.size:
        both = ways(given.weights, given.image, size, given.points)
        found = {name: run() for name, run in both.items()}
        laps: dict[str, list[Lap]] = {name: [] for name in both}
        order, chance = list(both), random.Random(0)
        for _ in range(given.rounds):
            chance.shuffle(order)
            for name in order:
                laps[name].append(lap(both[name]))  # type: ignore[arg-type]
        plain, mine = (laps[name] for name in both)
        ratio = statistics.median(a.processor / b.processor for a, b in zip(plain, mine, strict=True))
        seconds = [f"{statistics.median(one.processor for one in some):.2f}" for some in (plain, mine)]
        apart = unmatched(*found.values())
        table.add_row("{} x {}".format(*size), *seconds, f"{ratio:.2f}", str(len(found["samlit"])), str(apart))
    console.print(table)


def measure_memory(given: argparse.Namespace, console: Console) -> None:
    """Most resident memory, each in a process of its own."""
    table = Table(title="MiB above what is resident once the image is embedded", title_justify="left")
    for column in ("size", "segment-anything", "samlit", "share"):
        table.add_column(column, justify="right")
    for size in given.size:
        taken = []
        for name in ("segment-anything", "samlit"):
            words = ["alone", "--weights", given.weights, "--image", given.image, "--points", given.points]
            words += ["--size", "{}x{}".format(*size), "--variant", name, "--threads", given.threads]
            command = [sys.executable, __file__, *map(str, words)]
            ended = subprocess.run(command, capture_output=True, text=True, check=True)
            taken.append(json.loads(ended.stdout)["bytes"] / 2**20)
        table.add_row("{} x {}".format(*size), *(f"{x:.0f}" for x in taken), f"{taken[1] / taken[0]:.2f}")
    console.print(table)


def measure_alone(given: argparse.Namespace, console: Console) -> None:
    """For `memory`: one way once, and what it took."""
    run = ways(given.weights, given.image, given.size[0], given.points)[given.variant]
    words = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    before = int(words["VmRSS"].split()[0]) * 1024
    Path("/proc/self/clear_refs").write_text("5")  # the most that was resident, from here on
    run()
    words = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    most = int(words["VmHWM"].split()[0]) * 1024
    print(json.dumps({"bytes": most - before}))


def measure_parity(given: argparse.Namespace, console: Console) -> None:
    """Masks that only one of both finds, and how far apart predicted IoUs are."""
    released, own = official.mobile(given.weights)
    table = Table(title=f"{given.points} x {given.points} points", title_justify="left")
    for column in ("photograph", "layers", "segment-anything", "samlit", "not in both", "apart in predicted IoU"):
        table.add_column(column, justify="right")
    alone = total = 0
    for image in track(given.image, "photographs", console=Console(stderr=True)):
        pixels = np.asarray(Image.open(image).convert("RGB"))
        sample = Sample(image, pixels, ())
        batch = frames.pack([frames.frame(sample, SIDE)])
        batch.samples = [sample]
        for layers in given.layers:
            keys = {"points_per_side": given.points, "crop_n_layers": layers}
            theirs = SamAutomaticMaskGenerator(released, output_mode="coco_rle", **keys).generate(pixels)
            task = Everything(Automatic(**keys))
            mine = drive(task, Scene(batch, own.prompt_types), Answers(own, batch))["found"][0]
            others = [Rle(tuple(one["segmentation"]["size"]), one["segmentation"]["counts"]) for one in theirs]
            only = unmatched([one.rle for one in mine], others)
            # Found in another order, and two masks of one point may be much alike: scores are compared as sorted lists.
            scores = sorted(one.predicted_iou for one in mine), sorted(one["predicted_iou"] for one in theirs)
            alike = len(mine) == len(theirs)
            apart = f"{max((abs(a - b) for a, b in zip(*scores, strict=True)), default=0):.1e}" if alike else "-"
            table.add_row(Path(image).name, str(layers), str(len(theirs)), str(len(mine)), str(only), apart)
            alone, total = alone + only, total + len(theirs)
    console.print(table)
    console.print(f"{total} masks of the released generator's, {alone} not in both", highlight=False)


def sizes(text: str) -> tuple[int, int]:
    rows, columns = text.split("x")
    return int(rows), int(columns)


PARTS = {"time": measure_time, "memory": measure_memory, "alone": measure_alone, "parity": measure_parity}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    for name, run in PARTS.items():
        part = parts.add_parser(name, help=run.__doc__)
        part.set_defaults(run=run)
        part.add_argument("--weights", required=True, help="mobile_sam.pt")
        if name == "parity":
            part.add_argument("--image", required=True, nargs="+", help="photographs")
            part.add_argument("--layers", nargs="+", type=int, default=[0, 1], help="of windows")
        else:
            part.add_argument("--image", required=True, help="a photograph")
            part.add_argument(
                "--size", nargs="+", type=sizes, default=[(1500, 2250), (1024, 1024)], help="ROWSxCOLUMNS"
            )
            part.add_argument("--rounds", type=int, default=3, help="how often each is timed")
        part.add_argument("--points", type=int, default=16, help="along a side of the grid")
        part.add_argument("--threads", type=int, default=1, help="of the processor")
        part.add_argument("--variant", default="samlit", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.set_grad_enabled(False)
    console = Console(width=None if sys.stdout.isatty() else 140)
    if given.part != "alone":
        console.print(machine(), highlight=False)
    given.run(given, console)


if __name__ == "__main__":
    main()
