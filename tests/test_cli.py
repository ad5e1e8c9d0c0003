"""The command as a person meets it: what it says, how fast, and how it ends."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from samlit import __version__, cli, outline, plugins, recipe
from samlit.cli import main
from samlit.errors import SamlitError
from samlit.shards import command as shards
from tests import cutting

Shell = Callable[..., "subprocess.CompletedProcess[str]"]
Install = Callable[..., Path]
SMALL = [word for key, value in cutting.SMALL["tiny"].items() for word in (f"--{key}", str(value))]
HEAVY = ("torch", "lightning", "numpy", "jsonargparse", "timm", "PIL")


def ended(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit status and error line of a command that must fail."""
    status = main(list(words))
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"samlit: [^\n]+\n", err), err
    return status, err.removeprefix("samlit: ").rstrip("\n")


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("", 0),
        ("--help", 0),
        ("--version", 0),
        ("list", 0),
        ("list prompts --json", 0),
        ("list weights", 0),
        ("fitt", 2),
        ("fit", 2),
        ("fit --recipe tinny", 2),
        ("fit --recipe tiny --devices 2", 2),
        ("fit --recipe tiny --trainer.devces 2", 2),
        ("fit --recipe tiny --model.prompts [points,ponts]", 2),
        ("fit --recipe tiny --model.encoder.dpth 2", 2),
    ],
)
def test_help_lists_and_typos_import_nothing_heavy(shell: Shell, words: str, status: int) -> None:
    code = "import sys; from samlit.cli import main; status = main(sys.argv[1:]); "
    code += f"print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr); sys.exit(status)"
    done = shell("-c", code, *words.split())
    assert done.returncode == status
    lines = done.stderr.splitlines()
    assert lines.pop() == "[]"
    assert len(lines) == (1 if status else 0)
    assert all(line.startswith("samlit: ") for line in lines)


def test_help_names_every_command_and_both_ways_in(shell: Shell) -> None:
    module = shell("-m", "samlit", "--help")
    script = subprocess.run([Path(sys.executable).with_name("samlit"), "--help"], capture_output=True, text=True)
    assert module.stdout == script.stdout
    assert all(re.search(rf"^  {name} ", module.stdout, re.M) for name in cli.COMMANDS)
    assert shell("-m", "samlit", "--version").stdout == f"samlit {__version__}\n"


LIGHTNING = ("fit", "validate", "test")
PAGES = [
    *([name] for name in cli.COMMANDS if name not in LIGHTNING),
    *(["shards", name] for name in shards.COMMANDS),
    ["fit"],  # its two sisters' pages are made by the same lines
]
GROUPS = ["what it reads:", "what it writes:", "how it works:", "what it says:", "examples:"]


@pytest.mark.parametrize("words", PAGES, ids=" ".join)
def test_a_help_page_is_short_at_its_beginning_grouped_and_has_an_example(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with suppress(SystemExit):
        assert main([*words, "--help"]) == 0
    page = capsys.readouterr().out
    usage, _, rest = page.partition("\n\n")
    assert usage.startswith(f"usage: samlit {' '.join(words)}")
    assert len(usage.splitlines()) == 1
    assert max(map(len, usage.splitlines())) <= 120
    assert "--quiet" in page
    assert "--debug" in page
    examples = re.findall(r"^  (?:torchrun .* -m )?samlit .*", page.partition("\nexamples:\n")[2], re.M)
    assert examples
    assert f"samlit {' '.join(words)}" in examples[0]
    if words in (["fit"], ["shards"]):
        return
    heads = [line for line in rest.splitlines() if line in GROUPS]
    assert heads == [group for group in GROUPS if group in heads]
    assert heads[0] == GROUPS[0]
    assert heads[-2:] == GROUPS[-2:]


def test_the_pages_of_lightnings_commands_say_how_plugins_are_asked_about() -> None:
    from samlit.shell import parser

    for command in LIGHTNING:
        page = parser.page(command)[command]
        assert page["usage"].startswith(f"samlit {command} --recipe")
        assert f"examples:\n  samlit {command} --recipe" in page["description"]
        assert "--model.encoder.help vit" in page["description"]


def test_pages_that_need_no_model_do_not_wait_for_torch(shell: Shell) -> None:
    light = [words for words in PAGES if words[0] not in ("fit", "segment", "export")]
    code = f"""
import sys
from contextlib import suppress
from samlit.cli import main
for words in {light}:
    with suppress(SystemExit):
        main([*words, "--help"])
print([m for m in ("torch", "lightning") if m in sys.modules], file=sys.stderr)
"""
    done = shell("-c", code)
    assert (done.returncode, done.stderr) == (0, "[]\n")


@pytest.mark.parametrize("words", ["list prompts", "list prompts --json"])
def test_what_a_command_is_for_is_said_quietly_too(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for line in (["--quiet", *words.split()], [*words.split(), "--quiet"], words.split()):
        assert main(line) == 0
        said.append(capsys.readouterr())
    assert said[0] == said[1] == said[2]
    assert said[0].out


def test_shards_are_made_and_checked_quietly(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    for name, value in (("images/a.jpg", 90), ("masks/a.png", 1)):
        (tmp_path / "own" / name).parent.mkdir(parents=True)
        Image.fromarray(np.full((32, 32), value, np.uint8)).save(tmp_path / "own" / name)
    make = ["shards", "make", f"folder:{tmp_path / 'own'}", "--out", str(tmp_path / "shards"), "--jobs", "1"]
    assert main([*make, "--quiet"]) == 0
    assert main(["shards", "index", str(tmp_path / "shards"), "--jobs", "1", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["shards", "check", str(tmp_path / "shards"), "--jobs", "1", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert out.split() == ["shards", "1", "records", "1", "GB", "0.000", "no", "fault"]
    assert err == ""
    assert main(["shards", "check", str(tmp_path / "gone"), "--quiet"]) != 0
    assert re.fullmatch(r"samlit: [^\n]+\n", capsys.readouterr().err)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_leads_somewhere(command: str) -> None:
    module, _, function = cli.COMMANDS[command].target.partition(":")
    assert outline.definition(module, function) is not None
    assert callable(getattr(import_module(module), function))


def test_list_tells_everything_that_is_registered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    kinds = [*plugins.KINDS, "recipes", "weights", "sets"]
    assert [row["kind"] for row in rows] == sorted((row["kind"] for row in rows), key=kinds.index)
    columns = ["kind", "name", "summary", "package"]
    assert all(list(row)[:4] == columns and all(row[column] for column in columns) for row in rows)
    assert {"vit_h", "points", "mask", "interactive", "sa1b", "tiny", "sam_vit_b"} <= {row["name"] for row in rows}
    assert main(["list", "prompts"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[1] for line in lines] == [row["name"] for row in rows if row["kind"] == "prompts"]


def test_list_in_a_terminal_is_a_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert "package" in out.splitlines()[0]
    assert "points" in out


@pytest.mark.parametrize(
    "words", ["--help", "list", "plan --recipe tiny --gpu H100", "evaluate --task points --help", "fit --recipe tinny"]
)
def test_colours_are_for_terminals(words: str, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    small = [*SMALL, "--model.task.corrections", "0"] if words.startswith("plan") else []
    done = shell("-m", "samlit", *words.split(), *small, forked=True)
    assert done.stdout + done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_list_marks_a_broken_plugin_and_a_clash(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install(
        "broken-tools", "[samlit.prompts]\nlasso = gone:Lasso\npoints = mine:Points\n", {"mine.py": "class Points: ..."}
    )
    assert main(["list", "prompts", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    problems = {(row["name"], row["package"]): row["problem"] for row in rows if "problem" in row}
    assert set(problems) == {("lasso", "broken-tools"), ("points", "broken-tools"), ("points", "samlit")}
    assert "no module 'gone'" in problems["lasso", "broken-tools"]
    assert "broken-tools" in problems["points", "samlit"]
    assert main(["list", "prompts"]) == 0
    assert "[cannot be used: there is no module 'gone']" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["fti"], "there is no command 'fti'; did you mean 'fit'?"),
        (["--verson"], "there is no option '--verson'; did you mean '--version'?"),
        (["list", "prompt"], "there is no kind 'prompt'; did you mean 'prompts'?"),
        (["list", "--jsn"], "unrecognized arguments: --jsn (see `samlit list --help`)"),
        (["fit"], "fit needs a recipe: --recipe NAME or FILE (known: "),
    ],
)
def test_a_usage_error_is_one_line_and_status_2(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, line = ended(capsys, *words)
    assert status == 2
    assert says in line


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--data.workers", "abc"], "data.workers: expected int, got 'abc'"),
        (["--model.seed", "1"], "model.seed is taken from seed_everything: give that one"),
        (["--model.encoder.depth", "abc"], "model.encoder.depth: expected int, got 'abc'"),
        (["--model.encoder.stem", "convv"], "model.encoder.stem: expected 'patch' or 'conv', got 'convv'"),
        (["--model.optim.lrr", "1"], "there is no option '--model.optim.lrr'; did you mean '--model.optim.lr'?"),
        (["--model.image_size", "64"], "model.image_size is taken from data.image_size: give that one"),
        (["--model.prompts+=samlit_tasks.boxes.Boxes"], "model.prompts: samlit_tasks.boxes.Boxes is no Prompt"),
        (["--data.batch_size", "two"], "data.batch_size: expected int, got 'two'"),
        (["--trainer.max_steps", "lots"], "trainer.max_steps: expected int, got 'lots'"),
        (["--trainer.callbacks+=Foo"], "trainer.callbacks: there is no class 'Foo'"),
        (
            ["--trainer.callbacks", "[{class_path: ModelCheckpoint, init_args: {monitr: a}}]"],
            "trainer.callbacks: there is no 'monitr'; did you mean 'monitor'?",
        ),
        (["--trainer.accelerator", "cpuu"], "trainer: You selected an invalid accelerator name"),
        (["--trainer.strategy", "foo"], "trainer: You selected an invalid strategy name"),
        (["--trainer.devices", "0"], "trainer: "),
        (["--seed_everything", "x"], "seed_everything: expected bool or int, got 'x'"),
    ],
)
def test_what_the_parser_refuses_is_one_line_and_status_2(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, line = ended(capsys, "fit", "--recipe", "tiny", *words)
    assert says in line
    assert status == 2


@pytest.mark.parametrize(
    ("section", "say", "says"),
    [
        ("model", {"optim": {"lrr": 1}}, "there is no key 'model.optim.lrr'; did you mean 'model.optim.lr'?"),
        ("data", {"workers": "abc"}, "data.workers: expected int, got 'abc'"),
        ("trainer", {"max_steps": "lots"}, "trainer.max_steps: expected int, got 'lots'"),
    ],
)
def test_what_a_file_says_wrong_is_one_line(
    section: str, say: dict[str, object], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = yaml.safe_load(recipe.path("tiny").read_text())
    tree[section] |= say
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(tree))
    status, line = ended(capsys, "fit", "--recipe", str(tmp_path / "own.yaml"))
    assert says in line
    assert status == 2


@pytest.mark.parametrize("command", ["validate"])
def test_no_checkpoint_to_go_on_from_is_told(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, line = ended(capsys, command, "--recipe", "tiny", "--ckpt_path", "last")
    assert status == 2
    assert "there is no checkpoint in 'runs" in line


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (SamlitError("the disk\nis full"), 1, "the disk is full"),
        (ValueError("shard 3 is cut"), 1, "shard 3 is cut"),
        (FileNotFoundError(2, "No such file or directory", "a.json"), 1, "a.json"),
        (KeyError("no 'masks' in it"), 1, "no 'masks' in it"),
        (RuntimeError("odd"), 1, "RuntimeError: odd (run again with --debug for the traceback)"),
        (ZeroDivisionError(), 1, "ZeroDivisionError: ZeroDivisionError (run again"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_every_error_is_one_line(
    error: BaseException,
    status: int,
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "list_registered", fail)
    got, line = ended(capsys, "list")
    assert got == status
    assert says in line
    assert main(["list", "--debug"]) == status
    assert "Traceback" in capsys.readouterr().err


def test_a_closed_pipe_is_no_error() -> None:
    piped = f"{sys.executable} -m samlit list --json | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", piped], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_rank_ends_as_it_should_whatever_its_threads_do() -> None:
    # A thread that is inside C++ when the interpreter takes itself down aborts the process.
    busy = """
import threading, torch
from samlit import cli
from samlit.run import ranks
def work():
    while True:
        torch.mm(a, a)
def main():
    print("all is well")
    ranks.connected = True
    return 3
a = torch.rand(1000, 1000)
threading.Thread(target=work, daemon=True).start()
cli.main = main
cli.run()
"""
    done = subprocess.run([sys.executable, "-c", busy], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "all is well\n", "")


def test_help_of_a_plugin_is_its_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    with suppress(SystemExit):
        assert main(["fit", "--model.encoder.help", "vit"]) == 0
    page = capsys.readouterr().out
    assert "--model.encoder.depth" in page
    assert plugins.find("encoders", "vit").summary().rstrip(".") in page


TINY = ["fit", "--recipe", "tiny", "--data.source.count", "8", "--data.validation.count", "2"]
TINY += ["--trainer.enable_progress_bar", "false", "--trainer.devices", "1", *SMALL]
TINY += ["--trainer.limit_val_batches", "1", "--data.max_val_masks", "2", "--report.examples", "1"]
TINY += ["--report.extremes", "0"]


def steps(folder: Path) -> int:
    """The step at which a run's newest checkpoint was written."""
    import torch

    return int(torch.load(folder / "last.ckpt", weights_only=True, map_location="cpu")["global_step"])


def test_a_run_is_quiet_leaves_its_config_and_is_gone_on_with(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = shell("-m", "samlit", *TINY, "--trainer.max_steps", "2", "--ckpt_path", "last", forked=True)
    assert first.returncode == 0, first.stderr
    said = [line for line in first.stderr.splitlines() if not line.startswith("samlit: drawing scenes")]
    assert said[0].startswith("samlit: note: no checkpoint in 'runs")
    assert said[-1].startswith("samlit: the run is in runs")
    assert len(said) == 2, first.stderr
    run = tmp_path / said[-1].partition("the run is in ")[2]
    assert steps(run) == 2
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["trainer"]["max_steps"] == 2
    assert saved["model"]["encoder"]["class_path"] == "samlit_encoders.vit.Vit"
    assert not (tmp_path / "config.yaml").exists()

    again = ["--recipe", str(run / "config.yaml"), "--ckpt_path", "last", "--trainer.logger", "false"]
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *again, "--trainer.max_steps", "3"]) == 0
    assert "note" not in capsys.readouterr().err
    assert steps(run) == 3

    assert main(["validate", *again]) == 0
    assert "val/" in capsys.readouterr().out
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_steps"] == 3, "validate left it alone"


def test_a_missing_file_is_one_line(shell: Shell) -> None:
    done = shell("-m", "samlit", *TINY[:3], "--data.source", "coco", "--data.source.annotations", "nowhere.json")
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if not line.startswith("samlit: reading nowhere.json")]
    assert said == ["samlit: nowhere.json: there is no such file"]
