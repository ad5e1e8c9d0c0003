"""Names to classes: what is listed, what is refused, and that one broken package is nobody else's problem."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from samlit import plugins
from samlit.errors import SamlitError, UsageError

Install = Callable[..., Path]
LASSO = '''"""A lasso."""

class Lasso:
    """A loop drawn around what is wanted.

    More words.
    """
'''


def names(kind: str) -> list[str]:
    return [plugin.name for plugin in plugins.catalogue(kind)]


def test_the_built_in_plugins_are_found_without_importing_them() -> None:
    before = set(sys.modules)
    assert {"vit_b", "vit_h", "vit_l"} <= set(names("encoders"))
    assert all(plugin.summary() for kind in plugins.KINDS for plugin in plugins.catalogue(kind))
    assert not {name for name in set(sys.modules) - before if name.startswith("samlit_")}


def test_a_strangers_package_comes_through_the_same_door(install: Install) -> None:
    install("lasso-tools", "[samlit.prompts]\nlasso = lasso:Lasso\n", {"lasso.py": LASSO})
    plugin = plugins.find("prompts", "lasso")
    assert (plugin.package, plugin.class_path) == ("lasso-tools", "lasso.Lasso")
    assert plugin.summary() == "A loop drawn around what is wanted."
    assert plugin.problem() == ""
    assert "lasso" not in sys.modules
    assert plugins.load("lasso.Lasso", "model.prompts[0]").__name__ == "Lasso"


def test_a_summary_follows_reexports(install: Install) -> None:
    modules = {"tools/__init__.py": "from .inner.lasso import Lasso as Rope", "tools/inner/lasso.py": LASSO}
    install("tools", "[samlit.prompts]\nrope = tools:Rope\n", modules)
    assert plugins.find("prompts", "rope").summary() == "A loop drawn around what is wanted."


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("prompts", "ponts", "no prompt is called 'ponts'; did you mean 'points'? (known: "),
        ("encoders", "masks", "no encoder is called 'masks'; there is a prompt of that name (known: "),
        ("decoders", "qqqq", "no decoder is called 'qqqq' (known: "),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(kind: str, name: str, says: str) -> None:
    with pytest.raises(UsageError) as error:
        plugins.find(kind, name)
    assert says in str(error.value)


def test_an_unknown_kind_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="no kind 'prompt'; did you mean 'prompts'"):
        plugins.catalogue("prompt")


def test_nothing_registered_asks_whether_samlit_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_index", lambda: ())
    with pytest.raises(UsageError, match="is samlit installed"):
        plugins.find("prompts", "points")


def test_a_clash_names_both_packages_and_hurts_only_who_asks(install: Install) -> None:
    install("rope", "[samlit.prompts]\nlasso = rope:Lasso\n", {"rope.py": LASSO})
    install("string", "[samlit.prompts]\nlasso = string_lasso:Lasso\n", {"string_lasso.py": LASSO})
    with pytest.raises(UsageError) as error:
        plugins.find("prompts", "lasso")
    told = str(error.value)
    assert "rope (rope.Lasso) and string (string_lasso.Lasso)" in told
    assert "class path" in told
    assert plugins.find("prompts", "points").package == "samlit"
    problems = [plugin.problem() for plugin in plugins.catalogue("prompts") if plugin.name == "lasso"]
    assert len(problems) == 2
    assert "string" in problems[0]
    assert "rope.Lasso" in problems[0]


def test_a_package_found_twice_is_one(install: Install) -> None:
    entries = "[samlit.prompts]\nlasso = lasso:Lasso\n"
    install("lasso-tools", entries, {"lasso.py": LASSO}, where="first")
    install("lasso_tools", entries + "stale = gone:Gone\n", {"lasso.py": LASSO}, where="second")
    assert names("prompts").count("lasso") == 1


def test_two_packages_that_name_the_same_class_do_not_clash(install: Install) -> None:
    install("rope", "[samlit.prompts]\nlasso = rope:Lasso\n", {"rope.py": LASSO})
    install("rope-extras", "[samlit.prompts]\nlasso = rope:Lasso\n")
    assert plugins.find("prompts", "lasso").class_path == "rope.Lasso"


@pytest.mark.parametrize(
    ("text", "target", "says"),
    [
        ("class Lasso(:", "broken:Lasso", "its source is not Python"),
        ("import nowhere_to_be_found\n" + LASSO, "broken:Lasso", "it needs 'nowhere_to_be_found'"),
        (LASSO, "broken:Laso", "module 'broken' has no 'Laso'"),
        (LASSO, "gone:Lasso", "there is no module 'gone'"),
        (LASSO, "broken", 'should say "module:attribute"'),
        ("\0", "broken:Lasso", ""),
    ],
)
def test_a_broken_plugin_is_listed_with_its_reason(install: Install, text: str, target: str, says: str) -> None:
    install("broken-tools", f"[samlit.prompts]\nlasso = {target}\n", {"broken.py": text})
    (plugin,) = (plugin for plugin in plugins.catalogue("prompts") if plugin.name == "lasso")
    assert plugin.problem()
    assert says in plugin.problem()
    assert isinstance(plugin.summary(), str)
    assert plugins.find("prompts", "points").problem() == ""


def test_damaged_metadata_hurts_nobody(install: Install) -> None:
    install("wreck", "[samlit.prompts]\nthis is no entry point\n")
    site = install("nameless", "[samlit.prompts]\nlasso = lasso:Lasso\n", {"lasso.py": LASSO})
    (site / "nameless-1.0.dist-info" / "METADATA").unlink()
    assert "points" in names("prompts")


@pytest.mark.parametrize(
    ("entry", "metadata", "hint"),
    [
        ("broken:Lasso", "Requires-Dist: no-such-thing; extra == 'text'\n", "pip install 'broken-tools[text]'"),
        (
            "broken:Lasso",
            "Requires-Dist: no-such-thing; extra == 'all'\nRequires-Dist: pytest; extra == 'all'\n"
            "Requires-Dist: no-such-thing; extra == 'text'\n",
            "pip install 'broken-tools[text]'",
        ),
        ("broken:Lasso", "Requires-Dist: No.Such_thing>=2\n", "pip install No.Such_thing"),
        ("broken:Lasso [clip]", "", "pip install 'broken-tools[clip]'"),
    ],
)
def test_the_command_that_installs_what_is_missing_is_told(
    install: Install, entry: str, metadata: str, hint: str
) -> None:
    text = "import no_such_thing\n" + LASSO
    install("broken-tools", f"[samlit.prompts]\nlasso = {entry}\n", {"broken.py": text}, metadata)
    plugin = plugins.find("prompts", "lasso")
    assert plugin.problem() == f"it needs 'no_such_thing', which is not installed: {hint}"
    with pytest.raises(SamlitError) as error:
        plugins.load(plugin.class_path, "model.prompts[0]")
    told = "model.prompts[0]: 'lasso' (package broken-tools) cannot be imported: it needs 'no_such_thing'"
    assert str(error.value).startswith(told)
    assert str(error.value).endswith(hint)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("raise RuntimeError('the licence has expired')", "RuntimeError: the licence has expired"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("x = 1", "AttributeError: module 'broken' has no attribute 'Lasso'"),
    ],
)
def test_a_plugin_that_fails_to_import_gives_the_true_reason(install: Install, text: str, says: str) -> None:
    install("broken-tools", "[samlit.prompts]\nlasso = broken:Lasso\n", {"broken.py": text})
    with pytest.raises(SamlitError, match=says):
        plugins.load("broken.Lasso", "model.prompts[0]")


def test_a_class_in_the_working_directory_needs_no_registration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install: Install
) -> None:
    install("nothing", "", {"unregistered.py": LASSO})
    assert plugins.load("unregistered.Lasso", "model.prompts[0]").__name__ == "Lasso"
    with pytest.raises(SamlitError, match="No module named 'unregisterd'"):
        plugins.load("unregisterd.Lasso", "model.prompts[0]")
