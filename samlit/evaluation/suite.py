"""The paper's 23 data sets of single points (section 7.1, its table 7): what they are, and which of them are on disk.

Splits, numbers and addresses are the paper's. From data sets of more than 15,000 masks it drew images at random until
these had about 10,000; which ones was never published, so as many are drawn here, the same ones every time, and an
evaluation says where images or masks are not as many as the paper's. Licences are as publishers, or those who pass the
data on, state them; where none could be read it is left out, and has to be looked up at the address.

How each is laid out when it is unpacked is as its publishers' code and documents say, or others' who read it: tried on
miniatures of them, not on the originals.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from samlit.errors import UsageError

__all__ = ["SUITE", "Found", "Listed", "Part", "differences", "on_disk"]


@dataclass(frozen=True)
class Part:
    """What of a data set a source reads, as it is published.

    Attributes:
        source: A source's name.
        path: Its first argument, in the data set's folder.
        settings: What else it is told; `images` and `masks` are in the data set's folder too.
        sign: A glob of what shows that it is there, where the path does not.
    """

    source: str
    path: str
    settings: Mapping[str, object] = field(default_factory=dict)
    sign: str = ""

    def spec(self, folder: Path) -> str:
        """`SOURCE:PATH`, as it is typed."""
        return f"{self.source}:{folder / self.path}"

    def arguments(self, folder: Path) -> list[str]:
        """`KEY=VALUE`, as they are typed."""
        values = {
            key: folder / str(value) if key in ("images", "masks") else value for key, value in self.settings.items()
        }
        return [f"{key}={_typed(value)}" for key, value in values.items()]

    @property
    def needs(self) -> list[str]:
        """Globs of what it reads, in the data set's folder."""
        named = [str(self.settings[key]) for key in ("images", "masks") if key in self.settings]
        return [place for place in (self.path, *named, self.sign) if place not in ("", ".")]

    def is_there(self, folder: Path) -> bool:
        """Whether all of that is on disk."""
        return all(any(folder.glob(place)) for place in self.needs)


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
        parts: How samlit reads it as it is published, one part after the other; nothing where it has to be brought into
            one of `LAYOUTS` first.
        within: Folders that it may be unpacked into, in its own.
        drawn: Whether the paper drew images from a larger part at random.
    """

    title: str
    domain: str
    split: str
    images: int
    masks: int
    address: str
    licence: str = ""
    parts: tuple[Part, ...] = ()
    within: tuple[str, ...] = ()
    drawn: bool = False

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
        specs: `SOURCE:PATH` of each part.
        settings: Of the sources, `NUMBER.KEY=VALUE`.
        images: How many are to be drawn from it; None for all.
    """

    name: str
    specs: tuple[str, ...]
    settings: tuple[str, ...]
    images: int | None


LAYOUTS = (("annotations.json", "coco:{}/annotations.json"), ("masks", "folder:{}"), ("*.tar", "sa1b:{}"))
"""What any data set may have been brought into: what is looked for in its folder, and how it is then read."""

NON_COMMERCIAL = "CC BY-NC 4.0: not for commercial use"
ACADEMIC = "for teaching and research; commercial use needs permission"

NOT_JUDGED = (*range(7), 9, 10, 14, 15, 16, 18, 29, 30)
GROUPS = (*range(24, 29), *range(31, 34))
"""Of Cityscapes: classes that its own evaluation ignores, and regions of several things that were not told apart."""

SUITE = {
    "ade20k": Listed(
        "ADE20K",
        "scenes, things and their parts",
        "val",
        302,
        10_128,
        "https://groups.csail.mit.edu/vision/datasets/ADE20K",
        parts=(
            Part(
                "folder",
                "images/ADE/validation",
                {"image_names": "{}.jpg", "mask_names": "{}/instance_*.png", "background": [0, 128]},
            ),
        ),
        within=("ADE20K_2021_17_01",),
        drawn=True,
    ),
    "bbbc038v1": Listed(
        "BBBC038v1",
        "nuclei under the microscope",
        "train",
        227,
        10_506,
        "https://bbbc.broadinstitute.org/BBBC038",
        "CC0",
        parts=(
            Part("folder", ".", {"image_names": "{}/images/*.png", "mask_names": "{}/masks/*.png"}, "*/masks/*.png"),
        ),
        within=("stage1_train",),
        drawn=True,
    ),
    "cityscapes": Listed(
        "Cityscapes",
        "driving, panoptic masks",
        "val",
        293,
        9_973,
        "https://www.cityscapes-dataset.com",
        parts=(
            Part(
                "folder",
                ".",
                {
                    "images": "leftImg8bit/val",
                    "masks": "gtFine/val",
                    "image_names": "{}_leftImg8bit.png",
                    "mask_names": "{}_gtFine_instanceIds.png",
                    "background": [*NOT_JUDGED, *GROUPS],
                },
            ),
        ),
        drawn=True,
    ),
    "doors": Listed(
        "DOORS",
        "boulders, synthetic",
        "DS1",
        10_000,
        10_000,
        "https://zenodo.org/record/7107409",
        parts=(Part("folder", ".", {"images": "DS1/DS/img", "masks": "DS1/DS/mask", "binary": True}),),
        within=(
            "Segmentation",
            "DOORS/Segmentation",
        ),
        drawn=True,
    ),
    "dram": Listed(
        "DRAM",
        "paintings, semantic masks",
        "test",
        718,
        1_179,
        "https://faculty.runi.ac.il/arik/site/artseg/Dram-Dataset.html",
        parts=(
            Part(
                "folder",
                ".",
                {"images": "test", "masks": "labels", "background": [0, 1, 2, 6, 7, 11, 14, 18, 19, 20, 255]},
            ),
        ),
        within=(
            "DRAM_processed",
            "DRAM_500",
        ),
    ),
    "egohos": Listed(
        "EgoHOS",
        "hands and what they hold",
        "train of Ego4D and THU-READ",
        2_940,
        9_961,
        "https://github.com/owenzlz/EgoHOS",
        parts=(Part("folder", ".", {"images": "train/image", "masks": "train/label"}),),
        within=(
            "data",
            "egohos_dataset",
        ),
        drawn=True,
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
        parts=(
            Part(
                "folder",
                ".",
                {
                    "image_names": "{}_final_preview/{}.tonemap.jpg",
                    "mask_names": "{}_geometry_hdf5/{}.semantic_instance.hdf5",
                    "background": [-1],
                    "stray": True,
                },
                "*/images/scene_cam_*_geometry_hdf5",
            ),
        ),
        drawn=True,
    ),
    "ibd": Listed(
        "IBD",
        "roofs from a drone",
        "train, 2D",
        467,
        11_953,
        "https://californiachen.github.io/datasets/InstanceBuilding",
    ),
    "ishape": Listed(
        "iShape",
        "things of irregular shape",
        "val",
        754,
        9_742,
        "https://ishape.github.io",
        parts=(
            Part(
                "folder",
                ".",
                {
                    "image_names": "{}/val/image/{}.*",
                    "mask_names": "{}/val/instance_map/{}.png",
                    "background": [*range(1000)],
                },
                "*/val/instance_map",
            ),
        ),
        within=("ishape_dataset",),
        drawn=True,
    ),
    "lvis": Listed(
        "LVIS v0.5",
        "scenes",
        "val",
        945,
        9_642,
        "https://www.lvisdataset.org",
        parts=(Part("coco", "lvis_v0.5_val.json", {"images": "val2017", "empty": False}),),
        drawn=True,
    ),
    "ndd20": Listed(
        "NDD20",
        "dolphins above and under water",
        "",
        4_402,
        6_100,
        "https://doi.org/10.25405/data.ncl.c.4982342",
        parts=(
            Part("via", "ABOVE_LABELS.json", {"images": "ABOVE"}),
            Part("via", "BELOW_LABELS.json", {"images": "BELOW"}),
        ),
        within=("NDD20",),
    ),
    "ndispark": Listed(
        "NDISPark",
        "parking lots by day and night",
        "train",
        111,
        2_577,
        "https://zenodo.org/record/6560823",
        "ODC-By 1.0",
        parts=(Part("coco", "train/train_coco_annotations.json", {"images": "train/imgs", "empty": False}),),
        within=("ndis_park",),
    ),
    "ovis": Listed(
        "OVIS",
        "videos of things that hide each other",
        "train",
        2_044,
        10_011,
        "http://songbai.site/ovis",
        parts=(Part("coco", "annotations_train.json", {"images": "train", "empty": False}),),
        drawn=True,
    ),
    "pidray": Listed(
        "PIDRay",
        "baggage under X-rays",
        "test, hard",
        3_733,
        8_892,
        "https://github.com/bywang2018/security-dataset",
        parts=(Part("coco", "annotations/xray_test_hard.json", {"images": "hard"}),),
        within=("pidray",),
    ),
    "plittersdorf": Listed(
        "Plittersdorf",
        "wild animals at a camera trap",
        "train, val and test",
        187,
        546,
        "https://timm.haucke.xyz/datasets/plittersdorf",
        parts=(
            *(
                Part("coco", f"{split}.json", {"images": "images", "empty": False})
                for split in ("train", "val", "test")
            ),
        ),
        within=("plittersdorf_instance_segmentation_coco",),
    ),
    "ppdls": Listed(
        "PPDLS",
        "leaves of plants",
        "",
        182,
        2_347,
        "https://www.plant-phenotyping.org/datasets-home",
        parts=(
            *(
                Part("folder", f"Plant/{plant}", {"image_names": "{}_rgb.png", "mask_names": "{}_label.png"})
                for plant in ("Ara2012", "Tobacco")
            ),
        ),
        within=("Plant_Phenotyping_Datasets",),
    ),
    "streets": Listed(
        "STREETS",
        "cars before traffic cameras",
        "",
        819,
        9_854,
        "https://databank.illinois.edu/datasets/IDB-3671567",
        parts=(Part("via", "annotations/vehicle-annotations.json", {"images": "images", "empty": False}),),
        within=("vehicleannotations",),
        drawn=True,
    ),
    "timberseg": Listed(
        "TimberSeg 1.0",
        "logs",
        "",
        220,
        2_487,
        "https://data.mendeley.com/datasets/y5npsm3gkj",
        parts=(Part("coco", "coco_annotation.json", {"images": "."}),),
        within=(
            "prescaled",
            "y5npsm3gkj-2/prescaled",
        ),
    ),
    "trashcan": Listed(
        "TrashCan",
        "litter under water",
        "train, instance version",
        5_936,
        9_540,
        "https://conservancy.umn.edu/handle/11299/214865",
        ACADEMIC,
        parts=(
            Part(
                "coco",
                "instance_version/instances_train_trashcan.json",
                {"images": "instance_version/train", "empty": False, "strict": False},
            ),
        ),
        within=("dataset",),
    ),
    "visor": Listed(
        "VISOR",
        "a cook's own view",
        "val",
        1_864,
        10_141,
        "https://epic-kitchens.github.io/VISOR",
        NON_COMMERCIAL,
        parts=(Part("visor", ".", {"split": "val", "empty": False}, "rgb_frames/val"),),
        within=(
            "GroundTruth-SparseAnnotations",
            "2v6cgv1x04ol22qp9rm9x2j6a7/GroundTruth-SparseAnnotations",
        ),
        drawn=True,
    ),
    "woodscape": Listed(
        "WoodScape",
        "driving, by fisheye",
        "set 1",
        107,
        10_266,
        "https://woodscape.valeo.com/home",
        parts=(Part("woodscape", ".", {"empty": False}, "instance_annotations"),),
        within=("WoodScape_ICCV19",),
        drawn=True,
    ),
    "zerowaste": Listed(
        "ZeroWaste-f",
        "waste to be sorted",
        "train",
        2_947,
        6_155,
        "http://ai.bu.edu/zerowaste",
        parts=(Part("coco", "train/labels.json", {"images": "train/data", "empty": False, "strict": False}),),
        within=(
            "splits_final_deblurred",
            "zerowaste-f-final/splits_final_deblurred",
        ),
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
        places = [folder / inner for inner in ("", *listed.within)] if listed.parts else []
        place = next((one for one in places if all(part.is_there(one) for part in listed.parts)), None)
        brought = [spec for pattern, spec in LAYOUTS if any(folder.glob(pattern))]
        drawn = listed.images if listed.drawn else None
        if place:
            settings = [
                f"{number}.{setting}"
                for number, part in enumerate(listed.parts, start=1)
                for setting in part.arguments(place)
            ]
            found.append(Found(name, tuple(part.spec(place) for part in listed.parts), tuple(settings), drawn))
        elif brought:
            found.append(Found(name, (brought[0].format(folder),), (), drawn))
    if not found:
        raise UsageError(
            f"--sets {root}: none of the paper's data sets is there; each belongs in a folder of its name, "
            "like bbbc038v1/annotations.json (`samlit list sets`)"
        )
    return found


def _typed(value: object) -> str:
    """A setting's value, as a person would type it."""
    return json.dumps(value) if isinstance(value, (bool, list)) else str(value)


def differences(name: str, images: int, masks: int) -> str:
    """How a data set on disk differs in size from the paper's part of it, in a few words; empty where it does not."""
    paper = SUITE[name]
    if (images, masks) == (paper.images, paper.masks):
        return ""
    return f"{images:,} images and {masks:,} masks, the paper's part has {paper.images:,} and {paper.masks:,}"
