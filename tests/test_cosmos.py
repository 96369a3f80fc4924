"The COSMOS contract, on pairs of TorchScript files of the same signature that are written here."

import hashlib
import io
import json
import types
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cosmos_pair import Decoder, Encoder, write_pair
from scene4m.base.core import BadInput, ConfigMismatch
from scene4m.app.cosmos import (
    LEVELS,
    PLACES,
    VOCAB_SIZE,
    CosmosConfig,
    CosmosTokenizer,
    codes_to_ids,
    cosmos_grid,
    cosmos_windows,
    ids_to_codes,
    pad_window,
    retype_casts,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("cosmos"))


@pytest.fixture(scope="module")
def tok(pair):
    return CosmosTokenizer.from_pretrained(pair, device="cpu")


def clip(*shape, seed=0):
    "Smooth moving colours in [-1, 1]."
    x = torch.rand(shape[0], 3, 3, 3, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(x, shape[1:], mode="trilinear")


# ---- the vocabulary


def test_the_table_is_exact_over_the_whole_vocabulary():
    ids = torch.arange(VOCAB_SIZE)
    codes = ids_to_codes(ids)
    assert torch.equal(codes_to_ids(codes), ids) and len(codes.unique(dim=0)) == VOCAB_SIZE == int(
        np.prod(LEVELS)
    )
    for i, (level, place) in enumerate(zip(LEVELS, PLACES)):  # by hand, without tensors
        assert codes[:, i].tolist()[12_345] == ((12_345 // place) % level - level // 2) / (
            level // 2
        )
    assert (
        codes.min(0).values.tolist() == [-1] * 6
        and codes.max(0).values.tolist() == [0.75] * 3 + [1] * 3
    )
    with pytest.raises(BadInput, match="0 and 63999"):
        ids_to_codes(torch.tensor([-1]))


def test_the_table_is_that_of_the_library():
    fsq = pytest.importorskip("vector_quantize_pytorch").FSQ(levels=list(LEVELS))
    ids = torch.arange(VOCAB_SIZE)
    assert torch.equal(fsq.indices_to_codes(ids[None])[0], ids_to_codes(ids))
    assert torch.equal(fsq.codes_to_indices(ids_to_codes(ids)).long(), ids)


# ---- padding, windows, grids


@pytest.mark.parametrize(
    "T, H, W, grid",
    [
        (17, 64, 64, (5, 8, 8)),
        (16, 32, 32, (5, 4, 4)),
        (9, 32, 32, (3, 4, 4)),
        (1, 16, 16, (1, 2, 2)),
        (18, 32, 32, (6, 4, 4)),
        (20, 40, 36, (8, 6, 6)),
        (34, 64, 48, (10, 8, 6)),
        (40, 33, 17, (13, 6, 4)),
    ],
)
def test_any_size_goes_through_and_comes_back(tok, T, H, W, grid):
    x = clip(2, T, H, W)
    ids = tok.encode(x)
    y = tok.decode(ids, x.shape)
    assert cosmos_grid(T, H, W) == grid == tok.grid(x.shape) == tok.grid((2, T, H, W, 3))
    assert (
        ids.shape == (2, int(np.prod(grid)))
        and ids.dtype == torch.int64
        and y.shape == x.shape
        and y.dtype == torch.float32
    )
    assert y.abs().max() <= 1 and ids.min() >= 0 and ids.max() < VOCAB_SIZE


@pytest.mark.parametrize(
    "side, frames, tokens",
    [
        (32, 9, 48),
        (64, 9, 192),
        (128, 9, 768),
        (256, 9, 3072),
        (32, 17, 80),
        (64, 17, 320),
        (96, 17, 720),
        (128, 17, 1280),
        (160, 17, 2000),
        (192, 17, 2880),
        (224, 17, 3920),
        (256, 17, 5120),
    ],
)
def test_tokens_per_clip(side, frames, tokens):
    assert np.prod(cosmos_grid(frames, side, side)) == tokens


def test_padding_is_black_around_and_still_before_and_after():
    x = clip(1, 4, 20, 30)
    padded, crop = pad_window(x)
    assert padded.shape == (1, 3, 9, 32, 32) and torch.equal(padded[(..., *crop)], x)
    mask = torch.ones_like(padded, dtype=torch.bool)
    mask[..., crop[1], crop[2]] = False
    assert (padded[mask] == -1).all() and crop == (slice(2, 6), slice(6, 26), slice(1, 31))
    assert all(torch.equal(padded[:, :, k], padded[:, :, 2]) for k in (0, 1)) and all(
        torch.equal(padded[:, :, k], padded[:, :, 5]) for k in (6, 7, 8)
    )


def test_long_clips_are_windows_that_know_nothing_of_each_other(tok):
    x = clip(1, 40, 32, 32)
    ids = tok.encode(x).reshape(1, -1, 16)
    assert cosmos_windows(40) == [(0, 17), (17, 34), (34, 40)]
    parts = [tok.encode(x[:, :, a:b]).reshape(1, -1, 16) for a, b in cosmos_windows(40)]
    assert torch.equal(torch.cat(parts, 1), ids)
    y = x.clone()
    y[:, :, 17:] *= -1
    assert torch.equal(tok.encode(y).reshape(1, -1, 16)[:, :5], ids[:, :5]) and not torch.equal(
        tok.encode(y), ids.flatten(1)
    )


def test_the_past_does_not_depend_on_the_future(tok):
    x = clip(1, 17, 32, 32)
    y = x.clone()
    y[:, :, 5:] = -y[:, :, 5:]
    a, b = (tok.encode(v).reshape(5, 16) for v in (x, y))
    assert torch.equal(a[:2], b[:2]) and not torch.equal(a[2:], b[2:])


# ---- the calls


def test_the_halves_fit_and_the_codes_are_the_quantised_ones(tok):
    x = clip(2, 17, 32, 32)
    ids, codes, _ = tok.encoder(x)
    assert torch.equal(tok.encode(x), ids.flatten(1).long())
    assert torch.allclose(tok.codes(tok.encode(x)).reshape(2, 5, 4, 4, 6), codes.movedim(1, -1))
    with torch.no_grad():
        assert torch.equal(
            tok.decode(ids.flatten(1).long(), x.shape), tok.decoder(ids).clamp(-1, 1)
        )


def test_frames_map_to_minus_one_to_one_and_back(tok):
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 4, 8, 8, 1).expand(-1, -1, -1, -1, 3)
    x = tok.to_model(frames)
    assert (
        x.shape == (1, 3, 4, 8, 8)
        and x.min() == -1
        and x.max() == 1
        and torch.equal(tok.to_frames(x), frames)
    )
    assert torch.equal(tok.to_model(frames.numpy()), x)


def test_wrong_shapes_get_a_sentence(tok):
    with pytest.raises(BadInput, match="B, 3, T, H, W"):
        tok.encode(torch.zeros(1, 17, 32, 32, 3))
    with pytest.raises(ConfigMismatch, match="do not fill the grid"):
        tok.decode(torch.zeros(1, 79, dtype=torch.int64))
    with pytest.raises(BadInput, match="0 and 63999"):
        tok.decode(torch.full((1, 320), VOCAB_SIZE))


# ---- files


def test_saving_and_loading(tok, pair, tmp_path, capsys):
    folder = tok.save_pretrained(tmp_path / "saved")
    again = CosmosTokenizer.from_pretrained(folder, device="cpu")
    said = capsys.readouterr().out
    x = clip(1, 17, 64, 64)
    for half in ("encoder", "decoder"):
        assert hashlib.sha256((pair / f"{half}.jit").read_bytes()).hexdigest() in said
    assert (
        "can run any code" in said
        and again.fingerprint == tok.fingerprint
        and torch.equal(again.encode(x), tok.encode(x))
    )
    assert json.loads((folder / "config.json").read_text())["class"] == "CosmosTokenizer"
    other = CosmosTokenizer.from_pretrained(write_pair(tmp_path / "other", seed=1), device="cpu")
    assert other.fingerprint != tok.fingerprint and CosmosTokenizer.from_pretrained(
        pair, device="cpu", size=32
    ).grid() == (5, 4, 4)


def test_nvidias_own_config_is_left_alone(pair, tmp_path):
    for half in ("encoder.jit", "decoder.jit"):
        (tmp_path / half).write_bytes((pair / half).read_bytes())
    (tmp_path / "config.json").write_text('{"architectures": ["CosmosTokenizer"]}')
    assert CosmosTokenizer.from_pretrained(tmp_path, device="cpu").settings.window == 17


def test_an_exchanged_file_is_noticed_before_it_runs(tok, tmp_path, monkeypatch):
    folder = tok.save_pretrained(tmp_path)
    write_pair(folder, seed=1)
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: pytest.fail("it was run"))
    with pytest.raises(ConfigMismatch, match="checksum"):
        CosmosTokenizer.from_pretrained(folder, device="cpu")


def _pickle(path):
    torch.save({"a": 1}, path)


BAD = {
    "missing": lambda p: p.unlink(),
    "empty": lambda p: p.write_bytes(b""),
    "text": lambda p: p.write_text("hello"),
    "a checkpoint": _pickle,
    "lfs pointer": lambda p: p.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 86600000\n"
    ),
    "cut short": lambda p: p.write_bytes(p.read_bytes()[: len(p.read_bytes()) // 2]),
}


@pytest.mark.parametrize("how", BAD)
@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_a_wrong_file_gets_one_sentence(pair, tmp_path, how, half):
    for h in ("encoder", "decoder"):
        (tmp_path / f"{h}.jit").write_bytes((pair / f"{h}.jit").read_bytes())
    BAD[how](tmp_path / f"{half}.jit")
    with pytest.raises(BadInput, match=f"{half}.jit") as e:
        CosmosTokenizer.from_pretrained(tmp_path, device="cpu")
    assert "\n" not in str(e.value)


class Coarse(Encoder):
    def forward(self, x: torch.Tensor):
        i, c, z = super().forward(x[:, :, :1])
        return i, c, z


class OneBased(nn.Module):
    def forward(self, x: torch.Tensor):
        return torch.full([x.shape[0], 3, 4, 4], 64_000, dtype=torch.int32), x, x


class Floats(nn.Module):
    def forward(self, x: torch.Tensor):
        return torch.zeros([x.shape[0], 3, 4, 4]), x, x


class Wide(nn.Module):
    def forward(self, ids: torch.Tensor):
        return torch.zeros([ids.shape[0], 3, 9, 64, 64])


class Codes(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Conv3d(6, 3, 1)

    def forward(self, codes: torch.Tensor):
        return self.mix(codes)


@pytest.mark.parametrize(
    "halves",
    [
        dict(encoder=OneBased()),
        dict(encoder=Floats()),
        dict(decoder=Wide()),
        dict(decoder=Codes()),
        dict(encoder=Decoder(), decoder=Encoder()),
    ],
)
def test_another_network_is_refused(tmp_path, halves):
    with pytest.raises(BadInput, match="COSMOS") as e:
        CosmosTokenizer.from_pretrained(write_pair(tmp_path, **halves), device="cpu")
    assert "\n" not in str(e.value)


def test_nothing_is_loaded_that_was_not_named(tmp_path):
    for name in ("nowhere", "./a/b", "a/b/c"):
        with pytest.raises(BadInput, match="no such folder"):
            CosmosTokenizer.from_pretrained(name, device="cpu")


# ---- precision


def test_a_pair_traced_in_bfloat16_runs_in_float32():
    x, enc, dec = clip(1, 9, 32, 32), Encoder(), Decoder()
    ids = enc(x)[0]
    dec16 = Decoder().to(torch.bfloat16)
    dec16.load_state_dict(dec.to(torch.bfloat16).state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(dec16.eval(), ids)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    naive = torch.jit.load(file).float()
    with pytest.raises(RuntimeError):
        naive(ids)
    file.seek(0)
    cured = retype_casts(torch.jit.load(file).float(), torch.float32)
    with torch.no_grad():
        assert cured(ids).dtype == torch.float32 and torch.allclose(
            cured(ids), dec.float()(ids), atol=1e-5
        )


# ---- the hub, without a network


def _fake_hub(monkeypatch, pair, sha=None):
    import huggingface_hub

    class Api:
        def __init__(self, **kw):
            pass

        def get_paths_info(self, repo, paths, revision=None):
            return [
                types.SimpleNamespace(
                    path=p,
                    size=(pair / p).stat().st_size,
                    lfs=types.SimpleNamespace(
                        sha256=sha or hashlib.sha256((pair / p).read_bytes()).hexdigest()
                    ),
                )
                for p in paths
                if (pair / p).exists()
            ]

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda repo, name, **kw: str(pair / name)
    )


def test_a_hub_id_is_fetched_with_its_size_and_checksum(pair, tok, monkeypatch, capsys):
    _fake_hub(monkeypatch, pair)
    assert (
        CosmosTokenizer.from_pretrained("nvidia/Cosmos", device="cpu").fingerprint
        == tok.fingerprint
    )
    assert "downloading" in capsys.readouterr().out
    _fake_hub(monkeypatch, pair, sha="0" * 64)
    with pytest.raises(BadInput, match="checksum"):
        CosmosTokenizer.from_pretrained("nvidia/Cosmos", device="cpu")


def test_a_hub_repository_without_the_files(tmp_path, monkeypatch):
    _fake_hub(monkeypatch, tmp_path)
    with pytest.raises(BadInput, match="has no encoder.jit"):
        CosmosTokenizer.from_pretrained("some/repo", device="cpu")


def test_settings_are_part_of_the_fingerprint(pair):
    a, b = (CosmosTokenizer.from_pretrained(pair, device="cpu", size=s) for s in (32, 64))
    assert a.fingerprint != b.fingerprint and a.settings == CosmosConfig(
        size=32, encoder_sha256=a.settings.encoder_sha256, decoder_sha256=a.settings.decoder_sha256
    )
