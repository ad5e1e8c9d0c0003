"""Every command line of the documents goes through the parser that it is meant for, with all its options and names.

What follows the parser (weights, images, days of training) is cut off, unless it is quick.
"""

from __future__ import annotations

import argparse
import json
import re
import runpy
import shlex
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from samlit import checkpoints, images, plugins, specs, suite
from samlit.annotator import store
from samlit.cli import main
from samlit.generation import command as generation
from samlit.plan import report
from samlit.predictor import Predictor
from tests.commands import DOCUMENTS, ROOT, lines

# Programs of others, which are no parser of ours to ask, and why they are in a document.
OTHERS = {
    ("python", "-m", "pytest"): "this is it; .ci/run is held to it by test_readmes.py",
    (".ci/run",): "it runs this test",
    ("mkdocs", "serve"): "serves until it is stopped; .ci/run builds the site",
    ("wandb", "login"): "asks for a password",
    ("wandb", "sync"): "sends a run to a service",
}
# Commands of a package that the document tells to write first, and the test that does so.
ELSEWHERE = {"model.prompts+=circles": "test_third_party.py", "counting.Counting": "test_adding_a_task.py"}
TYPED = sorted({(str(file.relative_to(ROOT)), shlex.join(words)) for file in DOCUMENTS for words in lines(file)})


class Understood(BaseException):
    """The parser has read the line: what it starts is not for a test. Not an Exception, which `samlit` would tell."""


def understood(*_: Any, **__: Any) -> Any:
    raise Understood


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder, where what comes after the command line does not."""
    monkeypatch.chdir(tmp_path)
    every: dict[str, Any] = {}
    for plugin in plugins.catalogue("prompts"):
        kind = plugins.load(plugin.class_path, plugin.name)
        every[plugin.name] = kind.__new__(kind)  # its option and how it is read, without weights
    object.__setattr__(every["text"], "parse", str)  # which asks its CLIP otherwise
    loaded = SimpleNamespace(net=SimpleNamespace(prompt_types=every, pixel_mean=None), image_size=64)
    monkeypatch.setattr(Predictor, "load", lambda *_: loaded)
    monkeypatch.setattr(specs, "build", lambda *_: (None, {}))
    monkeypatch.setattr(suite, "on_disk", lambda *_: [])
    monkeypatch.setattr(generation, "_source", lambda *_: (None, {}))
    for owner, name in ((checkpoints, "load"), (images, "read"), (report, "plan"), (store.Store, "__init__")):
        monkeypatch.setattr(owner, name, understood)


def read(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Let the command read its words, and raise if it does not take one."""
    if words[:2] == ["pip", "install"]:
        extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
        asked = re.findall(r"\[([\w,]+)\]", " ".join(words))
        assert {extra for found in asked for extra in found.split(",")} <= extras
        return
    if words[0] == "python" and words[1].startswith("benchmarks"):
        given, file = words[2:], ROOT / words[1] / ("" if words[1].endswith(".py") else "__main__.py")
        monkeypatch.setattr(sys, "argv", [str(file), *given])
        monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
        stop_after_parsing(monkeypatch)
        with pytest.raises(Understood):
            runpy.run_path(str(file), run_name="__main__")
        return
    assert words[0] == "samlit", f"{words[0]} is neither a program of samlit nor in OTHERS"
    if words[1] in {"fit", "validate"}:
        ends = [] if any(".help" in word for word in words) else ["--print_config"]
        status = main([*words[1:], *ends])
        assert status == 0, capsys.readouterr().err
        return
    if words[1] in {"shards", "convert", "export", "clip"}:
        stop_after_parsing(monkeypatch)
    try:
        status = main(words[1:])
    except Understood:
        return
    assert status == 0, capsys.readouterr().err
    assert words[1] in {"list", "--version", "--help"} or "--help" in words


def stop_after_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, *given: Any, **named: Any) -> Any:
        whole(self, *given, **named)
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize(("document", "line"), TYPED)
def test_every_command_of_the_documents_is_understood(
    document: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(line)
    if any(tuple(words[: len(other)]) == other for other in OTHERS):
        return
    for word, test in ELSEWHERE.items():
        if any(word in typed for typed in words):
            assert (ROOT / "tests" / test).exists()
            return
    # What a task reads when it is made.
    image = {"id": 1, "file_name": "1.jpg", "width": 8, "height": 8}
    Path("val.json").write_text(json.dumps({"images": [image], "annotations": [], "categories": [{"id": 1}]}))
    Path("detections.json").write_text('[{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]')
    for text in re.findall(r"^`finetune\.yaml`\n+```yaml\n(.*?)^```", (ROOT / document).read_text(), re.M | re.S):
        assert yaml.safe_load(text)
        Path("finetune.yaml").write_text(text)
    read(words, monkeypatch, capsys)


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize(
    "line",
    [
        "samlit fit --recipe tiny --data.batchsize 8",
        "samlit fit --recipe tiny --data.batch_size eight",
        "samlit shards make coco:train.json --outt shards",
        "samlit evaluate --task point --weights mobile_sam --data coco:val.json",
        "samlit evaluate --task points --weights mobile_sam --data coca:val.json",
        "samlit evaluate --task text_to_mask --task.fnid false --weights mobile_sam --data coco:val.json",
        "samlit segment photo.jpg --weights mobile_sam --pont 1,2 --out out.png",
        "samlit segment photo.jpg --weights mobile_sam --everything --everything.side 3 --out out.png",
        "samlit generate --images photos --weights mobile_sam --out shards --presets released",
        "samlit annotate --images photos --weights mobile_sam --people ada",
        "samlit export --weights mobile_sam --to onyx --out a",
        "python benchmarks/model.py encoder --precisoin fp32",
        "pip install 'samlit[onx]'",
        "make everything",
    ],
)
def test_a_line_with_a_typo_is_not(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((AssertionError, SystemExit, pytest.fail.Exception)):
        read(shlex.split(line), monkeypatch, capsys)
