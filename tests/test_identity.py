"""Identity is content: replaced, added, removed and relabelled clips are noticed by every stage, and what is still true is not made again."""

import csv
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from scene4m import curation
from scene4m.app import run as run_module
from scene4m.audio_tokenizer import AudioTokenizer
from scene4m.worlds.street import DOG, HORN, LABELS
from scene4m.base.core import BadInput, ConfigMismatch, file_hash, get_preset
from scene4m.base import store
from scene4m.base.store import ShardJob
from scene4m.curation import ClipDataset, CurationSettings, _jobs, curate
from scene4m.evaluate import MelProbe
from scene4m.finetune import FinetuneConfig, finetune
from scene4m.base.media import write_wav
from scene4m.app.run import MelFeature, StreetSplits, run_pipeline, train_sense
from scene4m.tokenize import StoredModality, TokenDataset, tokenize_dataset

TINY = dict(steps=2, seconds=None, codes=8, width=16, blocks=1, axes=0, batch_size=4)
SMALL = FinetuneConfig(
    steps=2, batch_size=2, model=dict(dim=32, encoder_depth=1, decoder_depth=1, num_heads=2)
)
PRESET = replace(
    get_preset("toy"),
    audio=TINY,
    video=TINY,
    train=dict(steps=2, batch_size=4, lr=1e-3),
    model=dict(dim=32, encoder_depth=1, decoder_depth=1, num_heads=2),
)


def sound(path, seed: int):
    "A wav of one second; every one has as many bytes as every other."
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_wav(
        path, 0.3 * np.random.default_rng(seed).standard_normal(16_000).astype(np.float32), 16_000
    )


def recordings(folder, n: int = 12):
    for i in range(n):
        sound(folder / (DOG, HORN)[i % 2] / f"{i:02d}.wav", i)
    return folder


def write_list(path, names, rows):
    with open(path, "w", newline="") as f:
        csv.writer(f).writerows([names, *rows])


def replaced(folder):
    sound(folder / DOG / "04.wav", 104)


def added(folder):
    sound(folder / DOG / "03b.wav", 103)


def removed(folder):
    (folder / HORN / "05.wav").unlink()


def relabelled(folder):
    os.replace(folder / DOG / "06.wav", folder / HORN / "06.wav")


def kept_times(folder):
    "The same bytes elsewhere: size and modification time are those of before, the content is not."
    path = folder / DOG / "04.wav"
    old = path.stat()
    sound(path, 104)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert path.stat().st_size == old.st_size and path.stat().st_mtime_ns == old.st_mtime_ns


CHANGES = [replaced, kept_times, added, removed]


@pytest.fixture
def decoded(monkeypatch):
    "The files that curation decodes."
    seen, read = [], curation.read_row
    monkeypatch.setattr(
        curation, "read_row", lambda row, *more: seen.append(row.source) or read(row, *more)
    )
    return seen


def make(folder, out, **more):
    return curate(folder, out, store=("frames",), features=dict(mel=MelFeature()), **more)


def tree(folder, without=(".lock", ".hashes.json")) -> dict:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.endswith(without)
    }


# ---------------------------------------------------------------- curation


@pytest.mark.parametrize("layout", ["folder", "shards"])
@pytest.mark.parametrize("change", CHANGES)
def test_only_what_changed_is_decoded(tmp_path, decoded, change, layout):
    folder = recordings(tmp_path / "in")
    make(folder, tmp_path / "out", layout=layout, shard_size=5)
    before, made = ClipDataset(tmp_path / "out").identity, len(decoded)
    make(folder, tmp_path / "out", layout=layout, shard_size=5)
    assert (
        len(decoded) == made and ClipDataset(tmp_path / "out").identity == before
    )  # nothing changed, nothing is read
    change(folder)
    make(folder, tmp_path / "out", layout=layout, shard_size=5)
    assert len(decoded) - made == (0 if change is removed else 1)
    assert ClipDataset(tmp_path / "out").identity != before
    make(folder, tmp_path / "fresh", layout=layout, shard_size=5)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")  # nothing old is left


def test_new_labels_and_captions_decode_nothing(tmp_path, decoded):
    folder = recordings(tmp_path / "in")
    names = [str(p.relative_to(folder)) for p in sorted(folder.rglob("*.wav"))]

    def write(label, caption):
        rows = [(name, label if i == 3 else DOG, caption) for i, name in enumerate(names)]
        write_list(folder / "labels.csv", ("file", "label", "captions"), rows)

    found = []
    for label, caption in ((DOG, "a"), (HORN, "a"), (HORN, "b")):
        write(label, caption)
        make(folder, tmp_path / "out")
        found.append(ClipDataset(tmp_path / "out").identity)
    assert len(set(found)) == 3 and len(decoded) == 12
    row = ClipDataset(tmp_path / "out").all_rows.set_index("source").loc[names[3]]
    assert row.label == HORN and json.loads(row.captions) == ["b"]


def test_a_file_that_is_touched_is_not_decoded(tmp_path, decoded):
    folder = recordings(tmp_path / "in", 4)
    make(folder, tmp_path / "out")
    os.utime(folder / DOG / "00.wav", ns=(1, 1))
    make(folder, tmp_path / "out")
    assert len(decoded) == 4
    shutil.copytree(folder, tmp_path / "moved")
    make(tmp_path / "moved", tmp_path / "out")
    assert len(decoded) == 4


def test_files_are_hashed_once(tmp_path, monkeypatch):
    folder, hashed = recordings(tmp_path / "in", 4), []
    monkeypatch.setattr(store, "file_hash", lambda path: hashed.append(path) or file_hash(path))
    make(folder, tmp_path / "out")
    make(folder, tmp_path / "out")
    assert sorted(hashed) == sorted(
        map(str, folder.rglob("*.wav"))
    )  # all have the same size: duplicates are looked for by hash


@pytest.mark.parametrize("layout", ["folder", "shards"])
def test_a_change_that_is_interrupted_leaves_no_folder_half_new(
    tmp_path, decoded, monkeypatch, layout
):
    folder = recordings(tmp_path / "in")
    make(folder, tmp_path / "out", layout=layout, shard_size=4)
    for change in CHANGES:
        change(folder)
    with monkeypatch.context() as m:
        done = store._write_ledger

        def stop_at_the_second(job, *more):
            if job.index == 1:
                raise KeyboardInterrupt
            done(job, *more)

        m.setattr(store, "_write_ledger", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            make(folder, tmp_path / "out", layout=layout, shard_size=4)
    with pytest.raises(BadInput, match="not finished"):
        ClipDataset(tmp_path / "out")
    decoded.clear()
    make(folder, tmp_path / "out", layout=layout, shard_size=4)
    assert len(decoded) <= 1  # what was read before the stop is still known
    make(folder, tmp_path / "fresh", layout=layout, shard_size=4)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_the_street_is_the_same_in_every_process():
    def ids(seed):
        return [
            j.id
            for j in _jobs(
                StreetSplits(3, 2, seed), "out", CurationSettings(shard_size=2), {}, None
            )
        ]

    assert ids(0) == ids(0) != ids(1)
    assert isinstance(
        _jobs(StreetSplits(3, 2, 0), "out", CurationSettings(), {}, None)[0], ShardJob
    )


# ---------------------------------------------------------------- tokenizers, tokens, 4M, one by one


def step_by_step(folder, home) -> dict:
    "What the stepwise commands do, one after the other; the content of what each of them leaves."
    make(folder, home / "data")
    train_sense("audio", home / "data", home / "audio", TINY)
    tokenize_dataset(home / "data", home / "tokens", AudioTokenizer.from_pretrained(home / "audio"))
    finetune(home / "tokens", home / "model", SMALL, renew="clips")
    tokens = {k: v for k, v in tree(home / "tokens").items() if k.startswith(("audio", "ledger"))}
    return dict(
        data=ClipDataset(home / "data").identity,
        audio=file_hash(home / "audio" / "model.safetensors"),
        tokens=tokens,
        model=file_hash(home / "model" / "model.safetensors"),
        run=json.loads((home / "model" / "run.json").read_text())["fingerprint"],
    )


@pytest.mark.parametrize("change", [replaced, added, removed])
def test_the_same_commands_follow_the_clips(tmp_path, change, decoded):
    folder = recordings(tmp_path / "in")
    first = step_by_step(folder, tmp_path / "a")
    assert step_by_step(folder, tmp_path / "a") == first
    change(folder)
    second, fresh = step_by_step(folder, tmp_path / "a"), step_by_step(folder, tmp_path / "b")
    assert {**second, "model": ""} == {
        **fresh,
        "model": "",
    }  # as if it had been made of these clips from the beginning
    assert all(second[k] != first[k] for k in ("data", "tokens", "audio", "model", "run"))
    assert (
        TokenDataset(tmp_path / "a" / "tokens").keys == ClipDataset(tmp_path / "a" / "data").keys()
    )


def test_a_tokenizer_of_other_clips_is_set_aside_and_one_with_other_settings_is_refused(tmp_path):
    folder = recordings(tmp_path / "in")
    make(folder, tmp_path / "data")
    train_sense("audio", tmp_path / "data", tmp_path / "audio", TINY)
    old = file_hash(tmp_path / "audio" / "model.safetensors")
    with pytest.raises(ConfigMismatch, match="choose another folder.$"):
        train_sense("audio", tmp_path / "data", tmp_path / "audio", {**TINY, "steps": 3})
    for i in range(12):
        sound(folder / (DOG, HORN)[i % 2] / f"{i:02d}.wav", 100 + i)
    make(folder, tmp_path / "data")
    train_sense("audio", tmp_path / "data", tmp_path / "audio", TINY)
    assert (
        file_hash(tmp_path / "audio" / "model.safetensors")
        != old
        == file_hash(tmp_path / "audio.old" / "model.safetensors")
    )
    train_sense("audio", tmp_path / "data", tmp_path / "audio", {**TINY, "steps": 3}, renew="all")


def encoded(monkeypatch) -> list:
    seen, encode = [], StoredModality.encode
    monkeypatch.setattr(
        StoredModality,
        "encode",
        lambda self, arrays: seen.append(len(arrays)) or encode(self, arrays),
    )
    return seen


def test_only_new_clips_are_encoded(tmp_path, monkeypatch):
    folder, tokenizer = recordings(tmp_path / "in"), AudioTokenizer().eval()
    make(folder, tmp_path / "data")
    tokenize_dataset(tmp_path / "data", tmp_path / "tokens", tokenizer)
    seen = encoded(monkeypatch)
    for change, fresh in ((replaced, 1), (added, 1), (removed, 0), (relabelled, 0)):
        change(folder)
        make(folder, tmp_path / "data")
        seen.clear()
        tokenize_dataset(tmp_path / "data", tmp_path / "tokens", tokenizer)
        assert sum(seen) == 1 + fresh, change  # one more to see how many tokens there are
        tokenize_dataset(tmp_path / "data", tmp_path / "fresh", tokenizer)
        assert tree(tmp_path / "tokens") == tree(tmp_path / "fresh")
        shutil.rmtree(tmp_path / "fresh")


@pytest.mark.parametrize("layout", ["folder", "shards"])
def test_tokens_of_another_tokenizer_are_all_made_anew(tmp_path, layout):
    folder, other = recordings(tmp_path / "in"), AudioTokenizer()
    make(folder, tmp_path / "data")
    tokenize_dataset(tmp_path / "data", tmp_path / "tokens", AudioTokenizer().eval(), layout=layout)
    other.encoder.first.weight.data.mul_(-3)
    for out in ("tokens", "fresh"):
        tokenize_dataset(tmp_path / "data", tmp_path / out, other.eval(), layout=layout)
    assert tree(tmp_path / "tokens") == tree(tmp_path / "fresh")


def test_a_run_on_other_words_is_another_run(tmp_path):
    folder = recordings(tmp_path / "in")
    make(folder, tmp_path / "data")
    tokenize_dataset(tmp_path / "data", tmp_path / "tokens", AudioTokenizer().eval())
    finetune(tmp_path / "tokens", tmp_path / "model", SMALL)
    names = [p.relative_to(folder) for p in sorted(folder.rglob("*.wav"))]
    write_list(
        folder / "labels.csv", ("file", "label"), [(n, LABELS[i % 3]) for i, n in enumerate(names)]
    )
    make(folder, tmp_path / "data")
    tokenize_dataset(tmp_path / "data", tmp_path / "tokens", AudioTokenizer().eval())
    with pytest.raises(ConfigMismatch, match="clips"):
        finetune(tmp_path / "tokens", tmp_path / "model", SMALL)
    finetune(tmp_path / "tokens", tmp_path / "model", SMALL, renew="clips")
    assert (tmp_path / "model.old" / "model.safetensors").exists()
    with pytest.raises(ConfigMismatch, match="other settings .*steps"):
        finetune(tmp_path / "tokens", tmp_path / "model", replace(SMALL, steps=3), renew="clips")


# ---------------------------------------------------------------- the whole run


def run(folder, out) -> dict:
    "Runs everything; which stages were done, and the files that they left."
    said = []
    run_pipeline(out, data=folder, preset=PRESET, workers=0, say=said.append)
    return {
        line.split(":")[0][2:]: "done before" not in line for line in said if line.startswith("✓")
    }


@pytest.fixture
def hasty(monkeypatch):
    "The classifier of imagined sounds learns nothing here: that takes the longest."
    monkeypatch.setattr(
        run_module, "train_probe", lambda mels, truth, labels, **more: MelProbe(len(labels)).eval()
    )


def test_the_whole_run_follows_the_clips(tmp_path, decoded, hasty):
    folder, out = recordings(tmp_path / "in", 24), tmp_path / "run"
    assert all(run(folder, out).values())
    assert not any(run(folder, out).values())
    models = []

    def state():
        return file_hash(out / "audio_tokenizer" / "model.safetensors"), file_hash(
            out / "model" / "model.safetensors"
        )

    models.append(state())
    decoded.clear()
    added(folder)
    assert all(run(folder, out).values()) and len(decoded) == 1
    models.append(state())
    for i in range(14):
        sound(folder / (DOG, HORN)[i % 2] / f"{i:02d}.wav", 200 + i)
    assert all(run(folder, out).values()) and len(decoded) == 15
    models.append(state())
    assert len({m[0] for m in models}) == len({m[1] for m in models}) == 3
    os.utime(folder / DOG / "00.wav", ns=(5, 5))
    again = run(folder, out)
    assert (
        again.pop("clips") and not any(again.values()) and len(decoded) == 15
    )  # it was looked at, and it is what it was


def test_a_new_label_teaches_4m_and_not_the_tokenizers(tmp_path, decoded, hasty):
    folder, out = recordings(tmp_path / "in", 24), tmp_path / "run"
    names = [p.relative_to(folder) for p in sorted(folder.rglob("*.wav"))]

    def write(label):
        splits = ("train", "train", "val", "test")
        rows = [(n, label if i == 0 else n.parts[0], splits[i % 4]) for i, n in enumerate(names)]
        write_list(folder / "labels.csv", ("file", "label", "split"), rows)

    write(DOG)
    assert all(run(folder, out).values())
    decoded.clear()
    write(HORN)
    done = run(folder, out)
    assert not done.pop("tokenizers") and all(done.values()) and not decoded
