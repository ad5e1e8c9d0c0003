"""Images that are still in their files: decoded no finer than they are wanted, refused as Pillow refuses them."""

import io
import random
import struct

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from samlit.faults import Damaged
from samlit.loading.images import Encoded


def picture(rows, columns, seed=0):
    """Smooth, with edges and a little noise."""
    y, x = np.mgrid[:rows, :columns]
    chance = np.random.default_rng(seed)
    image = np.stack([np.sin(x / 17 + k) * np.cos(y / (11 + k)) for k in range(3)], -1) * 80 + 120
    image[rows // 3 : rows // 2, columns // 4 : columns // 2] += 50
    return (image + chance.normal(0, 3, image.shape)).clip(0, 255).astype(np.uint8)


def encoded(image, ending="JPEG", mode="RGB", **options):
    stream = io.BytesIO()
    Image.fromarray(image).convert(mode).save(
        stream, ending, **({"quality": 90} if ending == "JPEG" else {}), **options
    )
    return Encoded(stream.getvalue(), image.shape[:2])


def pillow(data):
    """Its pixels, or None where it refuses."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError):
        return None


def test_without_a_wish_it_is_pillows_to_the_bit():
    for options in ({}, {"subsampling": 0}, {"progressive": True}, {"mode": "L"}, {"mode": "CMYK"}):
        found = encoded(picture(65, 90), **options)
        assert np.array_equal(found.pixels(), pillow(found.data))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 200),
    columns=st.integers(1, 200),
    share=st.floats(0.01, 1.5),
    subsampling=st.sampled_from([0, 2]),
)
def test_a_jpeg_is_as_large_as_it_must_be_and_no_larger(rows, columns, share, subsampling):
    at_least = max(int(rows * share), 1), max(int(columns * share), 1)
    pixels = encoded(picture(rows, columns), subsampling=subsampling).pixels(at_least)
    sizes = [(-(-rows // step), -(-columns // step)) for step in (1, 2, 4, 8)]
    enough = [size for size in sizes[1:] if size[0] >= at_least[0] and size[1] >= at_least[1]]
    assert pixels.shape == (*(enough[-1] if enough else sizes[0]), 3)


@pytest.mark.parametrize("step", [2, 4, 8])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}, {"mode": "L"}])
def test_a_pixel_of_a_smaller_one_is_the_mean_of_those_that_it_stands_for(step, options):
    found = encoded(picture(160, 240), **options)
    whole = found.pixels().astype(float)
    means = whole.reshape(160 // step, step, 240 // step, step, 3).mean((1, 3))
    pixels = found.pixels((160 // step, 240 // step))
    assert pixels.shape == means.shape
    assert np.abs(pixels - means).mean() < 1.5


@pytest.mark.parametrize(
    ("ending", "mode"), [("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "L"), ("PNG", "1")]
)
def test_what_the_fast_decoder_does_not_read_pillow_does(ending, mode):
    found = encoded(picture(64, 96), ending, mode)
    assert np.array_equal(found.pixels((16, 24)), found.pixels())
    assert found.pixels().shape == (64, 96, 3)


def test_an_orientation_is_not_applied():
    image = picture(64, 96)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, plain = encoded(image, exif=exif), encoded(image)
    for at_least in (None, (64, 96), (32, 48)):
        assert np.array_equal(turned.pixels(at_least), plain.pixels(at_least))


def test_damaged_files_are_those_that_pillow_refuses():
    """The fast decoder alone would fill up what is missing, or refuse what can be read."""
    whole = encoded(picture(90, 130)).data
    chance = random.Random(0)
    broken = [whole[:cut] for cut in [*range(0, len(whole), 150), *range(len(whole) - 12, len(whole))]]
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        broken.append(bytes(data))
    broken += [whole + b"more", whole[:-2] + b"\0\0\0" + whole[-2:]]
    refused = unsound = 0
    for data in broken:
        expected = pillow(data)
        if expected is not None and expected.shape != (90, 130, 3):
            continue
        if expected is None:
            with pytest.raises(Damaged, match=r"^the image [^\n]*$") as caught:
                Encoded(data, (90, 130)).pixels((45, 65))
            assert caught.value.cause in ("image", "size", "bomb")
            refused += 1
            continue
        pixels = Encoded(data, (90, 130)).pixels((45, 65))
        assert pixels.shape in {(90, 130, 3), (45, 65, 3)}
        unsound += pixels.shape == (90, 130, 3)
    assert refused > 30
    assert unsound > 30


def claiming(data, rows, columns):
    """The JPEG with another size in its header."""
    changed = bytearray(data)
    at = changed.index(b"\xff\xc0")
    changed[at + 5 : at + 9] = struct.pack(">HH", rows, columns)
    return bytes(changed)


def test_sizes_are_looked_at_before_anything_is_decoded(monkeypatch):
    monkeypatch.setattr(simplejpeg, "decode_jpeg", None)
    data = encoded(picture(64, 96)).data
    for rows, columns, stated, cause in (
        (64, 97, (64, 96), "size"),
        (60_000, 60_000, (60_000, 60_000), "bomb"),
        (9_460, 9_460, (9_460, 9_460), "bomb"),
    ):
        with pytest.raises(Damaged) as caught:
            Encoded(claiming(data, rows, columns), stated).pixels((8, 8))
        assert caught.value.cause == cause


def test_a_second_header_does_not_ask_for_more(monkeypatch):
    """Pillow reads the first one; whatever the fast decoder thinks of it, it must not allocate for another size."""
    data = encoded(picture(64, 96)).data
    monkeypatch.setattr(simplejpeg, "decode_jpeg_header", lambda data: (9_000, 9_000, "YCbCr", "420"))
    monkeypatch.setattr(simplejpeg, "decode_jpeg", None)
    assert np.array_equal(Encoded(data, (64, 96)).pixels((8, 8)), pillow(data))
