"""A name to a class, through entry points; nothing is imported before somebody asks. Standard library only.

One rule: kind = folder `samlit_<kind>` = entry-point group `samlit.<kind>` = `samlit list <kind>`. The built-in
plug-ins come through the same door as a stranger's.
"""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, distributions
from typing import Any

from samlit import outline
from samlit.errors import SamlitError, UsageError, did_you_mean, one_line

__all__ = ["KINDS", "Plugin", "catalogue", "find", "load", "rivals"]

KINDS = ("encoders", "prompts", "decoders", "tasks", "sources")

# Modules whose package goes by another name; only needed to say what to install.
PACKAGE_OF = {
    "PIL": "pillow",
    "clip": "openai-clip",
    "cv2": "opencv-python-headless",
    "open_clip": "open-clip-torch",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


@dataclass(frozen=True)
class Plugin:
    """One line of a package's index.

    Attributes:
        kind: One of `KINDS`.
        name: What recipes and the command line call it.
        target: "module:attribute".
        package: The distribution that registers it.
        extras: The extras of that package that it needs, where its line says so ("module:attribute [text]").
    """

    kind: str
    name: str
    target: str
    package: str
    extras: tuple[str, ...] = ()

    @property
    def class_path(self) -> str:
        """The target as recipes and checkpoints write it."""
        return self.target.replace(":", ".")

    def summary(self) -> str:
        """The first line of its docstring, read from the source; empty where that cannot be read."""
        module, _, attribute = self.target.partition(":")
        try:
            return outline.summary(outline.definition(module, attribute))
        except (AttributeError, ImportError, OSError, SyntaxError, ValueError):
            return ""

    def problem(self) -> str:
        """Why it cannot be used, as far as that can be seen without importing it; empty where nothing is wrong."""
        if others := rivals(self):
            return f"the name is also registered by {_join(other.package for other in others)}: use {self.class_path}"
        module, _, attribute = self.target.partition(":")
        if not module or not attribute:
            return f'its index line says {self.target!r} and should say "module:attribute"'
        try:
            outline.definition(module, attribute)
            missing = outline.missing_imports(module)
        except SyntaxError as error:
            return f"its source is not Python: {error.msg} ({error.filename}, line {error.lineno})"
        except (AttributeError, ImportError, OSError, ValueError) as error:
            return one_line(error)
        return _needs(missing[0], self) if missing else ""


@cache
def _index() -> tuple[Plugin, ...]:
    """All lines of all installed packages."""
    seen: set[str] = set()
    found: list[Plugin] = []
    for dist in distributions():
        try:
            entries = [entry for entry in dist.entry_points if entry.group.startswith("samlit.")]
        except Exception:  # damaged metadata of any package at all: not ours to report, and in nobody's way
            continue
        if not entries:
            continue
        package, *_ = dist.metadata.get_all("Name") or ["an unnamed package"]
        # One package can be found twice, as an editable install and its egg-info: as everywhere, the first on the
        # path counts.
        if _canonical(package) in seen:
            continue
        seen.add(_canonical(package))
        for entry in entries:
            target, _, extras = entry.value.partition("[")
            found.append(
                Plugin(
                    entry.group.removeprefix("samlit."),
                    entry.name,
                    target.replace(" ", ""),
                    package,
                    tuple(extra.strip() for extra in extras.rstrip("] ").split(",") if extra.strip()),
                )
            )
    return tuple(sorted(found, key=lambda plugin: (plugin.name, plugin.package)))


def catalogue(kind: str) -> list[Plugin]:
    """Everything registered as one kind, by name.

    Raises:
        UsageError: There is no such kind.
    """
    if kind not in KINDS:
        raise UsageError(f"there is no kind {kind!r}{did_you_mean(kind, KINDS)} (kinds: {', '.join(KINDS)})")
    return [plugin for plugin in _index() if plugin.kind == kind]


def rivals(plugin: Plugin) -> list[Plugin]:
    """The plug-ins of other packages that have the same name and are not the same thing."""
    return [
        other
        for other in _index()
        if (other.kind, other.name) == (plugin.kind, plugin.name) and other.target != plugin.target
    ]


def find(kind: str, name: str) -> Plugin:
    """The plug-in of that kind and name.

    Raises:
        UsageError: Nobody registered it, or two packages did.
    """
    table = catalogue(kind)
    matches = [plugin for plugin in table if plugin.name == name]
    if not matches:
        raise UsageError(_unknown(kind, name, [plugin.name for plugin in table]))
    if rivals(matches[0]):
        both = _join(f"{plugin.package} ({plugin.class_path})" for plugin in matches)
        what = "write the class path of the one you mean, or uninstall the other"
        raise UsageError(f"two packages register the {kind[:-1]} {name!r}: {both}; {what}")
    return matches[0]


def _unknown(kind: str, name: str, known: list[str]) -> str:
    if not known:
        return f"no {kind[:-1]} is called {name!r}; none is registered: is samlit installed? (`pip install -e .`)"
    elsewhere = [plugin.kind[:-1] for plugin in _index() if plugin.name == name]
    hint = f"; there is a {elsewhere[0]} of that name" if elsewhere else did_you_mean(name, known)
    return f"no {kind[:-1]} is called {name!r}{hint} (known: {', '.join(dict.fromkeys(known))})"


def load(class_path: str, where: str) -> Any:
    """Import a class or function, registered or not.

    Args:
        class_path: "module.attribute".
        where: What asks for it, to begin the error with.

    Raises:
        SamlitError: It cannot be imported; one line that gives the true reason and what to install.
    """
    registered = next((plugin for plugin in _index() if plugin.class_path == class_path), None)
    what = f"{registered.name!r} (package {registered.package})" if registered else repr(class_path)
    module, _, attribute = class_path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        reason = _needs((error.name or "").partition(".")[0], registered) if error.name != module else one_line(error)
    except Exception as error:  # a plug-in's import runs anybody's code, which may raise anything
        reason = f"{type(error).__name__}: {one_line(error)}"
    raise SamlitError(f"{where}: {what} cannot be imported: {reason}")


def _needs(missing: str, plugin: Plugin | None) -> str:
    """That a module is missing, and the command that installs it where that is known."""
    command = _install(missing, plugin) if plugin else ""
    return f"it needs {missing!r}, which is not installed" + (f": {command}" if command else "")


def _install(missing: str, plugin: Plugin) -> str:
    try:
        requirements = distribution(plugin.package).requires or []
    except PackageNotFoundError:
        requirements = []
    wanted = {_canonical(missing), _canonical(PACKAGE_OF.get(missing, missing))}
    parts = [re.match(r"([\w.-]+)(?:.*extra\s*==\s*['\"]([^'\"]+))?", requirement) for requirement in requirements]
    extras = Counter(part[2] for part in parts if part)
    found = [part for part in parts if part and _canonical(part[1]) in wanted]
    if found:  # of several extras that have it, the one that brings least besides
        name, extra = min(found, key=lambda part: extras[part[2]] if part[2] else 0).groups()
        return f"pip install '{plugin.package}[{extra}]'" if extra else f"pip install {name}"
    return f"pip install '{plugin.package}[{','.join(plugin.extras)}]'" if plugin.extras else ""


def _canonical(name: str) -> str:
    """One spelling for the names that pip takes to be the same."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _join(words: Iterable[str]) -> str:
    return " and ".join(words)
