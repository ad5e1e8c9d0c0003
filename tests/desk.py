"""What a reader of the documents has at hand, made small: photographs, masks in every form, published weights."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from scipy.io import savemat

from samlit.export import command as export
from samlit.masks import rle
from samlit.model import Sam
from samlit.weights import catalogue
from samlit_decoders.mask import Mask
from samlit_encoders.tiny_vit import TinyVit
from samlit_encoders.vit import Vit
from samlit_prompts.boxes import Boxes
from samlit_prompts.masks import Masks
from samlit_prompts.points import Points
from tests.documents import ROOT

SIZE = (120, 160)
VIT = {"dim": 32, "depth": 2, "heads": 2, "global_blocks": [1], "window": 3, "channels": 32}
TINY_VIT = {
    "dims": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "heads": [1, 2, 2],
    "windows": [7, 7, 7],
    "channels": 32,
}
DECODER = {"heads": 8, "mlp_dim": 32, "iou_hidden": 16}
SIDE = 64
"""Of the frame of what stands for SAM; MobileSAM's is 1024, which no weight would tell."""

PLATES = '''
from pathlib import Path

import numpy as np
from PIL import Image

from samlit.masks import rle
from samlit.source import Sample, Source


class Plates(Source):
    """Photographs of which whatever is bright is one mask.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: str) -> None:
        self.files = sorted(Path(folder).glob("*.jpg"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        image = np.asarray(Image.open(self.files[index]))
        return Sample(self.files[index].stem, image, (rle.encode(image.mean(2) > 120),))
'''
"""`own.py`, a person's own source."""


def lay(folder: Path) -> None:
    """Everything that some document takes for granted, in one folder."""
    picture(0).resize((480, 640)).save(folder / "photo.jpg")
    for n, name in enumerate(("photo.png", "scene.png", "a.jpg", "b.jpg"), 1):
        picture(n).save(folder / name)
    for n in range(9):
        (folder / "photos").mkdir(exist_ok=True)
        picture(10 + n).save(folder / "photos" / f"{n}.jpg")
    # Files beside one another share a folder of images, as COCO's own do.
    for n, name in enumerate(("train", "val", "a", "b", "food", "coco", "pets", "plates", "own/train"), 1):
        coco(folder / f"{name}.json", 40 * n, 3)
    for n, name in enumerate(("nuclei/train", "nuclei/val", "kudzu/train", "kudzu/val"), 20):
        coco(folder / name / "annotations.json", 40 * n, 8)
    coco(folder / "pets" / "train" / "annotations.json", 2000, 6, ("dog", "cat"))
    coco(folder / "food" / "train" / "annotations.json", 2100, 6, ("piring", "roti tawar"))
    coco(folder / "data" / "suite" / "bbbc038v1" / "annotations.json", 2200, 2)
    detections(folder / "val.json", folder / "detections.json")
    detected = [{"image_id": n, "category_id": 1, "bbox": [20, 30, 60, 50], "score": 0.9} for n in range(9)]
    (folder / "detected.json").write_text(json.dumps(detected))
    shutil.copy(ROOT / "recipes" / "tiny.yaml", folder / "my.yaml")
    for name, images in (("panoptic", "images"), ("panoptic_train", "train"), ("panoptic_val", "val")):
        panoptic(folder / f"{name}.json", folder / images)
    label_maps(folder / "cells")
    bsds(folder / "BSDS500")
    table(folder)
    (folder / "own.py").write_text(PLATES)


def things(seed: int) -> list[np.ndarray]:
    """A disc and a bar, (2, rows, columns) bool."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    disc = (x - 40 - seed % 20) ** 2 + (y - 50) ** 2 <= 24**2
    bar = (x > 90) & (x < 140) & (y > 30 + seed % 10) & (y < 100)
    return [disc, bar]


def picture(seed: int) -> Image.Image:
    """Noise with a bright disc and a bright bar."""
    pixels = np.random.default_rng(seed).integers(0, 90, (*SIZE, 3))
    return Image.fromarray((pixels + 150 * np.any(things(seed), 0)[..., None]).astype(np.uint8))


def coco(file: Path, first: int, count: int, names: tuple[str, str] = ("disc", "bar")) -> None:
    """A COCO instance file, its images in `images` beside it."""
    (file.parent / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(first, first + count):
        picture(number).save(file.parent / "images" / f"{number}.jpg")
        images.append({"id": number, "file_name": f"{number}.jpg", "height": SIZE[0], "width": SIZE[1]})
        for category, mask in enumerate(map(rle.encode, things(number)), 1):
            x0, y0, x1, y1 = rle.box(mask)
            row: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": category,
                "iscrowd": 0,
            }
            row |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": rle.area(mask)}
            annotations.append(row | {"segmentation": {"size": list(mask.size), "counts": mask.counts}})
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def detections(truth: Path, file: Path) -> None:
    """What a detector without fault would say, as COCO results."""
    rows = json.loads(truth.read_text())["annotations"]
    kept = ("image_id", "category_id", "bbox")
    file.write_text(json.dumps([{name: row[name] for name in kept} | {"score": 0.9} for row in rows]))


def panoptic(file: Path, folder: Path) -> None:
    """COCO's panoptic JSON, its images in a folder, and its folder of PNG files."""
    images, annotations = [], []
    (file.parent / file.stem).mkdir()
    folder.mkdir(exist_ok=True)
    for number in range(3000, 3006):
        picture(number).save(folder / f"{number}.jpg")
        images.append({"id": number, "file_name": f"{number}.jpg", "height": SIZE[0], "width": SIZE[1]})
        disc, bar = things(number)
        drawn = np.full((*SIZE, 3), [3, 0, 0], np.uint8)
        drawn[disc], drawn[bar] = [1, 0, 0], [2, 0, 0]
        Image.fromarray(drawn).save(file.parent / file.stem / f"{number}.png")
        areas = {1: int(disc.sum()), 2: int(bar.sum()), 3: int((~(disc | bar)).sum())}
        rows = [{"id": n, "category_id": n, "iscrowd": 0, "area": area} for n, area in areas.items()]
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": rows})
    names = (("disc", 1), ("bar", 1), ("ground", 0))
    categories = [{"id": n, "name": name, "isthing": thing} for n, (name, thing) in enumerate(names, 1)]
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def label_maps(folder: Path) -> None:
    """A folder of images and one of label maps."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(3):
        picture(number).save(folder / "images" / f"{number}.jpg")
        labels = sum(mask * (k + 1) for k, mask in enumerate(things(number)))
        Image.fromarray(np.asarray(labels, np.uint8)).save(folder / "masks" / f"{number}.png")


def bsds(folder: Path) -> None:
    """BSDS500's folders, two annotators an image."""
    for split in ("train", "test"):
        for part in ("images", "groundTruth"):
            (folder / part / split).mkdir(parents=True)
        for number in range(2):
            picture(number).save(folder / "images" / split / f"{number}.jpg")
            drawn = np.empty((1, 2), object)
            for annotator in (0, 1):
                segments = (1 + things(number)[0] + 2 * (annotator * things(number)[1])).astype(np.uint16)
                edges = np.zeros(SIZE, np.uint8)
                edges[:, 1:] = segments[:, 1:] != segments[:, :-1]
                drawn[0, annotator] = {"Segmentation": segments, "Boundaries": edges}
            savemat(folder / "groundTruth" / split / f"{number}.mat", {"groundTruth": drawn})


def table(folder: Path) -> None:
    """Embeddings of a few names by a CLIP of ViT-B/32's width."""
    names = ["dog", "cat", "plate", "bread"]
    np.save(folder / "clip.npy", np.random.default_rng(0).normal(size=(len(names), 512)).astype(np.float16))
    (folder / "names.json").write_text(json.dumps(names))


def publish(cache: Path) -> None:
    """Files in the layouts of the published ones, under their names, where a download would have put them."""
    folder = cache / "weights"
    folder.mkdir(parents=True)
    decoder = functools.partial(Mask, **DECODER)
    torch.manual_seed(0)
    for name, side, encoder in (("sam_vit_b", SIDE, Vit(SIDE, **VIT)), ("mobile_sam", 1024, TinyVit(1024, **TINY_VIT))):
        net = Sam(encoder, [Points, Boxes, Masks], decoder)
        with torch.no_grad():  # so that masks are not empty
            for parameter in net.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        export.sam(net, side, folder / catalogue.PUBLISHED[name].file)
    for name in ("sam_vit_h",):
        shutil.copy(folder / catalogue.PUBLISHED["sam_vit_b"].file, folder / catalogue.PUBLISHED[name].file)
    encoder = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIDE, patch_size=16, embed_dim=VIT["dim"], depth=VIT["depth"], num_heads=2
    )
    state = {name: value for name, value in encoder.state_dict().items() if "head" not in name}
    torch.save({"model": state}, folder / catalogue.PUBLISHED["mae_vit_h"].file)
