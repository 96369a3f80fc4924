"""The graded course: sources score full marks, releases none, a missing answer costs its own part alone, and nothing gives a solution away."""

import ast
import contextlib
import copy
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import symtable
import sys
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("nbgrader", reason="nbgrader is not installed; pip install 'scene4m[course]'")

ROOT = Path(__file__).resolve().parents[1]
COURSE, SETS = ROOT / "course", ("ps1", "ps2", "ps3", "ps4", "ps5", "ps6")
each = pytest.mark.parametrize("name", SETS)
# the first set is graded in `make test`, the others in `make test-all`
graded = pytest.mark.parametrize(
    "name", [SETS[0], *(pytest.param(n, marks=pytest.mark.slow) for n in SETS[1:])]
)


def cells(name: str) -> list:
    "The cells of the source of a set."
    return nbformat.read(COURSE / "source" / name / f"{name}.ipynb", 4).cells


def mark(cell) -> dict:
    "What nbgrader knows of a cell; empty for one that it leaves alone."
    return cell.metadata.get("nbgrader", {})


def is_answer(cell) -> bool:
    return cell.cell_type == "code" and bool(mark(cell).get("solution"))


def points(name: str, kind: str = "code") -> dict:
    "Points of the cells that are counted (`code`) or read by a person (`markdown`)."
    return {
        c.id: mark(c)["points"] for c in cells(name) if mark(c).get("grade") and c.cell_type == kind
    }


def graded_cells(answer: str) -> set:
    "The graded cells of an answer cell."
    return {f"{answer}-tests", f"{answer}-more"}


def regions(cell) -> list[str]:
    "What stands between the marks of a solution."
    return re.findall(r"### BEGIN SOLUTION\n(.*?)\n\s*### END SOLUTION", cell.source, re.S)


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


# --- what is written in the sources


def test_there_are_six_sets_and_nothing_else():
    assert sorted(p.name for p in (COURSE / "source").iterdir()) == list(SETS)


@each
def test_metadata_is_what_nbgrader_wants(name):
    from nbgrader.nbgraderformat import MetadataValidator

    nb = nbformat.read(COURSE / "source" / name / f"{name}.ipynb", 4)
    nbformat.validate(nb)
    ids = [c.id for c in nb.cells]
    assert len(ids) == len(set(ids)) and nb.metadata.kernelspec.name == "python3"
    validator = MetadataValidator()
    for cell in nb.cells:
        if not mark(cell):
            continue
        validator.validate_cell(cell)
        m = mark(cell)
        assert m["grade_id"] == cell.id and m["schema_version"] == 3 and m["task"] is False
        if m["grade"]:
            assert (
                isinstance(m["points"], int)
                and m["points"] > 0
                and m["solution"] == (cell.cell_type == "markdown")
            )
        if "### BEGIN SOLUTION" in cell.source:
            assert is_answer(cell)
        if "### BEGIN HIDDEN TESTS" in cell.source:
            assert m["grade"] and m["locked"]


@each
def test_every_answer_has_tests_that_are_seen_and_tests_that_are_not(name):
    found = {c.id: c.source for c in cells(name)}
    answers = [c for c in cells(name) if is_answer(c)]
    assert 4 <= len(answers) + len(points(name, "markdown")) <= 8
    assert set(points(name)) == set().union(*(graded_cells(a.id) for a in answers))
    for a in answers:
        assert (
            regions(a)
            and "HIDDEN" not in found[f"{a.id}-tests"]
            and "assert" in found[f"{a.id}-tests"]
        )
        hidden = found[f"{a.id}-more"]
        assert (
            re.fullmatch(r"# .+\n### BEGIN HIDDEN TESTS\n.+\n### END HIDDEN TESTS", hidden, re.S)
            and "assert" in hidden
        )


@each
def test_text_names_the_points_and_hours_that_there_are(name):
    head = cells(name)[0].source
    counted, read = sum(points(name).values()), sum(points(name, "markdown").values())
    assert re.match(
        r"# Problem set \d: .+\n\n> .+\n", head
    ) and f"**Points:** {counted + read}, of which {counted} are" in " ".join(head.split())
    rows = re.findall(r"^\| (\d) [^|]+\|[^|]+\| (\d+) \| ([\d¼½¾]+) \|$", head, re.M)
    by_part = [
        sum(points(name)[t] for t in graded_cells(c.id)) for c in cells(name) if is_answer(c)
    ] + list(points(name, "markdown").values())
    assert [int(r[1]) for r in rows] == by_part and [int(r[0]) for r in rows] == list(
        range(1, len(by_part) + 1)
    )
    headings = [
        int(n)
        for c in cells(name)
        if c.cell_type == "markdown"
        for n in re.findall(r"^## \d\. .+\((\d+) points", c.source, re.M)
    ]
    assert headings == by_part
    hours = sum(
        {"¼": 0.25, "½": 0.5, "¾": 0.75}.get(h[-1], 0) + float(re.sub(r"\D", "", h) or 0)
        for *_, h in rows
    )
    said = re.search(r"\*\*Expected time:\*\* (\d+)(?: to (\d+))? hours", head)
    low, high = int(said[1]), int(said[2] or said[1])
    assert low - 0.75 <= hours <= high + 0.75, f"the parts take {hours} hours"


@each
def test_source_is_light_and_readable(name):
    path = COURSE / "source" / name / f"{name}.ipynb"
    code = [c for c in cells(name) if c.cell_type == "code"]
    assert path.stat().st_size < 200_000 and not any(c.outputs or c.execution_count for c in code)
    lines = [len([x for x in c.source.splitlines() if x.strip()]) for c in code]
    assert max(lines) <= 40
    for c in code:
        compile(c.source, c.id, "exec")
        if re.search(
            r"^(?:\w+ = .*; )?(?:contact_sheet|waveform_and_mel|usage_histogram|mask_picture|token_picture|reliability|\w+_reconstruction)\(",
            c.source,
            re.M,
        ):
            assert re.match(r"#\| fig-alt: .{15,}", c.source), (
                f"{c.id} draws and has no sentence for those who cannot see it"
            )


def part_of(cell) -> str:
    "The part a cell belongs to; empty for what is given."
    return (
        re.sub(r"-(tests|more)$", "", cell.id) if is_answer(cell) or mark(cell).get("grade") else ""
    )


def read_at_top(node, own=frozenset()) -> set:
    "Names that a statement reads while it runs: not what functions read when they are called, nor the variables of comprehensions."
    if isinstance(node, ast.Name):
        return {node.id} - own if isinstance(node.ctx, ast.Load) else set()
    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda):
        return set()
    if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        own = own | {
            x.id for g in node.generators for x in ast.walk(g.target) if isinstance(x, ast.Name)
        }
    return set().union(*(read_at_top(child, own) for child in ast.iter_child_nodes(node)))


def below(table):
    "All scopes inside a scope."
    for child in table.get_children():
        yield child
        yield from below(child)


def names(cell) -> tuple[set, set]:
    "Names that a code cell takes from the cells before it, and names that it leaves to those after it."
    table, takes, bound = symtable.symtable(cell.source, cell.id, "exec"), set(), set()
    for node in ast.parse(cell.source).body:
        stored = {
            x.id for x in ast.walk(node) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)
        }
        takes |= (
            read_at_top(node) - bound - (stored if isinstance(node, ast.For | ast.With) else set())
        )
        bound |= stored | (
            {node.name} if isinstance(node, ast.FunctionDef | ast.ClassDef) else set()
        )
    leaves = {
        x.get_name()
        for x in table.get_symbols()
        if x.is_assigned() or x.is_imported() or x.is_namespace()
    }
    called = {
        x.get_name()
        for t in below(table)
        if t.get_type() == "function"
        and t.get_name() not in ("listcomp", "setcomp", "dictcomp", "genexpr")
        for x in t.get_symbols()
        if x.is_global() and x.is_referenced()
    }
    return takes | (called - leaves), leaves


@each
def test_no_cell_needs_what_another_part_left(name):
    "So that a mistake costs one part: whatever a cell takes from before was given, or belongs to its own part."
    left, wrong = {}, []
    for cell in (c for c in cells(name) if c.cell_type == "code"):
        takes, leaves = names(cell)
        wrong += [(cell.id, n, left[n]) for n in takes if left.get(n) and left[n] != part_of(cell)]
        left |= {n: part_of(cell) for n in leaves}
    assert not wrong, wrong


# --- the releases


def release_tool() -> dict:
    return runpy.run_path(str(ROOT / "scripts" / "course.py"))


@pytest.fixture(scope="module")
def releases(tmp_path_factory) -> dict:
    "The release of every set, made by the script."
    room = tmp_path_factory.mktemp("release")
    made = release_tool()["make_releases"](COURSE, room / "release", keep=room)
    return {p.stem: nbformat.read(p, 4).cells for p in made}


@each
def test_release_is_the_source_without_answers(releases, name):
    source, release = {c.id: c for c in cells(name)}, {c.id: c for c in releases[name]}
    assert list(source) == list(release)
    for key, cell in release.items():
        assert not re.search(r"(BEGIN|END) (SOLUTION|HIDDEN)", cell.source) and not cell.get(
            "outputs"
        )
        if is_answer(cell):
            assert cell.source.count("raise NotImplementedError()") == len(regions(source[key]))
        elif key.endswith("-more"):
            assert re.fullmatch(r"# .+", cell.source)
        elif mark(cell).get("grade") and cell.cell_type == "markdown":
            assert cell.source.strip() == "YOUR ANSWER HERE"
        else:
            assert cell.source == source[key].source
        if cell.cell_type == "code":
            compile(cell.source, key, "exec")
    locked = [c for c in release.values() if mark(c).get("locked")]
    assert locked and all(c.metadata.get("editable") is False for c in locked)


def pairs(lines: list[str]) -> list[str]:
    "Every two lines that follow each other; a single line may stand anywhere by chance."
    return ["\n".join(two) for two in zip(lines, lines[1:])] or lines


@each
def test_no_solution_text_is_given_away(releases, name):
    "No two lines of a solution or hidden test stand in a release or on the site, no sentence of an answer."
    secret = []
    for c in cells(name):
        if is_answer(c):
            secret += [pair for r in regions(c) for pair in pairs(r.splitlines())]
        if c.id.endswith("-more"):
            secret += pairs(c.source.splitlines()[2:-1])
        if mark(c).get("grade") and c.cell_type == "markdown":
            secret += re.split(r"(?<=[.;:])\s", c.source)
    secret = {squeezed(s) for s in secret if len(squeezed(s)) >= 32}
    public = {k: squeezed("\n".join(c.source for c in v)) for k, v in releases.items()}
    public |= {
        p.name: squeezed("\n".join(c.source for c in nbformat.read(p, 4).cells))
        for p in (ROOT / "nbs").rglob("*.ipynb")
    }
    assert len(secret) > 40 and not [
        (where, s) for where, text in public.items() for s in secret if s in text
    ]


def test_script_writes_releases_and_leaves_nothing_else(tmp_path):
    "On a fresh clone: the folder of releases appears, and neither a database nor anything in the home folder."
    home, course = tmp_path / "home", tmp_path / "clone" / "course"
    home.mkdir()
    shutil.copytree(COURSE, course, ignore=shutil.ignore_patterns("release", "*.db"))
    shutil.copytree(ROOT / "scripts", tmp_path / "clone" / "scripts")
    for name in SETS[1:]:
        shutil.rmtree(course / "source" / name)
    before = {p for p in course.rglob("*")}
    env = {
        k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "IPYTHON", "XDG"))
    } | dict(HOME=str(home), PYTHONDONTWRITEBYTECODE="1")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "clone" / "scripts" / "course.py")],
        env=env,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {p.relative_to(course).as_posix() for p in {*course.rglob("*")} - before} == {
        "release",
        "release/ps1",
        "release/ps1/ps1.ipynb",
    }
    assert not [*home.iterdir()] and "course/release/ps1/ps1.ipynb" in done.stdout


def test_script_says_what_is_wrong(tmp_path):
    shutil.copytree(COURSE, tmp_path / "course", ignore=shutil.ignore_patterns("release", "*.db"))
    path = tmp_path / "course" / "source" / "ps1" / "ps1.ipynb"
    nb = json.loads(path.read_text(encoding="utf-8"))
    twin = next(c for c in nb["cells"] if c["metadata"].get("nbgrader"))
    nb["cells"].append(copy.deepcopy(twin) | {"id": "twin"})
    path.write_text(json.dumps(nb), encoding="utf-8")
    with pytest.raises(RuntimeError, match="ps1"):
        release_tool()["make_releases"](tmp_path / "course", tmp_path / "out", names=["ps1"])


# --- the grading, all cells of a set in one process


class Played:
    "A source that has been run, with the state before each of its answers."

    def __init__(self, name: str):
        self.cells, self.before, state = cells(name), {}, {"__name__": "course"}
        self.scores = {}
        for i, cell in enumerate(self.cells):
            if is_answer(cell):
                self.before[i] = dict(state)
            self.scores |= self.run([cell], state)

    @staticmethod
    def run(some, state: dict) -> dict:
        "Runs code cells in `state`, goes on after errors as a grader does, and returns the points."
        got = {}
        for cell in some:
            if cell.cell_type != "code":
                continue
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(compile(cell.source, cell.id, "exec"), state)
                fine = True
            except Exception:
                fine = False
            if mark(cell).get("grade"):
                got[cell.id] = mark(cell)["points"] * fine
        return got

    def with_answer(self, i: int, source: str, all_of_it: bool = True) -> dict:
        "Points of the cells from answer `i` on, with another text in its place; or of this part only."
        other = copy.deepcopy(self.cells[i])
        other.source = source
        rest = self.cells[i + 1 :]
        if not all_of_it:
            rest = rest[: 1 + next(k for k, c in enumerate(rest) if c.id == f"{other.id}-more")]
        return self.run([other, *rest], dict(self.before[i]))


@pytest.fixture(scope="module")
def played():
    "Runs a set once, however many tests ask for it."
    import torch

    threads, done = torch.get_num_threads(), {}
    torch.set_num_threads(1)
    os.environ.setdefault("MPLBACKEND", "agg")
    yield lambda name: done[name] if name in done else done.setdefault(name, Played(name))
    torch.set_num_threads(threads)


@graded
def test_source_scores_full_marks(played, name):
    assert played(name).scores == points(name)


@graded
def test_release_scores_nothing(played, releases, name):
    "Every answer empty at once: tests come from the source, as the autograder takes them."
    empty = {c.id: c.source for c in releases[name] if is_answer(c)}
    some = copy.deepcopy(played(name).cells)
    for c in some:
        if c.id in empty:
            c.source = empty[c.id]
    given = {c.id for c in some if mark(c).get("locked") and not mark(c).get("grade")}
    first = min(played(name).before)  # what stands before the first answer needs no second run
    got = Played.run(some[first:], dict(played(name).before[first]))
    assert given and set(got) == set(points(name)) and not any(got.values())


@graded
def test_an_empty_answer_costs_its_part_alone(played, releases, name):
    empty = {c.id: c.source for c in releases[name] if is_answer(c)}
    p = played(name)
    for i in p.before:
        answer = p.cells[i].id
        got = p.with_answer(i, empty[answer])
        assert {k for k, v in got.items() if not v} == graded_cells(answer), (
            f"{answer}: lost {[k for k, v in got.items() if not v]}"
        )


@graded
def test_hidden_tests_find_what_visible_ones_let_pass(played, name):
    "Answers that are right for the example and wrong in general: they pass the visible tests, and lose the hidden points."
    p = played(name)
    wrong = runpy.run_path(str(ROOT / "tests" / "course_wrong_answers.py"))["WRONG"]
    for i in p.before:
        answer = p.cells[i].id
        mistakes = wrong[answer]
        assert mistakes, f"{answer}: no wrong answer is known"
        for text in mistakes:
            got = p.with_answer(i, p.cells[i].source + "\n\n" + text, all_of_it=False)
            assert got[f"{answer}-tests"] and not got[f"{answer}-more"], (
                f"{answer}: {got} for\n{text}"
            )


# --- nbgrader itself


def with_copies(nb):
    "The notebook of a student who copied every kind of marked cell and left the copies below the originals."
    twins = {}
    for c in nb.cells:
        m = mark(c)
        twins.setdefault((c.cell_type, m.get("solution"), m.get("grade"), m.get("locked")), c.id)
    some = []
    for c in nb.cells:
        some.append(c)
        if mark(c) and c.id in twins.values():
            some.append(copy.deepcopy(c))
            some[-1]["id"] = f"{c.id}-copy"
    nb.cells = some
    return nb


def test_copied_cells_do_not_stop_the_grading():
    "nbgrader's own steps leave a mark that it cannot read; ours leave one mark of each name."
    from nbgrader.converters import Autograde
    from nbgrader.nbgraderformat import MetadataValidator, SchemaTooOldError
    from traitlets.config import PyFileConfigLoader

    ours = (
        PyFileConfigLoader("nbgrader_config.py", path=str(COURSE))
        .load_config()
        .Autograde.sanitize_preprocessors
    )
    theirs = Autograde.sanitize_preprocessors.default_args[0]
    assert [t is o or issubclass(o, t) for t, o in zip(theirs, ours, strict=True)] == [True] * len(
        ours
    )

    def read(steps):
        nb = with_copies(
            nbformat.from_dict(
                dict(cells=copy.deepcopy(cells("ps1")), metadata={}, nbformat=4, nbformat_minor=5)
            )
        )
        copies = sum(c.id.endswith("-copy") for c in nb.cells)
        for step in steps:
            if step.__name__ in ("DeduplicateIds", "ForgetCopies"):
                nb, _ = step().preprocess(nb, {})
        MetadataValidator().validate_nb(nb)
        assert copies >= 3 and all(mark(c) for c in nb.cells if c.id.endswith("-copy"))
        return [mark(c)["grade_id"] for c in nb.cells if mark(c)]

    assert read(ours) == [mark(c)["grade_id"] for c in cells("ps1") if mark(c)]
    with pytest.raises(SchemaTooOldError):
        read(theirs)


@pytest.mark.slow
def test_nbgrader_grades_a_class(tmp_path):
    "The commands of the instructor's page, for two sets: one student hands in every solution, another nothing."
    some = SETS[:2]
    course, home = tmp_path / "course", tmp_path / "home"
    home.mkdir()
    shutil.copytree(COURSE, course, ignore=shutil.ignore_patterns("release", "*.db"))
    jupyter = {
        k: str(home / k)
        for k in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    }
    path = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    )  # nbgrader starts `alembic` by name
    env = (
        os.environ
        | jupyter
        | dict(HOME=str(home), OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT), PATH=path)
    )

    def nbgrader(*words):
        done = subprocess.run(
            [sys.executable, "-m", "nbgrader", *words],
            cwd=course,
            env=env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    for name in some:
        nbgrader("generate_assignment", name, "--create", "--force")
        for student, place in (("ada", "source"), ("bob", "release")):
            shutil.copytree(course / place / name, course / "submitted" / student / name)
        if name == some[0]:
            shutil.copytree(course / "source" / name, course / "submitted" / "ava" / name)
            path = course / "submitted" / "ava" / name / f"{name}.ipynb"
            nbformat.write(with_copies(nbformat.read(path, 4)), path)
        nbgrader("autograde", name, "--create")
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as book:
        scores = {(s, n): book.find_submission(n, s) for s in ("ada", "bob") for n in some}
        assert {k: v.score for k, v in scores.items()} == {
            (s, n): sum(points(n).values()) * (s == "ada") for s in ("ada", "bob") for n in some
        }
        assert book.find_submission(some[0], "ava").score == sum(points(some[0]).values()), (
            "copies cost nothing"
        )
        assert all(v.needs_manual_grade for (s, _), v in scores.items() if s == "ada"), (
            "written answers wait for a reader"
        )


# --- the instructor's page


def test_instructors_page_knows_the_sets():
    page = (COURSE / "README.md").read_text(encoding="utf-8")
    for name in SETS:
        counted, read = sum(points(name).values()), sum(points(name, "markdown").values())
        assert re.search(rf"^\| {name} \|.*\| {counted} \| {read} \|", page, re.M), (
            f"{name}: {counted} and {read} points"
        )
        for cell in points(name, "markdown"):
            assert f"`{cell}`" in page, f"no rubric for {cell}"
    assert [int(w) for w in re.findall(r"^\| (\d+) \|", page, re.M)] == list(range(1, 11)), (
        "a term of ten weeks"
    )
    for target in re.findall(r"\]\(([^)#:]+)\)", page):
        assert (COURSE / target).exists(), target
