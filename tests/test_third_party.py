"""Plug-ins of strangers, installed beside samlit as they would be: the example of registry/README.md, word for word."""

from __future__ import annotations

import json
import re
import site
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import cutting

ROOT = Path(__file__).parents[1]
Shell = Callable[..., "subprocess.CompletedProcess[str]"]
FIT = ["-m", "samlit", "fit", "--recipe", "tiny", "--data.source.count", "8", "--data.validation.count", "2"]
FIT += ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "1", "--trainer.enable_progress_bar", "false"]
FIT += ["--trainer.logger", "false", "--trainer.devices", "1", "--report.examples", "0", "--speed.flops", "false"]
FIT += [word for key, value in cutting.SMALL["tiny"].items() for word in (f"--{key}", str(value))]


def example(title: str) -> str:
    """A block of registry/README.md: by the name above it, or by its language."""
    text = (ROOT / "registry" / "README.md").read_text()
    (block,) = re.findall(rf"^{re.escape(title)}.*?\n(.*?)^```$", text, re.M | re.S)
    return re.sub(r"\A\s*```\w+\n", "", block)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An environment of its own that sees this one's packages: torch is not downloaded again for a test."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True)
    inner = next((folder / "lib").glob("python3*/site-packages"))
    outer = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    # addsitedir, and not a plain path, so that this environment's own .pth files (an editable samlit) count too.
    (inner / "outer.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in sorted(outer)))
    return str(folder / "bin" / "python")


@pytest.fixture(scope="module")
def installed(python: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The environment with the example's package in it."""
    package = tmp_path_factory.mktemp("samlit-circles")
    (package / "circles.py").write_text(example("`circles.py`"))
    (package / "circling.py").write_text(example("`circling.py`"))
    (package / "pyproject.toml").write_text(example("```toml"))
    command = [python, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "-q", str(package)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return python


def test_the_example_is_listed(shell: Shell, installed: str) -> None:
    done = shell("-m", "samlit", "list", "--json", python=installed)
    assert done.returncode == 0, done.stderr
    rows = {(row["kind"], row["name"]): row for row in json.loads(done.stdout)}
    assert rows["prompts", "circles"]["package"] == "samlit-circles"
    assert rows["prompts", "circles"]["summary"] == "A circle around what is wanted."
    assert rows["tasks", "circling"]["summary"] == "One circle a mask, answered once."
    assert rows["prompts", "points"]["package"] == "samlit"
    assert not any("problem" in row for row in rows.values())


def test_the_example_trains_and_is_validated(shell: Shell, installed: str, tmp_path: Path) -> None:
    words = ["--model.prompts+=circles", "--model.task", "circling", "--model.validation+=circling"]
    done = shell(*FIT, *words, python=installed)
    assert done.returncode == 0, done.stderr
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    import torch

    state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    assert state["global_step"] == 2
    assert any("circle" in name for name in state["state_dict"])
    (history,) = tmp_path.rglob("history.jsonl")
    assert "val/circle" in history.read_text()


def test_a_file_in_the_working_directory_needs_no_package(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "rings.py").write_text(example("`circles.py`"))
    words = ["--model.prompts+=rings.Circles", "--model.task.first", "{circles: 1.0}"]
    done = shell(*FIT, *words, forked=True)
    assert done.returncode == 0, done.stderr


def test_a_broken_package_beside_it_hurts_nobody(shell: Shell, python: str, tmp_path: Path) -> None:
    inner = next((Path(python).parents[1] / "lib").glob("python3*/site-packages"))
    info = inner / "samlit_wreck-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: samlit-wreck\nVersion: 1.0\nRequires-Dist: wreckage; extra == 'deep'\n"
    )
    (inner / "wreck.py").write_text('import wreckage\n\nclass Wreck:\n    """A wreck."""\n\nclass Points: ...\n')
    try:
        (info / "entry_points.txt").write_text("[samlit.prompts]\nwreck = wreck:Wreck\n")
        listed = shell("-m", "samlit", "list", "prompts", python=python)
        assert listed.returncode == 0, listed.stderr
        assert "it needs 'wreckage', which is not installed: pip install 'samlit-wreck[deep]'" in listed.stdout

        asked = shell(*FIT, "--model.prompts+=wreck", python=python)
        assert asked.returncode == 1
        assert re.fullmatch(r"samlit: [^\n]*needs 'wreckage'[^\n]*pip install 'samlit-wreck\[deep\]'\n", asked.stderr)

        (info / "entry_points.txt").write_text("[samlit.decoders]\nmask = wreck:Wreck\n")
        clash = shell(*FIT, python=python)
        assert clash.returncode == 2
        assert "samlit (samlit_decoders.mask.Mask) and samlit-wreck (wreck.Wreck)" in clash.stderr
        assert clash.stderr.count("\n") == 1

        recipe = (ROOT / "recipes" / "tiny.yaml").read_text()
        (tmp_path / "own.yaml").write_text(
            recipe.replace("class_path: mask\n", "class_path: samlit_decoders.mask.Mask\n")
        )
        # Beside the broken package, which is in nobody's way.
        way_out = shell(*FIT[:3], "--recipe", "own.yaml", *FIT[5:], python=python)
        assert way_out.returncode == 0, way_out.stderr
    finally:
        for file in (*info.iterdir(), inner / "wreck.py"):
            file.unlink()
        info.rmdir()
