"Every setting is looked at before any work is done, and none is accepted in silence."

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from scene4m.app import cli
from scene4m.captions import FOURM_TOKENIZER, TextTokenizer
from scene4m.worlds.street import grammar_texts
from scene4m.base.core import PRESETS, BadInput, ClipSpec, ConfigMismatch, get_preset
from scene4m.finetune import FinetuneConfig, Stage, check_names, stages_of
from scene4m.fourm import FourM
from scene4m.masking import Text
from scene4m.app.run import Stages, check_preset, known_settings, split_settings


@pytest.fixture(autouse=True)
def nothing_begins(monkeypatch):
    "Where a refusal is missing, the test fails at once instead of training."

    def begin(self, name, *args):
        raise AssertionError(f"the stage {name} was begun")

    monkeypatch.setattr(Stages, "__call__", begin)


def typed(*args):
    "A command in this process."
    return CliRunner().invoke(cli.app, [str(a) for a in args], prog_name="scene4m")


def refused(tmp_path, *args):
    "The one sentence with which a command refuses to begin; nothing was made."
    done = typed(*args)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.exit_code == 1 and len(lines) == 1, done.output
    assert not list(tmp_path.iterdir()), "work was begun"
    return lines[0]


@pytest.mark.parametrize(
    "setting, words",
    [
        ("train.second=1", "There is no setting train.second. Did you mean seconds?"),
        ("data.foo=60", "There is no setting data.foo. `scene4m run --settings` lists them all."),
        (
            "modl.dim=64",
            "A preset has no part 'modl'; its parts are data, audio, video, model, train. Did you mean model?",
        ),
        ("video.sizes=64", "no setting video.sizes. Did you mean size?"),
        ("train.steps=many", "train.steps is to be a whole number, not 'many'"),
        ("train.steps=1.5", "train.steps is to be a whole number, not 1.5"),
        ("train.steps=true", "train.steps is to be a whole number, not True"),
        ("train.steps=0", "train.steps is to be above 0, not 0"),
        ("data.n_train=-5", "data.n_train is to be above 0, not -5"),
        ("train.seconds=Infinity", "train.seconds is to be above 0, not inf"),
        ("audio.lr=fast", "audio.lr is to be a number, not 'fast'"),
        ("train.seed=3", "There is no setting train.seed. The seed is set by --seed."),
        ("train.precision=fp8", "Precision 'fp8' is unknown"),
        ("audio.schedule=steep", "The schedule is cosine or linear or constant, not 'steep'"),
        ("train.schedule=steep", "The schedule is cosine or linear or constant, not 'steep'"),
        ("train.token_dropout=1.0", "token_dropout is a share from 0 to below 1, not 1.0"),
        ("audio.preset=best", "There is no preset 'best'"),
        ("train.preset=best", "There is no preset 'best' of training"),
        (
            'train.stages=[{"nois": 0.1}]',
            "A stage has no setting 'nois'; its settings are train, share, lr, noise. Did you mean noise?",
        ),
        ('train.trackers=["wandbe"]', "There is no tracker 'wandbe'"),
        ("video.size=64", "video.size is 64, and the clips have 32"),
        ("video.pretrained=./nowhere", "./nowhere: there is no such folder"),
        ("model.pretrained=./nowhere", "./nowhere: there is no such model folder"),
        ("model.text=nowhere.json", "nowhere.json: there is no such text tokenizer"),
        ("model.text=", "there is no such text tokenizer"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_before_work_starts(tmp_path, setting, words):
    assert words in refused(tmp_path, "run", "--out", tmp_path / "run", "--set", setting)


@pytest.mark.parametrize("part", ["audio", "video", "train"])
def test_two_durations_at_once_are_refused(tmp_path, part):
    both = ["--set", f"{part}.steps=4", "--set", f"{part}.seconds=60"]
    assert f"in one way, not by {part}.seconds and {part}.steps" in refused(
        tmp_path, "run", "--out", tmp_path / "run", *both
    )
    with pytest.raises(BadInput, match="in one way, not by epochs and seconds"):
        FinetuneConfig(epochs=1, seconds=1)
    assert get_preset("toy", **{part: dict(steps=4, seconds=None)}) and FinetuneConfig(steps=1)


@pytest.mark.parametrize(
    "args, words",
    [
        (
            ["train-audio", "data", "--set", "audio.step=3"],
            "There is no setting audio.step. Did you mean steps?",
        ),
        (
            ["train-audio", "data", "--set", "train.steps=3"],
            "this command has settings of audio only",
        ),
        (["train-video", "data", "--set", "video.patch=[3,3,3]"], "cannot be cut into patches"),
        (
            ["finetune", "tokens", "--set", "train.second=1"],
            "There is no setting train.second. Did you mean seconds?",
        ),
        (
            ["finetune", "tokens", "--set", "audio.steps=3"],
            "this command has settings of model and train only",
        ),
        (
            ["run", "--data", ".", "--set", "data.n_train=5"],
            "about the toy street, which is left out with --data",
        ),
    ],
)
def test_other_commands_look_at_theirs(tmp_path, args, words):
    assert words in refused(tmp_path, *args, "--out", tmp_path / "out")


def test_every_preset_passes_and_the_list_is_complete():
    for name in PRESETS:
        parts = (
            ("data", "audio", "video", "model", "train")
            if name != "paper"
            else ("data", "audio", "video", "train")
        )
        check_preset(get_preset(name), parts)
    shown = typed("run", "--settings").stdout.splitlines()
    assert [line.split()[0] for line in shown] == [
        f"{part}.{name}" for part, names in known_settings().items() for name in names
    ]
    assert next(line for line in shown if line.startswith("model.dim ")).split() == [
        "model.dim",
        "int",
        "160",
    ]


def test_the_weight_of_the_commitment_loss_goes_to_whom_it_suits():
    assert split_settings("audio", dict(beta=0.5)) == (dict(beta=0.5), {})
    assert split_settings("audio", dict(beta=[0.1, 0.5])) == ({}, dict(beta=[0.1, 0.5]))


def test_sizes_are_looked_at():
    check_preset(replace(get_preset("toy"), clip=ClipSpec(size=64)))
    with pytest.raises(BadInput, match="cannot be cut into patches"):
        check_preset(replace(get_preset("toy"), clip=ClipSpec(size=50)))
    with pytest.raises(BadInput, match="Clips with other seconds"):
        check_preset(replace(get_preset("toy"), clip=ClipSpec(seconds=5.0)))


class Grids:
    modalities = dict(audio={}, depth={})


def test_names_of_modalities_are_looked_at():
    for good in (
        dict(schemes={"both": 1, "audio+caption": 1, "video": 1, "depth": 1}),
        dict(weights=dict(caption=1, depth=1)),
    ):
        check_names(FinetuneConfig(**good), Grids)
    for bad, words in (
        (
            dict(schemes={"both": 1, "audoi+caption": 1}),
            "'audoi', as in the scheme 'audoi.caption'. Did you mean audio",
        ),
        (dict(weights=dict(captoin=1)), "'captoin', as in the weights. Did you mean caption"),
    ):
        with pytest.raises(BadInput, match=words):
            check_names(FinetuneConfig(**bad), Grids)
    assert stages_of(FinetuneConfig(stages=(Stage(), dict(lr=1e-3))))


# --- the words of a model to begin with


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    "A model folder without words, and the file of its words."
    folder = tmp_path_factory.mktemp("base")
    text = TextTokenizer.train(grammar_texts())
    torch.manual_seed(0)
    sizes = dict(dim=32, encoder_depth=1, decoder_depth=1, num_heads=2)
    FourM.toy([Text("caption", text.vocab_size, 48)], **sizes).save_pretrained(folder / "model")
    return folder / "model", text.save(folder / "words.json")


def test_the_paper_preset_asks_for_words_before_anything_is_trained(tmp_path):
    assert "--set model.text=FILE" in refused(
        tmp_path, "run", "--preset", "paper", "--out", tmp_path / "run"
    )
    assert "--text FILE" in refused(
        tmp_path, "finetune", "tokens", "--preset", "paper", "--out", tmp_path / "model"
    )


def test_words_of_another_model_are_refused(tmp_path, base):
    model, words = base
    other = TextTokenizer.train(["two words"]).save(tmp_path / "other.json")
    with pytest.raises(ConfigMismatch, match="do not belong together"):
        check_preset(
            get_preset("paper", model=dict(pretrained=str(model), text=str(other))), ("model",)
        )
    check_preset(
        get_preset("paper", model=dict(pretrained=str(model), text=str(words))), ("model",)
    )


@pytest.mark.parametrize("how", ["--text", "--set", "beside", "4M's name beside"])
def test_finetune_takes_the_words_it_asks_for(tmp_path, base, how):
    from scene4m.tokenize import tokenize_dataset
    from test_finetune import Clips, StandIn

    model, words = base
    tokens = tokenize_dataset(
        Clips(8), tmp_path / "t", StandIn("a", (3, 2)), StandIn("v", (2, 2, 2))
    )
    quick = [
        "--set",
        "train.steps=1",
        "--set",
        "train.batch_size=4",
        "--device",
        "cpu",
        "-m",
        model,
    ]
    if "beside" in how:
        name = "text_tokenizer.json" if how == "beside" else FOURM_TOKENIZER["name"]
        (model / name).write_bytes(Path(words).read_bytes())
        said = []
    else:
        said = ["--text", words] if how == "--text" else ["--set", f"model.text={words}"]
    done = typed("finetune", tokens, "--out", tmp_path / "out", *quick, *said)
    for name in ("text_tokenizer.json", FOURM_TOKENIZER["name"]):
        (model / name).unlink(missing_ok=True)
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out" / "text_tokenizer.json").read_text()) == json.loads(
        Path(words).read_text()
    )
