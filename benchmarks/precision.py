"""What smaller weights of the exported decoder cost: its masks beside the model's, on photographs.

samlit export --weights mobile_sam.pt --to onnx --part decoder --precision int8 --out int8
python benchmarks/precision.py --weights mobile_sam.pt --annotations coco_sample/annotations.json --graphs int8

One click farthest inside of each true mask; of three answers that one counts of which the graph, or the model, expects
most. The image embedding is the model's own for all.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from rich.console import Console
from rich.table import Table

from samlit.masks import clicks, rle
from samlit.predictor import Predictor
from samlit_sources.coco import Coco


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Of two masks."""
    return float((a & b).sum() / max((a | b).sum(), 1))


def answered(session: onnxruntime.InferenceSession, predictor: Predictor, x: float, y: float) -> np.ndarray:
    """A graph's mask of a click."""
    embedded = predictor.embedding
    (rows, columns), (high, wide) = embedded.originals[0], embedded.sizes[0]
    low = 4 * embedded.embedding.image.shape[-1]
    given = {
        "image_embeddings": embedded.embedding.image.numpy(),
        "point_coords": np.array([[[x * wide / columns, y * high / rows], [0, 0]]], np.float32),
        "point_labels": np.array([[1, -1]], np.float32),
        "mask_input": np.zeros((1, 1, low, low), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array([rows, columns], np.float32),
    }
    masks, expected, _ = session.run(None, given)
    found: np.ndarray = masks[0, 1 + int(expected[0, 1:].argmax())] > 0
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="what Predictor.load takes")
    parser.add_argument("--annotations", required=True, help="COCO JSON, its images beside it")
    parser.add_argument("--graphs", nargs="+", required=True, help="folders of `samlit export --to onnx`")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--masks", type=int, default=3, help="the largest so many of each image")
    given = parser.parse_args()
    predictor, source = Predictor.load(given.weights), Coco(given.annotations, empty=False)
    own: list[float] = []
    sessions, sizes = {}, {}
    silent = onnxruntime.SessionOptions()
    silent.log_severity_level = 3
    for folder in map(Path, given.graphs):
        precision = json.loads((folder / "model.json").read_text())["precision"]
        sessions[precision] = onnxruntime.InferenceSession(str(folder / "decoder.onnx"), silent)
        sizes[precision] = (folder / "decoder.onnx").stat().st_size / 1e6
    alike: dict[str, list[float]] = {precision: [] for precision in sessions}
    true: dict[str, list[float]] = {precision: [] for precision in sessions}
    for index in range(min(given.images, len(source))):
        sample = source[index]
        predictor.set_image(sample.pixels())
        for mask in sorted(sample.masks, key=rle.area)[::-1][: given.masks]:
            truth = rle.decode(mask).astype(bool)
            _, (column, row) = clicks.deepest(truth)
            x, y = column + 0.5, row + 0.5
            wanted = predictor.predict({"points": [(x, y, 1)]}, True).masks[0].numpy()
            own.append(iou(wanted, truth))
            for precision, session in sessions.items():
                found = answered(session, predictor, x, y)
                alike[precision].append(iou(found, wanted))
                true[precision].append(iou(found, truth))
    title = f"{len(own)} clicks on {min(given.images, len(source))} images; the model's own mIoU is {np.mean(own):.3f}"
    table = Table(title=title, title_justify="left")
    for column in ("decoder", "MB", "mIoU with the model's masks", "the same mask (.95)", "mIoU with the true masks"):
        table.add_column(column, justify="right")
    for precision, values in alike.items():
        same = np.mean(np.array(values) > 0.95)
        row = f"{sizes[precision]:.1f}", f"{np.mean(values):.3f}", f"{same:.0%}", f"{np.mean(true[precision]):.3f}"
        table.add_row(precision, *row)
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(table)


if __name__ == "__main__":
    main()
