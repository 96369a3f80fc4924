"""Muted clips and short ones: one rule for the data set, the tokenizers, 4M, calibration and describing; filling is not learnt."""

import numpy as np
import pytest

from scene4m.app import run
from scene4m.worlds.street import DOG
from scene4m.base.core import ClipSpec
from scene4m.curation import ClipDataset, RawClip, curate
from scene4m.describe import load_arrays
from scene4m.base.media import write_clip, write_wav
from scene4m.mel import MelFrontEnd
from scene4m.app.run import MelFeature, senses_of, sound_lengths, stored_clip, train_sense
from scene4m.tokenize import TokenDataset, token_row, tokenize_dataset

CLIP = ClipSpec()
TINY = dict(steps=2, seconds=None, codes=8, width=16, blocks=1, axes=0)


def frames(moving: bool, n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    one = rng.integers(0, 255, (1, 48, 64, 3), dtype=np.uint8)
    return np.concatenate([np.roll(one, 3 * k * moving, 2) for k in range(n)])


def noise(seconds: float, loud: float = 0.2) -> np.ndarray:
    return loud * np.random.default_rng(1).standard_normal(round(16_000 * seconds)).astype(
        np.float32
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "Clips that are loud, muted, muted and still, muted and short; silent sounds; a picture without sound."
    folder = tmp_path_factory.mktemp("clips") / DOG
    folder.mkdir()
    write_clip(folder / "loud.mp4", frames(True, 16), noise(2), 8)
    write_clip(folder / "muted.mp4", frames(True, 16), noise(2, 0), 8)
    write_clip(folder / "muted_still.mp4", frames(False, 16), noise(2, 0), 8)
    write_clip(folder / "muted_short.mp4", frames(True, 6), noise(0.75, 0), 8)
    write_clip(folder / "no_sound.mp4", frames(True, 16), None, 8)
    write_wav(folder / "loud_short.wav", noise(1.5), 16_000)
    out = folder.parent.parent / "data"
    curate(folder.parent, out, store=("frames",), features=dict(mel=MelFeature()))
    return folder, out


def test_the_data_set_says_what_describe_says(data):
    folder, out = data
    dataset = ClipDataset(out)
    assert len(dataset) == 6
    for key in dataset.keys():
        path = next(folder.glob(f"{key}.*"))
        described, stored = load_arrays(path, CLIP, MelFrontEnd()), stored_clip(dataset, key)
        assert described.senses == stored.senses, key
        assert (described.mel is None) == (stored.mel is None) and (described.frames is None) == (
            stored.frames is None
        ), key
    assert dataset.keys(modality="audio") == ["loud", "loud_short"]
    assert dataset.keys(modality="video") == [k for k in dataset.keys() if k != "loud_short"]


def test_4m_hears_what_describe_hears(data, tmp_path):
    from scene4m.audio_tokenizer import AudioTokenizer

    ds = TokenDataset(tokenize_dataset(data[1], tmp_path / "tokens", AudioTokenizer().eval()))
    assert [k for k, heard in zip(ds.keys, ds.present("audio")) if heard] == ["loud", "loud_short"]
    quiet = ds.ids("audio")[~ds.present("audio")]
    assert len(quiet) == 4 and not quiet.any()


@pytest.mark.parametrize(
    "row, heard",
    [
        (dict(has_audio=True, silent=False), True),
        (dict(has_audio=True, silent=True), False),
        (dict(has_audio=False, silent=True), False),
        ({}, True),
    ],
)
def test_a_row_of_tokens_is_heard_or_not(row, heard):
    assert token_row(dict(key="a", **row))["has_audio"] is heard


def learnt_from(monkeypatch, sense, data, out) -> tuple:
    seen = []
    monkeypatch.setattr(
        run,
        "train_tokenizer",
        lambda tok, arrays, config, out, lengths=None, **more: seen.append((arrays, lengths)),
    )
    train_sense(sense, data, out, TINY)
    return seen[0]


def test_tokenizers_learn_from_what_is_heard_and_seen(data, tmp_path, monkeypatch):
    arrays, lengths = learnt_from(monkeypatch, "audio", data[1], tmp_path / "a")
    assert (
        len(arrays) == len(lengths) == len([k for k in ClipDataset(data[1]).keys("train", "audio")])
    )
    assert all(94 <= n <= 130 for n in lengths) and arrays.shape[-1] == 624  # 1.5 s and 2 s of ten
    assert learnt_from(monkeypatch, "video", data[1], tmp_path / "v")[1] is None


def test_full_sounds_have_no_filling(tmp_path):
    curate(
        [RawClip(str(i), wave=noise(10), label=DOG) for i in range(2)], tmp_path, store=("audio",)
    )
    dataset = ClipDataset(tmp_path)
    assert sound_lengths(dataset, dataset.keys()) is None


def test_a_folder_of_muted_films_has_nothing_to_hear(tmp_path):
    (tmp_path / "in").mkdir()
    write_clip(tmp_path / "in" / "a.mp4", frames(True, 16), noise(2, 0), 8)
    curate(tmp_path / "in", tmp_path / "out", store=("frames",), features=dict(mel=MelFeature()))
    assert senses_of(tmp_path / "out") == ["video"]
