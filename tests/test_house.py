"""The rules of the house, held over every file that is committed."""

import ast
import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
NOTEBOOKS = sorted(p for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
TEXT = {
    ".py",
    ".ipynb",
    ".md",
    ".toml",
    ".ini",
    ".yml",
    ".yaml",
    ".cff",
    ".txt",
    ".css",
    ".csv",
    ".json",
    ".html",
    "",
}
name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def committed() -> list[Path]:
    "The files that git knows or would take up."
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip("this is not a git checkout")
    return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file()]


def texts() -> dict[Path, str]:
    "Committed text files with their content; pictures and sounds inside notebooks are left out."
    out = {}
    for path in committed():
        if (
            path.suffix in TEXT
            and path.stat().st_size < 2_000_000
            and "data" not in path.relative_to(ROOT).parts
        ):
            try:
                out[path] = re.sub(r"[A-Za-z0-9+/=]{200,}", "", path.read_text(encoding="utf-8"))
            except UnicodeDecodeError:
                continue
    return out


def cells(path: Path, kind: str = "code"):
    "The cells of one kind of a notebook, without empty ones."
    return [c for c in nbformat.read(path, 4).cells if c.cell_type == kind and c.source.strip()]


def directives(source: str) -> dict[str, str]:
    "The `#| name: value` lines at the head of a cell."
    return {k: v.strip() for k, v in re.findall(r"^#\|\s*([\w-]+):?[ \t]*(.*)$", source, re.M)}


def found(pattern: str, among=None) -> list[str]:
    "`file: match` for every place where `pattern` stands."
    return [
        f"{p.relative_to(ROOT)}: {m[0]!r}"
        for p, text in (among or texts()).items()
        for m in re.finditer(pattern, text)
    ]


def test_no_path_of_one_machine():
    rooms = "|".join(["home", "Users", "root", "work", "mnt", "scratch"])
    assert not found(rf"(?<![\w.~:/-])/(?:{rooms})/[\w.-]+")


def test_no_private_package_index():
    assert not found(
        r"(?:--(?:extra-)?index-url|--find-links|--trusted-host|PIP_INDEX_URL)[ =]+['\"]?https?://[^\s\"'<]+"
    )
    lines = [
        x
        for x in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if not x.startswith("#")
    ]
    assert lines and all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", x) for x in lines)


def test_nothing_is_put_off():
    assert not found(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")


def test_no_name_that_says_nothing():
    modules = [p.stem for p in (ROOT / "scene4m").rglob("*.py")]
    assert not {m for m in modules if re.search(r"util|helper|manager|misc|common|_v?2$", m)}


def test_torch_loads_weights_only():
    loads = found(
        r"torch\.load\((?:[^()]|\([^()]*\))*\)",
        {p: t for p, t in texts().items() if p.suffix in (".py", ".ipynb")},
    )
    assert not [x for x in loads if "weights_only" not in x and "test_house" not in x]


def test_no_pickle_in_the_package():
    package = {
        p: t for p, t in texts().items() if ROOT / "scene4m" in p.parents and p.suffix == ".py"
    }
    assert not found(
        r"\bpickle\.loads?\b|allow_pickle\s*=\s*True|\bshell\s*=\s*True|\bos\.system\(", package
    )


@name
def test_notebook_is_light(path):
    size = path.stat().st_size
    assert size < 500_000, f"{path.name} weighs {size // 1000} kB; lower the dpi of its figures"
    assert "widgets" not in nbformat.read(path, 4).metadata, (
        "widget state does not belong into a committed notebook"
    )


@name
def test_notebook_begins_as_they_all_do(path):
    first = nbformat.read(path, 4).cells[0]
    assert first.cell_type == "markdown" and re.match(r"# .+\n+> .+", first.source), (
        "the first cell is `# Title` and one `> sentence`"
    )


def statements(source: str) -> tuple[int, int]:
    "How many statements a cell has, and how many the longest function in it."
    tree = ast.parse(re.sub(r"^[%!].*$", "pass", source, flags=re.M))

    def count(node):
        return sum(isinstance(n, ast.stmt) for n in ast.walk(node))

    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    return count(tree), max((count(f) - 1 for f in functions), default=0)


def test_statements_are_counted_and_not_lines():
    assert statements("x = [\n    1,\n    2,\n]") == (1, 0)
    assert statements("def f():\n    x = 1\n    if x:\n        return x") == (4, 3)


@name
def test_cells_are_short(path):
    found = {c.id: statements(c.source) for c in cells(path) if not c.source.startswith("%%")}
    assert not {k: n for k, (n, _) in found.items() if n > 50}, "cells of more than 50 statements"
    assert not {k: n for k, (_, n) in found.items() if n > 27}, "functions of more than 27"


@name
def test_notebook_was_run(path):
    "A notebook with outputs shows them on the site; every cell that draws or prints must have been run."
    shows = re.compile(r"^(?:print\(|show\w*\(|contact_sheet\()", re.M)
    never = {
        k
        for c in cells(path)
        for k in [c.id]
        if directives(c.source).keys() & {"slow", "gpu", "eval", "hide"}
    }
    silent = [
        c.id for c in cells(path) if shows.search(c.source) and not c.outputs and c.id not in never
    ]
    assert not silent, (
        f"cells that print but have no output: {silent}; run the notebook and save it"
    )
    assert not [c.id for c in cells(path) for o in c.outputs if o.output_type == "error"], (
        "a cell ended in an error"
    )


@name
def test_every_figure_has_alt_text(path):
    bare = [
        c.id
        for c in cells(path)
        if any(
            "image/png" in o.get("data", {}) or "image/svg+xml" in o.get("data", {})
            for o in c.outputs
        )
        and len(directives(c.source).get("fig-alt", "")) < 15
    ]
    assert not bare, f"cells whose figure has no `#| fig-alt:` sentence: {bare}"


@name
def test_outputs_hold_no_path_of_one_machine(path):
    seen = "\n".join(
        "".join(o.get("text", "")) + json.dumps(o.get("data", {}))
        for c in cells(path)
        for o in c.outputs
    )
    seen = re.sub(r"[A-Za-z0-9+/=]{200,}", "", seen)
    assert not re.findall(r"(?<![\w.])/(?:home|Users|root|work|tmp|var)/[\w./-]+", seen)


def anchors(path: Path) -> set[str]:
    "The names that a link may end in: headings as Quarto and GitHub write them, and exported symbols."
    out = set()
    for cell in cells(path, "markdown"):
        for text, given in re.findall(
            r"^#+ (.+?)(?:\s*\{#([\w-]+)[^}]*\})?\s*$", cell.source, re.M
        ):
            plain = re.sub(r"[`*_\[\]]|\(.*?\)", "", text).strip().lower()
            out |= {given or "", re.sub(r"[^\w\s.-]", "", plain).strip().replace(" ", "-")}
    for cell in cells(path):
        out |= set(re.findall(r"^(?:class|def) (\w+)", cell.source, re.M))
    return {a.lower() for a in out}


@name
def test_links_between_pages_lead_somewhere(path):
    broken = []
    for cell in cells(path, "markdown"):
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", cell.source, flags=re.S)
        for target in re.findall(r"\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)", prose):
            if re.match(r"[a-z]+:", target):
                continue
            file, _, anchor = target.partition("#")
            page = path.parent / file if file.endswith(".ipynb") else None
            if page and page.exists():
                if anchor and anchor.lower() not in anchors(page):
                    broken.append(f"{target}: no such heading")
            elif file and not (path.parent / file).exists():
                broken.append(f"{target}: no such page")
            elif not file and anchor.lower() not in anchors(path):
                broken.append(f"{target}: no such heading here")
    assert not broken


def test_spelling():
    done = subprocess.run(
        [sys.executable, "-m", "codespell_lib"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_pictures_in_notebooks_are_pictures():
    for path in NOTEBOOKS:
        for c in cells(path):
            for o in c.outputs:
                if "image/png" in o.get("data", {}):
                    assert base64.b64decode(o["data"]["image/png"])[:8] == b"\x89PNG\r\n\x1a\n", (
                        f"{path.name} {c.id}"
                    )


def mixed(source: str) -> list[str]:
    "Kinds of statements that stand beside imports in one cell and would be run with them when the site is made."
    kinds = [type(n).__name__ for n in ast.parse(re.sub(r"^[%!].*$", "", source, flags=re.M)).body]
    return (
        [k for k in kinds if k not in ("Import", "ImportFrom", "FunctionDef", "ClassDef")]
        if {"Import", "ImportFrom"} & set(kinds)
        else []
    )


def test_mixed_cells_would_be_noticed():
    assert (
        mixed("import os\nx = f()") == ["Assign"]
        and not mixed("import os\ndef f(): pass")
        and not mixed("def f():\n    import os\nf()")
    )


@name
def test_imports_stand_in_cells_of_their_own(path):
    "nbdev runs a cell that imports when it makes the site, without the cells before it."
    among = [c for c in cells(path) if not re.search(r"^#\|\s*export", c.source, re.M)]
    bad = {c.id: m for c in among if (m := mixed(c.source))}
    assert not bad, f"move the imports into a cell of their own: {bad}"


@name
def test_no_bar_of_progress_is_left_in_an_output(path):
    "A widget in an output needs a kernel: without one a page shows an empty place."
    kinds = {
        c.id: "a widget"
        for c in cells(path)
        for o in c.outputs
        if "application/vnd.jupyter.widget-view+json" in o.get("data", {})
    }
    kinds |= {c.id: "stderr" for c in cells(path) for o in c.outputs if o.get("name") == "stderr"}
    assert not kinds, f"run these cells again without it, or take it out: {kinds}"
