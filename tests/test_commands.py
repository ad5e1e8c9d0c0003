"""Every command that a document shows is one: its words are read by the programs themselves, as far as the work."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from samlit import cli, download
from samlit.errors import SamlitError
from samlit_sources.shapes import Shapes
from tests.test_readmes import DOCUMENTS, ROOT

LAUNCHERS = ("torchrun", "srun", "sbatch")
MISSING = re.compile(r"there is no (list of links|checkpoint|such (file|folder)|recipe file '\w+\.yaml')")
"""What a command says in an empty folder whose words are right."""
OTHERS = {
    "wandb": "Weights & Biases' own",
    "mkdocs": "`.ci/run` builds the site",
    ".ci/run": "is what runs this",
}
"""Programs that are not samlit's, and why it is enough that they are called so."""
STRANGERS = {"registry/README.md": "circles"}
"""Plug-ins that a document makes: test_third_party.py makes them too, and trains with them."""


def lines_of(text: str) -> list[str]:
    """The commands of a document's shell blocks, and samlit's own in its tables."""
    found = []
    for block in re.findall(r"^ *```(?:sh|bash|console)\n(.*?)^ *```", text, re.M | re.S):
        lines = [line.strip() for line in re.sub(r"\\\n\s*", "", block).splitlines()]
        if any(line.startswith("$ ") for line in lines):  # with what it prints
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        found += [line for line in lines if line and not line.startswith("#")]
    outside = re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S)
    rows = "\n".join(re.findall(r"^\|.*", outside, re.M))
    found += re.findall(r"`((?:python -m )?samlit [a-z]+ --[^`]*)`", rows)
    return found


def commands() -> list[tuple[str, str]]:
    found = {}
    for file in DOCUMENTS:
        for line in lines_of(file.read_text()):
            for part in line.split(" && "):
                found.setdefault(part, str(file.relative_to(ROOT)))
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
    (tmp_path / "own.py").write_text("from samlit_sources.folder import Folder as Plates\n")
    for name, document in (("counting", "adding_a_task"), ("pyramid", "adding_an_encoder")):
        text = (ROOT / "docs" / f"{document}.md").read_text()
        (tmp_path / f"{name}.py").write_text(text.split("```python\n")[1].split("```")[0])


def test_there_are_commands_to_read() -> None:
    assert len(commands()) > 80
    assert lines_of("```console\n$ a --b\nprinted\n```\n") == ["a --b"]
    assert lines_of("| a | `samlit fit --recipe x`, `samlit.x` |\n```sh\na \\\n  b\n# c\n```\n") == [
        "a b",
        "samlit fit --recipe x",
    ]


@pytest.mark.parametrize(("document", "line"), commands())
@pytest.mark.usefixtures("empty")
def test_a_command_is_one(
    document: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(line, comments=True)
    if words[0] in LAUNCHERS:
        words = shlex.split(words[words.index("--wrap") + 1]) if "--wrap" in words else words[words.index("samlit") :]
    if words[:3] == ["python", "-m", "samlit"]:
        words = words[2:]
    match words:
        case ["samlit", command, *rest]:
            if (name := STRANGERS.get(document, "no stranger")) in line:
                pytest.skip(f"{name} is the document's own plug-in: test_third_party.py has it")
            status, said = read(command, rest), capsys.readouterr().err
            assert status != 2 or MISSING.search(said), said
            assert "--debug" not in said, f"nobody foresaw this: {said}"
        case ["python", script, *rest] if script.startswith("benchmarks"):
            told = parsed(script, rest, monkeypatch)
            assert told, f"{document}: {script} {rest}: {capsys.readouterr().err}"
        case ["pip", "install", *rest]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            named = [extra for word in rest for part in re.findall(r"\[(.*)\]", word) for extra in part.split(",")]
            assert set(named) <= set(extras)
        case ["python", "-m", "pytest"]:
            pass
        case [program, *_]:
            assert program in OTHERS, f"{document}: nobody knows whether this is a command: {line}"


def read(command: str, words: list[str]) -> int:
    """The exit status: 2 is for words that are wrong."""
    words = [word for word in words if word != "..."]
    if command in ("fit", "validate") and not any(word.endswith(".help") for word in words):
        words.append("--print_config")
    try:
        return cli.main([command, *words])
    except SystemExit as end:
        return int(end.code or 0)


def parsed(script: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a benchmark's own parser takes these words."""
    usual = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *args: object, **keys: object) -> None:
        usual(parser, *args, **keys)  # type: ignore[call-overload]
        raise Reached("its words are read")

    name = script.removesuffix(".py").replace("/", ".")
    module = importlib.import_module(f"{name}.__main__" if name == "benchmarks" else name)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", [script, *words])
    try:
        module.main()
    except Reached:
        return True
    except SystemExit:
        return False
    return False


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
