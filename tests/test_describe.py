"""From a file to a sentence: what is said, how surely, and what happens to files that are no clips."""
import json
import shutil

import numpy as np
import pytest

from scene4m.captions import LABELS
from scene4m.core import BadInput, ConfigMismatch
from scene4m.describe import (
    Describer, Description, candidate_captions, category_probabilities, describe_long, fit_temperature, load_checkpoint, to_vtt)
from scene4m.media import write_wav
from scene4m.toystreet import sample_scene, street_seed, write_scene

SHIPPED = pytest.importorskip("scene4m.describe").SHIPPED
pytestmark = pytest.mark.skipif(not (SHIPPED / "config.json").exists(), reason="no checkpoint is in the package; make one with make pretrained")


@pytest.fixture(scope="module")
def describer():
    return Describer.from_pretrained()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("street") / "clip.mp4"
    write_scene(sample_scene(street_seed("test", 11)), path)
    return path


def test_a_clip_has_the_fixed_form(describer, clip):
    d = describer(clip).to_dict()
    assert {"file", "description", "confidence", "abstains", "senses", "categories", "seconds"} <= set(d)
    assert d["senses"] == dict(audio="used", video="used") and len(d["categories"]) == len(LABELS)
    assert sum(c["p"] for c in d["categories"]) == pytest.approx(1, abs=0.01)
    assert [c["p"] for c in d["categories"]] == sorted((c["p"] for c in d["categories"]), reverse=True)
    json.dumps(d)


def test_a_sense_that_is_not_there_is_said_aloud(describer, clip, tmp_path):
    only_heard = describer(clip, senses=("audio",))
    assert only_heard.senses == dict(audio="used", video="missing") and "no picture" in only_heard.description
    write_wav(tmp_path / "silence.wav", np.zeros(16_000, np.float32), 16_000)
    silent = describer(tmp_path / "silence.wav")
    assert silent.senses == dict(audio="silent", video="missing") and silent.abstains


def test_noise_is_not_taken_for_a_street(describer, tmp_path):
    noise = np.random.default_rng(0).uniform(-0.9, 0.9, 160_000).astype(np.float32)
    write_wav(tmp_path / "noise.wav", noise, 16_000)
    d = describer(tmp_path / "noise.wav")
    assert d.abstains and d.reason and d.description.startswith("I do not know")


def test_files_that_are_no_clips(describer, tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a clip")
    for name in ("empty.mp4", "text.mp4", "nowhere.mp4"):
        with pytest.raises(BadInput) as e:
            describer(tmp_path / name)
        assert name in str(e.value) and "\n" not in str(e.value)


def test_checkpoints_that_are_not_whole(tmp_path):
    with pytest.raises(BadInput, match="no model folder"):
        load_checkpoint(tmp_path / "nowhere")
    copy = shutil.copytree(SHIPPED, tmp_path / "model")
    (copy / "text_tokenizer.json").unlink()
    with pytest.raises(BadInput, match="text_tokenizer.json"):
        load_checkpoint(copy)


def test_a_checkpoint_with_another_tokenizer(tmp_path):
    copy = shutil.copytree(SHIPPED, tmp_path / "model")
    settings = json.loads((copy / "describe.json").read_text())
    settings["fingerprints"]["audio"] = "0" * 12
    (copy / "describe.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigMismatch, match="audio tokenizer"):
        load_checkpoint(copy)


def test_windows_of_a_long_recording(describer, clip):
    got = list(describe_long(describer, clip, step=5.0))
    assert got[0].start == 0 and all(a.end <= b.end for a, b in zip(got, got[1:]))
    assert all(a.description != b.description for a, b in zip(got, got[1:]))


def test_vtt_survives_odd_sentences():
    d = Description("a.mp4", "One <b> & two -->\nthree", 0.5, False, dict(audio="used", video="used"), [], start=3599.9994, end=3601)
    text = to_vtt([d])
    assert text.startswith("WEBVTT\n") and "00:59:59.999 --> 01:00:01.000" in text
    assert "<b>" not in text and text.count("-->") == 1


def test_temperature_is_found_again():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(3000, 14)) * 8
    truth = np.array([rng.choice(14, p=p) for p in category_probabilities(scores, 3.0)])     # right as often as temperature 3 says
    assert fit_temperature(scores, truth) == pytest.approx(3.0, rel=0.1)


def test_every_category_is_put_into_the_sentence(describer, clip):
    from scene4m.captions import parse_caption
    sets = candidate_captions(parse_caption(describer(clip).guess))
    assert [parse_caption(s[0]).label for s in sets] == list(LABELS)


@pytest.mark.slow
def test_real_clips_never_end_in_a_traceback(describer, real_clips):
    videos = sorted((real_clips / "video").iterdir())
    sounds = sorted((real_clips / "audio").iterdir())[:100]
    outcomes = {"described": 0, "abstains": 0, "refused": 0}
    for path in videos + sounds:
        try:
            d = describer(path)
            outcomes["abstains" if d.abstains else "described"] += 1
            assert 0 <= d.confidence <= 1 and "used" in d.senses.values() or d.abstains
        except BadInput as e:
            outcomes["refused"] += 1
            assert "\n" not in str(e)
    print(outcomes)
    assert outcomes["refused"] <= 2
