"""Outlines drawn with the VGG Image Annotator (VIA 1 and 2), as NDD20 and STREETS were."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from samlit_sources import _documents as documents
from samlit_sources._outlines import Drawn, Outline, Outlines, ring

__all__ = ["Via"]

AROUND = 64  # points of a circle or an ellipse


class Via(Outlines):
    """Images and regions of a VIA JSON: its annotations, or a whole project.

    Polygons and polylines (which are closed), circles and ellipses are masks. Rectangles, points and lines of two
    points are not, and are left out. Images are as large as their files say.

    Args:
        annotations: The JSON file.
        images: Folder of the images; beside the JSON, or in `images/` beside it, if not given.
        phrase: The attribute of a region that says what it is; no phrases if not given.
        empty: Whether images without a mask are samples too.
        min_area: Masks of fewer pixels are left out.
    """

    def __init__(
        self,
        annotations: str,
        images: str | None = None,
        phrase: str | None = None,
        empty: bool = True,
        min_area: int = 1,
    ) -> None:
        super().__init__(annotations, empty, min_area)
        self.annotations, self.images, self.phrase = annotations, images, phrase

    def drawn(self) -> Iterator[Drawn]:
        """Every image of the file, in its order."""
        path = Path(self.annotations).expanduser()
        document = documents.load(path)
        document = document.get("_via_img_metadata", document)
        entries = list(document.values()) if isinstance(document, dict) else []
        if not entries or not all(isinstance(one, dict) and isinstance(one.get("filename"), str) for one in entries):
            raise ValueError(f"{path}: is no JSON of VIA's, in which each image has a filename and regions")
        named = [{"id": one["filename"], "file_name": one["filename"]} for one in entries]
        files = documents.locate(named, path, self.images)
        for entry, (name, file) in zip(entries, files, strict=True):
            regions = entry.get("regions") or []
            regions = list(regions.values()) if isinstance(regions, dict) else regions  # VIA 1 numbers them
            outlines = []
            for number, region in enumerate(regions):
                try:
                    points = _points(region["shape_attributes"])
                except (TypeError, KeyError):
                    raise ValueError(f"{path}: region {number} of {name} has no shape_attributes") from None
                except ValueError as error:
                    raise ValueError(f"{path}: region {number} of {name} {error}") from None
                if points:
                    said = (region.get("region_attributes") or {}).get(self.phrase) if self.phrase else None
                    outlines.append(Outline([points], said if isinstance(said, str) and said else None))
            yield Drawn(name, file, outlines)


def _points(shape: Mapping[str, Any]) -> list[float] | None:
    """The ring of a region; None where it is no mask."""
    if "all_points_x" in shape:
        xs, ys = shape["all_points_x"], shape.get("all_points_y")
        if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
            raise ValueError("has an outline of not as many x as y")
        return ring([*zip(xs, ys, strict=True)])
    if shape.get("name") not in ("circle", "ellipse"):
        return None
    try:
        x, y = float(shape["cx"]), float(shape["cy"])
        long, short = (float(shape["r"]),) * 2 if "r" in shape else (float(shape["rx"]), float(shape["ry"]))
        turned = float(shape.get("theta") or 0)
    except (KeyError, TypeError, ValueError):
        raise ValueError("is a circle or an ellipse without centre and radius") from None
    angles = [2 * math.pi * step / AROUND for step in range(AROUND)]
    across = [(long * math.cos(angle), short * math.sin(angle)) for angle in angles]
    cos, sin = math.cos(turned), math.sin(turned)
    return ring([(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in across])
