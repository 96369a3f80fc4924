"""What 4M costs at the size of 4M-7 B, with random weights: a training step, and captions word by word.

`python benchmarks/fourm.py` prints the table (about ten minutes on two quiet cores); `--size tiny --rounds 1` looks whether it runs.
The captions are compared, in the same process and in turns, with the same model without its cache and with Hugging Face's T5-base (random
weights, 197 source tokens, 32 new ones, its own cache). Times are wall-clock seconds, medians over the rounds, and CPU seconds of all threads;
the load of the machine stands beside them, for on a busy one only ratios and CPU seconds mean anything. `--only` picks parts.
"""

import argparse
import copy
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # not this folder, whose scripts bear the names of packages
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait shall not count as work
os.environ["TOKENIZERS_PARALLELISM"] = "false"
SIZES = {
    "b": dict(dim=768, encoder_depth=12, decoder_depth=12, num_heads=12),
    "tiny": dict(dim=96, encoder_depth=2, decoder_depth=2, num_heads=4),
}
PARTS = ("step", "caption-1", "caption-16", "text")
WORDS = 32


def fourm(size: str):
    "The model with 4M-7 B's modalities, its matrices tied, random weights."
    import torch
    from scene4m.fourm import FourM
    from scene4m.masking import REGISTRY

    torch.manual_seed(0)
    model = FourM(
        dict(
            SIZES[size],
            domains_in=sorted(REGISTRY),
            domains_out=sorted(m for m in REGISTRY if m != "rgb@224"),
            share_embedding=True,
        )
    )
    with torch.no_grad():
        model.decoder_embeddings["caption"].token_emb.weight[6] = (
            0.0  # [S_2] never has the largest logit: every caption has all its words
        )
    return model.eval()


def pixels(n: int) -> dict:
    "Images of which all 196 patches are seen."
    import torch

    off = torch.zeros(n, 196, dtype=torch.bool)
    return {
        "rgb@224": dict(
            tensor=torch.randn(n, 3, 224, 224, generator=torch.Generator().manual_seed(n)),
            input_mask=off,
            target_mask=~off,
            decoder_attention_mask=off.int(),
        )
    }


def masked_batch(n: int) -> dict:
    "Samples of all modalities, masked as 4M was trained: 128 tokens seen and 128 predicted at most."
    import torch
    from scene4m.masking import FOURM_MIXTURE, REGISTRY, UnifiedMasking, collate

    g = torch.Generator().manual_seed(0)
    mask = UnifiedMasking(list(REGISTRY.values()), 128, 128, list(FOURM_MIXTURE))

    def sample():
        grids = {
            m: torch.randint(x.vocab_size, x.grid, generator=g)
            for m, x in REGISTRY.items()
            if x.vocab_size and not x.is_sequence
        }
        texts = {
            m: torch.randint(4284, 30000, (80,), generator=g).tolist() for m in ("caption", "det")
        }
        return {"rgb@224": torch.randn(3, 224, 224, generator=g), **grids, **texts}

    return collate([mask(sample(), g) for _ in range(n)])


def on(device, batch: dict) -> dict:
    return {m: {k: t.to(device) for k, t in e.items()} for m, e in batch.items()}


def without_cache(model, batch) -> list:
    "The plain way: every word so far goes through the decoder again; logits of the last place only."
    import torch
    from scene4m.generate import encode_once, text_gap

    with torch.inference_mode():
        context, pad = encode_once(model, text_gap(model, batch))
        e = model.decoder_embeddings["caption"]
        ids = torch.full((len(context), 1), 5, device=context.device)
        places = torch.arange(WORDS, device=context.device)
        for t in range(1, WORDS + 1):
            y = model.run_decoder(
                e.content(ids) + e.place(places[:t]),
                context,
                (places[:t] > places[:t, None])[None],
                pad,
            )
            ids = torch.cat([ids, e.to_logits(y[:, -1]).argmax(-1, keepdim=True)], 1)
    return ids[:, 1:].tolist()


def with_cache(model, batch) -> list:
    from scene4m.generate import generate_text

    return generate_text(model, batch, max_tokens=WORDS, keep_specials=True)


def t5(size: str, n: int, device):
    "T5-base with random weights, and the call that writes 32 tokens from 197."
    import torch
    from transformers import T5Config, T5ForConditionalGeneration
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.manual_seed(0)
    c = SIZES[size]
    d, h = c["dim"], c["num_heads"]
    model = (
        T5ForConditionalGeneration(
            T5Config(
                vocab_size=32128,
                d_model=d,
                d_kv=d // h,
                d_ff=4 * d,
                num_layers=c["encoder_depth"],
                num_heads=h,
                num_decoder_layers=c["decoder_depth"],
                decoder_start_token_id=0,
            )
        )
        .eval()
        .to(device)
    )
    source = torch.randint(3, 32000, (n, 197), generator=torch.Generator().manual_seed(1)).to(
        device
    )

    def write():
        with torch.inference_mode():
            out = model.generate(
                source,
                attention_mask=torch.ones_like(source),
                do_sample=False,
                num_beams=1,
                min_new_tokens=WORDS,
                max_new_tokens=WORDS,
            )
        return out[:, 1:].tolist()

    return write


# ---------------------------------------------------------------- measuring


def sync():
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def once(f) -> tuple:
    "Wall and CPU seconds of a call."
    sync()
    cpu, wall = time.process_time(), time.perf_counter()
    f()
    sync()
    return time.perf_counter() - wall, time.process_time() - cpu


def in_turns(calls: dict, rounds: int) -> dict:
    "Medians (wall, CPU) of every call, one of each per round; each has run before."
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, f in calls.items():
            times[name].append(once(f))
    return {name: [statistics.median(t) for t in zip(*ts)] for name, ts in times.items()}


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (
        30 if sys.platform == "darwin" else 20
    )


def measure_step(size: str, rounds: int, compiled: bool) -> dict:
    "Forward and backward of eight samples, 128 + 128 tokens: float32, then bfloat16 autocast, and compiled blocks where asked for."
    import torch
    from scene4m.base.core import pick_device

    device = pick_device()
    model, batch = fourm(size).train().to(device), on(device, masked_batch(8))
    used = model(batch, 128, 128)
    tokens = [int((~s.pad).sum()) / 8 for s in (used.encoder, used.decoder)]
    del used

    def step(bf16: bool):
        model.set_attention("plain" if bf16 and device.type == "cpu" else "sdpa")
        model.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = model(batch, 128, 128).loss
        loss.backward()

    step(False)
    step(False)
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else peak_gb()
    step(True)
    found = in_turns(
        {"float32": lambda: step(False), "bfloat16 autocast": lambda: step(True)}, rounds
    )
    if compiled:
        for block in (*model.encoder, *model.decoder):
            block.compile()
        step(False)
        step(True)
        found |= in_turns(
            {
                "float32, compiled blocks": lambda: step(False),
                "bfloat16 autocast, compiled": lambda: step(True),
            },
            rounds,
        )
    return dict(
        times=found,
        memory=memory,
        tokens=tokens,
        parameters=sum(p.numel() for p in model.parameters()),
    )


def measure_captions(size: str, rounds: int, n: int) -> dict:
    "32 tokens from 196 patches, each way in turn."
    import torch
    from scene4m.base.core import pick_device

    device = pick_device()
    model, batch = fourm(size).to(device), on(device, pixels(n))
    half = copy.deepcopy(model).bfloat16()
    same = with_cache(model, batch) == without_cache(model, batch)
    calls = {
        "cached": lambda: with_cache(model, batch),
        "without cache": lambda: without_cache(model, batch),
        "T5-base": t5(size, n, device),
        "cached, bfloat16 weights": lambda: with_cache(half, batch),
    }
    lengths = {name: {len(t) for t in f()} for name, f in calls.items()}
    assert all(v == {WORDS} for v in lengths.values()), lengths
    return dict(times=in_turns(calls, rounds), same=same, threads=torch.get_num_threads())


def measure_text(size: str, rounds: int, n: int = 120) -> dict:
    "Which share of clips of the toy street get the same greedy sentence from the checkpoint in the package in fewer bits, and which the same meaning."
    import torch
    from scene4m.worlds import toystreet
    from scene4m.worlds.street import parse_caption
    from scene4m.describe import ClipArrays, seen_batch, tokenize_arrays
    from scene4m.scene_model import SceneModel
    from scene4m.generate import generate_text

    checkpoint = SceneModel.from_pretrained(device="cpu")
    clips = []
    n = n if size == "b" else 4
    for scene in (
        s for s in map(toystreet.sample_scene, range(10**6, 2 * 10**6)) if s.seen and s.heard
    ):
        frames, wave = toystreet.street_clip(scene)
        mel = checkpoint.front(torch.from_numpy(wave)).numpy()
        clips.append(ClipArrays(frames, mel, dict(audio="used", video="used")))
        if len(clips) == n:
            break
    batch = seen_batch(tokenize_arrays(checkpoint, clips).ids)
    model, decode = checkpoint.model, checkpoint.text.decode
    want = generate_text(model, batch, max_tokens=40)
    meant = [parse_caption(decode(t)) for t in want]
    ways = {
        "bfloat16 weights": generate_text(copy.deepcopy(model).bfloat16(), batch, max_tokens=40),
    }

    def share(got, known):
        return sum(a == b for a, b in zip(got, known)) / n

    return dict(
        clips=n,
        same={
            name: (share(got, want), share([parse_caption(decode(t)) for t in got], meant))
            for name, got in ways.items()
        },
    )


# ---------------------------------------------------------------- the table


def processor() -> str:
    "The processor's name and what it has for bfloat16 and small whole numbers."
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    name = next(
        (x.split(":")[1].strip() for x in text.splitlines() if x.startswith("model name")),
        platform.machine(),
    )
    return f"{name} ({', '.join(f for f in ('avx512f', 'avx512_bf16', 'avx512_vnni', 'amx_bf16') if f in text) or 'none of avx512, amx'})"


def load() -> str:
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def fresh(part: str, args) -> dict:
    "Measures one part in a process of its own, so that its memory is its own."
    call = [
        sys.executable,
        __file__,
        "--measure",
        part,
        "--size",
        args.size,
        "--rounds",
        str(args.rounds),
        *(["--compile"] if args.compile else []),
    ]
    before = load()
    done = subprocess.run(
        call,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(args.threads)},
    )
    if done.returncode:
        sys.exit(f"{part}: the measurement failed")
    return dict(json.loads(done.stdout.splitlines()[-1]), load=f"{before} before, {load()} after")


def line(name, wall, cpu, *more):
    print(f"  {name:30} {wall:8.2f} {cpu:8.2f}   " + "   ".join(more), flush=True)


def print_step(got: dict):
    base = got["times"]["float32"]
    print(
        f"\nTraining step, batch 8, at most 128 + 128 tokens (on average {got['tokens'][0]:.0f} + {got['tokens'][1]:.0f}), "
        f"{got['parameters'] / 1e6:.0f} million weights; load {got['load']}\n  {'':30} {'wall s':>8} {'CPU s':>8}   wall against float32"
    )
    for name, (wall, cpu) in got["times"].items():
        line(
            name,
            wall,
            cpu,
            f"{wall / base[0]:.2f}" + ("   (at most 8.3 s quiet)" if name == "float32" else ""),
        )
    print(f"  peak memory in float32, weights tied: {got['memory']:.2f} GB (at most 4.5)")


def print_captions(n: int, got: dict):
    plain, peer = got["times"]["without cache"], got["times"]["T5-base"]
    print(
        f"\nCaptions of {WORDS} tokens from 196 patches, batch {n}; load {got['load']}; the same words with and without cache: {got['same']}\n"
        f"  {'':30} {'wall s':>8} {'CPU s':>8}   tokens/s   times as fast as without cache, as T5-base (CPU seconds in brackets)"
    )
    for name, (wall, cpu) in got["times"].items():
        line(
            name,
            wall,
            cpu,
            f"{n * WORDS / wall:7.1f}",
            f"{plain[0] / wall:5.2f} ({plain[1] / cpu:.2f})",
            f"{peer[0] / wall:5.2f} ({peer[1] / cpu:.2f})",
        )


def report(args):
    import torch

    print(
        f"{processor()}; torch {torch.__version__}, {args.threads} threads; {'4M-7 B' if args.size == 'b' else 'tiny model'}; {args.rounds} rounds"
    )
    for part in args.only:
        got = fresh(part, args)
        if part == "step":
            print_step(got)
        elif part == "text":
            print(
                f"\nGreedy sentences of the checkpoint in the package, {got['clips']} clips: how many keep every word (how many keep their meaning)"
            )
            for name, (words, meaning) in got["same"].items():
                print(f"  {name:30} {words:7.0%} ({meaning:.0%})", flush=True)
        else:
            print_captions(int(part.split("-")[1]), got)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), default="b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=max(1, min(8, os.cpu_count() or 1)))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument(
        "--compile", action="store_true", help="measure compiled blocks too (worth it on a GPU)"
    )
    parser.add_argument("--measure", choices=PARTS)
    args = parser.parse_args()
    if not args.measure:
        report(args)
    elif args.measure == "step":
        print(json.dumps(measure_step(args.size, args.rounds, args.compile)))
    elif args.measure == "text":
        print(json.dumps(measure_text(args.size, args.rounds)))
    else:
        print(json.dumps(measure_captions(args.size, args.rounds, int(args.measure.split("-")[1]))))
