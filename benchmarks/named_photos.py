"""COCO files with their classes under other names, put together and every fifth image set aside.

python benchmarks/named_photos.py --out photos --name dog=dog cat=cat piring=plate "roti tawar=bread" \
    --data pets/train/annotations.json food/train/annotations.json

Writes photos/train.json, photos/val.json and photos/images. Classes that get no name are left out.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", type=Path, required=True, help="COCO JSON files, images beside them")
    parser.add_argument("--name", nargs="+", required=True, metavar="OLD=NEW", help="names of classes")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    names = dict(pair.split("=", 1) for pair in given.name)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names.values()), 1)}
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    sets: dict[str, dict[str, Any]] = {
        name: {"images": [], "annotations": [], "categories": categories} for name in ("train", "val")
    }
    (given.out / "images").mkdir(parents=True, exist_ok=True)
    seen = 0
    for file in given.data:
        told = json.loads(file.read_text())
        classes = {row["id"]: names.get(row["name"]) for row in told["categories"]}
        for image in told["images"]:
            rows = [
                row for row in told["annotations"] if row["image_id"] == image["id"] and classes[row["category_id"]]
            ]
            if not rows:
                continue
            (found,) = [
                path
                for path in (file.parent / image["file_name"], *file.parent.rglob(image["file_name"]))
                if path.is_file()
            ][:1]
            kept = f"{seen:04d}{found.suffix}"
            shutil.copyfile(found, given.out / "images" / kept)
            part = sets["val" if seen % 5 == 4 else "train"]
            part["images"].append({**image, "id": seen, "file_name": kept})
            for row in rows:
                number = numbers[str(classes[row["category_id"]])]
                own = {**row, "id": len(part["annotations"]) + 1, "image_id": seen, "category_id": number}
                part["annotations"].append(own)
            seen += 1
    for name, part in sets.items():
        (given.out / f"{name}.json").write_text(json.dumps(part))
        print(f"{name}: {len(part['images'])} images, {len(part['annotations'])} masks")


if __name__ == "__main__":
    main()
