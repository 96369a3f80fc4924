"""The command line from outside: help, exit statuses, one sentence for every kind of bad input, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scene4m.app import cli, doctor

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    "run",
    "toy",
    "curate",
    "download",
    "train-audio",
    "train-video",
    "tokenize",
    "finetune",
    "calibrate",
    "evaluate",
    "describe",
    "transfer",
    "app",
    "doctor",
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    "Models this small are quicker on one thread, and much quicker on a busy machine."
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def scene4m(*args, **kw):
    "The command in a process of its own."
    return subprocess.run(
        [sys.executable, "-m", "scene4m", *map(str, args)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        **kw,
    )


def inside(*args):
    "The command in this process: much quicker, the same application."
    return CliRunner().invoke(cli.app, [str(a) for a in args], prog_name="scene4m")


def refuses(result, *words):
    "Exit status 1 and one clear sentence on stderr that holds all `words`; nothing else."
    err = [line for line in result.stderr.splitlines() if line.strip()]
    assert result.exit_code == 1, (result.exit_code, result.output)
    assert len(err) == 1 and err[0].startswith("scene4m: ") and err[0].rstrip()[-1] in ".;)", (
        result.stderr
    )
    assert (
        20 < len(err[0]) < 400 and "Traceback" not in result.output and "unexpected" not in err[0]
    ), err[0]
    for word in words:
        assert str(word) in err[0], f"{word!r} is not in {err[0]!r}"


# --- help and usage


def test_help_names_every_command():
    done = scene4m("--help")
    assert done.returncode == 0 and all(f"  {c} " in done.stdout for c in COMMANDS)
    assert not [x for x in done.stdout.splitlines() if x.startswith("  ") and x.endswith("...")], (
        "a summary is too long for one line"
    )


def test_help_waits_for_no_heavy_package():
    heavy = "{'torch', 'torchaudio', 'transformers', 'av', 'matplotlib', 'pandas', 'ipywidgets', 'moviepy'}"
    script = (
        "import sys; sys.argv = ['scene4m', '--help']\nfrom scene4m.app.cli import main\ntry: main()\nexcept SystemExit: pass\n"
        f"print('heavy:', sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "heavy: []", (
        done.stdout[-300:] + done.stderr[-300:]
    )


def test_the_list_of_commands_is_complete():
    assert {c.name or c.callback.__name__ for c in cli.app.registered_commands} == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    done = inside(command, "--help")
    assert done.exit_code == 0 and f"scene4m {command}" in done.stdout


def test_the_version():
    from scene4m import __version__

    assert inside("--version").stdout.strip() == f"scene4m {__version__}"


@pytest.mark.parametrize(
    "args",
    [
        ["fly"],
        ["describe"],
        ["toy", "--n", "many"],
        ["toy", "--n", "0"],
        ["run", "--colour", "red"],
    ],
    ids=lambda a: " ".join(a),
)
def test_wrong_usage_is_exit_status_2(args):
    done = inside(*args)
    assert done.exit_code == 2 and "Usage" in done.stderr and "Traceback" not in done.output


# --- bad input: one clear sentence, exit status 1


@pytest.fixture
def things(tmp_path):
    "Files and folders that cannot be used."
    (tmp_path / "empty").mkdir()
    (tmp_path / "unlabelled").mkdir()
    (tmp_path / "text.mp4").write_text("This is not a film. " * 50)
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "unlabelled" / "clip.mp4").write_text("not a film either")
    return tmp_path


@pytest.mark.parametrize("name", ["missing.mp4", "text.mp4", "zero.mp4", "empty"])
def test_describe_refuses_what_is_no_clip(things, name):
    done = inside("describe", things / name)
    assert done.exit_code == 1 and "Traceback" not in done.output
    assert name in done.stdout and "not described: " in done.stdout


@pytest.mark.parametrize("name", ["missing.mp4", "text.mp4", "zero.mp4", "empty"])
def test_describe_json_carries_the_error(things, name):
    done = inside("describe", "--json", things / name)
    line = json.loads(done.stdout)
    assert (
        done.exit_code == 1
        and set(line) == {"file", "error"}
        and line["file"] == str(things / name)
    )
    assert (
        15 < len(line["error"]) < 300
        and "\n" not in line["error"]
        and "unexpected" not in line["error"]
    )


@pytest.mark.parametrize("args", [["evaluate"], ["curate"], ["run", "--data"]], ids=" ".join)
@pytest.mark.parametrize("name", ["missing", "empty", "unlabelled", "file"])
def test_folders_that_cannot_be_used(things, args, name):
    out = [] if args == ["evaluate"] else ["--out", things / "out"]
    if args == ["curate"] and name == "unlabelled":
        pytest.skip("curation also takes clips without labels; it refuses them one by one")
    refuses(inside(*args, things / name, *out), things / name)


@pytest.mark.parametrize(
    "args",
    [["toy", "--n", "1"], ["run"], ["run", "--data", "CLIPS"], ["curate", "CLIPS"]],
    ids=" ".join,
)
def test_an_output_folder_below_a_file(things, args):
    args = [things / "unlabelled" if a == "CLIPS" else a for a in args]
    refuses(inside(*args, "--out", things / "file" / "out"), things / "file")


@pytest.mark.parametrize(
    "args, word",
    [
        (["run", "--preset", "huge"], "toy, shipped, paper"),
        (["run", "--set", "seconds=5"], "part.key=value"),
        (["run", "--set", "colour.seconds=5"], "colour"),
        (["train-audio", "MISSING"], "missing"),
        (["tokenize", "MISSING"], "missing"),
        (["finetune", "MISSING"], "missing"),
        (["download", "MISSING"], "missing"),
        (["app", "--model", "MISSING"], "missing"),
        (["app", "--model", "empty"], "config.json"),
        (["tokenize", "file", "--out", "tokens"], "scene4m curate"),
        (["train-video", "empty"], "scene4m curate"),
        (["finetune", "file"], "scene4m tokenize"),
        (["finetune", "empty"], "scene4m tokenize"),
        (["describe", "a.mp4", "b.mp4", "--vtt", "a.vtt"], "one clip"),
        (["describe", "text.mp4", "--vtt", "file/a.vtt"], "file/a.vtt"),
        (["describe", "text.mp4", "--vtt", "empty"], "this is a folder"),
        (["describe", "text.mp4", "--vtt", "text.mp4"], "the clip itself"),
    ],
    ids=lambda a: " ".join(a) if isinstance(a, list) else a,
)
def test_other_bad_input(things, args, word, monkeypatch):
    monkeypatch.chdir(things)
    refuses(inside(*["missing" if a == "MISSING" else a for a in args]), word)


def test_a_real_process_ends_with_the_same_status(things):
    done = scene4m("evaluate", things / "empty")
    assert done.returncode == 1 and done.stderr.startswith("scene4m: ") and done.stdout == ""
    assert scene4m("fly").returncode == 2


def test_debug_shows_where(things):
    for args in (
        ["--debug", "evaluate", things / "empty"],
        ["evaluate", things / "empty", "--debug"],
    ):
        done = scene4m(*args)
        assert done.returncode == 1 and "Traceback" in done.stderr and "BadInput" in done.stderr


def test_one_bad_clip_does_not_stop_the_others(monkeypatch):
    class Said:
        def __init__(self, file):
            self.file = file

        def to_dict(self):
            return dict(file=self.file)

    def check(clip):
        if clip == "bad.mp4":
            raise ValueError("bad.mp4: broken")

    clips = ["a.mp4", "bad.mp4", "c.mp4"]
    seen = list(cli.describe_clips(clips, lambda: lambda c: [Said(c)], check))
    assert [description is None for _, description in seen] == [False, True, False]
    assert [set(d) for d, _ in seen] == [{"file"}, {"file", "error"}, {"file"}]


# --- being stopped


@pytest.mark.skipif(os.name == "nt", reason="signals are sent differently on Windows")
def test_ctrl_c_is_one_line_and_130_and_the_same_command_goes_on(tmp_path):
    street = tmp_path / "street"

    def clips():
        return {p: p.stat().st_mtime_ns for p in street.glob("**/[!.]*.mp4")}

    args = [
        sys.executable,
        "-m",
        "scene4m",
        "toy",
        "--n",
        "400",
        "--workers",
        "1",
        "--out",
        str(street),
    ]
    running = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while running.poll() is None and len(clips()) < 2:
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate()
    assert running.returncode == 130, err
    assert "Stopped." in err and "goes on" in err and "Traceback" not in err
    kept = clips()
    assert 2 <= len(kept) < 400
    done = scene4m("toy", "--n", str(len(kept)), "--workers", "1", "--out", street)
    assert done.returncode == 0, done.stderr
    assert clips() == kept, "clips that were finished were made again"
    assert (street / "truth.csv").exists()


# --- the doctor


def test_the_doctor_looks_at_everything_and_says_what_to_do():
    done = inside("doctor", "--json")
    findings = json.loads(done.stdout)
    assert done.exit_code == 0 and {
        "python",
        "torch",
        "torchaudio",
        "processor",
        "model",
        "voila",
        "speech",
    } <= {f["name"] for f in findings}
    assert all(f["do"] for f in findings if f["state"] != "ok")
    assert {f["state"] for f in findings} <= {"ok", "note", "missing"}


def test_the_doctor_fails_where_something_needed_is_missing(monkeypatch):
    needs = ["no-such-package>=1", "ghost>=2; extra == 'dev'"]
    monkeypatch.setattr(doctor, "requires", lambda name: needs)
    done = inside("doctor")
    assert done.exit_code == 1 and "no-such-package" in done.stdout and "ghost" not in done.stdout


def test_the_cure_of_torchaudio_touches_compiled_files_only(monkeypatch, tmp_path):
    for name in ("__init__.py", "_torchaudio.abi3.so", "libtorchaudio.so", "libctc.so"):
        (tmp_path / name).touch()
    answers = iter([False, True])
    monkeypatch.setattr(doctor, "_torchaudio_lib", lambda: tmp_path)
    monkeypatch.setattr(doctor, "imports_cleanly", lambda package: next(answers))
    monkeypatch.setattr("torch.version.cuda", None)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    found = doctor.check_torchaudio(fix=True)
    assert (
        found["state"] == "ok"
        and "3 files" in found["found"]
        and [p.name for p in tmp_path.iterdir()] == ["__init__.py"]
    )


def test_the_cure_is_not_given_where_torch_is_built_for_cuda(monkeypatch, tmp_path):
    (tmp_path / "_torchaudio.abi3.so").touch()
    monkeypatch.setattr(doctor, "_torchaudio_lib", lambda: tmp_path)
    monkeypatch.setattr(doctor, "imports_cleanly", lambda package: False)
    monkeypatch.setattr("torch.version.cuda", "13.2")
    assert (
        doctor.check_torchaudio(fix=True)["state"] == "missing"
        and (tmp_path / "_torchaudio.abi3.so").exists()
    )


# --- with a model: an untrained one, made on the spot, says nonsense in the right form


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "A complete checkpoint folder with random weights."
    import torch

    from scene4m.audio_tokenizer import AudioTokenizer, AudioTokenizerConfig
    from scene4m.captions import TextTokenizer
    from scene4m.worlds.street import WORLD, grammar_texts
    from scene4m.scene_model import SceneModel
    from scene4m.fourm import FourM
    from scene4m.masking import Text, TokenGrid
    from scene4m.video_tokenizer import VideoTokenizer, VideoTokenizerConfig

    torch.manual_seed(0)
    audio, video = (
        AudioTokenizer(AudioTokenizerConfig()).eval(),
        VideoTokenizer(VideoTokenizerConfig()).eval(),
    )
    text = TextTokenizer.train(grammar_texts())
    grids = [
        TokenGrid(n, t.vocab_size, tuple(t.grid())) for n, t in (("audio", audio), ("video", video))
    ]
    net = FourM.toy(
        [*grids, Text("caption", text.vocab_size, 48), TokenGrid("category", 14, (1, 1))],
        dim=32,
        encoder_depth=1,
        decoder_depth=1,
        num_heads=2,
    )
    model = SceneModel(net, dict(audio=audio, video=video), text, WORLD)
    return model.save_pretrained(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    "Three clips with their truth."
    folder = tmp_path_factory.mktemp("street")
    assert inside("toy", "--n", 3, "--workers", 1, "--out", folder).exit_code == 0
    return folder


FORM = {"file", "description", "confidence", "abstains", "senses", "categories", "seconds"}


def test_describe_json_is_one_object_per_line_and_goes_on_after_a_bad_clip(model, street, things):
    clips = sorted(street.glob("*.mp4"))
    done = inside("describe", "--json", "--model", model, clips[0], things / "zero.mp4", clips[1])
    lines = [json.loads(x) for x in done.stdout.splitlines()]
    assert done.exit_code == 1 and [x["file"] for x in lines] == [
        str(clips[0]),
        str(things / "zero.mp4"),
        str(clips[1]),
    ]
    assert set(lines[1]) == {"file", "error"}
    for x in (lines[0], lines[2]):
        assert (
            FORM <= set(x)
            and set(x["senses"]) == {"audio", "video"}
            and set(x["senses"].values()) <= {"used", "silent", "missing"}
        )
        assert len(x["categories"]) == 14 and abs(sum(c["p"] for c in x["categories"]) - 1) < 0.01
        assert 0 <= x["confidence"] <= 1 and isinstance(x["abstains"], bool)


def test_describe_in_words_says_how_sure_it_is_or_that_it_does_not_know(model, street):
    done = inside("describe", "--model", model, next(street.glob("*.mp4")))
    knows = "I do not know" not in done.stdout
    assert (
        done.exit_code == 0
        and ("sure: " in done.stdout) == knows
        and ("likely: " in done.stdout) == knows
    )


def test_subtitles(model, street, tmp_path):
    done = inside(
        "describe",
        "--model",
        model,
        "--vtt",
        tmp_path / "a" / "clip.vtt",
        next(street.glob("*.mp4")),
    )
    text = (tmp_path / "a" / "clip.vtt").read_text(encoding="utf-8")
    assert (
        done.exit_code == 0
        and text.startswith("WEBVTT\n")
        and "00:00:00.000 --> 00:00:10.000" in text
    )
    (tmp_path / "file").touch()
    done = inside(
        "describe",
        "--model",
        model,
        "--vtt",
        tmp_path / "file" / "clip.vtt",
        next(street.glob("*.mp4")),
    )
    refuses(done, "file")
    assert done.stdout == "", (
        "the clip was described before anybody looked whether there is a place for the subtitles"
    )


def test_subtitles_that_stand_there_stay_until_there_are_new_ones(model, things):
    (things / "old.vtt").write_text("WEBVTT\n")
    done = inside("describe", "--model", model, "--vtt", things / "old.vtt", things / "zero.mp4")
    assert done.exit_code == 1 and (things / "old.vtt").read_text() == "WEBVTT\n"
    assert not list(things.glob(".*"))


def test_a_sound_without_a_picture_is_said_to_be_one(model, tmp_path):
    import numpy as np

    from scene4m.base.media import write_wav

    write_wav(
        tmp_path / "tone.wav",
        0.3 * np.sin(2 * np.pi * 440 * np.arange(32_000) / 16_000).astype(np.float32),
        16_000,
    )
    done = inside("describe", "--json", "--model", model, tmp_path / "tone.wav")
    assert json.loads(done.stdout)["senses"] == dict(audio="used", video="missing")


def test_speaking_without_a_voice_is_refused_before_anything_is_computed(
    model, street, monkeypatch
):
    monkeypatch.setattr("shutil.which", lambda name: None)
    if sys.platform == "win32":
        pytest.skip("Windows always has a voice")
    done = inside("describe", "--speak", "--model", model, next(street.glob("*.mp4")))
    refuses(done, "espeak-ng")
    assert done.stdout == ""


def test_evaluate_json_has_the_fixed_form(model, street, tmp_path):
    done = inside(
        "evaluate", "--json", "--model", model, "--workers", 1, "--out", tmp_path / "report", street
    )
    report = json.loads(done.stdout.splitlines()[-1])
    assert done.exit_code == 0 and report["n"] == 3
    assert {
        "category_accuracy",
        "category_accuracy_by_sense",
        "attribute_accuracy",
        "exact_accuracy",
        "invented_rate",
        "chance",
        "cider_d",
        "ece",
        "seconds",
        "machine",
        "world_version",
        "imagined_sound_accuracy",
    } <= set(report)
    assert set(report["category_accuracy_by_sense"]) == {"both", "audio", "video", "none"}
    assert {"colour", "count", "motion", "night", "rain", "near", "on_screen"} == set(
        report["attribute_accuracy"]
    )
    assert (tmp_path / "report" / "report.html").exists()


def test_evaluate_prints_chance_beside_every_figure(model, street):
    done = inside("evaluate", "--model", model, "--workers", 1, street)
    assert done.exit_code == 0 and "chance" in done.stdout and "category accuracy" in done.stdout


def test_a_model_folder_with_a_part_missing_is_refused_once(model, street, tmp_path):
    import shutil

    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / "text_tokenizer.json").unlink()
    refuses(
        inside("describe", "--model", tmp_path / "model", *street.glob("*.mp4")),
        "text_tokenizer.json",
    )
    refuses(inside("describe", "--model", tmp_path / "nowhere", *street.glob("*.mp4")), "nowhere")


def test_clips_to_tokens_to_model_command_by_command(tmp_path):
    "The pieces of `run`, one by one, each through its own command."
    street = tmp_path / "street"
    assert (
        inside("toy", "--n", 3, "--split", "train", "--workers", 1, "--out", street).exit_code == 0
    )
    data, audio, video, tokens, model = (
        tmp_path / n for n in ("data", "audio", "video", "tokens", "model")
    )

    def quick(*settings):
        return [x for s in settings for x in ("--set", s)]

    training = quick("train.steps=4", "train.batch_size=2", "model.dim=48")
    for args in (
        ["curate", street, "--out", data, "--workers", 1],
        ["train-audio", data, "--out", audio, *quick("audio.steps=4")],
        ["train-video", data, "--out", video, *quick("video.steps=4")],
        ["tokenize", data, "--out", tokens, "--audio", audio, "--video", video],
        ["finetune", tokens, "--out", model, *training],
        ["calibrate", data, "--model", model, "--out", tmp_path / "done"],
    ):
        done = inside(*args)
        assert done.exit_code == 0, (args[0], done.output)
    for folder in (model, tmp_path / "done"):
        done = inside("describe", "--json", "--model", folder, next(street.glob("*.mp4")))
        assert done.exit_code == 0 and FORM <= set(json.loads(done.stdout)), done.output
    assert "temperature" in json.loads((tmp_path / "done" / "describe.json").read_text())
