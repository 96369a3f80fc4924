"""The toy street: statistics, determinism, picture and sound, and both ways to a clip."""

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scene4m.worlds import toystreet as ts
from scene4m.worlds.drawing import RGB, _hammer_angle, placement
from scene4m.worlds.scene import MOTIONS_OF, SPLITS, events
from scene4m.worlds.street import (
    COLOURED,
    COLOURS,
    COUNTABLE,
    HAMMER,
    LABELS,
    MOVING,
    POLICE,
    Attributes,
    parse_caption,
)
from scene4m.base.core import BadInput, ConfigMismatch
from scene4m.base.media import read_clip

MANY = [ts.sample_scene(i) for i in range(6000)]
SEEN = [s for s in MANY if s.seen]


def first(n=1, **want):
    found = [s for s in MANY if all(getattr(s, k) == v for k, v in want.items())][:n]
    return found if n > 1 else found[0]


def mask(scene, t, size=96):
    "Where the thing is: pixels that differ from the empty street at the same moment."
    a, b = (
        ts.render_frames(replace(scene, seen=seen), [t], size)[0].astype(int)
        for seen in (True, False)
    )
    return np.abs(a - b).max(-1) > 24


# --- the world


def test_shares_of_everything():
    def share(f, of=MANY):
        return np.mean([f(s) for s in of])

    def part(name, value, of=MANY):
        return np.mean([getattr(s, name) == value for s in of])

    wanted = [
        (share(lambda s: s.seen and s.heard), 0.7),
        (share(lambda s: s.heard and not s.seen), 0.2),
        (share(lambda s: s.seen and not s.heard), 0.1),
        (share(lambda s: s.night), 0.5),
        (share(lambda s: s.rain), 0.35),
        (share(lambda s: s.near), 0.5),
    ]
    wanted += [(part("label", label), 1 / 14) for label in LABELS]
    wanted += [
        (part("colour", c, [s for s in MANY if s.label in COLOURED]), 1 / 6) for c in COLOURS
    ]
    wanted += [
        (part("count", c, [s for s in MANY if s.label in COUNTABLE]), 1 / 3) for c in (1, 2, 3)
    ]
    for label, motions in MOTIONS_OF.items():
        mine = [s for s in MANY if s.label == label]
        wanted += [(part("motion", m, mine), 1 / len(motions)) for m in motions]
    for found, p in wanted:
        assert abs(found - p) < 4.5 * (p * (1 - p) / 300) ** 0.5, (found, p)
    assert all(s.seen or s.heard for s in MANY)


def test_choices_are_independent():
    rows = [
        dict(
            night=s.night,
            rain=s.rain,
            near=s.near,
            seen=s.seen,
            loud=s.loudness,
            place=s.place,
            bus=s.label == LABELS[0],
        )
        for s in MANY
    ]
    table = pd.DataFrame(rows)
    corr = table.astype(float).corr().to_numpy()
    assert np.abs(corr[~np.eye(len(corr), dtype=bool)]).max() < 0.06


def test_attributes_say_only_what_can_be_perceived():
    for s in MANY:
        a = s.attributes
        assert (a.label, a.night, a.rain, a.near, a.on_screen) == (
            s.label,
            s.night,
            s.rain,
            s.near,
            s.seen,
        )
        if not s.seen:
            assert a.colour is a.count is a.motion is None
        else:
            assert [a.colour is not None, a.count is not None, a.motion is not None] == [
                s.label in g for g in (COLOURED, COUNTABLE, MOVING)
            ]


def test_splits_never_meet():
    ranges = sorted(
        (ts.street_seed(split, 0, seed), ts.street_seed(split, b - a - 1, seed))
        for seed in range(3)
        for split, (a, b) in SPLITS.items()
    )
    assert all(end < start for (_, end), (start, _) in zip(ranges, ranges[1:]))
    for bad in (("x", 0, 0), ("train", -1, 0), ("val", 10**7, 0), ("test", 0, -1)):
        with pytest.raises(BadInput):
            ts.street_seed(*bad)


def test_the_world_is_frozen():
    "If this fails, the world has changed: scores cannot be compared, and its version must change."
    frozen = json.loads((Path(__file__).parent / "data" / "street.json").read_text())
    assert ts.WORLD_VERSION == frozen["world_version"]
    for want in frozen["scenes"]:
        s = ts.sample_scene(want["seed"])
        frames, wave = ts.street_clip(s)
        assert s.attributes.to_dict() == want["attributes"] and [s.seen, s.heard] == want["senses"]
        np.testing.assert_allclose(
            frames.reshape(16, 4, 8, 4, 8, 3).mean((0, 2, 4, 5)), want["picture"], atol=1.5
        )
        np.testing.assert_allclose(
            10 * np.log10(np.square(wave).reshape(10, -1).mean(1)), want["sound"], atol=0.5
        )


# --- determinism


def test_a_frame_depends_on_its_time_only():
    for s in first(4, rain=True, seen=True) + first(3, label=POLICE, seen=True):
        film = ts.render_frames(s, np.arange(80) / 8, 48)
        for k in (0, 35, 75):
            assert (ts.render_frames(s, [k / 8], 48)[0] == film[k]).all()


def test_the_same_in_another_process_and_order():
    import multiprocessing

    scenes = [ts.sample_scene(i) for i in (3, 11, 4)]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        other = pool.map(ts.street_clip, scenes[::-1])[::-1]
    for (f, w), s in zip(other, scenes):
        mine = ts.street_clip(s)
        assert (f == mine[0]).all() and (w == mine[1]).all()


# --- the picture


@pytest.mark.parametrize("label", sorted(MOVING))
def test_things_move_where_they_are_said_to(label):
    for motion in MOTIONS_OF[label]:
        for s in first(3, label=label, motion=motion, seen=True, rain=False):
            masks = [mask(s, t) for t in np.linspace(0, 9.375, 16)]
            middles = np.array([np.nonzero(m)[1].mean() for m in masks]) / 96
            areas = np.array([m.sum() for m in masks])
            shift = middles[8:].mean() - middles[:8].mean()
            growth = (areas[-4:].mean() / areas[:4].mean()) ** 0.5
            if motion in ("left", "right"):
                assert shift * (1 if motion == "right" else -1) > 0.15, (
                    s,
                    shift,
                )  # of what is inside the frame
            elif motion == "towards":
                assert growth > 1.35 and abs(shift) < 0.1, (s, growth)
            elif motion == "away":
                assert growth < 1 / 1.35 and abs(shift) < 0.1, (s, growth)
            else:
                assert abs(shift) < 0.1 and 0.75 < growth < 1.35, (s, shift, growth)


def test_something_is_in_view_all_the_time():
    for s in [s for s in SEEN if not s.rain][:150]:
        areas = [mask(s, t, 32).sum() for t in np.linspace(0, 9.375, 6)]
        assert np.median(areas) >= 14 and min(areas) > 0, (s, areas)


def test_nothing_is_drawn_of_what_is_off_screen():
    for label in LABELS:
        a, b = (
            ts.render_frames(replace(first(label=label), seen=False, label=x), [2.0], 32)
            for x in (label, LABELS[0])
        )
        assert (a == b).all()


def test_colours_can_be_told_at_32_pixels():
    "The most colourful pixels of the thing are nearest, in hue, to the colour it is said to have."

    def hue(c):
        r, g, b = np.moveaxis(c, -1, 0)
        return np.arctan2(np.sqrt(3) * (g - b), 2 * r - g - b)

    names = list(COLOURS)
    wheel = np.array([hue(np.array(RGB[c], float)) for c in names])
    right = []
    for s in [s for s in SEEN if s.colour][:240]:
        x = ts.render_frames(s, [3.125], 32)[0].astype(float)
        m = mask(s, 3.125, 32)
        pixels = x[m]
        chroma = pixels.max(-1) - pixels.min(-1)
        best = pixels[chroma >= np.quantile(chroma, 0.7)]
        votes = np.abs(np.angle(np.exp(1j * (hue(best)[:, None] - wheel)))).argmin(1)
        right.append(names[np.bincount(votes, minlength=6).argmax()] == s.colour)
    assert np.mean(right) > 0.93
    away = np.abs(np.angle(np.exp(1j * (wheel[:, None] - wheel))))[~np.eye(6, dtype=bool)]
    assert np.degrees(away.min()) > 35


def test_two_and_three_stand_apart():
    for label in COUNTABLE:
        for n in (2, 3):
            s = first(label=label, count=n, seen=True)
            spots = [placement(s, 5.0, i) for i in range(n)]
            gaps = np.diff([p[0] for p in spots]) / spots[0][2]
            assert (gaps > 0.7).all() and placement(replace(s, count=1), 5.0, 0)[2] > spots[0][2]


def test_near_is_larger_and_night_is_darker():
    for label in LABELS:
        s = first(label=label, seen=True, motion=MOTIONS_OF.get(label, (None,))[0])
        near, far = (
            mask(replace(s, near=near, rain=False, night=False), 5.0).sum()
            for near in (True, False)
        )
        assert near > 1.5 * far, label
        day, night = (
            ts.render_frames(replace(s, night=night), [5.0], 32).mean() for night in (False, True)
        )
        assert day > night + 40


def test_rain_is_seen():
    for s in first(6, rain=True, seen=False):
        frames = ts.render_frames(s, [0.0, 0.625], 32).astype(int)
        assert (np.abs(frames[0] - frames[1]).max(-1) > 25).mean() > 0.03
        dry = ts.render_frames(replace(s, rain=False), [0.0, 0.625], 32).astype(int)
        assert (dry[0] == dry[1]).all()
        wet_road, road = ((x[:, 24:, :, 2] - x[:, 24:, :, 0]).mean() for x in (frames, dry))
        assert wet_road > road + 15


# --- the sound


def test_sound_is_sound():
    for s in MANY[:60]:
        w = ts.render_sound(s)
        assert (
            w.dtype == np.float32
            and w.shape == (160_000,)
            and np.abs(w).max() <= 0.99
            and w.std() > 1e-3
            and abs(w.mean()) < 0.01
        )
    assert ts.render_sound(MANY[0], seconds=2.5).shape == (40_000,)
    for bad in (dict(sr=44_100), dict(seconds=11), dict(seconds=0)):
        with pytest.raises(BadInput):
            ts.render_sound(MANY[0], **bad)


@pytest.mark.parametrize("label", LABELS)
def test_loudness_tells_distance_and_silence(label):
    def level(s):
        return 10 * np.log10(np.mean(np.square(ts.render_sound(s))))

    s = replace(
        first(label=label, heard=True), rain=False, motion=MOTIONS_OF.get(label, (None,))[0]
    )
    near, far, silent = (
        level(replace(s, near=True)),
        level(replace(s, near=False)),
        level(replace(s, heard=False)),
    )
    assert near - far > 9 and far - silent > 3 and silent < -38


def test_what_comes_closer_grows_louder():
    for s in first(4, motion="towards", heard=True) + first(4, motion="away", heard=True):
        parts = (
            np.square(ts.render_sound(replace(s, near=True, rain=False))).reshape(10, -1).mean(1)
        )
        rise = 10 * np.log10(parts[-4:].mean() / parts[:4].mean())
        assert rise > 3 if s.motion == "towards" else rise < -3


def test_a_hit_is_heard_when_it_is_seen():
    for s in [
        replace(s, near=True, rain=False, night=False)
        for s in first(5, label=HAMMER, heard=True, seen=True)
    ]:
        start, _, who = events(s)
        wave = ts.render_sound(s)
        energy = np.square(wave).reshape(-1, 160).mean(1)  # 10 ms
        loud = np.array([energy[int(t * 100) : int(t * 100) + 3].max() for t in start if t < 9.9])
        before = np.array([energy[int(t * 100) - 4] for t in start if 0.1 < t < 9.9])
        assert np.median(loud) > 30 * np.median(before)
        down = [_hammer_angle(s, t, i) for t, i in zip(start, who) if t < 9.9]
        assert max(down) < 0


def test_mouths_move_with_the_voice():
    s = first(label=LABELS[5], seen=True, heard=True, count=1, night=False, rain=False, near=True)
    start, length, _ = events(s)

    def red(t):
        x = ts.render_frames(replace(s, colour="green"), [t], 96)[0].astype(int)
        return ((x[..., 0] > 100) & (x[..., 1] < 60) & (x[..., 2] < 70)).sum()

    pauses = [(a + n, b) for a, n, b in zip(start, length, start[1:]) if b - a - n > 0.1]
    assert np.mean([red(t + n / 2) for t, n in zip(start[:8], length)]) > 2 * max(
        1, np.mean([red((a + b) / 2) for a, b in pauses[:8]])
    )


# --- both ways to a clip


def test_the_short_way_is_the_long_way(tmp_path):
    frames_apart, mel_apart = [], []
    for s in MANY[:6] + first(2, rain=True, night=True, seen=True):
        clip = read_clip(ts.write_scene(s, tmp_path / f"{s.key}.mp4"))
        frames, wave = ts.street_clip(s)
        assert clip.frames.shape == frames.shape and len(clip.wave) == len(wave)
        assert clip.crop == (0, 0, 0, 0) and clip.has_audio and clip.has_video
        frames_apart.append(np.abs(clip.frames.astype(float) - frames).mean())
        a, b = (
            10
            * np.log10(
                np.square(np.abs(np.fft.rfft(w[:159_744].reshape(-1, 1024) * np.hanning(1024))))
                + 1e-3
            )
            for w in (clip.wave, wave)
        )
        mel_apart.append(
            np.abs(
                a[:, :400].reshape(len(a), 50, 8).mean(2)
                - b[:, :400].reshape(len(b), 50, 8).mean(2)
            ).mean()
        )
    assert np.mean(frames_apart) < 2.5 and max(frames_apart) < 5, frames_apart
    assert np.mean(mel_apart) < 1.5, mel_apart


def test_street_clips_can_be_sent_and_curated(tmp_path):
    from scene4m.curation import ClipDataset, curate

    clips = pickle.loads(pickle.dumps(ts.StreetClips("val", 4, seed=3)))
    assert len(clips) == 4 and clips[2]["key"] == ts.sample_scene(ts.street_seed("val", 2, 3)).key
    with pytest.raises(IndexError):
        clips[4]
    for c in (clips[i] for i in range(4)):
        assert (
            all(parse_caption(t) == c["attributes"] for t in c["captions"])
            and c["split"] == "val"
            and c["group"] == c["key"]
        )
    curate(clips, tmp_path / "data")
    data = ClipDataset(tmp_path / "data")
    assert list(data.manifest.status) == ["kept"] * 4 and set(data.manifest.split) == {"val"}
    assert (data.load("frames", clips[1]["key"]) == clips[1]["frames"]).all()
    for bad in (("val", 0), ("exam", 3)):
        with pytest.raises(BadInput):
            ts.StreetClips(*bad)


def test_write_street_goes_on_where_it_stopped(tmp_path):
    folder = ts.write_street(tmp_path / "street", 3, seed=1, workers=1)
    truth = pd.read_csv(folder / "truth.csv")
    assert list(truth.columns) == [
        "file",
        "label",
        "group",
        "split",
        "captions",
        "attributes",
        "seen",
        "heard",
    ] and set(truth.split) == {"test"}
    for r in truth.itertuples():
        scene = ts.sample_scene(int(Path(r.file).stem.split("-")[1]))
        assert Attributes.from_dict(json.loads(r.attributes)) == scene.attributes
        assert (r.label, r.seen, r.heard) == (scene.label, scene.seen, scene.heard)
        assert all(parse_caption(t) == scene.attributes for t in json.loads(r.captions))
    before = {f: os.stat(folder / f).st_mtime_ns for f in truth.file}
    (folder / truth.file[1]).unlink()
    ts.write_street(tmp_path / "street", 4, seed=1, workers=2)
    assert (
        os.stat(folder / truth.file[0]).st_mtime_ns == before[truth.file[0]]
        and len(pd.read_csv(folder / "truth.csv")) == 4
    )
    assert all((folder / f).exists() for f in truth.file)
    with pytest.raises(ConfigMismatch, match="another street"):
        ts.write_street(tmp_path / "street", 2, seed=2, workers=1)
    with pytest.raises(BadInput):
        ts.write_street(tmp_path / "none", 0)
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput):
        ts.write_street(tmp_path / "file" / "below", 1, workers=1)


def test_sizes_that_cannot_be_drawn():
    with pytest.raises(BadInput, match="divide"):
        ts.render_frames(MANY[0], [0.0], size=100)
