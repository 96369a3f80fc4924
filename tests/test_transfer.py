"""The transfer study on weights made here: files, refusals, and what a summary keeps."""

import json
import shutil

import numpy as np
import pytest
import torch

from scene4m.captions import TextTokenizer
from scene4m.worlds.street import BUS, DOG, WORLD, Attributes, grammar_texts
from scene4m.base.core import BadInput
from scene4m.fourm import FourM
from scene4m.masking import Text, TokenGrid
from scene4m.base.media import write_clip, write_wav
from scene4m.transfer import (
    BASE,
    SUMMARISER,
    Captioner,
    Summariser,
    Transfer,
    condense,
    fit_steps,
    load_captioner,
    plain_summary,
    read_frames,
    save_captioner,
    small_captioner,
    small_summariser,
    train_captioner,
    train_summariser,
    what_survives,
)


@pytest.fixture(scope="module")
def words():
    return TextTokenizer.train(grammar_texts())


@pytest.fixture(scope="module")
def folders(tmp_path_factory, words):
    "A base 4M and a T5, untrained and tiny, in the files that real ones come in."
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("weights")
    save_captioner(small_captioner(words, dim=32, encoder_depth=1, decoder_depth=1), root / "base")
    small_summariser(grammar_texts(), dim=32, layers=1).save_pretrained(root / "t5")
    return root


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    frames = np.zeros((40, 48, 48, 3), np.uint8)
    frames[..., 0] = np.linspace(0, 255, 40).astype(np.uint8)[:, None, None]
    return write_clip(tmp_path_factory.mktemp("film") / "film.mp4", frames, None, 4)


def test_sixteen_frames_are_spread_over_the_clip(film):
    frames = read_frames(film, size=32)
    red = frames[..., 0].mean((1, 2))
    assert frames.shape == (16, 32, 32, 3) and (np.diff(red) > 0).all() and red[-1] > 200


def test_a_clip_of_a_tenth_of_a_second_has_sixteen_frames_too(tmp_path):
    path = write_clip(tmp_path / "short.mp4", np.full((1, 32, 32, 3), 90, np.uint8), None, 10)
    assert read_frames(path, size=32).shape == (16, 32, 32, 3)


def test_the_study_from_folders(folders, film):
    study = Transfer(load_captioner(folders / "base"), Summariser.from_pretrained(folders / "t5"))
    a, b = study(film), study(film)
    assert (
        a.captions == b.captions
        and len(a.captions) == 16
        and a.plain == plain_summary(a.captions)
        and isinstance(a.summary, str)
    )
    assert json.loads(json.dumps(a.to_dict()))["summary"] == a.summary


def test_a_loaded_t5_is_the_one_that_was_saved(folders):
    made = small_summariser(grammar_texts(), dim=32, layers=1)
    loaded = Summariser.from_pretrained(folders / "t5")
    assert all(
        torch.equal(a, b)
        for a, b in zip(made.model.state_dict().values(), loaded.model.state_dict().values())
    )
    assert (
        loaded.read(["a red bus."])["input_ids"].tolist()
        == made.read(["a red bus."])["input_ids"].tolist()
    )


def test_the_same_folder_with_the_names_of_the_released_files(folders, tmp_path):
    copy = shutil.copytree(folders / "base", tmp_path / "4m")
    (copy / "text_tokenizer.json").rename(copy / "text_tokenizer_4m_wordpiece_30k.json")
    assert load_captioner(copy).size == 32


def one_sentence(error, *parts):
    text = str(error.value)
    assert "\n" not in text and all(p in text for p in parts), text


def test_folders_that_are_something_else(folders, tmp_path):
    with pytest.raises(BadInput) as e:
        Summariser.from_pretrained(folders / "base")
    one_sentence(e, "T5")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(BadInput) as e:
        Summariser.from_pretrained(tmp_path / "bert")
    one_sentence(e, "bert", "not a T5")
    with pytest.raises(BadInput) as e:
        load_captioner(folders / "t5")
    one_sentence(e, "t5")


def test_a_t5_without_its_weights_is_not_filled_with_random_ones(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(folders / "t5", tmp_path / "t5")
    tensors = load_file(copy / "model.safetensors")
    save_file(
        {k: v for k, v in tensors.items() if "decoder.block" not in k},
        copy / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(BadInput) as e:
        Summariser.from_pretrained(copy)
    one_sentence(e, "decoder.block", "missing")


def test_a_t5_with_damaged_weights_or_without_words(folders, tmp_path):
    copy = shutil.copytree(folders / "t5", tmp_path / "t5")
    (copy / "model.safetensors").write_bytes(b"12345678 no weights")
    with pytest.raises(BadInput) as e:
        Summariser.from_pretrained(copy)
    one_sentence(e, str(copy), "not a T5", "--t5")
    copy = shutil.copytree(folders / "t5", tmp_path / "mute")
    (copy / "tokenizer.json").unlink()
    with pytest.raises(BadInput) as e:
        Summariser.from_pretrained(copy)
    one_sentence(e, str(copy), "tokenizer.json", "--t5")


def test_nothing_is_fetched_unasked(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for load, name in (
        (load_captioner, BASE),
        (Summariser.from_pretrained, SUMMARISER),
        (load_captioner, tmp_path / "nowhere"),
    ):
        with pytest.raises(BadInput) as e:
            load(name)
        one_sentence(e, str(name), "folder", "download")


def test_a_base_without_its_words(folders, tmp_path):
    copy = shutil.copytree(folders / "base", tmp_path / "base")
    (copy / "text_tokenizer.json").unlink()
    with pytest.raises(BadInput) as e:
        load_captioner(copy)
    one_sentence(e, "text tokenizer")


def test_a_model_that_reads_no_pictures(words):
    model = FourM.toy(
        [TokenGrid("audio", 8, (2, 2)), Text("caption", words.vocab_size, 48)],
        dim=32,
        encoder_depth=1,
        decoder_depth=1,
        num_heads=2,
    )
    with pytest.raises(BadInput, match="no raw pictures"):
        Captioner(model, words)


def test_a_sound_has_no_frames(tmp_path):
    write_wav(tmp_path / "a.wav", np.full(8000, 0.1, np.float32), 16_000)
    with pytest.raises(BadInput, match="no picture"):
        read_frames(tmp_path / "a.wav")


def test_plain_summaries():
    assert plain_summary(["a car"]) == "A car."
    assert (
        plain_summary(["a dog"] * 2 + ["a car"] * 5 + ["a bus"] * 3 + ["x"])
        == "A car. Before: a dog. Then: a bus."
    )
    assert plain_summary(["a dog"] * 2 + ["a car"] * 5, changes=0) == "A car."
    assert condense(["a", "a", "b.", "a"]) == "a. b. a."
    with pytest.raises(BadInput):
        plain_summary([])


def test_what_is_seen_and_what_is_only_heard_are_counted_apart():
    truths = [
        Attributes(label=BUS, colour="red", motion="left", on_screen=True),
        Attributes(label=DOG, on_screen=False),
    ]
    assert what_survives(
        ["A red bus is driving and moving right.", "A dog barks."],
        truths,
        [True, False],
        WORLD.parse,
        ("colour", "count", "motion"),
    ) == dict(thing=1.0, colour=1.0, count=None, motion=0.0, sound=1.0)


def test_both_parts_learn_what_they_are_shown(words):
    "Two colours, told apart by the base; two kinds of video, told apart by the T5."
    torch.set_num_threads(1)
    said = ("a red car is passing by.", "a blue dog is barking.")
    frames = np.zeros((8, 32, 32, 3), np.uint8)
    frames[::2, ..., 0], frames[1::2, ..., 2] = 220, 220
    base = small_captioner(words, dim=32, encoder_depth=1, decoder_depth=1)
    losses = train_captioner(
        base, frames, lambda i, rng: said[i % 2], steps=60, batch_size=8, lr=5e-3
    )
    assert losses[-1] < 0.3 * losses[0]
    assert [w.replace(" .", ".") for w in base(frames[:2], temperature=0)] == list(said)
    t5 = small_summariser(said, dim=32, layers=1)
    films = [[said[0]] * 16, [said[1]] * 16]
    train_summariser(t5, films, [[said[0]], [said[1]]], steps=80, batch_size=8, lr=1e-2)
    assert t5(films) == list(said)


def test_training_gives_back_every_loss():
    layer = torch.nn.Linear(2, 1)
    losses = fit_steps(layer, lambda step: layer(torch.ones(1, 2)).square().mean(), 5)
    assert len(losses) == 5 and losses[-1] < losses[0] and not layer.training


def test_the_command(folders, film, tmp_path, capsys):
    from scene4m.app.cli import main

    (tmp_path / "broken.mp4").write_text("not a clip")
    args = [
        "transfer",
        str(tmp_path / "broken.mp4"),
        str(film),
        "--base",
        str(folders / "base"),
        "--json",
    ]
    with pytest.raises(SystemExit) as e:
        main([*args, "--t5", str(folders / "t5")])
    lines = [json.loads(x) for x in capsys.readouterr().out.splitlines()]
    assert (
        e.value.code == 1 and set(lines[0]) == {"file", "error"} and len(lines[1]["captions"]) == 16
    )
    with pytest.raises(SystemExit) as e:
        main(["transfer", str(film), "--base", str(folders / "base"), "--t5", "none"])
    assert not e.value.code and "captions of 16 frames" in capsys.readouterr().out
    with pytest.raises(SystemExit) as e:
        main(["transfer", str(film), "--base", str(folders / "nowhere"), "--t5", "none"])
    captured = capsys.readouterr()
    assert e.value.code == 1 and captured.err.count("\n") == 1 and "nowhere" in captured.err
