"""Records of SA-1B's size and roughness, made of chance, for the benchmarks that read them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from samlit.masks import rle
from samlit.shards.records import Annotation, Record
from samlit.shards.writing import write

SIZE = 1500, 2250
MASKS = 100

Floats = npt.NDArray[np.float32]


def shard(path: Path, count: int) -> Path:
    """A shard of so many records, unless it is there."""
    if not path.exists():
        write(path, (record(number) for number in range(count)))
    return path


def record(number: int) -> Record:
    """A picture of things in front of each other, and a mask of each; the same for the same number."""
    chance = np.random.default_rng(number)
    rows, columns = SIZE
    picture = texture(chance)
    masks = []
    for _ in range(MASKS):
        mask = np.zeros((rows, columns), np.uint8)
        cv2.fillPoly(mask, [outline(chance)], (1,))
        inside = mask.astype(bool)
        light = np.float32(chance.uniform(0.6, 1.4))
        masks.append(Annotation(rle.encode(inside)))
        picture[inside] = light * picture[inside] + chance.uniform(-60, 60, 3).astype(np.float32)
    picture += chance.normal(0, 2, picture.shape).astype(np.float32)  # a camera's noise
    stream = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
    return Record(number, SIZE, stream.getvalue(), tuple(masks))


def texture(chance: np.random.Generator) -> Floats:
    """(rows, columns, 3), as much of it in each octave as photographs have: the half at half the size."""
    rows, columns = SIZE
    picture = np.full((rows, columns, 3), 120, np.float32)
    for octave in range(1, 10):
        scale = 2**octave
        noise = chance.normal(0, 1, (rows // scale + 2, columns // scale + 2, 3)).astype(np.float32)
        noise = noise.mean(2, keepdims=True) + 0.3 * noise  # colours differ less than light does
        picture += 1.6 * octave * cv2.resize(noise, (columns, rows), interpolation=cv2.INTER_CUBIC)
    return picture


def outline(chance: np.random.Generator) -> npt.NDArray[np.int32]:
    """(1500, 1, 2) corners of a wobbly thing: many are small, few are large."""
    rows, columns = SIZE
    radius = np.sqrt(10 ** chance.uniform(-4, -0.5) * rows * columns / np.pi)
    angle = np.linspace(0, 2 * np.pi, 1500, endpoint=False)
    wobble = np.ones_like(angle)
    for k in range(1, 30):
        wobble += chance.normal(0, 0.2 / k) * np.cos(k * angle + chance.uniform(0, 6.3))
    xy = np.stack([np.cos(angle), np.sin(angle)], 1) * (radius * wobble)[:, None]
    return (xy + chance.uniform(0, 1, 2) * (columns, rows)).round().astype(np.int32)[:, None]


def read(path: Path) -> Iterator[tuple[int, bytes, bytes]]:
    """Number, JPEG and JSON of each record, read one after the other as from files."""
    with tarfile.open(path) as tar:
        members = {member.name: (member.offset_data, member.size) for member in tar}
    names = [name.removesuffix(".jpg") for name in members if name.endswith(".jpg")]
    for name in names:
        with path.open("rb") as stream:
            files = []
            for ending in ("jpg", "json"):
                at, size = members[f"{name}.{ending}"]
                stream.seek(at)
                files.append(stream.read(size))
        yield int(name.removeprefix("sa_")), files[0], files[1]


def small(folder: Path, count: int, each: int = 20) -> None:
    """Many shards of small records, to start up with."""
    folder.mkdir(parents=True, exist_ok=True)
    mask = rle.encode(np.ones((8, 8)))
    stream = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(stream, "JPEG")
    for number in range(count):
        path = folder / f"sa_{number:06d}.tar"
        if not path.exists():
            ids = range(number * each, (number + 1) * each)
            write(path, (Record(k, (8, 8), stream.getvalue(), (Annotation(mask),)) for k in ids))


def about(path: Path) -> str:
    """What is in a shard, one line."""
    images, texts = zip(*((len(jpeg), json.loads(text)) for _, jpeg, text in read(path)), strict=True)
    lengths = [len(row["segmentation"]["counts"]) for text in texts for row in text["annotations"]]
    areas = [row["area"] / (SIZE[0] * SIZE[1]) for text in texts for row in text["annotations"]]
    return (
        f"{len(images)} records of {SIZE[0]}x{SIZE[1]}, {np.mean(images) / 1e3:.0f} kB a JPEG, {MASKS} masks each: "
        f"strings of {np.mean(lengths):.0f} bytes, areas of {np.mean(areas):.1%} in the mean, {np.median(areas):.2%} "
        "in the median"
    )
