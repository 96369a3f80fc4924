"""How long the two commands of the README take: for each a clone into an empty folder, an empty cache of pip, then the command twice.

Run it on a quiet machine: `python benchmarks/two_commands.py` (about half an hour), or `--only run` for one of them. What it finds goes to
benchmarks/two_commands.json, from where the README and the page of figures read it: run index.ipynb and figures.ipynb again, then `python scripts/readme.py`.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "benchmarks" / "two_commands.json"
STEPS = {
    "run": [
        ("install for `make run`", ["make", "setup"]),
        ("`make run`", ["make", "run"]),
        ("`make run` again", ["make", "run"]),
    ],
    "test": [
        ("install for `make test`", ["make", "dev"]),
        ("`make test`", ["make", "test"]),
        ("`make test` again", ["make", "test"]),
    ],
}


def timed(command: list[str], clone: Path, env: dict) -> float:
    "Seconds that a command takes in the clone; its own print is shown. Ends the program if it fails."
    print(f"→ {' '.join(command)}", flush=True)
    started = time.monotonic()
    if subprocess.run(command, cwd=clone, env=env).returncode:
        sys.exit(f"{' '.join(command)} failed")
    return time.monotonic() - started


def readable(seconds: float) -> str:
    "`7 min 05 s`, or `12 s`."
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def keep(what: str, seconds: float, order: list[str]) -> None:
    "Writes one time into the file, at once: what a later command does cannot lose it. Times of another machine are dropped."
    machine = f"{os.cpu_count()} CPU cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    found = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    rows = {
        r["command"]: r
        for r in found.get("rows", [])
        if found.get("machine") == machine and r["command"] in order
    }
    rows[what] = dict(command=what, time=readable(seconds))
    rows = sorted(rows.values(), key=lambda r: order.index(r["command"]))
    KEPT.write_text(
        json.dumps(dict(machine=machine, rows=rows), indent=2, ensure_ascii=False) + "\n",
        encoding="utf-8",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("run", "test"))
    parser.add_argument("--once", action="store_true", help="leave the second time out")
    args = parser.parse_args()
    only = args.only
    order = [what for part in STEPS.values() for what, _ in part]
    with tempfile.TemporaryDirectory() as place:
        for name in [only] if only else STEPS:
            clone, env = (
                Path(place) / name,
                {**os.environ, "PIP_CACHE_DIR": f"{place}/cache-{name}", "PYTHONPATH": ""},
            )
            subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
            for what, command in STEPS[name][: 2 if args.once else 3]:
                keep(what, timed(command, clone, env), order)
    print(KEPT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
