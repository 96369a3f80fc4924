"""Puts the checkpoint of a finished run into the package: `python scripts/pretrained.py runs/shipped`.

Weights are stored in 16 bits, and the folder is read back and must describe a clip before it counts as done."""
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 10_000_000     # bytes that the wheel may gain


def halve(folder: Path) -> None:
    "Stores every floating-point weight below `folder` in 16 bits, except the small ones that must stay exact (one row or less)."
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "pt") as f:
            kept, meta = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()
        save_file({k: t.half() if t.dtype == torch.float32 and t.ndim > 1 else t for k, t in kept.items()}, path, metadata=meta)


def compact(folder: Path) -> None:
    "Leaves out of the model's file what loading builds again: position tables and biases that are zero."
    from scene4m.fourm import FourM

    FourM.from_pretrained(folder).save_pretrained(folder, compact=True)


def name_again(folder: Path) -> None:
    "A tokenizer's fingerprint follows from its weights: notes those of the rounded ones in `describe.json`."
    from scene4m.core import read_json, write_json
    from scene4m.vq import load_tokenizer

    settings = read_json(folder / "describe.json")
    settings["fingerprints"] = {sense: load_tokenizer(folder / f"{sense}_tokenizer").fingerprint for sense in settings["fingerprints"]}
    write_json(folder / "describe.json", settings)


def weigh(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def main(run: Path) -> int:
    from scene4m.describe import Describer
    from scene4m.toystreet import sample_scene, write_scene

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
        shutil.copy(run / "report.json", new)       # the page of figures reads it
        if weigh(new) > LIMIT:
            print(f"{new.name}: {weigh(new) / 1e6:.1f} MB is more than the {LIMIT / 1e6:.0f} MB that the wheel may carry.")
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
