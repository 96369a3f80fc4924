"The mel front end beside librosa, on the odd sounds that real data has, and back to sound."

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from scene4m.base.core import BadInput, ClipSpec
from scene4m.base.media import resample
from scene4m.mel import (
    MelFrontEnd,
    band_groups,
    columns_for,
    inverse_bank,
    mel_bank,
    mel_power,
    pad_mels,
    power_spectrum,
    power_statistics,
    real_columns,
    samples_for,
    silence,
)
from scene4m.base.metrics import log_mel_error_db

torch.set_num_threads(1)
RNG = np.random.default_rng(0)


def chirp(seconds=10.0, sr=16_000):
    t = np.arange(int(seconds * sr)) / sr
    return (
        0.4 * np.sin(2 * np.pi * (200 * t + 150 * t**2)) + 0.05 * RNG.standard_normal(len(t))
    ).astype(np.float32)


def test_power_is_librosas():
    librosa = pytest.importorskip("librosa")
    wave = chirp()
    theirs = librosa.feature.melspectrogram(
        y=wave,
        sr=16_000,
        n_fft=1024,
        hop_length=256,
        n_mels=80,
        htk=True,
        norm=None,
        pad_mode="reflect",
    )
    ours = mel_power(torch.from_numpy(wave)).numpy()
    assert ours.shape == theirs.shape == (80, 626)
    assert np.abs(ours - theirs).max() < 2e-5 * theirs.max()
    assert np.abs(10 * np.log10(ours + 1e-4) - 10 * np.log10(theirs + 1e-4)).max() < 0.01


def test_power_is_torchaudios():
    from scene4m.base.core import import_torchaudio

    wave = torch.from_numpy(chirp())
    transform = import_torchaudio().transforms.MelSpectrogram(
        16_000, n_fft=1024, hop_length=256, n_mels=80
    )
    torch.testing.assert_close(mel_power(wave), transform(wave), rtol=2e-6, atol=0.0)


def test_groups_of_bands_are_the_whole_bank():
    for clip in (
        ClipSpec(),
        ClipSpec(n_fft=64, hop=16),
        ClipSpec(n_mels=7),
    ):  # some groups have no rows at all, or too few bands
        whole = torch.zeros(2 * (clip.n_fft // 2 + 1), clip.n_mels)
        first = 0
        for a, b, matrix in band_groups(clip):
            whole[max(a, 0) : b, first : first + matrix.shape[1]] = matrix
            first += matrix.shape[1]
        assert torch.equal(whole[::2], mel_bank(clip)) and torch.equal(whole[1::2], mel_bank(clip))
        wave = torch.from_numpy(chirp(1))
        torch.testing.assert_close(
            mel_power(wave, clip),
            mel_bank(clip).t() @ power_spectrum(wave, clip),
            rtol=1e-5,
            atol=1e-9,
        )


@pytest.mark.parametrize("samples", [1, 700, 160_000, 160_255])
def test_one_wrong_sample_anywhere_is_refused(samples):
    for place in {0, samples // 2, samples - 1}:
        for wrong in (float("nan"), float("inf"), 1e30):
            wave = torch.zeros(samples)
            wave[place] = wrong
            with pytest.raises(BadInput, match="not finite"):
                MelFrontEnd()(wave)


@pytest.mark.parametrize(
    "samples", [1, 2, 255, 512, 513, 1023, 1025, 16_000, 80_000, 160_000, 160_001, 250_000]
)
@pytest.mark.parametrize("norm", ["log", "paper"])
def test_any_length(samples, norm):
    front = MelFrontEnd(norm=norm)
    wave = torch.from_numpy(chirp(16)[:samples])
    mel = front(wave)
    assert mel.shape == (80, columns_for(samples)) and torch.isfinite(mel).all()
    stats = power_statistics(front.power(wave)) if norm == "paper" else None
    if mel.shape[-1] > 1:
        assert front.invert(mel, stats, iterations=2).shape == (samples_for(mel.shape[-1]),)


def test_a_batch_is_its_clips():
    front = MelFrontEnd()
    waves = torch.from_numpy(np.stack([chirp(), 0.01 * chirp()]))
    assert torch.allclose(front(waves), torch.stack([front(w) for w in waves]), atol=1e-4)


ODD = {
    "silence": np.zeros(160_000),
    "constant": np.ones(160_000),
    "nearly silence": np.full(160_000, 1e-20),
    "loud noise": RNG.uniform(-1, 1, 160_000),
    "click": np.eye(1, 160_000)[0],
}
CONFIGS = {
    "log": dict(),
    "paper": dict(norm="paper"),
    "no deviation": dict(norm="paper", statistics=(0.0, 0.0)),
}


@pytest.mark.parametrize("wave", ODD.values(), ids=ODD)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_odd_sounds_stay_finite(wave, config):
    assert torch.isfinite(MelFrontEnd(**config)(wave.astype(np.float32))).all()


def test_the_papers_words_where_they_work():
    front = MelFrontEnd(norm="paper")
    wave = chirp()
    x = front.power(wave).double()
    median = x.flatten().sort().values[(x.numel() - 1) // 2]
    assert torch.allclose(front(wave).double(), torch.log1p((x - median) / x.std()), atol=1e-5)


def test_loud_noise_needs_the_clamp():
    noise = torch.from_numpy(RNG.uniform(-1, 1, 160_000).astype(np.float32))
    power = mel_power(noise)[60:]
    literal = torch.log1p((power - power.median()) / power.std())
    assert literal.isnan().any() and MelFrontEnd(norm="paper")(noise).min() >= np.log(1e-3) - 1e-4


@pytest.mark.parametrize(
    "config",
    [dict(), dict(norm="paper", statistics=(0.001, 3.0)), dict(norm="paper")],
    ids=["log", "data set", "clip"],
)
def test_normalisation_is_undone(config):
    front = MelFrontEnd(**config)
    wave = chirp()
    truth = 10 * torch.log10(front.power(wave) + 1e-4)
    stats = power_statistics(front.power(wave)) if config == dict(norm="paper") else None
    assert (front.db(front(wave), stats) - truth).abs().max() < 0.1


def test_per_clip_statistics_are_asked_for():
    with pytest.raises(BadInput, match="statistics"):
        MelFrontEnd(norm="paper").invert(torch.zeros(80, 10))


@pytest.mark.parametrize("seed", range(3))
def test_listening_back_is_near(seed):
    from scene4m.worlds.toystreet import render_sound, sample_scene

    front = MelFrontEnd()
    mel = front(render_sound(sample_scene(seed)))
    again = front.invert(mel)
    db = front.db(mel)
    assert again.shape == (160_000,) and again.abs().max() <= 1
    assert log_mel_error_db(db, front.db(front(again))) < 1.8


def test_pseudo_inverse():
    bank, inverse = mel_bank().double(), inverse_bank().double()
    assert torch.allclose(bank.t() @ (inverse.t() @ bank.t()), bank.t(), atol=1e-4)


def test_config_and_pickle_carry_everything():
    front = MelFrontEnd(
        ClipSpec(columns=312, seconds=5.0), norm="paper", statistics=(0.1, 2.0), clamp=0.01
    )
    wave = chirp(5)
    for twin in (MelFrontEnd.from_config(front.config), pickle.loads(pickle.dumps(front))):
        assert twin.config == front.config and torch.equal(twin(wave), front(wave))
    import json

    assert MelFrontEnd.from_config(json.loads(json.dumps(front.config))).config == front.config


@pytest.mark.parametrize(
    "wave, words",
    [
        (np.zeros((2, 2, 2)), "shape"),
        (np.zeros(0), "shape"),
        ([0.0, np.inf], "finite"),
        ([np.nan], "finite"),
    ],
)
def test_refused(wave, words):
    with pytest.raises(BadInput, match=words):
        MelFrontEnd()(wave)


def test_padding_keeps_lengths():
    front = MelFrontEnd()
    mels = [front(chirp(s)) for s in (1.0, 2.5)]
    batch, lengths = pad_mels(mels, multiple=48)
    assert (
        lengths.tolist() == [63, 156]
        and batch.shape == (2, 80, 192)
        and (batch[0, :, 63:] == silence()).all()
    )
    assert torch.equal(batch[1, :, :156], mels[1]) and real_columns(lengths, 192).sum(
        -1
    ).squeeze().tolist() == [63, 156]
    assert abs(silence() - float(front(torch.zeros(5000)).mean())) < 1e-6


@pytest.mark.parametrize("rate", [44_100, 48_000, 22_050])
def test_the_resampler_in_front_does_not_alias(rate):
    tone = (0.5 * np.sin(2 * np.pi * 8400 * np.arange(2 * rate) / rate)).astype(np.float32)
    inside = resample(tone, rate, 16_000)[4000:-4000]
    assert 10 * np.log10(np.mean(inside**2) / 0.125) < -100
    kept = resample(
        (0.5 * np.sin(2 * np.pi * 7000 * np.arange(2 * rate) / rate)).astype(np.float32),
        rate,
        16_000,
    )[4000:-4000]
    assert abs(10 * np.log10(np.mean(kept**2) / 0.125)) < 0.1


def test_real_sounds():
    folder = (
        Path(
            os.environ.get(
                "SCENE4M_REAL_CLIPS", Path(__file__).parents[2] / "shared" / "data" / "real"
            )
        )
        / "audio"
    )
    files = sorted(folder.glob("*.flac"))[::60]
    if not files:
        pytest.skip(f"no real sounds in {folder}")
    from scene4m.base.media import read_clip

    front = MelFrontEnd()
    for f in files:
        mel = front(read_clip(f).wave)
        assert (
            mel.shape == (80, 624)
            and torch.isfinite(mel).all()
            and -1.61 < mel.min()
            and mel.max() < 4
        )
