"""The storeys and their order: a module imports only what stands before it, and heavy packages only when they are used."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAME = "scene4m"
LATE = {"torchaudio", "transformers", "peft", "av", "moviepy"}  # imported inside functions only


# From the ground up: base, components, worlds, app. A module imports only modules that stand before it.
ORDER = """
base.core base.media base.metrics base.show base.page base.lists base.store base.downloads
base.training base.hub
world captions mel vq audio_tokenizer video_tokenizer curation tokenize
masking attention fourm_weights fourm generate ood scene_model objective finetune
describe transfer evaluate
worlds.vggsound worlds.street worlds.scene worlds.drawing worlds.sounding worlds.toystreet
worlds.ceiling
app.cosmos app.long app.report app.run app.panel app.widgets app.doctor app.cli __main__
""".split()
STOREYS = ["base", "", "worlds", "app"]  # "": the components


def exported(nbs: Path) -> list[str]:
    "The modules that notebooks export."
    found = []
    for path in sorted(nbs.rglob("[0-9]*.ipynb")):
        if m := re.search(r"#\|\s*default_exp\s+([\w.]+)", path.read_text(encoding="utf-8")):
            found.append(m[1])
    return found


def imports(source: str, module: str, top_only: bool = False) -> set[str]:
    "Names of the modules that `source` imports, relative ones made absolute; inside functions too unless `top_only`."
    tree, out = ast.parse(source), set()
    inner = {
        n
        for f in ast.walk(tree)
        if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for n in ast.walk(f)
    }
    for node in ast.walk(tree):
        if top_only and node in inner:
            continue
        if isinstance(node, ast.Import):
            out |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module
            if node.level:  # one dot: the folder of the module, each further one a folder up
                above = f"{NAME}.{module}".split(".")[: -node.level]
                base = ".".join([*above, *([node.module] if node.module else [])])
            out |= {base} | {f"{base}.{a.name}" for a in node.names}
    return out


def own(names: set[str], modules) -> set[str]:
    "Which of our modules are among imported names."
    return {m for m in modules for n in names if n == f"{NAME}.{m}" or n.startswith(f"{NAME}.{m}.")}


def uphill(sources: dict[str, str], order: list[str]) -> list[str]:
    "A sentence for every import of a module that does not stand before the one that imports it."
    return [
        f"{module} imports {other}"
        for module, source in sources.items()
        for other in sorted(own(imports(source, module), order))
        if other != module and order.index(other) >= order.index(module)
    ]


MODULES = exported(ROOT / "nbs")
SOURCES = {
    m: (ROOT / NAME / f"{m.replace('.', '/')}.py").read_text(encoding="utf-8") for m in MODULES
}


def test_every_module_has_a_notebook_and_a_place():
    found = (p.relative_to(ROOT / NAME).with_suffix("") for p in (ROOT / NAME).rglob("*.py"))
    # nbdev writes these two
    files = {".".join(p.parts) for p in found if p.stem not in ("__init__", "_modidx")}
    assert files == set(MODULES) and len(MODULES) == len(set(MODULES))
    assert set(ORDER) == files


def test_the_storeys_stand_on_each_other():
    storey = [STOREYS.index(m.rpartition(".")[0]) for m in ORDER if m != "__main__"]
    assert storey == sorted(storey)


def test_imports_run_downhill():
    assert uphill(SOURCES, ORDER) == []


def test_an_import_that_runs_uphill_is_found():
    order = ["base.core", "base.media", "app.cli"]
    for line in (
        "from .media import probe",
        "from . import media",
        "from ..base import media",
        "import scene4m.base.media",
        "from scene4m.base.media import probe",
        "def f():\n    from scene4m.base import media",
    ):
        assert uphill({"base.core": line}, order) == ["base.core imports base.media"], line
    assert not uphill({"app.cli": "from ..base.media import probe"}, order)


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_heavy_packages_wait_until_they_are_used(module):
    top = {n.split(".")[0] for n in imports(SOURCES[module], module, top_only=True)}
    assert not top & LATE


def loaded_by(statement: str) -> set[str]:
    "Top-level packages in memory after `statement` in a fresh Python."
    code = f"import sys; {statement}; print(' '.join({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_model_costs_torch_and_little_else():
    assert not loaded_by("import scene4m.fourm") & {
        "av",
        "moviepy",
        "transformers",
        "matplotlib",
        "pandas",
        "torchaudio",
        "IPython",
    }


def test_training_needs_no_media_packages():
    assert not loaded_by("import scene4m.finetune") & {"av", "moviepy", "IPython", "matplotlib"}


def test_the_command_line_answers_without_torch():
    assert "torch" not in loaded_by("import scene4m.app.cli")
