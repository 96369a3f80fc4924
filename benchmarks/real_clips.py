"""What can be learnt from a few real clips: `python benchmarks/real_clips.py REAL --out DIR`, where REAL is a folder with a manifest.csv.

Five categories have enough sounds to try: dog barking, engine, police siren, a woman's and a man's voice. Whole sources (the column `group`: a
speaker, a recording, a fold of Freesound clips) are left out in turn, so that no source is in training and in the test; every sound is held out
once. Each turn is a complete `scene4m run --data FOLDER`, and goes on where it was stopped; with `--packaged` it begins with the packaged
tokenizers and model, which have only met the toy street, instead of with nothing. In the end the packaged model, or that of --model, which
knows only the toy street, is asked about every real video (`--videos`), and about which clips it says that they are unlike anything in training
(`--ood`): real ones, as it should, and held-out ones of the street, as it should not. All figures are printed with n and with what a
constant answer would score."""

import argparse
import csv
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

sys.path[:] = [
    p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent
]  # scripts beside this one are named like packages

from scene4m.worlds.street import DOG, ENGINE, MAN, POLICE, WOMAN, parse_caption
from scene4m.base.core import Scene4MError, get_preset, write_json
from scene4m.describe import MODALITIES, Describer, clip_features
from scene4m.scene_model import SHIPPED, SceneModel
from scene4m.evaluate import read_clips
from scene4m.base.metrics import bootstrap_interval
from scene4m.app.run import run_pipeline
from scene4m.worlds.toystreet import write_street

FIVE = (DOG, ENGINE, POLICE, WOMAN, MAN)


def read_manifest(real: Path) -> list[dict]:
    with open(real / "manifest.csv", newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def deal_groups(rows: list[dict], folds: int) -> dict:
    "The turn in which each source is left out: the sources of every category are dealt out like cards, the largest first."
    turn = {}
    for label in FIVE:
        sizes = Counter(r["group"] for r in rows if r["label"] == label and r["group"] not in turn)
        for k, (group, _) in enumerate(sizes.most_common()):
            turn[group] = k % folds
    return turn


def write_turn(rows: list[dict], turn: dict, k: int, real: Path, folder: Path) -> Path:
    "A folder of links to the clips, with labels.csv: the sources of turn `k` are held out."
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as f:
        out = csv.writer(f, lineterminator="\n")
        out.writerow(("file", "label", "group", "split"))
        for r in rows:
            link = folder / Path(r["file"]).name
            if not link.exists():
                link.symlink_to((real / r["file"]).resolve())
            out.writerow(
                (link.name, r["label"], r["group"], "test" if turn[r["group"]] == k else "train")
            )
    return folder


def small_preset(steps: int, packaged: bool):
    "The toy preset with so many steps for each of its three trainings, or only for 4M, from the packaged model on."
    if not packaged:
        return get_preset(
            "toy", audio=dict(steps=steps), video=dict(steps=steps), train=dict(steps=steps)
        )
    own = {s: dict(pretrained=str(SHIPPED / f"{s}_tokenizer")) for s in MODALITIES}
    return get_preset(
        "toy", **own, model=dict(pretrained=str(SHIPPED)), train=dict(steps=steps, lr=1e-3)
    )


def asked(rows: list[dict], real: Path, model) -> list[dict]:
    "What a model answers to each clip; a clip that cannot be used gives the reason."
    describer, out = Describer.from_pretrained(model), []
    for r in rows:
        try:
            d = describer(real / r["file"])
        except Scene4MError as e:
            out.append(dict(r, answer=None, reason=str(e).replace(str(real), "…")))
            continue
        out.append(
            dict(
                r,
                answer=parse_caption(d.guess).label,
                likeliest=d.categories[0]["label"],
                p=d.confidence,
                abstains=d.abstains,
                description=d.description,
            )
        )
    return out


def row(name: str, found: list[dict]) -> str:
    right = [float(r["answer"] == r["label"]) for r in found]
    low, high = bootstrap_interval(right, [r["group"] for r in found])
    sources = len({r["group"] for r in found})
    return f"| {name} | {100 * sum(right) / len(right):.0f} % | {100 * low:.0f} to {100 * high:.0f} | {len(found)} | {sources} |"


def cross_validate(
    real: Path, out: Path, folds: int, steps: int, only: list[int] | None, packaged: bool
) -> None:
    rows = [r for r in read_manifest(real) if r["label"] in FIVE]
    turn = deal_groups(rows, folds)
    found = []
    for k in only if only is not None else range(folds):
        folder, run = write_turn(rows, turn, k, real, out / f"clips{k}"), out / f"run{k}"
        run_pipeline(run, folder, small_preset(steps, packaged), workers=1)
        found += asked([r for r in rows if turn[r["group"]] == k], real, run / "model")
    write_json(out / "held_out.json", found)
    by = defaultdict(list)
    for r in found:
        if r["kind"] == "audio":
            by[r["label"]].append(r)
    heard = [r for rs in by.values() for r in rs]
    commonest = max(map(len, by.values()))
    print(
        "\n| held-out real sounds | right | 95 % by source | clips | sources |\n|---|---|---|---|---|"
    )
    for label, rs in by.items():
        print(row(label, rs))
    print(row("all", heard))
    print(f"\nAlways the commonest category: {100 * commonest / len(heard):.0f} %.")


def ask_about_videos(real: Path, out: Path, model) -> None:
    found = asked([r for r in read_manifest(real) if r["kind"] == "video"], real, model)
    write_json(out / "videos.json", found)
    print(
        "\n| real video | it is | the model says | how sure | commits itself |\n|---|---|---|---|---|"
    )
    for r in found:
        says, sure = (r["answer"], f"{r['p']:.2f}") if "p" in r else (r["reason"], "–")
        print(
            f"| {Path(r['file']).stem[:40]} | {r['free_label'] or r['label']} | {says} | {sure} | {'no' if r.get('abstains', True) else 'yes'} |"
        )
    ours = [r for r in found if r["label"] != "other" and "p" in r]
    bold = [r for r in found if not r.get("abstains", True)]
    print(
        f"\n{len(found)} videos, {len(ours)} of our categories: {sum(r['answer'] == r['label'] for r in ours)} named rightly. It commits itself "
        f"on {len(bold)}, {sum(r['answer'] == r['label'] for r in bold)} of them rightly."
    )


def how_many_are_ood(real: Path, out: Path, model, n: int) -> None:
    checkpoint = SceneModel.from_pretrained(model)
    rows = read_manifest(real)
    street = write_street(out / "street", n, seed=77, workers=1)
    kinds = {
        f"real {kind}": [real / r["file"] for r in rows if r["kind"] == kind]
        for kind in ("video", "audio")
    }
    kinds["street, held out"] = sorted(street.glob("*.mp4"))
    print("\n| unlike anything in training | by ear | by eye | either |\n|---|---|---|---|")
    for kind, paths in kinds.items():
        clips = [c for c in read_clips(checkpoint, paths, workers=0) if not isinstance(c, str)]
        found = [
            {s: clip_features(c, s, checkpoint.clip.seconds) for s in MODALITIES} for c in clips
        ]
        odd = [
            {s: checkpoint.detectors[s](v[None])[0] > 1 for s, v in d.items() if v is not None}
            for d in found
        ]
        shares = [
            f"{sum(d.get(s, False) for d in odd)} of {sum(s in d for d in odd)}" for s in MODALITIES
        ]
        shares.append(f"{sum(any(d.values()) for d in odd)} of {len(clips)}")
        print(f"| {kind} | {' | '.join(shares)} |")


def main():
    a = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    a.add_argument("real", type=Path)
    a.add_argument("--out", type=Path, required=True)
    a.add_argument("--folds", type=int, default=4)
    a.add_argument("--turns", type=json.loads, help="only these turns, for example [0]")
    a.add_argument("--model", type=Path)
    a.add_argument("--steps", type=int, default=300, help="of each training")
    a.add_argument("--packaged", action="store_true", help="go on from the packaged checkpoint")
    a.add_argument("--videos", action="store_true")
    a.add_argument("--ood", action="store_true")
    a.add_argument("--street", type=int, default=400, help="street clips for --ood")
    args = a.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.ood:
        how_many_are_ood(args.real, args.out, args.model, args.street)
    elif args.videos:
        ask_about_videos(args.real, args.out, args.model)
    else:
        cross_validate(args.real, args.out, args.folds, args.steps, args.turns, args.packaged)


if __name__ == "__main__":
    main()
