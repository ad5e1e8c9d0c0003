"""Commands that no shell block shows, in the tables of a document: the program itself reads their words.

What a shell block shows is run (test_documents.py); of a benchmark that takes minutes the words are read here.
"""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from samlit import cli
from samlit.errors import SamlitError
from samlit.weights import download
from samlit_sources.shapes import Shapes
from tests.documents import DOCUMENTS, ROOT, blocks, outside

MISSING = re.compile(r"there is no (list of links|checkpoint|such (file|folder)|recipe file '\w+\.yaml')")
"""What a command says in an empty folder whose words are right."""


def in_tables(text: str) -> list[str]:
    """The commands of samlit in a document's tables."""
    rows = "\n".join(re.findall(r"^\|.*", outside(text), re.M))
    return re.findall(r"`((?:python -m )?samlit [a-z]+ --[^`]*)`", rows)


def commands() -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for file in DOCUMENTS:
        for line in in_tables(file.read_text()):
            found.setdefault(line, str(file.relative_to(ROOT)))
    return [(name, line) for line, name in found.items()]


class Reached(SamlitError):
    """The words are read; what comes now is work."""


def worked(*args: object, **keys: object) -> None:
    raise Reached("here the work begins")


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with nothing in it and no way out of it: commands end where they would begin to work."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAMLIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "fetch", worked)
    monkeypatch.setattr(importlib.import_module("samlit.plan.report"), "plan", worked)
    monkeypatch.setattr(Shapes, "prepare", worked)
    for name, document in (("counting", "adding_a_task"), ("pyramid", "adding_an_encoder")):
        text = (ROOT / "docs" / f"{document}.md").read_text()
        (tmp_path / f"{name}.py").write_text(text.split("```python\n")[1].split("```")[0])


def test_there_are_commands_to_read() -> None:
    assert len(commands()) > 10
    text = "| a | `samlit fit --recipe x`, `samlit.x` |\n```sh\n| `samlit plan --recipe y` |\n```\n`samlit list --x`\n"
    assert in_tables(text) == ["samlit fit --recipe x"]


@pytest.mark.parametrize(("document", "line"), commands())
@pytest.mark.usefixtures("empty")
def test_a_command_is_one(document: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line.removeprefix("python -m "))
    status, said = read(words[1], words[2:]), capsys.readouterr().err
    assert status != 2 or MISSING.search(said), said
    assert "--debug" not in said, f"nobody foresaw this: {said}"


def read(command: str, words: list[str]) -> int:
    """The exit status: 2 is for words that are wrong."""
    words = [word for word in words if word != "..."]
    if command in ("fit", "validate", "test") and not any(word.endswith(".help") for word in words):
        words.append("--print_config")
    try:
        return cli.main([command, *words])
    except SystemExit as end:
        return int(end.code or 0)


LONG = [
    line.text
    for file in DOCUMENTS
    for block in blocks(file.read_text())
    for line in block.lines
    if line.text.startswith("python benchmarks/model.py ")
]


@pytest.mark.parametrize("line", LONG)
@pytest.mark.usefixtures("empty")
def test_a_long_benchmark_takes_its_words(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *args: object, **keys: object) -> None:
        usual(parser, *args, **keys)  # type: ignore[call-overload]
        raise Reached("its words are read")

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", shlex.split(line)[1:])
    with pytest.raises(Reached):
        importlib.import_module("benchmarks.model").main()


@pytest.mark.parametrize(
    "line",
    [
        "samlit fit --recipe tiny --data.batchsize 8",
        "samlit evaluate --task points --weights mobile_sam --data coco:val.json --task.click 3",
        "samlit segment photo.jpg --weights mobile_sam --everything.points 3 --everything --out out.png",
        "samlit generate --images photos --weights sam_vit_h --out shards --present paper",
        "samlit shards audit shards --out audit --samples 500",
        "samlit annotate --images photos --weights mobile_sam --propose nothing",
    ],
)
@pytest.mark.usefixtures("empty")
def test_a_slip_would_be_seen(line: str) -> None:
    _, command, *words = line.split()
    assert read(command, words) == 2
