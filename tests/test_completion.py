"""What the shell is offered when a person presses tab, asked as argcomplete's shell functions ask."""

import os
import subprocess
import sys

import pytest

COMMAND = [sys.executable, "-c", "from samlit import cli; cli.run()"]


def offered(line, tmp_path, program=1):
    answer = tmp_path / "answer"
    env = {
        **os.environ,
        "_ARGCOMPLETE": str(program), "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9", "_ARGCOMPLETE_SHELL": "bash",
    }  # fmt: skip
    told = subprocess.run(COMMAND, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert not told.stdout
    assert not told.stderr
    return [word.strip() for word in answer.read_text().split("\n")]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("samlit se", {"segment"}),
        ("samlit shards a", {"audit"}),
        ("samlit shards audit shards --sa", {"--sample"}),
        ("samlit fit --recipe vit_", {"vit_b", "vit_h", "vit_l"}),
        ("samlit fit --recipe tiny --model.optim.mu", {"--model.optim.muon_lr"}),
        ("samlit fit --recipe tiny --data.source sh", {"shapes"}),
        ("samlit evaluate --task p", {"panoptic", "points", "proposals"}),
        ("samlit evaluate --task points --weights mobile", {"mobile_sam"}),
        ("samlit te", {"test"}),
        ("samlit list --q", {"--quiet"}),
        ("samlit evaluate --task points --weights run", {"runs/"}),
        ("samlit evaluate --task points --data coco:p", {"coco:photo.json"}),
        ("samlit generate --nothing-of-this-k", set()),
    ],
)
def test_what_is_offered(line, words, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "photo.json").touch()
    assert {word for word in offered(line, tmp_path) if word} == words


def test_all_commands_are_offered_and_the_module_is_a_program_too(tmp_path):
    from samlit.cli import COMMANDS

    assert set(COMMANDS) <= set(offered("samlit ", tmp_path))
    assert "--everything" in offered("python -m samlit segment --ev", tmp_path, program=3)
