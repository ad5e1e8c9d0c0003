"""Tab after `samlit`: what is offered is what there is, at no cost."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from samlit import catalogue, cli, recipe
from samlit.cli import main
from samlit.completion import SCRIPTS, candidates
from samlit.shards import command as shards


@pytest.mark.parametrize(
    ("typed", "some"),
    [
        ("f", {"fit"}),
        ("fit --recipe ti", {"tiny"}),
        ("fit --recipe tiny --data.batch", {"--data.batch_size"}),
        ("fit --model.encoder vit_", {"vit_b", "vit_l", "vit_h"}),
        ("list pro", {"prompts"}),
        ("shards ", set(shards.COMMANDS)),
        ("shards make --lo", {"--long-side"}),
        ("segment photo.jpg --weights mob", {"mobile_sam"}),
        ("evaluate --task edg", {"edges"}),
        ("export --w", {"--weights"}),
        ("completion ", set(SCRIPTS)),
        ("nothing --", set()),
    ],
)
def test_what_is_offered(typed: str, some: set[str]) -> None:
    offered = candidates(typed.split(" "))
    assert some <= set(offered)
    assert all(word.startswith(typed.rpartition(" ")[2]) for word in offered)
    assert bool(offered) == bool(some)


@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if name not in {"shards", "completion"}])
def test_every_option_that_is_offered_is_in_the_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--help" in candidates([command, "--"])
    if command not in {"fit", "validate"}:
        with suppress(SystemExit):
            main([command, "--help"])
        text = capsys.readouterr().out
        assert [word for word in candidates([command, "--"]) if word not in text] == []


def test_names_are_those_that_there_are() -> None:
    assert candidates([""]) == list(cli.COMMANDS)
    assert candidates(["fit", "--recipe", ""]) == recipe.names()
    assert candidates(["segment", "--weights", ""]) == list(catalogue.PUBLISHED)


def test_pressing_tab_imports_nothing_heavy() -> None:
    code = "import sys; from samlit.cli import main; main(['completion', 'words', 'segment', '--']); "
    code += "sys.exit(any(heavy in sys.modules for heavy in ('torch', 'numpy', 'lightning')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--weights" in done.stdout.split()


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_script_is_one_of_that_shell(shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["completion", shell]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    if not shutil.which(shell):
        pytest.skip(f"there is no {shell} here")
    subprocess.run([shell, "-n", str(script)], check=True)
    if shell == "bash":
        path = Path(sys.executable).parent
        typed = f'PATH="{path}:$PATH"; source {script}; COMP_WORDS=(samlit fit --recipe ti); COMP_CWORD=3; _samlit; '
        done = subprocess.run(
            ["bash", "-c", typed + 'echo "${COMPREPLY[@]}"'], capture_output=True, text=True, check=True
        )
        assert done.stdout == "tiny\n"


def test_another_shell_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bsh"]) == 2
    assert "did you mean 'bash'?" in capsys.readouterr().err
