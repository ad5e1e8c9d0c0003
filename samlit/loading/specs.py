"""Data sets on the command line: `SOURCE:PATH`, and `KEY=VALUE` for what else a source takes. No torch to read them.

The source is a registered name or a class path, and the path is its first argument.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from samlit import outline, plugins, recipe
from samlit.errors import UsageError, did_you_mean, one_line

if TYPE_CHECKING:
    from samlit.source import Source

__all__ = ["Spec", "build", "read"]

SLOT = "data.source"


@dataclass(frozen=True)
class Spec:
    """A source as it was typed, its name resolved.

    Attributes:
        text: As it was typed.
        class_path: Of the source.
        first: What is behind the colon; None where there is no colon.
        arguments: By name, what was set, as it was typed.
    """

    text: str
    class_path: str
    first: str | None
    arguments: dict[str, str]

    @property
    def known(self) -> list[str] | None:
        """What the source takes, as far as its text tells."""
        module, _, attribute = self.class_path.rpartition(".")
        return outline.arguments(module, attribute)


def read(texts: Sequence[str], settings: Sequence[str] = ()) -> list[Spec]:
    """Data sets as they are typed: `coco:train.json`, several as several words or with commas.

    Args:
        texts: The words.
        settings: `KEY=VALUE`, for each source that has the key, or `2.KEY=VALUE`, for the second one only.

    Raises:
        UsageError: A source or key is unknown; one line that names the nearest.
    """
    specs = [_spec(text) for word in texts for text in _split(word)]
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {setting}: write KEY=VALUE")
        number, _, name = key.rpartition(".")
        if number and not (number.isdigit() and 1 <= int(number) <= len(specs)):
            raise UsageError(f"--set {setting}: what is before the dot is the number of a source, 1 to {len(specs)}")
        of = [specs[int(number) - 1]] if number else specs
        taking = [spec for spec in of if spec.known is None or name in spec.known]
        if not taking:
            known = list(dict.fromkeys(word for spec in of for word in spec.known or ()))
            whose = f"{of[0].text} has" if len(of) == 1 else "none of the sources has"
            raise UsageError(f"--set {setting}: {whose} no {name!r}{_nearest(name, known)}")
        for spec in taking:
            if spec.first is not None and spec.known and spec.known[0] == name:
                raise UsageError(f"--set {setting}: {spec.text} says its {name} already")
            spec.arguments[name] = value
    return specs


def build(specs: Sequence[Spec]) -> tuple[Source, list[dict[str, Any]]]:
    """One source of all of them, in order; it is not prepared yet.

    Returns:
        The source, and of each part all its arguments, with their types.

    Raises:
        UsageError: An argument is missing or not of its type, or the source refuses it; one line.
        SamlitError: A source cannot be imported.
    """
    from samlit.loading.joined import Joined

    parts = [_build(spec) for spec in specs]
    sources = [source for source, _ in parts]
    return sources[0] if len(sources) == 1 else Joined(sources), [arguments for _, arguments in parts]


def _split(word: str) -> list[str]:
    """A word cut at those commas that a source follows, for paths may have commas too."""
    names = "|".join(re.escape(plugin.name) for plugin in plugins.catalogue("sources"))
    return re.split(rf",(?=(?:{names or '$'}|\w+(?:\.\w+)+):)", word)


def _spec(text: str) -> Spec:
    name, colon, first = text.partition(":")
    registered = any(plugin.name == name for plugin in plugins.catalogue("sources"))
    if not registered and (not re.fullmatch(r"\w+(\.\w+)*", name) or (not colon and Path(text).exists())):
        raise UsageError(f"{text!r} says no source: write SOURCE:PATH, as in coco:{text} (`samlit list sources`)")
    class_path = recipe.resolve_slot(SLOT, name, text)
    spec = Spec(text, class_path, first if colon else None, {})
    if colon and not first:
        raise UsageError(f"{text}: there is no path behind the colon")
    if colon and spec.known == []:
        raise UsageError(f"{text}: {name} takes no arguments; write {name} alone")
    return spec


def _build(spec: Spec) -> tuple[Source, dict[str, Any]]:
    """One source, and its arguments."""
    from jsonargparse import ArgumentParser

    from samlit.shell import complaints
    from samlit.source import Source

    target = plugins.load(spec.class_path, spec.text)
    parameters = inspect.signature(target).parameters
    given = dict(spec.arguments)
    if spec.first is not None:
        given[next(iter(parameters))] = spec.first
    for name, parameter in parameters.items():
        named = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if named and parameter.default is parameter.empty and name not in given:
            raise UsageError(f"{spec.text}: {name} is missing; give it with --set {name}=VALUE")

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise UsageError(f"{spec.text}: {complaints.reword(message, list(parameters))}") from ex

    parser = Parser(exit_on_error=True)
    add = parser.add_class_arguments if inspect.isclass(target) else parser.add_function_arguments
    add(target, fail_untyped=False)
    typed = parser.parse_args([f"--{name}={value}" for name, value in given.items()])
    arguments = typed.as_dict()
    try:
        source = target(**vars(parser.instantiate(typed)))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{spec.text}: {one_line(error)}") from error
    if not isinstance(source, Source):
        raise UsageError(f"{spec.text}: {spec.class_path} is no Source")
    return source, arguments


def _nearest(name: str, known: list[str]) -> str:
    return did_you_mean(name, known) or f" (known: {', '.join(known) or 'none'})"
