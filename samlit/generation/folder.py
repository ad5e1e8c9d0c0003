"""A folder of images, and no masks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from samlit.errors import did_you_mean
from samlit.faults import Damaged
from samlit.loading import images
from samlit.loading.images import Encoded
from samlit.source import Sample, Source

__all__ = ["Images"]

ENDINGS = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp"}
_ORIENTATION = 0x0112  # the EXIF tag; 1 is upright


class Images(Source):
    """All images in a folder and its folders, by name; files whose names begin with a dot are none.

    Args:
        root: The folder.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._names: list[str] = []

    def prepare(self, progress: Callable[[int, int, str], None] = lambda done, total, what: None) -> None:
        """List the images.

        Raises:
            FileNotFoundError: There is no such folder.
            ValueError: There is no image in it.
        """
        root = Path(self.root).expanduser()
        if not root.is_dir():
            near = did_you_mean(root.name, [p.name for p in root.parent.glob("*/")]) if root.parent.is_dir() else ""
            raise FileNotFoundError(f"{self.root} is no folder of images{near}")
        names = []
        for folder, folders, files in os.walk(root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            names += [
                str(Path(folder, name).relative_to(root))
                for name in files
                if Path(name).suffix.lower() in ENDINGS and not name.startswith(".")
            ]
        if not names:
            raise ValueError(f"{self.root} has no image in it ({', '.join(sorted(ENDINGS))})")
        self._names = sorted(names)

    @property
    def names(self) -> tuple[str, ...]:
        """Their paths in the folder, in order."""
        return tuple(self._names)

    def digest(self) -> str:
        """What tells this list of files from another one: names and sizes."""
        root = Path(self.root).expanduser()
        told = "\n".join(f"{name}\t{(root / name).stat().st_size}" for name in self._names)
        return hashlib.sha256(told.encode()).hexdigest()

    def __len__(self) -> int:
        """How many there are."""
        if not self._names:
            self.prepare()
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        """An image; a JPEG that shows the same to everybody stays in its file.

        Raises:
            Damaged: It cannot be read.
        """
        name = self._names[index]
        path = Path(self.root).expanduser() / name
        try:
            with Image.open(path, formats=("JPEG",)) as image:
                columns, rows = image.size
                plain = image.mode == "RGB" and image.getexif().get(_ORIENTATION, 1) in (0, 1)
                if plain and rows * columns <= images.MAX_PIXELS:
                    return Sample(name, Encoded(path.read_bytes(), (rows, columns)), ())
        except Exception:  # no JPEG, or none that is sound: `read` says what is wrong with it
            pass
        try:
            return Sample(name, images.read(str(path)), ())
        except Damaged as error:
            raise Damaged(error.cause, error.message.removeprefix(f"{path}: "), name) from error
