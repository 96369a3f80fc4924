"""The order of the rooms: a module imports only modules whose notebook has a lower number, and heavy packages only when they are used."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAME = "scene4m"
LATE = {"torchaudio", "transformers", "peft", "av", "moviepy"}  # imported inside functions only


def numbers(nbs: Path) -> dict[str, int]:
    "Module → number of the notebook that exports it."
    found = {}
    for path in sorted(nbs.glob("[0-9]*.ipynb")):
        default = re.search(r"#\|\s*default_exp\s+([\w.]+)", path.read_text(encoding="utf-8"))
        if default:
            found[default[1]] = int(re.match(r"\d+", path.name)[0])
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
            base = NAME + (f".{node.module}" if node.module else "") if node.level else node.module
            out |= {base} | {f"{base}.{a.name}" for a in node.names}
    return out


def own(names: set[str], modules) -> set[str]:
    "Which of our modules are among imported names."
    return {m for m in modules for n in names if n == f"{NAME}.{m}" or n.startswith(f"{NAME}.{m}.")}


def uphill(sources: dict[str, str], number: dict[str, int]) -> list[str]:
    "A sentence for every import that runs uphill."
    return [
        f"{module} (notebook {number[module]:02d}) imports {other} (notebook {number[other]:02d})"
        for module, source in sources.items()
        for other in sorted(own(imports(source, module), number))
        if other != module and number[other] >= number[module]
    ]


NUMBER = numbers(ROOT / "nbs")
SOURCES = {
    m: (ROOT / NAME / f"{m.replace('.', '/')}.py").read_text(encoding="utf-8") for m in NUMBER
}


def test_every_module_has_a_notebook():
    found = (p.relative_to(ROOT / NAME).with_suffix("") for p in (ROOT / NAME).rglob("*.py"))
    modules = {
        ".".join(p.parts) for p in found if p.stem not in ("__init__", "_modidx")
    }  # nbdev writes these two
    assert modules == set(NUMBER), (
        f"without a notebook: {modules - set(NUMBER)}; without a module: {set(NUMBER) - modules}"
    )


def test_two_notebooks_never_share_a_number():
    assert len(set(NUMBER.values())) == len(NUMBER)


def test_imports_run_downhill():
    assert not uphill(SOURCES, NUMBER)


def test_an_import_that_runs_uphill_is_found():
    number = dict(core=0, media=10, cli=60)
    for line in (
        "from .media import probe",
        "from . import media",
        "import scene4m.media",
        "from scene4m.media import probe",
        "def f():\n    from scene4m import media",
    ):
        assert uphill(dict(core=line), number) == [
            "core (notebook 00) imports media (notebook 10)"
        ], line
    assert not uphill(dict(cli="from .media import probe"), number)


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_heavy_packages_wait_until_they_are_used(module):
    top = {n.split(".")[0] for n in imports(SOURCES[module], module, top_only=True)}
    assert not top & LATE


def test_only_run_cli_and_the_street_itself_know_the_toy_street():
    allowed = {"toystreet", "run", "cli", "widgets"}
    assert (
        not {m for m, s in SOURCES.items() if "toystreet" in own(imports(s, m), NUMBER)} - allowed
    )


def loaded_by(statement: str) -> set[str]:
    "Top-level packages in memory after `statement` in a fresh Python."
    code = f"import sys; {statement}; print(' '.join({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.skipif("fourm" not in NUMBER, reason="there is no fourm module")
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


@pytest.mark.skipif("finetune" not in NUMBER, reason="there is no finetune module")
def test_training_needs_no_media_packages():
    assert not loaded_by("import scene4m.finetune") & {"av", "moviepy", "IPython", "matplotlib"}


def test_the_command_line_answers_without_torch():
    assert "torch" not in loaded_by("import scene4m.cli")
