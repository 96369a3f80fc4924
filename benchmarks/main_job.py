"""The main job on two kinds of machine, quiet and busy: seconds of every stage, steps, figures and CPU seconds.

    python benchmarks/main_job.py                          # both kinds, quiet, seed 0
    python benchmarks/main_job.py --load quiet busy --seeds 0 1 2

`plain` emulates two cores without AVX-512 and without fast bfloat16 where the machine has them; `fast` takes the machine as it is.
`busy` keeps one core at work by another process. Finished runs in --out are not done again. Writes benchmarks/main_job.json."""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLAIN = dict(
    ATEN_CPU_CAPABILITY="avx2",
    ONEDNN_MAX_CPU_ISA="AVX2",
    MKL_ENABLE_INSTRUCTIONS="AVX2",
    SCENE4M_FAST_BF16="0",
)
MUST = dict(both=0.95, audio=0.92, video=0.75, exact=0.70, imagined=0.55)


def cpu_seconds() -> float:
    "CPU seconds of all finished children."
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def one_run(kind: str, load: str, seed: int, out: Path) -> dict:
    "One whole job in a process of its own."
    env = dict(os.environ, PYTHONPATH=str(ROOT)) | (PLAIN if kind == "plain" else {})
    folder = out / f"{kind}-{load}-{seed}"
    note = folder / "took.json"
    if not note.exists():
        other = (
            subprocess.Popen([sys.executable, "-c", "while True: pass"]) if load == "busy" else None
        )
        before, start = cpu_seconds(), time.perf_counter()
        try:
            done = subprocess.run(
                [sys.executable, "-m", "scene4m", "run", "--out", str(folder), "--seed", str(seed)],
                env=env,
            )
        finally:
            if other:
                other.kill()
        took = dict(
            status=done.returncode, wall=time.perf_counter() - start, cpu=cpu_seconds() - before
        )
        if other:
            other.wait()
        note.write_text(json.dumps(took))
    report = json.loads((folder / "report.json").read_text())
    right = report["category_accuracy_by_sense"]
    figures = {k: right[k] for k in ("both", "audio", "video")}
    figures |= dict(
        exact=report["exact_accuracy"],
        imagined=report["imagined_sound_accuracy"],
        invented=report["invented_rate"],
        ece=report["ece"],
    )
    return dict(
        kind=kind,
        load=load,
        seed=seed,
        seconds=report["seconds"],
        steps=report["steps"],
        figures=figures,
        **json.loads(note.read_text()),
    )


def table(rows: list) -> str:
    "The runs as lines of text."
    stages = list(rows[0]["seconds"])
    head = [
        "machine",
        "load",
        "seed",
        "wall",
        "CPU",
        *stages,
        "4M steps",
        *rows[0]["figures"],
        "must",
    ]
    lines = ["  ".join(f"{h:>9}" for h in head)]
    for r in rows:
        cells = [
            r["kind"],
            r["load"],
            r["seed"],
            f"{r['wall']:.0f}",
            f"{r['cpu']:.0f}",
            *(f"{r['seconds'][s]:.0f}" for s in stages),
            r["steps"]["4M"],
        ]
        cells += [f"{100 * v:.1f}" for v in r["figures"].values()]
        cells.append("holds" if all(r["figures"][k] >= v for k, v in MUST.items()) else "fails")
        lines.append("  ".join(f"{c:>9}" for c in cells))
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", default=["plain", "fast"], choices=["plain", "fast"])
    parser.add_argument("--load", nargs="+", default=["quiet"], choices=["quiet", "busy"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "main_job")
    args = parser.parse_args()
    rows = [
        one_run(kind, load, seed, args.out)
        for seed in args.seeds
        for load in args.load
        for kind in args.kinds
    ]
    print(table(rows))
    (ROOT / "benchmarks" / "main_job.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
