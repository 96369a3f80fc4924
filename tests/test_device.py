"Where things are computed: the device that is picked, what it can do, and the option that names it."

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from scene4m.app import cli
from scene4m.base import core
from scene4m.base.core import BadInput, has_fast_bf16, pick_device


@pytest.mark.parametrize(
    "capability, fast",
    [((6, 1), False), ((7, 5), False), ((8, 0), True), ((8, 9), True), ((9, 0), True)],
)
def test_a_gpu_that_only_emulates_bfloat16_is_not_fast_at_it(monkeypatch, capability, fast):
    asked = []
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda *args, **kw: True
    )  # what torch says of every GPU
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device=None: asked.append(device) or capability
    )
    assert has_fast_bf16("cuda:1") is fast
    assert asked == [torch.device("cuda:1")]


@pytest.fixture
def devices(monkeypatch):
    "A function that says which devices there are; tensors stay on the CPU."

    def there(*names):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in names)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in names)
        zeros = torch.zeros
        monkeypatch.setattr(
            core.torch,
            "zeros",
            lambda n, device=None: zeros(n) if device.type in names else zeros(n, device=device),
        )

    return there


@pytest.mark.parametrize(
    "there, picked", [(("cpu",), "cpu"), (("cpu", "mps"), "mps"), (("cpu", "mps", "cuda"), "cuda")]
)
def test_the_best_device_is_picked(devices, there, picked):
    devices(*there)
    assert pick_device().type == picked
    assert pick_device("cpu").type == "cpu"


def test_a_device_that_is_not_there_is_refused(devices):
    devices("cpu")
    for name in ("mps", "cuda", "cuda:9", "meta", "abacus"):
        with pytest.raises(BadInput, match=f"device '{name}' cannot be used here"):
            pick_device(name)


def test_mps_has_no_fast_bfloat16():
    assert has_fast_bf16("mps") is False


# --- the option


COMPUTES = {
    "run": [],
    "train-audio": ["data"],
    "train-video": ["data"],
    "tokenize": ["data"],
    "finetune": ["tokens"],
    "calibrate": ["data"],
    "describe": ["CLIP"],
    "evaluate": ["STREET"],
    "transfer": ["CLIP", "--t5", "none"],
    "app": [],
}


@pytest.mark.parametrize("command", COMPUTES)
def test_every_command_that_computes_takes_a_device(command, tmp_path, monkeypatch):
    from scene4m.base.media import write_wav

    write_wav(tmp_path / "clip.wav", torch.rand(16_000).numpy() - 0.5, 16_000)
    (tmp_path / "street").mkdir()
    (tmp_path / "street" / "truth.csv").write_text("file,label\nclip.wav,dog barking\n")
    monkeypatch.chdir(tmp_path)
    places = {"CLIP": str(tmp_path / "clip.wav"), "STREET": str(tmp_path / "street")}
    args = [places.get(a, a) for a in COMPUTES[command]]
    done = CliRunner().invoke(cli.app, [command, *args, "--device", "abacus"])
    assert (
        done.exit_code == 1 and "The device 'abacus' cannot be used here; try 'cpu'." in done.output
    ), done.output


def test_no_other_command_computes():
    names = {c.name or c.callback.__name__ for c in cli.app.registered_commands}
    assert names - set(COMPUTES) <= {"toy", "curate", "download", "doctor"}


def test_the_trainings_take_the_threads_of_the_environment(monkeypatch):
    "`train-*` asks for no number of threads of its own."
    from scene4m.app import run

    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(
        run,
        "ClipDataset",
        lambda folder: (_ for _ in ()).throw(BadInput("this is as far as it goes.")),
    )
    done = CliRunner().invoke(cli.app, ["train-audio", "data"])
    assert "this is as far as it goes" in done.output and asked == []


def test_a_run_computes_where_it_is_told(monkeypatch, tmp_path):
    from scene4m.app import run
    from scene4m.base.core import get_preset

    said, works = {}, ("train_both", "make_tokens", "train_model", "calibrate_model")

    def note(*args, name, **how):
        said[name] = how["device"] if "device" in how else args[-1]

    for name in (*works, "evaluate_folder"):
        monkeypatch.setattr(run, name, partial(note, name=name))
    monkeypatch.setattr(run, "make_street", lambda *args: None)
    data = SimpleNamespace(identity="clips")
    stubs = dict(check_answers=None, ClipDataset=data, run_facts={}, read_json={})
    stubs |= dict.fromkeys(("_learnt", "content", "file_hash"), "content")
    for name, found in stubs.items():
        monkeypatch.setattr(run, name, lambda *args, found=found, **kw: found)
    run.run_pipeline(tmp_path, preset=get_preset("toy"), say=lambda line: None, device="cpu")
    assert said == dict.fromkeys((*works, "evaluate_folder"), "cpu")
