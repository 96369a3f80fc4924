"A training that leaves the finite numbers: it stops before the step, writes nothing, and goes on with a lower rate."

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from scene4m import finetune as finetuning
from scene4m.base.core import BadInput, ConfigMismatch, TrainingFailed
from scene4m.finetune import FinetuneConfig, finetune
from scene4m.tokenize import tokenize_dataset
from scene4m.base.training import Trainer
from scene4m.vq import TokenizerTrainer, principal_axes, train_tokenizer
from test_finetune import TEST
from test_vq import CONFIG, DATA, SmallTokenizer


@pytest.fixture(autouse=True)
def always_due(monkeypatch):
    "Every step is saved, however long that takes, unless 99 seconds are asked for."
    monkeypatch.setattr(Trainer, "due", lambda self: self.every < 99.0)


class Poisoned(SmallTokenizer):
    "Its `bad`-th loss is not finite, or has a gradient that is not, as long as `ill`."

    bad, ill, calls, how = 7, True, 0, "loss"

    def loss(self, *args):
        loss, logs = super().loss(*args)
        type(self).calls += 1
        if not (self.ill and self.calls == self.bad):
            return loss, logs
        if self.how == "loss":
            return loss * float("inf"), logs
        root = (
            (self.dec.bias * 0).sum().sqrt()
        )  # finite, and its gradient is infinite times nothing
        return loss + root, logs


@pytest.mark.parametrize(
    "how, words", [("loss", "the loss is not finite"), ("gradient", "the gradient is not finite")]
)
@pytest.mark.parametrize("clip_grad", [1.0, 0.0])
def test_a_tokenizer_stops_before_the_step(tmp_path, how, words, clip_grad):
    kind = type("SmallTokenizer", (Poisoned,), dict(how=how))
    c = replace(CONFIG, save_every=0.0, clip_grad=clip_grad)
    tok = kind()
    with pytest.raises(
        TrainingFailed,
        match=rf"SmallTokenizer, step 6: {words} in the batch of clips \d+.*weights of step 6 are kept",
    ):
        train_tokenizer(tok, DATA, c, out=tmp_path, show=False)
    kept = torch.load(tmp_path / "last.pt", weights_only=True)
    assert kept["step"] == 6 and all(t.isfinite().all() for t in kept["model"].values())
    weights = {n: p for n, p in tok.named_parameters()}
    assert all(
        torch.equal(p, kept["model"][n]) for n, p in weights.items()
    )  # the seventh step was not taken
    assert not (tmp_path / "model.safetensors").exists()


def test_a_tokenizer_goes_on_with_a_lower_rate(tmp_path):
    kind = type("SmallTokenizer", (Poisoned,), {})
    c = replace(CONFIG, save_every=0.0)
    with pytest.raises(
        TrainingFailed, match="lower learning rate than 0.002, for example --set small.lr=0.001"
    ):
        train_tokenizer(kind(), DATA, c, out=tmp_path, show=False)
    kind.ill, rates, step = False, [], TokenizerTrainer.step
    with pytest.raises(ConfigMismatch, match="other settings"):
        train_tokenizer(kind(), DATA, replace(c, lr=0.1), out=tmp_path, show=False)
    with pytest.raises(ConfigMismatch, match="other settings"):
        train_tokenizer(kind(), DATA, replace(c, lr=0.001, batch_size=4), out=tmp_path, show=False)

    def watched(self, *args):
        logs = step(self, *args)
        rates.append(self.optimizer.param_groups[0]["lr"])
        return logs

    try:
        TokenizerTrainer.step = watched
        rows = train_tokenizer(kind(), DATA, replace(c, lr=0.0005), out=tmp_path, show=False)
    finally:
        TokenizerTrainer.step = step
    assert len(rates) == 54 and 0.0004 < max(rates) <= 0.0005  # six steps were done before
    note = json.loads((tmp_path / "training.json").read_text())
    assert note["done"] and note["rates"] == [
        dict(step=0, lr=[0.002]),
        dict(step=6, lr=[0.0005]),
    ]
    assert rows[-1]["step"] == 60
    assert train_tokenizer(
        SmallTokenizer(), DATA, c, out=tmp_path / "other", show=False
    )  # for comparison: nothing was noted there
    assert json.loads((tmp_path / "other" / "training.json").read_text())["rates"] == [
        dict(step=0, lr=[0.002])
    ]


def test_the_rate_may_be_lowered_twice_and_before_anything_was_saved(tmp_path):
    kind, c = type("SmallTokenizer", (Poisoned,), dict(bad=3)), replace(CONFIG, save_every=99.0)
    for rate in (0.002, 0.001):
        kind.calls = 0
        with pytest.raises(TrainingFailed, match="nothing had been saved yet"):
            train_tokenizer(kind(), DATA, replace(c, lr=rate), out=tmp_path, show=False)
    kind.ill = False
    train_tokenizer(kind(), DATA, replace(c, lr=0.0005), out=tmp_path, show=False)
    assert json.loads((tmp_path / "training.json").read_text())["rates"] == [
        dict(step=0, lr=[rate]) for rate in (0.002, 0.001, 0.0005)
    ]


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    def spoil(self, *args):
        logs = step(self, *args)
        if args[0] == spoiled:
            self.tok.dec.bias.data[0] = float("inf")  # what a step at a huge rate does
        return logs

    step = TokenizerTrainer.step
    try:
        TokenizerTrainer.step = spoil
        for spoiled, save_every in ((5, 0.0), (59, 99.0)):  # in the middle, and in the last step
            out = tmp_path / str(spoiled)
            with pytest.raises(
                TrainingFailed, match=f"step {spoiled + 1}: not every weight in dec.bias is finite"
            ):
                train_tokenizer(
                    SmallTokenizer(),
                    DATA,
                    replace(CONFIG, save_every=save_every),
                    out=out,
                    show=False,
                )
            assert not (out / "model.safetensors").exists()
    finally:
        TokenizerTrainer.step = step
    kept = torch.load(tmp_path / "5" / "last.pt", weights_only=True)
    assert kept["step"] == 5 and all(t.isfinite().all() for t in kept["model"].values())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_clip_that_is_not_finite_is_named(tmp_path, value):
    data = DATA.copy()
    data[33, 2, 1] = value
    names = [f"clip {i}.wav" for i in range(60)]
    with pytest.raises(
        BadInput,
        match=r"SmallTokenizer, step \d: not every number is finite in the clip clip 33.wav;",
    ):
        train_tokenizer(SmallTokenizer(), data, CONFIG, out=tmp_path, names=names, show=False)


class OnMps(torch.Tensor):
    "A tensor that says it is on MPS, where there is no float64."

    device = torch.device("mps")

    def double(self):
        raise TypeError("Cannot convert a MPS Tensor to float64")

    def to(self, *args, **kw):
        return torch.Tensor(self.numpy()).to(*args, **kw)


def test_principal_axes_need_no_float64_on_mps():
    z = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    for found, wanted in zip(
        principal_axes([z[:9].as_subclass(OnMps), z[9:].as_subclass(OnMps)], 3),
        principal_axes([z], 3),
    ):
        assert torch.allclose(found.abs(), wanted.abs(), atol=1e-4)


# --- 4M


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    from test_finetune import Clips, StandIn

    return tokenize_dataset(
        Clips(),
        tmp_path_factory.mktemp("tokens") / "t",
        StandIn("a", (3, 2)),
        StandIn("v", (2, 2, 2)),
    )


SETTINGS = dict(TEST, steps=20, save_every=0.0)


@pytest.fixture
def poison(monkeypatch):
    "A function that makes a later step's loss, gradient or weights infinite; called without arguments, nothing is any more."
    real = finetuning.step_losses

    def spoil(at=None, what=None):
        calls = []

        def step_losses(model, *args, **kw):
            shares = real(model, *args, **kw)
            calls.append(1)
            if len(calls) == at and what == "loss":
                shares["caption"] = shares["caption"] + float("inf")  # the gradient is finite
            if len(calls) == at and what == "gradient":
                model.mask_token.grad.fill_(float("nan"))
            if len(calls) == at and what == "weight":
                model.mask_token.data[0, 0, 0] = float("inf")
            return shares

        monkeypatch.setattr(finetuning, "step_losses", step_losses)

    return spoil


@pytest.mark.parametrize(
    "what, words",
    [
        (
            "loss",
            r"step 6: the loss of caption is not finite in the batch of clips clip\d+.*the weights of step 6 are kept",
        ),
        (
            "gradient",
            r"step 6: the gradient is not finite in the batch of clips clip\d+.*the weights of step 6 are kept",
        ),
        (
            "weight",
            r"step 7: not every weight in mask_token is finite; the weights of step 6 are kept",
        ),
    ],
)
def test_4m_stops_before_the_step_and_goes_on_with_a_lower_rate(
    tokens, tmp_path, poison, what, words
):
    poison(7, what)
    with pytest.raises(
        TrainingFailed,
        match=words
        + r".*with a lower learning rate than 0.0015, for example --set train.lr=0.00075\.",
    ):
        finetune(tokens, tmp_path, FinetuneConfig(**SETTINGS))
    kept = torch.load(tmp_path / "last.pt", weights_only=True)
    assert kept["step"] == 6 and all(t.isfinite().all() for t in kept["model"].values())
    assert not (tmp_path / "model.safetensors").exists()
    poison()
    for wrong in (dict(lr=0.01), dict(lr=0.00075, targets=2), dict(lr=0.00075, steps=30)):
        with pytest.raises(ConfigMismatch, match="other settings"):
            finetune(tokens, tmp_path, FinetuneConfig(**{**SETTINGS, **wrong}))
    finetune(tokens, tmp_path, FinetuneConfig(**SETTINGS, lr=0.00075))
    note = json.loads((tmp_path / "run.json").read_text())
    assert note["done"] and note["settings"]["lr"] == 0.00075
    assert note["rates"] == [dict(step=0, lr=[0.0015]), dict(step=6, lr=[0.00075])]
    with open(tmp_path / "log.csv") as f:
        rates = [float(row["lr"]) for row in csv.DictReader(f)]
    assert (
        len(rates) == 20
        and max(rates[:6]) == pytest.approx(0.0015)
        and 0.0005 < max(rates[6:]) < 0.00075
    )
    with pytest.raises(ConfigMismatch, match="other settings .*lr"):  # what is done stays as it is
        finetune(tokens, tmp_path, FinetuneConfig(**SETTINGS, lr=0.0005))


def test_the_rate_of_a_stage_may_be_lowered(tokens, tmp_path, poison):
    poison(12, "gradient")
    stages = [dict(share=1), dict(share=1, lr=0.001)]
    with pytest.raises(TrainingFailed, match="step 11: .*a lower lr of this stage in train.stages"):
        finetune(tokens, tmp_path, FinetuneConfig(**SETTINGS, stages=stages))
    poison()
    stages[1]["lr"] = 0.0005
    finetune(tokens, tmp_path, FinetuneConfig(**SETTINGS, stages=stages))
    assert json.loads((tmp_path / "run.json").read_text())["rates"] == [
        dict(step=0, lr=[0.0015, 0.001]),
        dict(step=11, lr=[0.0015, 0.0005]),
    ]


def test_weights_of_the_last_step_are_looked_at(tokens, tmp_path, poison):
    poison(20, "weight")
    with pytest.raises(
        TrainingFailed,
        match="step 20: not every weight in mask_token is finite; nothing had been saved yet",
    ):
        finetune(tokens, tmp_path, FinetuneConfig(**{**SETTINGS, "save_every": 99.0}))
    assert not (tmp_path / "model.safetensors").exists()
