"""Fetching clips: what is lost for ever and what only for today, the wishes of a person, and clips that someone has already."""

import importlib.util
import io
import json
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scene4m.app.cli import app
from scene4m.base.core import BadInput
from scene4m.worlds.vggsound import vggsound_list
from scene4m.base import downloads
from scene4m.base.downloads import (
    add_archive,
    clip_files,
    download,
    failure_kind,
    fetch_options,
    unpack_clips,
)

HINT = "Use --cookies-from-browser or --cookies for the authentication. See https://github.com/yt-dlp/yt-dlp/wiki/FAQ"
LIMITED = "The current session has been rate-limited by YouTube for up to an hour."
SAID = {
    "gone": [
        "Video unavailable",
        "Video unavailable. This video has been removed by the uploader",
        "This video has been removed for violating YouTube's policy on hate speech.",
        "Video unavailable. This video is no longer available because the YouTube account associated with this video has been terminated.",
        "Video unavailable. This video is no longer available because the uploader has closed their YouTube account.",
        "Video unavailable. This video is no longer available due to a copyright claim by Someone",
    ],
    "private": [
        f"Private video. Sign in if you've been granted access to this video. {HINT}",
        "Join this channel to get access to members-only content like this video, and other exclusive perks.",
        "This video is available to this channel's members on level: Fan (or any higher level).",
    ],
    "blocked": [
        f"Sign in to confirm your age. This video may be inappropriate for some users. {HINT}",
        "Video unavailable. The uploader has not made this video available in your country",
        "Video unavailable. This video contains content from Someone, who has blocked it in your country on copyright grounds",
        "Video unavailable. This video contains content from Someone, who has blocked it on copyright grounds",
        "This video is not available from your location due to geo restriction",
    ],
    "throttled": [
        f"Sign in to confirm you’re not a bot. {HINT}",
        f"Sign in to confirm you're not a bot. {HINT}",
        "unable to download video data: HTTP Error 403: Forbidden",
        "Unable to download API page: HTTP Error 429: Too Many Requests (caused by <HTTPError 429: Too Many Requests>)",
        "Unable to download webpage: HTTP Error 503: Service Unavailable",
        f"Video unavailable. This content isn't available, try again later. {LIMITED}",
        "All player responses are invalid. Your IP is likely being blocked by Youtube",
        "Video unavailable. YouTube is requiring a captcha challenge before playback",
    ],
    "failed": [
        "Requested format is not available. Use --list-formats for a list of available formats",
        "Video unavailable. This content isn’t available.",
        "Video unavailable. Playback on other websites has been disabled by the video owner",
        "This video is not available",
        "The following content is not available on this app.. Watch on the latest version of YouTube.",
        "Failed to extract any player response",
        "Unable to download webpage: The read operation timed out (caused by TransportError('The read operation timed out'))",
        "Unable to download webpage: [Errno -2] Name or service not known",
        "unable to write data: [Errno 28] No space left on device",
        "HTTP Error 404: Not Found",
        "Please sign in",
        "This video is DRM protected",
    ],
}
PASSING = ("throttled", "failed")


@pytest.fixture
def vggsound(tmp_path) -> Path:
    "A list of twenty clips."
    rows = "".join(f"{i:011d},30,dog barking,train\n" for i in range(20))
    (tmp_path / "vggsound.csv").write_text(rows)
    return tmp_path / "vggsound.csv"


def listed(file: Path) -> list:
    return list(vggsound_list(file))


def saying(message: str, asked: list | None = None):
    "A stand-in for yt-dlp that says the same of every clip."

    def fetch(youtube_id, start, seconds, folder, whole):
        if asked is not None:
            asked.append(youtube_id)
        raise RuntimeError(f"ERROR: [youtube] {youtube_id}: {message}")

    return fetch


def writing(youtube_id, start, seconds, folder, whole):
    "A stand-in for yt-dlp that gets every clip."
    (folder / f"{youtube_id}_{start:06d}.mp4").write_bytes(b"clip")


@pytest.mark.parametrize(
    "kind, message", [(k, m) for k, messages in SAID.items() for m in messages]
)
def test_only_what_an_owner_did_is_for_ever(kind, message):
    assert failure_kind(f"ERROR: [youtube] abcdefghijk: {message}", "abcdefghijk") == kind


@pytest.mark.parametrize(
    "youtube_id", ["429abcdefgh", "-404-403-500", "HTTP_403_ab", "not a bot_x"]
)
def test_the_spelling_of_an_id_never_decides(youtube_id):
    for kind, messages in SAID.items():
        for message in messages:
            assert failure_kind(f"ERROR: [youtube] {youtube_id}: {message}", youtube_id) == kind
    assert failure_kind(f"No such file: /data/429/403/{youtube_id}.mp4", youtube_id) == "failed"


@pytest.mark.parametrize("message", [m for kind in PASSING for m in SAID[kind]])
def test_nothing_is_lost_on_a_broken_day(vggsound, tmp_path, message):
    "The day ends after a few clips with one sentence; the same command gets all of them on the next."
    asked = []
    with pytest.raises(BadInput, match="Nothing is lost") as error:
        download(listed(vggsound), tmp_path / "clips", fetch=saying(message, asked), pause=0)
    assert len(asked) <= 20 and message[:20] in str(error.value)
    assert download(listed(vggsound), tmp_path / "clips", fetch=writing, pause=0) == dict(done=20)


@pytest.mark.parametrize("kind", ["gone", "private", "blocked"])
def test_what_is_for_ever_is_not_asked_again(vggsound, tmp_path, kind):
    message = SAID[kind][0]
    assert download(listed(vggsound), tmp_path / "clips", fetch=saying(message), pause=0) == {
        kind: 20
    }
    assert download(listed(vggsound), tmp_path / "clips", fetch=writing, pause=0) == {}
    again = download(
        listed(vggsound), tmp_path / "clips", fetch=writing, pause=0, retry=(*PASSING, kind)
    )
    assert again == dict(done=20)


def test_a_refusal_now_and_then_is_no_reason_to_stop(vggsound, tmp_path):
    def fetch(youtube_id, *more):
        if int(youtube_id) % 5 < 4:
            raise RuntimeError("HTTP Error 403: Forbidden")
        writing(youtube_id, *more)

    assert download(listed(vggsound), tmp_path / "clips", fetch=fetch, pause=0) == dict(
        throttled=16, done=4
    )


def test_several_at_a_time(vggsound, tmp_path):
    "Three fetch at the same time, each line of the ledger is whole, and all stop together."
    together = threading.Barrier(3, timeout=60)

    def fetch(youtube_id, *more):
        if int(youtube_id) < 18:
            together.wait()
        writing(youtube_id, *more)

    assert download(listed(vggsound), tmp_path / "clips", fetch=fetch, pause=0, jobs=3) == dict(
        done=20
    )
    lines = [
        json.loads(line)
        for line in (tmp_path / "clips" / "downloads.jsonl").read_text().splitlines()
    ]
    assert sorted(line["key"] for line in lines) == sorted(f"{i:011d}_000030" for i in range(20))
    asked = []
    with pytest.raises(BadInput, match="refused 5 clips"):
        download(
            listed(vggsound),
            tmp_path / "none",
            fetch=saying("HTTP Error 429", asked),
            pause=0.2,
            jobs=3,
        )
    assert len(asked) < 20


def test_the_disk_is_told_also_from_a_thread(vggsound, tmp_path, monkeypatch):
    def full(path):
        raise BadInput(f"{path}: cannot be written")

    fetch_one = downloads._fetch_one

    def in_a_thread(*args):
        monkeypatch.setattr(downloads, "writing", full)
        return fetch_one(*args)

    monkeypatch.setattr(downloads, "_fetch_one", in_a_thread)
    with pytest.raises(BadInput, match="cannot be written"):
        download(listed(vggsound), tmp_path / "clips", fetch=writing, pause=0, jobs=2)


# ---------------------------------------------------------------- the wishes of a person

COOKIES = "# Netscape HTTP Cookie File\n.youtube.com\tTRUE\t/\tTRUE\t0\tSID\tsecret\n"


@pytest.fixture
def asked(monkeypatch) -> list:
    "The options that every `YoutubeDL` was made with; nothing is fetched, but a file lies there."
    yt_dlp = pytest.importorskip("yt_dlp")
    seen = []

    class Stand_in:
        def __init__(self, options):
            self.options = options

        def __enter__(self):
            return self

        def __exit__(self, *a):
            pass

        def download(self, urls):
            seen.append({**self.options, "url": urls[0]})
            if "cookiefile" in self.options:
                seen[-1]["read"] = self.options["cookiefile"].read()
                self.options["cookiefile"].truncate(0)
            Path(self.options["outtmpl"].replace("%(ext)s", "mp4")).write_bytes(b"clip")

    monkeypatch.setattr(yt_dlp, "YoutubeDL", Stand_in)
    return seen


def typed(*args):
    return CliRunner().invoke(app, ["download", *map(str, args)])


def test_wishes_reach_yt_dlp(asked, vggsound, tmp_path):
    (tmp_path / "cookies.txt").write_text(COOKIES)
    done = typed(
        vggsound,
        "--out",
        tmp_path / "clips",
        "--limit",
        2,
        "--pause",
        0,
        "--jobs",
        2,
        "--whole",
        "--rate",
        "500K",
        "--proxy",
        "socks5://localhost:1080",
        "--cookies",
        tmp_path / "cookies.txt",
    )
    assert done.exit_code == 0 and "done 2" in done.output, done.output
    for options in asked:
        assert (
            options["ratelimit"] == 500 * 1024
            and options["proxy"] == "socks5://localhost:1080"
            and options["read"] == COOKIES
        )
    assert (tmp_path / "cookies.txt").read_text() == COOKIES


def test_cookies_ask_again_for_what_needs_an_account(asked, vggsound, tmp_path):
    download(
        listed(vggsound), tmp_path / "clips", fetch=saying("Sign in to confirm your age"), pause=0
    )
    assert "nothing was left" in typed(vggsound, "--out", tmp_path / "clips", "--pause", 0).output
    done = typed(vggsound, "--out", tmp_path / "clips", "--pause", 0, "--cookies", "firefox")
    assert "done 20" in done.output and asked[0]["cookiesfrombrowser"] == (
        "firefox",
        None,
        None,
        None,
    )


def test_what_failed_for_today_is_told(asked, vggsound, tmp_path, monkeypatch):
    monkeypatch.setattr(
        downloads,
        "yt_dlp_fetch",
        lambda *a, options: saying("Requested format is not available")(*a),
    )
    done = typed(vggsound, "--out", tmp_path / "clips", "--limit", 3, "--pause", 0)
    assert "failed 3" in done.output and "the same command" in done.output


@pytest.mark.parametrize(
    "wish, word",
    [
        (["--cookies", "nowhere.txt"], "no such file"),
        (["--cookies", "page.html"], "Netscape"),
        (["--proxy", "localhost:3128"], "http://"),
        (["--proxy", "socks5://localhost:1080"], "whole"),
        (["--rate", "fast", "--whole"], "500K"),
        (["--rate", "500K"], "pause"),
    ],
)
def test_wishes_without_effect_are_refused(asked, vggsound, tmp_path, monkeypatch, wish, word):
    monkeypatch.chdir(tmp_path)
    Path("page.html").write_text("<html>")
    done = typed(vggsound, *wish)
    assert done.exit_code == 1 and word in done.output and done.output.count("\n") <= 2, done.output
    assert not asked and not Path("clips").exists()


def test_the_real_library_takes_the_options(tmp_path):
    yt_dlp = pytest.importorskip("yt_dlp")
    (tmp_path / "cookies.txt").write_text(COOKIES)
    options = fetch_options(
        str(tmp_path / "cookies.txt"), "http://localhost:3128", "500K", whole=True
    )
    options["cookiefile"] = io.StringIO(options["cookiefile"])
    with yt_dlp.YoutubeDL(dict(options, quiet=True)) as y:
        assert [c.value for c in y.cookiejar] == ["secret"] and y.params["ratelimit"] == 512_000


# ---------------------------------------------------------------- what someone has already

NAMES = [
    "video/00000000001_000030.mp4",
    "00000000002_30000_40000.webm",
    "00000000003.mkv",
    "00000000001_000030.mp4",
    "video/holiday.mp4",
    "99999999999_000030.mp4",
    "../00000000004_000030.mp4",
    "/00000000005_000030.mp4",
    "00000000006_000030.txt",
]


def packed(tmp_path: Path, kind: str) -> Path:
    "The same members as a folder, a zip file or a tar file."
    if kind == "folder":
        for name in NAMES:
            path = tmp_path / "deep" / "mirror" / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"clip")
        return tmp_path / "deep" / "mirror"
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "mirror.zip", "w") as z:
            for name in NAMES:
                z.writestr(name, b"clip")
            link = zipfile.ZipInfo("00000000007_000030.mp4")
            link.external_attr = 0o120777 << 16
            z.writestr(link, "/etc/passwd")
        return tmp_path / "mirror.zip"
    with tarfile.open(tmp_path / "mirror.tgz", "w:gz") as tar:
        for name in NAMES:
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"clip"))
        link = tarfile.TarInfo("00000000007_000030.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return tmp_path / "mirror.tgz"


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_clips_that_someone_has_go_in(vggsound, tmp_path, kind, monkeypatch):
    "Those of the list, once each, below the folder and nowhere else; no yt-dlp is needed."
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    archive, out = packed(tmp_path, kind), tmp_path / "in" / "clips"
    done = typed(vggsound, "--out", out, "--archive", archive)
    assert done.exit_code == 0, done.output
    found = clip_files(out)
    expected = {("00000000001", 30), ("00000000002", 30), ("00000000003", None)}
    assert set(found) == expected | ({("00000000005", 30)} if kind == "folder" else set())
    assert (
        f"{len(found)} clips" in done.output
        and f"{20 - len(found)} of the list are still missing" in done.output
    )
    assert (
        not list((tmp_path / "in").glob("*.mp4")) and not Path("/00000000005_000030.mp4").exists()
    )
    again = typed(vggsound, "--out", out, "--archive", archive)
    assert again.exit_code == 0 and "0 clips" in again.output and clip_files(out) == found
    assert download(listed(vggsound), out, fetch=writing, pause=0) == dict(done=20 - len(found))


@pytest.mark.parametrize("content", [b"no archive at all" * 100, b"PK\3\4 half a zip file", b""])
def test_what_is_no_archive_is_told(vggsound, tmp_path, content):
    (tmp_path / "mirror.zip").write_bytes(content)
    done = typed(vggsound, "--out", tmp_path / "clips", "--archive", tmp_path / "mirror.zip")
    assert done.exit_code == 1 and "mirror.zip" in done.output and "broken" in done.output
    nowhere = typed(vggsound, "--out", tmp_path / "clips", "--archive", tmp_path / "nowhere.tar")
    assert nowhere.exit_code == 1 and "no such folder or archive" in nowhere.output


def test_a_locked_or_damaged_zip_is_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "mirror.zip", "w") as z:
        z.writestr("00000000001_000030.mp4", b"clip" * 100)
    whole = (tmp_path / "mirror.zip").read_bytes()
    (tmp_path / "mirror.zip").write_bytes(whole.replace(b"clipclip", b"clipclop", 1))
    with pytest.raises(BadInput, match="broken"):
        unpack_clips(tmp_path / "mirror.zip", tmp_path / "clips")
    assert not list((tmp_path / "clips").rglob("*.mp4")) and not list(
        (tmp_path / "clips").rglob(".tmp-*")
    )


def test_a_whole_video_is_not_taken_for_a_clip_that_is_there(vggsound, tmp_path):
    (tmp_path / "clips").mkdir()
    writing("00000000003", 30, 10.0, tmp_path / "clips", False)
    counts = add_archive(listed(vggsound), packed(tmp_path, "tar"), tmp_path / "clips")
    assert counts["unpacked"] == 2 and counts["missing"] == 17


def test_a_whole_video_is_fetched_once(tmp_path):
    (tmp_path / "vggsound.csv").write_text(
        "00000000001,30,dog barking,train\n00000000001,60,dog barking,train\n"
    )
    asked = []

    def fetch(youtube_id, start, seconds, folder, whole):
        asked.append(youtube_id)
        (folder / f"{youtube_id}.mp4").write_bytes(b"video")

    assert download(
        listed(tmp_path / "vggsound.csv"), tmp_path / "clips", fetch=fetch, pause=0, whole=True
    ) == dict(done=1)
    assert asked == ["00000000001"]
