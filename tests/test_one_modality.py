"One modality alone, frames of another size, sentences of full length."

import json
from dataclasses import replace

import numpy as np
import pytest

from scene4m.audio_tokenizer import AudioTokenizer
from scene4m.worlds.street import LABELS
from scene4m.base.core import ClipSpec, TrainingFailed, get_preset
from scene4m.describe import (
    ClipArrays,
    Describer,
    calibrate,
    tokenize_arrays,
    write_sentences,
)
from scene4m.scene_model import SceneModel
from scene4m.app.report import evaluate_folder
from scene4m.finetune import FinetuneConfig, finetune
from scene4m.objective import caption_entry
from scene4m.base.media import write_wav
from scene4m.app.run import run_pipeline
from scene4m.tokenize import tokenize_dataset
from scene4m.worlds.toystreet import render_sound, sample_scene
from scene4m.video_tokenizer import VideoTokenizer
from test_finetune import TEST
from test_run import SMALL


class Heard:
    "A data set of sounds and pictures."

    def keys(self, split=None):
        return [f"c{i}" for i in range(8)]

    def row(self, key):
        return dict(
            label=LABELS[int(key[1:])],
            split="train",
            group=key,
            captions=None,
            attributes=None,
            has_audio=True,
            has_video=True,
        )

    def stack(self, modality, keys):
        rng = np.random.default_rng(0)
        if modality == "mel":
            return rng.standard_normal((len(keys), 80, 624)).astype(np.float16)
        return rng.integers(0, 256, (len(keys), 16, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module", params=["audio", "video"])
def trained(request, tmp_path_factory):
    "A folder that `finetune` wrote from tokens of one modality."
    place = tmp_path_factory.mktemp(request.param)
    tokenizer = AudioTokenizer() if request.param == "audio" else VideoTokenizer()
    tokens = tokenize_dataset(
        Heard(), place / "tokens", **{f"{request.param}_tokenizer": tokenizer.eval()}
    )
    return request.param, finetune(tokens, place / "model", FinetuneConfig(steps=2, **TEST))


def test_a_checkpoint_of_one_modality_describes_with_it(trained, tmp_path):
    sense, folder = trained
    checkpoint = SceneModel.from_pretrained(folder, "cpu")
    other = "video" if sense == "audio" else "audio"
    assert list(checkpoint.tokenizers) == [sense]
    clip = ClipArrays(
        np.zeros((16, 32, 32, 3), np.uint8),
        np.zeros((80, 624), np.float32),
        dict(audio="used", video="used"),
    )
    tokens = tokenize_arrays(checkpoint, [clip, clip])
    assert tokens.has[sense].all() and not tokens.has[other].any()
    calibrate(checkpoint, tokens, [LABELS[0], LABELS[1]])
    again = SceneModel.from_pretrained(checkpoint.save_pretrained(tmp_path / "m"), "cpu")
    assert write_sentences(again, tokens) == write_sentences(checkpoint, tokens)
    assert not (tmp_path / "m" / f"{other}_tokenizer").exists()
    scenes = [s for s in map(sample_scene, range(99)) if s.heard and s.label in LABELS[:8]][:3]
    rows = ["file,label"]
    for i, scene in enumerate(scenes):
        write_wav(tmp_path / f"{i}.wav", render_sound(scene), 16_000)
        rows.append(f"{i}.wav,{scene.label}")
    said = Describer(again)(tmp_path / "0.wav")
    assert said.senses["audio"] == ("used" if sense == "audio" else "missing")
    (tmp_path / "truth.csv").write_text("\n".join(rows))
    assert (
        evaluate_folder(tmp_path, tmp_path / "m", workers=0, out=tmp_path / "report", device="cpu")[
            "n"
        ]
        == 3
    )


def test_a_sentence_is_read_as_long_as_it_was_trained(trained, monkeypatch):
    "45 words, their end and the sentinels: as many as training takes of a long caption."
    from scene4m import describe

    _, folder = trained
    checkpoint = SceneModel.from_pretrained(folder, "cpu")
    words = list(range(210, 210 + 60))
    entry = caption_entry([words], FinetuneConfig().max_words)
    learnt = entry["tensor"][0][~entry["target_mask"][0]].tolist()
    asked = {}
    monkeypatch.setattr(
        describe, "generate_text", lambda model, batch, **kw: asked.update(kw) or [words]
    )
    clip = ClipArrays(
        np.zeros((16, 32, 32, 3), np.uint8),
        np.zeros((80, 624), np.float32),
        dict(audio="used", video="used"),
    )
    write_sentences(checkpoint, tokenize_arrays(checkpoint, [clip]))
    assert (
        asked["max_tokens"] == FinetuneConfig().max_words == 48
        and len(learnt) <= asked["max_tokens"]
    )


def test_frames_of_another_size_train_and_a_rate_that_was_too_high_is_lowered(tmp_path):
    "The run on frames of 64 pixels; trainings diverge, and it goes on with a lower rate."
    quick = {**SMALL, "data": dict(n_train=8, n_val=4, n_test=4)}

    def run(audio_lr, lr):
        calm = dict(
            save_every=9999.0
        )  # nothing is saved between the step that ruins the weights and the one that notices it
        rates = dict(
            audio={**quick["audio"], **calm, "lr": audio_lr},
            train={**quick["train"], **calm, "lr": lr},
        )
        preset = replace(get_preset("toy", **quick | rates), clip=ClipSpec(size=64))
        return run_pipeline(tmp_path, preset=preset, workers=1, say=lambda line: None, device="cpu")

    with pytest.raises(
        TrainingFailed,
        match=r"AudioTokenizer, step \d: .*with a lower learning rate than 1e\+30, for example --set audio.lr=5e\+29",
    ):
        run(1e30, 1e30)
    with pytest.raises(
        TrainingFailed,
        match=r"4M, step \d: .*with a lower learning rate than 1e\+30, for example --set train.lr=5e\+29",
    ):
        run(1e-3, 1e30)
    assert not (tmp_path / "training" / "model.safetensors").exists()
    report = run(1e-3, 1e-3)
    checkpoint = SceneModel.from_pretrained(tmp_path / "model", "cpu")
    assert (
        report["n"] == 4
        and checkpoint.tokenizers["video"].grid() == (2, 16, 16)
        and checkpoint.clip.size == 64
    )
    notes = [
        json.loads((tmp_path / p).read_text())["rates"]
        for p in ("audio_tokenizer/training.json", "training/run.json")
    ]
    assert notes == 2 * [[dict(step=0, lr=[1e30]), dict(step=0, lr=[1e-3])]]
