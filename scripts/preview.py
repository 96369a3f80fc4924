"""A plain preview of the website in `_docs`, without Quarto: `make docs` calls it where Quarto is missing.

One page per notebook with its prose, code and saved outputs, the same navigation and the same addresses as the website. It has no
search, no dark mode and no reference entries, and formulas stand as they were typed. Nothing in it is fetched from elsewhere."""
import configparser
import html
import re
import shutil
import sys
from pathlib import Path

import nbformat
import yaml
from nbconvert.filters import Highlight2HTML, ansi2html, markdown2html
from pygments.formatters import HtmlFormatter

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"

STYLE = """
:root { --ink: #1b1b1b; --paper: #ffffff; --line: #c8c8c8; --accent: #1f5a7d; }
body { font: 1rem/1.6 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0; }
a { color: var(--accent); }
.skip { position: absolute; left: -99rem; } .skip:focus { left: 1rem; top: 1rem; background: #fff; padding: .5rem; }
header, footer { padding: .8rem 1.5rem; border-bottom: 1px solid var(--line); } footer { border: 0; border-top: 1px solid var(--line); }
.columns { display: flex; flex-wrap: wrap; } nav { flex: 1 1 14rem; max-width: 18rem; padding: 1rem 1.5rem; }
nav ul { list-style: none; padding-left: .5rem; margin: .2rem 0 1rem; } nav h2 { font-size: 1rem; margin: 0; }
main { flex: 4 1 40rem; max-width: 54rem; padding: 1rem 1.5rem; min-width: 0; }
pre, code { font: .9rem/1.45 ui-monospace, monospace; } 
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: .6rem .8rem; margin: .4rem 0; } .input pre { background: #f5f5f5; }
table { border-collapse: collapse; } td, th { padding: .2rem .6rem; border-bottom: 1px solid var(--line); }
figure { margin: 1rem 0; } details, .callout { border: 1px solid var(--line); padding: .4rem 1rem; margin: 1rem 0; }
.note { background: #fff6d6; padding: .4rem 1.5rem; margin: 0; }
"""

PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><link rel="stylesheet" href="preview.css"><link rel="stylesheet" href="styles.css"></head>
<body>
<a class="skip" href="#content">Skip to the text</a>
<header><a href="index.html"><strong>scene4m</strong></a> · {description}</header>
<p class="note" role="note">A plain preview made without Quarto: no search, no reference entries, formulas as typed.</p>
<div class="columns">
<nav aria-label="Chapters">{navigation}</nav>
<main id="content">
{body}
</main>
</div>
<footer>{footer}</footer>
</body>
</html>
"""


def page_name(notebook: str) -> str:
    "The address of a notebook's page: `00_core.ipynb` → `core.html`, as on the website."
    return re.sub(r"^\d+[a-z]?_", "", Path(notebook).stem) + ".html"


def slug(text: str) -> str:
    "The anchor that Quarto gives to a heading."
    text = re.sub(r"<[^>]+>", "", html.unescape(text)).strip().lower()
    return re.sub(r"^[^a-z]+", "", re.sub(r"[^\w\s.-]", "", text).strip().replace(" ", "-"))


def directives(source: str) -> tuple[dict, str]:
    "The `#| name: value` lines of a cell, and the cell without them."
    found = dict(re.findall(r"^#\|\s*([\w-]+):?[ \t]*(.*)$", source, re.M))
    return found, re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip("\n")


def blocks(source: str) -> str:
    "Quarto's `::: {…}` blocks as HTML: collapsed callouts become <details>, other blocks a <div>."
    def opened(m):
        title = re.search(r'title="([^"]*)"', m[1])
        heading = re.match(r"\s*#+ (.+)\n", m[2])
        name = title[1] if title else heading[1] if heading else "More"
        inner = m[2][heading.end():] if heading and not title else m[2]
        if 'collapse="true"' in m[1]:
            return f"\n<details><summary>{html.escape(name)}</summary>\n\n{inner}\n\n</details>\n"
        return f'\n<div class="callout">\n\n{inner}\n\n</div>\n'
    return re.sub(r"^:{3,} ?\{([^}\n]*)\}\n(.*?)^:{3,}[ ]*$", opened, source, flags=re.S | re.M)


def prose(source: str) -> str:
    "A markdown cell as HTML, with anchors and links as on the website."
    text = markdown2html(blocks(source))
    text = re.sub(r'<a class="anchor-link".*?</a>', "", text)
    text = re.sub(r'<h(\d)[^>]*>(.*?)</h\1>', lambda m: f'<h{m[1]} id="{slug(m[2])}">{m[2]}</h{m[1]}>', text, flags=re.S)
    return re.sub(r'href="(?!\w+:)([\w/.-]+)\.ipynb(#[^"]*)?"', lambda m: f'href="{page_name(m[1] + ".ipynb")}{m[2] or ""}"', text)


def output(o, alt: str) -> str:
    "One saved output of a cell."
    if o.output_type == "stream":
        return f"<pre>{ansi2html(o.text)}</pre>" if o.name == "stdout" else ""
    if o.output_type == "error":
        return f"<pre>{ansi2html(chr(10).join(o.traceback))}</pre>"
    data = o.get("data", {})
    if "text/html" in data:
        return f"<div>{data['text/html']}</div>"
    if "image/svg+xml" in data:
        return f'<figure role="img" aria-label="{html.escape(alt)}">{data["image/svg+xml"]}</figure>'
    for kind in ("image/png", "image/jpeg"):
        if kind in data:
            return f'<figure><img src="data:{kind};base64,{data[kind].strip()}" alt="{html.escape(alt)}"></figure>'
    if "text/markdown" in data:
        return prose(data["text/markdown"])
    return f"<pre>{ansi2html(data['text/plain'])}</pre>" if "text/plain" in data else ""


def code(cell, highlight) -> str:
    "A code cell with its saved outputs; `hide`, `include: false`, `echo: false` and `output: false` are obeyed."
    told, source = directives(cell.source)
    if "hide" in told or told.get("include") == "false" or "default_exp" in told:
        return ""
    shown = [] if told.get("echo") == "false" or not source.strip() else [f'<div class="input">{highlight(source)}</div>']
    outputs = "" if told.get("output") == "false" else "".join(output(o, told.get("fig-alt", "").strip("\"'")) for o in cell.outputs)
    return f'<div class="cell">{"".join(shown)}' + (f'<div class="cell-output">{outputs}</div>' if outputs else "") + "</div>"


def title_of(notebook: Path) -> str:
    "The text of a notebook's first heading."
    for cell in nbformat.read(notebook, 4).cells:
        heading = re.match(r"# (.+)", cell.source) if cell.cell_type == "markdown" else None
        if heading:
            return heading[1].strip()
    return notebook.stem


def navigation(contents: list, titles: dict, here: str) -> str:
    "The sidebar of `_quarto.yml` as a list of links; pages that are not there are left out."
    def links(names):
        items = [(n, ' aria-current="page"' if n == here else "") for n in names if n in titles]
        return "".join(f'<li><a href="{page_name(n)}"{current}>{html.escape(titles[n])}</a></li>' for n, current in items)
    out = ""
    for entry in contents:
        part = dict(section="", contents=[entry]) if isinstance(entry, str) else entry
        heading = f"<h2>{html.escape(part['section'])}</h2>" if part["section"] else ""
        out += f"{heading}<ul>{items}</ul>" if (items := links(part["contents"])) else ""
    return out


def build(out: Path, nbs: Path = NBS) -> list[Path]:
    "Writes the preview of every notebook in `nbs` to `out`; returns the pages."
    site = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))["website"]
    settings = configparser.ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    notebooks = sorted(nbs.glob("*.ipynb"))
    titles, highlight = {p.name: title_of(p) for p in notebooks}, Highlight2HTML(pygments_lexer="python3")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    pages = []
    for path in notebooks:
        cells = nbformat.read(path, 4).cells
        body = "\n".join(prose(c.source) if c.cell_type == "markdown" else code(c, highlight) for c in cells if c.cell_type != "raw")
        page = out / page_name(path.name)
        page.write_text(PAGE.format(title=f"{titles[path.name]} · scene4m", description=settings["DEFAULT"]["description"], body=body,
                                    navigation=navigation(site["sidebar"]["contents"], titles, path.name),
                                    footer=site["page-footer"]["left"]), encoding="utf-8")
        pages.append(page)
    (out / "preview.css").write_text(STYLE + HtmlFormatter(style="default").get_style_defs(".highlight"), encoding="utf-8")
    shutil.copy(nbs / "styles.css", out)
    if (nbs / "images").is_dir():
        shutil.copytree(nbs / "images", out / "images")
    return pages


if __name__ == "__main__":
    written = build(ROOT / "_docs")
    print(f"→ preview: {len(written)} pages; open _docs/index.html in a browser")
    sys.exit(0)
