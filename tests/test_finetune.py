"Training: stopped or not, on one process or two, the same weights; what cannot be trained on is refused in one sentence."

import csv
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from scene4m.captions import TextTokenizer
from scene4m.worlds.street import LABELS, Attributes, write_captions
from scene4m.base.core import BadInput, ConfigMismatch, TrainingFailed
from scene4m.finetune import (
    FinetuneConfig,
    FinetuneTrainer,
    Stage,
    finetune,
    step_losses,
    total_counts,
)
from scene4m.objective import (
    CaptionSource,
    ModalityDropout,
    caption_entry,
    grid_entry,
    text_tokenizer_for,
)
from scene4m.tokenize import TokenDataset, tokenize_dataset

SMALL = dict(dim=32, encoder_depth=1, decoder_depth=1, num_heads=2)
TEST = dict(
    batch_size=8,
    targets=3,
    precision="fp32",
    attention="sdpa",
    model=SMALL,
    log_every=1,
    device="cpu",
)


class StandIn:
    "A tokenizer whose ids are stored already."

    def __init__(self, name, grid, vocab_size=40):
        self.fingerprint, self._grid, self.vocab_size = name, grid, vocab_size

    def grid(self, shape=None):
        return self._grid

    def encode(self, batch, lengths=None):
        return batch.long()


class Clips:
    "Clip i carries its label in its sound; clips 1, 11, 21 … have no sound, clips 2, 12, 22 … no picture."

    def __init__(self, n=40):
        self.n = n

    world = None

    def keys(self, split=None):
        return [f"clip{i}" for i in range(self.n)]

    def row(self, key):
        i = int(key[4:])
        a = Attributes(LABELS[i % 14], night=i % 2 == 0)
        return dict(
            label=a.label,
            split="val" if i % 10 == 9 else "train",
            group=str(i),
            captions=json.dumps(write_captions(a, 2, i)),
            attributes=json.dumps(a.to_dict()) if i % 3 else None,
            has_audio=i % 10 != 1,
            has_video=i % 10 != 2,
        )

    def stack(self, modality, keys):
        n = 6 if modality == "mel" else 8
        return np.stack(
            [
                np.random.default_rng([int(k[4:]), n]).integers(0, 40, n) * 0
                + int(k[4:]) % 14
                + np.arange(n)
                for k in keys
            ]
        )


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    torch.set_num_threads(1)
    return tokenize_dataset(
        Clips(),
        tmp_path_factory.mktemp("tokens") / "t",
        StandIn("a", (3, 2)),
        StandIn("v", (2, 2, 2)),
    )


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def same(a, b, tolerance=0.0):
    return max(float((a[k].float() - b[k].float()).abs().max()) for k in a) <= tolerance


def rows(folder):
    with open(Path(folder) / "log.csv") as f:
        return list(csv.DictReader(f))


PROGRAM = """
import sys, json, torch
torch.set_num_threads(1)
from scene4m.finetune import FinetuneConfig, Stage, finetune
settings = json.loads(sys.argv[3]); settings["stages"] = tuple(Stage(**s) for s in settings.pop("stages", [{}]))
finetune(sys.argv[1], sys.argv[2], FinetuneConfig(**settings))
extra = [m for m in ("av", "moviepy", "torchaudio", "torchvision", "transformers") if m in sys.modules]
assert not extra, extra
"""


def command(tokens, out, **settings):
    return [sys.executable, "-c", PROGRAM, str(tokens), str(out), json.dumps({**TEST, **settings})]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_the_text_form_is_that_of_4m():
    e = caption_entry([[50, 51], [60]])
    assert e["tensor"].tolist() == [[5, 5, 50, 51, 3, 6], [5, 5, 60, 3, 6, 0]]
    assert (~e["input_mask"]).int().tolist() == [[1, 0, 0, 0, 0, 0]] * 2
    assert (~e["target_mask"]).int().tolist() == [[0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0]]
    assert (
        e["decoder_attention_mask"].dtype == torch.int32
        and (e["decoder_attention_mask"] == (~e["target_mask"]).int()).all()
    )
    seen = caption_entry([[50, 51], [60]], seen=True)
    assert seen["tensor"].tolist() == [[50, 51, 3], [60, 3, 0]] and seen["target_mask"].all()
    assert caption_entry([list(range(50, 99))], max_tokens=10)["tensor"].shape == (1, 11)


def test_a_grid_shows_some_and_asks_for_others():
    order = torch.rand(5, 20, generator=torch.Generator().manual_seed(0)).argsort(1)
    e = grid_entry(torch.arange(100).view(5, 20), order, 4, 7)
    assert ((~e["input_mask"]).sum(1) == 4).all() and ((~e["target_mask"]).sum(1) == 7).all()
    assert not (~e["input_mask"] & ~e["target_mask"]).any()
    assert (e["decoder_attention_mask"].sum(1) == 7).all()
    first = (~e["target_mask"]).int().argmax(1)
    assert (e["decoder_attention_mask"][torch.arange(5), first] == 7).all()


def test_no_part_holds_padding_on_the_encoder_side(tokens):
    ds = TokenDataset(tokens)
    config = FinetuneConfig(**TEST)
    data = ModalityDropout(ds, CaptionSource(ds.rows, text_tokenizer_for(ds), ds.world), config)
    for scheme, seen in (("both", {15, 9, 7}), ("audio", {7, 1}), ("video", {9, 1}), ("none", {1})):
        parts = data(3, np.arange(40), scheme)
        assert {p.seen for p in parts} == seen and sum(len(p.places) for p in parts) == 40
        for p in parts:
            assert all((~e["input_mask"]).sum(1).unique().numel() == 1 for e in p.batch.values())
    assert set(data(0, np.arange(8), "audio")[0].counts) <= {"caption", "video"} and data(
        0, np.arange(8), "both"
    )[0].order == ["caption"]


def test_the_category_is_asked_for_in_every_step_and_never_shown(tokens):
    run = FinetuneTrainer(tokens, "unused", FinetuneConfig(steps=1, **TEST))
    assert run.learnt.labels == tuple(sorted(LABELS))
    for scheme in run.data.names:
        for p in run.data(2, run.places, scheme):
            e = p.batch["category"]
            assert (
                e["input_mask"].all()
                and not e["target_mask"].any()
                and p.counts["category"] == len(p.places)
            )
            assert [run.learnt.labels[i] for i in e["tensor"][:, 0]] == [
                run.ds.rows[i]["label"] for i in p.places
            ]


def test_token_dropout_leaves_tokens_out_and_asks_for_none_of_them(tokens):
    run = FinetuneTrainer(tokens, "unused", FinetuneConfig(steps=1, token_dropout=0.5, **TEST))
    left = []
    for step in (2, 2, 3):
        for p in run.data(step, run.places, "both"):
            for e in (p.batch[m] for m in ("audio", "video") if m in p.batch):
                seen, n = ~e["input_mask"], e["input_mask"].shape[1]
                assert (seen.sum(1) == round(n / 2)).all() and e["target_mask"].all()
            if "video" in p.batch:
                left.append((step, p.batch["video"]["input_mask"]))
    first, again, other = (next(m for s, m in group) for group in _in_threes(left))
    assert torch.equal(first, again) and not torch.equal(first, other)


def _in_threes(left: list) -> list:
    "What was drawn in three equally long runs, apart."
    n = len(left) // 3
    return [left[:n], left[n : 2 * n], left[2 * n :]]


def test_labels_are_learnt_and_kept(tokens, tmp_path):
    weights = dict(caption=1.0, audio=0.3, video=0.3, category=0.3)
    finetune(tokens, tmp_path / "r", FinetuneConfig(steps=60, lr=5e-3, weights=weights, **TEST))
    log = rows(tmp_path / "r")
    start, end = (
        np.mean([float(r["loss_category"]) for r in part]) for part in (log[:5], log[-5:])
    )
    assert end < 0.5 * start
    assert json.loads((tmp_path / "r" / "world.json").read_text())["labels"] == sorted(LABELS)

    class Few(Clips):
        def row(self, key):
            return dict(super().row(key), label="opera" if self.n == 21 else LABELS[0])

    few, strange = (
        tokenize_dataset(Few(n), tmp_path / f"t{n}", StandIn("a", (3, 2)), StandIn("v", (2, 2, 2)))
        for n in (20, 21)
    )
    assert FinetuneTrainer(
        few, "unused", FinetuneConfig(steps=1, **TEST), tmp_path / "r"
    ).learnt.labels == tuple(sorted(LABELS))  # in the model's order
    with pytest.raises(ConfigMismatch, match="does not know the label 'opera'"):
        finetune(strange, tmp_path / "x", FinetuneConfig(steps=1, **TEST), tmp_path / "r")


def test_clips_without_a_label_have_no_category(tmp_path):
    class Some(Clips):
        def row(self, key):
            return dict(super().row(key), label=None if int(key[4:]) % 2 else "purring")

    class Nothing(Clips):
        def row(self, key):
            return dict(super().row(key), label=None, attributes=None)

    for kind in ("toy", "paper"):
        some, nothing = (
            tokenize_dataset(
                c(20), tmp_path / kind / c.__name__, StandIn("a", (3, 2)), StandIn("v", (2, 2, 2))
            )
            for c in (Some, Nothing)
        )
        run = FinetuneTrainer(
            some, "unused", FinetuneConfig(steps=1, preset=kind, budgets=(6, 6), **TEST)
        )
        parts = run.data(0, run.places)
        asked = sum(p.counts.get("category", 0) for p in parts)
        assert 0 < asked <= 10 and (kind == "paper" or asked == 10)
        assert (
            "category"
            not in FinetuneTrainer(
                nothing, "unused", FinetuneConfig(steps=1, preset=kind, **TEST)
            ).model.modalities
        )


def test_counts_are_those_of_the_model(tokens):
    run = FinetuneTrainer(tokens, "unused", FinetuneConfig(steps=1, **TEST))
    for scheme in ("both", "audio", "none"):
        for p in run.data(1, run.places, scheme):
            out = run.model(p.batch, p.seen, p.said, order=p.order)
            assert {m: n for m, n in out.n_tokens.items() if n} == p.counts


def test_parts_add_up_to_the_whole(tokens):
    runs = [
        FinetuneTrainer(
            tokens, "unused", FinetuneConfig(steps=1, accumulate=a, **{**TEST, "batch_size": 16})
        )
        for a in (1, 3)
    ]
    grads = []
    for run in runs:
        parts = run.data(0, run.order.batch(0), "audio")
        step_losses(run.model, parts, total_counts(parts), run.c.weights, precision="fp32")
        grads.append({n: p.grad for n, p in run.model.named_parameters() if p.grad is not None})
    assert len(runs[1].data(0, runs[1].order.batch(0), "audio")) > len(
        runs[0].data(0, runs[0].order.batch(0), "audio")
    )
    assert same(*grads, 1e-6) and max(g.abs().max() for g in grads[0].values()) > 1e-3


def test_learning_falls(tokens, tmp_path):
    finetune(tokens, tmp_path / "r", FinetuneConfig(steps=60, lr=5e-3, **TEST))
    log = rows(tmp_path / "r")
    start, end = (np.mean([float(r["loss_caption"]) for r in part]) for part in (log[:5], log[-5:]))
    assert (
        end < 0.7 * start
        and len(log) == 60
        and float(log[-1]["lr"]) < 1e-4 < max(float(r["lr"]) for r in log)
    )
    from scene4m.fourm import FourM

    assert FourM.from_pretrained(tmp_path / "r").modalities["audio"].vocab_size == 40
    assert (
        TextTokenizer.from_pretrained(tmp_path / "r").vocab_size
        == text_tokenizer_for(TokenDataset(tokens)).vocab_size
    )


def test_killed_anywhere_the_same_command_ends_in_the_same_weights(tokens, tmp_path):
    settings = dict(steps=60, ema=0.9, save_every=0.0, muon_lr=1.0, stages=[dict(noise=0.2)])
    subprocess.run(command(tokens, tmp_path / "calm", **settings), check=True, env=ENVIRONMENT)
    for at in (3, 25):
        job = subprocess.Popen(command(tokens, tmp_path / "wild", **settings), env=ENVIRONMENT)
        while job.poll() is None:
            try:
                done = len(rows(tmp_path / "wild"))
            except OSError:
                done = 0
            if done >= at:
                break
            time.sleep(0.002)
        os.kill(job.pid, signal.SIGKILL)
        assert job.wait() == -signal.SIGKILL
    assert not (tmp_path / "wild" / "model.safetensors").exists()
    subprocess.run(command(tokens, tmp_path / "wild", **settings), check=True, env=ENVIRONMENT)
    assert same(weights(tmp_path / "calm"), weights(tmp_path / "wild"))
    quiet = [
        {k: v for k, v in r.items() if k not in ("clips_per_second", "data_share")}
        for r in rows(tmp_path / "wild")
    ]
    assert quiet == [
        {k: v for k, v in r.items() if k not in ("clips_per_second", "data_share")}
        for r in rows(tmp_path / "calm")
    ]


def two_processes(tokens, out, **settings):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    base = {
        **ENVIRONMENT,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "LOCAL_WORLD_SIZE": "2",
        "ACCELERATE_USE_CPU": "true",
    }
    jobs = [
        subprocess.Popen(
            command(tokens, out, **settings), env={**base, "RANK": str(r), "LOCAL_RANK": str(r)}
        )
        for r in range(2)
    ]
    assert [j.wait(timeout=400) for j in jobs] == [0, 0]


def test_two_processes_learn_what_one_does(tokens, tmp_path):
    settings = dict(
        steps=12, schemes=dict(both=0.4, audio=0.3, video=0.3), stages=[dict(noise=0.2)]
    )
    subprocess.run(command(tokens, tmp_path / "one", **settings), check=True, env=ENVIRONMENT)
    two_processes(tokens, tmp_path / "two", **settings)
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert len(one) == len(two) == 12
    for a, b in zip(one, two):
        assert {k for k in a if a[k]} == {k for k in b if b[k]}
        for k in a:
            if k.startswith(("loss", "grad")) and a[k]:
                assert abs(float(a[k]) - float(b[k])) < 1e-5 * max(1, float(a[k])), (
                    a["step"],
                    k,
                    a[k],
                    b[k],
                )
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"), 1e-4)


def test_ctrl_c_is_a_pause(tokens, tmp_path):
    settings = dict(steps=60)
    job = subprocess.Popen(
        command(tokens, tmp_path / "wild", **settings), env=ENVIRONMENT, stderr=subprocess.PIPE
    )
    while job.poll() is None:
        if (tmp_path / "wild" / "log.csv").exists() and len(rows(tmp_path / "wild")) >= 5:
            break
        time.sleep(0.002)
    job.send_signal(signal.SIGINT)
    _, err = job.communicate()
    assert job.returncode and b"KeyboardInterrupt" in err
    state = torch.load(tmp_path / "wild" / "last.pt", weights_only=True)
    assert 5 <= state["step"] < 60
    finetune(tokens, tmp_path / "wild", FinetuneConfig(**TEST, **settings))
    finetune(tokens, tmp_path / "calm", FinetuneConfig(**TEST, **settings))
    assert same(weights(tmp_path / "calm"), weights(tmp_path / "wild"))
    before = (tmp_path / "wild" / "model.safetensors").stat().st_mtime_ns
    finetune(tokens, tmp_path / "wild", FinetuneConfig(**TEST, **settings))
    assert (tmp_path / "wild" / "model.safetensors").stat().st_mtime_ns == before  # done is done


def test_a_budget_of_seconds_is_a_number_of_steps_from_then_on(tokens, tmp_path):
    finetune(tokens, tmp_path / "r", FinetuneConfig(seconds=0.5, **TEST))
    note = json.loads((tmp_path / "r" / "run.json").read_text())
    assert note["done"] and note["steps"] >= 1 and len(rows(tmp_path / "r")) == note["steps"]
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "run.json").write_text(json.dumps({**note, "done": False}))
    finetune(tokens, tmp_path / "again", FinetuneConfig(seconds=0.5, **TEST))
    assert same(weights(tmp_path / "r"), weights(tmp_path / "again"))


def test_diverging_stops_and_keeps_what_was_good(tokens, tmp_path, monkeypatch):
    import scene4m.finetune as ft

    real, calls = ft.step_losses, []

    def poisoned(model, *args, **kw):
        shares = real(model, *args, **kw)
        calls.append(1)
        if len(calls) == 7:
            model.mask_token.grad.fill_(float("nan"))
        return shares

    monkeypatch.setattr(ft, "step_losses", poisoned)
    with pytest.raises(
        TrainingFailed, match=r"step 6: .*clip\d+.*the weights of step [1-6] are kept"
    ):
        finetune(tokens, tmp_path / "r", FinetuneConfig(steps=20, save_every=0.0, **TEST))
    kept = torch.load(tmp_path / "r" / "last.pt", weights_only=True)
    assert (
        all(t.isfinite().all() for t in kept["model"].values())
        and not (tmp_path / "r" / "model.safetensors").exists()
    )
    monkeypatch.setattr(ft, "step_losses", real)  # the cause is gone: the same command goes on
    finetune(tokens, tmp_path / "r", FinetuneConfig(steps=20, save_every=0.0, **TEST))


def test_what_does_not_fit_is_named(tokens, tmp_path):
    config = FinetuneConfig(steps=2, **TEST)
    finetune(tokens, tmp_path / "r", config)
    other = tokenize_dataset(
        Clips(20), tmp_path / "t2", StandIn("b", (3, 2)), StandIn("v", (2, 2, 2))
    )
    with pytest.raises(
        ConfigMismatch, match="audio tokens of tokenizer a, the data hold those of b"
    ):
        finetune(other, tmp_path / "x", config, model=tmp_path / "r")
    larger = tokenize_dataset(
        Clips(20), tmp_path / "t3", StandIn("a", (3, 2), 99), StandIn("v", (2, 2, 2))
    )
    with pytest.raises(ConfigMismatch, match="audio: the model knows 40 tokens, the data have 99"):
        finetune(larger, tmp_path / "x", config, model=tmp_path / "r")
    with pytest.raises(ConfigMismatch, match="other settings .*lr"):
        finetune(tokens, tmp_path / "r", FinetuneConfig(**{**TEST, "lr": 1e-9}, steps=2))
    with pytest.raises(BadInput, match="steps, epochs or seconds"):
        finetune(tokens, tmp_path / "y", FinetuneConfig(**TEST))
    with pytest.raises(BadInput, match="no preset"):
        finetune(tokens, tmp_path / "y", FinetuneConfig(preset="grand", steps=1, **TEST))
    with pytest.raises(BadInput, match="No scheme"):
        finetune(tokens, tmp_path / "y", FinetuneConfig(steps=1, schemes=dict(audio=0.0), **TEST))
    with pytest.raises(BadInput, match="no tracker 'paper'"):
        finetune(tokens, tmp_path / "z", FinetuneConfig(steps=1, trackers=("paper",), **TEST))


def test_nothing_to_learn_from(tmp_path):
    class Held(Clips):
        def row(self, key):
            return dict(super().row(key), split="test")

    out = tokenize_dataset(Held(8), tmp_path / "t", StandIn("a", (3, 2)), StandIn("v", (2, 2, 2)))
    with pytest.raises(BadInput, match="no clip belongs to the split 'train'"):
        finetune(out, tmp_path / "r", FinetuneConfig(steps=1, **TEST))


def test_a_damaged_shard_is_left_out_and_noted(tmp_path, monkeypatch):
    monkeypatch.setattr("scene4m.tokenize.SHARD_SIZE", 10)
    out = tokenize_dataset(
        Clips(40), tmp_path / "t", StandIn("a", (3, 2)), StandIn("v", (2, 2, 2)), layout="shards"
    )
    path = out / "audio" / "shard-00001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(bytes(data))
    with pytest.warns(UserWarning, match="shard-00001"):
        finetune(out, tmp_path / "r", FinetuneConfig(steps=2, **TEST))
    note = json.loads((tmp_path / "r" / "run.json").read_text())
    assert [s["shard"] for s in note["skipped"]] == ["shard-00001"] and note["done"]


def test_a_frozen_trunk_stays(tokens, tmp_path):
    first = FinetuneTrainer(tokens, "unused", FinetuneConfig(steps=1, **TEST)).model.state_dict()
    finetune(tokens, tmp_path / "new", FinetuneConfig(steps=4, stages=(Stage("new"),), **TEST))
    after = weights(tmp_path / "new")
    trunk = [
        k
        for k in after
        if k.startswith(
            ("encoder.", "decoder.", "encoder_norm", "decoder_norm", "decoder_proj", "mask_token")
        )
    ]
    assert trunk and all(torch.equal(after[k], first[k]) for k in trunk)
    assert any(not torch.equal(after[k], first[k]) for k in after if "token_emb" in k)


def test_stages_follow_each_other_and_survive_a_kill(tokens, tmp_path):
    stages = [dict(train="new", share=0.5, lr=1e-2), dict(train="all", share=0.5)]
    settings = dict(steps=40, stages=stages, save_every=0.0)
    subprocess.run(command(tokens, tmp_path / "calm", **settings), check=True, env=ENVIRONMENT)
    job = subprocess.Popen(command(tokens, tmp_path / "wild", **settings), env=ENVIRONMENT)
    while job.poll() is None:
        if (tmp_path / "wild" / "log.csv").exists() and len(rows(tmp_path / "wild")) >= 24:
            break
        time.sleep(0.002)
    job.kill()
    job.wait()
    subprocess.run(command(tokens, tmp_path / "wild", **settings), check=True, env=ENVIRONMENT)
    assert same(weights(tmp_path / "calm"), weights(tmp_path / "wild"))
    rates = [float(r["lr"]) for r in rows(tmp_path / "wild")]
    assert (
        max(rates[:20]) == pytest.approx(1e-2)
        and max(rates[20:]) == pytest.approx(1.5e-3)
        and rates[20] > rates[19]
    )


def test_lora_trains_little_and_leaves_plain_matrices(tokens, tmp_path):
    pytest.importorskip("peft")
    from scene4m.fourm import FourM

    finetune(tokens, tmp_path / "base", FinetuneConfig(steps=4, **TEST))
    finetune(
        tokens,
        tmp_path / "r",
        FinetuneConfig(steps=4, stages=(Stage("lora"),), lora_rank=2, **TEST),
        model=tmp_path / "base",
    )
    before, after = weights(tmp_path / "base"), weights(tmp_path / "r")
    assert set(before) == set(after)
    change = after["encoder.0.attn.qkv.weight"] - before["encoder.0.attn.qkv.weight"]
    assert change.abs().max() > 0 and torch.linalg.matrix_rank(change, tol=1e-6) <= 2
    FourM.from_pretrained(tmp_path / "r")


@pytest.mark.slow
def test_the_papers_recipe_runs(tokens, tmp_path):
    config = FinetuneConfig(**{**TEST, "lr": 1e-3}, preset="paper", steps=6, budgets=(8, 8))
    finetune(tokens, tmp_path / "r", config)
    log = rows(tmp_path / "r")
    assert {"loss_audio", "loss_video", "loss_caption"} <= set(log[0]) and all(
        math.isfinite(float(r["loss"])) for r in log
    )
    stages = [
        dict(train="new", share=0.5),
        dict(train="all", share=0.5),
    ]  # what `paper` means when nothing is said
    two_processes(
        tokens, tmp_path / "two", preset="paper", steps=6, budgets=[8, 8], lr=1e-3, stages=stages
    )
    for a, b in zip(log, rows(tmp_path / "two")):
        assert abs(float(a["loss"]) - float(b["loss"])) < 1e-5 * float(a["loss"])


def test_trackers_by_name(tokens, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    finetune(tokens, tmp_path / "r", FinetuneConfig(steps=3, trackers=("tensorboard",), **TEST))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "r"))
    events.Reload()
    logged = [e.value for e in events.Scalars("loss_caption")]
    assert (
        np.allclose(logged, [float(r["loss_caption"]) for r in rows(tmp_path / "r")], rtol=1e-6)
        and (tmp_path / "r" / "log.png").stat().st_size > 5000
    )
