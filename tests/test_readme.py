"""README.md and its table of chapters follow from the notebooks."""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
sys.path.insert(0, str(ROOT / "scripts"))
import readme  # noqa: E402

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_in_step_with_index():
    assert not readme.differences(), "run `python scripts/readme.py`"


def test_a_change_of_index_would_be_noticed(monkeypatch):
    text, pictures = readme.readme()
    monkeypatch.setattr(readme, "readme", lambda: (text + "more", pictures))
    assert readme.differences() == ["README.md"]


def test_the_table_of_chapters_names_every_notebook_with_its_module():
    rows = re.findall(
        r"^\| \[[^\]]+\]\(nbs/([\w./]+)\) \| `(\w+)` \| (?:`scene4m\.([\w.]+)`|–) \|", README, re.M
    )
    assert {f for f, _, _ in rows} == {
        p.relative_to(NBS).as_posix() for p in NBS.rglob("[0-9]*.ipynb")
    }
    for file, name, module in rows:
        source = (NBS / file).read_text(encoding="utf-8")
        assert Path(file).stem == name and re.findall(r"#\|\s*default_exp\s+([\w.]+)", source) == [
            module
        ] * bool(module), name


def test_links_of_the_readme_lead_to_files():
    targets = [t for t in re.findall(r"\]\(([^)#]+)", README) if not re.match(r"\w+:", t)]
    assert targets and not [t for t in targets if not (ROOT / t).exists()]


def test_the_readme_names_only_make_targets_that_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert (
        set(
            re.findall(
                r"\bmake ([a-z-]+)", "\n".join(re.findall(r"`[^`]+`|```.*?```", README, re.S))
            )
        )
        <= targets
    )


def test_the_readme_names_only_commands_that_exist():
    from scene4m.app import cli

    commands = {c.name or c.callback.__name__ for c in cli.app.registered_commands}
    code = "\n".join(re.findall(r"`[^`]+`|```.*?```", README, re.S))
    assert set(re.findall(r"\bscene4m ([a-z][\w-]*)", code)) <= commands


def test_pictures_have_words():
    assert not [a for a in re.findall(r"!\[([^\]]*)\]", README) if len(a) < 15]


def test_the_readme_tells_the_times_that_were_measured_and_no_others():
    kept = ROOT / "benchmarks" / "two_commands.json"
    rows = json.loads(kept.read_text(encoding="utf-8"))["rows"] if kept.exists() else []
    missing = [r["command"] for r in rows if f"| {r['command']} | {r['time']} |" not in README]
    assert not missing, f"run index.ipynb and `python scripts/readme.py` again: {missing}"
    told = re.findall(r"\d+ min|\bin \d+ s\b", re.sub(r"^\|.*$", "", README, flags=re.M))
    assert not told and len(re.findall(r"^\| .*`make (?:run|test)`.* \| \d", README, re.M)) == len(
        rows
    ), told
