"""Files whose header says the wrong length or none, whose times begin again, or that have no times at all; and what becomes of their channels."""

import math

import av
import numpy as np
import pytest
from test_media import BFRAMES, SR, clicks, encode, encode_sound, number, onsets

from scene4m import curation
from scene4m.base import media
from scene4m.base.core import BadInput, ClipSpec
from scene4m.base.lists import folder_rows
from scene4m.app.long import describe_long
from scene4m.describe import Description
from scene4m.base.media import FrameSpec, probe, read_clip
from scene4m.transfer import read_frames
from scene4m.world import World


def sound(path, seconds, codec, form=None, sr=48_000, loud=True, options=None):
    "Clicks at whole seconds; where `loud`, noise in the second half, which a variable rate spends its bits on."
    if codec not in av.codecs_available:
        pytest.skip(f"this build of av cannot write {codec}")
    wave = clicks(seconds, sr)
    half = wave.shape[1] // 2
    if loud:
        wave[:, half:] += 0.1 * np.random.default_rng(0).standard_normal(
            wave[:, half:].shape
        ).astype(np.float32)
    with av.open(str(path), "w", format=form, options=options or {}) as out:
        strict = dict(strict="-2") if codec == "vorbis" else {}
        encode_sound(
            out,
            out.add_stream(codec, rate=sr, layout="stereo", options=strict),
            wave,
            0,
            sr,
            "stereo",
        )
    return path


def joined(path, *parts):
    path.write_bytes(b"".join(p.read_bytes() for p in parts))
    return path


class Listener:
    "Stands for a `Describer`: notes what each window holds, and never says the same twice."

    def __init__(self):
        self.checkpoint = type(
            "Checkpoint", (), dict(clip=ClipSpec(), front=None, model=None, world=World())
        )()
        self.seen = []

    def __call__(self, path, start=0.0):
        clip = read_clip(path, start=start, specs=[FrameSpec(10, 1.0, (32, 100))])
        if start and clip.duration < 0.5:
            raise media.BadInput(f"{path}: it ends.")
        self.seen.append((start, clip))
        return Description(
            str(path),
            "",
            0.0,
            True,
            {},
            [],
            reason=f"{start}",
            start=start,
            end=start + clip.duration,
        )


def through(path, total, tolerance=0.15):
    "What the windows of a recording hold; they follow each other and the last ends where the recording does."
    listener = Listener()
    said = list(describe_long(listener, path))
    assert [d.start for d in said[1:]] == [d.end for d in said[:-1]] and said[0].start == 0
    assert said[-1].end == pytest.approx(total, abs=tolerance)
    assert len(said) == math.ceil((total - 0.5) / 10)
    return listener.seen


def clicked(seen):
    "Clicks stand at whole seconds of the recording, in the windows where there is no noise."
    for start, clip in seen:
        at = onsets(clip.wave) + start
        at = at[(at > 0.5) & (at - start > 0.5)]
        assert len(at) and np.abs(at - np.rint(at)).max() < 0.06, (start, at)


def numbered(seen, fps, frames=None):
    "The frames shown at whole seconds are those that belong there."
    for start, clip in seen:
        told = [number(f) for f in clip.frames]
        due = [min(int(round((start + k) * fps)), (frames or 10**6) - 1) for k in range(10)]
        assert np.abs(np.array(told) - due)[: int(clip.duration)].max() <= 2, (start, told, due)


def test_adts_has_no_length(tmp_path):
    path = sound(tmp_path / "a.aac", 43, "aac", "adts")
    with av.open(str(path)) as file:
        assert abs(file.duration / 1e6 - 43) > 5, "the header guesses right: this tries nothing"
    assert probe(path).duration == 0
    through(path, 43)
    clicked(through(sound(tmp_path / "b.aac", 23, "aac", "adts", loud=False), 23))


@pytest.mark.parametrize("quality", ["0", "9"])
def test_mp3_without_a_table(tmp_path, quality):
    name = next((c for c in ("libmp3lame", "mp3", "libshine") if c in av.codecs_available), None)
    if name is None:
        pytest.skip("this build of av cannot write mp3")
    path = sound(tmp_path / "a.mp3", 35, name, "mp3", options=dict(write_xing="0", q=quality))
    through(path, 35)


@pytest.mark.parametrize("codec", ["libopus", "flac", "vorbis"])
def test_a_chain_of_ogg_streams(tmp_path, codec):
    parts = [
        sound(tmp_path / f"{k}.ogg", s, codec, "ogg", loud=False) for k, s in enumerate((7, 16))
    ]
    clicked(through(joined(tmp_path / "a.ogg", *parts), 23))


@pytest.mark.parametrize("name, codec", [("a.ts", "libx264"), ("a.mpg", "mpeg2video")])
@pytest.mark.parametrize("seconds", [(7, 16), (3, 3)])
def test_joined_recordings(tmp_path, name, codec, seconds):
    parts, sums = [], np.cumsum((0, *seconds))
    for k, s in enumerate(seconds):
        parts.append(tmp_path / f"{k}{name}")
        encode(
            parts[-1],
            count=s * 25,
            fps=25,
            codec=codec,
            wave=clicks(s),
            acodec="aac" if name == "a.ts" else "mp2",
            options=dict(g="25"),
        )
    total = int(sums[-1])
    seen = through(joined(tmp_path / name, *parts), total, 0.3)
    for start, clip in seen:
        due = []
        for t in start + np.arange(int(clip.duration)):
            k = max(i for i in range(len(seconds)) if sums[i] <= t)
            due.append((t - sums[k]) * 25)
        told = np.array([number(f) for f in clip.frames[: len(due)]])
        near = np.abs(told - due) <= 4
        borders = np.isin(start + np.arange(len(due)), sums)  # a frame before or after the join
        assert (near | borders).all(), (start, told, due)


def test_amr_with_silence_left_out(tmp_path):
    rng = np.random.default_rng(0)
    speech, nothing = bytes([7 << 3 | 4]) + rng.bytes(31), bytes([15 << 3 | 4])
    path = tmp_path / "a.amr"
    path.write_bytes(
        b"#!AMR\n" + (speech * 50 + nothing * 100) * 8
    )  # 24 s, two thirds of it not sent
    seen = through(path, 24, 2.1)  # the last frames hold nothing
    assert all(clip.has_audio for _, clip in seen)


def test_h264_without_times(tmp_path):
    path = encode(tmp_path / "a.h264", count=660, container="h264", options=dict(BFRAMES, g="60"))
    numbered(through(path, 22), 30, 660)


def test_a_wav_header_that_was_never_filled_in(tmp_path):
    path = media.write_wav(tmp_path / "a.wav", clicks(15, SR, channels=1)[0])
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = (2**31 - 1).to_bytes(
        4, "little"
    )  # what is left when a recorder is stopped
    path.write_bytes(data)
    clicked(through(path, 15))


def test_the_studys_frames_spread_over_what_is_there(tmp_path):
    path = encode(tmp_path / "a.h264", count=120, container="h264", options=dict(g="30"))
    assert [number(f) for f in read_frames(path, n=4)] == [0, 30, 60, 90]


# ---------------------------------------------------------------- channels


def channels(path, values, layout, codec="pcm_s16le", sr=SR):
    tone = np.sin(2 * np.pi * 440 * np.arange(2 * sr) / sr)
    rows = [v * tone for v in values]
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=sr, layout=layout)
        if codec.startswith("pcm"):
            data = (np.stack(rows, 1).reshape(1, -1) * 32767).astype(np.int16)
            f = av.AudioFrame.from_ndarray(data, format="s16", layout=layout)
            f.sample_rate, f.pts = sr, 0
            out.mux(stream.encode(f))
            out.mux(stream.encode(None))
        else:
            encode_sound(out, stream, np.stack(rows), 0, sr, layout)
    return path


def loudness(path):
    clip = read_clip(path, seconds=2.0)
    return float(np.abs(clip.wave[SR // 2 : SR]).max()), clip.silent


@pytest.mark.parametrize(
    "values, layout, expected",
    [
        ((0.4, -0.4), "stereo", 0.4),
        ((0.4, -0.3), "stereo", 0.4),
        ((0.4, 0.4), "stereo", 0.4),
        ((0.5, 0.1), "stereo", 0.3),
        ((0.5, 0.0), "stereo", 0.25),
        ((0, 0, 0.5, 0, 0, 0), "5.1", 0.5),
        ((0, 0, 0, 0.5, 0, 0), "5.1", 0.5),
        ((0.3,) * 6, "5.1", 0.3),
        ((0, 0), "stereo", 0.0),
    ],
)
def test_the_mix_keeps_what_can_be_heard(tmp_path, values, layout, expected):
    loud, silent = loudness(channels(tmp_path / "a.wav", values, layout))
    assert loud == pytest.approx(expected, abs=0.01) and silent == (expected == 0)


def test_opposite_sides_after_a_codec(tmp_path):
    loud, silent = loudness(channels(tmp_path / "a.m4a", (0.4, -0.4), "stereo", "aac"))
    assert loud == pytest.approx(0.4, abs=0.05) and not silent


def test_the_centre_counts_more_than_the_sides(tmp_path):
    tone = np.sin(2 * np.pi * 440 * np.arange(SR) / SR).astype(np.float32)
    noise = 0.1 * np.random.default_rng(0).standard_normal((6, SR)).astype(np.float32)
    noise[2] = 0.3 * tone
    weights = media._weights(av.AudioLayout("5.1"))
    ((_, mixed),) = media._mono([(0.0, weights, noise)])
    assert weights[2] == weights.max() and weights[3] == 0 and weights.sum() == pytest.approx(1)
    assert np.corrcoef(mixed, tone)[0, 1] > 0.8 > np.corrcoef(noise.mean(0), tone)[0, 1] - 0.1


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_alaw", "pcm_mulaw", "pcm_s16le"])
def test_what_a_codec_makes_of_silence_is_silence(tmp_path, codec):
    wave = np.zeros((1, SR), np.int16)
    with av.open(str(tmp_path / "a.wav"), "w") as out:
        stream = out.add_stream(codec, rate=SR, layout="mono")
        if codec == "pcm_u8":
            f = av.AudioFrame.from_ndarray(
                np.full((1, SR), 129, np.uint8), format="u8", layout="mono"
            )  # half a step from zero
        else:
            f = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
        f.sample_rate, f.pts = SR, 0
        out.mux(stream.encode(f))
        out.mux(stream.encode(None))
    assert read_clip(tmp_path / "a.wav", seconds=1.0).silent


# ---------------------------------------------------------------- endings

NAMED = (
    "mp4 m4v mov webm mkv avi 3gp mpg mpeg ts flv gif wmv ogv wav flac mp3 m4a aac ogg opus wma amr aiff aif png jpg jpeg bmp webp "
    "3g2 ac3 asf au caf divx dv f4v m2t m2ts m4b mka mp2 mts mxf oga qt vob w64 weba wv"
).split()


def test_curate_sees_every_ending_that_the_reader_opens(tmp_path):
    assert {f".{e}" for e in NAMED} <= media.endings()
    for e in NAMED:
        (tmp_path / f"a_{e}.{e.upper()}").write_bytes(e.encode())
    rows = folder_rows(tmp_path)
    assert len(rows) == len(NAMED) and not any(r.reason for r in rows)


def test_an_unknown_ending_has_a_row_and_a_reason(tmp_path):
    for name in ("a.mp4", "b.xyz", "noending", ".hidden", "downloads.jsonl"):
        (tmp_path / name).write_bytes(name.encode())
    rows = {r.source: r.reason for r in folder_rows(tmp_path, limit=1)}
    assert rows == {"a.mp4": ""}
    rows = {r.source: r.reason for r in folder_rows(tmp_path)}
    assert rows == {"a.mp4": "", "b.xyz": "unknown ending", "noending": "unknown ending"}
    table = curation.curate(tmp_path, tmp_path / "out")
    assert "unknown ending" in set(table.reason) and "'b.xyz'" in " ".join(table.message)
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(BadInput, match="no clip was found"):
        folder_rows(tmp_path)
