"""The website: its configuration holds every page, nbdev can process them, and what comes out is whole and can be read by everyone."""

import ast
import configparser
import json
import posixpath
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
sys.path.insert(0, str(ROOT / "scripts"))
preview = pytest.importorskip("preview", reason="the packages that make pages are not installed")
NOTEBOOKS = [p.relative_to(NBS).as_posix() for p in preview.notebooks(NBS)]
MODULES = {
    ".".join(p.relative_to(ROOT / "scene4m").with_suffix("").parts): p
    for p in sorted((ROOT / "scene4m").rglob("[a-z]*.py"))
}


def site() -> dict:
    return yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))


def in_sidebar() -> list[str]:
    "The notebooks of the sidebar in reading order."
    return [
        n
        for e in site()["website"]["sidebar"]["contents"]
        for n in ([e] if isinstance(e, str) else e["contents"])
    ]


def test_the_folder_of_notebooks_only_points_to_the_root():
    lines = (NBS / "_quarto.yml").read_text(encoding="utf-8").splitlines()
    assert lines == ["metadata-files: [../_quarto.yml, nbdev.yml]"]


def test_the_sidebar_names_every_notebook_once_in_reading_order():
    names = in_sidebar()
    assert len(names) == len(set(names))
    assert not set(NOTEBOOKS) - set(names), "notebooks that no reader would find"
    assert not set(names) - set(NOTEBOOKS), "entries without a notebook"
    for folder in ("base", "course", "worlds", "app"):
        numbered = [n for n in names if n.startswith(f"{folder}/")]
        assert numbered and numbered == sorted(numbered)


def test_readers_get_light_and_dark_search_and_a_licence():
    s = site()
    assert s["lang"] == "en" and s["license"] == "Apache-2.0" and s["website"]["search"]
    assert set(s["format"]["html"]["theme"]) == {"light", "dark"}


def test_the_website_offers_each_page_in_colab():
    s = site()
    assert "source" in s["website"]["repo-actions"] and s["website"]["repo-subdir"] == "nbs"
    included = s["format"]["html"]["include-after-body"]
    assert "colab.research.google.com" in (NBS / included).read_text(encoding="utf-8")


class Page(HTMLParser):
    "What a page links to, what it can be linked at, and what a screen reader finds in it."

    def __init__(self, text: str):
        super().__init__()
        (
            self.text,
            self.links,
            self.ids,
            self.images,
            self.tags,
            self.headings,
            self.lang,
            self.sources,
        ) = text, [], [], [], [], [], None, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.tags.append(tag)
        if tag == "html":
            self.lang = a.get("lang")
        if "id" in a:
            self.ids.append(a["id"])
        if tag == "a" and "href" in a:
            self.links.append(a["href"])
        if tag == "img":
            self.images.append(a)
        if tag in ("script", "img", "link", "iframe", "audio", "video", "source"):
            self.sources.append(a.get("src") or a.get("href") or "")
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    "The preview, built as `make docs` builds it where Quarto is missing: nbdev processes every notebook, then the pages are written."
    out = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "preview.py", out], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert f"preview: {len(NOTEBOOKS)} pages" in done.stdout
    return out


@pytest.fixture(scope="session")
def pages(folder) -> dict[str, Page]:
    return {
        p.relative_to(folder).as_posix(): Page(p.read_text(encoding="utf-8"))
        for p in sorted(folder.rglob("*.html"))
    }


def page_of(pages: dict[str, Page], module: str) -> Page:
    "The page that shows a module."
    return next(p for name, p in pages.items() if Path(name).stem == module.split(".")[-1])


def test_every_notebook_has_a_page_at_the_address_of_the_website(pages):
    assert set(pages) == {preview.page_name(n) for n in NOTEBOOKS} and "base/core.html" in pages


def exported(module: Path) -> set[str]:
    "Functions and classes that a module exports."
    tree = ast.parse(module.read_text(encoding="utf-8"))
    public = next(
        (
            ast.literal_eval(n.value)
            for n in tree.body
            if isinstance(n, ast.Assign) and n.targets[0].id == "__all__"
        ),
        [],
    )
    return {
        n.name
        for n in tree.body
        if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name in public
    }


def test_every_exported_symbol_has_an_entry(pages):
    missing = []
    for module, path in MODULES.items():
        entries = set(
            re.findall(
                r'<section class="api">.*?<h\d id="([^"]+)"',
                page_of(pages, module).text,
                re.S,
            )
        )
        missing += [
            f"{module}.{name}"
            for name in exported(path)
            if name.lower() not in {re.sub(r"-\d+$", "", e) for e in entries}
        ]
    assert not missing
    assert "derive_seed" in exported(MODULES["base.core"])


def test_prose_links_to_entries(pages):
    into_entries = [
        h for page in pages.values() for h in page.links if re.match(r"[a-z_./]+\.html#[a-z]", h)
    ]
    assert len(into_entries) > 200


def test_links_inside_the_preview_lead_somewhere(pages, folder):
    broken = []
    for name, page in pages.items():
        for href in page.links:
            if re.match(r"[a-z]+:", href):
                continue
            file, _, anchor = unquote(href).partition("#")
            file = (
                posixpath.normpath(posixpath.join(posixpath.dirname(name), file)) if file else name
            )
            if file not in pages and not (folder / file).is_file():
                broken.append(f"{name}: {href}: no such page")
            elif anchor and file in pages and anchor not in pages[file].ids:
                broken.append(f"{name}: {href}: no such place")
    assert not broken, "\n".join(broken)


def test_every_page_leads_to_its_notebook_and_to_colab(pages):
    for notebook in NOTEBOOKS:
        links = pages[preview.page_name(notebook)].links
        assert f"https://github.com/scene4m/scene4m/blob/main/nbs/{notebook}" in links
        assert (
            f"https://colab.research.google.com/github/scene4m/scene4m/blob/main/nbs/{notebook}"
            in links
        )


def test_the_preview_is_named_as_one(pages):
    assert all("A plain preview made without Quarto" in page.text for page in pages.values())
    told = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"needs Quarto \(.*quarto\.org.*\).*plain preview", told)


def test_the_preview_fetches_nothing_from_elsewhere(pages):
    assert not [
        (name, s)
        for name, page in pages.items()
        for s in page.sources
        if re.match(r"(https?:)?//", s)
    ]


def test_the_preview_can_be_read_without_seeing_it(pages):
    for name, page in pages.items():
        assert page.lang == "en", name
        assert {"header", "nav", "main", "footer"} <= set(page.tags), name
        assert page.tags.count("main") == 1 and page.headings.count(1) == 1, (
            f"{name}: {page.headings.count(1)} first headings"
        )
        assert not [i for i in page.images if not (i.get("alt") or "").strip()], (
            f"{name}: a picture without words"
        )


def test_no_mark_of_quarto_or_of_a_formula_is_left(pages):
    for name, page in pages.items():
        prose = re.sub(r"<(pre|code|script|style)\b.*?</\1>", "", page.text, flags=re.S)
        assert not re.findall(r":::|FORMULA\d|\$\$|\{\.[a-z]|\{target=|<p>show_doc", prose), name


def test_blocks_of_quarto_become_plain_html():
    text = preview.prose(
        '::: {.callout-tip collapse="true"}\n## Solutions\n\nIt is **four**.\n:::\n'
    )
    assert (
        "<details><summary>Solutions</summary>" in text
        and "<strong>four</strong>" in text
        and ":::" not in text
    )
    assert 'href="core.html#seeds"' in preview.prose("[seeds](00_core.ipynb#seeds)", "base")
    assert 'href="fourm.html#fourm"' in preview.prose(
        "[`FourM.toy`](https://scene4m.github.io/scene4m/course/fourm.html#fourm.toy)", "course"
    )
    assert 'href="../base/core.html#badinput"' in preview.prose(
        "[`BadInput`](https://scene4m.github.io/scene4m/base/core.html#badinput)", "course"
    )
    assert 'id="errors-that-say-what-to-do"' in preview.prose("## Errors that say what to do")


def test_formulas_become_mathml_and_prices_do_not():
    text = preview.prose(
        "The loss $x_t^2 * y * z$ and `$HOME` cost 5$ or 6$.\n\n$$\\frac{a}{b}$$\n"
    )
    assert text.count("<math") == 2 and "<mfrac>" in text and "<em>" not in text
    assert "<code>$HOME</code>" in text and "5$ or 6$" in text


def test_entries_follow_the_cell_that_exports_them(pages):
    text = pages["base/core.html"].text
    first, second = (text.index(f'id="{name}"') for name in ("scene4merror", "badinput"))
    assert (
        text.index('class="nc">Scene4MError') < first < second < text.index('class="nc">ClipSpec')
    )


def test_a_notebook_that_nbdev_cannot_process_is_named(tmp_path):
    cells = [
        dict(cell_type="markdown", id="a", metadata={}, source="# Broken\n> A page."),
        dict(
            cell_type="code",
            id="b",
            metadata={},
            execution_count=None,
            outputs=[],
            source="#| export\nimport json\nnothing_here()\ndef f(): pass",
        ),
    ]
    path = tmp_path / "nbs" / "99_broken.ipynb"
    path.parent.mkdir()
    path.write_text(
        json.dumps(
            dict(
                cells=cells,
                metadata=dict(
                    kernelspec=dict(name="python3", language="python", display_name="python3")
                ),
                nbformat=4,
                nbformat_minor=5,
            )
        )
    )
    (tmp_path / "settings.ini").write_text((ROOT / "settings.ini").read_text(encoding="utf-8"))
    with pytest.raises(SystemExit, match="99_broken.ipynb"):
        preview.processed(path)


def test_every_requirement_of_the_pages_is_declared():
    parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    names = {re.match(r"[\w.-]+", x)[0] for x in parser["DEFAULT"]["dev_requirements"].split()}
    assert {"latex2mathml", "axe-playwright-python"} <= names


def axe_source() -> str:
    "The axe-core script that comes with its Python package; nothing is fetched."
    axe = pytest.importorskip(
        "axe_playwright_python", reason="axe-playwright-python is not installed"
    )
    return (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")


SERIOUS = """async ([only, without]) => (await axe.run({exclude: without},
    {resultTypes: ['violations'], ...(only ? {runOnly: {type: 'rule', values: only}} : {})}))
  .violations.filter(v => ['serious', 'critical'].includes(v.impact)).map(v => `${v.id}: ${v.nodes.slice(0, 3).map(n => n.html.slice(0, 160)).join(' | ')}`)"""


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(folder, pages, browser, scheme):
    "Every rule on every page in the light, the contrast of every colour again in the dark; code has the same colours everywhere, one page shows them."
    source, found, names = axe_source(), [], list(pages)
    windows = [
        browser.new_page(color_scheme=scheme, viewport=dict(width=1280, height=900))
        for _ in range(2)
    ]  # two pages at a time, one a core
    for window in windows:
        window.set_default_timeout(300_000)
    for i in range(0, len(names), 2):
        for window, name in zip(windows, names[i : i + 2]):
            window.goto((folder / name).as_uri())
            window.evaluate(source + "; null")
            without = [] if name == "base/metrics.html" else [[".highlight"]]
            window.evaluate(
                f"given => {{ window.found = ({SERIOUS})(given) }}",
                [None if scheme == "light" else ["color-contrast"], without],
            )
        for window, name in zip(windows, names[i : i + 2]):
            found += [f"{name}: {v}" for v in window.evaluate("window.found")]
    assert not found, "\n".join(found)


@pytest.mark.browser
def test_axe_would_find_a_picture_without_words(browser):
    window = browser.new_page()
    window.set_content(
        '<html lang="en"><title>t</title><main><h1>t</h1><img src="data:image/gif;base64,R0lGODlhAQABAAAAACw="><p style="color:#bbb">pale</p></main>'
    )
    window.evaluate(axe_source() + "; null")
    assert {v.split(":")[0] for v in window.evaluate(SERIOUS, [None, []])} >= {
        "image-alt",
        "color-contrast",
    }


@pytest.mark.browser
def test_pages_fit_a_phone_and_the_button_turns_them_dark(folder, pages, browser):
    window = browser.new_page(viewport=dict(width=390, height=844), color_scheme="light")
    window.set_default_timeout(120_000)
    for name in pages:
        window.goto((folder / name).as_uri())
        assert window.evaluate("document.documentElement.scrollWidth") <= 390, (
            f"{name} is wider than a phone"
        )

    def colour():
        return window.evaluate("getComputedStyle(document.body).backgroundColor")

    before = colour()
    window.click("#theme")
    assert colour() != before


def test_pages_show_the_code_that_they_export(pages):
    "nbdev by itself hides exported cells and shows their signatures only; `skip_procs` in settings.ini keeps them."
    for module, path in MODULES.items():
        shown = set(
            re.findall(r"[^\W\d]\w{3,}", re.sub(r"<[^>]+>", "", page_of(pages, module).text))
        )
        inside = {
            n.id
            for n in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store) and len(n.id) > 3
        }
        inside -= {"__all__"}
        assert inside <= shown, (
            f"{module}: {sorted(inside - shown)[:5]} stand in the module and not on its page"
        )
