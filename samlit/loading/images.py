"""Image files as RGB pixels, whatever their mode, refused before they are decoded if they are too large."""

from __future__ import annotations

import io
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from samlit.faults import Damaged

__all__ = ["MAX_PIXELS", "Encoded", "encoded", "fit", "read", "rgb", "size_of"]

MAX_PIXELS = 89_478_485
"""Rows times columns of an image that is decoded: where Pillow, too, begins to suspect a decompression bomb."""

_ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 exchange rows and columns


@dataclass(frozen=True)
class Encoded:
    """An image that is still in its file: decoded when it is known how large it is wanted.

    Attributes:
        data: The file, JPEG or PNG.
        size: Rows and columns, as whoever wrote the masks states them; proved when it is decoded.
    """

    data: bytes
    size: tuple[int, int]

    def pixels(self, at_least: tuple[int, int] | None = None) -> npt.NDArray[np.uint8]:
        """Decode it, as it is stored: an EXIF orientation is not applied.

        Args:
            at_least: Rows and columns that will be made of it: the decoder leaves out finer detail, and returns all of
                the picture at 1, 1/2, 1/4 or 1/8 of its size, rounded up, whichever is the least that has that many.
                All of it, as Pillow decodes it, if not given.

        Returns:
            (rows, columns, 3) uint8, RGB.

        Raises:
            Damaged: It cannot be decoded, is too large, or is not of the size that is stated.
        """
        try:
            with Image.open(io.BytesIO(self.data), formats=("JPEG", "PNG")) as image:
                columns, rows = image.size
                if rows * columns > MAX_PIXELS:
                    raise Damaged("bomb", f"the image is {rows}x{columns}, more than {MAX_PIXELS} pixels")
                if (rows, columns) != self.size:
                    stated = f"its JSON says {self.size[0]}x{self.size[1]}"
                    raise Damaged("size", f"the image is {rows}x{columns}, {stated}")
                if at_least is not None and image.format == "JPEG" and image.mode in ("RGB", "L"):
                    with suppress(ValueError):  # Pillow says what is wrong, or decodes what is not quite sound
                        return self._scaled(at_least)
                return np.array(image.convert("RGB"))
        except UnidentifiedImageError:
            raise Damaged("image", "the image is neither JPEG nor PNG") from None
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise Damaged("bomb", f"the image cannot be decoded: {error}") from error
        except (OSError, SyntaxError) as error:
            raise Damaged("image", f"the image cannot be decoded: {error}") from error

    def _scaled(self, at_least: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """A JPEG at a half, a quarter or an eighth; other scales of the decoder's are slower than all of it."""
        rows, columns = self.size
        for step in (2, 4, 8):
            smaller = -(-self.size[0] // step), -(-self.size[1] // step)
            if smaller[0] < at_least[0] or smaller[1] < at_least[1]:
                break
            rows, columns = smaller
        if simplejpeg.decode_jpeg_header(self.data)[:2] != self.size:  # before it allocates as much as that says
            raise ValueError("two headers that differ")
        # Strict, for it would fill up what is missing of a file that is cut.
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
            self.data, "RGB", min_height=rows, min_width=columns, strict=True
        )
        return pixels


def read(path: str, size: tuple[int, int] | None = None) -> npt.NDArray[np.uint8]:
    """An image file as RGB: as a person sees it, or on the pixel grid that its annotations were drawn on.

    Without a size, an EXIF orientation is applied, as every viewer does. COCO's masks lie on the grid that
    is stored in the file, so with a size it is not, except where only the turned image has the size that the
    annotations state: then the tool that wrote them had turned it.

    Alpha is dropped, colours are as stored. Grey of 16 or 32 bits is scaled from its own least and greatest value to
    0..255, for microscopes and scanners use an unknown part of the range. Of several frames the first is read.

    Args:
        path: The file.
        size: Rows and columns that the annotations state, if there are any.

    Returns:
        (rows, columns, 3) uint8.

    Raises:
        Damaged: There is no such file, it is no image, is damaged, too large, or has another size.
    """
    try:
        with Image.open(path) as image:
            columns, rows = image.size
            small = rows * columns <= MAX_PIXELS  # before anything is decoded
            if small and size is None:
                return rgb(ImageOps.exif_transpose(image))
            if small and (rows, columns) == size:
                return rgb(image)
            if small and (columns, rows) == size and image.getexif().get(_ORIENTATION, 1) >= 5:
                return rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise Damaged("image", f"{path}: there is no such image") from None
    except IsADirectoryError:
        raise Damaged("image", f"{path}: is a folder, not an image") from None
    except UnidentifiedImageError:
        raise Damaged("image", f"{path}: is not an image that Pillow can read") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        small, rows, columns = False, 0, 0
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes Pillow's readers raise what they like, also SyntaxError
        raise Damaged("image", f"{path}: the image is damaged or cut off ({error})") from None
    if not small:
        raise Damaged("bomb", f"{path}: the image has more than {MAX_PIXELS} pixels; tile it or make it smaller")
    assert size is not None
    raise Damaged(
        "size",
        f"{path}: the image is {columns} wide and {rows} high, its annotations are for {size[1]} wide and {size[0]} "
        "high; correct the size that is stated, or use the image that was annotated",
    )


def size_of(path: str) -> tuple[int, int]:
    """Rows and columns of an image as a person sees it, by its header alone.

    Raises:
        Damaged: There is no such file, it is no image, or is damaged.
    """
    with suppress(Exception), Image.open(path) as image:
        turned = image.getexif().get(_ORIENTATION, 1) >= 5
        return image.size if turned else (image.height, image.width)
    pixels = read(path)  # which says what is wrong with it
    return pixels.shape[0], pixels.shape[1]


def encoded(path: str, size: tuple[int, int]) -> Encoded | npt.NDArray[np.uint8]:
    """What `read` gives of an image with annotations, still encoded where that changes nothing: a JPEG as it is stored.

    Args:
        path: The file.
        size: Rows and columns that the annotations state.

    Returns:
        The file, to be decoded when it is known how large it is wanted, or (rows, columns, 3) uint8.

    Raises:
        Damaged: As `read`; of a JPEG what lies behind its header is proved when it is decoded.
    """
    # Pillow raises for the header of any damaged or foreign file, and `read` says what is wrong with it.
    with suppress(Exception), Image.open(path, formats=("JPEG",)) as image:
        columns, rows = image.size
        if image.format == "JPEG" and (rows, columns) == size and rows * columns <= MAX_PIXELS:
            return Encoded(Path(path).read_bytes(), size)
    return read(path, size)


def rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Pixels of any mode of Pillow's, (rows, columns, 3) uint8."""
    if image.mode.startswith(("I", "F")):  # convert("RGB") would clip these at 255
        grey = np.asarray(image).astype(np.float64)
        low, high = grey.min(), grey.max()
        if not np.isfinite(high - low):
            raise ValueError("it has pixels that are no finite numbers")
        scaled = np.rint((grey - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
        return np.repeat(scaled[..., None], 3, 2)
    if image.mode in ("P", "PA"):  # straight to RGB, Pillow warns about palettes with transparency
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def fit(height: int, width: int, side: int) -> tuple[int, int]:
    """Rows and columns of an image resized so that its long side is `side`."""
    scale = side / max(height, width)
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)
