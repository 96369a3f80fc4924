"The video tokenizer: the paper's network, a loss that looks where things move, any size, and training that can be stopped."

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import scene4m
from scene4m.base.core import BadInput, ConfigMismatch
from scene4m.base.metrics import moving_psnr, psnr
from scene4m.video_tokenizer import (
    Conv3x3x3,
    PaperDecoder,
    PatchEncoder,
    ResidualBlock,
    VideoTokenizer,
    VideoTokenizerConfig,
    from_patches,
    motion_weights,
    to_patches,
)
from scene4m.vq import TokenizerTrainer, load_tokenizer, train_tokenizer

torch.set_num_threads(1)
SMALL = VideoTokenizerConfig(width=16, blocks=1, dim=8, codes=32)


@pytest.fixture(scope="module")
def frames():
    "Forty clips of a bright square that crosses a shaded wall: uint8 (40, 16, 32, 32, 3)."
    rng, clips = np.random.default_rng(0), []
    for _ in range(40):
        wall = np.linspace(*rng.uniform(40, 180, 2), 32)[:, None, None] + rng.uniform(-30, 30, 3)
        clip = np.broadcast_to(wall, (16, 32, 32, 3)).copy()
        y, x, v = rng.integers(2, 24), rng.uniform(0, 20), rng.uniform(-1, 1)
        colour = rng.uniform(0, 255, 3)
        for t in range(16):
            at = int(np.clip(x + v * t, 0, 26))
            clip[t, y : y + 6, at : at + 6] = colour
        clips.append(clip)
    return np.stack(clips).clip(0, 255).astype(np.uint8)


def trained(frames, steps=60, config=SMALL, seed=0, **settings):
    tok = VideoTokenizer(replace(config, seed=seed))
    return tok, train_tokenizer(
        tok,
        frames,
        tok.training_config(steps=steps, batch_size=8, precision="fp32", seed=seed, **settings),
        show=False,
    )


def rebuild(tok, frames):
    x = tok.to_model(frames)
    return tok.to_frames(tok.decode(tok.encode(x), x.shape)).numpy()


def test_the_papers_network():
    tok = VideoTokenizer(VideoTokenizerConfig("paper"))
    inside = [type(m) for m in tok.encoder.layers]
    assert inside == [
        nn.Conv3d,
        nn.BatchNorm3d,
        nn.ReLU,
        nn.Conv3d,
        nn.BatchNorm3d,
        nn.ReLU,
        nn.Conv3d,
    ]
    out = [type(m) for m in tok.decoder.layers]
    assert out == [
        nn.ConvTranspose3d,
        nn.BatchNorm3d,
        nn.ReLU,
        nn.ConvTranspose3d,
        nn.BatchNorm3d,
        nn.ReLU,
        nn.ConvTranspose3d,
        nn.Tanh,
    ]
    assert (
        tok.vocab_size == 256
        and tok.quantizer.mode == "ema"
        and not list(tok.quantizer.parameters())
        and tok.grid() == (4, 8, 8)
    )
    assert (
        tok.settings.motion_weight == 0
        and tok.quantizer.revive == 0
        and tok.quantizer.decay == 0.99
    )
    assert PaperDecoder(tok.settings)(9 * torch.randn(1, 4, 8, 8, 64)).abs().max() <= 1


def test_the_papers_codebook_is_started_by_kmeans_over_several_clips(frames):
    tok = VideoTokenizer(VideoTokenizerConfig("paper", width=8, dim=8, codes=16))
    c = tok.training_config(steps=100, batch_size=8)
    first = round(c.continuous * 100)
    before = tok.quantizer.codebook.clone()
    trainer = TokenizerTrainer(tok, frames, c)
    logs = [trainer.step(step, 100) for step in range(first + 1)]
    assert first >= 1 and [bool(log["bypass"]) for log in logs] == [True] * first + [False]
    assert (
        not torch.allclose(tok.quantizer.codebook, before, atol=0.1)
        and logs[-1]["ids"].unique().numel() > 8
    )


def test_patches_and_back():
    x = torch.randn(2, 3, 8, 16, 24)
    p = to_patches(x, (4, 8, 12))
    assert p.shape == (2, 2, 2, 2, 3 * 4 * 8 * 12) and torch.equal(from_patches(p, (4, 8, 12)), x)
    assert torch.equal(p[1, 1, 0, 1], x[1, :, 4:, :8, 12:].flatten())


def test_the_convolution_is_torchs():
    ours, theirs = Conv3x3x3(4), nn.Conv3d(4, 4, 3, padding=1, bias=False)
    x = torch.randn(2, 3, 4, 5, 6)
    with torch.no_grad():
        ours.conv.weight.copy_(theirs.weight.movedim(2, 1).flatten(1, 2))
    assert torch.allclose(ours(x), theirs(x.movedim(2, 1)).movedim(1, 2), atol=1e-5)
    assert ResidualBlock(4)(x).shape == x.shape


@pytest.mark.parametrize(
    "config, shape, grid",
    [
        (SMALL, (16, 32, 32), (2, 8, 8)),
        (SMALL, (8, 64, 48), (1, 16, 12)),
        (replace(SMALL, patch=(4, 8, 8)), (32, 32, 32), (8, 4, 4)),
        (VideoTokenizerConfig("paper", width=4, dim=4, codes=8), (8, 64, 32), (2, 16, 8)),
    ],
)
def test_clips_of_any_size_that_patches_fit(config, shape, grid):
    tok = VideoTokenizer(config).eval()
    x = torch.rand(2, 3, *shape) * 2 - 1
    ids = tok.encode(x)
    assert (
        ids.shape == (2, np.prod(grid))
        and ids.dtype == torch.int64
        and tok.grid(x.shape) == grid == tok.grid((2, *shape, 3))
    )
    assert tok.decode(ids, x.shape).shape == x.shape and tok.codes(ids).shape == (
        2,
        np.prod(grid),
        config.dim,
    )


def test_frames_survive_the_way_to_the_model_and_back(frames):
    tok = VideoTokenizer(SMALL)
    x = tok.to_model(frames)
    assert (
        x.shape == (40, 3, 16, 32, 32)
        and x.min() >= -1
        and x.max() <= 1
        and np.array_equal(tok.to_frames(x).numpy(), frames)
    )


def test_weights_of_the_loss_lie_where_things_move():
    x = torch.zeros(1, 3, 16, 32, 32)
    x[0, :, 4, 10:14, 10:14] = 1.0
    w = motion_weights(x, 4.0)
    assert abs(float(w.mean()) - 1) < 1e-5 and torch.allclose(
        w[0, 0, 4, 12, 12] / w[0, 0, 0, 0, 0], torch.tensor(5.0)
    )
    assert w[0, 0, 5, 12, 12] == w[0, 0, 0, 0, 0] and (motion_weights(x, 0) == 1).all()
    tok = VideoTokenizer(SMALL)
    lost = torch.zeros_like(x)
    assert tok.error(lost, x) > 4 * VideoTokenizer(replace(SMALL, motion_weight=0.0)).error(lost, x)


def test_the_start_is_the_best_linear_tokenizer(frames):
    tok = VideoTokenizer(SMALL)
    x = tok.to_model(frames)
    trainer = TokenizerTrainer(tok, frames, tok.training_config(steps=10, batch_size=8, axes=40))
    trainer.begin()
    tok.eval()
    tok.quantizer.bypass = True
    patches = to_patches(x, SMALL.patch).flatten(0, 3).double()
    best = (
        torch.linalg.svdvals(patches - patches.mean(0))[SMALL.dim :].square().sum()
        / patches.numel()
    )
    with torch.no_grad():
        error = tok(x)[0].sub(x).square().mean()
    assert abs(error / best - 1) < 0.01 and isinstance(tok.encoder, PatchEncoder)


def test_the_start_saves_steps(frames):
    (_, head), (_, none) = trained(frames, steps=40), trained(frames, steps=40, axes=0)
    assert head[-1]["error"] < 0.8 * none[-1]["error"]


def test_what_moves_survives_better_than_in_one_colour_and_training_is_seeded(frames):
    tok, rows = trained(frames[:32], steps=80)
    held = frames[32:]
    rebuilt = rebuild(tok, held)
    colour = np.broadcast_to(
        held.mean((1, 2, 3), keepdims=True).round().astype(np.uint8), held.shape
    )
    assert (
        psnr(held, rebuilt) > psnr(held, colour) + 1
        and moving_psnr(held, rebuilt) > moving_psnr(held, colour) + 1
    )
    assert rows[-1]["perplexity"] > 8
    assert (
        trained(frames[:32], steps=80)[0].fingerprint
        == tok.fingerprint
        != trained(frames[:32], steps=80, seed=1)[0].fingerprint
    )


def test_on_disk(frames, tmp_path):
    tok = VideoTokenizer(SMALL)
    again = load_tokenizer(tok.save_pretrained(tmp_path))
    x = tok.to_model(frames[:3])
    assert (
        type(again) is VideoTokenizer
        and again.settings == SMALL
        and again.fingerprint == tok.fingerprint
    )
    assert torch.equal(again.encode(x), tok.eval().encode(x))
    from scene4m.audio_tokenizer import AudioTokenizer

    with pytest.raises(ConfigMismatch, match="this is VideoTokenizer, not AudioTokenizer"):
        AudioTokenizer.from_pretrained(tmp_path)


def test_the_tokenizer_in_the_package_rebuilds_a_street_it_never_saw():
    from scene4m.worlds.toystreet import render_frames, sample_scene, street_seed

    tok = load_tokenizer(Path(scene4m.__file__).parent / "pretrained" / "video_tokenizer")
    held = np.stack(
        [
            render_frames(sample_scene(street_seed("test", i)), np.arange(16) / 1.6, 32)
            for i in range(12)
        ]
    )
    colour = np.broadcast_to(
        held.mean((1, 2, 3), keepdims=True).round().astype(np.uint8), held.shape
    )
    assert (
        psnr(held, rebuild(tok, held)) > psnr(held, colour) + 3
        and moving_psnr(held, rebuild(tok, held)) > moving_psnr(held, colour) + 1
    )


@pytest.mark.parametrize(
    "wrong, words",
    [
        (torch.zeros(1, 3, 12, 32, 32), "cannot be cut"),
        (torch.zeros(1, 3, 16, 30, 32), "cannot be cut"),
        (torch.zeros(1, 16, 32, 32, 3), "3, T, H, W"),
        (torch.zeros(3, 16, 32, 32), "3, T, H, W"),
    ],
)
def test_other_shapes_are_refused(wrong, words):
    with pytest.raises(BadInput, match=words):
        VideoTokenizer(SMALL).encode(wrong)


def test_bad_settings_and_ids():
    with pytest.raises(BadInput, match="ours or paper"):
        VideoTokenizerConfig("huge")
    with pytest.raises(BadInput, match="even"):
        VideoTokenizer(VideoTokenizerConfig("paper", patch=(6, 4, 4)))
    tok = VideoTokenizer(SMALL)
    with pytest.raises(ConfigMismatch, match="100 ids"):
        tok.decode(torch.zeros(1, 100, dtype=torch.long))
    with pytest.raises(BadInput, match="between 0 and 31"):
        tok.decode(torch.full((1, 128), 32))
