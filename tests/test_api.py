"""The public API: what `samlit.__all__` names is there, documented, and costs nothing before it is asked for."""

import inspect
import subprocess
import sys

import pytest

import samlit


@pytest.mark.parametrize("name", [name for name in samlit.__all__ if name != "__version__"])
def test_a_public_name_is_a_documented_class(name):
    found = getattr(samlit, name)
    assert inspect.isclass(found)
    assert found.__name__ == name
    assert found.__module__.startswith("samlit.")
    assert len(inspect.getdoc(found) or "") > 20
    assert name in sys.modules[found.__module__].__all__
    assert name in dir(samlit)


def test_names_are_in_order_and_others_are_none():
    assert samlit.__all__ == sorted(samlit.__all__)
    assert {name for names in samlit._HOMES.values() for name in names} == {*samlit.__all__} - {"__version__"}
    with pytest.raises(AttributeError, match="module 'samlit' has no attribute 'Predicter'"):
        _ = samlit.Predicter


def test_importing_it_imports_nothing_heavy():
    told = "import sys, samlit; print([m for m in ('torch', 'numpy', 'lightning', 'PIL') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
