"""Shared work: all of it is done, in other processes where that helps and in this one where it must."""

from __future__ import annotations

import operator
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from samlit.shards import crew


def test_processes_threads_or_this_one() -> None:
    for jobs, threads in ((2, False), (2, True), (1, False)):
        done = dict(crew.work(operator.call, [os.getpid] * 5, jobs, threads))
        assert sorted(done) == [0, 1, 2, 3, 4]
        assert (os.getpid() in done.values()) == (threads or jobs == 1)
    assert dict(crew.work(operator.call, [threading.get_ident] * 3, 3, True)).keys() == {0, 1, 2}
    assert list(crew.work(operator.call, [], 4)) == []


def test_an_error_ends_it() -> None:
    for jobs in (1, 2):
        with pytest.raises(ZeroDivisionError):
            list(crew.work((1).__floordiv__, [1, 0, 1], jobs))


def test_a_script_that_cannot_be_spawned_from(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("from samlit.shards import crew\nprint(sorted(crew.work(len, ['a', 'bb', 'ccc'], 2)))\n")
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert ran.stdout.strip().endswith("[(0, 1), (1, 2), (2, 3)]")
    assert ran.returncode == 0
