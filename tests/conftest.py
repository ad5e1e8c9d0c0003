"""What tests share: the samlit command in a process of its own, and packages that are installed for one test."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from samlit import outline, plugins

ROOT = Path(__file__).parents[1]
Shell = Callable[..., "subprocess.CompletedProcess[str]"]
Install = Callable[..., Path]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Run a command line as a person does, in an empty folder."""

    def run(*words: str, python: str = sys.executable, cwd: Path = tmp_path, timeout: float = 300) -> object:
        quiet = {"OMP_NUM_THREADS": "1", "COLUMNS": "120", "PYTHONWARNINGS": ""}
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
