"""Folders of images and masks, in every layout that people have, and one clear line for each mistake."""

from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import lightning.pytorch as pl
import numpy as np
import pytest
from PIL import Image

from samlit.datamodule import SamData
from samlit.faults import Damaged
from samlit.loading.images import Encoded
from samlit.masks import rle
from samlit.source import Source
from samlit_sources.folder import Folder
from tests import fitting

pytestmark = fitting.lightning_warnings

SIZE = (30, 40)


def labels(count: int = 3, dtype: type = np.uint8, step: int = 1) -> np.ndarray:
    """Bars of the values step, 2 step, ... on a background of 0."""
    drawn = np.zeros(SIZE, dtype)
    for number in range(1, count + 1):
        drawn[5:25, 8 * number : 8 * number + 5] = number * step
    return drawn


def expected(drawn: np.ndarray) -> list[rle.Rle]:
    return [rle.encode(drawn == value) for value in np.unique(drawn) if value]


def image(root: Path, name: str, size: tuple[int, int] = SIZE, **others: object) -> np.ndarray:
    pixels = np.random.default_rng(len(name)).integers(0, 256, (*size, 3), np.uint8)
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(root / name, **others)
    return pixels


def save(root: Path, name: str, array: np.ndarray) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(root / name)


def binaries(root: Path, pattern: str, drawn: np.ndarray) -> None:
    """A black and white file for each label, the tenth of which comes after the second."""
    for number, value in enumerate(np.unique(drawn)[1:], start=9):
        save(root, pattern.format(number), (drawn == value).astype(np.uint8) * 255)


# Layouts


@pytest.mark.parametrize("ending", ["png", "tif", "tiff", "bmp"])
def test_a_label_map_of_eight_bits(tmp_path: Path, ending: str) -> None:
    pixels = image(tmp_path, "images/a.png")
    save(tmp_path, f"masks/a.{ending}", labels(step=80))
    source = Folder(str(tmp_path))
    assert isinstance(source, Source)
    (sample,) = source
    assert sample.key == "a.png"
    assert sample.masks == tuple(expected(labels()))
    assert np.array_equal(sample.pixels(), pixels)
    assert sample.phrases == ()


@pytest.mark.parametrize(("dtype", "ending"), [(np.uint16, "png"), (np.uint16, "tif"), (np.int32, "tif")])
@pytest.mark.parametrize("step", [1, 256, 20_000])
def test_a_label_map_of_more_bits(tmp_path: Path, dtype: type, ending: str, step: int) -> None:
    image(tmp_path, "images/a.jpg")
    save(tmp_path, f"masks/a.{ending}", labels(3, dtype, step))
    assert Folder(str(tmp_path))[0].masks == tuple(expected(labels()))


def test_labels_as_opencv_and_imagej_write_them(tmp_path: Path) -> None:
    image(tmp_path, "images/a.jpg")
    (tmp_path / "masks").mkdir()
    assert cv2.imwrite(str(tmp_path / "masks/a.png"), labels(4, np.uint16, 300))
    assert Folder(str(tmp_path))[0].masks == tuple(expected(labels(4)))
    (tmp_path / "masks/a.png").unlink()
    Image.fromarray(labels(4).astype(np.float32) * 70_000).save(tmp_path / "masks/a.tif")
    assert Folder(str(tmp_path))[0].masks == tuple(expected(labels(4)))
    Image.fromarray(labels(4).astype(np.float32) * 0.5).save(tmp_path / "masks/a.tif")
    with pytest.raises(Damaged, match="no whole numbers"):
        Folder(str(tmp_path))[0]


def test_a_palette_is_its_numbers_and_borders_may_be_background(tmp_path: Path) -> None:
    image(tmp_path, "images/a.jpg")
    drawn = labels(3)
    drawn[4] = 255  # as PASCAL VOC marks borders
    picture = Image.fromarray(drawn).convert("P")
    picture.putdata(drawn.ravel().tolist())
    picture.putpalette([0, 0, 0] + [9, 9, 9] * 255)  # two numbers of one colour
    (tmp_path / "masks").mkdir()
    picture.save(tmp_path / "masks/a.png")
    assert len(Folder(str(tmp_path))[0].masks) == 4
    assert Folder(str(tmp_path), background=(0, 255))[0].masks == tuple(expected(labels()))
    assert len(Folder(str(tmp_path), background=(255,))[0].masks) == 4  # then 0 is a mask


def test_one_file_a_mask_in_a_folder_of_the_images_name(tmp_path: Path) -> None:
    image(tmp_path, "images/a.jpg")
    image(tmp_path, "images/b.jpg")
    binaries(tmp_path, "masks/a/{}.png", labels(3))
    binaries(tmp_path, "masks/b/nucleus {}.png", labels(2))
    one, two = Folder(str(tmp_path))
    assert one.masks == tuple(expected(labels(3)))  # 9, 10, 11: in the order of numbers
    assert two.masks == tuple(expected(labels(2)))


def test_one_file_a_mask_by_their_names(tmp_path: Path) -> None:
    for name in ("a.jpg", "a_1.jpg"):
        image(tmp_path, f"images/{name}")
    binaries(tmp_path, "masks/a_{}.png", labels(3))
    binaries(tmp_path, "masks/a_1_{}.png", labels(2))  # the longest name has it
    one, two = Folder(str(tmp_path))
    assert (one.key, two.key) == ("a.jpg", "a_1.jpg")
    assert one.masks == tuple(expected(labels(3)))
    assert two.masks == tuple(expected(labels(2)))


def test_pages_are_masks_or_label_maps(tmp_path: Path) -> None:
    image(tmp_path, "images/a.jpg")
    (tmp_path / "masks").mkdir()
    drawn = labels(3)
    pages = [Image.fromarray((drawn == value).astype(np.uint8) * 255) for value in (1, 2, 3)]
    pages[0].save(tmp_path / "masks/a.tif", save_all=True, append_images=pages[1:])
    assert Folder(str(tmp_path))[0].masks == tuple(expected(drawn))
    layers = [Image.fromarray(labels(2)), Image.fromarray(np.zeros(SIZE, np.uint8)), Image.fromarray(drawn)]
    layers[0].save(tmp_path / "masks/a.tif", save_all=True, append_images=layers[1:])
    assert Folder(str(tmp_path))[0].masks == (*expected(labels(2)), *expected(drawn))
    whole = rle.encode(labels(2) > 0), rle.encode(drawn > 0)
    assert Folder(str(tmp_path), binary=True)[0].masks == whole


def test_masks_beside_the_images(tmp_path: Path) -> None:
    image(tmp_path, "a.jpg")
    save(tmp_path, "a.png", labels(3))
    image(tmp_path, "b.png")
    binaries(tmp_path, "b_{}.png", labels(2))
    save(tmp_path, "b_9_1.png", (labels(1) > 0).astype(np.uint8))  # b_9 is a mask, so this one is b's
    image(tmp_path, "c.jpg")
    binaries(tmp_path, "c/{}.png", labels(1))
    samples = {sample.key: sample.masks for sample in Folder(str(tmp_path))}
    assert samples.keys() == {"a.jpg", "b.png", "c.jpg"}
    assert samples["a.jpg"] == tuple(expected(labels(3)))
    assert len(samples["b.png"]) == 3
    assert samples["c.jpg"] == tuple(expected(labels(1)))


def test_folders_inside_and_other_names(tmp_path: Path) -> None:
    for name in ("day 1/a.jpg", "day 2/a.jpg", ".hidden/b.jpg", "Thumbs.db.txt"):
        if name.endswith("jpg"):
            image(tmp_path, f"photos/{name}")
    (tmp_path / "photos" / "Thumbs.db").write_text("no image")
    image(tmp_path, "photos/._a.jpg")
    save(tmp_path, "labels/day 1/a.png", labels(1))
    binaries(tmp_path, "labels/day 2/a/{}.png", labels(2))
    (tmp_path / "labels" / "notes.json").write_text("{}")
    source = Folder(str(tmp_path), images="photos", masks=str(tmp_path / "labels"))
    assert [(sample.key, len(sample.masks)) for sample in source] == [("day 1/a.jpg", 1), ("day 2/a.jpg", 2)]
    save(tmp_path, "photos/masks/day 1/a.png", labels(3))
    save(tmp_path, "photos/masks/day 2/a.png", labels(3))
    inner = Folder(str(tmp_path / "photos"))  # the root has the images, and a folder of masks
    assert [len(sample.masks) for sample in inner] == [3, 3]


def test_names_by_patterns_as_cityscapes_has_them(tmp_path: Path) -> None:
    for city in ("aachen", "bonn"):
        image(tmp_path, f"leftImg8bit/val/{city}/{city}_0_leftImg8bit.png")
        save(tmp_path, f"gtFine/val/{city}/{city}_0_gtFine_instanceIds.png", labels(3, np.uint16, 1000))
        save(tmp_path, f"gtFine/val/{city}/{city}_0_gtFine_labelIds.png", labels(1))
    source = Folder(
        str(tmp_path),
        images="leftImg8bit/val",
        masks="gtFine/val",
        image_names="{}_leftImg8bit.png",
        mask_names="{}_gtFine_instanceIds.png",
        background=(0, 2000),
    )
    assert [sample.key for sample in source] == ["aachen/aachen_0_leftImg8bit.png", "bonn/bonn_0_leftImg8bit.png"]
    first, _, third = expected(labels(3))
    assert source[1].masks == (first, third)


def test_names_by_patterns_with_a_folder_for_each_image(tmp_path: Path) -> None:
    for name, count in (("a1", 3), ("b2", 2)):
        image(tmp_path, f"{name}/images/{name}.png")
        binaries(tmp_path, f"{name}/masks/{{}}.png", labels(count))
    save(tmp_path, "a1/masks/9.png", labels(1) * 128)  # what is hidden has half the value
    patterns = {"image_names": "{}/images/*.png", "mask_names": "{}/masks/*.png"}
    one, two = Folder(str(tmp_path), **patterns)
    assert (one.key, one.masks) == ("a1/images/a1.png", tuple(expected(labels(3))))
    assert two.masks == tuple(expected(labels(2)))
    assert [len(sample.masks) for sample in Folder(str(tmp_path), background=(0, 128), **patterns)] == [2, 2]


def test_names_by_patterns_in_several_parts_and_beside_each_other(tmp_path: Path) -> None:
    for camera in ("00", "01"):
        image(tmp_path, f"room/cam_{camera}_final/frame.1.color.jpg")
        image(tmp_path, f"room/cam_{camera}_final/frame.1.gamma.jpg")
        save(tmp_path, f"room/cam_{camera}_geometry/frame.1.instance.png", labels(1 + int(camera)))
    names = {"image_names": "{}_final/{}.color.jpg", "mask_names": "{}_geometry/{}.instance.png"}
    assert [len(sample.masks) for sample in Folder(str(tmp_path), **names)] == [1, 2]
    plants = tmp_path / "plants"
    image(plants, "plant1_rgb.png")
    save(plants, "plant1_label.png", labels(2))
    (only,) = Folder(str(plants), image_names="{}_rgb.png", mask_names="{}_label.png")
    assert (only.key, only.masks) == ("plant1_rgb.png", tuple(expected(labels(2))))
    image(plants, "plant1.jpg")
    (plants / "plant1_rgb.png").unlink()
    assert [sample.key for sample in Folder(str(plants), mask_names="{}_label.png")] == ["plant1.jpg"]


def test_patterns_that_fit_nothing_are_one_line(tmp_path: Path) -> None:
    def says(words: str, **patterns: str) -> None:
        with pytest.raises(ValueError, match=words) as caught:
            len(Folder(str(tmp_path), **patterns))
        assert "\n" not in str(caught.value)

    image(tmp_path, "images/a_rgb.jpg")
    save(tmp_path, "masks/b_label.png", labels())
    says(r"image_names: '\*\.jpg' has no \{\}", image_names="*.jpg")
    says(r"holds no images \(\{\}_photo\.jpg\)", image_names="{}_photo.jpg", mask_names="{}.png")
    says(r"b_label\.png has no image of that name", image_names="{}_rgb.jpg", mask_names="{}_label.png")
    (tmp_path / "masks/b_label.png").rename(tmp_path / "masks/a_label.png")
    says(r"holds no masks .*\{\}_mask\.png", image_names="{}_rgb.jpg", mask_names="{}_mask.png")
    image(tmp_path, "masks/a_label.jpg")
    says("lossy format", image_names="{}_rgb.jpg", mask_names="{}_label.jpg")
    assert len(Folder(str(tmp_path), image_names="{}_rgb.jpg", mask_names="{}_label.png")[0].masks) == 3


def test_colours_are_labels_only_where_that_is_said(tmp_path: Path) -> None:
    image(tmp_path, "images/a.jpg")
    drawn = labels(3)
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255], [255, 255, 255]], np.uint8)[drawn]
    save(tmp_path, "masks/a.png", colours)
    with pytest.raises(Damaged, match="colours: true") as caught:
        Folder(str(tmp_path))[0]
    assert "\n" not in str(caught.value)
    assert set(Folder(str(tmp_path), colours=True)[0].masks) == set(expected(drawn))
    save(tmp_path, "masks/a.png", np.repeat(drawn[..., None] * 50, 3, 2))  # grey, saved in three channels
    assert Folder(str(tmp_path))[0].masks == tuple(expected(drawn))
    alpha = np.dstack([np.repeat(drawn[..., None] * 50, 3, 2), np.full(SIZE, 7, np.uint8)])
    save(tmp_path, "masks/a.png", alpha)
    assert Folder(str(tmp_path))[0].masks == tuple(expected(drawn))


def test_empty_ones_and_small_ones(tmp_path: Path) -> None:
    for name in "abc":
        image(tmp_path, f"images/{name}.jpg")
    save(tmp_path, "masks/a.png", labels(2))
    save(tmp_path, "masks/b.png", np.zeros(SIZE, np.uint8))
    with pytest.raises(ValueError, match=r"c\.jpg has no masks .*empty: true"):
        len(Folder(str(tmp_path)))
    source = Folder(str(tmp_path), empty=True)
    assert [len(sample.masks) for sample in source] == [2, 0, 0]
    assert source[2].size == SIZE
    assert [len(sample.masks) for sample in Folder(str(tmp_path), empty=True, min_area=101)] == [0, 0, 0]


def test_a_jpeg_stays_encoded_and_a_turned_one_follows_its_masks(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image(tmp_path, "images/a.jpg", exif=exif)
    save(tmp_path, "masks/a.png", labels())
    sample = Folder(str(tmp_path))[0]
    assert isinstance(sample.image, Encoded)
    save(tmp_path, "masks/a.png", labels().T.copy())
    sample = Folder(str(tmp_path))[0]
    assert sample.size == sample.masks[0].size == SIZE[::-1]


def test_it_travels_to_workers_listed(tmp_path: Path) -> None:
    image(tmp_path, "images/a.jpg")
    save(tmp_path, "masks/a.png", labels())
    source = Folder(str(tmp_path))
    told: list[tuple[int, int, str]] = []
    source.prepare(lambda *step: told.append(step))
    assert [step[:2] for step in told] == [(0, 1), (1, 1)]
    image(tmp_path, "images/b.jpg")
    assert len(pickle.loads(pickle.dumps(source))) == 1
    with pytest.raises(IndexError):
        source[1]


# What is wrong


def test_mistakes_in_the_folder_are_one_line(tmp_path: Path) -> None:
    def says(words: str, kind: type[Exception] = ValueError, **others: str) -> None:
        with pytest.raises(kind, match=words) as caught:
            len(Folder(str(tmp_path / "own"), **others))
        assert "\n" not in str(caught.value)

    says("there is no folder .*own", FileNotFoundError)
    (tmp_path / "own" / "images").mkdir(parents=True)
    (tmp_path / "own" / "masks").mkdir()
    says("holds no images")
    image(tmp_path, "own/images/a.jpg")
    says(r"holds no masks of the images .*NAME\.png")
    says("there is no folder phots of images", FileNotFoundError, images="phots")
    save(tmp_path, "own/masks/b.png", labels())
    save(tmp_path, "own/masks/c.png", labels())
    says(r"b\.png and 1 others have no image of that name")
    for name in ("b", "c"):
        image(tmp_path, f"own/images/{name}.jpg")
    says(r"a\.jpg has no masks")
    image(tmp_path, "own/masks/a.jpg")
    says("lossy format")
    image(tmp_path, "own/images/b.png")
    says(r"b\.jpg and b\.png have one name")


def test_damaged_files_are_named_and_counted_by_cause(tmp_path: Path) -> None:
    image(tmp_path, "images/a.jpg")
    save(tmp_path, "masks/a.png", labels())
    source = Folder(str(tmp_path))
    source.prepare()

    def says(cause: str, words: str) -> None:
        with pytest.raises(Damaged, match=words) as caught:
            source[0]
        assert (caught.value.cause, caught.value.key) == (cause, "a.jpg")
        assert "\n" not in str(caught.value)

    mask = tmp_path / "masks/a.png"
    whole = mask.read_bytes()
    mask.write_bytes(whole[:-30])
    says("image", r"a\.png is damaged or cut off")
    mask.write_bytes(b"hello")
    says("image", r"a\.png is not an image")
    save(tmp_path, "masks/a.png", np.zeros((31, 40), np.uint8))
    says("size", "40 wide and 30 high")
    mask.unlink()
    says("image", "not there any more")
    binaries(tmp_path, "masks/a_{}.png", labels())
    save(tmp_path, "masks/a_10.png", np.zeros((31, 40), np.uint8))
    source = Folder(str(tmp_path))
    says("size", "30x40 and 31x40")


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    image(tmp_path, "images/a.jpg")
    (tmp_path / "masks").mkdir()
    Image.new("1", (12_000, 8_000)).save(tmp_path / "masks/a.png")
    with pytest.raises(Damaged) as caught:
        Folder(str(tmp_path))[0]
    assert caught.value.cause == "bomb"


# Training


def test_it_trains(tmp_path: Path) -> None:
    for number in range(4):
        image(tmp_path, f"images/{number}.jpg")
        save(tmp_path, f"masks/{number}.png", labels(number))
    source = Folder(str(tmp_path))
    model = fitting.module()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer: pl.Trainer = fitting.trainer(tmp_path, [])
    trainer.fit(model, SamData(source, source, 32, 2))
    assert trainer.global_step == 2
    assert any(not value.equal(before[name]) for name, value in model.state_dict().items())
