"""How well the main job and the packaged checkpoint do on fresh clips: three training seeds, chance beside every figure.

`python benchmarks/targets.py --out FOLDER` writes a street of 1,000 clips with a seed that nothing else uses, runs `scene4m run` for the seeds 0, 1
and 2 (each a folder of its own; finished ones are not run again), and evaluates each model and the packaged one on that street. `--runs` measures
finished runs instead, `--seeds` with no number the packaged model alone. The figures go to benchmarks/targets.json. Half an hour on two quiet cores.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

KEPT = Path(__file__).resolve().parent / "targets.json"
FRESH = 777  # a seed of the street that no training and no choice has used
ROWS = {
    "category, both senses": ("category_accuracy",),
    "category, sound only": ("category_accuracy_by_sense", "audio"),
    "category, picture only": ("category_accuracy_by_sense", "video"),
    **{
        a: ("attribute_accuracy", a)
        for a in ("colour", "count", "motion", "night", "rain", "near", "on_screen")
    },
    "every attribute right": ("exact_accuracy",),
    "imagined sound": ("imagined_sound_accuracy",),
    "invented": ("invented_rate",),
}


def scene4m(*words) -> str:
    "What a command of scene4m prints; it must succeed."
    return subprocess.run(
        [sys.executable, "-m", "scene4m", *map(str, words)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def look_up(report: dict, path: tuple):
    for key in path:
        report = report[key]
    return report


def figures(report: dict) -> dict:
    "Name of a row → (percent, chance in percent)."
    found = {
        name: (100 * look_up(report, path), 100 * look_up(report["chance"], path))
        for name, path in ROWS.items()
    }
    return found | {"calibration error": (100 * report["ece"], None)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the street and the runs"
    )
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument(
        "--runs",
        type=Path,
        nargs="*",
        default=[],
        help="folders of finished runs, measured instead of new ones",
    )
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        help="settings for `scene4m run`, to try this script quickly",
    )
    args = parser.parse_args()
    street = args.out / "street"
    scene4m("toy", "--n", args.clips, "--seed", FRESH, "--out", street)
    models, took = {}, {}
    for run in args.runs:
        models[run.name] = run / "model"
        took[run.name] = json.loads((run / "report.json").read_text())["seconds"]
    for seed in args.seeds if not args.runs else ():
        run = args.out / f"seed{seed}"
        scene4m("run", "--seed", seed, "--out", run, *(w for s in args.set for w in ("--set", s)))
        models[f"main job, seed {seed}"] = run / "model"
        took[f"main job, seed {seed}"] = json.loads((run / "report.json").read_text())["seconds"]
    models["packaged"] = None
    columns = {}
    for name, model in models.items():
        report = json.loads(
            scene4m("evaluate", street, "--json", *(("--model", model) if model else ()))
        )
        columns[name] = figures(report)
        machine = report["machine"]
        world = report["world_version"]
        print(f"{name}: done", flush=True)
    lines = [f"{'%':26}" + "".join(f"{n:>20}" for n in columns) + f"{'chance':>10}"]
    for row, (_, chance) in columns["packaged"].items():
        lines.append(
            f"{row:26}"
            + "".join(f"{c[row][0]:>20.1f}" for c in columns.values())
            + (f"{chance:>10.1f}" if chance is not None else "")
        )
    for name, seconds in took.items():
        lines.append(
            f"{name}: {sum(seconds.values()):.0f} s, "
            + ", ".join(f"{k} {v:.0f}" for k, v in seconds.items())
        )
    print("\n".join(lines))
    kept = dict(
        world_version=world,
        clips=args.clips,
        street_seed=FRESH,
        machine=machine,
        seconds=took,
        figures={
            n: {k: dict(percent=v, chance=c) for k, (v, c) in f.items()} for n, f in columns.items()
        },
    )
    if args.clips >= 1000:
        KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
