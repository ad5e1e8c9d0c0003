"""A click's answer in a browser: SAM's own ONNX export and samlit's graphs by turns, in one page.

python benchmarks/browser.py --weights mobile_sam.pt
python benchmarks/browser.py --weights mobile_sam.pt --threads 1 4 --clicks 40 --size 1500x2250

Headless Chromium with onnxruntime-web on the processor. Both have the same weights and are asked the same clicks.
SAM's export answers with masks of the image's own size; samlit's page makes the one that it shows from low-res logits,
and that is part of its time. The logits of both are compared with PyTorch's.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import random
import shutil
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.model import machine
from samlit.annotator import graphs
from samlit.annotator.server import KINDS, PAGE
from samlit.predictor import Predictor
from samlit.structures import PromptSet, Ragged
from samlit_sources import _scenes
from tests import official

SIDE = 1024
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
ROWS = ("SAM's export", "samlit, logits", "samlit, a mask of the image's size")

START = """async ({threads, size, inside, embedding}) => {
  const base = `${location.origin}/`;
  const ort = await import(`${base}decoder/ort/ort.wasm.min.mjs`);
  const { axis, enlarged } = await import(`${base}page/raster.js`);
  ort.env.wasm.wasmPaths = `${base}decoder/ort/`;
  ort.env.wasm.numThreads = threads;
  const load = async (name) => ort.InferenceSession.create(
    new Uint8Array(await (await fetch(base + name)).arrayBuffer()),
    { executionProviders: ["wasm"], graphOptimizationLevel: "all", logSeverityLevel: 3 });
  const f32 = (values, shape) => new ort.Tensor("float32", Float32Array.from(values), shape);
  const values = new Float32Array(await (await fetch(base + "embedding")).arrayBuffer());
  const image = new ort.Tensor("float32", values, embedding);
  const theirs = await load("official.onnx");
  const prepare = await load("decoder/prepare.onnx"), ours = await load("decoder/prompt.onnx");
  const begun = performance.now();
  const prepared = await prepare.run({ image_embeddings: image });
  const once = performance.now() - begun;
  const rows = axis(256, 1024, inside[0], size[0]), columns = axis(256, 1024, inside[1], size[1]);
  const prompt = ([x, y]) => ({
    point_coords: f32([x, y, 0, 0], [1, 2, 2]), point_labels: f32([1, -1], [1, 2]),
    mask_input: f32(new Float32Array(256 * 256), [1, 1, 256, 256]), has_mask_input: f32([0], [1]),
  });
  const mine = async (click) => (await ours.run({ ...prepared, ...prompt(click) })).low_res_masks.data;
  globalThis.ways = [
    async (click) => {
      const given = { image_embeddings: image, ...prompt(click), orig_im_size: f32(size, [2]) };
      return (await theirs.run(given)).low_res_masks.data;
    },
    mine,
    async (click) => {
      const logits = await mine(click);
      enlarged(logits.subarray(256 * 256, 2 * 256 * 256), rows, columns);
      return logits;
    },
  ];
  return [once, ort.env.wasm.numThreads, crossOriginIsolated];
}"""
RUN = """async ([way, click]) => {
  const begun = performance.now();
  const logits = await ways[way](click);
  const took = performance.now() - begun;
  return [took, Array.from(logits)];
}"""


class Server(http.server.SimpleHTTPRequestHandler):
    """The folder, as a page wants it that uses threads."""

    extensions_map: ClassVar = {**http.server.SimpleHTTPRequestHandler.extensions_map, **KINDS}

    def end_headers(self) -> None:
        """Isolated from other pages."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def furnish(folder: Path, released: Path, predictor: Predictor, decoder: Path) -> None:
    """Put what the page asks for into a folder: both models' graphs, and the embedding of the predictor's image."""
    shutil.copyfile(released, folder / "official.onnx")
    shutil.copytree(decoder, folder / "decoder")
    shutil.copytree(PAGE, folder / "page")
    (folder / "embedding").write_bytes(predictor.embedding.embedding.image.numpy().tobytes())
    (folder / "index.html").write_text("<!doctype html><title>benchmark</title>")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


class Times(NamedTuple):
    """What a page measured.

    Attributes:
        threads: That it had.
        once: Milliseconds that samlit needs once an image.
        clicks: Milliseconds of each click, a list for each of `ROWS`.
        apart: How far the logits of each were from PyTorch's at most, as a share of the largest.
    """

    threads: int
    once: float
    clicks: list[list[float]]
    apart: list[float]

    @property
    def faster(self) -> list[float]:
        """How many times faster than SAM's export each is: the median over clicks."""
        return [statistics.median(a / b for a, b in zip(self.clicks[0], own, strict=True)) for own in self.clicks]


def measure(page: Page, predictor: Predictor, threads: int, clicks: int, warm: int = 3) -> Times:
    """Times of one number of threads, after some clicks that warm up."""
    embedded = predictor.embedding
    (size,), (inside,) = embedded.originals, embedded.sizes
    told = {"threads": threads, "size": list(size), "inside": list(inside), "embedding": [1, 256, 64, 64]}
    once, used, isolated = page.evaluate(START, told)
    assert isolated
    chance = random.Random(0)
    times: list[list[float]] = [[] for _ in ROWS]
    apart = [0.0 for _ in ROWS]
    for turn in range(warm + clicks):
        click = [chance.uniform(0, inside[1]), chance.uniform(0, inside[0])]
        wanted = logits(predictor, click)
        for way in chance.sample(range(len(ROWS)), len(ROWS)):
            took, found = page.evaluate(RUN, [way, click])
            off = np.abs(np.asarray(found, np.float32) - wanted).max() / np.abs(wanted).max()
            apart[way] = max(apart[way], float(off))
            if turn >= warm:
                times[way].append(took)
    return Times(used, once, times, apart)


@torch.no_grad()
def logits(predictor: Predictor, click: list[float]) -> np.ndarray:
    """All four masks of a click in the frame, by PyTorch."""
    net = predictor.net
    given = {"points": Ragged.of(torch.tensor([[[*click, 1.0]]]))}
    found = [
        net.answer(predictor.embedding.embedding, PromptSet(torch.tensor([0]), given, multimask), (SIDE, SIDE)).logits
        for multimask in (False, True)
    ]
    return torch.cat(found, 1).flatten().numpy()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="MobileSAM's file")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--clicks", type=int, default=20, help="of which the median is taken")
    parser.add_argument("--size", default="1500x2250", help="rows x columns of the image")
    given = parser.parse_args()
    size = tuple(map(int, given.size.split("x")))
    console = Console(width=None if sys.stdout.isatty() else 120)
    released, own = official.mobile(given.weights)
    predictor = Predictor(own, SIDE)
    pixels = _scenes.render(0, 1, 2, max(size) // 4, 32, "clear").image
    predictor.set_image(np.asarray(frames_of(pixels, size)))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        furnish(
            folder,
            official.exported(released, folder / "released.onnx"),
            predictor,
            graphs.folder(own, SIDE, folder / "made"),
        )
        table = Table(title=f"median of {given.clicks} clicks, image of {given.size}", title_justify="left")
        for column in ("threads", "way", "ms", "x SAM's export", "logits apart"):
            table.add_column(column, justify="left" if column == "way" else "right")
        with served(folder) as url, sync_playwright() as started:
            program = next(filter(None, map(shutil.which, CHROMIUM)), None)
            browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
            console.print(f"Chromium {browser.version}, {machine()}", highlight=False)
            for threads in given.threads:
                page = browser.new_page()
                page.goto(url)
                told = measure(page, predictor, threads, given.clicks)
                page.close()
                for name, took, ratio, off in zip(ROWS, told.clicks, told.faster, told.apart, strict=True):
                    row = f"{statistics.median(took):.0f}", f"{ratio:.2f}", f"{off:.0e}"
                    table.add_row(str(told.threads), name, *row)
                once = f"{told.once:.0f}"
                table.add_row(str(told.threads), "samlit, once an image", once, "", "", end_section=True)
            browser.close()
        console.print(table)


def frames_of(pixels: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """A picture of so many rows and columns."""
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BICUBIC))


if __name__ == "__main__":
    main()
