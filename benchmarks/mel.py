"""What the mel spectrogram of ten seconds of sound costs, beside torchaudio's and librosa's.

`python benchmarks/mel.py` takes a few seconds, prints a table and writes benchmarks/mel.json. All of them
run in one process on one thread and in turns, and what counts is CPU time: so a busy machine changes the
milliseconds but hardly the ratios.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # not this folder, whose scripts bear the names of packages
os.environ["OMP_NUM_THREADS"] = "1"


def calls() -> dict:
    "Every way to the spectrogram, by name; the first is the one that the others are compared with."
    import librosa
    import torch
    from scene4m.base.core import import_torchaudio
    from scene4m.mel import MelFrontEnd, mel_power

    torch.set_num_threads(1)
    wave = 0.1 * torch.randn(160_000, generator=torch.Generator().manual_seed(0))
    array = wave.numpy()
    peer = import_torchaudio().transforms.MelSpectrogram(
        16_000, n_fft=1024, hop_length=256, n_mels=80
    )
    front = MelFrontEnd()
    torch.testing.assert_close(mel_power(wave), peer(wave), rtol=1e-5, atol=0.0)

    def by_librosa():
        return librosa.feature.melspectrogram(
            y=array,
            sr=16_000,
            n_fft=1024,
            hop_length=256,
            n_mels=80,
            htk=True,
            norm=None,
            pad_mode="reflect",
        )

    return {
        "torchaudio, power": lambda: peer(wave),
        "librosa, power": by_librosa,
        "scene4m, power": lambda: mel_power(wave),
        "scene4m, checked, in dB, normalised": lambda: front(wave),
    }


def measure(rounds: int) -> dict:
    "Lowest and median CPU milliseconds of every call, and the ratios of both to the first one's."
    ways = calls()
    for call in ways.values():
        call()
        call()
    times = {name: [] for name in ways}
    for _ in range(rounds):
        for name, call in ways.items():
            start = time.thread_time()
            call()
            times[name].append(1000 * (time.thread_time() - start))
    lowest, median = min(times["torchaudio, power"]), statistics.median(times["torchaudio, power"])
    return {
        name: dict(
            lowest_ms=round(min(t), 2),
            median_ms=round(statistics.median(t), 2),
            lowest_ratio=round(min(t) / lowest, 2),
            median_ratio=round(statistics.median(t) / median, 2),
        )
        for name, t in times.items()
    }


def report(found: dict) -> None:
    print(f"{'':38} lowest ms  median ms   ratio to torchaudio (lowest, median)")
    for name, r in found.items():
        print(
            f"{name:38} {r['lowest_ms']:9.2f} {r['median_ms']:10.2f} "
            f"{r['lowest_ratio']:13.2f} {r['median_ratio']:8.2f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "mel.json")
    args = parser.parse_args()
    found = measure(args.rounds)
    report(found)
    args.out.write_text(
        json.dumps(dict(rounds=args.rounds, threads=1, ways=found), indent=2) + "\n"
    )
