"""The complaints of jsonargparse in a line that a person can act on: which key, what it wants, what it got.

Its messages quote every type that was tried and the whole value, over many lines. Whatever is not recognised here stays
as it is, on one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from samlit import outline
from samlit.errors import did_you_mean

__all__ = ["reword"]

# Said around the true complaint, which follows. The named group is the class that it is about.
WRAPPERS = (
    r"- Expected a path but .*? either not accessible or invalid(?: -)? ",
    r"Type \S+?\[.*?\] expects a function or a callable class: ",
    r"Problem with given class_path '(?P<class_path>[^']+)': ",
    r"Problems parsing config: ",
)
TRAILER = re.compile(r"\. Got value: (?:Namespace\(.*\)|\{.*\})$")
UNION = re.compile(
    r"Does not validate against any of the Union subtypes Subtypes: \[(?P<types>.*)\] Errors: (?P<errors>.*)"
    r" Given value type: .*? Given value: (?P<value>.*)$"
)


def reword(message: str, known: Iterable[str]) -> str:
    """Say in one line what jsonargparse said in many.

    Args:
        message: Of jsonargparse.
        known: The keys there are.
    """
    text, known = " ".join(message.split()), list(known)
    if match := re.match(r"unrecognized arguments: (--)?([^\s=]+)", text):
        option = match[2]
        return f"there is no option {'--' + option!r}{did_you_mean('--' + option, ['--' + key for key in known])}"
    if match := re.match(r"the following arguments are required: (.*)", text):
        missing = re.sub(r"\b(fit|validate|test|predict)\.", "", match[1])
        return f"missing {missing}; a recipe gives them (--recipe NAME)"
    if match := re.match(r'Linked "([^"]+)" must be given via "([^"]+)"', text):
        return f"{match[1]} is taken from {match[2]}: give that one"
    return _inner(text, "", "", known)


def _inner(text: str, key: str, class_path: str, known: list[str]) -> str:
    """Peel what is said around the complaint, and collect the key and the class on the way."""
    if match := re.match(r'(?:argument \S+: )?Parser key "([^"]+)": ', text):
        inner = match[1].removeprefix("config")
        dotted = f"{key}.{inner}" if key and inner and not inner.startswith(key) else inner or key
        return _inner(text[match.end() :], dotted, class_path, known)
    for wrapper in WRAPPERS:
        if match := re.match(wrapper, text):
            about = match.groupdict().get("class_path") or class_path
            return _inner(TRAILER.sub("", text[match.end() :]), key, about, known)
    if (match := UNION.match(text)) is not None:
        errors = [error for error in re.split(r"(?:^| )- ", match["errors"]) if error]
        telling = next((e for e in errors if re.match(r"Problem with|Parser key|Option|Type .* expects", e)), None)
        if telling:
            return _inner(telling, key, class_path, known)
        if dotted := next((e for e in errors if e.startswith("Expected a dot import path string")), None):
            return _inner(dotted, key, class_path, known)
        if nested := re.match(r"NestedArg\(key='([^']+)'", match["value"]):
            return f"{key} has no {nested[1]!r} as it stands: say first which class it is (--{key} CLASS)"
        return f"{key}: expected {_plain(match['types'], ' or ')}, got {_quoted(match['value'])}"
    place = f"{key}: " if key else ""
    if match := re.match(r"Option '([^']+)' is not accepted", text):
        return f"{place}there is no {match[1]!r}{_near(match[1], key, class_path, known)}"
    if match := re.match(r"Group '([^']+)' does not accept option '([^']+)'", text):
        option = f"{match[1]}.{match[2]}"
        return f"there is no key {option!r}{did_you_mean(option, known)}"
    if match := re.match(r"Subcommand '\w+' does not accept option '([^']+)'", text):
        return f"there is no key {match[1]!r}{did_you_mean(match[1], known)}"
    if match := re.match(r"Expected a dot import path string: (.*)", text):
        return f"{place}there is no class {match[1]!r}: give a class path, module.Class"
    if match := re.match(r"Expected '([^']+)' to be a subclass of <class '(?:.*\.)?(\w+)'>", text):
        return f"{place}{match[1]} is no {match[2]}"
    if match := re.match(r"Expected a (.*?)\. Got value: (.*)$", text):
        return f"{place}expected {_plain(match[1], ' or ')}, got {_quoted(match[2])}"
    return place + text


def _near(option: str, key: str, class_path: str, known: list[str]) -> str:
    """The nearest argument of the class that refused one, or the nearest key."""
    module, _, attribute = class_path.rpartition(".")
    if options := outline.arguments(module, attribute) if module else None:
        return did_you_mean(option, options) or f" (known: {', '.join(options)})"
    within = [name for name in known if name.startswith(f"{key}.") and not name.endswith(".help")]
    near = did_you_mean(f"{key}.{option}", within)
    return near or (f" in {attribute}" if attribute else "")


def _plain(types: str, between: str) -> str:
    """Types as a person writes them: "<class 'int'>" is int, "typing.Literal['a', 'b']" is 'a' or 'b'."""
    types = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", types)
    types = re.sub(r"\b(?:[a-z_]\w*\.)+(\w+)", r"\1", types)
    types = types.replace("NoneType", "null")
    types = re.sub(r"\bLiteral\[(.*?)\]", lambda literal: literal[1].replace(", ", between), types)
    # Commas inside brackets belong to one type.
    return re.sub(r", (?![^\[]*\])", between, types)


def _quoted(value: str) -> str:
    short = value if len(value) <= 60 else value[:57] + "..."
    return short if short[:1] in {"'", '"', "[", "{"} else repr(short)
