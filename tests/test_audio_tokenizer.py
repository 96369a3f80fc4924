"The audio tokenizer: the paper's settings, clips of any length, a start on principal axes, and training that can be stopped."

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from scene4m.audio_tokenizer import (
    AudioTokenizer,
    AudioTokenizerConfig,
    PatchEncoder,
    fill_padding,
    join_patches,
    mel_patches,
    real_patches,
)
from scene4m.base.core import BadInput, ConfigMismatch
from scene4m.mel import MelFrontEnd, pad_mels, silence
from scene4m.vq import TokenizerTrainer, load_tokenizer, train_tokenizer

torch.set_num_threads(1)
SMALL = AudioTokenizerConfig(width=24, blocks=1, dim=8, codes=32)


@pytest.fixture(scope="module")
def mels():
    "Forty sounds of two seconds, tones that rise in noise: float16 (40, 80, 144), the last columns of two patches of 48 among them."
    rng, t = np.random.default_rng(0), np.arange(36_864) / 16_000
    waves = [
        0.3 * np.sin(2 * np.pi * (f * t + rise * t**2)) * (np.sin(2 * np.pi * rate * t) > 0)
        + 0.01 * rng.standard_normal(len(t))
        for f, rise, rate in zip(
            rng.uniform(150, 3000, 40), rng.uniform(-50, 300, 40), rng.uniform(0.5, 3, 40)
        )
    ]
    return np.stack([MelFrontEnd()(w.astype(np.float32)).numpy() for w in waves]).astype(np.float16)


def trained(mels, steps=60, seed=0, **settings):
    tok = AudioTokenizer(replace(SMALL, seed=seed))
    return tok, train_tokenizer(
        tok,
        mels,
        tok.training_config(steps=steps, batch_size=8, precision="fp32", seed=seed, **settings),
        show=False,
    )


def test_the_papers_network_and_its_training():
    tok = AudioTokenizer(AudioTokenizerConfig("paper"))
    c = tok.training_config()
    convolutions = [m for m in tok.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    assert [(m.in_channels, m.out_channels) for m in convolutions] == [
        (1, 128),
        (128, 64),
        (64, 128),
        (128, 1),
    ]
    assert not [m for m in tok.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert (
        tok.quantizer.mode == "gradient"
        and isinstance(tok.quantizer.codebook, nn.Parameter)
        and tok.quantizer.codebook.shape == (512, 64)
    )
    assert (c.epochs, c.batch_size, c.lr, c.codebook_lr, c.beta, c.beta_epochs, c.axes) == (
        20,
        32,
        1e-3,
        1e-4,
        (0.01, 0.25),
        5,
        0,
    )
    assert c.schedule == "constant" and c.continuous == 0


def test_the_papers_codebook_learns_by_its_own_rate_and_beta_rises(mels):
    tok = AudioTokenizer(AudioTokenizerConfig("paper"))
    c = tok.training_config(batch_size=8)
    trainer = TokenizerTrainer(tok, mels, c)
    betas, before = [], tok.quantizer.codebook.detach().clone()
    for step in range(30):
        trainer.step(step, 100)
        betas.append(tok.quantizer.beta)
    rates = {g["params"][0].shape: g["lr"] for g in trainer.optimizer.param_groups}
    assert rates[torch.Size([512, 64])] == 1e-4 and sorted(rates.values()) == [1e-4, 1e-3]
    assert (
        betas[0] == 0.01
        and betas[25:] == [0.25] * 5
        and np.allclose(np.diff(betas[:26]), 0.24 / 25)
    )
    assert not torch.equal(before, tok.quantizer.codebook) and int(tok.quantizer.updates) == 30


def test_the_papers_preset_keeps_its_length_unless_another_is_asked_for():
    tok = AudioTokenizer(AudioTokenizerConfig("paper"))
    assert tok.training_config(steps=5).epochs is None and tok.training_config(seed=3).epochs == 20
    with pytest.raises(BadInput, match="exactly one"):
        AudioTokenizer(SMALL).training_config()


def test_patches_and_back():
    x = torch.randn(2, 80, 96)
    assert torch.equal(join_patches(mel_patches(x, (16, 48)), (16, 48)), x)
    assert torch.equal(mel_patches(x, (16, 48))[1, 1, 2], x[1, 32:48, 48:].flatten())


@pytest.mark.parametrize("preset", ["ours", "paper"])
@pytest.mark.parametrize("columns", [1, 47, 48, 49, 624, 700])
def test_clips_of_any_length(preset, columns):
    tok = AudioTokenizer(AudioTokenizerConfig(preset, width=16, dim=8, codes=16)).eval()
    x = torch.randn(2, 80, columns)
    ids = tok.encode(x)
    assert ids.dtype == torch.int64 and ids.shape == (2, 5 * -(-columns // 48)) == (
        2,
        np.prod(tok.grid(x.shape)),
    )
    assert tok.decode(ids, x.shape).shape == x.shape and tok.grid_of(ids.shape[1]) == tok.grid(
        x.shape
    )


def test_a_padded_clip_is_read_as_if_alone(mels):
    tok, _ = trained(mels, steps=20)
    alone = [torch.from_numpy(mels[0, :, :60]).float(), torch.from_numpy(mels[1]).float()]
    batch, lengths = pad_mels(alone, pad=7.0)
    ids = tok.encode(batch, lengths)
    assert torch.equal(ids[0, :10], tok.encode(alone[0][None])[0]) and torch.equal(
        ids[1], tok.encode(alone[1][None])[0]
    )
    assert torch.equal(ids, tok.encode(torch.where(batch == 7.0, -3.0, batch), lengths))


def test_padded_columns_enter_neither_loss_nor_codebook_nor_start(mels):
    lengths, results = np.full(40, 60), []
    for noise in (0.0, 50.0):
        x = mels.copy()
        x[:, :, 60:] = noise
        tok = AudioTokenizer(SMALL)
        rows = train_tokenizer(
            tok,
            x,
            tok.training_config(steps=12, batch_size=8, precision="fp32"),
            lengths=lengths,
            show=False,
        )
        results.append((tok.state_dict(), rows[-1]["loss"]))
    assert results[0][1] == results[1][1] and all(
        torch.equal(v, results[1][0][k]) for k, v in results[0][0].items()
    )


def test_padding_is_filled_with_silence():
    filled, mask = fill_padding(torch.ones(2, 80, 50), [10, 50], 48, -5.0)
    assert (
        filled.shape == (2, 80, 96)
        and (filled[0, :, 10:] == -5).all()
        and (filled[1, :, :50] == 1).all()
        and (filled[1, :, 50:] == -5).all()
    )
    assert mask.tolist() == [[True, False], [True, True]]


def test_the_start_is_the_best_linear_tokenizer(mels):
    tok = AudioTokenizer(SMALL)
    x = torch.from_numpy(mels).float()
    trainer = TokenizerTrainer(tok, mels, tok.training_config(steps=10, batch_size=8, axes=40))
    trainer.begin()
    tok.eval()
    tok.quantizer.bypass = True
    patches = real_patches(tok, x).double()
    centred = patches - patches.mean(0)
    best = torch.linalg.svdvals(centred)[SMALL.dim :].square().sum() / patches.numel()
    with torch.no_grad():
        error = tok(x)[0].sub(x).square().mean()
    assert abs(error / best - 1) < 0.01
    assert isinstance(tok.encoder, PatchEncoder) and all(
        (b.conv2.weight == 0).all() for b in (*tok.encoder.blocks, *tok.decoder.blocks)
    )


def test_the_start_saves_steps_and_the_papers_network_has_none(mels):
    (_, head), (_, none) = trained(mels, steps=40), trained(mels, steps=40, axes=0)
    assert head[-1]["error"] < 0.8 * none[-1]["error"]
    paper = AudioTokenizer(AudioTokenizerConfig("paper", width=16, dim=8, codes=16))
    before = {k: v.clone() for k, v in paper.state_dict().items()}
    paper.start_from([(torch.from_numpy(mels).float(), None)])
    assert all(torch.equal(v, before[k]) for k, v in paper.state_dict().items())


def test_training_learns_beats_the_mean_spectrum_and_is_seeded(mels):
    tok, rows = trained(mels[:32])
    x = torch.from_numpy(mels[32:]).float()
    error = float((tok.decode(tok.encode(x), x.shape) - x).square().mean())
    mean = float((x - x.mean(-1, keepdim=True)).square().mean())
    assert error < mean and rows[-1]["perplexity"] > 8
    assert (
        trained(mels[:32])[0].fingerprint
        == tok.fingerprint
        != trained(mels[:32], seed=1)[0].fingerprint
    )


def test_encoding_leaves_the_tokenizer_trainable(mels):
    tok = AudioTokenizer(AudioTokenizerConfig("paper", width=16, dim=8, codes=16)).train()
    x = torch.from_numpy(mels[:4]).float()
    tok.encode(x)
    tok.decode(tok.encode(x), x.shape)
    codes = tok.codes(tok.encode(x))
    assert tok.training and not codes.is_inference()
    loss, _ = tok.loss(x)
    loss.backward()
    assert tok.quantizer.codebook.grad is not None


def test_on_disk_with_the_settings_of_its_spectrogram(mels, tmp_path):
    front = MelFrontEnd(norm="paper", statistics=(0.01, 2.5))
    tok = AudioTokenizer(replace(SMALL, mel=front.config))
    again = load_tokenizer(tok.save_pretrained(tmp_path))
    x = torch.from_numpy(mels[:2]).float()
    assert (
        type(again) is AudioTokenizer
        and again.front.statistics == (0.01, 2.5)
        and again.front.config == front.config
    )
    assert (
        again.fingerprint == tok.fingerprint
        and torch.equal(again.encode(x), tok.encode(x))
        and not again.training
    )
    from scene4m.video_tokenizer import VideoTokenizer

    with pytest.raises(ConfigMismatch, match="this is AudioTokenizer, not VideoTokenizer"):
        VideoTokenizer.from_pretrained(tmp_path)


def test_from_a_wave_and_back_to_one():
    tok = AudioTokenizer(SMALL).eval()
    wave = 0.1 * np.sin(np.arange(40_000) / 20).astype(np.float32)
    ids = tok.encode_wave(wave)
    assert (
        ids.shape[0] == 1
        and ids.shape[1] % 5 == 0
        and tok.encode_wave(np.stack([wave, wave])).shape == (2, ids.shape[1])
    )
    heard = tok.hear(ids, samples=40_000)
    assert heard.shape == (1, 40_000) and torch.isfinite(heard).all() and heard.abs().max() <= 1


@pytest.mark.parametrize(
    "wrong, words",
    [
        (torch.zeros(2, 64, 96), "80, T"),
        (torch.zeros(80, 96), "80, T"),
        (torch.zeros(2, 80, 0), "80, T"),
    ],
)
def test_other_shapes_are_refused(wrong, words):
    with pytest.raises(BadInput, match=words):
        AudioTokenizer(SMALL).encode(wrong)


def test_bad_settings_and_ids():
    with pytest.raises(BadInput, match="'huge'"):
        AudioTokenizerConfig("huge")
    with pytest.raises(BadInput, match="patches of 7"):
        AudioTokenizerConfig(patch=(7, 48))
    tok = AudioTokenizer(SMALL)
    with pytest.raises(ConfigMismatch, match="7 ids"):
        tok.decode(torch.zeros(1, 7, dtype=torch.long))
    with pytest.raises(BadInput, match="between 0 and 31"):
        tok.decode(torch.full((1, 65), 32))
    with pytest.raises(BadInput, match="finite"):
        tok.encode_wave(np.full(16_000, np.nan, np.float32))
    assert silence(tok.front) < -1
