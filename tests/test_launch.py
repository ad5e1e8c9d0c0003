"""How runs of several processes start, agree, are told from each other's ends, and go on."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from torch.distributed import DistBackendError, TCPStore

from samlit.run import launch, ranks
from tests import conftest, forks

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_JOB_NAME", "SAMLIT_COLOR")


@pytest.fixture
def environ(monkeypatch):
    """Nobody has started this process as one of several."""
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that what is set under the name meanwhile goes
        monkeypatch.delenv(name)
    monkeypatch.setattr(ranks, "_stores", [])
    return monkeypatch


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (0, 1)),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
        ({"LOCAL_RANK": "1", "RANK": "5", "WORLD_SIZE": "8"}, (5, 8)),
        ({"SLURM_NTASKS": "16", "SLURM_PROCID": "9", "SLURM_JOB_NAME": "sam"}, (9, 16)),
        ({"SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "bash"}, (0, 1)),
    ],
)
def test_which_rank_this_is(environ, given, expected):
    for name, value in given.items():
        environ.setenv(name, value)
    assert ranks.place() == expected


def test_what_the_first_process_chooses_those_that_it_starts_take_over(environ):
    assert ranks.agreed("COLOR", lambda: "red") == "red"
    environ.setenv("LOCAL_RANK", "1")
    environ.setenv("WORLD_SIZE", "2")
    assert ranks.agreed("COLOR", lambda: "blue") == "red"
    environ.setenv("SAMLIT_COLOR", "")
    assert ranks.agreed("COLOR", lambda: "blue") is None


def test_a_group_that_torchrun_starts_again_finds_nothing_of_the_one_before(environ):
    agent = TCPStore("127.0.0.1", 0, is_master=True)
    environ.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    environ.setenv("MASTER_ADDR", "127.0.0.1")
    environ.setenv("MASTER_PORT", str(agent.port))
    for restart in ("0", "1"):
        environ.setenv("TORCHELASTIC_RESTART_COUNT", restart)
        environ.setattr(ranks, "_stores", [])
        for rank in (0, 1):
            assert ranks.meeting(rank).check(["address"]) is (rank == 1)
            ranks.meeting(rank).set("address", restart)


def test_a_process_that_a_run_has_started_in_a_clusters_shell_asks_no_store_of_slurms(environ):
    shell = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "interactive", "SLURM_NODELIST": "127.0.0.1"}
    for name, value in (shell | {"LOCAL_RANK": "1", "WORLD_SIZE": "2", "SAMLIT_COLOR": "red"}).items():
        environ.setenv(name, value)
    assert ranks.meeting(1) is None
    assert ranks.agreed("COLOR", lambda: "blue") == "red"


def test_what_ranks_agree_on_is_not_what_another_run_has_left_in_the_environment(environ):
    agent = TCPStore("127.0.0.1", 0, is_master=True)
    own = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(agent.port)}
    for name, value in (own | {"WORLD_SIZE": "2", "RANK": "0"}).items():
        environ.setenv(name, value)
    assert ranks.agreed("COLOR", lambda: "red") == "red"
    environ.setenv("RANK", "1")
    environ.setenv("SAMLIT_COLOR", "")
    assert ranks.agreed("COLOR", lambda: "blue") == "red"


def launcher(*codes):
    """One whose other processes end so."""
    one = launch.Launcher(None, len(codes) + 1, 1)
    one.procs = [subprocess.Popen([sys.executable, "-c", code]) for code in codes]
    return one


KILLED = "import os; os.kill(os.getpid(), 9)"


@pytest.mark.parametrize(
    "lost",
    [
        RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:2094"),
        RuntimeError("[gloo/unbound_buffer.cc:92] Timed out waiting 12000ms for send operation to complete"),
        DistBackendError("NCCL error: remote process exited"),
    ],
)
def test_who_was_lost_is_the_reason(lost):
    outer = ValueError("what others make of it")
    outer.__cause__ = lost
    for error in (lost, outer):
        said = launch.reason(launcher("", KILLED), error)
        assert re.match(r"rank 2 \(process \d+\) was killed by SIGKILL.* --ckpt_path last", said.replace("`", ""))
    assert "rank 1 failed, and says why itself" in launch.reason(launcher("raise SystemExit(1)"), lost)
    alone = launch.reason(None, lost)
    assert "another process of the run does not answer" in alone
    assert "gloo/" not in alone


def test_an_own_error_is_the_reason_and_ends_the_others():
    one = launcher("import time; time.sleep(100)")
    assert launch.reason(one, ValueError("own")) == ""
    assert one.procs[0].wait(10) == -signal.SIGKILL


WAITS = """
import os, subprocess, sys, threading, time
from samlit.run import launch
launch.GRACE = 0.5
if sys.argv[1] == "watch":
    one = launch.Launcher(None, 3, 1)
    one.procs = [subprocess.Popen([sys.executable, "-c", c]) for c in ("import time; time.sleep(100)", sys.argv[2])]
    threading.Thread(target=one._watch, daemon=True).start()
    print(one.procs[0].pid, flush=True)
else:
    os.environ["LOCAL_RANK"] = "1"
    threading.Thread(target=launch._watch_parent, args=(os.getppid(),), daemon=True).start()
    print(os.getpid(), flush=True)
time.sleep(100)
"""


def gone(process):
    for _ in range(600):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        with open(f"/proc/{process}/stat") as file:
            if file.read().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks at processes as Linux shows them")
def test_nobody_waits_for_a_process_that_is_lost(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WAITS, "watch", KILLED], capture_output=True, text=True, timeout=100, cwd=conftest.ROOT
    )
    assert done.returncode == 1
    assert "samlit: rank 2 (process" in done.stderr
    assert gone(int(done.stdout))
    # And if it is the first one: its child, which nobody waits for, ends.
    (tmp_path / "waits.py").write_text(WAITS)
    started = f"import subprocess, sys; subprocess.Popen([sys.executable, {str(tmp_path / 'waits.py')!r}, 'parent'])"
    first = subprocess.Popen(
        [sys.executable, "-c", f"{started}; import time; time.sleep(100)"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(conftest.ROOT)},
    )  # fmt: skip
    child = int(first.stdout.readline())
    first.kill()
    assert "samlit: rank 1: the run's first process is gone" in first.stderr.read()
    first.wait()
    first.stdout.close()
    first.stderr.close()
    assert gone(child)


def test_who_was_lost_is_told_and_not_who_is_ended_for_it(monkeypatch):
    class Waiting(launch.Launcher):
        def end(self):
            super().end()
            for process in self.procs:
                process.wait()

    told = []
    monkeypatch.setattr(launch, "GRACE", 0)
    monkeypatch.setattr(launch, "_leave", told.append)
    one = Waiting(None, 3, 1)
    one.procs = [subprocess.Popen([sys.executable, "-c", code]) for code in ("import time; time.sleep(100)", KILLED)]
    one._watch()
    assert told[0].startswith("rank 2 (process")


ENDS = '''
import os, signal
from pathlib import Path
import lightning.pytorch as pl


class Ends(pl.Callback):
    """Ends a rank in the middle of a run, once."""

    def __init__(self, how: str, rank: int = 1):
        self.how, self.rank = how, rank

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 3 and trainer.global_rank == self.rank and not Path("ended").exists():
            Path("ended").touch()
            if self.how == "raise":
                raise ValueError("its own reason")
            os.kill(os.getpid(), signal.SIGKILL)
'''

TORCHRUN = ("-m", "torch.distributed.run")
STEPS = ("--trainer.max_steps", "5", "--checkpoints.last_every", "2")


@pytest.fixture
def start(tmp_path):
    """Begin a command of a person's in a folder with a recipe."""
    (tmp_path / "recipe.yaml").write_text(conftest.RECIPE)
    (tmp_path / "ends.py").write_text(ENDS)
    started = []

    def begin(*words, launcher=(), **environ):
        words = [*launcher, "-m", "samlit", "fit", "--recipe", "recipe.yaml", *STEPS, *map(str, words)]
        there = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(conftest.ROOT)}
        started.append(
            subprocess.Popen(
                [sys.executable, *words], cwd=tmp_path, env=os.environ | there | environ, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            )
        )  # fmt: skip
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def ends(how, rank=1):
    return f"[{{class_path: ends.Ends, init_args: {{how: {how}, rank: {rank}}}}}]"


PIECES = ("--trainer.strategy", "samlit.parallel.Sharded", "--trainer.strategy.pieces", "true")


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_with_the_reason_and_two_machines_go_on(start, tmp_path):
    killed = start("--trainer.devices", 2, *PIECES, "--trainer.callbacks", ends("kill"))
    said = killed.communicate(timeout=120)[0]
    assert killed.returncode == 1
    assert re.search(r"^samlit: rank 1 \(process \d+\) was killed by SIGKILL", said, re.M)
    assert "Traceback" not in said
    assert (tmp_path / "runs" / "last.ckpt").is_dir()
    # As two machines, each with an agent of torchrun and one process, and as copies instead of parts.
    port = free_port()
    nodes = [
        start(
            "--trainer.devices", 1, "--trainer.num_nodes", 2, "--trainer.strategy", "ddp", "--ckpt_path", "last",
            launcher=(*TORCHRUN, "--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", "1",
                      "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "samlit"),
        )
        for node in range(2)
    ]  # fmt: skip
    told = [node.communicate(timeout=200)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(told)
    from samlit.run.checkpointing import AtomicIO

    assert (tmp_path / "runs" / "last.ckpt").is_file()
    assert AtomicIO().load_checkpoint(tmp_path / "runs" / "last.ckpt")["global_step"] == 5
    assert sorted(path.name for path in (tmp_path / "runs").glob("*.ckpt")) == ["last.ckpt", "previous.ckpt"]


@pytest.mark.slow
def test_torchrun_starts_a_killed_run_again_and_it_goes_on(start, tmp_path):
    one = start(
        "--trainer.devices", 2, *PIECES, "--ckpt_path", "last", "--trainer.callbacks", ends("kill"),
        launcher=(*TORCHRUN, "--nproc-per-node", "2", "--max-restarts", "1", "--master-port", str(free_port())),
    )  # fmt: skip
    said = one.communicate(timeout=200)[0]
    assert one.returncode == 0, said
    assert "no checkpoint in 'runs' yet: from the start" in said
    from samlit.weights import pieces

    assert pieces.read(tmp_path / "runs" / "last.ckpt")["global_step"] == 5
    assert (tmp_path / "ended").exists()
    assert not (tmp_path / "runs-2").exists()


@pytest.mark.slow
def test_tasks_of_slurm_are_ranks_and_a_rank_that_fails_says_why(tmp_path):
    slurm = {
        "SLURM_JOB_ID": "421", "SLURM_JOB_NAME": "sam", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    words = ("--trainer.devices", 2, "--trainer.strategy", "fsdp", "--trainer.callbacks", ends("raise"))
    (tmp_path / "recipe.yaml").write_text(conftest.RECIPE)
    (tmp_path / "ends.py").write_text(ENDS)
    command = ("samlit", "fit", "--recipe", "recipe.yaml", *STEPS, *map(str, words))
    both = []
    for rank in range(2):
        env = os.environ | slurm | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        both.append(forks.start(forks.module, *command, env=env, cwd=tmp_path, out=tmp_path / f"{rank}.txt"))
    for task in both:
        task.join(120)
    assert [task.exitcode for task in both] == [1, 1]
    told = [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)]
    assert "samlit: rank 1: its own reason" in told[1]
    assert "samlit: another process of the run does not answer" in told[0]
    assert (tmp_path / "runs" / "last.ckpt").exists()
