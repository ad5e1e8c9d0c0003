"""How fast records of SA-1B become batches beside other loaders that read the same, measured in one run.

python benchmarks/data.py
python benchmarks/data.py --sides 1024 --rounds 9 --folder /somewhere/with/space
python benchmarks/data.py --quick

From the tar to tensors of one image and 64 masks, on one thread. The loaders take turns in a shuffled order; a ratio is
the median over the rounds of the ratio within one round, of processor time. What samlit yields is compared before
anything is timed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import records
import torch
import torchvision.transforms.functional as TF
import webdataset
from PIL import Image
from pycocotools import mask as coco
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from samlit.loading import frames, images
from samlit.loading.augment import Augment
from samlit.loading.loader import Loader
from samlit.shards.records import parse
from samlit.source import Sample
from samlit.structures import Batch
from samlit_sources.sa1b import Sa1b

try:
    import litdata
except ImportError:
    litdata = None

DRAWN = 64
REFERENCE = "as SAM 2's"
Pair = tuple[torch.Tensor, torch.Tensor]


def endless(path: Path) -> Iterator[tuple[int, bytes, bytes]]:
    while True:
        yield from records.read(path)


def sam2(path: Path, side: int) -> Iterator[Pair]:
    """All of the image, each mask decoded at full size, everything resized by torchvision."""
    for number, jpeg, text in endless(path):
        rows = random.Random(number).sample(json.loads(text)["annotations"], DRAWN)
        image = Image.open(io.BytesIO(jpeg)).convert("RGB")
        size = images.fit(image.height, image.width, side)
        masks = []
        for row in rows:
            mask = torch.from_numpy(coco.decode([row["segmentation"]])).permute(2, 0, 1)[None]
            masks.append(TF.resize(mask, size)[0, 0])
        yield TF.pil_to_tensor(TF.resize(image, size)), torch.stack(masks).bool()


def tuned(path: Path, side: int) -> Iterator[Pair]:
    """The same with what is fast: OpenCV decodes and resizes, masks by the nearest pixel."""
    for number, jpeg, text in endless(path):
        rows = random.Random(number).sample(json.loads(text)["annotations"], DRAWN)
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        size = images.fit(*image.shape[:2], side)
        image = cv2.cvtColor(cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR), cv2.COLOR_BGR2RGB)
        masks = np.zeros((DRAWN, *size), np.uint8)
        for mask, row in zip(masks, rows, strict=True):
            cv2.resize(coco.decode(row["segmentation"]), size[::-1], mask, interpolation=cv2.INTER_NEAREST)
        yield torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(masks).view(torch.bool)


def ours(number: int, jpeg: bytes, text: bytes, side: int) -> Pair:
    """A record decoded by samlit, whoever read it."""
    found = parse(number, jpeg, text)
    sample = Sample(found.key, found.image, tuple(a.mask for a in found.annotations))
    return both(frames.pack([Augment().frame(sample, side, DRAWN, np.random.default_rng(number), 0.9)]))


def both(batch: Batch) -> Pair:
    return batch.image, batch.masks


def plain(path: Path, side: int) -> Iterator[Pair]:
    """Webdataset reads the tar, samlit decodes."""
    while True:
        for found in webdataset.WebDataset(str(path), shardshuffle=False):
            yield ours(int(found["__key__"].removeprefix("sa_")), found["jpg"], found["json"], side)


def chunks(folder: Path, side: int) -> Iterator[Pair]:
    """Litdata reads its own chunks of the same files, samlit decodes."""
    while True:
        for number, jpeg, text in litdata.StreamingDataset(str(folder), shuffle=False):
            yield ours(int(number), bytes(jpeg), bytes(text), side)


def own(path: Path, side: int) -> Iterator[Pair]:
    """Samlit from the tar on."""
    loader = Loader(Sa1b(str(path)), side, 1, max_masks=DRAWN)
    while True:
        yield from map(both, loader)


def chunked(path: Path, folder: Path) -> Path:
    """The records of a shard as litdata stores them, unless they are there."""
    if not folder.exists():
        from litdata.streaming.writer import BinaryWriter

        writer = BinaryWriter(str(folder), chunk_bytes="64MB")
        for index, found in enumerate(records.read(path)):
            writer.add_item(index, found)
        writer.done()
        writer.merge()
    return folder


def compare(path: Path, side: int) -> str:
    """What samlit yields beside the whole mask's nearest pixels and Pillow's resizing of the whole image, one line."""
    noise, wrong, pixels = [], 0, 0
    for number, jpeg, text in records.read(path):
        found = parse(number, jpeg, text)
        sample = Sample(found.key, found.image, tuple(a.mask for a in found.annotations))
        framed = frames.frame(sample, side, exact=False)
        h, w = framed.size
        picture = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB").resize((w, h), Image.Resampling.BILINEAR))
        error = np.square(picture.astype(float) - framed.image[:h, :w]).mean()
        noise.append(10 * np.log10(255**2 / error))
        for annotation, mask in zip(found.annotations, framed.masks, strict=True):
            whole = coco.decode({"size": list(found.size), "counts": annotation.mask.counts})
            nearest = F.interpolate(torch.from_numpy(whole)[None, None], (h, w), mode="nearest-exact")[0, 0].numpy()
            wrong += int((nearest != mask[:h, :w]).sum()) + int(mask[h:].sum()) + int(mask[:, w:].sum())
            pixels += mask.size
    return (
        f"side {side}: {wrong} of {pixels / 1e6:.0f} M mask pixels differ from decode + nearest-exact; pictures have "
        f"{min(noise):.1f} dB at least, {statistics.median(noise):.1f} dB in the median, beside Pillow's of all pixels"
    )


def fed(rate: float, device_rate: float) -> str:
    """How many devices one core keeps busy: at the paper's own rate, and at another."""
    papers = 90_000 * 256 / (256 * 68 * 3600)  # images/s of each of 256 GPUs: 90,000 steps of 256 images in 68 hours
    return (
        f"one core of samlit at {rate:.1f} images/s feeds {rate / papers:.0f} devices at the paper's {papers:.3f} "
        f"images/s each, {rate / device_rate:.1f} at {device_rate:g} images/s"
    )


def race(
    side: int, loaders: dict[str, Iterator[Pair]], rounds: int, images: int, device_rate: float
) -> tuple[Table, str]:
    """Time loaders against each other, each with so many images a turn."""
    times: dict[str, list[float]] = {name: [] for name in loaders}
    for loader in loaders.values():
        next(loader)
    order, chance = list(loaders), random.Random(0)
    for _ in range(rounds):
        chance.shuffle(order)
        for name in order:
            count = images if name not in (REFERENCE, "OpenCV + pycocotools") else max(images // 4, 1)
            begin = time.process_time()
            for _ in range(count):
                next(loaders[name])
            times[name].append((time.process_time() - begin) / count)
    table = Table(title=f"{side} px, {DRAWN} masks an image, median of {rounds} rounds", title_justify="left")
    table.add_column("loader", no_wrap=True)
    peers = [REFERENCE, "OpenCV + pycocotools"]
    for column in ("ms an image", "images/s", "masks/s", *(f"x {peer}" for peer in peers)):
        table.add_column(column, justify="right")
    for name, found in times.items():
        middle = statistics.median(found)
        ratios = [statistics.median(a / b for a, b in zip(times[peer], found, strict=True)) for peer in peers]
        rates = f"{middle * 1e3:.1f}", f"{1 / middle:.3g}", f"{DRAWN / middle:.3g}"
        table.add_row(name, *rates, *(f"{ratio:.1f}" for ratio in ratios))
    return table, fed(1 / statistics.median(times["samlit"]), device_rate)


STARTING = """
import resource, sys, time
from samlit_sources.sa1b import Sa1b
def held():
    try:
        with open("/proc/self/statm") as stream:
            return int(stream.read().split()[1]) * resource.getpagesize() / 2**20
    except OSError:  # elsewhere the most that was ever held
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
before, begin = held(), time.perf_counter()
source = Sa1b(sys.argv[1])
source.prepare()
source[len(source) - 1]
print(time.perf_counter() - begin, held() - before)
"""


def starting(folder: Path, counts: list[int]) -> Table:
    """Seconds until the last record is read, and the memory that it took, in a process of its own."""
    table = Table(title="start-up of samlit, shards of 20 small records", title_justify="left")
    for column in ("shards", "first time s", "again s", "MiB"):
        table.add_column(column, justify="right")
    for count in counts:
        shards = folder / f"{count}"
        records.small(shards, count)
        laps: list[list[float]] = []
        for _ in range(2):
            command = [sys.executable, "-c", STARTING, str(shards)]
            environment = {**os.environ, "SAMLIT_CACHE": str(folder / "cache")}
            answer = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            laps.append([float(word) for word in answer.stdout.split()])
        table.add_row(f"{count:,}", f"{laps[0][0]:.2f}", f"{laps[1][0]:.2f}", f"{laps[1][1]:.1f}")
    return table


def run(given: argparse.Namespace, folder: Path, console: Console) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    count = 2 if given.quick else given.records
    path = records.shard(folder / f"sa_{count:06d}.tar", count)
    console.print(records.about(path), highlight=False)
    if litdata is None:
        console.print("litdata is not installed: left out")
    for side in given.sides:
        console.print(compare(path, side), highlight=False)
        loaders: dict[str, Iterator[Pair]] = {
            REFERENCE: sam2(path, side),
            "OpenCV + pycocotools": tuned(path, side),
            "webdataset, our decoders": plain(path, side),
        }
        if litdata is not None:
            loaders["litdata, our decoders"] = chunks(chunked(path, folder / f"chunks-{count}"), side)
        loaders["samlit"] = own(path, side)
        table, told = race(side, loaders, 1 if given.quick else given.rounds, 2 if given.quick else 8, given.rate)
        console.print(table)
        console.print(told, highlight=False)
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        console.print(starting(Path(fresh), [2, 20] if given.quick else [10, 1000]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=(1024, 256), help="of the frame in pixels")
    parser.add_argument("--rounds", type=int, default=7, help="how often each loader has its turn")
    parser.add_argument("--records", type=int, default=8, help="how many are made, some seconds each")
    told = "images/s that a device trains on, to say how many one core feeds"
    parser.add_argument("--rate", type=float, default=12.0, help=told)
    parser.add_argument("--folder", type=Path, help="where they are kept; by default nowhere")
    parser.add_argument("--quick", action="store_true", help="only see that all of it runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    console = Console(width=None if sys.stdout.isatty() else 140)
    if given.folder is not None:
        run(given, given.folder, console)
    else:
        with tempfile.TemporaryDirectory() as folder:
            run(given, Path(folder), console)


if __name__ == "__main__":
    main()
