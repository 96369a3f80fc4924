"""The website: its configuration holds every notebook, nbdev can process the pages, and the preview without Quarto is whole."""
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
NOTEBOOKS = sorted(p.name for p in NBS.glob("*.ipynb"))
sys.path.insert(0, str(ROOT / "scripts"))
import preview  # noqa: E402


def site() -> dict:
    return yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))


def in_sidebar() -> list[str]:
    "The notebooks of the sidebar in reading order."
    return [n for e in site()["website"]["sidebar"]["contents"] for n in ([e] if isinstance(e, str) else e["contents"])]


def test_the_folder_of_notebooks_only_points_to_the_root():
    lines = (NBS / "_quarto.yml").read_text(encoding="utf-8").splitlines()
    assert lines == ["metadata-files: [../_quarto.yml, nbdev.yml]"]


def test_the_sidebar_names_every_notebook_once_in_reading_order():
    names = in_sidebar()
    assert len(names) == len(set(names))
    assert not set(NOTEBOOKS) - set(names), "notebooks that no reader would find"
    assert not set(names) - set(NOTEBOOKS), "entries without a notebook"
    numbered = [n for n in names if n[0].isdigit()]
    assert numbered == sorted(numbered)


def test_readers_get_light_and_dark_search_and_a_licence():
    s = site()
    assert s["lang"] == "en" and s["license"] == "Apache-2.0" and s["website"]["search"]
    assert set(s["format"]["html"]["theme"]) == {"light", "dark"}


class Page(HTMLParser):
    "What a page links to, what it can be linked at, and what a screen reader finds in it."

    def __init__(self, text: str):
        super().__init__()
        self.links, self.ids, self.images, self.tags, self.headings, self.lang, self.sources = [], [], [], [], [], None, []
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


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Page]:
    "The preview, built into a folder of its own."
    out = tmp_path_factory.mktemp("docs") / "site"
    preview.build(out)
    return {p.name: Page(p.read_text(encoding="utf-8")) for p in sorted(out.glob("*.html"))}


def test_every_notebook_has_a_page_at_the_address_of_the_website(pages):
    assert set(pages) == {preview.page_name(n) for n in NOTEBOOKS} and "core.html" in pages


def test_links_inside_the_preview_lead_somewhere(pages):
    broken = []
    for name, page in pages.items():
        for href in page.links:
            if re.match(r"[a-z]+:", href):
                continue
            file, _, anchor = unquote(href).partition("#")
            file = file or name
            if file.endswith(".html") and file not in pages:
                broken.append(f"{name}: {href}")
            elif anchor and file in pages and anchor not in pages[file].ids and not re.match(r"[A-Za-z_]\w*(\.\w+)?$", anchor):
                broken.append(f"{name}: {href}")
    assert not broken


def test_the_preview_fetches_nothing_from_elsewhere(pages):
    assert not [(name, s) for name, page in pages.items() for s in page.sources if re.match(r"(https?:)?//", s)]


def test_the_preview_can_be_read_without_seeing_it(pages):
    for name, page in pages.items():
        assert page.lang == "en", name
        assert {"header", "nav", "main", "footer"} <= set(page.tags), name
        assert page.tags.count("main") == 1 and page.headings.count(1) == 1, f"{name}: {page.headings.count(1)} first headings"
        assert not [i for i in page.images if not (i.get("alt") or "").strip()], f"{name}: a picture without words"


def test_blocks_of_quarto_become_plain_html():
    text = preview.prose('::: {.callout-tip collapse="true"}\n## Solutions\n\nIt is **four**.\n:::\n')
    assert "<details><summary>Solutions</summary>" in text and "<strong>four</strong>" in text and ":::" not in text
    assert 'href="core.html#seeds"' in preview.prose("[seeds](00_core.ipynb#seeds)")
    assert 'id="errors-that-say-what-to-do"' in preview.prose("## Errors that say what to do")


def test_nbdev_can_process_every_page(tmp_path):
    "What `nbdev_docs` does before Quarto comes in: it runs every exported cell and every cell with an import, and nothing else."
    code = """
import sys, warnings
from pathlib import Path
from nbdev.processors import FilterDefaults
from nbdev.serve_drv import exec_nb
warnings.simplefilter("ignore")
for name in sys.argv[2:]:
    try: exec_nb(Path(name), Path(sys.argv[1]) / name, FilterDefaults)
    except Exception as e: print("FAILED", name, "-", str(e)[:300], "-", repr(e.__cause__)[:200])
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), *NOTEBOOKS], cwd=NBS, capture_output=True, text=True)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert done.returncode == 0 and not failed, "give imports a cell of their own:\n" + "\n".join(failed) + done.stderr[-2000:]
    core = (tmp_path / "00_core.ipynb").read_text(encoding="utf-8")
    assert "derive_seed" in core and "source" in core
