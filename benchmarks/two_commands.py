"""How long the two commands of the README take: a clone into an empty folder, an empty cache of pip, then each command twice.

Run it on a quiet machine: `python benchmarks/two_commands.py` (about half an hour), or `--only run` for one of them. What it finds goes to
benchmarks/two_commands.json, from where the README and the page of figures read it.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("run", "test"))
    only = parser.parse_args().only
    steps = {"run": [("install for `make run`", ["make", "setup"]), ("`make run`", ["make", "run"]), ("`make run` again", ["make", "run"])],
             "test": [("install for `make test`", ["make", "dev"]), ("`make test`", ["make", "test"]), ("`make test` again", ["make", "test"])]}
    before = json.loads(KEPT.read_text(encoding="utf-8"))["rows"] if KEPT.exists() else []
    rows = []
    with tempfile.TemporaryDirectory() as place:
        clone, env = Path(place) / "scene4m", {**os.environ, "PIP_CACHE_DIR": f"{place}/cache", "PYTHONPATH": ""}
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        for name in ([only] if only else steps):
            rows += [dict(command=what, time=readable(timed(command, clone, env))) for what, command in steps[name]]
    new = {r["command"] for r in rows}
    machine = f"{os.cpu_count()} CPU cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    order = [what for part in steps.values() for what, _ in part]
    rows = sorted([r for r in before if r["command"] not in new] + rows, key=lambda r: order.index(r["command"]))
    KEPT.write_text(json.dumps(dict(machine=machine, rows=rows), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(KEPT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
