"""The paper's 23 data sets of single points (section 7.1, its table 7): what they are, and which of them are on disk.

Splits, numbers and addresses are the paper's. From data sets of more than 15,000 masks it drew images at random until
these had about 10,000; which ones was never published, nor what was done about tiny masks, so an evaluation says where
the numbers on disk are others. Licences are as publishers, or those who pass the data on, state them; where none could
be read it is left out, and has to be looked up at the address.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from samlit.errors import UsageError

__all__ = ["SUITE", "Found", "Listed", "differences", "on_disk"]


@dataclass(frozen=True)
class Listed:
    """A data set of the paper's.

    Attributes:
        title: Its own name.
        domain: What it shows.
        split: Which part the paper took; empty where it is all of it.
        images: In the paper's part,
        masks: and masks in it.
        address: Where it is.
        licence: Under which terms it may be used; empty where they have to be looked up at the address.
        reads: How samlit reads it as it is published: `SOURCE:PATH`, the path being in the data set's folder; nothing
            where it has to be brought into one of `LAYOUTS` first.
        settings: Of the source, `KEY=VALUE`; values are paths in the data set's folder.
    """

    title: str
    domain: str
    split: str
    images: int
    masks: int
    address: str
    licence: str = ""
    reads: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """Name and domain, in a few words."""
        return f"{self.title}: {self.domain}"

    @property
    def facts(self) -> str:
        """Numbers, split, licence and address, in a line."""
        part = f"{self.split}, " if self.split else ""
        licence = self.licence or "licence: see there"
        return f"{part}{self.images:,} images, {self.masks:,} masks, {self.address}, {licence}"


@dataclass(frozen=True)
class Found:
    """A data set that is on disk.

    Attributes:
        name: In `SUITE`.
        spec: `SOURCE:PATH`.
        settings: Of the source, `KEY=VALUE`.
    """

    name: str
    spec: str
    settings: tuple[str, ...]


LAYOUTS = (("annotations.json", "coco:{}/annotations.json"), ("masks", "folder:{}"), ("*.tar", "sa1b:{}"))
"""What any data set may have been brought into: what is looked for in its folder, and how it is then read."""

NON_COMMERCIAL = "CC BY-NC 4.0: not for commercial use"
ACADEMIC = "for teaching and research; commercial use needs permission"

SUITE = {
    "ade20k": Listed(
        "ADE20K",
        "scenes, things and their parts",
        "val",
        302,
        10_128,
        "https://groups.csail.mit.edu/vision/datasets/ADE20K",
    ),
    "bbbc038v1": Listed(
        "BBBC038v1",
        "nuclei under the microscope",
        "train",
        227,
        10_506,
        "https://bbbc.broadinstitute.org/BBBC038",
        "CC0",
    ),
    "cityscapes": Listed(
        "Cityscapes", "driving, panoptic masks", "val", 293, 9_973, "https://www.cityscapes-dataset.com"
    ),
    "doors": Listed("DOORS", "boulders, synthetic", "DS1", 10_000, 10_000, "https://zenodo.org/record/7107409"),
    "dram": Listed(
        "DRAM",
        "paintings, semantic masks",
        "test",
        718,
        1_179,
        "https://faculty.runi.ac.il/arik/site/artseg/Dram-Dataset.html",
    ),
    "egohos": Listed(
        "EgoHOS",
        "hands and what they hold",
        "train of Ego4D and THU-READ",
        2_940,
        9_961,
        "https://github.com/owenzlz/EgoHOS",
    ),
    "gtea": Listed("GTEA", "hands at daily work", "train, hands", 652, 1_208, "https://cbs.ic.gatech.edu/fpv"),
    "hypersim": Listed(
        "Hypersim",
        "rooms, synthetic",
        "archinteriors volumes 1 to 55 without 20, 25, 40 and 49",
        338,
        9_445,
        "https://github.com/apple/ml-hypersim",
        "CC BY-SA 3.0",
    ),
    "ibd": Listed(
        "IBD",
        "roofs from a drone",
        "train, 2D",
        467,
        11_953,
        "https://californiachen.github.io/datasets/InstanceBuilding",
    ),
    "ishape": Listed("iShape", "things of irregular shape", "val", 754, 9_742, "https://ishape.github.io"),
    "lvis": Listed(
        "LVIS v0.5", "scenes", "val", 945, 9_642, "https://www.lvisdataset.org", reads=("coco:lvis_v0.5_val.json",)
    ),
    "ndd20": Listed(
        "NDD20", "dolphins above and under water", "", 4_402, 6_100, "https://doi.org/10.25405/data.ncl.c.4982342"
    ),
    "ndispark": Listed(
        "NDISPark",
        "parking lots by day and night",
        "train",
        111,
        2_577,
        "https://zenodo.org/record/6560823",
        "ODC-By 1.0",
    ),
    "ovis": Listed("OVIS", "videos of things that hide each other", "train", 2_044, 10_011, "http://songbai.site/ovis"),
    "pidray": Listed(
        "PIDRay",
        "baggage under X-rays",
        "test, hard",
        3_733,
        8_892,
        "https://github.com/bywang2018/security-dataset",
        reads=("coco:annotations/xray_test_hard.json",),
        settings=("images=hard",),
    ),
    "plittersdorf": Listed(
        "Plittersdorf",
        "wild animals at a camera trap",
        "train, val and test",
        187,
        546,
        "https://timm.haucke.xyz/datasets/plittersdorf",
    ),
    "ppdls": Listed("PPDLS", "leaves of plants", "", 182, 2_347, "https://www.plant-phenotyping.org/datasets-home"),
    "streets": Listed(
        "STREETS", "cars before traffic cameras", "", 819, 9_854, "https://databank.illinois.edu/datasets/IDB-3671567"
    ),
    "timberseg": Listed("TimberSeg 1.0", "logs", "", 220, 2_487, "https://data.mendeley.com/datasets/y5npsm3gkj"),
    "trashcan": Listed(
        "TrashCan",
        "litter under water",
        "train, instance version",
        5_936,
        9_540,
        "https://conservancy.umn.edu/handle/11299/214865",
        ACADEMIC,
        ("coco:instance_version/instances_train_trashcan.json",),
        ("images=instance_version/train",),
    ),
    "visor": Listed(
        "VISOR", "a cook's own view", "val", 1_864, 10_141, "https://epic-kitchens.github.io/VISOR", NON_COMMERCIAL
    ),
    "woodscape": Listed("WoodScape", "driving, by fisheye", "set 1", 107, 10_266, "https://woodscape.valeo.com/home"),
    "zerowaste": Listed(
        "ZeroWaste-f",
        "waste to be sorted",
        "train",
        2_947,
        6_155,
        "http://ai.bu.edu/zerowaste",
        reads=("coco:train/labels.json",),
        settings=("images=train/data",),
    ),
}


def on_disk(root: Path) -> list[Found]:
    """Those of the data sets that are in folders of their names, ready to be read.

    As they are published where samlit reads that, or in one of `LAYOUTS`.

    Raises:
        UsageError: There is no such folder, or none of them is in it.
    """
    if not root.is_dir():
        raise UsageError(f"--sets {root}: there is no such folder")
    found = []
    for name, listed in SUITE.items():
        folder = root / name
        published = [spec for spec in listed.reads if (folder / spec.partition(":")[2]).exists()]
        brought = [spec for pattern, spec in LAYOUTS if any(folder.glob(pattern))]
        if published:
            source, _, path = published[0].partition(":")
            settings = tuple(f"{key}={folder / value}" for key, _, value in (s.partition("=") for s in listed.settings))
            found.append(Found(name, f"{source}:{folder / path}", settings))
        elif brought:
            found.append(Found(name, brought[0].format(folder), ()))
    if not found:
        raise UsageError(
            f"--sets {root}: none of the paper's data sets is there; each belongs in a folder of its name, "
            "like bbbc038v1/annotations.json (`samlit list sets`)"
        )
    return found


def differences(name: str, images: int, masks: int) -> str:
    """How a data set on disk differs in size from the paper's part of it, in a few words; empty where it does not."""
    paper = SUITE[name]
    if (images, masks) == (paper.images, paper.masks):
        return ""
    return f"{images:,} images and {masks:,} masks, the paper's part has {paper.images:,} and {paper.masks:,}"
