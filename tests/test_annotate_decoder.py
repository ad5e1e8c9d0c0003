"""The decoder in the browser answers as the Predictor does; what is fetched for it is what was published."""

import hashlib
import io
import shutil
import tarfile
import threading
import time

import numpy as np
import pytest
import torch

from samlit.annotator import assets, graphs
from samlit.annotator.server import Annotator
from samlit.annotator.store import Store
from samlit.errors import SamlitError
from samlit.export import onnx as onnx_export
from samlit.predictor import InFrame, Predictor
from tests import official
from tests.conftest import MOBILE_SAM
from tests.test_annotate_server import picture

ON_THE_PROCESSOR = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan")
"""WebGPU where there is no GPU."""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def tarball(folder, files, dist="package/dist/"):
    path = folder / "package.tgz"
    with tarfile.open(path, "w:gz") as packed:
        for name, content in files.items():
            member = tarfile.TarInfo(dist + name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return path, hashlib.sha512(path.read_bytes()).hexdigest()


def test_a_package_is_unpacked_whole_or_not_at_all(tmp_path):
    path, sha512 = tarball(tmp_path, {"a.mjs": b"a", "b.wasm": b"b", "c": b"c", "../../../escaped": b"!"})
    with pytest.raises(SamlitError, match="is not what was published"):
        assets.unpack(path, tmp_path / "out", "0" * 128, ("a.mjs",))
    with pytest.raises(SamlitError, match=r"has no file dist/missing\.mjs"):
        assets.unpack(path, tmp_path / "out", sha512, ("a.mjs", "missing.mjs"))
    assert [file.name for file in tmp_path.iterdir()] == ["package.tgz"]
    assets.unpack(path, tmp_path / "out", sha512, ("a.mjs", "b.wasm"))
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == {"a.mjs": b"a", "b.wasm": b"b"}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "package.tgz"]


def test_a_link_in_a_package_is_no_file(tmp_path):
    path = tmp_path / "package.tgz"
    with tarfile.open(path, "w:gz") as packed:
        member = tarfile.TarInfo("package/dist/a.mjs")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        packed.addfile(member)
    with pytest.raises(SamlitError, match="has no file"):
        assets.unpack(path, tmp_path / "out", hashlib.sha512(path.read_bytes()).hexdigest(), ("a.mjs",))


def test_without_npm_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMLIT_CACHE", str(tmp_path))
    monkeypatch.delenv(assets.HERE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SamlitError, match=r"without npm .* SAMLIT_ORT_WEB"):
        assets.runtime()
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'no network' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(SamlitError, match=r"npm cannot fetch onnxruntime-web \(no network\)"):
        assets.runtime()
    npm.write_text("#!/bin/sh\necho x > onnxruntime-web-1.30.0.tgz\n")
    with pytest.raises(SamlitError, match="is not what was published"):
        assets.runtime()
    monkeypatch.setenv(assets.HERE, str(tmp_path))
    with pytest.raises(SamlitError, match=r"SAMLIT_ORT_WEB: there is no ort\.wasm\.min\.mjs in"):
        assets.runtime()


@pytest.fixture(scope="module")
def tab(decoder):
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *ON_THE_PROCESSOR])
        yield browser.new_page()
        browser.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory, decoder, checkpoint):
    """A server of the small model whose decoder runs in the browser, its address, and a Predictor."""
    import uvicorn

    folder = tmp_path_factory.mktemp("served")
    (folder / "photos").mkdir()
    picture().save(folder / "photos" / "0.png")
    predictor = Predictor.load(checkpoint)
    store = Store(folder / "photos", folder / "out")
    annotator = Annotator(store, Predictor(predictor.net, predictor.image_size), "small", folder, decoder=decoder)
    server = uvicorn.Server(uvicorn.Config(annotator.app(), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/", predictor
    server.should_exit = True
    thread.join(20)


OPENED = """async ({threads, gpu, embedding, about}) => {
  const { open } = await import("/decoder.js");
  globalThis.tried?.close();
  globalThis.tried = await open("/decoder", { threads, gpu });
  await tried.image(Float32Array.from(embedding), about);
  return [tried.where, crossOriginIsolated];
}"""
PREDICT = """async (asked) => {
  const mask = asked.mask && Float32Array.from(asked.mask);
  const { masks, scores, size } = await tried.predict({ ...asked, mask });
  return { masks: masks.map((one) => Array.from(one)), scores, size };
}"""


def opened(tab, served, threads=1, gpu=False):
    address, predictor = served
    tab.goto(address)
    predictor.set_image(np.asarray(picture()))
    image = predictor.embedding.embedding.image[0]
    about = {"size": [20, 50], "embedding": list(image.shape)}
    return tab.evaluate(OPENED, {"threads": threads, "gpu": gpu, "embedding": image.flatten().tolist(), "about": about})


@pytest.mark.parametrize(("where", "threads", "near"), [("wasm", 1, 1e-4), ("wasm", 2, 1e-4), ("webgpu", 1, 1e-2)])
def test_answers_are_the_predictors(tab, served, where, threads, near):
    if where == "webgpu":
        tab.goto(served[0])
        if not tab.evaluate("async () => Boolean(await navigator.gpu?.requestAdapter?.())"):
            pytest.skip("this Chromium has no WebGPU, not even on the processor")
    assert opened(tab, served, threads, where == "webgpu") == [where, True]
    _, predictor = served
    earlier = predictor.predict({"points": [[30, 4, 1]]}).low_res_logits[0]
    some = (
        {"points": [[30, 4, 1]]},
        {"points": [[30, 4, 1], [2, 19, 0], [44, 3, 1]]},
        {"box": [3, 2, 44, 17]},
        {"points": [[30, 4, 0]], "box": [3, 2, 44, 17]},
        {"points": [[30, 4, 1], [2, 19, 0]], "mask": earlier},
    )
    # A GPU that the processor plays is slow: of it, the prompt that goes through the whole graph.
    for given in some if where == "wasm" else some[-1:]:
        for multimask in (True, False) if where == "wasm" else (True,):
            prompts = {}
            prompts |= {"points": given["points"]} if "points" in given else {}
            prompts |= {"boxes": [given["box"]]} if "box" in given else {}
            prompts |= {"masks": [InFrame(earlier)]} if "mask" in given else {}
            wanted = predictor.predict(prompts, multimask)
            mask = {"mask": earlier.flatten().tolist()} if "mask" in given else {}
            found = tab.evaluate(PREDICT, given | mask | {"multimask": multimask})
            order = np.argsort(found["scores"])[::-1].copy()
            logits = torch.tensor(found["masks"]).view(-1, *found["size"])[order]
            assert logits.shape == wanted.low_res_logits.shape
            assert (logits - wanted.low_res_logits).abs().max() < near * wanted.low_res_logits.abs().max()
            torch.testing.assert_close(torch.tensor(found["scores"])[order], wanted.iou, atol=near, rtol=near)
    tab.goto("about:blank")  # nor does it rest while a page is there


def test_a_newer_prompt_takes_the_place_of_one_that_waits(tab, served):
    opened(tab, served)
    told = tab.evaluate("""async () => {
      const asked = [1, 2, 3, 4].map((n) => tried.predict({ points: [[5 * n, 4, 1]], multimask: false }));
      const ended = await Promise.allSettled(asked);
      const last = await tried.predict({ points: [[20, 4, 1]], multimask: false });
      const same = last.masks[0].every((x, n) => x === ended[3].value.masks[0][n]);
      return [...ended.map((one) => one.reason?.name ?? one.status), same];
    }""")
    assert told == ["fulfilled", "AbortError", "AbortError", "fulfilled", True]


def test_what_goes_wrong_is_told_and_a_closed_decoder_answers_nobody(tab, served):
    opened(tab, served)
    told = tab.evaluate("""async () => {
      const { open } = await import("/decoder.js");
      const failed = [await open("/nowhere", {}).catch((error) => error.message)];
      const fresh = await open("/decoder");
      failed.push(await fresh.predict({ points: [[1, 2, 1]], multimask: true }).catch((error) => error.message));
      const asked = tried.predict({ points: [[1, 2, 1]], multimask: true });
      tried.close();
      failed.push(await asked.catch((error) => error.name));
      return failed;
    }""")
    assert "nowhere/model.json: 404" in told[0]
    assert told[1:] == ["there is no image yet", "AbortError"]


@pytest.mark.skipif(
    not MOBILE_SAM.is_file(), reason=f"{MOBILE_SAM} is not here: SAMLIT_SHARED names the folder of real data beside it"
)
def test_the_benchmark_compares_answers_that_are_the_same(tab, mobile_graphs, tmp_path):
    """What benchmarks/browser.py times by turns in one page: SAM's own export, and the graph here."""
    from benchmarks import browser as benchmark

    predictor = Predictor(official.mobile(MOBILE_SAM)[1], 1024)
    predictor.set_image(np.asarray(picture().resize((750, 500))))
    benchmark.furnish(tmp_path, mobile_graphs / "released.onnx", predictor, mobile_graphs)
    (tmp_path / "decoder" / "ort").symlink_to(assets.runtime())
    with benchmark.served(tmp_path) as url:
        tab.goto(url)
        told = benchmark.measure(tab, predictor, threads=1, clicks=2, warm=0)
    assert max(told.apart) < 1e-4


def test_graphs_are_made_once_for_a_models_weights(tmp_path, checkpoint, monkeypatch):
    (tmp_path / "ort").mkdir()
    for name in assets.FILES:
        (tmp_path / "ort" / name).write_bytes(b"")
    monkeypatch.setenv(assets.HERE, str(tmp_path / "ort"))
    made = []

    def write(net, image_size, out, options):
        made.append(options.parts)
        out.mkdir()
        for part in ("prepare", "prompt"):
            (out / f"{part}.onnx").write_bytes(b"")

    monkeypatch.setattr(onnx_export, "write", write)
    predictor = Predictor.load(checkpoint)
    first = graphs.folder(predictor.net, predictor.image_size, tmp_path / "cache")
    assert {file.name for file in first.iterdir()} == {"prepare.onnx", "prompt.onnx", "ort"}
    shutil.copytree(tmp_path / "ort", tmp_path / "elsewhere")
    monkeypatch.setenv(assets.HERE, str(tmp_path / "elsewhere"))
    assert graphs.folder(predictor.net, predictor.image_size, tmp_path / "cache") == first
    assert (first / "ort").resolve() == (tmp_path / "elsewhere").resolve()
    assert made == [("browser",)]
    with torch.no_grad():
        next(predictor.net.decoder.parameters()).add_(0.1)
    assert graphs.folder(predictor.net, predictor.image_size, tmp_path / "cache") != first
    assert len(made) == len(list((tmp_path / "cache").iterdir())) == 2
