"""The annotator's page with a drawn scene, as a picture, and how long a click takes until its mask is there.

python benchmarks/annotate.py --weights mobile_sam.pt --picture docs/pictures/annotate.png

It needs playwright and Chromium (`apt-get install chromium`).
"""

from __future__ import annotations

import argparse
import io
import shutil
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import uvicorn
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from samlit import cache
from samlit.annotator import graphs
from samlit.annotator.proposals import Proposal, Proposals
from samlit.annotator.server import Annotator
from samlit.annotator.store import Store
from samlit.masks import rle
from samlit.predictor import Predictor
from samlit_sources import _scenes

SIZE = (1280, 800)
"""Of the window, pixels."""
SCENES = (9, 10, 11)
PROPOSED = 6
"""How many of a scene's things are proposed."""


class Boxed:
    """Proposes what the model answers to boxes around a drawn scene's things: a stand-in for a detector.

    Args:
        predictor: Of the model.
        scenes: By the name of their file.
    """

    key = "boxed"

    def __init__(self, predictor: Predictor, scenes: dict[str, _scenes.Drawing]) -> None:
        self.predictor, self.scenes = predictor, scenes

    def __call__(self, path: str) -> list[Proposal]:
        """The masks of the largest things."""
        scene = self.scenes[Path(path).name]
        largest = sorted(scene.masks, key=lambda mask: -int(mask.sum()))[:PROPOSED]
        self.predictor.set_image(scene.image)
        found = []
        for mask in largest:
            y, x = np.nonzero(mask)
            answer = self.predictor.predict({"boxes": [(x.min(), y.min(), x.max(), y.max())]}, False)
            found.append(Proposal.of(rle.encode(answer.masks[0].numpy()), float(answer.iou[0])))
        return found


@contextmanager
def served(folder: Path, predictor: Predictor) -> Iterator[str]:
    """The address of an annotator of a few scenes."""
    scenes = {f"scene_{n:02}.png": _scenes.render(0, 1, n, 960, 32, "clear") for n in SCENES}
    (folder / "images").mkdir()
    for name, scene in scenes.items():
        Image.fromarray(scene.image).save(folder / "images" / name)
    store = Store(folder / "images", folder / "annotations")
    boxed = Boxed(Predictor(predictor.net, predictor.image_size), scenes)
    proposals = Proposals(boxed, store, folder / "proposals")  # type: ignore[arg-type]
    decoder = graphs.folder(predictor.net, predictor.image_size, cache.folder() / "annotate" / "decoders")
    annotator = Annotator(store, predictor, "mobile_sam", folder / "cache", proposals, "ada", decoder)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(annotator.app(), log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def click(page: Page, x: float, y: float) -> float:
    """Click at a share of the canvas; seconds until there are three candidates."""
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    start = time.perf_counter()
    page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
    expect(page.locator("#candidates span", has_text="%")).to_have_count(3)
    return time.perf_counter() - start


def work(page: Page, url: str) -> list[float]:
    """Accept proposals, name them, begin a mask; seconds of clicks."""
    page.goto(url)
    page.locator("#proposals > li").first.wait_for(timeout=120_000)
    expect(page.locator("#hint")).not_to_contain_text("looks at the image", timeout=120_000)
    times = []
    for n in range(20):
        times.append(click(page, 0.4 + 0.01 * n, 0.35))
        page.keyboard.press("Escape")
        expect(page.locator("#candidates span", has_text="%")).to_have_count(0)
    for name in ("car", "body", "brick"):
        page.locator("#proposals [data-do=take]").first.click()
        expect(page.locator("#masks .muted.name")).to_have_count(1)
        page.locator("#masks .pick").first.click()
        page.keyboard.press("l")
        page.keyboard.type(name)
        page.keyboard.press("Enter")
        expect(page.locator("#masks .muted.name")).to_have_count(0)
    return times


def main() -> None:
    """Print the time, and draw the picture if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="what Predictor.load takes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dark", action="store_true", help="for who likes it dark")
    parser.add_argument("--picture", type=Path, help="also draw a picture to this PNG")
    given = parser.parse_args()
    predictor = Predictor.load(given.weights, given.device)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with tempfile.TemporaryDirectory() as folder, served(Path(folder), predictor) as url, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        window = {"width": SIZE[0], "height": SIZE[1]}
        page = browser.new_page(viewport=window, color_scheme="dark" if given.dark else "light")
        times = work(page, url)
        print(f"from a click to its mask, median of {len(times)}  {statistics.median(times):6.3f} s")
        if given.picture:
            click(page, 0.46, 0.15)
            taken = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            taken.quantize(160, dither=Image.Dither.NONE).save(given.picture, optimize=True)
            print(f"{given.picture}: {given.picture.stat().st_size / 1000:.0f} kB")
        browser.close()


if __name__ == "__main__":
    main()
