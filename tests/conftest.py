"""Where tests find data that does not come with the package, and a browser; what is missing is skipped with its reason."""

import os
import shutil
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault(
    "GOMP_SPINCOUNT", "2000"
)  # as the command line does: tests run beside one another


# a process that was started in the background ignores Ctrl-C, and so would the commands that tests start and stop
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _place(variable: str, default: str) -> Path:
    "The path that `variable` names, or `default` below the repository's root; skips the test where nothing is there."
    path = Path(os.environ.get(variable) or ROOT / default).expanduser()
    if not path.exists():
        pytest.skip(f"{path.name} is not here; set {variable} to where it is")
    return path


@pytest.fixture(scope="session")
def root() -> Path:
    "The repository's root."
    return ROOT


@pytest.fixture(scope="session")
def golden4m() -> Path:
    "Inputs, weights and outputs of 4M at small sizes."
    return _place("SCENE4M_GOLDEN4M", "tests/data/golden4m")


@pytest.fixture(scope="session")
def bad_media() -> Path:
    "Odd and broken media files."
    return _place("SCENE4M_BAD_MEDIA", "../shared/data/bad")


@pytest.fixture(scope="session")
def real_clips() -> Path:
    "Real videos and sounds with manifest.csv."
    return _place("SCENE4M_REAL_CLIPS", "../shared/data/real")


@pytest.fixture(scope="session")
def human_captions() -> Path:
    "Human captions of VGG-Sound clips."
    return _place("SCENE4M_CAPTIONS", "../shared/data/captions")


@pytest.fixture(scope="session")
def tokenizer_4m() -> Path:
    "4M's own WordPiece file."
    return _place("SCENE4M_4M_TOKENIZER", "../shared/data/4m/text_tokenizer_4m_wordpiece_30k.json")


BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)


@pytest.fixture(scope="session")
def chromium() -> str:
    "The path of a Chromium; skipped without one, failed where SCENE4M_NEED_BROWSER is set."
    found = next((shutil.which(b) for b in BROWSERS if shutil.which(b)), None)
    if found is None and os.environ.get("SCENE4M_NEED_BROWSER"):
        pytest.fail("SCENE4M_NEED_BROWSER is set, and there is no Chromium on the path")
    if found is None:
        pytest.skip("no Chromium on the path; on Debian: apt-get install chromium")
    return found


@pytest.fixture
def browser(chromium):
    "A headless browser driven by playwright that reaches nothing but this machine."
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    args = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
    ]
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=args)
        yield running
        running.close()
