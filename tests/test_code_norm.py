"Tokenizers have no norm before the codebook; those whose weights hold one keep it."

import pytest
import torch

from scene4m.audio_tokenizer import AudioTokenizer, AudioTokenizerConfig
from scene4m.scene_model import SHIPPED
from scene4m.base.core import read_json
from scene4m.video_tokenizer import VideoTokenizer, VideoTokenizerConfig
from scene4m.vq import CodeNorm, load_tokenizer

NEW = [
    (
        AudioTokenizer,
        AudioTokenizerConfig(width=16, blocks=1, dim=8, codes=16),
        torch.randn(2, 80, 96),
    ),
    (
        VideoTokenizer,
        VideoTokenizerConfig(width=16, blocks=1, dim=8, codes=16),
        torch.randn(2, 3, 16, 32, 32),
    ),
]


@pytest.mark.parametrize("cls, config, batch", NEW)
def test_new_ones_have_none(cls, config, batch):
    tok = cls(config)
    assert not any("norm.norm" in name for name in tok.state_dict())
    latents = tok.eval().encoder(batch).flatten(1, -2)
    assert torch.equal(tok.to_latents(batch)[0], latents)


@pytest.mark.parametrize("cls, config, batch", NEW)
def test_weights_with_a_norm_bring_it_along(cls, config, batch, tmp_path):
    old = cls(config)
    old.norm = CodeNorm(8)
    old.norm.norm.running_mean.normal_()
    old.norm.norm.running_var.fill_(4.0)
    old.eval().save_pretrained(tmp_path)
    again = cls.from_pretrained(tmp_path)
    assert again.fingerprint == old.fingerprint
    assert torch.equal(again.to_latents(batch)[0], old.to_latents(batch)[0])
    assert not torch.equal(again.to_latents(batch)[0], again.encoder(batch).flatten(1, -2))


def test_those_of_the_package_are_what_they_were():
    known = read_json(SHIPPED / "describe.json")["fingerprints"]
    for sense in ("audio", "video"):
        tok = load_tokenizer(SHIPPED / f"{sense}_tokenizer")
        assert tok.fingerprint == known[sense] and isinstance(tok.norm, CodeNorm)
