"""A plain preview of the website in `_docs`, without Quarto: `make docs` calls it where Quarto is missing.

nbdev processes every notebook exactly as for the website (reference entries for exported symbols, links from prose to them); what Quarto
would do after that is done here by a few hundred lines: one page per notebook at the same address, the sidebar of `_quarto.yml`, light and
dark, formulas as MathML. There is no search. Nothing in a page is fetched from elsewhere. `python scripts/preview.py FOLDER` writes to FOLDER."""

import configparser
import contextlib
import functools
import html
import itertools
import logging
import posixpath
import re
import shutil
import sys
import warnings
from pathlib import Path, PurePosixPath

import nbformat
import yaml
from latex2mathml.converter import convert as mathml
from nbconvert.filters import Highlight2HTML, ansi2html, markdown2html

ROOT = Path(__file__).resolve().parents[1]
NBS, HERE = ROOT / "nbs", ROOT / "scripts"


@functools.cache
def settings() -> configparser.SectionProxy:
    "What settings.ini says."
    parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def page_name(notebook: str) -> str:
    "The address of a notebook's page: `base/00_core.ipynb` → `base/core.html`, as on the website."
    path = PurePosixPath(notebook)
    return str(path.with_name(re.sub(r"^\d+[a-z]?_", "", path.stem) + ".html"))


def towards(page: str, folder: str) -> str:
    "The address of a page, given from the top, as a link from a page in `folder`."
    return posixpath.relpath(page, folder or ".")


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
        inner = m[2][heading.end() :] if heading and not title else m[2]
        if 'collapse="true"' in m[1]:
            return f"\n<details><summary>{html.escape(name)}</summary>\n\n{inner}\n\n</details>\n"
        return f'\n<div class="callout">\n\n{inner}\n\n</div>\n'

    return re.sub(r"^:{3,} ?\{([^}\n]*)\}\n(.*?)^:{3,}[ ]*$", opened, source, flags=re.S | re.M)


CODE_OR_MATH = re.compile(
    r"(?P<code>^```.*?^```|`[^`\n]+`)|\$\$(?P<display>.+?)\$\$"
    r"|(?<![\\\w$])\$(?P<inline>[^\s$](?:[^$\n]*[^\s$])?)\$(?!\d)",
    re.S | re.M,
)


def formulas(text: str) -> tuple[str, dict[str, str]]:
    "Formulas replaced by marks that markdown leaves alone, and what stands for each mark as MathML."
    found: dict[str, str] = {}

    def marked(m):
        if m["code"]:
            return m[0]
        mark, display = f"FORMULA{len(found)}X", m["display"] is not None
        formula = mathml(m["display"] or m["inline"], display="block" if display else "inline")
        found[mark] = (
            f'<span class="display" style="display:block" tabindex="0">{formula}</span>'
            if display
            else formula
        )
        return mark

    return CODE_OR_MATH.sub(marked, text), found


def local(url: str, folder: str = "") -> str:
    """An address of the website, or of a notebook as seen from `folder`, as a link between pages.

    Other addresses stay as they are."""
    cfg = settings()
    if url.startswith(site := cfg["doc_host"] + cfg["doc_baseurl"]):
        # a method stands in the entry of its class
        page, mark, anchor = re.sub(r"(#\w+)\.\w+$", r"\1", url.removeprefix(site)).partition("#")
        return towards(page or "index.html", folder) + mark + anchor
    return re.sub(r"^[\w./-]+\.ipynb", lambda m: page_name(m[0]), url)


def prose(source: str, folder: str = "") -> str:
    "Markdown as HTML, with anchors, formulas and links as on the website; `folder` holds the page."
    text = re.sub(r"(\]\([^)\s]+\))\{[^}\n]*\}", r"\1", blocks(source))
    text, found = formulas(text)
    text = markdown2html(text)
    text = re.sub(r'<a class="anchor-link".*?</a>', "", text)
    text = re.sub(r"<h(\d)[^>]*>(.*?)</h\1>", lambda m: heading(int(m[1]), m[2]), text, flags=re.S)
    text = re.sub(r'href="([^"]+)"', lambda m: f'href="{local(m[1], folder)}"', text)
    text = re.sub(r"<table.*?</table>", scrolled, text, flags=re.S)
    return re.sub(r"FORMULA\d+X", lambda m: found[m[0]], text)


def heading(level: int, text: str) -> str:
    "A heading with the anchor that was asked for (`{#name}`) or follows from its words."
    given = re.search(r"\s*\{#([\w.-]+)[^}]*\}\s*$", text)
    return f'<h{level} id="{given[1] if given else slug(text)}">{text[: given.start()] if given else text}</h{level}>'


def scrolled(table) -> str:
    "A table that a narrow page may move sideways, by keyboard too."
    return f'<div class="table" role="region" aria-label="Table" tabindex="0">{re.sub(r" border=.1.", "", table[0])}</div>'


def output(o, alt: str, folder: str = "") -> str:
    "One saved output of a cell."
    if o.output_type == "stream":
        return f"<pre>{ansi2html(''.join(o.text))}</pre>" if o.name == "stdout" else ""
    if o.output_type == "error":
        return f"<pre>{ansi2html(chr(10).join(o.traceback))}</pre>"
    data = {
        kind: "".join(value) if isinstance(value, list) else value
        for kind, value in o.get("data", {}).items()
    }
    if "application/vnd.jupyter.widget-view+json" in data:
        return "<p><em>A widget: it moves in the notebook.</em></p>"
    if "text/html" in data:
        held = 'role="region"' in data["text/html"]  # its tables can be moved sideways already
        return (
            "<div>"
            + (
                data["text/html"]
                if held
                else re.sub(r"<table.*?</table>", scrolled, data["text/html"], flags=re.S)
            )
            + "</div>"
        )
    if "image/svg+xml" in data:
        return (
            f'<figure role="img" aria-label="{html.escape(alt)}">{data["image/svg+xml"]}</figure>'
        )
    for kind in ("image/png", "image/jpeg"):
        if kind in data:
            return f'<figure><img src="data:{kind};base64,{data[kind].strip()}" alt="{html.escape(alt)}"></figure>'
    if "text/markdown" in data:
        return prose(data["text/markdown"], folder)
    return f"<pre>{ansi2html(data['text/plain'])}</pre>" if "text/plain" in data else ""


def entry(text: str, folder: str = "") -> str:
    "The reference entry of an exported symbol, from what nbdev's `show_doc` gives."
    source = re.search(r"\[source\]\(([^)]+)\)", text)
    parts = re.split(
        r"^(```.*?^```)$",
        re.sub(r"^\s*---\s*|\[source\]\([^)]+\)\{[^}]*\}", "", text),
        flags=re.S | re.M,
    )
    parts[1::2] = [
        re.sub(r"\[(`[^`]+`)\]\([^)]+\)", r"\1", block) for block in parts[1::2]
    ]  # a signature is no place for links
    name = re.search(r"^#+ (.+)$", text, re.M)
    at = (
        f'<a class="at" href="{source[1]}" aria-label="Source of {html.escape(name[1])}">source</a>'
        if source and name
        else ""
    )
    return f'<section class="api">{at}{prose("".join(parts), folder)}</section>'


def code(cell, highlight, folder: str = "") -> str:
    "A code cell with its saved outputs; `hide`, `include: false`, `echo: false` and `output: false` are obeyed."
    told, source = directives(cell.source)
    if source.startswith("show_doc("):
        return "".join(
            entry("".join(o["data"]["text/markdown"]), folder)
            for o in cell.outputs
            if "text/markdown" in o.get("data", {})
        )
    if "hide" in told or told.get("include") == "false" or "default_exp" in told:
        return ""
    shown = (
        []
        if told.get("echo") == "false" or not source.strip()
        else [f'<div class="input">{highlight(source)}</div>']
    )
    if shown and told.get("code-fold") == "true":
        shown = [f"<details><summary>Code</summary>{shown[0]}</details>"]
    alt = str(yaml.safe_load(told.get("fig-alt", "")) or "")
    outputs = (
        ""
        if told.get("output") == "false"
        else "".join(output(o, alt, folder) for o in cell.outputs)
    )
    return (
        f'<div class="cell">{"".join(shown)}'
        + (f'<div class="cell-output">{outputs}</div>' if outputs else "")
        + "</div>"
    )


def processed(path: Path):
    "A notebook as nbdev hands it to Quarto: exported cells shown, after them an entry for each symbol, names in the prose linked."
    from execnb.nbio import nb2str, read_nb
    from nbdev.processors import FilterDefaults

    nb = read_nb(path)
    with (
        contextlib.chdir(path.parent),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(sys.stderr),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            FilterDefaults()(nb)
        except Exception as e:
            raise SystemExit(
                f"{path.name}: nbdev could not process it: {str(e)[:300]}. Give imports a cell of their own."
            ) from e
        finally:
            logging.disable(logging.NOTSET)
    nb.cells = in_reading_order(nb.cells)
    out = nbformat.reads(nb2str(nb), 4)
    return out, dict(yaml.safe_load(out.cells[0].source.strip().strip("-")))


def in_reading_order(cells: list) -> list:
    "The cells with the entries of each exported cell behind it in its own order; nbdev writes them backwards."
    out, entries = [], []
    for cell in cells:
        if getattr(cell, "has_sd", False):
            entries.append(cell)
            continue
        out += [*reversed(entries), cell]
        entries = []
    return out + entries[::-1]


def unique_ids(text: str) -> str:
    "Every anchor once: a second heading of the same words gets a number, as in Quarto; tables without a caption are numbered, too."
    seen: dict[str, int] = {}

    def numbered(m):
        seen[m[2]] = seen.get(m[2], -1) + 1
        return f'{m[1]}{m[2]}{"-" + str(seen[m[2]]) if seen[m[2]] else ""}"'

    text = re.sub(r'(<h[1-6] id=")([^"]*)"', numbered, text)
    tables = itertools.count(1)
    return re.sub(r'aria-label="Table"', lambda m: f'aria-label="Table {next(tables)}"', text)


def link_to(notebook: str, here: str) -> str:
    "The link from the page of notebook `here` to that of another."
    return towards(page_name(notebook), posixpath.dirname(here))


def navigation(contents: list, titles: dict, here: str) -> str:
    "The sidebar of `_quarto.yml` as a list of links; pages that are not there are left out."

    def links(names):
        items = [(n, ' aria-current="page"' if n == here else "") for n in names if n in titles]
        return "".join(
            f'<li><a href="{link_to(n, here)}"{current}>{html.escape(titles[n])}</a></li>'
            for n, current in items
        )

    out = ""
    for item in contents:
        part = dict(section="", contents=[item]) if isinstance(item, str) else item
        title = f"<h2>{html.escape(part['section'])}</h2>" if part["section"] else ""
        out += f"{title}<ul>{items}</ul>" if (items := links(part["contents"])) else ""
    return out


def neighbours(order: list[str], titles: dict, here: str) -> str:
    "Links to the page before and the page after."
    at = order.index(here) if here in order else 0
    before, after = order[at - 1] if at else None, order[at + 1] if at + 1 < len(order) else None

    def link(name, text):
        return f'<a href="{link_to(name, here)}">{text}</a>' if name else "<span></span>"

    return link(before, f"← {titles.get(before)}") + link(after, f"{titles.get(after)} →")


def facts(name: str, front: dict, cfg) -> dict:
    "What the page of a notebook says of itself and where it comes from."
    place, git = f"blob/{cfg['branch']}/nbs/{name}", cfg["git_url"]
    return dict(
        title=html.escape(front["title"]),
        lead=html.escape(front.get("description", "")),
        description=cfg["description"],
        source=f"{git}/{place}",
        colab=f"{git.replace('https://github.com', 'https://colab.research.google.com/github')}/{place}",
        install=f"git+{git}",
    )


def on_this_page(body: str) -> str:
    "The sections of a page as a list of links."
    sections = re.findall(r'<h2 id="([^"]+)">(.*?)</h2>', body, re.S)
    items = "".join(
        f'<li><a href="#{anchor}">{re.sub("<[^>]+>", "", text)}</a></li>'
        for anchor, text in sections
    )
    return (
        f'<nav class="here" aria-label="On this page"><h2>On this page</h2><ul>{items}</ul></nav>'
        if sections
        else ""
    )


def notebooks(nbs: Path = NBS) -> list[Path]:
    "Every notebook, without what Jupyter and nbdev keep beside them."
    found = sorted(nbs.rglob("*.ipynb"))
    return [p for p in found if not re.search(r"(^|/)[._]", p.relative_to(nbs).as_posix())]


def build(out: Path, nbs: Path = NBS) -> list[Path]:
    "Writes the preview of every notebook in `nbs` to `out`; returns the pages."
    site, cfg = (
        yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))["website"],
        settings(),
    )
    template, highlight = (
        (HERE / "preview.html").read_text(encoding="utf-8"),
        Highlight2HTML(pygments_lexer="python3"),
    )
    read = {p.relative_to(nbs).as_posix(): processed(p) for p in notebooks(nbs)}
    titles = {name: front["title"] for name, (_, front) in read.items()}
    contents = site["sidebar"]["contents"]
    order = [
        n
        for item in contents
        for n in ([item] if isinstance(item, str) else item["contents"])
        if n in titles
    ]
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for name, (nb, front) in read.items():
        folder = posixpath.dirname(name)
        parts = [
            prose(c.source, folder) if c.cell_type == "markdown" else code(c, highlight, folder)
            for c in nb.cells
            if c.cell_type != "raw"
        ]
        body = unique_ids("\n".join(parts))
        text = template.format(
            **facts(name, front, cfg),
            top=towards(".", folder),
            body=body,
            here=on_this_page(body),
            navigation=navigation(contents, titles, name),
            turn=neighbours(order, titles, name),
            footer=site["page-footer"]["left"],
        )
        page = out / page_name(name)
        page.parent.mkdir(exist_ok=True)
        page.write_text(text, encoding="utf-8")
    for style in (HERE / "preview.css", nbs / "styles.css"):
        shutil.copy(style, out)
    if (nbs / "images").is_dir():
        shutil.copytree(nbs / "images", out / "images")
    return [out / page_name(name) for name in read]


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "_docs"
    print(f"→ preview: {len(build(target))} pages; open {target.name}/index.html in a browser")
