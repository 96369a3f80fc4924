"""`FourM` beside the original, apple/ml-4m, in one process and in turns: a training step of 4M-7 B, and captions.

    git clone https://github.com/apple/ml-4m && pip install einops
    python benchmarks/beside_4m.py ml-4m

Both have random weights and get the same batches. It prints CPU seconds and the ratio of ours to theirs (lowest
and median over the rounds), and writes benchmarks/beside_4m.json. CPU seconds of one thread by default: what else
the machine does changes them less than it changes the clock.
"""

import argparse
import importlib.util
import json
import os
import random
import statistics
import sys
import time
import types
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # not this folder, whose scripts bear the names of packages
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait shall not count as work
WORDS = 32
PARTS = ("step", "caption-1", "caption-16")


def stub(name: str, **content) -> types.ModuleType:
    "An empty module in the place of one that ml-4m imports and that this comparison does not call."
    module = types.ModuleType(name)
    module.__path__ = []
    module.__dict__.update(content)
    sys.modules[name] = module
    return module


def import_original(folder: Path) -> types.SimpleNamespace:
    "The parts of ml-4m that are compared, without what the rest of it needs installed."
    if not (folder / "fourm" / "models" / "fm.py").is_file():
        sys.exit(f"{folder}: this is no copy of ml-4m; it has no fourm/models/fm.py.")
    stub("fourm").__path__ = [str(folder / "fourm")]
    stub("fourm.utils", get_sentinel_to_id_mapping=None, merge_span_masking=None)
    stub("fourm.utils.timm")
    stub("fourm.utils.timm.registry", register_model=lambda f: f)
    schedules = ("cosine", "linear", "onex_temp", "linear_temp")
    stub(
        "fourm.utils.generation",
        continue_schedule=None,
        **{f"{s}_schedule": None for s in schedules},
    )
    stub("fourm.data")
    stub("fourm.data.modality_info", MODALITY_INFO={})
    from fourm.models import decoder_embeddings, encoder_embeddings, fm, fm_utils, generate

    sample = random.sample  # ml-4m samples from a view of a dict, which Python 3.11 refuses
    fm.random = types.SimpleNamespace(sample=lambda items, n: sample(list(items), n))
    return types.SimpleNamespace(
        reads=encoder_embeddings,
        writes=decoder_embeddings,
        model=fm.FourM,
        norm=fm_utils.LayerNorm,
        sampler=generate.GenerationSampler,
    )


def original_model(original, size: dict):
    "ml-4m's model of the same size and modalities, and the table of modalities that it looks at."
    import torch
    from scene4m.masking import REGISTRY

    about, reads, writes = {}, {}, {}
    for i, (name, m) in enumerate(sorted(REGISTRY.items())):
        kind, length = ("seq", 256) if m.is_sequence else ("img", 196)
        about[name] = dict(id=i + 1, type=kind, max_tokens=length, vocab_size=m.vocab_size)
        if name == "rgb@224":
            reads[name] = original.reads.ImageEncoderEmbedding(
                num_channels=3, patch_size=16, image_size=224
            )
        elif m.is_sequence:
            shape = dict(vocab_size=m.vocab_size, max_length=256, padding_idx=0)
            reads[name] = original.reads.SequenceEncoderEmbedding(**shape)
            writes[name] = original.writes.SequenceDecoderEmbedding(**shape, share_embedding=True)
        else:
            shape = dict(vocab_size=m.vocab_size, patch_size=16, image_size=224)
            reads[name] = original.reads.ImageTokenEncoderEmbedding(**shape)
            writes[name] = original.writes.ImageTokenDecoderEmbedding(**shape, share_embedding=True)
    torch.manual_seed(0)
    model = original.model(
        reads,
        writes,
        about,
        **size,
        qkv_bias=False,
        proj_bias=False,
        mlp_bias=False,
        gated_mlp=True,
        act_layer=torch.nn.SiLU,
        norm_layer=partial(original.norm, eps=1e-6, bias=False),
    )
    return model, about


def write_caption(original, model, about: dict, image: dict, n: int):
    "ml-4m's own caption of 32 words, one by one."
    import torch

    sampler = original.sampler(model)
    sampler.merge_sequences_batched = lambda batch, out, target, tokenizer: out
    ids = torch.zeros(n, 256, dtype=torch.long)
    ids[:, 0] = 5
    ids[:, 1 : WORDS + 1] = 7
    said = torch.ones(n, 256, dtype=torch.bool)
    said[:, : WORDS + 1] = False
    caption = dict(
        tensor=ids,
        input_mask=torch.ones(n, 256, dtype=torch.bool),
        target_mask=said,
        decoder_attention_mask=torch.zeros(n, 256, dtype=torch.int),
    )
    batch = {"rgb@224": {k: t.clone() for k, t in image.items()}, "caption": caption}
    about["caption"]["max_tokens"] = WORDS
    with torch.no_grad():
        out = sampler.autoregressive_step_batched(batch, "caption", 0.3, 0.0, 0.8, use_eos=False)
    about["caption"]["max_tokens"] = 256
    return out


def pairs(folder: Path, size: str, only) -> dict:
    "For every part two calls, ours and theirs."
    spec = importlib.util.spec_from_file_location("bench_fourm", ROOT / "benchmarks" / "fourm.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    original = import_original(folder)
    theirs, about = original_model(original, bench.SIZES[size])
    ours = bench.fourm(size)
    count = [sum(p.numel() for p in m.parameters()) for m in (ours, theirs)]
    assert count[0] == count[1], f"not the same model: {count} weights"
    batch = bench.masked_batch(8)

    def our_step():
        ours.train().zero_grad()
        ours(batch, 128, 128).loss.backward()

    def their_step():
        theirs.train().zero_grad()
        copy = {
            m: {k: t.clone() for k, t in e.items()} for m, e in batch.items()
        }  # it changes its batch
        theirs(copy, num_encoder_tokens=128, num_decoder_tokens=128, loss_type="mod")[0].backward()

    def captions(n: int) -> tuple:
        image = bench.pixels(n)
        return (
            lambda: bench.with_cache(ours.eval(), image),
            lambda: write_caption(original, theirs.eval(), about, image["rgb@224"], n),
        )

    found = {"step": (our_step, their_step), "caption-1": captions(1), "caption-16": captions(16)}
    return {part: found[part] for part in only}


def measure(calls: tuple, rounds: int) -> dict:
    "CPU seconds of both calls, in turns after one of each that does not count, and what they amount to."
    times = [], []
    for turn in range(rounds + 1):
        for call, seconds in zip(calls, times):
            start = time.process_time()
            call()
            if turn:
                seconds.append(time.process_time() - start)
    ours, theirs = times
    median = statistics.median
    return dict(
        ours_s=[round(t, 2) for t in ours],
        ml4m_s=[round(t, 2) for t in theirs],
        lowest_ratio=round(min(ours) / min(theirs), 3),
        median_ratio=round(median(ours) / median(theirs), 3),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ml4m", type=Path, help="the folder of a copy of apple/ml-4m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--size", choices=("b", "tiny"), default="b", help="`tiny` only looks whether it runs"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "beside_4m.json")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    import torch

    torch.set_num_threads(args.threads)
    found = {}
    for part, calls in pairs(args.ml4m, args.size, args.only).items():
        found[part] = measure(calls, args.rounds)
        ours, theirs = found[part]["ours_s"], found[part]["ml4m_s"]
        print(
            f"{part:12} ours {statistics.median(ours):7.2f} s   ml-4m {statistics.median(theirs):7.2f} s   "
            f"ratio {found[part]['lowest_ratio']:.2f} (lowest) {found[part]['median_ratio']:.2f} (median)",
            flush=True,
        )
    args.out.write_text(
        json.dumps(dict(size=args.size, threads=args.threads, parts=found), indent=2) + "\n"
    )
