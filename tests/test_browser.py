"The widgets and the app as a person meets them: a real JupyterLab and a real Voila in a headless Chromium, with no network beyond this machine."

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.browser
PATIENCE = (
    180_000  # ms that one condition may take on a slow machine; nothing here waits for a fixed time
)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(url: str, process, log: Path, seconds: float = 180):
    "Waits until `url` answers; fails with what the server said when it ended or stayed silent."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, (
            f"the server ended with status {process.returncode}:\n{log.read_text()[-2000:]}"
        )
        try:
            return urllib.request.urlopen(url, timeout=20)
        except urllib.error.HTTPError:
            return None  # it answers, if only to say that there is no such page
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"{url} did not answer within {seconds:.0f} s:\n{log.read_text()[-2000:]}")


@pytest.fixture
def server(tmp_path):
    "Starts a server below `tmp_path` and ends it, with its kernels, after the test."
    running = []

    def start(command: list, url: str, cwd=None, **env):
        log = tmp_path / "server.log"
        alone = dict(
            JUPYTER_CONFIG_DIR=str(tmp_path / "config"),
            JUPYTER_RUNTIME_DIR=str(tmp_path / "runtime"),
            IPYTHONDIR=str(tmp_path / "ipython"),
            PYTHONPATH=str(ROOT),
            OMP_NUM_THREADS="1",
        )
        with open(log, "w") as out:
            running.append(
                subprocess.Popen(
                    command,
                    cwd=cwd or tmp_path,
                    env={**os.environ, **alone, **env},
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            )
        wait_for(url, running[-1], log)
        return running[-1]

    yield start
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def page(browser):
    "A page that may talk to this machine only; `page.strangers` lists every other address it asked for."
    page = browser.new_page(viewport=dict(width=1280, height=900))
    page.set_default_timeout(PATIENCE)
    page.strangers = []

    def guard(route):
        if re.match(r"https?://(127\.0\.0\.1|localhost)[:/]", route.request.url):
            return route.continue_()
        page.strangers.append(route.request.url)
        route.abort()

    page.route(re.compile("^https?:"), guard)
    yield page
    page.close()


def shoot(page, name: str):
    "A screenshot for people to look at, where SCENE4M_SCREENSHOTS names a folder."
    if folder := os.environ.get("SCENE4M_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png")


PIXELS = """img => { const c = document.createElement('canvas'); c.width = img.naturalWidth; c.height = img.naturalHeight;
  c.getContext('2d').drawImage(img, 0, 0); return c.toDataURL(); }"""


def panel(page, title: str):
    "The widget with this title."
    return page.locator(
        f".jupyter-widgets.widget-vbox:has(> .widget-html strong:text-is('{title}'))"
    ).first


def changes(page, element, act, look: str = PIXELS):
    "Acts, and waits until what `look` finds in the element, or in the one that has taken its place, is another thing than before."
    before = element.evaluate(look)
    act()
    end = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < end:
        now = element.evaluate(look)
        if len(now) > 30 and now != before:
            return now
        page.wait_for_timeout(100)
    pytest.fail("nothing changed on the page")


def press(slider, key: str, times: int):
    "Moves a slider as somebody without a mouse does."
    slider.locator(".noUi-handle").focus()
    for _ in range(times):
        slider.page.keyboard.press(key)


def check_sound(page, audio):
    "The player has a source, and the browser can read it."
    audio = audio.element_handle()
    assert audio.get_attribute("src").startswith("data:audio/")
    page.wait_for_function("a => a.readyState >= 1 && a.duration > 1", arg=audio)


def slider_of(box, name: str):
    return box.locator(
        ".widget-slider", has=box.page.locator(f".widget-label:text-is('{name}')")
    ).first


def lab_folder(tmp_path, port: int) -> list:
    "A folder with the widget notebook, never run, and the command that opens it."
    nb = json.loads((ROOT / "nbs/app/01_widgets.ipynb").read_text(encoding="utf-8"))
    for cell in nb["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = []
    (tmp_path / "lab/nbs/app").mkdir(parents=True)
    (tmp_path / "lab/nbs/app/01_widgets.ipynb").write_text(json.dumps(nb))
    settings = tmp_path / "config/lab/user-settings/@jupyterlab/notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text(
        '{"windowingMode": "none"}'
    )  # every cell is there, on the screen or not
    return [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--IdentityProvider.token=open",
        f"--ServerApp.root_dir={tmp_path / 'lab'}",
        "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]


def test_lab_runs_the_notebook_and_its_widgets_move(server, page, tmp_path):
    port = free_port()
    server(lab_folder(tmp_path, port), f"http://127.0.0.1:{port}/api/status?token=open")
    page.goto(f"http://127.0.0.1:{port}/lab/tree/nbs/app/01_widgets.ipynb?reset&token=open")
    page.wait_for_function(
        "() => /\\| Idle/.test(document.querySelector('#jp-main-statusbar')?.innerText)"
    )
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function("""() => { const marks = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(p => p.innerText);
      return document.querySelector('[data-mime-type="application/vnd.jupyter.error"]') || (marks.length > 20 && marks.every(m => /\\d/.test(m))) }""")
    wrong = page.locator(
        '[data-mime-type="application/vnd.jupyter.error"], [data-mime-type="application/vnd.jupyter.stderr"]'
    )
    assert wrong.all_inner_texts() == []

    film = panel(page, "A video and what its tokens keep of it")
    film.scroll_into_view_if_needed()
    number = slider_of(film, "frame").locator(".widget-readout")
    first = int(number.inner_text())
    changes(
        page, film.locator("img").first, lambda: press(slider_of(film, "frame"), "ArrowRight", 3)
    )
    assert int(number.inner_text()) == first + 3
    shoot(page, "lab-film")

    sound = panel(page, "A sound and what its tokens keep of it")
    sound.scroll_into_view_if_needed()
    for k in (0, 1):
        check_sound(page, sound.locator("audio").nth(k))
    tile = sound.locator("button.jupyter-button").nth(5)
    code = (int(tile.inner_text()) + 100) % 300
    tile.click()
    field = sound.locator("input[type=number]")
    page.wait_for_function("f => !f.disabled", arg=field.element_handle())

    def change():
        field.fill(str(code))
        field.press("Enter")

    changes(page, sound.locator("img").first, change)
    page.wait_for_function(
        "([t, code]) => t.innerText === code", arg=[tile.element_handle(), str(code)]
    )
    check_sound(page, sound.locator("audio").nth(1))
    assert " 1 of " in " " + sound.locator("[role=status]").last.inner_text()
    shoot(page, "lab-sound")
    assert not page.strangers


def upload(page, app, file):
    "Presses the button that opens a file, and chooses one."
    with page.expect_file_chooser() as chooser:
        app.locator(".widget-upload").first.click()
    chooser.value.set_files(file)


def test_the_app_takes_a_clip_and_describes_it(server, page, tmp_path):
    from scene4m.base.media import write_wav
    import numpy as np

    port = free_port()
    server(
        [sys.executable, "-m", "scene4m", "app", "--no-browser", f"--port={port}"],
        f"http://127.0.0.1:{port}/nothing",
    )
    page.goto(f"http://127.0.0.1:{port}/")
    app = panel(page, "Describe a clip")
    app.wait_for()
    check_sound(page, app.locator("audio").first)
    changes(page, app.locator("img").first, lambda: press(slider_of(app, "frame"), "ArrowRight", 4))

    app.get_by_role("button", name="Describe").click()
    app.get_by_text("Confidence").wait_for()
    changes(page, app.locator("img").last, lambda: press(slider_of(app, "word"), "ArrowRight", 2))
    shoot(page, "app-described")

    write_wav(
        tmp_path / "a long ride.wav", np.sin(np.arange(16_000 * 400) / 9).astype("float32") / 2
    )  # 12.8 MB: more than Jupyter takes by itself
    upload(page, app, tmp_path / "a long ride.wav")
    page.wait_for_function(
        "s => s.value === 'a long ride.wav'", arg=app.locator("select").first.element_handle()
    )
    (tmp_path / "letter.mp4").write_text("this is no film")
    upload(page, app, tmp_path / "letter.mp4")
    app.get_by_role("alert").get_by_text("letter.mp4").wait_for()
    shoot(page, "app-refused")
    assert not [
        s for s in page.strangers if "font-awesome" not in s and "fontawesome" not in s
    ]  # Voila's own page asks for its icons


def test_static_twins_move_without_a_kernel(server, page, tmp_path):
    from scene4m.base.page import html_page

    nb = json.loads((ROOT / "nbs/app/01_widgets.ipynb").read_text(encoding="utf-8"))
    shown = [
        "".join(o["data"]["text/html"])
        for c in nb["cells"]
        for o in c.get("outputs", [])
        if "text/html" in o.get("data", {})
    ]
    (tmp_path / "twins.html").write_text(html_page("Twins", "".join(shown)), encoding="utf-8")
    page.goto((tmp_path / "twins.html").as_uri())
    players = page.locator(".s4-player:has(.s4-screen)")
    books = page.locator(".s4-player:has(.s4-page)")
    assert (
        players.count() >= 2
        and books.count() >= 3
        and page.locator(".s4-player audio").count() >= 3
    )
    for k in range(players.count()):
        player = players.nth(k)
        screen = "s => s.style.backgroundPosition + ' of the strip of frames, as seen'"
        changes(
            page,
            player.locator(".s4-screen").first,
            partial(player.locator("input[type=range]").press, "ArrowRight"),
            screen,
        )
        assert "frame 2 of 16" in player.locator("output").inner_text()
    for k in range(books.count()):
        book = books.nth(k)
        assert book.locator(".s4-page:visible").count() == 1
        first = book.locator("output").inner_text()
        book.locator("input[type=range]").press("ArrowRight")
        assert (
            book.locator("output").inner_text() != first
            and book.locator(".s4-page:visible").count() == 1
        )
    for k in range(3):
        check_sound(page, page.locator(".s4-player audio").nth(k))
    shoot(page, "twins")
    assert not page.strangers


def test_a_description_track_is_accepted(server, page, tmp_path):
    from scene4m.worlds.toystreet import write_street

    street = write_street(tmp_path / "street", 1, seed=5)
    film = next(Path(street).glob("*.mp4"))
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "scene4m",
            "describe",
            str(film),
            "--vtt",
            str(tmp_path / "said.vtt"),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0, run.stderr
    shutil.copy(film, tmp_path / "film.mp4")
    (tmp_path / "film.html").write_text(
        '<!DOCTYPE html><title>film</title><video controls src="film.mp4">'
        '<track kind="descriptions" srclang="en" label="What happens" src="said.vtt" default></video>'
    )
    port = free_port()
    server(
        [
            sys.executable,
            "-m",
            "http.server",
            str(port),
            "--bind",
            "127.0.0.1",
            "--directory",
            str(tmp_path),
        ],
        f"http://127.0.0.1:{port}/film.html",
    )
    page.goto(f"http://127.0.0.1:{port}/film.html")
    page.evaluate("document.querySelector('video').textTracks[0].mode = 'hidden'")
    page.wait_for_function("document.querySelector('track').readyState >= 2")
    cues = page.evaluate(
        "[...document.querySelector('video').textTracks[0].cues].map(c => [c.startTime, c.endTime, c.text])"
    )
    said = (tmp_path / "said.vtt").read_text(encoding="utf-8")
    assert (
        page.evaluate("document.querySelector('track').readyState") == 2
        and page.evaluate("document.querySelector('track').kind") == "descriptions"
    )
    assert len(cues) == said.count(" --> ") >= 1
    for start, end, text in cues:
        assert 0 <= start < end <= 11 and text in re.sub("&amp;", "&", said).replace("&lt;", "<")
