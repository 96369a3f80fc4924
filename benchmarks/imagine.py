"""How often what the packaged model imagines is what it should be: sound from picture, picture from sound, either and both from a sentence.

`python benchmarks/imagine.py` (a few minutes on two cores). A judge names the category of what was imagined, in one step and in eight steps of
MaskGIT and of ROAR. The judges are small networks trained on real clips of the street and on nothing imagined: the one of sounds lies beside the
checkpoint, the one of pictures is trained here. Beside the figures stand what the same judge makes of the real clips and of their tokens (the most
that anything made of tokens can be expected to reach), and the commonest category, given always. `--clips 40 --practice 200` only looks whether
everything runs, and keeps nothing.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path[:] = [
    p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent
]  # scripts beside this one are named like packages

import numpy as np
import torch

from scene4m.worlds import toystreet
from scene4m.worlds.ceiling import ClipProbe, fit_probe, read_clips, split_answers
from scene4m.worlds.street import LABELS, write_caption
from scene4m.base.core import machine, make_generator, make_rng
from scene4m.describe import MODALITIES, ClipArrays, imagine, tokenize_arrays
from scene4m.scene_model import SceneModel
from scene4m.evaluate import load_probe
from scene4m.base.metrics import bootstrap_interval

KEPT = Path(__file__).resolve().parent / "imagine.json"
SEED = 31  # of the street; nothing else uses it
WAYS = {
    "one step": {},
    "MaskGIT, 8 steps": dict(scheme="maskgit", steps=8),
    "ROAR, 8 steps": dict(scheme="roar", steps=8),
}
NAMES = dict(audio="sound", video="picture")


def held_out(checkpoint, n: int) -> tuple:
    "Scenes that can be seen and heard, and their clips as arrays."
    found, i = [], 0
    while len(found) < n:
        scene = toystreet.sample_scene(toystreet.street_seed("test", i, SEED))
        i += 1
        if scene.seen and scene.heard:
            found.append(scene)
    made = [toystreet.street_clip(s) for s in found]
    used = dict(audio="used", video="used")
    return found, [
        ClipArrays(f, checkpoint.front(torch.from_numpy(w)).numpy(), used) for f, w in made
    ]


def picture_judge(n: int, epochs: int):
    "A function from frames `(B, T, H, W, 3)` uint8 to positions in `LABELS`, learned from `n` real clips."
    torch.manual_seed(0)
    frames, scenes = read_clips("train", n, SEED, "video", workers=2)
    net = fit_probe(ClipProbe("video"), frames, scenes, epochs)

    @torch.no_grad()
    def judge(x):
        answers = [split_answers(net(part))["label"] for part in torch.as_tensor(x).split(64)]
        return torch.cat(answers).argmax(1).numpy()

    return judge


class Bench:
    "The clips, the judges, and a table that grows row by row."

    def __init__(self, clips: int, practice: int, epochs: int):
        self.ck = SceneModel.from_pretrained()
        self.scenes, arrays = held_out(self.ck, clips)
        self.tokens = tokenize_arrays(self.ck, arrays).ids
        self.truth = np.array([LABELS.index(s.label) for s in self.scenes])
        self.words = [
            write_caption(s.attributes, make_rng("imagine", i)) for i, s in enumerate(self.scenes)
        ]
        self.eye, self.ear = picture_judge(practice, epochs), load_probe(self.ck.folder)
        mels, frames = np.stack([a.mel for a in arrays]), np.stack([a.frames for a in arrays])
        self.real = dict(audio=self.ear.answers(torch.from_numpy(mels)), video=self.eye(frames))
        self.rows = []

    @torch.no_grad()
    def judged(self, sense: str, ids) -> np.ndarray:
        "The category that a judge finds in tokens."
        if sense == "audio":
            return np.concatenate(
                [self.ear.answers(self.ck.tokenizers["audio"].decode(i)) for i in ids.split(64)]
            )
        return self.eye(
            np.concatenate(
                [
                    self.ck.tokenizers["video"]
                    .to_frames(self.ck.tokenizers["video"].decode(i))
                    .numpy()
                    for i in ids.split(64)
                ]
            )
        )

    def row(self, imagined: str, given: str, how: str, right):
        low, high = bootstrap_interval(right)
        self.rows.append(
            {
                "what is judged": imagined,
                "made from": given,
                "how": how,
                "named rightly (%)": round(100 * float(np.mean(right)), 1),
                "95 % from": round(100 * low, 1),
                "95 % to": round(100 * high, 1),
            }
        )
        print(
            f"{imagined:10}{given:32}{how:20}{100 * np.mean(right):6.1f}   ({100 * low:.1f} to {100 * high:.1f})",
            flush=True,
        )

    def make(self, target: str, ids: dict, words: bool, how: dict, **kw) -> torch.Tensor:
        "Tokens of `target`, imagined batch by batch."
        g = make_generator(SEED, "imagine")
        parts = range(0, len(self.truth), 64)
        return torch.cat(
            [
                imagine(
                    self.ck,
                    {s: t[i : i + 64] for s, t in ids.items()},
                    target,
                    generator=g,
                    words=self.words[i : i + 64] if words else None,
                    **how,
                    **kw,
                )
                for i in parts
            ]
        )

    def floor_and_ceiling(self):
        "What the judges make of real clips and of their tokens."
        for sense in MODALITIES:
            self.row(NAMES[sense], "the clip itself", "real", self.real[sense] == self.truth)
            self.row(
                NAMES[sense],
                "the clip itself",
                "its tokens",
                self.judged(sense, self.tokens[sense]) == self.truth,
            )

    def one_sense(self, target: str):
        "One sense from the other and from the true sentence."
        other, name = MODALITIES[target == "audio"], NAMES[target]
        for how, settings in WAYS.items():
            self.row(
                name,
                NAMES[other],
                how,
                self.judged(target, self.make(target, {other: self.tokens[other]}, False, settings))
                == self.truth,
            )
        unsaid = self.make(target, {other: self.tokens[other]}, False, {}, chained=False)
        self.row(
            name,
            f"{NAMES[other]}, without words between",
            "one step",
            self.judged(target, unsaid) == self.truth,
        )
        for how, settings in WAYS.items():
            self.row(
                name,
                "true sentence",
                how,
                self.judged(target, self.make(target, {}, True, settings)) == self.truth,
            )

    def both_senses(self):
        "Sound from the true sentence, then the picture from sentence and sound: right only if both are."
        for how, settings in WAYS.items():
            sound = self.make("audio", {}, True, settings)
            film = self.make("video", {"audio": sound}, True, settings)
            seen = self.judged("video", film) == self.truth
            self.row(
                "both", "true sentence", how, seen & (self.judged("audio", sound) == self.truth)
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=400, help="held-out clips that are judged")
    parser.add_argument(
        "--practice", type=int, default=3000, help="clips that the judge of pictures learns from"
    )
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    bench = Bench(args.clips, args.practice, args.epochs)
    chance = 100 * float(np.bincount(bench.truth).max() / len(bench.truth))
    print(
        f"{args.clips} clips that can be seen and heard; the commonest category, given always: {chance:.1f} %"
    )
    bench.floor_and_ceiling()
    bench.one_sense("audio")
    bench.one_sense("video")
    bench.both_senses()
    kept = dict(
        clips=args.clips,
        street_seed=SEED,
        world_version=toystreet.WORLD_VERSION,
        chance_percent=round(chance, 1),
        machine=machine(),
        rows=bench.rows,
    )
    if args.clips >= 400:
        KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
