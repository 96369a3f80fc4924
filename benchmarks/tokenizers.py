"""What the tokenizers lose and what they cost, beside peers and lazy answers, on clips never trained on.

`python benchmarks/tokenizers.py` trains every tokenizer for the same CPU seconds on one thread, with three seeds, and prints tables of mean ±
standard error; `--figure FILE` draws error against bits, `--json FILE` keeps every figure. Three sets: frames of the toy street, its sounds,
and real sounds (`SCENE4M_REAL_CLIPS`, cut by the manifest's column `group`); the street's tokenizers are also tried on each real video there.
A budget in CPU seconds does not feel what else the machine does. As it stands it takes an hour; `--quick` looks whether everything runs.

The peers are our network around the quantizer of vector-quantize-pytorch: in its default setting, and in the one that gave the best PSNR in
trials (moving average of 0.99, k-means, no revival, no rotation of gradients), each trained plainly and once more with our start and our loss.
"""

import argparse
import copy
import csv
import json
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
import torch

from scene4m.base import metrics
from scene4m.worlds import toystreet
from scene4m.worlds.ceiling import fit_probe, score_probe
from scene4m.worlds.street import ATTRIBUTE_VALUES
from scene4m.audio_tokenizer import AudioTokenizer
from scene4m.base.core import fingerprint
from scene4m.mel import MelFrontEnd, pad_mels
from scene4m.video_tokenizer import VideoTokenizer
from scene4m.vq import Quantizer, TokenizerTrainer, train_tokenizer, usage

REAL = Path(os.environ.get("SCENE4M_REAL_CLIPS", "../shared/data/real"))
PLAIN = dict(axes=0, continuous=0.0)  # random first weights, the codebook on from the first step


class LibraryQuantizer(Quantizer):
    "vector-quantize-pytorch behind the calls of this package."

    def __init__(self, codes: int, dim: int, **settings):
        from vector_quantize_pytorch import VectorQuantize

        super().__init__(codes, dim)
        self.layer = VectorQuantize(dim=dim, codebook_size=codes, **settings)

    @property
    def codebook(self):
        return self.layer.codebook

    def quantize(self, z, mask=None):
        z_q, ids, loss = self.layer(z, mask=mask)
        return z_q, ids.clamp(min=0), loss.sum()


# ---------------------------------------------------------------- what is compared


@dataclass(frozen=True)
class Method:
    "A way to make and train a tokenizer. `library` holds settings of vector-quantize-pytorch; None is our quantizer."

    name: str
    config: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    library: dict | None = None
    seeds: int | None = None  # fewer than the others where only the figure needs it

    def build(self, cls, seed: int):
        known = cls.config_class.__dataclass_fields__
        tok = cls(
            cls.config_class(**{k: v for k, v in self.config.items() if k in known}, seed=seed)
        )
        if self.library is None:
            return tok
        torch.manual_seed(seed)
        tok.quantizer = LibraryQuantizer(tok.settings.codes, tok.settings.dim, **self.library)
        return tok


BEST = dict(decay=0.99, kmeans_init=True, rotation_trick=False, threshold_ema_dead_code=0)
MAIN = [
    Method("ours"),
    Method("library, default", dict(motion_weight=0.0), PLAIN, {}),
    Method("library, best", dict(motion_weight=0.0), PLAIN, BEST),
    Method("library, best, our start and loss", {}, dict(continuous=0.0), BEST),
    Method("paper", dict(preset="paper")),
]
RATES = dict(
    video=[
        Method("ours, 64 codes", dict(codes=64), seeds=1),
        Method("ours, 16×4×4", dict(patch=(16, 4, 4)), seeds=1),
        Method("ours, 4×4×4", dict(patch=(4, 4, 4)), seeds=1),
    ],
    audio=[
        Method("ours, 64 codes", dict(codes=64), seeds=1),
        Method("ours, 16×24", dict(patch=(16, 24)), seeds=1),
    ],
)


def train(tok, data, lengths, seconds: float, seed: int, settings: dict) -> int:
    "Trains for so many CPU seconds, turned into steps by measuring a few of them on a copy; returns the steps."
    c = tok.training_config(steps=1, seed=seed, **settings)
    trial = TokenizerTrainer(copy.deepcopy(tok), data, c, lengths)
    for k in range(3):
        trial.step(900_000 + k, 10**6)
    start = time.process_time()
    for k in range(8):
        trial.step(900_100 + k, 10**6)
    steps = max(10, int(seconds / ((time.process_time() - start) / 8)))
    train_tokenizer(tok, data, replace(c, steps=steps), lengths=lengths, show=False)
    return steps


# ---------------------------------------------------------------- clips


def street(kind: str, split: str, n: int, cache: Path | None) -> np.ndarray:
    "`n` clips of the toy street: frames uint8 (n, 16, 32, 32, 3) or mel float16 (n, 80, 624)."
    path = cache and cache / f"{toystreet.WORLD_VERSION}-{kind}-{split}-{n}.npy"
    if path and path.exists():
        return np.load(path)
    front, clips = MelFrontEnd(), toystreet.StreetClips(split, n)

    def make(scene):
        if kind == "video":
            return toystreet.render_frames(scene, np.arange(16) / 1.6, 32)
        return front(toystreet.render_sound(scene)).numpy().astype(np.float16)

    out = np.stack([make(clips.scene(i)) for i in range(n)])
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, out)
    return out


def real_rows(kind: str) -> list:
    "Rows of the manifest of real clips; none where there is no such folder."
    if not (REAL / "manifest.csv").exists():
        return []
    with open(REAL / "manifest.csv", newline="", encoding="utf-8") as f:
        return [r for r in csv.DictReader(f) if r["kind"] == kind]


def held_out_groups(rows: list, share: float = 0.2) -> set:
    "Groups that hold about `share` of the rows, always the same ones."
    groups, chosen, have = (
        sorted({r["group"] for r in rows}, key=lambda g: fingerprint(["held out", g])),
        set(),
        0,
    )
    for g in groups:
        size = sum(r["group"] == g for r in rows)
        if have + size <= share * len(rows):
            chosen.add(g)
            have += size
    return chosen


def real_sounds(limit: int | None) -> tuple:
    "((mels, lengths) to train on, (mels, lengths) held out)."
    from scene4m.base.media import read_clip

    front, rows = MelFrontEnd(), real_rows("audio")
    rows = rows[:: max(1, len(rows) // limit)] if limit else rows
    held, parts = held_out_groups(rows), ([], [])
    for r in rows:
        clip = read_clip(REAL / r["file"])
        parts[r["group"] in held].append(front(clip.wave[: max(1, round(clip.duration * 16_000))]))
    out = []
    for mels in parts:
        batch, lengths = pad_mels(mels)
        whole = torch.nn.functional.pad(batch, (0, 624 - batch.shape[-1]), value=float(batch.min()))
        out.append((whole.numpy().astype(np.float16), lengths.numpy()))
    return tuple(out)


# ---------------------------------------------------------------- figures of merit


def rate(tok, shape, seconds: float = 10.0) -> dict:
    "Tokens and bits of one ten-second clip."
    tokens = int(np.prod(tok.grid(shape)))
    return dict(
        tokens=tokens,
        bits=tokens * float(np.log2(tok.vocab_size)),
        bits_per_second=metrics.bits_per_second(tokens, tok.vocab_size, seconds),
    )


def picture_figures(x: np.ndarray, y: np.ndarray) -> dict:
    return dict(
        psnr=metrics.psnr(x, y),
        moving=metrics.moving_psnr(x, y),
        temporal=metrics.temporal_psnr(x, y),
        ssim=metrics.ssim(x, y),
    )


def sound_figures(x, y, lengths) -> dict:
    front = MelFrontEnd()
    x, y = (front.db(torch.from_numpy(np.array(a, np.float32))).numpy() for a in (x, y))
    return dict(
        mel_db=metrics.log_mel_error_db(x, y, lengths),
        convergence=metrics.spectral_convergence(x, y, lengths),
    )


def ids_of(tok, data, lengths=None, size: int = 100) -> torch.Tensor:
    "Ids (N, n) of stored clips."

    def part(i):
        return None if lengths is None else lengths[i : i + size]

    return torch.cat(
        [
            tok.encode(tok.to_model(torch.from_numpy(np.array(data[i : i + size]))), part(i))
            for i in range(0, len(data), size)
        ]
    )


def measure_video(tok, held) -> dict:
    ids = ids_of(tok, held)
    rebuilt = [
        tok.to_frames(tok.decode(part, (1, 3, *held.shape[1:4]))).numpy() for part in ids.split(100)
    ]
    return (
        picture_figures(held, np.concatenate(rebuilt))
        | usage(ids, tok.vocab_size)
        | rate(tok, (3, *held.shape[1:4]))
    )


def measure_audio(tok, held, lengths) -> dict:
    ids = ids_of(tok, held, lengths)
    rebuilt = np.concatenate([tok.decode(part, held[:1].shape).numpy() for part in ids.split(100)])
    grid = tok.grid(held.shape)
    real = torch.ones_like(ids, dtype=torch.bool)
    if lengths is not None:
        steps = -(-torch.as_tensor(lengths) // tok.settings.patch[1])
        real = (torch.arange(grid[0]) < steps[:, None]).repeat_interleave(grid[1], 1)
    return (
        sound_figures(held, rebuilt, lengths)
        | usage(ids[real], tok.vocab_size)
        | rate(tok, held.shape)
    )


def lazy_video(held) -> dict:
    "Answers without tokens: one colour per clip, and one still picture per clip, its median over time."
    colour = np.broadcast_to(
        held.mean((1, 2, 3), keepdims=True).round().astype(np.uint8), held.shape
    )
    return {
        "one colour per clip": picture_figures(held, colour),
        "time median of each clip": picture_figures(held, metrics.still_picture(held)),
    }


def lazy_audio(held, lengths) -> dict:
    "The mean spectrum of each clip, held all along, and one mean spectrum for all clips."
    n = np.full(len(held), held.shape[-1]) if lengths is None else lengths
    own = np.stack(
        [
            np.broadcast_to(h[:, :k].astype(np.float32).mean(1, keepdims=True), h.shape)
            for h, k in zip(held, n)
        ]
    )
    everyone = np.broadcast_to(
        np.concatenate([h[:, :k] for h, k in zip(held, n)], 1)
        .astype(np.float32)
        .mean(1)[None, :, None],
        held.shape,
    )
    return {
        "mean spectrum of each clip": sound_figures(held, own, lengths),
        "one mean spectrum": sound_figures(held, everyone, lengths),
    }


# ---------------------------------------------------------------- a reader of tokens


def read_tokens(tok, train_data, held, seed: int = 0, epochs: int = 6) -> dict:
    "What a small network tells from the code vectors alone, on street clips with something to see: attribute → accuracy."
    from torch import nn

    scenes = {
        s: [toystreet.StreetClips(s, n).scene(i) for i in range(n)]
        for s, n in (("train", len(train_data)), ("test", len(held)))
    }
    t, h, w = tok.grid()
    D = tok.settings.dim
    torch.manual_seed(seed)
    vectors = [
        tok.codes(ids_of(tok, x))
        .view(len(x), t, h, w, D)
        .permute(0, 1, 4, 2, 3)
        .reshape(len(x), t * D, h, w)
        for x in (train_data, held)
    ]
    scale = vectors[0].std()
    width, outputs = 96, sum(map(len, ATTRIBUTE_VALUES.values()))

    def block(a, b, k, stride=1):
        return [nn.Conv2d(a, b, k, stride, k // 2, bias=False), nn.BatchNorm2d(b), nn.ReLU()]

    net = nn.Sequential(
        *block(t * D, width, 1),
        *block(width, width, 3),
        *block(width, width, 3, 2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(width * (-(-h // 2)) * (-(-w // 2)), 128),
        nn.ReLU(),
        nn.Linear(128, outputs),
    )
    seen = [s.seen for s in scenes["test"]]
    fit_probe(net, vectors[0] / scale, scenes["train"], epochs, 64)
    return score_probe(net, vectors[1] / scale, scenes["test"], seen)


# ---------------------------------------------------------------- listening back, and threads


def listening(n: int = 3) -> None:
    "CPU seconds and error of listening back to ten seconds, beside librosa's two ways."
    import librosa
    from scene4m.mel import inverse_bank, mel_bank

    front, clips = MelFrontEnd(), toystreet.StreetClips("test", n)
    mels = [front(toystreet.render_sound(clips.scene(i))) for i in range(n)]

    def power(mel):
        return (10 ** (front.db(mel) / 10) - front.floor).clamp(min=0)

    options = dict(n_iter=32, hop_length=256, n_fft=1024, length=160_000)

    def griffin(magnitude):
        return torch.from_numpy(librosa.griffinlim(magnitude, **options).astype(np.float32))

    ways = {
        "ours": front.invert,
        "librosa, pseudo-inverse": lambda mel: griffin(
            (inverse_bank().t() @ power(mel)).clamp(min=1e-8).sqrt().numpy()
        ),
        "librosa, least squares (its own)": lambda mel: griffin(
            np.sqrt(librosa.util.nnls(mel_bank().t().numpy(), power(mel).numpy()))
        ),
    }
    print(
        f"\nListening back to ten seconds, mean of {n}{'':15}{'CPU s':>16}{'/ ours':>16}{'log-mel dB':>16}"
    )
    first = None
    for name, way in ways.items():
        way(mels[0][:, :30]) if name == "ours" else None
        start = time.process_time()
        waves = [way(m) for m in mels]
        seconds = (time.process_time() - start) / n
        first = first or seconds
        error = np.mean(
            [
                metrics.log_mel_error_db(front.db(m), front.db(front(w[:160_000])))
                for m, w in zip(mels, waves)
            ]
        )
        print(f"{name:36}{'':12}{seconds:>16.2f}{seconds / first:>16.1f}{error:>16.2f}", flush=True)


def speed(args) -> None:
    "Seconds for the same steps of both tokenizers: one after the other on two threads, and side by side on one thread each."
    import subprocess
    import sys

    def job(kind, threads):
        return [
            sys.executable,
            __file__,
            "--steps-of",
            kind,
            "--threads",
            str(threads),
        ]

    def env(threads):
        return {**os.environ, "OMP_NUM_THREADS": str(threads)}

    start = time.perf_counter()
    for kind in ("video", "audio"):
        subprocess.run(job(kind, 2), check=True, env=env(2))
    after = time.perf_counter() - start
    start = time.perf_counter()
    for p in [subprocess.Popen(job(kind, 1), env=env(1)) for kind in ("video", "audio")]:
        p.wait()
    beside = time.perf_counter() - start
    print(
        f"\n60 steps of both tokenizers: {after:.1f} s one after the other on two threads, {beside:.1f} s side by side on one each, "
        f"ratio {after / beside:.2f}"
    )


def some_steps(kind: str, threads: int) -> None:
    torch.set_num_threads(threads)
    tok = VideoTokenizer() if kind == "video" else AudioTokenizer()
    rng = np.random.default_rng(0)
    data = (
        rng.integers(0, 256, (64, 16, 32, 32, 3), np.uint8)
        if kind == "video"
        else rng.standard_normal((64, 80, 624)).astype(np.float16)
    )
    train_tokenizer(tok, data, tok.training_config(steps=60), show=False)


# ---------------------------------------------------------------- runs and tables


def run_set(name: str, kind: str, train_part, held_part, methods, args) -> tuple:
    "Trains and measures every method with every seed; returns (method → list of figures, method → first tokenizer)."
    cls = VideoTokenizer if kind == "video" else AudioTokenizer
    figures, kept = {}, {}
    for m in methods:
        for seed in range(min(m.seeds or args.seeds, args.seeds)):
            tok = m.build(cls, seed)
            steps = train(tok, *train_part, args.seconds, seed, m.training)
            tok.eval()
            row = (
                measure_video(tok, held_part[0])
                if kind == "video"
                else measure_audio(tok, *held_part)
            )
            figures.setdefault(m.name, []).append(dict(row, steps=steps))
            kept.setdefault(m.name, tok)
            print(
                f"  {name}: {m.name}, seed {seed}: "
                + ", ".join(f"{k} {v:.4g}" for k, v in figures[m.name][-1].items()),
                flush=True,
            )
    return figures, kept


COLUMNS = dict(
    video=dict(psnr="PSNR dB", moving="moving dB", temporal="temporal dB", ssim="SSIM"),
    audio=dict(mel_db="log-mel dB", convergence="sp. conv."),
)


def spread(rows: list, key: str) -> str:
    "Mean ± standard error over the seeds."
    v = np.array([r[key] for r in rows if key in r], float)
    if not len(v):
        return "–"
    digits = 3 if abs(v.mean()) < 2 else 0 if abs(v.mean()) > 99 else 2
    return f"{v.mean():.{digits}f}" + (
        f" ± {v.std(ddof=1) / len(v) ** 0.5:.{digits}f}" if len(v) > 1 else ""
    )


def table(title: str, kind: str, figures: dict, lazy: dict) -> None:
    columns = COLUMNS[kind] | dict(
        perplexity="perplexity",
        used="used",
        tokens="tokens",
        bits_per_second="bit/s",
        steps="steps",
    )
    print(f"\n{title}\n{'':36}" + "".join(f"{c:>16}" for c in columns.values()))
    for name, rows in figures.items():
        print(f"{name:36}" + "".join(f"{spread(rows, k):>16}" for k in columns))
    for name, row in lazy.items():
        print(f"{name:36}" + "".join(f"{spread([row], k):>16}" for k in columns), flush=True)


def real_videos(tokenizers: dict) -> dict:
    "Every real video rebuilt by the tokenizers that learned the street: file → method → figures."
    from scene4m.base.media import read_clip

    out = {}
    for r in real_rows("video"):
        x = read_clip(REAL / r["file"]).frames[None]
        if x.shape[1:] != (16, 32, 32, 3):
            continue
        rebuilt = {
            n: t.to_frames(t.decode(ids_of(t, x), (1, 3, 16, 32, 32))).numpy()
            for n, t in tokenizers.items()
        }
        out[r["file"]] = {
            n: picture_figures(x, y)
            for n, y in (rebuilt | {"time median": metrics.still_picture(x)}).items()
        }
    return out


def print_videos(videos: dict) -> None:
    names = list(next(iter(videos.values())))
    print(
        "\nReal videos, by tokenizers that know only the street: dB whole / dB moving\n"
        + f"{'':44}"
        + "".join(f"{n[:22]:>24}" for n in names)
    )

    def cell(f):
        return f"{f['psnr']:.1f} / {f['moving']:.1f}"

    for file, row in videos.items():
        print(f"{Path(file).name[:42]:44}" + "".join(f"{cell(row[n]):>24}" for n in names))
    mean = {
        n: {k: float(np.nanmean([v[n][k] for v in videos.values()])) for k in ("psnr", "moving")}
        for n in names
    }
    print(
        f"{f'mean of {len(videos)}':44}" + "".join(f"{cell(mean[n]):>24}" for n in names),
        flush=True,
    )


def draw(results: dict, path: Path) -> None:
    "Error against bits per clip for every set: ours at several rates as a line, the others as points, lazy answers as levels."
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [
        (s, k, t)
        for s, r in results.items()
        for k, t in COLUMNS[r["kind"]].items()
        if k in ("psnr", "moving", "mel_db")
    ]
    fig, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 4), squeeze=False)
    for ax, (name, key, title) in zip(axes[0], panels):
        figures, line = results[name]["figures"], []
        for (method, rows), mark in zip(figures.items(), "osD^vPX*<>"):
            bits, v = rows[0]["bits"], np.array([r[key] for r in rows])
            ax.errorbar(
                bits,
                v.mean(),
                v.std(ddof=1) / len(v) ** 0.5 if len(v) > 1 else 0,
                marker=mark,
                ls="none",
                capsize=3,
                label=method,
            )
            if method.startswith("ours"):
                line.append((bits, v.mean()))
        ax.plot(*zip(*sorted(line)), color="0.6", lw=1, zorder=0)
        for (lazy, row), dash in zip(results[name]["lazy"].items(), ("--", ":")):
            ax.axhline(row[key], color="0.4", ls=dash, lw=1, label=lazy)
        ax.set(title=f"{name}: {title}", xlabel="bits per clip", ylabel=title)
        ax.legend(fontsize=6)
    fig.tight_layout()
    fig.savefig(path, dpi=110)
    print(f"figure: {path}")


def report(args) -> None:
    torch.set_num_threads(1)
    results, keep = {}, args.data and Path(args.data)
    chosen = [m for m in MAIN if not args.methods or m.name in args.methods]
    print(
        f"{args.seconds:g} CPU seconds each, {args.seeds} seeds, one thread, {args.clips} street clips, {args.held_out} held out; "
        f"a pixel moves where it is more than {metrics.MOVING:g} of the range away from the clip's median over time",
        flush=True,
    )

    def write():
        if args.json:
            Path(args.json).write_text(
                json.dumps(results, indent=1, default=float) + "\n"
            )  # after every set, so that none is lost

    def finish(name, kind, train_part, held_part, lazy, rates=()):
        figures, kept = run_set(name, kind, train_part, held_part, [*chosen, *rates], args)
        results[name] = dict(kind=kind, figures=figures, lazy=lazy)
        table(name, kind, figures, lazy)
        write()
        return kept

    if "video" in args.sets:
        x, held = (
            street("video", "train", args.clips, keep),
            street("video", "test", args.held_out, keep),
        )
        kept = finish(
            "street, picture",
            "video",
            (x, None),
            (held,),
            lazy_video(held),
            RATES["video"] if args.figure else (),
        )
        if args.reader:
            readers = {
                n: read_tokens(kept[n], x, held)
                for n in kept
                if n in ("ours", "library, best", "paper")
            }
            results["street, picture"]["reader"] = readers
            print("\nWhat a small reader of the tokens tells, % (chance)")

            def told(r):
                return "  ".join(
                    f"{a} {100 * v['accuracy']:.1f} ({100 * v['chance']:.0f})" for a, v in r.items()
                )

            for n, r in readers.items():
                print(f"{n:36}" + told(r), flush=True)
        videos = real_videos({n: t for n, t in kept.items() if not n.startswith("ours,")})
        if videos:
            results["street, picture"]["videos"] = videos
            print_videos(videos)
    if "audio" in args.sets:
        x, held = (
            street("audio", "train", args.clips, keep),
            street("audio", "test", args.held_out, keep),
        )
        finish(
            "street, sound",
            "audio",
            (x, None),
            (held, None),
            lazy_audio(held, None),
            RATES["audio"] if args.figure else (),
        )
    if "real" in args.sets and real_rows("audio"):
        known, held = real_sounds(args.real)
        finish(
            f"real sounds ({len(known[0])}, held out {len(held[0])})",
            "audio",
            known,
            held,
            lazy_audio(*held),
        )
    if "listen" in args.sets:
        listening()
    if "speed" in args.sets:
        speed(args)
    write()
    if args.figure and results:
        draw(results, Path(args.figure))


SETS = ["video", "audio", "real", "listen", "speed"]


def arguments():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument(
        "--seconds", type=float, default=60, help="CPU seconds of training, the same for all"
    )
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--clips", type=int, default=4000, help="street clips to train on")
    p.add_argument("--held-out", type=int, default=500)
    p.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    p.add_argument("--methods", nargs="+", choices=[m.name for m in MAIN])
    p.add_argument("--real", type=int, help="at most so many real sounds")
    p.add_argument("--no-reader", dest="reader", action="store_false")
    p.add_argument("--data", help="folder that keeps the street's arrays between runs")
    p.add_argument("--json", help="file for every figure")
    p.add_argument("--figure", help="picture of error against bits")
    p.add_argument("--quick", action="store_true", help="two seconds, one seed, few clips")
    p.add_argument("--steps-of", choices=["video", "audio"], help=argparse.SUPPRESS)
    p.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.quick:
        args.seconds, args.seeds, args.clips, args.held_out, args.real = 2, 1, 120, 40, 40
    return args


if __name__ == "__main__":
    args = arguments()
    some_steps(args.steps_of, args.threads) if args.steps_of else report(args)
