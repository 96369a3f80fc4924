"""The whole fall in small: the same seed gives the same figures, and what is finished is not done again."""

import csv
import json

import pytest

from scene4m.worlds.street import DOG, HORN
from scene4m.base.core import BadInput, get_preset
from scene4m.describe import Describer
from scene4m.app.report import evaluate_folder
from scene4m.evaluate import derange, read_truth
from scene4m.base.media import write_wav
from scene4m.app.run import Stages, run_pipeline
from scene4m.worlds.toystreet import render_sound, sample_scene, write_scene

SMALL = dict(
    data=dict(n_train=32, n_val=14, n_test=14),
    audio=dict(steps=6, seconds=None),
    video=dict(steps=6, seconds=None),
    model=dict(dim=32, encoder_depth=1, decoder_depth=1, num_heads=2),
    train=dict(steps=4, seconds=None, batch_size=8),
)


def test_a_stage_is_skipped_until_its_settings_change(tmp_path):
    done = []
    for setting in (1, 1, 2):
        stage = Stages(tmp_path, say=lambda line: None)
        stage("a", setting, lambda: done.append("a"))
        stage("b", [0, "what a made"], lambda: done.append("b"))
    assert done == ["a", "b", "a"]  # b reads what it read before


def test_a_stage_is_done_again_where_what_it_made_is_gone(tmp_path):
    done = []
    for _ in range(3):
        Stages(tmp_path, say=lambda line: None)(
            "a", 0, lambda: done.append((tmp_path / "made").touch()), "made"
        )
        if len(done) == 1:
            (tmp_path / "made").unlink()
    assert len(done) == 2


def test_a_stage_that_fails_is_not_done(tmp_path):
    def fail():
        raise BadInput("no")

    with pytest.raises(BadInput):
        Stages(tmp_path, say=lambda line: None)("a", 0, fail)
    done = []
    Stages(tmp_path, say=lambda line: None)("a", 0, lambda: done.append(1))
    assert done == [1]


def test_a_run_under_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be made"):
        run_pipeline(tmp_path / "file" / "run", preset=get_preset("toy", **SMALL))


def test_lists_of_clips(tmp_path):
    with pytest.raises(BadInput, match="no such folder"):
        read_truth(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="truth.csv"):
        read_truth(tmp_path)
    with open(tmp_path / "labels.csv", "w", newline="") as f:
        csv.writer(f).writerows(
            [["file", "label"], ["-a b.mp4", "dog barking"], ["c.mp4", "opera"]]
        )
    assert [c.file.name for c in read_truth(tmp_path, [DOG])] == ["-a b.mp4"]
    with pytest.raises(BadInput, match="could be read"):
        evaluate_folder(tmp_path, workers=0)


def test_swapped_sounds_are_of_another_category():
    labels = [str(i % 5) for i in range(40)]
    assert all(labels[i] != labels[j] for i, j in enumerate(derange(labels)))


def test_a_folder_of_sounds_alone(tmp_path):
    scenes = [s for s in map(sample_scene, range(400)) if s.label in (DOG, HORN) and s.heard][:12]
    for scene in scenes:
        (tmp_path / "sounds" / scene.label).mkdir(parents=True, exist_ok=True)
        write_wav(
            tmp_path / "sounds" / scene.label / f"{scene.key}.wav", render_sound(scene), 16_000
        )
    report = run_pipeline(
        tmp_path / "run",
        data=tmp_path / "sounds",
        preset=get_preset("toy", **SMALL),
        workers=1,
        say=lambda line: None,
    )
    assert report["n"] >= 1
    said = Describer.from_pretrained(tmp_path / "run" / "model")(
        write_scene(scenes[0], tmp_path / "clip.mp4")
    )
    assert said.senses == dict(audio="used", video="missing")


def test_a_folder_that_cannot_be_judged_is_refused_before_the_training(tmp_path):
    scene = next(s for s in map(sample_scene, range(400)) if s.heard)
    (tmp_path / "sounds").mkdir(parents=True)
    write_wav(tmp_path / "sounds" / "a.wav", render_sound(scene), 16_000)
    with pytest.raises(BadInput, match="none of its clips has a label"):
        run_pipeline(
            tmp_path / "run",
            data=tmp_path / "sounds",
            preset=get_preset("toy", **SMALL),
            workers=1,
            say=lambda line: None,
        )
    assert (
        not (tmp_path / "run" / "audio_tokenizer").exists()
        and not (tmp_path / "run" / "training").exists()
    )


@pytest.mark.slow
def test_the_same_seed_gives_the_same_figures(tmp_path):
    first = run_pipeline(tmp_path / "a", preset=get_preset("toy", **SMALL), say=lambda line: None)
    second = run_pipeline(tmp_path / "b", preset=get_preset("toy", **SMALL), say=lambda line: None)
    changing = ("seconds", "machine")
    assert {k: v for k, v in first.items() if k not in changing} == {
        k: v for k, v in second.items() if k not in changing
    }
    assert json.loads((tmp_path / "a" / "report.json").read_text())["n"] == 14
