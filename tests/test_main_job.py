"""What `make run` promises on every machine: the same steps, the same arithmetic within rounding, and the truth about a bad outcome."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import scene4m.app.cli as cli
from scene4m.base import core
from scene4m.app import run
from scene4m.base.core import LATER, PRESETS, get_preset, has_fast_bf16, progress
from scene4m.app.report import verdict, verdict_html
from scene4m.base.training import Muon, Optimiser
from scene4m.app.run import Stages, expected_seconds, time_left

ROOT = Path(__file__).resolve().parents[1]
SHAPES = ((48, 16), (16, 48), (16, 16), (16, 16))


def muon_steps(make, steps: int = 5) -> list:
    "The weights after some steps with the same gradients."
    g = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape, generator=g)) for shape in SHAPES]
    optimiser = make(weights)
    for _ in range(steps):
        for w in weights:
            w.grad = torch.randn(w.shape, generator=g)
        optimiser.step()
    return [w.detach() for w in weights]


@pytest.mark.parametrize("fast", ["0", "1"], ids=["float32", "bfloat16"])
def test_muon_steps_as_the_one_of_torch_does_in_either_arithmetic(fast, monkeypatch):
    monkeypatch.setenv("SCENE4M_FAST_BF16", fast)
    settings = dict(lr=0.01, momentum=0.95, weight_decay=0.1)
    ours = muon_steps(lambda w: Muon(w, **settings))
    peer = muon_steps(lambda w: torch.optim.Muon(w, adjust_lr_fn="match_rms_adamw", **settings))
    start = muon_steps(lambda w: torch.optim.SGD(w, lr=0.0))
    for a, b, s in zip(ours, peer, start):
        assert (a - b).abs().max() < 0.03 * (b - s).abs().max()  # bfloat16 has two to three digits


def test_muon_leaves_bfloat16_alone_where_it_is_slow(monkeypatch):
    monkeypatch.setenv("SCENE4M_FAST_BF16", "0")
    monkeypatch.setattr(
        torch.Tensor,
        "to",
        lambda self, dtype, *a: (
            pytest.fail("cast") if dtype == torch.bfloat16 else self.type(dtype)
        ),
    )
    muon_steps(lambda w: Muon(w, lr=0.01), steps=1)


def test_muon_goes_on_from_its_state():
    def half(weights):
        class Twice:
            "An optimiser that is saved and read again before every step."

            def step(self):
                state = getattr(self, "state", None)
                fresh = Optimiser([dict(params=weights, muon=True)], lr=0.01)
                if state:
                    fresh.load_state_dict(state)
                fresh.step()
                self.state = fresh.state_dict()

        return Twice()

    for a, b in zip(muon_steps(half), muon_steps(lambda w: Muon(w, lr=0.01))):
        assert torch.equal(a, b)


def test_the_environment_says_whether_bfloat16_is_fast(monkeypatch):
    monkeypatch.setenv("SCENE4M_FAST_BF16", "0")
    assert (
        not has_fast_bf16("cpu")
        and not core.machine()["fast_bf16"]
        and not torch.is_autocast_enabled("cpu")
    )
    with core.autocast("cpu"):
        assert not torch.is_autocast_enabled("cpu")
    monkeypatch.setenv("SCENE4M_FAST_BF16", "1")
    assert has_fast_bf16("cpu")


def test_a_processor_with_bfloat16_is_tried_before_it_is_believed(monkeypatch):
    monkeypatch.delenv("SCENE4M_FAST_BF16", raising=False)
    for there, gain, fast in ((True, 2.0, True), (True, 0.7, False), (False, 2.0, False)):
        monkeypatch.setattr(core, "_cpu_has_bf16", lambda there=there: there)
        monkeypatch.setattr(core, "_bf16_gain", lambda gain=gain: gain)
        assert has_fast_bf16("cpu") is fast
    monkeypatch.undo()
    assert core._bf16_gain() > 0


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_number_of_steps(name):
    preset = get_preset(name)
    for part in (preset.audio, preset.video, preset.train):
        assert part.get("seconds") is None
    if name != "paper":
        assert all(part["steps"] > 0 for part in (preset.audio, preset.video, preset.train))


# pages that show what a time budget does
BUDGETS = {"00_core", "04_vq"}


def test_no_notebook_trains_by_the_clock():
    by_the_clock = re.compile(
        r"(?:TrainConfig|FinetuneConfig|training_config|get_preset)\([^\n]*\bseconds=\d"
    )
    for path in sorted((ROOT / "nbs").glob("**/*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        found = [
            c
            for c in cells
            if c["cell_type"] == "code" and by_the_clock.search("".join(c["source"]))
        ]
        assert not found or path.stem in BUDGETS, f"{path.name} trains for a number of seconds"


def test_waiting_threads_do_not_spin_for_long_unless_the_user_says_so():
    script = "import os, scene4m.app.cli; print(os.environ['GOMP_SPINCOUNT'])"
    for said, wanted in (({}, "2000"), ({"GOMP_SPINCOUNT": "77"}, "77")):
        env = (
            {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
            | said
            | dict(PYTHONPATH=str(ROOT))
        )
        done = subprocess.run(
            [sys.executable, "-c", script], env=env, capture_output=True, text=True
        )
        assert done.stdout.strip() == wanted, done.stderr


# --- the time left of the whole job


def test_every_stage_tells_the_time_left_of_the_whole_job(tmp_path, monkeypatch):
    clock = iter(range(0, 1000, 30))
    monkeypatch.setattr(core.time, "perf_counter", lambda: next(clock))  # every stage takes 30 s
    said, seen = [], []
    stage = Stages(tmp_path, said.append, expected=dict(a=10.0, b=20.0, c=40.0))
    for name in "abc":
        stage(name, 0, lambda: seen.append(float(os.environ[LATER])))
    assert seen == [
        60.0,
        120.0,
        0.0,
    ]  # 30 s instead of 10: three times as long; 30 s instead of 20: one and a half times
    assert (
        "about 70 s left" in said[0] and "about 3 min left" in said[2] and LATER not in os.environ
    )


def test_a_bar_adds_what_comes_later(monkeypatch):
    monkeypatch.setenv(LATER, "3600")
    bar = progress(range(10), total=10, disable=False)
    assert "whole job 1:00:00" in str(bar)
    bar.close()
    monkeypatch.delenv(LATER)
    assert "whole job" not in str(progress(range(10), total=10, disable=False))


def test_expected_seconds_follow_the_settings():
    toy = expected_seconds(get_preset("toy"))
    more = expected_seconds(
        get_preset("toy", train=dict(steps=2 * get_preset("toy").train["steps"]))
    )
    assert more["4M"] == 2 * toy["4M"] and more["clips"] == toy["clips"]
    assert expected_seconds(get_preset("toy", train=dict(seconds=9)))["4M"] == 9
    assert expected_seconds(get_preset("paper"), clips=1000)["4M"] > 0
    assert set(toy) == {"clips", "tokenizers", "tokens", "4M", "calibration", "evaluation"}


def test_time_left_in_words():
    assert [time_left(s) for s in (12, 89, 120, 7200)] == ["12 s", "89 s", "2 min", "2.0 h"]


# --- a model that is no better than a constant answer


@pytest.mark.parametrize("right, bad", [(0.05, True), (0.1, True), (0.11, False), (None, False)])
def test_a_bad_model_is_called_one(right, bad, tmp_path, monkeypatch):
    report = dict(category_accuracy=right, chance=dict(category_accuracy=0.1))
    assert bool(verdict(report)) is bad and ("#b00020" in verdict_html(report)) is bad
    monkeypatch.setattr(run, "run_pipeline", lambda *a, **k: report)
    for extra, status in (([], int(bad)), (["--allow-bad"], 0)):
        done = CliRunner().invoke(cli.app, ["run", "--out", str(tmp_path), *extra])
        assert done.exit_code == status and ("best constant answer 10.0 %" in done.output) is bad
