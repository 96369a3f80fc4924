"""Every notebook runs from its first cell to its last, in a fresh Python: one test each.

Cells marked `#| slow` or `#| gpu` are left out unless NB_FLAGS names their mark; a notebook that has such cells is run again with
them among the slow tests, where the longest of them do less than a reader would see them do."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(
    p
    for p in (ROOT / "nbs").glob("**/*.ipynb")
    if not any(part.startswith((".", "_")) for part in p.relative_to(ROOT).parts)
)
WITH_SLOW_CELLS = [
    p for p in NOTEBOOKS if re.search(r"\"#\|\s*slow\b", p.read_text(encoding="utf-8"))
]
# fewer clips and steps in the slow cells that take longer than three minutes: what is written there -> what is run; the first must be there
SHORTER = {
    "11_finetune": {
        "Street(1500)": "Street(150)",
        'plateau(large, "large", 500': 'plateau(large, "large", 20',
        'work / "large-cured", 500': 'work / "large-cured", 20',
    },
    "13_transfer": {
        "photographs(2000, 3)": "photographs(200, 3)",
        "steps=300, batch_size=24": "steps=60, batch_size=24",
        'films("train", 120, 4)': 'films("train", 24, 4)',
        "steps=200,\n    batch_size=8": "steps=40,\n    batch_size=8",
        'films("test", 80, 4)': 'films("test", 16, 4)',
        'films("train", 1500, 5)': 'films("train", 64, 5)',
        "TrainConfig(steps=150": "TrainConfig(steps=30",
        "clips, many, 400": "clips, many, 20",
    },
}

RUN = """
import json, sys
from pathlib import Path
import nbdev.test
from execnb.nbio import read_nb
from nbdev.config import get_config
from nbdev.process import NBProcessor
from nbdev.test import test_nb
path, shorter, flags = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]
cfg = get_config(path=path)
def read(path, **kw):
    nb = read_nb(path)
    for old, new in shorter.items():
        found = [c for c in nb.cells if old in c.source]
        if len(found) != 1: sys.exit(f"{path.name} holds {old!r} in {len(found)} cells: see SHORTER in tests/test_notebooks.py")
        found[0].source = found[0].source.replace(old, new)
    return NBProcessor(path, nb=nb, **kw)
nbdev.test.NBProcessor = read
passed, seconds = test_nb(path, skip_flags=cfg.tst_flags.split(), force_flags=flags, basepath=cfg.config_path)
print(f"{path.name}: {seconds:.1f} s")
sys.exit(not passed)
"""


def run(path: Path, flags: list[str], seconds: int, shorter: dict | None = None):
    env = dict(
        os.environ,
        PYTHONWARNINGS="ignore::DeprecationWarning,ignore::FutureWarning",
        MPLBACKEND="Agg",
        PYTHONUTF8="1",
    )
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(path), json.dumps(shorter or {}), *flags],
        cwd=ROOT / "nbs",
        env=env,
        timeout=seconds,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    assert done.returncode == 0, f"{path.name} failed:\n{done.stdout[-6000:]}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(path):
    run(path, os.environ.get("NB_FLAGS", "").split(), seconds=600)


@pytest.mark.slow
@pytest.mark.parametrize("path", WITH_SLOW_CELLS, ids=lambda p: p.stem)
def test_notebook_with_its_slow_cells(path):
    run(path, ["slow"], seconds=1800, shorter=SHORTER.get(path.stem))
