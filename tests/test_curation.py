"""Curation on clips drawn here: what is kept and refused, ledgers, locks, broken lists, archives, loaders."""

import csv
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from scene4m.base import media
from scene4m.worlds.street import LABELS
from scene4m.base.core import BadInput, ClipSpec, ConfigMismatch
from scene4m.base import downloads
from scene4m.base.downloads import clip_files, download, failure_kind, unpack_clips
from scene4m.base.lists import FileRow, folder_rows, join_captions, read_table, safe_key
from scene4m.base.store import verify_store
from scene4m.curation import ClipDataset, RawClip, assign_splits, curate, summarise
from scene4m.worlds.vggsound import class_table, vggsound_list, vggsound_rows
from scene4m.base.media import FrameSpec, write_clip, write_wav

SMALL = ClipSpec(seconds=2.0, fps=2.0, frames=4, size=16)


def raw(i: int, **more) -> RawClip:
    rng = np.random.default_rng(i)
    frames, wave = (
        rng.integers(0, 255, (4, 16, 16, 3), dtype=np.uint8),
        0.1 * rng.standard_normal(32_000).astype(np.float32),
    )
    return RawClip(
        **{**dict(key=f"c{i:04d}", frames=frames, wave=wave, label=LABELS[i % 3]), **more}
    )


class Factory:
    def __init__(self, n: int):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i == 13:
            raise ValueError("thirteen")
        return raw(i)


def loudness(frames, wave, valid):
    return np.array([np.abs(wave).mean(), valid], np.float32)


def square(path: Path, seed: int = 0, seconds: float = 2.0, sound: bool = True, **more) -> Path:
    rng = np.random.default_rng(seed)
    frames = np.full((int(8 * seconds), 48, 64, 3), rng.integers(30, 220, 3), np.uint8)
    for k in range(len(frames)):
        frames[k, 10:30, k : k + 20] = rng.integers(0, 255, 3)
    wave = 0.2 * rng.standard_normal(int(16_000 * seconds)).astype(np.float32) if sound else None
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_clip(path, frames, wave, 8, **more)


def tree(folder: Path) -> dict:
    "Every file of a data set with its bytes; locks are empty and left out."
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.endswith(".lock")
    }


# ---------------------------------------------------------------- sources and layouts


@pytest.mark.parametrize("layout", ["folder", "shards"])
@pytest.mark.parametrize("workers", [1, 2])
def test_factory(tmp_path, layout, workers):
    table = curate(
        Factory(25),
        tmp_path,
        clip=SMALL,
        features=dict(loud=loudness),
        layout=layout,
        shard_size=10,
        workers=workers,
    )
    assert list(table.key[:2]) == ["c0000", "c0001"] and len(table) == 25
    assert dict(Counter(table.reason)) == {"": 24, "failed": 1} and "thirteen" in table.message[13]
    data = ClipDataset(tmp_path)
    assert len(data) == 24 and np.array_equal(data.load("frames", "c0007"), raw(7).frames)
    assert np.abs(data.load("audio", "c0007") / 32767 - raw(7).wave).max() < 2e-5
    assert (
        data.stack("loud", data.keys()).shape == (24, 2) and data.load("loud", "c0001")[1] == 32_000
    )
    assert (
        data.about["arrays"]["audio"] == dict(dtype="int16", shape=[32_000])
        and verify_store(tmp_path) == []
    )
    with pytest.raises(BadInput, match="no clip"):
        data.row("nobody")
    with pytest.raises(BadInput, match="no array"):
        data.load("mel", "c0001")


def test_workers_and_engines_write_equal_bytes(tmp_path):
    for name, workers in (("a", 1), ("b", 2)):
        curate(Factory(25), tmp_path / name, clip=SMALL, shard_size=7, workers=workers)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_layout_follows_the_number_of_clips(tmp_path):
    class Many(Factory):
        def __getitem__(self, i):
            raise ValueError("not made")

    curate(Many(2001), tmp_path / "many", clip=SMALL)
    curate(Factory(3), tmp_path / "few", clip=SMALL)
    assert (
        ClipDataset(tmp_path / "many").settings["layout"] == "shards"
        and ClipDataset(tmp_path / "few").settings["layout"] == "folder"
    )


def test_wrong_arrays_and_keys(tmp_path):
    clips = [
        raw(0),
        raw(1, frames=np.zeros((4, 16, 16, 3), np.float32)),
        raw(2, frames=np.zeros((3, 16, 16, 3), np.uint8)),
        raw(3, frames=None),
        raw(4, wave=None),
        raw(5, frames=None, wave=None),
        raw(6, wave=np.full(32_000, np.nan, np.float32)),
        raw(7, wave=np.zeros((2, 9))),
    ]
    table = curate(clips, tmp_path / "a", clip=SMALL)
    assert list(table.status) == [
        "kept",
        "refused",
        "refused",
        "kept",
        "kept",
        "refused",
        "refused",
        "refused",
    ]
    assert set(table.reason) == {"", "bad arrays"} and list(table.has_video[3:5]) == [False, True]
    assert ClipDataset(tmp_path / "a").load("frames", "c0003").max() == 0
    with pytest.raises(BadInput, match="two clips"):
        curate([raw(0), raw(1, key="c0000")], tmp_path / "b", clip=SMALL)
    with pytest.raises(BadInput, match="file name"):
        curate([raw(0, key="../evil")], tmp_path / "c", clip=SMALL)
    with pytest.raises(BadInput, match="empty"):
        curate([], tmp_path / "d", clip=SMALL)
    assert not (tmp_path / "evil.npy").exists() and not (tmp_path / "c" / "evil.npy").exists()


def test_refusals(tmp_path):
    still = raw(1, frames=np.zeros((4, 16, 16, 3), np.uint8))
    clips = [
        raw(0),
        still,
        raw(2, wave=np.zeros(32_000, np.float32)),
        raw(3, wave=np.ones(100, np.float32)),
        raw(0, key="again"),
    ]
    table = curate(clips, tmp_path, clip=SMALL, refuse=("short", "silent", "still", "duplicate"))
    assert (
        list(table.reason) == ["", "still", "silent", "short", "duplicate"]
        and "'c0000'" in table.message[4]
    )
    assert "1 of 5 clips kept" in summarise(table) and "refused, still: 1" in summarise(table)
    with pytest.raises(BadInput, match="no reason"):
        curate(clips, tmp_path, clip=SMALL, refuse=("ugly",))


def test_feature_that_fails_is_one_sentence(tmp_path):
    def broken(frames, wave, valid):
        return 1 / 0

    with pytest.raises(BadInput, match="feature 'x' fails on clip 'c0000' .ZeroDivisionError"):
        curate([raw(0)], tmp_path, clip=SMALL, features=dict(x=broken))


# ---------------------------------------------------------------- folders

NAMES = [
    "plain.mp4",
    "with space.mp4",
    'it\'s "quoted".mp4',
    "new\nline.mp4",
    "-dash.mp4",
    "Übergrößenträger.mp4",
    "日本語.mp4",
    "semi;colon$(touch x).mp4",
    "dots.in.name.mp4",
    "CON.mp4",
    "%03d.mp4",
    "concat:x.mp4",
    "a" * 200 + ".mp4",
    "UPPER.MP4",
]


def test_folder_with_names_of_every_kind(tmp_path):
    for i, name in enumerate(NAMES):
        square(tmp_path / "in" / name.replace("MP4", "mp4"), seed=i).rename(tmp_path / "in" / name)
    table = curate(tmp_path / "in", tmp_path / "out", clip=SMALL)
    assert sorted(table.source) == sorted(NAMES) and (table.status == "kept").all(), table[
        ["source", "message"]
    ]
    assert all(safe_key(k, stem=True) == k for k in table.key) and len(
        {k.lower() for k in table.key}
    ) == len(NAMES)
    assert (
        table.set_index("source").key["plain.mp4"] == "plain"
        and table.set_index("source").key["-dash.mp4"] == "-dash"
    )
    assert not (tmp_path / "x").exists() and len(
        list((tmp_path / "out" / "frames").iterdir())
    ) == len(NAMES)


def test_labels_from_folders_and_from_a_list(tmp_path):
    for i, name in enumerate(("dog barking/a.mp4", "wind chime/b.mp4", "c.mp4")):
        square(tmp_path / "in" / name, seed=i)
    assert dict(
        zip(*curate(tmp_path / "in", tmp_path / "o1", clip=SMALL)[["source", "label"]].values.T)
    ) == {"c.mp4": "", "dog barking/a.mp4": "dog barking", "wind chime/b.mp4": "wind chime"}
    rows = [
        dict(
            file="c.mp4",
            label="wind chime",
            group="g",
            split="test",
            captions='["a", "b"]',
            attributes='{"colour": "red"}',
        ),
        dict(file="nowhere.mp4", label="dog barking"),
        dict(file="../secret.mp4", label="x"),
        dict(file="/etc/passwd", label="x"),
        dict(
            file="dog barking/a.mp4",
            label="dog barking",
            captions="one sentence",
            attributes="not json",
        ),
        dict(file="", label="x"),
    ]
    with open(tmp_path / "in" / "labels.csv", "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, ["file", "label", "group", "split", "captions", "attributes"])
        writer.writeheader()
        writer.writerows(rows)
    table = curate(tmp_path / "in", tmp_path / "o2", clip=SMALL)
    assert list(table.reason) == ["", "missing", "outside", "outside", "", "bad row"]
    first = ClipDataset(tmp_path / "o2").row("c")
    assert first["captions"] == '["a", "b"]' and json.loads(first["attributes"]) == dict(
        colour="red"
    )
    assert first["split"] == "test" and first["group"] == "g"
    assert (
        json.loads(table.captions[4]) == ["one sentence"]
        and table.attributes[4] != table.attributes[4]
    )
    assert len(curate(tmp_path / "in", tmp_path / "o3", clip=SMALL, labels=["wind chime"])) == 1


def test_folder_that_is_none(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for source, match in (
        (tmp_path / "nowhere", "no such folder"),
        (tmp_path / "empty", "no clip"),
        (tmp_path / "file", "no such folder"),
    ):
        with pytest.raises(BadInput, match=match):
            curate(source, tmp_path / "out")
    square(tmp_path / "in" / "a.mp4")
    with pytest.raises(BadInput, match="this is a file"):
        curate(tmp_path / "in", tmp_path / "file", clip=SMALL)
    with pytest.raises(BadInput, match="cannot be written"):
        curate(tmp_path / "in", tmp_path / "file" / "out", clip=SMALL)


def test_duplicates_broken_files_and_states(tmp_path):
    folder = tmp_path / "in"
    square(folder / "a.mp4", 1)
    (folder / "b.mp4").write_bytes((folder / "a.mp4").read_bytes())
    square(folder / "c.mp4", 2, sound=False)
    write_wav(folder / "d.wav", 0.1 * np.random.default_rng(0).standard_normal(32_000))
    (folder / "e.mp4").write_bytes(b"")
    (folder / "f.mp4").write_text("hello")
    (folder / "g.mp4").write_bytes((folder / "a.mp4").read_bytes()[:900])
    table = curate(folder, tmp_path / "out", clip=SMALL).set_index("key")
    assert table.reason.to_dict() == {
        "a": "",
        "b": "duplicate",
        "c": "",
        "d": "",
        "e": "empty",
        "f": "not media",
        "g": "not media",
    }
    assert (
        not table.has_audio["c"]
        and not table.has_video["d"]
        and table.has_audio["d"]
        and (table.versions.str.contains("av=")).all()
    )
    assert (
        table.decode["a"] == "exact-skip" and table["size"]["a"] == "64x48" and table.fps["a"] == 8
    )


def test_one_decode_gives_several_sizes(tmp_path):
    square(tmp_path / "in" / "a.mp4")
    curate(tmp_path / "in", tmp_path / "out", clip=SMALL, views=dict(large=FrameSpec(5, 2.0, 64)))
    data = ClipDataset(tmp_path / "out")
    assert data.load("large", "a").shape == (5, 64, 64, 3) and data.load("frames", "a").shape == (
        4,
        16,
        16,
        3,
    )


def test_decoder_that_hangs_or_dies_costs_one_clip(tmp_path, monkeypatch):
    import ctypes

    for i, name in enumerate("abcd"):
        square(tmp_path / "in" / f"{name}.mp4", i)
    real = media.read_clip

    def read(path, **options):
        if path.endswith("b.mp4"):
            ctypes.CDLL(None).sleep(3600)
        if path.endswith("c.mp4"):
            ctypes.string_at(0)
        return real(path, **options)

    monkeypatch.setattr(media, "read_clip", read)
    table = curate(tmp_path / "in", tmp_path / "out", clip=SMALL, timeout=5.0)
    assert list(table.reason) == ["", "stalled", "crashed", ""]


# ---------------------------------------------------------------- nothing is lost


def test_changed_settings_are_noticed(tmp_path):
    curate(Factory(5), tmp_path, clip=SMALL)
    before = tree(tmp_path)
    with pytest.raises(ConfigMismatch, match="store"):
        curate(Factory(5), tmp_path, clip=SMALL, store=("frames",))
    with pytest.raises(ConfigMismatch, match="features"):
        curate(Factory(5), tmp_path, clip=SMALL, features=dict(loud=loudness))
    with pytest.raises(ConfigMismatch, match="clip"):
        curate(Factory(5), tmp_path, clip=ClipSpec(seconds=1.0, fps=2.0, frames=4, size=16))
    assert tree(tmp_path) == before


def test_more_clips_later(tmp_path):
    "A folder that grows or shrinks: only what differs is done again, and the end is what a fresh run gives."
    for i in range(7):
        square(tmp_path / "in" / f"{i}.mp4", i)
    curate(tmp_path / "in", tmp_path / "out", clip=SMALL, shard_size=3)
    kept = (tmp_path / "out" / "frames" / "1.npy").stat().st_mtime_ns
    (tmp_path / "in" / "5.mp4").unlink()
    (tmp_path / "in" / "6.mp4").unlink()
    square(tmp_path / "in" / "4b.mp4", 9)
    curate(tmp_path / "in", tmp_path / "out", clip=SMALL, shard_size=3)
    curate(tmp_path / "in", tmp_path / "fresh", clip=SMALL, shard_size=3)
    assert (
        tree(tmp_path / "out") == tree(tmp_path / "fresh")
        and (tmp_path / "out" / "frames" / "1.npy").stat().st_mtime_ns == kept
    )


def test_damage_is_found_and_mended(tmp_path):
    curate(Factory(12), tmp_path, clip=SMALL, layout="shards", shard_size=6)
    before = tree(tmp_path)
    tar = tmp_path / "audio" / "shard-00001.tar"
    data = bytearray(tar.read_bytes())
    data[5000] ^= 1
    tar.write_bytes(data)
    assert verify_store(tmp_path) == ["audio/shard-00001.tar"]
    tar.write_bytes(data[:-10])
    (tmp_path / "ledger" / "shard-00000.json").write_text("{half")
    curate(Factory(12), tmp_path, clip=SMALL, layout="shards", shard_size=6)
    assert tree(tmp_path) == before


def test_full_disk(tmp_path, monkeypatch):
    "The disk fills up in the middle: one sentence, what is finished is kept, and the same call goes on later."
    real, left = os.replace, [40]

    def full(a, b):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return real(a, b)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(BadInput, match="No space left"):
        curate(Factory(40), tmp_path / "a", clip=SMALL, shard_size=5)
    monkeypatch.setattr(os, "replace", real)
    done = list((tmp_path / "a" / "ledger").glob("shard-?????.json"))
    assert 1 <= len(done) < 8 and not list((tmp_path / "a").rglob(".tmp-*"))
    curate(Factory(40), tmp_path / "a", clip=SMALL, shard_size=5)
    curate(Factory(40), tmp_path / "b", clip=SMALL, shard_size=5)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


@pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel's limit on the size of files")
def test_full_disk_by_the_kernel(tmp_path):
    "The same with a real error of the system: no file may grow beyond 200 kB."
    code = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_curation import *
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try: curate(Factory(40), {str(tmp_path)!r}, clip=SMALL, layout="shards", shard_size=10)
except BadInput as e: print(e)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=900)
    assert "cannot be written (File too large)" in done.stdout and "Traceback" not in done.stderr, (
        done
    )
    assert not list(tmp_path.rglob(".tmp-*"))


def test_two_processes_on_one_folder(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_curation import *\n"
        f"print(len(curate(Slow(60), {str(tmp_path / 'two')!r}, clip=SMALL, shard_size=5)))"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [p.communicate(timeout=900)[0].strip() for p in both] == ["60", "60"]
    curate(Slow(60), tmp_path / "one", clip=SMALL, shard_size=5)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


class Slow(Factory):
    def __getitem__(self, i):
        time.sleep(0.02)
        return raw(i)


def test_other_clips_while_one_is_at_it(tmp_path):
    "A second run with other clips into a folder that is being filled is sent away."
    thread = threading.Thread(target=lambda: curate(Slow(60), tmp_path, clip=SMALL, shard_size=5))
    thread.start()
    while not (tmp_path / "settings.json").exists():
        time.sleep(0.01)
    with pytest.raises(BadInput, match="another process"):
        curate(Slow(30), tmp_path, clip=SMALL, shard_size=5)
    thread.join()
    assert len(ClipDataset(tmp_path)) == 60


def test_shards_by_hand(tmp_path):
    "Three schedulers' tasks, in any order, give what one run gives."
    for i in (2, 0):
        assert not curate(
            Factory(25), tmp_path / "a", clip=SMALL, shard_size=4, shard=i, of=3
        ).attrs["complete"]
    assert not (tmp_path / "a" / "manifest.parquet").exists()
    assert curate(Factory(25), tmp_path / "a", clip=SMALL, shard_size=4, shard=1, of=3).attrs[
        "complete"
    ]
    curate(Factory(25), tmp_path / "b", clip=SMALL, shard_size=4)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    with pytest.raises(BadInput, match="below"):
        curate(Factory(25), tmp_path / "a", clip=SMALL, shard=3, of=3)


def test_worker_that_is_killed(tmp_path):
    "A pool that loses a process is built again, and nothing is missing."
    curate(Deadly(24, tmp_path / "once"), tmp_path / "a", clip=SMALL, shard_size=4, workers=2)
    assert (tmp_path / "once").exists() and len(ClipDataset(tmp_path / "a")) == 24


class Deadly(Factory):
    def __init__(self, n, flag):
        super().__init__(n)
        self.flag = str(flag)

    def __getitem__(self, i):
        if i == 9 and not os.path.exists(self.flag):
            Path(self.flag).touch()
            os.kill(os.getpid(), 9)
        return raw(i)


# ---------------------------------------------------------------- VGG-Sound

ROWS = [
    ("-abcdefghij", 30, "engine accelerating, revving, vroom", "train"),
    ("_bcdefghijk", 5, "dog barking", "test"),
    ("cccccccccc1", 0, "dog barking", "train"),
    ("cccccccccc1", 40, "wind chime", "test"),
    ("dddddddddd1", 100, "baby crying", "train"),
    ("eeeeeeeeee1", 7, "people crowd", "train"),
]


def write_list(path: Path, rows=ROWS) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows(rows)
    return path


def test_list_and_namings(tmp_path):
    file = write_list(tmp_path / "vgg.csv")
    assert (
        list(vggsound_list(file)) == [r for r in ROWS if r[2] != "baby crying"]
        and len(list(vggsound_list(file, None))) == 6
    )
    clips = tmp_path / "clips"
    square(clips / "-abcdefghij_000030.mp4", 1)
    square(clips / "_bcdefghijk_5000_15000.mp4", 2)
    square(clips / "eeeeeeeeee1.mp4", 3, seconds=10)
    assert set(clip_files(clips)) == {
        ("-abcdefghij", 30),
        ("_bcdefghijk", 5),
        ("eeeeeeeeee1", None),
    }
    table = curate(vggsound_rows(file, clips), tmp_path / "out", clip=SMALL).set_index("key")
    assert table.reason.to_dict() == {
        "-abcdefghij_000030": "",
        "_bcdefghijk_000005": "",
        "cccccccccc1_000000": "missing",
        "cccccccccc1_000040": "missing",
        "eeeeeeeeee1_000007": "",
    }
    assert (
        set(table.split[table.group == "cccccccccc1"]) == {"test"}
        and table.start["eeeeeeeeee1_000007"] == 7
        and table.label.iloc[0] == ROWS[0][2]
    )
    whole, piece = (
        media.read_clip(clips / "eeeeeeeeee1.mp4", start=7, seconds=2, specs=[FrameSpec(4, 2, 16)]),
        ClipDataset(tmp_path / "out"),
    )
    assert np.array_equal(whole.frames, piece.load("frames", "eeeeeeeeee1_000007"))


def test_labels_cut_at_the_comma(tmp_path):
    file = write_list(
        tmp_path / "cut.csv",
        [
            ("-abcdefghij", 30, "engine accelerating", "train"),
            ("-abcdefghiz", 30, "male speech", "train"),
        ],
    )
    assert [r[2] for r in vggsound_list(file)] == [
        "engine accelerating, revving, vroom",
        "male speech, man speaking",
    ]


def test_lists_that_are_none(tmp_path):
    (tmp_path / "text.csv").write_text("hello\nworld\n")
    (tmp_path / "latin.csv").write_bytes("abcdefghij1,3,Müll,train\n".encode("latin-1"))
    (tmp_path / "wide.csv").write_text("file,label\na.mp4,Hündin\n", encoding="utf-16")
    with pytest.raises(BadInput, match="not the list"):
        list(vggsound_list(tmp_path / "text.csv"))
    assert [r[2] for r in vggsound_list(tmp_path / "latin.csv", None)] == ["Müll"]
    with pytest.raises(BadInput, match="must name the columns file"):
        list(read_table(tmp_path / "text.csv"))
    with pytest.raises(BadInput, match="cannot be read"):
        list(read_table(tmp_path / "none.csv"))
    assert list(read_table(tmp_path / "wide.csv")) == [dict(file="a.mp4", label="Hündin")]
    (tmp_path / "long.csv").write_text("file,label\n" + "x" * 300_000 + ",y\n")
    with pytest.raises(BadInput, match="not a readable csv"):
        list(read_table(tmp_path / "long.csv"))


READ = """
import resource
from scene4m.base.lists import folder_rows, read_table
from scene4m.worlds.vggsound import vggsound_list
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
"""


def read_long(tmp_path, rows: int, code: str, line) -> tuple:
    "What `code` prints after it has read a list of so many rows in a process of its own, and the megabytes that it took more than a short list."
    out = []
    for n in (1000, rows):
        with open(tmp_path / f"{n}.csv", "w") as f:
            for i in range(0, n, 1000):
                f.write("".join(map(line, range(i, i + 1000))))
        text = (
            READ
            + code.format(file=str(tmp_path / f"{n}.csv"), folder=str(tmp_path / "in"))
            + "\nprint(peak())"
        )
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        out.append(done.stdout.split())
    return out[1][0], int(out[1][-1]) - int(out[0][-1])


LONG = [
    (
        "print(len(list(vggsound_list({file!r}))))",
        lambda i: (
            f"{i:011d},{i % 600},{'dog barking' if i % 5000 == 0 else 'something else'},train\n"
        ),
        5000,
    ),
    (
        "print(sum(r['label'] == 'dog' for r in read_table({file!r})))",
        lambda i: f"{i}.mp4,{'dog' if i % 5000 == 1 else 'else'}\n" if i else "file,label\n",
        5000,
    ),
    (
        "print(len(folder_rows({folder!r}, {file!r}, ('dog',))))",
        lambda i: f"{i}.mp4,{'dog' if i % 5000 == 1 else 'else'}\n" if i else "file,label\n",
        5000,
    ),
]


@pytest.mark.parametrize("code, line, one_in", LONG, ids=["vggsound", "table", "folder"])
def test_long_list_is_streamed(tmp_path, code, line, one_in):
    "A list far larger than the memory it may take, of which few rows are asked for."
    (tmp_path / "in").mkdir()
    count, more = read_long(tmp_path, 100_000, code, line)
    assert int(count) == 100_000 // one_in and more < 10


@pytest.mark.slow
@pytest.mark.parametrize("code, line, one_in", [LONG[0], LONG[2]], ids=["vggsound", "folder"])
def test_ten_million_rows(tmp_path, code, line, one_in):
    (tmp_path / "in").mkdir()
    count, more = read_long(tmp_path, 10_000_000, code, line)
    assert int(count) == 2000 and more < 20


def test_a_list_is_read_no_further_than_asked(tmp_path):
    "The broken line behind the limit is never met."
    square(tmp_path / "in" / "a.mp4", 1)
    square(tmp_path / "in" / "b.mp4", 2)
    (tmp_path / "l.csv").write_text("file,label\na.mp4,dog\nb.mp4,dog\n" + "x" * 300_000 + ",dog\n")
    assert len(folder_rows(tmp_path / "in", tmp_path / "l.csv", limit=2)) == 2
    assert (
        len(
            curate(
                tmp_path / "in",
                tmp_path / "out",
                labels_file=tmp_path / "l.csv",
                limit=2,
                clip=SMALL,
            )
        )
        == 2
    )
    with pytest.raises(BadInput, match="not a readable csv"):
        folder_rows(tmp_path / "in", tmp_path / "l.csv")


def test_lists_that_name_nothing(tmp_path):
    square(tmp_path / "in" / "a.mp4")
    (tmp_path / "e.csv").write_text("file,label\n")
    (tmp_path / "s.csv").write_text("name;label\na.mp4;dog\n")
    (tmp_path / "w.csv").write_text(" file , label \na.mp4,dog\n")
    with pytest.raises(BadInput, match="e.csv: it names no clip"):
        folder_rows(tmp_path / "in", tmp_path / "e.csv")
    with pytest.raises(BadInput, match="must name the columns file"):
        folder_rows(tmp_path / "in", tmp_path / "s.csv")
    with pytest.raises(BadInput, match="no clip has the label zebra"):
        folder_rows(tmp_path / "in", tmp_path / "w.csv", labels=("zebra",))
    assert folder_rows(tmp_path / "in", tmp_path / "w.csv")[0].label == "dog"


def test_table_one():
    rows = [("x" * 11, 0, "driving buses", "train")] * 3 + [("x" * 11, 0, "wind chime", "test")]
    table = class_table([r[2] for r in rows]).set_index("label")
    assert table.clips["driving buses"] == 3 and table.share["driving buses"] == 75
    assert table.paper.sum() == 7643 and table.paper_share["driving buses"] == 10.39
    assert table.clips["people eating"] == 0


def test_official_rows(real_clips):
    "On the rows of the official list that are at hand: all labels known, ids that begin with a dash, splits whole."
    file = real_clips / "vggsound" / "vggsound_rows_14.csv"
    if not file.exists():
        pytest.skip("the folder holds no rows of the list")
    with open(file, newline="", encoding="utf-8") as f:
        lines = [r for r in csv.reader(f)]
    rows = list(vggsound_list(file))
    assert len(rows) == sum(r[2] in LABELS for r in lines) and any(
        r[0].startswith("-") for r in rows
    )
    assert set(Counter(r[2] for r in rows)) <= set(LABELS)


def test_human_captions_are_joined(tmp_path, human_captions):
    file = human_captions / "audiocaps_on_vggsound.csv"
    first = next(read_table(file, ()))
    key = f"{first['youtube_id']}_{int(first['vgg_start']):06d}"
    label = next(read_table(human_captions / "vggsounder_multilabels.csv", ()))
    rows = join_captions(
        [FileRow(key, "", "s"), FileRow(label["video_id"], "", "s"), FileRow("x", "", "s")],
        [file, human_captions / "vggsounder_multilabels.csv"],
    )
    assert (
        first["caption"] in rows[0].captions
        and [label["label"], label["modality"]] == json.loads(rows[1].other_labels)[0][:2]
    )
    assert rows[2].captions == () and rows[2].other_labels == "[]"
    write_list(tmp_path / "x.csv")
    with pytest.raises(BadInput, match="columns"):
        join_captions(rows, tmp_path / "x.csv")


# ---------------------------------------------------------------- fetching


def test_download_keeps_a_ledger(tmp_path):
    file, asked = write_list(tmp_path / "vgg.csv"), []
    errors = {
        "cccccccccc1": "ERROR: Video unavailable",
        "eeeeeeeeee1": "HTTP Error 429: Too Many Requests",
    }

    def fetch(youtube_id, start, seconds, folder, whole):
        asked.append((youtube_id, start))
        if youtube_id in errors:
            raise RuntimeError(errors[youtube_id])
        square(folder / f"{youtube_id}_{start:06d}.mp4", start)

    assert (
        download(vggsound_list(file), tmp_path / "clips", fetch=fetch, pause=0)
        == dict(done=2, gone=2, throttled=1)
        and len(asked) == 5
    )
    asked.clear()
    assert download(vggsound_list(file), tmp_path / "clips", fetch=fetch, pause=0) == dict(
        throttled=1
    ) and asked == [("eeeeeeeeee1", 7)]
    with open(tmp_path / "clips" / "downloads.jsonl", "a") as f:
        f.write('{"key": "half')
    table = curate(vggsound_rows(file, tmp_path / "clips"), tmp_path / "out", clip=SMALL)
    assert dict(Counter(table.reason)) == {"": 2, "gone": 2, "throttled": 1}
    assert dict(zip(table.reason, table.decode))["gone"] == "" and set(
        table.decode[table.reason == ""]
    ) == {"exact-skip"}
    errors["eeeeeeeeee1"] = "This video has been removed"
    assert download(vggsound_list(file), tmp_path / "clips", fetch=fetch, pause=0) == dict(
        gone=1
    )  # and its line is not glued to the half one
    assert (
        downloads.read_downloads(tmp_path / "clips" / "downloads.jsonl")["eeeeeeeeee1_000007"][0]
        == "gone"
    )


def test_download_that_leaves_nothing_has_failed(tmp_path):
    "yt-dlp passes over what is too large without a word: that is no success, and the clip is tried again."
    file = write_list(tmp_path / "vgg.csv")
    assert download(
        vggsound_list(file), tmp_path / "clips", fetch=lambda *a: None, pause=0
    ) == dict(failed=5)
    table = curate(vggsound_rows(file, tmp_path / "clips"), tmp_path / "out", clip=SMALL)
    assert set(table.reason) == {"failed"} and "nothing was written" in table.message[0]

    def fetch(youtube_id, start, seconds, folder, whole):
        (folder / f"{youtube_id}.webm").write_bytes(b"x")

    assert download(
        vggsound_list(file), tmp_path / "clips", fetch=fetch, pause=0, whole=True
    ) == dict(done=4)  # two clips of one video


def test_download_stops_when_refused(tmp_path):
    file = write_list(
        tmp_path / "vgg.csv", [(f"{i:011d}", 0, "dog barking", "train") for i in range(20)]
    )
    calls = []

    def fetch(*a):
        calls.append(a)
        raise RuntimeError("Sign in to confirm you're not a bot")

    with pytest.raises(BadInput, match="refused 5 clips"):
        download(vggsound_list(file), tmp_path / "clips", fetch=fetch, pause=0)
    assert len(calls) == 5


@pytest.mark.parametrize(
    "message, kind",
    [
        ("[youtube] x: Video unavailable. This video has been removed by the uploader", "gone"),
        ("Private video. Sign in if you've been granted access", "private"),
        ("Sign in to confirm you're not a bot. Use --cookies", "throttled"),
        ("The uploader has not made this video available in your country", "blocked"),
        ("HTTP Error 429: Too Many Requests", "throttled"),
        ("This video is no longer available because the account has been terminated", "gone"),
        ("Sign in to confirm your age", "blocked"),
        ("Connection reset by peer", "failed"),
        ("HTTP Error 403: Forbidden", "throttled"),
    ],
)
def test_failures_are_classed(message, kind):
    assert failure_kind(message) == kind


def test_yt_dlp_is_called_as_a_library(tmp_path, monkeypatch):
    yt_dlp = pytest.importorskip("yt_dlp")
    seen = {}

    class Fake:
        def __init__(self, options):
            seen.update(options)

        def __enter__(self):
            return self

        def __exit__(self, *a):
            pass

        def download(self, urls):
            seen["urls"] = urls

    monkeypatch.setattr(yt_dlp, "YoutubeDL", Fake)
    downloads.yt_dlp_fetch("-abcdefghij", 30, 10.0, tmp_path)
    assert seen["urls"] == ["https://www.youtube.com/watch?v=-abcdefghij"] and seen[
        "outtmpl"
    ].endswith("-abcdefghij_000030.%(ext)s")
    assert (
        list(seen["download_ranges"]({}, None))[0]["start_time"] == 30
        and seen["force_keyframes_at_cuts"]
    )
    real_options = {k: v for k, v in seen.items() if k != "urls"}
    monkeypatch.undo()
    yt_dlp.YoutubeDL(real_options).close()  # the real library accepts the options


# ---------------------------------------------------------------- archives, splits, loaders


def test_archive_stays_in_its_folder(tmp_path):
    clip = square(tmp_path / "a.mp4").read_bytes()
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        for name in (
            "good.mp4",
            "sub/good2.mp4",
            "../evil.mp4",
            "/abs.mp4",
            "a/../../evil2.mp4",
            "notes.txt",
            "..\\win.mp4",
            "C:evil.mp4",
        ):
            info = tarfile.TarInfo(name)
            info.size = len(clip)
            tar.addfile(info, io.BytesIO(clip))
        link = tarfile.TarInfo("link.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    outcome = unpack_clips(tmp_path / "x.tar.gz", tmp_path / "in" / "deep")
    assert [k for k, v in outcome.items() if v == "unpacked"] == [
        "good.mp4",
        "sub/good2.mp4",
    ] and outcome["link.mp4"] == "not a plain file"
    assert (
        sorted(p.name for p in tmp_path.rglob("*.mp4")) == ["a.mp4", "good.mp4", "good2.mp4"]
        and not Path("/abs.mp4").exists()
    )
    (tmp_path / "y.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(BadInput, match="broken"):
        unpack_clips(tmp_path / "y.tar", tmp_path / "in")
    (tmp_path / "z.tar.gz").write_bytes((tmp_path / "x.tar.gz").read_bytes()[:3000])
    with pytest.raises(BadInput, match="broken"):
        unpack_clips(tmp_path / "z.tar.gz", tmp_path / "in2")


def test_texts_with_every_kind_of_line_end(tmp_path):
    "Unicode knows more ends of a line than a newline; a row stays a row."
    for i, c in enumerate("\x85\u2028\u2029\x1c\r\n"):
        square(tmp_path / "in" / f"a{c}b{i}.mp4", i)
    (tmp_path / "l.csv").write_text(
        "file,label\n"
        + "".join(f'"a{c}b{i}.mp4","dog{c}s"\n' for i, c in enumerate("\x85\u2028\u2029\x1c")),
        encoding="utf-8",
    )
    table = curate(tmp_path / "in", tmp_path / "o1", clip=SMALL)
    assert (
        len(table) == 6
        and (table.status == "kept").all()
        and curate(tmp_path / "in", tmp_path / "o1", clip=SMALL).equals(table)
    )
    assert (
        len(curate(tmp_path / "in", tmp_path / "o2", labels_file=tmp_path / "l.csv", clip=SMALL))
        == 4
    )


def test_numbers_that_cannot_be(tmp_path):
    for more, match in (
        (dict(shard_size=0), "at least one"),
        (dict(limit=0), "at least one"),
        (dict(engine="spark"), "local or ray"),
        (dict(shard=2, of=2), "below"),
    ):
        with pytest.raises(BadInput, match=match):
            curate(Factory(3), tmp_path / "out", clip=SMALL, **more)
    with pytest.raises(BadInput, match="An iterator cannot"):
        curate(iter(()), tmp_path / "a", clip=SMALL)


def test_refused_rows_name_the_clip_and_not_the_machine(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "page.mp4").write_text("<html>")
    table = curate(tmp_path / "in", tmp_path / "out", clip=SMALL)
    assert "'page.mp4'" in table.message[0] and str(tmp_path) not in table.message[0]


def test_from_the_command_line(tmp_path):
    "Two schedulers' tasks, human captions, the table and the summary."
    from typer.testing import CliRunner
    from scene4m.app.cli import app

    clips, file = tmp_path / "clips", write_list(tmp_path / "vgg.csv")
    for i, name in enumerate(("-abcdefghij_000030", "_bcdefghijk_5000_15000")):
        square(clips / f"{name}.mp4", i)
    (tmp_path / "captions.csv").write_text("youtube_id,vgg_start,caption\n_bcdefghijk,5,Two dogs\n")

    def run(*more):
        return CliRunner().invoke(
            app,
            [
                "curate",
                str(clips),
                "--vggsound",
                str(file),
                "--captions",
                str(tmp_path / "captions.csv"),
                "--out",
                str(tmp_path / "out"),
                "--workers",
                "1",
                *more,
            ],
        )

    first, second = run("--shard", "1", "--of", "2"), run("--shard", "0", "--of", "2")
    assert first.exit_code == second.exit_code == 0, (first.output, second.output)
    assert (
        "not finished" in first.output
        and "manifest.parquet" not in first.output
        and "2 of 5 clips kept" in second.output
    )
    assert (
        "refused, missing: 3" in second.output
        and "clips per second" in second.output
        and "driving buses" in second.output
    )
    assert ClipDataset(tmp_path / "out").row("_bcdefghijk_000005")["captions"] == '["Two dogs"]'
    wrong = run("--engine", "spark")
    assert wrong.exit_code == 1 and "local or ray" in wrong.output


def test_splits_never_cut_a_group():
    rows = [dict(group=f"g{i % 40}", label=LABELS[i % 4], split=None) for i in range(400)]
    assign_splits(rows)
    assert all(
        len({r["split"] for r in rows if r["group"] == g}) == 1 for g in {r["group"] for r in rows}
    )
    counts = Counter(r["split"] for r in rows)
    assert 0.1 < counts["test"] / 400 < 0.3 and 0.05 <= counts["val"] / 400 < 0.2
    given = assign_splits(
        [
            dict(group="a", label="x", split="val"),
            dict(group="a", label="x", split=None),
            dict(group="b", label="x", split=None),
        ]
    )
    assert [r["split"] for r in given][:2] == ["val", "val"]


def test_shards_read_by_webdataset(tmp_path):
    import webdataset

    curate(Factory(12), tmp_path, clip=SMALL, layout="shards", shard_size=5)
    pairs = []
    for modality in ("frames", "audio"):
        urls = [str(p) for p in sorted((tmp_path / modality).glob("*.tar"))]
        pairs.append(list(webdataset.WebDataset(urls, shardshuffle=False).decode()))
    assert (
        [a["__key__"] for a in pairs[0]]
        == [b["__key__"] for b in pairs[1]]
        == [f"c{i:04d}" for i in range(12)]
    )
    assert np.array_equal(pairs[0][3]["npy"], raw(3).frames)


def test_frozen_numbers():
    "Names and hashes that data sets on disk rely on."
    assert (
        safe_key("dir/My clip (1).mp4") == "My_clip__1__684e1516d0"
        and safe_key("ok-name_1.mp4") == "ok-name_1"
    )
    assert safe_key("OK.mp4", {"ok"}).startswith("OK_")


def test_rows_keep_a_group_of_videos_whole(tmp_path):
    rows = [(f"{i // 2:011d}", 10 * (i % 2), "dog barking", "train") for i in range(400)]
    (tmp_path / "clips").mkdir()
    out = vggsound_rows(write_list(tmp_path / "v.csv", rows), tmp_path / "clips", val_share=0.2)
    split = {}
    for r in out:
        assert split.setdefault(r.group, r.split) == r.split
    assert 0.1 < Counter(split.values())["val"] / 200 < 0.3


def test_folder_rows_are_in_a_fixed_order(tmp_path):
    for name in ("b.mp4", "a.mp4", "sub/c.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [r.source for r in folder_rows(tmp_path)] == ["a.mp4", "b.mp4", "sub/c.mp4"]


def test_clips_as_dicts(tmp_path):
    "What gives dicts with the names of `RawClip` is as good, from a list or a factory; other names are left out."

    class Dicts(Factory):
        def __getitem__(self, i):
            return dict(
                key=f"c{i}", frames=raw(i).frames, wave=raw(i).wave, label="wind chime", seen=True
            )

    for name, source in (
        ("f", Dicts(5)),
        ("l", [Dicts(5)[i] for i in range(5)]),
    ):
        table = curate(source, tmp_path / name, clip=SMALL, layout="folder")
        assert (
            len(table) == 5
            and (table.status == "kept").all()
            and set(table.label) == {"wind chime"}
        )
    with pytest.raises(BadInput, match="no key"):
        curate([dict(frames=None)], tmp_path / "n", clip=SMALL)


# ---------------------------------------------------------------- a row for everything that was asked for


def test_every_file_with_an_ending_has_a_row(tmp_path):
    "Hidden names too, and a link that leads nowhere; only what is still being written under a temporary name is no clip yet."
    (tmp_path / "in").mkdir()
    for i, name in enumerate(("..mp4", ".mp4", ".hidden.mp4", "a.mp4")):
        square(tmp_path / "x.mp4", i).rename(tmp_path / "in" / name)
    (tmp_path / "in" / "._a.mp4").write_bytes(b"\0\5\x16\7" + bytes(100))
    (tmp_path / "in" / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    square(tmp_path / "x.mp4", 9).rename(tmp_path / "in" / ".tmp-99-b.mp4")
    (tmp_path / "in" / "notes.txt").write_text("x")
    (tmp_path / "in" / "mp4").write_text("x")
    (tmp_path / "in" / "folder.mp4").mkdir()
    table = curate(tmp_path / "in", tmp_path / "out", clip=SMALL)
    assert dict(zip(table.source, table.reason)) == {
        "..mp4": "",
        ".mp4": "",
        ".hidden.mp4": "",
        "a.mp4": "",
        "._a.mp4": "not media",
        "gone.mp4": "missing",
        "mp4": "unknown ending",
        "notes.txt": "unknown ending",
    }
    data = ClipDataset(tmp_path / "out")
    assert (
        all(data.load("frames", k).shape == (4, 16, 16, 3) for k in data.keys())
        and verify_store(tmp_path / "out") == []
    )


def test_one_file_asked_for_many_times(tmp_path):
    square(tmp_path / "in" / "a.mp4")
    (tmp_path / "l.csv").write_text("file,label\n" + "a.mp4,dog\n" * 5)
    table = curate(tmp_path / "in", tmp_path / "out", labels_file=tmp_path / "l.csv", clip=SMALL)
    assert (
        list(table.reason) == ["", *["duplicate"] * 4]
        and len(set(table.key)) == 5
        and table.key[0] == "a"
    )
    (tmp_path / "l.csv").write_text("file,label\n" + "a.mp4,dog\n" * 20_000)
    assert len({r.key for r in folder_rows(tmp_path / "in", tmp_path / "l.csv")}) == 20_000


def test_damaged_lines_of_the_list_have_a_row(tmp_path):
    "Asked for by its label, but without an id or a second: a row says so. A line without a label, and a line of names, ask for nothing."
    rows = [
        ("youtube_id", "start_seconds", "label", "split"),
        ROWS[1],
        ("short", 3, "dog barking", "train"),
        ("eeeeeeeeee1", "seven", "people crowd", "test"),
        ("eeeeeeeeee1", "seven", "people crowd", "test"),
        ("dddddddddd1", "x", "baby crying", "train"),
        ("half",),
        ("cccccccccc1", -5, "dog barking", "train"),
    ]
    file = write_list(tmp_path / "vgg.csv", rows)
    square(tmp_path / "clips" / "_bcdefghijk_000005.mp4")
    table = curate(vggsound_rows(file, tmp_path / "clips"), tmp_path / "out", clip=SMALL)
    assert list(table.reason) == ["", "bad row", "bad row", "bad row"] and list(table.label) == [
        "dog barking",
        "dog barking",
        "people crowd",
        "dog barking",
    ]
    assert (
        "'seven'" in table.message[2]
        and list(vggsound_list(file)) == [ROWS[1]]
        and list(table.split[[0, 2]]) == ["test", "test"]
    )
    assert [r.reason for r in vggsound_rows(file, tmp_path / "clips", labels=None)].count(
        "bad row"
    ) == 4  # baby crying, and no line of names
    assert [r.reason for r in vggsound_rows(file, tmp_path / "clips", limit=2)] == ["", "bad row"]


def test_a_clip_that_fails_has_a_row_whatever_labels_are_asked_for(tmp_path):
    table = curate(Factory(15), tmp_path, clip=SMALL, labels=(LABELS[0],))
    assert (
        list(table.key) == ["c0000", "c0003", "c0006", "c0009", "c0012", "Factory-13"]
        and table.reason[5] == "failed"
    )


@pytest.mark.parametrize(
    "text",
    [
        "youtube_id,caption\n_bcdefghijk,Two dogs\n",
        "youtube_id,vgg_start,caption\n_bcdefghijk,five,Two dogs\n",
        "video_id,modality\nx,A\n",
        "youtube_id,vgg_start,caption\n_bcdefghijk\n",
    ],
)
def test_captions_that_cannot_be_joined_are_one_sentence(tmp_path, text):
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(BadInput, match="c.csv: needs the columns youtube_id, vgg_start, caption"):
        join_captions([], tmp_path / "c.csv")


def test_cells_that_only_look_like_json(tmp_path):
    "A thousand brackets are no reason to stop: text, in captions; nothing known, in attributes."
    square(tmp_path / "in" / "a.mp4")
    deep = "[" * 100_000
    with open(tmp_path / "in" / "labels.csv", "w", newline="") as f:
        csv.writer(f).writerows([("file", "captions", "attributes"), ("a.mp4", deep, deep)])
    rows = folder_rows(tmp_path / "in")
    assert rows[0].captions == (deep,) and rows[0].attributes is None


@pytest.mark.parametrize("kind", ["bz2", "xz"])
def test_archive_that_is_damaged_inside(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
    with tarfile.open(tmp_path / "x.tar", f"w:{kind}") as tar:
        for name in ("a.mp4", "b.mp4"):
            info = tarfile.TarInfo(name)
            info.size = len(noise)
            tar.addfile(info, io.BytesIO(noise))
    data = bytearray((tmp_path / "x.tar").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(BadInput, match="x.tar: the archive is broken"):
        unpack_clips(tmp_path / "x.tar", tmp_path / "in")
    assert not list((tmp_path / "in").rglob(".tmp-*"))


def test_what_is_not_ours_stays(tmp_path):
    "A shorter list sweeps out what a longer one left, and nothing that a person laid beside it."
    curate(Factory(10), tmp_path, clip=SMALL, shard_size=5)
    (tmp_path / "frames" / "notes.txt").write_text("mine")
    (tmp_path / "frames" / "old.npy").mkdir()
    (tmp_path / "frames" / "c0003.backup").write_text("mine")
    curate(Factory(4), tmp_path, clip=SMALL, shard_size=5)
    assert sorted(p.name for p in (tmp_path / "frames").iterdir()) == [
        "c0000.npy",
        "c0001.npy",
        "c0002.npy",
        "c0003.backup",
        "c0003.npy",
        "notes.txt",
        "old.npy",
    ]


def test_a_damaged_manifest_is_one_sentence_and_is_made_again(tmp_path):
    curate(Factory(4), tmp_path, clip=SMALL)
    before = tree(tmp_path)
    (tmp_path / "manifest.parquet").write_bytes(before["manifest.parquet"][:200])
    with pytest.raises(BadInput, match="manifest is damaged"):
        ClipDataset(tmp_path)
    curate(Factory(4), tmp_path, clip=SMALL)
    assert tree(tmp_path) == before


def test_a_file_that_cannot_be_removed_is_one_sentence(tmp_path):
    curate(Factory(4), tmp_path, clip=SMALL)
    array = tmp_path / "frames" / "c0001.npy"
    array.unlink()
    array.mkdir()
    (array / "x").write_text("in the way")
    with pytest.raises(BadInput, match="cannot be written"):
        curate(Factory(4), tmp_path, clip=SMALL)
    (array / "x").unlink()
    array.rmdir()
    assert len(curate(Factory(4), tmp_path, clip=SMALL)) == 4 and verify_store(tmp_path) == []
