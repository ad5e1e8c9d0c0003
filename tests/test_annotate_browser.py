"""The annotator's page in a real browser: what a person does there is in the files, pixel by pixel."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samlit.masks import rle
from samlit.predictor import Predictor

pytest.importorskip("starlette", reason="the annotator needs starlette: pip install 'samlit[annotate]'")
uvicorn = pytest.importorskip("uvicorn", reason="the annotator needs uvicorn: pip install 'samlit[annotate]'")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")

from samlit.annotator.proposals import Proposal, Proposals  # noqa: E402
from samlit.annotator.server import Annotator  # noqa: E402
from samlit.annotator.store import Store  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

SHARED = Path(os.environ.get("SAMLIT_SHARED") or Path(__file__).resolve().parents[2] / "shared" / "data")
MOBILE_SAM = SHARED.parent / "weights" / "mobile_sam.pt"
ROWS, COLUMNS = 60, 90
expect = playwright.expect
expect.set_options(timeout=60_000)  # milliseconds: on a busy machine an encoder takes its time


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def context(browser):
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(60_000)
    wrong = []
    context.on("weberror", lambda error: wrong.append(str(error.error)))
    yield context
    context.close()
    assert not wrong


@pytest.fixture
def folder(tmp_path):
    """Two images, of blocks of colour."""
    for number in range(2):
        small = np.random.default_rng(number).integers(0, 256, (ROWS // 10, COLUMNS // 10, 3), np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(small.repeat(10, 0).repeat(10, 1)).save(tmp_path / "images" / f"sa_{number}.png")
    return tmp_path


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return Predictor.load(checkpoint)


@contextmanager
def served(folder, predictor, proposer=None, port=0, decoder=None):
    """The annotator's address; its server is in a thread."""
    store = Store(folder / "images", folder / "out")
    proposals = proposer and Proposals(proposer, store, folder / "cache")
    net = Predictor(predictor.net, predictor.image_size)  # its image is the server's own
    annotator = Annotator(store, net, "tiny", folder / "cache", proposals, "ada", decoder)
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    listening.listen()  # from here on a browser waits for the thread, and is not refused
    server = uvicorn.Server(uvicorn.Config(annotator.app(), log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()


class Tab:
    """A page of the annotator, and a person's hands."""

    def __init__(self, context, url, size=(ROWS, COLUMNS)):
        self.page = context.new_page()
        self.size = size
        self.page.goto(url)
        self.ready()

    def ready(self):
        expect(self.page.locator("#hint")).not_to_have_text("")
        expect(self.page.locator("#hint")).not_to_contain_text("looks at the image")

    def place(self, x, y):
        """Where a place of the image is on the screen while all of the image is shown."""
        box = self.page.locator("#canvas").bounding_box()
        margin = 0.03 * min(box["width"], box["height"])
        scale = min((box["width"] - 2 * margin) / self.size[1], (box["height"] - 2 * margin) / self.size[0])
        left = box["x"] + (box["width"] - scale * self.size[1]) / 2
        top = box["y"] + (box["height"] - scale * self.size[0]) / 2
        return left + x * scale, top + y * scale

    def click(self, x, y, button="left", candidates=3):
        self.page.mouse.click(*self.place(x, y), button=button)
        self.answered(candidates)

    def drag(self, *places, held=None):
        if held:
            self.page.keyboard.down(held)
        self.page.mouse.move(*self.place(*places[0]))
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*self.place(*place), steps=4)
        self.page.mouse.up()
        if held:
            self.page.keyboard.up(held)

    def answered(self, candidates):
        """The model has answered; with so many candidates."""
        expect(self.page.locator("#making-state")).to_contain_text("px")
        expect(self.page.locator("#candidates span", has_text="%")).to_have_count(candidates)

    def keys(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def shows(self, masks, proposals=None):
        expect(self.page.locator("#masks > li")).to_have_count(masks)
        if proposals is not None:
            expect(self.page.locator("#proposals > li")).to_have_count(proposals)

    def accept(self, masks):
        self.keys("Enter")
        self.shows(masks)
        self.saved()

    def saved(self):
        expect(self.page.locator("#saved")).to_have_text("Saved")

    def look(self):
        """Come back to the tab."""
        self.page.evaluate("dispatchEvent(new Event('focus'))")


@pytest.fixture
def tab(context, folder, predictor):
    with served(folder, predictor) as url:
        yield Tab(context, url)
        context.close()


def rows(folder, number=0):
    """The annotations in a file, deleted ones too."""
    return json.loads((folder / "out" / f"sa_{number}.json").read_text())["annotations"]


def until(holds, seconds=60.0):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def drawn(row):
    return rle.decode(rle.Rle(tuple(row["segmentation"]["size"]), row["segmentation"]["counts"])).astype(bool)


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def asked(predictor, folder, number=0):
    """A predictor with an image of the folder."""
    predictor.set_image(str(folder / "images" / f"sa_{number}.png"))
    return predictor


def points(row):
    return [tuple(point) for point in row["provenance"]["prompts"]["points"]]


def test_clicks_are_answered_as_by_the_predictor(tab, folder, predictor):
    expect(tab.page.locator("#decoder")).to_have_text("decoded by the server")
    clicks(tab, folder, predictor)


def test_clicks_are_answered_in_the_browser_without_the_server(context, folder, predictor, decoder):
    context.route("**/predict", lambda route: route.abort())
    with served(folder, predictor, decoder=decoder) as url:
        clicks(Tab(context, url), folder, predictor)
        context.close()


def test_a_browser_that_cannot_decode_asks_the_server(context, folder, predictor):
    (folder / "decoder" / "ort").mkdir(parents=True)
    (folder / "decoder" / "prompt.onnx").write_bytes(b"no graph")
    with served(folder, predictor, decoder=folder / "decoder") as url:
        tab = Tab(context, url)
        expect(tab.page.locator("#decoder")).to_have_text("decoded by the server")
        tab.click(20, 20)
        tab.accept(1)
        context.close()


def clicks(tab, folder, predictor):
    """Two masks: the second answer to a click, and one that a negative click corrects."""
    tab.click(20, 20)
    tab.keys("2")
    expect(tab.page.locator("#candidates button").nth(1)).to_have_attribute("aria-pressed", "true")
    tab.accept(1)
    tab.click(60, 15)
    tab.keys("Tab", "Tab", "Shift+Tab")
    tab.click(70, 40, button="right", candidates=1)
    tab.accept(2)

    one, two = rows(folder)
    asked(predictor, folder)
    alone = predictor.predict({"points": points(one)})
    assert points(one)[0] == pytest.approx((20, 20, 1), abs=0.1)
    assert iou(drawn(one), alone.masks[1].numpy()) > 0.99
    assert one["predicted_iou"] == pytest.approx(min(max(float(alone.iou[1]), 0), 1), abs=1e-3)
    assert [point[2] for point in points(two)] == [1, 0]
    first = predictor.predict({"points": points(two)[:1]})
    both = predictor.predict({"points": points(two), "masks": [first.prompt(1)]}, False)
    assert iou(drawn(two), both.masks[0].numpy()) > 0.99
    assert one["provenance"]["person"] == "ada"
    assert one["provenance"]["model"]["name"] == "tiny"
    assert not one["provenance"]["edited_by_hand"]
    assert 0 < one["provenance"]["seconds"] < 60


def test_a_box_and_a_scribble(tab, folder, predictor):
    tab.drag((10, 10), (50, 45), held="Shift")
    tab.answered(3)
    tab.accept(1)
    tab.keys("b")
    tab.drag((80, 50), (30, 20))
    tab.answered(3)
    tab.accept(2)
    tab.keys("c")
    tab.drag((10, 30), (40, 30), (40, 50))
    tab.answered(1)
    tab.accept(3)

    asked(predictor, folder)
    for row, given in zip(rows(folder), ((10, 10, 50, 45), (30, 20, 80, 50)), strict=False):
        box = row["provenance"]["prompts"]["box"]
        assert box == pytest.approx(given, abs=0.1)
        assert iou(drawn(row), predictor.predict({"boxes": [box]}, True).masks[0].numpy()) > 0.99
    scribble = points(rows(folder)[2])
    assert len(scribble) == 5
    assert all(label == 1 for *_, label in scribble)
    assert scribble[0] == pytest.approx((15, 30, 1), abs=1)
    assert scribble[-1] == pytest.approx((40, 45, 1), abs=1)


def test_brush_and_eraser_are_exact_to_the_pixel(tab, folder):
    tab.keys("d", *["["] * 20)
    expect(tab.page.locator("#brush")).to_have_text("1")
    tab.drag((10.5, 20.5), (29.5, 20.5))
    tab.keys("]", "]")
    expect(tab.page.locator("#brush")).to_have_text("3")
    tab.page.mouse.click(*tab.place(50.5, 30.5))
    tab.keys("[", "[", "e")
    tab.page.mouse.click(*tab.place(50.5, 30.5))
    tab.page.mouse.click(*tab.place(10.5, 20.5))
    tab.keys("d")
    tab.page.mouse.click(*tab.place(88.5, 58.5), button="right")  # there is nothing to take away
    tab.accept(1)
    tab.keys("d", "]", "]", "]")
    tab.page.mouse.click(*tab.place(0.2, 0.2))
    tab.accept(2)
    seconds = sum(row["provenance"]["seconds"] for row in rows(folder))
    shown = tab.page.locator("#tally-hour").inner_text().replace(",", "")
    assert 3600 * 2 / int(shown) == pytest.approx(seconds, abs=1.0)  # of so short a time the clock shows whole parts

    wanted = np.zeros((ROWS, COLUMNS), bool)
    wanted[20, 11:30] = True
    wanted[29:32, 49:52] = True
    wanted[30, 50] = False
    (one, two) = rows(folder)
    assert np.array_equal(drawn(one), wanted)
    assert one["provenance"]["edited_by_hand"]
    assert [stroke["erase"] for stroke in one["provenance"]["prompts"]["strokes"]] == [False, False, True, True, True]
    corner = np.zeros_like(wanted)  # a brush of 4 sits between pixels, and ends at the image's edge
    corner[:2, :2] = True
    corner[1, 1] = two["area"] == 4
    assert np.array_equal(drawn(two), corner)


def test_a_click_means_its_pixel_however_near_the_image_is(tab, folder):
    zoom, mouse = tab.page.locator("#zoom"), tab.page.mouse
    x, y = tab.place(60, 20)
    mouse.move(x, y)
    for _ in range(2):
        before = zoom.inner_text()
        mouse.wheel(0, -300)
        expect(zoom).not_to_have_text(before)
    near = zoom.inner_text()
    mouse.click(x, y)
    tab.answered(3)
    tab.page.keyboard.down("Space")
    mouse.down()
    mouse.move(x + 120, y + 60, steps=3)
    mouse.up()
    tab.page.keyboard.up("Space")
    mouse.click(x + 120, y + 60, button="right")
    tab.answered(1)
    assert zoom.inner_text() == near
    tab.keys("-", "0")
    tab.click(10, 50, candidates=1)
    tab.accept(1)
    assert points(rows(folder)[0]) == [
        pytest.approx(wanted, abs=0.1) for wanted in ((60, 20, 1), (60, 20, 0), (10, 50, 1))
    ]


def test_painting_over_an_answer_keeps_the_answer(tab, folder, predictor):
    tab.click(20, 20)
    tab.keys("d", *["["] * 20)
    alone = asked(predictor, folder).predict({"points": [(20, 20, 1)]}).masks[0].numpy()
    y, x = np.argwhere(~alone)[0]
    tab.page.mouse.click(*tab.place(x + 0.5, y + 0.5))
    tab.accept(1)
    (row,) = rows(folder)
    wanted = predictor.predict({"points": points(row)}).masks[0].numpy().copy()
    wanted[y, x] = True
    assert np.array_equal(drawn(row), wanted)


def test_undo_and_redo(tab, folder):
    state = tab.page.locator("#making-state")
    tab.click(20, 20)
    first = state.inner_text()
    tab.click(70, 40, candidates=1)
    second = state.inner_text()
    assert second != first
    tab.keys("Control+z")
    expect(state).to_have_text(first)
    tab.keys("Control+z")
    expect(state).to_have_text("Nothing yet")
    tab.keys("Control+Shift+z", "Control+y")
    expect(state).to_have_text(second)
    tab.accept(1)
    kept = drawn(rows(folder)[0])
    tab.keys("Control+z")  # the mask is in the making again
    tab.shows(0)
    expect(state).to_have_text(second)
    tab.saved()
    assert rows(folder)[0]["deleted"]
    tab.keys("Control+Shift+z")
    tab.shows(1)
    tab.saved()
    assert not rows(folder)[0]["deleted"]
    tab.keys("j", "Delete")
    tab.shows(0)
    tab.keys("Control+z")
    tab.shows(1)
    tab.keys("j", "m")
    expect(state).to_have_text(second)
    tab.keys("d")
    tab.page.mouse.click(*tab.place(5, 55))
    tab.accept(1)
    assert not np.array_equal(drawn(rows(folder)[0]), kept)
    tab.keys("Control+z", "Control+z", "Control+z")
    expect(state).to_have_text("Nothing yet")
    tab.saved()
    (row,) = rows(folder)
    assert np.array_equal(drawn(row), kept)


def test_the_mask_of_a_click_is_shown_before_it(tab):
    box = tab.page.locator("#canvas").bounding_box()

    def blue():
        """The share of blue in the picture of the canvas."""
        shot = np.asarray(Image.open(io.BytesIO(tab.page.screenshot(clip=box))).convert("RGB")).astype(float)
        return (shot[..., 2] / shot.sum(2).clip(1)).mean()

    before = blue()
    tab.page.mouse.move(*tab.place(20, 20))
    until(lambda: blue() > before + 0.01)
    tab.page.mouse.move(0, 0)
    until(lambda: blue() == before)


def test_names_and_what_a_reload_brings_back(tab, folder):
    tab.click(20, 20)
    tab.keys("l")
    tab.page.keyboard.type("left <b>block</b>")  # a name is text, whatever it says
    tab.accept(1)
    tab.keys("d")
    tab.page.mouse.click(*tab.place(60, 30))
    expect(tab.page.locator("#making-state")).to_contain_text("px")
    unfinished = tab.page.locator("#making-state").inner_text()
    tab.page.reload()
    tab.ready()
    tab.shows(1)
    expect(tab.page.locator("#masks .name")).to_have_text("left <b>block</b>")
    expect(tab.page.locator("#names option")).to_have_attribute("value", "left <b>block</b>")
    expect(tab.page.locator("#making-state")).to_have_text(unfinished)
    tab.accept(2)
    tab.keys("j", "l")
    tab.page.keyboard.type("ri")
    tab.page.mouse.move(*tab.place(20, 20))  # over the other mask, which keeps its name
    tab.page.keyboard.type("ght")
    tab.keys("Enter")
    expect(tab.page.locator("#masks .name").first).to_have_text("right")
    tab.saved()
    tab.keys("l")
    tab.page.keyboard.type("wrong")
    tab.keys("Escape")
    expect(tab.page.locator("#name")).to_have_value("right")
    tab.saved()
    assert [row.get("phrase") for row in rows(folder)] == ["left <b>block</b>", "right"]
    tab.keys("Control+z")
    expect(tab.page.locator("#masks .name").first).to_have_text("Unnamed")


def test_images_are_gone_through_and_called_done(tab, folder):
    place = tab.page.locator("#place")
    expect(place).to_have_text("1 of 2")
    tab.keys("ArrowRight")
    expect(place).to_have_text("2 of 2")
    tab.ready()
    tab.click(30, 30)
    tab.accept(1)
    assert rows(folder, 1)
    tab.page.reload()  # the address says which image it was
    tab.ready()
    expect(place).to_have_text("2 of 2")
    tab.keys("p")
    expect(place).to_have_text("1 of 2")
    expect(tab.page.locator("#hint")).to_contain_text("Click on a thing")
    tab.keys("Shift+Enter")
    expect(place).to_have_text("2 of 2")
    expect(tab.page.locator("#done")).to_have_text("1 of 2 done")
    tab.saved()
    assert json.loads((folder / "out" / "sa_0.json").read_text())["samlit"]["done"]
    expect(tab.page.locator("#tally-masks")).to_have_text("1")


def test_all_without_a_mouse(tab, folder):
    tab.keys("?")
    expect(tab.page.locator("#keys kbd", has_text="Enter").first).to_be_visible()
    tab.keys("Escape")
    expect(tab.page.locator("#keys")).to_be_hidden()
    tab.page.locator("#canvas").focus()
    tab.keys("Shift+ArrowLeft", "Shift+ArrowUp", ".")
    tab.answered(3)
    tab.keys("2", "Shift+ArrowRight", ",")
    tab.answered(1)
    tab.accept(1)
    (x0, y0, first), (x1, y1, second) = points(rows(folder)[0])
    assert (first, second) == (1, 0)
    assert 0 < x0 < x1 == pytest.approx(COLUMNS / 2, abs=0.1)
    assert y0 == y1 < ROWS / 2
    tab.keys("b", "Shift+ArrowLeft", ".", "Escape", ".", *["Shift+ArrowRight"] * 2, "Shift+ArrowDown", ".")
    tab.answered(3)
    tab.accept(2)
    left, top, right, bottom = rows(folder)[1]["provenance"]["prompts"]["box"]
    assert (left, top) == pytest.approx((x0, y0), abs=0.1)
    assert (right, bottom) == pytest.approx((2 * x1 - x0, y0 + x1 - x0), abs=0.1)
    buttons = tab.page.get_by_role("button").all()
    assert len(buttons) > 12
    assert all(one.get_attribute("aria-label") or one.inner_text() for one in buttons)


def test_half_a_minute_on_one_mask_is_long(tab):
    tab.page.clock.install(time=0)
    tab.page.clock.pause_at(3600)  # a busy machine's seconds are none of this person's
    hint = tab.page.locator("#hint")
    tab.click(20, 20)
    for _ in range(2):
        tab.page.clock.run_for(14_000)
        tab.page.mouse.move(*tab.place(40, 20))
        tab.page.mouse.move(*tab.place(41, 20))
    expect(hint).to_contain_text("Click to add")
    tab.page.clock.run_for(4_000)
    expect(hint).to_contain_text("30 seconds on this mask")
    tab.keys("Escape")
    expect(hint).to_contain_text("Click on a thing")
    tab.click(20, 20)
    tab.page.clock.run_for(70_000)  # who is away does not work
    expect(hint).to_contain_text("Click to add")


class Blocks:
    """Proposes three blocks, always."""

    key = "blocks"

    def __call__(self, path):
        masks = np.zeros((3, ROWS, COLUMNS), bool)
        masks[0, 5:20, 5:25] = masks[1, 5:20, 40:60] = masks[2, 35:55, 10:80] = True
        return [Proposal.of(rle.encode(mask), 0.97 - 0.01 * n) for n, mask in enumerate(masks)]


def test_proposals_are_accepted_modified_and_rejected(context, folder, predictor):
    with served(folder, predictor, Blocks()) as url:
        tab = Tab(context, url)
        tab.shows(0, 3)
        expect(tab.page.locator("#model")).to_have_text("tiny")
        tab.page.mouse.move(*tab.place(50, 10))
        expect(tab.page.locator("#hint")).to_contain_text("A accepts")
        tab.keys("a")
        tab.shows(1, 2)
        tab.page.mouse.move(*tab.place(15, 10))
        tab.keys("m", "d", *["["] * 20)
        tab.shows(1, 1)
        tab.page.mouse.click(*tab.place(30.5, 30.5))
        tab.accept(2)
        tab.keys("c", "j", "x")
        tab.shows(2, 0)
        tab.keys("Control+z")
        tab.shows(2, 1)
        tab.keys("j", "x")
        tab.shows(2, 0)
        tab.saved()
        model = tab.page.locator("#model")
        expect(model).to_have_text("tiny: 1 of 3 proposals taken as they were")
        tab.page.reload()
        tab.ready()
        tab.shows(2)
        expect(tab.page.locator("#proposals-part")).to_be_hidden()
        expect(model).to_have_text("tiny: 1 of 3 proposals taken as they were")
        context.close()
    first, second, third = (one.mask for one in Blocks()(""))
    accepted, modified = rows(folder)
    assert accepted["segmentation"]["counts"] == second.counts
    assert accepted["provenance"]["proposal"] == {"id": Proposal.of(second, 1).id, "edited": False}
    wanted = rle.decode(first).astype(bool)
    wanted[30, 30] = True
    assert np.array_equal(drawn(modified), wanted)
    assert modified["provenance"]["proposal"] == {"id": Proposal.of(first, 1).id, "edited": True}
    document = json.loads((folder / "out" / "sa_0.json").read_text())
    assert [one["id"] for one in document["samlit"]["rejected"]] == [Proposal.of(third, 1).id]


def test_two_tabs_overwrite_nothing(context, folder, predictor):
    with served(folder, predictor) as url:
        one, two = Tab(context, url), Tab(context, url)
        for tab, x in ((one, 10), (two, 80)):
            tab.keys("d", *["["] * 20)
            tab.page.mouse.click(*tab.place(x, 30))
            tab.accept(1 if tab is one else 2)
        one.shows(2)
        # Both change the mask at the left; the second one does not know of the first.
        for tab, x in ((one, 20), (two, 30)):
            tab.keys("j", "j", "m")
            tab.page.mouse.click(*tab.place(x, 30))
        one.accept(2)
        two.shows(2)
        two.accept(3)
        expect(two.page.locator("#hint")).to_contain_text("yours is kept as another mask")
        two.keys("Control+z")  # what is the other's by now is not touched
        expect(two.page.locator("#hint")).to_contain_text("it stays")
        one.shows(3)
        two.shows(3)
        context.close()
    inside = [[bool(drawn(row)[30, x]) for x in (10, 20, 30, 80)] for row in rows(folder)]
    assert inside == [[True, True, False, False], [False, False, False, True], [True, False, True, False]]


def test_a_mask_that_two_tabs_show_unfinished_is_kept_once(context, folder, predictor):
    with served(folder, predictor) as url:
        one = Tab(context, url)
        one.keys("d")
        one.page.mouse.click(*one.place(45, 30))
        expect(one.page.locator("#making-state")).to_contain_text("px")
        two = Tab(context, url)
        expect(two.page.locator("#making-state")).to_contain_text("px")
        one.accept(1)
        expect(two.page.locator("#making-state")).to_have_text("Nothing yet")
        two.shows(1)
        context.close()
    assert len(rows(folder)) == 1


def test_a_killed_server_loses_nothing(context, folder, predictor, checkpoint):
    command = ["annotate", "--images", "images", "--out", "out", "--weights", str(checkpoint), "--port", "0"]
    command += ["--decoder", "server"]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "SAMLIT_CACHE": str(folder / "cache"), "PYTHONWARNINGS": ""}
    words = [sys.executable, "-m", "samlit", *command]
    with subprocess.Popen(words, cwd=folder, env=quiet, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("2 images")
        url = process.stdout.readline().split()[1]
        tab = Tab(context, url)
        tab.click(20, 20)
        tab.accept(1)
        process.send_signal(signal.SIGKILL)
    tab.keys("d")
    tab.page.mouse.click(*tab.place(60, 30))
    tab.keys("Enter")
    tab.shows(2)
    expect(tab.page.locator("#saved")).to_have_text("1 not saved yet")
    expect(tab.page.locator("#hint")).to_contain_text("cannot be reached")
    tab.page.close()
    assert len(rows(folder)) == 1
    with served(folder, predictor, port=int(url.rstrip("/").rpartition(":")[2])) as url:
        again = Tab(context, url)
        again.shows(2)
        again.saved()
        context.close()
    assert [bool(drawn(row)[30, 60]) for row in rows(folder)][1:] == [True]


@pytest.mark.skipif(
    not MOBILE_SAM.is_file(), reason=f"{MOBILE_SAM} is not here: SAMLIT_SHARED names the folder of real data beside it"
)
def test_a_click_on_a_thing_of_a_photo_gives_mobile_sams_mask(context, tmp_path):
    file = SHARED / "pets" / "train" / "annotations.json"
    if not file.is_file():
        pytest.skip("needs pets/train, which is not here: set SAMLIT_SHARED")
    from samlit_sources.coco import Coco

    sample = Coco(str(file), empty=False)[0]
    (tmp_path / "images").mkdir()
    Image.fromarray(sample.pixels()).save(tmp_path / "images" / "sa_0.png")
    truth = rle.decode(sample.masks[0]).astype(bool)
    y, x = np.argwhere(truth).mean(0)
    assert truth[int(y), int(x)]
    predictor = Predictor.load(MOBILE_SAM)
    with served(tmp_path, predictor) as url:
        tab = Tab(context, url, truth.shape)
        tab.click(x, y)
        tab.accept(1)
        context.close()
    (row,) = rows(tmp_path)
    answer = asked(predictor, tmp_path).predict({"points": points(row)})
    assert iou(drawn(row), answer.masks[0].numpy()) > 0.99
    assert max(iou(mask.numpy(), truth) for mask in answer.masks) > 0.7
