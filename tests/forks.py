"""Processes that need not import torch and Lightning first: forks of one that has imported them and done nothing else.

The imports take longer than a small training. What a process must do for itself (its own imports, its end by a signal
from outside, who its parent is) is for a true one, `subprocess`; so are the ranks that a forked run starts.
"""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

__all__ = ["begin", "command", "module", "start"]

# Not wandb: it makes a folder when it is imported, and the first fork that ends takes it away from the others.
IMPORTED = ["lightning.pytorch", "torch._dynamo", "torch.distributed.fsdp"]


@functools.cache
def begin() -> multiprocessing.context.ForkServerContext:
    """Start the process of which all are forks; a loader's workers are forks of it, too, once it is there."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1"}):  # torch looks when it is imported
        forkserver.ensure_running()
    return context


def start(
    target: Callable[..., object],
    *given: object,
    env: Mapping[str, str],
    cwd: Path,
    out: Path,
    err: Path | None = None,
) -> BaseProcess:
    """Call a function of a module in a process of its own; what it says goes into files, or both into one."""
    process = begin().Process(target=_called, args=(target, given, dict(env), str(cwd), str(out), str(err or out)))
    process.start()
    return process


def command(
    words: Sequence[str], *, env: Mapping[str, str], cwd: Path, timeout: float
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run([sys.executable, *words], capture_output=True, text=True)`; the first words are -m MODULE."""
    assert words[0] == "-m"
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = start(module, *words[1:], env=env, cwd=cwd, out=out, err=err)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(list(words), timeout, out.read_text(), err.read_text())
        return subprocess.CompletedProcess(list(words), process.exitcode, out.read_text(), err.read_text())


def module(name: str, *words: str) -> None:
    """To be started: `python -m NAME WORDS...`."""
    sys.path.insert(0, os.getcwd())
    sys.argv = [name, *words]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _called(
    target: Callable[..., object], given: tuple[object, ...], env: dict[str, str], cwd: str, *said: str
) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for stream, file, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, said[0], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        (2, said[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        opened = os.open(file, flags, 0o600)
        os.dup2(opened, stream)
        os.close(opened)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - multiprocessing has put another in its place
    status: object = 0
    try:
        target(*given)
    except SystemExit as error:
        status = error.code
    finally:
        # As at the end of any process; multiprocessing leaves both out.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    sys.exit(status)  # type: ignore[arg-type]
