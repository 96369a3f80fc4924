"""How long a description takes once the model is loaded, from the file on disk to the sentence, against a video captioner of the usual kind.

Run it on a quiet machine: `python benchmarks/describe.py` (a minute or two), or `--quick` for a look. The peer is SpaceTimeGPT's architecture, a
TimeSformer that reads 8 frames of 224 x 224 and a GPT-2 that writes 20 words, with random weights: nothing is downloaded, and time does not depend on
what weights say. Both read the same ten-second clips with the same decoder. Seconds are medians over the clips; calibration is measured too.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path[:] = [
    p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent
]  # scripts beside this one are named like packages


def peer(layers: int = 12):
    "A function from a file to 20 tokens: TimeSformer and GPT-2, both of base size."
    from scene4m.base.core import import_torchaudio

    import_torchaudio()
    import torch
    from transformers import (
        GPT2Config,
        TimesformerConfig,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        logging,
    )
    from scene4m.base.media import FrameSpec, read_clip

    logging.set_verbosity_error()
    eye, tongue = (
        TimesformerConfig(num_hidden_layers=layers),
        GPT2Config(n_layer=layers, is_decoder=True, add_cross_attention=True),
    )
    model = VisionEncoderDecoderModel(
        VisionEncoderDecoderConfig.from_encoder_decoder_configs(eye, tongue)
    ).eval()
    words = dict(
        max_new_tokens=20,
        min_new_tokens=20,
        do_sample=False,
        decoder_start_token_id=0,
        pad_token_id=0,
    )

    @torch.inference_mode()
    def describe(path):
        frames = read_clip(path, specs=(FrameSpec(8, 0.8, 224),)).frames
        return model.generate(
            torch.from_numpy(frames).permute(0, 3, 1, 2)[None].float() / 127.5 - 1, **words
        )

    return describe, sum(p.numel() for p in model.parameters())


def median_seconds(work, items) -> tuple:
    "Median of wall and of CPU seconds per item, after one to warm up."
    work(items[0])
    wall, cpu = [], []
    for item in items:
        a, b = time.perf_counter(), time.process_time()
        work(item)
        wall.append(time.perf_counter() - a)
        cpu.append(time.process_time() - b)
    return statistics.median(wall), statistics.median(cpu)


def calibration(checkpoint, n: int) -> tuple:
    "Wall and CPU seconds of calibrating on `n` clips, tokens given."
    import torch
    from scene4m.describe import ClipArrays, calibrate, tokenize_arrays
    from scene4m.worlds.toystreet import sample_scene, street_clip, street_seed

    scenes = [sample_scene(street_seed("val", i)) for i in range(n)]
    used = dict(audio="used", video="used")
    clips = [
        ClipArrays(f, checkpoint.front(torch.from_numpy(w)).numpy(), used)
        for f, w in map(street_clip, scenes)
    ]
    tokens = tokenize_arrays(checkpoint, clips)
    a, b = time.perf_counter(), time.process_time()
    calibrate(checkpoint, tokens, [s.label for s in scenes])
    return time.perf_counter() - a, time.process_time() - b


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three clips, 40 for the calibration")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    n = 3 if args.quick else 15
    import torch
    from scene4m.describe import Describer
    from scene4m.worlds.toystreet import sample_scene, street_seed, write_scene

    torch.set_num_threads(args.threads)
    a = time.perf_counter()
    describer = Describer.from_pretrained()
    loading = time.perf_counter() - a
    with tempfile.TemporaryDirectory() as folder:
        clips = [
            write_scene(sample_scene(street_seed("test", i)), Path(folder) / f"{i}.mp4")
            for i in range(n)
        ]
        ours = median_seconds(describer, clips)
        other, size = peer()
        theirs = median_seconds(other, clips[: max(3, n // 4)])
    own = sum(p.numel() for p in describer.checkpoint.model.parameters())
    print(
        f"{'a clip of ten seconds, ' + str(args.threads) + ' threads':<44}{'wall s':>9}{'CPU s':>9}{'ratio':>8}"
    )
    print(
        f"{f'scene4m, both senses ({own / 1e6:.1f} M weights)':<44}{ours[0]:>9.2f}{ours[1]:>9.2f}{1:>8.1f}"
    )
    print(
        f"{f'TimeSformer + GPT-2, seen only ({size / 1e6:.0f} M)':<44}{theirs[0]:>9.2f}{theirs[1]:>9.2f}{theirs[1] / ours[1]:>8.1f}"
    )
    clips = 40 if args.quick else 150
    wall, cpu = calibration(describer.checkpoint, clips)
    print(f"{f'calibration on {clips} clips, three ways each':<44}{wall:>9.2f}{cpu:>9.2f}")
    print(f"{'loading the model, once':<44}{loading:>9.2f}")


if __name__ == "__main__":
    main()
