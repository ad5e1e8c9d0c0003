"""`samlit completion`: what a shell offers when Tab is pressed. No torch, and no module of a command is imported."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

from samlit import catalogue, plugins, recipe
from samlit.errors import UsageError, did_you_mean

__all__ = ["SCRIPTS", "candidates", "main"]

SCRIPTS = {
    "bash": """_samlit() {
  local IFS=$'\\n'
  COMPREPLY=($(samlit completion words "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _samlit samlit
""",
    "zsh": """_samlit() {
  local found=("${(@f)$(samlit completion words "${(@)words[2,CURRENT]}" 2>/dev/null)}")
  [[ -n $found ]] && compadd -- $found || _files
}
compdef _samlit samlit
""",
    "fish": """complete -c samlit -a '(samlit completion words (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'
""",
}

USAGE = """usage: samlit completion bash|zsh|fish

Print a script that lets a shell complete commands, options, recipes, weights and tasks. Once, for bash:
  samlit completion bash >> ~/.bashrc
for zsh, after compinit:
  samlit completion zsh >> ~/.zshrc
for fish:
  samlit completion fish > ~/.config/fish/completions/samlit.fish
"""


def main(argv: list[str]) -> int:
    """Run the command with the words after `samlit completion`."""
    match argv:
        case [] | ["-h" | "--help", *_]:
            print(USAGE, end="")
        case ["words", *words]:
            print(*candidates(words), sep="\n")
        case [shell] if shell in SCRIPTS:
            print(SCRIPTS[shell], end="")
        case [shell, *_]:
            near = did_you_mean(shell, SCRIPTS)
            raise UsageError(f"there is no completion for {shell!r}{near} (known: {', '.join(SCRIPTS)})")
    return 0


def candidates(words: list[str]) -> list[str]:
    """What the last word, which may be empty, can become; nothing where it is a file or a free value.

    Args:
        words: Those after `samlit`.
    """
    from samlit.cli import COMMANDS

    *before, last = words or [""]
    if not before:
        offered = [*COMMANDS, "--help", "--version", "--debug"]
    elif before[-1] in VALUES:
        offered = VALUES[before[-1]]()
    elif before[0] == "completion":
        offered = list(SCRIPTS)
    elif before == ["list"] and not last.startswith("-"):
        offered = [*plugins.KINDS, "recipes", "weights", "sets"]
    elif before[0] in {"fit", "validate"}:
        offered = ["--recipe", "--help", "--print_config", *(f"--{key}" for key in recipe.options())]
    elif before[0] == "shards":
        from samlit.shards.command import COMMANDS as SHARDS

        known = SHARDS.get(before[1]) if len(before) > 1 else None
        offered = list(SHARDS) if len(before) == 1 else _options(known[0]) if known else []
    else:
        known_command = COMMANDS.get(before[0])
        offered = _options(known_command.target) if known_command else []
    if not last and not before:  # a command comes first, and few look for an option there
        return [word for word in offered if not word.startswith("-")]
    return [word for word in offered if word.startswith(last)]


VALUES = {
    "--recipe": lambda: recipe.names(),
    "--weights": lambda: list(catalogue.PUBLISHED),
    "--model.weights": lambda: list(catalogue.PUBLISHED),
    "--task": lambda: [plugin.name for plugin in plugins.catalogue("tasks")],
    "--model.encoder": lambda: [plugin.name for plugin in plugins.catalogue("encoders")],
    "--model.decoder": lambda: [plugin.name for plugin in plugins.catalogue("decoders")],
    "--model.task": lambda: [plugin.name for plugin in plugins.catalogue("tasks")],
    "--data.source": lambda: [plugin.name for plugin in plugins.catalogue("sources")],
    "--data.validation": lambda: [plugin.name for plugin in plugins.catalogue("sources")],
}


def _options(target: str) -> list[str]:
    """The options that a command's function gives its parser, read from its source."""
    module, _, name = target.partition(":")
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return []
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    words = [
        word.value
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"
        for word in call.args
        if isinstance(word, ast.Constant) and isinstance(word.value, str) and word.value.startswith("--")
    ]
    return sorted({*words, "--help"})
