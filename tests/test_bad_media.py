"""Every odd or broken file of a folder is used correctly or refused with a reason, quickly and in bounded memory."""

import csv
import resource
import time
from pathlib import Path

import numpy as np
import pytest

from scene4m.curation import REASONS, ClipDataset, curate
from scene4m.base.media import ClipRefused, IsolatedReader, probe, read_clip

SECONDS, MEGABYTES = 10.0, 1500


def outcome(clip) -> str:
    "What a clip turned out to hold, in words."
    seen = (
        f"picture {clip.info.width}x{clip.info.height}, {clip.path_kind}"
        if clip.has_video
        else "no picture"
    )
    heard = (
        ("silent sound" if clip.silent else f"sound at {clip.info.sr} Hz")
        if clip.has_audio
        else "no sound"
    )
    turned = f", turned by {clip.info.rotation}" if clip.info.rotation else ""
    bars = f", bars {clip.crop}" if any(clip.crop) else ""
    return f"used: {seen}, {heard}, {clip.duration:.2f} s{turned}{bars}"


def check(clip):
    "What must hold of every clip that is not refused."
    assert clip.has_video or clip.has_audio
    if clip.has_video:
        assert clip.frames.shape == (16, 32, 32, 3) and clip.frames.dtype == np.uint8
    if clip.has_audio:
        assert (
            clip.wave.shape == (160_000,)
            and clip.wave.dtype == np.float32
            and np.isfinite(clip.wave).all()
            and np.abs(clip.wave).max() <= 1
        )
    assert 0 <= clip.duration <= 10 and clip.info.rotation in (0, 90, 180, 270)


def test_every_file(bad_media, capsys):
    "One line for each file: what it is used for, or why not."
    lines = []
    for path in sorted(p for p in bad_media.rglob("*") if p.is_file()):
        began = time.time()
        with IsolatedReader(memory=MEGABYTES << 20) as reader:
            try:
                clip = reader.read(path, timeout=SECONDS)
            except ClipRefused as e:
                assert e.reason in REASONS and "\n" not in str(e) and path.name in str(e)
                assert e.reason != "crashed", e
                result = f"refused: {e.reason}"
            else:
                check(clip)
                result = outcome(clip)
        seconds = time.time() - began
        lines.append(f"{path.name[:44]:44}  {seconds:5.2f} s  {result}")
    with capsys.disabled():
        print("\n" + "\n".join(lines))
    assert lines


def test_in_this_process(bad_media):
    "The same without a process of its own: nothing but `ClipRefused` comes out, and memory stays bounded."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in sorted(p for p in bad_media.rglob("*") if p.is_file()):
        for read in (probe, read_clip):
            try:
                read(path)
            except ClipRefused:
                pass
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES << 10


def test_curated(bad_media, tmp_path):
    "As a data set: a row for every file, and what is kept can be loaded."
    files = sorted(
        p for p in bad_media.rglob("*") if p.is_file() and p.suffix not in (".csv", ".json")
    )
    with open(tmp_path / "all.csv", "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(["file", "label"])
        writer.writerows([[p.relative_to(bad_media).as_posix(), "x"] for p in files])
    table = curate(
        bad_media,
        tmp_path / "out",
        labels_file=tmp_path / "all.csv",
        timeout=SECONDS,
        min_seconds=0.0,
    )
    assert (
        len(table) == len(files)
        and set(table.reason) <= {"", *REASONS}
        and (table.message[table.status != "kept"] != "").all()
    )
    data = ClipDataset(tmp_path / "out")
    for key in data.keys():
        assert data.load("frames", key).shape == (16, 32, 32, 3) and data.load(
            "audio", key
        ).shape == (160_000,)


KNOWN = {  # what some files must turn out to be, whatever else is in the folder
    "rotated_90.mp4": lambda c: c.info.rotation == 90 and c.info.width > c.info.height,
    "rotated_180.mov": lambda c: c.info.rotation == 180,
    "pillarboxed_real.mp4": lambda c: min(c.crop[2:]) > 80 and c.crop[:2] == (0, 0),
    "example3.mp4": lambda c: min(c.crop[:2]) > 50,
    "audio_only_aac.mp4": lambda c: not c.has_video and c.has_audio,
    "video_only.mp4": lambda c: c.has_video and not c.has_audio,
    "with-attached-pic.mp3": lambda c: not c.has_video,
    "silence.wav": lambda c: c.has_audio and c.silent,
    "cockatoo_badframes.mp4": lambda c: c.has_audio and c.silent and c.has_video,
    "h264_white_frame_sar_16_9.mp4": lambda c: c.frames.min() > 240,
    "animated.gif": lambda c: c.has_video and not c.has_audio,
    "engine_5p1.m4a": lambda c: not c.silent and c.duration > 2.9,
    "nasa_6streams_8khz.mp4": lambda c: c.has_video and c.has_audio and c.duration == 10,
    "vfr_real.mp4": lambda c: c.duration == pytest.approx(3, abs=0.1),
    "video_with_failing_audio.mp4": lambda c: c.has_video and not c.silent,
    "av1_video.mkv": lambda c: c.info.video_codec.endswith("dav1d"),
}
REFUSED = {
    "result.webm": "empty",
    "lfs_pointer_not_video.mp4": "not media",
    "truncated_1k.mp4": "not media",
    "truncated_half.mp4": "not media",
    "empty_header_only.wav": "undecodable",
    "bipbop_nonfragment_header.mp4": "undecodable",
}


@pytest.mark.parametrize("name", [*KNOWN, *REFUSED])
def test_known_files(bad_media, name):
    path: Path = bad_media / name
    if not path.exists():
        pytest.skip(f"{name} is not in this folder")
    if name in KNOWN:
        assert KNOWN[name](read_clip(path))
    else:
        with pytest.raises(ClipRefused) as e:
            read_clip(path)
        assert e.value.reason == REFUSED[name]
