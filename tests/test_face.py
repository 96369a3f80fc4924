"""What `from scene4m import …` gives: about forty names, each from where it lives, none loaded early."""

import importlib
import subprocess
import sys

import pytest

import scene4m


@pytest.mark.parametrize("name", scene4m.__all__)
def test_a_name_is_the_one_of_its_module(name):
    module = importlib.import_module(f"scene4m.{scene4m._MODULE_OF[name]}")
    assert getattr(scene4m, name) is getattr(module, name) and name in module.__all__
    assert name in dir(scene4m)


def test_there_are_about_forty_and_none_hides_a_module():
    modules = {m.partition(".")[0] for m in scene4m._HOME}
    assert 35 <= len(scene4m.__all__) <= 48 and not modules & set(scene4m.__all__)


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="nothing_here"):
        scene4m.nothing_here  # noqa: B018
    with pytest.raises(ImportError):
        exec("from scene4m import nothing_here")


def test_the_package_alone_loads_nothing_heavy():
    code = "import sys, scene4m; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
