"""Quarto reads the options of every cell and its own configuration as YAML; one sentence that is not stops the whole website."""

import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted([*ROOT.glob("nbs/**/*.ipynb"), *ROOT.glob("course/source/**/*.ipynb")])
CONFIGURATION = (ROOT / "_quarto.yml", ROOT / "nbs" / "_quarto.yml")


def option_lines(source: str) -> list[str]:
    "The lines `#| key: value` of a cell without their mark; nbdev takes those without a colon away."
    marked = re.findall(r"^\s*#\s*\|\s*(.*)$", source, re.MULTILINE)
    return [line for line in marked if re.match(r"[\w-]+\s*:", line)]


def complaint(lines: list[str]) -> str:
    "Why Quarto would not read these options as they are meant, or an empty text."
    try:
        options = yaml.safe_load("\n".join(lines))
    except yaml.YAMLError as e:
        return f"not YAML: {e.problem}"
    if not isinstance(options, dict) or len(options) != len(lines):
        return "not one value for each key"
    for line, value in zip(lines, options.values()):
        if isinstance(value, (dict, list)) or value is None:
            return "the value is not plain"
        text = line.partition(":")[2].strip()
        if isinstance(value, str) and text[:1] not in ("'", '"') and value != text:
            return "a part of the text is read as a comment"
    return ""


@pytest.mark.parametrize(
    "lines, word",
    [
        (["fig-alt: A car: red."], "not YAML"),
        (['fig-alt: "A car: red."', "eval: false"], ""),
        (["fig-alt: 'it''s'"], ""),
        (["fig-alt: Clip #3 and clip #4"], "comment"),
        (["fig-alt: Clip#3"], ""),
        (["fig-alt: [Music]"], "plain"),
        (["fig-alt:"], "plain"),
        (["eval: false", "eval: false"], "one value"),
        (["fig-alt:A car"], "one value"),
    ],
)
def test_what_quarto_would_not_read_is_found(lines, word):
    assert word in complaint(lines) and bool(word) == bool(complaint(lines))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_options_of_cells_are_yaml(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    blocks = {
        c.get("id"): option_lines("".join(c["source"])) for c in cells if c["cell_type"] == "code"
    }
    wrong = {name: complaint(lines) for name, lines in blocks.items() if lines and complaint(lines)}
    assert not wrong, (
        f"cells with `#|` lines that Quarto cannot read; put quotes around the text: {wrong}"
    )


@pytest.mark.parametrize("path", CONFIGURATION, ids=lambda p: p.parent.name)
def test_the_configuration_is_yaml(path):
    told = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(told, dict) and told
