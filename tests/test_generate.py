"Generation: with a cache and without it, alone and in a batch, the same tokens come out."
import json, os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scene4m.core import BadInput
from scene4m.fourm import FourM
from scene4m.generate import (CrossMemory, WordCache, candidate_rows, decode_rows, embed_text, encode_once, generate_text, score_text, text_gap)
from scene4m.masking import Pixels, Text, TokenGrid, seen_entry

GOLDEN = Path(os.environ.get("SCENE4M_GOLDEN4M", Path(__file__).parent / "data" / "golden4m"))

@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0); torch.set_num_threads(1)
    m = FourM.toy([TokenGrid("audio", 30, (5, 3)), TokenGrid("video", 40, (2, 3, 3)), Text("caption", 230, 48)], dim=64, encoder_depth=2,
                  decoder_depth=2, num_heads=4, share_embedding=False).eval()
    for name, p in m.named_parameters(): torch.nn.init.normal_(p, std=1.0 if "token_emb" in name else 0.3)
    texts = generate_text(m, batch(6), max_tokens=20); places = {t: [x.index(t) if t in x else 20 for x in texts] for x in texts for t in x}
    word = max(places, key=lambda t: len(set(places[t])))        # the word that comes up at the most different places …
    rows = m.decoder_embeddings["caption"].to_logits.weight.data
    rows[6] = 1.01 * rows[word]                                  # … becomes the end: texts of different lengths
    return m

def batch(n=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return dict(audio=seen_entry(torch.randint(30, (n, 15), generator=g)), video=seen_entry(torch.randint(40, (n, 18), generator=g)))

@torch.no_grad()
def forward_logits(model, b, ids):
    "Logits by the model's own forward pass: the caption as a target, teacher forced."
    given = torch.tensor([[5, *ids, 6]] * len(next(iter(b.values()))["tensor"]))
    first = torch.arange(given.shape[1]) == 0
    entry = dict(tensor=given, input_mask=~first.expand_as(given), target_mask=first.expand_as(given), decoder_attention_mask=(~first).int().expand_as(given))
    out = model({**b, "caption": entry}, order=["caption"])
    return model.decoder_embeddings["caption"].to_logits(out.hidden)

@torch.no_grad()
@pytest.mark.parametrize("hidden", [(), (1,)])
def test_cached_and_uncached_logits_agree(model, hidden):
    b = batch(3)
    for row in hidden: b["video"]["input_mask"][row] = True          # one sample has no picture: the encoder pads
    context, pad = encode_once(model, text_gap(model, b)); assert (pad is not None) == bool(hidden)
    ids = torch.randint(7, 230, (3, 12), generator=torch.Generator().manual_seed(1)); ids[:, 0] = 5
    cache = WordCache(model, CrossMemory(model, context, pad), 12)
    step = torch.stack([cache(ids[:, t]) for t in range(12)], 1)
    whole = model.decoder_embeddings["caption"].to_logits(decode_rows(model, CrossMemory(model, context, pad), embed_text(model, "caption", ids[:, None]), True)[:, 0])
    assert (step - whole).abs().max() < 1e-5

def golden_cases():
    return [p for p in sorted(GOLDEN.glob("*.json")) if any(k.endswith("greedy.caption") for k in json.loads(p.read_text())["outputs"])]

@pytest.mark.parametrize("path", golden_cases(), ids=lambda p: p.stem)
def test_greedy_captions_equal_the_reference(path):
    from safetensors import safe_open
    about, data = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
    c = about["config"]; domains = about["modalities"]
    mods = {}
    for name, m in domains.items():
        if m["type"] == "img" and m.get("num_channels"): mods[name] = Pixels(name, tuple(m["image_size"]), m["patch_size"], m["num_channels"])
        elif m["type"] == "img": mods[name] = TokenGrid(name, m["vocab_size"], tuple(s // m["patch_size"] for s in m["image_size"]), "4m")
        else: mods[name] = Text(name, m["vocab_size"], m["max_tokens"])
    model = FourM({**{k: v for k, v in c.items() if not k.startswith("num_") or k == "num_heads"}, "domains_in": sorted(mods),
                   "domains_out": sorted(m for m in mods if mods[m].in_decoder), "modalities": {m: mods[m].to_config() for m in mods}})
    model.load_state_dict({k[3:]: v for k, v in data.items() if k.startswith("sd.")}); model.eval()
    image = next(n for n in mods if isinstance(mods[n], Pixels)); x = data[f"in.{image}.tensor"]; n = mods[image].num_tokens
    seen = dict(tensor=x, input_mask=torch.zeros(len(x), n, dtype=torch.bool), target_mask=torch.ones(len(x), n, dtype=torch.bool),
                decoder_attention_mask=torch.zeros(len(x), n, dtype=torch.int32))
    want = data["out.greedy.caption"].tolist()
    got = generate_text(model, {image: seen}, max_tokens=len(want[0]) - 1, keep_specials=True)
    for w, g in zip(want, got): assert w[1:1 + len(g)] == g and (len(g) == len(w) - 1 or g[-1] == 6)

def test_a_batch_writes_what_each_sample_writes_alone(model):
    b = batch(6); together = generate_text(model, b, max_tokens=20)
    for i in range(6):
        alone = {m: {k: t[i:i + 1] for k, t in e.items()} for m, e in b.items()}
        assert generate_text(model, alone, max_tokens=20)[0] == together[i]
    lengths = {len(t) for t in together}
    assert len({tuple(t) for t in together}) > 3 and len(lengths) > 2, lengths    # some leave the batch early

def test_scores_are_the_models_own_likelihood(model):
    b = batch(3); captions = [[10, 20, 30], [40, 50, 60, 70, 80]]
    score = score_text(model, b, captions, reduce="sum")
    for j, c in enumerate(captions):
        inputs, targets, valid = candidate_rows([c])
        context, _ = encode_once(model, text_gap(model, b)); cache = WordCache(model, CrossMemory(model, context), len(c) + 2)
        with torch.inference_mode(): logp = sum(cache(inputs[0, t].expand(3)).log_softmax(-1)[:, targets[0, t]] for t in range(len(c) + 2))
        assert torch.allclose(score[:, j], logp, atol=1e-4)
    each = score_text(model, b, [captions] * 3, reduce="sum", chunk=1)
    assert torch.allclose(each, score, atol=1e-5) and score_text(model, b, captions).shape == (3, 2)

def test_nothing_seen_is_a_valid_question(model):
    b = batch(2)
    hidden = {m: dict(e, input_mask=torch.ones_like(e["input_mask"])) for m, e in b.items()}
    assert torch.allclose(score_text(model, hidden, [[10, 20]]), score_text(model, {}, [[10, 20]], rows=2), atol=1e-5)

def test_bad_questions(model):
    with pytest.raises(BadInput, match="cannot write"): generate_text(model, batch(), target="poem")
    with pytest.raises(BadInput, match="no caption"): score_text(model, batch(), [])
    with pytest.raises(BadInput, match="temperature"): generate_text(model, batch(), temperature=-1)
