"""EPIC-KITCHENS VISOR (arXiv 2209.13064): what a cook sees, with the outlines of hands and of what they touch."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from samlit.faults import Damaged
from samlit.loading.images import Encoded
from samlit_sources import _documents as documents
from samlit_sources._outlines import Drawn, Outline, Outlines, ring

__all__ = ["Visor"]

DRAWN_ON = (1080, 1920)  # rows and columns of all frames with sparse annotations


class Visor(Outlines):
    """VISOR's sparse annotations and their frames, in the archives that they come in or unpacked.

    An outline within another one is a hole, as the authors draw them. The thing's name is the phrase.

    Args:
        root: The folder with `annotations` and `rgb_frames`: `GroundTruth-SparseAnnotations`.
        split: Which part.
        empty: Whether frames without a mask are samples too.
        min_area: Masks of fewer pixels are left out.
    """

    holes = True

    def __init__(
        self, root: str, split: Literal["train", "val"] = "val", empty: bool = True, min_area: int = 1
    ) -> None:
        super().__init__(root, empty, min_area)
        self.root, self.split = root, split

    def drawn(self) -> Iterator[Drawn]:
        """Every annotated frame, by its video's name and then as they follow each other."""
        root = Path(self.root).expanduser()
        annotations, frames = root / "annotations" / self.split, root / "rgb_frames" / self.split
        for folder in (annotations, frames):
            if not folder.is_dir():
                raise FileNotFoundError(f"there is no folder {folder}")
        files = sorted(annotations.glob("P*.json"))
        if not files:
            raise ValueError(f"{annotations}: holds no annotations (P01_107.json)")
        for file in files:
            where = _place(frames, file.stem)
            try:
                for entry in documents.load(file)["video_annotations"]:
                    name = entry["image"]["name"]
                    outlines = [_outline(thing) for thing in entry["annotations"]]
                    yield Drawn(name, f"{where}/{name}", [outline for outline in outlines if outline.rings])
            except (KeyError, TypeError, AttributeError):
                raise ValueError(f"{file}: is no annotation of VISOR's") from None
            except ValueError as error:
                raise ValueError(str(error) if str(file) in str(error) else f"{file}: {error}") from None

    def image(self, record: Drawn) -> tuple[npt.NDArray[np.uint8] | Encoded, tuple[int, int]]:
        """A frame, out of its archive where it is in one."""
        archive, _, name = record.path.rpartition("/")
        if not archive.endswith(".zip"):
            image, size = super().image(record)
            return image, _as_drawn(size, name)
        try:
            with zipfile.ZipFile(archive) as opened:
                (member,) = (one for one in opened.namelist() if one.rpartition("/")[2] == name)
                data = opened.read(member)
            with Image.open(io.BytesIO(data), formats=("JPEG",)) as header:
                size = header.height, header.width
        except ValueError:
            raise Damaged("image", f"{archive} does not hold {name}") from None
        except (OSError, zipfile.BadZipFile) as error:
            raise Damaged("image", f"{name} in {archive} cannot be read ({error})") from None
        return Encoded(data, size), _as_drawn(size, name)


def _as_drawn(size: tuple[int, int], name: str) -> tuple[int, int]:
    """The size of a frame, which has to be that of the outlines."""
    if size != DRAWN_ON:
        raise Damaged("size", f"{name} is {size[1]} wide and {size[0]} high, VISOR's outlines are for 1920 and 1080")
    return size


def _outline(thing: Any) -> Outline:
    """What is drawn of a thing; of what is only said to be there, nothing."""
    rings = [ring(points) for points in thing["segments"]]
    return Outline([one for one in rings if one], thing["name"])


def _place(frames: Path, video: str) -> Path:
    """Where a video's frames are: in folders as people unpack them, or in the archive."""
    person = video.partition("_")[0]
    for place in (frames / person / video, frames / video, frames / person / f"{video}.zip", frames / f"{video}.zip"):
        if place.exists():
            return place
    if next((frames / person).glob(f"{video}_frame_*"), None):
        return frames / person
    raise FileNotFoundError(f"{frames}: holds no frames of {video}, as {person}/{video}.zip")
