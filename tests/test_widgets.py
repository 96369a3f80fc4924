"The widgets without a browser: knobs are turned, parts read, and errors said in the panel."

import base64
import io
import re
import wave as wave_file
from datetime import datetime

import ipywidgets
import numpy as np
import pytest
import torch
from PIL import Image

from scene4m.app import widgets as w
from scene4m.audio_tokenizer import AudioTokenizer, AudioTokenizerConfig
from cosmos_pair import write_pair
from scene4m.app.cosmos import CosmosTokenizer
from scene4m.describe import Describer
from scene4m.base.media import write_wav
from scene4m.mel import MelFrontEnd
from scene4m.worlds.toystreet import sample_scene, street_clip
from scene4m.video_tokenizer import VideoTokenizer, VideoTokenizerConfig
from scene4m.vq import TrainConfig, TokenizerTrainer


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def describer():
    return Describer.from_pretrained()


@pytest.fixture(scope="module")
def clip():
    frames, wave = street_clip(sample_scene(40))
    return dict(key="a dog", frames=frames, wave=wave)


@pytest.fixture(scope="module")
def tokenizers(describer):
    return describer.checkpoint.tokenizers["audio"], describer.checkpoint.tokenizers["video"]


def picture(part) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(part.png)).convert("RGB"))


def sounds(part) -> list[np.ndarray]:
    "The samples of every WAV player in an HTML part."
    found = re.findall(r'<audio[^>]*src="data:audio/wav;base64,([^"]+)"', part.value)
    return [
        np.frombuffer(wave_file.open(io.BytesIO(base64.b64decode(f))).readframes(10**7), "<i2")
        for f in found
    ]


def message(panel) -> str:
    return panel.parts.message.value


def upload(name: str, content: bytes) -> list[dict]:
    return [
        dict(name=name, type="", size=len(content), content=content, last_modified=datetime.now())
    ]


# ---- sound


def test_a_changed_token_is_seen_and_heard_at_its_place(clip, tokenizers):
    panel = w.AudioWidget(clip, tokenizers[0])
    p = panel.parts
    assert not message(panel) and "Waveform" in p.picture.alt and picture(p.picture).std() > 10
    original, copy = sounds(p.original)[0], sounds(p.copy)[0]
    assert (
        len(original) == len(copy) == 160_000
        and np.abs(original / 32767 - clip["wave"]).max() < 1e-4
    )
    row, column = 2, panel.ids.shape[0] - 2
    p.tokens.grid[row][column].click()
    assert p.tokens.code.value == panel.ids[column, panel.ids.shape[1] - 1 - row]
    before = picture(p.picture)
    p.tokens.code.value = (p.tokens.code.value + 200) % tokenizers[0].vocab_size
    assert (
        panel.changed.startswith("1 of")
        and f"1 of {panel.ids.size}" in p.status.value
        and (picture(p.picture) != before).any()
    )
    gap = np.abs(sounds(p.copy)[0].astype(int) - copy).reshape(10, -1).mean(1)  # per second
    assert gap[8:].max() > 0 and gap[:5].max() <= gap[8:].max()
    p.undo.click()
    assert (
        panel.changed.startswith("0 of")
        and (sounds(p.copy)[0] == copy).all()
        and (picture(p.picture) == before).all()
    )


def test_other_lengths_and_another_tokenizer_of_sound(clip):
    paper = AudioTokenizer(AudioTokenizerConfig(preset="paper", columns=312))
    panel = w.AudioWidget((None, clip["wave"][:80_000]), paper)
    assert not message(panel) and panel.ids.size == len(panel.parts.tokens.grid) * len(
        panel.parts.tokens.grid[0]
    )
    panel.parts.tokens.grid[0][0].click()
    panel.parts.tokens.code.value = 7 if panel.parts.tokens.code.value != 7 else 8
    assert panel.changed.startswith("1 of") and not message(panel)


def test_a_sound_file_is_a_clip(tmp_path, clip, tokenizers):
    write_wav(tmp_path / "bark.wav", clip["wave"])
    assert "bark.wav" in w.AudioWidget(tmp_path / "bark.wav", tokenizers[0]).parts.original.value


# ---- film


def test_slider_and_tokens_of_a_film(clip, tokenizers):
    panel = w.VideoWidget(clip, tokenizers[1])
    p = panel.parts
    first = picture(p.picture)
    assert p.frame.max == 15 and list(p.view.videos) == ["original", "reconstruction", "difference"]
    p.frame.value = 11
    assert (
        (picture(p.picture) != first).any()
        and "6.9 s" in p.picture.alt
        and panel.step == 11 * len(panel.ids) // 16
    )
    step, copy = panel.step, panel.copy.copy()
    p.tokens.grid[4][3].click()
    p.tokens.code.value = (p.tokens.code.value + 91) % tokenizers[1].vocab_size
    moved = np.abs(panel.copy.astype(int) - copy).sum(-1)
    T, H, W = moved.shape
    t, h, ww = panel.ids.shape
    at = np.unravel_index(moved.sum(0).argmax(), (H, W))
    assert panel.ids[step, 4, 3] != panel.first[step, 4, 3] and panel.changed.startswith("1 of")
    assert (
        abs(at[0] * h // H - 4) <= 1 and abs(at[1] * ww // W - 3) <= 1
    )  # where the token is, or beside it
    p.frame.value = 0
    assert panel.step == 0 and p.tokens.ids.tolist() == panel.ids[0].tolist()
    p.undo.click()
    assert (panel.copy == copy).all()


def test_tokenizers_of_other_sizes_fit_too(tmp_path):
    small = VideoTokenizer(VideoTokenizerConfig(preset="paper", size=16, frames=8))
    panel = w.VideoWidget(
        (np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3)).astype(np.uint8), None), small
    )
    assert not message(panel) and panel.parts.frame.max == 7
    cosmos = CosmosTokenizer.from_pretrained(write_pair(tmp_path), device="cpu")
    panel = w.VideoWidget(
        (np.random.default_rng(0).integers(0, 256, (17, 32, 32, 3)).astype(np.uint8), None), cosmos
    )
    p = panel.parts
    assert not message(panel) and panel.ids.shape == (5, 4, 4) and p.tokens.code.max == 63_999
    steps = [setattr(p.frame, "value", k) or panel.step for k in (0, 1, 4, 5, 16)]
    assert steps == [0, 1, 1, 2, 4]  # one frame alone, then four to a moment


# ---- codebook


def test_codebook_changes_while_it_learns():
    films = np.stack([street_clip(sample_scene(i))[0] for i in range(6)])
    raw = VideoTokenizer()
    panel = w.CodebookWidget(
        raw,
        films,
        trainer=TokenizerTrainer(raw, films, TrainConfig(steps=400, batch_size=4, continuous=0.01)),
    )
    p, seen, said = panel.parts, [], []
    p.usage.observe(lambda e: seen.append(e["new"]), "value")
    p.status.observe(lambda e: said.append(e["new"]), "value")
    p.steps.value = 20
    p.train.click()
    assert (
        len(set(seen)) == 2 and not message(panel) and panel.done == 20
    )  # drawn twice on the way, not once at the end
    assert "10 steps" in said[0] and "20 steps" in said[-1] and panel.counts.sum() == 6 * 128
    order = np.argsort(-panel.counts, kind="stable")
    p.rank.value = 3
    assert (
        f"place 3: code {order[2]}," in p.status.value
        and p.look.alt == f"What code {order[2]} decodes to"
    )


def test_codes_of_sounds_can_be_heard(clip, tokenizers):
    front = MelFrontEnd()
    mels = front(torch.from_numpy(clip["wave"])).numpy()[None]
    panel = w.CodebookWidget(tokenizers[0], mels, front)
    one = panel.parts.sound.value
    panel.parts.rank.value = 4
    assert "<audio" in one and panel.parts.sound.value != one
    assert "no clips" in message(w.CodebookWidget(tokenizers[0], mels[:0], front))


# ---- masking


def test_budgets_say_what_is_seen(clip, describer):
    panel = w.MaskingWidget(clip, describer, "a dog is barking near you at night while rain falls")
    p = panel.parts

    def shown():
        return sum(int((~panel.entries[m]["input_mask"]).sum()) for m in panel.ids)

    def asked():
        return sum(int((~panel.entries[m]["target_mask"]).sum()) for m in panel.ids)

    assert not message(panel)
    for budget in (5, 40, 150):
        before = picture(p.picture)
        p.seen.value = p.asked.value = budget
        assert (
            0 < shown() <= budget and 0 < asked() <= budget and (picture(p.picture) != before).any()
        )
    kinds = panel.modalities
    both = w.grid_masks(panel.entries["video"], kinds["video"])
    assert not (both[0] & both[1]).any()  # nothing that is shown is asked for
    p.alpha.value = 1000
    assert p.words.value.count("[S_") > 2


def test_masking_of_half_a_clip(clip, describer):
    alone = w.MaskingWidget((None, clip["wave"]), describer)
    assert (
        not message(alone) and "video" not in alone.ids and "picture" not in alone.parts.picture.alt
    )


# ---- describe


def test_senses_on_and_off(clip, describer):
    panel = w.DescribeWidget(describer, [clip])
    p = panel.parts
    p.run.click()
    both = p.sentence.value
    said = describer.describe_arrays(
        [w.as_arrays(panel.sample, describer.checkpoint.front)], ["a dog"]
    )[0]
    assert (
        said.description.split()[0] in both
        and f"{said.confidence:.0%}" in both
        and "hear and see" in both
    )
    assert all(
        c["label"] in p.categories.alt for c in said.categories[:3]
    )  # the runner-up categories
    p.audio.value = False
    p.run.click()
    assert "only saw" in p.sentence.value
    p.audio.value, p.video.value = True, False
    p.run.click()
    assert "only heard" in p.sentence.value
    p.audio.value = False
    p.run.click()
    assert "listen, or look" in message(panel)


def test_attention_belongs_to_frames_and_sound(clip, describer):
    panel = w.DescribeWidget(describer, [clip])
    p = panel.parts
    p.run.click()
    shares = dict(
        re.findall(
            r"(picture \d+|sound): (\d+)%",
            w.attention_figure(
                panel.sample,
                w.as_arrays(panel.sample, describer.checkpoint.front).mel,
                panel.found,
                describer.checkpoint.model,
            ).alt,
        )
    )
    assert (
        "sound" in shares and "picture 1" in shares and 97 <= sum(map(int, shares.values())) <= 103
    )
    whole = p.attention.value
    p.word.value = p.word.max
    assert p.attention.value != whole and p.words.value.count("<mark>") == 1
    p.video.value = False
    p.run.click()
    assert "video" not in panel.found and p.attention.value


def test_attention_is_what_the_decoder_uses(clip, describer):
    "What the decoder looks at adds up to one word by word, but for the gap."
    given = w.given_tokens(describer, w.open_clip(clip, describer.checkpoint.clip))
    model = describer.checkpoint.model
    found = w.attention_on(model, given, [10, 11, 12])
    total = sum(v.sum(1) for v in found.values())
    assert (
        [v.shape[0] for v in found.values()] == [3, 3]
        and (total <= 1.0001).all()
        and (total > 0.5).all()
    )
    alone = w.attention_on(model, {"audio": given["audio"]}, [10, 11, 12])
    assert set(alone) == {"audio"} and not np.allclose(alone["audio"], found["audio"])
    assert all(b.cross_attn.watch is None for b in model.decoder)  # nothing is left switched on


def test_a_file_is_uploaded(tmp_path, clip, describer):
    write_wav(tmp_path / "bark.wav", clip["wave"])
    panel = w.DescribeWidget(describer)
    p = panel.parts
    p.run.click()
    assert "no clip yet" in message(panel)
    p.upload.value = upload("my bark.wav", (tmp_path / "bark.wav").read_bytes())
    assert (
        not message(panel)
        and panel.sample.name == "my bark.wav"
        and "<audio" in p.view.sounds.value
    )
    p.run.click()
    assert "only heard" in p.sentence.value
    p.upload.value = upload("my bark.wav", (tmp_path / "bark.wav").read_bytes() + b"0" * 100)
    assert "my bark.wav (2)" in p.clips.names.options  # the first one is still there


@pytest.mark.parametrize("name", ["../../x.mp4", "a b.m p4", "x", "<b>.mp4", "x." + "a" * 300])
def test_names_of_uploads_go_nowhere(name, describer):
    panel = w.DescribeWidget(describer)
    panel.parts.upload.value = upload(name, b"no film")
    assert (
        "⚠" in message(panel)
        and "<b>" not in message(panel)
        and "Something unexpected" not in message(panel)
        and "/tmp" not in message(panel)
    )


# ---- any to any


def test_there_and_back(clip, describer):
    panel = w.ImagineWidget(describer, [clip])
    p = panel.parts
    p.steps.value = 2
    assert p.back.disabled
    p.run.click()
    assert (
        not message(panel)
        and list(p.view.waves) == ["imagined: sound"]
        and "<audio" in p.view.sounds.value
    )
    p.back.click()
    films = p.view.videos
    assert (
        list(films) == ["given: picture", "and back: picture"]
        and films["and back: picture"].dtype == np.uint8
    )
    heard = panel.made
    p.seed.value = 1
    p.run.click()
    assert (panel.made != heard).any()  # another draw
    p.seed.value = 0
    p.run.click()
    assert (panel.made == heard).all()  # the same draw again
    p.given.value, p.wanted.value, p.words.value = "words", "picture", "a dog is barking"
    p.run.click()
    assert list(p.view.videos) == ["imagined: picture"] and "a dog is barking" in p.outcome.value
    p.wanted.value = "words"
    p.run.click()
    assert "different" in message(panel)


# ---- whatever is handed over

ALL = dict(
    audio=lambda c, d: w.AudioWidget(c, d.checkpoint.tokenizers["audio"]),
    video=lambda c, d: w.VideoWidget(c, d.checkpoint.tokenizers["video"]),
    masking=lambda c, d: w.MaskingWidget(c, d),
    describe=lambda c, d: w.DescribeWidget(d, [c]),
    imagine=lambda c, d: w.ImagineWidget(d, [c]),
)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bad", ["missing.mp4", 7, "text.mp4"])
def test_a_bad_clip_is_said_in_its_own_frame(name, bad, tmp_path, describer):
    if bad == "text.mp4":
        (tmp_path / bad).write_text("this is no film")
        bad = str(tmp_path / bad)
    panel = ALL[name](bad, describer)
    assert (
        "⚠" in message(panel)
        and 'role="alert"' in message(panel)
        and "Something unexpected" not in message(panel)
    )
    assert isinstance(panel, ipywidgets.VBox) and panel.parts.message in panel.children


@pytest.mark.parametrize("name,clip_without", [("audio", 1), ("video", 0)])
def test_a_missing_sense_is_said(name, clip_without, clip, describer):
    half = [clip["frames"], clip["wave"]]
    half[clip_without] = None
    assert re.search("no (sound|picture)", message(ALL[name](tuple(half), describer)))


def test_a_missing_model_is_said(clip, tmp_path):
    for make in (w.DescribeWidget, w.ImagineWidget):
        assert str(tmp_path) in message(make(tmp_path, [clip]))
    assert str(tmp_path) in message(w.MaskingWidget(clip, tmp_path))


# ---- without a kernel


@pytest.mark.parametrize("name", ALL)
def test_static_twins_need_nothing(name, clip, describer):
    panel = ALL[name](clip, describer)
    p = panel.parts
    if hasattr(p, "run") and hasattr(p.run, "click"):
        (setattr(p.steps, "value", 2) if name == "imagine" else None)
        p.run.click()
    page = panel.static()
    assert not re.search(
        r'(?:src|href)="(?!data:)|url\((?!data:)|https?:', page
    ) and "<button" not in re.sub(r"<button[^>]*>Play frames", "", page)
    assert all(re.search(r'alt="[^"]{10,}"', tag) for tag in re.findall(r"<img[^>]*>", page))
    assert ("<audio" in page) == (name in ("audio", "imagine")) and len(page) < 250_000
    assert page.count("<script>") == page.count("</script>")
