"Token shards: what is written is what is read, whatever happens between."

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from scene4m.base.core import BadInput, ConfigMismatch
from scene4m.base.store import file_stem, npy_bytes
from scene4m.tokenize import (
    BatchOrder,
    TokenDataset,
    token_dtype,
    token_row,
    tokenize_dataset,
)


class StandIn:
    "A tokenizer that reads ids straight off its input."

    def __init__(self, name, grid, vocab_size=512):
        self.fingerprint, self._grid, self.vocab_size = name, grid, vocab_size

    def grid(self, shape=None):
        return self._grid

    def encode(self, batch, lengths=None):
        return batch.flatten(1)[:, : int(np.prod(self._grid))].long() % self.vocab_size


class Clips:
    "A data set in memory: clip i holds numbers drawn from seed i."

    def __init__(self, n, deaf=(), blind=(), names="clip {}"):
        self.order = [names.format(i) for i in range(n)]
        self.number = {k: i for i, k in enumerate(self.order)}
        self.deaf, self.blind = deaf, blind

    def keys(self, split=None):
        return self.order

    def row(self, key):
        i = self.number[key]
        return dict(
            label="dog barking",
            split="val" if i % 5 == 0 else "train",
            group=str(i // 2),
            captions=json.dumps([f"a dog {i}", "ein Hünd"]),
            attributes=json.dumps(dict(label="dog barking", count=None)),
            has_audio=i not in self.deaf,
            has_video=i not in self.blind,
        )

    def stack(self, modality, keys):
        shape = (4, 6) if modality == "mel" else (2, 4, 4, 3)
        return np.stack(
            [
                np.random.default_rng([self.number[k], modality == "mel"]).integers(
                    0, 60_000, shape
                )
                for k in keys
            ]
        )


AUDIO, VIDEO = StandIn("a1", (2, 5)), StandIn("v1", (2, 2, 2), 64_000)


def wanted(clips, key, modality="video"):
    return (
        (AUDIO if modality == "audio" else VIDEO)
        .encode(torch.from_numpy(clips.stack("mel" if modality == "audio" else "frames", [key])))[0]
        .numpy()
    )


def tokens(tmp_path, n=12, layout="auto", **kw):
    clips = Clips(n, **kw)
    return clips, tokenize_dataset(
        clips, tmp_path / "tokens", AUDIO, VIDEO, layout=layout, batch_size=5
    )


def contents(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(Path(folder).rglob("*"))
        if p.is_file()
    }


@pytest.mark.parametrize("layout", ["folder", "shards"])
def test_what_is_written_is_read(tmp_path, layout):
    clips, out = tokens(tmp_path, layout=layout, deaf=(3,), blind=(7,))
    ds = TokenDataset(out, audio=AUDIO, video="v1")
    assert len(ds) == 12 and ds.keys == clips.keys() and ds.modalities["video"]["grid"] == [2, 2, 2]
    for i, key in enumerate(ds.keys):
        assert (ds.ids("audio", [key])[0] == (0 if i == 3 else wanted(clips, key, "audio"))).all()
        assert (ds.ids("video", [i])[0] == (0 if i == 7 else wanted(clips, key))).all()
    assert (
        ds.ids("video").dtype == np.int64 and ds.ids("video").max() > 2**15
    )  # 64,000 ids need more than 16 bits
    assert list(np.flatnonzero(~ds.present("audio"))) == [3] and list(
        np.flatnonzero(~ds.present("video"))
    ) == [7]
    assert (
        ds.rows[2]["captions"] == ["a dog 2", "ein Hünd"]
        and ds.rows[2]["attributes"]["label"] == "dog barking"
        and ds.rows[2]["group"] == "1"
    )
    assert list(ds.split("val")) == [0, 5, 10] and len(ds.split(None)) == 12


def test_layout_follows_the_number_of_clips(tmp_path, monkeypatch):
    monkeypatch.setattr("scene4m.base.store.FOLDER_LIMIT", 10)
    monkeypatch.setattr("scene4m.tokenize.SHARD_SIZE", 4)
    _, out = tokens(tmp_path, 11)
    assert sorted(p.name for p in (out / "audio").iterdir()) == [
        f"shard-{i:05d}.tar" for i in range(3)
    ]
    small = tokenize_dataset(Clips(3), tmp_path / "small", AUDIO, None)
    assert sorted(p.name for p in (small / "audio").iterdir()) == [
        f"clip%20{i}.npy" for i in range(3)
    ]
    assert TokenDataset(out).keys == Clips(11).keys()


def test_webdataset_reads_the_shards(tmp_path, monkeypatch):
    wds = pytest.importorskip("webdataset")
    monkeypatch.setattr("scene4m.tokenize.SHARD_SIZE", 5)
    clips, out = tokens(tmp_path, layout="shards", names="clip.v1 {}")
    for modality in ("audio", "video"):
        urls = [str(p) for p in sorted((out / modality).iterdir())]
        seen = list(wds.WebDataset(urls, shardshuffle=False).decode())
        assert [s["__key__"] for s in seen] == [
            file_stem(k) for k in clips.keys()
        ]  # the same names in every modality
        assert all(
            (s["npy"] == wanted(clips, k, modality)).all() for s, k in zip(seen, clips.keys())
        )


@pytest.mark.parametrize(
    "key", ["../../etc/passwd", "/abs", "a/b\\c", "-rf", "a b'\"\n", "日本語", "x.y.npy", "~"]
)
def test_no_key_leaves_the_folder(tmp_path, key):
    clips, out = tokens(tmp_path, 2, names=key + "{}")
    assert (
        set(os.listdir(out / "audio")) == {file_stem(k) + ".npy" for k in clips.keys()}
        and TokenDataset(out).keys == clips.keys()
    )
    assert (
        "/" not in file_stem(key)
        and "." not in file_stem(key)
        and file_stem(key) not in ("", ".", "..")
    )


def test_the_same_clips_give_the_same_bytes(tmp_path):
    for name in "ab":
        tokenize_dataset(Clips(9), tmp_path / name, AUDIO, VIDEO, layout="shards")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_second_run_does_nothing_and_a_broken_one_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("scene4m.tokenize.SHARD_SIZE", 4)
    _, out = tokens(tmp_path, layout="shards")
    before = contents(out)
    stamps = {p: p.stat().st_mtime_ns for p in (out / "video").iterdir()}
    tokens(tmp_path, layout="shards")
    assert stamps == {p: p.stat().st_mtime_ns for p in (out / "video").iterdir()}
    (out / "ledger" / "shard-00001.json").unlink()
    (out / "video" / "shard-00001.tar").write_bytes(b"half a f")
    tokens(tmp_path, layout="shards")
    assert contents(out) == before
    changed = {p.name for p in (out / "video").iterdir() if p.stat().st_mtime_ns != stamps.get(p)}
    assert changed == {"shard-00001.tar"}


SLOW = """
import sys, time; sys.path.insert(0, {tests!r})
import scene4m.tokenize as t; from test_tokenize import *
t.SHARD_SIZE = 3
class Slow(Clips):
    def stack(self, modality, keys): time.sleep(.01); return super().stack(modality, keys)
t.tokenize_dataset(Slow(30), {out!r}, AUDIO, VIDEO, batch_size=2, layout="shards"); print("done")
"""


def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("scene4m.tokenize.SHARD_SIZE", 3)
    want = contents(
        tokenize_dataset(Clips(30), tmp_path / "whole", AUDIO, VIDEO, batch_size=2, layout="shards")
    )
    out, rng, killed = tmp_path / "killed", np.random.default_rng(0), 0
    code = SLOW.format(tests=str(Path(__file__).parent), out=str(out))
    for _ in range(3):
        p = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
        )
        while p.poll() is None and not (out / "tokens.json").exists():
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.25))
        if p.poll() is None:
            p.send_signal(signal.SIGKILL)
            killed += 1
        p.communicate()
        if not json.loads((out / "tokens.json").read_text())["complete"]:
            with pytest.raises(BadInput, match="did not finish"):
                TokenDataset(out)
    assert killed
    tokenize_dataset(Clips(30), out, AUDIO, VIDEO, batch_size=2, layout="shards")
    assert {k: v for k, v in contents(out).items() if "/.tmp-" not in "/" + k} == want


DAMAGE = {
    "cut short": lambda p: p.write_bytes(p.read_bytes()[: len(p.read_bytes()) // 2]),
    "empty": lambda p: p.write_bytes(b""),
    "gone": lambda p: p.unlink(),
    "one bit": lambda p: p.write_bytes(
        p.read_bytes()[:800] + bytes([p.read_bytes()[800] ^ 1]) + p.read_bytes()[801:]
    ),
    "text": lambda p: p.write_text("hello"),
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize(
    "what", ["video/shard-00001.tar", "ledger/shard-00001.rows.jsonl", "ledger/shard-00001.json"]
)
def test_a_damaged_shard_is_left_out_and_named(tmp_path, monkeypatch, how, what):
    monkeypatch.setattr("scene4m.tokenize.SHARD_SIZE", 4)
    clips, out = tokens(tmp_path, layout="shards")
    if how == "one bit" and not what.startswith("video"):
        pytest.skip("the file is shorter than that")
    DAMAGE[how](out / what)
    with pytest.warns(UserWarning, match="shard-00001"):
        ds = TokenDataset(out)
    assert (
        len(ds) == 8
        and ds.keys == clips.keys()[:4] + clips.keys()[8:]
        and [s["shard"] for s in ds.skipped] == ["shard-00001"]
    )
    assert (ds.ids("video", ["clip 9"])[0] == wanted(clips, "clip 9")).all()


def test_nothing_readable_is_an_error(tmp_path):
    _, out = tokens(tmp_path)
    shutil.rmtree(out / "ledger")
    with pytest.raises(BadInput, match="no shard can be read"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        TokenDataset(out)
    with pytest.raises(BadInput, match="scene4m tokenize"):
        TokenDataset(tmp_path / "nowhere")


def test_other_tokenizers_are_noticed(tmp_path):
    _, out = tokens(tmp_path)
    with pytest.raises(ConfigMismatch, match="a1.*a2"):
        TokenDataset(out, audio=StandIn("a2", (2, 5)))
    with pytest.raises(ConfigMismatch, match="tokenize again"):
        TokenDataset(out).check(video="v2")
    assert (
        TokenDataset(
            tokenize_dataset(Clips(12), out, StandIn("a2", (2, 5)), VIDEO), audio="a2"
        ).check(video="v1")
        is None
    )  # all made anew


def test_ids_outside_the_vocabulary_are_not_read(tmp_path):
    _, out = tokens(tmp_path, layout="shards")
    about = json.loads((out / "tokens.json").read_text())
    about["modalities"]["video"]["vocab_size"] = 40_000
    (out / "tokens.json").write_text(json.dumps(about))
    with pytest.raises(BadInput), pytest.warns(UserWarning, match="outside 0 to 39999"):
        TokenDataset(out)


@pytest.mark.parametrize("data", [b"PK", b"floats", b"pickled"])
def test_what_is_no_array_of_ids_is_not_opened(tmp_path, data):
    "Also where its checksum is right."
    clips, out = tokens(tmp_path)
    array = out / "audio" / "clip%201.npy"
    if data == b"floats":
        data = npy_bytes(np.zeros(10))
    if data == b"pickled":
        data = array.read_bytes().replace(b"'<i2'", b"'|O' ")
    array.write_bytes(data)
    ledger = out / "ledger" / "shard-00000.json"
    told = json.loads(ledger.read_text())
    told["files"]["audio/clip%201.npy"] = [len(data), hashlib.sha256(data).hexdigest()]
    ledger.write_text(json.dumps(told))
    with pytest.raises(BadInput), pytest.warns(UserWarning, match="are not 10 ids"):
        TokenDataset(out)


def test_a_stream_takes_no_memory(tmp_path):
    "Ids and rows are read when they are asked for: what stays of a clip is some hundred bytes."
    a = StandIn("a", (100, 10))

    class Large(Clips):
        def row(self, key):
            return dict(super().row(key), captions=json.dumps(["a dog barks " * 200]))

        def stack(self, modality, keys):
            return np.zeros((len(keys), 1000), np.int64)

    out = tokenize_dataset(Large(2000), tmp_path / "t", a, layout="shards")
    tracemalloc.start()
    ds = TokenDataset(out)
    for i in range(0, 2000, 20):
        ds.batch(np.arange(i, i + 20))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held / len(ds) < 1500  # ids and captions are 4,400


def test_bad_arguments(tmp_path):
    with pytest.raises(BadInput, match="no tokenizer"):
        tokenize_dataset(Clips(2), tmp_path / "x")
    with pytest.raises(BadInput, match="no clips"):
        tokenize_dataset(Clips(0), tmp_path / "x", AUDIO)
    with pytest.raises(BadInput, match="no layout"):
        tokenize_dataset(Clips(2), tmp_path / "x", AUDIO, layout="zip")
    with pytest.raises(BadInput, match="no clip of the data set has it"):
        tokenize_dataset(Clips(2, deaf=(0, 1)), tmp_path / "x", AUDIO)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written"):
        tokenize_dataset(Clips(2), tmp_path / "file" / "x", AUDIO)
    assert token_dtype(32_768) == np.int16 and token_dtype(32_769) == np.int32


def test_rows_without_a_label_or_captions():
    assert token_row(dict(key="a", label=None, captions="", attributes=float("nan"))) | {} == dict(
        key="a",
        label=None,
        split=None,
        group=None,
        content="",
        captions=[],
        attributes=None,
        has_audio=True,
        has_video=True,
        silent=False,
    )


# ---- the loader


@pytest.fixture(scope="module")
def ds(tmp_path_factory):
    return TokenDataset(
        tokenize_dataset(
            Clips(53, deaf=(1,)), tmp_path_factory.mktemp("t") / "tokens", AUDIO, VIDEO
        )
    )


def keys_of(ds, split, batch_size, n=10**9, **kw):
    "The keys of `n` batches of a split."
    order = BatchOrder(ds.split(split), batch_size, **kw)
    return [ds.batch(places)["keys"] for places, _ in zip(order, range(n))]


def test_batches_carry_what_training_needs(ds):
    b = ds.batch(BatchOrder(ds.split(None), 4, seed=1, shuffle=False).batch(0))
    assert (
        b["tokens"]["audio"].shape == (4, 10)
        and b["tokens"]["video"].shape == (4, 8)
        and b["tokens"]["video"].dtype == torch.int64
    )
    assert (
        b["present"]["audio"].tolist() == [True, False, True, True]
        and b["rows"][0]["captions"]
        and b["keys"] == ds.keys[:4]
    )


def test_same_seed_same_order_and_every_clip_once(ds):
    a, b, c = (keys_of(ds, "train", 4, seed=s, epochs=2) for s in (1, 1, 2))
    n = len(ds.split("train")) // 4
    assert a == b != c and len(a) == 2 * n and a[:n] != a[n:]
    assert len({k for ks in a[:n] for k in ks}) == 4 * n
    rest = keys_of(ds, "val", 4, shuffle=False, epochs=1)
    assert [k for ks in rest for k in ks] == [
        ds.keys[i] for i in ds.split("val")
    ]  # evaluation leaves nobody out


@pytest.mark.parametrize("at", [0, 1, 9, 10, 11, 25])
def test_resume_goes_on_exactly(ds, at):
    whole, order = keys_of(ds, "train", 4, 30, seed=3), BatchOrder(ds.split("train"), 4, seed=3)
    order.step = at
    rest = [ds.batch(places)["keys"] for places, _ in zip(order, range(30 - at))]
    assert rest == whole[at:]


def test_processes_share_the_clips(ds):
    one = keys_of(ds, "train", 8, 5, seed=5)
    parts = [keys_of(ds, "train", 4, 5, seed=5, rank=r, world=2) for r in (0, 1)]
    assert all(sorted(a + b) == sorted(w) and not set(a) & set(b) for a, b, w in zip(*parts, one))
    with pytest.raises(BadInput, match="too few"):
        BatchOrder(ds.split("train"), 4000)
    with pytest.raises(BadInput, match="split"):
        BatchOrder(ds.split("tset"), 4)


@pytest.mark.parametrize("workers", [0, 2])
def test_worker_processes_see_the_same_order(ds, workers):
    order = BatchOrder(ds.split("train"), 4, 3, epochs=1)
    loader = torch.utils.data.DataLoader(ds, sampler=order, batch_size=None, num_workers=workers)
    assert [b["keys"] for b in loader] == keys_of(ds, "train", 4, seed=3, epochs=1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_plain_loader_stacks_clips(ds, workers):
    "Whoever knows torch and not this page: the default loader gives every clip once, in batches of the form of ours."
    seen = []
    for batch in torch.utils.data.DataLoader(ds, batch_size=2, num_workers=workers):
        ours = ds.batch(batch["index"].numpy())
        seen += batch["keys"]
        assert batch["keys"] == ours["keys"] and set(batch) == set(ours) - {"rows"}
        for part in ("tokens", "present"):
            assert all(torch.equal(batch[part][m], ours[part][m]) for m in ds.modalities)
    assert seen == ds.keys


def test_one_clip_is_one_clip(ds):
    one = ds[-1]
    assert (
        one["keys"] == ds.keys[-1]
        and all(t.ndim == 1 for t in one["tokens"].values())
        and len(list(ds)) == len(ds)
    )
    with pytest.raises(IndexError, match="no clip"):
        ds[len(ds)]


def test_four_thousand_clips_in_four_shards(tmp_path):
    a, v = StandIn("a", (13, 5)), StandIn("v", (2, 8, 8))

    class Fast(Clips):
        def stack(self, modality, keys):
            return np.zeros((len(keys), 200), np.int64)

    out = tokenize_dataset(Fast(4000), tmp_path / "t", a, v)
    assert len(TokenDataset(out)) == 4000
    with tarfile.open(out / "video" / "shard-00003.tar") as tar:
        assert len(tar.getnames()) == 1000
