"""From a file to a sentence: what is said, how surely, and what of files that are no clips."""

import json
import shutil

import numpy as np
import pytest
import torch

from scene4m.worlds.street import (
    BUS,
    DOG,
    LABELS,
    PHRASES,
    POLICE,
    WORLD,
    Attributes,
    direct,
    parse_caption,
    score_directions,
)
from scene4m.base.core import BadInput, ConfigMismatch
from scene4m.app.long import (
    describe_long,
    same_news,
    speak,
    speech_command,
    to_vtt,
    windows,
)
from scene4m.describe import (
    ClipArrays,
    Describer,
    Description,
    fit_detectors,
    calibrate,
    category_probabilities,
    decode_tokens,
    fit_temperature,
    imagine,
    load_arrays,
    named_categories,
    read_out,
    remember,
    score_categories,
    stated_probability,
    tokenize_arrays,
    write_tokens,
    write_sentences,
)
from scene4m.scene_model import SceneModel
from scene4m.generate import score_text
from scene4m.base.media import read_clip, write_clip, write_wav
from scene4m.worlds.toystreet import sample_scene, street_clip, street_seed, write_scene

SHIPPED = pytest.importorskip("scene4m.scene_model").SHIPPED
pytestmark = pytest.mark.skipif(
    not (SHIPPED / "config.json").exists(),
    reason="no checkpoint is in the package; make one with make pretrained",
)


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
    assert {
        "file",
        "description",
        "confidence",
        "abstains",
        "senses",
        "categories",
        "seconds",
    } <= set(d)
    assert d["senses"] == dict(audio="used", video="used") and len(d["categories"]) == len(LABELS)
    assert sum(c["p"] for c in d["categories"]) == pytest.approx(1, abs=0.01)
    assert [c["p"] for c in d["categories"]] == sorted(
        (c["p"] for c in d["categories"]), reverse=True
    )
    json.dumps(d)


def test_a_sense_that_is_not_there_is_said_aloud(describer, clip, tmp_path):
    only_heard = describer(clip, senses=("audio",))
    assert (
        only_heard.senses == dict(audio="used", video="missing")
        and "no picture" in only_heard.description
    )
    write_wav(tmp_path / "silence.wav", np.zeros(16_000, np.float32), 16_000)
    silent = describer(tmp_path / "silence.wav")
    assert silent.senses == dict(audio="silent", video="missing") and silent.abstains


def test_a_film_of_noise_is_not_taken_for_a_street(describer, tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (20, 64, 64, 3), dtype=np.uint8).repeat(4, 0)
    write_clip(
        tmp_path / "noise.mp4", frames, rng.uniform(-0.9, 0.9, 160_000).astype(np.float32), 8
    )
    d = describer(tmp_path / "noise.mp4")
    assert d.abstains and "picture" in d.reason and d.description.startswith("I do not know")


def made(describer, split, n, seconds=10.0):
    "Street clips as arrays; the rest of shorter ones is silence and the last frame."
    ck, out = describer.checkpoint, []
    for f, w in (street_clip(sample_scene(street_seed(split, i))) for i in range(n)):
        w, f = w.copy(), f.copy()
        w[int(seconds * 16_000) :] = 0
        f[int(seconds * 1.6) :] = f[int(seconds * 1.6) - 1]
        out.append(
            ClipArrays(
                f, ck.front(torch.from_numpy(w)).numpy(), dict(audio="used", video="used"), seconds
            )
        )
    return out


@pytest.mark.parametrize("seconds", [10.0, 5.0])
def test_the_street_is_in_distribution_however_long_the_clip(describer, seconds):
    scores = tokenize_arrays(describer.checkpoint, made(describer, "test", 24, seconds)).ood
    for sense, most in (("audio", 3), ("video", 3)):
        assert (scores[sense] > 1).sum() <= most and (scores[sense] >= 0).all()


def test_strangers_are_noticed_by_ear_and_by_eye(describer):
    "A rising tone, a hum and noise; grey stripes, a flat colour and snow: all are OOD."
    t, ck, rng = np.arange(160_000) / 16_000, describer.checkpoint, np.random.default_rng(1)
    sounds = [
        np.sin(60 * t * (1 + t)) / 3,
        sum(np.sin(880 * k * t) / k for k in range(1, 9)) / 9,
        rng.normal(size=t.size) / 5,
    ]
    stripes = np.broadcast_to(np.arange(32)[:, None] // 4 % 2 * 255, (16, 32, 32))
    films = [
        np.repeat(f[..., None], 3, -1).astype(np.uint8)
        for f in (stripes, np.full((16, 32, 32), 128), rng.integers(0, 256, (16, 32, 32)))
    ]
    used = dict(audio="used", video="used")
    clips = [
        ClipArrays(f, ck.front(torch.from_numpy(s.astype(np.float32))).numpy(), used)
        for f, s in zip(films, sounds)
    ]
    assert all((s > 1).all() for s in tokenize_arrays(ck, clips).ood.values())
    said = describer.describe_arrays(clips, list("abc"))
    assert all(
        d.abstains and d.reason == "the sound and the picture are unlike anything in training"
        for d in said
    )


def test_detectors_are_kept_with_the_checkpoint(describer, tmp_path):
    from dataclasses import replace

    ck = replace(describer.checkpoint, detectors={})
    few, clips = made(describer, "val", 8), made(describer, "train", 24)
    assert fit_detectors(ck, few) == {} and np.isnan(tokenize_arrays(ck, few).ood["audio"]).all(), (
        "of eight clips nobody learns what is usual"
    )
    clips[0].mel = None
    fit_detectors(ck, clips)
    assert {s: len(f.points) for s, f in ck.detectors.items()} == dict(audio=23, video=24)
    again = SceneModel.from_pretrained(ck.save_pretrained(tmp_path))
    own, kept = (tokenize_arrays(c, few).ood for c in (ck, again))
    assert np.allclose(own["audio"], kept["audio"], rtol=0.02) and np.allclose(
        own["video"], kept["video"], rtol=0.02
    )


def test_files_that_are_no_clips(describer, tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a clip")
    for name in ("empty.mp4", "text.mp4", "nowhere.mp4"):
        with pytest.raises(BadInput) as e:
            describer(tmp_path / name)
        assert name in str(e.value) and "\n" not in str(e.value)


def test_checkpoints_that_are_not_whole(tmp_path):
    with pytest.raises(BadInput, match="no model folder"):
        SceneModel.from_pretrained(tmp_path / "nowhere")
    copy = shutil.copytree(SHIPPED, tmp_path / "model")
    (copy / "text_tokenizer.json").unlink()
    with pytest.raises(BadInput, match="text_tokenizer.json"):
        SceneModel.from_pretrained(copy)


def test_a_checkpoint_with_another_tokenizer(tmp_path):
    copy = shutil.copytree(SHIPPED, tmp_path / "model")
    settings = json.loads((copy / "describe.json").read_text())
    settings["fingerprints"]["audio"] = "0" * 12
    (copy / "describe.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigMismatch, match="audio tokenizer"):
        SceneModel.from_pretrained(copy)


@pytest.mark.parametrize(
    "part",
    [
        "audio_tokenizer",
        "video_tokenizer",
        "audio_tokenizer/config.json",
        "video_tokenizer/model.safetensors",
    ],
)
def test_a_checkpoint_without_one_of_its_tokenizers(tmp_path, part):
    copy = shutil.copytree(SHIPPED, tmp_path / "model")
    shutil.rmtree(copy / part) if (copy / part).is_dir() else (copy / part).unlink()
    with pytest.raises(BadInput) as e:
        SceneModel.from_pretrained(copy)
    assert f"{copy}: the model folder has no {part}; copy the whole folder" in str(
        e.value
    ) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    "seconds, step, expected",
    [
        (35.5, 10, [(0, 0), (10, 10), (20, 20), (30, 25.5)]),
        (20, 5, [(0, 0), (5, 5), (10, 10)]),
        (4, 10, [(0, 0)]),
        (10.2, 10, [(0, 0)]),
    ],
)
def test_where_windows_begin(seconds, step, expected):
    assert list(windows(seconds, 10, step)) == expected


def test_a_step_that_leads_nowhere(describer, clip):
    with pytest.raises(BadInput, match="step"):
        list(describe_long(describer, clip, step=0))


def test_windows_of_a_long_recording_hold_until_the_next(describer, tmp_path):
    scenes = [street_clip(sample_scene(street_seed("test", i))) for i in (1, 2)]
    film = write_clip(
        tmp_path / "film.mp4",
        np.concatenate([f for f, _ in scenes]),
        np.concatenate([w for _, w in scenes]),
        1.6,
    )
    got = list(describe_long(describer, film, step=5.0))
    assert (
        got[0].start == 0
        and all(a.end == b.start for a, b in zip(got, got[1:]))
        and abs(got[-1].end - 20) < 1
    )
    assert not any(same_news(a, b, WORLD) for a, b in zip(got, got[1:]))


@pytest.mark.parametrize(
    "claimed, ends_well", [(1e12, False), (0.0, True)], ids=["more than there is", "nothing"]
)
def test_a_recording_whose_header_says_nothing_or_too_much(
    describer, tmp_path, monkeypatch, claimed, ends_well
):
    "What is there is described to its end; only a header that promised more is contradicted."
    from dataclasses import replace

    import scene4m.app.long as module

    scenes = [street_clip(sample_scene(street_seed("test", i))) for i in (1, 2)]
    film = write_clip(
        tmp_path / "film.mp4",
        np.concatenate([f for f, _ in scenes]),
        np.concatenate([w for _, w in scenes]),
        1.6,
    )
    honest = list(describe_long(describer, film))
    monkeypatch.setattr(
        module, "probe", lambda path: replace(read_clip(path).info, duration=claimed)
    )
    got = []
    try:
        for d in describe_long(describer, film):
            got.append(d)
    except BadInput as e:
        assert not ends_well and "film.mp4: nothing can be read from 00:00:2" in str(e)
    else:
        assert ends_well
    assert (
        [d.guess for d in got] == [d.guess for d in honest]
        and got[0].end == honest[0].end
        and 20 <= got[-1].end <= 30
    )


def test_a_window_after_the_end(describer, clip):
    with pytest.raises(BadInput, match="0.5 seconds of 60 seconds; begin earlier"):
        describer(clip, start=60.0)


def test_windows_that_say_the_same_in_other_words_are_merged():
    def said(guess, **kw):
        return Description(
            "a.mp4", guess, 0.9, False, dict(audio="used", video="used"), [], guess=guess, **kw
        )

    near = said("Near you, a dog is barking at night.")
    assert same_news(
        near, said("A dog is making noise close by in the dark."), WORLD
    ) and not same_news(near, said("A dog is barking far off."), WORLD)
    unsure = [
        Description("a", f"I do not know ({p})", 0.1, True, near.senses, [], guess=p, reason="r")
        for p in ("x", "a dog is barking.")
    ]
    assert same_news(*unsure, WORLD) and not same_news(near, unsure[1], WORLD)


def test_a_clip_of_a_tenth_of_a_second(describer, tmp_path):
    path = write_clip(
        tmp_path / "short.mp4",
        np.full((1, 64, 64, 3), 90, np.uint8),
        np.zeros(1600, np.float32),
        10,
    )
    d = describer(path)
    assert d.abstains and "0.1 seconds" in d.description and not d.direction


def test_memory_does_not_grow_with_the_recording(describer, tmp_path):
    "A window at the end of ten minutes takes no more memory than the first one."
    import tracemalloc

    ck = describer.checkpoint
    write_wav(
        tmp_path / "long.wav",
        np.tile(street_clip(sample_scene(street_seed("test", 1)))[1], 60),
        16_000,
    )

    def peak(start):
        tracemalloc.start()
        arrays = load_arrays(tmp_path / "long.wav", ck.clip, ck.front, start=start)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert arrays.senses["audio"] == "used" and arrays.seconds == pytest.approx(10, abs=0.1)
        return top

    peak(0.0)
    assert peak(590.0) < 1.5 * peak(0.0) + 1e6


def test_vtt_survives_odd_sentences():
    d = Description(
        "a.mp4",
        "One <b> & two -->\nthree",
        0.5,
        False,
        dict(audio="used", video="used"),
        [],
        start=3599.9994,
        end=3601,
    )
    text = to_vtt([d])
    assert text.startswith("WEBVTT\n") and "00:59:59.999 --> 01:00:01.000" in text
    assert "<b>" not in text and text.count("-->") == 1


def test_temperature_is_found_again():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(3000, 14)) * 8
    truth = np.array(
        [rng.choice(14, p=p) for p in category_probabilities(scores, 3.0)]
    )  # right as often as temperature 3 says
    assert fit_temperature(scores, truth)[0] == pytest.approx(3.0, rel=0.1)


@pytest.fixture(scope="module")
def street(describer):
    "Tokens and scenes of some clips, one of them only heard."
    ck = describer.checkpoint
    scenes = [sample_scene(street_seed("val", i)) for i in range(6)]
    clips = [
        ClipArrays(f, ck.front(torch.from_numpy(w)).numpy(), dict(audio="used", video="used"))
        for f, w in map(street_clip, scenes)
    ]
    clips[0].frames, clips[0].senses["video"] = None, "missing"
    return tokenize_arrays(ck, clips), scenes


def test_a_stated_value_is_weighed_against_all_others(describer, street):
    ck, (tokens, _) = describer.checkpoint, street
    sentence = "a dog is barking and moving left in view."
    ids = {s: tokens.ids[s][1:2] for s in ("audio", "video")}
    values = [v for n, v in PHRASES if n == "motion"]
    texts = [sentence.replace("moving left", p) for v in values for p in PHRASES["motion", v]]
    batch = {
        s: dict(tensor=t, input_mask=torch.zeros(t.shape, dtype=torch.bool)) for s, t in ids.items()
    }
    logp = score_text(ck.model, batch, [ck.text.encode(t) for t in texts], reduce="sum")[0]
    expected = logp.softmax(0).view(len(values), -1).sum(1)[values.index("left")]
    found = stated_probability(ck, remember(ck, ids, 1), [sentence], "motion")
    assert found[0] == pytest.approx(float(expected), abs=1e-4) and 0 < found[0] < 1
    assert np.isnan(
        stated_probability(ck, remember(ck, ids, 1), ["a dog is barking."], "motion")
    ).all()


def test_one_pass_gives_what_two_give(describer, street):
    ck, (tokens, _) = describer.checkpoint, street
    sentences, scores, moves = read_out(ck, tokens, doubted=lambda s: ("motion",))
    assert sentences == write_sentences(ck, tokens)
    assert np.allclose(score_categories(ck, tokens), scores, atol=1e-3) and scores.shape == (
        6,
        len(ck.labels),
    )
    assert [bool(np.isfinite(m)) for m in moves] == [
        parse_caption(s).motion is not None for s in sentences
    ]


def test_the_token_knows_the_category(describer, street):
    ck, (tokens, scenes) = describer.checkpoint, street
    named = [ck.labels[j] for j in score_categories(ck, tokens).argmax(1)]
    assert sum(n == s.label for n, s in zip(named, scenes)) >= 5


def test_confidence_is_that_of_what_is_said(describer):
    ck = describer.checkpoint
    p = np.full((2, len(ck.labels)), 0.01)
    p[:, ck.labels.index(DOG)] = 0.87
    assert named_categories(ck, ["A bus is driving.", "who knows"], p) == [
        ck.labels.index(BUS),
        ck.labels.index(DOG),
    ]


def test_a_world_that_does_not_fit_the_model_is_refused(tmp_path):
    shutil.copytree(SHIPPED, tmp_path / "m")
    (tmp_path / "m" / "world.json").write_text(json.dumps(dict(labels=["cat", "dog"])))
    with pytest.raises(ConfigMismatch, match="world.json has 2 labels, the model knows 14"):
        SceneModel.from_pretrained(tmp_path / "m")
    (tmp_path / "m" / "world.json").unlink()
    with pytest.raises(BadInput, match="no world.json"):
        SceneModel.from_pretrained(tmp_path / "m")


def test_calibration_makes_the_right_answers_likelier(describer, street):
    from copy import deepcopy
    from dataclasses import replace

    ck, (tokens, scenes) = describer.checkpoint, street
    sure = deepcopy(ck.model)  # a model that is far too sure of itself
    sure.decoder_embeddings["category"].to_logits.weight.data *= 10
    ck = replace(ck, model=sure)
    fresh = replace(ck, settings=dict(ck.settings))
    found = calibrate(fresh, tokens, [s.label for s in scenes])
    assert (
        set(found) == {"temperature", "threshold"}
        and fresh.settings["temperature"] == found["temperature"]
    )
    scores, truth = [], []  # with both senses and with each alone, as it will be used
    for senses in (("audio", "video"), ("audio",), ("video",)):
        heard_or_seen = np.flatnonzero(np.any([tokens.has[s] for s in senses], axis=0))
        scores.append(score_categories(ck, tokens.take(heard_or_seen), senses))
        truth += [ck.labels.index(scenes[i].label) for i in heard_or_seen]
    seen = np.concatenate(scores)

    def loss(temperature):
        return -np.log(
            category_probabilities(seen, temperature)[range(len(truth)), truth] + 1e-12
        ).mean()

    assert found["temperature"] > 1.5 and loss(found["temperature"]) < loss(1.0)


def test_directions_follow_the_thing_and_where_it_goes():
    bus = Attributes(label=BUS, motion="right", near=True, on_screen=True)
    assert direct(bus) == "A bus comes from the left: wait."
    assert "from the right" in direct(Attributes(label=BUS, motion="left", near=True))
    assert "step aside" in direct(Attributes(label=BUS, motion="towards", near=True)) and direct(
        Attributes(label=DOG, near=True)
    )
    assert "cannot be seen" in direct(Attributes(label=POLICE, near=True, on_screen=False))
    away, far = (
        Attributes(label=BUS, near=True, motion="away"),
        Attributes(label=BUS, motion="right", near=False),
    )
    for quiet in (Attributes(), Attributes(label=BUS), away, far):
        assert direct(quiet) == ""


def test_directions_are_scored():
    bus, dog = Attributes(label=BUS, motion="right", near=True), Attributes(label=DOG, near=False)
    wrong = score_directions(
        ["A bus comes from the right: wait.", "A dog is close by: keep some distance."], [bus, dog]
    )
    assert wrong == dict(
        n=2, needed=1, given=2, given_where_needed=1.0, right_of_given=0.0, wrong_side=1, unneeded=1
    )
    assert score_directions(["", ""], [bus, dog])["right_of_given"] is None


def test_no_direction_without_certainty(describer, clip, monkeypatch):
    from scene4m import describe as module

    monkeypatch.setattr(module, "SURE", 1.1)
    assert describer(clip).direction == ""


def test_no_voice_is_said_in_one_sentence(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(BadInput, match="espeak-ng"):
        speech_command("A dog.")


def test_a_voice_that_fails(monkeypatch, tmp_path):
    voice = tmp_path / "espeak-ng"
    voice.write_text("#!/bin/sh\necho no sound card >&2\nexit 3\n")
    voice.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(BadInput, match="no sound card"):
        speak("A dog.")
    voice.write_text(f'#!/bin/sh\necho "$2" > {tmp_path}/said\n')
    speak("A dog; $(rm -r x) barks.")
    assert (tmp_path / "said").read_text() == "A dog; $(rm -r x) barks.\n"


@pytest.mark.parametrize(
    "how", [{}, dict(steps=4, temperature=0.5), dict(scheme="roar", steps=4, temperature=0.5)]
)
def test_any_sense_from_any_other_and_from_words(describer, street, how):
    ck, (tokens, _) = describer.checkpoint, street

    def g():
        return torch.Generator().manual_seed(0)

    for ids, target, words in (
        ({"video": tokens.ids["video"][1:3]}, "audio", None),
        ({"audio": tokens.ids["audio"][1:3]}, "video", None),
        ({}, "audio", ["a dog is barking.", "a bus is driving."]),
        ({}, "video", ["a dog.", "a bus."]),
    ):
        got = imagine(ck, ids, target, words=words, generator=g(), **how)
        kind = ck.model.modalities[target]
        assert (
            got.shape == (2, kind.num_tokens)
            and 0 <= int(got.min())
            and int(got.max()) < kind.vocab_size
        )
        assert torch.equal(got, imagine(ck, ids, target, words=words, generator=g(), **how))
    with pytest.raises(BadInput, match="nothing to imagine"):
        imagine(ck, {})


def test_imagined_senses_become_files(describer, street, tmp_path):
    ck, (tokens, _) = describer.checkpoint, street
    ids = {s: t[1] for s, t in tokens.ids.items()}
    made = decode_tokens(ck, ids)
    assert (
        made["mel"].shape[0] == 80
        and np.abs(made["wave"]).max() > 0.01
        and made["frames"].shape == (16, 32, 32, 3)
    )
    both = read_clip(write_tokens(ck, ids, tmp_path / "a.mp4"))
    assert both.has_audio and both.has_video and not both.silent
    assert read_clip(write_tokens(ck, {"audio": ids["audio"]}, tmp_path / "a.wav")).has_audio
    for wrong in ({"video": ids["video"]}, ids):
        with pytest.raises(BadInput, match="mp4"):
            write_tokens(ck, wrong, tmp_path / "b.wav")
    with pytest.raises(BadInput, match="wav"):
        write_tokens(ck, {"audio": ids["audio"]}, tmp_path / "b.mp4")


def test_a_browser_reads_the_description_track(browser, tmp_path):
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    d = Description(
        "a.mp4",
        "A <b> & c -->\nis here.",
        0.9,
        False,
        dict(audio="used", video="used"),
        [],
        start=0.0,
        end=4.25,
    )
    from dataclasses import replace

    (tmp_path / "d.vtt").write_text(
        to_vtt([d, replace(d, description="Then a dog.", start=4.25, end=10)]), encoding="utf-8"
    )
    (tmp_path / "page.html").write_text(
        '<video><track kind="descriptions" srclang="en" src="d.vtt" default></video>'
    )

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/page.html")
        cues = page.evaluate("""() => new Promise((done, fail) => {
            const t = document.querySelector("track");
            const text = c => c.getCueAsHTML().textContent;
            const cues = () => [...t.track.cues].map(c => [c.startTime, c.endTime, text(c)]);
            const read = () => done([t.track.kind, ...cues()]);
            t.track.mode = "hidden";
            t.addEventListener("load", read);
            t.addEventListener("error", () => fail("the track is refused"));
            if (t.readyState === 2) read(); })""")
        server.shutdown()
    assert cues == ["descriptions", [0, 4.25, "A <b> & c → is here."], [4.25, 10, "Then a dog."]]


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
