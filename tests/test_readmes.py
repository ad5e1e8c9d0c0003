"""What the documents say is so."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samlit import plugins
from samlit.masks import rle
from tests.documents import DOCUMENTS, ROOT


def test_ci_runs_the_tests_as_the_readme_says() -> None:
    (command,) = re.findall(r"^(python -m pytest.*)$", (ROOT / ".ci" / "run").read_text(), re.M)
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert any(line.endswith(command) for block in blocks for line in block.splitlines())


def test_the_tree_in_the_readme_is_there() -> None:
    blocks = re.findall(r"^```text\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    paths, above = [], ""
    for line in "".join(blocks).splitlines():
        inside = line.startswith(" ")
        above = above if inside else line.split()[0]
        paths += [(above if inside else "") + path for path in re.findall(r"(?:^|(?<= ))([a-z]+/)(?= )", line)]
    assert {"samlit/", "samlit/masks/", "samlit/drawing/", "docs/"} <= set(paths)
    assert not [path for path in paths if not (ROOT / path).is_dir()]
    rooms = {f"samlit/{file.parent.name}/" for file in (ROOT / "samlit").glob("*/__init__.py")}
    assert rooms <= set(paths), "a room that the tree does not show"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_that_a_document_names_are_there(document: Path) -> None:
    named = re.findall(
        r"`((?:samlit|registry|tests|benchmarks|recipes|docs)/[\w./-]+\.(?:py|yaml|md))", document.read_text()
    )
    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", re.sub(r"```.*?```", "", document.read_text(), flags=re.S))
    missing = [t for t in targets if "://" not in t and not (document.parent / t).exists()]
    assert not missing


def test_every_number_that_a_docstring_gives_as_its_source_is_explained() -> None:
    told = re.findall(r"^\| (\d[\d.]*) \|", (ROOT / "docs" / "sources.md").read_text(), re.M)
    code = [file for folder in ("samlit", "registry", "data") for file in (ROOT / folder).rglob("*.py")]
    cited = re.findall(r"SAM_SPEC ((?:\d[\d.]*\d|\d)(?:(?:,| and) \d[\d.]*\d)*)", "\n".join(map(Path.read_text, code)))
    numbers = {number for one in cited for number in re.split(r",? and |, ", one)}
    assert {"1.2", "2.9", "6.5"} <= numbers
    assert sorted(numbers) == sorted(told)


def test_the_source_of_datas_readme_reads_pairs(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "data" / "README.md").read_text(), re.M | re.S)
    names: dict[str, type] = {}
    exec(text, names)
    mask = np.zeros((20, 30), bool)
    mask[5:15, 3:9] = True
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.jpg")
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "a.png")
    source = names["Pairs"](str(tmp_path))
    assert len(source) == 1
    sample = source[0]
    assert sample.key == "a"
    assert sample.image.shape == (20, 30, 3)
    assert np.array_equal(rle.decode(sample.masks[0]), mask)


@pytest.mark.parametrize("document", ["data/README.md", "docs/data.md"])
def test_every_source_of_samlits_own_is_in_the_tables(document: str) -> None:
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", (ROOT / document).read_text(), re.M)
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    own = {plugin.name for plugin in plugins.catalogue("sources") if plugin.package == "samlit"}
    assert own <= listed
