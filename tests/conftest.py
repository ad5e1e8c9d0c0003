"""What tests share: the samlit command in a process of its own, and packages that are installed for one test."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from samlit import outline, plugins
from tests import forks

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("SAMLIT_SHARED") or ROOT.parent / "shared" / "data")
MOBILE_SAM = SHARED.parent / "weights" / "mobile_sam.pt"
Shell = Callable[..., "subprocess.CompletedProcess[str]"]
Install = Callable[..., Path]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job is started so, and what it starts takes it over: Ctrl-C would end none of them.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionstart() -> None:
    """One of the processes that all tests run in, then: it imports while the first ones run."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        forks.begin()


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """What a run in this process leaves in the environment, as ranks and ports, is not the next test's."""
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Run a command line as a person does, in an empty folder; or `forked`, without the time of the imports."""

    def run(
        *words: str, python: str = sys.executable, cwd: Path = tmp_path, timeout: float = 300, forked: bool = False
    ) -> object:
        quiet = {"OMP_NUM_THREADS": "1", "COLUMNS": "120", "PYTHONWARNINGS": ""}
        if forked:
            return forks.command(words, env={**os.environ, **quiet}, cwd=cwd, timeout=timeout)
        return subprocess.run(
            [python, *words],
            cwd=cwd,
            env={**os.environ, **quiet},
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    return run


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a package for the length of a test: its modules and its metadata, in a folder on the path."""

    def forget() -> None:
        plugins._index.cache_clear()
        outline.parse.cache_clear()
        importlib.invalidate_caches()

    def write(
        package: str, entries: str, modules: Mapping[str, str] | None = None, metadata: str = "", where: str = "site"
    ) -> Path:
        site = tmp_path / where
        info = site / f"{package.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n{metadata}")
        (info / "entry_points.txt").write_text(entries)
        for name, text in (modules or {}).items():
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_text(text)
        if str(site) not in sys.path:
            monkeypatch.syspath_prepend(site)
        forget()
        return site

    before = set(sys.modules)
    yield write
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    monkeypatch.undo()
    forget()


RECIPE = """
model:
  encoder:
    class_path: vit
    init_args: {dim: 16, depth: 1, heads: 2, global_blocks: [0], window: 4, patch: 8, channels: 16}
  prompts: [points, boxes, masks]
  decoder: {class_path: mask, init_args: {depth: 1, heads: 1, mlp_dim: 16, iou_hidden: 16}}
  task: {class_path: interactive, init_args: {corrections: 1}}
data:
  source: {class_path: tests.fitting.Discs}
  image_size: 32
trainer:
  accelerator: cpu
  logger: false
  max_steps: 1
  enable_model_summary: false
  enable_progress_bar: false
speed: {flops: false}
"""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny model as `samlit fit` writes it; its weights were stirred, so that masks are not empty."""
    from samlit.generation.claims import claimed

    file = shared(tmp_path_factory) / "tiny.ckpt"
    with claimed(file.with_suffix(".lock"), patient=True):
        if not file.exists():
            fitted(tmp_path_factory.mktemp("fitted")).replace(file)
    return file


def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all processes of the tests: what is slow to make is made by one of them."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


def fitted(folder: Path) -> Path:
    import torch

    from samlit import cli

    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE)
    assert cli.main(["fit", "--recipe", str(recipe), "--trainer.default_root_dir", str(folder / "runs")]) == 0
    (file,) = folder.rglob("last.ckpt")
    saved = torch.load(file, weights_only=True)
    chance = torch.Generator().manual_seed(3)
    for name, value in saved["state_dict"].items():
        if value.is_floating_point():
            saved["state_dict"][name] = value + 0.4 * torch.randn(value.shape, generator=chance)
    torch.save(saved, folder / "tiny.ckpt")
    return folder / "tiny.ckpt"


@pytest.fixture(scope="session")
def decoder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a browser needs to decode with that model."""
    from samlit.annotator import graphs
    from samlit.errors import SamlitError
    from samlit.generation.claims import claimed
    from samlit.predictor import Predictor

    predictor, folder = Predictor.load(checkpoint), shared(tmp_path_factory)
    with claimed(folder / "decoders.lock", patient=True):
        try:
            return graphs.folder(predictor.net, predictor.image_size, folder / "decoders")
        except SamlitError as error:
            pytest.skip(str(error))


@pytest.fixture(scope="session")
def mobile_graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graphs of MobileSAM's real weights, and SAM's own of them, made once for all processes of the tests."""
    from samlit.export import onnx as onnx_export
    from samlit.generation.claims import claimed
    from tests import official

    out = shared(tmp_path_factory) / "mobile_graphs"
    with claimed(out.with_suffix(".lock"), patient=True):
        if not out.exists():
            released, own = official.mobile(MOBILE_SAM)
            made = out.with_suffix(".made")
            onnx_export.write(own, 1024, made, onnx_export.Options(("decoder", "browser")))
            official.exported(released, made / "released.onnx")
            made.rename(out)
    return out
