"""How much curation costs: CPU seconds per clip against decoding every frame and against moviepy, scaling over processes, memory, reading tokens.

Run it on a quiet machine: `python benchmarks/curation.py` (about fifteen minutes), or `--quick` for a look; `--parts` runs some of its tables. The figures go to
benchmarks/curation.json, part by part; those of `--quick` are only printed. The clips are made here: ten seconds, 30 frames per second, H.264 with B-frames and AAC stereo at 44.1 kHz, of a camera that pans over textures with things moving in front of it.
CPU seconds are those of the process and of all its children, after one clip to warm up; every method runs in a fresh process.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
KEPT = Path(__file__).resolve().parent / "curation.json"
SIZES = {"360p": (480, 360), "720p": (1280, 720)}


def texture(rng, height: int, width: int):
    "A picture with detail at all scales, as photographs have."
    import numpy as np

    f = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    spectrum = (
        rng.standard_normal((3, *f.shape)) + 1j * rng.standard_normal((3, *f.shape))
    ) / np.maximum(f, 1 / width) ** 1.2
    image = np.fft.irfft2(spectrum, s=(height, width)).transpose(1, 2, 0)
    return np.clip(128 + 45 * image / image.std(), 0, 255).astype("uint8")


def make_clip(
    path: Path, width: int, height: int, seed: int, seconds: float = 10.0, fps: int = 30
) -> None:
    "One clip, encoded as video sites encode."
    import av
    import numpy as np

    rng = np.random.default_rng(seed)
    wide = texture(rng, height + 80, width + 400)
    things = [
        (
            texture(rng, height // 5, width // 6),
            rng.uniform(-4, 4),
            rng.uniform(-2, 2),
            rng.uniform(0, 1, 2),
        )
        for _ in range(4)
    ]
    with av.open(str(path), "w") as out:
        video = out.add_stream(
            "libx264", rate=fps, options=dict(preset="fast", crf="24", threads="1")
        )
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = out.add_stream("aac", rate=44_100, layout="stereo", bit_rate=96_000)
        for k in range(int(seconds * fps)):
            x, y = int(200 + 190 * np.sin(k / 90 + seed)), int(40 + 35 * np.cos(k / 70))
            frame = wide[y : y + height, x : x + width].astype(np.int16) + rng.integers(
                -3, 4, (height, width, 1), dtype=np.int16
            )
            for thing, vx, vy, at in things:
                h, w = thing.shape[:2]
                left, top = (
                    int(at[0] * (width - w) + vx * k) % (width - w),
                    int(at[1] * (height - h) + vy * k) % (height - h),
                )
                frame[top : top + h, left : left + w] = thing
            out.mux(
                video.encode(
                    av.VideoFrame.from_ndarray(
                        np.clip(frame, 0, 255).astype("uint8"), format="rgb24"
                    )
                )
            )
        out.mux(video.encode(None))
        wave = (0.2 * rng.standard_normal((2, int(seconds * 44_100)))).astype(np.float32)
        for k in range(0, wave.shape[1], 1024):
            sound = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(wave[:, k : k + 1024]), format="fltp", layout="stereo"
            )
            sound.sample_rate, sound.pts = 44_100, k
            out.mux(audio.encode(sound))
        out.mux(audio.encode(None))


# ---------------------------------------------------------------- what is measured


def decode_all(path):
    "(a) Every frame decoded by PyAV on one thread and thrown away."
    import av

    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        stream.codec_context.thread_count, stream.codec_context.thread_type = 1, "NONE"
        return sum(1 for _ in film.decode(stream))


def our_pictures(path):
    "The picture half of `read_clip`: 16 frames of 32 x 32 at t = k / 1.6, black bars looked for."
    from scene4m.base import media

    with media._open(path, 60) as film:
        video, clock, spec = media._pick(film)[0], media._Clock(path, 60), media.FrameSpec()
        packets = media._packets(film, [video], 0, 10, clock)[video.index]
        frames, how = media._decode_video(video, packets, spec.times, clock)
        assert how == "exact-skip"
        return media._views(frames, (spec,), "auto")


def moviepy_clip(path, **options):
    from moviepy import VideoFileClip

    with VideoFileClip(str(path), **options) as film:
        return [f for _, f in zip(range(16), film.iter_frames(fps=1.6))]


def moviepy_small(path):
    "(b) moviepy with `target_resolution`: pictures only."
    return moviepy_clip(path, target_resolution=(32, 32), audio=False)


def moviepy_sound(path):
    "(b) with its sound at 16 kHz: the same work as curation."
    from moviepy import AudioFileClip

    with AudioFileClip(str(path)) as sound:
        wave = sound.to_soundarray(fps=16_000)
    return moviepy_small(path), wave


def moviepy_plain(path):
    "(c) moviepy as one meets it: pictures only, full size."
    return moviepy_clip(path, audio=False)


def curation(folder: Path, out: Path, workers: int = 1, shard: int | None = None):
    "The whole: checks, pictures, sound, files, ledger, manifest."
    from scene4m.curation import curate

    table = curate(folder, out, workers=workers, refuse=(), shard_size=shard, timeout=300)
    assert (table.status == "kept").all(), table.message
    return table


METHODS = dict(
    decode_all=decode_all,
    our_pictures=our_pictures,
    moviepy_small=moviepy_small,
    moviepy_sound=moviepy_sound,
    moviepy_plain=moviepy_plain,
)


def cpu() -> float:
    "CPU seconds of this process and of its children that have ended."
    return sum(
        u.ru_utime + u.ru_stime
        for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def measure(method: str, folder: Path, workers: int, shard: int | None) -> dict:
    "Run in a fresh process: CPU and wall seconds per clip."
    import torch

    torch.set_num_threads(1)
    paths, scratch = sorted(folder.glob("*.mp4")), Path.cwd()  # a folder of its own, see `fresh`
    if method == "curation":
        (scratch / "warm").mkdir()
        shutil.copy(paths[0], scratch / "warm")
        curation(scratch / "warm", scratch / "out0")
        c, t = cpu(), time.perf_counter()
        curation(folder, scratch / "out1", workers, shard)
    else:
        METHODS[method](paths[0])
        c, t = cpu(), time.perf_counter()
        for p in paths:
            METHODS[method](p)
    return dict(cpu=(cpu() - c) / len(paths), wall=(time.perf_counter() - t) / len(paths))


def memory(folder: Path, n: int) -> list:
    "Run in a fresh process: megabytes of this process and its children while `n` files go through, at a few places."
    import psutil
    import torch
    from dataclasses import replace
    from scene4m.base.lists import folder_rows
    from scene4m.curation import ClipMaker, curate

    torch.set_num_threads(1)
    some, seen, me = folder_rows(folder), [], psutil.Process()
    rows = [replace(some[k % len(some)], key=f"c{k:05d}") for k in range(n)]
    one = ClipMaker.one

    def watched(maker, item, job, reader):
        if int(item.key[1:]) % (n // 10) == 5:
            seen.append(
                sum(p.memory_info().rss for p in [me, *me.children(recursive=True)]) / 2**20
            )
        return one(maker, item, job, reader)

    ClipMaker.one = watched
    curate(rows, Path.cwd() / "out", refuse=(), layout="shards", shard_size=n, timeout=300)
    return seen


def tokens(n: int) -> dict:
    "Seconds to read the tokens of `n` clips from the same tar shards: by our data set and by webdataset."
    import numpy as np
    import webdataset
    from scene4m.tokenize import TokenDataset, tokenize_dataset

    class Fixed:
        def __init__(self, grid):
            self.fingerprint, self.shape, self.vocab_size = f"fixed {grid}", grid, 512

        def grid(self, shape=None):
            return self.shape

        def encode(self, batch, lengths=None):
            return batch.flatten(1)[:, : int(np.prod(self.shape))].long() % 512

    class Clips:
        def keys(self, split=None):
            return [f"clip-{i:06d}" for i in range(n)]

        def row(self, key):
            return dict(label="dog barking", split="train", group=key, captions='["a dog barks"]')

        def stack(self, modality, keys):
            return np.random.default_rng(len(keys)).integers(0, 512, (len(keys), 200))

    out = tokenize_dataset(
        Clips(), Path.cwd() / "tokens", Fixed((13, 5)), Fixed((2, 8, 8)), layout="shards"
    )
    seconds = {}
    for _ in range(3):
        t = time.perf_counter()
        data = TokenDataset(out)
        for m in data.modalities:
            data.ids(m)
        seconds.setdefault("ours", []).append(time.perf_counter() - t)
        t = time.perf_counter()
        read = [
            {
                s["__key__"]: s["npy"]
                for s in webdataset.WebDataset(
                    [str(p) for p in sorted((out / m).glob("*.tar"))], shardshuffle=False
                ).decode()
            }
            for m in ("audio", "video")
        ]
        seconds.setdefault("webdataset", []).append(time.perf_counter() - t)
        assert all((data.ids("video", [k])[0] == read[1][k]).all() for k in data.keys[::97])
    return {k: min(v) for k, v in seconds.items()}


# ---------------------------------------------------------------- the table


def begin(scratch: str, *args) -> subprocess.Popen:
    "This script in a fresh process, which works in `scratch`: whatever a library writes beside itself goes there too."
    words = [sys.executable, str(Path(__file__).resolve()), *map(str, args)]
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=scratch,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                p or os.getcwd() for p in sys.path if p != str(Path(__file__).parent)
            ),
        },
    )


def answer(process: subprocess.Popen):
    "What it printed last, as JSON; where it failed, its own words."
    out, err = process.communicate()
    if process.returncode:
        sys.exit(f"{' '.join(process.args[2:])} failed:\n{err[-2000:]}")
    return json.loads(out.splitlines()[-1])


def fresh(*args):
    with tempfile.TemporaryDirectory() as scratch:
        return answer(begin(scratch, *args))


def compare(folder: Path, repeats: int) -> dict:
    "CPU seconds per clip of every method, the least of some interleaved passes."
    names, best = [*METHODS, "curation"], {}
    for _ in range(repeats):
        for name in names:
            best[name] = min(best.get(name, 1e9), fresh("--measure", name, folder)["cpu"])
    return best


def scaling(folder: Path, repeats: int) -> dict:
    "Clips per second of one process, of `workers=2`, and of two independent runs of half each at the same time."
    found = dict(one=0.0, two=0.0, apart=0.0)
    with tempfile.TemporaryDirectory() as scratch:
        halves = [Path(scratch, "a"), Path(scratch, "b")]
        for h in halves:
            h.mkdir()
            (h / "work").mkdir()
        for k, p in enumerate(sorted(folder.glob("*.mp4"))):
            shutil.copy(p, halves[k % 2])
        for _ in range(repeats):
            for name, workers in (("one", 1), ("two", 2)):
                found[name] = max(
                    found[name],
                    1
                    / fresh("--measure", "curation", folder, "--workers", workers, "--shard", 4)[
                        "wall"
                    ],
                )
            runs = [
                begin(str(h / "work"), "--measure", "curation", h, "--shard", 4) for h in halves
            ]
            found["apart"] = max(found["apart"], sum(1 / answer(r)["wall"] for r in runs))
            for h in halves:
                shutil.rmtree(h / "work")
                (h / "work").mkdir()
    return found


def keep(args, part: str, found) -> None:
    "Adds the figures of one part to benchmarks/curation.json, with the machine they are from."
    if args.quick:
        return
    from scene4m.base.core import machine

    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    kept[part] = dict(figures=found, machine=machine(), clips=args.clips, repeats=args.repeats)
    KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def report(args) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        for name in SIZES:
            if name in args.parts or (name == "360p" and "workers" in args.parts):
                make_clips(scratch / name, *SIZES[name], args.clips, 2 if args.quick else 4)
            if name in args.parts:
                best = compare(scratch / name, args.repeats)
                table(name, best)
                keep(args, name, best)
        if "workers" in args.parts:
            found = scaling(scratch / "360p", args.repeats)
            say_workers(found)
            keep(args, "workers", found)
        if "memory" in args.parts:
            make_clips(scratch / "small", 160, 120, 4, 4, seconds=2)
            seen = fresh("--memory", scratch / "small", "--count", 100 if args.quick else 1000)
            say_memory(seen)
            keep(args, "memory", seen)
        if "tokens" in args.parts:
            found = fresh("--tokens", 500 if args.quick else 4000)
            say_tokens(found)
            keep(args, "tokens", found)


def make_clips(folder: Path, width: int, height: int, n: int, distinct: int, **more) -> None:
    "`n` clips, of which `distinct` are different."
    folder.mkdir()
    for k in range(n):
        if k < distinct:
            make_clip(folder / f"{k:02d}.mp4", width, height, k, **more)
        else:
            shutil.copy(folder / f"{k % distinct:02d}.mp4", folder / f"{k:02d}.mp4")


def say_workers(f: dict) -> None:
    print(
        f"\n360p, clips per second: one process {f['one']:.2f}, --workers 2 {f['two']:.2f}, two independent runs together {f['apart']:.2f};"
        f" --workers 2 / two runs {f['two'] / f['apart']:.2f} (target 0.9)",
        flush=True,
    )


def say_memory(seen: list) -> None:
    print(
        "\nmemory of the run and its children, MB, at every tenth of the clips:",
        *(f"{m:.0f}" for m in seen),
        f"; last / second {seen[-1] / seen[1]:.2f}",
        flush=True,
    )


def say_tokens(f: dict) -> None:
    print(
        f"\nreading tokens: {f['ours']:.2f} s, webdataset {f['webdataset']:.2f} s, ratio {f['ours'] / f['webdataset']:.2f}",
        flush=True,
    )


def table(name: str, best: dict) -> None:
    peers = best["decode_all"], best["moviepy_sound"], best["moviepy_plain"]
    rows = (
        ("(a) PyAV, every frame thrown away", "decode_all", ""),
        ("(b) moviepy, target_resolution, with sound", "moviepy_sound", ""),
        ("    the same, pictures only", "moviepy_small", ""),
        ("(c) moviepy, plain, pictures only", "moviepy_plain", ""),
        ("ours: pictures", "our_pictures", f"target: {0.95 if name == '360p' else 0.8} of (a)"),
        ("ours: the whole of curation", "curation", "target: 1.2 of (a), 0.6 of (b)"),
    )
    print(f"\n{name}: CPU seconds per clip                       s       / (a)   / (b)   / (c)")
    for title, key, note in rows:
        print(
            f"  {title:42} {best[key]:7.3f}  "
            + " ".join(f"{best[key] / p:6.2f} " for p in peers)
            + f"  {note}"
        )
    print(f"  200,000 such clips: {200_000 * best['curation'] / 3600:.0f} core-hours", flush=True)


PARTS = ("360p", "720p", "workers", "memory", "tokens")
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few clips, one pass")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--clips", type=int, help="clips of each size")
    parser.add_argument("--repeats", type=int, help="passes, of which the best counts")
    parser.add_argument("--measure", nargs=2, metavar=("METHOD", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--shard", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--memory", metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, default=1000, help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.clips, args.repeats = (
        args.clips or (4 if args.quick else 16),
        args.repeats or (1 if args.quick else 3),
    )
    if args.measure:
        print(json.dumps(measure(args.measure[0], Path(args.measure[1]), args.workers, args.shard)))
    elif args.memory:
        print(json.dumps(memory(Path(args.memory), args.count)))
    elif args.tokens:
        print(json.dumps(tokens(args.tokens)))
    else:
        report(args)
