"""Where things are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from samlit import cache


def test_the_folder_that_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SAMLIT_CACHE", str(tmp_path / "here"))
    assert cache.folder() == tmp_path / "here"
    assert not (tmp_path / "here").exists()
    monkeypatch.setenv("SAMLIT_CACHE", "~/there")
    assert cache.folder() == Path.home() / "there"


def test_the_usual_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ({"SAMLIT_CACHE": ""}, {}):
        monkeypatch.delenv("SAMLIT_CACHE", raising=False)
        for name, value in variable.items():
            monkeypatch.setenv(name, value)
        assert cache.folder().name == "samlit"
        assert cache.folder().is_absolute()
