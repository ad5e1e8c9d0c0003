"""COCO files: real ones equal the official decoder, damaged ones get one clear line each."""

import json
import os
import pickle
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from faster_coco_eval.core import mask as official
from PIL import Image

from samlit.faults import Damaged
from samlit.loading import images
from samlit.masks import rle
from samlit.source import Source
from samlit_sources import coco
from samlit_sources.coco import Coco

SHARED = Path(os.environ.get("SAMLIT_SHARED") or Path(__file__).resolve().parents[2] / "shared" / "data")

SQUARE = [10.0, 10.0, 20.0, 10.0, 20.0, 20.0, 10.0, 20.0]
TRIANGLE = [30.5, 5.25, 38.0, 5.0, 33.0, 15.75]
SIZE = (30, 40)


def shared(file):
    if not (SHARED / file).exists():
        pytest.skip(f"{SHARED / file} is not here: set SAMLIT_SHARED to the folder of real data")
    return SHARED / file


def drawing(**changes):
    """One image, one square: the smallest file that is right."""
    document = {
        "images": [{"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}],
        "annotations": [{"id": 7, "image_id": 1, "category_id": 3, "iscrowd": 0, "segmentation": [SQUARE]}],
        "categories": [{"id": 3, "name": "alarm_clock"}],
    }
    return document | changes


def annotation(**changes):
    return drawing(annotations=[drawing()["annotations"][0] | changes])


def picture(size=SIZE, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def write(folder, document, image="a.png", pixels=None):
    """The document and its image, and the JSON's path."""
    (folder / image).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture() if pixels is None else pixels).save(folder / image)
    file = folder / "annotations.json"
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    return str(file)


def one_line(caught, *words):
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


# What is right ---------------------------------------------------------------------------------------------------


def test_a_sample_is_image_masks_and_phrases(tmp_path):
    source = Coco(write(tmp_path, drawing()))
    assert isinstance(source, Source)
    assert len(source) == 1
    sample = source[0]
    assert sample.key == "a.png"
    assert sample.phrases == ("alarm clock",)
    assert sample.image.dtype == np.uint8
    assert sample.image.flags.writeable
    np.testing.assert_array_equal(sample.image, picture())
    expected = np.zeros(SIZE, bool)
    expected[10:20, 10:20] = True
    np.testing.assert_array_equal(rle.decode(sample.masks[0]), expected)


def test_nothing_is_opened_before_it_is_needed():
    source = Coco("no/such/file.json")  # the parser builds it
    with pytest.raises(FileNotFoundError):
        source.prepare()


def test_all_kinds_of_segmentation(tmp_path):
    mask = np.random.default_rng(1).random(SIZE) < 0.3
    compressed = rle.encode(mask)
    counts = np.diff(rle.runs(compressed), prepend=0).tolist()
    kinds = [
        [SQUARE],
        [SQUARE, TRIANGLE],
        {"size": SIZE, "counts": compressed.counts},
        {"size": SIZE, "counts": counts},
    ]
    entries = [{"id": i, "image_id": 1, "segmentation": kind} for i, kind in enumerate(kinds)]
    sample = Coco(write(tmp_path, drawing(annotations=entries)))[0]
    assert sample.phrases == ()  # no category_id
    for part, masked in zip(kinds[:2], sample.masks[:2], strict=True):
        theirs = official.decode(official.merge(official.frPyObjects(part, *SIZE)))
        np.testing.assert_array_equal(rle.decode(masked), theirs)
    assert sample.masks[2] == sample.masks[3] == compressed


def test_polygons_are_rasterised_as_the_official_api_does(tmp_path):
    chance = np.random.default_rng(2)
    parts = [[chance.uniform(-12, 52, 2 * n).tolist() for n in chance.integers(3, 12, k)] for k in (1, 2, 3) * 40]
    entries = [{"id": i, "image_id": 1, "segmentation": part} for i, part in enumerate(parts)]
    sample = Coco(write(tmp_path, drawing(annotations=entries)))[0]
    theirs = [official.merge(official.frPyObjects(part, *SIZE)) for part in parts]
    kept = [one["counts"].decode() for one in theirs if official.area(one)]
    assert len(kept) > 110
    assert [mask.counts for mask in sample.masks] == kept


def test_crowds_empty_images_and_small_masks_by_choice(tmp_path):
    images = [{"id": i, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]} for i in (1, 2)]
    outside = [100.0 - 60, 31, 45, 31, 45, 35]  # below the last row: no pixel
    entries = [
        {"id": 1, "image_id": 1, "segmentation": [SQUARE]},
        {"id": 2, "image_id": 1, "segmentation": [[1, 1, 4, 1, 4, 4, 1, 4]]},
        {"id": 3, "image_id": 1, "segmentation": [outside]},
        {"id": 4, "image_id": 1, "segmentation": {"size": SIZE, "counts": [0, 1200]}, "iscrowd": 1},
    ]
    file = write(tmp_path, drawing(images=images, annotations=entries))
    assert [len(sample.masks) for sample in Coco(file)] == [2, 0]
    assert [sample.key for sample in Coco(file)] == ["a.png#1", "a.png#2"]  # one file, two entries
    assert [len(sample.masks) for sample in Coco(file, crowd=True)] == [3, 0]
    assert [len(sample.masks) for sample in Coco(file, empty=False)] == [2]
    assert [rle.area(mask) for mask in Coco(file, min_area=10)[0].masks] == [100]
    with pytest.raises(ValueError, match="crowd: true keeps them") as caught:
        len(Coco(write(tmp_path, drawing(annotations=entries[3:]))))
    one_line(caught, "holds no masks", "1 crowd region")


@pytest.mark.parametrize(
    ("json_at", "image_at", "name"),
    [
        ("annotations.json", "a.png", "a.png"),
        ("annotations.json", "images/a.png", "a.png"),
        ("annotations.json", "images/deep/a.png", "deep/a.png"),
        ("annotations.json", "images/a.png", "images/a.png"),
        ("annotations.json", "images/a.png", "images\\a.png"),
        ("annotations/instances_val2017.json", "val2017/a.png", "a.png"),
        ("annotations/instances_val2017.json", "images/val2017/a.png", "a.png"),
        ("annotations/instances_default.json", "images/a.png", "a.png"),
    ],
)
def test_images_are_found_where_tools_put_them(tmp_path, json_at, image_at, name):
    document = drawing()
    document["images"][0]["file_name"] = name
    file = Path(write(tmp_path, document, image_at))
    (tmp_path / json_at).parent.mkdir(exist_ok=True)
    file = file.rename(tmp_path / json_at)
    np.testing.assert_array_equal(Coco(str(file))[0].image, picture())


def test_lvis_names_images_by_their_address(tmp_path):
    document = drawing()
    del document["images"][0]["file_name"]
    document["images"][0]["coco_url"] = "http://images.cocodataset.org/val2017/a.png"
    file = write(tmp_path, document, "coco/val2017/a.png")
    for folder in ("coco", "coco/val2017"):
        sample = Coco(file, images=str(tmp_path / folder))[0]
        assert sample.key == "val2017/a.png"
    with pytest.raises(FileNotFoundError):
        len(Coco(file))


def test_it_travels_to_workers_parsed(tmp_path):
    file = write(tmp_path, drawing())
    fresh = pickle.dumps(Coco(file))
    source = Coco(file)
    source.prepare()
    travelled = pickle.loads(pickle.dumps(source))
    Path(file).unlink()
    assert len(travelled) == 1
    assert travelled[0].masks == source[0].masks
    with pytest.raises(FileNotFoundError):
        len(pickle.loads(fresh))


def test_prepare_reads_once(tmp_path, monkeypatch):
    source = Coco(write(tmp_path, drawing()))
    told = []
    source.prepare(lambda *step: told.append(step))
    assert [step[:2] for step in told] == [(0, 1), (1, 1)]
    monkeypatch.setattr(coco.documents, "parse", None)
    source.prepare(lambda *step: told.append(step))
    assert len(told) == 2
    assert len(list(source)) == 1  # numbers beyond the last are an IndexError
    with pytest.raises(IndexError):
        source[-1]


# Images ------------------------------------------------------------------------------------------------------------


def test_every_mode_becomes_rgb(tmp_path):
    colour = picture()
    grey = colour[..., 0]
    alpha = Image.fromarray(np.dstack([colour, grey]))
    palette = Image.fromarray(colour).quantize(16)
    seen = np.array(palette.convert("RGB"))
    three = np.repeat(grey[..., None], 3, 2)
    palette.save(tmp_path / "palette_transparent.png", transparency=bytes(range(16)))
    cases = {
        "grey.png": (Image.fromarray(grey), three),
        "rgba.png": (alpha, colour),
        "grey_alpha.png": (Image.merge("LA", [Image.fromarray(grey)] * 2), three),
        "palette.png": (palette, seen),
        "bilevel.png": (Image.fromarray(grey > 99), np.where(three > 99, 255, 0)),
        "cmyk.tif": (Image.fromarray(255 - np.dstack([colour, 0 * grey + 255])).convert("CMYK"), None),
    }
    for name, (image, expected) in cases.items():
        image.save(tmp_path / name)
        pixels = images.read(str(tmp_path / name), SIZE)
        assert pixels.shape == (*SIZE, 3)
        assert pixels.dtype == np.uint8
        if expected is not None:
            np.testing.assert_array_equal(pixels, expected, err_msg=name)
    np.testing.assert_array_equal(images.read(str(tmp_path / "palette_transparent.png"), SIZE), seen)


def test_sixteen_bits_are_scaled_by_their_range(tmp_path):
    deep = np.linspace(100, 4095, SIZE[0] * SIZE[1]).reshape(SIZE).astype(np.uint16)  # 12 bits of 16, as cameras do
    assert cv2.imwrite(str(tmp_path / "deep.png"), deep)
    pixels = images.read(str(tmp_path / "deep.png"), SIZE)
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert len(np.unique(pixels)) == 256
    assert (np.diff(pixels[..., 0].astype(int).ravel()) >= 0).all()
    assert cv2.imwrite(str(tmp_path / "flat.png"), np.full(SIZE, 4000, np.uint16))
    assert not images.read(str(tmp_path / "flat.png"), SIZE).any()
    Image.fromarray(np.full(SIZE, np.nan, np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(ValueError, match="no finite numbers"):
        images.read(str(tmp_path / "nan.tif"), SIZE)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_follows_the_annotated_size(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture()).save(tmp_path / "a.png", exif=exif)
    stored = images.read(str(tmp_path / "a.png"), SIZE)
    np.testing.assert_array_equal(stored, picture())
    if orientation >= 5:
        turned = images.read(str(tmp_path / "a.png"), SIZE[::-1])
        assert turned.shape == (*SIZE[::-1], 3)
        expected = {
            5: stored.transpose(1, 0, 2),
            6: np.rot90(stored, -1),
            7: np.rot90(stored, 2).transpose(1, 0, 2),
            8: np.rot90(stored, 1),
        }
        np.testing.assert_array_equal(turned, expected[orientation])
    else:
        with pytest.raises(ValueError, match="30 high"):
            images.read(str(tmp_path / "a.png"), SIZE[::-1])


def test_damaged_images_are_named(tmp_path):
    source = Coco(write(tmp_path, drawing()))
    image = tmp_path / "a.png"
    source.prepare()
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged or cut off") as caught:
        source[0]
    one_line(caught, "a.png")
    image.write_bytes(b"\xff\xd8\xff no picture")
    with pytest.raises(ValueError, match="not an image"):
        source[0]
    image.write_bytes(b"")
    with pytest.raises(ValueError, match="not an image"):
        source[0]
    Image.fromarray(picture((40, 40))).save(image)
    with pytest.raises(ValueError, match="40 wide and 40 high") as caught:
        source[0]
    one_line(caught, "a.png", "40 wide and 30 high")
    image.unlink()
    with pytest.raises(ValueError, match="no such image"):
        source[0]


@pytest.mark.parametrize("sides", [(60_000, 60_000), (12_000, 8_000)])  # Pillow raises for the one, warns for the other
def test_decompression_bombs_are_refused_before_decoding(tmp_path, sides):
    image = tmp_path / "a.png"
    Image.fromarray(picture()).save(image)
    data = bytearray(image.read_bytes())
    header = b"IHDR" + sides[0].to_bytes(4, "big") + sides[1].to_bytes(4, "big") + bytes(data[24:29])
    data[12:33] = header + zlib.crc32(header).to_bytes(4, "big")
    image.write_bytes(data)
    with pytest.raises(ValueError, match="more than 89478485 pixels"):
        images.read(str(image), SIZE)


# What is wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("", ["is empty"]),
        ("hello", ["is not JSON"]),
        (json.dumps(drawing())[:-40], ["cut off", "at byte", str(len(json.dumps(drawing())) - 40)]),
        (json.dumps(drawing())[: json.dumps(drawing()).index("}") + 1], ["cut off", "at byte"]),
        (json.dumps(drawing()).replace("[{", "[{,", 1), ["is not JSON", "column"]),
        ("[" * 100_000, ["is not JSON"]),
        ("[]", ["JSON list"]),
        ({"annotations": []}, ["no list 'images'"]),
        ({"images": [{"id": 1}]}, ["no list 'annotations'"]),
        (drawing(images=[]), ["holds no images"]),
        (drawing(annotations=[]), ["holds no masks"]),
        (annotation(image_id=9), ["annotation 7", "image id 9"]),
        (annotation(image_id=[1]), ["annotation 7"]),
        (annotation(category_id=4), ["annotation 7", "category_id 4"]),
        (annotation(category_id=[3]), ["annotation 7", "category_id"]),
        (annotation(segmentation=[]), ["annotation 7", "no segmentation"]),
        (annotation(segmentation=None, segments_info=[]), ["annotation 7", "panoptic"]),
        (annotation(segmentation="x"), ["annotation 7", "neither polygons nor RLE"]),
        (annotation(segmentation=[SQUARE[:7]]), ["annotation 7", "polygon of 7 numbers"]),
        (annotation(segmentation=[SQUARE, SQUARE[:4]]), ["annotation 7", "polygon of 4 numbers"]),
        (annotation(segmentation=SQUARE), ["annotation 7", "each part is one list"]),
        (annotation(segmentation=[[*SQUARE[:7], float("nan")]]), ["annotation 7", "NaN"]),
        (annotation(area=float("inf")), ["annotation 7", "Infinity"]),
        (json.dumps(annotation()).replace("20.0", "1e999"), ["annotation 7", "far outside"]),
        (annotation(segmentation=[[*SQUARE[:7], None]]), ["annotation 7", "numbers only"]),
        (annotation(segmentation=[["a"] * 6]), ["annotation 7", "numbers only"]),
        (annotation(segmentation=[[*SQUARE[:7], 1e9]]), ["annotation 7", "far outside"]),
        (annotation(segmentation={"size": [40, 30], "counts": "0"}), ["annotation 7", "[40, 30]", "[30, 40]"]),
        (annotation(segmentation={"size": [100_000] * 2, "counts": "0"}), ["annotation 7", "size"]),
        (annotation(segmentation={"counts": "0"}), ["annotation 7", "size"]),
        (annotation(segmentation={"size": SIZE}), ["annotation 7", "without counts"]),
        (drawing(annotations=[3]), ["entry 0 of 'annotations'"]),
        (drawing(images=[{"file_name": "a.png"}]), ["entry 0 of 'images' has no id"]),
        (drawing(images=[{"id": 1, "file_name": "a.png"}]), ["image 1", "height and width"]),
        (drawing(images=[{"id": 1, "file_name": "a.png", "height": 1e5, "width": 1e5}]), ["image 1", "100000x100000"]),
        (drawing(images=[{"id": 1, "file_name": "a.png", "height": 1, "width": 66_000}]), ["image 1", "65536 a side"]),
        (drawing(images=drawing()["images"] * 2), ["image id 1", "twice"]),
        (drawing(images=[{"id": 1, "height": 30, "width": 40}]), ["image 1", "neither file_name nor coco_url"]),
    ],
)
def test_what_is_wrong_with_a_file_is_said_before_training(tmp_path, document, words):
    source = Coco(write(tmp_path, document))
    with pytest.raises(ValueError, match=r"annotations\.json: ") as caught:
        source.prepare()
    one_line(caught, *words)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ("", "annotation 7"),
        ("0", "sum"),
        ("é", "character"),
        ("oooooooooooooooo", "number"),
        ([], "sum"),
        ([1200, 5], "sum"),
        ([600, -1, 601], "negative"),
        ([600.5, 599.5], "integers"),
        ([10**30], "longer"),
    ],
)
def test_bad_runs_are_named_when_they_are_read(tmp_path, counts, words):
    source = Coco(write(tmp_path, annotation(segmentation={"size": SIZE, "counts": counts})))
    source.prepare()
    with pytest.raises(ValueError, match="annotation 7") as caught:
        source[0]
    one_line(caught, words, "a.png")


def test_endless_outlines_are_refused_before_they_are_drawn(tmp_path):
    source = Coco(write(tmp_path, annotation(segmentation=[[0, 0, 39, 29] * 10_000])))
    with pytest.raises(ValueError, match="annotation 7") as caught:
        source[0]
    one_line(caught, "to and fro")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        Coco(str(tmp_path / "none.json")).prepare()
    one_line(caught, "none.json", "no such file")
    file = write(tmp_path, drawing())
    with pytest.raises(ValueError, match="is a folder") as caught:
        Coco(str(tmp_path)).prepare()
    one_line(caught, "annotations.json")
    with pytest.raises(FileNotFoundError) as caught:
        Coco(file, images=str(tmp_path / "pictures")).prepare()
    one_line(caught, "pictures", "no such folder")
    (tmp_path / "a.png").unlink()
    (tmp_path / "images").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        Coco(file).prepare()
    one_line(caught, "'a.png' of image 1", str(tmp_path), str(tmp_path / "images"))


# Real files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "num_images", "num_masks", "phrase"),
    [
        ("nuclei/train/annotations.json", 220, 9554, "nucleus"),
        ("nuclei/val/annotations.json", 60, 2561, "nucleus"),
        ("food/train/annotations.json", 87, 468, "tempe bacem"),
        ("pets/train/annotations.json", 50, 77, "cat"),
        ("kudzu/train/annotations.json", 24, 520, "kudzu"),
        ("kudzu/val/annotations.json", 16, 349, "kudzu"),
        ("nuts/trainval.json", 18, 165, "hazelnut"),
        ("coco_sample/annotations.json", 6, 36, "person"),
    ],
)
def test_real_files_equal_the_official_decoder(file, num_images, num_masks, phrase):
    file = shared(file)
    source = Coco(str(file), crowd=True)
    assert len(source) == num_images
    document = json.loads(file.read_text())
    assert len(document["annotations"]) == num_masks
    theirs = {image["id"]: [] for image in document["images"]}
    for entry in document["annotations"]:
        theirs[entry["image_id"]].append(entry["segmentation"])
    phrases = set()
    # Masks of every image, from the index; pixels of a few.
    for index, image in enumerate(document["images"]):
        size = image["height"], image["width"]
        if index % 20 == 0:
            sample = source[index]
            assert sample.pixels().shape == (*size, 3)
            assert len(sample.phrases) == len(sample.masks) == len(theirs[image["id"]])
            phrases.update(sample.phrases)
        ours = [coco._mask(entry.segmentation, size) for entry in source._opened()[index].annotations]
        reference = [_official(drawn, *size) for drawn in theirs[image["id"]]]
        assert [mask.counts for mask in ours] == [one["counts"] for one in reference]
        for mask, one in list(zip(ours, reference, strict=True))[: 1 + 200 // len(document["images"])]:
            np.testing.assert_array_equal(rle.decode(mask), official.decode(one))
    assert phrase in {word for index in range(num_images) for word in _phrases(source, index)}
    assert phrases


def test_real_crowds_are_left_out_unless_wanted():
    file = str(shared("coco_sample/annotations.json"))
    assert sum(len(sample.masks) for sample in Coco(file)) == 35
    assert sum(len(sample.masks) for sample in Coco(file, crowd=True)) == 36


def test_images_in_a_folder_of_another_name():
    file = shared("panoptic_sample/panoptic_coco_detection_format.json")
    source = Coco(str(file), images=str(file.parent / "input_images"), crowd=True)
    assert [len(source), sum(len(sample.masks) for sample in source)] == [2, 50]


def _official(drawn, height, width):
    """The steps of the official annToRLE, counts as text."""
    if isinstance(drawn, list):
        drawn = official.merge(official.frPyObjects(drawn, height, width))
    elif isinstance(drawn["counts"], list):
        drawn = official.frPyObjects(drawn, height, width)
    counts = drawn["counts"]
    return drawn | {"counts": counts.decode() if isinstance(counts, bytes) else counts}


def _phrases(source, index):
    return [entry.phrase for entry in source._opened()[index].annotations]


# Tiles.


@pytest.mark.parametrize(("length", "side", "starts"), [(40, 16, [0, 12, 24]), (32, 16, [0, 16]), (9, 16, [0])])
def test_tiles_cover_a_length_evenly(length, side, starts):
    assert coco._starts(length, side) == starts


def test_a_tile_is_its_part_of_the_image_and_every_mask_is_in_one(tmp_path):
    squares = [[x, y, x + 6, y, x + 6, y + 4, x, y + 4] for x, y in ((1, 1), (13, 3), (33, 25), (10, 20))]
    document = drawing(
        annotations=[drawing()["annotations"][0] | {"id": i, "segmentation": [s]} for i, s in enumerate(squares)]
    )
    file = write(tmp_path, document, pixels=picture())
    whole, tiles = Coco(file)[0], Coco(file, tile=16)
    assert len(tiles) == 6  # 30 x 40 in two rows, at 0 and 14, of three, at 0, 12 and 24
    found = np.zeros((len(squares), *SIZE), bool)
    seen = 0
    for tile in (tiles[i] for i in range(len(tiles))):
        x, y = map(int, tile.key.split(" at ")[1].split(","))
        assert np.array_equal(tile.image, picture()[y : y + 16, x : x + 16])
        assert len(tile.phrases) == len(tile.masks)
        for mask in tile.masks:
            here = np.zeros(SIZE, bool)
            here[y : y + 16, x : x + 16] = rle.decode(mask)
            (which,) = (i for i, m in enumerate(whole.masks) if (rle.decode(m) & here).any())
            assert not (here & ~rle.decode(whole.masks[which])).any()
            found[which] |= here
            seen += 1
    assert seen == len(squares)
    assert [int(mask.sum()) for mask in found] == [24] * 4  # none of these is cut
    assert len(Coco(file, tile=16, empty=False)) == 4
    with pytest.raises(IndexError, match="no sample 6, there are 6"):
        tiles[6]
    assert Coco(file, tile=64)[0].image.shape == (*SIZE, 3)


def test_a_mask_ends_where_its_tile_does(tmp_path):
    document = annotation(segmentation=[[2.0, 2.0, 38.0, 2.0, 38.0, 6.0, 2.0, 6.0]])
    tiles = Coco(write(tmp_path, document, pixels=picture()), tile=16, empty=False)
    (sample,) = (tiles[i] for i in range(len(tiles)))
    assert rle.area(sample.masks[0]) == 16 * 4
    assert len(Coco(tiles.annotations, tile=16, min_area=65)[1].masks) == 0


def test_a_damaged_mask_is_an_error_every_time(tmp_path):
    damaged = {"size": list(SIZE), "counts": "!!"}
    source = Coco(write(tmp_path, annotation(segmentation=damaged), pixels=picture()), tile=16)
    for _ in range(2):
        with pytest.raises(ValueError, match="annotation 7"):
            source.prepare()


def test_a_tile_has_a_side():
    with pytest.raises(ValueError, match="tile: a side in pixels"):
        Coco("a.json", tile=-1)


# Still encoded, and LVIS's own --------------------------------------------------------------------------------------


def jpeg(folder, name="a.jpg", size=SIZE, orientation=None, mode="RGB"):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    smooth = cv2.GaussianBlur(picture(size), (0, 0), 2)
    Image.fromarray(smooth).convert(mode).save(folder / name, quality=92, exif=exif)
    return str(folder / name)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 6])
def test_a_jpeg_stays_encoded_and_comes_out_as_it_was_read(tmp_path, mode, orientation):
    path = jpeg(tmp_path, orientation=orientation, mode=mode)
    kept = images.encoded(path, SIZE)
    assert isinstance(kept, images.Encoded)
    assert kept.data == Path(path).read_bytes()
    np.testing.assert_array_equal(kept.pixels(), images.read(path, SIZE))


def test_what_would_come_out_otherwise_is_read_at_once(tmp_path):
    turned = jpeg(tmp_path, orientation=6)
    here = images.encoded(turned, SIZE[::-1])
    assert isinstance(here, np.ndarray)
    np.testing.assert_array_equal(here, images.read(turned, SIZE[::-1]))
    for name in ("a.png", "a.tif", "a.webp"):
        Image.fromarray(picture()).save(tmp_path / name)
        assert isinstance(images.encoded(str(tmp_path / name), SIZE), np.ndarray)
    with pytest.raises(Damaged) as caught:
        images.encoded(turned, (31, 41))
    assert caught.value.cause == "size"


def test_a_jpeg_that_is_cut_off_is_found_when_it_is_decoded(tmp_path):
    document = drawing()
    document["images"][0]["file_name"] = "a.jpg"
    source = Coco(write(tmp_path, document))
    path = Path(jpeg(tmp_path))
    path.write_bytes(path.read_bytes()[:-200])
    sample = source[0]
    with pytest.raises(Damaged, match="cannot be decoded") as caught:
        sample.pixels()
    assert (caught.value.cause, caught.value.key) == ("image", "a.jpg")
    path.write_bytes(b"")
    with pytest.raises(Damaged) as caught:
        source[0]
    assert caught.value.cause == "image"


def test_a_mask_that_is_malformed_is_blamed_by_cause(tmp_path):
    file = write(tmp_path, annotation(segmentation={"size": SIZE, "counts": "0"}))
    with pytest.raises(Damaged) as caught:
        Coco(file)[0]
    assert (caught.value.cause, caught.value.key, caught.value.shard) == ("rle", "a.png", file)
    one_line(caught, "annotation 7")


def test_a_file_as_lvis_writes_it(tmp_path):
    # No file_name, no iscrowd; what is known to be absent or not drawn to the last stands beside the address.
    names = ["alarm_clock", "monitor_(computer_equipment) computer_monitor", "Ferris_wheel"]
    document = {
        "info": {"version": "v1"},
        "licenses": [],
        "images": [
            {
                "id": 139 + number,
                "height": SIZE[0],
                "width": SIZE[1],
                "coco_url": f"http://images.cocodataset.org/{split}2017/000000000{139 + number}.jpg",
                "flickr_url": "http://farm9.staticflickr.com/8035/8024364858_9c41dc1666_z.jpg",
                "neg_category_ids": [3],
                "not_exhaustive_category_ids": [2],
            }
            for number, split in enumerate(["val", "train", "val"])
        ],
        "annotations": [
            {"id": i, "image_id": 139 + i % 2, "category_id": 1 + i % 2, "area": 100.0, "segmentation": [SQUARE]}
            for i in range(4)
        ],
        "categories": [
            {"id": i, "name": name, "synset": f"{name}.n.01", "synonyms": [name], "def": "a", "frequency": f}
            for i, name, f in zip((1, 2, 3), names, "rcf", strict=True)
        ],
    }
    (tmp_path / "annotations").mkdir()
    file = tmp_path / "annotations" / "lvis_v1_val.json"
    file.write_text(json.dumps(document))
    for number, split in enumerate(["val2017", "train2017", "val2017"]):
        (tmp_path / split).mkdir(exist_ok=True)
        jpeg(tmp_path / split, f"000000000{139 + number}.jpg")
    samples = list(Coco(str(file)))
    assert [sample.key.partition("/")[0] for sample in samples] == ["val2017", "train2017", "val2017"]
    assert [sample.phrases for sample in samples] == [
        ("alarm clock",) * 2,
        ("monitor (computer equipment) computer monitor",) * 2,
        (),
    ]
    assert all(isinstance(sample.image, images.Encoded) for sample in samples)
    assert [len(sample.masks) for sample in Coco(str(file), empty=False)] == [2, 2]
