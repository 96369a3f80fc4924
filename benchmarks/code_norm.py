"""Does a normalisation before the codebook help? The same trainings with and without `CodeNorm`, over seeds.

`python benchmarks/code_norm.py` trains the small autoencoder of the page on vector quantisation, in its four ways;
`--data FOLDER` (the `data` folder of a `scene4m run`) adds both tokenizers with the settings of the preset `toy`,
trained on 640 clips and judged on 96 others. It prints the errors and writes benchmarks/code_norm.json. About two
CPU minutes, and with `--data` a quarter of an hour more.
"""

import argparse
import json
import os
import sys
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # not this folder, whose scripts bear the names of packages
os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
from torch import nn

from scene4m.worlds import toystreet
from scene4m.base.core import get_preset
from scene4m.curation import ClipDataset
from scene4m.mel import MelFrontEnd
from scene4m.app.run import STORED, TOKENIZERS
from scene4m.vq import CodeNorm, VectorQuantizer, evaluate_tokenizer, train_tokenizer, usage

WAYS = {
    "careless": (False, 0.0),
    "revival": (False, 0.05),
    "k-means": (True, 0.0),
    "all of it": (True, 0.05),
}


def street_patches() -> torch.Tensor:
    "The patches (40, 65, 768) of street sounds that the page looks at."
    front = MelFrontEnd()
    mels = torch.stack(
        [front(toystreet.render_sound(toystreet.sample_scene(i))) for i in range(40)]
    )
    return (
        mels.unflatten(1, (5, 16))
        .unflatten(3, (13, 48))
        .permute(0, 3, 1, 2, 4)
        .reshape(40, 65, 768)
    )


def train_small(
    patches, start: bool, revive: float, norm, seed: int, steps: int = 150, warm: int = 30
) -> dict:
    "The page's autoencoder: its mean error and perplexity over the last twenty steps."
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    enc, dec = nn.Linear(768, 16), nn.Linear(16, 768)
    vq = VectorQuantizer(256, 16, revive=revive, decay=0.9, seed=seed)
    opt = torch.optim.AdamW([*enc.parameters(), *dec.parameters()], 3e-3)
    errors, perplexities = [], []
    for step in range(steps):
        x = patches[torch.randint(len(patches), (16,), generator=g)]
        z = norm(enc(x))
        vq.bypass = start and step < warm
        if start and step == warm:
            vq.start(norm(enc(patches)).reshape(-1, 16), per_step=16 * 65)
        z_q, ids, loss = vq(z)
        error = (dec(z_q) - x).square().mean()
        opt.zero_grad()
        (error + loss).backward()
        opt.step()
        if step >= steps - 20:
            errors.append(float(error.detach()))
            perplexities.append(usage(ids, 256)["perplexity"])
    return dict(error=round(sum(errors) / 20, 4), perplexity=round(sum(perplexities) / 20, 1))


def train_real(sense: str, data: str, with_norm: bool, seed: int, steps: int) -> dict:
    "A tokenizer of the preset `toy`: error, perplexity and share of codes used on clips never trained on."
    ds = ClipDataset(data)
    rows = ds.manifest.set_index("key")

    def stack(part: str, n: int):
        keys = [k for k in ds.keys(part) if rows.loc[k][f"has_{sense}"]][:n]
        return ds.stack(STORED[sense], keys)

    cls = TOKENIZERS[sense]
    own = {f.name for f in fields(cls.config_class)}
    settings = {
        k: v
        for k, v in getattr(get_preset("toy"), sense).items()
        if k not in ("seconds", "steps", "epochs")
    }
    tok = cls(cls.config_class(**{k: v for k, v in settings.items() if k in own}, seed=seed))
    tok.norm = CodeNorm(tok.quantizer.dim) if with_norm else None
    loop = {k: v for k, v in settings.items() if k not in own}
    config = tok.training_config(**loop, steps=steps, seed=seed, device="cpu", precision="fp32")
    train_tokenizer(tok, stack("train", 640), config, show=False)
    return {k: round(v, 4) for k, v in evaluate_tokenizer(tok, stack("val", 96)).items()}


def compare(name: str, train, seeds) -> list:
    "One row per seed: with and without the norm."
    rows = []
    for seed in seeds:
        row = dict(seed=seed, normalised=train(True, seed), plain=train(False, seed))
        rows.append(row)
        gain = 1 - row["plain"]["error"] / row["normalised"]["error"]
        print(
            f"{name:10} seed {seed}   with {row['normalised']}   without {row['plain']}   {gain:+.1%}",
            flush=True,
        )
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=80, help="of a tokenizer")
    parser.add_argument("--data", help="the `data` folder of a run")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "code_norm.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    patches, found = street_patches(), {}
    for name, way in WAYS.items():

        def small(norm, seed, way=way):
            return train_small(patches, *way, CodeNorm(16) if norm else nn.Identity(), seed)

        found[name] = compare(name, small, range(args.seeds))
    for sense in ("audio", "video") if args.data else ():

        def real(norm, seed, sense=sense):
            return train_real(sense, args.data, norm, seed, args.steps)

        found[sense] = compare(sense, real, range(args.seeds))
    args.out.write_text(json.dumps(found, indent=2) + "\n")
