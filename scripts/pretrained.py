"""Puts the checkpoint of a finished run into the package: `python scripts/pretrained.py runs/shipped`.

Weights are stored in 16 bits, and the folder is read back and must describe a clip before it counts as done."""

import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 10_000_000  # bytes that the wheel may gain


def halve(folder: Path) -> None:
    "Stores every floating-point weight below `folder` in 16 bits, except the small ones that must stay exact (one row or less)."
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "pt") as f:
            kept, meta = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()
        save_file(
            {
                k: t.half() if t.dtype == torch.float32 and t.ndim > 1 else t
                for k, t in kept.items()
            },
            path,
            metadata=meta,
        )


def compact(folder: Path) -> None:
    "Leaves out of the model's file what loading builds again: position tables and biases that are zero."
    from scene4m.fourm import FourM

    FourM.from_pretrained(folder).save_pretrained(folder, compact=True)


def name_again(folder: Path) -> None:
    "A tokenizer's fingerprint follows from its weights: notes those of the rounded ones in `describe.json`."
    from scene4m.base.core import read_json, write_json
    from scene4m.vq import load_tokenizer

    settings = read_json(folder / "describe.json")
    settings["fingerprints"] = {
        sense: load_tokenizer(folder / f"{sense}_tokenizer").fingerprint
        for sense in settings["fingerprints"]
    }
    write_json(folder / "describe.json", settings)


def splits_of(data: Path) -> list:
    "The split of every clip of a data set."
    from scene4m.curation import ClipDataset

    return list(ClipDataset(data).manifest["split"])


def weigh(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


CARD = """
## How it was made

`make pretrained`: from seeds alone, on the toy street (world {world}), by the preset `shipped`: {clips:,} training clips, {steps:,} steps of 4M. On
{cores} cores ({arithmetic}) its stages took {seconds}. Weights are stored in 16 bits.

## What it can do

On {n:,} held-out clips of the toy street, with a different seed range than any clip it was trained or calibrated on, in per cent:

| | right | best constant answer |
|---|---|---|
{rows}

It states something that cannot be perceived in {invented:.1%} of its sentences' details, and its confidence is off by {ece:.1%} on average.
The same figures for any folder: `scene4m evaluate FOLDER --json`.

## Limits

It has seen and heard nothing but a drawn street of fourteen categories. On real clips it is mostly wrong. It says *I do not know* where the clip
is unlike its training or no category is likely enough, but it does not always notice: nobody should cross a road because of what it says.
"""


def describe_itself(folder: Path, steps: int, clips: int, seconds: float) -> None:
    "Adds to the model card how the checkpoint was made, what it reached and where it fails, from the report of its run."
    from scene4m.base.core import read_json

    r = read_json(folder / "report.json")
    chance, by_sense = r["chance"], r["category_accuracy_by_sense"]
    told = {"category, both senses": (r["category_accuracy"], chance["category_accuracy"])}
    for k, name in (("audio", "sound only"), ("video", "picture only")):
        told[f"category, {name}"] = by_sense[k], chance["category_accuracy_by_sense"][k]
    told |= {
        k.replace("_", " "): (v, chance["attribute_accuracy"][k])
        for k, v in r["attribute_accuracy"].items()
    }
    told |= {
        "every attribute": (r["exact_accuracy"], chance["exact_accuracy"]),
        "category of the sound imagined from the picture": (
            r["imagined_sound_accuracy"],
            chance["imagined_sound_accuracy"],
        ),
    }
    rows = "\n".join(f"| {k} | {100 * a:.1f} | {100 * b:.1f} |" for k, (a, b) in told.items())
    stages = r["seconds"] | {"4M": seconds}  # of a training that was interrupted, all of its parts
    seconds = ", ".join(f"{k} {v:,.0f} s" for k, v in stages.items())
    arithmetic = "bfloat16" if r["machine"]["fast_bf16"] else "float32"
    text = CARD.format(
        world=r["world_version"],
        clips=clips,
        steps=steps,
        cores=r["machine"]["cores"],
        arithmetic=arithmetic,
        seconds=seconds,
        n=r["n"],
        rows=rows,
        invented=r["invented_rate"],
        ece=r["ece"],
    )
    with open(folder / "README.md", "a", encoding="utf-8") as f:
        f.write(text)


def main(run: Path) -> int:
    from scene4m.base.core import read_json
    from scene4m.describe import Describer
    from scene4m.worlds.toystreet import sample_scene, write_scene

    source, target = run / "model", ROOT / "scene4m" / "pretrained"
    if not ((source / "describe.json").exists() and (run / "report.json").exists()):
        print(f"{source}: there is no finished model here; run `make pretrained` to its end.")
        return 1
    with tempfile.TemporaryDirectory(dir=ROOT / "scene4m") as place:
        new = Path(place) / "pretrained"
        shutil.copytree(source, new)
        compact(new)
        halve(new)
        name_again(new)
        shutil.copy(run / "report.json", new)  # the page of figures reads it
        trained = read_json(run / "training" / "run.json")
        clips = splits_of(run / "data").count("train")
        describe_itself(new, trained["steps"], clips, trained["seconds"])
        if weigh(new) > LIMIT:
            print(
                f"{new.name}: {weigh(new) / 1e6:.1f} MB is more than the {LIMIT / 1e6:.0f} MB that the wheel may carry."
            )
            return 1
        clip = write_scene(sample_scene(7), Path(place) / "clip.mp4")
        print(f"→ it says: {Describer.from_pretrained(new)(clip).description}")
        shutil.rmtree(target, ignore_errors=True)
        new.rename(target)
    print(f"→ scene4m/pretrained: {weigh(target) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("say which run: python scripts/pretrained.py runs/shipped")
    sys.exit(main(Path(sys.argv[1])))
