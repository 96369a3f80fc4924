"""The model: files in every layout, bad batches, new modalities, promises of the forward pass."""

import json
import math
import random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from scene4m import fourm_weights
from scene4m.base.core import BadInput, ConfigMismatch, Scene4MError
from scene4m.fourm import FourM
from scene4m.masking import Text, TokenGrid, collate, mask_text, seen_entry

AUDIO, VIDEO, CAPTION = (
    TokenGrid("audio", 16, (3, 5)),
    TokenGrid("video", 20, (2, 2, 3)),
    Text("caption", 230, 24, 32),
)
NAMES = dict(
    domains_in=["rgb@32", "tok_semseg@32"],
    domains_out=["tok_semseg@32"],
    image_size=32,
    patch_size=16,
    norm_bias=False,
    act_layer="SiLU",
)
SHAPE = dict(
    dim=32,
    encoder_depth=2,
    decoder_depth=1,
    num_heads=2,
    mlp_ratio=4.0,
    qkv_bias=False,
    proj_bias=False,
    mlp_bias=False,
    gated_mlp=True,
    qk_norm=False,
)
PAIR = "decoder_embeddings.tok_semseg@32.{}.weight"


def original(**more):
    "A small model of the original's modalities and config keys, untied, nothing at its start value."
    m = FourM({**NAMES, **SHAPE, **more}).eval()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in m.parameters():
            p.add_(torch.randn(p.shape, generator=g) * 0.1)
    return m


def written(folder, model, layout="full", config="json", drop=(), **extra):
    "A folder as the original writes it: every key (`full`), or no tensor twice (`hub`)."
    tensors = {k: t.clone() for k, t in model.state_dict().items()} | extra
    about, keys = {}, {**NAMES, **SHAPE}
    if layout == "hub":
        for name in model.decoder_embeddings:
            key = f"encoder_embeddings.{name}.mod_emb"
            if tensors.pop(key, None) is not None:
                about[key] = f"decoder_embeddings.{name}.mod_emb"
    for part in drop:
        for k in [k for k in tensors if part in k]:
            del tensors[k]
    folder.mkdir(exist_ok=True)
    if config == "json":
        (folder / "config.json").write_text(
            json.dumps(
                dict(keys, drop_path_rate_encoder=0.0, use_act_checkpoint=False, a_later_key="x"),
                sort_keys=True,
            )
        )
    else:
        about |= {
            k: str(v)
            for k, v in dict(keys, drop_path_rate_encoder=0.0, tokenizer_path=None).items()
        }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt", **about})
    return folder


def images(n=2):
    "Pixels that are seen, and two of four tokens that are asked for."
    g = torch.Generator().manual_seed(0)
    hidden = torch.tensor([[True, False, True, False]]).repeat(n, 1)
    seen = seen_entry(torch.zeros(n, 4, dtype=torch.long))
    tok = dict(
        tensor=torch.randint(4096, (n, 2, 2), generator=g),
        input_mask=hidden,
        target_mask=~hidden,
        decoder_attention_mask=torch.tensor([[2, 0, 0, 0]], dtype=torch.int32).repeat(n, 1),
    )
    return {
        "rgb@32": dict(seen, tensor=torch.randn(n, 3, 32, 32, generator=g)),
        "tok_semseg@32": tok,
    }


def scene(seed=0, n=3):
    "A batch of everything our toy model knows: sound and video seen, words asked for."
    g = torch.Generator().manual_seed(seed)

    def one():
        audio, video = torch.randint(16, (15,), generator=g), torch.randint(20, (12,), generator=g)
        length = int(torch.randint(3, 9, (), generator=g))
        words = torch.randint(204, 230, (length,), generator=g).tolist()
        caption = mask_text(CAPTION, words, 0, None, g)
        return dict(audio=seen_entry(audio), video=seen_entry(video), caption=caption)

    return collate([one() for _ in range(n)])


def toy(**config):
    torch.manual_seed(0)
    return FourM.toy(
        [AUDIO, VIDEO, CAPTION],
        **{**dict(dim=32, encoder_depth=2, decoder_depth=2, num_heads=2), **config},
    ).eval()


def same(a, b, batch):
    x, y = a(batch), b(batch)
    return (
        torch.equal(x.loss, y.loss)
        and torch.equal(x.hidden, y.hidden)
        and torch.equal(x.context, y.context)
    )


def refused(kind, words, f, *args, **kw):
    "Asserts one sentence of the given kind that names the thing."
    with pytest.raises(kind) as e:
        f(*args, **kw)
    message = str(e.value)
    assert "\n" not in message and all(w in message for w in words), message
    return message


# --- reading what the original wrote


@pytest.mark.parametrize("layout", ["full", "hub"])
@pytest.mark.parametrize("config", ["json", "metadata"])
def test_every_layout_loads(tmp_path, layout, config):
    m = original()
    folder = written(tmp_path, m, layout, config)
    keys = load_file(folder / "model.safetensors")
    assert len(keys) == len(m.state_dict()) - (layout == "hub")
    again = FourM.from_pretrained(folder)
    assert same(m, again, images()) and not again.training and again.config["mlp_ratio"] == 4
    assert (
        again.encoder_embeddings["tok_semseg@32"].mod_emb
        is again.decoder_embeddings["tok_semseg@32"].mod_emb
    )


def test_one_file_is_enough(tmp_path):
    m = original()
    written(tmp_path, m, config="metadata")
    assert same(m, FourM.from_pretrained(tmp_path / "model.safetensors"), images())


def test_a_file_in_16_bits_is_read_as_float32(tmp_path):
    m = original().half()
    again = FourM.from_pretrained(written(tmp_path, m))
    assert {p.dtype for p in again.parameters()} == {torch.float32} and same(
        m.float(), again, images()
    )


def test_tables_and_zero_biases_may_be_missing_and_more_may_be_there(tmp_path):
    m = original()
    zeros = [k for k, _ in m.named_buffers() if k.endswith("bias")]
    folder = written(tmp_path, m, "hub", drop=("pos_emb", *zeros), stranger=torch.zeros(3))
    kept = load_file(folder / "model.safetensors")
    assert (
        not any("pos_emb" in k for k in kept)
        and "encoder.0.norm1.bias" not in kept
        and same(m, FourM.from_pretrained(folder), images())
    )


def test_equal_matrices_are_tied_and_others_are_not(tmp_path):
    m = original()
    loose = FourM.from_pretrained(written(tmp_path / "a", m))
    e = loose.decoder_embeddings["tok_semseg@32"]
    assert e.to_logits.weight is not e.token_emb.weight and not loose.config["share_embedding"]
    with torch.no_grad():
        m.decoder_embeddings["tok_semseg@32"].to_logits.weight.copy_(
            m.decoder_embeddings["tok_semseg@32"].token_emb.weight
        )
    for name, drop in (("b", ()), ("c", (PAIR.format("to_logits"),))):
        tied = FourM.from_pretrained(written(tmp_path / name, m, drop=drop))
        e = tied.decoder_embeddings["tok_semseg@32"]
        assert e.to_logits.weight is e.token_emb.weight and same(m, tied, images())
        assert (
            sum(p.numel() for p in loose.parameters()) - sum(p.numel() for p in tied.parameters())
            == 4096 * 32
        )
        tied(images()).loss.backward()
        assert e.token_emb.weight.grad.any()


def test_other_options_of_the_config(tmp_path):
    for i, more in enumerate(
        (
            dict(num_register_tokens=3),
            dict(qk_norm=True),
            dict(norm_bias=True, qkv_bias=True, proj_bias=True, mlp_bias=True),
            dict(gated_mlp=False, act_layer="GELU"),
            dict(decoder_causal_mask=True, decoder_sep_mask=False),
            dict(share_modality_embeddings=False),
        )
    ):
        m = original(**more)
        m.save_pretrained(tmp_path / str(i))
        again = FourM.from_pretrained(tmp_path / str(i))
        assert same(m, again, images()), more
    assert (
        again.encoder_embeddings["tok_semseg@32"].mod_emb
        is not again.decoder_embeddings["tok_semseg@32"].mod_emb
    )
    assert not torch.equal(
        original(num_register_tokens=3)(images()).hidden, original()(images()).hidden
    )


# --- writing


def test_what_we_write_is_the_original_layout(tmp_path):
    m = original()
    m.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert set(tensors) == set(m.state_dict()) and all(
        t.is_contiguous() and t.dtype == torch.float32 for t in tensors.values()
    )
    FourM({**NAMES, **SHAPE}).load_state_dict(tensors, strict=True)
    config = json.loads((tmp_path / "config.json").read_text())
    optional = {
        "decoder_causal_mask",
        "decoder_sep_mask",
        "num_register_tokens",
        "share_modality_embeddings",
    }
    assert set(config) - optional == {*NAMES, *SHAPE} and all(
        config[k] == v for k, v in {**NAMES, **SHAPE}.items()
    )  # keys that the original knows
    with safe_open(tmp_path / "model.safetensors", "pt") as f:
        about = f.metadata()
    assert (
        about["format"] == "pt"
        and fourm_weights.config_from_metadata(about)["domains_in"] == NAMES["domains_in"]
        and about["gated_mlp"] == "True"
    )


def test_a_tied_model_is_written_with_both_matrices(tmp_path):
    m = original(share_embedding=True)
    m.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert torch.equal(tensors[PAIR.format("to_logits")], tensors[PAIR.format("token_emb")])
    assert len(tensors) == len(original().state_dict()) and same(
        m, FourM.from_pretrained(tmp_path), images()
    )


def test_our_own_modalities_come_back_from_the_config(tmp_path):
    m = toy()
    m.save_pretrained(tmp_path)
    again = FourM.from_pretrained(tmp_path)
    assert (
        again.modalities == m.modalities
        and same(m, again, scene())
        and again.config["embedding_std"] == 1.0
    )
    m.save_pretrained(tmp_path, compact=True, dtype=torch.float16)
    small = (tmp_path / "model.safetensors").stat().st_size
    assert small < 0.5 * sum(t.numel() * 4 for t in m.state_dict().values())
    torch.testing.assert_close(
        FourM.from_pretrained(tmp_path)(scene()).hidden, m(scene()).hidden, rtol=0, atol=0.02
    )


def test_a_write_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    m = toy()
    m.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    import safetensors.torch

    monkeypatch.setattr(
        safetensors.torch,
        "save_file",
        lambda *a, **k: (_ for _ in ()).throw(OSError("no space left")),
    )
    refused(BadInput, ("cannot be written", "no space left"), toy().save_pretrained, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before and not list(
        tmp_path.glob(".tmp*")
    )


def test_the_card_says_what_it_is_and_under_which_terms(tmp_path):
    toy().save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert (
        "non-commercial" in card
        and "EPFL" in card
        and "| caption | Text | 230 | 24 | yes | yes |" in card
        and "library_name: scene4m" in card
    )


def test_push_to_hub_sends_the_folder(monkeypatch):
    sent = {}

    class Hub:
        def __init__(self, **kw):
            pass

        def create_repo(self, repo_id, **kw):
            pass

        def upload_folder(self, repo_id, folder_path, **kw):
            sent[repo_id] = (
                sorted(p.name for p in folder_path.iterdir()),
                json.loads((folder_path / "config.json").read_text()),
            )
            return "done"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert toy().push_to_hub("somebody/street") == "done"
    files, config = sent["somebody/street"]
    assert files == ["README.md", "config.json", "model.safetensors"]
    assert config["domains_in"] == ["audio", "video", "caption"]


def test_a_name_on_the_hub(tmp_path, monkeypatch, caplog):
    import huggingface_hub as hf

    m = original()
    written(tmp_path, m)
    where = "EPFL-VILAB/4M-7_B_CC12M"

    def fetch(repo, name, **kw):
        return str(tmp_path / name)

    monkeypatch.setattr(hf, "hf_hub_download", fetch)
    monkeypatch.setattr(hf, "try_to_load_from_cache", lambda *a, **k: None)
    size = type("File", (), dict(size=1_770_000_000))
    monkeypatch.setattr(hf, "get_hf_file_metadata", lambda *a, **k: size())
    with caplog.at_level("INFO", "scene4m"):
        assert same(m, FourM.from_pretrained(where), images())
    assert "1.77 GB" in caplog.text and "non-commercial" in caplog.text

    def silent(*a, **k):
        raise ConnectionError("nobody there")

    monkeypatch.setattr(hf, "get_hf_file_metadata", silent)
    refused(BadInput, (where, "folder"), FourM.from_pretrained, where)


# --- files that do not fit


def test_wrong_files_name_what_differs_first(tmp_path):
    m = original()
    key = "decoder.0.mlp.fc3.weight"
    refused(
        ConfigMismatch,
        (key, "not in the file"),
        FourM.from_pretrained,
        written(tmp_path / "a", m, drop=(key,)),
    )
    refused(
        ConfigMismatch,
        (key, "(85, 7)", "(85, 32)"),
        FourM.from_pretrained,
        written(tmp_path / "b", m, **{key: torch.zeros(85, 7)}),
    )
    refused(
        ConfigMismatch,
        ("encoder.2.", "no such block"),
        FourM.from_pretrained,
        written(tmp_path / "c", original(encoder_depth=3)),
    )
    mod = "_embeddings.tok_semseg@32.mod_emb"
    refused(
        ConfigMismatch,
        (f"encoder{mod}",),
        FourM.from_pretrained,
        written(tmp_path / "d", m, drop=(mod,)),
    )


def test_things_that_are_no_checkpoint(tmp_path):
    refused(BadInput, ("no-such", "Hub"), FourM.from_pretrained, tmp_path / "no-such")
    refused(BadInput, ("model.safetensors", "no such file"), FourM.from_pretrained, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"this is a picture of a dog")
    refused(BadInput, ("model.safetensors", "not a readable"), FourM.from_pretrained, tmp_path)
    save_file({"x": torch.zeros(2)}, tmp_path / "model.safetensors")
    refused(BadInput, ("which modalities",), FourM.from_pretrained, tmp_path)
    (tmp_path / "config.json").write_text("{broken")
    refused(BadInput, ("config.json", "JSON"), FourM.from_pretrained, tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps(dict(domains_in=["smell@32"], domains_out=["smell@32"]))
    )
    refused(BadInput, ("smell@32",), FourM.from_pretrained, tmp_path)


# --- new kinds of tokens


def test_a_new_modality_changes_no_old_answer(tmp_path):
    written(tmp_path, original())
    m = FourM.from_pretrained(tmp_path)
    b = images()
    before, old = m(b), {k: t.clone() for k, t in m.state_dict().items()}
    m.add_modality(AUDIO).add_modality(VIDEO, like="tok_semseg@32").add_modality(CAPTION)
    after = m(b)
    assert (
        torch.equal(after.hidden, before.hidden)
        and torch.equal(after.loss, before.loss)
        and torch.equal(after.context, before.context)
    )
    assert all(torch.equal(m.state_dict()[k], t) for k, t in old.items())
    added = set(m.state_dict()) - set(old)
    assert added and all(
        k.split("_embeddings.")[1].split(".")[0] in ("audio", "video", "caption") for k in added
    )
    like = m.encoder_embeddings["tok_semseg@32"].mod_emb
    assert torch.equal(m.encoder_embeddings["video"].mod_emb, like) and not torch.equal(
        m.encoder_embeddings["audio"].mod_emb, like
    )
    assert (
        not m.encoder_embeddings["video"].time_emb.any()
        and 0.015 < m.encoder_embeddings["audio"].token_emb.weight.std() < 0.025
    )
    both = {**b, **{k: {n: t[:2] for n, t in e.items()} for k, e in scene().items()}}
    out = m(both, order=["caption", "tok_semseg@32"])
    out.loss.backward()
    assert m.encoder_embeddings["audio"].token_emb.weight.grad.any() and out.n_tokens["caption"] > 0
    m.save_pretrained(tmp_path / "grown")
    again = FourM.from_pretrained(tmp_path / "grown")
    assert same(m, again, both) and torch.equal(again(b).hidden, before.hidden)


def test_modalities_that_cannot_be_added():
    m = toy()
    refused(BadInput, ("audio", "taken already"), m.add_modality, AUDIO)
    refused(BadInput, ("a.b",), m.add_modality, TokenGrid("a.b", 4, (2, 2)))
    refused(
        BadInput,
        ("smell", "start from"),
        m.add_modality,
        TokenGrid("touch", 4, (2, 2)),
        like="smell",
    )
    assert (
        list(m.modalities) == ["audio", "video", "caption"] and "touch" not in m.encoder_embeddings
    )


# --- what the forward pass promises


WRONG = {
    "empty batch": (("empty",), lambda b: {}),
    "unknown modality": (("smell", "audio"), lambda b: dict(b, smell=b["audio"])),
    "ids too large": (
        ("audio", "16", "another tokenizer"),
        lambda b: dict(b, audio=dict(b["audio"], tensor=b["audio"]["tensor"] + 16)),
    ),
    "negative ids": (
        ("caption", "-1"),
        lambda b: dict(b, caption=dict(b["caption"], tensor=b["caption"]["tensor"] - 1)),
    ),
    "ids as reals": (
        ("video", "integers"),
        lambda b: dict(b, video=dict(b["video"], tensor=b["video"]["tensor"].float())),
    ),
    "a grid half full": (
        ("audio", "does not fit"),
        lambda b: dict(b, audio=dict(b["audio"], tensor=b["audio"]["tensor"][:, :9])),
    ),
    "mask of another shape": (
        ("audio", "input_mask", "(3, 15)"),
        lambda b: dict(b, audio=dict(b["audio"], input_mask=b["audio"]["input_mask"][:, :9])),
    ),
    "mask of another type": (
        ("caption", "target_mask", "bool"),
        lambda b: dict(
            b, caption=dict(b["caption"], target_mask=b["caption"]["target_mask"].int())
        ),
    ),
    "counts of another shape": (
        ("caption", "decoder_attention_mask"),
        lambda b: dict(
            b,
            caption=dict(
                b["caption"], decoder_attention_mask=b["caption"]["decoder_attention_mask"][:, 1:]
            ),
        ),
    ),
    "counts as reals": (
        ("audio", "whole numbers"),
        lambda b: dict(b, audio=dict(b["audio"], decoder_attention_mask=torch.zeros(3, 15))),
    ),
    "no target mask": (
        ("video", "no target_mask"),
        lambda b: dict(b, video={k: t for k, t in b["video"].items() if k != "target_mask"}),
    ),
    "no tensor": (
        ("video", "no tensor"),
        lambda b: dict(b, video={k: t for k, t in b["video"].items() if k != "tensor"}),
    ),
    "two sizes of batch": (
        ("number of samples",),
        lambda b: dict(b, audio={k: t[:2] for k, t in b["audio"].items()}),
    ),
    "nothing asked for": (
        ("no target",),
        lambda b: {m: dict(e, target_mask=torch.ones_like(e["target_mask"])) for m, e in b.items()},
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_batches_are_refused_before_any_computing(name):
    words, spoil = WRONG[name]
    m = toy()
    ran = []
    m.encoder[0].register_forward_pre_hook(lambda *a: ran.append(1))
    assert m(scene()).loss > 0 and ran
    ran.clear()
    refused(BadInput, words, m, spoil(scene()))
    assert not ran


def test_bad_arguments():
    m, b = toy(), scene()
    refused(BadInput, ("num_encoder_tokens is 0",), m, b, 0)
    refused(BadInput, ("num_decoder_tokens is -3",), m, b, 9, -3)
    refused(BadInput, ("mod", "token", "'sum'"), m, b, loss_type="sum")
    refused(BadInput, ("smell",), m, b, order=["smell"])
    refused(BadInput, ("weight 0",), m, b, weights=dict.fromkeys(b, 0.0))
    refused(BadInput, ("'magic'",), m.set_attention, "magic")
    eyes = FourM(dict(NAMES, **SHAPE))
    only = {"rgb@32": images()["rgb@32"]}
    refused(BadInput, ("Nothing in the batch can be predicted",), eyes, only)
    refused(
        BadInput,
        ("rgb@32", "does not fit"),
        eyes,
        {**images(), "rgb@32": dict(only["rgb@32"], tensor=torch.zeros(2, 3, 16, 16))},
    )
    assert issubclass(BadInput, Scene4MError)


def test_forward_changes_nothing_and_draws_nothing():
    m, b = toy(), scene()
    before = {k: {n: t.clone() for n, t in e.items()} for k, e in b.items()}
    state, python = torch.get_rng_state(), random.getstate()
    m(b)
    m.encode(b)
    assert torch.equal(torch.get_rng_state(), state) and random.getstate() == python
    assert all(
        list(b[k]) == list(e) and all(torch.equal(b[k][n], t) for n, t in e.items())
        for k, e in before.items()
    )


def test_the_order_is_explicit():
    m, b = toy(), scene()
    for e in (b["audio"], b["video"]):
        n = e["tensor"].shape[1]
        e["input_mask"] = torch.ones(3, n, dtype=torch.bool)
        e["input_mask"][:, 0] = False
        e["target_mask"] = ~e["input_mask"]
        e["decoder_attention_mask"] = torch.zeros(3, n, dtype=torch.int32)
        e["decoder_attention_mask"][:, 1] = n - 1
    short = m(b, None, 10, order=["audio", "video", "caption"])
    other = m(b, None, 10, order=["video", "audio", "caption"])
    assert short.n_tokens == dict(audio=30, video=0, caption=0) and other.n_tokens == dict(
        video=30, audio=0, caption=0
    )
    assert torch.equal(m(b, None, 10).loss, short.loss)  # the batch's own order is the default
    whole = m(b)
    turned = m(b, order=["caption", "video", "audio"])
    assert all(
        torch.allclose(whole.losses[k], turned.losses[k], atol=1e-5) for k in b
    )  # without a budget the order only permutes


def test_a_sample_does_not_depend_on_its_neighbours():
    m, b = toy(), scene(n=4)
    b["audio"]["input_mask"][2] = True
    whole = m(b, order=["caption"])
    for i in range(4):
        alone = m(
            {k: {n: t[i : i + 1] for n, t in e.items()} for k, e in b.items()}, order=["caption"]
        )
        n = int((~alone.decoder.pad).sum())
        torch.testing.assert_close(whole.hidden[i, :n], alone.hidden[0, :n], rtol=0, atol=1e-5)


def test_losses_add_up():
    m, b = toy(), scene()
    out = m(b)
    caption = out.losses["caption"]
    assert out.losses["audio"] == 0 and torch.allclose(
        out.loss, caption / 3
    )  # absent ones count as 0, as in 4M
    assert torch.allclose(m(b, count_absent=False).loss, caption) and torch.allclose(
        m(b, loss_type="token").loss, caption
    )
    logits = m.decoder_embeddings["caption"].to_logits(out.hidden)
    e = b["caption"]
    logp = logits.log_softmax(-1)
    total, n = 0.0, 0
    for i in range(3):
        said = e["tensor"][i][~e["target_mask"][i]].long()
        total -= logp[i, torch.arange(len(said) - 1), said[1:]].sum()
        n += len(said) - 1
    torch.testing.assert_close(caption, total / n)
    assert out.n_tokens["caption"] == n


def test_no_word_sees_a_later_one_and_no_grid_a_word():
    m, b = toy(), scene(n=1)
    e = b["caption"]
    at = (~e["target_mask"][0]).nonzero()[:, 0]
    before = m(b, order=["caption"]).hidden
    e["tensor"][0, at[3]] = 229 - int(e["tensor"][0, at[3]] == 229)
    after = m(b, order=["caption"]).hidden
    assert torch.equal(after[0, :3], before[0, :3]) and not torch.allclose(
        after[0, 3:5], before[0, 3:5], atol=1e-3
    )


@pytest.mark.parametrize("kind", ["sdpa", "plain"])
def test_maps_on_request_and_only_then(kind):
    m, b = toy().set_attention(kind), scene()
    want = m(b).hidden
    with m.watch_attention() as maps:
        out = m(b)
    torch.testing.assert_close(out.hidden, want, rtol=0, atol=1e-5)
    m(b)
    assert set(maps) == {f"encoder.{i}.attn" for i in (0, 1)} | {
        f"decoder.{i}.{a}_attn" for i in (0, 1) for a in ("self", "cross")
    }
    assert all(
        len(x) == 1 and torch.allclose(x[0].sum(-1), torch.ones(x[0].shape[:-1]), atol=1e-5)
        for x in maps.values()
    )
    said = maps["decoder.0.self_attn"][0].transpose(1, 2)[~out.decoder.pad]
    M = said.shape[-1]
    later = torch.ones(M, M, dtype=torch.bool).triu(1).expand(3, M, M)[~out.decoder.pad]
    assert (
        maps["decoder.0.cross_attn"][0].shape[-1] == 27
        and not said[later[:, None].expand(said.shape)].any()
    )


def test_16_bits_for_weights_and_for_computing():
    m, b = toy(), scene()
    want = m(b)
    with torch.autocast("cpu", torch.bfloat16):
        out = m(b)
    assert (
        out.loss.dtype == torch.float32
        and abs(out.losses["caption"] - want.losses["caption"]) < 0.1
    )
    assert abs(toy().bfloat16()(b).losses["caption"] - want.losses["caption"]) < 0.1
    eyes = original()
    light = original().bfloat16()  # pixels come as float32 whatever the weights are
    torch.testing.assert_close(
        light(images()).loss.float(), eyes(images()).loss, rtol=0.05, atol=0.05
    )


def test_start_values():
    torch.manual_seed(0)
    m = FourM({**NAMES, **SHAPE, "dim": 96, "num_heads": 4})
    p = dict(m.named_parameters())
    bound = math.sqrt(6 / 192)
    for name in (
        "encoder.0.attn.qkv",
        "decoder.0.cross_attn.kv",
        "decoder.0.cross_attn.q",
        "decoder.0.self_attn.proj",
    ):
        w = p[f"{name}.weight"]
        assert 0.98 * bound < w.abs().max() <= bound, name
    assert all(
        0.018 < p[k].std() < 0.022
        for k in (PAIR.format("token_emb"), "encoder_embeddings.tok_semseg@32.token_emb.weight")
    )
    assert (
        p[PAIR.format("to_logits")].abs().max() <= math.sqrt(6 / (4096 + 96))
        and not p["decoder_proj_context.bias"].any()
    )
    assert (
        torch.equal(p["encoder_norm.weight"], torch.ones(96))
        and 0.01 < p["mask_token"].std() < 0.03
    )
    tied = (
        FourM({**NAMES, **SHAPE, "share_embedding": True})
        .decoder_embeddings["tok_semseg@32"]
        .token_emb.weight
    )
    assert (
        0.9 * math.sqrt(6 / (4096 + 32)) < tied.abs().max() <= math.sqrt(6 / (4096 + 32))
    )  # the later start value wins


def test_it_learns_by_heart():
    m, b = toy().train(), scene()
    optimiser = torch.optim.AdamW(m.parameters(), 3e-3)
    first = None
    for _ in range(60):
        loss = m(b, order=["caption"]).loss
        first = first or loss.item()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.2 < 2 < first


# --- 4M-7 B itself


FOURM_B = dict(
    domains_in=[
        "caption",
        "det",
        "rgb@224",
        "tok_clip@224",
        "tok_depth@224",
        "tok_normal@224",
        "tok_rgb@224",
        "tok_semseg@224",
    ],
    domains_out=[
        "caption",
        "det",
        "tok_clip@224",
        "tok_depth@224",
        "tok_normal@224",
        "tok_rgb@224",
        "tok_semseg@224",
    ],
)


def numbers(m):
    return len(m.state_dict()), sum(p.numel() for p in m.parameters())


def test_the_size_of_4m_on_paper(tmp_path):
    with torch.device("meta"):
        m, tied = FourM(FOURM_B), FourM({**FOURM_B, "share_embedding": True})
    assert numbers(m) == (359, 441_474_048) and numbers(tied) == (359, 360_791_040)

    def blocks(side):
        return sum(p.numel() for p in getattr(m, side).parameters())

    assert (blocks("encoder"), blocks("decoder")) == (84_953_088, 113_283_072)
    s = m.state_dict()
    assert s["encoder_embeddings.caption.pos_emb"].shape == (1, 512, 768) and s[
        "decoder.11.cross_attn.kv.weight"
    ].shape == (1536, 768)
    assert s["encoder.0.mlp.fc1.weight"].shape == (2048, 768) and s[
        "encoder_embeddings.rgb@224.proj.weight"
    ].shape == (768, 768)


@pytest.mark.slow
def test_4m_itself_is_built_written_and_tied(tmp_path):
    "Nearly two gigabytes of random numbers, there and back in the layout of 352 keys."
    m = FourM(FOURM_B)
    assert numbers(m) == (359, 441_474_048)
    with torch.no_grad():
        for e in m.decoder_embeddings.values():
            e.to_logits.weight.copy_(e.token_emb.weight)
    twice = {f"encoder_embeddings.{name}.mod_emb" for name in m.decoder_embeddings}
    tensors = {k: t.clone() for k, t in m.state_dict().items() if k not in twice}
    assert len(tensors) == 352
    about = {"format": "pt", **{k: str(v) for k, v in FOURM_B.items()}}
    save_file(tensors, tmp_path / "model.safetensors", metadata=about)
    del m, tensors
    again = FourM.from_pretrained(tmp_path)
    assert numbers(again) == (359, 360_791_040) and again.config["share_embedding"]
