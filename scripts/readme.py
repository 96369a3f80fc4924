"""Writes README.md and its pictures from nbs/index.ipynb, without Quarto: `python scripts/readme.py`; --check only compares."""

import base64
import re
import sys
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).resolve().parent))
from preview import directives  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
HEAD = "<!-- Made from nbs/index.ipynb by scripts/readme.py: edit there. -->\n\n"
REPOSITORY = "https://github.com/scene4m/scene4m/blob/main/"


def here(text: str) -> str:
    "Links as GitHub needs them: as seen from the top, files of the repository relative."
    text = text.replace(f"]({REPOSITORY}", "](")
    text = re.sub(r"\]\((?!\w+:)([\w/-]+\.ipynb)(#[\w-]*)?\)", r"](nbs/\1)", text)
    return re.sub(r"\]\((images/[^)]+)\)", r"](nbs/\1)", text)


def shown(cell, pictures: dict) -> str:
    "A code cell as markdown: its source unless hidden, text outputs as blocks, pictures as files."
    told, source = directives(cell.source)
    if "hide" in told or told.get("include") == "false":
        return ""
    parts = [] if told.get("echo") == "false" or not source else [f"```python\n{source}\n```"]
    for o in cell.outputs:
        data = o.get("data", {})
        if o.output_type == "stream" and o.name == "stdout":
            parts.append("```\n" + o.text.rstrip() + "\n```")
        elif "image/png" in data:
            name = f"index_{len(pictures)}.png"
            pictures[name] = base64.b64decode(data["image/png"])
            alt = told.get("fig-alt", "").strip("\"'")
            parts.append(f"![{alt}](nbs/images/{name})")
        elif "text/markdown" in data:
            parts.append(here(data["text/markdown"]))
    return "\n\n".join(parts)


def readme(notebook: Path = NBS / "index.ipynb") -> tuple[str, dict[str, bytes]]:
    "The text of README.md, and its pictures by name."
    pictures: dict[str, bytes] = {}
    cells = nbformat.read(notebook, 4).cells
    parts = [
        here(c.source) if c.cell_type == "markdown" else shown(c, pictures)
        for c in cells
        if c.cell_type != "raw"
    ]
    return HEAD + "\n\n".join(p.strip() for p in parts if p.strip()) + "\n", pictures


def differences() -> list[str]:
    "Files that are not in step with the notebook."
    text, pictures = readme()
    wanted = {
        ROOT / "README.md": text.encode(),
        **{NBS / "images" / name: data for name, data in pictures.items()},
    }
    left = [p for p in (NBS / "images").glob("index_*.png") if p not in wanted]
    return [
        str(p.relative_to(ROOT))
        for p, data in wanted.items()
        if not p.exists() or p.read_bytes() != data
    ] + [str(p) for p in left]


def write() -> None:
    text, pictures = readme()
    (NBS / "images").mkdir(exist_ok=True)
    for old in (NBS / "images").glob("index_*.png"):
        old.unlink()
    for name, data in pictures.items():
        (NBS / "images" / name).write_bytes(data)
    (ROOT / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        old = differences()
        print(
            f"not in step with nbs/index.ipynb: {', '.join(old)}; run python scripts/readme.py"
            if old
            else "README.md is in step"
        )
        sys.exit(bool(old))
    write()
    print("→ README.md is in step with nbs/index.ipynb")
