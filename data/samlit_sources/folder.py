"""A folder of images and a folder of masks that go by the same names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageSequence, UnidentifiedImageError

from samlit.faults import Damaged, blaming
from samlit.loading.images import MAX_PIXELS, encoded, read
from samlit.masks import rle
from samlit.masks.rle import Rle
from samlit.source import Sample, Source

__all__ = ["Folder"]

IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
HDF5 = (".h5", ".hdf5")
MASKS = (".bmp", ".png", ".tif", ".tiff", *HDF5)
LOSSY = (".jpeg", ".jpg", ".webp")


class _Pair(NamedTuple):
    """An image and the files with its masks, all relative to their folders.

    Attributes:
        key: The image's file.
        maps: Files in which every value is a mask: label maps, and TIFFs of one mask a page.
        parts: Files that are one mask each.
    """

    key: str
    maps: tuple[str, ...]
    parts: tuple[str, ...]


class Folder(Source):
    """Images in one folder, and masks of the same names in another or beside them.

    The masks of `images/NAME.jpg` are what is found of:

    - `masks/NAME.png` or `.tif`, a label map of 8, 16 or 32 bits or with a palette: every value but 0 is a mask; in a
      TIFF of several pages, every value of every page, so that pages may be one mask each, or label maps; or `.hdf5`
      with one array;
    - `masks/NAME/*.png`, one mask a file: what is not 0 is in it;
    - `masks/NAME_*.png`, the same.

    Both folders may have folders inside, of equal names. Other names are said by patterns, of paths in the two folders:
    `{}` stands for what an image and its masks have in common, folders too, and `*` for anything in a name. Cityscapes
    is `{}_leftImg8bit.png` with `{}_gtFine_instanceIds.png`, the Data Science Bowl `{}/images/*.png` with
    `{}/masks/*.png`. The folders are listed once, at `prepare` or the first use.

    Args:
        root: The folder with both.
        images: Folder of the images, in the root or anywhere; `images` in the root if not given, or else the root.
        masks: Folder of the masks; `masks` in the root if not given, or else that of the images.
        image_names: Pattern of the images' names; those that are not of it are no samples. Every image if not given.
        mask_names: Pattern of the masks' names, as above if not given. With a `*` each file is one mask, without one
            each is a label map; other files are left alone.
        stray: Whether masks whose image is not there are left alone; otherwise they are an error, as most often a name
            is misspelled.
        empty: Whether images without a file of masks are samples too; otherwise they are an error, for most often a
            name is misspelled. A label map of zeros is a sample without masks always.
        background: Values that are no mask; [0, 255] where 255 marks borders in label maps, as in PASCAL VOC.
        binary: Whether all of a label map, or page, that is no background is one mask.
        colours: Whether label maps may be in colours, each colour but black being a mask.
        min_area: Masks of fewer pixels are left out.

    Raises:
        ValueError: A pattern has no `{}`.
    """

    def __init__(
        self,
        root: str,
        images: str | None = None,
        masks: str | None = None,
        image_names: str | None = None,
        mask_names: str | None = None,
        stray: bool = False,
        empty: bool = False,
        background: tuple[int, ...] = (0,),
        binary: bool = False,
        colours: bool = False,
        min_area: int = 1,
    ) -> None:
        for option, pattern in (("image_names", image_names), ("mask_names", mask_names)):
            if pattern is not None and "{}" not in pattern:
                raise ValueError(f"{option}: {pattern!r} has no {{}} for what an image and its masks have in common")
        self.root, self.images, self.masks = root, images, masks
        self.image_names, self.mask_names, self.stray = image_names, mask_names, stray
        self.empty, self.background, self.binary, self.colours = empty, tuple(background), binary, colours
        self.min_area = max(min_area, 1)
        self._pairs: list[_Pair] | None = None
        self._folders = Path(), Path()

    def prepare(self, progress: Callable[[int, int, str], None] = lambda done, total, what: None) -> None:
        """List both folders and see which masks are whose.

        Raises:
            FileNotFoundError: A folder is not there.
            ValueError: There are no images, or some belong to no mask, or masks to no image.
        """
        if self._pairs is None:
            progress(0, 1, "listing images and masks")
            self._folders = self._found()
            self._pairs = self._paired(*self._folders)
            progress(1, 1, "listing images and masks")

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._opened())

    def __getitem__(self, index: int) -> Sample:
        """Image number `index`, by name, and its masks.

        Raises:
            Damaged: The image or a file of masks is, or they differ in size; one line that names it and says how.
            IndexError: There is no such number.
        """
        pairs = self._opened()
        if not 0 <= index < len(pairs):
            raise IndexError(f"{self.root}: no sample {index}, there are {len(pairs)}")
        pair = pairs[index]
        images, masks = self._folders
        with blaming(pair.key, self.root):
            found: list[Rle] = []
            for name in pair.maps:
                for page in _pages(masks / name):
                    found += self._split(page, name)
            for name in pair.parts:
                for page in _pages(masks / name):
                    found.append(rle.encode(page.any(-1) if page.ndim == 3 else ~np.isin(page, self.background)))
            sizes = {mask.size for mask in found}
            if len(sizes) > 1:
                told = " and ".join(f"{rows}x{columns}" for rows, columns in sorted(sizes))
                raise Damaged("size", f"its masks are of different sizes, {told} (rows x columns)")
            path = str(images / pair.key)
            image = encoded(path, sizes.pop()) if sizes else read(path)
        return Sample(pair.key, image, tuple(mask for mask in found if rle.area(mask) >= self.min_area))

    def _split(self, page: npt.NDArray[np.generic], name: str) -> list[Rle]:
        """The masks of a label map; where it has none, an empty one, which says the size and is then left out."""
        if page.ndim == 3:
            page = _labels(page, self.colours, name)
        if self.background != (0,):
            page = np.where(np.isin(page, self.background), 0, np.where(page == 0, -1, page.astype(np.int64)))
        if self.binary:
            page = page != 0
        return rle.encode_labels(page)[1] or [rle.encode(np.zeros(page.shape, bool))]

    def _opened(self) -> list[_Pair]:
        self.prepare()
        assert self._pairs is not None
        return self._pairs

    def _found(self) -> tuple[Path, Path]:
        """The folder of the images and that of the masks."""
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise FileNotFoundError(f"there is no folder {root}")
        images = _inner(root, self.images, "images", root)
        return images, _inner(root, self.masks, "masks", images)

    def _paired(self, images: Path, masks: Path) -> list[_Pair]:
        """All images with their masks, by name."""
        pictures = [name for name in _listed(images) if name.lower().endswith(IMAGES)]
        beside = images == masks
        others = _listed(masks)
        if masks.is_relative_to(images) and not beside:
            inside = f"{masks.relative_to(images).as_posix()}/"
            pictures = [name for name in pictures if not name.startswith(inside)]
        named = _common(self.image_names) if self.image_names else _stem
        found = _Found(images, masks)
        if self.mask_names:
            found.by_pattern(pictures, others, named, self.mask_names)
        else:
            found.by_usual_names(pictures, others, named)
        if not found.stems:
            raise ValueError(f"{images}: holds no images ({self.image_names or ', '.join(IMAGES)})")
        if found.lost and not self.stray:
            raise ValueError(f"{masks}: {_some(found.lost)} no image of that name in {images}; rename, or stray: true")
        if any(name.lower().endswith(HDF5) for of in (*found.maps.values(), *found.parts.values()) for name in of):
            _h5py(masks)
        pairs = [
            _Pair(name, tuple(found.maps.get(stem, ())), tuple(sorted(found.parts.get(stem, ()), key=_natural)))
            for stem, name in sorted(found.stems.items(), key=lambda item: item[1])
        ]
        bare = [pair.key for pair in pairs if not pair.maps and not pair.parts]
        if len(bare) == len(pairs):
            usual = self.mask_names or "NAME.png, NAME/*.png or NAME_*.png"
            raise ValueError(f"{masks}: holds no masks of the images in {images}: {usual}")
        if bare and not self.empty:
            raise ValueError(f"{images}: {_some(bare)} no masks in {masks}; empty: true keeps such images as samples")
        return pairs


class _Found:
    """Which images there are, and which files are masks of which.

    Attributes:
        stems: File of each image, by what it has in common with its masks.
        maps: Label maps, by the same.
        parts: Files of one mask each, by the same.
        lost: Files of masks that are of no image.
    """

    def __init__(self, images: Path, masks: Path) -> None:
        self.images, self.masks, self.beside = images, masks, images == masks
        self.stems: dict[str, str] = {}
        self.maps: dict[str, list[str]] = {}
        self.parts: dict[str, list[str]] = {}
        self.lost: list[str] = []

    def by_usual_names(self, pictures: list[str], others: list[str], named: Callable[[str], str]) -> None:
        """Masks go by the image's name: `NAME.png`, `NAME/*.png`, `NAME_*.png`."""
        for name in () if self.beside else pictures:
            self._add(named(name), name)
        # The shorter name is the picture's, and of a JPEG and a PNG of one name the JPEG is.
        for name in sorted(others, key=lambda name: (len(_stem(name)), name.lower().endswith(MASKS), name)):
            stem = _stem(name)
            owner = stem if stem in self.stems else _owner(stem, self.stems)
            if owner and (name.lower().endswith(MASKS) or (name.lower().endswith(LOSSY) and not self.beside)):
                self._take(name, owner, self.maps if owner == stem else self.parts)
            elif self.beside and name.lower().endswith(IMAGES):
                self._add(named(name), name)
            elif name.lower().endswith(MASKS):
                self.lost.append(name)

    def by_pattern(self, pictures: list[str], others: list[str], named: Callable[[str], str], pattern: str) -> None:
        """Masks go by a pattern; with a `*` there may be several of an image, each in a file."""
        common = _common(pattern)
        for name in pictures:
            if not (self.beside and common(name)):
                self._add(named(name), name)
        for name in others:
            if (owner := common(name)) in self.stems:
                self._take(name, owner, self.parts if "*" in pattern else self.maps)
            elif owner:
                self.lost.append(name)

    def _add(self, stem: str, name: str) -> None:
        """Note an image, if it has a name that an image should have."""
        if stem and (first := self.stems.setdefault(stem, name)) != name:
            raise ValueError(f"{self.images}: {first} and {name} have one name; rename one, or remove it")

    def _take(self, name: str, owner: str, kind: dict[str, list[str]]) -> None:
        """Note a file of masks."""
        if name.lower().endswith(LOSSY):
            raise ValueError(f"{self.masks / name}: a lossy format changes values and so holds no mask; save it as PNG")
        if name.lower().endswith(MASKS):
            kind.setdefault(owner, []).append(name)


def _inner(root: Path, given: str | None, usual: str, otherwise: Path) -> Path:
    """A folder that was named, in the root or anywhere, or the usual one in the root, or another.

    Raises:
        FileNotFoundError: What was named is not there.
    """
    if given is None:
        return root / usual if (root / usual).is_dir() else otherwise
    place = Path(given).expanduser()
    if found := next((folder for folder in (root / place, place) if folder.is_dir()), None):
        return found
    raise FileNotFoundError(f"there is no folder {given} of {usual}, neither in {root} nor elsewhere")


def _listed(folder: Path) -> list[str]:
    """The files in a folder and those inside it, relative to it, in order, without hidden ones."""
    names: list[str] = []
    for place, inside, files in os.walk(folder):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        names += [Path(place, name).relative_to(folder).as_posix() for name in files if not name.startswith(".")]
    return sorted(names)


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _natural(name: str) -> list[tuple[int, str]]:
    """For an order in which a_2 comes before a_10."""
    return [(int(word) if word.isdigit() else -1, word) for word in re.split(r"(\d+)", name)]


def _common(pattern: str) -> Callable[[str], str]:
    """What a file's name has in common with others', by a pattern; nothing if it is not of that pattern."""
    words = {"{}": "(.+?)", "*": "[^/]*"}
    expression = re.compile("".join(words.get(word, re.escape(word)) for word in re.split(r"(\{\}|\*)", pattern)))

    def common(name: str) -> str:
        found = expression.fullmatch(name)
        return "\n".join(found.groups()) if found else ""

    return common


def _owner(stem: str, stems: Mapping[str, str]) -> str:
    """The image that a file is a mask of: its folder's name, or the longest that its own begins with; or nobody's."""
    folder, _, name = stem.rpartition("/")
    if folder in stems:
        return folder
    before = f"{folder}/" if folder else ""
    while "_" in name:
        name = name.rpartition("_")[0]
        if before + name in stems:
            return before + name
    return ""


def _pages(path: Path) -> Iterator[npt.NDArray[np.generic]]:
    """The pages of a file of masks, each (H, W) of integers or, in colours, (H, W, 3) uint8.

    Raises:
        Damaged: It cannot be read, is too large, or holds no labels.
    """
    if path.suffix.lower() in HDF5:
        yield _array(path)
        return
    try:
        with Image.open(path) as image:
            for page in ImageSequence.Iterator(image):
                if page.width * page.height > MAX_PIXELS:
                    raise Damaged("bomb", f"{path.name} has more than {MAX_PIXELS} pixels")
                yield _values(page)
    except (FileNotFoundError, UnidentifiedImageError):
        raise Damaged("image", f"{path.name} is not an image that Pillow can read, or not there any more") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Damaged("bomb", f"{path.name} has more than {MAX_PIXELS} pixels") from None
    except Damaged:
        raise
    except ValueError as error:
        raise Damaged("image", f"{path.name} {error}") from None
    except (OSError, SyntaxError) as error:
        raise Damaged("image", f"{path.name} is damaged or cut off ({error})") from None


def _h5py(masks: Path) -> Any:
    """The library, which is asked for only where there is such a file."""
    try:
        import h5py
    except ImportError:
        raise ValueError(f"{masks}: holds masks in HDF5, which need h5py: pip install 'samlit[eval]'") from None
    return h5py


def _array(path: Path) -> npt.NDArray[np.generic]:
    """The one array of an HDF5 file, (H, W) of integers.

    Raises:
        Damaged: It cannot be read, or holds something else.
    """
    try:
        with _h5py(path).File(path) as file:
            held = list(file.values())
            if len(held) != 1 or getattr(held[0], "ndim", 0) != 2 or held[0].dtype.kind not in "iu":
                raise Damaged("image", f"{path.name} is not one array of two dimensions and whole numbers")
            if held[0].size > MAX_PIXELS:
                raise Damaged("bomb", f"{path.name} has more than {MAX_PIXELS} pixels")
            values: npt.NDArray[np.generic] = held[0][()]
    except FileNotFoundError:
        raise Damaged("image", f"{path.name} is not there any more") from None
    except OSError as error:
        raise Damaged("image", f"{path.name} is damaged or cut off ({error})") from None
    return values


def _values(page: Image.Image) -> npt.NDArray[np.generic]:
    """What a page stores: labels as they are, a palette's numbers rather than its colours."""
    if page.mode in ("LA", "PA", "RGBA", "RGBX"):
        page = page.convert({"LA": "L", "PA": "P"}.get(page.mode, "RGB"))
    values: npt.NDArray[np.generic] = np.array(page)
    if page.mode == "F":  # as ImageJ stores labels of 32 bits
        if not (np.isfinite(values).all() and (values == np.rint(values)).all()):
            raise ValueError("has values that are no whole numbers, so it is no label map")
        values = values.astype(np.int64)
    if page.mode not in ("1", "L", "P", "F", "RGB") and not page.mode.startswith("I"):
        raise ValueError(f"is of mode {page.mode}, which is no label map; save it as PNG of 8 or 16 bits")
    return values


def _labels(page: npt.NDArray[np.generic], colours: bool, name: str) -> npt.NDArray[np.generic]:
    """One number for each colour, black being 0; of grey its value."""
    if (page[..., :1] == page[..., 1:]).all():
        return page[..., 0]
    if not colours:
        raise Damaged(
            "other", f"{name} is in colours: colours: true makes each colour but black a mask, else save label numbers"
        )
    red, green, blue = np.moveaxis(page.astype(np.int32), -1, 0)
    number: npt.NDArray[np.generic] = red + 256 * green + 65536 * blue
    return number


def _some(names: list[str]) -> str:
    """The first of some files, how many there are beside it, and the verb for them."""
    return f"{names[0]} has" if len(names) == 1 else f"{names[0]} and {len(names) - 1} others have"
