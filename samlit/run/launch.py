"""How a machine's processes start, and end together when one of them is lost, with its reason."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from samlit.errors import one_line
from samlit.shell import terminal

__all__ = ["Launcher", "reason"]

PARENT = "SAMLIT_PARENT"
"""Environment variable by which the first process of a machine tells those that it starts who they belong to."""
GRACE = 10.0
"""Seconds in which a process may notice by itself that another one is lost, before it is ended."""
GO_ON = "`--ckpt_path last` goes on from the last checkpoint"


class Launcher(_SubprocessScriptLauncher):
    """Starts a machine's other processes, as Lightning's does, and says why they end where one of them is lost.

    Whoever waits for a lost process may wait for half an hour. So the first process looks after the others, and they
    look after it: none of them is left behind.
    """

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start the others where nobody has, then call a function.

        Args:
            function: Called.
            args: For it.
            trainer: Not used.
            kwargs: For it.
        """
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            os.environ[PARENT] = str(os.getpid())
            self._call_children_scripts()
            threading.Thread(target=self._watch, daemon=True, name="samlit-watch").start()
        elif os.environ.get(PARENT) == str(os.getppid()):
            threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True, name="samlit-watch").start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def lost(self) -> str:
        """Which of the other processes has ended badly, and how, in one line; empty where none has."""
        for rank, process in enumerate(self.procs, 1):
            code = process.poll()
            if code:
                return _ended(rank, process, code)
        return ""

    def end(self) -> None:
        """End the others at once."""
        for process in self.procs:
            process.kill()

    def _watch(self) -> None:
        """End all if one of the others ends badly and this process does not notice by itself."""
        while not (found := self.lost()):
            if all(process.poll() == 0 for process in self.procs):
                return
            time.sleep(0.5)
        time.sleep(GRACE)
        self.end()  # after which they are all lost
        _leave(found)


def reason(launcher: Any, error: BaseException) -> str:
    """Why a run ends, where this process's error is only that another one is lost; empty where it is its own.

    The other processes that this one has started are ended.
    """
    mine = launcher if isinstance(launcher, Launcher) else None
    try:
        if not _is_lost_connection(error):
            return ""
        found, until = "", time.monotonic() + (GRACE if mine and mine.procs else 0)
        while mine and not found and time.monotonic() < until:
            found = mine.lost()
            time.sleep(0.1)
        return found or (
            "another process of the run does not answer: it failed, and says why itself, or was killed, or hangs: "
            f"the run ends; {GO_ON} ({_brief(error)})"
        )
    finally:
        if mine:
            mine.end()


def _ended(rank: int, process: subprocess.Popen[bytes], code: int) -> str:
    if code > 0:
        return f"rank {rank} failed, and says why itself: the run ends; {GO_ON}"
    name = signal.Signals(-code).name
    why = ", perhaps because the machine ran out of memory" if name == "SIGKILL" else ""
    return f"rank {rank} (process {process.pid}) was killed by {name}{why}: the run ends; {GO_ON}"


def _watch_parent(parent: int) -> None:
    """End this process if the one that has started it is gone and it does not notice by itself."""
    while os.getppid() == parent:
        time.sleep(1)
    time.sleep(GRACE)
    _leave("the run's first process is gone, killed perhaps: this one ends too")


def _leave(line: str) -> None:
    """End this process from a thread: the others wait in functions that nothing interrupts."""
    rank = os.environ.get("LOCAL_RANK", "0")
    terminal.fail(line, rank)
    os._exit(1)


def _chain(error: BaseException) -> Iterator[BaseException]:
    known: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in known:
        known.append(following)
        yield following
        following = following.__cause__ or following.__context__


def _is_lost_connection(error: BaseException) -> bool:
    """Whether it is what gloo, NCCL or a store say of a process that does not answer."""
    from torch.distributed import DistError

    words = ("closed by peer", "reset by peer", "Broken pipe", "Timed out waiting", "gloo", "NCCL", "Socket Timeout")
    return any(
        isinstance(e, DistError) or (isinstance(e, RuntimeError) and any(word in str(e) for word in words))
        for e in _chain(error)
    )


def _brief(error: BaseException) -> str:
    text = re.sub(r"^\[[^\]]*\] ", "", one_line(error))  # begins with a place in somebody's source code
    return text if len(text) <= 120 else f"{text[:117]}..."
