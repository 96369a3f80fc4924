"""Every notebook runs from its first cell to its last, in a fresh Python: one test each.

Cells marked `#| slow` or `#| gpu` are left out unless NB_FLAGS names their mark; a notebook that has such cells is run again with
them among the slow tests."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").glob("**/*.ipynb") if not any(part.startswith((".", "_")) for part in p.relative_to(ROOT).parts))
WITH_SLOW_CELLS = [p for p in NOTEBOOKS if re.search(r"\"#\|\s*slow\b", p.read_text(encoding="utf-8"))]

RUN = """
import sys
from pathlib import Path
from nbdev.config import get_config
from nbdev.test import test_nb
path, flags = Path(sys.argv[1]), sys.argv[2:]
cfg = get_config(path=path)
passed, seconds = test_nb(path, skip_flags=cfg.tst_flags.split(), force_flags=flags, basepath=cfg.config_path)
print(f"{path.name}: {seconds:.1f} s")
sys.exit(not passed)
"""


def run(path: Path, flags: list[str], seconds: int):
    env = dict(os.environ, PYTHONWARNINGS="ignore::DeprecationWarning,ignore::FutureWarning", MPLBACKEND="Agg", PYTHONUTF8="1")
    done = subprocess.run([sys.executable, "-c", RUN, str(path), *flags], cwd=ROOT / "nbs", env=env, timeout=seconds,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace")
    assert done.returncode == 0, f"{path.name} failed:\n{done.stdout[-6000:]}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(path):
    run(path, os.environ.get("NB_FLAGS", "").split(), seconds=600)


@pytest.mark.slow
@pytest.mark.parametrize("path", WITH_SLOW_CELLS, ids=lambda p: p.stem)
def test_notebook_with_its_slow_cells(path):
    run(path, ["slow"], seconds=3600)
