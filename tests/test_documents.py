"""Every block of README and docs runs as it stands, in a document's order, in a folder with what a reader would have.

The words are the document's. What is put behind them (`cut`) makes a command cheap, and what takes the place of a word
(`HERE`) is not on every machine; nothing else differs from what a reader types, but that commands run in this process,
for each of its own would spend most of its time on importing torch.
"""

from __future__ import annotations

import contextlib
import glob
import io
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
import types
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samlit import cli
from samlit.masks import rle
from samlit.predictor import Predictor
from samlit_sources.shapes import Shapes
from tests import desk
from tests.conftest import Install
from tests.cutting import cut
from tests.documents import DOCUMENTS, ROOT, Block, Line, blocks
from tests.serving import serving

NOT_HERE = {
    "mkdocs serve": "does not end; `.ci/run` builds the site, warnings being errors",
    ".ci/run": "runs this test",
    "python -m pytest": "is this test",
    "wandb login": "needs an account",
    "wandb sync": "sends; that there is something to send is looked at",
    "python benchmarks/model.py": "takes minutes, being about the paper's size; test_commands.py has its words read",
}
"""Commands that are not run, by their first words, and why. `pip install` is another: the extras are looked up."""

HERE = {
    "--device cuda": "--device cpu",
    "s3://bucket": "memory://bucket",  # another store behind the same library, in this process
    "/scratch/": "scratch/",
    "HOST": "127.0.0.1",
    "--recipe text ": "--recipe text_tiny ",  # whose CLIP the document makes; that of `text` is a large download
}
"""What is not on every machine, and what takes its place."""

SKETCHES = {"docs/design.md": "a task's shape, in names that stand for others"}
"""Blocks of Python that are no program, and are compiled only."""

SHARDS = "samlit shards make coco:train.json --out sa1b"
BEFORE = {
    "docs/annotate.md": (
        "samlit annotate --images photos --weights mobile_sam",
        "samlit fit --recipe annotated --data.source.images photos --data.validation.images photos",
    ),
    "docs/predictor.md": ("samlit fit --recipe tiny",),
    "docs/scale.md": (SHARDS,),
    "docs/text.md": (SHARDS, "samlit clip --recipe text_tiny", "samlit fit --recipe text_tiny"),
}
"""What a reader has done before who comes to a document: models and shards that it only uses, or makes further on."""

SLOW = ("docs/plan.md",)
"""Takes more than half a minute: one step of ViT-H and two of ViT-B, without values but operation by operation."""


def at_hand(text: str) -> str:
    """What a document shows, with what is here in place of what is not."""
    for there, here in HERE.items():
        text = text.replace(there, here)
    return text


def says_that_it_makes(words: list[str]) -> list[Path]:
    """Files and folders that a command names as what comes out of it."""
    named = [words[at + 1] for at, word in enumerate(words[:-1]) if word in ("--out", "--json", "--picture")]
    match words:
        case ["clip", *_]:
            named.append("runs/text_clip.pt")
        case ["convert", _, out, *_]:
            named.append(out)
        case ["shards", "index", root, *_]:
            named.append(f"{root}/manifest.json")
        case ["annotate", *_] if "--export" in words:
            named.append(words[words.index("--export") + 2])
    return [Path(name) for name in named]


def state(path: Path) -> Any:
    """What tells whether a file was written; of a folder only whether anything is in it."""
    if path.is_dir():
        return "a folder" if any(path.iterdir()) else None
    return path.stat().st_mtime_ns if path.exists() else None


class Reader:
    """Types what a document shows, in the working directory."""

    def __init__(self, document: str, install: Install, patch: pytest.MonkeyPatch, capsys: Any) -> None:
        self.document, self.install, self.patch, self.capsys = document, install, patch, capsys
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.files: dict[str, str] = {}
        self.package: dict[str, Any] = {}
        self.trained: list[str] = []
        self.visits = self.resumed = 0
        self.wrong: list[str] = []

    def see(self, block: Block) -> None:
        """Do what a block shows; note what comes out otherwise than a reader has to expect."""
        if block.file:
            Path(block.file).write_text(block.text)
            self.files[block.file] = block.text
        elif block.language == "python":
            self.run(block)
        elif block.language == "toml":
            self.package = tomllib.loads(block.text)
        elif block.language in ("sh", "console"):
            for line in block.lines:
                self.type(line)

    def run(self, block: Block) -> None:
        code = compile("\n" * block.number + at_hand(block.text), self.document, "exec")
        if self.document in SKETCHES:
            return
        if self.document in READY:
            READY[self.document](self)
        try:
            exec(code, self.names)
        except Exception as error:
            self.wrong.append(f"{self.document}:{block.number}: {type(error).__name__}: {error}")

    def type(self, line: Line) -> None:
        for part in at_hand(line.text).split(" && "):
            try:
                wrong = self.do(shlex.split(part, comments=True), line)
            except SystemExit as end:
                wrong = f"ends with {end.code}" if end.code else ""
            except Exception as error:
                wrong = f"{type(error).__name__}: {error}"
            said = self.capsys.readouterr()
            if line.printed and not wrong and said.out.rstrip() != line.printed.rstrip():
                wrong = f"it prints\n{said.out}"
            if wrong:
                self.wrong.append(f"{self.document}:{line.number}: {part}\n  {wrong}\n  {said.err[-600:]}")

    def do(self, words: list[str], line: Line) -> str:
        """Run one command: what is wrong with it, or nothing."""
        # What starts processes is no part of this: test_launch.py starts real ones, under torchrun and as srun does.
        if words[0] in ("torchrun", "srun"):
            words = words[words.index("samlit") :]
        elif words[0] == "sbatch":
            words = shlex.split(words[words.index("--wrap") + 1])
        if words[:3] == ["python", "-m", "samlit"]:
            words = words[2:]
        words = [found for word in words for found in (glob.glob(word) if "*" in word else ()) or (word,)]
        if any(" ".join(words).startswith(first) for first in NOT_HERE):
            return self.instead(words)
        match words:
            case ["samlit", *rest]:
                return self.samlit(rest, cheap=not line.printed)
            case ["pip", "install", *what]:
                return self.installed(what)
            case ["python", script, *rest] if script.startswith("benchmarks/"):
                return self.benchmark(script, rest)
        return "nobody knows whether this is a command"

    def samlit(self, words: list[str], cheap: bool = True) -> str:
        if words[0] == "fit":
            if "..." in words:  # what stands in the command before
                words[3:4] = self.trained[3:]
            self.trained = words
        made = says_that_it_makes(words)
        before = {path: state(path) for path in (*made, *Path().rglob("last.ckpt"))}
        self.resumed += "--ckpt_path" in words
        words = [*words, *cut(words, self.resumed if "--ckpt_path" in words else 0)] if cheap else words
        if words[0] == "annotate" and "--port=0" in words:
            self.visits += 1
            status = visited(words, self.visits)
        else:
            try:
                status = cli.main(words)
            except SystemExit as end:
                status = int(end.code or 0)
        if status:
            return f"ends with {status}"
        if words[0] == "fit":
            last = Path().rglob("last.ckpt")
            return "" if any(state(path) != before.get(path) for path in last) else "no last.ckpt is written"
        for path in made:
            stays = path.is_dir() or path.name == "manifest.json"  # what is there is gone on with
            if state(path) is None or (state(path) == before[path] and not stays):
                return f"does not write {path}"
        return ""

    def installed(self, words: list[str]) -> str:
        """Whether there are such extras; and the document's own package, installed for the length of the test."""
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = [extra for word in words for part in re.findall(r"\[(.*)\]", word) for extra in part.split(",")]
        if unknown := set(named) - set(extras):
            return f"there is no extra {unknown}"
        if words == ["."]:  # test_third_party.py does it with pip
            project = self.package["project"]
            groups = project["entry-points"].items()
            lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in rows.items()) for group, rows in groups]
            self.install(project["name"], "".join(lines), self.files)
        return ""

    def benchmark(self, script: str, words: list[str]) -> str:
        made = says_that_it_makes(words)
        with self.patch.context() as patch:
            patch.setattr(sys, "argv", [script, *words, *cut([script, *words])])
            patch.setattr(sys, "path", [str((ROOT / script).parent), *sys.path])
            patch.setattr(subprocess, "run", self.started)
            runpy.run_path(str(ROOT / script), run_name="__main__")
        missing = [path for path in made if state(path) is None]
        return f"does not write {missing[0]}" if missing else ""

    def started(self, words: list[str], **others: Any) -> subprocess.CompletedProcess[str]:
        """A process of `samlit` that a program of the document starts."""
        words = words[words.index("samlit") + 1 :]
        wrong = self.samlit(words)
        assert not wrong, f"{words}: {wrong}"
        return subprocess.CompletedProcess(words, 0)

    def instead(self, words: list[str]) -> str:
        """What is looked at where a command cannot run."""
        missing = words[:2] == ["wandb", "sync"] and not Path(words[2]).is_dir()
        return "there is nothing to send" if missing else ""


def visited(words: list[str], visit: int) -> int:
    """The annotator: started, asked to keep a mask of each image, and stopped by Ctrl-C, which is how it ends."""
    said, wrong = io.StringIO(), []

    def ask(address: str, sent: Any = None) -> bytes:
        data = None if sent is None else json.dumps(sent).encode()
        request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return bytes(answer.read())

    def person() -> None:
        try:
            end = time.monotonic() + 120
            while not (found := re.search(r"open (http://\S+)/ ", said.getvalue())) and time.monotonic() < end:
                time.sleep(0.02)
            assert found, "it never told its address"
            assert b"<script" in ask(f"{found[1]}/")
            for number, image in enumerate(json.loads(ask(f"{found[1]}/api/project"))["images"]):
                one = f"{found[1]}/api/images/{image['id']}"
                shown = np.asarray(Image.open(io.BytesIO(ask(f"{one}/picture"))).convert("L"))
                mask = rle.encode(shown >= np.median(shown))
                row = {"op": "add", "id": 1000 * visit + number, "size": list(mask.size), "counts": mask.counts}
                ask(f"{one}/change", row | {"provenance": {"prompts": {}, "seconds": 1.0}})
        except Exception as error:
            wrong.append(error)
        finally:
            if found:
                os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=person, daemon=True)
    thread.start()
    with contextlib.redirect_stdout(said):
        status = cli.main(words)
    thread.join(130)
    if wrong:
        raise wrong[0]
    return 0 if status == 130 else status or 1


class Ray(types.ModuleType):
    """What docs/data-engine.md asks of Ray, which is not installed: tasks run at once, on a cluster of one GPU."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.init = lambda: None
        self.cluster_resources = lambda: {"GPU": 1.0}
        self.get = list

    def remote(self, **options: Any) -> Callable[[Callable[[], Any]], Any]:
        return lambda work: types.SimpleNamespace(remote=work)


def words_for(reader: Reader) -> None:
    reader.names["predictor"] = predictor = Predictor.load("runs/text_tiny/best.ckpt")
    predictor.set_image("scene.png")


def another_run(reader: Reader) -> None:
    shutil.copytree("runs/look", "runs/other")


def a_cluster(reader: Reader) -> None:
    reader.patch.setitem(sys.modules, "ray", Ray())
    reader.patch.setattr(subprocess, "run", reader.started)


READY = {"docs/text.md": words_for, "docs/tracking.md": another_run, "docs/data-engine.md": a_cluster}
"""What a document's Python takes for granted."""


@pytest.fixture
def reader(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    install: Install,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Reader]:
    """A reader of the document that the test is about, in a folder with all that a reader has."""
    folder = tmp_path / "desk"
    folder.mkdir()
    desk.lay(folder)
    desk.publish(folder / "cache")
    monkeypatch.chdir(folder)
    for name, value in {"SAMLIT_CACHE": str(folder / "cache"), "WANDB_MODE": "offline", "MPLBACKEND": "Agg"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "path", [*sys.path])
    # Thousands of scenes are drawn as quickly as eight: `clip` has no option for their number.
    few = property(lambda self: self.few, lambda self, count: setattr(self, "few", min(count, 8)))
    monkeypatch.setattr(Shapes, "count", few, raising=False)
    with links(folder, request.getfixturevalue("document").read_text(), monkeypatch):
        yield Reader(str(request.getfixturevalue("document").relative_to(ROOT)), install, monkeypatch, capsys)
    for name in [n for n, m in sys.modules.items() if str(tmp_path) in str(getattr(m, "__file__", ""))]:
        del sys.modules[name]


@contextlib.contextmanager
def links(folder: Path, text: str, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """SA-1B's list of links, with a server behind it, and the same archives in a bucket."""
    if "links.txt" not in text:
        yield
        return
    desk.coco(Path("many.json"), 5000, 20)
    assert cli.main(["shards", "make", "coco:many.json", "--out", "meta", "--per-shard", "1", "--jobs", "1"]) == 0
    archives = {file.name: file.read_bytes() for file in Path("meta").glob("*.tar")}
    shutil.rmtree("meta")
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").pipe({f"/bucket/sa1b/{name}": data for name, data in archives.items()})
    with serving({f"/{name}": data for name, data in archives.items()}) as server:
        rows = [f"{name}\t{server.url}/{name}" for name in archives]
        Path("links.txt").write_text("\n".join(["file_name\tcdn_link", *rows]) + "\n")
        yield
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


NAMES = {str(file.relative_to(ROOT)): file for file in DOCUMENTS}
SHOWN = [
    pytest.param(file, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
    for name, file in NAMES.items()
    if {"sh", "console", "python"} & {block.language for block in blocks(file.read_text())}
]


@pytest.mark.parametrize("document", SHOWN)
def test_what_a_document_shows_is_so(document: Path, reader: Reader) -> None:
    for text in BEFORE.get(reader.document, ()):
        reader.type(Line(0, text))
    for block in blocks(document.read_text()):
        reader.see(block)
    assert not reader.wrong, "\n" + "\n".join(reader.wrong)


@pytest.mark.parametrize("document", [ROOT / "README.md"], ids=["README.md"])
def test_what_is_not_so_would_be_seen(document: Path, reader: Reader) -> None:
    asked = "samlit segment photo.jpg --weights sam_vit_h --point 60,60 --out"
    for text, printed in (
        ("samlit list recipes", ""),
        (f"{asked} out.png", ""),
        ("samlit list recipes", "recipes\ttiny"),
        (f"{asked} nowhere/out.png --box 1,2", ""),
        ("samlit shards check nowhere", ""),
        ("samlit evaluate --task points --help --out numbers", ""),
        ("pip install 'samlit[everything]'", ""),
        ("wandb sync runs/none", ""),
        ("make install", ""),
    ):
        reader.type(Line(len(reader.wrong) + 1, text, printed))
    reader.see(Block(8, "python", "import samlit\nsamlit.nothing"))
    assert [wrong.partition(": ")[0] for wrong in reader.wrong] == [f"README.md:{n}" for n in range(1, 9)]


def test_nothing_is_excused_that_no_document_shows() -> None:
    shown = "\n".join(block.text for file in DOCUMENTS for block in blocks(file.read_text()))
    assert not [words for words in (*NOT_HERE, *HERE) if words not in shown]
    assert not {*SKETCHES, *BEFORE, *READY, *SLOW} - NAMES.keys()


def test_blocks_and_lines_are_found() -> None:
    text = "`a.py`\n\n```python\nx\n```\n\n- b\n  ```sh\n  c \\\n    d  # e\n  # f\n  g\n  ```\n"
    text += "```console\n$ h\ni\n\nj\n$ k\n```\n"
    code, shell, console = blocks(text)
    assert (code.number, code.file, code.text, shell.file) == (3, "a.py", "x\n", "")
    assert shell.lines == [Line(9, "c d  # e"), Line(12, "g")]
    assert console.lines == [Line(15, "h", "i\n\nj"), Line(19, "k")]
